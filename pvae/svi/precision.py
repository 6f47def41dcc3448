"""In how many bits products and convolutions are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

TOLERANCE = {"float32": 1e-3, "tf32": 2e-2, "bf16": 5e-2}
"""The precisions; by how much a replayed loss may differ from the program's own under each, relative."""


def of(precision: str, device: str) -> AbstractContextManager:
    """Within it programs compute so; what is no product stays as it is.

    >>> with of("bf16", "cpu"):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else products(precision)


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Within it products of float32 are done so; it holds when a graph is compiled and when it is captured.

    >>> with products("tf32"):
    ...     torch.get_float32_matmul_precision()
    'high'
    """
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if precision == "tf32":
            torch.set_float32_matmul_precision(before)
