"""What Pyro's users do around a step gives the numbers that Pyro's own `SVI` gives."""

import copy
import warnings

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from programs import kinds
from pyro.distributions import constraints
from pyro.infer import (
    JitTraceEnum_ELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceTailAdaptive_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoNormal, AutoNormalMessenger
from pyro.infer.reparam import StableReparam

import pvae
from pvae.base import announce

X = torch.linspace(-1.0, 2.0, 6)


def plain(x, *others):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def plain_guide(x, *others):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), scale))


def fit(mode, make, call=lambda step: (X,), before=lambda step, svi: None, steps=12, optim=None, loss=Trace_ELBO):
    """Losses and parameters after these steps; and the SVI. Mode `pyro` is Pyro's own."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, guide = make()
    own = {} if mode == "pyro" else {"compile": mode}
    svi_class = pyro.infer.SVI if mode == "pyro" else pvae.SVI
    svi = svi_class(model, guide, (optim or (lambda: pyro.optim.Adam({"lr": 0.05})))(), loss(), **own)
    losses = []
    for step in range(steps):
        before(step, svi)
        loss_value = svi.step(*call(step))
        losses += list(loss_value) if isinstance(loss_value, tuple) else [loss_value]
    values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    return losses, values, svi


def both(make, *args, replayed=True, **options):
    expected, values, _ = fit("pyro", make, *args, **options)
    for mode in ("off", "graph"):
        found, params, svi = fit(mode, make, *args, **options)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert params.keys() == values.keys()
        for name, value in values.items():
            torch.testing.assert_close(params[name], value, rtol=1e-4, atol=1e-5)
        assert set(kinds(svi)) == ({"graph"} if replayed and mode == "graph" else set())
    return svi


# Parameters that are not in every step --------------------------------------------------------------------------------


def one_of_two(x, first):
    a, b = pyro.param("a", torch.tensor(0.0)), pyro.param("b", torch.tensor(0.5))
    pyro.sample("z", dist.Normal(a if first else b, 0.1))


def only_one_of_two(x, first):
    where = pyro.param("a", torch.tensor(0.0)) if first else pyro.param("b", torch.tensor(0.5))
    pyro.sample("z", dist.Normal(where, 0.1))


@pytest.mark.parametrize("every", [2, 5])
@pytest.mark.parametrize("guide", [one_of_two, only_one_of_two])
def test_a_parameter_that_is_named_but_not_used_goes_on_by_its_momentum(guide, every):
    both(lambda: (plain, guide), call=lambda step: (X, step % every != every - 1))


def test_two_losses_with_one_optimizer():
    """As a semi-supervised model that is also taught to classify."""

    def make():
        network = torch.nn.Sequential(torch.nn.Linear(6, 2), torch.nn.Linear(2, 2))

        def guide(x):
            pyro.module("network", network)
            mean, scale = network(x)
            pyro.sample("z", dist.Normal(mean, scale.exp()))

        def other(x):
            pyro.module("network", network)
            pyro.sample("y", dist.Normal(network[0](x)[0], 1.0), obs=torch.tensor(2.0))

        def model(x):
            plain(x)

        model.other = other
        return model, guide

    second = {}

    def before(step, svi):
        if step == 0:
            own = {"compile": svi.compile} if isinstance(svi, pvae.SVI) else {}
            second["svi"] = type(svi)(svi.model.other, lambda x: None, svi.optim, Trace_ELBO(), **own)
        elif step % 3:
            second["svi"].step(X)

    both(make, before=before, steps=20)


NO_CYCLE = {"cycle_momentum": False}


@pytest.mark.parametrize("labelled", [2, 7])
def test_steps_in_which_a_loss_has_nothing_to_score(labelled):
    """As the loss of a classifier beside a semi-supervised model, where data come without labels."""

    def make():
        network = torch.nn.Linear(6, 1)

        def classify(x, y=None):
            pyro.module("network", network)
            if y is not None:
                pyro.sample("y", dist.Normal(network(x), 1.0).to_event(1), obs=y)

        return classify, lambda x, y=None: None

    both(make, call=lambda step: (X, X[:1]) if step == 0 or step % labelled == 0 else (X,), steps=24)


# The optimizer in a user's hands --------------------------------------------------------------------------------------


def set_rate(step, svi):
    if step == 6:
        for part in svi.optim.optim_objs.values():
            part.param_groups[0]["lr"] = 0.001


def test_rates_set_on_optim_objs():
    both(lambda: (plain, plain_guide), before=set_rate)


@pytest.mark.parametrize("optim", ["Adam", "ClippedAdam", "SGD", "AdagradRMSProp", "ExponentialLR", "OneCycleLR"])
def test_an_optimizers_state_goes_on_in_another(optim):
    """With the learning rates that it had come to, from the first step on."""

    def make_optim():
        options = {"SGD": {"lr": 0.01, "momentum": 0.9}, "AdagradRMSProp": {"eta": 0.01}}
        schedules = {"ExponentialLR": {"gamma": 0.8}, "OneCycleLR": {"max_lr": 0.1, "total_steps": 30, **NO_CYCLE}}
        if optim in schedules:
            adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}}
            return getattr(pyro.optim, optim)({**adam, **schedules[optim]})
        return getattr(pyro.optim, optim)(options.get(optim, {"lr": 0.01}))

    def before(step, svi):
        if step == 11 and optim in ("Adam", "SGD"):
            for part in svi.optim.optim_objs.values():
                part.param_groups[0]["lr"] = 0.001
        elif step and optim.endswith("LR"):
            svi.optim.step()

    def resumed(mode):
        losses, _, svi = fit(mode, lambda: (plain, plain_guide), before=before, optim=make_optim)
        state = copy.deepcopy(svi.optim.get_state())
        assert state.keys() == {"mean", "scale"}
        after, kept = make_optim(), copy.deepcopy(state)
        after.set_state(state)
        own = {} if mode == "pyro" else {"compile": mode}
        svi = type(svi)(plain, plain_guide, after, Trace_ELBO(), **own)
        for step in range(6):
            losses.append(svi.step(X))
            before(step + 1, svi)
        if mode != "pyro":
            assert str(state) == str(kept), "what was given has changed"
        return losses

    expected = resumed("pyro")
    assert resumed("graph") == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("optim", ["Adam", "ExponentialLR"])
def test_an_optimizer_whose_state_is_dropped_begins_anew(optim):
    def make():
        adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.5}
        return getattr(pyro.optim, optim)({"lr": 0.05} if optim == "Adam" else adam)

    def before(step, svi):
        if optim == "ExponentialLR" and step:
            svi.optim.step()
        if step == 6:
            svi.optim.optim_objs.clear()

    both(lambda: (plain, plain_guide), before=before, optim=make)


@pytest.mark.parametrize("size", [2, 6])
def test_an_optimizer_that_asks_which_rows_a_plate_took(size):
    """It moves these alone, and their moments."""

    def model(x):
        with pyro.plate("data", 6, subsample_size=size) as rows:
            mean = pyro.param("means", torch.zeros(6), event_dim=0)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[rows])

    optim = lambda: pyro.optim.DCTAdam({"lr": 0.05, "subsample_aware": True})  # noqa: E731
    both(lambda: (model, lambda x: None), optim=optim)


def adam(**options):
    return {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, **options}


def of_each(name):
    return {"lr": 0.05 if name == "mean" else 0.02}


MOVING = {
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.8}),
    "MultiStepLR": lambda: pyro.optim.MultiStepLR(adam(milestones=[3, 6], gamma=0.1)),
    "of each": lambda: pyro.optim.LambdaLR(adam(lr_lambda=lambda step: 1 / (1 + step), optim_args=of_each)),
    "LambdaLR": lambda: pyro.optim.LambdaLR(adam(lr_lambda=lambda step: 1 / (1 + step))),
    "OneCycleLR": lambda: pyro.optim.OneCycleLR(adam(max_lr=0.2, total_steps=20, cycle_momentum=False)),
    "ReduceLROnPlateau": lambda: pyro.optim.ReduceLROnPlateau(adam(patience=0, factor=0.5)),
}
"""Optimizers whose arguments move as they go."""


@pytest.mark.parametrize("how", ["set_state", "load_state_dict"])
@pytest.mark.parametrize("kind", MOVING)
def test_a_fit_goes_on_where_its_learning_rates_were(kind, how):
    def go_on(svi, steps):
        losses = []
        for _ in range(steps):
            losses.append(svi.step(X))
            if hasattr(svi.optim, "pt_scheduler_constructor"):
                svi.optim.step(*losses[-1:] if kind == "ReduceLROnPlateau" else ())
        return losses

    def trained(mode):
        own = {} if mode == "pyro" else {"compile": mode}
        kept = []
        for _ in range(2):
            pyro.clear_param_store()
            torch.manual_seed(0)
            svi = (pyro.infer.SVI if mode == "pyro" else pvae.SVI)(
                plain, plain_guide, MOVING[kind](), Trace_ELBO(), **own
            )
            if kept:
                store, random, state, whole = kept
                pyro.get_param_store().set_state(store)
                torch.set_rng_state(random)
                svi.optim.set_state(state) if mode == "pyro" or how == "set_state" else svi.load_state_dict(state)
                return whole, go_on(svi, 5)
            go_on(svi, 5)
            taken = svi.optim.get_state() if mode == "pyro" or how == "set_state" else svi.state_dict()
            kept = copy.deepcopy([pyro.get_param_store().get_state(), torch.get_rng_state(), taken])
            kept.append(go_on(svi, 5))

    expected, after = trained("pyro")
    assert after == expected
    for mode in ("off", "graph"):
        for found in trained(mode):
            assert found == pytest.approx(expected, rel=1e-5), mode


@pytest.mark.parametrize("aware", [False, True])
def test_an_optimizer_that_asks_which_elements_were_drawn(aware):
    """Pyro's `DCTAdam` moves the moments of those alone."""
    data = torch.linspace(-1.0, 2.0, 8)

    def make():
        def model(x):
            with pyro.plate("data", 8, subsample_size=3):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=pyro.subsample(x, event_dim=0))

        return model, AutoNormal(model, create_plates=lambda x: pyro.plate("data", 8, subsample_size=3))

    def optim():
        return pyro.optim.DCTAdam({"lr": 0.05, "subsample_aware": aware})

    both(make, call=lambda step: (data,), optim=optim)


