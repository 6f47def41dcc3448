"""Monotone maps of one number, and the numbers that they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from ..errors import at_least, more_than


@contextmanager
def _validation_as_it_is() -> Iterator[None]:
    before = Distribution._validate_args
    yield
    Distribution.set_default_validate_args(before)


with _validation_as_it_is():  # importing zuko turns the validation of every distribution off
    from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform

SLOPE = 1e-2
"""The least slope of a map of one number; the largest is its inverse."""


def affine(numbers: Tensor) -> Transform:
    """The map x -> exp(a) x + b of each of D numbers; (..., D, 2): b, and a softly kept within SLOPE and 1 / SLOPE."""
    return MonotonicAffineTransform(numbers[..., 0], numbers[..., 1], slope=SLOPE)


def spline(numbers: Tensor, bound: float) -> Transform:
    """A monotone rational-quadratic spline within +-bound, the identity outside (Durkan et al. 2019).

    Args:
        numbers: (..., D, 3 * bins - 1): widths, heights and derivatives, zero for the identity.
        bound: where it ends.
    """
    bins = (numbers.shape[-1] + 1) // 3
    return _Spline(*numbers.split([bins, bins, bins - 1], -1), bound=bound, slope=SLOPE)


class _Spline(MonotonicRQSTransform):
    """Zuko's, whose inverse takes the root of what rounding may make negative."""

    def _inverse(self, y: Tensor) -> Tensor:
        inside, x0, x1, y0, y1, d0, d1, s = self.bin(self.searchsorted(self.vertical, y) - 1)
        height, above = y1 - y0, inside * (y - y0)
        bend = above * (d0 + d1 - 2 * s)
        a, b, c = height * (s - d0) + bend, height * d0 - bend, -s * above
        root = (b.square() - 4 * a * c).clamp(min=1e-12).sqrt()
        return torch.where(inside, x0 + 2 * c / (-b - root) * (x1 - x0), y)


Univariate = tuple[int, Callable[[Tensor], Transform]]
"""How many numbers a map of one number takes, and the map."""
AFFINE: Univariate = (2, affine)


def splines(bins: int, bound: float) -> Univariate:
    """Splines of so many bins within +-bound."""
    at_least(1, bins=bins)
    more_than(0, bound=bound)
    return 3 * bins - 1, partial(spline, bound=bound)
