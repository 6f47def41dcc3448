"""Latents made of auxiliary draws, as Pyro's autoguides make them, and one bound for a whole program."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro.infer.reparam import ConjugateReparam

import pvae
from pvae import programs
from pvae.ais import Annealing, ais
from pvae.bounds import iwae
from pvae.cells import Kept
from pvae.errors import InputError
from pvae.estimators.intervals import points
from pvae.programs import Density
from pvae.programs.kl import closed

AUTOGUIDES = [
    AutoNormal,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoLowRankMultivariateNormal,
    AutoIAFNormal,
    AutoStructured,
    AutoGaussian,
    AutoNormalMessenger,
    AutoHierarchicalNormalMessenger,
    AutoLaplaceApproximation,
]
OBJECTIVES = {
    "elbo": lambda **o: pvae.ELBO(3, **o),
    "elbo, stl": lambda **o: pvae.ELBO(3, gradient="stl", **o),
    "elbo, dreg": lambda **o: pvae.ELBO(3, gradient="dreg", **o),
    "elbo, score": lambda **o: pvae.ELBO(3, gradient="score", **o),
    "elbo, beta": lambda **o: pvae.ELBO(3, beta=0.3, **o),
    "elbo, dreg, beta": lambda **o: pvae.ELBO(3, gradient="dreg", beta=0.3, **o),
    "iwae": lambda **o: pvae.IWAE(4, **o),
    "iwae, stl": lambda **o: pvae.IWAE(4, gradient="stl", **o),
    "iwae, dreg": lambda **o: pvae.IWAE(4, gradient="dreg", **o),
    "iwae, dreg, in parts": lambda **o: pvae.IWAE(4, gradient="dreg", chunk=2, **o),
    "iwae, score": lambda **o: pvae.IWAE(4, gradient="score", **o),
    "iwae, vimco": lambda **o: pvae.IWAE(4, gradient="vimco", **o),
    "iwae, ovis": lambda **o: pvae.IWAE(4, gradient="ovis", **o),
    "iwae, rws": lambda **o: pvae.IWAE(4, gradient="rws", **o),
    "piwae": lambda **o: pvae.PIWAE(4, groups=2, **o),
    "chi": lambda **o: pvae.Chi(4, **o),
    "tvo": lambda **o: pvae.TVO(4, gradient="dreg", **o),
}


class Rates(torch.nn.Module):
    """Poisson counts of a rate of each datum's own; the guide draws its log and says so, or draws the rate."""

    def __init__(self, auxiliary: bool) -> None:
        super().__init__()
        self.auxiliary = auxiliary
        self.shape = torch.nn.Parameter(torch.tensor(0.3))
        self.net = torch.nn.Linear(1, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(self.shape.exp(), 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(self, x):
        loc, scale = self.net(x.log1p().unsqueeze(-1)).unbind(-1)
        with pyro.plate("data", len(x)):
            if not self.auxiliary:
                pyro.sample("rate", dist.LogNormal(loc, scale.exp()))
                return
            u = pyro.sample("log_rate", dist.Normal(loc, scale.exp()), infer={"is_auxiliary": True})
            pyro.sample("rate", dist.Delta(u.exp(), log_density=-u))


def gradients(program, objective, *data, seed=3):
    torch.manual_seed(seed)
    program.zero_grad()
    objective = objective()
    loss = objective.differentiable_loss(program.model, program.guide, *data)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in program.parameters())]


