"""What programs draw and change beside their sites, where a step runs them more than once."""

from itertools import count

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

import pvae
from pvae.errors import InputError
from pvae.estimators.reruns import Reruns
from pvae.objectives import CIWAE, ELBO, IWAE, MIWAE, PIWAE, TVO, Chi, Renyi
from pvae.programs import Collect

NUMBERS = count()


class Average(nn.Module):
    """The difference to a running mean, which moves."""

    def __init__(self, size=8):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, h):
        out = h - self.mean
        with torch.no_grad():
            self.mean.mul_(0.5).add_(0.5 * h.flatten(0, -2).mean(0))
            self.steps += 1
        return out


class Noise(nn.Module):
    def forward(self, h):
        return h + torch.randn(h.shape).mul_(0.5)


class Mask(nn.Module):
    """Dropout with a generator of its own; or with what that gives at first, and nothing random in it."""

    def __init__(self, fixed=False):
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)
        self.mask = self.draw() if fixed else None

    def draw(self):
        return 2 * torch.empty(5, 8, dtype=torch.float64).bernoulli_(0.5, generator=self.generator)

    def forward(self, h):
        return h * (self.draw() if self.mask is None else self.mask)


class Two(nn.Module):
    """Two latent sites; the second sees the first, and both the layers between."""

    def __init__(self, *between):
        super().__init__()
        self.name = f"two{next(NUMBERS)}"
        self.into, self.between, self.out = nn.Linear(4, 8), nn.Sequential(*between), nn.Linear(8, 2)
        self.loc, self.scale = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.8))

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(self.loc, 1.0))
            b = pyro.sample("b", dist.Normal(self.scale * a, 1.0))
            pyro.sample("x", dist.Normal(b.unsqueeze(-1), 1.0).expand([*b.shape, 4]).to_event(1), obs=x)

    def guide(self, x):
        pyro.module(self.name, self)
        first, second = self.out(self.between(self.into(x))).unbind(-1)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(first, 0.3))
            pyro.sample("b", dist.Normal(second + self.scale * a, 0.3))


@pytest.fixture
def x():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(2))


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def found(objective, programs, x, seed=1):
    """The loss and the gradients at a seed."""
    torch.manual_seed(seed)
    parameters = list(programs.parameters())
    loss = objective.differentiable_loss(programs.model, programs.guide, x)
    return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


