"""pvae.SVI in loops of one's own: what is done between steps is followed at once, as Pyro and torch follow it."""

import copy
import gc
import io
import linecache
import pickle
import threading
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

import pvae
from pvae import base, build, train
from pvae.config import Config
from pvae.svi import building

MODES = ["off", "graph", pytest.param("full", marks=pytest.mark.slow)]
X = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


class Images(nn.Module):
    """A Pyro program whose decoder is not of one kind: tests change it."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            mean, spread = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, spread.exp()).to_event(1))


OBJECTIVE = pvae.ELBO()


def by_hand(model, guide, x):
    return OBJECTIVE.differentiable_loss(model, guide, x)


def images():
    return Images()


def parts():
    return pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [4], 3), (3,)), pvae.MeanField(pvae.mlp(3, [4], 4), 2))


def adam(lr=0.02):
    return lambda module: pyro.optim.Adam({"lr": lr})


def sgd(module):
    return pyro.optim.SGD({"lr": 0.01})


def torch_adam(module):
    return torch.optim.Adam(module.parameters(), lr=0.02)


def fit(kind, make=images, optim=sgd, loss=Trace_ELBO, before=lambda step, module, svi: None, steps=14, **options):
    """Losses, weights and the SVI, of Pyro's own ("pyro") or of ours in a mode."""
    pyro.clear_param_store()
    base._scopes.clear()
    torch.manual_seed(3)
    module = make()
    programs = (module.model, module.guide, optim(module), loss())
    svi = pyro.infer.SVI(*programs) if kind == "pyro" else pvae.SVI(*programs, compile=kind, **options)
    losses = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not registered in the param store because requires_grad=False")
        for step in range(steps):
            before(step, module, svi)
            losses.append(float(svi.step(X)))
    return losses, [value.clone() for value in module.state_dict().values()], svi


