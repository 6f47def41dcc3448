"""What Python holds of a program may change between steps: a replayed fit is the eager fit, bit for bit."""

import collections
import contextvars
import enum
import functools
import sys
import types
import warnings
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import kinds
from pyro.infer import Trace_ELBO
from test_graph_fallbacks import both, fit, net, plain, plain_guide
from torch import nn

import pvae
from pvae.replay.guards import Guards
from pvae.replay.members import Members

config = types.ModuleType("config")
exec("beta = 1.0\ntable = {'kl': {'beta': 1.0}}\ndef factor():\n    return beta", vars(config))
sys.modules["config"] = config


class Weights:
    beta = 1.0

    def inherited(self):
        return self.beta


class Scaled:
    def factor_of(self):
        return config.beta


class Slots(Weights):
    __slots__ = ("_held",)


class Mode(enum.Enum):
    LOW = 0.3
    HIGH = 1.0


class Private:
    def __init__(self):
        self._table = {"beta": 1.0}

    def __call__(self):
        return self._table["beta"]


def of_class():
    return lambda: Weights.beta, lambda value: setattr(Weights, "beta", value)


class Default:
    beta = 1.0


class DefaultOfLayer(nn.Linear):
    beta = 1.0


class Sized:
    def size(self):
        return 1.0


def shadowed(cls, *args):
    def make():
        held = cls(*args)
        return lambda: held.beta, lambda value: value < 1 and setattr(held, "beta", value)

    return make


def shadowed_method():
    held = Sized()
    return lambda: held.size(), lambda value: value < 1 and setattr(held, "size", lambda: value)


def inherited():
    weights = Slots()
    return weights.inherited, lambda value: setattr(Weights, "beta", value)


def partial():
    held = {"beta": 1.0}
    return functools.partial(lambda table, *, scale: table["beta"] * scale, held, scale=1.0), (
        lambda value: held.update(beta=value)
    )


def named_within():
    """A method that only an inner function names; and what that reads."""
    scaled = Scaled()
    return lambda: (lambda: scaled.factor_of())(), lambda value: setattr(config, "beta", value)


def slots():
    weights = Slots()
    weights._held = 1.0
    return lambda: weights._held, lambda value: setattr(weights, "_held", value)


def small_array():
    values = np.ones(3)
    return lambda: float(values[1]), lambda value: values.__setitem__(1, value)


def array_as_tensor():
    values = np.ones((), dtype=np.float32)
    return lambda: torch.as_tensor(values), lambda value: values.fill(value)


def in_deque():
    values = collections.deque([1.0])
    return lambda: values[0], lambda value: values.__setitem__(0, value)


def default():
    def factor(box=[1.0], *, scale=1.0):  # noqa: B006  that is the point
        return box[0] * scale

    return lambda: factor(), lambda value: factor.__defaults__[0].__setitem__(0, value)


def keyword_default():
    def factor(*, scale=1.0):
        return scale

    return lambda: factor(), lambda value: factor.__kwdefaults__.__setitem__("scale", value)


def of_function():
    def factor():
        return factor.beta

    factor.beta = 1.0
    return factor, lambda value: setattr(factor, "beta", value)


def swapped():
    held = {"factor": lambda: 1.0}
    return lambda: held["factor"](), lambda value: held.update(factor=lambda: value)


def swapped_method():
    weights = Weights()

    def change(value):
        Weights.inherited = (lambda self: value) if value < 1 else original

    return lambda: weights.inherited(), change


original = Weights.inherited


def another_dict():
    held = SimpleNamespace(table={"beta": 1.0})
    return lambda: held.table["beta"], lambda value: setattr(held, "table", {"beta": value})


def member():
    held = {"mode": Mode.HIGH}
    return lambda: held["mode"].value, lambda value: held.update(mode=Mode(value))


def tensor_data():
    factor = torch.tensor(1.0)
    return lambda: factor, lambda value: setattr(factor, "data", torch.tensor(value))


