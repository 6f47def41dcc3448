"""Programs that decide by values of tensors: replayed where these are as they were, else taken by the program."""

import warnings
from types import MappingProxyType

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import assert_same, kinds, parameters
from pyro.infer import Trace_ELBO
from torch import nn

import pvae

READ = "a tensor's value is read in Python, and changes"


def program(factor):
    """Its mean is a parameter times what is made of the data."""

    def model(x, *more):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z * factor(x, *more), 1.0), obs=x)

    def guide(x, *more):
        mean = pyro.param("mean", x.new_full((), 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(mean) if x.is_cuda else dist.Normal(mean, 1.0))

    return model, guide


def fit(mode, factor, data, steps=30, device="cpu", **options):
    pyro.clear_param_store()
    torch.manual_seed(0)
    svi = pvae.SVI(*program(factor), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile=mode, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = [float(svi.step(data(step).to(device))) for step in range(steps)]
        svi.check()
    return (losses, parameters(svi), torch.get_rng_state(), svi), [str(w.message) for w in caught]


def both(factor, data=lambda step: torch.linspace(-1.0, 2.0, 6) + 0.01 * step, **options):
    expected, _ = fit("off", factor, data, **options)
    found, said = fit("graph", factor, data, **options)
    assert_same(found, expected)
    return found[-1], said


def refuse(x):
    if not torch.isfinite(x).all():
        raise ValueError(f"data are not finite: {x.mean()}")
    return 1.0


def warn(x):
    if (x > 100).any():
        warnings.warn("large data", stacklevel=2)
    return 1.0


def claim(x):
    return SPACE["claim"](x)


SPACE = {}
exec("def claim(x):\n    assert x.max() < 100, f'found {x.max()}'\n    return 1.0", SPACE)  # pytest would rewrite it


def until(x):
    y, times = x.mean(), 0
    while y > 0.1:
        y, times = y / 2, times + 1
    return 1.0 + times


def flags(x):
    y = x.clone()
    y[y < 0] = 0.5
    y[0, ...][y[0] > 100] = 0
    return y.abs().mean()


def sizes(x):
    n = (x > 100).sum()
    return torch.zeros(n + 1).sum() + x[: n + 2].mean() + len(range(n + 1)) + torch.eye(x.argmax() + 1).sum()


def lengths(x):
    counts = (x.abs() * 0 + torch.arange(6) % 3 + 1).long()
    rows = nn.utils.rnn.pack_padded_sequence(x[:, None, None].expand(-1, 3, 1), counts, True, False)
    padded, _ = nn.utils.rnn.pad_packed_sequence(rows, batch_first=True)
    return padded.sum() + sum(counts.tolist())


STEADY = {
    "lengths": lengths,
    "a refusal": refuse,
    "a warning": warn,
    "an assertion": claim,
    "a branch": lambda x: 2.0 if x.sum() > 0 else 1.0,
    "written": lambda x: 1.0 if torch.zeros(()).add_(x.sum()) > 0 else 0.5,
    "a loop": until,
    "equal": lambda x: 2.0 if torch.equal(x * 2, x + x) and not x.equal(x[1:]) else 1.0,
    "numbers where flags are": flags,
    "sizes": sizes,
    "a draw of one of some": lambda x: x.abs()[torch.multinomial(x.new_ones(6), 1)[0].reshape(1).expand(2)].mean(),
    "a chain": lambda x: 1.0 if 0 < x.max() < 100 else 2.0,
}


@pytest.mark.parametrize("which", STEADY)
def test_what_is_decided_alike_at_each_step_is_replayed(which):
    svi, said = both(STEADY[which], lambda step: torch.linspace(-1.0, 2.0, 6) + 0.001 * step)
    assert (said, kinds(svi)) == ([], ["graph"])


def branch(x):
    return 2.0 if x.sum() > 0 else 1.0


@pytest.mark.parametrize("mode", ["graph", pytest.param("full", marks=pytest.mark.slow)])
def test_a_step_that_decides_otherwise_draws_as_the_program_does(mode):
    def data(step):
        return torch.linspace(-1.0, 2.0, 6) * (-1 if step in (5, 14, 15) else 1)

    (losses, _, random, _), _ = fit("off", branch, data)
    (found, _, state, svi), said = fit(mode, branch, data)
    (graph,) = svi._graphs._graphs.values()
    assert found == pytest.approx(losses, rel=1e-5)
    assert torch.equal(state, random)
    assert (said, graph.kind, graph.missed) == ([], mode, 3)


@pytest.mark.parametrize("options", [{}, {"check_every": 1}])
@pytest.mark.cuda
def test_a_step_that_decides_otherwise_is_taken_by_the_program(options):
    def data(step):
        return torch.linspace(-1.0, 2.0, 6) * (-1 if step in (5, 14, 15) else 1)

    expected, _ = fit("off", branch, data, device="cuda", **options)
    found, said = fit("graph", branch, data, device="cuda", **options)
    assert found[0] == pytest.approx(expected[0])
    torch.testing.assert_close(found[1], expected[1])
    (graph,) = found[-1]._graphs._graphs.values()
    assert (said, graph.kind, graph.missed) == ([], "graph", 3)


@pytest.mark.parametrize("check_every", [1, 7])
def test_where_the_other_way_has_become_the_rule_a_graph_is_made_of_that(check_every):
    def data(step):
        return torch.linspace(-1.0, 2.0, 6) * (-1 if step > 12 else 1)

    svi, said = both(branch, data, check_every=check_every)
    (graph,) = svi._graphs._graphs.values()
    assert (said, graph.kind, graph.missed) == ([], "graph", 0)
    assert graph.played > 10


def test_what_is_decided_by_chance_runs_eagerly_and_says_where():
    def drawn(x):
        return 1.0 if torch.rand(()) > 0.5 else 0.5

    svi, said = both(drawn, steps=60)
    assert kinds(svi) == []
    assert len(said) == 1
    assert said[0].startswith("the program runs eagerly: ")
    assert "test_graph_supposed.py:" in said[0]
    assert READ in said[0]


def test_what_is_decided_by_chance_now_and_then_is_given_up_too():
    def drawn(x):
        return 1.0 if torch.rand(()) > 0.2 else 0.5

    svi, said = both(drawn, steps=400)
    assert kinds(svi) == []
    assert len(said) == 1
    assert READ in said[0]


def test_what_reads_very_often_runs_eagerly():
    def factor(x):
        return 1.0 + sum(0 for value in x.repeat(200) if value > 100)

    svi, said = both(factor, steps=4)
    assert kinds(svi) == []
    assert len(said) == 1
    assert "a tensor's value is read in Python" in said[0]
    assert "more than 1,000" in said[0]


LOOKED_UP = {
    "set": lambda x: 0.5 if x.argmax().item() in {1, 2} else 1.0,
    "dict": lambda x: {1: 0.5}.get(x.argmax().item() + 1, 1.0),
    "dict by a number's text": lambda x: {"k1": 0.5}.get(f"k{x.argmax().item()}", 1.0),
    "dict by text": lambda x: {"1": 0.5, "3": 0.7}.get(str(x.argmax().item()), 1.0),
    "dict by a truth's text": lambda x: {"True": 0.5, "False": 0.7}[str((x.argmax() > 2).item())],
    "set of others": lambda x: 0.5 if round(2.5) * x.abs().max().item() in {2.0, 4.0} else 1.0,
    "by itself": lambda x: {x: 0.5}.get(x, 1.0),
}


@pytest.mark.parametrize("seldom", [False, True])
@pytest.mark.parametrize("how", LOOKED_UP)
def test_numbers_that_are_looked_up(how, seldom):
    def data(step):
        return torch.linspace(-1.0, 2.0, 6).roll(0 if seldom and step != 7 else step)

    svi, said = both(LOOKED_UP[how], data, steps=40)
    assert kinds(svi) == (["graph"] if not said else [])
    assert not (said and seldom)


COUNTED = {
    "set": lambda n: 0.5 if n in {7, 25} else 1.0,
    "dict": lambda n: {7: 0.5}.get(n, 1.0),
    "dict of remainders": lambda n: {2: 0.5}.get(n % 5, 1.0),
    "text": lambda n: 0.5 if str(n).endswith("5") else 1.0,
    "formatted": lambda n: 0.5 if f"{n:03d}" == "007" else 1.0,
    "numpy": lambda n: float(np.interp(n, [5, 20], [0.1, 1.0])),
}


@pytest.mark.parametrize("how", COUNTED)
def test_numbers_of_steps_that_are_looked_up(how):
    def run(mode):
        pyro.clear_param_store()
        torch.manual_seed(2)
        model, guide = program(lambda x, n: COUNTED[how](n))
        svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile=mode)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses = [float(svi.step(torch.linspace(-1.0, 2.0, 6), step)) for step in range(30)]
        return losses, [str(w.message) for w in caught]

    expected, _ = run("off")
    found, said = run("graph")
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(said) == 1
    assert "such as more" in said[0]


def test_numbers_are_not_changed_where_they_came_from():
    """What `+=` makes of a number is another one."""

    def factor(x, n):
        weight, total = pyro.param("weight", torch.tensor(1.0)), 0.0
        number = same = weight.item()
        number *= 3.0
        more = n
        more += 0.25
        for part in (number, same, more, x[0].item()):
            total += part
        total /= 3
        total **= 2
        return weight * total + n

    def run(mode):
        pyro.clear_param_store()
        torch.manual_seed(2)
        svi = pvae.SVI(*program(factor), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile=mode)
        batches = [torch.linspace(-1.0, 2.0, 6) for _ in range(15)]
        losses = [float(svi.step(x, 0.1 * step)) for step, x in enumerate(batches)]
        assert all(torch.equal(x, torch.linspace(-1.0, 2.0, 6)) for x in batches)
        return losses, kinds(svi)

    expected, _ = run("off")
    found, graphs = run("graph")
    assert found == pytest.approx(expected, rel=1e-6)
    assert "graph" in graphs


def test_arguments_that_a_program_changes_are_changed_once():
    def run(mode):
        model, guide = program(lambda x: x.sub_(1.0).sum())
        pyro.clear_param_store()
        torch.manual_seed(2)
        svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile=mode)
        batches = [torch.linspace(-1.0, 2.0, 6) for _ in range(12)]
        return [float(svi.step(x)) for x in batches], [x.tolist() for x in batches]

    expected, changed = run("off")
    found, also = run("graph")
    assert found == pytest.approx(expected, rel=1e-6)
    assert also == changed


