"""What likelihoods of levels have in common: pixels are 0, 1/(levels - 1), ..., 1, and each level has a probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..distributions import OfPixels


def support_of(levels: int) -> str:
    """What `data.check` calls pixels of that many levels."""
    return "levels" if levels == 256 else f"{levels} levels"


class Levels(constraints.Constraint):
    """Multiples of 1 / top in [0, 1], but for rounding."""

    is_discrete = True

    def __init__(self, top: int) -> None:
        self.top = top
        super().__init__()

    def check(self, value: Tensor) -> Tensor:  # noqa: D102
        level = self.top * value
        return ((level - level.round()).abs() < 1e-3) & (level >= -0.5) & (level < self.top + 0.5)

    def __repr__(self) -> str:
        return f"multiples of 1/{self.top} from 0 to 1"


class OfLevels(OfPixels):
    """Pixels with a probability for each level; `top`, the highest, is the last argument."""

    has_rsample: ClassVar[bool] = False

    def __init__(self, *parameters: Tensor, event_dim: int, top: int) -> None:
        self.top = top
        super().__init__(*parameters, event_dim=event_dim)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Levels:  # noqa: D102
        return Levels(self.top)

    @property
    def _dim(self) -> int:
        """Where a parameter has several numbers of a pixel."""
        return -1 - len(self.event_shape)

    def _like(self, *parameters: Tensor) -> OfLevels:
        return type(self)(*parameters, event_dim=len(self.event_shape), top=self.top)

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:  # noqa: D102
        return self.log_prob_of_levels((self.top * value).round())

    def log_prob_of_levels(self, level: Tensor) -> Tensor:
        """Of whole numbers 0 to top."""
        raise NotImplementedError

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        with torch.no_grad():
            return self.sample_levels(torch.Size(sample_shape)) / self.top

    def sample_levels(self, sample_shape: torch.Size) -> Tensor:
        """Whole numbers 0 to top."""
        raise NotImplementedError
