"""Steps captured as CUDA graphs: the eager steps' numbers, fresh random numbers, late errors, no waiting."""

import copy
import gc
import json
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import PROGRAMS, kinds
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import Trace_ELBO
from torch import nn

import pvae
from pvae import base, diagnostics, snr
from pvae.evaluate import evaluate
from pvae.svi import calls, optimizers

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore:Encountered NaN")]
MODES = ["graph", pytest.param("full", marks=pytest.mark.slow)]


COUNT = torch.zeros(())
"""On the CPU."""


class Net(nn.Module):
    """Everything is made on the data's device."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(2, 4)

    def model(self, x):
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("net", self)
        mean, scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


def fresh(mode="graph", optim=None, **options):
    pyro.clear_param_store()
    base._scopes.clear()
    torch.manual_seed(0)
    net = Net().cuda()
    svi = pvae.SVI(net.model, net.guide, optim or pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), compile=mode, **options)
    torch.manual_seed(1)
    return net, svi


def data(n=40):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(2)).cuda()


def values(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def captures(svi):
    """How many steps each CUDA graph takes."""
    return sorted(size for graph in svi._graphs._graphs.values() for size in graph.captures)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


OPTIMIZERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.01}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.01}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.9}),
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-4, "momentum": 0.9}),
    "RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.01}),
    "Adagrad": lambda: pyro.optim.Adagrad({"lr": 0.01}),
    "clipped": lambda: pyro.optim.Adam({"lr": 0.01}, {"clip_norm": 0.1}),
    "not replayable": lambda: pyro.optim.NAdam({"lr": 0.01}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_captured_steps_are_the_eager_steps(optim, mode):
    """A graph draws from the same generator, in another order of offsets: without noise the numbers are the same."""

    def fit(mode):
        net, svi = fresh(mode, OPTIMIZERS[optim]())
        svi.guide = quiet(net)
        losses = [float(svi.step(data())) for _ in range(12)]
        svi.check()
        return losses, values(net), svi

    replayable = {**dict.fromkeys(OPTIMIZERS, True), "not replayable": False, "Adagrad": fused_adagrad()}
    losses, found, svi = fit(mode)
    expected, wanted, _ = fit("off")
    assert captures(svi) == [1]
    assert [graph.replayable for graph in svi._graphs._graphs.values()] == [replayable[optim]]
    assert losses == pytest.approx(expected, rel=1e-4)
    assert_close(found, wanted)


def fused_adagrad():
    """Torch 2.11 has none on CUDA."""
    return optimizers._fuses(torch.optim.Adagrad, "cuda")


def quiet(net):
    """A guide without noise."""

    def guide(x):
        pyro.module("net", net)
        mean, _ = net.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(mean).to_event(1))

    return guide


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("schedule", [None, lambda step: 0.7**step])
def test_ten_steps_in_one_graph_are_ten_steps(schedule, mode):
    """Each on its own rows, with its own rate, and the rest one by one; the last batch is smaller."""
    rows = [*torch.randperm(40, device="cuda").repeat(12)[:460].split(20), torch.arange(7, device="cuda")]

    def fit(mode):
        net, svi = fresh(mode, schedule=schedule)
        svi.guide = quiet(net)
        losses = torch.cat([block.clone() for block in svi.run(rows, data())])
        svi.check()
        return losses.cpu(), values(net), svi

    losses, found, svi = fit(mode)
    expected, wanted, _ = fit("off")
    assert captures(svi) == [1, 1, 10], "of one step for each size of a batch, and of ten"
    assert len(losses) == len(rows) == svi.steps
    torch.testing.assert_close(losses, expected.float(), rtol=1e-4, atol=1e-3)
    assert_close(found, wanted)
    if schedule is not None:
        assert float(svi.optimizer.param_groups[0]["lr"]) == pytest.approx(0.01 * 0.7 ** (len(rows) - 1), rel=1e-4)


def test_fewer_steps_than_a_graph_takes_are_taken_one_by_one():
    (_, svi), x = fresh(), data()
    for _ in range(4):
        list(svi.run(torch.arange(40, device="cuda").reshape(4, 10), x))
    assert captures(svi) == [1]


@pytest.mark.parametrize("mode", MODES)
def test_arguments_may_lie_in_memory_as_they_like(mode):
    def fit(mode):
        net, svi = fresh(mode)
        svi.guide = quiet(net)
        losses = [float(svi.step(data()[:4].t())) for _ in range(5)] + [float(svi.step(data()[::2])) for _ in range(5)]
        return losses, svi

    losses, svi = fit(mode)
    assert losses == pytest.approx(fit("off")[0], rel=1e-4)
    assert kinds(svi) == [mode, "graph"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("together", [False, True])
def test_random_numbers_are_fresh_in_each_replay(mode, together):
    _, svi = fresh(mode, pyro.optim.SGD({"lr": 0.0}))
    if together:
        rows = torch.arange(40, device="cuda").repeat(41, 1)
        losses = torch.cat([block.clone() for block in svi.run(rows, data())]).tolist()
        assert 10 in captures(svi)
    else:
        losses = [float(svi.step(data())) for _ in range(41)]
    assert len(set(losses)) == 41


@pytest.mark.parametrize("mode", MODES)
def test_a_replay_is_reproducible_from_the_generators_state(mode):
    def fit():
        _, svi = fresh(mode)
        return [float(svi.step(data())) for _ in range(15)]

    assert fit() == fit()


@pytest.mark.parametrize(("at", "check_every"), [(3, 1), (3, 100), (7, 5), (25, 5), (25, 100)])
def test_a_loss_that_is_not_a_number_is_named_with_its_step_and_site(at, check_every):
    net, svi = fresh(check_every=check_every)
    batches = [data() for _ in range(40)]
    batches[at - 1][3] = torch.nan

    def take(batches):
        for x in batches:
            svi.step(x)
        svi.check()

    with pyro.validation_enabled(False):
        with pytest.raises(pvae.NonFiniteError, match=rf"step {at}: ") as found:
            take(batches)
        assert "site 'z': its value is nan at [3, 0]" in found.value.where
        assert found.value.step == at == svi.steps + 1
        assert values(net).isfinite().all()
        take([data()] * 12)
        assert values(net).isfinite().all()


def test_a_step_in_a_block_that_is_not_finite_is_named():
    net, svi = fresh()
    x = data()
    x[39] = torch.nan
    rows = torch.arange(20, device="cuda").repeat(45, 1)
    rows[33, 5] = 39
    with pyro.validation_enabled(False), pytest.raises(pvae.NonFiniteError, match="step 34: "):
        drain(svi, rows, x)
    assert svi.steps == 33
    assert values(net).isfinite().all()


def drain(svi, rows, x):
    for _ in svi.run(rows, x):
        pass
    svi.check()


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_fit_is_the_whole_one_bit_for_bit(mode):
    def fit(steps, state=None):
        net, svi = fresh(mode, schedule=lambda step: 0.9**step)
        if state is not None:
            net.load_state_dict(state["net"])
            svi.load_state_dict(state["svi"])
            torch.cuda.set_rng_state(state["random"])
        losses = [float(svi.step(data())) for _ in range(steps)]
        saved = {"net": net.state_dict(), "svi": svi.state_dict(), "random": torch.cuda.get_rng_state()}
        assert [graph.normed for graph in svi._graphs._graphs.values()] == [False], "built for a CPU"
        return losses, copy.deepcopy(saved)

    whole, _ = fit(12)
    half, state = fit(7)
    rest, _ = fit(5, state)
    assert half + rest == whole


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("draw", ["categorical", "bernoulli", "normal"])
def test_draws_that_torch_checks_are_captured_also_after_a_resume(draw, mode):
    """Torch waits to be told that probabilities and scales are sound; warnings are errors here."""

    def fit(steps, state=None):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), compile=mode)
        if state is not None:
            pyro.get_param_store().set_state(state["store"])
            svi.load_state_dict(state["svi"])
            torch.cuda.set_rng_state(state["random"])
        losses = [float(svi.step(data()[:, 0])) for _ in range(steps)]
        store = pyro.get_param_store().get_state()
        assert captures(svi) == [1]
        return losses, copy.deepcopy({"store": store, "svi": svi.state_dict(), "random": torch.cuda.get_rng_state()})

    def drawn(logits):
        return {
            "categorical": lambda: dist.Categorical(logits=logits),
            "bernoulli": lambda: dist.Bernoulli(logits=logits[0]),
            "normal": lambda: NonreparameterizedNormal(logits[0], logits[1].exp()),
        }[draw]()

    def model(x):
        z = pyro.sample("z", drawn(torch.zeros(3, device="cuda")))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z.float(), 1.0), obs=x)

    def guide(x):
        pyro.sample("z", drawn(pyro.param("logits", lambda: torch.zeros(3, device="cuda"))))

    whole, _ = fit(12)
    half, state = fit(7)
    rest, _ = fit(5, state)
    assert half + rest == whole


def test_a_state_asked_for_between_two_looks():
    _, svi = fresh(check_every=100)
    for _ in range(17):
        svi.step(data())
    state = svi.state_dict()
    assert state["steps"] == 17
    assert all(int(s["state"][0]["step"]) == 17 for s in state["optimizer"].values())


@pytest.mark.parametrize("together", [False, True])
def test_replays_do_not_wait_for_the_device(together):
    _, svi = fresh(check_every=1000)
    x, rows = data(), torch.arange(20, device="cuda").repeat(40, 1)
    if together:
        drain(svi, rows, x)
        run = svi.run(rows, x)
    else:
        for _ in range(12):  # past the 10th, which is compared
            svi.step(x)
    svi.check()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [next(run)] if together else [svi.step(x) for _ in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(losses[0], torch.Tensor if together else pvae.svi.Loss)
    assert all(bool(torch.as_tensor(float(loss.sum() if together else loss)).isfinite()) for loss in losses)


def test_a_loss_read_late_is_that_of_its_step():
    _, svi = fresh()
    losses = [svi.step(data()) for _ in range(30)]
    _, other = fresh()
    assert [float(loss) for loss in losses] == [float(other.step(data())) for _ in range(30)]


def test_an_annealing_factor_that_is_a_number_is_replayed_without_waiting():
    from pyro import poutine

    def fit(mode):
        net, svi = fresh(mode)
        own = svi.model

        def model(x, beta):
            with poutine.scale(scale=beta):
                own(x)

        svi.model, svi.guide = model, lambda x, beta: quiet(net)(x)
        return [float(svi.step(data(), 1 / (1 + step))) for step in range(20)], svi

    losses, svi = fit("graph")
    assert losses == pytest.approx(fit("off")[0], rel=1e-4)
    assert "graph" in kinds(svi)


FOLLOWING = ["our ELBO", "our IWAE", "convolutional"]


@pytest.mark.parametrize("program", FOLLOWING)
def test_programs_that_follow_their_data_to_the_device_train(program, cuda):
    ends, steps = {}, 200 if cuda is None else 30
    for mode in ("off", "graph"):
        pyro.clear_param_store()
        base._scopes.clear()
        torch.manual_seed(1)
        model, guide, loss, args = PROGRAMS[program]()
        model.__self__.cuda()
        svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss, compile=mode)
        args = [a.cuda() for a in args]
        losses = [float(svi.step(*args)) for _ in range(steps)]
        ends[mode] = sum(losses[-steps // 4 :]) / (steps // 4)
    assert ends["graph"] == pytest.approx(ends["off"], rel=0.05)


QUICK = ["subsampling, local", "score function", "AutoLowRank", "semi-supervised", "deep Markov, RNN"]
EVERY = [pytest.param(p, marks=[] if p in QUICK else pytest.mark.slow) for p in PROGRAMS if p not in FOLLOWING]


@pytest.mark.parametrize("program", EVERY)
def test_programs_that_make_their_tensors_on_the_device_are_replayed(program, cuda):
    if cuda is not None and program == "score function, graph":
        pytest.skip("Pyro's tensors that know where they come from are not emulated")

    def fit(mode):
        pyro.clear_param_store()
        base._scopes.clear()
        torch.manual_seed(1)
        model, guide, loss, args = PROGRAMS[program]()
        for made in (model, guide):
            if isinstance(module := getattr(made, "__self__", made), nn.Module):
                module.cuda()
        svi = pvae.SVI(model, guide, pyro.optim.SGD({"lr": 1e-4}), loss, compile=mode)
        args = [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]
        losses = [float(svi.step(*args)) for _ in range(4)]
        svi.check()
        return losses, svi

    torch.set_default_device("cuda")
    try:
        found, svi = fit("graph")
        expected, _ = fit("off")
    finally:
        torch.set_default_device("cpu")
    assert kinds(svi) == ["graph"]
    assert torch.tensor(found).isfinite().all()
    if cuda is not None:  # a graph draws in another order
        assert found == pytest.approx(expected, rel=1e-4)


def test_memory_does_not_grow_with_the_steps():
    _, svi = fresh()
    for _ in range(120):
        svi.step(data())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(220):
        svi.step(data())
    svi.check()
    assert torch.cuda.memory_allocated() <= before + 100 * 40 * 4 * 4 * 2


@pytest.mark.parametrize("mode", ["off", *MODES])
def test_products_are_in_the_precision_that_is_asked_for(mode, cuda):
    if cuda is not None:
        pytest.skip("a CPU has no tf32")
    generator = torch.Generator().manual_seed(3)
    x, w, signs = (torch.randn(256, 256, generator=generator).cuda() for _ in range(3))
    exact = (x.double() @ w.double() * signs.double()).sum().item()

    def error(precision):
        pyro.clear_param_store()
        svi = pvae.SVI(
            lambda x: pyro.param("w", w),
            lambda x: None,
            pyro.optim.SGD({"lr": 0.0}),
            lambda model, guide, x: (x @ model(x) * signs).sum(),
            compile=mode,
            precision=precision,
        )
        return max(abs(float(svi.step(x)) - exact) for _ in range(4)), captures(svi)

    (plain, _), (rough, made) = error("float32"), error("tf32")
    assert plain < 0.05 < rough
    assert bool(made) == (mode != "off")


# What a replay costs beside itself ------------------------------------------------------------------------------------


def emulated_only(cuda):
    if cuda is None:
        pytest.skip("what is counted or made to fail here is emulated")


@pytest.mark.parametrize("schedule", [None, lambda step: 0.9**step])
def test_a_block_of_steps_is_three_launches_and_four_with_a_schedule(schedule, cuda):
    emulated_only(cuda)
    _, svi = fresh(schedule=schedule, check_every=1000)
    run = svi.run([torch.arange(20, device="cuda")] * 40, data())
    while svi.steps < 20:
        next(run)
    cuda.launches.clear()
    losses = next(run)
    assert len(losses) == 10
    assert cuda.launches == ["stack", *(["copy_"] if schedule else []), "replay", "clone"]


@pytest.mark.parametrize("schedule", [None, lambda step: 0.9**step])
def test_a_step_is_three_launches_and_four_with_a_schedule(schedule, cuda):
    emulated_only(cuda)
    _, svi = fresh(schedule=schedule, check_every=1000)
    x = data()
    for _ in range(12):
        svi.step(x)
    cuda.launches.clear()
    svi.step(x)
    assert cuda.launches == ["stack", *(["copy_"] if schedule else []), "replay", "clone"]


def test_losses_are_on_the_device_from_the_first_step():
    _, svi = fresh()
    assert {losses.device.type for losses in svi.run([torch.arange(20, device="cuda")] * 21, data())} == {"cuda"}


def test_large_arguments_are_not_kept_for_long(monkeypatch):
    _, svi = fresh()
    x = data()
    monkeypatch.setattr(pvae.svi.pending, "HELD", 5 * x.nbytes)
    for _ in range(17):
        svi.step(data())
        assert len(svi._pending) <= 5


def test_a_batch_in_pinned_memory_is_on_the_device_when_it_is_taken(cuda, monkeypatch):
    """Its memory may be written at once: a copy that is yet to be made would be one of the next batch."""
    emulated_only(cuda)
    device, numbers, waits = torch.device("cuda", 0), calls.Numbers(), []
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: self is pinned)
    monkeypatch.setattr(cuda, "waits", lambda asynchronous=False: waits.append(not asynchronous))
    pinned, other = torch.ones(3), torch.ones(3)
    calls.of_arguments((other, pinned, torch.ones(3, device="cuda")), {}, numbers, device)
    assert waits == [False, True]


# Memory that is not there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("room", [0, 60])
def test_steps_are_eager_where_memory_is_lacking_for_a_graph(room, together, cuda, monkeypatch):
    emulated_only(cuda)

    def fit(mode):
        net, svi = fresh(mode, pyro.optim.Adam({"lr": 0.01}))
        svi.guide = quiet(net)
        rows = [torch.arange(20, device="cuda") + (i % 20) for i in range(25)]
        take = svi.run(rows, data()) if together else (svi.step(data()[some]) for some in rows)
        return [float(value) for losses in take for value in (losses if together else [losses])], values(net)

    made, held, own = [], [], pvae.replay.captured.Captured.__init__

    def noted(self, *args):
        made.append(weakref.ref(self))
        own(self, *args)

    monkeypatch.setattr(pvae.replay.captured.Captured, "__init__", noted)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(made[-1]() is not None))
    expected, wanted = fit("off")
    cuda.room = room
    with pytest.warns(UserWarning, match="the program runs eagerly: no memory is left on the device for a graph"):
        found, reached = fit("graph")
    assert found == pytest.approx(expected, rel=1e-5)
    assert_close(reached, wanted)
    assert held == [False], "what failed was still held when memory was given back"


def test_memory_that_lacks_for_a_second_graph_undoes_nothing(cuda):
    """The steps since the last look are taken again, eagerly, and the one that failed after them."""
    emulated_only(cuda)

    def fit(mode):
        net, svi = fresh(mode)
        svi.guide = quiet(net)
        for size in [40] * 15 + [20] * 5 + [40] * 3:
            if size == 20 and svi._pending:
                cuda.room = 10
            svi.step(data()[:size])
        svi.check()
        return values(net), svi.steps

    expected, _ = fit("off")
    with pytest.warns(UserWarning, match="no memory is left"):
        found, steps = fit("graph")
    assert steps == 23
    assert_close(found, expected)


# Tensors on the CPU ---------------------------------------------------------------------------------------------------


def with_factor(net, factor):
    """The model scaled by what a function of the second argument says."""

    def model(x, beta):
        with pyro.poutine.scale(scale=factor(beta, x)):
            net.model(x)

    return model, lambda x, beta: quiet(net)(x)


@pytest.mark.parametrize(
    "factor",
    [
        lambda beta, x: beta,
        lambda beta, x: beta.to(x.device),
        lambda beta, x: (beta * torch.tensor(2.0)).to(x),
        lambda beta, x: beta * torch.ones(3).to(x.device).sum(),
        lambda beta, x: beta * x.new_ones(5)[torch.tensor([0, 3])].mean(),
    ],
)
def test_a_number_on_the_cpu_is_read_at_each_step(factor):
    def fit(mode):
        net, svi = fresh(mode)
        svi.model, svi.guide = with_factor(net, factor)
        return [float(svi.step(data(), torch.tensor(1 / (1 + step)))) for step in range(20)], svi

    losses, svi = fit("graph")
    assert losses == pytest.approx(fit("off")[0], rel=1e-4)
    assert "graph" in kinds(svi)


def test_a_clock_is_where_the_parameters_are():
    """Whatever comes first of the arguments."""

    def fit(mode):
        net, _ = fresh()
        optim, loss, guide = pyro.optim.Adam({"lr": 0.01}), pvae.ELBO(warmup=15), quiet(net)
        svi = pvae.SVI(lambda b, x: net.model(x + b), lambda b, x: guide(x + b), optim, loss, compile=mode)
        return [float(svi.step(torch.tensor(0.5), data())) for _ in range(20)], svi

    losses, svi = fit("graph")
    assert losses == pytest.approx(fit("off")[0], rel=1e-4)
    assert kinds(svi) == ["graph"]


def test_a_number_alone_is_read_at_each_step():
    """Without a tensor beside it, to say where it is."""
    x = data()

    def fit(mode):
        net, svi = fresh(mode)
        model, guide = with_factor(net, lambda beta, x: beta)
        svi.model, svi.guide = lambda beta: model(x, beta), lambda beta: guide(x, beta)
        return [float(svi.step(1 / (1 + step))) for step in range(20)], svi

    losses, svi = fit("graph")
    assert losses == pytest.approx(fit("off")[0], rel=1e-4)
    assert "graph" in kinds(svi)


def test_a_tensor_on_the_cpu_that_a_program_holds_is_read_again_when_it_has_changed():
    def fit(mode):
        net, svi = fresh(mode)
        held = torch.tensor(1.0)
        svi.model, svi.guide = with_factor(net, lambda beta, x: held)
        losses = [float(svi.step(data(), None)) for _ in range(12)]
        held.fill_(0.25)
        return losses + [float(svi.step(data(), None)) for _ in range(3)]

    assert fit("graph") == pytest.approx(fit("off"), rel=1e-4)


@pytest.mark.parametrize(
    "factor",
    [
        lambda beta, x: torch.rand(()) + 1,
        lambda beta, x: torch.rand(3).to(x).sum() + 1,
        lambda beta, x: x.mean().cpu().abs().to(x) + 1,
        lambda beta, x: COUNT.add_(1).to(x),
        lambda beta, x: COUNT.copy_(x.mean()) + 1,
    ],
)
def test_work_on_the_cpu_within_a_step_runs_eagerly(factor):
    def fit(mode):
        net, svi = fresh(mode)
        svi.model, svi.guide = with_factor(net, factor)
        COUNT.zero_()
        return [float(svi.step(data(), None)) for _ in range(12)]

    expected = fit("off")
    with pytest.warns(
        UserWarning, match="the program runs eagerly: it cannot be traced: torch's '.*' works on the CPU"
    ):
        assert fit("graph") == pytest.approx(expected, rel=1e-5)


def test_a_singular_matrix_is_told_late():
    def fit(check_every):
        net, svi = fresh(check_every=check_every)
        weight = torch.eye(2, device="cuda")
        svi.model, svi.guide = with_factor(net, lambda beta, x: torch.linalg.cholesky(weight * beta)[0, 0])
        good, bad = torch.ones((), device="cuda"), -torch.ones((), device="cuda")
        for step in range(20):
            svi.step(data(), bad if step == 14 else good)
        svi.check()

    with pytest.raises(torch.linalg.LinAlgError):
        fit(100)


def test_what_a_capture_refuses_runs_eagerly(monkeypatch):
    def fit(mode):
        _, svi = fresh(mode)
        return [float(svi.step(data())) for _ in range(12)]

    expected, own = fit("off"), pvae.replay.captured.Captured.__init__

    def waits(self, forward, *args):
        def reading(*inputs):
            if torch.cuda.is_current_stream_capturing():
                inputs[0].sum().item()
            return forward(*inputs)

        own(self, reading, *args)

    monkeypatch.setattr(pvae.replay.captured.Captured, "__init__", waits)
    with pytest.warns(UserWarning, match="it cannot be traced: a CUDA graph cannot hold it: CUDA error: operation"):
        assert fit("graph") == pytest.approx(expected, rel=1e-5)


def test_parameters_on_another_device_than_the_current_run_eagerly(cuda, monkeypatch):
    emulated_only(cuda)
    _, svi = fresh()
    svi.step(data())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.warns(UserWarning, match=r"parameters are on cuda:0, .* call torch.cuda.set_device\(0\)"):
        svi.step(data())


@pytest.mark.parametrize(("precision", "expected"), [("float32", "highest"), ("tf32", "high")])
def test_products_are_captured_in_the_precision_asked_for(precision, expected, monkeypatch):
    seen, own = set(), pvae.replay.captured._captured

    def captured(*args):
        seen.add(torch.get_float32_matmul_precision())
        return own(*args)

    monkeypatch.setattr(pvae.replay.captured, "_captured", captured)
    _, svi = fresh(precision=precision)
    for _ in range(3):
        svi.step(data())
    assert seen == {expected}
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_program_that_is_compared_takes_recurrent_networks_as_exactly_as_a_graph_does(monkeypatch):
    seen, own = [], pvae.SVI._gradients

    def noted(self, *args):
        seen.append(torch.backends.cudnn.rnn.fp32_precision)
        return own(self, *args)

    monkeypatch.setattr(pvae.SVI, "_gradients", noted)
    usual = torch.backends.cudnn.rnn.fp32_precision
    for recurrent in (True, False):
        net, svi = fresh()
        if recurrent:
            net.recurrent = [torch.nn.GRU(1, 1)]  # which is found, and is no layer of its own
        seen.clear()
        for _ in range(3):
            svi.step(data())
        assert torch.backends.cudnn.rnn.fp32_precision == usual != "ieee"
        assert seen.count("ieee") == recurrent, "in the step that is compared with the first replay"


@pytest.mark.parametrize(("kept", "expected"), [("highest", 1e-3), ("high", 2e-2)])
def test_a_step_may_differ_by_what_products_do_as_torch_is_set(kept, expected):
    torch.set_float32_matmul_precision(kept)
    try:
        _, svi = fresh()
        for _ in range(3):
            svi.step(data())
    finally:
        torch.set_float32_matmul_precision("highest")
    assert [graph.tolerance for graph in svi._graphs._graphs.values()] == [expected]


# Functions ------------------------------------------------------------------------------------------------------------


def test_a_replayed_function_keeps_its_constants_and_draws_fresh_numbers():
    from pvae.replay.captured import replayed

    def function(x):
        return x * torch.tensor([1.0, 2.0, 3.0], device="cuda"), torch.rand(3, device="cuda")

    before = torch.cuda.get_rng_state()
    replay = replayed(function, torch.ones(3, device="cuda"))
    gc.collect()
    assert torch.equal(torch.cuda.get_rng_state(), before)
    for factor in (1.0, 5.0):
        product, noise = (value.tolist() for value in replay(torch.full((3,), factor, device="cuda")))
        assert product == [factor, 2 * factor, 3 * factor]
        assert noise != replay(torch.ones(3, device="cuda"))[1].tolist()


def test_a_capture_that_fails_leaves_all_else_as_it_was(cuda):
    from pvae.replay.captured import _captured, replayed
    from pvae.replay.values import Untraceable

    def waits():
        if torch.cuda.is_current_stream_capturing():
            torch.ones((), device="cuda").item()

    replay = replayed(lambda x: (x * torch.rand(3, device="cuda"),), torch.ones(3, device="cuda"))
    drawn = []
    for fails in (False, True):
        torch.manual_seed(3)
        if fails:
            with pytest.raises(Untraceable, match="a CUDA graph cannot hold it"):
                _captured(waits)
        drawn.append([replay(torch.ones(3, device="cuda"))[0].tolist(), torch.rand(3, device="cuda").tolist()])
    assert drawn[0] == drawn[1]
    if cuda is not None:
        assert not cuda.underway
        return
    torch.empty(2**26, device="cuda")
    held = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= held - 2**26, "memory is given back as before"


@pytest.mark.parametrize(("count", "replacement"), [(1, True), (1, False), (2, False), (2, True)])
def test_draws_of_one_of_several_are_replayed(count, replacement):
    from pvae.replay.captured import replayed

    weights = torch.tensor([[0.1, 0.0, 0.9], [0.5, 0.5, 0.0]], device="cuda").repeat(300, 1, 1)
    replay = replayed(lambda p: (torch.multinomial(p, count, replacement),), weights[0])
    drawn = torch.stack([replay(p)[0].cpu() for p in weights])
    assert drawn.shape == (300, 2, count)
    assert not (drawn[:, 0] == 1).any()
    assert not (drawn[:, 1] == 2).any()
    shares = (drawn[..., 0] == 0).double().mean(0)
    assert shares.tolist() == pytest.approx([0.1, 0.5], abs=0.1)
    assert count == 1 or bool((drawn[..., 0] != drawn[..., 1]).all()) is not replacement


def test_a_function_that_finds_no_memory_is_not_replayed(cuda):
    from pvae.replay.captured import replayed
    from pvae.replay.values import Untraceable

    emulated_only(cuda)
    cuda.room = 0
    with pytest.raises(Untraceable, match="no memory is left on the device for a graph"):
        replayed(lambda x: (x + 1,), torch.ones(3, device="cuda"))


# The rest of the package ----------------------------------------------------------------------------------------------


IN_PARTS = pytest.param(["iwae", "--particles", "4", "--objective.chunk", "2"], marks=pytest.mark.slow)


@pytest.mark.parametrize("objective", [["elbo"], IN_PARTS], ids=["elbo", "in parts"])
def test_a_run_is_fitted_and_drawn_from(objective, tmp_path, monkeypatch):
    from pvae import fit, sample

    monkeypatch.chdir(tmp_path)
    sizes = ["--latent", "2", "--encoder.hidden", "8", "--decoder.hidden", "8", "--batch-size", "60"]
    given = ["--device", "cuda", "--epochs", "1", "--eval-particles", "20", *sizes, "--objective", *objective]
    fit.main([*given, "--compile", "graph", "--schedule", "cosine", "--out", "run"])
    (epoch,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert -45 < epoch["train"] < -20
    sample.main(["run", "--device", "cuda", "-n", "4"])


MEASURES = {
    "evaluate": lambda vae, x: evaluate(vae.model, vae.guide, x, particles=[1, 1500]).iw[1500],
    "ais": lambda vae, x: pvae.ais.ais(vae.model, x, guide=vae.guide, annealing=pvae.ais.Annealing(20, 4, 2)).log_p,
    "mutual information": lambda vae, x: diagnostics.mutual_information(vae.guide, x, samples=50),
    "signal": lambda vae, x: (
        snr.measure(pvae.IWAE(4), vae.model, vae.guide, {"all": list(vae.parameters())}, x, samples=4)["all"].mean
    ),
}


@pytest.mark.parametrize("name", MEASURES)
def test_models_are_measured_on_the_device(name, vae, x):
    assert MEASURES[name](vae.cuda(), torch.cat([x.cuda()] * 2)).isfinite().all()
