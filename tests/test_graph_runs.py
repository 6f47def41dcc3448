"""Replayed fits from start to end: resident data, late looks at losses, resumes, others in the same process, memory."""

import copy
import gc
import weakref
from functools import partial
from itertools import chain

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from programs import PROGRAMS, assert_same, kinds, ours, parameters, start
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import transform_to

import pvae
from pvae.svi import graphs

MODES = ["off", "graph", pytest.param("full", marks=pytest.mark.slow)]


def model(x, y=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x, y=None):
    with pyro.plate("data", len(x)):
        mean = pyro.param("slope", torch.tensor(0.1)) * x
        pyro.sample(
            "z", dist.Normal(mean, pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive))
        )


def fresh(mode="graph", seed=0, **options):
    pyro.clear_param_store()
    torch.manual_seed(seed)
    return pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile=mode, **options)


def result(svi, losses):
    svi.check()
    return losses, parameters(svi), torch.get_rng_state(), svi


# Resident data --------------------------------------------------------------------------------------------------------

DATA = torch.linspace(-2.0, 3.0, 23)


def epochs(count, batch=5, seed=0):
    """(rows of each batch, the last one smaller) for each epoch."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(len(DATA), generator=generator).split(batch) for _ in range(count)]


def noisy(x, y):
    return x + 0.1 * torch.randn_like(x), y


@pytest.mark.parametrize("check_every", [1, 3, 100])
@pytest.mark.parametrize("mode", MODES)
def test_run_takes_the_steps_that_step_takes(mode, check_every):
    """On the same batches, the last smaller one too, with random numbers in `prepare`."""
    svi = fresh("off")
    expected = result(svi, [float(svi.step(*noisy(DATA[rows], None))) for rows in chain.from_iterable(epochs(3))])
    svi = fresh(mode, check_every=check_every)
    losses = []
    for rows in epochs(3):
        for block in svi.run(rows, DATA, None, prepare=noisy):
            losses += block.tolist()
    assert svi.steps == len(losses) == 15
    found = result(svi, losses)
    if mode == "full":
        assert losses == pytest.approx(expected[0], rel=1e-4)
    else:
        assert_same(found, expected)
    assert len(kinds(svi)) == (0 if mode == "off" else 2)


def test_each_batch_and_each_of_its_draws_counts():
    """Losses of a model without parameters' movement tell which data and random numbers a step has had."""
    svi = fresh()
    seen = []
    for block in svi.run(torch.arange(20).reshape(10, 2), DATA, prepare=lambda x: (x + 0 * torch.randn(()), None)):
        seen += block.tolist()
    assert len(set(seen)) == 10


def test_a_run_that_is_stopped_leaves_the_state_of_the_steps_it_took():
    svi = fresh(check_every=4)
    rows = epochs(1)[0]
    run = svi.run(rows, DATA)
    losses = [float(next(run)) for _ in range(3)]
    run.close()
    assert svi.steps == 3
    found = result(svi, losses)
    other = fresh("off")
    assert_same(found, result(other, [float(other.step(DATA[batch])) for batch in rows[:3]]))


def test_a_fresh_lambda_at_every_epoch_needs_no_fresh_graph():
    svi, offset, graphs = fresh(), torch.zeros(()), set()
    for rows in epochs(6):
        list(svi.run(rows, DATA, prepare=lambda x: x + offset))
        graphs |= {id(graph) for graph in svi._graphs._graphs.values()}
    assert len(graphs) == 2


@pytest.mark.filterwarnings("always:the program runs eagerly")
def test_fresh_data_at_every_epoch_do_not_pile_up_graphs(recwarn):
    svi, most = fresh(), 0
    for epoch, rows in enumerate(epochs(12)):
        list(svi.run(rows, DATA + epoch))
        most = max(most, len(kinds(svi)))
    assert most == 8
    (said,) = recwarn
    assert "runs eagerly: what steps are called with keeps changing" in str(said.message)


def test_a_prepare_whose_settings_change_is_followed():
    class Loader:
        def __init__(self):
            self.shift, self.count, self.options = 0.0, 0, {"scale": 1.0}

        def prepare(self, x):
            return self.shift + x * self.options["scale"]

    found = {}
    for mode in ("off", "graph"):
        svi, loader = fresh(mode), Loader()
        found[mode] = []
        for epoch, rows in enumerate(epochs(6)):
            loader.shift = float(epoch > 1)
            loader.options["scale"] = 1.0 + (epoch > 3)
            for block in svi.run(rows, DATA, prepare=loader.prepare):
                loader.count += 1  # which it does not use
                found[mode] += block.tolist()
        assert len(kinds(svi)) == (0 if mode == "off" else 2)
    assert found["graph"] == pytest.approx(found["off"], rel=1e-6)


