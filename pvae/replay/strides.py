"""Views by strides, written as slices: only of those does a compiler know what they are where it lays memory anew."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .simplify import note

aten = torch.ops.aten


def sliced(graph: GraphModule) -> None:
    """Take what is read by strides, as autograd does where it copies a slice, by slices; what is none stays."""
    for node in graph.graph.find_nodes(op="call_function", target=aten.as_strided.default):
        base = node.args[0]
        views = _views(laid(base), laid(node)) if "layout" in base.meta and "layout" in node.meta else None
        for operation, *args in views or []:
            with graph.graph.inserting_before(node):
                view = graph.graph.call_function(operation, (base, *args))
            note(view, operation(laid(base), *args))
            view.meta |= {"layout": (*view.meta["layout"][:4], node.meta["layout"][4]), "memory": node.meta["memory"]}
            base = view
        if views is not None:
            node.replace_all_uses_with(base)
            graph.graph.erase_node(node)


def laid(node: Node) -> Tensor:
    """A tensor without numbers that lies as a node's."""
    shape, strides, start, dtype, _ = node.meta["layout"]
    return torch.empty(0, dtype=dtype, device="meta").as_strided(shape, strides, start)


def _views(base: Tensor, wanted: Tensor) -> list[tuple] | None:
    """Slices, a permutation and selections that make one of the other; None where none do."""
    starts, rest = {}, wanted.storage_offset() - base.storage_offset()
    for dim in sorted((d for d in range(base.dim()) if base.size(d) > 1), key=base.stride, reverse=True):
        starts[dim], rest = divmod(rest, base.stride(dim)) if base.stride(dim) else (0, rest)
    used: dict[int, int] = {}
    for place, stride in enumerate(wanted.stride()):
        if wanted.size(place) > 1:
            fitting = [d for d in starts if d not in used.values() and 0 < base.stride(d) <= stride]
            if not fitting:
                return None
            used[place] = max(fitting, key=base.stride)
    views: list[tuple] = []
    for place, dim in used.items():
        step = max(1, wanted.stride(place) // base.stride(dim))
        views.append((aten.slice.Tensor, dim, starts[dim], starts[dim] + step * (wanted.size(place) - 1) + 1, step))
    left = [dim for dim in range(base.dim()) if dim not in used.values()]
    views.append((aten.permute.default, [*used.values(), *left]))
    views += [(aten.select.int, len(used) + place, starts.get(left[place], 0)) for place in reversed(range(len(left)))]
    views += [(aten.unsqueeze.default, place) for place, size in enumerate(wanted.shape) if size == 1]
    found = base
    try:
        for operation, *args in views:
            found = operation(found, *args)
    except (IndexError, RuntimeError):  # beyond its end
        return None
    return views if _lies(found) == _lies(wanted) else None


def _lies(value: Tensor) -> tuple:
    strides = [stride for size, stride in zip(value.shape, value.stride(), strict=True) if size > 1]
    return value.shape, strides, value.storage_offset()
