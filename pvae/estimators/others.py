"""What each draw is held against: the bound that the others give, without it or with something in its place."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from .. import bounds

NEAR_ZERO = 1e-6
"""Powers below which the log of a mean of powers has too few digits to be divided by them."""
PAIRS = 1 << 24
"""So many numbers are made at once where a bound looks at all draws for each."""


def left_out(bound: bounds.Bound, log_w: Tensor) -> Tensor:
    """The bound that the other K - 1 draws give, for each draw: (K, B), detached. Of any bound; its time grows as K^2.

    >>> left_out(bounds.elbo, torch.tensor([[1.0], [3.0]]))
    tensor([[3.],
            [1.]])
    """
    k, b = log_w.shape
    below = torch.arange(k - 1, device=log_w.device).unsqueeze(1)

    def without(draws: Tensor) -> Tensor:
        others = below + (below >= draws)  # in each column all but its own
        return bound(log_w.detach()[others].reshape(k - 1, len(draws) * b))

    return _by_draw(without, log_w)


def left_out_of_power(log_w: Tensor, power: float) -> Tensor:
    """As `left_out` of the power mean, the importance-weighted bound at 1 and the ELBO at 0; its time grows as K.

    >>> left_out_of_power(torch.tensor([[1.0], [3.0]]), 0.0)
    tensor([[3.],
            [1.]])
    """
    if 0 < abs(power) < NEAR_ZERO:
        return left_out(partial(bounds.power_mean, power=power), log_w)
    others, k = _of_others(log_w, power), len(log_w)
    return ((others - math.log(k - 1)) / power if power else others / (k - 1)).to(log_w.dtype)


def stood_in(bound: bounds.Bound, log_w: Tensor, instead: Tensor) -> Tensor:
    """The bound with each draw's log-weight replaced by another (K, B): (K, B), detached. Of any bound; see `left_out`.

    >>> log_w = torch.tensor([[1.0], [3.0]])
    >>> stood_in(bounds.elbo, log_w, left_out_of_power(log_w, 0.0))
    tensor([[3.],
            [1.]])
    """
    k, b = log_w.shape
    every = torch.arange(k, device=log_w.device).unsqueeze(1)

    def replaced(draws: Tensor) -> Tensor:
        own = (every == draws).unsqueeze(-1)
        return bound(instead[draws].where(own, log_w.detach().unsqueeze(1)).reshape(k, len(draws) * b))

    return _by_draw(replaced, log_w)


def stood_in_of_power(log_w: Tensor, power: float, instead: Tensor) -> Tensor:
    """As `stood_in` of the power mean; its time grows as K.

    >>> stood_in_of_power(torch.tensor([[1.0], [3.0]]), 0.0, torch.tensor([[3.0], [1.0]]))
    tensor([[3.],
            [1.]])
    """
    if 0 < abs(power) < NEAR_ZERO:
        return stood_in(partial(bounds.power_mean, power=power), log_w, instead)
    others, k = _of_others(log_w, power), len(log_w)
    if not power:
        return ((others + instead.double()) / k).to(log_w.dtype)
    return ((others.logaddexp(power * instead.double()) - math.log(k)) / power).to(log_w.dtype)


def _of_others(log_w: Tensor, power: float) -> Tensor:
    """The log-sum of the others' weights to a power, or the sum of their log-weights at 0: (K, B), float64, detached.

    Of those before a draw, and those after it: nothing is taken off a sum, so no digits are lost.
    """
    scaled = log_w.detach().double() * (power or 1.0)
    none = torch.full_like(scaled[:1], -math.inf if power else 0.0)
    running = torch.logcumsumexp if power else torch.cumsum
    before = torch.cat([none, running(scaled[:-1], 0)])
    after = torch.cat([running(scaled[1:].flip(0), 0).flip(0), none])
    return before.logaddexp(after) if power else before + after


def _by_draw(function: bounds.Bound, log_w: Tensor) -> Tensor:
    """Values for each draw (K, B), of a function that looks at all draws for each: not of too many at once."""
    draws = torch.arange(len(log_w), device=log_w.device).split(max(1, PAIRS // log_w.numel()))
    return torch.cat([function(some).reshape(-1, log_w.shape[1]) for some in draws])
