"""Priors against closed forms, quadrature and their own draws."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

import pvae
from pvae import priors
from pvae.ais import Annealing, ais
from pvae.data import load, pixels
from pvae.distributions import DiagonalNormal
from pvae.distributions.mixtures import FiniteMixture
from pvae.evaluate import evaluate

SHAPE = (3, 2)


def randomize(part, by=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return part


def vamp(components=7, latent=2, guide=pvae.MeanField, encoder=None, **options):
    """A VampPrior in a model whose likelihood's data are (3, 2)."""
    encoder = encoder or pvae.MLPEncoder(SHAPE, 2 * latent, [8], "tanh")
    likelihood = pvae.Bernoulli(pvae.MLPDecoder(latent, SHAPE, [8]), SHAPE)
    return pvae.VAE(priors.Vamp(latent, components, **options), likelihood, guide(encoder, latent))


def made(name, latent):
    """A prior with parameters that are not where they start, float64, in evaluation."""
    part = {
        "learned_normal": lambda: priors.LearnedNormal(latent),
        "laplace": lambda: priors.Laplace(latent, scale=0.7),
        "student_t": lambda: priors.StudentT(latent, df=6.0),
        "mixture": lambda: priors.Mixture(latent, components=4),
        "vamp": lambda: vamp(4, latent).prior,
        "resampled": lambda: priors.Resampled(latent, hidden=(8,), truncation=5),
        "energy": lambda: priors.Energy(latent, hidden=(8,)),
        "class_normal": lambda: priors.ClassNormal(latent, condition=pvae.Label(3)),
    }[name]()
    if name == "vamp":
        randomize(part.guide).double()
    return randomize(part).double().eval()


def grid(latent, half=25.0, n=1201):
    """Points (N, latent) and the cell's size, for a sum over all of the plane or the line."""
    axis = torch.linspace(-half, half, n, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * latent).reshape(-1, latent)
    return points, (axis[1] - axis[0]).item() ** latent


NAMES = ["learned_normal", "laplace", "student_t", "mixture", "vamp", "resampled", "energy", "class_normal"]


# Every prior ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_density_integrates_to_one(name, latent):
    z, cell = grid(latent)
    p = made(name, latent)(torch.tensor(1))
    total = p.log_prob(z).exp().sum().item() * cell
    # resampled: its normalizer is estimated; student_t: what is beyond the grid; laplace: the kink
    assert total == pytest.approx(
        1, abs={"resampled": 0.02, "energy": 0.02, "student_t": 1e-5, "laplace": 2e-3}.get(name, 1e-5)
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_model_can_dream(name):
    """Reweighted wake-sleep draws from the prior within the step."""
    part = made(name, 2).float().train()
    encoder = pvae.MLPEncoder(SHAPE, 4, [8])
    likelihood = pvae.Bernoulli(pvae.MLPDecoder(2, SHAPE, [8]), SHAPE)
    vae = pvae.VAE(part, likelihood, pvae.MeanField(encoder, 2))
    x, y = torch.bernoulli(torch.rand(8, *SHAPE)), torch.arange(8) % 3
    objective = pvae.IWAE(3, gradient=pvae.estimators.ReweightedWakeSleep("both"))
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), objective, compile="graph")
    assert all(math.isfinite(svi.step(x, y)) for _ in range(3))


# Closed forms ---------------------------------------------------------------------------------------------------------


def test_learned_normal_starts_standard_and_is_the_normal_of_its_parameters():
    z = torch.randn(5, 3).double()
    part = priors.LearnedNormal(3).double()
    torch.testing.assert_close(part().log_prob(z), pvae.Normal(3).double()().log_prob(z))
    randomize(part)
    expected = scipy.stats.norm.logpdf(z, part.loc.detach(), part.log_scale.detach().exp()).sum(-1)
    torch.testing.assert_close(part().log_prob(z).detach(), torch.from_numpy(expected))


