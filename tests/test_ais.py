"""Annealing against exact evidence: from below, from above, and without bias; its transitions; what it leaves alone."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.fx.experimental.proxy_tensor import make_fx

import pvae
from pvae import exact
from pvae.ais import Annealing, ais, bdmc, transition
from pvae.noise import CELL, Noise, block_size
from pvae.programs import Density, State, counted, simulate

WEIGHT = torch.tensor([[1.0, 0.8], [0.2, 0.7], [-0.5, -0.3], [0.7, -0.2]], dtype=torch.float64)
QUICK = Annealing(temperatures=8, chains=4, leapfrog=2)


def linear(n=60, variance=0.1):
    """A linear VAE with its best guide, the truth it was set to, and data from it."""
    truth = exact.LinearGaussian(WEIGHT, torch.zeros(4).double(), torch.tensor(variance).double())
    vae = exact.LinearVAE(4, 2).double().set_(truth)
    _, x = truth.sample(n, torch.Generator().manual_seed(3))
    return vae, truth, x


def assert_mean(found, expected, errors=4.0):
    """The mean over the rows of `found` is as expected, within its standard error."""
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - expected).abs() < errors * error).all()


# Against exact evidence -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_the_estimate_is_the_exact_evidence(start):
    vae, truth, x = linear(150, variance=0.3)
    found = ais(
        vae.model, x, guide=vae.guide if start == "guide" else None, annealing=Annealing(120, 16, 5), chunk=10**5
    )
    difference = found.log_p - truth.log_prob(x)
    assert difference.mean().abs() < 0.05
    assert difference.mean() < 4 * difference.std() / math.sqrt(len(x))
    assert ((found.acceptance - 0.65).abs() < 0.1).all()
    assert (difference.abs() < 6 * found.se + 0.1).all()


@pytest.mark.parametrize(("start", "schedule"), [("prior", "sigmoid"), ("prior", "linear"), ("guide", "sigmoid")])
def test_the_weights_are_unbiased_however_few_the_temperatures(start, schedule):
    """Few temperatures and a low acceptance: what is wrong with a transition shows."""
    vae, truth, x = linear(400, variance=0.5)
    guide = vae.guide if start == "guide" else None
    found = ais(vae.model, x, guide=guide, annealing=Annealing(6, 32, 3, schedule, acceptance=0.4), chunk=10**5)
    assert_mean((found.log_w - truth.log_prob(x)).exp().mean(0), 1.0)
    assert ((found.acceptance - 0.4).abs() < 0.2).all()


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_the_reverse_weights_estimate_the_inverse_without_bias(start):
    vae, truth, x = linear(400, variance=0.5)
    guide = vae.guide if start == "guide" else None
    found = bdmc(vae.model, x, guide=guide, annealing=Annealing(6, 16, 3, acceptance=0.4), seed=1, chunk=10**5)
    log_p = truth.log_prob(found.x)
    assert_mean((found.forward.log_w - log_p).exp().mean(0), 1.0)
    assert_mean((found.reverse.log_w + log_p).exp().mean(0), 1.0)


@pytest.mark.parametrize("temperatures", [10, 100])
def test_bidirectional_bounds_sandwich_the_evidence(temperatures):
    vae, truth, _ = linear()
    found = bdmc(vae.model, torch.zeros(100, 4).double(), annealing=Annealing(temperatures, 8, 5))
    log_p, error = truth.log_prob(found.x), 4 / math.sqrt(100)
    low, high = found.lower - log_p, found.upper - log_p
    assert low.mean() < error * low.std()
    assert high.mean() > -error * high.std()
    if temperatures == 100:
        assert low.mean() > -0.15
        assert high.mean() < 0.15
    else:
        assert low.mean() < -0.05
        assert high.mean() > 0.05


@pytest.mark.slow
def test_more_temperatures_close_the_sandwich():
    vae, truth, _ = linear(variance=0.02)
    found = bdmc(vae.model, torch.zeros(200, 4).double(), annealing=Annealing(1000, 16))
    log_p = truth.log_prob(found.x)
    assert (found.lower - log_p).mean().abs() < 0.05
    assert (found.upper - log_p).mean().abs() < 0.05
    assert -0.01 < (found.upper - found.lower).mean() < 0.05


def test_one_temperature_is_importance_sampling_from_the_prior():
    vae, _, x = linear()
    found = ais(vae.model, x, annealing=Annealing(temperatures=1, chains=5))
    density = Density(vae.model, (x,), particles=5)
    _, ratio = density.terms(density.draw(Noise((0, 2), 0, len(x), "cpu")))
    torch.testing.assert_close(found.log_w, ratio.detach())
    assert found.acceptance.isnan().all()


def test_the_reverse_chains_start_at_the_draw_that_the_data_are_from():
    vae, _, x = linear(CELL + 3)
    found = bdmc(vae.model, x, annealing=Annealing(temperatures=1, chains=2), seed=4)
    drawn, cells = simulate(vae.model, x, noise=Noise((4, 0), 0, len(x), "cpu"))
    z = torch.cat([cell["z"]["value"] for cell in cells])
    likelihood = dist.Normal(z @ WEIGHT.mT, math.sqrt(0.1)).to_event(1).log_prob(drawn)
    assert torch.equal(found.x, drawn)
    torch.testing.assert_close(found.reverse.log_w, -likelihood.detach().expand(2, -1))


def test_simulated_data_are_the_models():
    vae, truth, _ = linear()
    x, cells = simulate(vae.model, torch.zeros(4000, 4).double(), noise=Noise((0,), 0, 4000, "cpu"))
    z = torch.cat([cell["z"]["value"] for cell in cells])
    covariance = WEIGHT @ WEIGHT.mT + truth.variance * torch.eye(4)
    assert_mean(x, torch.zeros(4).double())
    assert_mean((x[:, :, None] * x[:, None, :]).flatten(1), covariance.flatten())
    assert_mean((x[:, :, None] * z[:, None, :]).flatten(1), WEIGHT.flatten())


# Other models than a VAE's --------------------------------------------------------------------------------------------


def gamma_poisson(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0).double(), 0.5))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def dirichlet_multinomial(x):
    with pyro.plate("data", len(x)):
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([0.7, 1.5, 3.0]).double()))
        pyro.sample("x", dist.Multinomial(20, p), obs=x)


def hierarchy(x):
    """Three sites, the last in a plate of its own: x_d = b_d + noise, b_d = a + c + noise."""
    with pyro.plate("data", len(x), dim=-2):
        a = pyro.sample("a", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        c = pyro.sample("c", dist.Normal(a.sum(-1), 0.5))
        with pyro.plate("pixels", 3, dim=-1):
            b = pyro.sample("b", dist.Normal(c, 0.7))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def hierarchy_evidence(x):
    covariance = torch.eye(3).double() * (0.7**2 + 1.0**2) + (2 + 0.25)
    return torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x)


def angle(x):
    """A likelihood that is not the same a turn on: the circle is cut open at its far side."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.VonMises(torch.tensor(0.5).double(), 1.0))
        pyro.sample("x", dist.Normal(z, 0.8), obs=x)


