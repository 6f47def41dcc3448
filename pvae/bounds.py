"""Bounds on log p(x): pure functions from log-weights (K, B) to a value for each datum (B,), nats.

Below them, what gradient estimators need of any such function: its slope at each draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor

from .errors import InputError

Bound = Callable[[Tensor], Tensor]
"""From log-weights (K, B) to a value for each datum (B,)."""
CUT = 60.0
"""Nats below the largest at which a weight counts as zero."""


def elbo(log_w: Tensor) -> Tensor:
    """The evidence lower bound: the mean of log w over the K particles.

    ELBO = 1/K sum_k log w_k, log w = log p(x, z) - log q(z|x).

    Args:
        log_w: (K, B), nats.

    Kingma and Welling 2014, eq. 2.

    >>> import torch
    >>> elbo(torch.tensor([[0.0], [-2.0]]))
    tensor([-1.])
    """
    _check_draws(log_w)
    return log_w.sum(0) if len(log_w) == 1 else log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    """The importance-weighted bound: the log of the mean of the K weights.

    L_K = log 1/K sum_k w_k. L_1 is the ELBO; in expectation L_K rises with K, to log p(x).

    Args:
        log_w: (K, B), nats.

    Burda, Grosse and Salakhutdinov 2015, eq. 8.

    >>> import torch
    >>> iwae(torch.tensor([[1.0], [1.0]]))
    tensor([1.])
    """
    _check_draws(log_w)
    return _cut(log_w).logsumexp(0) - math.log(log_w.shape[0])


def power_mean(log_w: Tensor, power: float) -> Tensor:
    """The log of the power mean of the weights, of which several bounds are special cases.

    1/s log 1/K sum_k w_k^s: the importance-weighted bound at s = 1, the ELBO in the limit s = 0; it rises with s.

    Args:
        log_w: (K, B), nats.
        power: s, any number.

    >>> import torch
    >>> log_w = torch.tensor([[1.0], [3.0]])
    >>> [round(power_mean(log_w, s).item(), 3) for s in (0, 1e-9, 1)]
    [2.0, 2.0, 2.434]
    """
    _check_draws(log_w)
    if power == 0:
        return log_w.mean(0)
    if power == 1:
        return iwae(log_w)
    if power < 0:
        return -power_mean(-log_w, -power)
    if power >= 0.5:
        return _of_large(log_w, power)
    # For small powers the mean of w^s is close to 1 and its log would lose digits; not so from the differences to 1,
    # as long as these are small. Where they aren't, the digits are there.
    middle = log_w.detach().mean(0)
    y = power * (log_w - middle)
    small = (y.detach().abs() < 1).all(0)
    near = torch.expm1(y.masked_fill(~small, 0.0)).mean(0).log1p() / power + middle
    return near.where(small, _of_large(log_w, power))


def _of_large(log_w: Tensor, power: float) -> Tensor:
    """The power mean by differences to the largest log-weight, which keep their digits times any power."""
    top = log_w.detach().amax(0)
    most = torch.finfo(top.dtype).max  # what is infinite is so, less a finite number
    y = power * (log_w - top.clamp(-most, most))
    return y.clamp(min=-CUT).exp().mean(0).log() / power + top


def renyi(log_w: Tensor, alpha: float) -> Tensor:
    """The variational Renyi bound.

    1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha). alpha = 0 is the importance-weighted bound, alpha = 1 the ELBO (the
    limit of the formula). As K grows it tends to a lower bound for alpha above 0 and an upper bound below 0.

    Args:
        log_w: (K, B), nats.
        alpha: any number.

    Raises:
        InputError: alpha is not finite.

    Li and Turner 2016.

    >>> import torch
    >>> log_w = torch.tensor([[1.0], [3.0]])
    >>> renyi(log_w, 1), renyi(log_w, 0) == iwae(log_w)
    (tensor([2.]), tensor([True]))
    """
    if not math.isfinite(alpha):
        raise InputError(f"alpha: found {alpha}, expected a finite number: 0 is IWAE, 1 the ELBO")
    return power_mean(log_w, 1 - alpha)


def ciwae(log_w: Tensor, beta: float) -> Tensor:
    """A convex combination of the ELBO and the importance-weighted bound: beta ELBO + (1 - beta) L_K.

    Args:
        log_w: (K, B), nats.
        beta: the share of the ELBO, 0 to 1.

    Raises:
        InputError: beta outside 0 to 1.

    Rainforth et al. 2018.

    >>> import torch
    >>> ciwae(torch.tensor([[1.0], [3.0]]), 1.0)
    tensor([2.])
    """
    if not 0 <= beta <= 1:
        raise InputError(f"beta: found {beta}, expected the share of the ELBO, 0 to 1")
    if beta in (0, 1):  # nothing of the other, though it be infinite
        return elbo(log_w) if beta else iwae(log_w)
    return beta * elbo(log_w) + (1 - beta) * iwae(log_w)


def miwae(log_w: Tensor, groups: int) -> Tensor:
    """The mean of M importance-weighted bounds of K draws each.

    1/M sum_m log 1/K sum_k w_mk. M = 1 is the importance-weighted bound, K = 1 the ELBO.

    Args:
        log_w: (M K, B), nats: the groups one after the other.
        groups: M.

    Raises:
        InputError: M below 1, or draws that are not a multiple of it.

    Rainforth et al. 2018.

    >>> import torch
    >>> log_w = torch.tensor([[1.0], [1.0], [3.0], [3.0]])
    >>> miwae(log_w, 2), miwae(log_w, 4) == elbo(log_w)
    (tensor([2.]), tensor([True]))
    """
    return iwae(grouped(log_w, groups)).mean(0)


def grouped(log_w: Tensor, groups: int) -> Tensor:
    """Log-weights (M K, B) of M groups of K, one after the other, as (K, M, B).

    Raises:
        InputError: M below 1, or draws that are not a multiple of it.
    """
    draws = log_w.shape[0]
    check_groups(draws, groups)
    return log_w.reshape(groups, draws // groups, *log_w.shape[1:]).transpose(0, 1)


def check_groups(draws: int, groups: int) -> None:
    """Refuse a number of groups that does not divide that of draws."""
    if groups < 1 or draws < 1 or draws % groups:
        raise InputError(f"groups: found {groups} for {draws} particles, expected a divisor of their number")


def at(bound: Callable[[Tensor], Tensor], log_w: Tensor, particles: int) -> Tensor:
    """A bound at K particles from S draws: the mean over disjoint groups of K, so that it has the bound's expectation.

    Args:
        bound: from (K, B) to (B,), as `iwae`, or `lambda log_w: renyi(log_w, 0.5)`.
        log_w: (S, B), nats; what is left over of S is not used.
        particles: K, at most S.

    Raises:
        InputError: K below 1 or above S.

    >>> import torch
    >>> at(iwae, torch.zeros(5, 3), 2)
    tensor([0., 0., 0.])
    """
    draws, *shape = log_w.shape
    if not 1 <= particles <= draws:
        raise InputError(f"particles: found {particles}, expected 1 to {draws}, the number of draws")
    groups = draws // particles
    return bound(grouped(log_w[: groups * particles], groups).flatten(1)).reshape(groups, *shape).mean(0)


def piwae(log_w: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The two bounds of partially importance-weighted inference: the model's, L_MK, and the guide's, MIWAE.

    Args:
        log_w: (M K, B), nats: the groups one after the other.
        groups: M.

    Raises:
        InputError: M below 1, or draws that are not a multiple of it.

    Rainforth et al. 2018.
    """
    return iwae(log_w), miwae(log_w, groups)


