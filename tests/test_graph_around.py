"""What lies around a step and across steps: each such fit is the eager one, or Pyro's, from the same random numbers."""

import types
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import kinds
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroSample
from pyro.poutine.messenger import Messenger
from test_graph_fallbacks import both, fit, plain, plain_guide
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import pvae


def scaled(factor):
    """A program whose data are as much worth as a function says."""
    return lambda x, *more: plain(x, factor(x, *more))


def guide(x, *more):
    plain_guide(x)


# Arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [False, True])
def test_data_that_may_only_be_read_are_left_as_they_are(kept, tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(-1, 2, 6, dtype=np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of data that may only be read
        x = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="r"))
    module = nn.Module()
    module.register_buffer("x", x)

    def program(_):
        plain(module.x) if kept else plain(_)

    svi, said = both(lambda: (program, guide), call=lambda step, _: (x,))
    assert (said, kinds(svi)) == ([], ["graph"])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_packed_batch_of_other_lengths_is_another(kind):
    def make():
        network, head = kind(3, 4), nn.Linear(4, 1)

        def model(packed):
            pyro.module("network", network)
            pyro.module("head", head)
            last = network(packed)[1]
            last = last[0] if isinstance(last, tuple) else last
            with pyro.plate("data", 4):
                pyro.sample("x", dist.Normal(head(last[-1])[:, 0], 1.0), obs=torch.ones(4))

        return model, lambda packed: None

    def packed(step, x):  # twelve rows, five times, in both
        lengths = [5, 4, 2, 1] if step < 5 or step % 2 else [5, 1, 1, 5]
        draws = torch.Generator().manual_seed(step)
        return (pack_sequence([torch.randn(n, 3, generator=draws) for n in lengths], enforce_sorted=False),)

    both(make, call=packed, steps=9)


def test_where_a_tensor_is_split_is_read():
    def model(x, at):
        first, rest = torch.tensor_split(x, at)
        plain(first)
        pyro.sample("rest", dist.Normal(0.0, 1.0).expand(rest.shape).to_event(1), obs=rest)

    def make():
        return model, lambda x, at: plain_guide(torch.tensor_split(x, at)[0])

    both(make, call=lambda step, x: (x, torch.tensor([2 if step < 6 else 4])))


@pytest.mark.parametrize("check_every", [1, 7])
def test_a_sparse_argument_with_more_numbers_is_of_another_kind(check_every):
    def call(step, x):
        return x, (torch.arange(6) < (3 if step < 6 else 5)).float().to_sparse()

    make = scaled(lambda x, sparse: len(sparse.values()) + sparse.to_dense().mean()), guide
    svi, said = both(lambda: make, call=call, check_every=check_every)
    assert (said, kinds(svi)) == ([], ["graph", "graph"])


@pytest.mark.parametrize(
    "value",
    [
        lambda x: torch.complex(x, x).conj().imag,
        lambda x: torch.nested.nested_tensor([x[:2], x[2:]]),
        lambda x: torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.jagged),
    ],
    ids=["a view of a conjugate", "nested", "jagged"],
)
def test_tensors_of_other_kinds_are_taken(value):
    def factor(x, given):
        return given.sum().exp() if not given.is_nested else sum(part.sum() for part in given.unbind()).exp()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of nested tensors
        both(lambda: (scaled(factor), guide), call=lambda step, x: (x, value(x)))


@pytest.mark.parametrize("mode", ["graph", "full"])
def test_one_tensor_given_twice_may_be_changed_in_place(mode):
    def model(x, other):
        x.add_(0.1)
        plain(x, other.mean().exp())

    def call(step, x):
        first = x + step
        return first, first if step % 3 == 0 else first.clone()

    expected, _ = fit("off", lambda: (model, guide), call=call)
    found, _ = fit(mode, lambda: (model, guide), call=call)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)


# What a step stands in, and who takes it --------------------------------------------------------------------------


class Table:
    beta = 1.0


class Scales(Messenger):
    """A user's own handler, that asks an object of his."""

    def __init__(self, table):
        super().__init__()
        self.table, self.seen = table, 0

    def _pyro_sample(self, msg):
        msg["scale"] = msg["scale"] * self.table.beta


