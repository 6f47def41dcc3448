"""pvae.SVI against Pyro's own, on programs of every kind; and what it refuses."""

import math
import warnings
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from programs import by_hand, kinds
from pyro.distributions import constraints
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam

import pvae
from pvae.svi import Loss, building, graphs


def regression(data):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("y", dist.Normal(data[:, :2] @ weight, scale), obs=data[:, 2])


def regression_guide(data):
    mean = pyro.param("mean", torch.zeros(2))
    spread = pyro.param("spread", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("weight", dist.Normal(mean, spread).to_event(1))
    pyro.sample("scale", dist.LogNormal(pyro.param("log_scale", torch.tensor(0.0)), 0.1))


def score_function_model(data):
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(2 * z, 1.0), obs=data[:, 2])


def score_function_guide(data):
    logit = pyro.param("logit", torch.tensor(0.1))
    with pyro.plate("data", len(data)):
        pyro.sample("z", dist.Bernoulli(logits=logit * data[:, 0]))


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, data):
        mean = self.linear(data[:, :2]).squeeze(-1)
        with pyro.plate("data", len(data)):
            pyro.sample("y", dist.Normal(mean, self.scale), obs=data[:, 2])


def nothing(data):
    pass


PROGRAMS = {
    "param": lambda: (regression, regression_guide),
    "autoguide": lambda: (regression, AutoNormal(regression)),
    "score function": lambda: (score_function_model, score_function_guide),
    "PyroModule": lambda: (Regression(), nothing),
}
OPTIMIZERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05}),
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}),
}


def run(svi_class, program, optim, loss, steps=5):
    pyro.clear_param_store()
    torch.manual_seed(0)
    data = torch.randn(20, 3)
    model, guide = PROGRAMS[program]()
    svi = svi_class(model, guide, OPTIMIZERS[optim](), loss)
    losses = [svi.step(data) for _ in range(steps)]
    return losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_pyros_programs_train_as_under_pyro(program, optim):
    expected, expected_params = run(pyro.infer.SVI, program, optim, Trace_ELBO())
    found, params = run(pvae.SVI, program, optim, Trace_ELBO())
    assert found == pytest.approx(expected, rel=1e-4)
    assert params.keys() == expected_params.keys()
    for name in params:
        torch.testing.assert_close(params[name], expected_params[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [Trace_ELBO(num_particles=3), TraceMeanField_ELBO(), RenyiELBO(num_particles=4)],
    ids=lambda loss: type(loss).__name__,
)
def test_pyros_objectives_run_and_improve(loss):
    losses, _ = run(pvae.SVI, "param", "Adam", loss, steps=60)
    assert sum(losses[-10:]) < sum(losses[:10]) - 10


def test_a_loss_that_is_a_function(vae, x):
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), by_hand)
    losses = [svi.step(x) for _ in range(100)]
    assert losses[-1] < losses[0] - 5


# One optimizer --------------------------------------------------------------------------------------------------------


def test_one_fused_optimizer_over_all_parameters(vae, x):
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), pvae.ELBO())
    svi.step(x)
    (group,) = svi.optimizer.param_groups
    assert group["fused"]
    assert {id(p) for p in group["params"]} == {id(p) for p in vae.parameters()}


def test_arguments_by_parameter_become_groups(vae, x):
    names = []

    def arguments(name):
        names.append(name)
        return {"lr": 1e-2} if "decoder" in name else {"lr": 1e-3}

    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam(arguments), pvae.ELBO())
    svi.step(x)
    assert [(group["lr"], len(group["params"])) for group in svi.optimizer.param_groups] == [(1e-3, 4), (1e-2, 4)]
    assert "likelihood.decoder.layers.0.weight" in names


def test_parameters_left_out_of_a_torch_optimizer_are_named(vae, x):
    optim = torch.optim.SGD(vae.posterior.parameters(), lr=1e-3)
    svi = pvae.SVI(vae.model, vae.guide, optim, pvae.ELBO())
    said = "4 parameters of the program are not in the torch optimizer.*decoder"
    with pytest.warns(UserWarning, match=said) as found:
        svi.step(x)
    assert {warning.filename for warning in found} == {__file__}