def tvo(log_w: Tensor, partitions: Sequence[float], *, upper: bool = False) -> Tensor:
    """The thermodynamic bound: a Riemann sum under the curve whose integral from 0 to 1 is log p(x).

    sum_p (b_p - b_(p-1)) E_p[log w], E_p an average with weights w^b normalized over the draws, b = b_(p-1) for the
    lower sum and b = b_p for the upper. With partitions 0, 1 the lower sum is the ELBO.

    Args:
        log_w: (K, B), nats.
        partitions: b_0 = 0 < b_1 < ... < 1.
        upper: the upper sum, a bound from above as K grows.

    Raises:
        InputError: partitions that do not rise from 0 to 1.

    Masrani, Le and Wood 2019.

    >>> import torch
    >>> log_w = torch.tensor([[1.0], [3.0]])
    >>> tvo(log_w, [0, 1]), tvo(log_w, [0, 0.5, 1]), tvo(log_w, [0, 1], upper=True)
    (tensor([2.]), tensor([2.2311]), tensor([2.7616]))
    """
    check_partitions(partitions)
    _check_draws(log_w)
    top = log_w.detach().amax(0)
    top = top.where(top > -math.inf, 0.0)  # in differences to it the sums lose no digits
    total = torch.zeros_like(top)
    for low, high in pairwise(partitions):
        b = high if upper else low
        weights = torch.exp(_cut(b * (log_w - top))) if b else torch.ones_like(log_w)
        # a draw of no weight counts for nothing, also where its log-weight is -inf
        below = (log_w - top).where(weights > 0, 0.0)
        total = total + (high - low) * (weights * below).sum(0) / weights.sum(0)
    return (total + top).where(log_w.amax(0) > -math.inf, -math.inf)