# Objectives -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        lambda: ReweightedWakeSleep(num_particles=3),
        lambda: TraceTailAdaptive_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        lambda: JitTraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    ],
    ids=["ReweightedWakeSleep", "TraceTailAdaptive", "JitTraceEnum"],
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_objectives_with_losses_of_their_own(loss):
    both(lambda: (plain, plain_guide), loss=loss)


@pytest.mark.parametrize("particles", [1, 3])
def test_a_running_mean_as_baseline(particles):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            logits = pyro.param("logits", torch.zeros(6))
            pyro.sample("z", dist.Bernoulli(logits=logits), infer={"baseline": {"use_decaying_avg_baseline": True}})

    both(lambda: (model, guide), loss=lambda: TraceGraph_ELBO(num_particles=particles))


# What programs do in Python -------------------------------------------------------------------------------------------


class Holder:
    def __init__(self):
        self.x, self.mean, self.steps, self.seen = X, torch.tensor(0.0), 0, None

    def model(self, *given):
        plain(self.x)

    def averaging(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean()
        plain(x - self.mean)

    def counting(self, x):
        self.steps += 1
        with poutine.scale(scale=min(1.0, self.steps / 10)):
            plain(x)

    def keeping(self, x):
        plain(x)
        self.seen = x.mean()


@pytest.mark.parametrize("every", [5, 1])
@pytest.mark.parametrize("how", ["attribute", "closure", "list"])
def test_data_that_is_replaced_where_the_program_finds_it(how, every):
    data, box = [X], {}

    def make():
        held = X

        def set_held(x):
            nonlocal held
            held = x

        holder = box["holder"] = Holder()
        data[0] = X
        box["set"] = {"attribute": lambda x: setattr(holder, "x", x), "closure": set_held}.get(how)
        models = {"attribute": holder.model, "closure": lambda: plain(held), "list": lambda: plain(data[0])}
        return models[how], lambda: plain_guide(None)

    def before(step, svi):
        if step % every == every - 1:
            x = X * (1 + step)
            data[0] = x
            if box["set"]:
                box["set"](x)

    both(make, call=lambda step: (), before=before)


@pytest.mark.parametrize("state", ["averaging", "counting"])
def test_state_of_its_own_is_as_it_would_be(state):
    with pytest.warns(UserWarning, match="changes within a step"):
        both(lambda: (getattr(Holder(), state), plain_guide), replayed=False)


def test_what_is_kept_to_look_at_does_no_harm():
    both(lambda: (Holder().keeping, plain_guide))


class Options:
    def __init__(self, scale):
        self.scale = scale


def test_options_as_an_argument_are_looked_at():
    def model(x, options):
        plain(x * options.scale)

    options = Options(1.0)

    def before(step, svi):
        options.scale = 1.0 if step < 7 else 2.0

    both(lambda: (model, plain_guide), call=lambda step: (X, options), before=before)


def test_other_options_as_an_argument_are_others():
    def model(x, options):
        plain(x * options.scale)

    first, second = Options(1.0), Options(2.0)
    with pytest.warns(UserWarning, match="or the same object at each step"):
        both(lambda: (model, plain_guide), call=lambda step: (X, first if step < 6 else second))


@pytest.mark.parametrize("use", ["annealing", "nothing", "both"])
def test_a_step_number_as_an_argument_is_replayed(use):
    def model(x, step, factor):
        with poutine.scale(scale={"annealing": (1 + step) / 10, "nothing": 1.0, "both": factor}[use]):
            plain(x)
        if use == "both":
            for _ in range(step):
                pass

    if use == "both":  # a number that is looked at gets graphs by value; another goes on as a tensor
        with pytest.warns(UserWarning, match="more than 8 shapes or values"):
            both(lambda: (model, plain_guide), call=lambda step: (X, step, 0.5 + step % 3), steps=14)
    else:
        svi = both(lambda: (model, plain_guide), call=lambda step: (X, step, 1.0), steps=14)
        assert len(kinds(svi)) <= 3


# What is read of constants, and of tensors that stay ------------------------------------------------------------------


Pairs = dict[str, torch.Tensor]
"""A name that programs may call; it shows the attributes of `dict`."""


def named_pairs(x):
    plain(Pairs(x=x)["x"])


def one_flag(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    y = z * 1
    y[z < 0] = 0.5
    y.data[y.data > 1] = 1
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(y, 1.0), obs=x)


@pytest.mark.parametrize("model", [named_pairs, one_flag])
def test_names_of_generic_types_and_flags_of_one_value_are_replayed(model):
    both(lambda: (model, plain_guide))


def sequential_plates(x):
    for i in pyro.plate("groups", 3):
        z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])


