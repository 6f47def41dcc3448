"""Guides whose support moves with parameters or leaves the prior's are refused where that matters; others are not."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pvae
from pvae.ais import Annealing, ais
from pvae.errors import InputError
from pvae.estimators.intervals import span
from pvae.programs import is_point

INF = math.inf
T = dist.transforms
X = torch.tensor([0.3, 0.6])
OTHERS = ["stl", "dreg", "gdreg", "score", "vimco", "ovis", "rws"]


def programs(prior, guide):
    """A model and a guide of one latent: distributions, or functions of parameters m = 0.2 and w = 1.5."""
    m, w = (torch.nn.Parameter(torch.tensor(value)) for value in (0.2, 1.5))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior if isinstance(prior, torch.distributions.Distribution) else prior(m, w))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def plain(x):
        pyro.param("m", m), pyro.param("w", w)
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide(m, w))

    return model, plain, (m, w)


def step(prior, guide, objective, x=X):
    model, guide, parameters = programs(prior, guide)
    loss = objective.differentiable_loss(model, guide, x)
    if loss.requires_grad:
        loss.backward()
    return [parameter.grad for parameter in parameters]


NORMAL = dist.Normal(0.0, 1.0)
UNIT = dist.Uniform(0.0, 1.0)
INTO = T.biject_to(constraints.interval(-1.0, 1.0))
SPANS = {
    "normal": (NORMAL, (-INF, INF)),
    "vector": (dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), (-INF, INF)),
    "affine": (dist.TransformedDistribution(NORMAL, T.AffineTransform(1.0, torch.tensor(-2.0))), (-INF, INF)),
    "lognormal": (dist.LogNormal(0.0, 1.0), (0.0, INF)),
    "by hand": (dist.TransformedDistribution(NORMAL, [T.AffineTransform(1.0, 2.0), T.ExpTransform()]), (0.0, INF)),
    "into an interval": (dist.TransformedDistribution(NORMAL, INTO), (-1.0, 1.0)),
    "turned round": (dist.TransformedDistribution(dist.Exponential(1.0), T.AffineTransform(1.0, -2.0)), (-INF, 1.0)),
    "logistic": (
        dist.TransformedDistribution(UNIT, [T.SigmoidTransform().inv, T.AffineTransform(0.0, 2.0)]),
        (-INF, INF),
    ),
    "gumbel": (dist.Gumbel(0.0, 1.0), (-INF, INF)),
    "weibull": (dist.Weibull(1.0, 2.0), (0.0, INF)),
    "pareto": (dist.Pareto(2.0, 1.0), (2.0, INF)),
    "uniform": (dist.Uniform(torch.full((3,), -1.0), 2.0).expand([4, 3]).to_event(1).mask(False), (-1.0, 2.0)),
    "beta": (dist.Beta(1.0, 2.0), (0.0, 1.0)),
    "mixture": (
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Uniform(torch.tensor([0.0, 1.0]), 3.0)),
        (0.0, 3.0),
    ),
    "bernoulli": (dist.Bernoulli(0.5), (0.0, 1.0)),
    "flow": (dist.TransformedDistribution(NORMAL.expand([2]).to_event(1), T.affine_coupling(2)), (-INF, INF)),
}


@pytest.mark.parametrize("name", SPANS)
def test_the_bounds_of_a_distribution(name):
    fn, expected = SPANS[name]
    found = span(fn)
    assert [float(end) for end in found] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "fn", [dist.Dirichlet(torch.ones(3)), dist.Delta(torch.zeros(2)), dist.ProjectedNormal(torch.ones(3))]
)
def test_bounds_that_are_not_known(fn):
    assert span(fn) is None


# Supports that move.


MOVING = {
    "uniform": lambda m, w: dist.Uniform(m - w, m + w),
    "masked": lambda m, w: dist.Uniform(m - w, m + w).expand([2]).mask(torch.tensor(True)),
    "half": lambda m, w: dist.Uniform(0.0, w),
    "transformed": lambda m, w: dist.TransformedDistribution(UNIT, T.AffineTransform(m, w)),
    "exponentiated": lambda m, w: dist.TransformedDistribution(dist.Uniform(m, m + w), [T.ExpTransform()]),
    "shifted": lambda m, w: dist.TransformedDistribution(dist.Exponential(w), T.AffineTransform(m, 1.0)),
    "pareto": lambda m, w: dist.Pareto(w, 2.0),
    "mixture": lambda m, w: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Uniform(torch.stack([m - w, m]), m + w)
    ),
}


@pytest.mark.parametrize("gradient", OTHERS)
def test_a_support_that_moves_is_refused_by_every_estimator_but_reparam(gradient):
    expected = (
        rf"^site 'z': the guide's support, numbers between -1.3 and 1.7, moves with its parameters, and iwae with"
        rf" gradient {gradient} takes it to stay: the gradient would be wrong: expected the gradient reparam, or .*"
    )
    objective = pvae.IWAE(4, gradient=gradient)
    for _ in range(2):  # the second time too
        with pytest.raises(InputError, match=expected):
            step(NORMAL, MOVING["uniform"], objective)


@pytest.mark.parametrize("name", sorted(set(MOVING) - {"mixture"}))
def test_bounds_of_every_kind_that_move(name):
    with pytest.raises(InputError, match="moves with its parameters, and elbo with gradient stl"):
        step(NORMAL, MOVING[name], pvae.ELBO(4, gradient="stl"))
    assert all(g is None or g.isfinite() for g in step(NORMAL, MOVING[name], pvae.ELBO(4)))


def test_a_mixture_whose_bounds_move():
    with pyro.validation_enabled(False), pytest.raises(InputError, match="moves with its parameters"):
        step(NORMAL, MOVING["mixture"], pvae.IWAE(4, gradient="vimco"))


def test_the_gradient_through_the_draws_is_right_where_the_support_moves():
    n = 40_000
    found = [-g / n for g in step(NORMAL, MOVING["uniform"], pvae.ELBO(4), torch.full((n,), 0.8))]
    grid = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    m, w = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.2, 1.5))
    z = m + w * grid
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 0.7).log_prob(torch.tensor(0.8))
    expected = torch.autograd.grad(log_p.mean() + (2 * w).log(), [m, w])
    torch.testing.assert_close(torch.stack(found), torch.stack(expected).float(), atol=0.03, rtol=0)


def test_it_is_refused_in_parts_after_a_look_without_a_gradient_and_by_a_replayed_step():
    model, guide, _ = programs(NORMAL, MOVING["uniform"])
    parts = pvae.IWAE(6, gradient="dreg", chunk=2)
    assert math.isfinite(parts.loss(model, guide, X))
    with pytest.raises(InputError, match="moves with"):
        parts.differentiable_loss(model, guide, X)
    model, guide, _ = programs(NORMAL, MOVING["exponentiated"])
    with pytest.raises(InputError, match="moves with"):
        pvae.IWAE(6, gradient="dreg", chunk=2).differentiable_loss(model, guide, X)
    svi = pvae.SVI(
        model, guide, pyro.optim.Adam({"lr": 1e-3}), pvae.ELBO(gradient="stl", max_plate_nesting=1), compile="graph"
    )
    with pytest.raises(InputError, match="moves with"):
        svi.step(X)


def test_supports_are_looked_at_once(monkeypatch):
    looks, check = [], pvae.estimators.intervals.check
    monkeypatch.setattr(
        pvae.estimators.intervals, "check", lambda *args, **kwargs: looks.append(1) or check(*args, **kwargs)
    )
    model, guide, _ = programs(NORMAL, STAYING["fixed"])
    objective = pvae.IWAE(4, gradient="dreg")
    for _ in range(3):
        objective.differentiable_loss(model, guide, X)
    assert len(looks) == 1


class Own(dist.Normal):
    """A normal distribution."""


STAYING = {
    "fixed": lambda m, w: dist.TransformedDistribution(
        dist.Normal(m, w), [T.SigmoidTransform(), T.AffineTransform(-1.0, 2.0)]
    ),
    "scaled": lambda m, w: dist.TransformedDistribution(dist.Exponential(1.0), T.AffineTransform(0.0, w)),
    "logistic": lambda m, w: dist.TransformedDistribution(UNIT, [T.SigmoidTransform().inv, T.AffineTransform(m, w)]),
    "gumbel": lambda m, w: dist.Gumbel(m, w),
    "weibull": lambda m, w: dist.Weibull(w, w),
    "own": lambda m, w: Own(m, w),
}


@pytest.mark.parametrize("name", STAYING)
@pytest.mark.parametrize("gradient", ["stl", "dreg", "vimco"])
def test_a_support_that_stays_is_taken(name, gradient):
    found = step(NORMAL, STAYING[name], pvae.IWAE(4, gradient=gradient))
    assert all(g is None or g.isfinite() for g in found)


@pytest.mark.parametrize("gradient", ["stl", "dreg", "score", "vimco"])
def test_bounds_that_move_with_the_draws_before_them_alone_are_taken(gradient):
    m = torch.nn.Parameter(torch.tensor(0.5))

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", NORMAL)
            b = pyro.sample("b", dist.Uniform(a - 1, a + 1))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        pyro.param("m", m)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(m, 1.0))
            pyro.sample("b", dist.Uniform(a - 1, a + 0.5))

    n, size = 20_000, 0.6
    loss = pvae.ELBO(8, gradient=gradient).differentiable_loss(model, guide, torch.full((n,), size))
    loss.backward()
    # E[log N(a; 0, 1) + log N(x; b, 1) - ...]: -m - (m - 0.25 - x), b = a - 0.25 on average
    assert (-m.grad / n).item() == pytest.approx(-0.5 - (0.5 - 0.25 - size), abs=0.05)


# Supports that leave the prior's.


BETWEEN = dist.Uniform(-1.0, 1.0)
LEAVING = {
    "normal, uniform": (BETWEEN, lambda m, w: dist.Normal(m, w), "the real numbers (Normal)", "between -1 and 1"),
    "normal, positive": (
        dist.HalfNormal(1.0),
        lambda m, w: dist.Normal(m, w),
        "the real numbers (Normal)",
        "numbers between 0 and inf (HalfNormal)",
    ),
    "affine, positive": (
        dist.Gamma(2.0, 1.0),
        lambda m, w: dist.TransformedDistribution(dist.Laplace(0.0, 1.0), T.AffineTransform(m, w)),
        "the real numbers (TransformedDistribution)",
        "between 0 and inf (Gamma)",
    ),
    "unit interval, half of it": (
        dist.Uniform(0.0, 0.5),
        lambda m, w: dist.Beta(w, w),
        "numbers between 0 and 1 (Beta)",
        "between 0 and 0.5 (Uniform)",
    ),
    "positive, bounded": (
        dist.Beta(2.0, 2.0),
        lambda m, w: dist.LogNormal(m, w),
        "between 0 and inf (LogNormal)",
        "between 0 and 1 (Beta)",
    ),
    "of one datum alone": (
        dist.Uniform(torch.tensor([0.0, 0.5]), 1.0),
        lambda m, w: dist.Beta(w, w),
        "between 0 and 1 (Beta)",
        "between 0..0.5 and 1 (Uniform)",
    ),
}


@pytest.mark.parametrize("name", LEAVING)
@pytest.mark.parametrize("objective", [pvae.ELBO, pvae.IWAE, pvae.Renyi])
def test_a_support_beyond_the_priors_is_refused(name, objective):
    prior, guide, q, p = LEAVING[name]
    with pyro.validation_enabled(False), pytest.raises(InputError) as refused:
        step(prior, guide, objective(3))
    text = str(refused.value)
    assert text.startswith("site 'z': the guide's support is ")
    assert "\n" not in text
    assert q in text
    assert p in text
    assert "draws outside have weight zero, and with" in text


@pytest.mark.parametrize("gradient", ["reparam", "stl", "dreg"])
def test_it_is_refused_at_the_first_step_though_no_draw_is_outside(gradient):
    model, guide, _ = programs(BETWEEN, lambda m, w: dist.Normal(0.1 * m, 0.1 * w))
    svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pvae.IWAE(20, gradient=gradient), compile="graph")
    with pytest.raises(
        InputError, match=f"iwae with gradient {gradient} the gradient would be wrong: expected a guide"
    ):
        svi.step(X)


@pytest.mark.parametrize("gradient", ["score", "vimco", "rws"])
def test_where_zero_weights_do_no_harm_validation_decides(gradient):
    def guide(m, w):
        return dist.Normal(m, 0.2 * w)

    with pytest.raises(InputError, match="weight zero, which validation refuses: expected a guide"):
        step(BETWEEN, guide, pvae.IWAE(8, gradient=gradient, max_plate_nesting=1))
    with pyro.validation_enabled(False):
        assert all(g.isfinite() for g in step(BETWEEN, guide, pvae.IWAE(8, gradient=gradient)))


class Truncated(dist.TorchDistribution):
    """Of one's own, between -1 and 1, that says it is anywhere."""

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, m, shape=()):
        self.m = m
        super().__init__(torch.Size(shape))

    def expand(self, shape, _instance=None):
        return Truncated(self.m, shape)

    def rsample(self, shape=()):
        return (self.m + torch.randn(self._extended_shape(torch.Size(shape)))).tanh()

    def log_prob(self, value):
        return dist.Normal(self.m, 1.0).log_prob(value.atanh()) - (1 - value**2).log()


