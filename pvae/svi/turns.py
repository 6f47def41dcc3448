"""Steps of all threads are taken in turn: Pyro's handlers and torch's generator are one for the whole process."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager

_lock = threading.RLock()


def in_turn() -> AbstractContextManager:
    """Within it no other thread takes a step."""
    return _lock


def _anew() -> None:
    """In a process that was forked there is none of the threads that may have held it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)