def test_parameters_that_turn_up_later_train(x):
    steps = []

    def model(data):
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0), obs=data)
        if len(steps) > 1:
            pyro.sample("extra", dist.Normal(pyro.param("late", torch.tensor(0.0)), 1.0), obs=torch.tensor(3.0))

    svi = pvae.SVI(model, nothing, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(4):
        steps += [svi.step(torch.ones(5))]
    assert pyro.param("late").item() == pytest.approx(0.2, abs=0.01)


def test_gradients_are_clipped_by_their_global_norm(vae, x):
    svi = pvae.SVI(vae.model, vae.guide, lambda p: torch.optim.SGD(p, lr=1.0), pvae.ELBO(), clip_norm=0.01)
    before = torch.cat([p.detach().flatten().clone() for p in vae.parameters()])
    svi.step(x)
    after = torch.cat([p.detach().flatten() for p in vae.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_schedule_scales_the_rates(vae, x):
    svi = pvae.SVI(
        vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), pvae.ELBO(), schedule=lambda step: 1 / (1 + step)
    )
    rates = []
    for _ in range(3):
        svi.step(x)
        rates += [float(svi.optimizer.param_groups[0]["lr"])]
    assert rates == pytest.approx([0.1, 0.05, 0.1 / 3])


def test_momentum_that_has_decayed_to_nothing_is_zero(vae, x):
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pvae.ELBO())
    for step in range(1, 201):
        svi.step(x)
        state = svi.optimizer.state[next(vae.likelihood.parameters())]["exp_avg"]
        if step == 199:
            state.view(-1)[0] = 1e-41  # its next value is denormal too, if the gradient is zero
            kept = state.view(-1)[1].item()
            vae.likelihood.requires_grad_(False)
    assert state.view(-1)[0] == 0
    assert state.view(-1)[1] == kept != 0


# Steps that are not finite --------------------------------------------------------------------------------------------


def nan_program(where):
    def model(data):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z / (data * 0) if where == "model" else z
            pyro.sample("x", dist.Normal(mean, 1.0), obs=data)

    def guide(data):
        mean = pyro.param("mean", torch.tensor(math.nan if where == "parameter" else 0.5))
        with pyro.plate("data", len(data)):
            if where == "gradient":
                mean = mean + (mean * 0).sqrt()
            scale = torch.tensor(math.nan) if where == "guide" else torch.tensor(1.0)
            pyro.sample("z", dist.Normal(mean, scale, validate_args=False))

    return model, guide


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("model", r"step 1: the loss is .*: in the model, site 'x': its log_prob is"),
        ("guide", r"step 1: the loss is nan: in the guide, site 'z': its value is nan at \[0"),
        ("gradient", r"step 1: the loss is .*: the gradient of 'mean' is not finite"),
        ("parameter", r"step 1: the loss is nan: parameter 'mean' was not finite before the step"),
    ],
)
def test_a_step_that_is_not_finite_is_refused_and_its_site_named(where, message):
    model, guide = nan_program(where)
    optim = pyro.optim.Adam({"lr": 0.1})
    svi = pvae.SVI(model, guide, optim, pvae.ELBO(max_plate_nesting=1))
    with pytest.raises(pvae.NonFiniteError, match=message) as found:
        svi.step(torch.ones(4))
    assert found.value.step == 1
    assert pyro.param("mean").item() == (0.5 if where != "parameter" else pytest.approx(math.nan, nan_ok=True))
    assert svi.steps == 0


def test_a_site_is_named_with_its_particle():
    def model(data):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z / data, 1.0, validate_args=False), obs=data)

    _, guide = nan_program("model")
    svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pvae.IWAE(3, max_plate_nesting=1))
    with pytest.raises(pvae.NonFiniteError, match=r"in the model, site 'x': its log_prob is -inf at \[0, 2\]"):
        svi.step(torch.tensor([1.0, 1.0, 0.0, 1.0]))


def test_a_site_is_named_under_a_loss_that_is_a_function():
    svi = pvae.SVI(*nan_program("guide"), pyro.optim.Adam({"lr": 0.1}), by_hand)
    with pyro.validation_enabled(False), pytest.raises(pvae.NonFiniteError, match=r"in the guide, site 'z': its value"):
        svi.step(torch.ones(4))