WITHIN = {
    "beta in the unit interval": (UNIT, lambda m, w: dist.Beta(w, w)),
    "lognormal, half normal": (dist.HalfNormal(1.0), lambda m, w: dist.LogNormal(m, w)),
    "gamma, exponential": (dist.Exponential(1.0), lambda m, w: dist.Gamma(w, w)),
    "unit interval, positive": (dist.Gamma(2.0, 1.0), lambda m, w: dist.Beta(w, w)),
    "unit interval, real": (NORMAL, lambda m, w: dist.Beta(w, w)),
    "into the interval": (BETWEEN, lambda m, w: dist.TransformedDistribution(dist.Normal(m, w), INTO)),
    "by hand": (BETWEEN, lambda m, w: dist.TransformedDistribution(dist.Normal(m, w), [T.TanhTransform()])),
    "uniform in the same": (BETWEEN, lambda m, w: dist.Uniform(torch.full((2,), -1.0), 1.0)),
    "point": (BETWEEN, lambda m, w: dist.Delta(m.expand(2))),
    "round the circle": (dist.Uniform(-math.pi, math.pi + 1e-6), lambda m, w: dist.VonMises(m, w.detach())),
    "own": (BETWEEN, lambda m, w: Truncated(m)),
    "relaxed": (
        dist.Bernoulli(0.5),
        lambda m, w: dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), logits=m.expand(2)),
    ),
    "prior with bounds of parameters": (
        lambda m, w: dist.Uniform(m - w, m + w),
        lambda m, w: dist.TransformedDistribution(dist.Normal(0.0, 1.0), [T.TanhTransform(), T.AffineTransform(m, w)]),
    ),
    "counts": (dist.Binomial(50, 0.1), lambda m, w: dist.Poisson(0.5 * w)),
    "rounded": (
        dist.Uniform(1.2, 1.3),
        lambda m, w: dist.TransformedDistribution(dist.Normal(m, w), T.biject_to(constraints.interval(1.2, 1.3))),
    ),
    "masked": (BETWEEN.mask(False), lambda m, w: dist.TransformedDistribution(NORMAL, INTO).mask(False)),
}


