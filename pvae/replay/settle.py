"""A graph with what repeats itself side by side: then it can be cut in pieces that are alike."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node, map_arg

from .simplify import TORCHS, Roots, is_view, merge_alike, nodes_in, note
from .strides import laid

aten = torch.ops.aten
MANY = 4
"""Terms of a sum that are worth taking at once."""
LARGE = 2**20
"""Bytes of an array of which each is worth an operation of its own; to keep many of them would fill the memory."""


def settled(graph: GraphModule) -> GraphModule:
    """A copy whose operations stand where they are first wanted, with the same numbers up to rounding.

    Sums over the turns of a loop are taken at once, after it: of products, as the gradient of a layer's weights, and of
    gradients of a tensor's slices, each 0 but for that slice. Random numbers keep their order.
    """
    new = Graph()
    new.output(new.graph_copy(graph.graph, {}))
    _join_sums(new)
    new.eliminate_dead_code()
    copy = GraphModule(graph, new)
    merge_alike(copy)
    return _by_use(copy, _laid_anew(copy))


# Sums.


def _join_sums(graph: Graph) -> None:
    terms: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.target is aten.add.Tensor and not node.kwargs and all(_alike(node, part) for part in node.args):
            alone = [part in terms and len(part.users) == 1 for part in node.args]
            parts = [terms[part] if one else [part] for part, one in zip(node.args, alone, strict=True)]
            terms[node] = [*parts[0], *parts[1]]
    for total, parts in terms.items():
        if len(total.users) != 1 or next(iter(total.users)) not in terms:
            groups = defaultdict(list)
            for part in parts:
                groups[_group(part)].append(part)
            if any(kind and len(members) >= MANY for kind, members in groups.items()):
                _rejoin(total, groups)


def _rejoin(total: Node, groups: dict[Any, list[Node]]) -> None:
    with total.graph.inserting_before(total):
        parts = []
        for kind, members in groups.items():
            parts += [_JOINED[kind[0]](members)] if kind and len(members) >= MANY else members
        sum_ = parts[0]
        for part in parts[1:]:
            sum_ = _called(aten.add.Tensor, sum_, part)
    total.replace_all_uses_with(sum_)


def _alike(node: Node, part: Any) -> bool:
    """Whether a term is of its sum's shape and type."""
    one, other = (each.meta.get("layout") if isinstance(each, Node) else None for each in (node, part))
    return one is not None and other is not None and (one[0], one[3]) == (other[0], other[3])


def _group(term: Node) -> tuple | None:
    """What terms have in common that can be taken at once; None for any other."""
    if len(term.users) > 1:
        return None
    if term.target is aten.mm.default and all(map(_small, term.args)):
        return "products", *(tuple(factor.meta["layout"][0]) for factor in term.args)
    if term.target is aten.select_backward.default:
        return "slices", str(term.args[1:3])
    summed = term.args[0] if term.target is aten.view.default else None
    if summed is not None and summed.target is aten.sum.dim_IntList and summed.args[1:] == ([0], True):
        return ("rows", str(term.args[1:])) if _small(summed.args[0]) else None
    return None


def _small(node: Node) -> bool:
    """Whether a value is known, as a parameter's is not here, and small."""
    return "layout" in node.meta and node.meta["bytes"] < LARGE


def _product(terms: Sequence[Node]) -> Node:
    """One product of factors side by side."""
    left, right = zip(*(term.args for term in terms), strict=True)
    if all(factor.target is aten.t.default for factor in left):
        side = _called(aten.t.default, _called(aten.cat.default, [factor.args[0] for factor in left], 0))
    else:
        side = _called(aten.cat.default, list(left), 1)
    return _called(aten.mm.default, side, _called(aten.cat.default, list(right), 0))


def _rows(terms: Sequence[Node]) -> Node:
    """The sum over all rows of matrices."""
    rows = _called(aten.cat.default, [term.args[0].args[0] for term in terms], 0)
    return _called(aten.view.default, _called(aten.sum.dim_IntList, rows, [0], True), terms[0].args[1])


def _slices(terms: Sequence[Node]) -> Node:
    """A stack of slices; those that are there twice are added."""
    _, sizes, dim, _ = terms[0].args
    found: dict[int, Node] = {}
    for term in terms:
        index = term.args[3] % sizes[dim]
        found[index] = _called(aten.add.Tensor, found[index], term.args[0]) if index in found else term.args[0]
    rest = _called(aten.zeros_like.default, terms[0].args[0])
    return _called(aten.stack.default, [found.get(index, rest) for index in range(sizes[dim])], dim)


