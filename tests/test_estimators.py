"""Gradient estimators against the exact gradient of their bound: by quadrature, or by enumeration of discrete draws."""

import copy
import gc
import math
import weakref
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from quadrature import (
    GRADIENTS,
    OBJECTIVES,
    UNBIASED,
    Chain,
    Programs,
    Shared,
    Simple,
    Vamp,
    assert_unbiased,
    estimated,
    exact,
    exact_of,
    log_weights,
    of,
    t_statistics,
)
from torch.fx.experimental.proxy_tensor import make_fx
from watching import never_waiting

import pvae
from pvae import bounds, estimators
from pvae.objectives import CIWAE, ELBO, IWAE, MIWAE, PIWAE, TVO, Chi, Objective, Renyi
from pvae.programs import kl

# Every bound with every estimator -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", UNBIASED)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_is_that_of_the_bound(objective, gradient):
    make, _ = OBJECTIVES[objective]
    assert_unbiased(Simple(), make(gradient=gradient), exact_of(Simple, objective))


ESTIMATORS = {
    **{name: name for name in UNBIASED},
    "vimco-arithmetic": estimators.VIMCO("arithmetic"),
    **{f"ovis-{gamma}": estimators.OVIS(gamma) for gamma in (0.0, 0.5, 1.0)},
}


@pytest.mark.parametrize("gradient", ESTIMATORS.values(), ids=ESTIMATORS)
def test_the_gradient_of_three_draws(gradient):
    assert_unbiased(Simple(), IWAE(3, gradient=gradient), exact_of(Simple, "iwae", 3))


@pytest.mark.parametrize("kind", [Shared, Vamp])
@pytest.mark.parametrize("objective", ["elbo", "iwae", "renyi"])
@pytest.mark.parametrize("gradient", UNBIASED)
def test_a_prior_that_shares_the_guides_parameters(kind, objective, gradient):
    programs, found = kind(), OBJECTIVES[objective][0](gradient=gradient)
    if kind is Vamp and gradient == "gdreg":
        with pytest.raises(pvae.InputError, match=r"site 'z': found a prior MixtureSameFamily.*use dreg"):
            estimated(programs, found)
        return
    assert_unbiased(programs, found, exact_of(kind, objective))


@pytest.mark.parametrize("gradient", [*UNBIASED, "ovis"])
def test_sites_that_depend_on_one_another(gradient):
    assert_unbiased(Chain(), IWAE(2, gradient=gradient), exact_of(Chain, "iwae"))


@pytest.mark.parametrize("gradient", ["stl", "dreg", "gdreg"])
def test_sites_that_depend_on_one_another_under_the_elbo(gradient):
    assert_unbiased(Chain(), ELBO(1, gradient=gradient), exact_of(Chain, "elbo", 1))


@pytest.mark.parametrize("gradient", ["reparam", "stl", "dreg", "score", "vimco"])
@pytest.mark.parametrize(
    ("member", "options"),
    [(PIWAE, {"groups": 2}), (Chi, {"order": 1.5}), (Chi, {"order": 1.5, "sandwich": False})],
    ids=["piwae", "chi", "chi alone"],
)
def test_a_guide_with_a_bound_of_its_own(member, options, gradient):
    objective = member(4, **options, gradient=gradient)
    programs = Simple()
    value, of_model = exact(programs, 4, of(bounds.iwae))
    alone = "sandwich" in options
    k, guides = (2, bounds.iwae)
    if member is Chi:
        k, guides = (4, lambda w: (0.0 if alone else bounds.elbo(w)) - bounds.cubo(w, 1.5))
    of_guide = exact(programs, k, of(guides))[1]
    expected = torch.where(torch.tensor([name in ("mu", "ls0", "t") for name in programs.p]), of_model, of_guide)
    if gradient != "stl":
        assert_unbiased(programs, objective, (value, expected))
        return
    expected[3:] = exact(programs, k, sticking(guides))[1][3:]
    assert_unbiased(programs, objective, (value, expected))


@pytest.mark.parametrize("gradient", ["reparam", "dreg", "score"])
def test_a_guide_with_a_bound_of_its_own_under_a_weighed_kl(gradient):
    programs = Simple()
    of_model = exact(programs, 4, of(bounds.iwae), 0.3)[1]
    of_guide = exact(programs, 2, of(bounds.iwae), 0.3)[1]
    expected = torch.where(torch.tensor([name in ("mu", "ls0", "t") for name in programs.p]), of_model, of_guide)
    assert_unbiased(programs, PIWAE(4, 2, gradient=gradient, beta=0.3), (None, expected))


class Copies(Shared):
    """The model's parameters are copies of the guide's; the gradient is that of one of the two."""

    def __init__(self, of_model):
        super().__init__()
        self.copies = {name: value.detach().clone().requires_grad_() for name, value in self.p.items()}
        self.climbed = list((self.copies if of_model else self.p).values())

    def prior(self):
        p = self.copies
        return dist.Normal(p["a"] * p["u"] + p["b"], p["ls"].exp())

    def terms(self, x, z):
        likelihood = dist.Normal(self.copies["t"] * z[0], 1.0).log_prob(x)
        return likelihood, self.prior().log_prob(z[0]), self.posterior(x).log_prob(z[0])

    def gradient(self, value):
        found = torch.autograd.grad(value, self.climbed, allow_unused=True)
        return torch.stack([torch.zeros((), dtype=torch.float64) if g is None else g for g in found])