@pytest.mark.parametrize("which", ["a refusal", "an assertion"])
def test_what_a_program_refuses_it_refuses_in_a_replayed_step_too(which):
    def data(step):
        return torch.full((6,), 1.0 if step < 7 else float("inf"))

    kept = {}
    for mode in ("off", "graph"):
        with pytest.raises((ValueError, AssertionError)) as refused:
            fit(mode, STEADY[which], data)
        kept[mode] = type(refused.value), str(refused.value).splitlines()[0], pyro.param("mean").item()
    assert kept["graph"] == kept["off"]


@pytest.mark.cuda
@pytest.mark.parametrize("which", ["a refusal", "an assertion"])
def test_on_a_device_an_assertion_makes_no_step_wait_and_is_raised_late(cuda, which):
    data = [torch.full((6,), 1.0 if step < 7 else float("inf")).cuda() for step in range(9)]
    pyro.clear_param_store()
    svi = pvae.SVI(*program(STEADY[which]), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile="graph")
    for x in data[:4]:
        svi.step(x)
    svi.check()
    for x in data[4:7]:
        svi.step(x)
    assert len(svi._pending) == (3 if which == "an assertion" else 0)
    before = pyro.param("mean").item()
    with pytest.raises((AssertionError, ValueError), match=r"found .*inf|not finite"):
        [svi.step(x) for x in data[7:]] and svi.check()
    assert pyro.param("mean").item() == before
    assert svi.steps == 7