def test_a_prepare_that_closes_over_another_number_is_another_prepare():
    found = {}
    for mode in ("off", "graph"):
        svi = fresh(mode)
        found[mode] = []
        for epoch, rows in enumerate(epochs(2)):
            for block in svi.run(rows, DATA, prepare=lambda x, shift=float(epoch): x + shift):
                found[mode] += block.tolist()
        for epoch, rows in enumerate(epochs(2)):
            for block in svi.run(rows, DATA, prepare=lambda x: x + float(epoch)):  # noqa: B023
                found[mode] += block.tolist()
    assert found["graph"] == pytest.approx(found["off"], rel=1e-6)


def test_a_partial_that_is_made_anew_is_the_same_prepare():
    found = {}
    for mode in ("off", "graph"):
        svi, lines = fresh(mode), []
        svi.notice = lines.append
        found[mode] = []
        for epoch, rows in enumerate(epochs(6)):
            for block in svi.run(rows, DATA, prepare=partial(torch.add, other=float(epoch > 3))):
                found[mode] += block.tolist()
    assert found["graph"] == pytest.approx(found["off"], rel=1e-6)
    assert len(lines) == 2


def test_data_changed_in_place_or_replaced_are_followed():
    found = {}
    for mode in ("off", "graph"):
        svi, data = fresh(mode), DATA.clone()
        found[mode] = []
        for epoch, rows in enumerate(epochs(6)):
            if epoch == 2:
                data += 5
            if epoch > 3:
                data = DATA + epoch
            for block in svi.run(rows, data):
                found[mode] += block.tolist()
    assert found["graph"] == pytest.approx(found["off"], rel=1e-6)


# Losses that are looked at later --------------------------------------------------------------------------------------


def take(svi, data):
    for x in data:
        svi.step(x)
    svi.check()


pytestmark = pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's, before ours


def poisoned(at, steps=12):
    data = [DATA[:5] + i / 10 for i in range(steps)]
    data[at - 1] = data[at - 1].clone()
    data[at - 1][3] = torch.nan
    return data