def angle_evidence(x):
    grid = (torch.arange(4000).double() + 0.5) / 4000 * 2 * math.pi - math.pi
    joint = dist.VonMises(0.5, 1.0).log_prob(grid) + dist.Normal(grid, 0.8).log_prob(x.unsqueeze(-1))
    return joint.logsumexp(-1) + math.log(2 * math.pi / 4000)


def mixture(components, *weights):
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor(weights)), components)


def two_normals(x):
    """Of two numbers, each of a mixture of normals."""
    components = dist.Normal(torch.tensor([-0.6, 0.6]).double(), torch.tensor([0.5, 0.7]).double())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", mixture(components, 0.3, 0.7).expand([2]).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def two_normals_evidence(x):
    marginal = dist.Normal(torch.tensor([-0.6, 0.6]), torch.tensor([1.25, 1.49]).double().sqrt())
    return mixture(marginal, 0.3, 0.7).log_prob(x).sum(-1)


COUNTS = torch.tensor([[20.0, 0.0, 0.0], [3.0, 7.0, 10.0], [0.0, 1.0, 19.0]]).double()
CASES = {
    "positive": (
        gamma_poisson,
        torch.tensor([0.0, 1.0, 5.0, 20.0]).double(),
        lambda x: dist.GammaPoisson(torch.tensor(3.0).double(), 0.5).log_prob(x),
    ),
    "simplex": (
        dirichlet_multinomial,
        COUNTS,
        lambda x: dist.DirichletMultinomial(torch.tensor([0.7, 1.5, 3.0]).double(), 20).log_prob(x),
    ),
    "several sites": (
        hierarchy,
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double(),
        hierarchy_evidence,
    ),
    "mixture": (two_normals, torch.tensor([[-2.0, 1.0], [0.5, 3.0]]).double(), two_normals_evidence),
    "circle": (angle, torch.tensor([-3.0, 0.0, 2.5, 4.0]).double(), angle_evidence),
}