@pytest.mark.parametrize("gradient", ["reparam", "dreg", "vimco"])
@pytest.mark.parametrize("member", [PIWAE, Chi])
def test_a_guide_with_a_bound_of_its_own_whose_parameters_the_prior_shares(member, gradient):
    """A parameter that is in both programs gets the gradients of both bounds."""
    options = {"groups": 2} if member is PIWAE else {"order": 1.5}
    k, guides = (2, bounds.iwae) if member is PIWAE else (4, lambda w: bounds.elbo(w) - bounds.cubo(w, 1.5))
    expected = exact(Copies(False), k, of(guides), 0.3)[1] + exact(Copies(True), 4, of(bounds.iwae), 0.3)[1]
    assert_unbiased(Shared(), member(4, **options, gradient=gradient, beta=0.3), (None, expected))


def test_the_chi_bound_alone_rewards_a_guide_that_runs_away():
    """Draws of N(m, 1) where the posterior is N(0, 1): of few draws the chi bound sinks with m, the gap grows."""
    torch.manual_seed(0)
    noise, away = torch.randn(10, 10_000, dtype=torch.float64), torch.tensor([0.0, 1.0, 4.0, 16.0, 64.0]).double()
    climbed = {
        sandwich: torch.stack([Chi(10, sandwich=sandwich).guide_bound(-m * (m / 2 + noise)).mean() for m in away])
        for sandwich in (True, False)
    }
    assert bool((climbed[True].diff() < 0).all())
    assert climbed[True][0] == 0
    assert climbed[False].argmax() == 4


def test_the_chi_objective_does_not_run_away():
    torch.manual_seed(0)
    x = torch.bernoulli(torch.rand(64, 8))
    decoder, encoder = pvae.mlp(4, [32], 8), pvae.mlp(8, [32], 8)
    vae = pvae.VAE(pvae.Normal(4), pvae.Bernoulli(decoder, (8,)), pvae.MeanField(encoder, 4))
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Chi(3), compile="graph")
    for _ in range(300):
        svi.step(x)
    with torch.no_grad():
        assert vae.log_weights(x, particles=100).log_w.mean() > -5.6


@pytest.mark.parametrize("gradient", [*UNBIASED, "ovis"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
def test_the_kl_is_weighed(gradient, beta):
    assert_unbiased(Simple(), IWAE(2, gradient=gradient, beta=beta), (None, exact_of(Simple, "iwae", 2, beta)[1]))


# Estimators whose bias is known ---------------------------------------------------------------------------------------


def sticking(bound):
    """The surrogate of sticking the landing, whose gradient is its expectation."""

    def surrogate(programs, x, drawn, beta):
        log_w = log_weights(programs, x, drawn, beta)
        _, slope = bounds.slope(bound, log_w)
        score = torch.stack([programs.terms(x, [v.detach() for v in z])[2] for z in drawn])
        return (slope * (log_w + beta * score)).sum(0)

    return surrogate


def waking(programs, x, drawn, beta):
    """The surrogate of reweighted wake-sleep: the model's part, and the guide's."""
    fixed = [[v.detach() for v in z] for z in drawn]
    terms = [torch.stack(t) for t in zip(*(programs.terms(x, z) for z in fixed), strict=True)]
    weight = (terms[0] + terms[1] - terms[2]).detach().softmax(0)
    return (weight * (terms[0] + terms[1] + terms[2])).sum(0)


@pytest.mark.parametrize("kind", [Simple, Chain])
@pytest.mark.parametrize(("gradient", "surrogate"), [("stl", sticking(bounds.iwae)), ("rws", waking)])
def test_the_known_bias_is_there(kind, gradient, surrogate):
    programs = kind()
    value, gradient_of_bound = exact_of(kind, "iwae")
    _, known = exact(programs, 2, surrogate)
    assert_unbiased(programs, IWAE(2, gradient=gradient), (value, known))
    _, found = estimated(programs, IWAE(2, gradient=gradient))
    assert t_statistics(found, gradient_of_bound).abs().max() > 8


def test_sticking_the_landing_has_no_bias_with_one_draw_and_no_variance_at_the_posterior():
    assert_unbiased(Simple(), IWAE(1, gradient="stl"), exact_of(Simple, "iwae", 1))

    class Exact(Simple):
        start: ClassVar = {"t": 1.0, "a": 0.5, "b": 0.0, "ls": math.log(0.5) / 2}

        def prior(self):
            return dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)

    programs = Exact()
    for gradient, low in (("stl", True), ("dreg", True), ("reparam", False)):
        _, found = estimated(programs, IWAE(3, gradient=gradient), n=100, repetitions=3)
        assert (found[:, 1:].abs().max() < 1e-12) == low


# Discrete draws -------------------------------------------------------------------------------------------------------


class Discrete(Programs):
    """A Bernoulli and a Categorical latent, the second of which depends on the first, and a Bernoulli datum."""

    start: ClassVar = {
        "p0": 0.3,
        "p1": -0.4,
        "p2": 0.5,
        "w": 1.5,
        "c": -0.7,
        "q0": 0.2,
        "q1": 0.9,
        "q2": -0.6,
        "q3": 0.4,
    }
    states = ((0.0, 0), (0.0, 1), (0.0, 2), (1.0, 0), (1.0, 1), (1.0, 2))

    def parts(self, x, y=None, z=None):
        """Distributions of y, z given y, x given both; of y, z given y in the guide."""
        p, y = self.p, y if y is not None else torch.zeros(())
        levels = torch.stack([torch.zeros(()).double(), p["p1"], p["p2"]])
        guides = torch.stack([torch.zeros(()).double(), p["q2"], p["q3"]])
        z = 0 * y if z is None else z
        return (
            dist.Bernoulli(logits=p["p0"]),
            dist.Categorical(logits=levels * (1 + y.unsqueeze(-1))),
            dist.Bernoulli(logits=p["w"] * y + p["c"] * (z - 1.0) + 0 * y),
            dist.Bernoulli(logits=p["q0"] + p["q1"] * x),
            dist.Categorical(logits=guides * (1 + y.unsqueeze(-1)) + 0.5 * x.unsqueeze(-1) * guides),
        )

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.parts(x)[0])
            z = pyro.sample("z", self.parts(x, y)[1])
            pyro.sample("x", self.parts(x, y, z)[2], obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.parts(x)[3])
            pyro.sample("z", self.parts(x, y)[4])

    def enumerated(self, x):
        """Log p(x|z), log p(z) and log q(z|x) of every state, (6,) each."""
        y, z = (torch.tensor(v) for v in zip(*self.states, strict=True))
        y, x = y.double(), torch.tensor(x, dtype=torch.float64)
        py, pz, px, qy, qz = self.parts(x, y, z)
        return px.log_prob(x), py.log_prob(y) + pz.log_prob(z), qy.log_prob(y) + qz.log_prob(z)

    def exact(self, k, bound, data=(1.0, 0.0)):
        total = 0.0
        for x in data:
            likelihood, prior, posterior = self.enumerated(x)
            pick = torch.cartesian_prod(*[torch.arange(6)] * k).reshape(-1, k).T
            log_w = (likelihood + prior - posterior)[pick]
            total = total + (posterior[pick].sum(0).exp() * bound(log_w)).sum()
        return total.detach(), self.gradient(total)


