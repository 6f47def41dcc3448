"""Scales between two bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError


class BoundedScale:
    """A scale for every number a: s = low + (high - low) sigmoid(a - log((high - 1) / (1 - low))).

    It is 1 at a = 0, close to exp(a) below, bounded on both sides and smooth.

    Args:
        low: lower bound, above 0 and below 1.
        high: upper bound, above 1.

    Raises:
        InputError: bounds out of order.

    >>> BoundedScale(0.5, 2.0)(torch.tensor([-1e3, 1e3]))
    tensor([0.5000, 2.0000])
    """

    def __init__(self, low: float, high: float) -> None:
        if not 0 < low < 1 < high < math.inf:
            raise InputError(f"min_scale, max_scale: found {low}, {high}, expected 0 < min_scale < 1 < max_scale")
        self.low, self.high = low, high
        self._shift = math.log((high - 1) / (1 - low))

    def __call__(self, raw: Tensor) -> Tensor:
        """Numbers a (...) to scales (...)."""
        return self.low + (self.high - self.low) * torch.sigmoid(raw - self._shift)