@pytest.mark.parametrize("name", WITHIN)
def test_a_support_within_the_priors_is_taken(name):
    prior, guide = WITHIN[name]
    found = step(prior, guide, pvae.IWAE(3, gradient="vimco" if name in ("round the circle", "counts") else "reparam"))
    assert all(g is None or g.isfinite() for g in found)


def test_a_site_that_is_masked_out_is_not_looked_at():
    m = torch.nn.Parameter(torch.tensor(0.0))
    there = torch.tensor([True, False])

    def model(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=there):
            z = pyro.sample("z", dist.Uniform(-1.0, torch.tensor([1.0, -0.9])).mask(there))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.param("m", m)
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=there):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(m, 1.0), INTO))

    with pyro.validation_enabled(False):
        pvae.IWAE(3).differentiable_loss(model, guide, X).backward()
    assert m.grad.isfinite()


# Points.


WRAPPED = {
    "independent": lambda z: dist.Delta(z).to_event(1),
    "masked": lambda z: dist.Delta(z, event_dim=1).mask(torch.tensor(True)),
    "expanded": lambda z: dist.torch_distribution.ExpandedDistribution(dist.Delta(z, event_dim=1), z.shape[:1]),
    "transformed": lambda z: dist.TransformedDistribution(dist.Delta(z / 2).to_event(1), T.AffineTransform(0.0, 2.0)),
    "plain": lambda z: dist.Delta(z, event_dim=1),
}


