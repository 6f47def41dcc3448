"""A graph without what stands in the way of cutting it in pieces that are alike; the numbers stay the same."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from .simplify import Roots, is_view, note

aten = torch.ops.aten


def settled(graph: GraphModule) -> GraphModule:
    """A copy in which gradients of a tensor's slices are put side by side, and what was changed lies as if made anew.

    In a loop that reads one slice after another each turn makes a gradient of the whole, 0 but for that slice, and adds
    it to that of the turn before. A compiler makes anew what is changed in place, and lays it in its own order.
    """
    new = Graph()
    new.output(new.graph_copy(graph.graph, {}))
    _side_by_side(new)
    new.eliminate_dead_code()
    copy = GraphModule(graph, new)
    _laid_anew(copy)
    return copy


def _side_by_side(graph: Graph) -> None:
    """Put a stack in the place of a sum of gradients, each of another slice of one tensor."""
    sums: dict[Node, dict[int, Node]] = {}
    """By node that is such a sum, by slice: its gradient."""
    for node in list(graph.nodes):
        if node.target is aten.select_backward.default:
            _, sizes, dim, index = node.args
            sums[node] = {index % sizes[dim]: node}
        elif node.target is aten.add.Tensor and not node.kwargs and all(part in sums for part in node.args):
            one, other = (sums[part] for part in node.args)
            alike = next(iter(one.values())).args[1:3] == next(iter(other.values())).args[1:3]
            alone = all(len(part.users) == 1 for part in node.args)
            if alike and alone and not one.keys() & other.keys():
                sums[node] = one | other
    for node, slices in sums.items():
        if len(slices) > 1 and not any(user in sums for user in node.users):
            _stack(node, slices)


def _stack(total: Node, slices: dict[int, Node]) -> None:
    first = next(iter(slices.values()))
    _, sizes, dim, _ = first.args
    with total.graph.inserting_before(total):
        rest = total.graph.call_function(aten.zeros_like.default, (first.args[0],))
        parts = [slices[index].args[0] if index in slices else rest for index in range(sizes[dim])]
        stacked = total.graph.call_function(aten.stack.default, (parts, dim))
    rest.meta, stacked.meta = dict(first.args[0].meta), dict(total.meta)
    total.replace_all_uses_with(stacked)


def _laid_anew(graph: GraphModule) -> None:
    """Copy what was made here and changed in place to an order of its own, for all that use it afterwards."""
    roots, order = Roots(graph), {node: place for place, node in enumerate(graph.graph.nodes)}
    last: dict[Hashable, Node] = {}
    for node in order:
        last |= dict.fromkeys(roots.changed_by(node), node)
    for node in order:
        changes = [last[root] for root in roots.of[node] if root in last and isinstance(root, Node)]
        layout = node.meta.get("layout")
        if not changes or layout is None or is_view(node) or _empty(node).is_contiguous():
            continue
        change = max([node, *changes], key=order.__getitem__)
        later = [user for user in node.users if order.get(user, -1) > order[change]]
        if later:
            with graph.graph.inserting_after(change):
                copy = graph.graph.call_function(
                    aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
                )
            note(copy, torch.empty_like(_empty(node), memory_format=torch.contiguous_format))
            for user in later:
                user.replace_input_with(node, copy)
            _note_views(copy)


def _note_views(node: Node) -> None:
    for user in node.users:
        if is_view(user):
            value = user.target(*torch.fx.map_arg(user.args, _empty), **user.kwargs)
            if isinstance(value, Tensor):
                note(user, value)
            _note_views(user)


def _empty(node: Node) -> Tensor:
    """A tensor without memory that is laid like a node's."""
    shape, strides, _, dtype, _ = node.meta["layout"]
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
