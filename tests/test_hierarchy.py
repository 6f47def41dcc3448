"""Hierarchies: against an exact linear-Gaussian one; bounds and gradients; priors made of the guide; the commands."""

import copy
import json
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import assert_replayed
from registry import EACH
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import pvae
from pvae import ais, build, compare, config, evaluate, fit, gradients, load, programs, report, sample, snr
from pvae.hierarchy import BottomUp, Hierarchy, Ladder, TopDown
from pvae.train import Training

KINDS = ["bottom_up", "top_down", "ladder"]
SIZES = {"x": 5, "z1": 3, "z2": 2}
kinds = pytest.mark.parametrize("kind", KINDS)
ladder_first = pytest.mark.parametrize(
    "kind", [*(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[:2]), "ladder"]
)
torch64 = {"dtype": torch.float64}


# An exact hierarchy ---------------------------------------------------------------------------------------------------


class Affine(pvae.Guide):
    """N(Wx + b, C), fixed."""

    def __init__(self, weight, bias, covariance, diagonal=False):
        super().__init__(nn.Identity(), len(weight), event_dim=1)
        self.weight, self.bias, self.covariance, self.diagonal = weight, bias, covariance, diagonal

    def forward(self, x, y=None):
        mean = x @ self.weight.mT + self.bias
        if self.diagonal:
            return dist.Normal(mean, self.covariance.diagonal().sqrt().expand(mean.shape)).to_event(1)
        return dist.MultivariateNormal(mean, self.covariance.expand(*mean.shape, -1))


class AffineLikelihood(pvae.Likelihood):
    """N(Wz + b, s^2 I), fixed."""

    def __init__(self, weight, bias, scale):
        super().__init__(nn.Identity(), (len(weight),))
        self.weight, self.bias, self.scale = weight, bias, scale

    def forward(self, z, y=None):
        return dist.Normal(z @ self.weight.mT + self.bias, self.scale).to_event(1)


class Standard(pvae.Prior):
    def forward(self, y=None):
        return dist.Normal(torch.zeros(self.latent, **torch64), 1.0).to_event(1)


class Bare:
    """A pass over the data that hands them on."""

    def up(self, x, y):
        return [x] * len(self.guides)


class BareTopDown(Bare, TopDown): ...


class BareLadder(Bare, Ladder): ...


class Exact:
    """x|z1 ~ N(W1 z1 + b, s^2 I), z1|z2 ~ N(W2 z2, S), z2 ~ N(0, I); and all of it as one Gaussian."""

    def __init__(self, diagonal):
        torch.manual_seed(3)
        d, n1, n2 = SIZES.values()
        self.diagonal, self.b, self.s = diagonal, torch.randn(d, **torch64), 0.7
        self.w2 = torch.randn(n1, n2, **torch64)
        a = torch.randn(n1, n1, **torch64)
        self.w1, self.cov1 = torch.randn(d, n1, **torch64), a @ a.mT + 0.3 * torch.eye(n1, **torch64)
        if diagonal:  # so that p(z1|z2, x) has independent dimensions
            self.w1 = torch.linalg.qr(self.w1).Q * torch.tensor([0.5, 1.0, 2.0], **torch64)
            self.cov1 = torch.diag(torch.tensor([0.5, 1.0, 0.2], **torch64))
        to_z1 = torch.cat([torch.eye(n1, **torch64), torch.zeros(n1, d, **torch64)], 1)
        of = {"z2": torch.eye(n2, n1 + n2 + d, **torch64)}
        of["z1"] = self.w2 @ of["z2"] + torch.cat([torch.zeros(n1, n2, **torch64), to_z1], 1)
        noise = torch.block_diag(torch.eye(n2, **torch64), self.cov1, self.s**2 * torch.eye(d, **torch64))
        of["x"] = self.w1 @ of["z1"] + torch.eye(n1 + n2 + d, **torch64)[n1 + n2 :]
        self.of, self.noise = of, noise
        self.mean = {"z2": torch.zeros(n2, **torch64), "z1": torch.zeros(n1, **torch64), "x": self.b}

    def cov(self, a, b):
        return self.of[a] @ self.noise @ self.of[b].mT

    def joint(self, *names):
        """Mean and covariance of some of the variables together."""
        return torch.cat([self.mean[n] for n in names]), torch.cat(
            [torch.cat([self.cov(a, b) for b in names], 1) for a in names]
        )

    def given(self, name, *others):
        """The weight, bias and covariance of p(name | others)."""
        mean, cov = self.joint(*others)
        cross = torch.cat([self.cov(name, other) for other in others], 1)
        weight = torch.linalg.solve(cov, cross.mT).mT
        return weight, self.mean[name] - weight @ mean, self.cov(name, name) - weight @ cross.mT

    def log_p(self, x):
        mean, cov = self.joint("x")
        return MultivariateNormal(mean, cov).log_prob(x)

    def sample(self, n):
        torch.manual_seed(4)
        mean, cov = self.joint("x")
        return MultivariateNormal(mean, cov).sample((n,))

    def guides(self, kind, off=0.0):
        """(weight, bias, covariance) of each layer's guide: the posterior's, or somewhat off it."""
        found = {
            "bottom_up": lambda: [self.given("z1", "x"), self.given("z2", "z1")],
            "top_down": lambda: [self.given("z1", "x", "z2"), self.given("z2", "x")],
            "ladder": lambda: [self.given_alone(), self.given("z2", "x")],
        }[kind]()
        return [(w * (1 - off), b + off, c * (1 + off)) for w, b, c in found]

    def given_alone(self):
        """z1 of p(x|z1) alone, a Gaussian in z1 where W1'W1 is diagonal."""
        gram = (self.w1.mT @ self.w1).diagonal()
        weight = self.w1.mT / gram[:, None]
        return weight, -weight @ self.b, torch.diag(self.s**2 / gram)

    def hierarchy(self, kind, off=0.0):
        z1, z2 = self.guides(kind, off)
        guides = [Affine(*z1, diagonal=kind == "ladder"), Affine(*z2)]
        made = {"bottom_up": BottomUp, "top_down": BareTopDown, "ladder": BareLadder}[kind]
        networks = [] if kind == "bottom_up" else [nn.Identity(), nn.Identity()]
        layer = Affine(self.w2, torch.zeros(SIZES["z1"], **torch64), self.cov1, diagonal=self.diagonal)
        likelihood = AffineLikelihood(self.w1, self.b, self.s)
        return Hierarchy(Standard(SIZES["z2"]), [layer], likelihood, made(guides, networks))


