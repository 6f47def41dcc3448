"""Objectives of one's own: what they say is what is climbed, or a line says why not; what they hold is resumed."""

import copy
import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from commands import SMALL, go, refused
from pyro.contrib.gp.kernels import RBF
from pyro.infer import Trace_MMD
from torch.func import functional_call

import pvae
from pvae import programs
from pvae.estimators import chunks
from pvae.runs import Run


class Penalized(pvae.ELBO):
    """The ELBO less the mean of squares of the guide's means."""

    def differentiable(self, traces):
        return super().differentiable(traces) - traces.guide["z"]["fn"].mean.square().mean()


def found(objective, vae, x, seed=3):
    torch.manual_seed(seed)
    loss = objective.differentiable_loss(vae.model, vae.guide, x)
    gradient = torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True)
    return loss.item(), torch.cat([g.flatten() for g in gradient if g is not None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "stl"}, "found gradient stl, expected reparam: nothing else asks for its own differentiable"),
        ({"gradient": "vimco"}, "found gradient vimco, expected reparam"),
        ({"chunk": 2}, "found a chunk, expected none: all particles are taken at once: nothing else asks for"),
    ],
)
def test_an_own_differentiable_is_refused_what_would_pass_it_over(options, message):
    with pytest.raises(pvae.InputError, match=f"test_own_objectives:Penalized: {message}"):
        Penalized(4, **options)


def test_an_own_differentiable_goes_with_one_bound_of_model_and_guide():
    class Apart(pvae.PIWAE):
        def differentiable(self, traces):
            return super().differentiable(traces)

    with pytest.raises(pvae.InputError, match="Apart: found a bound of the guide's own, expected one"):
        Apart(4)


def test_an_own_differentiable_is_of_all_particles_however_little_memory_there_is(vae, x, monkeypatch):
    monkeypatch.setattr(chunks, "fitting", lambda *_: 2)
    plain, _ = found(pvae.ELBO(100, chunk=100, max_plate_nesting=1), vae, x)
    loss, _ = found(Penalized(100, max_plate_nesting=1), vae, x)
    assert loss - plain == pytest.approx(len(x) * vae.encode(x).mean.square().mean().item(), abs=1e-3)


def half(log_w):
    """Half of the largest weight's logarithm and half of the mean's."""
    return 0.5 * log_w.amax(0) + 0.5 * log_w.mean(0)


BASES = {
    "elbo": (pvae.ELBO, {}),
    "iwae": (pvae.IWAE, {}),
    "renyi": (pvae.Renyi, {"alpha": 0.3}),
    "miwae": (pvae.MIWAE, {"groups": 2}),
    "tvo": (pvae.TVO, {}),
}


@pytest.mark.parametrize("gradient", ["reparam", "stl", "dreg", "gdreg", "score", "vimco"])
@pytest.mark.parametrize("name", BASES)
def test_another_bound_than_its_bases_is_climbed_as_any_other(name, gradient, vae, x):
    base, options = BASES[name]
    mine = type("Mine", (base,), {"bound": lambda self, log_w: half(log_w)})
    plain = type("Plain", (pvae.Objective,), {"bound": lambda self, log_w: half(log_w)})
    expected = found(plain(4, gradient=gradient, max_plate_nesting=1), vae, x)
    torch.testing.assert_close(found(mine(4, gradient=gradient, max_plate_nesting=1, **options), vae, x), expected)


def test_estimators_of_the_importance_weighted_bound_are_refused_to_another():
    mine = type("Mine", (pvae.IWAE,), {"bound": lambda self, log_w: half(log_w)})
    for gradient in ("rws", "ovis"):
        with pytest.raises(pvae.InputError, match="it is for the importance-weighted bound"):
            mine(4, gradient=gradient)
    other = type("Other", (pvae.ELBO,), {"bound": lambda self, log_w: half(log_w)})
    with pytest.raises(pvae.InputError, match=r"analytic_kl: found it with the bound of .*:Other, expected the ELBO's"):
        other(4, analytic_kl=True)