def sequential_guide(x):
    for i in pyro.plate("groups", 3):
        pyro.sample(f"z_{i}", dist.Normal(pyro.param("means", torch.zeros(3))[i], 1.0))


def correlated(x):
    factor = pyro.sample("factor", dist.LKJCholesky(2, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=x.reshape(3, 2))


def chosen(x):
    z = pyro.sample("z", dist.Categorical(torch.ones(2)))
    means = pyro.param("means", torch.tensor([0.0, 1.0]))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(means[z], 1.0), obs=x)


def chosen_of(index):
    """A number at some place of an index."""

    def model(x):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        means = index(pyro.param("means", torch.arange(8.0).reshape(2, 2, 2)), z)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(means.flatten()[0] + means.sum(), 1.0), obs=x)

    return lambda: (model, chosen_guide)


def chosen_guide(x):
    pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.zeros(2))))


def clamped(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    far = z.abs() > 1
    near = torch.zeros(6)
    near[far] = z[far]
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(near, 1.0), obs=x)


def flow(transform):
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model(x):
        pyro.module("transform", transform)
        with pyro.plate("data", 3):
            pyro.sample("x", dist.TransformedDistribution(base, [transform]), obs=x.reshape(3, 2))

    return model, lambda x: None


def spline():
    """It asserts something of values, and copies where a mask is."""
    return flow(dist.transforms.Spline(2, count_bins=4))


