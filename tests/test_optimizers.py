"""What a fit takes its steps with."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import SMALL, go, quick, refused
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, RMSprop

import pvae
from pvae import build, optimizers, train
from pvae.base import members
from pvae.config import Config, from_flat
from pvae.runs import Run

LR = 0.01
MEMBERS = {
    "adam": ({"betas": (0.8, 0.9), "eps": 1e-3}, Adam),
    "adamw": ({"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}, AdamW),
    "adamax": ({"betas": (0.8, 0.9), "eps": 1e-3}, Adamax),
    "sgd": ({"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, SGD),
    "rmsprop": ({"alpha": 0.9, "eps": 1e-3, "momentum": 0.5}, RMSprop),
    "adagrad": ({"eps": 1e-3}, Adagrad),
}


def walked(make):
    """Where a few steps lead."""
    parameter = torch.linspace(-1, 1, 8).requires_grad_()
    optimizer = make([parameter])
    for step in range(5):
        parameter.grad = (3 * parameter + step).detach()
        optimizer.step()
    return parameter.detach()


def test_each_is_torchs_with_all_its_options():
    assert members("optimizer").keys() == MEMBERS.keys()
    for name, (options, torchs) in MEMBERS.items():
        flat = {"optimizer": name, "lr": LR, **{f"optimizer.{key}": value for key, value in options.items()}}
        made = build.optimizer(from_flat(flat))
        expected = walked(lambda parameters: torchs(parameters, lr=LR, **options))  # noqa: B023
        torch.testing.assert_close(walked(lambda parameters: made(parameters, lr=LR)), expected)  # noqa: B023
        plain = build.optimizer(from_flat({"optimizer": name}))
        expected = walked(lambda parameters: torchs(parameters, lr=LR))  # noqa: B023
        torch.testing.assert_close(walked(lambda parameters: plain(parameters, lr=LR)), expected)  # noqa: B023


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("cooldown", [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]),
        ("cosine", [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]),
        ("constant", [1.0] * 10),
    ],
)
def test_rates_go_by_the_schedule(schedule, factors, vae, x):
    settings = Config(schedule=schedule, lr=LR, optimizer="sgd")
    svi, found = train.svi(vae, pvae.ELBO(), build.optimizer(settings), settings, steps=10), []
    for _ in factors:
        svi.step(x)
        found.append(float(svi.optimizer.param_groups[0]["lr"]))
    assert found == pytest.approx([LR * factor for factor in factors])
    if schedule != "constant":
        assert train.SCHEDULES[schedule](10, 10) == train.SCHEDULES[schedule](10, 11) == 0.0


@pytest.mark.parametrize("epochs", [1, 3, 5, 33, 1091])
def test_the_steps_that_a_longer_run_has_too_are_those_before_the_rate_falls(epochs):
    settings = Config(epochs=epochs, batch_size=10)
    steady, steps = train.steady(settings, 95), 10 * epochs
    factors = [train.SCHEDULES["cooldown"](steps, step) for step in range(steps)]
    assert all(factor == 1 for factor in factors[:steady])
    assert factors[steady + 1] < 1  # but for rounding the step at the bend itself is one of them
    assert train.steady(replace(settings, schedule="constant"), 95) == steps
    assert train.steady(replace(settings, schedule="cosine"), 95) == 0


@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("name", MEMBERS)
def test_a_fit_with_each_is_resumed_bit_for_bit(name, mode, here, monkeypatch):
    quick(monkeypatch)
    options = ["--optimizer", name, "--compile", mode, "--lr", "1e-4" if name == "sgd" else "0.01"]
    assert go(*SMALL, *options, "--save-every", "1", "--out", "run") == 0
    run = Run.open("run")
    whole, weights = run.metrics(), (Path("run/checkpoints") / run.names()[-1] / "weights.safetensors").read_bytes()
    elbo = [record["train"] for record in whole]
    assert elbo[0] < elbo[-1]
    assert go("--resume", Path("run/checkpoints") / run.names()[-2]) == 0
    assert run.metrics() == whole
    assert (Path("run/checkpoints") / run.names()[-1] / "weights.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "sdg"], "--optimizer: unknown optimizer 'sdg': did you mean 'sgd'?"),
        (["--optimizer.betas", "0.9"], "--optimizer.betas: found 1, expected two numbers"),
        (["--optimizer.betas", "0.9,1"], "--optimizer.betas: found 1.0, expected a number from 0 to below 1"),
        (["--optimizer.eps", "0"], "--optimizer.eps: found 0.0, expected more than 0"),
        (["--optimizer.eps", "nan"], "--optimizer.eps: found 'nan', expected a number"),
        (["--optimizer", "adamw", "--optimizer.weight_decay", "-1"], "weight_decay: found -1.0, expected 0 or more"),
        (["--optimizer", "rmsprop", "--optimizer.alpha", "1"], "alpha: found 1.0, expected a number from 0 to below 1"),
        (["--optimizer", "rmsprop", "--optimizer.momentum", "-1"], "momentum: found -1.0, expected a number from 0"),
        (["--optimizer", "adagrad", "--optimizer.eps", "-1"], "--optimizer.eps: found -1.0, expected more than 0"),
        (["--optimizer", "sgd", "--optimizer.momentum", "1"], "momentum: found 1.0, expected a number from 0 to below"),
        (["--optimizer", "sgd", "--optimizer.nesterov"], "nesterov: found it without momentum: give momentum"),
        (["--optimizer.momentum", "0.9"], "optimizer 'adam' has no such option; it belongs to sgd, rmsprop"),
        (["--optimizer", "test_optimizers:Class"], "Class: found <class 'torch.optim.adam.Adam'>, expected one of t"),
        (["--optimizer", "test_optimizers:Failing"], "Failing: found ValueError: no such rate, expected one of t"),
        (["--optimizer", "torch.optim:NAdam"], "expected a subclass of pvae.Optimizer"),
    ],
)
def test_what_is_no_optimizer_is_refused(options, message, here, capsys):
    assert message in refused(capsys, *options)


class Class(optimizers.Optimizer):
    """The class, not one made of it."""

    def __call__(self, parameters, lr):
        """Forget to make it."""
        return Adam


class Failing(optimizers.Optimizer):
    """What torch refuses."""

    def __call__(self, parameters, lr):
        """Refuse the rate."""
        raise ValueError("no such rate")


class Two(optimizers.Optimizer):
    """Biases at another rate."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, parameters, lr):
        """Two groups."""
        biases = [p for p in parameters if p.dim() == 1]
        others = [p for p in parameters if p.dim() != 1]
        return Adam([{"params": others}, {"params": biases, "lr": self.factor * lr}], lr=lr)


def test_ones_own_in_groups(here, monkeypatch):
    quick(monkeypatch)

    def fitted(out, *options):
        assert go(*SMALL, "--out", out, *options) == 0
        return Run.open(out).metrics()

    own = "--optimizer", "test_optimizers:Two"
    plain, same, other = fitted("a"), fitted("b", *own), fitted("c", *own, "--optimizer.factor", "0.1")
    for name in ("train", "validation.elbo"):
        assert [r[name] for r in same] == pytest.approx([r[name] for r in plain], rel=1e-5)
        assert [r[name] for r in other] != pytest.approx([r[name] for r in plain], rel=1e-4)
