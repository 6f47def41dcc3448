"""Work in which parameters stay as they are: what depends on them alone is found once, and not at every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_kept: ContextVar[dict[object, Tensor] | None] = ContextVar("kept", default=None)


@contextmanager
def frozen() -> Iterator[None]:
    """Within it no parameter changes or is given a gradient."""
    token = _kept.set({}) if _kept.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _kept.reset(token)


def once(owner: object, make: Callable[[], Tensor]) -> Tensor:
    """What `make` gives; within `frozen` what it gave at its owner's first call, detached.

    >>> import torch
    >>> with frozen():
    ...     first, second = (once("owner", lambda: torch.rand(())) for _ in range(2))
    >>> first is second, once("owner", lambda: torch.ones(()))
    (True, tensor(1.))
    """
    kept = _kept.get()
    if kept is None:
        return make()
    if owner not in kept:
        kept[owner] = make().detach()
    return kept[owner]