def q_by_hand(exact, kind, off, x):
    """q(z1, z2 | x) as one Gaussian in the order z1, z2: from the guide's pieces, without a program."""
    (w1, b1, c1), (w2, b2, c2) = exact.guides(kind, off)
    n1, n2 = SIZES["z1"], SIZES["z2"]
    if kind == "bottom_up":
        m1 = w1 @ x + b1
        cross = c1 @ w2.mT
        return torch.cat([m1, w2 @ m1 + b2]), blocks(c1, cross, w2 @ cross + c2)
    m2 = w2 @ x + b2
    if kind == "top_down":
        a, m, c = w1[:, -n2:], w1[:, :-n2] @ x + b1, c1
    else:
        precision, above = c1.inverse(), exact.cov1.inverse()
        c = (precision + above).inverse()
        a, m = c @ above @ exact.w2, c @ precision @ (w1 @ x + b1)
    assert a.shape == (n1, n2)
    cross = a @ c2
    return torch.cat([a @ m2 + m, m2]), blocks(cross @ a.mT + c, cross, c2)


def blocks(a, b, c):
    return torch.cat([torch.cat([a, b], 1), torch.cat([b.mT, c], 1)])


def conditional(mean, cov, n1, of_first):
    """Of N(mean, cov) over (z1, z2): weight, bias and covariance of one given the other."""
    a, b = (slice(0, n1), slice(n1, None)) if of_first else (slice(n1, None), slice(0, n1))
    weight = cov[a, b] @ cov[b, b].inverse()
    return weight, mean[a] - weight @ mean[b], cov[a, a] - weight @ cov[b, a], mean[b], cov[b, b]


def rates_by_hand(exact, kind, off, x):
    """E_q[log q(z_l|.) - log p(z_l|.)] of both layers, in closed form."""
    mean, cov = q_by_hand(exact, kind, off, x)
    z1_z2, c = exact.joint("z1", "z2")
    total = kl_divergence(MultivariateNormal(mean, cov), MultivariateNormal(z1_z2, c))
    n1 = SIZES["z1"]
    if kind != "bottom_up":
        p2 = MultivariateNormal(torch.zeros(2, **torch64), torch.eye(2, **torch64))
        z2 = kl_divergence(MultivariateNormal(mean[n1:], cov[n1:, n1:]), p2)
        return {"z1": total - z2, "z2": z2}
    weight, bias, inner, m, v = conditional(mean, cov, n1, of_first=False)
    # KL(N(Wz1 + b, C) || N(0, I)) averaged over z1
    away = weight @ m + bias
    second = (weight @ v @ weight.mT).trace() + away @ away
    z2 = 0.5 * (inner.trace() + second - len(inner) - inner.logdet())
    return {"z1": total - z2, "z2": z2}


