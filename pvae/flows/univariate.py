"""Monotone maps of one number, and the numbers that they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ..errors import more_than, whole_number
from .transform import TwoWay

SLOPE = 1e-2
"""The least slope of an affine map, and of a spline where bins meet; the largest is its inverse."""


class Affine(TwoWay):
    """The map x -> exp(a) x + b of each number.

    Args:
        shift: b (...).
        log_scale: a (...), softly kept within SLOPE and 1 / SLOPE.
    """

    domain = codomain = constraints.real

    def __init__(self, shift: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.shift, self.log_scale = shift, _soft(log_scale, 1.0)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return x * self.log_scale.exp() + self.shift, self.log_scale

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return (y - self.shift) * (-self.log_scale).exp(), -self.log_scale


def affine(numbers: Tensor) -> Affine:
    """Of D numbers (..., D, 2), b and a of each."""
    return Affine(*numbers.unbind(-1))


def spline(numbers: Tensor, bound: float) -> Spline:
    """A monotone rational-quadratic spline within +-bound, the identity outside.

    Args:
        numbers: (..., D, 3 * bins - 1), of as many dimensions as values (..., D) have and one: widths, heights and
            derivatives, zero for the identity.
        bound: where it ends.
    """
    return Spline(numbers.movedim(-1, 0), bound)


class Spline(TwoWay):
    """The spline of Durkan et al. 2019, its numbers softly kept within what SLOPE allows.

    Args:
        rows: (3 * bins - 1, ...): the bins' widths, then their heights, up to a common factor, then the slopes where
            bins meet; all as logarithms.
        bound: where it ends.
    """

    domain = codomain = constraints.real

    def __init__(self, rows: Tensor, bound: float) -> None:
        super().__init__()
        self.rows, self.bound = rows, bound

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        inside, (x0, y0), (width, height), (before, after) = self._bin(x, 0)
        t, slope = torch.where(inside, (x - x0) / width, 0.5), height / width
        y = y0 + height * (slope * t.square() + before * t * (1 - t)) / _denominator(t, slope, before, after)
        return torch.where(inside, y, x), torch.where(inside, _log_slope(t, slope, before, after), 0.0)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        inside, (x0, y0), (width, height), (before, after) = self._bin(y, 1)
        above, slope = torch.where(inside, y - y0, 0.5 * height), height / width
        bend = above * (before + after - 2 * slope)
        a, b, c = height * (slope - before) + bend, height * before - bend, -slope * above
        root = (b.square() - 4 * a * c).clamp(min=1e-12).sqrt()  # of what rounding may make negative
        t = 2 * c / (-b - root)
        return torch.where(inside, x0 + t * width, y), -torch.where(inside, _log_slope(t, slope, before, after), 0.0)

    def _bin(self, value: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Whether values are within the bounds; and of the bin that each is in what `_bins` says first."""
        shape = torch.broadcast_shapes(value.shape, self.rows.shape[1:])
        given = self.rows.expand(-1, *shape), value.detach().expand(shape), self.bound, axis
        # within torch.func's transforms autograd takes no function of one's own
        within = torch._C._functorch.peek_interpreter_stack() is not None
        return value.abs() < self.bound, *(_bins(*given)[:3] if within else _Bins.apply(*given))


def _bins(rows: Tensor, value: Tensor, bound: float, axis: int) -> tuple[Tensor, ...]:
    """The bins that values are in, along x for axis 0, along y for 1.

    Returns:
        Their starts along x and y, (2, ...), their sizes likewise, and the slopes at both ends; then what the gradient
        is made of: exp of the soft sizes (2, bins, ...), their scale (2, ...), which bins but the last come earlier
        (bins - 1, ...), and how many do (1, ...).
    """
    bins = (len(rows) + 1) // 3
    sizes, slopes = rows.split([2 * bins, bins - 1])
    each = _soft(sizes, 0.5).exp().unflatten(0, (2, bins))
    scale = 2 * bound / each.sum(1)
    with torch.no_grad():
        earlier = (each[axis, :-1].cumsum(0) < (value + bound) / scale[axis]).to(each.dtype)
        at = earlier.sum(0, keepdim=True).long()
    starts = (each[:, :-1] * earlier).sum(1) * scale - bound
    size = each.gather(1, at.expand(2, *at.shape)).squeeze(1) * scale
    flat = torch.zeros_like(slopes[:1])  # at the bounds, where the slope is 1
    ends = torch.cat([flat, slopes, flat]).gather(0, torch.cat([at, at + 1]))
    return starts, size, _soft(ends, 1.0).exp(), each, scale, earlier, at