@pytest.mark.parametrize("gradient", ["stl", "dreg", "score", "vimco"])
@pytest.mark.parametrize("name", BASES)
def test_a_bound_that_comes_from_elsewhere_is_climbed_as_one_of_its_own(name, gradient, vae, x):
    """From a class beside the base: of its own kind, or an objective too; and below such a class."""
    base, options = BASES[name]
    beside = type("Beside", (), {"bound": lambda self, log_w: half(log_w)})
    plain = type("Plain", (pvae.Objective,), {"bound": lambda self, log_w: half(log_w)})
    mixed = type("Mixed", (beside, base), {})
    expected = found(plain(4, gradient=gradient, max_plate_nesting=1), vae, x)
    for mine in (mixed, type("Second", (plain, base), {}), type("Below", (mixed,), {})):
        torch.testing.assert_close(found(mine(4, gradient=gradient, max_plate_nesting=1, **options), vae, x), expected)


def test_what_is_said_beside_a_bound_is_kept():
    beside = type("Beside", (), {"bound": lambda self, log_w: pvae.bounds.cubo(log_w, 3.0), "power": 3.0})
    assert type("Mine", (beside, pvae.IWAE), {})(4).power == 3.0
    assert type("Below", (pvae.IWAE,), {})(4).power == 1.0
    assert pvae.MIWAE.left_out is not pvae.Objective.left_out


def test_a_bound_that_is_set_on_an_object(vae, x):
    for name in ("bound", "guide_bound"):
        iwae = pvae.IWAE(4, gradient="dreg")
        setattr(iwae, name, half)
        with pytest.raises(pvae.InputError, match="iwae: found a bound set on an object"):
            iwae.bounds(vae.model, vae.guide, x)
    plain = type("Plain", (pvae.Objective,), {"bound": lambda self, log_w: half(log_w)})
    free = pvae.Objective(4, gradient="dreg", max_plate_nesting=1)
    free.bound = half
    expected = found(plain(4, gradient="dreg", max_plate_nesting=1), vae, x)
    torch.testing.assert_close(found(free, vae, x), expected)


@pytest.mark.parametrize("gradient", ["reparam", "stl", "dreg", "score", "vimco"])
def test_a_bound_of_the_guides_own_is_the_guides(gradient, vae, x):
    """Whether a class says so or not."""
    given = {"bound": lambda self, log_w: pvae.bounds.iwae(log_w), "guide_bound": lambda self, log_w: half(log_w)}
    said, unsaid = (type("Two", (pvae.Objective,), {**given, **more}) for more in ({"apart": True}, {}))
    one, other = (found(kind(4, gradient=gradient, max_plate_nesting=1), vae, x) for kind in (said, unsaid))
    torch.testing.assert_close(other, one)
    with pytest.raises(pvae.InputError, match="gdreg does not fit Two: model and guide climb different bounds"):
        unsaid(4, gradient="gdreg")


# What they return -----------------------------------------------------------------------------------------------------

SHAPES = {
    "all particles": (lambda log_w: log_w, r"shape \(4, 7\)"),
    "all data": (lambda log_w: log_w.mean(), r"shape \(\)"),
    "over data": (lambda log_w: log_w.mean(1), r"shape \(4,\)"),
    "a number": (lambda log_w: log_w.mean().item(), "float"),
}


@pytest.mark.parametrize("gradient", ["reparam", "stl", "dreg", "score", "vimco"])
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_no_number_for_each_datum(name, chunk, gradient, vae, x):
    wrong, text = SHAPES[name]
    given = {"bound": lambda self, log_w: wrong(log_w)}
    objective = type("Wrong", (pvae.Objective,), given)(4, gradient=gradient, chunk=chunk)
    expected = rf"Wrong: bound: found {text}, expected \(7,\), a number for each datum: of log-weights \(4, 7\) reduce"
    for _ in range(2):  # as where it is tried again
        with pytest.raises(pvae.InputError, match=expected):
            objective.differentiable_loss(vae.model, vae.guide, x)
    with pytest.raises(pvae.InputError, match=expected):
        objective.loss(vae.model, vae.guide, x)


def test_a_bound_of_the_guides_own_that_is_no_number_for_each_datum(vae, x):
    class Wrong(pvae.IWAE):
        def guide_bound(self, log_w):
            return log_w.sum()

    with pytest.raises(pvae.InputError, match=r"Wrong: guide_bound: found shape \(\), expected \(7,\)"):
        Wrong(4).differentiable_loss(vae.model, vae.guide, x)


