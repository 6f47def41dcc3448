"""Memory that nothing has set: marked, it is not taken for numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def marked() -> Iterator[None]:
    """Within it memory that torch gives and nothing has set holds NaN, of whole numbers the largest there is.

    >>> with marked():
    ...     torch.empty(2)
    tensor([nan, nan])
    """
    mode, fills = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fills


def same(one: Tensor, other: Tensor) -> bool:
    """Whether tensors hold the same, but for what is marked in the other."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if other.is_floating_point() or other.is_complex():
        unset = other.isnan()
    else:
        unset = other == (True if other.dtype == torch.bool else torch.iinfo(other.dtype).max)
    return bool(((one == other) | unset).all())