def test_what_a_handler_around_the_step_holds_is_looked_at():
    def make():
        handler = Scales(Table())
        svi_of = {}

        def before(step, svi, held):
            handler.table.beta = 1.0 if step < 6 else 0.3
            if not svi_of:
                svi_of[svi] = svi.step

                def within(*args):
                    with handler:
                        return svi_of[svi](*args)

                svi.step = within

        return before

    expected, _ = fit("off", lambda: (plain, guide), make())
    found, said = fit("graph", lambda: (plain, guide), make())
    assert said == []
    assert found[0] == pytest.approx(expected[0], rel=1e-6)


@pytest.mark.parametrize("kind", [object, nn.Module])
def test_what_holds_the_svi_is_looked_at_where_its_programs_ask(kind):
    class Trainer(kind):
        def __init__(self):
            super().__init__()
            self.beta, self.taken, self.losses, self.lines = 1.0, 0, [], []
            self.svi = pvae.SVI(
                self.model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), notice=self.lines.append, **MODE
            )

        def model(self, x):
            plain(x, self.beta)

        def fit(self):
            for step in range(12):
                self.beta, self.taken = (1.0 if step < 7 else 0.3), step
                self.losses.append(float(self.svi.step(torch.linspace(-1.0, 2.0, 6))))
            return self.losses

    found = []
    for mode in ("off", "graph"):
        MODE = {"compile": mode}
        pyro.clear_param_store()
        torch.manual_seed(0)
        trainer = Trainer()
        found.append(trainer.fit())
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert kinds(trainer.svi) == ["graph"]


def test_weights_that_torch_keeps_are_those_of_the_step():
    def make(loss):
        layer = parametrizations.orthogonal(nn.Linear(1, 1))

        def model(x):
            pyro.module("layer", layer)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(layer(z[..., None])[..., 0], 1.0), obs=x)

        return pvae.SVI(model, plain_guide, pyro.optim.Adam({"lr": 0.05}), loss, compile="graph"), layer

    weights = []
    for within in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi, layer = make(pvae.ELBO())
        for _ in range(4):
            if within:
                with parametrize.cached():
                    svi.step(torch.linspace(-1.0, 2.0, 6))
            else:
                svi.step(torch.linspace(-1.0, 2.0, 6))
        weights.append(torch.cat([p.detach().flatten() for p in layer.parameters()]))
    assert torch.equal(*weights)


# What changes between steps ---------------------------------------------------------------------------------------


class Sampled(PyroModule):
    def forward(self, x):
        z = self.z
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_another_prior_of_a_module_is_another_program():
    def make():
        module = Sampled()
        module.z = PyroSample(dist.Normal(0.0, 1.0))
        return module, lambda x: pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 0.5)), module

    def before(step, svi, held):
        if step == 6:
            held[0].z = PyroSample(dist.Normal(3.0, 0.5))

    svi, said = both(make, before)
    assert (said, kinds(svi)) == ([], ["graph"])


def one():
    return 1.0


def other():
    return 0.3


def by_code():
    function = types.FunctionType(one.__code__, globals())
    return function, lambda: setattr(function, "__code__", other.__code__)


def by_default():
    def function(beta=1.0):
        return beta

    return function, lambda: setattr(function, "__defaults__", (0.3,))


def by_class():
    class First:
        def __call__(self):
            return 1.0

    class Second(First):
        def __call__(self):
            return 0.3

    held = First()
    return held, lambda: setattr(held, "__class__", Second)


@pytest.mark.parametrize("place", [by_code, by_default, by_class])
def test_what_is_loaded_anew_in_place_is_seen(place):
    def make():
        function, change = place()
        return lambda x: plain(x, function()), guide, change

    svi, said = both(make, lambda step, svi, held: held[0]() if step == 6 else None)
    assert (said, kinds(svi)) == ([], ["graph"])


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(1, 4), nn.Linear(4, 2)

    def guide(self, x):
        pyro.module("halves", self)
        mean, scale = self.two(self.one(x[:, None]).tanh()).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, scale.exp()))


def halves():
    module = Halves()
    return plain, module.guide, module


def test_halves_that_are_trained_by_turns_have_a_graph_each():
    def before(step, svi, held):
        held[0].one.requires_grad_(step % 4 < 2)
        held[0].two.requires_grad_(step % 4 >= 2)

    svi, said = both(halves, before, steps=30)
    assert (said, kinds(svi)) == ([], ["graph"])