def test_a_sum_that_overflows_is_no_sites_doing():
    def model(data):
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0), obs=data)

    svi = pvae.SVI(model, nothing, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.raises(pvae.NonFiniteError, match=r"is finite: their sum or norm overflows$"):
        svi.step(torch.full((4,), 1.5e19))


def test_an_objective_of_ones_own_that_is_not_finite_is_named():
    class Trimmed(pvae.ELBO):
        def bound(self, log_w):
            return super().bound(log_w) + torch.nan

    def model(data):
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(torch.zeros(4), 1.0)), 1.0), obs=data)

    def guide(data):
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0))

    svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trimmed())
    with pytest.raises(pvae.NonFiniteError, match=r"or what Trimmed makes of them is not finite$"):
        svi.step(torch.ones(4))


def test_a_support_of_many_bounds_is_named_alone():
    def model(data):
        pyro.sample("x", dist.Binomial(torch.full((20, 20), 9), torch.tensor(0.5)).to_event(2), obs=data)

    svi = pvae.SVI(model, nothing, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.raises(ValueError, match=r"expected IntegerInterval, as Binomial") as found:
        svi.step(torch.full((20, 20), 0.5))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "fast"}, "compile: found 'fast', expected one of auto, off, graph, full"),
        ({"precision": "fp8"}, "precision: found 'fp8', expected one of float32, tf32, bf16"),
        ({"loss": "elbo"}, r"loss: found 'elbo', expected a pyro.infer.ELBO, as pvae.ELBO\(\), or a function"),
        ({"loss": pvae.ELBO}, r"loss: found <class 'pvae.*ELBO'>, expected a pyro.infer.ELBO, as pvae.ELBO\(\)"),
        ({"loss": Trace_ELBO()(nothing, nothing)}, "loss: found a ELBOModule, expected a pyro.infer.ELBO"),
        ({"model": None}, "model: found None, expected a Pyro program"),
        ({"guide": torch.nn.Module()}, "guide: found a Module, .* has no forward: pass its method, as vae.guide"),
        ({"optim": 0.1}, r"optim: found 0.1, expected pyro.optim.Adam\({'lr': 1e-3}\) or the like, a torch optimizer"),
        ({"optim": pyro.optim.Adam}, "optim: found <function .*, expected pyro.optim.Adam"),
        ({"clip_norm": -1.0}, "clip_norm: found -1.0, expected a number above 0, or None"),
        ({"clip_norm": math.nan}, "clip_norm: found nan, expected a number above 0"),
        ({"steps": -1}, "steps: found -1, expected a number of at least 0, or None"),
        ({"check_every": 0}, "check_every: found 0, expected a whole number of at least 1, or None"),
        ({"schedule": 0.5}, "schedule: found 0.5, expected a function from the number of steps taken to a factor"),
        ({"schedule": torch.optim.lr_scheduler.StepLR}, "schedule: found <class .*StepLR'>, expected a function"),
        ({"notice": None}, "notice: found None, expected a function of a line of text"),
    ],
)
def test_options_that_are_none_are_refused(options, message):
    usual = {"model": regression, "guide": nothing, "optim": pyro.optim.Adam({"lr": 0.1}), "loss": Trace_ELBO()}
    with pytest.raises(ValueError, match=message):
        pvae.SVI(**{**usual, **options})


@pytest.mark.parametrize("optim", [torch.optim.SGD, pyro.optim.clipped_adam.ClippedAdam])
def test_a_class_of_optimizers_is_a_function_to_one(optim, vae, x):
    svi = pvae.SVI(vae.model, vae.guide, optim, pvae.ELBO())
    svi.step(x)
    assert type(svi.optimizer) is optim


def test_a_function_that_gives_no_optimizer_is_refused(vae, x):
    svi = pvae.SVI(vae.model, vae.guide, lambda parameters: None, pvae.ELBO())
    with pytest.raises(ValueError, match="optim: found a function that gives a NoneType, expected one that gives a t"):
        svi.step(x)


def test_a_loss_is_a_number():
    loss = Loss(torch.tensor(2.5))
    assert (repr(loss), int(loss), bool(loss), bool(Loss(torch.tensor(0.0)))) == ("2.5", 2, True, False)
    assert {2.5: "found"}[loss] == "found"
    assert np.mean([loss, Loss(torch.tensor(0.5))]) == 1.5
    assert np.asarray(loss, dtype=np.float32).dtype == np.float32
    assert (1 - loss, loss**2, -loss, abs(-loss)) == (-1.5, 6.25, -2.5, 2.5)
    assert loss < Loss(torch.tensor(3.0))


