"""Every optimizer, as a Pyro one, a torch one and a function: replayed as it is eagerly, and Pyro's own numbers."""

import inspect
import warnings

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from programs import N, assert_same, kinds, parameters
from pyro.infer import Trace_ELBO

import pvae
from pvae import base
from pvae.svi import ClippedAdam

LR = {"lr": 0.05}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x[:, 0])

    def guide(self, x):
        pyro.module("net", self)
        mean, scale = self.two(torch.tanh(self.one(x))).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, scale.exp()))


def fit(mode, make, steps=10, before=lambda step, svi: None, svi_class=pvae.SVI, **options):
    pyro.clear_param_store()
    base._scopes.clear()
    torch.manual_seed(3)
    net = Net()
    x = torch.randn(N, 2)
    mode = {"compile": mode} if mode else {}
    svi = svi_class(net.model, net.guide, make(net), Trace_ELBO(), **mode, **options)
    losses = []
    for step in range(steps):
        before(step, svi)
        losses.append(float(svi.step(x)))
    values = parameters(svi) if svi_class is pvae.SVI else dict(net.named_parameters())
    return losses, values, torch.get_rng_state(), svi


PYRO = {
    "Adam": lambda: pyro.optim.Adam({**LR, "betas": (0.8, 0.99), "weight_decay": 0.1}),
    "AdamW": lambda: pyro.optim.AdamW({**LR, "weight_decay": 0.1}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({**LR, "lrd": 0.9, "clip_norm": 0.5, "weight_decay": 0.1}),
    "ClippedAdam, centered": lambda: pyro.optim.ClippedAdam({**LR, "centered_variance": True}),
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-3}),
    "SGD, momentum": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9, "nesterov": True}),
    "RMSprop": lambda: pyro.optim.RMSprop({**LR, "momentum": 0.5, "centered": True}),
    "Adagrad": lambda: pyro.optim.Adagrad({**LR, "lr_decay": 0.1}),
    "AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
    "DCTAdam": lambda: pyro.optim.DCTAdam(LR),
    "Adadelta": lambda: pyro.optim.Adadelta({"lr": 1.0}),
    "Adamax": lambda: pyro.optim.Adamax(LR),
    "Rprop": lambda: pyro.optim.Rprop(LR),
    "NAdam": lambda: pyro.optim.NAdam(LR),
    "by parameter": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "one" in name else 0.01}),
    "by module and parameter": lambda: pyro.optim.SGD(lambda module, name: {"lr": 1e-2 if "weight" in name else 1e-3}),
    "clipped by norm": lambda: pyro.optim.Adam(LR, {"clip_norm": 0.1}),
    "clipped by value": lambda: pyro.optim.SGD({"lr": 1e-2}, {"clip_value": 0.2}),
    "clipped by parameter": lambda: pyro.optim.SGD(
        {"lr": 1e-2}, lambda module, name: {"clip_value": 0.1 if "one" in name else 0.3}
    ),
}


@pytest.mark.parametrize("check_every", [1, 4])
@pytest.mark.parametrize("optim", PYRO)
def test_a_pyro_optimizer_is_replayed(optim, check_every):
    make = lambda net: PYRO[optim]()  # noqa: E731
    found = fit("graph", make, check_every=check_every)
    assert kinds(found[-1]) == ["graph"]
    assert_same(found, fit("off", make))


@pytest.mark.parametrize("optim", PYRO)
def test_a_pyro_optimizer_takes_pyros_steps(optim):
    make = lambda net: PYRO[optim]()  # noqa: E731
    expected, values, _, _ = fit("", make, svi_class=pyro.infer.SVI)
    losses, found, _, _ = fit("graph", make)
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, value in values.items():
        torch.testing.assert_close(found[f"net$$${name}"], value.detach(), rtol=1e-3, atol=1e-4)


TORCH = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05),
    "Adam, foreach": lambda p: torch.optim.Adam(p, lr=0.05, foreach=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, dampening=0.1),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=1e-3, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "ClippedAdam": lambda p: pvae.svi.ClippedAdam(p, lr=0.05, lrd=0.9),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-3),
}


