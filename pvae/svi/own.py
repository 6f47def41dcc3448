"""What an objective holds itself and steps change, as a multiplier or a network of its own: saved, and set again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..replay.names import library

SHARED = ("clock", "max_plate_nesting")
"""What the one who takes the steps gives it, and saves by itself."""
DEPTH = 3
LEAVES = (int, float, Tensor, nn.Module)


def marks(objective: Any) -> dict[str, Any]:
    """What an objective holds as it is now, by path: by this `changed` knows what steps have changed."""
    return {path: _mark(value) for path, value in _held(objective)}


def changed(objective: Any, since: dict[str, Any]) -> dict[str, Any]:
    """Numbers, tensors and the states of modules that are trained, or no longer as they were marked, by path."""
    return {
        path: _copy(value)
        for path, value in _held(objective)
        if _trained(value) or _differs(since.get(path), _mark(value))
    }


def parameters(objective: Any) -> list[nn.Parameter]:
    """Parameters that an objective holds, itself or in modules: `changed` saves them."""
    return [parameter for _, value in _held(objective) for parameter in _parameters(value)]


def restore(objective: Any, state: dict[str, Any]) -> None:
    """Set what `changed` gave.

    Raises:
        InputError: the state of a module that the objective does not have.
    """
    for path, value in state.items():
        holder, key = _place(vars(objective), path)
        if isinstance(holder, list) and key == len(holder):  # steps have appended it
            holder.append(None)
        makes = getattr(holder, "default_factory", None)  # what Pyro's objectives have in their first step
        now = holder[key] if makes or isinstance(holder, list) else holder.get(key)
        if isinstance(now, nn.Module):
            now.load_state_dict(value)
        elif isinstance(value, dict):
            raise InputError(f"objective: found no module '{path}', whose state was saved: make it in __init__")
        elif isinstance(now, Tensor) and isinstance(value, Tensor) and now.shape == value.shape:
            with torch.no_grad():
                now.copy_(value)
        else:
            holder[key] = _copy(value)


def _held(objective: Any) -> Iterator[tuple[str, Any]]:
    """Numbers, tensors and modules that an objective holds, and what it holds that is no library's."""
    yield from ((path, value) for path, value in _inside(vars(objective), "", DEPTH) if path not in SHARED)


def _inside(holder: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in _pairs(holder):
        if isinstance(value, LEAVES):
            yield f"{path}{key}", value
        elif depth and (members := _members(value)) is not None:
            yield from _inside(members, f"{path}{key}.", depth - 1)


def _place(holder: Any, path: str) -> tuple[Any, Any]:
    """What holds the value of a path, and the key there, which may have dots as the names of sites do."""
    for key, value in _pairs(holder):
        if path.startswith(f"{key}.") and (members := _members(value)) is not None:
            return _place(members, path.removeprefix(f"{key}."))
    whole = isinstance(holder, list) or (path.isdigit() and all(isinstance(key, int) for key in holder))
    return holder, int(path) if whole else path


def _pairs(holder: Any) -> list[tuple[Any, Any]]:
    return list(holder.items() if isinstance(holder, dict) else enumerate(holder))


def _members(value: Any) -> Any:
    """What it holds by name or place; None where that is not looked into."""
    if isinstance(value, dict | list):
        return value
    closed = isinstance(value, (*LEAVES, type)) or library(type(value))
    return None if closed else getattr(value, "__dict__", None)


def _mark(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return [_mark(tensor) for tensor in (*value.parameters(), *value.buffers())]
    return value, value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _differs(was: Any, now: Any) -> bool:
    if was is None or isinstance(now, list):
        return was is None or len(was) != len(now) or any(map(_differs, was, now))
    (before, writes), (value, more) = was, now
    if isinstance(value, Tensor):
        return before is not value or writes != more
    return type(before) is not type(value) or before != value


def _trained(value: Any) -> bool:
    """Whether it is, or has, parameters for an optimizer, of whose writing nothing may be known."""
    return any(parameter.requires_grad for parameter in _parameters(value))


def _parameters(value: Any) -> list[nn.Parameter]:
    return list(value.parameters()) if isinstance(value, nn.Module) else [value] * isinstance(value, nn.Parameter)


def _copy(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return {name: tensor.clone() for name, tensor in value.state_dict().items()}
    return value.detach().clone() if isinstance(value, Tensor) else value
