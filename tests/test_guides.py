"""Guides against closed forms: densities, draws and their gradients, what refinement reaches, what a point is not."""

import copy
import itertools
import math
import pickle
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from closeness import close, leaf, matches, positive
from commands import quick, refused
from programs import assert_replayed
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import pvae
from pvae import compare, fit, guides, report
from pvae.base import members
from pvae.conditions import ConditionedDecoder, ConditionedEncoder, Label
from pvae.distributions import DiagonalNormal
from pvae.evaluate import evaluate
from pvae.exact import LinearGaussian
from pvae.guides.full_covariance import CovarianceNormal
from pvae.guides.low_rank import LowRankNormal
from pvae.guides.scales import BoundedScale
from pvae.testing.setting import make

LATENT, DIM = 3, 5
NAMES = ["full_covariance", "low_rank", "mixture", "delta", "semi_amortized"]


# Gaussians with a covariance ------------------------------------------------------------------------------------------


def full(*lead):
    root = leaf(*lead, LATENT, LATENT)
    with torch.no_grad():
        root.copy_(root.tril(-1) + torch.diag_embed(positive(*lead, LATENT)))
    loc = leaf(*lead, LATENT)
    return CovarianceNormal(loc, root), MultivariateNormal(loc, scale_tril=root), [loc, root]


def low_rank(*lead, rank=2):
    loc, scale, factor = leaf(*lead, LATENT), positive(*lead, LATENT), leaf(*lead, LATENT, rank)
    covariance = torch.diag_embed(scale.square()) + factor @ factor.mT
    return LowRankNormal(loc, scale, factor), MultivariateNormal(loc, covariance), [loc, scale, factor]


def rank_one(*lead):
    return low_rank(*lead, rank=1)


def rank_above(*lead):
    return low_rank(*lead, rank=LATENT + 2)


gaussians = pytest.mark.parametrize("made", [full, low_rank, rank_one, rank_above])


@gaussians
@pytest.mark.parametrize("lead", [(), (4,), (2, 4)], ids=str)
def test_a_gaussians_density_is_torchs_in_value_and_gradient(made, lead):
    torch.manual_seed(0)
    ours, theirs, parameters = made(*lead)
    close(ours.mean, theirs.mean)
    close(ours.variance, theirs.variance)
    close(ours.covariance_matrix, theirs.covariance_matrix)
    for shape in ((), lead, (6, *lead), (5, 6, *lead)):
        value = leaf(*shape, LATENT)
        found, expected = (p.log_prob(value) for p in (ours, theirs))
        close(found, expected)
        weight = torch.randn_like(found)
        grads = [
            torch.autograd.grad((p * weight).sum(), [value, *parameters], retain_graph=True) for p in (found, expected)
        ]
        for mine, right in zip(*grads, strict=True):
            close(mine.tril() if mine.shape[-1] == mine.shape[-2:-1] else mine, right, 1e-8)
    wide = ours.expand([6, *lead])
    assert wide.batch_shape == (6, *lead)
    assert wide.sample().shape == wide.mean.shape == wide.variance.shape == (6, *lead, LATENT)
    value = torch.randn(6, *lead, LATENT).double()
    close(wide.log_prob(value), theirs.log_prob(value))


@gaussians
def test_a_gaussians_kl_is_the_closed_form(made):
    torch.manual_seed(0)
    ours, theirs, _ = made(4)
    p = DiagonalNormal(leaf(LATENT), positive(LATENT))
    expected = kl_divergence(theirs, MultivariateNormal(p.loc, torch.diag_embed(p.scale.square())))
    close(kl_divergence(ours, p), expected)
    standard = pvae.Normal(LATENT).double()()
    other = MultivariateNormal(torch.zeros(LATENT).double(), torch.eye(LATENT).double())
    close(kl_divergence(ours.expand([3, 4]), standard), kl_divergence(theirs, other).expand(3, 4))