def discrete(objective, n=4000, repetitions=20):
    programs, x = Discrete(), torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(n)
    torch.manual_seed(0)
    values, found = [], []
    for _ in range(repetitions):
        value = objective.bounds(programs.model, programs.guide, x).reshape(n, 2).mean(0).sum()
        values.append(value.detach())
        found.append(programs.gradient(value))
    return torch.stack(values), torch.stack(found)


@pytest.mark.parametrize("objective", ["elbo", "iwae", "renyi", "tvo", "miwae"])
@pytest.mark.parametrize("gradient", ["score", "vimco"])
def test_discrete_draws_by_enumeration(objective, gradient):
    make, bound = OBJECTIVES[objective]
    value, gradient_of_bound = Discrete().exact(2, bound)
    values, found = discrete(make(gradient=gradient))
    assert abs(t_statistics(values, value)) < 4
    assert t_statistics(found, gradient_of_bound).abs().max() < 4


@pytest.mark.parametrize("gradient", [ESTIMATORS[name] for name in ESTIMATORS if name[:4] in ("scor", "vimc", "ovis")])
def test_three_discrete_draws_by_enumeration(gradient):
    _, expected = Discrete().exact(3, bounds.iwae)
    assert t_statistics(discrete(IWAE(3, gradient=gradient))[1], expected).abs().max() < 4


def test_baselines():
    """None of them moves the mean, so that no test of the mean would miss one."""
    log_w = 2 * torch.randn(5, 7, dtype=torch.float64)
    v, objective = log_w.softmax(0), IWAE(5)

    def score(gradient):
        model, path, found, _ = gradient.coefficients(objective, log_w, 1.0)
        torch.testing.assert_close(model, v)
        assert path is None
        return found

    for gamma in (0.0, 0.4, 1.0):
        expected = (1 - gamma) * math.log(1 - 1 / 5) - torch.log1p(-v) - v
        torch.testing.assert_close(score(estimators.OVIS(gamma)), expected)
    for k in range(5):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        for mean, of_others in (("geometric", others.mean(0)), ("arithmetic", bounds.iwae(others))):
            replaced = torch.cat([log_w[:k], of_others.unsqueeze(0), log_w[k + 1 :]])
            expected = bounds.iwae(log_w) - bounds.iwae(replaced) - v[k]
            torch.testing.assert_close(score(estimators.VIMCO(mean))[k], expected)
        torch.testing.assert_close(score(estimators.Score())[k], bounds.iwae(log_w) - bounds.iwae(others) - v[k])


def test_coefficients_are_taken_where_float32_has_digits(vae, x):
    class Spy(estimators.Score):
        def coefficients(self, objective, log_w, beta):
            self.seen = log_w
            return super().coefficients(objective, log_w, beta)

    spy = Spy()
    IWAE(3, gradient=spy).bounds(vae.model, vae.guide, x)
    assert spy.seen.amax(0).eq(0).all()
    torch.manual_seed(1)
    log_w = 9 * torch.randn(5, 7) - 50
    for gradient in (Spy(), estimators.VIMCO(), estimators.OVIS()):
        at = [w - w.amax(0) for w in (log_w, log_w.double())]
        found, expected = (gradient.coefficients(IWAE(5), w, 1.0).score for w in at)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("phase", ["wake", "sleep", "both"])