@pytest.fixture(params=KINDS)
def case(request):
    return request.param, Exact(diagonal=request.param == "ladder")


@pytest.mark.parametrize("k", [1, 4])
def test_every_weight_is_the_evidence_under_an_exact_guide(case, k):
    kind, exact = case
    model, x = exact.hierarchy(kind), exact.sample(6)
    log_p = exact.log_p(x)
    torch.testing.assert_close(model.log_weights(x, particles=k).log_w, log_p.expand(k, -1), rtol=0, atol=1e-9)
    found = evaluate.evaluate(model.model, model.guide, x, particles=[1, k, 10])
    for bound in (found.elbo, *found.iw.values()):
        torch.testing.assert_close(bound, log_p, rtol=0, atol=1e-4)  # kept in float32 on the way
    assert all(se.max() < 1e-4 for name, se in found.se.items() if name.startswith("iw") and name != "iw.10")


def test_bounds_of_an_inexact_guide_lie_below_by_its_divergence(case):
    kind, exact = case
    model, x = exact.hierarchy(kind, off=0.2), exact.sample(4)
    with torch.no_grad():
        log_w = model.log_weights(x, particles=20_000).log_w
    for i, datum in enumerate(x):
        q = MultivariateNormal(*q_by_hand(exact, kind, 0.2, datum))
        w1, w2 = exact.given("z1", "x"), exact.given("z2", "x")
        joint = exact.joint("z1", "z2", "x")[1]
        mean = torch.cat([w1[0] @ datum + w1[1], w2[0] @ datum + w2[1]])
        cov = joint[:5, :5] - joint[:5, 5:] @ joint[5:, 5:].inverse() @ joint[5:, :5]
        gap = kl_divergence(q, MultivariateNormal(mean, cov))
        assert gap > 0.05
        expected, se = exact.log_p(datum) - gap, log_w[:, i].std() / math.sqrt(len(log_w))
        assert (log_w[:, i].mean() - expected).abs() < 4 * se
        tighter = pvae.bounds.iwae(log_w[:, i].reshape(10, 2000))
        assert expected < tighter.mean() < exact.log_p(datum) + 4 * tighter.std() / math.sqrt(2000)


@pytest.mark.parametrize("off", [0.0, 0.3])
def test_the_rate_of_each_layer_is_its_closed_form(case, off):
    kind, exact = case
    model, x = exact.hierarchy(kind, off), exact.sample(3)
    found = evaluate.evaluate(model.model, model.guide, x, particles=[1], draws=2000)
    torch.testing.assert_close(sum(layer.rate for layer in found.layers.values()), found.rate, rtol=0, atol=1e-4)
    with torch.no_grad():
        spread = {
            name: rate.std(0) / math.sqrt(4000)
            for name, rate in programs.rates(programs.trace(model.model, model.guide, x, particles=4000)).items()
        }
    assert list(found.layers) == ["z1", "z2"]
    for i, datum in enumerate(x):
        for name, expected in rates_by_hand(exact, kind, off, datum).items():
            assert (found.layers[name].rate[i] - expected).abs() < 4 * spread[name][i] + 1e-5, name


def test_active_units_are_by_layer(case):
    kind, exact = case
    model, x = exact.hierarchy(kind), exact.sample(250)
    found = evaluate.evaluate(model.model, model.guide, x, particles=[1], draws=200)
    for name in ("z1", "z2"):
        weight, bias, _ = exact.given(name, "x")
        expected = (x @ weight.mT + bias).var(0, correction=0)
        assert found.layers[name].variance.shape == expected.shape
        torch.testing.assert_close(found.layers[name].variance, expected, rtol=0.03, atol=0.01)
    assert found.active_units == sum(layer.active_units for layer in found.layers.values())
    assert f"{'rate z2':<12}" in repr(found)


def test_samples_come_down_through_every_layer(case):
    kind, exact = case
    model = exact.hierarchy(kind)
    with torch.no_grad():
        x = model.sample(20_000)
        torch.manual_seed(1)
        means = model.sample(20_000, mean=True)
    mean, cov = exact.joint("x")
    se = ((torch.outer(cov.diagonal(), cov.diagonal()) + cov**2) / len(x)).sqrt()
    assert ((x.mean(0) - mean).abs() < 4 * (cov.diagonal() / len(x)).sqrt()).all()
    assert ((x.mT.cov() - cov).abs() < 4 * se).all()
    less = cov - exact.s**2 * torch.eye(5, **torch64)
    assert ((means.mT.cov() - less).abs() < 4 * se).all()