@pytest.mark.parametrize("given", ["instance", "function", "groups"])
@pytest.mark.parametrize("optim", TORCH)
def test_a_torch_optimizer_is_replayed(optim, given):
    def make(net):
        if given == "function":
            return TORCH[optim]
        groups = [{"params": [*net.one.parameters()], "lr": 0.01}, {"params": [*net.two.parameters()]}]
        return TORCH[optim](net.parameters() if given == "instance" else groups)

    found = fit("graph", make)
    assert kinds(found[-1]) == ["graph"]
    assert_same(found, fit("off", make))


def test_clipped_adam_takes_pyros_arguments():
    found, expected = (
        inspect.signature(kind).parameters for kind in (ClippedAdam, pyro.optim.clipped_adam.ClippedAdam)
    )
    assert {name: p.default for name, p in found.items()} == {name: p.default for name, p in expected.items()}


@pytest.mark.parametrize("choice", [{"fused": False}, {"foreach": False}, {"foreach": True}])
def test_what_a_user_chose_of_an_optimizer_stays(choice):
    found = fit("graph", lambda net: torch.optim.Adam(net.parameters(), lr=0.05, **choice))
    (group,) = found[-1].optimizer.param_groups
    assert not group["fused"]
    assert all(group[name] is value for name, value in choice.items())
    plain, _, _, svi = fit("graph", lambda net: torch.optim.Adam(net.parameters(), lr=0.05))
    assert svi.optimizer.param_groups[0]["fused"]
    assert found[0] == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("optim", ["Adam", "SGD", "RMSprop", "ClippedAdam", "Adam, foreach"])
def test_a_torch_optimizer_takes_torchs_steps(optim):
    """The same gradients, by a plain loop of torch."""
    found, values, _, _ = fit("graph", lambda net: TORCH[optim])
    pyro.clear_param_store()
    torch.manual_seed(3)
    net = Net()
    x = torch.randn(N, 2)
    optimizer = TORCH[optim](net.parameters())
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = Trace_ELBO().differentiable_loss(net.model, net.guide, x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert found == pytest.approx(losses, rel=1e-4)
    for name, value in net.named_parameters():
        torch.testing.assert_close(values[f"net$$${name}"], value.detach(), rtol=1e-3, atol=1e-4)


# Rates and other settings that change ---------------------------------------------------------------------------------

SETTINGS = {
    "lr": lambda group: group.update(lr=0.5),
    "lr, a tensor": lambda group: group.update(lr=torch.tensor(0.5)),
    "betas": lambda group: group.update(betas=(0.1, 0.2)),
    "weight_decay": lambda group: group.update(weight_decay=0.9),
    "eps": lambda group: group.update(eps=0.5),
}


@pytest.mark.parametrize("check_every", [1, 4])
@pytest.mark.parametrize(
    "optim", [lambda net: pyro.optim.Adam(LR), lambda net: torch.optim.Adam(net.parameters(), **LR)]
)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_changed_in_mid_run_is_followed_at_once(setting, optim, check_every):
    def before(step, svi):
        if step == 6:
            SETTINGS[setting](svi.optimizer.param_groups[0])

    found = fit("graph", optim, before=before, check_every=check_every)
    assert_same(found, fit("off", optim, before=before))
    unchanged = fit("off", optim)
    assert found[0][7:] != pytest.approx(unchanged[0][7:], rel=1e-5), "the setting has no effect"


def test_clipping_changed_in_mid_run_is_followed_at_once():
    def before(step, svi):
        if step == 6:
            svi.clip_norm = 0.01

    make = lambda net: pyro.optim.SGD({"lr": 0.01})  # noqa: E731
    assert_same(fit("graph", make, before=before, clip_norm=1.0), fit("off", make, before=before, clip_norm=1.0))


def test_arguments_of_clipping_changed_in_mid_run_are_followed_at_once():
    def before(step, svi):
        if step == 6:
            svi.optim.pt_clip_args["clip_value"] = 0.001

    make = lambda net: pyro.optim.SGD({"lr": 0.01}, {"clip_value": 1.0})  # noqa: E731
    found = fit("graph", make, before=before)
    assert_same(found, fit("off", make, before=before))


def test_a_group_added_in_mid_run_trains():
    def before(step, svi):
        if step == 6:
            late = [p for p, name in svi._names.items() if "two" in name]
            svi.optimizer.add_param_group({"params": late})

    make = lambda net: torch.optim.Adam(net.one.parameters(), lr=0.05)  # noqa: E731
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "2 parameters of the program are not in")
        found = fit("graph", make, before=before)
        assert_same(found, fit("off", make, before=before))