def test_wake_and_sleep_by_enumeration(phase):
    programs = Discrete()
    wake = sleep = model = 0.0
    for x in (1.0, 0.0):
        likelihood, prior, posterior = programs.enumerated(x)
        pick = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T
        chance = posterior[pick].sum(0).exp().detach()
        log_w = (likelihood + prior - posterior)[pick]
        weight = log_w.detach().softmax(0)
        wake = wake + (chance * (weight * posterior[pick]).sum(0)).sum()
        model = model + (chance * (weight * (likelihood + prior)[pick]).sum(0)).sum()
        # the model dreams as many pairs as there are data
        sleep = sleep + 2 * ((likelihood + prior).exp().detach() * posterior).sum()
    share = {"wake": 1.0, "sleep": 0.0, "both": 0.5}[phase]
    expected = programs.gradient(model + share * wake + (1 - share) * sleep)
    _, found = discrete(IWAE(2, gradient=estimators.ReweightedWakeSleep(phase)))
    assert t_statistics(found, expected).abs().max() < 4


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (False, "site 'x': what it observes is not an argument of the programs"),
        (True, "site 'f': found a factor, which draws of data.*use the phase wake"),
    ],
)
def test_a_dream_needs_data_that_are_an_argument_and_no_factor(factor, message):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x if factor else x + 1)
            if factor:
                pyro.factor("f", z)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    objective = IWAE(2, gradient=estimators.ReweightedWakeSleep("sleep"))
    with pytest.raises(pvae.InputError, match=message):
        objective.bounds(model, guide, torch.zeros(3))


# Guides of other kinds ------------------------------------------------------------------------------------------------


def plane_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
        mean = torch.stack([z[..., 0] + 0.5 * z[..., 1] ** 2, z[..., 1]], -1)
        pyro.sample("x", dist.Normal(mean, 0.7).to_event(1), obs=x)


class Flow(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(3)
        self.kind = kind
        self.loc = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
        self.scale = torch.nn.Parameter(torch.tensor([[0.8, 0.0], [0.4, 0.6]]))
        if kind == "iaf":
            self.flow = dist.transforms.affine_autoregressive(2, hidden_dims=[8])
        if kind == "coupling":
            self.flow = dist.transforms.spline_coupling(2, hidden_dims=[8], count_bins=4, bound=5.0)
        if kind == "planar":
            self.flow = dist.transforms.Planar(2)
        if kind == "zuko":
            zuko = pytest.importorskip("zuko")
            self.flow = zuko.flows.NSF(2, 2, transforms=1, hidden_features=[8], bins=4)
        if kind != "iaf":  # whose inverse makes float32 numbers
            self.double()

    def forward(self, x):
        with pyro.plate("data", len(x)):
            if self.kind == "full":
                pyro.sample("z", dist.MultivariateNormal(0.6 * x + self.loc, scale_tril=self.scale.tril()))
            elif self.kind == "zuko":
                from pyro.contrib.zuko import ZukoToPyro

                pyro.sample("z", ZukoToPyro(self.flow(0.6 * x)))
            else:
                base = dist.Normal(0.6 * x + self.loc, self.scale.diagonal().abs()).to_event(1)
                pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


REPEATS = 40


@pytest.mark.parametrize("gradient", ["dreg", "score"])
@pytest.mark.parametrize("kind", ["full", "iaf", "coupling", pytest.param("zuko", marks=pytest.mark.slow)])
def test_flows_and_full_covariance(kind, gradient):
    """The difference from the reparameterized gradient, whose expectation is the bound's, is noise."""
    guide = Flow(kind)
    x = torch.tensor([[0.8, -0.5], [-0.3, 1.0]]).to(guide.loc).repeat(300, 1)
    parameters = list(guide.parameters())

    def gradients_of(name):
        found = []
        for _ in range(REPEATS):
            bound = IWAE(2, gradient=name, max_plate_nesting=1).bounds(plane_model, guide, x).mean()
            parts = torch.autograd.grad(bound, parameters, allow_unused=True)
            found.append(torch.cat([p.flatten() for p in parts if p is not None]))
        return torch.stack(found)

    ours, reference = gradients_of(gradient), gradients_of("reparam")
    used = reference.std(0) > 1e-9
    error = ((ours.var(0) + reference.var(0)) / REPEATS).sqrt()
    t = ((ours.mean(0) - reference.mean(0)) / error)[used]
    assert used.sum() >= 5
    assert t.abs().max() < 4.5  # of up to a hundred parameters


@pytest.mark.parametrize("gradient", [g for g in GRADIENTS if g != "reparam"])
def test_a_flow_without_an_inverse(gradient):
    guide, x = Flow("planar"), torch.zeros(3, 2, dtype=torch.float64)
    assert IWAE(2).bounds(plane_model, guide, x).isfinite().all()
    with pytest.raises(pvae.InputError, match=r"site 'z': TransformedDistribution has no inverse.*reparam") as found:
        IWAE(2, gradient=gradient).bounds(plane_model, guide, x)
    assert "\n" not in str(found.value)


def test_a_prior_of_full_covariance_is_the_affine_map_that_it_is():
    """Whichever way it is written: the gradients of its parameters, and of the guide's."""
    x, loc = torch.randn(5, 2), torch.tensor([0.4, -0.3], requires_grad=True)
    root = torch.tensor([[0.8, 0.0], [0.5, 1.2]], requires_grad=True)
    mean = torch.zeros((), requires_grad=True)

    def written(as_map):
        tril = root.tril()
        if not as_map:
            return dist.MultivariateNormal(loc, scale_tril=tril)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [dist.transforms.LowerCholeskyAffine(loc, tril)])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.4 * x + mean, 0.7).to_event(1))

    found = []
    for as_map in (False, True):

        def model(x, as_map=as_map):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", written(as_map))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        torch.manual_seed(4)
        bound = IWAE(3, gradient="gdreg", max_plate_nesting=1).bounds(model, guide, x)
        found.append(torch.autograd.grad(bound.sum(), [loc, root, mean]))
    for full, mapped in zip(*found, strict=True):
        torch.testing.assert_close(full, mapped)
        assert full.abs().max() > 0.1


