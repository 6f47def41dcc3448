"""Distributions of one-hot vectors, and of the numbers between that stand in for 0, 1 and one-hot vectors.

A relaxed draw lies close to 0 or 1, where a float32 has no digits left: its logit would be lost, and with it the
density. So the logit v is shortened far out, v -> sign(v) (c + log(1 + |v| - c)) for |v| > c, before it becomes a
number between. That is one smooth map for every temperature and every logit: prior and guide are densities of the
same numbers, the densities are exact, and the bound is a bound, up to what a float32 of z tells apart: 2% of |v| at
1,000, 10% at 2,000, nothing from 8,000 on. Up to c a draw is the published one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..errors import InputError

BINARY_LOGIT = 6.0
"""c between 0 and 1: within (0.0025, 0.9975) nothing is shortened."""
LARGEST_LOGIT = 15.0
"""Near the largest of a float32 below 1, 16.6; reached where |v| is 8,000."""
LOG_RATIO = 40.0
"""c for the logarithm of a probability over the largest."""


def grouped(latent: int, categories: int | None) -> tuple[int, int]:
    """How many one-hot vectors make up a latent, and of how many categories; by default it is one of them.

    >>> grouped(20, 5), grouped(20, None)
    ((4, 5), (1, 20))

    Raises:
        InputError: a latent that is not a multiple of the categories; fewer than two of these.
    """
    categories = latent if categories is None else categories
    if categories < 2 or latent % categories:
        raise InputError(
            f"categories: found {categories} for a latent of size {latent}, expected 2 or more that divide it"
        )
    return latent // categories, categories


def check_temperature(temperature: float) -> None:
    """Refuse a temperature at which logits such as networks give leave what float32 tells apart.

    Raises:
        InputError: it is below 0.01, or not finite.
    """
    if not 0.01 <= temperature < math.inf:
        raise InputError(f"temperature: found {temperature}, expected at least 0.01: 0.5 or so")


class Concatenated(constraints.Constraint):
    """Vectors of one length, each in a set of its own kind, one after the other.

    Args:
        each: the set, of vectors.
        size: the length of each.
    """

    event_dim = 1

    def __init__(self, each: constraints.Constraint, size: int) -> None:
        self.each, self.size, self.is_discrete = each, size, each.is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector is in the set."""
        return self.each.check(value.unflatten(-1, (-1, self.size))).all(-1)


