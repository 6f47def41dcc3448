"""What of a graph is computed on the CPU though its device is another: done once, or refused."""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from .values import Untraceable

CHECKED = (torch.ops.aten.linalg_cholesky_ex.default, torch.ops.aten.linalg_inv_ex.default)
"""Their second result says where there is no first."""


def placed(graph: GraphModule, device: torch.device) -> tuple[GraphModule, list[Tensor]]:
    """The same graph with its work on the device: a capture can hold none on the CPU, nor copies from there.

    What is computed on the CPU from constants is computed here, and brought to the device; a number () that an
    operation on the device takes as it is stays one. Nor can a capture wait, to be told whether a matrix is singular or
    probabilities are sound.

    Returns:
        The graph, and the tensors on the CPU that it has read by now, and does not read again.

    Raises:
        Untraceable: more is done on the CPU.
    """
    _without_checks(graph)
    _draws_unchecked(graph)
    values = _on_the_cpu(graph)
    for node in list(graph.graph.nodes):
        if node in values or node.op == "output":
            continue
        for given in [given for given in node.all_input_nodes if given in values]:
            if values[given].dim() or torch.Tag.pointwise not in getattr(node.target, "tags", ()):
                name = f"_placed_{given.name}"
                graph.register_buffer(name, values[given].to(device))
                with graph.graph.inserting_before(node):
                    node.replace_input_with(given, graph.graph.get_attr(name))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph, [value for node, value in values.items() if node.op == "get_attr"]


def _on_the_cpu(graph: GraphModule) -> dict[Node, Any]:
    """The values of what is computed on the CPU."""
    values: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            if isinstance(value, Tensor) and value.device.type == "cpu":
                values[node] = value
        elif node.op == "call_function":
            given = [other in values for other in node.all_input_nodes]
            place = node.kwargs.get("device")
            here = all(given) and bool(given) if place is None else torch.device(place).type == "cpu"
            if here and all(given) and _constant(node):
                values[node] = node.target(*map_arg(node.args, values.get), **map_arg(node.kwargs, values.get))
            elif here or (any(given) and _changes(node)):
                raise Untraceable(f"torch's '{_name(node)}' works on the CPU: keep tensors on the parameters' device")
    return values


def _name(node: Node) -> str:
    return getattr(node.target, "overloadpacket", node.target).__name__


def _constant(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()) and not _changes(node)


def _changes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _without_checks(graph: GraphModule) -> None:
    """Where a program waits to be told that a matrix has no factor, its factor is not a number instead."""
    for node in list(graph.graph.nodes):
        parts = {user.args[1]: user for user in node.users if user.target is getitem}
        if node.target in CHECKED and 0 in parts:
            with graph.graph.inserting_after(parts[0]):
                info = graph.graph.call_function(getitem, (node, 1))
            _fill(graph, parts[0], info)
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten._linalg_check_errors.default and node.args[0].args[0].target in CHECKED:
            graph.graph.erase_node(node)


_NORMALS = (torch.ops.aten.normal.Tensor_Tensor, torch.ops.aten.normal.float_Tensor)
_OF_PROBABILITIES = {
    torch.ops.aten.bernoulli_.Tensor: 1,
    torch.ops.aten.bernoulli.default: 0,
    torch.ops.aten.poisson.default: 0,
    torch.ops.aten.binomial.default: 1,
}
"""By the draw, the place of what it is made of."""


def _normal_unchecked(graph: GraphModule, node: Node) -> None:
    """Normal draws of scales that torch would look at, whether all are positive."""
    aten, (mean, scale) = torch.ops.aten, node.args
    shape, _, _, dtype, device = node.meta["layout"]
    with graph.graph.inserting_before(node):
        drawn = graph.graph.call_function(aten.empty.memory_format, (list(shape),), {"dtype": dtype, "device": device})
        for function, other in ((aten.normal_.default, ()), (aten.mul.Tensor, (scale,)), (aten.add.Tensor, (mean,))):
            drawn = graph.graph.call_function(function, (drawn, *other))
    node.replace_all_uses_with(drawn)
    graph.graph.erase_node(node)


def _fill(graph: GraphModule, result: Node, info: Node) -> None:
    """Put NaN into the matrices of a result for which info is not 0."""
    aten, made = torch.ops.aten, info
    for function, *args in ((aten.ne.Scalar, 0), (aten.unsqueeze.default, -1), (aten.unsqueeze.default, -1)):
        with graph.graph.inserting_after(made):
            made = graph.graph.call_function(function, (made, *args))
    with graph.graph.inserting_after(made):
        filled = graph.graph.call_function(aten.masked_fill.Scalar, (result, made, float("nan")))
    result.replace_all_uses_with(filled, delete_user_cb=lambda user: user is not filled)


def _draws_unchecked(graph: GraphModule) -> None:
    """Draws as torch makes them, but for its looks whether what they are made of is sound.

    Where that is not a number a loss says it. A device's own look would end the process: probabilities are 0 there.
    """
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.target in _NORMALS and not node.kwargs:
            _normal_unchecked(graph, node)
        elif node.target in _OF_PROBABILITIES:
            place = _OF_PROBABILITIES[node.target]
            with graph.graph.inserting_before(node):
                sound = graph.graph.call_function(aten.nan_to_num.default, (node.args[place], 0.0))
            node.update_arg(place, sound)
    for node in [node for node in graph.graph.nodes if node.target is aten.multinomial.default]:
        probabilities, count, *rest = node.args
        if count != 1 and (rest or [False])[0]:
            continue  # that does not look
        with graph.graph.inserting_before(node):
            contiguous = {"memory_format": torch.contiguous_format}
            empty = graph.graph.call_function(aten.empty_like.default, (probabilities,), contiguous)
            drawn = graph.graph.call_function(aten.exponential_.default, (empty,))
            raced = graph.graph.call_function(aten.div.Tensor, (probabilities, drawn))
            if count == 1:
                first = graph.graph.call_function(aten.argmax.default, (raced, -1, True))
            else:
                best = graph.graph.call_function(aten.topk.default, (raced, count))
                first = graph.graph.call_function(getitem, (best, 1))
        node.replace_all_uses_with(first)
        graph.graph.erase_node(node)