@pytest.mark.parametrize("case", CASES)
def test_latents_with_constraints_and_several_sites(case):
    model, x, evidence = CASES[case]
    x = x.repeat(40, *[1] * (x.dim() - 1))
    found = ais(model, x, annealing=Annealing(40, 16, 5), chunk=10**5)
    assert_mean((found.log_w - evidence(x)).exp().mean(0), 1.0)
    assert (found.log_p - evidence(x)).mean().abs() < 0.2


@pytest.mark.parametrize("case", CASES)
def test_every_model_can_be_simulated_and_sandwiched(case):
    model, x, evidence = CASES[case]
    found = bdmc(model, x.repeat(40, *[1] * (x.dim() - 1)), annealing=Annealing(40, 16, 5), chunk=10**5)
    log_p = evidence(found.x)
    assert_mean((found.reverse.log_w + log_p).exp().mean(0), 1.0)
    assert (found.upper - found.lower).mean().abs() < 0.4


def test_angles_that_are_mapped_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            angles = dist.VonMises(torch.tensor(0.0), 1.0)
            twice = dist.TransformedDistribution(angles, dist.transforms.AffineTransform(0.0, 2.0))
            pyro.sample("x", dist.Normal(pyro.sample("z", twice), 1.0), obs=x)

    with pytest.raises(pvae.InputError, match="site 'z': found angles of VonMises that a transform maps"):
        Density(model, (torch.zeros(2),))


def test_angles_go_round():
    density = Density(angle, (torch.zeros(1).double(),), particles=3)
    u = torch.tensor([-1.0, -1.0 + 2 * math.pi, -1.0 - 4 * math.pi], dtype=torch.float64).reshape(3, 1, 1)
    base, ratio = density.terms(u)
    prior = dist.VonMises(torch.tensor(0.5).double(), 1.0)
    torch.testing.assert_close(base, prior.log_prob(torch.full((3, 1), -1.0).double()))
    torch.testing.assert_close(ratio, dist.Normal(-1.0, 0.8).log_prob(torch.zeros(3, 1).double()))


def lengths(x, n):
    """x_t about log z_t, the first n of 3; of more than one also |x_1| at a rate w."""
    mask = torch.arange(3) < n[:, None]
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(torch.zeros(len(x), 3).double(), 1.0).mask(mask).to_event(1))
        with poutine.mask(mask=n > 1):
            w = pyro.sample("w", dist.Gamma(torch.tensor(2.0).double(), 1.0))
        pyro.sample("x", dist.Normal(z.log(), 1.0).mask(mask).to_event(1), obs=x)
        with poutine.mask(mask=n > 1):
            pyro.sample("v", dist.Exponential(w), obs=x[:, 0].abs())


