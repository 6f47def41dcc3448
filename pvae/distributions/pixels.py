"""What distributions of pixels share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import constraints


class OfPixels(dist.TorchDistribution):
    """A datum whose pixels are independent given parameters that each pixel has of its own.

    A subclass says `support`, `mean`, `sample` and the log-probability of pixels; batch and event are said here.

    Args:
        parameters: that broadcast to (..., *event), or to (..., C, *event) where a pixel has a mixture's or a
            category's C numbers.
        event_dim: how many dimensions a datum has.
    """

    arg_constraints: ClassVar[dict] = {}
    numbers: ClassVar[int] = 0
    """How many dimensions the parameters have between batch and event."""

    def __init__(self, *parameters: Tensor, event_dim: int) -> None:
        self.parameters = parameters
        shape = torch.broadcast_shapes(*(p.shape for p in parameters))
        batch = len(shape) - event_dim - self.numbers
        self._inner = shape[batch:]
        super().__init__(shape[:batch], shape[batch + self.numbers :])

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> OfPixels:  # noqa: D102
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        shape = (*batch_shape, *self._inner)
        return self._like(*(p.expand(shape) for p in self.parameters))

    def _like(self, *parameters: Tensor) -> OfPixels:
        return type(self)(*parameters, event_dim=len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        return sum_rightmost(self.log_prob_of_pixels(value), len(self.event_shape))

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        """Of each pixel, (..., *event)."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return type(self).__name__.strip("_")


class OpenUnitInterval(constraints.Constraint):
    """Numbers above 0 and below 1."""

    def check(self, value: Tensor) -> Tensor:  # noqa: D102
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "numbers above 0 and below 1"