def test_reconstructions_are_at_the_posterior_mean(case):
    kind, exact = case
    model, x = exact.hierarchy(kind), exact.sample(3)
    encoded = model.encode(x)
    assert list(encoded) == model.sites == ["z1", "z2"]
    for name, q in encoded.items():
        weight, bias, _ = exact.given(name, "x")
        torch.testing.assert_close(q.mean, x @ weight.mT + bias)
        torch.testing.assert_close(model.means(x)[name], q.mean)
    torch.testing.assert_close(model.reconstruct(x), encoded["z1"].mean @ exact.w1.mT + exact.b)


def test_annealing_and_information_know_several_sites():
    exact = Exact(diagonal=True)
    model, x = exact.hierarchy("ladder"), exact.sample(10)
    found = ais.ais(model.model, x, annealing=ais.Annealing(temperatures=20, chains=8))
    assert (found.log_p - exact.log_p(x)).mean().abs() < 0.15
    information = pvae.diagnostics.mutual_information(model.guide, x)
    assert 0 < information.mean() <= math.log(10) + 1e-6


def test_a_ladder_weighs_by_precision():
    exact = Exact(diagonal=True)
    model, x = exact.hierarchy("ladder", off=0.1), exact.sample(2)
    (w, b, c), _ = exact.guides("ladder", 0.1)
    z2 = torch.randn(3, 2, 2, **torch64)  # particles, data
    q = model.posterior.given_above(1, x, z2, None, model.layers)
    precisions = 1 / c.diagonal(), 1 / exact.cov1.diagonal()
    variance = 1 / sum(precisions)
    mean = variance * ((x @ w.mT + b) * precisions[0] + z2 @ exact.w2.mT * precisions[1])
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.variance, variance.expand(3, 2, 3))


# Networks, bounds, gradients ------------------------------------------------------------------------------------------

SHAPE = (3, 2)


def make(kind="ladder", latents=(4, 3, 2), seed=0, prior=None, label=False, guide=pvae.MeanField):
    """A hierarchy with small networks, as a configuration makes one."""
    torch.manual_seed(seed)
    settings = config.Config(latent=latents, hierarchy=kind, layer_hidden=(6,), condition="label" if label else "none")
    settings = config.from_flat(config.to_flat(settings) | {"encoder.hidden": "8", "decoder.hidden": "8"})
    split = pvae.data.Split(torch.rand(12, *SHAPE).round().mul(255).to(torch.uint8), torch.arange(12) % 3)
    found = build.model(settings, pvae.data.Dataset("toy", split, split, split, ""))
    return found.to(torch.get_default_dtype())


def data(n=5):
    return torch.bernoulli(torch.rand(n, *SHAPE))


@pytest.mark.parametrize(("objective", "gradient"), EACH)
@kinds
def test_layers_train_under_every_objective_and_every_gradient(kind, objective, gradient):
    model = make(kind)
    loss = objective(3, gradient=gradient).loss_and_grads(model.model, model.guide, data())
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.norm() > 0 for p in model.parameters())


@pytest.mark.parametrize(("gradient", "objective"), [("dreg", pvae.IWAE), ("gdreg", pvae.IWAE), ("stl", pvae.ELBO)])
@ladder_first
def test_gradients_of_two_layers_are_unbiased(kind, gradient, objective):
    """The ladder's guide shares the model's parameters."""
    model, x = make(kind, (3, 2)), data(1).expand(400, *SHAPE)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    groups = {"all": list(model.parameters())}
    found = {
        name: snr.measure(objective(3, gradient=name), model.model, model.guide, groups, x, samples=40, seed=seed)[
            "all"
        ]
        for seed, name in enumerate(("reparam", gradient))
    }
    a, b = found.values()
    t = (a.mean - b.mean) / ((a.variance + b.variance) / 40).sqrt().clamp(min=1e-9)
    assert t.abs().max() < 5.5
    assert t.square().mean() < 1.6


@pytest.mark.parametrize("objective", [pvae.ELBO(1), pvae.IWAE(3, gradient="dreg"), pvae.IWAE(3, gradient="gdreg")])
@ladder_first
def test_a_replayed_step_is_the_eager_step(kind, objective):
    def program():
        model = make(kind)
        return model.model, model.guide, objective, (data(6),)

    assert_replayed(program)