@pytest.mark.parametrize("particles", [1, 2])
def test_masked_latents_count_nowhere(particles):
    x, n = torch.randn(3, 3).double(), torch.tensor([1, 2, 3])
    density = Density(lengths, (x, n), particles=particles)
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1]]).bool()
    assert torch.equal(density.counted, expected.expand(particles, 3, 4))
    u = torch.randn(particles, 3, 4).double()
    terms = density.terms(u)
    torch.testing.assert_close(terms, density.terms(u + 5 * ~expected))
    base = dist.Normal(0.0, 1.0).log_prob(u[..., :3]) * expected[:, :3]
    rate = dist.Gamma(2.0, 1.0).log_prob(u[..., 3].exp()) + u[..., 3]
    torch.testing.assert_close(terms[0], base.sum(-1) + rate * expected[:, 3])
    assert Density(angle, (torch.zeros(1).double(),)).counted is None


def test_what_counts_is_left_out_by_neither_mask():
    inner, outer = torch.tensor([True, True, False]), torch.tensor([[True], [False]])
    fn = dist.Normal(torch.zeros(2, 4, 3), 1.0).mask(inner).to_event(1).mask(torch.tensor([1, 1, 1, 0]).bool())
    found = counted({"fn": fn, "mask": outer, "value": fn.sample()})
    expected = outer[..., None] & torch.tensor([1, 1, 1, 0]).bool()[:, None] & inner
    assert torch.equal(found.expand(2, 4, 3), expected)
    assert counted({"fn": dist.Normal(0.0, 1.0), "mask": None, "value": torch.zeros(())}) is None


def test_annealing_with_masked_latents_is_of_the_others():
    n = torch.tensor([1, 2, 3]).repeat(30)
    x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0)).double()
    evidence = (dist.Normal(0.0, 2**0.5).log_prob(x) * (torch.arange(3) < n[:, None])).sum(-1)
    lomax = math.log(2) - 3 * (1 + x[:, 0].abs()).log()
    found = ais(lengths, x, n, annealing=Annealing(40, 16, 5))
    assert (found.log_p - evidence - lomax * (n > 1)).mean().abs() < 0.1


def test_densities_without_constraints_integrate_to_one():
    """A support that depends on the latent before it: z in (0, rate)."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Exponential(torch.tensor(2.0).double()))
            z = pyro.sample("z", dist.Uniform(0.0, rate))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    grid = torch.linspace(-20, 20, 801, dtype=torch.float64)
    u = torch.cartesian_prod(grid, grid).unsqueeze(1)
    base, ratio = Density(model, (torch.zeros(1).double(),), particles=len(u)).terms(u)
    area = math.log((grid[1] - grid[0]) ** 2)
    assert (base.logsumexp(0) + area).abs() < 1e-3
    z = u[:, :, 0].exp() * u[:, :, 1].sigmoid()
    torch.testing.assert_close(ratio, dist.Normal(z, 1.0).log_prob(torch.zeros(1).double()))


def test_a_start_from_the_guide_has_the_same_ends():
    vae, _, x = linear(3)
    u = torch.randn(4, 3, 2).double()
    prior, likelihood = Density(vae.model, (x,), particles=4).terms(u)
    base, ratio = Density(vae.model, (x,), particles=4, guide=vae.guide).terms(u)
    torch.testing.assert_close(base + ratio, prior + likelihood)
    q = dist.Normal(vae.encoder(x), vae.guide_log_scales.exp()).to_event(1)
    torch.testing.assert_close(base, q.log_prob(u))


def test_a_start_from_a_guide_on_a_bounded_support():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(3.0 + x, 1.5))  # the posterior

    x, u = torch.tensor([0.0, 4.0]).double(), torch.randn(5, 2, 1).double()
    base, ratio = Density(gamma_poisson, (x,), particles=5, guide=guide).terms(u)
    torch.testing.assert_close(base, dist.Gamma(3.0 + x, 1.5).log_prob(u[..., 0].exp()) + u[..., 0])
    evidence = dist.GammaPoisson(torch.tensor(3.0).double(), 0.5).log_prob(x)
    torch.testing.assert_close(ratio, evidence.expand(5, 2))
    found = ais(gamma_poisson, x, guide=guide, annealing=QUICK)
    torch.testing.assert_close(found.log_w, evidence.expand(4, 2))


def test_labels_reach_the_model(vae, x):
    seen = []

    def model(x, y):
        seen.append(y)
        vae.model(x)

    ais(model, x, torch.arange(7), annealing=Annealing(2, 2, 1))
    assert all(torch.equal(y, torch.arange(7)[: len(y)]) for y in seen)


MIXTURES = {
    "vectors": lambda: mixture(dist.MultivariateNormal(torch.eye(2).double(), torch.eye(2).double()), 0.5, 0.5),
    "positive": lambda: mixture(dist.Gamma(torch.tensor([2.0, 5.0]).double(), 1.0), 0.4, 0.6),
    "between": lambda: mixture(dist.Uniform(torch.tensor([0.0, 0.5]).double(), 2.0), 0.4, 0.6),
    "two between": lambda: mixture(
        dist.Uniform(torch.tensor([[0.0, 5.0], [0.5, 4.0]]).double(), 6.0).to_event(1), 0.4, 0.6
    ),
    "simplex": lambda: mixture(dist.Dirichlet(torch.tensor([[2.0, 3.0, 1.0], [5.0, 1.0, 1.0]]).double()), 0.4, 0.6),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_lie_where_their_components_do(name):
    """The density of the numbers without constraints, held against draws: its mean over a normal's is one."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", MIXTURES[name]())
            pyro.sample("x", dist.Normal(z.reshape(*z.shape[: z.dim() - len(fn.event_shape)], -1).sum(-1), 1.0), obs=x)

    fn = MIXTURES[name]()
    density = Density(model, (torch.zeros(1).double(),), particles=20000)
    drawn = density.draw(Noise((0, 2), 0, 1, "cpu"))
    wide = dist.Normal(drawn.mean((0, 1)), 1.5 * drawn.std((0, 1))).to_event(1)
    u = wide.sample((20000, 1))
    base, _ = density.terms(u)
    assert_mean((base - wide.log_prob(u)).exp(), 1.0)
    assert density.terms(drawn)[0].isfinite().all()


