"""Means, shares and quantiles over data, their standard errors, and both as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A number over data, a mean or a quantile."""

    mean: float
    se: float
    """its standard error, NaN where there is none"""
    n: int
    """over how many data, or draws"""


def standard_error(value: Tensor) -> Tensor:
    """Of the mean over the first dimension; NaN where that is of one value.

    >>> import torch
    >>> standard_error(torch.tensor([0.0, 4.0])), standard_error(torch.zeros(1, 2))
    (tensor(2.), tensor([nan, nan]))
    """
    return value.std(0) / math.sqrt(len(value)) if len(value) > 1 else value.new_full(value.shape[1:], math.nan)


def mean_and_se(value: Tensor) -> dict[str, float]:
    """The mean of (N,) values and its standard error, NaN where N = 1.

    >>> import torch
    >>> mean_and_se(torch.tensor([0.0, 4.0]))
    {'mean': 2.0, 'se': 2.0}
    """
    value = value.double()
    return {"mean": value.mean().item(), "se": standard_error(value).item()}


def estimate(value: Tensor) -> Estimate:
    """The mean of (N,) values, with its standard error.

    >>> import torch
    >>> estimate(torch.tensor([0.0, 4.0]))
    Estimate(mean=2.0, se=2.0, n=2)
    """
    return Estimate(**mean_and_se(value), n=len(value))


def share(which: Tensor) -> Estimate:
    """The share of (N,) data, bool, and its standard error, NaN where N = 1.

    The error is as of two data more on either side, and so never 0: none of N is no proof that there are none. Agresti
    and Coull 1998.

    >>> import torch
    >>> share(torch.zeros(96, dtype=torch.bool))
    Estimate(mean=0.0, se=0.0142..., n=96)
    """
    n, count = len(which), int(which.sum())
    near = (count + 2) / (n + 4)
    return Estimate(count / n, math.sqrt(near * (1 - near) / n) if n > 1 else math.nan, n)


FEWEST_OF_TAILS = 37
"""Data from which on quantiles of 10% and 90% have an error."""


def quantile(value: Tensor, p: float) -> Estimate:
    """A quantile of (N,) values, one of them, and its standard error: a quarter of its 95% interval.

    The ends of the interval are order statistics too, whatever the distribution; NaN where there are no such ones, or
    one is infinite.

    >>> import torch
    >>> quantile(torch.arange(1.0, 101.0), 0.5)
    Estimate(mean=50.0, se=5.0, n=100)
    """
    n, ordered = len(value), value.sort().values
    half = 2 * math.sqrt(p * (1 - p) / n)
    low, at, high = (ordered[min(max(math.ceil(n * q), 1), n) - 1].item() for q in (p - half, p, p + half))
    there = 0 < p - half < p + half < 1 and math.isfinite(high - low)
    return Estimate(at, (high - low) / 4 if there else math.nan, n)


def with_error(found: Mapping[str, float | None], width: int = 0) -> str:
    """A mean, its number that wide, and its standard error; a dash where there is none, None or NaN.

    >>> with_error({"mean": -98.9612, "se": 0.25}), with_error({"mean": 3.0, "se": None}, width=7)
    ('-98.961 +- 0.250', '  3.000 +- -')
    """
    se = found["se"]
    return f"{found['mean']:>{width}.3f} +- {'-' if se is None or math.isnan(se) else format(se, '.3f')}"
