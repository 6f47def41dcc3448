"""Means, quantiles and shares with their standard errors, and how these are written."""

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


def mean_and_se(value: Tensor) -> dict[str, float]:
    """The mean of (N,) values and its standard error, NaN where N = 1.

    >>> import torch
    >>> mean_and_se(torch.tensor([0.0, 4.0]))
    {'mean': 2.0, 'se': 2.0}
    """
    value = value.double()
    se = value.std().item() / math.sqrt(len(value)) if len(value) > 1 else math.nan
    return {"mean": value.mean().item(), "se": se}


def estimate(value: Tensor) -> Estimate:
    """The mean of (N,) values, with its standard error.

    >>> import torch
    >>> estimate(torch.tensor([0.0, 4.0]))
    Estimate(mean=2.0, se=2.0, n=2)
    """
    return Estimate(**mean_and_se(value), n=len(value))


def quantile(value: Tensor, p: float) -> Estimate:
    """A quantile of (N,) values; its error is a quarter of its 95% interval, whose ends are order statistics too.

    There is none where they would lie outside: those of 10% and 90% are there from 37 values on.

    >>> import torch
    >>> quantile(torch.arange(101.0), 0.5)
    Estimate(mean=50.0, se=5.0, n=101)
    """
    ordered, n = value.sort().values, len(value)
    half = 2 * math.sqrt(p * (1 - p) / n)
    at = ordered[math.ceil(n * p) - 1].item()
    if not 0 < p - half < p + half < 1:
        return Estimate(at, math.nan, n)
    low, high = (ordered[math.ceil(n * q) - 1].item() for q in (p - half, p + half))
    return Estimate(at, (high - low) / 4, n)


def share(found: float, n: int) -> Estimate:
    """A share of n values, with its standard error.

    >>> share(0.0, 100).se > 0
    True
    """
    near = (n * found + 2) / (n + 4)  # none of n is no proof that there are none: at most 3 of n, twice this error
    return Estimate(found, math.sqrt(near * (1 - near) / n) if n > 1 else math.nan, n)


def with_error(found: Mapping[str, float | None], width: int = 0) -> str:
    """A mean, its number that wide, and its standard error; a dash where there is none, None or NaN.

    >>> with_error({"mean": -98.9612, "se": 0.25}), with_error({"mean": 3.0, "se": None}, width=7)
    ('-98.961 +- 0.250', '  3.000 +- -')
    """
    se = found["se"]
    return f"{found['mean']:>{width}.3f} +- {'-' if se is None or math.isnan(se) else format(se, '.3f')}"