def test_a_mixture_of_angles_goes_round():
    components = dist.VonMises(torch.tensor([0.0, 2.0]).double(), torch.tensor([3.0, 5.0]).double())

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", mixture(components, 0.5, 0.5)), 1.0), obs=x)

    u = torch.tensor([-1.0, -1.0 + 2 * math.pi], dtype=torch.float64).reshape(2, 1, 1)
    base, _ = Density(model, (torch.zeros(1).double(),), particles=2).terms(u)
    torch.testing.assert_close(base, mixture(components, 0.5, 0.5).log_prob(u[:1, :, 0]).expand(2, 1))


ENDS = {
    "beta": (lambda dtype: dist.Beta(*torch.full((2,), 0.1, dtype=dtype)), "32"),
    "sparser beta": (lambda dtype: dist.Beta(*torch.full((2,), 0.02, dtype=dtype)), "32 64"),
    "dirichlet": (lambda dtype: dist.Dirichlet(torch.full((3,), 0.1, dtype=dtype)), "32"),
    "relaxed": (lambda dtype: dist.RelaxedBernoulli(*torch.tensor([0.1, 0.4], dtype=dtype)), "32"),
    "gamma": (lambda dtype: dist.Gamma(torch.tensor(0.01, dtype=dtype), 1.0), "32"),
    "arcsine": (lambda dtype: dist.Beta(*torch.full((2,), 0.5, dtype=dtype)), ""),
    "sparse gamma": (lambda dtype: dist.Gamma(torch.tensor(0.05, dtype=dtype), 1.0), ""),
    "flat": (lambda dtype: dist.Dirichlet(torch.ones(50, dtype=dtype)), ""),
    "ours": (lambda dtype: pvae.priors.RelaxedBernoulli(20, temperature=0.05)(), ""),
}