def cached():
    held = {"beta": 1.0}
    factor = functools.lru_cache(lambda: held["beta"])
    return lambda: factor(), lambda value: (held.update(beta=value), factor.cache_clear())


def of_layer():
    layer = nn.Linear(1, 1)
    layer.beta = 1.0
    return lambda: layer.beta, lambda value: setattr(layer, "beta", value)


def private_of_layer():
    layer = nn.Linear(1, 1)
    layer._beta = 1.0
    return lambda: layer._beta, lambda value: setattr(layer, "_beta", value)


def private():
    schedule = Private()
    return lambda: schedule(), lambda value: schedule._table.update(beta=value)


PLACES = {
    "a module": lambda: (lambda: config.beta, lambda value: setattr(config, "beta", value)),
    "a module's function": lambda: (lambda: config.factor(), lambda value: setattr(config, "beta", value)),
    "a module's dict": lambda: (
        lambda: config.table["kl"]["beta"],
        lambda value: config.table["kl"].update(beta=value),
    ),
    "a class": of_class,
    "a class, of its instance": inherited,
    "an instance, in place of its class": shadowed(Default),
    "a layer, in place of its class": shadowed(DefaultOfLayer, 1, 1),
    "an instance's method": shadowed_method,
    "a partial's argument": partial,
    "named by an inner function": named_within,
    "slots": slots,
    "an array": small_array,
    "an array made a tensor": array_as_tensor,
    "a deque": in_deque,
    "a default argument": default,
    "a keyword's default": keyword_default,
    "a function's attribute": of_function,
    "another function": swapped,
    "another method": swapped_method,
    "another dict": another_dict,
    "an enum": member,
    "a tensor's data": tensor_data,
    "a cache": cached,
    "a layer's attribute": of_layer,
    "a layer's private number": private_of_layer,
    "a private dict": private,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_number_that_changes_wherever_it_lies_gets_another_graph(place):
    def make():
        get, change = PLACES[place]()
        change(1.0)
        return lambda x: plain(x, get()), lambda x: plain_guide(x, get()), change

    def before(step, svi, held):
        if step in (4, 7):  # not where a graph is compared
            held[0](0.3 if step == 4 else 1.0)

    svi, said = both(make, before)
    assert (said, kinds(svi)) == ([], ["graph"])


def test_of_what_no_code_of_the_program_names_nothing_is_looked_at():
    class Trainer:
        def __init__(self):
            self.weights = Weights()

        def model(self, x):
            plain(x, self.weights.inherited())

        def fit(self):
            return config.beta

    trainer = Trainer()

    def before(step, svi, held):
        config.beta = float(step)

    svi, said = both(lambda: (trainer.model, plain_guide), before)
    assert (said, kinds(svi)) == ([], ["graph"])


@pytest.mark.parametrize("again", [False, True])
def test_what_a_program_sets_up_when_it_is_first_run_so(again):
    """An eager step does; where it keeps doing so, the program runs eagerly."""

    def make():
        held = SimpleNamespace(scale=None)

        def model(x, more=None):
            if more is not None and (again or held.scale is None):
                held.scale = 2.0 if held.scale is None else held.scale + 1
            plain(x, held.scale or 1.0)

        return model, lambda x, more=None: plain_guide(x, 1.0)

    svi, said = both(make, call=lambda step, x: (x,) if step < 4 else (x, x))
    assert kinds(svi) == ([] if again else ["graph"] * 2)
    assert ["changes within a step" in line for line in said] == [True] * again


# What a trace does to Python is undone --------------------------------------------------------------------------------


class Counting(nn.Module):
    total = 0

    def __init__(self, how):
        super().__init__()
        self.how, self.log, self.table, self.calls = how, [], {}, 0
        self.register_buffer("buffer", torch.zeros(()))
        self.plain, self.generator = torch.zeros(()), torch.Generator().manual_seed(0)
        self.array, self.layer = np.zeros((2, 2)), nn.Identity()
        self.layer.forward = abs
        Counting.total = 0

    def model(self, x):
        self.how(self)
        plain(x)

    def state(self):
        held = float(self.buffer), float(self.plain), len(self.log), dict(self.table), self.calls
        return *held, Counting.total, self.array.tolist(), "forward" in vars(self.layer)


def rebinds_buffer(self):
    self.buffer = 0.9 * self.buffer + 1


def rebinds_tensor(self):
    self.plain = 0.9 * self.plain + 1


def appends(self):
    self.log.append(1)


def fills(self):
    self.table[len(self.table)] = 1


def counts(self):
    self.calls += 1


def counts_in_its_class(self):
    Counting.total += 1


def counts_in_an_array(self):
    self.array += 1


def swaps_forward(self):
    if "forward" in vars(self.layer):
        del self.layer.forward
    else:
        self.layer.forward = abs


CHANGES = [
    *(rebinds_buffer, rebinds_tensor, appends, fills, counts),
    *(counts_in_its_class, counts_in_an_array, swaps_forward),
]


@pytest.mark.parametrize("how", CHANGES)
def test_what_a_model_does_to_python_is_done_once_a_step(how):
    states = []

    def make():
        states.append([])
        module = Counting(how)
        return module.model, plain_guide, module

    _, said = both(make, lambda step, svi, held: states[-1].append(held[0].state()))
    assert states[0] == states[1]
    assert len(said) == 1
    assert "changes within a step" in said[0]


def test_what_is_gone_is_named_and_put_back():
    class Options:
        beta = 1.0

    layer, values = nn.Linear(1, 1), np.ones((2, 2))
    seen = Guards([lambda: (Options.beta, layer, values)], {})
    assert seen.changed() == ""
    del Options.beta
    assert "Options.beta" in seen.changed()
    seen.restore()
    assert (seen.changed(), Options.beta) == ("", 1.0)
    layer.forward = abs
    assert "forward" in seen.changed()
    seen.restore()
    assert (seen.changed(), "forward" in vars(layer)) == ("", False)
    values[1] = 2.0
    assert seen.changed() == "the array values"
    seen.restore()
    assert (seen.changed(), values.tolist()) == ("", [[1.0, 1.0], [1.0, 1.0]])


@pytest.mark.parametrize("make", [Default, lambda: DefaultOfLayer(1, 1), Sized])
def test_an_attribute_in_the_place_of_a_classs_is_taken_away_again(make):
    held = make()
    key = "size" if isinstance(held, Sized) else "beta"
    seen = Guards((lambda: getattr(held, key),), {})
    assert seen.changed() == ""
    setattr(held, key, lambda: 2.0)
    assert key in seen.changed()
    seen.restore()
    assert key not in vars(held)
    assert seen.changed() == ""


def test_members_that_are_added_or_move_are_noticed():
    one, layers, more = object(), {"a": object()}, {}
    held = Members()
    held.add("layers", layers)
    held.add("more", more)
    assert held.changed() == ""
    more["b"] = one
    assert held.changed() == "more"
    held.restore()
    more["a"] = layers.pop("a")
    assert held.changed() == "layers"
    held.restore()
    assert (held.changed(), list(layers), more) == ("", ["a"], {})


def test_a_number_of_another_type_is_another():
    options = SimpleNamespace(beta=1)
    seen = Guards([lambda: options.beta], {})
    for value in (1.0, True):
        options.beta = value
        assert seen.changed() == f"options.beta (was 1, is {value})"
    options.beta, pair = 1, SimpleNamespace(both=(torch.ones(2), torch.zeros(2)))
    seen = Guards([lambda: pair.both], {})
    pair.both = (torch.zeros(2), torch.zeros(2))
    assert seen.changed() == "pair.both"


def test_a_tensor_that_is_elsewhere_now_is_named():
    """A captured graph goes on reading where it was."""
    factor, parameter = torch.ones(3), nn.Parameter(torch.zeros(2))
    seen = Guards([lambda: factor], {parameter: "mean"})
    factor[0] = parameter.data[1] = 2.0
    assert seen.changed() == ""
    parameter.data = torch.zeros(2)
    assert seen.changed() == "parameter mean"
    seen = Guards([lambda: factor], {parameter: "mean"})
    factor.data = torch.ones(3)
    assert seen.changed().startswith("the tensor 'factor'")
    seen = Guards([lambda: factor], {parameter: "mean"})
    parameter.requires_grad_(False)
    assert seen.changed() == "whether mean is trained (was True, is False)"


def test_a_name_that_has_no_value_yet_is_no_matter():
    def make():
        later = None

        def model(x):
            plain(x)
            if len(x) > 100:
                later()  # noqa: F821

        del later  # its cell is empty now
        return model, plain_guide

    svi, said = both(make)
    assert (said, kinds(svi)) == ([], ["graph"])


def test_large_arrays_are_data():
    many, fewer = np.ones(1000), np.ones(999)
    seen = Guards([lambda: (many, fewer)], {})
    many[3] = 2.0
    assert seen.changed() == ""
    fewer[3] = 2.0
    assert seen.changed() == "the array fewer"


HELD = torch.zeros(())


@pytest.mark.parametrize("check_every", [1, 4])
def test_tensors_that_a_model_changes_in_place_are_changed_once_a_step(check_every):
    """Which are no buffers of a module: a replayed step changes them, and one that is only tried does not."""
    counts = []

    class Holder:
        def __init__(self):
            self.count = HELD.zero_().clone()

        def model(self, x):
            plain(x, 1 + (self.count.add_(1) + HELD.add_(2)) / 100)

    def make():
        counts.append([])
        holder = Holder()
        return holder.model, plain_guide, holder

    def before(step, svi, held):
        counts[-1].append((held[0].count.item(), HELD.item()))

    svi, said = both(make, before, check_every=check_every)
    assert (said, kinds(svi)) == ([], ["graph"])
    assert counts[0] == counts[1] == [(step, 2 * step) for step in range(12)]


def test_a_generator_of_ones_own_is_drawn_from_once_a_step():
    def make():
        module = Counting(lambda self: None)
        factor = lambda x: plain(x, 1 + torch.rand((), generator=module.generator))  # noqa: E731
        return factor, plain_guide

    for check_every in (1, 4):
        _, said = both(make, check_every=check_every)
        assert all("Generator" in line for line in said), "torch 2.11 cannot trace it"


# Gradients of one's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check_every", [1, 4])
@pytest.mark.parametrize("at", [{1, 2, 9, 10, 11}, {5}, set(range(1, 12))])
@pytest.mark.parametrize("loss", [Trace_ELBO, pvae.ELBO])
def test_gradients_that_are_there_before_a_step_are_added_to(at, check_every, loss):
    def before(step, svi, held):
        if step in at:
            (3 * pyro.param("mean").square().sum() + pyro.param("mean")).backward()

    svi, said = both(lambda: (plain, plain_guide), before, check_every=check_every, loss=loss)
    assert (said, kinds(svi)) == ([], ["graph"] * (len(at) < 11))


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_a_gradient_added_before_a_step_moves_the_parameter_by_as_much(mode):
    def make(added):
        def before(step, svi, held):
            if step == 1:
                pyro.param("mean").grad = torch.tensor(added)

        rate = pyro.optim.SGD({"lr": 0.01})
        return fit(mode, lambda: (plain, plain_guide), before, steps=2, loss=pvae.ELBO, optim=rate)[0][1]["mean"]

    assert (make(0.0) - make(5.0)).item() == pytest.approx(0.05, rel=1e-3)


# What is said ---------------------------------------------------------------------------------------------------------


def test_training_and_evaluation_alternate_with_a_graph_each():
    built = []

    def before(step, svi, held):
        held[0].train(step % 4 < 2)
        built.append(next(iter(svi._graphs._graphs.values()), None))

    svi, said = both(net, before, steps=40)
    assert (said, kinds(svi)) == ([], ["graph"])
    assert len(set(map(id, filter(None, built[45:])))) == 2


@pytest.mark.parametrize(("check_every", "factor"), [(1, 0.3), (4, 0.3), (1, 0.9999)])
def test_a_difference_says_which_steps_are_in_doubt(check_every, factor):
    def make():
        variable = contextvars.ContextVar("factor", default=1.0)
        return lambda x: plain(x, variable.get()), plain_guide, variable

    def before(step, svi, held):
        if step == 5:
            held[0].set(factor)

    _, said = fit("graph", make, before, steps=14, check_every=check_every)
    assert len(said) == 1
    assert "of the traced step 11 is" in said[0]
    assert "steps 3 to 10 may have used what it was before. Pass it to the step" in said[0]


def test_advice_is_of_the_kind_of_what_changes():
    def set_layer(step, svi, held):
        held[0].encoder[2] = nn.Tanh()

    _, said = both(net, set_layer)
    assert len(said) == 1
    assert "a module, parameter or buffer of" in said[0]
    assert "build modules once" in said[0]
    assert "pass it" not in said[0]


class Remembers(nn.Module):
    """Keeps to itself what it has made of its parameter: until the next run, or for that alone."""

    def __init__(self, carries, memo):
        super().__init__()
        self.mean, self.carries, self._memo = nn.Parameter(torch.tensor(0.5)), carries, memo

    def model(self, x):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0).expand([3]).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("remembers", self)
        before = self._memo[0] if self.carries else 0.0
        self._memo[0] = self.mean.detach().exp()
        pyro.sample("z", dist.Normal(self.mean + 0.1 * before + self._memo[0], 1.0))


