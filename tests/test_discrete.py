"""Zeros and ones, one-hot vectors and their relaxations: against enumeration, quadrature and torch's own."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import nn

import pvae
from pvae import bounds, guides, priors
from pvae.distributions import IndependentBernoulli, discrete
from pvae.distributions.sphere import Directional
from pvae.gap import gap
from pvae.programs import Density

BITS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
LOGITS = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]])
PAIRS = {
    "bernoulli": (priors.Bernoulli, guides.Bernoulli, {}),
    "categorical": (priors.Categorical, guides.Categorical, {"categories": 3}),
    "relaxed_bernoulli": (priors.RelaxedBernoulli, guides.RelaxedBernoulli, {}),
    "relaxed_categorical": (priors.RelaxedCategorical, guides.RelaxedCategorical, {"categories": 3}),
    "von_mises_fisher": (priors.Sphere, guides.VonMisesFisher, {}),
    "power_spherical": (priors.Sphere, guides.PowerSpherical, {}),
}


def one_hots(groups, categories):
    """Every value of concatenated one-hot vectors."""
    return torch.stack([torch.cat(v) for v in itertools.product(torch.eye(categories), repeat=groups)])


def vae_of(prior, guide, options, latent=6, pixels=4, hidden=(5,)):
    torch.manual_seed(0)
    encoder = pvae.MLPEncoder((pixels,), guide.outputs * latent, hidden, "tanh")
    decoder = pvae.MLPDecoder(latent, (pixels,), hidden, "tanh")
    return pvae.VAE(prior(latent, **options), pvae.Bernoulli(decoder, (pixels,)), guide(encoder, latent, **options))


# Probabilities --------------------------------------------------------------------------------------------------------


def test_probabilities_sum_to_one():
    p = discrete.OneHots(LOGITS.double())
    torch.testing.assert_close(p.log_prob(one_hots(2, 3)).exp().sum(), torch.tensor(1.0).double())
    prior = priors.Bernoulli(3)
    prior.logits.data = LOGITS[0]
    assert prior().log_prob(BITS).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_one_hots_are_torchs_in_value_mean_and_mode():
    logits = torch.randn(4, 2, 3)
    p, theirs = discrete.OneHots(logits), torch.distributions.OneHotCategorical(logits=logits)
    for value in one_hots(2, 3):
        torch.testing.assert_close(p.log_prob(value), theirs.log_prob(value.reshape(2, 3)).sum(-1))
    torch.testing.assert_close(p.mean, theirs.mean.flatten(-2))
    assert torch.equal(p.mode, theirs.mode.flatten(-2))


def test_one_hots_are_drawn_as_often_as_they_should_be():
    torch.manual_seed(0)
    p, values = discrete.OneHots(LOGITS), one_hots(2, 3)
    found = p.expand([60_000]).sample()
    counts = (found.unsqueeze(1) == values).all(-1).sum(0)
    assert counts.sum() == 60_000
    assert scipy.stats.chisquare(counts, 60_000 * p.log_prob(values).double().softmax(0)).pvalue > 1e-3


def test_what_is_not_one_hot_is_refused():
    p = discrete.OneHots(LOGITS)
    for value in ([1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1], [0.5, 0.5, 0, 0, 0, 1]):
        with pytest.raises(ValueError, match="support"):
            p.log_prob(torch.tensor(value).float())
    assert p.support.is_discrete


@pytest.mark.parametrize(("groups", "options"), [(1, {}), (2, {"categories": 3})])
def test_a_latent_is_so_many_vectors(groups, options):
    prior, guide = priors.Categorical(6, **options), guides.Categorical(nn.Linear(4, 6), 6, **options)
    for p in (prior(), guide(torch.zeros(5, 4))):
        value = p.sample().unflatten(-1, (groups, -1))
        assert (value.sum(-1) == 1).all()
        assert (value.amax(-1) == 1).all()
    assert prior().mean.unique().item() == pytest.approx(groups / 6)


# Relaxations ----------------------------------------------------------------------------------------------------------

TEMPERATURES = [0.1, 0.5, 2 / 3, 1.0, 3.0]


@pytest.mark.parametrize("t", TEMPERATURES)
def test_relaxed_densities_are_the_published_ones_where_draws_are_not_shortened(t):
    logits = torch.randn(7, 2, 3).double()
    z = (0.01 + 0.98 * torch.rand(7, 6)).double()
    theirs = torch.distributions.RelaxedBernoulli(torch.tensor(t, dtype=torch.float64), logits=logits.flatten(-2))
    torch.testing.assert_close(
        discrete.RelaxedBernoullis(t, logits.flatten(-2)).log_prob(z), theirs.log_prob(z).sum(-1)
    )
    z = z.unflatten(-1, (2, 3)).pow(4)  # down to e^-18
    z = z / z.sum(-1, keepdim=True)
    theirs = torch.distributions.RelaxedOneHotCategorical(torch.tensor(t, dtype=torch.float64), logits=logits)
    torch.testing.assert_close(discrete.RelaxedOneHots(t, logits).log_prob(z.flatten(-2)), theirs.log_prob(z).sum(-1))


@pytest.mark.parametrize("t", TEMPERATURES)
@pytest.mark.parametrize("logit", [-2.0, 0.0, 5.0])
def test_relaxed_bernoulli_integrates_to_one(t, logit):
    """Over logits up to 14: all but e^-4 even at the smallest temperature, whose draws are mostly shortened."""
    w = torch.linspace(-14, 14, 200_001).double()
    z = w.sigmoid()
    density = discrete.RelaxedBernoullis(t, torch.tensor([logit]).double()).log_prob(z.unsqueeze(-1)).exp()
    found = torch.trapezoid(density * z * (1 - z), w).item()
    far = t * (6 + math.expm1(14 - 6))  # t |v| at that end
    left = sum(torch.sigmoid(torch.tensor(end - far)).item() for end in (logit, -logit))
    assert found == pytest.approx(1 - left, abs=1e-6)


@pytest.mark.parametrize("t", [0.1, 0.5, 2.0])
def test_relaxed_categorical_integrates_to_one(t):
    """Over the logarithms of two ratios; at the smallest temperature a fifth lies where small numbers are shortened."""
    axis = torch.linspace(-48, 48, 961).double()
    a, b = torch.meshgrid(axis, axis, indexing="ij")
    z = torch.stack([a, b, torch.zeros_like(a)], -1).softmax(-1)
    log_p = discrete.RelaxedOneHots(t, LOGITS[:1].double()).log_prob(z)
    density = (log_p + z.log().sum(-1)).exp()
    assert torch.trapezoid(torch.trapezoid(density, axis), axis).item() == pytest.approx(1, abs=2e-3)


def test_a_shortened_vectors_density_is_that_of_its_logits():
    """By the change of variables written out, where no category has most of the probability."""
    v, logits, t = torch.tensor([0.0, -0.3, -60.0, -41.0], dtype=torch.float64), torch.randn(4).double(), 0.3
    short = torch.tensor([0.0, -0.3, -40 - math.log(21), -40 - math.log(2)], dtype=torch.float64)
    z = short.softmax(-1)
    d = logits - t * v
    log_v = math.log(6) + 3 * math.log(t) + d.sum() - 4 * d.logsumexp(0)
    expected = log_v + math.log(21) + math.log(2) - z.log().sum()
    torch.testing.assert_close(discrete.RelaxedOneHots(t, logits.unsqueeze(0)).log_prob(z), expected)


@pytest.mark.parametrize("t", TEMPERATURES)
def test_relaxed_draws_are_from_their_density(t):
    torch.manual_seed(0)
    z = discrete.RelaxedBernoullis(t, torch.tensor([1.5])).expand([20_000]).sample()[:, 0].double()
    short = z.log() - (-z).log1p()
    v = discrete._lengthen(short, discrete.BINARY_LOGIT)
    assert scipy.stats.kstest(torch.sigmoid(t * v - 1.5).numpy(), "uniform").pvalue > 1e-3
    assert (z > 0.5).double().mean().item() == pytest.approx(torch.tensor(1.5).sigmoid().item(), abs=0.015)
    # the ratio of two of the categories, likewise; and the largest is each as often as it should be
    z = discrete.RelaxedOneHots(t, LOGITS[:1]).expand([20_000]).sample().double()
    inside = z.log().amin(-1) > -discrete.LOG_RATIO
    ratio = torch.sigmoid(t * (z[:, 0] / z[:, 1]).log() - (LOGITS[0, 0] - LOGITS[0, 1]))
    if inside.all():
        assert scipy.stats.kstest(ratio.numpy(), "uniform").pvalue > 1e-3
    counts = torch.bincount(z.argmax(-1), minlength=3)
    assert scipy.stats.chisquare(counts, 20_000 * LOGITS[0].double().softmax(0)).pvalue > 1e-3


@pytest.mark.parametrize("t", [0.01, 0.1, 2 / 3])
@pytest.mark.parametrize("scale", [1.0, 30.0, 100.0])
def test_relaxed_draws_are_inside_and_all_is_finite(t, scale):
    torch.manual_seed(0)
    raw = (scale * torch.randn(500, 2, 3)).requires_grad_()
    for q in (discrete.RelaxedBernoullis(t, raw.flatten(-2)), discrete.RelaxedOneHots(t, raw)):
        z = q.rsample()
        assert (z > 0).all()
        assert (z < 1).all() or isinstance(q, discrete.RelaxedOneHots)
        log_q = q.log_prob(z)
        assert log_q.isfinite().all()
        (slope,) = torch.autograd.grad(log_q.sum(), raw)
        assert slope.isfinite().all()


@pytest.mark.parametrize("t", [0.1, 0.4, 2 / 3])
@pytest.mark.parametrize("logit", [-8.0, 0.0, 8.0])
def test_weights_of_relaxed_draws_keep_their_digits(t, logit):
    """log p - log q in float32 at the number between against that of the logit in float64; the prior's t is 1/2."""
    torch.manual_seed(0)
    noise = torch.rand(2000).double().clamp(1e-6, 1 - 1e-6).logit()
    v = (logit + noise) / t

    def log_logistic(temperature, logit, v):
        d = logit - temperature * v
        return math.log(temperature) + d - 2 * nn.functional.softplus(d)

    exact = log_logistic(0.5, 0.3, v) - log_logistic(t, logit, v)
    z = discrete._shorten(v, discrete.BINARY_LOGIT).float().sigmoid().unsqueeze(-1)
    p, q = (discrete.RelaxedBernoullis(*o) for o in ((0.5, torch.tensor([0.3])), (t, torch.tensor([logit]))))
    error = (p.log_prob(z) - q.log_prob(z)).double() - exact
    assert error.abs().mean() < 0.05
    assert error.mean().abs() < 4 * error.std() / math.sqrt(2000) + 1e-3