def test_an_own_differentiable_gives_a_number_for_each_datum_or_one_of_all(vae, x):
    def made(change):
        given = {"differentiable": lambda self, traces: change(pvae.ELBO.differentiable(self, traces), traces)}
        return type("Mine", (pvae.ELBO,), given)(4)

    each, whole = (found(made(change), vae, x) for change in (lambda each, _: each, lambda each, _: each.sum()))
    torch.testing.assert_close(each, whole)
    with pytest.raises(
        pvae.InputError, match=r"differentiable: found shape \(4, 7\), expected \(7,\), .*, or one of all"
    ):
        found(made(lambda _, traces: programs.split(traces).log_w), vae, x)


def test_a_shape_that_is_right_by_chance_is_looked_at_again(vae, x):
    objective = type("Wrong", (pvae.Objective,), {"bound": lambda self, log_w: log_w.mean(1)})(7)
    objective.differentiable_loss(vae.model, vae.guide, x)
    with pytest.raises(pvae.InputError, match=r"Wrong: bound: found shape \(7,\), expected \(5,\)"):
        objective.differentiable_loss(vae.model, vae.guide, x[:5])


def test_a_bound_that_calls_itself_on_groups_of_draws(vae, x):
    class Groups(pvae.Objective):
        def bound(self, log_w):
            return log_w.mean(0) if log_w.dim() == 3 else self.bound(log_w.reshape(2, 2, -1)).mean(0)

    expected = found(pvae.ELBO(4, max_plate_nesting=1), vae, x)
    torch.testing.assert_close(found(Groups(4, max_plate_nesting=1), vae, x), expected)


@pytest.mark.parametrize(("particles", "plate"), [(1, ""), (1, None), (7, ""), (7, None), (4, None)])
def test_a_bound_is_looked_at_without_a_further_call(particles, plate, vae, x):
    class Calls(pvae.Objective):
        calls = 0

        def bound(self, log_w):
            self.calls += 1
            return half(log_w)

    objective = Calls(particles, plate=plate)
    for calls in (1, 2):
        assert objective.bounds(vae.model, vae.guide, x).shape == ((7,) if plate == "" else (1,))
        assert objective.calls == calls
        assert "bound" not in vars(objective)


# What steps change of an objective ------------------------------------------------------------------------------------


class Constrained(pvae.ELBO):
    """KL + m C with a multiplier m that follows the constraint C (Rezende and Viola 2018); written to in place."""

    def __init__(self, num_particles=1, **shared):
        super().__init__(num_particles, **shared)
        self.multiplier, self.state = torch.tensor(1.0), {"average": torch.tensor(0.0)}

    def move(self, c):
        self.state["average"].mul_(0.9).add_(0.1 * c)
        self.multiplier.mul_((0.1 * self.state["average"]).exp().clamp(0.5, 2))

    def differentiable(self, traces):
        terms = programs.split(traces)
        c = -terms.likelihood.mean(0) - 10.0
        value = -(terms.posterior - terms.prior).mean(0) - self.multiplier.clone() * c
        if torch.is_grad_enabled():
            self.move(c.mean().detach())
        return value


class Replaced(Constrained):
    """With other tensors in their place."""

    def move(self, c):
        self.state["average"] = 0.9 * self.state["average"] + 0.1 * c
        self.multiplier = self.multiplier * (0.1 * self.state["average"]).exp().clamp(0.5, 2)


class Counted(Constrained):
    """By a number of Python's."""

    def __init__(self, num_particles=1, **shared):
        super().__init__(num_particles, **shared)
        self.count = 0

    def move(self, c):
        self.count += 1
        self.multiplier.fill_(1.0 + 0.1 * self.count)


class Factor(pvae.ELBO):
    """ELBO - 5 TC by a network that tells z from z of permuted dimensions, trained by the way (Kim and Mnih 2018)."""

    def __init__(self, num_particles=1, **shared):
        super().__init__(num_particles, **shared)
        self.told = torch.nn.Linear(2, 2)
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)  # as of features that somebody else has trained

    def differentiable(self, traces):
        pyro.module("told", self.told)
        z = traces.guide["z"]["value"]
        fixed = functional_call(self.told, {n: p.detach() for n, p in self.told.named_parameters()}, (z,))
        permuted = torch.stack([column[torch.randperm(len(z))] for column in z.detach().unbind(-1)], -1)
        told = self.told(z.detach()).log_softmax(-1)[:, 0] + self.told(permuted).log_softmax(-1)[:, 1]
        return super().differentiable(traces) - 5 * (fixed[:, 0] - fixed[:, 1]) + told


