"""Monotone maps of one number, and the numbers that they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..errors import at_least, more_than
from .transform import TwoWay


@contextmanager
def _validation_as_it_is() -> Iterator[None]:
    before = Distribution._validate_args
    yield
    Distribution.set_default_validate_args(before)


with _validation_as_it_is():  # importing zuko turns the validation of every distribution off
    from zuko.transforms import MonotonicAffineTransform

SLOPE = 1e-2
"""The least slope of a map of one number; the largest is its inverse."""


class _Affine(MonotonicAffineTransform):
    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._inverse(y), -self.log_abs_det_jacobian(y, y)


def affine(numbers: Tensor) -> _Affine:
    """The map x -> exp(a) x + b of each of D numbers; (..., D, 2): b, and a softly kept within SLOPE and 1 / SLOPE."""
    return _Affine(numbers[..., 0], numbers[..., 1], slope=SLOPE)


def spline(numbers: Tensor, bound: float) -> Spline:
    """A monotone rational-quadratic spline within +-bound, the identity outside.

    Args:
        numbers: (..., D, 3 * bins - 1): widths, heights and derivatives, zero for the identity.
        bound: where it ends.
    """
    bins = (numbers.shape[-1] + 1) // 3
    rows = numbers.movedim(-1, 0).contiguous()  # short sums, and what broadcasts along few numbers, would be slow
    return Spline(*rows.split([bins, bins, bins - 1]), bound)


class Spline(TwoWay):
    """The spline of Durkan et al. 2019, its numbers softly kept within what SLOPE allows.

    Args:
        widths: (bins, ...), those of the bins up to a common factor, as logarithms; likewise heights.
        heights: (bins, ...).
        slopes: (bins - 1, ...), the slopes where bins meet, as logarithms.
        bound: where it ends.
    """

    domain = codomain = constraints.real

    def __init__(self, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float) -> None:
        super().__init__()
        self.widths, self.heights = (2 * bound * _shares(_soft(sizes, 0.5)) for sizes in (widths, heights))
        inner = _soft(slopes, 1.0).exp()
        end = torch.ones_like(self.widths[:1])
        self.slopes, self.bound = torch.cat([end, inner, end]), bound

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        inside, (x0, width, y0, height, before, after) = self._bin(x, self.widths)
        t, slope = torch.where(inside, (x - x0) / width, 0.5), height / width
        y = y0 + height * (slope * t.square() + before * t * (1 - t)) / _denominator(t, slope, before, after)
        return torch.where(inside, y, x), torch.where(inside, _log_slope(t, slope, before, after), 0.0)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        inside, (x0, width, y0, height, before, after) = self._bin(y, self.heights)
        above, slope = torch.where(inside, y - y0, 0.5 * height), height / width
        bend = above * (before + after - 2 * slope)
        a, b, c = height * (slope - before) + bend, height * before - bend, -slope * above
        root = (b.square() - 4 * a * c).clamp(min=1e-12).sqrt()  # of what rounding may make negative
        t = 2 * c / (-b - root)
        return torch.where(inside, x0 + t * width, y), -torch.where(inside, _log_slope(t, slope, before, after), 0.0)

    def _bin(self, value: Tensor, sizes: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Whether values are within the bounds; of their bins x0, width, y0, height, and the slopes at both ends."""
        with torch.no_grad():
            ends = sizes[:-1].cumsum(0) - self.bound
            earlier = ends < value
            which = earlier.sum(0, keepdim=True)
        places: list[Tensor] = []
        for each in (self.widths, self.heights):
            places += [(each[:-1] * earlier).sum(0) - self.bound, _take(each, which)]
        return value.abs() < self.bound, (*places, _take(self.slopes, which), _take(self.slopes, which + 1))


def _take(numbers: Tensor, which: Tensor) -> Tensor:
    return numbers.expand(-1, *which.shape[1:]).gather(0, which).squeeze(0)


def _soft(numbers: Tensor, factor: float) -> Tensor:
    """Numbers kept above factor * log SLOPE and below minus that."""
    return numbers / (1 + (numbers / (factor * math.log(SLOPE))).abs())


def _shares(logarithms: Tensor) -> Tensor:
    """Their softmax; what is bounded needs none of its care."""
    sizes = logarithms.exp()
    return sizes / sizes.sum(0)


def _denominator(t: Tensor, slope: Tensor, before: Tensor, after: Tensor) -> Tensor:
    return slope + (before + after - 2 * slope) * t * (1 - t)


def _log_slope(t: Tensor, slope: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The logarithm of the spline's slope, t of a bin's width into it."""
    rise = 2 * slope * t * (1 - t) + before * (1 - t).square() + after * t.square()
    return (slope.square() * rise / _denominator(t, slope, before, after).square()).log()


Univariate = tuple[int, Callable[[Tensor], _Affine | Spline]]
"""How many numbers a map of one number takes, and the map."""
AFFINE: Univariate = (2, affine)


def splines(bins: int, bound: float) -> Univariate:
    """Splines of so many bins within +-bound."""
    at_least(1, bins=bins)
    more_than(0, bound=bound)
    return 3 * bins - 1, partial(spline, bound=bound)
