"""Steps that have been taken and whose losses nobody has looked at yet: a look makes a GPU wait."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..replay.generators import Drawn
from .calls import Call, versions
from .faults import LOST, NonFiniteError, norm_of
from .parameters import Snapshot

if TYPE_CHECKING:
    from .engine import SVI

HELD = 2**28
"""Bytes of arguments that are kept until the next look."""


class Taken(NamedTuple):
    """A step, and what it was taken under."""

    call: Call
    versions: list[int]
    drawn: Drawn | None
    """The random numbers before it; None: as the step before left them."""
    rates: Tensor | None
    """The learning rates (groups,); None: those of the step before, or of a schedule."""


class Pending:
    """The steps since the last look, and what was before them."""

    def __init__(self) -> None:
        self.before: Snapshot | None = None
        self._steps: list[Taken] = []
        self._heads: list[Tensor] = []
        self._size = 0
        self._marks: list[int] = []
        self._rates = -1
        """How often the learning rates had been changed at the last step."""

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, svi: SVI, block: Sequence[Call], heads: Tensor, drawn: Drawn) -> None:
        """Steps, losses and norm of the gradient of each (block, losses + 1), and the random numbers before them."""
        rates = None
        if svi._rates is not None and svi.schedule is None and svi._rates._version != self._rates:
            rates, self._rates = svi._rates.clone(), svi._rates._version
        for ahead, call in enumerate(block):
            self._steps.append(Taken(call, call.now(), None if ahead else drawn, None if ahead else rates))
        self._heads.append(heads)
        self._size += sum(value.nbytes for call in block for value in call.inputs if value.layout is torch.strided)
        self._marks = _marks(svi)

    def touched(self, svi: SVI) -> bool:
        """Whether others have set parameters since: these steps are not to be taken once more with those."""
        return bool(self._steps) and self._marks != _marks(svi)

    def due(self, every: int) -> bool:
        """Whether it is time for a look."""
        return len(self) >= every or self._size > HELD

    def sound(self, parameters: Sequence[Tensor]) -> bool:
        """Whether losses, and the parameters after them, are finite; one wait for the device."""
        if not self._heads:
            return True
        return bool(torch.cat(self._heads).isfinite().all() & norm_of(parameters).isfinite())

    def again(self, svi: SVI) -> None:
        """Go back to before these steps, and take them eagerly.

        Raises:
            NonFiniteError: by the step that it was; or what the steps were taken on is no longer there.
        """
        svi._set_rates()
        last = None if svi._rates is None else svi._rates.clone()  # as set by now: that is to stay
        self.before.restore()
        svi.steps -= len(self)
        try:
            if any(call.now() != known for call, known, *_ in self._steps):
                raise NonFiniteError(svi.steps + 1, nan, f"here or in the {len(self) - 1} steps after: {LOST}")
            for call, _, drawn, rates in self._steps:
                if drawn is not None:
                    drawn.restore()
                if rates is not None:
                    svi._rates.copy_(rates)
                svi._eager(call)
        except (NonFiniteError, InputError):
            raise
        except ValueError as error:  # of Pyro's validation
            raise NonFiniteError(svi.steps + 1, nan, str(error)) from error
        finally:
            if last is not None:
                svi._rates.copy_(last)


def _marks(svi: SVI) -> list[int]:
    """What tells that parameters have been set, or learning rates that are no tensor."""
    rates = [] if svi._rates is not None else [id(group.get("lr")) for group in svi.optimizer.param_groups]
    return [*rates, *versions([*svi._names])]
