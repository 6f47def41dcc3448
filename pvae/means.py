"""Means over data with their standard errors, and how these are written."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor


def mean_and_se(value: Tensor) -> dict[str, float]:
    """The mean of (N,) values and its standard error, NaN where N = 1.

    >>> import torch
    >>> mean_and_se(torch.tensor([0.0, 4.0]))
    {'mean': 2.0, 'se': 2.0}
    """
    value = value.double()
    se = value.std().item() / math.sqrt(len(value)) if len(value) > 1 else math.nan
    return {"mean": value.mean().item(), "se": se}


def with_error(found: Mapping[str, float | None], width: int = 0) -> str:
    """A mean, its number that wide, and its standard error; a dash where there is none, None or NaN.

    >>> with_error({"mean": -98.9612, "se": 0.25}), with_error({"mean": 3.0, "se": None}, width=7)
    ('-98.961 +- 0.250', '  3.000 +- -')
    """
    se = found["se"]
    return f"{found['mean']:>{width}.3f} +- {'-' if se is None or math.isnan(se) else format(se, '.3f')}"
