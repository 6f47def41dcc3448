"""One thread at a time runs programs: Pyro's handlers and torch's generator are one for the whole process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

WAIT = 5.0
"""Seconds that a fork waits for another thread's step; a compiler may fork for a step that waits for it."""
_lock = threading.RLock()
_forks: list[bool] = []
"""Of forks that are under way, whether they hold the lock."""


def in_turn() -> AbstractContextManager:
    """Within it no other thread takes a step, or evaluates."""
    return _lock


def taken_in_turn(function: Function) -> Function:
    """The function, within `in_turn`."""

    @wraps(function)
    def taken(*args: Any, **kwargs: Any) -> Any:
        with in_turn():
            return function(*args, **kwargs)

    return taken  # type: ignore[return-value]


def _before() -> None:
    """What another thread's step has begun would be without end in the new process."""
    _forks.append(_lock.acquire(timeout=WAIT))


def _in_parent() -> None:
    if _forks.pop():
        _lock.release()


def _in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _forks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