@kinds
def test_stock_pyro_fits_it(kind):
    model = make(kind)
    before = [p.clone() for p in model.parameters()]
    pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO()).step(data())
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@kinds
def test_a_copy_and_a_state_are_the_same_model(kind, copied):
    model, x = make(kind), data()
    model.guide(x)
    loaded = make(kind, seed=1)
    loaded.load_state_dict(model.state_dict())
    found = []
    for one in (model, copied(model), loaded):
        torch.manual_seed(2)
        found.append(one.log_weights(x, particles=2).log_w)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@kinds
def test_every_part_sees_the_label(kind):
    model, x = make(kind, label=True), data(4)
    zero, one = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
    for part, given in [
        *((layer, torch.randn(2, 4, layer.encoder.shape[0])) for layer in model.layers),
        (model.likelihood, torch.randn(2, 4, 4)),
    ]:
        assert not torch.equal(part(given, zero).mean, part(given, one).mean)
    for network in model.posterior.networks or [guide.encoder for guide in model.posterior.guides]:
        given = torch.randn(4, *network.shape)
        assert (network(given, zero) != network(given, one)).any(1).all()
    for a, b in zip(model.encode(x, zero).values(), model.encode(x, one).values(), strict=True):
        assert (a.mean != b.mean).any()
    assert model.log_weights(x, one, particles=3).log_w.shape == (3, 4)
    assert model.sample(4, one).shape == (4, *SHAPE)


@kinds
def test_every_part_is_handed_the_labels(kind):
    model, x, y = make(kind, label=True), data(4), torch.tensor([0, 1, 1, 0])
    below, top = model.posterior.top(model.likelihood, model.layers)
    guides, networks = list(model.posterior.guides), list(model.posterior.networks)
    seen = {}
    for part in (*guides, *networks, *model.layers, model.likelihood):
        part.register_forward_pre_hook(lambda part, args: seen.setdefault(part, []).append(args[-1]))

    def handed(call, *expected):
        seen.clear()
        call()
        assert set(seen) == {*expected}
        assert all(given is y for calls in seen.values() for given in calls)

    inferred = [*guides, *networks, *(model.layers if kind == "ladder" else [])]
    first = torch.randn(4, guides[-2].latent) if kind == "bottom_up" else x
    handed(lambda: model.guide(x, y), *inferred)
    handed(lambda: model.model(x, y), *model.layers, model.likelihood)
    handed(lambda: model.latents(4, y), *model.layers)
    for call in (top, top.amortized):
        handed(lambda call=call: call(first, y), guides[-1], *networks)
    handed(
        lambda: below(torch.randn(4, top.latent if kind == "bottom_up" else guides[0].latent), y),
        below.layer if kind == "bottom_up" else below,
    )


@pytest.mark.parametrize("kind", ["top_down", "ladder"])
def test_the_pass_goes_through_every_network(kind):
    model, x = make(kind), data(4)
    expected, found = x, model.posterior.up(x, None)
    assert len(found) == 3
    for network, d in zip(model.posterior.networks, found, strict=True):
        expected = network(expected)
        centred = expected - expected.mean(-1, keepdim=True)
        expected = nn.functional.silu(centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt())
        torch.testing.assert_close(d, expected)
    taken = {}
    for guide in model.posterior.guides:
        guide.register_forward_pre_hook(lambda guide, args: taken.setdefault(guide, args[0]))
    model.guide(x)
    for guide, d in zip(model.posterior.guides, found, strict=True):
        torch.testing.assert_close(taken[guide][..., : d.shape[-1]], d)


def test_three_layers_know_one_another():
    """A change of any layer's draw changes the scores of its neighbours and of no others."""
    model, x = make("bottom_up"), data(2)
    drawn = programs.draw(model.guide, x, max_plate_nesting=1)
    base = programs.score(model.model, drawn, x)
    for changed, expected in {"z1": {"z1", "x"}, "z2": {"z1", "z2"}, "z3": {"z2", "z3"}}.items():
        moved = drawn.sites[changed]["value"] + 0.5
        sites = {**drawn.sites, changed: {**drawn.sites[changed], "value": moved}}
        other = programs.score(model.model, programs.Drawn(sites, 1, 1), x)
        differ = {
            name
            for name, site in programs.sites_of(other.model, observed=True)
            if not torch.equal(programs.log_prob(site, other), programs.log_prob(base.model[name], base))
        }
        assert differ == expected