@pytest.mark.parametrize("kind", [dict, list])
@pytest.mark.parametrize("carries", [True, False])
def test_what_a_module_keeps_to_itself_from_step_to_step(carries, kind):
    """A trial of a step leaves it as it was; where steps read what the one before left they are the program's own."""

    def losses(make, **options):
        pyro.clear_param_store()
        torch.manual_seed(0)
        program = Remembers(carries, {0: torch.zeros(())} if kind is dict else [torch.zeros(())])
        svi = make(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = [float(svi.step(torch.arange(3.0))) for _ in range(15)]
        return found, [str(each.message) for each in caught]

    expected, _ = losses(pyro.infer.SVI)
    for mode in ("off", "graph"):
        found, said = losses(pvae.SVI, compile=mode)
        assert found == pytest.approx(expected, rel=1e-6)
    assert [text for text in said if "'_memo', which a module keeps to itself, changes within a step" in text] == said
    assert len(said) == carries


@pytest.mark.parametrize(
    "read",
    [
        lambda k: int(k.item()),
        lambda k: int((k + 1).item()) - 1,
        lambda k: len(torch.arange(6)[: int((2 * k).exp().log() / 2 + 0.5)]),
        lambda k: int(torch.stack([k, 2 * k]).sum().item() / 3 + 0.5),
    ],
    ids=["itself", "of it", "of what is of it", "of several"],
)
def test_a_value_that_was_read_is_watched_also_where_it_was_read_of_what_is_made_of_it(read):
    """How often a loop goes round: a tensor that nobody passes, changed in place between two steps."""
    x = torch.arange(5.0)

    def losses(mode):
        pyro.clear_param_store()
        held = torch.tensor(2.0)

        def model(x):
            mean = pyro.param("mean", torch.tensor(0.5))
            for _ in range(read(held)):
                mean = mean * 1.1
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

        svi = pvae.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), compile=mode)
        for step in range(9):
            if step == 5:
                held.fill_(5.0)
            yield float(svi.step(x))

    assert list(losses("graph")) == pytest.approx(list(losses("off")), rel=1e-6)
