"""One process at a time in a folder: a lock that the kernel takes back when its process ends, however it does."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError
from ..files import RETRY, disk

try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextmanager
def locked(folder: Path, then: str) -> Iterator[None]:
    """Hold a folder; what is left of a process that was killed holds nothing.

    On file systems, and systems, without such locks it goes on without.

    Args:
        folder: one that is there.
        then: what to do where another process holds it.

    Raises:
        InputError: another process holds it, or it cannot be written to.
    """
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    with disk(folder, RETRY):
        descriptor = _open(path, then)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder itself may be gone
            path.unlink()
        os.close(descriptor)


def _open(path: Path, then: str) -> int:
    """The open lock file, held."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise InputError(f"{path.parent}: {who} trains in it: {then}") from None
        except OSError:  # a file system without locks
            return descriptor
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
            return descriptor
        os.close(descriptor)  # who held it has ended, and deleted it


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