def test_data_observed_between_the_latents_are_no_priors():
    """Where in the model they are makes no difference."""
    x, loc, mean = torch.randn(4), torch.tensor(0.3, requires_grad=True), torch.tensor(0.1, requires_grad=True)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.4 * x + mean, 0.7))
            pyro.sample("z2", dist.Normal(0.5 * z1, 0.8))

    def gradient_of(order):
        def model(x):
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.Normal(loc, 1.0))
                for name in order:
                    site = dist.Normal(z1 + loc, 1.0)
                    pyro.sample(name, site, obs=x if name == "x" else None)

        torch.manual_seed(5)
        bound = IWAE(3, gradient="gdreg", max_plate_nesting=1).bounds(model, guide, x)
        return torch.autograd.grad(bound.sum(), [loc, mean])

    torch.testing.assert_close(gradient_of(["x", "z2"]), gradient_of(["z2", "x"]))


@pytest.mark.parametrize("gradient", ["stl", "dreg", "gdreg"])
def test_a_guide_without_parameters_leaves_the_models_gradient(gradient):
    x, loc = torch.randn(5), torch.tensor(0.3, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + loc, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.4 * x, 0.7))

    found = []
    for name in ("reparam", gradient):
        torch.manual_seed(2)
        bound = IWAE(3, gradient=name, max_plate_nesting=1).bounds(model, guide, x)
        found.append(torch.autograd.grad(bound.sum(), loc)[0])
    torch.testing.assert_close(found[1], found[0])


# What is logged -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [*OBJECTIVES, "piwae", "chi"])
def test_the_value_is_the_bound_for_each_datum_whatever_the_gradient(objective):
    make = {"piwae": lambda **k: PIWAE(4, 2, **k), "chi": lambda **k: Chi(3, **k)}.get(objective)
    make = make or OBJECTIVES[objective][0]
    programs, x = Simple(), torch.randn(6, dtype=torch.float64)
    torch.manual_seed(1)
    reference = make()
    log_w = pvae.log_weights(programs.model, programs.guide, x, particles=reference.num_particles).log_w
    expected = reference.bound(log_w)
    for gradient in GRADIENTS:
        for annealing in ({}, {"beta": 0.5, "warmup": 10, "free_bits": 0.3}):
            try:
                found = make(gradient=gradient, max_plate_nesting=1, **annealing)
            except pvae.InputError:
                continue
            torch.manual_seed(1)
            value = found.bounds(programs.model, programs.guide, x)
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
            torch.manual_seed(1)
            loss = found.loss_and_grads(programs.model, programs.guide, x)
            assert loss.item() == pytest.approx(-expected.sum().item(), rel=1e-12)
            torch.manual_seed(1)
            assert found.loss(programs.model, programs.guide, x) == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_subsampled_plate_is_unscaled_in_the_weights_and_scaled_in_the_loss(gradient):
    """The weights are one datum's: 2.5 times the loss and gradient of a batch of the same data."""
    data, mean = torch.randn(10), torch.tensor(0.2, requires_grad=True)

    def model(x, n):
        with pyro.plate("data", n, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, n):
        with pyro.plate("data", n, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(0.4 * x + mean, 0.7))

    losses, found = [], []
    for n in (4, 10):
        torch.manual_seed(2)
        loss = IWAE(3, gradient=gradient, max_plate_nesting=1).differentiable_loss(model, guide, data[:4], n)
        losses.append(loss.item())
        found.append(torch.autograd.grad(loss, mean)[0].item())
    assert losses[1] == pytest.approx(2.5 * losses[0], rel=1e-5)
    assert found[1] == pytest.approx(2.5 * found[0], rel=1e-4)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_mask_and_an_inner_plate(gradient):
    """What a masked site weighs does not come back by another way, in value or gradient."""
    x, mask = torch.randn(5, 3), torch.tensor([True, False, True, True, False])
    loc = torch.zeros((), requires_grad=True)

    def model(x):
        with pyro.plate("data", 5, dim=-1):
            with pyro.plate("inner", 3, dim=-2), poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.sum(-2, keepdim=True), 1.0).mask(mask), obs=x.sum(-1))

    def guide(x):
        with pyro.plate("data", 5, dim=-1), pyro.plate("inner", 3, dim=-2), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(0.3 * x.T + loc, 0.8))

    found = IWAE(2, plate="data", gradient=gradient).bounds(model, guide, x)
    assert found[~mask].eq(0).all()
    (of_masked,) = torch.autograd.grad(found[~mask].sum(), loc, retain_graph=True)
    (of_all,) = torch.autograd.grad(found.sum(), loc)
    assert of_masked == 0
    assert of_all != 0


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_prior_that_is_masked_out_has_no_gradient(gradient):
    """It is a flat one, whatever its parameters: the guide is not masked."""
    x, log_scale = torch.randn(5), torch.zeros((), requires_grad=True)

    def model(x):
        with pyro.plate("data", 5):
            with poutine.mask(mask=torch.tensor(False)):
                z = pyro.sample("z", dist.Normal(0.0, log_scale.exp()))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Normal(0.3 * x, 0.8))

    loss = IWAE(3, gradient=gradient).differentiable_loss(model, guide, x)
    found = torch.autograd.grad(loss, log_scale, allow_unused=True)[0] if loss.requires_grad else None
    assert found is None or found == 0


# Annealing ------------------------------------------------------------------------------------------------------------