def check_partitions(partitions: Sequence[float]) -> None:
    """Refuse partitions that do not rise from 0 to 1."""
    numbers = all(isinstance(b, Real) for b in partitions)
    rise = numbers and all(a < b for a, b in pairwise(partitions))
    if not rise or len(partitions) < 2 or partitions[0] != 0 or partitions[-1] != 1:
        found = ",".join(f"{b:g}" if numbers else str(b) for b in partitions) or "none"
        raise InputError(f"partitions: found {found}, expected numbers that rise from 0 to 1, such as 0,0.1,1")


def cubo(log_w: Tensor, order: float = 2.0) -> Tensor:
    """The chi upper bound: 1/n log 1/K sum_k w_k^n, an upper bound on log p(x) as K grows.

    Its estimate from K draws is too low on average, as the log of a mean is.

    Args:
        log_w: (K, B), nats.
        order: n, at least 1; 1 is the importance-weighted bound.

    Raises:
        InputError: an order below 1.

    Dieng et al. 2017.

    >>> import torch
    >>> cubo(torch.tensor([[1.0], [3.0]]))
    tensor([2.6625])
    """
    if not 1 <= order < math.inf:
        raise InputError(f"order: found {order}, expected a finite number of at least 1")
    return power_mean(log_w, order)


def _check_draws(log_w: Tensor) -> None:
    if not len(log_w):
        raise InputError(f"log_w: found K of 0, in shape {tuple(log_w.shape)}, expected (K, B) with a K of at least 1")


def _cut(log_w: Tensor) -> Tensor:
    # Weights this far below the largest add nothing to the sum, in float64 either. But their gradients are denormal
    # numbers, which a CPU multiplies at a quarter of its speed.
    return log_w.masked_fill(log_w < log_w.detach().amax(0) - CUT, -math.inf)


# Of any bound ---------------------------------------------------------------------------------------------------------


def slope(bound: Bound, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """A bound (B,) and its derivative c (K, B) at each log-weight, both detached.

    >>> slope(iwae, torch.tensor([[1.0], [1.0]]))[1]
    tensor([[0.5000],
            [0.5000]])
    """
    log_w = log_w.detach().requires_grad_()
    with torch.enable_grad():
        value = bound(log_w)
        (found,) = torch.autograd.grad(value.sum(), log_w)
    return value.detach(), found


def twice_slope(bound: Bound, log_w: Tensor) -> Tensor:
    """A bound's slope less its own second derivative at each log-weight, c_k - dc_k/dlog w_k: (K, B).

    In float64, from K copies of the K draws: memory grows with K^2.

    >>> log_w = torch.tensor([[1.0], [3.0]])
    >>> torch.allclose(twice_slope(iwae, log_w), log_w.softmax(0) ** 2)
    True
    """
    k, b = log_w.shape
    copies = log_w.detach().double().unsqueeze(1).repeat(1, k, 1).reshape(k, k * b).requires_grad_()
    with torch.enable_grad():
        (first,) = torch.autograd.grad(bound(copies).sum(), copies, create_graph=True)
        own = first.reshape(k, k, b).diagonal().sum()
        second = torch.autograd.grad(own, copies)[0] if own.requires_grad else torch.zeros_like(copies)
    return (first - second).detach().reshape(k, k, b).diagonal().mT.to(log_w)


def twice_slope_of_power(log_w: Tensor, power: float) -> Tensor:
    """What `twice_slope` finds for `power_mean`: (1 - s) v + s v^2, v = w^s normalized over the draws: (K, B)."""
    v = _cut(power * log_w.detach()).softmax(0)
    return (1 - power) * v + power * v * v