BETWEEN = {
    "dropout": lambda: [nn.Dropout(0.5)],
    "dropout-in-place": lambda: [nn.Dropout(0.5, inplace=True)],
    "alpha-dropout": lambda: [nn.AlphaDropout(0.5)],
    "rrelu": lambda: [nn.RReLU()],
    "noise": lambda: [Noise()],
    "batch-norm": lambda: [nn.BatchNorm1d(8)],
    "average": lambda: [Average()],
    "spectral-norm": lambda: [spectral_norm(nn.Linear(8, 8))],
    "all": lambda: [nn.Dropout(0.2), nn.BatchNorm1d(8), Noise(), Average(), spectral_norm(nn.Linear(8, 8))],
}
FLAT = {"max_plate_nesting": 1}
"""Else the first call runs both programs once, to see how they are nested."""
REDRAWN = {
    "stl": (IWAE(4, **FLAT), IWAE(4, gradient="stl", **FLAT)),
    "dreg": (IWAE(4, **FLAT), IWAE(4, gradient="dreg", **FLAT)),
    "gdreg": (IWAE(4, **FLAT), IWAE(4, gradient="gdreg", **FLAT)),
    "one-particle": (ELBO(**FLAT), ELBO(gradient="dreg", **FLAT)),
    "tvo": (TVO(4, **FLAT), TVO(4, gradient="dreg", **FLAT)),
    "renyi": (Renyi(4, **FLAT), Renyi(4, gradient="dreg", **FLAT)),
    "ciwae": (CIWAE(4, **FLAT), CIWAE(4, gradient="dreg", **FLAT)),
    "miwae": (MIWAE(4, 2, **FLAT), MIWAE(4, 2, gradient="dreg", **FLAT)),
    "piwae": (IWAE(4, **FLAT), PIWAE(4, 2, **FLAT)),
    "chi": (IWAE(4, **FLAT), Chi(4, **FLAT)),
    "annealed": (IWAE(4, **FLAT), IWAE(4, gradient="dreg", beta=0.5, **FLAT)),
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("name", REDRAWN)
def test_the_value_is_that_of_one_run(between, name, x):
    once, again = REDRAWN[name]
    programs = [seeded(lambda: Two(*BETWEEN[between]())) for _ in range(2)]
    torch.testing.assert_close(found(again, programs[1], x)[0], found(once, programs[0], x)[0], rtol=1e-6, atol=0)
    moved, expected = (dict(p.named_buffers()) for p in reversed(programs))
    torch.testing.assert_close(moved, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", REDRAWN)
def test_the_gradient_is_that_of_the_same_guide_with_nothing_random_in_it(name, x):
    objective = REDRAWN[name][1]
    random, fixed = (seeded(lambda fixed=fixed: Two(Mask(fixed))).double() for fixed in (False, True))
    torch.testing.assert_close(
        found(objective, random, x.double()), found(objective, fixed, x.double()), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("gradient", ["stl", "dreg", "gdreg"])
def test_the_mean_gradient_is_that_of_automatic_differentiation(gradient, x):
    programs, many = seeded(lambda: Two(nn.Dropout(0.5))), x.repeat(400, 1)

    def gradients(objective):
        draws = [found(objective, programs, many, seed)[1] for seed in range(60)]
        return torch.stack([torch.cat([g.flatten() for g in draw]) for draw in draws]) / len(many)

    ours, expected = gradients(ELBO(gradient=gradient)), gradients(ELBO())
    error = ((ours.var(0) + expected.var(0)) / len(ours)).sqrt()
    t = (ours.mean(0) - expected.mean(0)) / error.clamp(min=1e-9)
    assert t.abs().max() < 4.5


def test_a_guide_of_one_site_is_watched_until_that_is_seen(x, monkeypatch):
    class One(Two):
        sites = 1

        def model(self, x):
            if self.sites > 1:
                return super().model(x)
            with pyro.plate("data", len(x)):
                z = pyro.sample("a", dist.Normal(self.loc, 1.0))
                pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 4]).to_event(1), obs=x)

        def guide(self, x):
            if self.sites > 1:
                return super().guide(x)
            with pyro.plate("data", len(x)):
                pyro.sample("a", dist.Normal(self.out(self.between(self.into(x)))[..., 0], 0.3))

    watched, real = [], Reruns.first
    monkeypatch.setattr(Reruns, "first", lambda self: watched.append(self) or real(self))
    programs, objective = seeded(lambda: One(nn.Dropout(0.5))), IWAE(4, gradient="dreg", **FLAT)
    for sites, runs in ((1, 1), (1, 0), (2, 1), (2, 1), (1, 1), (1, 0)):
        programs.sites = sites
        watched.clear()
        found(objective, programs, x)
        assert len(watched) == runs
    programs.sites = 2  # a guide that is drawn from once more has other draws
    many = x.repeat(4000, 1)
    once, again = (found(o, programs, many)[0] / len(many) for o in (IWAE(4, **FLAT), objective))
    torch.testing.assert_close(again, once, rtol=0.02, atol=0)


def hierarchy(rate=0.3):
    def net(i, o):
        return nn.Sequential(nn.Linear(i, 16), nn.ReLU(), nn.Dropout(rate), Average(16), nn.Linear(16, o))

    guides = pvae.BottomUp([pvae.MeanField(net(12, 8), 4), pvae.MeanField(net(4, 4), 2)])
    likelihood = pvae.Bernoulli(net(4, 12), (12,))
    return pvae.Hierarchy(pvae.Normal(2), [pvae.MeanField(net(2, 8), 4)], likelihood, guides)