@pytest.fixture
def pair():
    torch.manual_seed(0)
    one, other = Rates(True).double(), Rates(False).double()
    other.load_state_dict(one.state_dict())
    return one, other, torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_are_those_of_the_latent_drawn_itself(pair, name):
    one, other, x = pair
    for found, expected in zip(*(gradients(each, OBJECTIVES[name], x) for each in (one, other)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_evaluation_and_rates_are_those_of_the_latent_drawn_itself(pair):
    one, other, x = pair
    found, expected = (pvae.evaluate.evaluate(each.model, each.guide, x, particles=[1, 8]) for each in (one, other))
    for name, column in expected.columns().items():
        torch.testing.assert_close(found.columns()[name], column)
    torch.manual_seed(0)
    traces = programs.trace(one.model, one.guide, x, particles=3)
    terms = programs.split(traces)
    torch.testing.assert_close(programs.rates(traces)["rate"], terms.posterior - terms.prior)


class Noisy(torch.nn.Module):
    """A normal latent, seen with noise."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)


class Placed(Noisy):
    """A normal latent that is made of a standard normal draw by parameters, or drawn from what that gives."""

    def __init__(self, auxiliary: bool) -> None:
        super().__init__()
        self.auxiliary = auxiliary
        self.loc, self.log_scale = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.4, -0.5))

    def guide(self, x):
        with pyro.plate("data", len(x)):
            if not self.auxiliary:
                pyro.sample("z", dist.Normal(self.loc + 0 * x, self.log_scale.exp()))
                return
            u = pyro.sample("u", dist.Normal(torch.zeros_like(x), 1.0), infer={"is_auxiliary": True})
            log_density = (-self.log_scale).expand(u.shape)
            pyro.sample("z", dist.Delta(self.loc + self.log_scale.exp() * u, log_density=log_density))


PLAIN = {"elbo": lambda: pvae.ELBO(3), "elbo, beta": OBJECTIVES["elbo, beta"], "tvo": lambda: pvae.TVO(4)}
ONE_BOUND = [name for name in OBJECTIVES if name not in ("iwae, rws", "piwae", "chi")]


@pytest.mark.parametrize("name", ONE_BOUND)
def test_where_parameters_make_the_latent_the_gradient_is_the_reparameterized_one(name):
    """The auxiliary draws have no parameters: no score to leave out; what makes latents weighs as the model does."""
    x = torch.tensor([0.3, -1.0], dtype=torch.float64)
    words = name.split(", ")
    plain = PLAIN.get(words[0] + ", beta" * ("beta" in words), lambda: pvae.IWAE(4))
    if "in parts" in words:
        plain = lambda: pvae.IWAE(4, chunk=2)  # noqa: E731
    for found, expected in zip(
        gradients(Placed(True), OBJECTIVES[name], x), gradients(Placed(False), plain, x), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["iwae, rws", "piwae", "chi"])
def test_parameters_that_make_latents_are_refused_where_the_guide_has_a_bound_of_its_own(name):
    with pytest.raises(InputError, match="site 'z': made of auxiliary draws"):
        gradients(Placed(True), OBJECTIVES[name], torch.zeros(2, dtype=torch.float64))


class Both(Noisy):
    """A normal latent z = a u + b of a normal draw u, with parameters on both."""

    def __init__(self) -> None:
        super().__init__()
        self.at, self.log_scale, self.log_a, self.b = (
            torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.5, -0.2, 0.3, -0.4)
        )

    def guide(self, x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(self.at + 0 * x, self.log_scale.exp()), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(self.log_a.exp() * u + self.b, log_density=(-self.log_a).expand(u.shape)))


@pytest.mark.parametrize("name", [name for name in ONE_BOUND if name not in ("iwae, stl", "elbo, beta", "tvo")])
def test_parameters_on_both_sides_have_the_gradient_of_the_bound(name):
    """Against the reparameterized gradient, by as many data as there are repetitions."""
    words, n = name.split(", "), 20_000
    x = torch.full((n,), 0.8, dtype=torch.float64)
    other = pvae.IWAE(4) if words[0] == "iwae" else pvae.ELBO(3, beta=0.3 if "beta" in words else 1.0)
    found, expected = (samples(objective, x, seed) for objective, seed in ((OBJECTIVES[name](), 1), (other, 2)))
    error = (found.var(0) / len(found) + expected.var(0) / len(expected)).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() < 4 * error).all()


def samples(objective, x, seed, parts=40):
    """The gradient by parts of the data, (parts, 4), a datum."""
    torch.manual_seed(seed)
    program = Both()
    bound = objective.bounds(program.model, program.guide, x).reshape(parts, -1).mean(1)
    each = [torch.autograd.grad(b, list(program.parameters()), retain_graph=True) for b in bound]
    return torch.stack([torch.stack(gradient) for gradient in each])


class Two(torch.nn.Module):
    """A latent drawn itself, one that is made of an auxiliary draw, and a factor."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros_like(x), 1.0))
            b = pyro.sample("b", dist.LogNormal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(a, b), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(x / 2, 0.5))
            u = pyro.sample("u", dist.Normal(0 * x, 0.3), infer={"is_auxiliary": True})
            pyro.sample("b", dist.Delta(u.exp(), log_density=-u))


def test_a_closed_kl_is_of_the_latents_that_are_drawn_themselves():
    x, two = torch.tensor([0.3, -1.0], dtype=torch.float64), Two()
    torch.manual_seed(0)
    traces = programs.trace(two.model, two.guide, x, particles=5)
    torch.manual_seed(0)
    found = pvae.ELBO(5, analytic_kl=True).bounds(two.model, two.guide, x)
    terms, rates = programs.split(traces), programs.rates(traces)
    assert list(closed(traces)) == ["a"]
    torch.testing.assert_close(sum(rates.values()), terms.posterior - terms.prior)
    exact = torch.distributions.kl_divergence(dist.Normal(x / 2, 0.5), dist.Normal(0 * x, 1.0))
    torch.testing.assert_close(found, (terms.likelihood - rates["b"]).mean(0) - exact)


def test_posterior_means_of_latents_that_are_made_are_of_their_draws(pair):
    program, _, counts = pair
    found = pvae.evaluate.evaluate(program.model, program.guide, counts, particles=[1])
    assert found.latent_variance.isnan().all()
    x, two = torch.tensor([0.3, -1.0], dtype=torch.float64), Two()
    found = pvae.evaluate.evaluate(two.model, two.guide, x, particles=[1])
    assert found.layers["b"].variance.isnan().all()
    assert not found.layers["a"].variance.isnan().any()


def test_each_auxiliary_draw_is_in_one_rate(linear):
    guide = AutoNormal(positives)
    traces = programs.trace(positives, guide, torch.ones(3), particles=4, plate=None)
    terms, rates = programs.split(traces), programs.rates(traces)
    assert list(rates) == ["one", "other"]
    torch.testing.assert_close(sum(rates.values()), terms.posterior - terms.prior)


def positives(y):
    one = pyro.sample("one", dist.LogNormal(0.0, 1.0))
    other = pyro.sample("other", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.LogNormal(one, other), obs=y)


def test_a_factor_is_no_auxiliary_draw():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.factor("factor", 0 * x, has_rsample=True)
            pyro.sample("rate", dist.Delta(pyro.param("rate", torch.ones(4, dtype=torch.float64))))

    x = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    pyro.clear_param_store()
    drawn = programs.draw(guide, x, max_plate_nesting=1)
    assert not programs.made_of(drawn)
    assert [site["name"] for site in points(drawn)] == ["rate"]


class Pushed(Placed):
    """The same latent, of noise that is no site."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            noise = torch.randn_like(x)
            log_density = dist.Normal(0.0, 1.0).log_prob(noise) - self.log_scale
            pyro.sample("z", dist.Delta(self.loc + self.log_scale.exp() * noise, log_density=log_density))


def test_a_points_log_density_with_parameters_is_no_score_to_leave_out():
    x = torch.tensor([0.3, -1.0], dtype=torch.float64)
    one, other = Pushed(True), Placed(False)
    for found, expected in zip(*(gradients(each, lambda: pvae.ELBO(1), x) for each in (one, other)), strict=True):
        torch.testing.assert_close(found, expected)
    for objective in (pvae.ELBO(1, gradient="stl"), pvae.IWAE(4, gradient="stl", chunk=2)):
        refused("site 'z': found a point mass whose log_density", lambda o=objective: gradients(one, lambda: o, x))
    with torch.no_grad():
        pvae.ELBO(1, gradient="stl").loss(one.model, one.guide, x)


def test_a_point_whose_log_density_has_none_is_taken_without_its_score():
    """A number, or what follows from draws alone: fixed with these."""
    loc = torch.tensor(0.3, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            one = pyro.sample("one", dist.Normal(0.0, 1.0))
            pyro.sample("other", dist.Normal(one, 1.0))
            pyro.sample("x", dist.Normal(pyro.sample("last", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            one = pyro.sample("one", dist.Normal(loc, 1.0))
            pyro.sample("other", dist.Delta(one.sinh(), log_density=-one.cosh().log()))
            pyro.sample("last", dist.Delta(loc * x, log_density=1.0))

    found = []
    for gradient in ("reparam", "stl"):  # the score of a normal draw's mean is all that differs
        torch.manual_seed(0)
        bound = pvae.ELBO(2, gradient=gradient, max_plate_nesting=1).bounds(model, guide, torch.ones(50_000))
        found.append(torch.autograd.grad(bound.mean(), loc)[0])
    assert abs(found[0] - found[1]) < 4 / (2 * 50_000) ** 0.5


# One bound for a whole program ----------------------------------------------------------------------------------------


def regression(x, y, size=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0).to_event(1))
    with pyro.plate("data", len(x), subsample_size=size) as rows:
        pyro.sample("y", dist.Normal((weight * x[rows]).sum(-1), 0.5), obs=y[rows])


@pytest.fixture
def linear():
    torch.manual_seed(0)
    x = torch.randn(20, 3, dtype=torch.float64)
    return x, x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.5 * torch.randn(20, dtype=torch.float64)


def posterior(x, y):
    precision = torch.eye(3, dtype=x.dtype) + x.T @ x / 0.25
    covariance = precision.inverse()
    return covariance @ x.T @ y / 0.25, covariance


def evidence(x, y):
    covariance = x @ x.T + 0.25 * torch.eye(len(x), dtype=x.dtype)
    return dist.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)


def test_with_the_exact_posterior_every_weight_of_a_regression_is_its_evidence(linear):
    guide = AutoMultivariateNormal(regression)
    guide(*linear)
    guide.double()
    mean, covariance = posterior(*linear)
    tril = torch.linalg.cholesky(covariance)
    guide.loc.data, guide.scale = mean.clone(), tril.diagonal().clone()
    guide.scale_tril = tril / tril.diagonal().unsqueeze(-1)
    found = pvae.log_weights(regression, guide, *linear, particles=7, plate=None)
    torch.testing.assert_close(found.log_w, evidence(*linear).expand(7, 1), rtol=1e-9, atol=1e-9)
    found = pvae.evaluate.evaluate(regression, guide, *linear, particles=[1, 50], plate=None)
    assert found.active_units is None
    assert len(found.elbo) == 1
    assert "+- nan" not in repr(found)
    for bound in found.iw.values():
        torch.testing.assert_close(bound, evidence(*linear).reshape(1), rtol=1e-9, atol=1e-9)


def positive(y):
    """Log-normal all through, so that the posterior of the logs is normal."""
    level = pyro.sample("level", dist.LogNormal(torch.zeros((), dtype=y.dtype), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.LogNormal(level.log(), 0.5), obs=y)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_constrained_latents_have_the_density_of_their_transform(kind):
    y = torch.tensor([0.5, 2.0, 1.3], dtype=torch.float64)
    guide = kind(positive)
    guide(y)
    guide.double()
    variance = 1 / (1 + len(y) / 0.25)
    loc, scale = torch.tensor([variance * y.log().sum() / 0.25, variance**0.5], dtype=torch.float64)
    if kind is AutoNormal:
        guide.locs.level, guide.scales.level = loc, scale
    else:
        guide.loc.data, guide.scale = loc.reshape(1), scale.reshape(1)
    covariance = torch.ones(3, 3, dtype=torch.float64) + 0.25 * torch.eye(3, dtype=torch.float64)
    expected = (
        dist.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(y.log()) - y.log().sum()
    )
    found = pvae.log_weights(positive, guide, y, particles=5, plate=None).log_w
    torch.testing.assert_close(found, expected.expand(5, 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [None, 5])
@pytest.mark.parametrize("kind", AUTOGUIDES)
def test_the_elbo_of_a_whole_program_is_pyros(linear, kind, size):
    """Value and gradient at one seed, where the plate subsamples too."""
    pyro.clear_param_store()
    linear = [part.float() for part in linear]
    guide = kind(regression)
    guide(*linear)
    found = []
    for loss in (Trace_ELBO(), pvae.ELBO(plate=None)):
        torch.manual_seed(0)
        guide.zero_grad()
        value = loss.differentiable_loss(regression, guide, *linear, size)
        value.backward()
        found.append([value.detach(), *(p.grad.clone() for p in guide.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", ["graph"])
@pytest.mark.parametrize("name", ["iwae, dreg", "iwae, vimco", "elbo, stl"])
@pytest.mark.parametrize("kind", AUTOGUIDES[:-1])
def test_replayed_steps_are_eager_ones(linear, kind, name, mode):
    linear = [part.float() if kind is AutoGaussian else part for part in linear]  # which has float32 alone
    losses = []
    for compile in ("off", mode):
        pyro.clear_param_store()
        torch.manual_seed(0)
        guide = kind(regression)
        svi = pvae.SVI(regression, guide, pyro.optim.Adam({"lr": 0.02}), OBJECTIVES[name](plate=None), compile=compile)
        losses.append([float(svi.step(*linear)) for _ in range(8)])
    assert losses[0] == losses[1]


def test_importance_weighted_bounds_of_a_whole_program_weigh_it_whole(linear):
    guide = AutoNormal(regression)
    guide(*linear)
    guide.double()
    torch.manual_seed(0)
    expected = iwae(pvae.log_weights(regression, guide, *linear, particles=6, plate=None).log_w)
    torch.manual_seed(0)
    found = pvae.IWAE(6, plate=None).bounds(regression, guide, *linear)
    assert found.shape == (1,)
    torch.testing.assert_close(found.detach(), expected.detach())


def test_mean_field_and_point_mass_in_one_guide(linear):
    """Pyro's way to join guides: what is a point is a point, what is made of draws is not."""

    def model(x, y):
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=x.dtype), 1.0))
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((weight * x).sum(-1), scale), obs=y)

    guide = AutoGuideList(model)
    guide.append(AutoNormal(pyro.poutine.block(model, expose=["weight"])))
    guide.append(AutoDelta(pyro.poutine.block(model, expose=["scale"])))
    guide(*linear)
    guide.double()
    found = []
    for loss in (Trace_ELBO(), pvae.ELBO(plate=None)):
        torch.manual_seed(0)
        guide.zero_grad()
        loss.differentiable_loss(model, guide, *linear).backward()
        found.append([p.grad.clone() for p in guide.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("chains", [1, 2, 40])
def test_annealing_a_whole_program_finds_its_evidence(linear, chains, guided):
    """Of a regression, within four of its standard errors and a little bias; exactly, from the exact posterior."""

    def exactly(x, y):
        mean, covariance = posterior(x, y)
        pyro.sample("weight", dist.MultivariateNormal(mean, covariance))

    annealing = Annealing(temperatures=100, chains=chains)
    found = ais(regression, *linear, annealing=annealing, plate=None, guide=exactly if guided else None)
    assert found.log_w.shape == (chains, 1)
    if guided:
        torch.testing.assert_close(found.log_w, evidence(*linear).expand(chains, 1))
    if chains > 2:
        assert abs(found.log_p - evidence(*linear)) < 4 * found.se + 0.05
        assert found.acceptance > 0.4


def test_a_whole_program_has_latents_of_data_too():
    """The exact posterior of each; more data than are annealed, or evaluated, at once where each has its own."""
    x = torch.linspace(-1, 1, 150, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.25, 0.2**0.5))

    expected = dist.Normal(0.0, 1.25**0.5).log_prob(x).sum().reshape(1)
    found = ais(model, x, annealing=Annealing(2, chains=3), guide=guide, plate=None, chunk=32)
    torch.testing.assert_close(found.log_w, expected.expand(3, 1))
    torch.testing.assert_close(pvae.evaluate.evaluate(model, guide, x, particles=[5], plate=None).iw[5], expected)
    assert ais(model, x, annealing=Annealing(2, chains=3), plate=None, chunk=32).log_w.isfinite().all()


def test_annealing_plates_and_latents_between_bounds_of_a_whole_program():
    """Group levels that share a scale: against an integral over the scale."""
    y = torch.tensor([[0.5, 1.0], [-0.7, -0.2], [1.5, 1.1]], dtype=torch.float64)

    def groups(y):
        scale = pyro.sample("scale", dist.Exponential(torch.ones((), dtype=y.dtype)))
        with pyro.plate("groups", 3, dim=-1):
            level = pyro.sample("level", dist.Normal(0.0, scale))
        with pyro.plate("in_group", 2, dim=-2), pyro.plate("groups_again", 3, dim=-1):
            pyro.sample("y", dist.Normal(level, 0.5), obs=y.T)

    grid = torch.linspace(1e-4, 30, 100_001, dtype=torch.float64)
    covariance = grid[:, None, None] ** 2 * torch.ones(2, 2) + 0.25 * torch.eye(2)
    given = sum(dist.MultivariateNormal(torch.zeros(2, dtype=y.dtype), covariance).log_prob(row) for row in y)
    expected = torch.logsumexp(given - grid, 0) + (grid[1] - grid[0]).log()
    found = ais(groups, y, annealing=Annealing(temperatures=300, chains=60), plate=None)
    assert abs(found.log_p - expected) < 4 * found.se + 0.05


@pytest.mark.parametrize("kind", [AutoNormalMessenger, AutoHierarchicalNormalMessenger])
def test_what_the_model_observes_is_none_of_the_sites_of_a_guide_that_runs_it(kind):
    """At the exact posterior every weight is the evidence."""
    pyro.clear_param_store()
    y = torch.tensor([0.5, 2.0, 1.3], dtype=torch.float64)
    guide = kind(positive)
    guide(y)
    variance = 1 / (1 + len(y) / 0.25)
    guide.locs.level = torch.tensor(variance * float(y.log().sum()) / 0.25, dtype=torch.float64)
    guide.scales.level = torch.tensor(variance**0.5, dtype=torch.float64)
    if kind is AutoHierarchicalNormalMessenger:
        guide.weights.level = torch.tensor(0.0, dtype=torch.float64)
    covariance = torch.ones(3, 3, dtype=torch.float64) + 0.25 * torch.eye(3, dtype=torch.float64)
    logs = dist.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance)
    expected = logs.log_prob(y.log()) - y.log().sum()
    found = pvae.log_weights(positive, guide, y, particles=5, plate=None).log_w
    torch.testing.assert_close(found, expected.expand(5, 1), rtol=1e-9, atol=1e-9)
    evaluated = pvae.evaluate.evaluate(positive, guide, y, particles=[50], plate=None)
    torch.testing.assert_close(evaluated.iw[50], expected.reshape(1), rtol=1e-9, atol=1e-9)
    if kind is AutoNormalMessenger:
        annealed = ais(positive, y, annealing=Annealing(1, chains=5), guide=guide, plate=None)
        torch.testing.assert_close(annealed.log_w, expected.expand(5, 1), rtol=1e-9, atol=1e-9)