@gaussians
def test_a_gaussians_draws_have_its_moments_and_its_gradient(made):
    torch.manual_seed(1)
    ours, theirs, parameters = made()
    z = ours.expand([100_000]).rsample()
    centred = z - theirs.mean
    outer = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    matches(z.detach(), theirs.mean)
    matches(outer.detach(), theirs.covariance_matrix)
    # the path: of E[|z|^2] = |m|^2 + tr C
    found = torch.autograd.grad(z.square().sum(-1).mean(), parameters)
    expected = torch.autograd.grad(theirs.mean.square().sum() + theirs.covariance_matrix.trace(), parameters)
    for mine, right in zip(found, expected, strict=True):
        close(mine, right, 0.08)


def test_the_bound_of_a_nearly_singular_covariance_is_right_in_float32():
    torch.manual_seed(0)
    guide = guides.FullCovariance(nn.Linear(DIM, guides.FullCovariance.outputs_for(5) * 5), 5)
    with torch.no_grad():
        guide.encoder.weight.zero_()
        guide.encoder.bias.normal_()[5:10] = -8  # a diagonal of 5e-4 beside numbers of size 1
        q = guide(torch.ones(1, DIM))
    exact = MultivariateNormal(q.loc[0].double(), scale_tril=q.root[0].double())
    rate = kl_divergence(exact, MultivariateNormal(torch.zeros(5).double(), torch.eye(5).double()))
    vae = pvae.VAE(pvae.Normal(5), pvae.Bernoulli(nn.Linear(5, DIM), (DIM,)), guide)
    found = pvae.evaluate.evaluate(vae.model, vae.guide, torch.ones(4, DIM), particles=[1, 1000])
    assert ((found.rate - rate).abs() < 5 * found.se["rate"]).all()
    assert (found.se["rate"] < 1).all()
    loss = pvae.ELBO(2).loss_and_grads(vae.model, vae.guide, torch.ones(4, DIM))
    assert 0 < loss < 1000
    assert guide.encoder.bias.grad.abs().max() < 1e4


@pytest.mark.parametrize("graded", [False, True], ids=["draws", "reparameterized"])
def test_the_density_of_own_draws_is_that_of_any_others_of_the_same_numbers(graded):
    torch.manual_seed(0)
    ours, _, parameters = full(4)
    with torch.set_grad_enabled(graded):
        z = ours.rsample((3,))
    mine, others = ours.log_prob(z), ours.log_prob(z * 1.0)
    close(mine, others, 1e-10)
    grads = [torch.autograd.grad(p.sum(), parameters, allow_unused=True, retain_graph=True) for p in (mine, others)]
    for found, right in zip(*grads, strict=True):
        found = torch.zeros_like(right) if found is None else found
        # above its diagonal a triangle's numbers are zero, and count in no density
        close(*((grad.tril() if grad.dim() == 3 else grad) for grad in (found, right)), 1e-8)


def test_the_covariances_triangle_is_filled_row_by_row():
    guide = guides.FullCovariance(nn.Identity(), 3)
    root = guide(torch.tensor([9.0, 8.0, 7.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0])).root
    close(root, torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [2.0, 3.0, 1.0]]), 1e-6)
    assert guides.FullCovariance(nn.Identity(), 3, max_scale=2.0)(torch.full((9,), 1e3)).root[1, 1] == 2