def assert_alike(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    for value, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


def assert_replayed(svi):
    assert svi.compile == "off" or svi._graphs._graphs, svi._graphs.eager_only


# Parameters that come and go ------------------------------------------------------------------------------------------


def decoder(module):
    return module.decoder if isinstance(module, Images) else module.likelihood


def freeze(step, module, svi):
    if step in (4, 9):
        decoder(module).requires_grad_(step == 9)


def unfreeze(step, module, svi):
    decoder(module).requires_grad_(step >= 5)


def replace(step, module, svi):
    if step == 5:
        torch.manual_seed(5)
        module.likelihood.decoder[0] = nn.Linear(2, 4)


CHANGES = {
    "frozen": (freeze, images, Trace_ELBO),
    "unfrozen": (unfreeze, images, Trace_ELBO),
    "frozen, of ours": (freeze, parts, pvae.ELBO),
    "unfrozen, of ours": (unfreeze, parts, pvae.ELBO),
    "replaced": (replace, parts, pvae.ELBO),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", CHANGES)
def test_parameters_that_come_and_go_train_as_under_pyro(change, mode):
    before, make, loss = CHANGES[change]
    found = fit(mode, make, adam(), loss, before)
    assert_alike(found, fit("pyro", make, adam(), loss, before))
    assert_replayed(found[2])


class Unnamed(Images):
    """Whose model says nothing of its decoder."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class Silent(Unnamed):
    """Whose programs name nothing."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            mean, spread = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, spread.exp()).to_event(1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", [Trace_ELBO, pvae.ELBO])
@pytest.mark.parametrize("make", [Unnamed, Silent])
def test_all_parameters_of_a_torch_optimizer_train(make, loss, mode):
    """Also those that programs do not name: their gradients were added up, step after step."""

    def by_hand():
        torch.manual_seed(3)
        module, losses = make(), []
        optimizer = torch_adam(module)
        for _ in range(14):
            optimizer.zero_grad()
            value = Trace_ELBO().differentiable_loss(module.model, module.guide, X)
            value.backward()
            optimizer.step()
            losses.append(value.item())
        return losses, [value.clone() for value in module.state_dict().values()]

    if make is Silent and loss is Trace_ELBO:
        pytest.skip("Pyro's takes no gradient where no parameter is named")
    assert_alike(fit(mode, make, torch_adam, loss), by_hand())


# Rates and the optimizer's state --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("check_every", [1, 4])
def test_a_rate_set_before_each_step_is_that_steps(check_every, mode):
    """From the first step on: one that was set when the graph was built was taken for all steps."""

    def before(step, module, svi):
        svi.optim.param_groups[0]["lr"] = 0.1 / (1 + step)

    found = fit(mode, optim=torch_adam, before=before, check_every=check_every)
    assert_alike(found, fit("off", optim=torch_adam, before=before))
    assert_replayed(found[2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_rate_that_is_a_tensor_is_followed_where_it_is_changed(shape, mode):
    def run(kind, rate):
        def optim(module):
            return torch.optim.Adam(module.parameters(), lr=rate, fused=True)

        def before(step, module, svi):
            if step in (1, 6):
                rate.mul_(0.3) if isinstance(rate, torch.Tensor) else svi.optim.param_groups[0].update(lr=rates[step])

        return fit(kind, optim=optim, before=before)

    rates = {1: 0.02 * 0.3, 6: 0.02 * 0.3 * 0.3}
    assert_alike(run(mode, torch.full(shape, 0.02)), run("off", 0.02))


def load(step, module, svi):
    if step == 4:
        svi.kept = copy.deepcopy(svi.optim.state_dict())
    if step == 8:
        svi.optim.load_state_dict(svi.kept)


def clear(step, module, svi):
    if step == 8:
        svi.optim.state.clear()


def another(step, module, svi):
    if step == 8:
        svi.optim.state = defaultdict(dict)


def momentum(step, module, svi):
    if step == 8:
        for state in svi.optim.state.values():
            state["exp_avg"] = torch.ones_like(state["exp_avg"])


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("before", [load, clear, another, momentum], ids=lambda change: change.__name__)
def test_an_optimizers_state_that_is_replaced_is_gone_on_from(before, mode):
    found, expected = (fit(kind, optim=torch_adam, before=before) for kind in (mode, "off"))
    assert_alike(found, expected)
    assert_replayed(found[2])
    assert found[0][-1] != pytest.approx(fit("off", optim=torch_adam)[0][-1], rel=1e-4), "it makes a difference"


class Pictures(nn.Module):
    def __init__(self, named=True):
        super().__init__()
        self.named = named
        self.layer = nn.Conv2d(3, 4, 2)
        self.out = nn.Linear(4, 3)

    def model(self, x):
        if self.named:
            pyro.module("pictures", self)
        images = torch.linspace(-1, 1, 4 * 3 * 2 * 2).reshape(4, 3, 2, 2)
        mean = self.out(self.layer(images).flatten(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pass


@pytest.mark.parametrize("mode", MODES)
def test_weights_laid_in_another_order_keep_their_moments(mode):
    """A fused optimizer would take one weight's moments for another's."""

    def before(step, module, svi):
        if step == 6:
            module.to(memory_format=torch.channels_last)

    assert_alike(fit(mode, Pictures, adam(), before=before), fit("pyro", Pictures, adam(), before=before))


def loss_of_model(model, guide, x):
    return -pyro.poutine.trace(model).get_trace(x).log_prob_sum()


@pytest.mark.parametrize("taken", [0, 2])
def test_a_resumed_fit_takes_moments_as_its_weights_lie(taken):
    def begin(module):
        return pvae.SVI(module.model, module.guide, torch_adam(module), loss_of_model, compile="off")

    first, other = Pictures(named=False), Pictures(named=False).to(memory_format=torch.channels_last)
    svi, resumed = begin(first), begin(other)
    for _ in range(4):
        svi.step(X)
    for _ in range(taken):
        resumed.step(X)
    other.load_state_dict(first.state_dict())
    resumed.load_state_dict(copy.deepcopy(svi.state_dict()))
    assert [resumed.step(X) for _ in range(4)] == pytest.approx([svi.step(X) for _ in range(4)], rel=1e-5)


def test_a_state_is_as_it_was_after_it_was_gone_on_from():
    """A sweep may begin with it many times."""
    svi = fit("off", parts, adam(), pvae.ELBO, steps=4)[2]
    weights, state = copy.deepcopy((svi.model.__self__.state_dict(), svi.state_dict()))

    def go_on():
        vae = parts()
        vae.load_state_dict(weights)
        other = pvae.SVI(vae.model, vae.guide, adam()(vae), pvae.ELBO(), compile="off")
        other.load_state_dict(state)
        torch.manual_seed(0)
        return [other.step(X) for _ in range(4)]

    assert go_on() == go_on()


def guide_of_store(x):
    mean = pyro.param("mean", torch.tensor(0.5))
    pyro.sample("z", dist.Normal(mean, pyro.param("spread", torch.tensor(1.0), dist.constraints.positive)))


def model_of_one(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_within_another_scope_of_pyros_store_moments_are_kept(mode):
    def run(kind):
        torch.manual_seed(0)
        pyro.clear_param_store()
        programs = (model_of_one, guide_of_store, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        svi = pyro.infer.SVI(*programs) if kind == "pyro" else pvae.SVI(*programs, compile=kind)
        losses = [svi.step(X) for _ in range(6)]
        with pyro.get_param_store().scope():
            losses += [svi.step(X) for _ in range(5)]
        return losses + [svi.step(X) for _ in range(5)]

    assert run(mode) == pytest.approx(run("pyro"), rel=1e-5)


class WithoutRate(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"eta": 0.01})

    def step(self, closure=None):
        pass


@pytest.mark.parametrize(
    ("optim", "schedule", "message"),
    [
        (WithoutRate, lambda step: 0.5, r"schedule: found an optimizer without a learning rate 'lr', WithoutRate"),
        (pyro.optim.AdagradRMSProp({}), lambda step: 0.5, "without a learning rate 'lr', AdagradRMSProp"),
        (torch.optim.Adam, lambda step: None, "schedule: found None at step 0, expected a finite factor"),
        (torch.optim.Adam, lambda step: float("nan"), "schedule: found nan at step 0"),
        (torch.optim.LBFGS, None, "optim: LBFGS asks for the loss several times a step: expected one that does not"),
    ],
)
def test_optimizers_and_schedules_that_do_not_fit_are_refused(optim, schedule, message):
    vae = parts()
    svi = pvae.SVI(vae.model, vae.guide, optim, pvae.ELBO(), schedule=schedule)
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(ValueError, match=message):
        svi.step(X)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())


# Hooks ----------------------------------------------------------------------------------------------------------------


def halved(module, given, result):
    return result / 2


def halved_gradient(module, before, after):
    return tuple(None if gradient is None else gradient / 2 for gradient in before)


def halve_gradient(parameter):
    parameter.grad.mul_(0.5)


HOOKS = {
    "forward": lambda module: module.decoder[0].register_forward_hook(halved),
    "backward": lambda module: module.decoder[0].register_full_backward_hook(halved_gradient),
    "backward, before": lambda module: module.decoder[0].register_full_backward_pre_hook(
        lambda layer, gradients: tuple(gradient / 2 for gradient in gradients)
    ),
    "of a tensor": lambda module: module.decoder[0].weight.register_hook(lambda gradient: gradient / 2),
    "of a gradient": lambda module: module.decoder[0].weight.register_post_accumulate_grad_hook(halve_gradient),
    "of all modules": lambda module: register_module_forward_hook(
        lambda layer, given, result: result / 2 if isinstance(layer, nn.Tanh) else None
    ),
}


@pytest.mark.parametrize("check_every", [1, 4])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_counts_from_when_it_is_there_until_it_is_gone(hook, check_every):
    held = []

    def before(step, module, svi):
        if step == 5:
            held.append(HOOKS[hook](module))
        if step == 9:
            held.pop().remove()

    expected = fit("pyro", before=before)
    with pytest.warns(match="hooks of all modules") if hook == "of all modules" else nullcontext():
        found = fit("graph", before=before, check_every=check_every)
    assert_alike(found, expected)
    assert_replayed(found[2])
    assert expected[0][-1] != pytest.approx(fit("pyro")[0][-1], rel=1e-5), "it makes a difference"


def test_what_a_hook_closes_over_is_looked_at():
    factor = {"of": 1.0}

    def before(step, module, svi):
        factor["of"] = 0.5 if step >= 6 else 1.0
        if step == 0:
            module.decoder[0].register_forward_hook(lambda layer, given, result: result * factor["of"])

    assert_alike(fit("graph", before=before), fit("pyro", before=before))


@pytest.mark.parametrize("whose", ["its own", "of all"])
@pytest.mark.parametrize("at", [0, 5])
def test_an_optimizers_hook_is_called_at_each_step(at, whose):
    def run(mode):
        calls, held = [], []

        def clamp(optimizer, *given):
            calls.append(None)
            with torch.no_grad():
                for parameter in optimizer.param_groups[0]["params"]:
                    parameter.clamp_(-0.3, 0.3)

        def before(step, module, svi):
            if step == at:
                register = (
                    svi.optim.register_step_post_hook if whose == "its own" else register_optimizer_step_post_hook
                )
                held.append(register(clamp))
            if step == 9:
                held.pop().remove()
            svi.optim.param_groups[0]["lr"] = 0.1 / (1 + step)

        return fit(mode, optim=torch_adam, before=before), len(calls)

    (found, calls), (expected, same) = run("graph"), run("off")
    assert calls == same == 9 - at
    assert_alike(found, expected)
    assert_replayed(found[2])


# Objectives and arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check_every", [1, 4])
@pytest.mark.parametrize("names", [["loss_and_grads"], ["loss", "loss_and_grads"]])
def test_another_loss_is_taken_from_then_on(names, check_every):
    other = pvae.IWAE(5)

    def before(step, module, svi):
        if step == 5:
            for name in names:
                setattr(svi, name, getattr(other, name))
        other.beta = 0.1 if step >= 8 else 1.0

    found = fit("graph", parts, adam(), pvae.ELBO, before, check_every=check_every)
    assert_alike(found, fit("pyro", parts, adam(), pvae.ELBO, before))
    assert_replayed(found[2])


def test_numbers_in_a_function_for_loss_and_gradient_are_looked_at():
    def run(mode):
        factor = {"of": 1.0}

        def loss_and_grads(model, guide, x):
            loss = factor["of"] * by_hand(model, guide, x)
            loss.backward()
            return loss

        torch.manual_seed(0)
        vae = parts()
        svi = pvae.SVI(vae.model, vae.guide, adam()(vae), by_hand, loss_and_grads, compile=mode)
        losses = []
        for step in range(9):
            factor["of"] = 0.5 if step >= 6 else 1.0
            losses.append(svi.step(X))
        return losses

    assert run("graph") == pytest.approx(run("off"), rel=1e-6)


def test_arguments_that_require_a_gradient_have_theirs():
    """As those that another network has made."""

    def run(svi_class, **options):
        pyro.clear_param_store()
        torch.manual_seed(3)
        module, before = Images(), nn.Linear(3, 3)

        def model(x, features):
            module.model(x)

        def guide(x, features):
            module.guide(features)

        svi = svi_class(model, guide, sgd(module), Trace_ELBO(), **options)
        return [svi.step(X, before(X)) for _ in range(6)], before.weight.grad

    losses, gradient = run(pyro.infer.SVI)
    with pytest.warns(UserWarning, match="steps on arguments that require a gradient run eagerly"):
        found, other = run(pvae.SVI, compile="graph")
    assert found == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(other, gradient)


@pytest.mark.parametrize("made", ["leaf", "of a network"])
@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.filterwarnings("ignore:steps on arguments that require a gradient")
def test_arguments_that_require_a_gradient_have_theirs_once_a_step_after_a_resume_too(mode, made):
    """Not that of the run which sets programs up again; nor is there a graph of theirs to go through twice."""

    def run(resumed_at=None):
        pyro.clear_param_store()
        torch.manual_seed(3)
        module, before, features = Images(), nn.Linear(3, 3), X.clone().requires_grad_()

        def model(x, features):
            module.model(x)

        def guide(x, features):
            module.guide(features)

        new = lambda: pvae.SVI(model, guide, sgd(module), Trace_ELBO(), compile=mode)  # noqa: E731
        svi, losses = new(), []
        for step in range(6):
            if step == resumed_at:
                state, svi = svi.state_dict(), new()
                svi.load_state_dict(state)
            losses.append(svi.step(X, features if made == "leaf" else before(X)))
        return losses, features.grad if made == "leaf" else before.weight.grad

    (losses, gradient), (found, other) = run(), run(resumed_at=3)
    assert found == losses
    torch.testing.assert_close(other, gradient, rtol=0, atol=0)


def test_sites_of_each_pair_of_programs_are_looked_at():
    """Of one objective in a sweep: those of the first were, alone."""
    objective = pvae.ELBO(gradient="stl")
    vae = parts()
    pvae.SVI(vae.model, vae.guide, adam()(vae), objective).step(X)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        """Its support moves with its parameter."""
        low = pyro.param("low", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(low, low + 1).to_event(1))

    for chosen in (pvae.ELBO(gradient="stl"), objective):
        with pytest.raises(pvae.InputError, match=r"site 'z'.*moves"):
            pvae.SVI(model, guide, adam()(vae), chosen).step(X)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("made", [torch.jit.script, lambda net: torch.jit.trace(net, torch.zeros(4, 2))])
def test_layers_of_torchs_own_kind_are_replayed(made):
    """Whose parts are in no dicts."""

    def before(step, module, svi):
        if step == 0:
            module.decoder = made(module.decoder)
        if step == 7:
            for parameter in module.decoder.parameters():
                parameter.requires_grad_(False)

    found = fit("graph", before=before)
    assert_alike(found, fit("pyro", before=before))
    assert_replayed(found[2])


# What a step stands in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("within", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("at", [0, 5])
def test_a_step_without_gradients_is_refused(at, mode, within):
    svi = fit(mode, parts, adam(), pvae.ELBO, steps=at)[2]
    before = copy.deepcopy(svi.state_dict())
    with within(), pytest.raises(ValueError, match=r"the step is within torch.no_grad\(\) or torch.inference_mode"):
        svi.step(X)
    assert svi.steps == at == before["steps"]
    svi.step(X)


def test_anomalies_are_looked_for_in_each_step():
    vae = parts()
    svi = pvae.SVI(vae.model, vae.guide, adam()(vae), pvae.ELBO(), compile="graph")
    for _ in range(4):
        svi.step(X)

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.nan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            (graph,) = svi._graphs._graphs.values()
            before = graph.played
            svi.step(X)
            assert graph.played == before
            vae.likelihood.decoder[1] = nn.Sequential(nn.Tanh(), Apply(Broken))
            with pytest.raises(RuntimeError, match="returned nan values"):
                svi.step(X)
    assert svi._graphs.eager_only == ""


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


def test_a_module_made_again_is_pointed_to_pyros_store():
    fit("off", steps=1)
    module = Images()
    svi = pvae.SVI(module.model, module.guide, sgd(module), Trace_ELBO())
    with pytest.raises(ValueError, match=r"nothing to fit: Pyro's store has others .* call pyro.clear_param_store\(\)"):
        svi.step(X)


def test_a_loss_that_depends_on_no_parameter_is_said_to():
    def model(x):
        with pyro.poutine.mask(mask=False):
            pyro.sample("x", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0), obs=x[0, 0])

    svi = pvae.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.raises(ValueError, match="nothing to fit: the loss depends on none of 'mean'"):
        svi.step(X)


@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("at", ["loss", "optimizer"])
def test_a_step_that_is_interrupted_leaves_no_gradient(at, mode):
    """It would be added to the next step's."""

    class Interrupted(pvae.ELBO):
        def loss_and_grads(self, *args):
            loss = super().loss_and_grads(*args)
            if interrupt == at:
                raise KeyboardInterrupt
            return loss

    class Adam(torch.optim.Adam):
        def step(self, closure=None):
            if interrupt == at:
                raise KeyboardInterrupt
            return super().step(closure)

    interrupt = ""
    vae = parts()
    svi = pvae.SVI(vae.model, vae.guide, Adam(vae.parameters()), Interrupted(), compile=mode)
    for _ in range(2):
        svi.step(X)
    interrupt, before = at, copy.deepcopy(vae.state_dict())
    with pytest.raises(KeyboardInterrupt):
        svi.step(X)
    assert all(p.grad is None for p in vae.parameters())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert svi.steps == 2
    interrupt = ""
    svi.step(X)


def test_it_is_said_how_far_a_long_trace_is(monkeypatch):
    said = []
    monkeypatch.setattr(building, "EVERY", 0.0)
    fit("graph", steps=2, notice=said.append)
    assert sum(line.startswith("tracing: ") and " operations in " in line for line in said) > 20
    assert said[-1].startswith("graph: built in ")


# Several SVIs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_two_fits_with_one_objective_warm_up_by_themselves(mode):
    def run(*objectives):
        pair = []
        for seed, objective in enumerate(objectives):
            torch.manual_seed(seed)
            vae = parts()
            pair.append(pvae.SVI(vae.model, vae.guide, adam()(vae), objective, compile=mode))
        torch.manual_seed(0)
        for _ in range(4):
            pair[0].step(X)
        return [svi.step(X) for _ in range(5) for svi in pair]

    one = pvae.ELBO(warmup=8)
    assert run(one, one) == run(pvae.ELBO(warmup=8), pvae.ELBO(warmup=8))


@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("optim", [adam(), torch_adam], ids=["Pyro's", "torch's"])
def test_a_copy_goes_on_as_the_original_does(optim, way, steps, mode):
    svi = fit(mode, parts, optim, pvae.ELBO, steps=steps, check_every=3)[2]
    other = copied(svi, way)
    assert other.steps == steps
    state, found = torch.get_rng_state(), []
    for each in (svi, other):
        torch.set_rng_state(state)
        found.append([each.step(X) for _ in range(6)])
        each.check()
    assert found[0] == found[1]
    weights = [each.model.__self__.state_dict() for each in (svi, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    before = copy.deepcopy(weights[0])
    other.step(X)
    assert all(torch.equal(value, before[name]) for name, value in weights[0].items()), "they share nothing"


def copied(svi, way):
    if way == "deepcopy":
        return copy.deepcopy(svi)
    if way == "pickle":
        return pickle.loads(pickle.dumps(svi))
    file = io.BytesIO()
    torch.save(svi, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_copy_with_a_loss_that_is_a_function():
    svi = fit("graph", parts, adam(), lambda: by_hand, steps=4)[2]
    other = copied(svi, "pickle")
    torch.manual_seed(0)
    expected = [svi.step(X) for _ in range(3)]
    torch.manual_seed(0)
    assert [other.step(X) for _ in range(3)] == expected


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_training_is_copied(way):
    settings = Config(data="digits", schedule="cosine", compile="graph", epochs=2)
    vae = parts()
    made = train.svi(vae, pvae.ELBO(), build.optimizer(settings), settings, steps=10)
    for _ in range(4):
        made.step(X)
    other = copied(made, way)
    torch.manual_seed(0)
    expected = [made.step(X) for _ in range(3)]
    torch.manual_seed(0)
    assert [other.step(X) for _ in range(3)] == expected


def test_what_is_not_copied_with_its_programs_is_refused():
    svi = fit("graph", images, steps=3)[2]
    with pytest.raises(ValueError, match=r"SVI cannot be copied: Pyro's store has its parameters \(.*state_dict\(\)"):
        copy.deepcopy(svi)
    vae = parts()
    svi = pvae.SVI(lambda x: vae.model(x), lambda x: vae.guide(x), adam()(vae), pvae.ELBO())
    svi.step(X)
    with pytest.raises(ValueError, match=r"parameter '.*' was not copied with its SVI: make another SVI"):
        copy.deepcopy(svi).step(X)
    with pytest.raises(ValueError, match=r"take copy\.deepcopy"):
        copy.copy(svi)


def deterministic(seed, mode, check_every):
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        layer.weight.fill_(0.1 + seed)
        layer.bias.zero_()

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(layer(x), 1.0).to_event(1), obs=x)

    optim = torch.optim.Adam(layer.parameters(), lr=0.01)
    svi = pvae.SVI(model, lambda x: None, optim, loss_of_model, compile=mode, check_every=check_every)
    return [float(svi.step(X)) for _ in range(60)]


@pytest.mark.parametrize("check_every", [1, 7])
@pytest.mark.parametrize("mode", MODES)
def test_threads_take_their_steps_in_turn(mode, check_every):
    expected = [deterministic(seed, mode, check_every) for seed in range(3)]
    found, failed = {}, []

    def work(seed):
        try:
            found[seed] = deterministic(seed, mode, check_every)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [found[seed] for seed in range(3)] == expected


def small_vae():
    torch.manual_seed(3)
    return pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))


@pytest.mark.parametrize("mode", MODES)
def test_training_is_the_same_while_another_thread_evaluates(mode):
    x, other = torch.ones(40, 6), small_vae()
    done = threading.Event()

    def begin():
        vae = small_vae()
        svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pvae.ELBO(), compile=mode)
        torch.manual_seed(0)
        return svi

    def bounds():
        return pvae.evaluate.evaluate(other.model, other.guide, x, particles=[1, 5]).iw

    def evaluate():
        found = [bounds()]
        while not done.is_set():
            found.append(bounds())
        return found

    svi = begin()
    expected, alone = [float(svi.step(x)) for _ in range(40)], bounds()
    svi = begin()
    with ThreadPoolExecutor(1) as threads:
        evaluated = threads.submit(evaluate)
        try:
            found = [float(svi.step(x)) for _ in range(40)]
        finally:
            done.set()
    assert found == expected
    assert all(torch.equal(each[k], alone[k]) for each in evaluated.result() for k in alone)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_process_that_is_forked_beside_a_step_has_nothing_of_it():
    within, on = threading.Event(), threading.Event()

    def model(x):
        with pyro.plate("data", len(x)):
            within.set()
            on.wait(10)
            pyro.sample("x", dist.Normal(pyro.param("mean", torch.zeros(3)), 1.0).to_event(1), obs=x)

    svi = pvae.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), compile="off")
    thread = threading.Thread(target=svi.step, args=(X,))
    thread.start()
    within.wait(10)
    threading.Timer(0.3, on.set).start()
    with get_context("fork").Pool(1) as pool:
        assert pool.apply_async(handlers).get(timeout=60) == 0
        assert pool.apply_async(deterministic, (1, "off", 1)).get(timeout=60) == deterministic(1, "off", 1)
    thread.join()


def handlers():
    return len(pyro.poutine.runtime._PYRO_STACK)


def test_a_sweep_leaves_nothing_behind():
    def sweep(count):
        for _ in range(count):
            fit("graph", parts, adam(), pvae.ELBO, steps=3)
        gc.collect()
        return sum(issubclass(type(o), nn.Module | pvae.SVI | torch.Tensor) for o in gc.get_objects())

    sweep(2)
    texts = len(linecache.cache)
    assert sweep(5) <= sweep(1)
    assert len(linecache.cache) <= texts, "torch keeps the text of each graph"


@pytest.mark.parametrize("rows", [torch.ones(4), torch.ones(4, 2), torch.zeros(2, 2, 2, dtype=torch.int64)])
def test_rows_that_are_data_are_refused(rows):
    svi = pvae.SVI(lambda x: None, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.raises(ValueError, match=r"run: rows: found a tensor of .*expected whole numbers.* call step"):
        svi.run(rows, torch.ones(4))


def test_pyros_deprecated_run_is_refused():
    """Pyro's takes `num_steps` steps; ours would take none before its losses are asked for."""
    program = Images()
    with pytest.warns(FutureWarning, match="num_steps"):
        svi = pvae.SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), num_steps=10)
    with pytest.raises(ValueError, match=r"run: found num_steps=10 and num_samples=0.*call step"):
        svi.run(X)