@pytest.mark.parametrize("value", [0.3, 1.0, 4.5])
def test_laplace_and_student_t_are_scipys(value):
    z = 3 * torch.randn(5, 3).double()
    expected = scipy.stats.laplace.logpdf(z, scale=value).sum(-1)
    torch.testing.assert_close(
        priors.Laplace(3, scale=value).double()().log_prob(z).numpy(), expected, rtol=1e-6, atol=0
    )
    expected = scipy.stats.t.logpdf(z, df=value).sum(-1)
    torch.testing.assert_close(priors.StudentT(3, df=value).double()().log_prob(z).numpy(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("df", [0.3, 5.0, 1e3, 1e5, 1e9, 1e30])
def test_student_t_keeps_its_digits_in_float32(df):
    z = torch.linspace(-3, 3, 51)
    expected = scipy.stats.t.logpdf(z.double(), df) if df < 1e10 else scipy.stats.norm.logpdf(z.double())
    found = priors.StudentT(1, df=df)().expand([51]).log_prob(z[:, None])
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-6)


def test_class_normal_gives_each_label_its_own():
    part = priors.ClassNormal(2, condition=pvae.Label(3))
    y, z = torch.tensor([2, 0, 2]), torch.randn(3, 2)
    torch.testing.assert_close(part(y).log_prob(z), pvae.Normal(2)().log_prob(z))
    randomize(part)
    weight, bias = part.linear.weight.detach(), part.linear.bias.detach()
    loc, log_scale = (weight[:, y].T + bias).chunk(2, -1)
    torch.testing.assert_close(part(y).mean, loc)
    torch.testing.assert_close(part(y).log_prob(z), dist.Normal(loc, log_scale.exp()).to_event(1).log_prob(z))


def test_class_normal_is_linear_in_covariates():
    y = torch.randn(50, 2) * torch.tensor([1.0, 4.0]) + 2
    part = randomize(priors.ClassNormal(3, condition=pvae.Covariates.of(y)))
    middle = part(y.mean(0)).mean
    torch.testing.assert_close(middle, part.linear.bias[:3])
    step = torch.tensor([0.0, 1.0])
    change = part(y.mean(0) + step).mean - middle
    torch.testing.assert_close(part(y.mean(0) + 2 * step).mean - middle, 2 * change, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(change, part.linear.weight[:3, 1] / y.std(0)[1], rtol=1e-4, atol=1e-5)


def test_class_normal_learns_the_means_of_classes():
    """The maximum likelihood of latents with labels: their means and deviations by class."""
    y = torch.arange(600) % 3
    z = torch.randn(600, 2).double() * (1 + y[:, None]) + torch.tensor([[0.0, 1.0], [4.0, -2.0], [-3.0, 0.0]])[y]
    part = priors.ClassNormal(2, condition=pvae.Label(3)).double()
    optimizer = torch.optim.LBFGS(part.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -part(y).log_prob(z).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    for c in range(3):
        p = part(torch.tensor(c))
        torch.testing.assert_close(p.mean, z[y == c].mean(0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(p.stddev, z[y == c].std(0, correction=0), rtol=1e-3, atol=1e-3)


# Mixtures -------------------------------------------------------------------------------------------------------------


def by_torch(log_weights, loc, scale):
    return dist.MixtureSameFamily(dist.Categorical(logits=log_weights), dist.Normal(loc, scale).to_event(1))


def parameters(*batch, components=6, latent=3):
    shape = (*batch, components)
    scale = torch.rand(*shape, latent).double() + 0.2
    return torch.randn(shape).double(), 2 * torch.randn(*shape, latent).double(), scale


@pytest.mark.parametrize("batch", [(), (4,), (2, 4)], ids=str)
def test_a_finite_mixture_is_torchs_in_value_gradient_and_moments(batch):
    found, expected = ([p.requires_grad_() for p in parameters(*batch)] for _ in range(2))
    for a, b in zip(found, expected, strict=True):
        b.data.copy_(a.data)
    z = torch.randn(5, 2, 4, 3).double().requires_grad_()
    ours, theirs = FiniteMixture(found[0], DiagonalNormal(*found[1:])), by_torch(*expected)
    assert (ours.batch_shape, ours.event_shape) == (batch, (3,))
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    weight = torch.randn(5, 2, 4).double()
    grads = [
        torch.autograd.grad((p.log_prob(z) * weight).sum(), [z, *own]) for p, own in ((ours, found), (theirs, expected))
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kind", ["normal", "full", "bernoulli"])
def test_a_finite_mixture_of_any_components(kind):
    log_weights, loc, _ = parameters(4)
    components = {
        "normal": lambda: dist.Normal(loc, 0.5).to_event(1),
        "full": lambda: dist.MultivariateNormal(loc, torch.eye(3).double()),
        "bernoulli": lambda: dist.Bernoulli(logits=loc).to_event(1),
    }[kind]()
    ours = FiniteMixture(log_weights, components)
    theirs = dist.MixtureSameFamily(dist.Categorical(logits=log_weights), components)
    z = theirs.sample((6,))
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    draws = ours.sample((20_000,))
    assert draws.shape == (20_000, 4, 3)
    error = (theirs.variance / len(draws)).sqrt()
    assert ((draws.mean(0) - theirs.mean).abs() < 4.5 * error).all()


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("cast", ["float32", "bf16"])
def test_products_keep_the_digits_of_small_scales(scale, cast):
    """The square multiplied out in float32 would lose (m/s)^2 * 1e-7 nats: 60 of them at s = 1e-4."""
    torch.manual_seed(1)
    loc, z = 3 * torch.randn(50, 20), torch.randn(8, 20)
    z[0] = loc[7] + scale * torch.randn(20)
    scales = torch.full_like(loc, scale)
    log_weights = torch.zeros(50)
    exact = by_torch(log_weights.double(), loc.double(), scales.double()).log_prob(z.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "bf16"):
        found = FiniteMixture(log_weights, DiagonalNormal(loc, scales)).log_prob(z)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-4)


def test_a_mixture_prior_starts_close_to_the_standard_normal():
    p = priors.Mixture(2, components=2000)()
    torch.testing.assert_close(p.variance, torch.ones(2), rtol=0.1, atol=0)
    torch.testing.assert_close(p.mean, torch.zeros(2), rtol=0, atol=0.1)
    assert p.components.loc.std() > 0.5


# The VampPrior --------------------------------------------------------------------------------------------------------


def test_vamp_is_the_mixture_of_posteriors_at_its_inputs():
    vae = randomize(vamp())
    z = torch.randn(4, 5, 2)
    q = vae.posterior(vae.prior.pseudo_inputs)
    torch.testing.assert_close(vae.prior().log_prob(z), by_torch(torch.zeros(7), q.mean, q.stddev).log_prob(z))
    direct = torch.stack([q.log_prob(z[..., None, :])[..., c] for c in range(7)], -1).exp().mean(-1).log()
    torch.testing.assert_close(vae.prior().log_prob(z), direct)


class Full(pvae.Guide):
    """A guide that is no diagonal normal."""

    outputs = 3

    def forward(self, x, y=None):
        mean, a, b = self.encode(x, y).chunk(3, -1)
        root = torch.eye(self.latent) * (1 + a.square()).unsqueeze(-1) + b.unsqueeze(-1).tril(-1)
        return dist.MultivariateNormal(mean, scale_tril=root)


def test_vamp_of_another_guide():
    vae = vamp(guide=Full, encoder=pvae.MLPEncoder(SHAPE, 6, [8]))
    z = torch.randn(4, 5, 2)
    q = vae.posterior(vae.prior.pseudo_inputs)
    expected = dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(7)), q)
    torch.testing.assert_close(vae.prior().log_prob(z), expected.log_prob(z))
    assert vae.sample(3).shape == (3, *SHAPE)


def test_vamp_trains_its_inputs_and_the_guide_through_them():
    vae = vamp()
    vae.prior().log_prob(torch.randn(5, 2)).sum().backward()
    assert vae.prior.pseudo_inputs.grad.norm() > 0
    assert all(p.grad.norm() > 0 for p in vae.posterior.parameters())


def test_estimators_agree_on_the_gradient_of_a_prior_made_of_the_guide():
    """Those that stop the guide's parameters in log q(z|x) leave them in log p(z)."""
    vae = randomize(vamp(3))
    x = torch.bernoulli(torch.rand(4, *SHAPE)).repeat(50, 1, 1)
    mean, error = {}, {}
    for gradient in ("reparam", "dreg", "score"):
        objective = pvae.IWAE(4, gradient=gradient)
        found = []
        for _ in range(40):
            vae.zero_grad()
            objective.loss_and_grads(vae.model, vae.guide, x)
            found.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
        found = torch.stack(found)
        mean[gradient], error[gradient] = found.mean(0), found.std(0) / math.sqrt(len(found))
    for gradient in ("dreg", "score"):
        both = (error["reparam"].square() + error[gradient].square()).sqrt() + 1e-6
        assert ((mean["reparam"] - mean[gradient]).abs() / both).max() < 5


def test_vamp_owns_its_inputs_alone():
    vae = vamp()
    assert [name for name, _ in vae.prior.named_parameters()] == ["pseudo_inputs"]
    assert list(vae.prior.state_dict()) == ["pseudo_inputs"]
    assert len(list(vae.parameters())) == len({id(p) for p in vae.parameters()})
    other = copy.deepcopy(vae)
    assert other.prior.guide is other.posterior
    assert other.prior.guide is not vae.posterior


def test_vamp_of_data_keeps_them():
    x = torch.rand(30, *SHAPE)
    vae = vamp(20, inputs="data").initialize(x)
    assert list(vae.prior.parameters()) == []
    assert list(vae.prior.state_dict()) == ["pseudo_inputs"]
    same = (vae.prior.pseudo_inputs[:, None] == x).flatten(2).all(-1)
    assert (same.sum(1) == 1).all()
    assert same.any(0).sum() == 20  # different ones


def test_vamp_starts_at_training_data():
    x = torch.rand(30, *SHAPE)
    vae = vamp().initialize(x)
    near = (vae.prior.pseudo_inputs[:, None] - x).abs().flatten(2).amax(-1).amin(1)
    assert near.max() < 0.06
    few = vamp().initialize(x[:2]).prior.pseudo_inputs
    assert len(few.flatten(1).unique(dim=0)) == 7  # not twice the same, or they would stay it


def conditioned(condition, components=7, **options):
    encoder = pvae.ConditionedEncoder(pvae.MLPEncoder(SHAPE, 4, [8], context=condition.size), condition)
    return vamp(components, encoder=encoder, **options)


@pytest.mark.parametrize("inputs", ["learned", "data"])
def test_vamp_of_a_conditioned_guide_has_a_label_for_each_input(inputs):
    vae = conditioned(pvae.Label(3), inputs=inputs)
    assert vae.prior.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    x = torch.rand(30, *SHAPE)
    y = torch.arange(30) % 3
    vae.initialize(x, y)
    nearest = (vae.prior.pseudo_inputs[:, None] - x).flatten(2).norm(dim=-1).argmin(1)
    assert torch.equal(vae.prior.labels, y[nearest])
    z = torch.randn(4, 2)
    q = vae.posterior(vae.prior.pseudo_inputs, y[nearest])
    expected = by_torch(torch.zeros(7), q.mean, q.stddev).log_prob(z)
    torch.testing.assert_close(vae.prior(y[:4]).log_prob(z), expected)  # whatever the data's own labels are
    pvae.IWAE(3).loss_and_grads(vae.model, vae.guide, x.round(), y)
    other = conditioned(pvae.Label(3), inputs=inputs)
    other.load_state_dict(vae.state_dict())
    torch.testing.assert_close(other.prior().log_prob(z), vae.prior().log_prob(z))


def test_vamp_of_a_guide_with_covariates():
    x, y = torch.rand(30, *SHAPE), torch.randn(30, 2)
    vae = conditioned(pvae.Covariates.of(y)).initialize(x, y)
    nearest = (vae.prior.pseudo_inputs[:, None] - x).flatten(2).norm(dim=-1).argmin(1)
    assert torch.equal(vae.prior.labels, y[nearest])
    pvae.ELBO().loss_and_grads(vae.model, vae.guide, x.round(), y)


class Point(pvae.Guide):
    outputs = 1

    def forward(self, x, y=None):
        return dist.Delta(self.encode(x, y), event_dim=1)


class OneWay(pvae.Guide):
    outputs = 1

    def forward(self, x, y=None):
        flow = dist.transforms.Planar(self.latent)
        return dist.TransformedDistribution(dist.Normal(self.encode(x, y), 1.0).to_event(1), [flow])


class Elsewhere(pvae.MeanField):
    support = "the sphere"


@pytest.mark.parametrize("guide", [Point, OneWay])
def test_vamp_refuses_a_guide_without_a_density(guide):
    message = f"prior vamp: guide {guide.__name__} has no density away from its own draws.*: expected one"
    with pytest.raises(pvae.InputError, match=message):
        vamp(guide=guide, encoder=pvae.MLPEncoder(SHAPE, 2))


def test_vamp_lies_where_its_guide_does():
    assert vamp(guide=Elsewhere).prior.support == "the sphere"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: priors.Vamp(2)(), "prior vamp: it is made of a guide and has none: join it to one by VAE"),
        (lambda: priors.Vamp(2, inputs="dta"), "inputs: found 'dta', expected learned or data: did you mean 'data'"),
        (lambda: priors.Vamp(2, components=0), "components: found 0, expected at least 1"),
        (lambda: priors.Mixture(2, components=0), "components: found 0, expected at least 1"),
        (lambda: priors.Laplace(2, scale=0.0), "scale: found 0.0, expected more than 0"),
        (lambda: priors.StudentT(2, df=-1.0), "df: found -1.0, expected more than 0"),
        (lambda: priors.Energy(2, bound=0.0), "bound: found 0.0, expected more than 0"),
        (lambda: priors.Resampled(2, truncation=0), "truncation: found 0, expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(wrong, message):
    with pytest.raises(pvae.InputError, match=message) as found:
        wrong()
    assert "\n" not in str(found.value)


def test_vamp_joins_parts_of_another_precision():
    before = vamp()
    likelihood, guide = before.likelihood.double(), before.posterior.double()
    again = pvae.VAE(priors.Vamp(2, 7).double(), likelihood, guide)
    assert again.prior().log_prob(torch.zeros(2).double()).dtype == torch.float64


def test_vamp_is_joined_again_with_what_it_has_learned():
    vae = vamp()
    before = vae.prior.pseudo_inputs
    again = pvae.VAE(vae.prior, vae.likelihood, pvae.MeanField(pvae.MLPEncoder(SHAPE, 4), 2))
    assert again.prior.pseudo_inputs is before
    assert again.prior.guide is again.posterior


# Truncated rejection --------------------------------------------------------------------------------------------------


def resampled(truncation, latent=1, by=2.0):
    return randomize(priors.Resampled(latent, hidden=(8,), truncation=truncation), by).double()


def average(part, tilt):
    """E_N[tilt(z)] by quadrature."""
    z, cell = grid(part.latent)
    weight = pvae.Normal(part.latent).double()().log_prob(z).exp() * cell
    return (weight * tilt(z)).sum()


@pytest.mark.parametrize("truncation", [2, 5, 100])
def test_resampled_with_the_exact_rate_integrates_to_one(truncation):
    part = resampled(truncation)
    z, cell = grid(1)
    p = priors.tilted.TruncatedRejection(part.accept, average(part, part.accept), 1, truncation)
    assert p.log_prob(z).exp().sum().item() * cell == pytest.approx(1, abs=1e-8)


def test_resampled_with_one_draw_is_the_normal():
    z = torch.randn(5, 2).double()
    torch.testing.assert_close(resampled(1, 2)().log_prob(z), pvae.Normal(2).double()().log_prob(z))


def test_resampled_draws_as_rejection_does():
    """Kolmogorov-Smirnov against the distribution function by quadrature."""
    part = resampled(3).eval()
    z, cell = grid(1, half=8.0, n=4001)
    p = part()
    cdf = (p.log_prob(z).exp() * cell).cumsum(0).detach()
    x = p.expand([20_000]).sample().squeeze(-1)
    found = scipy.stats.kstest(x.numpy(), lambda at: np.interp(at, z.squeeze(-1).numpy(), cdf.numpy()))
    assert found.pvalue > 1e-3
    assert scipy.stats.kstest(x.numpy(), "norm").pvalue < 1e-6  # it is not just the normal


def test_the_rate_and_its_gradient_are_estimated_without_bias():
    part = resampled(5).train()
    exact = torch.autograd.grad(average(part, part.accept), list(part.parameters()))
    estimates = []
    for _ in range(300):
        rate = part().rate
        estimates.append(torch.cat([rate[None], *(g.flatten() for g in torch.autograd.grad(rate, part.parameters()))]))
    found = torch.stack(estimates).detach()
    expected = torch.cat([average(part, part.accept).detach()[None], *(g.flatten() for g in exact)])
    error = found.std(0) / math.sqrt(len(found)) + 1e-12
    assert ((found.mean(0) - expected).abs() / error).max() < 4


def test_in_evaluation_the_rate_is_one_number_within_its_error():
    for seed in range(3):
        part = randomize(priors.Resampled(2, hidden=(8,)), 2.0, seed).eval()
        first, second = part().rate, copy.deepcopy(part)().rate
        assert torch.equal(first, second)
        exact = average(part.double(), part.accept).item()
        assert abs(first.item() / exact - 1) < 0.1 * math.sqrt((1 - exact) / (exact * 2**16))  # of draws that were 1


@pytest.mark.parametrize("kind", [priors.Resampled, priors.Energy])
def test_a_normalizer_in_many_dimensions_is_that_of_draws(kind):
    """Against sixteen times as many draws, within four of their errors and a quarter of that of as many."""
    part = randomize(kind(20, hidden=(8,)), 1.0).eval()
    value = part.accept if kind is priors.Resampled else lambda z: (-part.energy(z)).exp()
    with torch.no_grad():
        draws = value(torch.randn(2**20, 20, generator=torch.Generator().manual_seed(1))).double()
        found = value(part.fixed).double().mean()
    assert abs(found - draws.mean()) < 4 * draws.std() / 2**10 + draws.std() / 2**10


# Energies -------------------------------------------------------------------------------------------------------------


def test_an_energy_with_the_exact_normalizer_integrates_to_one():
    part = randomize(priors.Energy(1, hidden=(8,)), 2.0).double()
    z, cell = grid(1)
    log_normalizer = average(part, lambda z: (-part.energy(z)).exp()).log()
    p = priors.tilted.NormalByEnergy(part.energy, log_normalizer, 1)
    assert p.log_prob(z).exp().sum().item() * cell == pytest.approx(1, abs=1e-8)
    assert p.log_prob(z).argmax() != pvae.Normal(1).double()().log_prob(z).argmax()


@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_an_energy_is_bounded_and_its_normalizer_within_its_error(bound):
    part = randomize(priors.Energy(2, hidden=(8,), bound=bound), 20.0).eval()
    z = torch.randn(1000, 2)
    assert bound * 0.9 < part.energy(z).abs().max() <= bound
    found = part().log_normalizer.exp().item()
    exact = average(part.double(), lambda z: (-part.energy(z)).exp()).item()
    assert abs(found / exact - 1) < 0.1 * math.sinh(bound) / 2**8


def step(bound, at):
    """An energy that falls from b to -b at a point far out: few draws of the normal have most of the weight."""
    part = priors.Energy(1, (1,), bound=bound).eval()
    inner, _, outer = part.network
    with torch.no_grad():
        for parameter, value in ((inner.weight, 3.0), (inner.bias, -3.0 * at), (outer.weight, -4 * bound)):
            parameter.fill_(value)
        outer.bias.zero_()
    return part


@pytest.mark.parametrize(("bound", "at"), [(3.0, 2.6), (6.0, 3.0)])
def test_an_energy_draws_exactly_where_few_draws_have_the_weight(bound, at):
    """Kolmogorov-Smirnov against the distribution function by quadrature."""
    part = step(bound, at)
    z, cell = grid(1, half=8.0, n=4001)
    with torch.no_grad():
        weight = (pvae.Normal(1)().log_prob(z) - part.energy(z.float())).double().exp() * cell
        x = part().expand([2, 1000]).sample()
    assert x.shape == (2, 1000, 1)
    cdf = ((weight.cumsum(0) - weight / 2) / weight.sum()).numpy()
    found = scipy.stats.kstest(x.flatten().numpy(), lambda at: np.interp(at, z.squeeze(-1).numpy(), cdf))
    assert found.pvalue > 1e-3


def test_in_training_an_energy_is_normalized_as_closely_as_it_says():
    part = step(3.0, 2.6).train()
    z, cell = grid(1, half=8.0, n=4001)
    with torch.no_grad():
        log_w, mass = -part.energy(z.float()).double(), pvae.Normal(1)().log_prob(z).exp() * cell
        z_exact, square = (mass * log_w.exp()).sum(), (mass * (2 * log_w).exp()).sum()
        off = z_exact.log() - torch.stack([part().log_normalizer for _ in range(3000)]).double()
    expected = (square / z_exact**2 - 1) / 2048
    assert 0.02 < expected < math.sinh(3) ** 2 / 2048
    assert abs(off.mean() - expected) < 4 * off.std() / 3000**0.5


def test_an_energy_says_where_its_draws_are_approximate():
    part = step(20.0, 4.0)
    with pytest.warns(
        UserWarning, match=r"prior energy: rejection would take exp\(11\.\d\) draws of N\(0, I\) for one"
    ):
        assert part().expand([3]).sample().shape == (3, 1)
    assert part.train()().expand([3]).sample().shape == (3, 1)  # all steps are alike, and it is not said


@pytest.mark.parametrize("kind", [priors.Resampled, priors.Energy])
def test_a_normalizer_is_estimated_once_where_parameters_stay_as_they_are(kind, monkeypatch):
    prior = randomize(kind(2, hidden=(8,)))
    decoder, encoder = pvae.MLPDecoder(2, SHAPE, [8]), pvae.MLPEncoder(SHAPE, 4, [8])
    vae = pvae.VAE(prior, pvae.Bernoulli(decoder, SHAPE), pvae.MeanField(encoder, 2)).eval()
    x, seen, score = torch.ones(3, *SHAPE), [], prior.score

    def watched(z):
        seen.append(z.shape[0] == len(prior.fixed))
        return score(z)

    prior.score = watched
    quick = Annealing(temperatures=3, chains=2, leapfrog=2)
    work = {
        "ais": lambda: ais(vae.model, x, annealing=quick).log_w,
        "evaluate": lambda: evaluate(vae.model, vae.guide, x, particles=[700]).elbo,
    }
    for run in work.values():
        seen.clear()
        kept = run()
        assert sum(seen) == 1
        with monkeypatch.context() as patched:
            patched.setattr(priors.tilted, "once", lambda owner, make: make())
            torch.testing.assert_close(run(), kept, rtol=0, atol=0)
        assert sum(seen) > 5
    with torch.no_grad():
        prior.network[0].weight += 1.0
    assert not torch.equal(work["evaluate"](), kept)
    prior().log_prob(torch.zeros(2)).backward()  # elsewhere the normalizer has its gradient
    assert all(parameter.grad is not None for parameter in prior.parameters())


# Fits -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_vamp_prior_beats_the_normal_on_digits():
    """50 inputs for 1,294 digits of 8 by 8."""
    digits = load("digits")
    x, test = pixels(digits.train.x), pixels(digits.test.x).round()
    bound = {}
    for name, prior in (("normal", pvae.Normal(8)), ("vamp", priors.Vamp(8, 50))):
        torch.manual_seed(0)
        likelihood = pvae.Bernoulli(pvae.MLPDecoder(8, (8, 8), [64]), (8, 8))
        guide = pvae.MeanField(pvae.MLPEncoder((8, 8), 16, [64]), 8)
        vae = pvae.VAE(prior, likelihood, guide).initialize(x)
        svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 5e-3}), pvae.ELBO(), compile="graph")
        for _ in range(1500):
            svi.step(torch.bernoulli(x[torch.randint(len(x), (128,))]))
        with torch.no_grad():
            bound[name] = pvae.bounds.iwae(vae.log_weights(test, particles=100).log_w)
    gain = bound["vamp"] - bound["normal"]
    assert gain.mean() > 4 * gain.std() / math.sqrt(len(gain))