class _Bins(torch.autograd.Function):
    """What `_bins` gives first, with a gradient that goes through the rows few times: there are many of them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, value: Tensor, bound: float, axis: int) -> tuple[Tensor, ...]:
        found = _bins(rows, value, bound, axis)
        ctx.save_for_backward(rows, value, *found)
        ctx.options = bound, axis
        return found[:3]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        rows, value, *found = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated
            again = _bins(rows, value, *ctx.options)[:3]
            return *torch.autograd.grad(again, rows, grads, create_graph=True), None, None, None
        return _gradient(rows, found, grads, ctx.options[0]), None, None, None


def _gradient(rows: Tensor, found: Sequence[Tensor], grads: Sequence[Tensor], bound: float) -> Tensor:
    """The gradient at rows.

    With s_j the share of bin j, bin k starts at 2 bound sum_(j<k) s_j - bound and has the size 2 bound s_k; s_k has the
    slope s_k (1 - s_k) in its own logarithm and -s_k s_j in another's.
    """
    starts, size, ends, each, scale, earlier, at = found
    of_starts, of_size, of_ends = grads
    sizes = 2 * each.shape[1]
    out = torch.empty((len(rows) + 1, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    out[sizes:] = 0
    of_ends = of_ends * ends * (1 + ends.log().abs() / math.log(SLOPE)).square()
    # those of the bounds come to lie before the slopes, where sizes follow, and after them
    out.scatter_(0, torch.cat([at, at + 1]) + (sizes - 1), of_ends)
    both = out[:sizes].unflatten(0, (2, -1))
    torch.mul(earlier, of_starts.unsqueeze(1), out=both[:, :-1])
    both[:, -1] = 0
    both.scatter_(1, at.expand(2, *at.shape), of_size.unsqueeze(1))
    both.sub_(((of_starts * (starts + bound) + of_size * size) / (2 * bound)).unsqueeze(1))
    both.mul_(each).mul_(scale.unsqueeze(1))
    out[:sizes].div_(_widened(rows[:sizes], 0.5).square_())
    return out[:-1]


def _soft(numbers: Tensor, factor: float) -> Tensor:
    """Numbers kept above factor * log SLOPE and below minus that; its slope is one over the square of `_widened`."""
    return numbers / _widened(numbers, factor)


def _widened(numbers: Tensor, factor: float) -> Tensor:
    return numbers.abs().mul_(-1 / (factor * math.log(SLOPE))).add_(1)


def _denominator(t: Tensor, slope: Tensor, before: Tensor, after: Tensor) -> Tensor:
    return slope + (before + after - 2 * slope) * t * (1 - t)


def _log_slope(t: Tensor, slope: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The logarithm of the spline's slope, t of a bin's width into it."""
    rise = 2 * slope * t * (1 - t) + before * (1 - t).square() + after * t.square()
    return (slope.square() * rise / _denominator(t, slope, before, after).square()).log()


Univariate = tuple[int, Callable[[Tensor], TwoWay]]
"""How many numbers a map of one number takes, and the map."""
AFFINE: Univariate = (2, affine)


def splines(bins: int, bound: float) -> Univariate:
    """Splines of so many bins within +-bound."""
    whole_number(2, bins=bins)
    more_than(0, bound=bound)
    return 3 * bins - 1, partial(spline, bound=bound)
