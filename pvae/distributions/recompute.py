"""Gradient checkpointing by rows: a function of some rows at a time, run once more when the gradient is taken."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

AT_ONCE = 2**24
"""So many numbers are made of rows at once, 64 MiB of float32; a gradient keeps some arrays of that size."""


def by_rows(function: Callable[[Tensor], Tensor], rows: Tensor, numbers: int) -> Tensor:
    """A function of rows (N, ...) that gives a number for each, (N,), of as many rows at once as `AT_ONCE` allows.

    What it computes is kept of one part alone: the gradient runs the function again. Within `torch.func`'s transforms,
    which have no such gradient, all rows are taken at once.

    Args:
        function: draws no random numbers.
        rows: (N, ...).
        numbers: how many the function makes of a row, roughly.

    >>> by_rows(lambda rows: rows.square().sum(-1), torch.tensor([[1.0, 2.0], [3.0, 0.0], [1.0, 1.0]]), AT_ONCE // 2)
    tensor([5., 9., 2.])
    """
    parts = rows.chunk(-(-len(rows) // max(1, AT_ONCE // numbers)) or 1)
    if len(parts) == 1 or torch._C._functorch.peek_interpreter_stack() is not None:
        return function(rows)
    if not torch.is_grad_enabled():
        return torch.cat([function(part) for part in parts])

    def run(part: Tensor) -> Tensor:
        return function(torch.empty_like(part).copy_(part))  # a copy: a graph must not take the first run for the other

    return torch.cat([checkpoint(run, part, use_reentrant=False, preserve_rng_state=False) for part in parts])