# A prior that is made of the guide ------------------------------------------------------------------------------------


class Mixture(pvae.Prior):
    """The guide's own posteriors at learned inputs, as a VampPrior is."""

    def __init__(self, latent, components=4):
        super().__init__(latent)
        self.components = components
        self.inputs = None

    def connect(self, prior, likelihood, guide):
        object.__setattr__(self, "met", guide)
        self.inputs = nn.Parameter(torch.rand(self.components, *likelihood.shape))

    def initialize(self, x, y=None):
        with torch.no_grad():
            self.inputs.copy_(x[: self.components])

    def forward(self, y=None):
        q = self.met.amortized(self.inputs)
        return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(self.components)), q)


def with_mixture(kind):
    model = make(kind)
    return Hierarchy(Mixture(2), list(model.layers), model.likelihood, model.posterior)


@kinds
def test_a_prior_made_of_the_guide_is_on_top(kind):
    model, z = with_mixture(kind), torch.randn(5, 2)
    u = model.prior.inputs
    assert u.shape == ((4, 3) if kind == "bottom_up" else (4, *SHAPE))
    by_hand = []
    for one in u:
        q = model.posterior.guides[-1](one) if kind == "bottom_up" else model.encode(one[None])["z3"]
        by_hand.append(q.log_prob(z))
    torch.testing.assert_close(model.prior().log_prob(z), torch.stack(by_hand).logsumexp(0) - math.log(4))
    assert {id(p) for p in model.prior.parameters()} == {id(u)}


@kinds
def test_a_prior_made_of_the_guide_starts_from_what_the_guide_takes(kind):
    model, x = with_mixture(kind), data(9)
    model.initialize(x)
    if kind == "bottom_up":
        torch.manual_seed(7)
        assert not torch.equal(model.prior.inputs, torch.rand(4, 3))
        assert model.prior.inputs.unique().numel() == 12
        assert model.prior.inputs.min() < 0  # draws of z2, not the inputs it was made with
    else:
        assert torch.equal(model.prior.inputs, x[:4])


@pytest.mark.parametrize("gradient", ["reparam", "stl", "dreg"])
@kinds
def test_a_prior_made_of_the_guide_trains(kind, gradient):
    model, x = with_mixture(kind), data()
    pvae.IWAE(3, gradient=gradient).loss_and_grads(model.model, model.guide, x)
    assert all(p.grad is not None and p.grad.norm() > 0 for p in model.parameters())
    other = copy.deepcopy(model)
    assert other.prior.met is not model.prior.met
    with torch.no_grad():
        next(other.posterior.guides[-1].parameters()).add_(1)
        assert not torch.equal(other.prior().log_prob(torch.zeros(2)), model.prior().log_prob(torch.zeros(2)))
    assert model.sample(3).shape == (3, *SHAPE)


# What does not fit ----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    model = make("bottom_up")
    layers, posterior = list(model.layers), model.posterior
    with pytest.raises(pvae.InputError, match="layers: found 1 and a guide of 3, expected one less"):
        Hierarchy(model.prior, layers[:1], model.likelihood, posterior)
    with pytest.raises(pvae.InputError, match="z1: found size 3 in the model, 4 in the guide"):
        Hierarchy(model.prior, layers[::-1], model.likelihood, posterior)
    with pytest.raises(pvae.InputError, match=r"layers\[0\]: found Linear, expected a pvae.Part"):
        Hierarchy(model.prior, [nn.Linear(2, 3), layers[1]], model.likelihood, posterior)
    with pytest.raises(pvae.InputError, match="posterior: found MeanField, expected"):
        Hierarchy(model.prior, layers, model.likelihood, posterior.guides[0])


def test_a_ladder_needs_gaussians_and_says_what_to_do():
    exact = Exact(diagonal=False)
    _, z2 = exact.guides("top_down")
    model = exact.hierarchy("bottom_up")
    ladder = BareLadder([Affine(*exact.given("z1", "x")), Affine(*z2)], [nn.Identity(), nn.Identity()])
    model = Hierarchy(model.prior, list(model.layers), model.likelihood, ladder)
    with pytest.raises(pvae.InputError, match=r"ladder: found MultivariateNormal for z1, of Affine, .* top_down"):
        model.guide(exact.sample(2))