@pytest.mark.parametrize("check_every", [1, 5, 10, 100])
@pytest.mark.parametrize("at", [2, 3, 7, 10, 11])
def test_a_loss_that_is_not_a_number_is_named_with_its_step_and_undone(at, check_every):
    with pyro.validation_enabled(False):
        expected = fresh("off")
        for x in poisoned(at)[: at - 1]:
            expected.step(x)
        wanted = parameters(expected)
        with pytest.raises(pvae.NonFiniteError):
            expected.step(poisoned(at)[at - 1])
        drawn = torch.get_rng_state()  # one that is tried once more draws others
        svi = fresh(check_every=check_every)
        with pytest.raises(pvae.NonFiniteError, match=rf"step {at}: .* site 'z': its value is nan at \[3\]") as found:
            take(svi, poisoned(at))
    assert found.value.step == at
    assert svi.steps == at - 1
    assert all(torch.equal(value, wanted[name]) for name, value in parameters(svi).items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_steps_of_other_kinds_between_two_looks_are_not_lost():
    """Eager ones, and ones of another graph."""
    x, y = DATA[:5], DATA[:3]
    calls = [(x,), (x,), (x,), (y,), (x, {1}), (x,), (y,), (x, {1}), (x,), (x * torch.nan,)]

    def fit(svi, calls):
        for args in calls:
            svi.step(*args)
        svi.check()

    with pyro.validation_enabled(False):
        other = fresh("off")
        fit(other, calls[:-1])
        wanted = parameters(other)
        svi = fresh(check_every=20)
        with pytest.warns(UserWarning, match="other than tensors"), pytest.raises(pvae.NonFiniteError, match="step 10"):
            fit(svi, calls)
    assert all(torch.equal(value, wanted[name]) for name, value in parameters(svi).items())


@pytest.mark.parametrize("check_every", [1, 5])
@pytest.mark.parametrize("mode", MODES)
def test_a_step_that_is_refused_leaves_buffers_as_they_were(mode, check_every):
    svi, (x,) = start(PROGRAMS["convolutional"], mode, check_every=check_every)
    with pyro.validation_enabled(False):
        take(svi, [x, x, x])
        wanted = [b.clone() for b in svi._buffers(anew=True)]
        with pytest.raises(pvae.NonFiniteError, match="step 4"):
            take(svi, [x * torch.nan])
    assert len(wanted) == 6
    assert all(torch.equal(b, value) for b, value in zip(svi._buffers(anew=True), wanted, strict=True))


def test_after_a_loss_that_is_not_a_number_steps_go_on_as_from_there():
    with pyro.validation_enabled(False):
        data = poisoned(7)
        svi = fresh(check_every=10)
        with pytest.raises(pvae.NonFiniteError):
            take(svi, data)
        found = [float(svi.step(x)) for x in data[7:]]
        after = result(svi, found)
        other = fresh("off")
        for x in data[:6]:
            other.step(x)
        with pytest.raises(pvae.NonFiniteError):
            other.step(data[6])
        assert_same(after, result(other, [other.step(x) for x in data[7:]]))


def test_a_batch_changed_in_place_before_the_look_is_not_taken_for_the_one_that_was():
    svi = fresh(check_every=10)
    x = DATA[:5].clone()
    take(svi, [x] * 3)
    wanted = parameters(svi)
    with pyro.validation_enabled(False):
        for value in (1.0, torch.nan, 2.0):
            x.fill_(value)
            svi.step(x)
        with pytest.raises(pvae.NonFiniteError, match=r"step 4: .*or in the 2 steps after: their batches have been"):
            svi.check()
    assert svi.steps == 3
    assert all(torch.equal(value, wanted[name]) for name, value in parameters(svi).items())


def test_a_state_asked_for_between_two_looks_is_that_of_the_steps_taken():
    with pyro.validation_enabled(False):
        svi = fresh(check_every=100)
        data = poisoned(9)
        for x in data[:6]:
            svi.step(x)
        assert svi.state_dict()["steps"] == 6
        for x in data[6:9]:
            svi.step(x)
        with pytest.raises(pvae.NonFiniteError, match="step 9"):
            svi.state_dict()
        assert svi.state_dict()["steps"] == 8


def test_a_replay_that_is_interrupted_leaves_nothing_to_look_at(monkeypatch):
    svi, args = start(PROGRAMS["our ELBO"], "graph", check_every=4)
    for _ in range(6):
        svi.step(*args)
    svi.check()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patched.setattr(graphs.Graph, "heads", interrupted)
        svi.step(*args)
    svi.check()
    assert svi.steps == 6
    svi.step(*args)
    svi.check()
    assert svi.steps == 7


def test_a_loss_read_early_is_a_number():
    svi = fresh(check_every=100)
    losses = [svi.step(DATA) for _ in range(5)]
    other = fresh("off")
    assert [float(loss) for loss in losses] == pytest.approx([other.step(DATA) for _ in range(5)], rel=1e-6)


def test_a_gradient_that_is_not_finite_is_seen_where_the_loss_is():
    def root(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((pyro.param("slope", torch.tensor(0.5)) * x.mean().relu()).sqrt(), 1.0))

    pyro.clear_param_store()
    svi = pvae.SVI(model, root, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), compile="graph", check_every=10)
    take(svi, [DATA] * 3)
    with pytest.raises(pvae.NonFiniteError, match=r"step 4: .*the gradient of 'slope' is not finite"):
        take(svi, [-DATA.abs()] * 8)
    assert svi.steps == 3


