"""A cache for work in which parameters stay as they are, as an evaluation: what depends on them alone is found once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_kept: ContextVar[tuple[dict[object, Tensor], dict[object, Tensor]] | None] = ContextVar("kept", default=None)


@contextmanager
def frozen(kept: dict[object, Tensor] | None = None) -> Iterator[None]:
    """Within it no parameter changes or is given a gradient.

    Args:
        kept: what was found once in such work before: it is found anew, in the same memory, and is left there.
    """
    before, found = dict(kept or {}), {} if kept is None else kept
    found.clear()
    token = _kept.set((found, before))
    try:
        yield
    finally:
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
    found, before = kept
    if owner not in found:
        value, place = make().detach(), before.get(owner)
        found[owner] = place.copy_(value) if place is not None and _kind(place) == _kind(value) else value
    return found[owner]


def _kind(value: Tensor) -> tuple[object, ...]:
    return value.shape, value.dtype, value.device