def autoregressive():
    """Its density reads an order that is a buffer."""
    return flow(dist.transforms.affine_autoregressive(2, hidden_dims=[4]))


READING = {
    "autoregressive": (autoregressive, Trace_ELBO),
    "spline": (spline, Trace_ELBO),
    "sequential plate": (lambda: (sequential_plates, sequential_guide), Trace_ELBO),
    "LKJ": (lambda: (correlated, AutoNormal(correlated)), Trace_ELBO),
    "sequential enumeration": (
        lambda: (chosen, config_enumerate(chosen_guide, "sequential")),
        lambda: TraceEnum_ELBO(max_plate_nesting=1),
    ),
    "a number as index": (lambda: (chosen, chosen_guide), Trace_ELBO),
    "a number behind all": (chosen_of(lambda means, z: means[..., z]), Trace_ELBO),
    "a number before all": (chosen_of(lambda means, z: means[z, ...]), Trace_ELBO),
    "a number between": (chosen_of(lambda means, z: means[:, z]), Trace_ELBO),
    "numbers about all": (chosen_of(lambda means, z: means[z, ..., z]), Trace_ELBO),
    "where a mask is": (lambda: (clamped, AutoNormal(clamped)), Trace_ELBO),
}


@pytest.mark.parametrize("program", READING)
def test_what_is_read_of_constants_is_replayed(program):
    make, loss = READING[program]
    both(make, loss=loss, call=lambda step: (X + step,))


