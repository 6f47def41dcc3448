"""Steps that have been taken and whose losses nobody has looked at yet: a look makes a GPU wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .calls import Call
from .faults import LOST, NonFiniteError, norm_of
from .parameters import Snapshot

HELD = 2**28
"""Bytes of arguments that are kept until the next look."""


class Pending:
    """The steps since the last look, and what was before them."""

    def __init__(self) -> None:
        self.before: Snapshot | None = None
        self._steps: list[tuple[Call, list[int]]] = []
        self._heads: list[Tensor] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, block: Sequence[Call], heads: Tensor) -> None:
        """Steps, and losses and norm of the gradient of each (block, losses + 1)."""
        self._heads.append(heads)
        self._steps += [(call, call.now()) for call in block]
        self._size += sum(value.nbytes for call in block for value in call.inputs)

    def due(self, every: int) -> bool:
        """Whether it is time for a look."""
        return len(self) >= every or self._size > HELD

    def sound(self, parameters: Sequence[Tensor]) -> bool:
        """Whether losses, and the parameters after them, are finite; one wait for the device."""
        if not self._heads:
            return True
        return bool(torch.cat(self._heads).isfinite().all() & norm_of(parameters).isfinite())

    def calls(self, first: int) -> list[Call]:
        """What they were taken on, to take them once more.

        Raises:
            NonFiniteError: that is no longer there; it began with this step.
        """
        if any(call.now() != known for call, known in self._steps):
            raise NonFiniteError(first, float("nan"), f"here or in the {len(self) - 1} steps after: {LOST}")
        return [call for call, _ in self._steps]
