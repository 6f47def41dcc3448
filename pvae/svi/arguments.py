"""What an `SVI` is given: refused at once where no step could be taken with it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.infer.elbo import ELBOModule
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import InputError


def check(
    programs: dict[str, Any],
    loss: Any,
    schedule: Any,
    notice: Any,
    clip_norm: Any,
    steps: Any,
    check_every: Any,
) -> None:
    """Refuse what is none of it.

    Raises:
        InputError: what was found, and what is expected.
    """
    for name, program in programs.items():
        _refuse(not callable(program), name, program, "a Pyro program, as a function or a VAE's method")
        without = getattr(getattr(program, "forward", None), "__func__", None) is nn.Module.forward
        without = without and type(program).__call__ in (nn.Module.__call__, PyroModule.__call__)
        _refuse(without, name, program, f"a Pyro program: this module has no forward: pass its method, as vae.{name}")
    made = isinstance(loss, ELBO) or (callable(loss) and not isinstance(loss, type | ELBOModule))
    _refuse(not made, "loss", loss, "a pyro.infer.ELBO, as pvae.ELBO(), or a function")
    _refuse(
        schedule is not None and not _function(schedule),
        "schedule",
        schedule,
        "a function from the number of steps taken to a factor of the learning rates, or None",
    )
    _refuse(not _function(notice), "notice", notice, "a function of a line of text")
    for name, value, kind, fits, expected in (
        ("clip_norm", clip_norm, Real, lambda value: value > 0, "a number above 0"),
        ("steps", steps, Real, lambda value: value >= 0, "a number of at least 0"),
        ("check_every", check_every, Integral, lambda value: value >= 1, "a whole number of at least 1"),
    ):
        _refuse(
            value is not None and not (isinstance(value, kind) and fits(value)), name, value, f"{expected}, or None"
        )


def check_optim(optim: Any) -> None:
    """Refuse what no optimizer is made of.

    Raises:
        InputError: what was found, and what is expected.
    """
    given = isinstance(optim, PyroOptim | Optimizer) or (isinstance(optim, type) and issubclass(optim, Optimizer))
    pyros = str(getattr(optim, "__module__", "")).startswith("pyro.optim")  # one that lacks its arguments
    expected = "pyro.optim.Adam({'lr': 1e-3}) or the like, a torch optimizer, or a function from parameters to one"
    _refuse(not given and (pyros or not callable(optim)), "optim", optim, expected)


def checked_rows(rows: Any) -> Iterable[Tensor]:
    """The rows of each step; refuses what does not say which data it takes, as a batch of data.

    Raises:
        InputError: what was found, and what is expected; of rows that come one by one, where they come.
    """
    if isinstance(rows, Tensor):
        _check_rows(rows, (1, 2))
        return rows
    return (_check_rows(row, (0, 1)) for row in rows)


def _check_rows(rows: Any, dims: tuple[int, int]) -> Tensor:
    numbers = isinstance(rows, Tensor) and rows.dtype in (torch.int64, torch.int32)
    if not (numbers and rows.dim() in dims):
        tensor = isinstance(rows, Tensor)
        found = f"tensor of {rows.dtype} of shape {tuple(rows.shape)}" if tensor else type(rows).__name__
        raise InputError(
            f"run: rows: found a {found}, expected whole numbers (steps, B), or some (B,) one by one, that say which"
            " data each step takes: to take one step on these data call step"
        )
    return rows


def checked(optimizer: Any) -> Optimizer:
    """What was made of it, if its steps can be taken.

    Raises:
        InputError: it is none, or its step asks for the loss again.
    """
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optim: found a function that gives a {kind}, expected one that gives a torch optimizer")
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise InputError(f"optim: {kind} asks for the loss several times a step: expected one that does not, as Adam")
    return optimizer


def _function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _refuse(wrong: bool, name: str, value: Any, expected: str) -> None:
    if wrong:
        found = f"a {type(value).__name__}" if isinstance(value, nn.Module) else repr(value).partition("\n")[0][:80]
        raise InputError(f"{name}: found {found}, expected {expected}")