class Classified(pvae.ELBO):
    """The ELBO and log p(y|z) of a linear classifier: labels shape the latents, and nothing else is given them."""

    def __init__(self, num_particles=1, **shared):
        super().__init__(num_particles, **shared)
        self.told = torch.nn.Linear(4, 10)

    def differentiable(self, traces):
        _, y = traces.args
        pyro.module("told", self.told)
        log_p = self.told(traces.model["z"]["value"]).log_softmax(-1)
        return super().differentiable(traces) + 10 * log_p[torch.arange(len(y)), y]


def test_labels_reach_an_own_objective(here, plain):
    def told(objective):
        options = ["--epochs", "12", "--latent", "4", "--encoder.hidden", "32", "--eval-particles", "2"]
        assert go("--objective", objective, *options, "--out", objective.partition(":")[2] or objective) == 0
        vae, data, _ = pvae.load.load(objective.partition(":")[2] or objective)
        z, y = vae.encode(pvae.data.pixels(data.train.x)).mean, data.train.y
        centres = torch.stack([z[y == label].mean(0) for label in range(10)])
        return (torch.cdist(z, centres).argmin(-1) == y).float().mean()

    assert told("test_own_objectives:Classified") > told("elbo") + 0.1


@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("member", [Constrained, Replaced, Counted, Factor])
@pytest.mark.filterwarnings("ignore:the program runs eagerly")
def test_what_steps_change_of_an_objective_is_resumed(member, mode, new_vae, x):
    def made():
        pyro.clear_param_store()
        vae = new_vae(latent=2)
        return vae, pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), member(), compile=mode)

    vae, svi = made()
    before = [float(svi.step(x)) for _ in range(4)]
    saved = copy.deepcopy((vae.state_dict(), svi.state_dict())), torch.get_rng_state()
    expected = [float(svi.step(x)) for _ in range(12)]
    (weights, state), random = saved
    vae, svi = made()
    vae.load_state_dict(weights)
    svi.load_state_dict(state)
    assert svi.state_dict()["objective"].keys() == state["objective"].keys()
    assert "frozen" not in state["objective"]
    torch.set_rng_state(random)
    assert [float(svi.step(x)) for _ in range(12)] == expected
    assert len({*before, *expected}) == 16


def test_what_is_set_otherwise_by_hand_stays_so(vae, x):
    def made(beta):
        return pvae.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), Counted(beta=beta))

    svi, other = made(0.5), made(0.7)
    svi.step(x)
    other.load_state_dict(svi.state_dict())
    assert (other.objective.beta, other.objective.count) == (0.7, 1)


class Remembering(pvae.ELBO):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.history, self.by_number, self.begun = [0.5], {}, {1: 0.0}

    def loss_and_grads(self, model, guide, *args, **kwargs):
        self.history.append(len(self.history))
        self.by_number[10 + len(self.history) % 2] = len(self.history)
        self.begun[1] += 1.0
        return super().loss_and_grads(model, guide, *args, **kwargs)


def test_what_steps_add_to_lists_and_dicts_of_an_objective_is_resumed(vae, x):
    def made():
        return pvae.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), Remembering(), compile="off")

    svi, other = made(), made()
    for _ in range(3):
        svi.step(x)
    other.load_state_dict(copy.deepcopy(svi.state_dict()))
    for name in ("history", "by_number", "begun"):
        assert getattr(other.objective, name) == getattr(svi.objective, name)
    assert svi.objective.history == [0.5, 1, 2, 3]


def test_a_copy_knows_what_has_changed_before(vae, x):
    class Once(pvae.ELBO):
        start = None

        def bound(self, log_w):
            self.start = self.start or len(log_w)
            return super().bound(log_w)

    svi = pvae.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), Once(3), compile="off")
    svi.step(x)
    other = copy.copy(svi.objective)  # as it is when a copy begins
    svi = pvae.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), other, compile="off")
    svi.load_state_dict({"steps": 1, "optimizer": None, "objective": {"start": 3}})
    svi.step(x)
    assert svi.state_dict()["objective"]["start"] == 3