@pytest.mark.parametrize("bits", ["32", "64"])
@pytest.mark.parametrize("name", ENDS)
def test_draws_at_the_ends_of_what_their_type_holds_are_told_of(name, bits):
    make, told = ENDS[name]
    dtype = torch.float32 if bits == "32" else torch.float64

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", make(dtype).mask(y))
            pyro.sample("x", dist.Normal(z if not make(dtype).event_shape else z.sum(-1), 1.0), obs=x)

    x, y = torch.zeros(64, dtype=dtype), torch.ones(64).bool()
    noise = Noise((0, 2), 0, 64, "cpu")
    masked = Density(model, (x, ~y), particles=16).draw(noise)
    if bits in told.split():
        with pytest.warns(
            UserWarning, match=f"site 'z': more than 2% of the starting draws.*torch.float{bits} "
        ) as found:
            Density(model, (x, y), particles=16).draw(noise)
        assert ("float64, or draw" in str(found[0].message)) == (bits == "32")
    else:
        Density(model, (x, y), particles=16).draw(noise)
    assert masked.shape[:2] == (16, 64)


@pytest.mark.parametrize("learned", [False, True])
def test_a_likelihood_that_knows_nothing_of_the_latents_is_the_evidence(learned):
    loc = torch.tensor(0.0, requires_grad=learned)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = torch.tensor([0.3, 1.2])
    expected = dist.Normal(0.0, 1.0).log_prob(x).double().expand(4, 2)
    torch.testing.assert_close(ais(model, x, annealing=QUICK).log_w, expected)


# The transition -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize("step", [0.15, 0.8])
def test_transitions_leave_their_target_as_it_is(beta, step):
    """From exact draws of p(z) p(x|z)^beta, at a high and at a low acceptance."""
    vae, truth, x = linear(2, variance=0.3)
    precision = torch.eye(2) + beta * WEIGHT.mT @ WEIGHT / truth.variance
    covariance = torch.linalg.inv(precision)
    mean = beta * x @ WEIGHT @ covariance / truth.variance
    target = torch.distributions.MultivariateNormal(mean, covariance)
    density = Density(vae.model, (x,), particles=20000)
    state = density(target.sample((20000,)))
    for _ in range(5):
        momentum, log_u = torch.randn_like(state.u), torch.rand_like(state.base).log()
        state, accepted = transition(density, state, torch.tensor(beta), torch.full((2,), step), momentum, log_u, 4)
    assert (accepted.mean() < 0.9) == (step > 0.3)
    shift = state.u - mean
    assert_mean(shift, 0.0)
    assert_mean((shift[..., :, None] * shift[..., None, :]).flatten(1), covariance.flatten().repeat(2))
    standard = (shift @ precision * shift).sum(-1)
    assert_mean(standard.square(), 8.0)  # of chi-squared with 2 degrees of freedom


def test_energy_is_conserved_to_second_order_in_the_step():
    vae, _, x = linear(20)
    density = Density(vae.model, (x,), particles=50)
    state, momentum = density(torch.randn(50, 20, 2).double()), torch.randn(50, 20, 2).double()
    always = torch.full((50, 20), -math.inf).double()
    lost = []
    for step, leapfrog in ((0.02, 10), (0.01, 20)):
        _, accepted = transition(density, state, torch.tensor(0.7), torch.full((20,), step), momentum, always, leapfrog)
        lost.append(-accepted.log()[accepted < 1].mean())
    assert lost[0] / lost[1] == pytest.approx(4, rel=0.1)
    assert lost[1] < 0.01


def test_the_state_is_that_of_its_point():
    """What a transition carries along is what a new look finds, accepted or not."""
    vae, _, x = linear(5)
    density = Density(vae.model, (x,), particles=6)
    state, momentum = density(torch.randn(6, 5, 2).double()), torch.randn(6, 5, 2).double()
    log_u, step = torch.rand(6, 5).double().log(), torch.full((5,), 0.5)
    end, accepted = transition(density, state, torch.tensor(0.5), step, momentum, log_u, 3)
    moved = (end.u != state.u).any(-1)
    assert moved.any()
    assert not moved.all()
    assert torch.equal(moved, log_u < accepted.log())
    for found, expected in zip(end, density(end.u), strict=True):
        torch.testing.assert_close(found, expected)