@pytest.mark.parametrize("optim", ["Adam", "ClippedAdam", "SGD", "RMSprop", "by parameter", "clipped by norm"])
@pytest.mark.parametrize("check_every", [1, 4])
def test_a_schedule_is_followed_at_each_step(optim, check_every):
    make = lambda net: PYRO[optim]()  # noqa: E731
    schedule = lambda step: 0.5**step  # noqa: E731
    found = fit("graph", make, schedule=schedule, check_every=check_every)
    assert_same(found, fit("off", make, schedule=schedule))
    assert found[0][3:] != pytest.approx(fit("off", make)[0][3:], rel=1e-4), "the schedule has no effect"


SCHEDULERS = {
    "ExponentialLR": lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": LR, "gamma": 0.5}),
    "StepLR": lambda: pyro.optim.StepLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-3}, "step_size": 2, "gamma": 0.1}
    ),
    "CosineAnnealingLR": lambda: pyro.optim.CosineAnnealingLR(
        {"optimizer": pyro.optim.clipped_adam.ClippedAdam, "optim_args": LR, "T_max": 8}
    ),
    "OneCycleLR": lambda: pyro.optim.OneCycleLR(
        {"optimizer": torch.optim.Adam, "optim_args": LR, "max_lr": 0.1, "total_steps": 20, "cycle_momentum": False}
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_pyro_scheduler_is_followed(scheduler):
    def before(step, svi):
        if step and step % 2 == 0:
            svi.optim.step()

    make = lambda net: SCHEDULERS[scheduler]()  # noqa: E731
    found = fit("graph", make, before=before)
    assert kinds(found[-1]) == ["graph"]
    assert_same(found, fit("off", make, before=before))
    expected, _, _, _ = fit("", make, before=before, svi_class=pyro.infer.SVI)
    assert found[0] == pytest.approx(expected, rel=1e-4)


def test_where_a_scheduler_changes_betas_at_every_step_the_gradients_are_replayed():
    def make(net):
        args = {"optimizer": torch.optim.Adam, "optim_args": LR, "max_lr": 0.1, "total_steps": 20}
        return pyro.optim.OneCycleLR(args)

    def before(step, svi):
        if step:
            svi.optim.step()

    found = fit("graph", make, before=before)
    assert kinds(found[-1]) == ["graph"]
    assert not next(iter(found[-1]._graphs._graphs.values())).replayable
    assert_same(found, fit("off", make, before=before))
    assert found[0] == pytest.approx(fit("", make, before=before, svi_class=pyro.infer.SVI)[0], rel=1e-4)


def test_reduce_on_plateau_is_followed():
    def before(step, svi):
        if step:
            svi.optim.step(100.0)

    def make(net):
        args = {"optimizer": torch.optim.Adam, "optim_args": LR, "patience": 1, "factor": 0.1}
        return pyro.optim.ReduceLROnPlateau(args)

    found = fit("graph", make, before=before)
    assert_same(found, fit("off", make, before=before))
    assert found[0] == pytest.approx(fit("", make, before=before, svi_class=pyro.infer.SVI)[0], rel=1e-4)


def test_a_torch_scheduler_is_followed():
    schedulers = []

    def make(net):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        schedulers[:] = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]
        return optimizer

    def before(step, svi):
        if step:
            schedulers[0].step()

    found = fit("graph", make, before=before)
    assert_same(found, fit("off", make, before=before))
    rate = float(found[-1].optimizer.param_groups[0]["lr"])
    assert rate == pytest.approx(0.05 * 0.5**9)
