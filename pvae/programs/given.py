"""The data that programs are run on: refused at once where they are none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


def given(what: str, x: Any, y: Any = None) -> tuple[Tensor, ...]:
    """The data as programs take them, x or (x, y); those made under inference mode as copies that gradients can use.

    Args:
        what: asks for them.
        x: (N, ...), N at least 1.
        y: (N, ...) or None.

    Raises:
        InputError: what is no dense tensor; no data; labels of another number.

    >>> len(given("evaluate", torch.zeros(3, 2)))
    1
    """
    data = {"x": x} if y is None else {"x": x, "y": y}
    for name, part in data.items():
        if not isinstance(part, Tensor) or not part.dim():
            found = "a single number" if isinstance(part, Tensor) else type(part).__name__
            raise InputError(
                f"{name}: found {found}, expected a tensor (N, ...): of data in several tensors pass the numbers,"
                " torch.arange(N), to programs that look them up"
            )
        if part.layout != torch.strided:
            raise InputError(
                f"{name}: found a tensor of layout {part.layout}, expected a dense one: pass {name}.to_dense()"
            )
    if not len(x):
        raise InputError(f"{what}: found no data, expected at least one datum")
    if y is not None and len(y) != len(x):
        raise InputError(f"y: found {len(y)} labels for {len(x)} data, expected one for each")
    return tuple(part.clone() if part.is_inference() else part for part in data.values())