def test_gradients_are_those_of_the_densities():
    vae, _, x = linear(5)
    state = Density(vae.model, (x,), particles=6)(torch.randn(6, 5, 2).double())
    residual = x - state.u @ WEIGHT.mT
    torch.testing.assert_close(state.base_grad, -state.u)
    torch.testing.assert_close(state.ratio_grad, residual @ WEIGHT / 0.1)


def test_a_diverged_trajectory_is_refused():
    def density(u):
        bad = torch.full(u.shape[:2], math.nan)
        return State(u, bad, bad, u * math.nan, u * math.nan)

    start = State(torch.ones(1, 2, 1), *(torch.ones(1, 2),) * 2, *(torch.ones(1, 2, 1),) * 2)
    end, accepted = transition(
        density, start, torch.tensor(1.0), torch.ones(2), torch.ones(1, 2, 1), torch.full((1, 2), -5.0), 2
    )
    assert all(torch.equal(found, expected) for found, expected in zip(end, start, strict=True))
    assert not accepted.any()


def test_one_gradient_for_each_leapfrog_step_and_nothing_read(vae, x):
    density = Density(vae.model, (x,), particles=4)
    state = density(torch.randn(4, 7, 3))
    calls = []

    def counted(u):
        calls.append(u)
        return density(u)

    def step(state, beta, size, momentum, log_u):
        return transition(counted, State(*state), beta, size, momentum, log_u, 3)

    arguments = (tuple(state), torch.tensor(0.5), torch.full((7,), 0.1), torch.randn(4, 7, 3), torch.rand(4, 7).log())
    expected, _ = step(*arguments)
    assert len(calls) == 3
    graph = make_fx(step)(*arguments)  # fails where a value is read
    with torch.no_grad():
        found, _ = graph(*arguments)
    torch.testing.assert_close(found.u, expected.u)


# Schedules, chunks, seeds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["sigmoid", "linear"])
def test_temperatures_rise_from_zero_to_one(schedule):
    betas = Annealing(50, schedule=schedule).betas
    assert (betas[0], betas[-1], len(betas)) == (0, 1, 51)
    assert (betas.diff() > 0).all()
    torch.testing.assert_close(betas, 1 - betas.flip(0))
    assert (betas[1] < 0.01) == (schedule == "sigmoid")


def test_chunks_change_nothing():
    vae, _, x = linear(CELL + 9)
    small, large = (ais(vae.model, x, annealing=QUICK, chunk=chunk) for chunk in (1, 10**6))
    torch.testing.assert_close(small.log_w, large.log_w, rtol=0, atol=1e-6)
    torch.testing.assert_close(small.acceptance, large.acceptance, rtol=0, atol=1e-6)
    both = [bdmc(vae.model, x, annealing=QUICK, chunk=chunk) for chunk in (1, 10**6)]
    assert torch.equal(both[0].x, both[1].x)
    torch.testing.assert_close(both[0].reverse.log_w, both[1].reverse.log_w, rtol=0, atol=1e-6)


def test_the_result_depends_on_the_seed_alone_and_disturbs_nothing():
    vae, _, x = linear(5)
    found = []
    for state, seed in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(state)
        expected = torch.rand(3)
        torch.manual_seed(state)
        found.append(ais(vae.model, x, annealing=QUICK, seed=seed).log_w)
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert all(p.grad is None for p in vae.parameters())
    assert not found[0].requires_grad


def test_equal_data_have_different_draws():
    vae, _, x = linear(1)
    found = ais(vae.model, x.expand(CELL + 3, -1), annealing=Annealing(2, 4, 1))
    assert len(found.log_w.flatten().unique()) == 4 * (CELL + 3)


def test_noise_is_new_every_time():
    noise = Noise((0,), 0, 3, "cpu")
    like = torch.zeros(2, 3, 1)
    drawn = [noise.normal(like), noise.normal(like)]
    drawn += [torch.randn(2, 3, 1) for _ in range(2) for _ in noise.seeded()]
    assert len(torch.stack(drawn).unique()) == 4 * 6
    assert noise.uniform(like).min() >= 0
    assert block_size(torch.device("cpu"), 10**6) == CELL