# Resuming -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check_every", [1, 4])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("program", ["our ELBO", "convolutional", "AutoNormal", "subsampling, global"])
@pytest.mark.parametrize("stop", [1, 2, 7])
def test_a_resumed_fit_is_the_whole_one_bit_for_bit(program, mode, stop, check_every):
    options = {"check_every": check_every, "schedule": lambda step: 0.9**step, "clip_norm": 50.0}
    svi, args = start(PROGRAMS[program], mode, **options)
    whole = [float(svi.step(*args)) for _ in range(12)]
    whole_result = result(svi, whole)
    svi, args = start(PROGRAMS[program], mode, **options)
    losses = [float(svi.step(*args)) for _ in range(stop)]
    saved, user = copy.deepcopy(svi.state_dict()), user_state(svi)
    random = torch.get_rng_state()
    other, args = start(PROGRAMS[program], mode, **options)
    if program == "AutoNormal":
        other.guide(*args)  # a lazily initialised guide, so that there are parameters to load into
    load_user_state(other, user)
    other.load_state_dict(saved)
    torch.set_rng_state(random)
    losses += [float(other.step(*args)) for _ in range(12 - stop)]
    assert losses == whole
    assert_same(result(other, losses), whole_result)


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_a_resumed_program_changes_what_it_holds_loose_as_often_as_the_whole_one(lazy, listed, mode, stop):
    """A guide that sets itself up runs the model once more, which is undone with the rest."""

    def fresh():
        pyro.clear_param_store()
        loose = torch.zeros(2)

        def model(x):
            torch._foreach_add_([loose], 1.0) if listed else loose.add_(1)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(z * (1 + 0.1 * loose[0]), 1.0), obs=x)

        def guide(x):
            pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 0.5))

        chosen = AutoNormal(model) if lazy else guide
        return loose, pvae.SVI(model, chosen, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile=mode)

    loose, svi = fresh()
    for _ in range(stop):
        svi.step(DATA)
    saved, random = copy.deepcopy((svi.state_dict(), pyro.get_param_store().get_state(), loose)), torch.get_rng_state()
    whole = [svi.step(DATA) for _ in range(5)]
    loose, svi = fresh()
    svi.load_state_dict(saved[0])
    pyro.get_param_store().set_state(saved[1])
    loose.copy_(saved[2])
    torch.set_rng_state(random)
    assert [svi.step(DATA) for _ in range(5)] == whole


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("program", ["warm-up", "AutoNormal", "3 particles", "function"])
def test_a_fit_that_is_set_back_goes_on_as_it_did(program, mode):
    make = ours(lambda: pvae.ELBO(warmup=12)) if program == "warm-up" else PROGRAMS[program]
    svi, args = start(make, mode, schedule=lambda step: 0.9**step)
    for _ in range(4):
        svi.step(*args)
    saved, user, random = copy.deepcopy(svi.state_dict()), user_state(svi), torch.get_rng_state()
    fits = []
    for _ in range(2):
        fits.append(result(svi, [float(svi.step(*args)) for _ in range(4)]))
        load_user_state(svi, user)
        svi.load_state_dict(saved)
        torch.set_rng_state(random)
    assert_same(*fits)


def test_a_state_that_was_loaded_is_there_before_the_first_step():
    svi, args = start(PROGRAMS["our ELBO"], "off")
    svi.step(*args)
    other, _ = start(PROGRAMS["our ELBO"], "off")
    other.load_state_dict(svi.state_dict())
    found, expected = other.state_dict(), svi.state_dict()
    assert found["steps"] == 1
    assert found.keys() == expected.keys()
    assert found["optimizer"].keys() == expected["optimizer"].keys()


def modules(svi):
    owners = {id(m): m for m in (getattr(f, "__self__", f) for f in (svi.model, svi.guide))}
    return [m for m in owners.values() if isinstance(m, torch.nn.Module)]


def user_state(svi):
    """What a checkpoint holds of the program: the modules' state, and Pyro's parameters that are no module's."""
    inside = {id(p) for m in modules(svi) for p in m.parameters()}
    store = pyro.get_param_store()
    free = {name: (p, store._constraints[name]) for name, p in store._params.items() if id(p) not in inside}
    return copy.deepcopy([m.state_dict() for m in modules(svi)]), {
        n: (p.detach().clone(), c) for n, (p, c) in free.items()
    }


def load_user_state(svi, state):
    for module, values in zip(modules(svi), state[0], strict=True):
        module.load_state_dict(values)
    store = pyro.get_param_store()
    for name, (value, constraint) in state[1].items():
        store.setdefault(name, transform_to(constraint)(value), constraint)
        with torch.no_grad():
            store._params[name].copy_(value)


class Centred(torch.nn.Module):
    """Changes a buffer at each call, or puts another in its place."""

    def __init__(self, rebinds):
        super().__init__()
        self.rebinds = rebinds
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x):
        mean = 0.9 * self.mean + 0.1 * x.mean()
        self.mean = mean if self.rebinds else self.mean.copy_(mean)
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.mean.sum(), scale), obs=x)