def test_conjugate_latents_that_the_model_draws_itself_are_integrated_out():
    """Counts of Gamma rates, whose shape they share: given it, with the exact conjugate, p(y) is known."""

    def rates(y):
        shape = pyro.sample("shape", dist.LogNormal(torch.zeros((), dtype=y.dtype), 1.0))
        with pyro.plate("data", len(y)):
            rate = pyro.sample("rate", dist.Gamma(shape, torch.ones_like(y)))
            pyro.sample("y", dist.Poisson(rate), obs=y)

    y = torch.tensor([3.0, 1.0, 4.0], dtype=torch.float64)
    model = pyro.poutine.reparam(rates, {"rate": ConjugateReparam(lambda y: dist.Gamma(y + 1, torch.ones_like(y)))})
    guide = AutoNormal(model)
    guide(y)
    traces = programs.trace(model, guide, y, particles=4, plate=None)
    shape = traces.guide["shape"]["value"]
    expected = dist.GammaPoisson(shape, 1.0).log_prob(y).sum(-1, keepdim=True)
    found = programs.split(traces)
    torch.testing.assert_close(found.likelihood, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.prior, dist.LogNormal(0.0, 1.0).log_prob(shape), rtol=1e-9, atol=1e-9)


# Refusals -------------------------------------------------------------------------------------------------------------


