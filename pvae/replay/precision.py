"""In how many bits products and convolutions are done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

TOLERANCE = {"float32": 1e-3, "tf32": 2e-2, "bf16": 5e-2}
"""The precisions; by how much a replayed loss may differ from the program's own under each, relative."""
SAME = 1e-5
"""The same where a replay does the program's own operations one by one, which mostly gives the same bits."""


def tolerance(precision: str, device: str) -> float:
    """That of products as they are done: torch may be set to do all of float32 in tf32."""
    rough = device == "cuda" and precision == "float32" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return TOLERANCE["tf32" if rough else precision]


@contextmanager
def of(precision: str, *devices: str) -> Iterator[None]:
    """Within it programs on such devices compute so; what is no product stays as it is.

    >>> with of("bf16", "cpu"):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16
    """
    with ExitStack() as stack:
        for device in devices if precision == "bf16" else ():
            stack.enter_context(torch.autocast(device, torch.bfloat16))
        stack.enter_context(products(precision))
        yield


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Within it products of float32 are done so; it holds when a graph is compiled and when it is captured.

    >>> with products("tf32"):
    ...     torch.get_float32_matmul_precision()
    'high'
    """
    if precision != "tf32":
        yield
        return
    before = _set_before(), torch.backends.cuda.matmul.fp32_precision
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cuda.matmul.fp32_precision = before[1]


@contextmanager
def in_single_steps(device: str, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it cuDNN's recurrent networks are as exact as a graph's, which takes their steps one by one: no tf32.

    Where there are none all is left as it is: torch's older switches refuse to be read meanwhile.
    """
    if device != "cuda" or not any(isinstance(module, nn.RNNBase) for module in modules):
        yield
        return
    recurrent = torch.backends.cudnn.rnn
    before, recurrent.fp32_precision = recurrent.fp32_precision, "ieee"
    try:
        yield
    finally:
        recurrent.fp32_precision = before


def _set_before() -> str:
    """What was set in torch's old way, which it refuses to tell where something else was set in the new one."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"