def around_a_point(wrap):
    m = torch.nn.Parameter(torch.tensor(0.3))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL.expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.param("m", m)
        with pyro.plate("data", len(x)):
            pyro.sample("z", wrap(m * x))

    return model, guide, m


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_point_mass_is_known_within_what_wraps_it(wrap):
    torch.manual_seed(0)
    x = torch.randn(6, 2)
    assert is_point(WRAPPED[wrap](x))
    model, guide, m = around_a_point(WRAPPED[wrap])
    for gradient in ("dreg", "gdreg", "score", "vimco", "rws"):
        with pytest.raises(
            InputError, match=r"site 'z': iwae with gradient .* and (Delta|Transformed).* is a point mass"
        ):
            pvae.IWAE(4, gradient=gradient).differentiable_loss(model, guide, x)
    for gradient in ("reparam", "stl"):
        m.grad = None
        pvae.IWAE(4, gradient=gradient).differentiable_loss(model, guide, x).backward()
        assert m.grad.item() == pytest.approx(((2 * 0.3 * x - x) * x).sum().item(), rel=1e-4)
    with pytest.raises(InputError, match="site 'z': the guide is a point mass, which has no density to start from"):
        ais(model, x, guide=guide, annealing=Annealing(temperatures=2, chains=1))


def test_a_mask_that_is_one_value_holds_for_all_of_a_narrower_prior():
    def model(x):
        with pyro.poutine.mask(mask=torch.tensor(True)):
            z = pyro.sample("z", UNIT)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Beta(2.0, pyro.param("b", torch.tensor(2.0))))

    assert pvae.ELBO(3, plate=None).differentiable_loss(model, guide, X).isfinite()