def test_a_guide_that_is_refined_by_the_model_is_for_the_top_alone():
    class Refined(pvae.MeanField):
        def connect(self, prior, likelihood, guide):
            object.__setattr__(self, "met", (prior, likelihood))

    guides = [Refined(nn.Linear(6, 8), 4), pvae.MeanField(nn.Linear(4, 4), 2)]
    with pytest.raises(pvae.InputError, match="guide: Refined of z1 is made of a prior and a likelihood"):
        BottomUp(guides)
    top, layer = Refined(nn.Linear(4, 4), 2), pvae.MeanField(nn.Linear(2, 8), 4)
    likelihood = pvae.Bernoulli(nn.Linear(4, 6), (6,))
    model = Hierarchy(pvae.Normal(2), [layer], likelihood, BottomUp([pvae.MeanField(nn.Linear(6, 8), 4), top]))
    prior, below = top.met
    z = torch.randn(3, 2)
    assert prior is model.prior
    assert torch.equal(below(z).mean, layer(z).mean)
    with pytest.raises(pvae.InputError, match="Refined of z2"):
        TopDown([pvae.MeanField(nn.Linear(10, 8), 4), Refined(nn.Linear(8, 4), 2)], [nn.Linear(6, 8), nn.Linear(8, 8)])


def test_supports_are_held_against_one_another_layer_by_layer():
    layer = pvae.MeanField(nn.Linear(2, 8), 4)
    layer.support = "somewhere else"
    guides = [pvae.MeanField(nn.Linear(6, 8), 4), pvae.MeanField(nn.Linear(4, 4), 2)]
    with pytest.raises(pvae.InputError, match="somewhere else"):
        Hierarchy(pvae.Normal(2), [layer], pvae.Bernoulli(nn.Linear(4, 6), (6,)), BottomUp(guides))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layer": "semi_amortized"},
            r"layer: SemiAmortized is made of a prior and a likelihood: it cannot be p\(z1\|z2",
        ),
        (
            {"layer": "delta"},
            r"layer: Delta has no density but at a point of its own: it cannot be p\(z1\|z2\): expected",
        ),
        (
            {"layer": "bernoulli"},
            "guide of z1: MeanField draws from the real numbers, the model's Bernoulli from 0 and 1, expected the same"
            " of both: choose the guide bernoulli; or choose the layer delta or iaf or maf",
        ),
        (
            {"prior": "bernoulli", "guide": "bernoulli"},
            "guide of z1: Bernoulli draws from 0 and 1, the model's MeanField from .*; or choose the layer bernoulli$",
        ),
        ({"guide": "bernoulli", "layer": "bernoulli"}, "guide of z2: .*; or choose the prior bernoulli or vamp$"),
    ],
    ids=lambda value: ",".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_layer_that_does_not_fit_is_told_from_the_prior(options, message):
    with pytest.raises(pvae.InputError, match=message):
        build.model(config.from_flat({"latent": "4,2", **options}), pvae.data.load("digits"))


# The configuration and the commands -----------------------------------------------------------------------------------


def test_sizes_of_a_configuration():
    assert config.from_flat({"latent": "100,50"}).layers == (100, 50)
    assert config.from_flat({"latent": "20"}).layers == config.from_flat({"latent": [20]}).layers == (20,)
    settings = config.from_flat({"latent": "6,3", "hierarchy": "ladder", "layer-hidden": "7,5"})
    assert config.from_flat(config.to_flat(settings)) == settings
    for name, value in {"hierarchy": "ladder", "layer-hidden": "7", "layer": "mine:Own"}.items():
        with pytest.raises(pvae.InputError, match=f"--{name}: found it with one latent"):
            config.from_flat({name: value})


def test_the_protocol_of_burda_is_expressed():
    """Two layers of 100 and 50, hidden 200-200 and 100-100, tanh (Burda et al. 2015, in the authors' code)."""
    wide = {"encoder.hidden": "200,200", "decoder.hidden": "200,200", "layer-hidden": "100,100"}
    tanh = {"encoder.activation": "tanh", "decoder.activation": "tanh", "layer-activation": "tanh"}
    digits = pvae.data.load("digits", None, support="unit_interval")
    model = build.model(config.from_flat({"latent": "100,50", **wide, **tanh}), digits)

    def sizes(network):
        assert all(isinstance(m, nn.Linear | nn.Tanh) for m in network.layers)
        return [m.out_features for m in network.layers if isinstance(m, nn.Linear)]

    assert [sizes(guide.encoder) for guide in model.posterior.guides] == [[200, 200, 200], [100, 100, 100]]
    assert sizes(model.layers[0].encoder) == [100, 100, 200]
    assert sizes(model.likelihood.decoder) == [200, 200, 64]
    assert model.prior.latent == 50