@pytest.mark.parametrize("name", REDRAWN)
def test_a_hierarchy(name):
    programs, x = [seeded(hierarchy) for _ in range(2)], torch.ones(6, 12)
    once, again = (found(objective, p, x)[0] for objective, p in zip(REDRAWN[name], programs, strict=True))
    torch.testing.assert_close(again, once, rtol=1e-6, atol=0)
    expected, moved = (dict(p.named_buffers()) for p in programs)
    torch.testing.assert_close(moved, expected, rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("gradient", ["reparam", "dreg"])
def test_in_parts_state_moves_once(gradient, chunk, x):
    def run(**options):
        programs = seeded(lambda: Two(Average(), nn.BatchNorm1d(8)))
        torch.manual_seed(1)
        loss = IWAE(4, gradient=gradient, **FLAT, **options).differentiable_loss(programs.model, programs.guide, x)
        loss.backward()
        return dict(programs.named_buffers())

    moved, expected = run(chunk=chunk), run()
    assert expected["between.0.steps"] == 1
    torch.testing.assert_close(moved, expected, rtol=0, atol=0)


def test_parts_draw_what_is_beside_each_for_itself_and_again_for_the_gradient(x):
    drawn = []

    class Spy(Noise):
        def forward(self, h):
            out = super().forward(h)
            drawn.append((out - h).detach())
            return out

    found(IWAE(2, chunk=1, **FLAT), seeded(lambda: Two(Spy())), x)
    first, second, *again = drawn[::2]  # the other half are the runs at fixed draws
    assert not torch.equal(first, second)
    assert torch.equal(torch.stack(again), torch.stack([second, first]))
    assert torch.equal(torch.stack(drawn[1::2]), torch.stack(drawn[::2]))


def test_in_parts_the_value_is_that_of_one_run(x):
    programs = seeded(lambda: Two(nn.Dropout(0.5)))
    once, again = (found(IWAE(5, gradient=g, chunk=2), programs, x) for g in ("reparam", "dreg"))
    torch.testing.assert_close(again[0], once[0], rtol=1e-6, atol=0)


def steps(mode, x, between, objective):
    programs = seeded(lambda: Two(*BETWEEN[between]()))
    optimizer = torch.optim.Adam(programs.parameters(), lr=0.01)
    svi = pvae.SVI(programs.model, programs.guide, optimizer, objective, compile=mode)
    torch.manual_seed(3)
    losses = torch.stack([torch.as_tensor(svi.step(x)) for _ in range(8)])
    assert mode == "off" or svi._graphs._graphs
    return losses, dict(programs.state_dict())


@pytest.mark.parametrize("between", ["dropout", "all"])
@pytest.mark.parametrize("name", ["dreg", "piwae"])
def test_a_graph_takes_the_same_steps(between, name, x):
    make = {"dreg": lambda: IWAE(4, gradient="dreg"), "piwae": lambda: PIWAE(4, 2)}[name]
    torch.testing.assert_close(steps("graph", x, between, make()), steps("off", x, between, make()))


def test_a_graph_draws_once(x):
    programs, objective = seeded(lambda: Two(nn.Dropout(0.5), Noise())), IWAE(4, gradient="dreg", **FLAT)

    def step(x):
        loss = objective.differentiable_loss(programs.model, programs.guide, x)
        return torch.autograd.grad(loss, list(programs.parameters()))

    nodes = make_fx(step)(x).graph.nodes
    draws = [node for node in nodes if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())]
    assert len(draws) == 4  # two sites, dropout, noise


# What is noted --------------------------------------------------------------------------------------------------------


def everything():
    weight = torch.ones(3, requires_grad=True)
    yield functional.dropout(weight, 0.5), torch.rand(3).add_(1), torch.randn_like(weight).mul_(weight)
    yield torch.empty(3).exponential_(), torch.normal(torch.zeros(3), 2.0), torch.randint(9, (3,)), torch.randperm(7)
    yield torch.multinomial(torch.ones(9), 4), torch.bernoulli(torch.full((3,), 0.5)), torch.poisson(torch.ones(9))
    yield (
        *(dist.Gamma(weight, 1.0).rsample(), dist.Dirichlet(weight).rsample()),
        *(dist.Binomial(9, 0.5 * weight).sample(), dist.Beta(weight, 1.0).rsample()),
    )
    yield torch.rand(3, out=torch.empty(3)), functional.rrelu(-weight, training=True), *in_parts_of(weight)


