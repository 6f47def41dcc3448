"""Tensors that programs hold: those that a trial changes are put back; of data that are set anew a graph has copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from .members import Entry, now, put
from .simplify import memory, written


def alike(one: Any, other: Any) -> bool:
    """Whether one tensor may take the place of another in a graph: both are data, of the same kind and shape."""
    for value in (one, other):
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or value.requires_grad:
            return False
    if one.layout is not torch.strided or other.layout is not torch.strided:
        return False
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


class Unwritten(TorchDispatchMode):
    """Within it some tensors may be changed in place: `restore` puts them back. Those are copied that are changed."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._held: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            self._held.setdefault(memory(tensor), []).append(tensor)
        self._were: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for changed in written(func, args, kwargs):
            self._were += [(tensor, tensor.detach().clone()) for tensor in self._held.pop(memory(changed), ())]
        return func(*args, **kwargs)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was changed; its version tells that it was, as torch's operations on lists do not."""
        for tensor, was in self._were:
            tensor.copy_(was)


class Places:
    """Where the memory of tensors is: they may be given another, as by setting their `data`."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        strided = [t for t in dict.fromkeys(tensors) if t.layout is torch.strided and not is_lazy(t)]
        self._were = [(tensor, tensor.data) for tensor in strided]

    def moved(self) -> list[tuple[Tensor, Tensor]]:
        """Those that are elsewhere now, and what they were."""
        return [(tensor, was) for tensor, was in self._were if tensor.data_ptr() != was.data_ptr()]

    def restore(self) -> None:
        """Give them the memory that they had, with what is in it."""
        for tensor, was in self.moved():
            tensor.data = was


class Copies:
    """Copies of the tensors at some places, which a graph reads in their stead."""

    def __init__(self, places: Sequence[Entry]) -> None:
        self.places = [place for place in places if isinstance(now(*place[1:4]), Tensor)]
        self.tensors = [now(*place[1:4]).detach().clone() for place in self.places]

    def changed(self) -> str:
        """The name of one that has been changed in place, since it was made and before it was filled; empty if none."""
        return next((p[0] for p, copy in zip(self.places, self.tensors, strict=True) if copy._version), "")

    def fit(self) -> bool:
        """Whether what is there now may be copied to them."""
        return all(alike(now(*place[1:4]), copy) for place, copy in zip(self.places, self.tensors, strict=True))

    @torch.no_grad()
    def fill(self) -> None:
        """Copy what is there now."""
        for place, copy in zip(self.places, self.tensors, strict=True):
            copy.copy_(now(*place[1:4]), non_blocking=True)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it programs hold the copies."""
        before = [now(*place[1:4]) for place in self.places]
        try:
            self._put(self.tensors)
            yield
        finally:
            self._put(before)

    def _put(self, values: Sequence[Tensor]) -> None:
        for (_, _, holder, key, _), value in zip(self.places, values, strict=True):
            put(holder, key, value)