SMALL = ["--encoder.hidden", "16", "--decoder.hidden", "16", "--layer-hidden", "8", "--epochs", "2"]


@pytest.mark.parametrize("kind", [pytest.param("bottom_up", marks=pytest.mark.slow), "ladder"])
def test_the_commands(here, capsys, kind):
    xarray = pytest.importorskip("xarray")
    options = [*SMALL, "--latent", "4,4", "--hierarchy", kind, "--eval-particles", "1,5"]
    assert fit.main([*options, "--out", "two"]) == 0
    out = capsys.readouterr().out
    summary = json.loads((here / "two" / "summary.json").read_text())["test"]
    assert "z2: rate" in out
    assert list(summary["layers"]) == ["z1", "z2"]
    total = sum(layer["rate"]["mean"] for layer in summary["layers"].values())
    assert total == pytest.approx(summary["rate"]["mean"], abs=1e-4)
    results = xarray.open_datatree("two/results.nc", engine="h5netcdf")
    assert results["posterior"]["z1"].dims == ("chain", "draw", "shown", "latent_z1")
    assert results["posterior"]["z2"].sizes["latent_z2"] == 4
    assert results["constant_data"]["rate_z1"].dims == ("datum",)
    assert {f"{name}_z{n}.png" for name in ("latent_space", "active_units") for n in (1, 2)} <= {
        path.name for path in (here / "two" / "figures").iterdir()
    }
    results.close()
    assert sample.main(["two", "-n", "4", "-o", "s.npy"]) == 0
    assert gradients.main(["two", "--particles", "2", "--samples", "3"]) == 0
    assert fit.main([*SMALL[:4], "--epochs", "2", "--eval-particles", "1,5", "--latent", "4", "--out", "one"]) == 0
    assert compare.main(["two", "one", "--particles", "1,5", "--out", "c.csv", "--out", "c.json"]) == 0


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--latent 4,4", "analytic_kl: in closed form of z2; from draws of z1: there is none, or the guide draws"),
        pytest.param("--latent 4,4 --hierarchy top_down", "", marks=pytest.mark.slow),
        pytest.param(
            "--latent 4 --prior vamp",
            "analytic_kl: in closed form of no latent; from draws of z: there is none",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_says_of_which_latents_the_kl_is_from_draws(here, capsys, given, line):
    options = [*SMALL[:4], "--epochs", "1", "--eval-particles", "2", "--objective.analytic_kl", "true", *given.split()]
    assert fit.main(options) == 0
    out = capsys.readouterr().out
    assert line in out
    assert ("analytic_kl" in out) == bool(line)


@pytest.mark.parametrize("mode", [True, False])
def test_saying_so_leaves_the_model_and_the_generators_as_they_are(mode):
    settings = config.from_flat({"latent": "4,4", "objective.analytic_kl": "true", "encoder.hidden": "8"})
    digits = pvae.data.load("digits", None, support="unit_interval")
    training = Training(build.model(settings, digits).train(mode), None, digits, settings)
    before = torch.get_rng_state()
    (said,) = report._sampled(training)
    assert "from draws of z1" in said
    assert training.vae.training == mode
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resumed_run_is_the_run(here, plain):
    options = [*SMALL, "--latent", "4,3", "--hierarchy", "ladder", "--eval-particles", "2"]
    assert fit.main([*options, "--save-every", "1", "--out", "whole"]) == 0
    assert fit.main([*options, "--save-every", "1", "--out", "again"]) == 0
    first = sorted((here / "again" / "checkpoints").iterdir())[0]
    assert fit.main(["--resume", str(first.relative_to(here))]) == 0
    a, b = (load.load(name)[0].state_dict() for name in ("whole", "again"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_no_exact_value_is_claimed_for_several_layers():
    """The top's prior and the likelihood are linear and Gaussian, and of fitting sizes, but are not the model."""
    likelihood = pvae.Gaussian(nn.Linear(2, 6), (6,))
    layer = pvae.MeanField(nn.Linear(2, 4), 2)
    guides = [pvae.MeanField(nn.Linear(6, 4), 2), pvae.MeanField(nn.Linear(2, 4), 2)]
    model = Hierarchy(pvae.Normal(2), [layer], likelihood, BottomUp(guides))
    assert compare._exact(pvae.VAE(pvae.Normal(2), likelihood, guides[0]), torch.zeros(3, 6)) is not None
    assert compare._exact(model, torch.zeros(3, 6)) is None