@pytest.mark.filterwarnings(
    "ignore:the program runs eagerly. it cannot be traced. a module, parameter or buffer of Centred"
)
@pytest.mark.parametrize("rebinds", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_fit_whose_guide_sets_itself_up_at_its_first_step(mode, rebinds):
    """It draws numbers for it, as it did at the very first step: they are not to be drawn twice."""

    def begun():
        pyro.clear_param_store()
        torch.manual_seed(3)
        module = Centred(rebinds)
        svi = pvae.SVI(module, AutoNormal(module), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile=mode)
        return svi, module

    svi, module = begun()
    first = [float(svi.step(DATA)) for _ in range(4)]
    saved = pyro.get_param_store().get_state(), svi.state_dict(), torch.get_rng_state(), module.state_dict()
    store, state, random, own = copy.deepcopy(saved)
    whole = result(svi, [*first, *(float(svi.step(DATA)) for _ in range(4))])
    svi, module = begun()
    pyro.get_param_store().set_state(store)
    module.load_state_dict(own)
    svi.load_state_dict(state)
    torch.set_rng_state(random)
    assert_same(result(svi, [*first, *(float(svi.step(DATA)) for _ in range(4))]), whole)


def test_a_resumed_fit_takes_numbers_as_the_whole_one_does():
    """As tensors from where on they were, so that the same steps have the same graphs."""

    def factored(x, beta):
        with poutine.scale(scale=beta):
            model(x)

    def fit(steps, state=None):
        svi = pvae.SVI(factored, lambda x, beta: guide(x), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile="graph")
        if state is not None:
            svi.load_state_dict(state)
        for step in steps:
            svi.step(DATA, 1 / (1 + step))
        return svi.state_dict()

    whole = fit(range(8))
    resumed = fit(range(4, 8), fit(range(4)))
    assert (resumed["graphs"], resumed["numbers"]) == (whole["graphs"], whole["numbers"])


# Others in the same process -------------------------------------------------------------------------------------------


def test_two_fits_that_share_a_module():
    def both(mode):
        pyro.clear_param_store()
        torch.manual_seed(4)
        shared = torch.nn.Linear(1, 1)

        def scaled(x):
            pyro.module("shared", shared)
            with pyro.plate("data", len(x)):
                mean = shared(x[:, None])[:, 0]
                pyro.sample("z", dist.Normal(mean, pyro.param("scale", torch.tensor(1.0))))

        one = pvae.SVI(model, scaled, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile=mode)
        two = pvae.SVI(model, scaled, pyro.optim.SGD({"lr": 0.001}), Trace_ELBO(num_particles=2), compile=mode)
        losses = [svi.step(DATA) for _ in range(8) for svi in (one, two)]
        return losses, parameters(one), torch.get_rng_state(), one

    assert_same(both("graph"), both("off"))


@pytest.mark.parametrize("mode", MODES)
def test_all_is_freed_with_the_svi(mode):
    svi, args = start(PROGRAMS["our ELBO"], mode)
    for _ in range(4):
        svi.step(*args)
    watched = [weakref.ref(p) for p in svi._names] + [weakref.ref(svi)]
    watched += [weakref.ref(graph.forward) for graph in svi._graphs._graphs.values()]
    del svi, args
    pyro.clear_param_store()
    gc.collect()
    assert [ref() for ref in watched if ref() is not None] == []


def tensors():
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


def test_memory_does_not_grow_with_the_steps():
    svi, args = start(PROGRAMS["AutoNormal"], "graph", check_every=3)
    for _ in range(12):
        svi.step(*args)
    svi.check()
    gc.collect()
    before = tensors()
    for _ in range(60):
        svi.step(*args)
    svi.check()
    gc.collect()
    assert tensors() <= before + 2


# Over a whole fit -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hundred_epochs_end_at_the_same_bound():
    """Different random numbers, the same distribution of the last bound: four standard errors over six seeds."""
    ends = {}
    for number, mode in enumerate(("off", "graph", "full")):
        ends[mode] = []
        for seed in range(6):
            svi, args = start(PROGRAMS["our ELBO"], mode, optim=pyro.optim.Adam({"lr": 3e-3}))
            torch.manual_seed(100 * number + seed)
            losses = [float(svi.step(*args)) for _ in range(1000)]
            ends[mode].append(sum(losses[-200:]) / 200)
    values = {mode: torch.tensor(found) for mode, found in ends.items()}
    for mode in ("graph", "full"):
        error = (values[mode].var() / 6 + values["off"].var() / 6).sqrt()
        assert (values[mode].mean() - values["off"].mean()).abs() < 4 * error