class OneHots(dist.TorchDistribution):
    """Independent one-hot vectors, concatenated: log p(z) = sum_gc z_gc log softmax(l_g)_c.

    Args:
        logits: l (..., groups, categories).

    >>> p = OneHots(torch.zeros(2, 5))
    >>> p.event_shape, p.sample().sum(), p.log_prob(p.sample())  # -2 log 5
    (torch.Size([10]), tensor(2.), tensor(-3.2189))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-2], torch.Size([logits.shape[-2] * logits.shape[-1]]))

    @property
    def support(self) -> constraints.Constraint:
        """One-hot vectors, concatenated."""
        return Concatenated(constraints.one_hot, self.logits.shape[-1])

    @property
    def mean(self) -> Tensor:
        """The probabilities, (..., groups * categories)."""
        return self.logits.exp().flatten(-2)

    @property
    def mode(self) -> Tensor:
        """The likeliest categories, (..., groups * categories)."""
        return _one_hot(self.logits).flatten(-2)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> OneHots:  # noqa: D102
        return OneHots(self.logits.expand(*batch_shape, *self.logits.shape[-2:]))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """By the largest of logits and Gumbel noise."""
        with torch.no_grad():
            shape = (*sample_shape, *self.logits.shape)
            return _one_hot(self.logits + _gumbel(self.logits, shape)).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        return (value.unflatten(-1, self.logits.shape[-2:]) * self.logits).sum((-2, -1))


class RelaxedBernoullis(dist.TorchDistribution):
    """Independent numbers z between 0 and 1: logit z is v = (l + e) / t, e logistic noise, shortened beyond 6.

    log p(z) = sum_d log t + d - 2 log(1 + exp d) - log dz/dv, with d = l - t v.

    Args:
        temperature: t. The lower, the closer to 0 and 1.
        logits: l (..., D). P(z > 1/2) = sigmoid(l), at any temperature.

    >>> RelaxedBernoullis(0.5, torch.zeros(3, 2)).log_prob(torch.tensor([0.5, 0.5]))  # 2 log(4 / 8)
    tensor([-1.3863, -1.3863, -1.3863])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True
    support = constraints.independent(constraints.unit_interval, 1)

    def __init__(self, temperature: float, logits: Tensor) -> None:
        self.temperature, self.logits = temperature, logits
        super().__init__(logits.shape[:-1], logits.shape[-1:])

    @property
    def median(self) -> Tensor:
        """Of each number, (..., D)."""
        return self._number(self.logits)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> RelaxedBernoullis:  # noqa: D102
        return RelaxedBernoullis(self.temperature, self.logits.expand(*batch_shape, *self.event_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        shape = self._extended_shape(torch.Size(sample_shape))
        low = torch.finfo(self.logits.dtype).eps
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device).clamp(low, 1 - low)
        return self._number(self.logits + uniform.log() - torch.log1p(-uniform))

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        log_z, log_rest = value.log(), torch.log1p(-value)
        short = log_z - log_rest
        d = self.logits - self.temperature * _lengthen(short, BINARY_LOGIT)
        log_v = math.log(self.temperature) + d - 2 * nn.functional.softplus(d)
        return (log_v + _log_lengthened(short, BINARY_LOGIT) - log_z - log_rest).sum(-1)

    def _number(self, noisy: Tensor) -> Tensor:
        short = _shorten(noisy / self.temperature, BINARY_LOGIT)
        return short.clamp(-LARGEST_LOGIT, LARGEST_LOGIT).sigmoid()


class RelaxedOneHots(dist.TorchDistribution):
    """Independent probability vectors z, concatenated: softmax((l + g) / t), g Gumbel noise, small ones lengthened.

    With v = log z - log max z, as it is before that below -40 is shortened, for each vector of C
    log p(z) = log (C-1)! + (C-1) log t + sum_c (l_c - t v_c) - C log sum_c exp(l_c - t v_c) - log dz/dv.

    Args:
        temperature: t. The lower, the closer to one-hot vectors.
        logits: l (..., groups, categories). P(z_c is the largest) = softmax(l)_c, at any temperature.

    >>> p = RelaxedOneHots(1.0, torch.zeros(1, 3))  # at t = 1 uniform on the simplex: log 2!
    >>> torch.allclose(p.log_prob(torch.full((3,), 1 / 3)), torch.tensor(2.0).log())
    True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True

    def __init__(self, temperature: float, logits: Tensor) -> None:
        self.temperature, self.logits = temperature, logits
        super().__init__(logits.shape[:-2], torch.Size([logits.shape[-2] * logits.shape[-1]]))

    @property
    def support(self) -> constraints.Constraint:
        """Probability vectors, concatenated."""
        return Concatenated(constraints.simplex, self.logits.shape[-1])

    @property
    def noiseless(self) -> Tensor:
        """The draw without noise, (..., groups * categories)."""
        return self._vectors(self.logits)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> RelaxedOneHots:  # noqa: D102
        return RelaxedOneHots(self.temperature, self.logits.expand(*batch_shape, *self.logits.shape[-2:]))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        return self._vectors(self.logits + _gumbel(self.logits, (*sample_shape, *self.logits.shape)))

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        groups, categories = self.logits.shape[-2:]
        log_z = value.unflatten(-1, (groups, categories)).log()
        short = log_z - log_z.amax(-1, keepdim=True)
        d = self.logits - self.temperature * _lengthen(short, LOG_RATIO)
        constant = math.lgamma(categories) + (categories - 1) * math.log(self.temperature)
        log_v = d.sum(-1) - categories * d.logsumexp(-1)
        return (log_v + (_log_lengthened(short, LOG_RATIO) - log_z).sum(-1)).sum(-1) + groups * constant

    def _vectors(self, noisy: Tensor) -> Tensor:
        v = noisy / self.temperature
        return _shorten(v - v.amax(-1, keepdim=True), LOG_RATIO).softmax(-1).flatten(-2)


def _gumbel(like: Tensor, shape: Sequence[int]) -> Tensor:
    noise = torch.empty(shape, dtype=like.dtype, device=like.device).exponential_()
    return -noise.clamp(min=torch.finfo(like.dtype).tiny).log()


def _one_hot(score: Tensor) -> Tensor:
    return torch.zeros_like(score).scatter(-1, score.argmax(-1, keepdim=True), 1.0)


def _shorten(v: Tensor, start: float) -> Tensor:
    return v.clamp(-start, start) + v.sign() * torch.log1p((v.abs() - start).relu())


def _lengthen(short: Tensor, start: float) -> Tensor:
    """The inverse of `_shorten`."""
    return short.clamp(-start, start) + short.sign() * torch.expm1((short.abs() - start).relu())


def _log_lengthened(short: Tensor, start: float) -> Tensor:
    """The logarithm of the slope of `_lengthen`."""
    return (short.abs() - start).relu()