def gradient_of(vae, objective, x, seed=1):
    vae.zero_grad()
    torch.manual_seed(seed)
    objective.loss_and_grads(vae.model, vae.guide, x)
    return torch.cat([p.grad.flatten() for p in vae.parameters()])


@pytest.mark.parametrize("analytic_kl", [False, True])
def test_warm_up_follows_the_clock(vae, x, analytic_kl):
    warm = ELBO(2, analytic_kl, beta=0.8, warmup=100)
    for steps, beta in ((0, 0.0), (25, 0.2), (100, 0.8), (1000, 0.8)):
        warm.clock = torch.tensor(steps)
        found = gradient_of(vae, warm, x)
        torch.testing.assert_close(found, gradient_of(vae, ELBO(2, analytic_kl, beta=beta), x))
    clock = torch.zeros(())
    warm.clock = clock
    before = gradient_of(vae, warm, x)
    clock.add_(50)  # advanced in place by the one who takes the steps
    assert not torch.equal(before, gradient_of(vae, warm, x))
    assert clock == 50  # and by nobody else


def test_under_stock_svi_a_warm_up_counts_its_own_losses(vae, x):
    objective = IWAE(2, warmup=10)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective)
    for step in range(12):
        assert objective.beta_for(torch.zeros(2, 7)) == pytest.approx(min(1, step / 10))
        svi.step(x)
        svi.evaluate_loss(x)
        objective.loss(vae.model, vae.guide, x)
        objective.bounds(vae.model, vae.guide, x)


class OwnSchedule(ELBO):
    """The warm-up of the family, by a method of one's own."""

    def beta_for(self, rate):
        return (self.taken(rate.device) / 20).clamp(0, 1)