@pytest.mark.parametrize("how", ["range", "slice", "packed"])
def test_lengths_that_stay_are_read(how):
    lengths, sequences = torch.tensor([3, 2]), torch.linspace(0.0, 1.0, 6).reshape(2, 3, 1)
    network = torch.nn.RNN(1, 1, batch_first=True)

    @config_enumerate
    def model(x, lengths):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        if how == "packed":
            pyro.module("network", network)
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            x, _ = torch.nn.utils.rnn.pad_packed_sequence(network(packed)[0], batch_first=True)
        for i in pyro.plate("sequences", len(x)):
            z = 0
            for t in pyro.markov(range(lengths.max() if how == "range" else int(lengths[i]))):
                z = pyro.sample(f"z_{i}_{t}", dist.Bernoulli(0.2 + 0.6 * p * z))
                value = x[i, : lengths[i]][t % 2] if how == "slice" else x[i, t]
                pyro.sample(f"x_{i}_{t}", dist.Normal(z, 1.0), obs=value.detach()[0])

    both(
        lambda: (model, AutoDelta(poutine.block(model, expose=["p"]))),
        loss=lambda: TraceEnum_ELBO(max_plate_nesting=0),
        call=lambda step: (sequences + step / 10, lengths),
    )


def test_whole_numbers_that_are_read_are_compared():
    """However they are changed."""
    lengths = torch.tensor([3, 2])

    def before(step, svi):
        lengths.data[0] = 3 if step < 6 else 1

    def model(x, lengths):
        plain(x[: int(lengths[0])])

    both(lambda: (model, plain_guide), call=lambda step: (X, lengths.clone()), before=before)
    both(lambda: (model, plain_guide), call=lambda step: (X, lengths), before=before)


# Parameters that are made anew ----------------------------------------------------------------------------------------


def clear(step, svi):
    if step in (5, 9):
        pyro.clear_param_store()


def by_chance(x):
    start = pyro.param("mean", lambda: torch.randn(()))
    pyro.sample("z", dist.Normal(start, pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)))


def test_what_parameters_draw_for_themselves_comes_before_the_steps_own_draws():
    both(lambda: (plain, by_chance), before=clear)


DECAYING = [
    lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.7}),
    lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.6}),
    lambda: pyro.optim.Adam(lambda name: {"lr": 0.05 if name == "mean" else 0.02}),
]


def decay(step, svi):
    clear(step, svi)
    if hasattr(svi.optim, "pt_scheduler_constructor") and step:
        svi.optim.step()
    elif step in (3, 7, 11):
        for part in svi.optim.optim_objs.values():
            for group in part.param_groups:
                group["lr"] = group["lr"] * 0.5


@pytest.mark.parametrize("optim", DECAYING, ids=["ClippedAdam", "ExponentialLR", "Adam"])
def test_parameters_that_are_made_anew_begin_with_the_first_learning_rate(optim):
    both(lambda: (plain, plain_guide), before=decay, optim=optim, steps=14)


