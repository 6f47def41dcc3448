"""The shape of what an objective's own methods return: a number for each datum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..base import path_of
from ..errors import InputError
from ..programs import Traces

LOOKED = "shapes"
"""What is noted of an objective once its shapes are known to be right."""
METHODS = ("bound", "guide_bound", "differentiable")


@contextmanager
def checked(objective: Any, looked: dict[Any, Any]) -> Iterator[None]:
    """For one step: what these methods return is refused unless it is (B,); of `differentiable` also one number.

    They are called no more often than ever, and on nothing else: an objective may keep something of each call. Noted
    after a step with a gradient, unless there are as many particles as data: of these the one may pass for the other.

    Raises:
        InputError: the class and its method, the shape that was found and the one that is expected.
    """
    held, chance = vars(objective), []
    before = {name: held[name] for name in METHODS if name in held}
    held.update({name: partial(_checked, objective, name, getattr(objective, name), chance) for name in METHODS})
    try:
        yield
    finally:
        for name in METHODS:
            del held[name]
        held.update(before)
    if torch.is_grad_enabled() and not any(chance):
        looked[LOOKED] = None


def _checked(
    objective: Any, name: str, method: Callable[..., Any], chance: list[bool], *args: Any, **kwargs: Any
) -> Any:
    found, given = method(*args, **kwargs), (*args, *kwargs.values())[0]
    if not isinstance(given, Tensor | Traces):
        return found
    whole = isinstance(given, Traces)
    of = (given.particles, given.size) if whole else tuple(given.shape)
    chance.append(of[:1] == of[1:])
    shape = tuple(found.shape) if isinstance(found, Tensor) else None
    if shape != of[1:] and not (whole and shape == ()):
        what = type(found).__name__ if shape is None else f"shape {shape}"
        raise InputError(
            f"objective {path_of(type(objective))}: {name}: found {what}, expected {of[1:]}, a number for each datum"
            f"{', or one of all' if whole else ''}: of log-weights {of} reduce the particles, dimension 0, and nothing"
            " else"
        )
    return found