@pytest.mark.parametrize("t", [0.3, 1.0])
def test_prior_and_guide_are_densities_of_the_same_numbers(t):
    """E_q[p / q] = 1, at temperatures that differ, the guide's being the wider."""
    torch.manual_seed(0)
    raw = torch.randn(2, 3)
    for kind, logits in ((discrete.RelaxedBernoullis, raw.flatten()), (discrete.RelaxedOneHots, raw)):
        p, q = kind(1.25 * t, 0 * logits), kind(t, 0.3 * logits)
        z = q.expand([200_000]).sample()
        w = (p.log_prob(z) - q.log_prob(z)).double().exp()
        assert abs(w.mean() - 1) < 4 * w.std() / math.sqrt(len(w))
        assert w.std() < 3


# Bounds and gradients -------------------------------------------------------------------------------------------------


def states_of(name):
    return {"bernoulli": BITS, "categorical": one_hots(1, 3)}[name]


def exact(vae, x, bound, k, name):
    """The bound of one datum by enumeration of k draws, and its gradient by parameter."""
    z = states_of(name)
    p, q = vae.likelihood(z), vae.encode(x[:1])
    log_q = q.log_prob(z)
    log_w = p.log_prob(x[0]) + vae.prior().log_prob(z) - log_q
    pick = torch.cartesian_prod(*[torch.arange(len(z))] * k).reshape(-1, k).T
    total = (log_q[pick].sum(0).exp() * bound(log_w[pick])).sum()
    return total.detach(), torch.autograd.grad(total, list(vae.parameters()))


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
@pytest.mark.parametrize(
    ("objective", "bound"),
    [
        (lambda g: pvae.ELBO(2, gradient=g), bounds.elbo),
        (lambda g: pvae.IWAE(2, gradient=g), bounds.iwae),
    ],
    ids=["elbo", "iwae"],
)
@pytest.mark.parametrize("gradient", ["score", "vimco"])
def test_bound_and_gradient_are_those_of_enumeration(name, objective, bound, gradient):
    prior, guide, options = PAIRS[name]
    vae, n = vae_of(prior, guide, options, latent=3, hidden=(3,)), 20_000
    for parameter in vae.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    x = torch.tensor([1.0, 0.0, 1.0, 1.0]).expand(n, 4)
    value, expected = exact(vae, x, bound, 2, name)
    values, found = [], []
    torch.manual_seed(1)
    for _ in range(16):
        each = objective(gradient).bounds(vae.model, vae.guide, x)
        values.append(each.detach().mean())
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(each.mean(), list(vae.parameters()))]))
    for draws, right in (
        (torch.stack(values)[:, None], value),
        (torch.stack(found), torch.cat([g.flatten() for g in expected])),
    ):
        error = (draws.mean(0) - right).abs()
        assert (error < 5 * draws.std(0) / math.sqrt(len(draws)) + 1e-6).all()
        assert draws.std(0).max() < 0.1