def test_programs_without_parameters_are_refused():
    def model(data):
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=data)

    svi = pvae.SVI(model, nothing, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.raises(ValueError, match=r"^no parameter of model or guide has a gradient.*pyro.module\("):
        svi.step(torch.ones(3))


def test_no_memory_for_a_graph_means_eager_steps(new_vae, x, monkeypatch):
    def steps(svi):
        torch.manual_seed(2)
        return [float(svi.step(x)) for _ in range(12)]

    def fresh(**options):
        vae = new_vae()
        return pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pvae.ELBO(), **options)

    def full(*_):
        if len(calls) > 4:
            raise torch.OutOfMemoryError
        calls.append(1)
        return real(*_)

    expected, calls, real = steps(fresh(compile="off")), [], graphs.Graph.heads
    monkeypatch.setattr(graphs.Graph, "heads", full)
    with pytest.warns(UserWarning, match="the program runs eagerly: no memory is left"):
        assert steps(fresh(check_every=10)) == expected
    monkeypatch.setattr(building, "record", lambda *_, **__: full())
    with pytest.warns(UserWarning, match="the program runs eagerly: no memory is left"):
        assert steps(fresh()) == expected


def test_a_compiler_that_fails_leaves_the_graph(monkeypatch):
    def compiled(*_):
        raise RuntimeError("no compiler is there\nmore of it")

    monkeypatch.setattr(building.compiling, "compiled", compiled)
    data = torch.randn(20, 3)
    found = []
    for mode in ("off", "full"):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = pvae.SVI(regression, regression_guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), compile=mode)
        found.append([])
        with (
            pytest.warns(UserWarning, match="as it is: inductor: no compiler is there$")
            if mode == "full"
            else nullcontext()
        ):
            found[-1] = [float(svi.step(data)) for _ in range(4)]
    assert kinds(svi) == ["graph"]
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_rows_are_looked_at_when_their_step_is_near():
    looked = []

    def rows():
        for i in range(1000):
            looked.append(i)
            yield torch.tensor([0, 1])

    svi = pvae.SVI(regression, regression_guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    next(svi.run(rows(), torch.randn(4, 3)))
    assert len(looked) <= graphs.BLOCK


def test_a_graph_is_compiled_in_the_precision_of_the_steps(monkeypatch):
    seen = []

    def compiled(graph, inputs):
        seen.append(torch.get_float32_matmul_precision())
        return graph

    monkeypatch.setattr(building.compiling, "compiled", compiled)
    for precision in ("tf32", "float32"):
        pyro.clear_param_store()
        optim = pyro.optim.Adam({"lr": 0.1})
        svi = pvae.SVI(regression, regression_guide, optim, Trace_ELBO(), compile="full", precision=precision)
        for _ in range(3):
            svi.step(torch.randn(4, 3))
    assert seen == ["high", "highest"]
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def in_the_new_way():
    """Products in tf32 as torch now wants it said, after which its old way of asking raises."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        torch.get_float32_matmul_precision()
    yield
    assert torch.backends.cuda.matmul.fp32_precision == "tf32", "it was put back"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_the_precision_of_products_may_have_been_set_in_the_new_way(precision, in_the_new_way):
    svi = pvae.SVI(regression, regression_guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), precision=precision)
    for _ in range(3):
        svi.step(torch.randn(4, 3))
    assert {graph.kind for graph in svi._graphs._graphs.values()} == {"graph"}


def test_a_step_that_is_not_finite_says_which_argument_is_not():
    svi = pvae.SVI(regression, regression_guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    data = torch.randn(4, 3)
    for _ in range(3):
        svi.step(data)
    data = data.clone()
    data[2, 1] = torch.nan
    with pytest.raises(pvae.NonFiniteError, match=r"argument 1 of the step is nan at \[2, 1\]"):
        svi.step(data)


def test_a_warning_is_attributed_to_the_line_that_takes_the_step():
    def model(data):
        float(pyro.sample("w", dist.Normal(0.0, 1.0)))
        pyro.sample("y", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=data.sum())

    svi = pvae.SVI(
        model, lambda data: pyro.sample("w", dist.Normal(0.0, 1.0)), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()
    )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(3):
            svi.step(torch.ones(2))
    assert [warning.filename for warning in found] == [__file__]
    assert "which a graph cannot do: use torch.where" in str(found[0].message)


def weighted(x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ pyro.param("weight", torch.ones(3)), 1.0), obs=y[:, 0])


class Centred(torch.nn.Module):
    """Its data are held against a tensor of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.arange(12.0).reshape(4, 3))

    def model(self, x):
        weight = pyro.param("weight", torch.ones(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.centre * weight, 1.0).to_event(1), obs=x)


