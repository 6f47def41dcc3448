"""A layer's two gradient products side by side on a GPU: of its input and of its weights, which nothing orders."""

from __future__ import annotations

import operator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten
_TRANSPOSED = {aten.t.default: (), aten.transpose.int: (0, 1), aten.permute.default: ([1, 0],)}


@torch.library.custom_op(
    "pvae::linear_gradients", mutates_args=(), schema="(Tensor grad, Tensor weight, Tensor input) -> (Tensor, Tensor)"
)
def linear_gradients(grad: Tensor, weight: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a linear layer's input (N, in) and weight (out, in), from that of its output (N, out).

    On CUDA the second is taken on a stream of its own, which is waited for.

    >>> of_input, of_weight = linear_gradients(torch.ones(3, 2), torch.ones(2, 4), torch.ones(3, 4))
    >>> of_input.shape, of_weight
    (torch.Size([3, 4]), tensor([[3., 3., 3., 3.],
            [3., 3., 3., 3.]]))
    """
    of_input, of_weight = _like(grad, weight, input)
    if not grad.is_cuda:
        return torch.mm(grad, weight, out=of_input), torch.mm(grad.t(), input, out=of_weight)
    here = torch.cuda.current_stream(grad.device)
    aside = _aside(grad.device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        torch.mm(grad.t(), input, out=of_weight)
    torch.mm(grad, weight, out=of_input)
    here.wait_stream(aside)  # when this returns, what was read may be freed or changed
    return of_input, of_weight


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@linear_gradients.register_fake
def _like(grad: Tensor, weight: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
    return grad.new_empty(len(grad), weight.shape[1]), grad.new_empty(grad.shape[1], input.shape[1])


def overlapped(graph: GraphModule) -> GraphModule:
    """The graph with the two gradient products of each linear layer as one operation, `linear_gradients`."""
    place = {node: index for index, node in enumerate(graph.graph.nodes)}
    joined: set[Node] = set()
    for first, second in pairwise([node for node in place if node.target is aten.mm.default]):
        if first not in joined and all(place[user] > place[second] for user in first.users):
            joined |= _join(graph, first, second)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _join(graph: GraphModule, first: Node, second: Node) -> set[Node]:
    """Put one operation in the place of G W and G' X, in either order; the nodes that are gone, if any."""
    of_input, of_weight = (second, first) if _untransposed(first.args[0]) is second.args[0] else (first, second)
    if _untransposed(of_weight.args[0]) is not of_input.args[0]:
        return set()
    with graph.graph.inserting_before(second):
        both = graph.graph.call_function(torch.ops.pvae.linear_gradients.default, (*of_input.args, of_weight.args[1]))
        for index, old in enumerate((of_input, of_weight)):
            new = graph.graph.call_function(operator.getitem, (both, index))
            new.meta = old.meta
            old.replace_all_uses_with(new)
    for old in (second, first):
        graph.graph.erase_node(old)
    return {first, second}


def _untransposed(node: Node) -> Node | None:
    """What a matrix is the transpose of."""
    return node.args[0] if tuple(node.args[1:]) == _TRANSPOSED.get(node.target) else None
