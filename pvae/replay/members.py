"""What Python holds: whether it is still what it was, and how it is put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import eq, is_, methodcaller
from typing import Any

import torch
from torch import Tensor, nn

CONSTANTS = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
"""Compared by value."""
CONTAINERS = (list, dict, set, deque)
_KEYS, _VALUES = methodcaller("keys"), methodcaller("values")
_TORCHS = frozenset(vars(nn.Module()))

Entry = tuple[str, Callable[[Any, Any], Any], Any, Any, Any]
"""What it is called, how it is read, of what, by which key, and what it was."""


class Members:
    """Dicts, as of a module's layers, that are to have the very objects that they had; all are looked at at once."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        """What they are called, and what they had."""
        self._holders: list[dict[str, Any]] = []
        self._values: list[Any] = []
        self._names: list[str] = []
        self._filled: list[dict[str, Any]] = []
        self._lengths: list[int] = []

    def add(self, name: str, holder: dict[str, Any]) -> None:
        """Note one as it is."""
        self.parts.append((name, holder, dict(holder)))
        self._holders.append(holder)
        if len(holder):
            self._filled.append(holder)
        self._values += holder.values()
        self._names += holder.keys()
        self._lengths.append(len(holder))

    def changed(self) -> str:
        """The name of one that has others now; empty if none."""
        values = chain.from_iterable(map(_VALUES, self._filled))
        same_names = all(map(eq, chain.from_iterable(map(_KEYS, self._filled)), self._names))
        if [*map(len, self._holders)] == self._lengths and same_names and all(map(is_, values, self._values)):
            return ""
        return next(name for name, holder, members in self.parts if not _holds(holder, members))

    def restore(self) -> None:
        """Put back what they had."""
        for _, holder, members in self.parts:
            if not _holds(holder, members):
                refill(holder, members)


class Private:
    """What modules keep to themselves, as caches: attributes whose names begin with an underscore."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._parts = [(vars(module), _private(vars(module))) for module in modules]

    def changed(self) -> Iterator[tuple[str, Any]]:
        """What is no longer as it was, by name."""
        for holder, were in self._parts:
            for key, (value, contents) in were.items():
                if holder.get(key) is not value:
                    yield key, value if contents is None else contents
                elif contents is not None and not _holds(value, contents):
                    yield key, contents

    def restore(self) -> None:
        """Put all back."""
        for holder, were in self._parts:
            for key in _private(holder).keys() - were.keys():
                del holder[key]
            for key, (value, contents) in were.items():
                holder[key] = value
                if contents is not None:
                    refill(value, contents)


def _private(holder: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By name what is there, and of a container what is in it."""
    return {
        key: (value, value.copy() if isinstance(value, CONTAINERS) else None)
        for key, value in holder.items()
        if key.startswith("_") and key not in _TORCHS
    }


def _holds(holder: Any, members: Any) -> bool:
    if isinstance(holder, dict) and [*holder] != [*members]:
        return False
    found, were = (each if isinstance(each, list | deque | set) else each.values() for each in (holder, members))
    return len(found) == len(were) and all(map(is_, found, were))


def of_class(cls: type, key: str) -> Any:
    """A class's own attribute."""
    return cls.__dict__[key]


def now(read: Callable[[Any, Any], Any], holder: Any, key: Any) -> Any:
    """What is there now; None where it is gone."""
    try:
        return read(holder, key)
    except (AttributeError, LookupError, ValueError):
        return None


def plain(value: Any) -> bool:
    """Whether it is compared by its value."""
    return isinstance(value, CONSTANTS) or (isinstance(value, tuple) and all(isinstance(v, CONSTANTS) for v in value))


def same(value: Any, was: Any) -> bool:
    """Whether two are of one value, and are compared by it."""
    return plain(value) and type(value) is type(was) and value == was


def regrouped(holder: Any, was: Any) -> bool:
    """Whether there are more or fewer in a container than were; in a set or a dict, others."""
    if isinstance(holder, set | dict):
        return holder.keys() != was.keys() if isinstance(holder, dict) else holder != was
    return len(holder) != len(was)


def put(holder: Any, key: Any, value: Any) -> None:
    """Put an attribute or an item in its place."""
    if isinstance(holder, CONTAINERS):
        holder[key] = value
    else:
        setattr(holder, key, value)


def refill(holder: Any, contents: Any) -> None:
    """Put what was in a container back into it."""
    holder.clear()
    (holder.extend if isinstance(holder, list | deque) else holder.update)(contents)


def said(name: str, value: Any) -> str:
    """What it is called in a message."""
    return f"the tensor {name}" if isinstance(value, Tensor) else name