def test_a_warning_is_given_in_the_step_that_it_is_of():
    _, said = fit("graph", warn, lambda step: torch.full((6,), 101.0 if step == 7 else 1.0))
    assert said == ["large data"]


def test_numbers_by_which_a_program_decides_have_graphs_by_value_where_they_change():
    """A number of Python's that changes is a tensor of the graph; not where that is decided by at each step."""

    def model(x, number):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 2.0 if number % 2 else 1.0), obs=x)

    def guide(x, number):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.5)), 1.0))

    def losses(mode):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile=mode)
        return [svi.step(torch.ones(6), step % 5) for step in range(60)], svi

    expected, _ = losses("off")
    found, svi = losses("graph")
    assert found == pytest.approx(expected)
    assert kinds(svi) == ["graph"] * 5


class Silent(dist.TorchDistribution):
    """Says nothing of its support, as one that a person has written."""

    arg_constraints = MappingProxyType({})

    def __init__(self, mean):
        self.mean_ = mean
        super().__init__(mean.shape, (), validate_args=True)

    def log_prob(self, value):
        return -(value - self.mean_).abs()

    def expand(self, shape, instance=None):
        return Silent(self.mean_.expand(shape))

    def _validate_sample(self, value):
        pass


def test_a_distribution_that_does_not_say_its_support_is_replayed():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", Silent(pyro.param("mean", torch.zeros(()))), obs=x)

    svi = pvae.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile="graph")
    losses = [svi.step(torch.ones(6)) for _ in range(5)]
    assert losses[0] == 6.0
    assert kinds(svi) == ["graph"]