def refused(match, run):
    with pytest.raises(InputError, match=match):
        run()


def test_a_point_mass_is_one_also_where_latents_are_made_of_it(linear):
    guide = AutoLaplaceApproximation(regression)
    torch.manual_seed(0)
    found = [pvae.ELBO(plate=None, gradient=name).loss(regression, guide, *linear) for name in ("reparam", "stl")]
    assert found[0] == found[1]
    refused("Delta is a point mass", lambda: pvae.ELBO(plate=None, gradient="dreg").loss(regression, guide, *linear))


def test_auxiliary_draws_are_held_to_what_latents_are():
    bound = torch.nn.Parameter(torch.tensor(2.0))

    def guide(x, draw):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", draw().expand([len(x)]), infer={"is_auxiliary": True})
            pyro.sample("rate", dist.Delta(u.exp(), log_density=-u))

    x, model = torch.tensor([0.0, 1.0, 2.0]), lambda x, draw: Rates.model(program, x)
    program = Rates(True)
    moves, steps = (lambda: dist.Uniform(-bound, bound)), (lambda: dist.Poisson(bound))
    dreg = pvae.IWAE(4, gradient="dreg")
    refused("site 'u': the guide's support.*moves", lambda: dreg.differentiable_loss(model, guide, x, moves))
    refused("site 'u'.*reparameterized", lambda: pvae.ELBO().differentiable_loss(model, guide, x, steps))


