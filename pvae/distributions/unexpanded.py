"""Distributions that never widen their arrays."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor


class Unexpanded(dist.TorchDistribution):
    """A distribution that takes a wider batch without widening its arrays: the base of those that score by products.

    A subclass writes `density`, and `draw`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> Unexpanded:  # noqa: D102
        wider = copy.copy(self)
        wider._batch_shape = torch.Size(batch_shape)
        return wider

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        found = self.density(value)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        with torch.no_grad():
            return self.draw(torch.Size(sample_shape) + self.batch_shape)

    def density(self, value: Tensor) -> Tensor:
        """The log-density of a value (..., *event): (...)."""
        raise NotImplementedError

    def draw(self, shape: torch.Size) -> Tensor:
        """Draws (*shape, *event)."""
        raise NotImplementedError
