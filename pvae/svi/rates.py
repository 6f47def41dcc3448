"""Learning rates as a tensor that replayed steps read: where a user sets them, and where a schedule does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer, RMSprop

from ..errors import InputError
from .optimizers import FUSED, fusable, replayable

GIVEN: WeakKeyDictionary[Optimizer, dict[int, tuple[Any, int]]] = WeakKeyDictionary()
"""By optimizer, what its groups' learning rates were last set to, and how often that had been changed in place."""


def prepare(optimizer: Optimizer) -> Tensor | None:
    """Make the optimizer's step one that can be replayed, where it can be; returns its learning rates as a tensor.

    The rates (groups,) are read at every step by the kernels; each group's `lr` is an element of them. None where the
    optimizer wants numbers. Choices that a user made (`foreach`, `capturable`, ...) stay.
    """
    every = [p for group in optimizer.param_groups for p in group["params"]]
    device = every[0].device
    for group in optimizer.param_groups:
        if any(p in optimizer.state for p in group["params"]):
            continue  # it has begun otherwise
        if type(optimizer) in FUSED and all(map(fusable, every)):
            if group.get("fused") is None and group.get("foreach") is None and not group.get("differentiable"):
                group["fused"] = True
        elif type(optimizer) is RMSprop and device.type == "cuda":
            group["capturable"] = True
    if not replayable(optimizer):
        return None
    dtype = torch.float32 if device.type == "cuda" else torch.float64
    rates = torch.tensor([float(group["lr"]) for group in optimizer.param_groups], dtype=dtype, device=device)
    hold(optimizer, rates)
    return rates


def hold(optimizer: Optimizer, rates: Tensor | None) -> None:
    """Keep each group's learning rate in `rates`, also where somebody has set it, or changed a tensor that he gave."""
    if rates is None:
        return
    given = GIVEN.setdefault(optimizer, {})
    for index, group in enumerate(optimizer.param_groups):
        lr = group["lr"]
        if not (isinstance(lr, Tensor) and lr.data_ptr() == rates.data_ptr() + index * rates.itemsize):
            given[index] = lr, -1
            group["lr"] = rates[index] if isinstance(lr, Tensor) else rates[index].fill_(lr)
        was, version = given.get(index, (None, 0))
        if isinstance(was, Tensor) and was._version != version:
            rates[index].fill_(was.detach().reshape(()))
            given[index] = was, was._version


def at_step(
    optimizer: Optimizer, rates: Tensor | None, factor: Callable[[int], float] | None, step: int
) -> Tensor | None:
    """Set the learning rates to those of a step, with a schedule a factor of what they began with; returns them."""
    if rates is not None and len(rates) < len(optimizer.param_groups):
        rates = prepare(optimizer)  # a group was added
    if factor is not None:
        _schedule(optimizer, rates, _factor(factor, step))
    hold(optimizer, rates)
    return rates


def _schedule(optimizer: Optimizer, rates: Tensor | None, factor: float) -> None:
    for index, group in enumerate(optimizer.param_groups):
        if "lr" not in group:
            kind = type(optimizer).__name__
            raise InputError(
                f"schedule: found an optimizer without a learning rate 'lr', {kind}: expected no schedule for it"
            )
        value = group.setdefault("initial_lr", float(group["lr"])) * factor
        if rates is None:
            group["lr"] = value
        else:
            rates[index].fill_(value)


def scheduled(optimizer: Optimizer, factor: Callable[[int], float], first: int, count: int) -> Tensor:
    """The rates (count, groups) of `count` steps from the first, on the CPU."""
    start = torch.tensor([group["initial_lr"] for group in optimizer.param_groups], device="cpu")
    return torch.tensor([[_factor(factor, first + ahead)] for ahead in range(count)], device="cpu") * start


def _factor(schedule: Callable[[int], float], step: int) -> float:
    found = schedule(step)
    try:
        factor = float(found)
    except (TypeError, ValueError):
        factor = math.nan
    if not math.isfinite(factor):
        raise InputError(f"schedule: found {found!r} at step {step}, expected a finite factor of the learning rates")
    return factor
