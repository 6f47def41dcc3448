"""What Python holds: whether it is still what it was, and how it is put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import is_
from typing import Any

from .calls import CONSTANTS

CONTAINERS = (list, dict, set, deque)


def holds(holder: dict[str, Any], members: dict[str, Any]) -> bool:
    """Whether a dict still has the very objects that it had."""
    return len(holder) == len(members) and all(map(is_, holder.values(), members.values()))


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


def refill(holder: Any, contents: Any) -> None:
    """Put what was in a container back into it."""
    holder.clear()
    (holder.extend if isinstance(holder, list | deque) else holder.update)(contents)