@pytest.mark.parametrize("chains", [1, 3])
def test_numbers_are_double_and_by_datum(vae, x, chains):
    ticks = []
    annealing = Annealing(3, chains, 2)
    found = ais(vae.model, x, annealing=annealing, progress=lambda *args: ticks.append(args))
    assert (found.log_w.shape, found.log_w.dtype) == ((chains, 7), torch.float64)
    assert found.acceptance.shape == found.log_p.shape == found.ess.shape == found.se.shape == (7,)
    assert ticks == [(1, 3), (2, 3), (3, 3)]
    assert "7 data" in repr(found)
    both = bdmc(vae.model, x, annealing=annealing, progress=lambda *args: ticks.append(args))
    assert ticks[-1] == (6, 6)
    assert "7 simulated data" in repr(both)
    low, high = both.lower.mean(), both.upper.mean()
    assert f"log p(x) in [{low:.3f}, {high:.3f}], gap {high - low:.3f} " in " ".join(repr(both).split())


def test_ess_and_error_of_the_chains():
    found = pvae.ais.Annealed(torch.tensor([[0.0, 0.0], [0.0, -math.inf], [0.0, -math.inf]]).double(), torch.ones(2))
    torch.testing.assert_close(found.ess, torch.tensor([3.0, 1.0]).double())
    torch.testing.assert_close(found.se, torch.tensor([0.0, 1.0]).double())
    torch.testing.assert_close(found.log_p, torch.tensor([0.0, -math.log(3)]).double())


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": 0}, "temperatures: found 0"),
        ({"chains": 0}, "chains: found 0"),
        ({"leapfrog": 0}, "leapfrog: found 0"),
        ({"schedule": "sigmoidal"}, "did you mean 'sigmoid'"),
        ({"acceptance": 1.0}, "acceptance: found 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(pvae.InputError, match=message):
        Annealing(**options)


def test_models_that_cannot_be_annealed_are_refused(vae):
    def discrete(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def diverged(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(True), obs=x * math.nan)

    def two(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("w", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(pvae.InputError, match="site 'z': discrete"):
        ais(discrete, torch.zeros(2))
    with pytest.raises(pvae.InputError, match="no data"):
        ais(vae.model, torch.zeros(0, 4, 5))
    with pytest.raises(pvae.InputError, match="observed sites x, w"):
        bdmc(two, torch.zeros(2))
    with pytest.raises(pvae.InputError, match=r"site 'x'|datum 0, chain 0"):
        ais(diverged, torch.zeros(2), annealing=QUICK)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-math.inf, "ais: the weights of datum 33 are zero, all of them"),
        (math.inf, "ais: the weights of datum 33 are infinite"),
        (math.nan, "ais: the log-weight of datum 33 is not a number"),
    ],
)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("plate", ["", None])
def test_weights_that_are_no_weights_name_datum_and_site(value, message, guided, plate):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.factor("odd", torch.where(x > 40, value, 0 * z))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.zeros(40)
    x[33] = 50.0
    message = message if plate == "" else message.replace("datum 33", "the program")
    with pyro.validation_enabled(False), pytest.raises(pvae.InputError, match=f"{message}.*, at site 'odd'$"):
        ais(model, x, guide=guide if guided else None, annealing=QUICK, plate=plate)


def test_a_few_chains_of_weight_zero_are_no_error():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", torch.where(z > 0, 0.0, -math.inf) + 0 * x)

    found = ais(model, torch.zeros(20), annealing=Annealing(2, 30, 1))
    assert found.log_w.isinf().any()
    assert_mean(found.log_p.exp(), 0.5)


def test_a_model_with_a_factor_is_not_simulated():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("f", 8 * torch.sigmoid(6 * (z - 2)))
            pyro.sample("x", dist.Normal(z, 1.5), obs=x)

    assert ais(model, torch.zeros(2), annealing=QUICK).log_p.isfinite().all()
    with pytest.raises(pvae.InputError, match=r"site 'f': found a factor, which draws of data.*pvae\.ais\.ais"):
        bdmc(model, torch.zeros(2), annealing=QUICK)
