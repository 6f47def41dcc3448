"""A long graph that does the same again and again, as a loop over time, in pieces, of which one a kind is compiled."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, map_arg

from .settle import settled
from .simplify import Roots, is_view, nodes_in
from .strides import sliced

LONG = 500
"""Operations that have to be repeats of others for a graph to be cut."""
SHORT = 5
"""Operations in the shortest piece that is worth a call of its own."""
LONGEST = 2000
"""Operations in the longest turn of a loop that is looked for."""
ENOUGH = 100
"""Operations in a piece that are enough: shorter turns share one, as a compiler makes fewer kernels of them together.

Of the deep Markov model of `benchmarks.programs` on CUDA 1,430 with a turn in a piece, 1,280, 1,220, 1,200 with 80, 160
and 320 operations; in as many seconds as 10, 14, 17 and 29.
"""


class Piece(nn.Module):
    """Operations that follow one another, as a function; `run` is what is called in its place once that is there."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.run: Any = None
        self.example: Sequence[Tensor] = ()

    def forward(self, *given: Tensor) -> Sequence[Tensor]:
        """What the operations return."""
        if self.run is None:
            self.example = self.example or given
            return self.graph(*given)
        return self.run(*given)


def arranged(graph: GraphModule) -> GraphModule:
    """The graph as it is best cut, see `settled`; unchanged if it does not repeat itself enough."""
    sliced(graph)
    if graph.meta.get("arranged") or len(graph.graph.nodes) < LONG:
        return graph
    new = settled(graph)
    new.meta["arranged"] = _Whole(new).bounds()[1] >= LONG
    return new if new.meta["arranged"] else graph


def cut(graph: GraphModule) -> tuple[GraphModule, list[Piece]]:
    """The graph as calls of pieces, in the order of its operations; no pieces if it does not repeat itself enough."""
    graph = arranged(graph)
    if not graph.meta.get("arranged"):
        return graph, []
    whole = _Whole(graph)
    return whole.in_pieces(whole.bounds()[0])


def repeats(labels: Sequence[Any]) -> Iterator[tuple[int, int, int]]:
    """Where a sequence repeats itself: from, to (the last repeat may be cut short), period; the longest first.

    >>> list(repeats("x" + "abcdef" * 10 + "y"))
    [(1, 61, 6)]
    """
    numbers: dict[Any, int] = {}
    values = torch.tensor([numbers.setdefault(label, len(numbers)) for label in labels])
    spans = [(0, len(values))]
    while spans:
        start, stop = spans.pop()
        length, period, first = _longest(values[start:stop])
        if length >= 10 * SHORT:
            first += start
            if period >= SHORT:
                yield first, first + length, period
            spans += [(start, first), (first + length, stop)]