_JOINED = {"products": _product, "rows": _rows, "slices": _slices}


def _called(target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new operation, with a note of how its value lies."""
    first = next(iter(nodes_in(args)))
    node = first.graph.call_function(target, args, kwargs)
    _note(node, first.meta["layout"][4])
    return node


# Layout.


def _note(node: Node, device: torch.device) -> None:
    value = node.target(*map_arg(node.args, laid), **map_arg(node.kwargs, laid))
    if isinstance(value, Tensor):
        note(node, value)
        node.meta |= {"layout": (*node.meta["layout"][:4], device), "memory": object()}


def _laid_anew(graph: GraphModule) -> dict[Node, list[Node]]:
    """Copy what was made here and changed in place, for all that use it afterwards, to a view of what lies in order.

    A compiler makes it anew at each change, and lays it in order. The view lies as what it is a copy of: it may be read
    by strides, and results of it lie as it does. Returns what comes right after each last change.
    """
    roots, order = Roots(graph), {node: place for place, node in enumerate(graph.graph.nodes)}
    last: dict[Hashable, Node] = {}
    for node in order:
        last |= dict.fromkeys(roots.changed_by(node), node)
    after = defaultdict(list)
    for node in order:
        changes = [last[root] for root in roots.of[node] if root in last and isinstance(root, Node)]
        if not changes or "layout" not in node.meta or is_view(node) or laid(node).is_contiguous():
            continue
        strides = laid(node).stride()
        inner = sorted(range(len(strides)), key=strides.__getitem__, reverse=True)
        if not laid(node).permute(inner).is_contiguous():  # it has gaps
            continue
        change = max([node, *changes], key=order.__getitem__)
        if not _is_read(node, order, order[change]):
            continue
        outer = [inner.index(dim) for dim in range(len(inner))]
        with graph.graph.inserting_before(change.next):
            value = _called(aten.permute.default, node, inner)
            copy = _called(aten.clone.default, value, memory_format=torch.contiguous_format)
            value = _called(aten.permute.default, copy, outer)
        copy.meta["laid anew"] = True
        after[change] += [copy.args[0], copy]
        _read_instead(node, value, order, order[change])
    return after


def _is_read(node: Node, order: dict[Node, int], since: int) -> bool:
    """Whether a value, or a view of it, is used after a place."""
    return any(order.get(u, -1) > since or (is_view(u) and _is_read(u, order, since)) for u in node.users)


def _read_instead(node: Node, value: Node, order: dict[Node, int], since: int) -> None:
    """From a place on use another value that lies alike, and views of it."""
    for user in list(node.users):
        if order.get(user, -1) > since:
            user.replace_input_with(node, value)
        elif user in order and is_view(user) and _is_read(user, order, since):
            with node.graph.inserting_after(value):
                view = node.graph.node_copy(user, lambda given: value if given is node else given)
            _read_instead(user, view, order, since)


# Order.


def _by_use(graph: GraphModule, after: dict[Node, list[Node]]) -> GraphModule:
    """The graph with each operation right before the first that uses it, as far as random numbers and changes allow.

    Args:
        graph: which is left as it is.
        after: what comes right after an operation.
    """
    nodes, roots = graph.graph.nodes, Roots(graph)
    fixed = dict.fromkeys(node for node in nodes if _is_fixed(node, roots))
    before = dict(pairwise(reversed(fixed)))
    order: dict[Node, None] = dict.fromkeys(node for node in nodes if node.op in ("placeholder", "get_attr"))
    for last in (*graph.graph.output_node().all_input_nodes, *nodes):
        waiting = [last]
        while waiting:
            node = waiting[-1]
            first = [need for need in (before.get(node), *node.all_input_nodes) if need and need not in order]
            if first:
                waiting += reversed(first)
            else:
                order |= dict.fromkeys([waiting.pop(), *after.get(node, ())])
                # else the part of a result that only a gradient wants would keep all of the result waiting
                order |= dict.fromkeys(u for u in node.users if u.target is operator.getitem and u not in fixed)
    new, copies = Graph(), {}
    for node in order:
        copies[node] = new.node_copy(node, copies.__getitem__)
    return GraphModule(graph, new)


def _is_fixed(node: Node, roots: Roots) -> bool:
    """Whether an operation draws random numbers, or does something with memory that is changed."""
    if node.op != "call_function" or is_view(node):
        return False
    known = node.target is operator.getitem or getattr(node.target, "namespace", "") in TORCHS
    drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return not known or drawn or bool(roots.touched(node) & roots.changed)