@pytest.mark.parametrize("t", [0.4, 1.0])
def test_the_relaxed_gradient_is_that_of_quadrature(t):
    """Of the ELBO of one latent number, whose draws are often shortened at the smaller temperature."""
    x = torch.tensor([1.0, 0.0, 1.0, 1.0]).double()
    raw = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    weight, bias = torch.tensor([3.0, -2.0, 1.0, 0.5]).double(), torch.tensor([-1.0, 0.0, 0.5, 0.0]).double()
    p = discrete.RelaxedBernoullis(0.5, torch.zeros(1).double())

    def log_w(z, q):
        likelihood = IndependentBernoulli(z * weight + bias, 1).log_prob(x)
        return likelihood + p.log_prob(z) - q.log_prob(z)

    w = torch.linspace(-13.5, 13.5, 100_001).double()
    z = w.sigmoid().unsqueeze(-1)
    q = discrete.RelaxedBernoullis(t, raw)
    density = q.log_prob(z).exp() * (z * (1 - z)).squeeze(-1)
    exact = torch.trapezoid(density * log_w(z, q), w)
    (slope,) = torch.autograd.grad(exact, raw)
    torch.manual_seed(0)
    many = raw.detach().expand(200_000, 1).clone().requires_grad_()
    q = discrete.RelaxedBernoullis(t, many)
    found = log_w(q.rsample(), q)
    (slopes,) = torch.autograd.grad(found.sum(), many)
    for draws, right in ((found.detach(), exact.item()), (slopes, slope.item())):
        assert abs(draws.mean() - right) < 4 * draws.std() / math.sqrt(len(draws))