def _longest(values: Tensor) -> tuple[int, int, int]:
    """Length, period and start of the longest stretch that repeats itself at least once."""
    best = (0, 0, 0)
    for period in range(1, min(len(values) // 2, LONGEST) + 1):
        same = (values[:-period] == values[period:]).int()
        edges = nn.functional.pad(same, (1, 1)).diff()
        starts, stops = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
        lengths = stops - starts
        if len(lengths) and (length := int(lengths.max())) >= period and length + period > best[0] + best[1] // SHORT:
            best = (length + period, period, int(starts[lengths.argmax()]))
    return best


class _Whole:
    """A graph whose operations are in their order, but for views: those are taken where they are wanted."""

    def __init__(self, graph: GraphModule) -> None:
        self.graph, self.roots = graph, Roots(graph)
        self.nodes = [node for node in graph.graph.nodes if node.op == "call_function" and not is_view(node)]
        self.place = {node: place for place, node in enumerate(self.nodes)}
        self.outside = {root for root in self.roots.changed if not isinstance(root, Node)}
        """Memory that was there before and is changed."""
        self.last = [max(self._users(node), default=place) for place, node in enumerate(self.nodes)]

    def _users(self, node: Node) -> Iterator[int]:
        """The places where a value is used, by itself or by a view of it."""
        for user in node.users:
            if is_view(user):
                yield from self._users(user)
            else:
                yield self.place.get(user, len(self.nodes))

    def bounds(self) -> tuple[list[int], int]:
        """Where pieces begin, and the end; how many operations are repeats."""
        living, bounds, repeated = self._living(), {0, len(self.nodes)}, 0
        for start, stop, period in repeats([self._label(node) for node in self.nodes]):
            period *= max(1, min(ENOUGH // period, (stop - start) // period // 2))
            cuts = [range(first, stop + 1, period) for first in range(start, min(start + period, stop - period + 1))]
            costs = [sum(living[place] for place in places) / len(places) for places in cuts]
            if min(costs) < float("inf"):
                best = cuts[costs.index(min(costs))]
                bounds |= set(best)
                repeated += best[-1] - best[0] - period
        return sorted(bounds), repeated

    def _label(self, node: Node) -> Any:
        """The same for operations that are done alike; of its own where memory is changed that was there before."""
        if self.roots.touched(node) & self.outside:
            return node
        return _text(node, {given: str(_kind(given)) for given in nodes_in([node.args, node.kwargs])})

    def _living(self) -> list[float]:
        """How many values wait to be used before each operation; infinite where there can be no cut."""
        counts = [0.0] * (len(self.nodes) + 2)
        closed = [0] * (len(self.nodes) + 2)
        for place, node in enumerate(self.nodes):
            spans = [(counts, place, self.last[place])] if _kind(node) else [(closed, place, self.last[place])]
            changed = self.roots.of[node.args[0]] if "laid anew" in node.meta else self.roots.changed_by(node)
            spans += [(closed, self.place[root], place) for root in changed if root in self.place]
            for which, first, last in spans:
                which[first + 1] += 1
                which[last + 1] -= 1
        pairs = zip(accumulate(counts), accumulate(closed), strict=True)
        return [float("inf") if shut else count for count, shut in pairs]

    def in_pieces(self, bounds: Sequence[int]) -> tuple[GraphModule, list[Piece]]:
        """The graph cut at these places, and its pieces."""
        parts = [_Part(self, start, stop) for start, stop in pairwise(bounds)]
        wanted: dict[str, set[int]] = defaultdict(set)
        for part in parts:
            wanted[part.key] |= part.wanted
        new, modules = Graph(), {}
        copies: dict[Node, Node] = {}

        def copy(node: Node) -> Node:
            if node not in copies:
                copies[node] = new.node_copy(node, copy)
            return copies[node]

        for node in self.graph.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                copy(node)
        names = {key: f"piece_{number}" for number, key in enumerate(wanted)}
        for part in parts:
            name, results = names[part.key], sorted(wanted[part.key])
            if name not in modules:
                modules[name] = Piece(part.function(results))
            call = new.call_module(name, tuple(map(copy, part.given)))
            for index, place in enumerate(results):
                copies[self.nodes[part.start + place]] = new.call_function(operator.getitem, (call, index))
        new.output(map_arg(self.graph.graph.output_node().args[0], copy))
        constants = {node.target: getattr(self.graph, node.target) for node in new.nodes if node.op == "get_attr"}
        return GraphModule({**constants, **modules}, new), list(modules.values())


class _Part:
    """A stretch of operations: what they are given and what is wanted of them; those that are alike have one key."""

    def __init__(self, whole: _Whole, start: int, stop: int) -> None:
        self.start, self.graph = start, Graph()
        self._inside = dict.fromkeys(whole.nodes[start:stop])
        self.given = list(dict.fromkeys(given for node in self._inside for given in self._needs(node)))
        copies = {node: self.graph.placeholder(f"given_{number}") for number, node in enumerate(self.given)}

        def copy(node: Node) -> Node:
            if node not in copies:
                copies[node] = self.graph.node_copy(node, copy)
            return copies[node]

        self._made = [copy(node) for node in self._inside]
        self.wanted = {
            place for place, node in enumerate(self._inside) if whole.last[start + place] >= stop and _kind(node)
        }
        numbers = {node: f"%{number}" for number, node in enumerate(self.graph.nodes)}
        self.key = "\n".join([*(str(_kind(node)) for node in self.given), *(_text(n, numbers) for n in numbers)])

    def _needs(self, node: Node) -> Iterator[Node]:
        for given in nodes_in([node.args, node.kwargs]):
            base = given
            while is_view(base):
                base = base.args[0]
            if base not in self._inside:
                yield given
            elif given is not base:
                yield from self._needs(given)

    def function(self, places: Sequence[int]) -> GraphModule:
        """From what is given to the results at these places."""
        self.graph.output(tuple(self._made[place] for place in places))
        return GraphModule({}, self.graph)


def _kind(node: Node) -> Any:
    """Shape, strides, dtype and device of a value; None for more than one tensor."""
    layout = node.meta.get("layout")
    return layout and (layout[0], layout[1], *layout[3:])


def _text(node: Node, names: dict[Node, str]) -> str:
    return str((str(node.target), *map_arg((node.args, node.kwargs), names.__getitem__)))
