"""A loss that is still on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyro.infer import TraceTailAdaptive_ELBO
from torch import Tensor


class Loss:
    """A number that is read from the device when it is asked for: `float(loss)`, arithmetic, comparison, printing.

    Until then nothing waits. `loss.tensor` is the tensor itself, (), nats.

    >>> import torch
    >>> loss = Loss(torch.tensor(2.0))
    >>> loss / 4, loss < 3, f"{loss:.2f}", sum([loss, loss])
    (0.5, True, '2.00', 4.0)
    """

    __array_priority__ = 1000

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def item(self) -> float:
        """The number; waits for the device."""
        return self.tensor.item()

    __float__ = item

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.item(), dtype=dtype)


def _numeric(name: str) -> Any:
    def method(self: Loss, *others: Any) -> Any:
        return getattr(self.item(), name)(*(o.item() if isinstance(o, Loss) else o for o in others))

    method.__name__ = name
    return method


_OPERATIONS = "add sub mul truediv floordiv mod pow radd rsub rmul rtruediv rfloordiv rmod rpow"
for _name in f"{_OPERATIONS} neg pos abs round trunc floor ceil lt le gt ge eq ne int bool hash repr format".split():
    setattr(Loss, f"__{_name}__", _numeric(f"__{_name}__"))


def numbers(objective: Any, loss: Any) -> tuple[type, tuple]:
    """The kind of a loss, and its numbers: one, those of a tuple, or none of an objective that has no value."""
    if isinstance(loss, tuple):
        return type(loss), loss
    return float, () if isinstance(objective, TraceTailAdaptive_ELBO) else (loss,)


def told(kind: type, values: Sequence[Any]) -> Any:
    """What a step returns: as Pyro's does, a number (infinite where there is none) or a tuple.

    >>> told(float, [1.5]), told(tuple, [1.5, 2.5]), told(float, [])
    (1.5, (1.5, 2.5), inf)
    """
    if issubclass(kind, tuple):
        return kind(values)
    return values[0] if len(values) else float("inf")