def in_parts_of(weight):
    row = weight.expand(1, 2, 2, 3)
    yield functional.scaled_dot_product_attention(row, row, row, dropout_p=0.5)
    yield torch.randn(3, generator=torch.Generator().manual_seed(1))


def test_operations_of_any_kind_give_the_same_again():
    reruns = Reruns()
    with reruns.first():
        first = [torch.cat([value.flatten() for value in values]) for values in everything()]
    state = torch.get_rng_state()
    for _ in range(2):
        with reruns.again():
            again = [torch.cat([value.flatten() for value in values]) for values in everything()]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert all(a.requires_grad == b.requires_grad for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_go_through_what_is_drawn_again():
    reruns, weight = Reruns(), torch.ones(50, requires_grad=True)
    with reruns.first():
        first = functional.dropout(weight, 0.5)
    with reruns.again():
        again = functional.dropout(weight, 0.5)
    (expected,), (gradient,) = (torch.autograd.grad(value.sum(), weight) for value in (first, again))
    assert torch.equal(gradient, expected)
    assert set(gradient.tolist()) == {0.0, 2.0}


def test_what_is_drawn_once_for_good_is_passed_over():
    reruns, kept = Reruns(), []

    def program():
        if not kept:
            kept.append(torch.randn(2) + torch.rand(2))
        return torch.rand(3) + kept[0].sum()

    with reruns.first():
        first = program()
    with reruns.again():
        assert torch.equal(program(), first)


def test_what_sites_draw_is_passed_by():
    reruns, seen = Reruns(), []

    def program():
        noise = dist.Normal(torch.zeros(3), 1.0)
        pyro.sample("z", noise)
        seen.append(noise.rsample())

    with reruns.first():
        sites = Collect(program)()
    with reruns.again():
        Collect(program, sites)()
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], sites["z"]["value"])


def test_a_run_that_draws_more_is_refused(x):
    class Fickle(Two):
        runs = 0

        def guide(self, x):
            self.runs += 1
            for _ in range(self.runs):
                torch.rand(2)
            super().guide(x)

    message = r"guide: run again at its own draws it drew by aten\.rand.* pass the gradient reparam or score"
    with pytest.raises(InputError, match=message):
        found(IWAE(2, gradient="dreg", **FLAT), Fickle(), x)


def test_nothing_is_kept_of_what_a_program_makes_itself():
    reruns, norm, x = Reruns(), nn.BatchNorm1d(3).eval(), torch.ones(2, 3)
    with reruns.first():
        torch.tensor([1.0, 2.0]).mul_(3)
        norm(torch.empty(2, 3).copy_(x)).unsqueeze(0)[0].add_(1)
    assert not reruns._before
    with reruns.first():
        x.view(-1)[:2].add_(1)
    assert len(reruns._before) == 1


def test_views_of_state_are_put_back():
    state, reruns = torch.arange(6.0).reshape(2, 3), Reruns()

    def program():
        state[0].add_(1)
        state.mul_(2)
        state.view(-1)[2:5].zero_()
        return state.sum()

    with reruns.first():
        first = program()
    moved = state.clone()
    for _ in range(2):
        with reruns.again():
            assert program() == first
        assert torch.equal(state, moved)


def test_state_is_as_after_the_first_run_where_a_later_one_fails():
    state, reruns = torch.zeros(2), Reruns()
    with reruns.first():
        state.add_(1)

    def program():
        with reruns.again():
            state.add_(5)
            raise KeyError

    with pytest.raises(KeyError):
        program()
    assert state.tolist() == [1, 1]


# Groups of one draw ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["score", "vimco"])
def test_groups_of_one_draw_are_the_elbo(gradient, x):
    programs = seeded(Two)
    torch.testing.assert_close(
        found(MIWAE(4, 4, gradient=gradient), programs, x), found(ELBO(4, gradient=gradient), programs, x)
    )


def test_the_guide_climbs_the_elbo_where_groups_are_of_one_draw():
    log_w = torch.randn(4, 3)
    for member in (MIWAE, PIWAE):
        expected = (log_w.sum(0) - log_w) / 3
        torch.testing.assert_close(member(4, groups=4, gradient="score").left_out(log_w), expected)
