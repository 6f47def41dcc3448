"""The same graph with less to do: what is computed twice is computed once, and the numbers stay bit for bit."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

TORCHS = ("aten", "prims")
"""Operations of which it is known that they draw no random numbers, but for those that say so."""
SAME_MEMORY = ("_unsafe_view", "_reshape_alias", "lift_fresh")
"""Operations whose result is in the memory of what they are given, though they don't say so."""


aten = torch.ops.aten
BY_ONE = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.pow.Tensor_Scalar)
"""Operations that leave a tensor as it is where they are done with a one."""


def memory(tensor: Tensor) -> int:
    """What names the memory that a tensor is in; 0 for what has none, as a sparse one."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return 0


def written(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors among an operation's arguments that it changes."""
    for place, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (value for value in tree_leaves(given) if isinstance(value, Tensor))


def note(node: Node, value: Tensor) -> None:
    """Note on a node how its value lies in which memory: two of one memory and layout are the same."""
    node.meta["bytes"] = value.numel() * value.element_size()
    if value.layout is torch.strided:
        node.meta["layout"] = (value.shape, value.stride(), value.storage_offset(), value.dtype, value.device)
        node.meta["memory"] = (memory(value), value.is_conj(), value.is_neg())


def merge_alike(graph: GraphModule) -> None:
    """Compute once what is computed alike; leave out products with a one, and views that view all as it is.

    Kept as they are: what is changed in place and what is made of it, random numbers, and results, which may be changed
    by those who get them.
    """
    roots = Roots(graph)
    known: dict[Hashable, Node] = {}
    for node in graph.graph.nodes:
        if (same := roots.same_as(node)) is not None:
            node.replace_all_uses_with(same)
        elif roots.may_merge(node):
            constant = node.op == "get_attr"
            key = id(getattr(graph, node.target)) if constant else (node.target, _key(node.args), _key(node.kwargs))
            first = known.setdefault(key, node)
            if first is not node:
                node.replace_all_uses_with(first)
    graph.graph.eliminate_dead_code()


class Roots:
    """Which memory each node is in, and which of it is changed or handed out."""

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph
        self.of: dict[Node, frozenset[Hashable]] = {}
        self.changed: set[Hashable] = set()
        self.reshaped: set[Node] = set()
        """Those whose shape is changed in place, as by `squeeze_`."""
        self.given: frozenset[Hashable] = frozenset()
        for node in graph.graph.nodes:
            self.of[node] = self._find(node)
            if node.op == "output":
                self.given = self._all(node.args)
            else:
                self.changed |= self.changed_by(node)
            if reshapes(node):
                self.reshaped |= {node.args[0], node}

    def changed_by(self, node: Node) -> frozenset[Hashable]:
        """The memory that an operation changes."""
        if not isinstance(node.target, OpOverload):
            return frozenset()
        given = zip(node.target._schema.arguments, node.args, strict=False)
        return self._all([value for argument, value in given if argument.alias_info and argument.alias_info.is_write])

    def touched(self, node: Node) -> frozenset[Hashable]:
        """The memory that an operation is given, or returns."""
        return self._all((node.args, node.kwargs)) | self.of[node]

    def same_as(self, node: Node) -> Node | None:
        """The node that one is a view of all of, that it is a multiple by one of, or whose number it copies."""
        source = node.args[0] if node.args else None
        if not isinstance(source, Node) or "layout" not in node.meta or self.reshaped & {node, source}:
            return None
        if views(node.target):
            while any(source.meta.get(what) != node.meta[what] for what in ("layout", "memory")):
                if not views(source.target) or not isinstance(source.args[0], Node) or source.args[0] in self.reshaped:
                    return None
                source = source.args[0]
            return source
        alone = node.target in BY_ONE and node.args[1:] in ((1,), (1.0,)) and not node.kwargs
        alone |= node.target is aten.clone.default and not node.meta["layout"][0]
        alike = alone and source.meta.get("layout") == node.meta["layout"]
        free = not self.of[node] & (self.changed | self.given) and not self.of[source] & self.changed
        return source if alike and free else None

    def may_merge(self, node: Node) -> bool:
        """Whether another node like this has the same values for good."""
        if node.op == "get_attr":
            return isinstance(getattr(self.graph, node.target, None), Tensor)
        if node.op != "call_function" or self.touched(node) & self.changed:
            return False
        if node.target is operator.getitem:
            return not self.of[node] & self.given
        target = node.target
        torchs = isinstance(target, OpOverload) and target.namespace in TORCHS
        fixed = torchs and torch.Tag.nondeterministic_seeded not in target.tags
        return fixed and not target._schema.is_mutable and not self.of[node] & self.given

    def _find(self, node: Node) -> frozenset[Hashable]:
        if node.op == "placeholder":
            return frozenset(["inputs"])
        if node.op == "get_attr":
            value = getattr(self.graph, node.target, None)
            return frozenset([(memory(value) if isinstance(value, Tensor) else 0) or node.target])
        if node.target is operator.getitem or views(node.target):
            return self._all(node.args)
        return frozenset([node])

    def _all(self, tree: Any) -> frozenset[Hashable]:
        return frozenset(root for node in nodes_in(tree) for root in self.of[node])


def reshapes(node: Node) -> bool:
    """Whether an operation changes the shape of what it is given where that is, as `squeeze_` does."""
    return torch.Tag.inplace_view in getattr(node.target, "tags", ())


def views(target: Any) -> bool:
    """Whether it is an operation whose result is in the memory of what that is given."""
    if not isinstance(target, OpOverload):
        return False
    if target.overloadpacket.__name__ in SAME_MEMORY:
        return True
    return any(found.alias_info is not None for found in target._schema.returns)


def is_view(node: Node) -> bool:
    """Whether a node does nothing but look at memory in another way."""
    if node.target is operator.getitem:
        return is_view(node.args[0])
    return views(node.target) and not node.target._schema.is_mutable


def nodes_in(tree: Any) -> Iterable[Node]:
    """The nodes in arguments."""
    if isinstance(tree, Node):
        yield tree
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        for part in tree:
            yield from nodes_in(part)
    elif isinstance(tree, dict):
        yield from nodes_in(list(tree.values()))


def _key(value: Any) -> Hashable:
    """Of an argument; numbers that are equal but not alike have keys of their own."""
    if isinstance(value, Node):
        return value
    if isinstance(value, dict):
        return tuple((name, _key(part)) for name, part in sorted(value.items()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(_key, value))
    return type(value), repr(value)