def test_a_network_that_an_objective_no_longer_has(new_vae, x):
    vae = new_vae(latent=2)
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Factor())
    svi.step(x)
    other = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pvae.ELBO())
    with pytest.raises(ValueError, match="objective: found no module 'told', whose state was saved: make it in __init"):
        other.load_state_dict(svi.state_dict())


@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("site", ["w", "net.weight"])
def test_what_an_objective_of_pyros_makes_in_its_first_step_is_resumed(site, mode):
    def model(x):
        with pyro.plate("data", 5):
            w = pyro.sample(site, dist.Normal(pyro.param("m", torch.tensor(0.1)), 1.0))
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 5):
            pyro.sample(site, dist.Normal(pyro.param("a", torch.tensor(0.0)), 1.0))

    def made(lengthscale):
        kernel = RBF(1, lengthscale=torch.tensor(lengthscale))
        objective = Trace_MMD(kernel, num_particles=4, max_plate_nesting=1)
        return pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), objective, compile=mode)

    svi, store, x = made(2.0), pyro.get_param_store(), torch.randn(5)
    svi.step(x)
    saved = copy.deepcopy((store.get_state(), svi.state_dict())), torch.get_rng_state()
    expected = [svi.step(x) for _ in range(12)]
    pyro.clear_param_store()
    svi = made(1.0)
    (parameters, state), random = saved
    store.set_state(parameters)
    svi.load_state_dict(state)
    torch.set_rng_state(random)
    assert [svi.step(x) for _ in range(12)] == expected


def test_a_fit_trains_and_resumes_an_objectives_own_network(here, plain):
    options = ["--objective", "test_own_objectives:Factor", *SMALL, "--out", "run"]
    assert go(*options) == 0
    run, (first, *_, last) = Run.open("run"), sorted(Path("run/checkpoints").iterdir())
    networks = [run.at(step)[1].state["objective"]["told"]["weight"] for step in (first, last)]
    assert not torch.equal(*networks)
    whole = run.metrics()
    assert go("--resume", first) == 0
    assert json.dumps(run.metrics()) == json.dumps(whole)
    assert torch.equal(run.at(last)[1].state["objective"]["told"]["weight"], networks[1])


def test_a_fit_says_why_an_objective_does_not_go_with_a_gradient(here, capsys):
    options = ["--objective", "test_own_objectives:Penalized", "--gradient", "stl"]
    assert "--objective test_own_objectives:Penalized: found gradient stl, expected" in refused(capsys, *options)


# Losses and data of one's own -----------------------------------------------------------------------------------------


def test_a_loss_of_ones_own_is_replayed_where_it_is_told_how_deep_plates_go(new_vae, x):
    def fitted(mode, **known):
        def loss(model, guide, x):
            return -pvae.bounds.iwae(pvae.log_weights(model, guide, x, particles=3, **known).log_w).sum()

        vae, said = new_vae(), []
        optim = torch.optim.Adam(vae.parameters(), 0.01)
        svi = pvae.SVI(vae.model, vae.guide, optim, loss, compile=mode, notice=said.append)
        return [float(svi.step(x)) for _ in range(12)], said

    expected, _ = fitted("off")
    found, said = fitted("graph", max_plate_nesting=1)
    assert (found, len(said)) == (expected, 1)
    with pytest.warns(UserWarning, match=r"runs eagerly: .*test_own_objectives.py.*: give it max_plate_nesting"):
        assert fitted("graph") == (expected, [])


def test_data_that_are_no_tensor_and_programs_of_all_data(vae, x):
    with pytest.raises(pvae.InputError, match=r"x: found dict, expected a tensor .*: of data in several tensors pass"):
        pvae.evaluate.evaluate(vae.model, vae.guide, {"x": x})
    svi = pvae.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), pvae.ELBO())
    with pytest.raises(ValueError, match=r"data: found dict, expected tensors \(N, ...\) or None: pass each by itself"):
        next(svi.run(torch.tensor([[0, 1]]), {"x": x}))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.sum((1, 2)) + x[6].sum())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[6].sum(), 1.0))

    with pytest.raises(
        pvae.InputError, match=r"one datum alone: index 6 is out of .*: .* pass plate=None, for one bound"
    ):
        pvae.evaluate.evaluate(model, guide, x)
    assert len(pvae.evaluate.evaluate(model, guide, x, plate=None).elbo) == 1