LEARNED = torch.tensor([0.3, -0.5, 0.1], requires_grad=True)
STRAIGHT = {
    "one_hot": lambda: dist.OneHotCategoricalStraightThrough(logits=LEARNED),
    "relaxed_one_hot": lambda: dist.RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.7), logits=LEARNED),
    "relaxed_bits": lambda: dist.RelaxedBernoulliStraightThrough(torch.tensor(0.7), logits=LEARNED).to_event(1),
}


@pytest.mark.parametrize("name", STRAIGHT)
def test_draws_with_a_gradient_straight_through_go_with_reparam_alone(name):
    """By it, and without a gradient, they are taken as Pyro takes them."""
    bits = name == "relaxed_bits"

    def model(x):
        with pyro.plate("data", len(x)):
            prior = dist.Bernoulli(0.5).expand([3]).to_event(1) if bits else dist.OneHotCategorical(torch.ones(3))
            pyro.sample("x", dist.Normal(pyro.sample("z", prior) @ torch.tensor([1.0, -0.5, 0.3]), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", STRAIGHT[name]())

    def loss(objective):
        torch.manual_seed(0)
        found = objective.differentiable_loss(model, guide, torch.ones(5))
        return found, torch.autograd.grad(found, LEARNED)[0]

    theirs = pyro.infer.Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1)
    for found, expected in zip(loss(pvae.ELBO(4)), loss(theirs), strict=True):
        torch.testing.assert_close(found, expected)
    for gradient in ("stl", "dreg", "gdreg"):
        with pytest.raises(pvae.InputError, match=f"site 'z': found .*StraightThrough, .* with gradient {gradient} is"):
            loss(pvae.IWAE(4, gradient=gradient))
        with torch.no_grad():
            assert pvae.IWAE(4, gradient=gradient).loss(model, guide, torch.ones(5)) < 100
    for objective in (pvae.IWAE(4, chunk=2), pvae.PIWAE(4, groups=2), pvae.IWAE(4, gradient="vimco")):
        if name == "one_hot":
            loss(objective)
            continue
        with pytest.raises(pvae.InputError, match=r"site 'z': found Relaxed.*StraightThrough"):
            loss(objective)


# In whole models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_a_fit_climbs(name):
    vae = vae_of(*PAIRS[name], hidden=(16,))
    x = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).repeat(16, 1)
    gradient = "reparam" if vae.encode(x).has_rsample else "vimco"
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), pvae.IWAE(4, gradient=gradient))
    for _ in range(200):
        svi.step(x)
    with torch.no_grad():
        bound = bounds.iwae(vae.log_weights(x, particles=200).log_w).mean()
    assert math.log(0.5) - 0.6 < bound < math.log(0.5) + 0.05  # the entropy of the data
    assert (vae.reconstruct(x) - x).abs().mean() < 0.15