def test_a_whole_program_is_replayed_however_many_data_it_has():
    x = torch.randn(300, 3)
    guide, kept = AutoNormal(regression), Kept()
    found = pvae.evaluate.evaluate(regression, guide, x, x.sum(-1), particles=[2000], plate=None, kept=kept)
    assert [graph for graph in kept.graphs.values() if graph]
    assert found.iw[2000].isfinite().all()


def test_numbers_that_are_none_name_the_program(linear):
    x, y = linear
    refused("of the program is not a number", lambda: whole(x.masked_fill(x == x[0, 0], torch.nan), y))
    refused("plate 'data': it subsamples", lambda: whole(x, y, lambda x, y: regression(x, y, 5)))


def test_auxiliary_draws_of_which_nothing_is_made_have_no_bound(linear):
    """For their density is in log q, and in nothing else."""

    def guide(x, y):
        u = pyro.sample("u", dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("weight", dist.Normal(u, 1.0).to_event(1))

    for run in (
        lambda: pvae.ELBO(plate=None).loss(regression, guide, *linear),
        lambda: pvae.evaluate.evaluate(regression, guide, *linear, particles=[3], plate=None),
        lambda: ais(regression, *linear, guide=guide, annealing=Annealing(2, chains=2), plate=None),
    ):
        refused("site 'u': an auxiliary draw .* of which no latent is made", run)


def test_an_auxiliary_draw_beside_those_that_a_latent_is_made_of_is_refused(linear):
    """Its density would make the bound larger than log p."""

    def guide(x, y, more):
        for name in ["more", "u"] if more else ["u"]:
            normal = dist.Normal(torch.zeros(3, dtype=x.dtype), 5.0).to_event(1)
            u = pyro.sample(name, normal, infer={"is_auxiliary": True})
        pyro.sample("weight", dist.Delta(u.sinh(), log_density=-u.cosh().log().sum(-1), event_dim=1))

    def model(x, y, more):
        return regression(x, y)

    for run in (
        lambda more: pvae.ELBO(2, plate=None).loss(model, guide, *linear, more),
        lambda more: pvae.log_weights(model, guide, *linear, more, particles=2, plate=None),
    ):
        run(False)
        refused("sites more, u: found (12|6) numbers of auxiliary draws in the guide, and (6|3) of", partial(run, True))


def test_a_guide_that_observes_what_the_model_does_is_refused(linear):
    messenger = AutoNormalMessenger(regression)
    wrapped = lambda x, y: messenger(x, y)  # noqa: E731
    refused("site 'y': observed in the guide", lambda: pvae.ELBO(plate=None).loss(regression, wrapped, *linear))


def test_a_whole_program_for_one_particle_alone_is_told_what_several_need(linear):
    def product(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)

    def spread(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * weight.unsqueeze(-2)).sum(-1), 0.5), obs=y)

    for model, match in (
        (product, r"site 'weight': found shape \(4, 1, 3\) with 4 particles.*though it does not with one.*x @ w"),
        (spread, r"site 'y': found .*of 4 particles, on the left, a latent in no plate has batch shape \(4, 1\)"),
    ):
        refused(match, lambda model=model: pvae.IWAE(4, plate=None).loss(model, AutoNormal(model), *linear))