@pytest.mark.parametrize("optim", DECAYING, ids=["ClippedAdam", "ExponentialLR", "Adam"])
def test_a_store_put_aside_has_its_learning_rates_again(optim):
    """Where one of two parameters is replaced, the other goes on as it was."""
    kept = {}

    def before(step, svi):
        store = pyro.get_param_store()
        if step == 3:
            for part in svi.optim.optim_objs.values():
                getattr(part, "optimizer", part).param_groups[0]["lr"] *= 0.1
        if step == 5:
            kept.update(store.get_state())
            del store["mean"]
        if step == 8:
            store.set_state(kept)
        if step > 3 and hasattr(svi.optim, "pt_scheduler_constructor"):
            svi.optim.step()

    both(lambda: (plain, plain_guide), before=before, optim=optim)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ExponentialLR", {"gamma": 0.7}),
        ("LambdaLR", {"lr_lambda": lambda epoch: 0.5 / (1 + epoch)}),
        ("CosineAnnealingLR", {"T_max": 6}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 20, **NO_CYCLE}),
        ("ReduceLROnPlateau", {"patience": 0}),
    ],
)
def test_a_parameter_that_begins_late_has_a_schedule_of_its_own(name, options):
    def guide(x, late):
        scale = pyro.param("late", torch.tensor(0.8)) if late else 0.8
        pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), scale))

    def before(step, svi):
        if step:
            svi.optim.step(*([1.0] if name == "ReduceLROnPlateau" else []))

    adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}}
    make = lambda: getattr(pyro.optim, name)({**adam, **options})  # noqa: E731
    both(lambda: (plain, guide), call=lambda step: (X, step >= 4), before=before, optim=make)


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_a_resumed_run_is_where_its_schedule_was(mode):
    def steps(svi, count):
        losses = []
        for _ in range(count):
            losses.append(svi.step(X))
            svi.optim.step()
        return losses

    def fresh():
        adam = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}}
        return pvae.SVI(
            plain, plain_guide, pyro.optim.CosineAnnealingLR({**adam, "T_max": 9}), Trace_ELBO(), compile=mode
        )

    torch.manual_seed(0)
    whole = steps(fresh(), 10)
    pyro.clear_param_store()
    torch.manual_seed(0)
    svi = fresh()
    losses, state = steps(svi, 5), svi.state_dict()
    svi = fresh()
    svi.load_state_dict(copy.deepcopy(state))
    assert losses + steps(svi, 5) == whole