@pytest.mark.parametrize("name", PAIRS)
def test_a_reconstruction_is_of_a_latent_that_a_decoder_knows(name):
    vae = vae_of(*PAIRS[name])
    q = vae.encode(torch.rand(5, 4).round())
    point = vae.posterior.point(q)
    assert q.support.check(point).all()
    torch.testing.assert_close(
        vae.reconstruct(torch.zeros(3, 4)), vae.likelihood(vae.posterior.point(vae.encode(torch.zeros(3, 4)))).mean
    )
    if isinstance(q, Directional):
        assert torch.equal(point, q.axis)
    elif name == "bernoulli":
        assert torch.equal(point, (q.base_dist.logits > 0).float())
    elif name == "relaxed_bernoulli":
        torch.manual_seed(0)
        torch.testing.assert_close(q.expand([40_000, 5]).sample().median(0).values, point, rtol=0, atol=0.03)
    else:
        assert torch.equal(point.unflatten(-1, (2, 3)).argmax(-1), q.logits.argmax(-1))


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "relaxed_categorical", "von_mises_fisher"])
def test_annealing_needs_real_numbers(name):
    vae, x = vae_of(*PAIRS[name]), torch.ones(3, 4)
    message = "site 'z': (discrete: .* real numbers|found latents that no numbers .* expected ones on the real numbers)"
    for call in (
        lambda: Density(vae.model, (x,), particles=2),
        lambda: gap(vae.model, vae.guide, x, log_p=torch.zeros(3)),
    ):
        with pytest.raises(pvae.InputError, match=message) as found:
            call()
        assert "\n" not in str(found.value)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: priors.Categorical(6, 4),
            "categories: found 4 for a latent of size 6, expected 2 or more that divide",
        ),
        (lambda: priors.RelaxedCategorical(6, 1), "categories: found 1"),
        (lambda: guides.Categorical(nn.Identity(), 1), "categories: found 1 for a latent of size 1"),
        (lambda: guides.RelaxedCategorical(nn.Identity(), 6, categories=0), "categories: found 0"),
        (lambda: priors.RelaxedBernoulli(6, temperature=0.0), "temperature: found 0.0, expected at least 0.01"),
        (lambda: guides.RelaxedBernoulli(nn.Identity(), 6, temperature=math.nan), "temperature: found nan"),
        (lambda: guides.RelaxedCategorical(nn.Identity(), 6, temperature=-1.0), "temperature: found -1.0"),
        (
            lambda: vae_of(priors.Bernoulli, pvae.MeanField, {}),
            "guide: MeanField draws from the real numbers, the prior Bernoulli from 0 and 1, expected the same of both:"
            r" choose the guide bernoulli; or choose the prior ",
        ),
        (
            lambda: vae_of(pvae.Normal, guides.RelaxedCategorical, {}),
            r"from the real numbers, .* choose the guide .*mean_field.*; or choose the prior relaxed_categorical or va",
        ),
        (
            lambda: pvae.VAE(
                priors.Categorical(6, 3),
                pvae.Bernoulli(nn.Linear(6, 4), (4,)),
                guides.Categorical(nn.Linear(4, 6), 6, categories=2),
            ),
            "one-hot vectors of 2, the prior Categorical from one-hot vectors of 3, .*: give both the same options$",
        ),
        (
            lambda: vae_of(priors.Sphere, guides.Bernoulli, {}),
            "choose the guide von_mises_fisher or power_spherical; or choose the prior bernoulli",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(wrong, message):
    with pytest.raises(pvae.InputError, match=message) as found:
        wrong()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("objective", "advice"),
    [
        (
            lambda: pvae.ELBO(),
            "pass 2 particles or more, and as the gradient one of those that need none: score, vimco$",
        ),
        (lambda: pvae.IWAE(), "pass 2 particles or more, .* none: score, vimco, ovis, rws$"),
        (lambda: pvae.IWAE(3, gradient="dreg"), "wrong: pass as the gradient one of .*: score, vimco, ovis, rws$"),
        (lambda: pvae.ELBO(3), "wrong: pass as the gradient one of .*: score, vimco$"),
    ],
)
def test_discrete_draws_under_the_default_gradient_are_told_what_to_pass(objective, advice):
    vae = vae_of(*PAIRS["categorical"])
    with pytest.raises(pvae.InputError, match=advice) as found:
        objective().loss(vae.model, vae.guide, torch.ones(3, 4))
    assert "\n" not in str(found.value)