def take_out(optimizer):
    group = optimizer.param_groups[0]
    group["params"] = group["params"][2:]


def put_another(optimizer):
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.zeros(4, 1))


def halve(optimizer):
    step = optimizer.step

    def half(*args):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad.mul_(0.5)
        return step(*args)

    optimizer.step = half


@pytest.mark.parametrize("change", [take_out, put_another, halve])
def test_an_optimizer_that_is_changed_by_hand_is_the_one_that_steps(change):
    def run(mode):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model, guide, module = halves()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        svi = pvae.SVI(model, guide, optimizer, Trace_ELBO(), compile=mode)
        for step in range(8):
            if step == 5:
                change(optimizer)
            svi.step(torch.linspace(-1.0, 2.0, 6))
        return [p.detach().clone() for p in module.parameters()]

    assert all(map(torch.equal, run("graph"), run("off")))


# Random numbers, and steps that raise -----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_checkpoint_with_dropout_draws_what_it_drew(share):
    def make():
        network = nn.Sequential(nn.Linear(1, 64), nn.Dropout(share), nn.ReLU(), nn.Linear(64, 2))

        def encoder(x):
            pyro.module("network", network)
            mean, scale = checkpoint(network, x[:, None], use_reentrant=False).unbind(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(mean, scale.exp()))

        return plain, encoder

    svi, said = both(make)
    assert kinds(svi) == ([] if share else ["graph"])
    assert bool(said) == bool(share)
    assert not share or "random numbers are drawn once more in the backward pass" in said[0]


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_a_step_that_is_tried_once_more_draws_other_numbers(mode):
    def model(x):
        plain(x)
        if torch.rand(()) < 0.3:
            raise RuntimeError("unlucky")

    pyro.clear_param_store()
    torch.manual_seed(0)
    svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it runs eagerly
        for _ in range(60):
            try:
                svi.step(torch.linspace(-1.0, 2.0, 6))
            except RuntimeError:
                continue
    assert 30 < svi.steps < 55


@pytest.mark.parametrize("validation", [False, True])
def test_a_late_look_finds_the_step_under_what_each_was_taken_with(validation):
    def run(mode, **options):
        pyro.clear_param_store()
        torch.manual_seed(0)
        optim = pyro.optim.Adam({"lr": 0.05})
        svi = pvae.SVI(plain, plain_guide, optim, Trace_ELBO(), compile=mode, **options)
        for step in range(30):
            x = torch.linspace(-1.0, 2.0, 6) * (torch.nan if step == 16 else 1.0)
            for each in optim.optim_objs.values():
                each.param_groups[0]["lr"] = 0.05 * 0.9**step
            if step == 12:
                torch.manual_seed(3)
            if step == 14:
                with torch.no_grad():
                    pyro.get_param_store()._params["mean"].fill_(2.0)
            try:
                svi.step(x)
            except ValueError as error:
                return svi, error, {n: p.detach().clone() for n, p in pyro.get_param_store()._params.items()}, optim
        raise AssertionError("no step was refused")

    with pyro.validation_enabled(validation), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's, of the same
        expected = run("off")[2]
        svi, error, found, optim = run("graph", check_every=10)
    assert isinstance(error, pvae.NonFiniteError)
    assert (error.step, svi.steps) == (17, 16)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    last = next(iter(optim.optim_objs.values())).param_groups[0]["lr"]
    assert float(last) < 0.05 * 0.9**16, "set by hand, and to stay"


def test_a_learning_rate_set_by_hand_stays_where_batches_are_lost():
    torch.manual_seed(0)
    model, guide, module = halves()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    svi = pvae.SVI(model, guide, optimizer, Trace_ELBO(), compile="graph", check_every=10)
    x = torch.linspace(-1.0, 2.0, 6)
    with pyro.validation_enabled(False):
        for value in (1.0, 1.0, 1.0, torch.nan, 2.0):
            svi.step(x.mul_(value))
        optimizer.param_groups[0]["lr"] = 0.001
        with pytest.raises(pvae.NonFiniteError, match="their batches have been changed in place"):
            svi.check()
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.001)