@pytest.mark.parametrize("kind", ["a rate of its own", "late", "later", "a module", "a later module", "a late module"])
def test_a_resumed_run_has_the_state_of_each_parameter(kind):
    """Also where parameters come in other groups, or in another order, than before; and modules under other names."""
    every = []

    def fresh():
        parts = [pvae.MeanField(torch.nn.Linear(1, 2), 1), pvae.Normal(1), pvae.MeanField(torch.nn.Linear(1, 2), 1)]
        every.append(parts)  # which keeps their names from others
        return parts, pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile="off")

    def model(x):
        plain(x)
        pyro.sample("y", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    def guide(x):
        if late[0]:
            scale = pyro.param("scale", torch.tensor(0.5))
        mean = pyro.param("mean", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(mean, scale if late[0] else 0.5))
        pyro.sample("y", every[-1][0 if late[0] and "module" in kind else 2](mean.reshape(1, 1)))
        announce(every[-1][2])

    late = ["late" not in kind]
    parts, svi = fresh()
    store = pyro.get_param_store()
    svi.step(X)
    if kind == "a rate of its own":
        svi.optim.optim_objs[store._params["mean"]].param_groups[0]["lr"] = 0.001
    late[0] = True
    svi.step(X)
    saved, values, random = copy.deepcopy(svi.state_dict()), copy.deepcopy(store.get_state()), torch.get_rng_state()
    weights = copy.deepcopy([part.state_dict() for part in parts])

    def further(svi):
        late[0] = "later" not in kind
        losses = [svi.step(X)]
        late[0] = True
        return losses + [svi.step(X) for _ in range(4)]

    expected = further(svi)
    pyro.clear_param_store()
    store.set_state(values)
    parts, svi = fresh()
    torch.set_rng_state(random)
    for part, state in zip(parts, weights, strict=True):
        part.load_state_dict(state)
    svi.load_state_dict(saved)
    if kind == "a late module":  # it may come before the others now
        with pytest.raises(ValueError, match="modules came at other steps"):
            further(svi)
    else:
        assert further(svi) == expected


@pytest.mark.parametrize("other", ["a torch optimizer", "parameters"])
def test_a_state_of_something_else_is_refused(other):
    def another_guide(x):
        pyro.sample("z", dist.Normal(pyro.param("place", torch.tensor(0.0)), 1.0))

    optim = pyro.optim.Adam({"lr": 0.01})
    first = pvae.SVI(plain, plain_guide, torch.optim.Adam if other == "a torch optimizer" else optim, Trace_ELBO())
    first.step(X)
    svi = pvae.SVI(plain, another_guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.load_state_dict(first.state_dict())
    said = {"a torch optimizer": "found that of a torch optimizer, expected that of a pyro.optim"}
    with pytest.raises(ValueError, match=said.get(other, "it has 'scale', the programs 'place'")):
        svi.step(X)


def test_two_svis_share_an_optimizer_with_a_schedule():
    second = {}

    def before(step, svi):
        if step == 0:
            own = {"compile": svi.compile} if isinstance(svi, pvae.SVI) else {}
            second["svi"] = type(svi)(plain, plain_guide, svi.optim, Trace_ELBO(), **own)
        else:
            second["svi"].step(X)
            svi.optim.step()

    both(lambda: (plain, plain_guide), before=before, optim=DECAYING[1])


# Distributions that look at their parameters -------------------------------------------------------------------------


@pytest.mark.parametrize("stability", [1.7, 1.001])
def test_a_stable_distribution_is_replayed(stability):
    """Near a stability of 1 it interpolates, elsewhere it spares the work."""

    def make():
        def model(x):
            a = pyro.param("a", torch.tensor(stability), constraint=constraints.interval(0.1, 2.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Stable(a, 0.3, 1.0), obs=x)

        return poutine.reparam(model, config={"x": StableReparam()}), AutoNormal(
            poutine.block(poutine.reparam(model, config={"x": StableReparam()}), hide=["a"])
        )

    both(make, optim=lambda: pyro.optim.Adam({"lr": 0.001}))


# Running statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", ["particles", "both programs", "unused"])
def test_running_statistics_move_at_each_run_of_a_network(runs):
    network = torch.nn.BatchNorm1d(2)

    def make():
        network.reset_parameters()

        def model(x):
            pyro.module("network", network)
            pairs = torch.stack([x, x * x], -1)
            shift = network(pairs).sum(-1)
            if runs != "particles":
                again = network(pairs if runs == "both programs" else pairs + 1).sum(-1)
                shift = shift + again if runs == "both programs" else shift
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

        return model, lambda x: None

    def loss():
        return Trace_ELBO(num_particles=3 if runs == "particles" else 1)

    found = []
    for mode in ("pyro", "off", "graph"):
        fit(mode, make, loss=loss)
        found.append({name: value.clone() for name, value in network.state_dict().items()})
    assert found[0]["num_batches_tracked"] == (36 if runs == "particles" else 24)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)
        assert torch.equal(found[2][name], found[1][name]), name


def test_clipped_adam_has_all_digits_of_its_first_steps():
    parameters = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    ours, pyros = pvae.svi.ClippedAdam(parameters[:1]), pyro.optim.clipped_adam.ClippedAdam(parameters[1:])
    for step in range(4):
        for parameter, optimizer in zip(parameters, (ours, pyros), strict=True):
            parameter.grad = torch.tensor([1.0, -2.0, 0.1], dtype=torch.float64) * (step + 1)
            optimizer.step()
    torch.testing.assert_close(*parameters, rtol=1e-13, atol=0)


LATE = {
    "SGD": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
}


@pytest.mark.parametrize("optim", LATE.values(), ids=LATE)
def test_a_parameter_that_begins_later_than_others_of_its_group(optim):
    """Torch's fused step of SGD wants the momentum of all or of none; the other makes its state where it is made."""

    def make():
        layers = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(2))

        def model(x, both_layers):
            pyro.module("layers", layers)
            shift = layers[0](x.unsqueeze(-1)) + (layers[1](x.unsqueeze(-1)) if both_layers else 0.0)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(shift.squeeze(-1), 1.0), obs=x)

        return model, lambda x, both_layers: None

    both(make, call=lambda step: (X, step > 4), optim=optim)


def test_one_parameters_part_of_the_optimizer_is_its_own():
    """Also where all parameters' rates are made smaller, one after another."""

    def before(step, svi):
        store, parts = pyro.get_param_store(), svi.optim.optim_objs
        if step == 4:
            for part in parts.values():
                part.param_groups[0]["lr"] *= 0.5
        if step in (7, 9):
            part = next(part for p, part in parts.items() if store.param_name(p) == "mean")
            part.param_groups[0].update(lr=0.1 if step == 7 else 0.025, betas=(0.5, 0.9))
            assert part.param_groups[0]["betas"] == (0.5, 0.9)
            assert part.state_dict()["param_groups"][0]["lr"] == part.param_groups[0]["lr"]

    svi = both(lambda: (plain, plain_guide), before=before, steps=14)
    assert len(svi.optimizer.param_groups) == 2