@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize(
    "options",
    [{}, {"analytic_kl": True}, {"gradient": "dreg"}, {"gradient": "vimco"}, {"chunk": 2}],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_an_own_schedule_is_kept_as_the_familys_is_also_when_resumed(options, mode, vae, x):
    def fitted(objective, stop=None):
        svi = make_svi(objective, vae)
        for step in range(12):
            svi.step(x)
            if step == stop:
                state, draws = svi.state_dict(), torch.get_rng_state()
                svi = make_svi(objective, svi.model.__self__)
                svi.load_state_dict(state)
                torch.set_rng_state(draws)
        return torch.cat([p.detach().flatten() for p in svi.model.__self__.parameters()])

    def make_svi(objective, program):
        torch.manual_seed(0)
        program = copy.deepcopy(program)
        optim = torch.optim.Adam(program.parameters(), 0.01)
        return pvae.SVI(program.model, program.guide, optim, objective(), compile=mode)

    expected = fitted(lambda: ELBO(4, warmup=20, **options))
    assert torch.equal(fitted(lambda: OwnSchedule(4, **options)), expected)
    assert torch.equal(fitted(lambda: OwnSchedule(4, **options), stop=4), expected)
    assert not torch.equal(fitted(lambda: ELBO(4, **options)), expected)


def test_beta_weighs_prior_and_posterior_alone(vae, x):
    torch.manual_seed(1)
    terms = vae.log_weights(x, particles=3)
    expected = -bounds.iwae(terms.likelihood + 0.3 * (terms.prior - terms.posterior)).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(expected, list(vae.parameters()))])
    torch.testing.assert_close(gradient_of(vae, IWAE(3, beta=0.3), x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", [lambda **k: ELBO(4, **k), lambda **k: ELBO(4, analytic_kl=True, **k)])
def test_free_bits_spare_a_kl_below_them(vae, x, objective):
    with torch.no_grad():
        list(vae.posterior.parameters())[-1].add_(1.0)  # away from the prior
        rate = pvae.ELBO(500).bounds(vae.model, vae.guide, x)  # looks at the programs
        terms = vae.log_weights(x, particles=500)
        rate = (terms.posterior - terms.prior).mean().item()
    assert rate > 0.5
    without, whole = gradient_of(vae, objective(beta=0.0), x), gradient_of(vae, objective(), x)
    torch.testing.assert_close(gradient_of(vae, objective(free_bits=2 * rate), x), without)
    torch.testing.assert_close(gradient_of(vae, objective(free_bits=rate / 4), x), whole)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["reparam", "stl", "dreg", "gdreg"])
def test_a_discrete_site_is_named_with_the_estimators_for_it(gradient):
    programs, x = Discrete(), torch.ones(3, dtype=torch.float64)
    with pytest.raises(pvae.InputError, match=f"site 'y': iwae with gradient {gradient} needs .*Bernoulli") as found:
        IWAE(2, gradient=gradient).bounds(programs.model, programs.guide, x)
    assert str(found.value).endswith("score, vimco, ovis, rws")
    with torch.no_grad(), pytest.raises(pvae.InputError, match=f"site 'y': iwae with gradient {gradient} needs"):
        IWAE(2, gradient=gradient).bounds(programs.model, programs.guide, x)
    assert "2 particles or more" not in str(found.value)
    with pytest.raises(pvae.InputError, match=r": pass 2 particles or more, and as the gradient one of those"):
        IWAE(1, gradient=gradient).bounds(programs.model, programs.guide, x)
    with pytest.raises(pvae.InputError, match=r"that need none: score, vimco$"):
        TVO(2, gradient=gradient).bounds(programs.model, programs.guide, x)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_latent_that_all_data_share_is_refused(gradient):
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(torch.tensor(0.3, requires_grad=True), 1.0))

    with pytest.raises(pvae.InputError, match=r"site 'z \(guide\)': outside the plate of data"):
        IWAE(2, gradient=gradient).bounds(model, guide, torch.zeros(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ELBO(2, gradient="ovis"),
            "gradient: ovis does not fit elbo: .*: reparam, stl, dreg, gdreg, score, vimco",
        ),
        (lambda: PIWAE(2, gradient="rws"), "gradient: rws does not fit piwae"),
        (lambda: PIWAE(2, gradient="gdreg"), "gradient: gdreg does not fit piwae: model and guide climb"),
        (lambda: IWAE(1, gradient="vimco"), "gradient: vimco does not fit iwae: its baseline .* 1 particle: give it 2"),
        (lambda: IWAE(gradient="score"), "reparam, stl, dreg, gdreg, rws"),
        (lambda: IWAE(2, gradient="dregs"), "unknown gradient 'dregs': did you mean 'dreg'"),
        (lambda: IWAE(2, gradient=estimators.VIMCO), "gradient: found .*VIMCO.*, expected a name or a Gradient: known"),
        (lambda: ELBO(analytic_kl=True, gradient="dreg"), "analytic_kl: found gradient dreg"),
        (lambda: MIWAE(6, 0), "groups: found 0 for 6 particles, expected a divisor"),
        (lambda: PIWAE(6, 4), "groups: found 4 for 6 particles"),
        (lambda: MIWAE(0), "particles: found 0"),
        (lambda: TVO(partitions=(0, 0.5, 0.2, 1)), "partitions: found 0,0.5,0.2,1"),
        (lambda: CIWAE(share=2), "share: found 2"),
        (lambda: Chi(order=1), "order: found 1, expected a finite number above 1"),
        (lambda: Chi(1), "particles: found 1, expected at least 2 for the chi bound of order 2"),
        (lambda: Chi(2, sandwich=False), "particles: found 2, expected at least 3 for the chi bound of order 2"),
        (lambda: Renyi(alpha=math.inf), "alpha: found inf"),
        (lambda: ELBO(beta=-1), "beta: found -1, expected at least 0"),
        (lambda: ELBO(warmup=-1), "warmup: found -1"),
        (lambda: ELBO(free_bits=math.nan), "free_bits: found nan"),
        (lambda: estimators.VIMCO("harmonic"), "mean: found 'harmonic', expected geometric or arithmetic"),
        (lambda: estimators.OVIS(2), "gamma: found 2, expected 0 to 1"),
        (lambda: estimators.ReweightedWakeSleep("nap"), "phase: found 'nap', expected wake or sleep or both"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(pvae.InputError, match=message) as found:
        call()
    assert "\n" not in str(found.value)


# The step -------------------------------------------------------------------------------------------------------------

ALL = {
    "elbo": (ELBO, {}),
    "analytic": (ELBO, {"analytic_kl": True}),
    **{f"{g}-iwae": (IWAE, {"gradient": g}) for g in GRADIENTS},
    "rws-sleep": (IWAE, {"gradient": estimators.ReweightedWakeSleep("both")}),
    "dreg-tvo": (TVO, {"gradient": "dreg"}),
    "dreg-piwae": (PIWAE, {"groups": 2, "gradient": "dreg"}),
    "vimco-miwae": (MIWAE, {"groups": 2, "gradient": "vimco"}),
    "annealed": (IWAE, {"gradient": "dreg", "beta": 0.5, "warmup": 10, "free_bits": 1.0}),
}


@pytest.mark.parametrize(("member", "options"), ALL.values(), ids=ALL)
def test_a_step_is_traced_and_reads_nothing(vae, x, member, options):
    objective = member(4, **options)
    objective.loss_and_grads(vae.model, vae.guide, x)  # the first call looks at the programs
    parameters, clock = list(vae.parameters()), torch.tensor(3.0)

    def step(x, clock):
        objective.clock = clock
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
        return loss.detach(), *torch.autograd.grad(loss, parameters)

    traced = make_fx(step)(x, torch.tensor(7.0))  # fails where a value is read
    torch.manual_seed(1)
    expected = step(x, clock)
    torch.manual_seed(1)
    with torch.no_grad():
        found = traced(x, clock)
    torch.testing.assert_close(found, expected)


@pytest.mark.cuda
@pytest.mark.parametrize(("member", "options"), ALL.values(), ids=ALL)
def test_a_step_never_synchronises_with_the_device(vae, x, member, options):
    vae, x, objective = vae.cuda(), x.cuda(), member(4, **options)
    objective.loss_and_grads(vae.model, vae.guide, x)
    with never_waiting():
        objective.loss_and_grads(vae.model, vae.guide, x)


@pytest.mark.parametrize(("member", "options"), ALL.values(), ids=ALL)
def test_a_step_leaves_nothing_behind(vae, x, member, options):
    objective, kept = member(4, **options), []

    class Watch(pyro.poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            if msg["name"] == "z":
                kept.append(weakref.ref(msg["value"]))

    objective.loss_and_grads(vae.model, vae.guide, x)
    with Watch():
        objective.loss_and_grads(vae.model, vae.guide, x)
    gc.collect()
    assert kept
    assert all(ref() is None for ref in kept)


@pytest.mark.parametrize(("member", "options"), ALL.values(), ids=ALL)
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_gradients_are_finite_where_weights_are_far_apart(member, options, offset):
    class Far(Simple):
        start: ClassVar = {**Simple.start, "a": 30.0, "ls": 3.0}

    programs = Far()
    programs.p = {n: v.detach().float().requires_grad_() for n, v in programs.p.items()}
    bound = member(4, **options).bounds(programs.model, programs.guide, torch.tensor([1.3, -40.0]) + offset)
    assert bound.isfinite().all()
    assert programs.gradient(bound.sum()).isfinite().all()


def test_the_path_of_a_group_far_below_the_best_is_there(monkeypatch):
    """Under PIWAE a draw whose weight in the model's bound underflows still weighs in its own group."""
    monkeypatch.setattr(Objective, "_look", lambda *_: None)  # the guide is for four particles alone
    loc = torch.zeros(4, 1, requires_grad=True)

    def model(x):
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 1):
            pyro.sample("z", dist.Normal(torch.tensor([[0.0], [0.0], [30.0], [30.0]]) + loc, 1.0))

    found = {}
    for name in ("miwae", "piwae"):
        torch.manual_seed(0)
        bound = {"miwae": MIWAE, "piwae": PIWAE}[name](4, 2, gradient="dreg", max_plate_nesting=1)
        found[name] = torch.autograd.grad(bound.bounds(model, guide, torch.zeros(1)).sum(), loc)[0]
    torch.testing.assert_close(found["piwae"], found["miwae"], rtol=1e-5, atol=1e-6)
    assert found["miwae"][2:].abs().max() > 1


# Distributions made of others -----------------------------------------------------------------------------------------


class Truncated(dist.Normal):
    """A normal distribution above 0: a normal one by its class, with another density."""

    support = dist.constraints.positive

    def expand(self, batch_shape, _instance=None):
        return Truncated(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def log_prob(self, value):
        return super().log_prob(value) - torch.special.log_ndtr(self.loc / self.scale)

    def rsample(self, sample_shape=()):
        low = torch.special.ndtr(-self.loc / self.scale)
        u = torch.rand(self._extended_shape(torch.Size(sample_shape)))
        return self.loc + self.scale * torch.special.ndtri(low + (1 - low) * u)


class Renamed(dist.Normal):
    """A normal distribution by another name."""


class Scored(dist.Normal):
    """One that says its density itself, and its KL."""

    def log_prob(self, value):
        return super().log_prob(value)


@torch.distributions.register_kl(Scored, Scored)
def _kl_of_scored(q, p):
    return torch.distributions.kl_divergence(dist.Normal(q.loc, q.scale), dist.Normal(p.loc, p.scale))


def of_two(prior, posterior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior())

    return model, guide


def pushed(mean, scale, event_dim=0):
    """A normal draw as a point with the density that the draw has."""
    noise = torch.randn_like(mean)
    log_density = dist.Normal(0.0, 1.0).log_prob(noise) - scale.log()
    return dist.Delta(mean + scale * noise, log_density, event_dim=event_dim)


MADE = {
    "folded": lambda m, s: dist.FoldedDistribution(dist.Normal(m, s)),
    "truncated": Truncated,
    "truncated, moved": lambda m, s: dist.TransformedDistribution(Truncated(m, s), LOG),
}
LOG = [dist.transforms.ExpTransform().inv]
AS_THEY_ARE = {
    "normal": dist.Normal,
    "renamed": Renamed,
    "lognormal": dist.LogNormal,
    "half normal": lambda m, s: dist.HalfNormal(s),
    "laplace": dist.Laplace,
}


@pytest.mark.parametrize("name", [*MADE, "point"])
def test_a_kl_in_closed_form_is_of_a_distributions_own_density(name):
    """By the draws, where it has none: value and gradient are those of the ELBO without."""
    mean, scale, x = *(torch.full((5,), v, requires_grad=True) for v in (0.4, 0.7)), torch.ones(5)
    made = MADE.get(name, pushed)
    prior = (lambda: dist.Normal(0.0, 1.0)) if name == "point" else (lambda: made(mean / 2, scale + 1))
    model, guide = of_two(prior, lambda: made(mean, scale))
    found = []
    for analytic_kl in (True, False):
        torch.manual_seed(0)
        bound = ELBO(1, analytic_kl, max_plate_nesting=1).bounds(model, guide, x)
        found.append((bound, *torch.autograd.grad(bound.sum(), (mean, scale))))
    for closed, drawn in zip(*found, strict=True):
        torch.testing.assert_close(closed, drawn)


@pytest.mark.parametrize("made", [*AS_THEY_ARE.values(), Scored], ids=[*AS_THEY_ARE, "registered"])
def test_a_kl_in_closed_form_is_taken_of_classes_that_keep_a_density(made):
    model, guide = of_two(lambda: made(torch.zeros(5), torch.ones(5)), lambda: made(torch.ones(5), torch.ones(5)))
    assert list(kl.closed(pvae.programs.trace(model, guide, torch.ones(5)))) == ["z"]


@pytest.mark.parametrize("name", MADE)
def test_gdreg_refuses_a_prior_of_another_density_than_its_class(name):
    scale = torch.tensor(0.7, requires_grad=True)
    model, guide = of_two(lambda: MADE[name](scale / 2, scale), lambda: MADE[name](scale, scale))
    with pytest.raises(pvae.InputError, match=r"site 'z': found a prior .*for gradient gdreg: use dreg"):
        IWAE(2, gradient="gdreg").bounds(model, guide, torch.ones(5))
    IWAE(2, gradient="dreg").bounds(model, guide, torch.ones(5))


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_gdreg_takes_a_prior_of_its_classes_density(name):
    scale = torch.tensor(0.7, requires_grad=True)
    model, guide = of_two(lambda: AS_THEY_ARE[name](scale / 2, scale), lambda: AS_THEY_ARE[name](scale, scale))
    IWAE(2, gradient="gdreg").bounds(model, guide, torch.ones(5)).sum().backward()
    assert scale.grad.isfinite()