def test_the_directions_of_a_low_rank_covariance_are_filled_one_by_one():
    q = guides.LowRank(nn.Identity(), 3)(torch.tensor([9.0, 8.0, 7.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    close(q.factor, torch.tensor([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]))


@pytest.mark.parametrize("latent", range(1, 12))
def test_a_full_covariance_asks_for_no_more_numbers_than_it_needs(latent):
    need, outputs = latent + latent * (latent + 1) // 2, guides.FullCovariance.outputs_for(latent)
    assert (outputs - 1) * latent < need <= outputs * latent
    q = guides.FullCovariance(nn.Identity(), latent)(torch.randn(outputs * latent))
    assert (q.root.tril() == q.root).all()
    assert (q.root != 0).sum() == need - latent


@pytest.mark.parametrize(("latent", "components"), [(1, 2), (2, 3), (3, 3), (3, 4), (20, 2)])
def test_a_mixture_asks_for_no_more_numbers_than_it_needs(latent, components):
    need = components * (2 * latent + 1)
    outputs = guides.Mixture.outputs_for(latent, components=components)
    assert (outputs - 1) * latent < need <= outputs * latent
    q = guides.Mixture(nn.Identity(), latent, components=components, apart=0.0)(torch.arange(1.0 * outputs * latent))
    assert torch.equal(q.locs, torch.arange(1.0 * components * latent).reshape(components, latent))
    expected = torch.arange(2.0 * components * latent, need).log_softmax(-1)
    close(q.logits, expected, 1e-5)


def raw(scale, low=1e-4, high=10.0):
    """What the bounded scale makes these scales of."""
    return ((scale - low) / (high - low)).logit() + math.log((high - 1) / (1 - low))


def ppca(seed=2, latent=2):
    """A linear-Gaussian model whose columns are far from orthogonal, in float64."""
    torch.manual_seed(seed)
    weight = torch.randn(DIM, latent, dtype=torch.float64) + 1.0
    return LinearGaussian(weight, torch.randn(DIM, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))


def linear_vae(exact, guide):
    latent = exact.weight.shape[1]
    decoder = nn.Linear(latent, DIM)
    decoder.weight.data, decoder.bias.data = exact.weight.clone(), exact.mean.clone()
    likelihood = pvae.Gaussian(decoder, (DIM,), scale=math.sqrt(exact.variance))
    return pvae.VAE(pvae.Normal(latent), likelihood, guide).double()


def encoder_of(exact, numbers):
    """The linear encoder whose mean is the posterior's, and whose other numbers are these."""
    encoder = nn.Linear(DIM, exact.weight.shape[1] + len(numbers)).double()
    encoder.weight.data = torch.cat([exact.encoder, torch.zeros(len(numbers), DIM)])
    encoder.bias.data = torch.cat([-exact.encoder @ exact.mean, numbers])
    return encoder


def test_a_full_covariance_reaches_the_evidence_and_a_diagonal_lacks_the_gap():
    exact = ppca()
    x = exact.sample(7)[1]
    root = torch.linalg.cholesky(torch.linalg.inv(exact.precision))
    numbers = torch.cat([raw(root.diagonal()), root[1, :1], torch.zeros(1)])
    found = linear_vae(exact, guides.FullCovariance(encoder_of(exact, numbers), 2)).log_weights(x, particles=4).log_w
    close(found, exact.log_prob(x).expand(4, 7), 1e-6)  # every draw's weight is p(x): the gap is 0
    diagonal = guides.MeanField(encoder_of(exact, raw(exact.best_diagonal().sqrt())), 2)
    log_w = linear_vae(exact, diagonal).log_weights(x, particles=20_000).log_w
    assert exact.gap() > 0.3
    matches(log_w.detach(), exact.log_prob(x) - exact.gap())


def test_a_low_rank_covariance_reaches_the_evidence():
    """Of two dimensions, rank one and a diagonal are any covariance."""
    exact = ppca()
    x = exact.sample(7)[1]
    covariance = torch.linalg.inv(exact.precision)
    share = covariance[0, 1].abs() / covariance.diagonal().prod().sqrt()
    factor = (share * covariance.diagonal()).sqrt() * torch.tensor([1.0, covariance[0, 1].sign()])
    numbers = torch.cat([raw((covariance.diagonal() - factor.square()).sqrt()), factor])
    guide = guides.LowRank(encoder_of(exact, numbers), 2, rank=1)
    found = linear_vae(exact, guide).log_weights(x, particles=4).log_w
    close(found, exact.log_prob(x).expand(4, 7), 1e-6)


# A point --------------------------------------------------------------------------------------------------------------


def delta_vae(seed=0):
    torch.manual_seed(seed)
    encoder, decoder = pvae.mlp(DIM, [8], 2), pvae.mlp(2, [8], DIM)
    return pvae.VAE(pvae.Normal(2), pvae.Bernoulli(decoder, (DIM,)), guides.Delta(encoder, 2))


def test_a_points_numbers_are_the_joint_density_at_it():
    vae, x = delta_vae(), torch.bernoulli(torch.rand(6, DIM))
    z = vae.encode(x).mean
    expected = vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z)
    for objective in (pvae.ELBO(), pvae.ELBO(3), pvae.IWAE(3), pvae.IWAE(3, gradient="stl")):
        found = objective.bounds(vae.model, vae.guide, x)
        close(found, expected, 1e-5)
        grads = [torch.autograd.grad(v.sum(), list(vae.parameters()), retain_graph=True) for v in (found, expected)]
        for mine, right in zip(*grads, strict=True):
            close(mine, right, 1e-4)
    assert (evaluate(vae.model, vae.guide, x, particles=[1, 7]).iw[7] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("gradient", [name for name, member in members("gradient").items() if member.scores])
def test_a_point_has_no_density_for_an_estimator_to_weigh(gradient):
    vae = delta_vae()
    with pytest.raises(pvae.InputError, match=r"'z': .* is a point mass.*expected the gradient reparam or stl"):
        pvae.IWAE(3, gradient=gradient).loss_and_grads(vae.model, vae.guide, torch.ones(4, DIM))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guides")
    small = ["--epochs=1", "--encoder.hidden=8", "--decoder.hidden=8", "--latent=3", "--eval-particles=2"]
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        for name in ("mean_field", "delta", "semi_amortized"):
            assert fit.main([*small, "--guide", name, "--out", str(folder / name)]) == 0
    return folder


def test_a_run_says_that_a_points_numbers_are_no_bounds(runs):
    found = {name: pvae.runs.Run.open(runs / name) for name in ("mean_field", "delta")}
    said = {name: report.table(run.config, run.read_json("summary.json")) for name, run in found.items()}
    line = "the numbers are no bounds on log p(x): the guide is a point mass"
    assert line in said["delta"]
    assert "no bound" not in said["mean_field"]
    kinds = {n: pvae.runs.Run.open(runs / n).read_json("summary.json")["protocol"]["numbers"] for n in said}
    assert kinds["mean_field"] == "bounds on log p(x)"
    assert kinds["delta"].startswith("no bounds on log p(x): ")


def test_a_points_numbers_do_not_stand_beside_bounds(runs, capsys):
    err = refused(capsys, runs / "mean_field", runs / "delta", command="compare")
    assert "numbers 'bounds on log p(x)' and 'no bounds" in err
    assert "again with the other's --guide" in err
    assert compare.main([str(runs / "delta"), "--particles", "1,30", "--train", "0"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The numbers are no bounds on log p(x)" in out
    assert "k-hat, median" not in out
    assert "inf" not in out.replace("information", "")
    assert (
        compare.main([str(runs / "mean_field"), str(runs / "semi_amortized"), "--particles", "1,2", "--train", "0"])
        == 0
    )
    assert "no bounds" not in capsys.readouterr().out


# Refinement -----------------------------------------------------------------------------------------------------------


def refined(exact, **options):
    """A linear-Gaussian model and a guide whose start is far from its posterior."""
    latent = exact.weight.shape[1]
    encoder = nn.Linear(DIM, 2 * latent)
    encoder.weight.data.mul_(0.1)
    return linear_vae(exact, guides.SemiAmortized(encoder, latent, **options))


def exact_elbo(exact, q, x):
    return exact.elbo(x, q.loc, torch.diag_embed(q.scale.square()))


@pytest.mark.parametrize("latent", [2, 4])
def test_refinement_climbs_and_ends_at_the_best_diagonal(latent):
    exact = ppca(latent=latent)
    x = exact.sample(6)[1]
    elbos = []
    for steps in (1, 3, 10, 2500):
        torch.manual_seed(1)  # the same encoder
        guide = refined(exact, steps=steps, step_size=0.1, pairs=4).posterior
        with torch.no_grad():
            elbos = elbos or [exact_elbo(exact, guide.amortized(x), x)]
            q = guide(x)
        elbos.append(exact_elbo(exact, q, x))
    assert all((after > before).all() for before, after in itertools.pairwise(elbos))
    close(q.loc, exact.posterior(x).mean, 1e-6)
    close(q.scale, exact.best_diagonal().sqrt().expand_as(q.scale), 1e-6)
    close(elbos[-1], exact.log_prob(x) - exact.gap(), 1e-6)


def test_one_pair_of_points_serves_where_it_changes_from_step_to_step():
    exact = ppca(latent=4)
    x = exact.sample(6)[1]
    start, one = (refined(exact, steps=steps, step_size=0.05) for steps in (1, 400))
    with torch.no_grad():
        q, before = one.posterior(x), start.posterior.amortized(x)
    lack = exact.log_prob(x) - exact.gap() - exact_elbo(exact, q, x)
    assert (lack < 0.05 * exact.gap()).all()
    assert (lack < 0.01 * (exact.log_prob(x) - exact_elbo(exact, before, x))).all()


def test_a_step_is_the_formula():
    """With the pairs that make a quadratic's expectation exact: from N(m, s^2) with the gradient in closed form."""
    exact = ppca()
    x = exact.sample(6)[1]
    guide = refined(exact, steps=1, step_size=0.3, pairs=2).posterior
    start = guide.amortized(x)
    precision = exact.precision
    of_mean = (exact.posterior(x).mean - start.loc) @ precision
    of_scale = 1 - start.scale.square() * precision.diagonal()
    log_scale = start.scale.log() + torch.where(of_scale < 0, -0.5 * torch.log1p(-0.3 * of_scale), 0.15 * of_scale)
    q = guide(x)
    close(q.scale, log_scale.exp(), 1e-6)
    close(q.loc, start.loc + 0.3 * (2 * log_scale).exp() * of_mean, 1e-6)
    # where the scale grows
    guide.scale = BoundedScale(1e-4, 1.5)
    guide.encoder.bias.data[2:] = -4
    start = guide.amortized(x)
    of_scale = 1 - start.scale.square() * precision.diagonal()
    assert (of_scale > 0).all()
    close(guide(x).scale, start.scale * (0.15 * of_scale).exp(), 1e-6)


def test_a_refined_scale_keeps_its_bounds():
    exact = ppca()
    x = exact.sample(6)[1]
    guide = refined(exact, steps=50, step_size=0.9, pairs=2, min_scale=0.9, max_scale=1.1).posterior
    close(guide(x).scale, torch.full_like(guide(x).scale, 0.9), 1e-12)


class Bowl(pvae.Prior):
    """What curves up: the best scale has no end."""

    def forward(self, y=None):
        return SimpleNamespace(log_prob=lambda z: 50 * z.square().sum(-1))


def test_a_scale_grows_by_no_more_than_half_a_nat_at_a_step():
    guide = guides.SemiAmortized(nn.Linear(DIM, 4), 2, steps=1, step_size=0.5)
    guide.connect(Bowl(2), pvae.Bernoulli(lambda z: torch.zeros(*z.shape[:-1], DIM), (DIM,)), guide)
    x = torch.ones(3, DIM)
    close(guide(x).scale, guide.amortized(x).scale * math.exp(0.5), 1e-6)


def bernoulli_vae(labels=False, seed=0, **options):
    torch.manual_seed(seed)
    encoder = pvae.MLPEncoder((DIM,), 4, [8], "tanh", context=3 * labels)
    decoder = pvae.MLPDecoder(2 + 3 * labels, (DIM,), [8], "tanh")
    if labels:
        encoder, decoder = ConditionedEncoder(encoder, Label(3)), ConditionedDecoder(decoder, Label(3))
    guide = guides.SemiAmortized(encoder, 2, **options)
    return pvae.VAE(pvae.Normal(2), pvae.Bernoulli(decoder, (DIM,)), guide)


def numeric(function, parameter):
    """The gradient of a function of a parameter, by central differences."""
    found, flat = torch.zeros_like(parameter), parameter.data.view(-1)
    for i in range(len(flat)):
        ends = []
        for step in (1e-5, -1e-5):
            flat[i] += step
            ends.append(function().item())
            flat[i] -= step
        found.view(-1)[i] = (ends[0] - ends[1]) / 2e-5
    return found


@pytest.mark.parametrize("through", [True, False])
def test_the_gradient_passes_through_the_steps_or_round_them(through):
    vae, x = bernoulli_vae(through=through).double(), torch.bernoulli(torch.rand(6, DIM)).double()

    def value():
        q = vae.posterior(x)
        return (q.loc * torch.tensor([1.0, -2.0])).sum() + q.scale.log().square().sum()

    def start():
        q, at = vae.posterior.amortized(x), vae.posterior(x)
        added, more = (at.loc - q.loc).detach(), (at.scale.log() - q.scale.log()).detach()
        return ((q.loc + added) * torch.tensor([1.0, -2.0])).sum() + (q.scale.log() + more).square().sum()

    encoder, decoder = vae.posterior.encoder.layers[-1].bias, vae.likelihood.decoder.layers[0].bias
    grads = torch.autograd.grad(value(), [encoder, decoder], allow_unused=True)
    if through:
        close(grads[0], numeric(value, encoder), 1e-6)
        close(grads[1], numeric(value, decoder), 1e-6)
        assert grads[1].norm() > 1e-3
    else:
        close(grads[0], torch.autograd.grad(start(), encoder)[0])
        assert grads[1] is None


def test_refinement_is_the_same_with_and_without_gradient():
    vae, x = bernoulli_vae(), torch.bernoulli(torch.rand(6, DIM))
    with torch.no_grad():
        q = vae.posterior(x)
    assert not q.loc.requires_grad
    close(q.loc, vae.posterior(x).loc, 1e-6)
    close(q.scale, bernoulli_vae(through=False).posterior(x).scale, 1e-6)
    for parameter in vae.parameters():
        parameter.requires_grad_(False)
    close(q.loc, vae.posterior(x).loc, 1e-6)


def test_a_datum_is_refined_once_for_all_particles():
    vae, x, seen = bernoulli_vae(steps=2), torch.ones(6, DIM), []
    vae.likelihood.decoder.register_forward_hook(lambda module, inputs, out: seen.append(tuple(inputs[0].shape)))
    vae.log_weights(x, particles=7)
    *looks, first, second, _ = seen
    assert sum(shape[0] * math.prod(shape[1:-1]) for shape in (first, second)) == 2 * 2 * 6
    assert len(looks) == 3  # at the first datum
    assert vae.posterior(torch.ones(4, 6, DIM)).batch_shape == (4, 6)


@pytest.mark.parametrize("labels", [False, True])
def test_refinement_sees_prior_likelihood_and_labels(labels):
    vae, x, y = bernoulli_vae(labels), torch.bernoulli(torch.rand(6, DIM)), torch.tensor([0, 1, 2] * 2)
    other = bernoulli_vae(labels)
    given = (x, y) if labels else (x,)
    before = vae.posterior(*given).loc
    assert torch.equal(before, other.posterior(*given).loc)
    if labels:
        network = vae.posterior.encoder.network.layers[0]
        network.weight.data[:, -3:] = 0  # the label reaches q through the likelihood alone
        before = vae.posterior(x, y).loc
        assert not torch.allclose(before, vae.posterior(x, y.flip(0)).loc)
        assert torch.equal(vae.posterior.amortized(x, y).loc, vae.posterior.amortized(x, y.flip(0)).loc)
    vae.likelihood.decoder.register_forward_hook(lambda module, inputs, out: 2 * out)
    assert not torch.allclose(before, vae.posterior(*given).loc)
    object.__setattr__(other.posterior, "_prior", Shifted(2))
    assert (other.posterior(*given).loc > bernoulli_vae(labels).posterior(*given).loc).all()


def test_refinement_sees_what_a_label_says_of_the_prior():
    vae, x, y = bernoulli_vae(), torch.ones(2, DIM), torch.tensor([0, 1])
    prior = pvae.priors.ClassNormal(2, condition=Label(2))
    vae.posterior.connect(prior, vae.likelihood, vae.posterior)
    prior.linear.weight.data[:2, 1] = 5
    low, high = vae.posterior(x, y).loc
    assert (high > low + 0.5).all()


class Shifted(pvae.Prior):
    def forward(self, y=None):
        return dist.Normal(torch.full((self.latent,), 5.0), 1.0).to_event(1)


def test_refinement_leaves_a_running_scale_dropout_and_modes_alone():
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, DIM))
    likelihood = pvae.Gaussian(decoder, (DIM,), scale="optimal")
    vae = pvae.VAE(pvae.Normal(2), likelihood, guides.SemiAmortized(nn.Linear(DIM, 4), 2))
    x, before = torch.randn(6, DIM), copy.deepcopy(vae.state_dict())
    first, again = vae.posterior(x), vae.posterior(x)
    assert torch.equal(first.loc, again.loc)
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    assert all(module.training for module in vae.modules())
    loss = pvae.ELBO().loss_and_grads(vae.model, vae.guide, x)
    assert loss.isfinite()


def test_refinement_makes_the_prior_once(monkeypatch):
    """That of an energy takes an expectation, that of a VampPrior an encoder."""
    vae = pvae.VAE(pvae.priors.Energy(2), bernoulli_vae().likelihood, guides.SemiAmortized(nn.Linear(DIM, 4), 2))
    made, forward = [], pvae.priors.Energy.forward
    monkeypatch.setattr(pvae.priors.Energy, "forward", lambda self, y=None: made.append(y) or forward(self, y))
    vae.posterior(torch.ones(3, DIM))
    assert len(made) == 1


def test_a_guide_that_met_no_model_says_so():
    guide = guides.SemiAmortized(nn.Linear(DIM, 4), 2)
    with pytest.raises(
        pvae.InputError, match="SemiAmortized: found no prior and likelihood to refine against"
    ) as found:
        guide(torch.ones(3, DIM))
    assert "\n" not in str(found.value)
    assert guide.amortized(torch.ones(3, DIM)).batch_shape == (3,)


def test_a_guide_owns_neither_prior_nor_likelihood():
    vae = bernoulli_vae()
    names = {name.partition(".")[0] for name, _ in vae.named_parameters(remove_duplicate=False)}
    assert names == {"likelihood", "posterior"}
    assert {name.partition(".")[0] for name in vae.posterior.state_dict()} == {"encoder"}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))], ids=["deepcopy", "pickle"])