def empirical(x):
    mean = pyro.param("prior mean", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class LearnedPrior(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = pyro.nn.PyroParam(torch.tensor(1.0), dist.constraints.positive)
        self.linear = pyro.nn.PyroModule[torch.nn.Linear](1, 2)
        self.linear.weight = pyro.nn.PyroSample(lambda _: dist.Normal(0.0, self.scale).expand([2, 1]).to_event(2))
        self.mean = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x):
        w = pyro.sample("w", dist.Normal(self.mean.expand(4, 3), 1.0).to_event(2))
        mean = self.linear(x[:, None]).sum(-1) + w.sum()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("guide", [AutoNormal, AutoDelta, AutoNormalMessenger])
@pytest.mark.parametrize("make", [lambda: empirical, LearnedPrior])
def test_priors_with_parameters_under_autoguides(make, guide, mode):
    """These keep the prior as it was first drawn, expanded."""

    def fit(kind, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model = make()
        svi = kind(model, guide(model), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **options)
        return [float(svi.step(torch.linspace(-1.0, 1.0, 12) + 0.01 * step)) for step in range(6)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(pvae.SVI, compile=mode) == pytest.approx(fit(pyro.infer.SVI), rel=1e-5)


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_a_step_that_validation_refuses_changes_no_buffer(mode):
    class Program(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3)

        def model(self, x):
            pyro.module("program", self)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.linear(self.norm(x)), 1.0).to_event(1), obs=x)

    program = Program()
    svi = pvae.SVI(program.model, lambda x: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), compile=mode)
    bad = torch.randn(6, 3).index_fill(0, torch.tensor([2]), float("nan"))
    for count in range(3):
        before = copy.deepcopy(program.state_dict())
        random = torch.get_rng_state()
        with pytest.raises(ValueError, match="nan"):
            svi.step(bad)
        assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        svi.step(torch.randn(6, 3))
        assert program.norm.num_batches_tracked == count + 1


def with_network():
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def model(x, y):
        pyro.module("network", network)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(network(x)[:, 0] + w.sum(), scale), obs=y)

    return model, network


@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("restored", ["store", "store and module"])
def test_networks_of_pyro_module_go_on_with_what_the_store_has(restored, mode):
    """A fresh network has parameters of its own, which Pyro would use and not train."""

    def build(seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        model, network = with_network()
        optim = pyro.optim.Adam({"lr": 0.05})
        return pvae.SVI(model, AutoNormal(model), optim, Trace_ELBO(), compile=mode), network

    x, y = torch.linspace(-1.0, 1.0, 60).view(20, 3), torch.linspace(-1.0, 1.0, 20)
    svi, network = build(0)
    for _ in range(4):
        svi.step(x, y)
    saved = copy.deepcopy((svi.state_dict(), pyro.get_param_store().get_state(), network.state_dict()))
    random = torch.get_rng_state()
    whole = [svi.step(x, y) for _ in range(4)]
    svi, network = build(1)
    pyro.get_param_store().set_state(saved[1])
    if restored == "store and module":
        network.load_state_dict(saved[2])
    svi.load_state_dict(saved[0])
    torch.set_rng_state(random)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [svi.step(x, y) for _ in range(4)] == whole
    assert torch.equal(pyro.param("network$$$0.weight"), network[0].weight)


@pytest.mark.parametrize("updated", [False, True])
def test_a_network_that_is_not_what_the_store_has_is_told_of(updated):
    pyro.clear_param_store()
    x, y = torch.ones(5, 3), torch.ones(5)
    model, network = with_network()
    pvae.SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile="off").step(x, y)
    model, network = with_network()
    if updated:
        pyro.module("network", network, update_module_params=True)
    svi = pvae.SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile="graph")
    before = network[0].weight.detach().clone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            svi.step(x, y)
    told = ["'network$$$0.weight' of Pyro's store is another" in str(w.message) for w in caught]
    assert told == [True] * (not updated)
    assert torch.equal(network[0].weight, before) != updated
