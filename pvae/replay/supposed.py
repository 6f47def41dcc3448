"""What Python has read of values that later steps may have otherwise, to decide what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from . import lines

READ = "a tensor's value is read in Python, which a graph cannot do: use torch.where, or a mask"
MOST = 1000
"""Values that are looked at in each step."""


class Untraceable(Exception):
    """Why a function cannot be written down as a graph, and where."""


class Supposed:
    """Whether each value is as it was read: a graph is right for the steps where all are."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []
        """Whether each is as it was read, ()."""
        self.places: dict[str, None] = {}
        """The lines that read."""
        self.decided = False
        """Whether anything but an assertion did."""

    def read(self, value: Tensor, as_a: Callable[[Tensor], Any], asserted: bool = False) -> Any:
        """What Python reads of a tensor of one number, here and now."""
        if len(self.held) >= MOST:
            raise Untraceable(f"{READ}; here more than {MOST:,} are")
        self.decided = self.decided or not asserted
        with disable_proxy_modes_tracing():
            found = as_a(value)
        value = value.detach().reshape(())
        if as_a is not float:
            value = value.ne(0) if as_a is bool else value.trunc()
        self.held.append(value == found)
        self.places[lines.here()] = None
        return found

    def equal(self, one: Tensor, other: Tensor) -> bool:
        """Whether two tensors are."""
        return one is other or (one.shape == other.shape and self.read((one == other).all(), bool))

    def stays(self, value: Tensor) -> None:
        """All of a tensor is read, as it is here and now."""
        with disable_proxy_modes_tracing():
            found = value.detach().clone()
        self.read((value == found).all(), bool)