def test_a_copied_guide_is_refined_against_its_own_model(copied):
    vae, x = bernoulli_vae(), torch.ones(3, DIM)
    before = vae.posterior(x).loc
    other = copied(vae)
    assert other.posterior._prior is other.prior
    assert other.posterior._likelihood is other.likelihood
    for parameter in other.likelihood.parameters():
        parameter.data.mul_(3)
    assert torch.equal(before, vae.posterior(x).loc)
    assert not torch.allclose(before, other.posterior(x).loc)


def test_a_refined_guide_names_only_its_own_parameters_to_pyro():
    vae, x = bernoulli_vae(), torch.ones(3, DIM)
    trace = pyro.poutine.trace(vae.guide).get_trace(x)
    params = {name.partition(".")[0] for name, site in trace.nodes.items() if site["type"] == "param"}
    assert {name.rstrip("0123456789") for name in params} == {"guide"}
    before = [p.clone() for p in vae.parameters()]
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(60)]
    assert not any(torch.equal(p, b) for p, b in zip(vae.parameters(), before, strict=True))
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize("kind", list(members("likelihood")))
def test_every_likelihood_is_refined_and_differentiated_through(kind):
    torch.manual_seed(0)
    member = members("likelihood")[kind]
    vae = pvae.VAE(pvae.Normal(2), make(member, 2, (DIM,)), guides.SemiAmortized(nn.Linear(DIM, 4), 2))
    x = torch.bernoulli(torch.rand(6, DIM))
    x = 0.25 + x / 2 if vae.likelihood.support == "open_unit_interval" else x
    assert pvae.IWAE(3, gradient="dreg").loss_and_grads(vae.model, vae.guide, x).isfinite()
    assert all(p.grad.isfinite().all() for p in vae.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: guides.LowRank(nn.Identity(), 2, rank=0), "rank: found 0, expected at least 1"),
        (lambda: guides.Mixture(nn.Identity(), 2, components=1), "components: found 1, expected at least 2"),
        (lambda: guides.Mixture(nn.Identity(), 2, apart=-1.0), "apart: found -1.0, expected at least 0"),
        (lambda: guides.SemiAmortized(nn.Identity(), 2, steps=0), "steps: found 0, expected at least 1"),
        (lambda: guides.SemiAmortized(nn.Identity(), 2, pairs=0), "pairs: found 0, expected at least 1"),
        (
            lambda: guides.SemiAmortized(nn.Identity(), 2, step_size=1.5),
            "step_size: found 1.5, expected above 0 and at",
        ),
        (lambda: guides.SemiAmortized(nn.Identity(), 2, step_size=math.nan), "step_size: found nan, expected above 0"),
        (lambda: guides.FullCovariance(nn.Identity(), 2, min_scale=2.0), "min_scale, max_scale: found 2.0, 10.0"),
        (lambda: guides.LowRank(nn.Identity(), 2, max_scale=0.5), "min_scale, max_scale: found 0.0001, 0.5"),
        (lambda: guides.Mixture(nn.Identity(), 2, min_scale=0.0), "min_scale, max_scale: found 0.0, 10.0"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(wrong, message):
    with pytest.raises(pvae.InputError, match=message) as found:
        wrong()
    assert "\n" not in str(found.value)


# Whole steps ----------------------------------------------------------------------------------------------------------

OBJECTIVES = {  # a plain step of each member is in the contract
    "analytic": lambda delta: pvae.ELBO(2, analytic_kl=True),
    "iwae": lambda delta: pvae.IWAE(3, gradient="stl" if delta else "dreg"),
    "chunked": lambda delta: pvae.IWAE(4, chunk=2, gradient="reparam"),
}


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("name", NAMES)
def test_a_replayed_step_is_the_eager_step(name, objective):
    labels, member = objective == "iwae", members("guide")[name]
    x, y = torch.bernoulli(torch.rand(6, DIM)), torch.tensor([0, 1, 2] * 2)

    def program():
        vae = bernoulli_vae(labels)
        outputs = member.outputs_for(2, **pvae.config.defaults(member))
        encoder = pvae.MLPEncoder((DIM,), 2 * outputs, [8], context=3 * labels)
        guide = member(ConditionedEncoder(encoder, Label(3)) if labels else encoder, 2)
        vae = pvae.VAE(vae.prior, vae.likelihood, guide)
        return vae.model, vae.guide, OBJECTIVES[objective](name == "delta"), (x, y) if labels else (x,)

    assert_replayed(program)