def test_a_plate_made_twice_is_named_as_one(linear):
    def guide(x, y):
        for name in ("weight", "other"):
            with pyro.plate("rows", 3):
                pyro.sample(name, dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0))

    refused("plate 'rows': found twice.*one pyro.plate", lambda: pvae.ELBO(plate=None).loss(regression, guide, *linear))


def test_annealing_names_where_a_factorization_fails():
    def model(y):
        scale = pyro.sample("scale", dist.HalfNormal(torch.full((), 0.1, dtype=y.dtype)))
        covariance = (2 - scale[..., None, None]) * torch.eye(3, dtype=y.dtype)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), covariance), obs=y)

    density = Density(model, (torch.zeros(3, dtype=torch.float64),), particles=2, plate=None)
    assert density(torch.zeros(2, 1, 1, dtype=torch.float64)).ratio.isfinite().all()
    far = torch.full((2, 1, 1), 5.0, dtype=torch.float64)
    refused(r"model at \S+test_auxiliary.py:\d+: linalg.cholesky fails where a chain", lambda: density(far))


def whole(x, y, model=regression):
    with pyro.validation_enabled(False):
        return pvae.evaluate.evaluate(model, AutoNormal(model), x, y, particles=[5], plate=None)


def test_what_needs_a_density_elsewhere_is_refused(pair, linear):
    program, _, x = pair
    given = program.model, program.guide, x
    refused("site 'rate': made of auxiliary draws.*dreg", lambda: pvae.IWAE(4, gradient="gdreg").loss(*given))
    sleep = pvae.IWAE(4, gradient=pvae.estimators.ReweightedWakeSleep("sleep"))
    refused("site 'rate': made of auxiliary draws", lambda: sleep.loss(*given))
    refused("site 'rate'.*auxiliary", lambda: pvae.diagnostics.mutual_information(program.guide, x))
    refused("site 'rate'.*auxiliary", lambda: pvae.ais.ais(*given[:1], x, guide=program.guide))
    refused("plate=None", lambda: pvae.IWAE(4).loss(regression, AutoNormal(regression), *linear))
    refused("plate: found None", lambda: pvae.ais.bdmc(program.model, x, plate=None))
    refused("plate: found None", lambda: pvae.gap.gap(program.model, program.guide, x, log_p=x, plate=None))
    refused("plate: found None", lambda: pvae.comparison.Plan(plate=None))
    refused("plate: found None", lambda: pvae.diagnostics.mutual_information(program.guide, x, plate=None))
    whole = pvae.IWAE(4, plate=None)
    refused("plate 'data': it subsamples", lambda: whole.loss(regression, AutoNormal(regression), *linear, 5))


def test_one_particle_of_a_program_without_plates_has_one_weight():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0).expand([len(y)]).to_event(1), obs=y)

    def guide(y):
        pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.1)), 1.0))

    y = torch.ones(3)
    assert programs.log_weights(model, guide, y, particles=1, plate=None).log_w.shape == (1, 1)
    assert pvae.ELBO(plate=None).bounds(model, guide, y).shape == (1,)
    assert pvae.TVO(1, plate=None, gradient="dreg").differentiable_loss(model, guide, y).shape == ()
