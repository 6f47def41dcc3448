"""What an objective holds itself and steps change, as a multiplier or a network of its own: saved, and set again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..replay.names import library

SHARED = ("clock", "max_plate_nesting")
"""What the one who takes the steps gives it, and saves by itself."""
DEPTH = 3


def marks(objective: Any) -> dict[str, Any]:
    """What an objective holds as it is now, by path: by this `changed` knows what steps have changed."""
    return {path: _mark(value) for path, value in _held(objective)}


def changed(objective: Any, since: dict[str, Any]) -> dict[str, Any]:
    """The states of modules, and numbers and tensors that are no longer as they were marked, by path."""
    return {
        path: value.state_dict() if isinstance(value, nn.Module) else _copy(value)
        for path, value in _held(objective)
        if isinstance(value, nn.Module | nn.Parameter) or _differs(since.get(path), _mark(value))
    }


def restore(objective: Any, state: dict[str, Any]) -> None:
    """Set what `changed` gave.

    Raises:
        ValueError: the state of a module that the objective does not have.
    """
    for path, value in state.items():
        holder, key = _place(objective, path)
        now = holder.get(key) if isinstance(holder, dict) else holder[key]
        if isinstance(now, nn.Module):
            now.load_state_dict(value)
        elif isinstance(value, dict):
            raise ValueError(f"objective: found no module '{path}', whose state was saved: make it in __init__")
        elif isinstance(now, Tensor) and isinstance(value, Tensor) and now.shape == value.shape:
            with torch.no_grad():
                now.copy_(value)
        else:
            holder[key] = _copy(value)


def _held(objective: Any) -> Iterator[tuple[str, Any]]:
    """Numbers, tensors and modules that an objective holds, and what it holds that is no library's."""
    yield from ((path, value) for path, value in _inside(vars(objective), "", DEPTH) if path not in SHARED)


def _inside(holder: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
        if isinstance(value, int | float | Tensor | nn.Module):
            yield f"{path}{key}", value
        elif depth and isinstance(value, dict | list):
            yield from _inside(value, f"{path}{key}.", depth - 1)
        elif depth and hasattr(value, "__dict__") and not (isinstance(value, type) or library(type(value))):
            yield from _inside(vars(value), f"{path}{key}.", depth - 1)


def _place(objective: Any, path: str) -> tuple[Any, Any]:
    """What holds the value of a path, and the key there."""
    holder, (*parents, key) = vars(objective), path.split(".")
    for name in parents:
        value = holder[int(name)] if isinstance(holder, list) else holder[name]
        holder = value if isinstance(value, dict | list) else vars(value)
    return holder, int(key) if isinstance(holder, list) else key


def _mark(value: Any) -> tuple[Any, Any]:
    return value, value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _differs(was: tuple[Any, Any] | None, now: tuple[Any, Any]) -> bool:
    if was is None or isinstance(now[0], Tensor):
        return was is None or was[0] is not now[0] or was[1] != now[1]
    return type(was[0]) is not type(now[0]) or was[0] != now[0]


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
