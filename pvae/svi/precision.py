"""In how many bits products and convolutions are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

TOLERANCE = {"float32": 1e-3, "tf32": 2e-2, "bf16": 5e-2}
"""The precisions; by how much a replayed loss may differ from the program's own under each, relative."""


@contextmanager
def of(precision: str, device: str) -> Iterator[None]:
    """Within it programs compute so; what is no product stays as it is.

    >>> with of("bf16", "cpu"):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """
    if precision == "bf16":
        with torch.autocast(device, torch.bfloat16):
            yield
        return
    with kernels(precision):
        yield


@contextmanager
def kernels(precision: str) -> Iterator[None]:
    """Within it operations that are written down already are captured or compiled so.

    `bf16` is written down with them; `tf32` is how a product is launched.
    """
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if precision == "tf32":
            torch.set_float32_matmul_precision(before)
