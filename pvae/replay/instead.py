"""What is done in place of functions of torch that read values, where all that they return can be computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from .supposed import READ, Untraceable

_LISTS = {
    torch.tensor: 0,
    torch.as_tensor: 0,
    torch.asarray: 0,
    torch.sparse_coo_tensor: 1,
    Tensor.new_tensor: 1,
    Tensor.new: 1,
}
"""Functions that read tensors in a list where no trace sees it; and which argument that is."""


_PACKED = {torch._VF.gru, torch._VF.lstm, torch._VF.rnn_tanh, torch._VF.rnn_relu}
_SPLITS = {torch.tensor_split, Tensor.tensor_split}


def counts(function: Any, args: Sequence[Any], options: dict[str, Any]) -> list[Tensor]:
    """The whole numbers that a function itself reads: how many sequences of a packed batch there are at each time."""
    given = (*args[1:2], *options.values()) if function in _PACKED | _SPLITS else ()
    return [value for value in given if isinstance(value, Tensor) and not value.is_floating_point()]


def packed(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """The rows of sequences, one time after another; torch's own operation is one that no compiler takes."""
    with disable_proxy_modes_tracing():
        ends = lengths.tolist()
        sizes = [sum(end > time for end in ends) for time in range(max(ends))]
        rows, counts = _rows(sizes, x.device), torch.tensor(sizes)
    return (x.transpose(0, 1) if batch_first else x).flatten(0, 1).index_select(0, rows), counts


def padded(x: Tensor, sizes: Tensor, batch_first: bool, value: float, total: int) -> tuple[Tensor, Tensor]:
    """Rows back in sequences; torch's own operation writes the lengths where no trace sees it."""
    with disable_proxy_modes_tracing():
        counts = sizes.tolist()
        rows = _rows(counts, x.device)
        lengths = torch.tensor([sum(count > place for count in counts) for place in range(counts[0])])
    shape = (max(total, len(counts)), counts[0], *x.shape[1:])
    steps = x.new_full((shape[0] * shape[1], *shape[2:]), value).index_copy(0, rows, x).view(shape)
    return steps.transpose(0, 1) if batch_first else steps, lengths


def _rows(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Where each time's first so many sequences are, all times one after another."""
    return torch.tensor([t * sizes[0] + place for t, size in enumerate(sizes) for place in range(size)], device=device)


def one_hot(tensor: Tensor, num_classes: int) -> Tensor:
    """Torch's looks at the values, to check them; a CPU does so where they are used, a GPU would end the process."""
    if tensor.device.type == "cpu":
        return tensor.new_zeros((*tensor.shape, num_classes)).scatter(-1, tensor.unsqueeze(-1), 1)
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()


def listed(function: Any, args: Sequence[Any], options: dict[str, Any]) -> Any:
    """The list that a function makes a tensor of; an empty one where it makes it of something else."""
    if (place := _LISTS.get(function)) is None:
        return []
    values = args[place] if place < len(args) else options.get("data", options.get("obj"))
    return values if isinstance(values, list | tuple) else []


def of_list(function: Any, values: Any, args: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """The tensor that a function makes of numbers, and of tensors of one number each, in lists."""
    if function in (Tensor.new, torch.sparse_coo_tensor):
        raise Untraceable(READ)
    made = _joined(values)
    like = args[0] if function is Tensor.new_tensor else made.new_empty((), device=torch.get_default_device())
    if made.device != torch.device(options.get("device") or like.device):
        raise Untraceable(READ)
    return made.to(options.get("dtype") or like.dtype).requires_grad_(options.get("requires_grad", False))


def _joined(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().reshape(())
    return torch.stack([*map(_joined, values)]) if isinstance(values, list | tuple) else torch.tensor(values)