def run_both(make, arguments, around=lambda step: nullcontext()):
    """Losses of steps taken eagerly and replayed, each within `around(step)`, and the replaying SVI."""
    losses = []
    for mode in ("off", "graph"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide = make()
        svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), compile=mode)
        losses.append([])
        for step, given in enumerate(arguments(model)):
            with around(step):
                losses[-1].append(float(svi.step(*given)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    return svi


def test_one_tensor_given_twice_is_two_arguments():
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    svi = run_both(lambda: (weighted, lambda x, y: None), lambda model: [(x, x)] * 4 + [(x, y), (y, x)])
    assert svi._graphs._graphs


def test_a_tensor_of_the_program_given_to_it_is_an_argument():
    def arguments(model):
        return [(model.__self__.centre,)] * 4 + [(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)),)]

    svi = run_both(lambda: (Centred().model, lambda x: None), arguments)
    assert svi._graphs._graphs


MASK = torch.tensor(False)
AROUND = {
    "scale": lambda step: poutine.scale(scale=1.0 if step < 4 else 0.1),
    "mask": lambda step: nullcontext() if step < 4 else poutine.mask(mask=MASK),
    "left": lambda step: poutine.scale(scale=0.1) if step < 4 else nullcontext(),
    "autocast": lambda step: nullcontext() if step < 4 else torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("around", AROUND)
def test_handlers_around_the_step_may_change(around):
    data = torch.randn(6, 3)
    svi = run_both(lambda: (regression, regression_guide), lambda model: [(data,)] * 8, AROUND[around])
    assert svi._graphs._graphs


def test_a_handler_whose_number_is_another_at_each_step_runs_eagerly():
    data = torch.randn(6, 3)
    with pytest.warns(UserWarning, match="runs eagerly: a handler, or the autocast, around the step keeps changing"):
        run_both(
            lambda: (regression, regression_guide),
            lambda model: [(data,)] * 8,
            lambda step: poutine.scale(scale=torch.tensor(1 / (step + 1))),
        )


class Coupled(torch.nn.Module):
    """A flow that keeps what it made of the last value."""

    def __init__(self):
        super().__init__()
        self.flow = dist.transforms.affine_coupling(2, hidden_dims=[4])

    def model(self, x):
        pyro.module("flow", self.flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.TransformedDistribution(base, [self.flow]), obs=x)

    def guide(self, x):
        mean = pyro.param("mean", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, 1.0))


@pytest.mark.parametrize("check_every", [1, 3])
@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("loss", [Trace_ELBO, pvae.ELBO, lambda: pvae.IWAE(4), lambda: pvae.IWAE(4, chunk=2)])
def test_a_flow_of_data_that_caches_what_it_made_of_them(loss, mode, check_every):
    def fitted(cached, mode):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = Coupled()
        data = torch.randn(20, 2)

        def model(x):
            program.model(x)
            if not cached:
                program.flow.clear_cache()

        svi = pvae.SVI(
            model, program.guide, pyro.optim.Adam({"lr": 0.01}), loss(), compile=mode, check_every=check_every
        )
        losses = [float(svi.step(data[5 * (step % 4) :][:5])) for step in range(8)]
        assert not svi._graphs.eager_only
        return losses

    assert fitted(True, mode) == pytest.approx(fitted(False, "off"), rel=1e-6)


@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_another_optimizer_is_used_from_then_on(mode, rate):
    def fitted(kind, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        data = torch.randn(6, 3)
        svi = kind(regression, regression_guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **options)
        losses = [float(svi.step(data)) for _ in range(4)]
        svi.optim = pyro.optim.SGD({"lr": rate, "momentum": 0.5})
        return losses + [float(svi.step(data)) for _ in range(4)]

    assert fitted(pvae.SVI, compile=mode) == pytest.approx(fitted(pyro.infer.SVI), rel=1e-5)
