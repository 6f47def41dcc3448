"""A function of tensors, through any Python, to a graph of the tensor operations that it did."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from typing import Any
from unittest.mock import patch

import pyro
import torch
import torch.utils.checkpoint
import torch.utils.dlpack
from pyro.ops.jit import CompiledFunction
from torch import Tensor
from torch.distributions import Distribution
from torch.fx import GraphModule, Node, graph_module
from torch.fx.node import has_side_effect

from . import lines
from .known import Known
from .simplify import merge_alike, note, reshapes
from .supposed import Supposed
from .values import READ, HostReads, Untraceable

LOST = (
    "a tensor of shape {} is made within the step as a graph cannot follow, as nn.Parameter of another: make it by"
    " operations of torch, as clone"
)
DRAWN_AGAIN = (
    "random numbers are drawn once more in the backward pass, as by torch.utils.checkpoint with dropout, which a graph"
    " cannot: make no checkpoint of what draws them"
)
SEEDED = (
    "torch's random numbers are seeded within the step, which a graph cannot do: draw with a torch.Generator, or once"
)
_aten = torch.ops.aten
has_side_effect(_aten._linalg_check_errors.default)  # torch 2.11 drops it from graphs: nothing is made of it


def record(
    function: Callable[..., Any],
    *inputs: Tensor,
    known: Known | None = None,
    replaced: dict[Any, Callable] | None = None,
    each: Callable[[], Any] = bool,
    supposed: Supposed | None = None,
    numbers: Sequence[Tensor] = (),
) -> GraphModule:
    """The graph of what a function of tensors did, by running it once.

    Tensors that are not inputs, such as parameters, are constants of the graph, read and changed where they are.
    Random operations stay random operations. Everything else that Python did is as it was in this run: that goes for
    values read of tensors that are `known` (default: those made of Python's numbers alone). Operations in `replaced`
    are written as what the function in their place does. `each` is called at each operation. Where there is `supposed`,
    Python may decide by other values too: what it has read is noted there. `numbers` are inputs that stand for numbers.

    Raises:
        Untraceable: values were read on the host, or shapes depend on values. What the run did until then is done.
    """
    from torch._dynamo import config as dynamo
    from torch.fx.experimental import proxy_tensor

    def note_size(proxy: Any, value: Any) -> Any:
        """What is to be known of a node; torch's own notes take two thirds of the time of a trace."""
        each()
        if isinstance(value, Tensor):
            note(proxy.node, value)
        return proxy

    unnoted = {"set_meta": note_size, "extract_val": lambda *value, **options: None}
    noting = patch.multiple(proxy_tensor, create=True, **unnoted)
    as_written = dynamo.patch(error_on_nested_fx_trace=False)  # also what a program has compiled by torch
    try:
        known = known or Known(inputs, outside=False)
        with unkept():
            reads = HostReads(known, supposed, numbers)
            looked_up = patch.object(Tensor, "__hash__", lambda tensor: reads.looked_up(tensor))
            with _tolerant_pyro(), _without_cudnn(), as_written, known, reads, looked_up, noting, _refused(known):
                written = {**_SAYING, **(replaced or {})}
                graph = proxy_tensor.make_fx(function, decomposition_table=written, tracing_mode="real")(*inputs)
            graph = _simplified(graph)
            if lost := [tensor for tensor in constants(graph) if not known.constant(tensor)]:
                raise Untraceable(LOST.format(tuple(lost[0].shape)))
            return graph
    except Exception as error:  # of whatever kind: the function is then run as it is, and says it itself
        raise Untraceable(f"{lines.of(error)}{_first_line(error)}") from error


@contextmanager
def _refused(known: Known) -> Iterator[None]:
    """Refuses functions that no mode of torch's sees; but for checkpointing where no random numbers are drawn again."""
    drawn: list[int] = []

    def refusing(module: Any, name: str, reason: str) -> AbstractContextManager:
        real = getattr(module, name)

        def refused(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__")
            if caller not in ("torch.utils.checkpoint", "torch.random"):
                raise Untraceable(reason)
            if name == "set_rng_state":  # to those of the forward pass, then to those of now
                if caller == "torch.utils.checkpoint":
                    drawn.append(known.drawn)
                elif drawn and drawn.pop() != known.drawn:
                    raise Untraceable(DRAWN_AGAIN)
            return real(*args, **kwargs)

        return patch.object(module, name, refused)

    with ExitStack() as stack:
        for name in ("manual_seed", "set_rng_state"):
            stack.enter_context(refusing(torch, name, SEEDED))
        stack.enter_context(refusing(torch.random, "fork_rng", SEEDED))
        stack.enter_context(refusing(torch.utils.dlpack, "to_dlpack", READ))
        yield


def unkept() -> AbstractContextManager:
    """Within it torch keeps no text of the graphs that it makes, which it does for good."""
    return patch.object(graph_module._loader, "cache", lambda *given: "<graph>")


@contextmanager
def _tolerant_pyro() -> Iterator[None]:
    """Pyro as it is with nothing checked: those who replay a graph look at its losses themselves.

    Its objectives look whether a loss is not a number, to warn; a distribution that was built before the step checks
    values even where validation is off by now. What Pyro would compile by itself is run as it is written.
    """
    with (
        pyro.validation_enabled(False),
        patch.object(pyro.util, "torch_isnan", lambda value: False),
        patch.object(Distribution, "_validate_sample", lambda self, value: None),
        patch.object(pyro.infer.util, "_fulldot", _dot),
        patch.object(CompiledFunction, "__call__", lambda self, *args, **kwargs: self.fn(*args, **kwargs)),
    ):
        yield


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Recurrent networks as their single steps: cuDNN's whole ones look into the memory of weights as a graph cannot.

    Convolutions are written as such in any case: how they are done is decided when the graph is run.
    """
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *more: float) -> Any:
    """The operation that says that it changes the running statistics: one that does not may be merged, or left out."""
    if not training or mean is None:
        return NotImplemented
    return _aten._native_batch_norm_legit.default(x, weight, bias, mean, variance, training, *more)


def _chunked(x: Tensor, chunks: int, dim: int = 0) -> list[Tensor]:
    return _split(x, -(-x.shape[dim] // chunks), dim)


def _split(x: Tensor, sizes: int | Sequence[int], dim: int = 0) -> list[Tensor]:
    """Each said to be a view: where parts are not, as of a recurrent cell, a change is noted of one part alone."""
    length = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)] if length else [0]
    return [x.narrow(dim, end - size, size) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _bernoulli(probabilities: Tensor, generator: Any = None) -> Any:
    """What fills an array, as torch does it: inductor makes of the other uniform numbers that are others on CUDA."""
    if generator is not None:
        return NotImplemented
    return _aten.bernoulli_.Tensor(_aten.empty_like.default(probabilities), probabilities)


_SAYING = {
    _aten.bernoulli.default: _bernoulli,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.unsafe_chunk.default: _chunked,
    _aten.unsafe_split.Tensor: _split,
    _aten.unsafe_split_with_sizes.default: _split,
}
"""By operation, what does the same and says what it does."""


_FULL_DOT = pyro.infer.util._fulldot


def _dot(probability: Tensor, cost: Tensor) -> Tensor:
    """The sum of probability times cost where the probability is not 0."""
    return _FULL_DOT(probability, cost.masked_fill(probability == 0, 0))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
    if "value out of a tracing tensor" in text:
        return READ
    return text if isinstance(error, Untraceable) else f"{type(error).__name__}: {text}"


def _simplified(graph: GraphModule) -> GraphModule:
    """Without the nodes that only rename a tensor, or tell a profiler of it; in `meta`, what these read as well."""
    graph.meta["read"] = constants(graph)
    for node in reversed(graph.graph.nodes):
        if getattr(node.target, "namespace", "") == "profiler":
            graph.graph.erase_node(node)
        elif node.target in (_aten.detach.default, _aten.alias.default) and not any(map(reshapes, node.users)):
            node.replace_all_uses_with(node.args[0])
    _draw_at_once(graph)
    graph.graph.eliminate_dead_code()
    merge_alike(graph)
    graph.recompile()
    return graph


_NEW = (_aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default)
_DRAWS = {
    _aten.normal_.default: ((0.0, 1.0), _aten.randn.default),
    _aten.uniform_.default: ((0.0, 1.0), _aten.rand.default),
    _aten.random_.to: (None, _aten.randint.default),
}
"""By what fills an array with draws: arguments that it must have, and what makes the array with the same draws."""


def _draw_at_once(graph: GraphModule) -> None:
    """Random numbers as one operation: a compiler makes two of an array that is filled after it was made."""
    for node in list(graph.graph.nodes):
        made = node.args[0] if node.target in _DRAWS else None
        if made is None or made.target is not _aten.empty.memory_format or next(iter(made.users)) is not node:
            continue
        given, factory = _DRAWS[node.target]
        if node.kwargs or (given is not None and node.args[1:] not in ((), given)):
            continue
        options = {name: value for name, value in made.kwargs.items() if name != "memory_format"}
        with graph.graph.inserting_before(node):
            drawn = graph.graph.call_function(factory, (*(node.args[1:] if given is None else ()), *made.args), options)
        drawn.meta = node.meta
        node.replace_all_uses_with(drawn)
        graph.graph.erase_node(node)
        made.replace_all_uses_with(drawn)


def constants(graph: GraphModule) -> list[Tensor]:
    """The tensors that a graph reads, or changes, where they are."""
    names = {node.target: None for node in graph.graph.nodes if node.op == "get_attr"}
    return [value for value in (getattr(graph, name) for name in names) if isinstance(value, Tensor)]


def lifted(graph: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """The same graph with its constants as its first inputs, and those constants."""
    new, copies, constants = torch.fx.Graph(), {}, {}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target not in constants and isinstance(getattr(graph, node.target), Tensor):
            constants[node.target] = new.placeholder(f"constant_{node.target.strip('_')}")
    for node in graph.graph.nodes:
        known = constants.get(node.target) if node.op == "get_attr" else None
        copies[node] = known if known is not None else new.node_copy(node, copies.__getitem__)
    return GraphModule(graph, new), [getattr(graph, name) for name in constants]


def first_draws(graph: GraphModule) -> tuple[GraphModule, Callable[[], list[Tensor]]]:
    """The graph with its first draws as its first inputs, and what makes them; a compiler may change their order.

    Those until one, if any, whose distribution is computed.
    """
    new, copies, makers = torch.fx.Graph(), {}, []
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            filled = _filled(node)
            if node.all_input_nodes and filled is None:
                break
            makers.append(_maker(node, filled))
            copies[node] = copies[filled or node] = new.placeholder(node.name)
    for node in graph.graph.nodes:
        if node not in copies:
            copies[node] = new.node_copy(node, copies.__getitem__)
    return GraphModule(graph, new), lambda: [make() for make in makers]


def _filled(node: Node) -> Node | None:
    """The new array that a draw fills, with numbers whose distribution is not computed; else None."""
    made = node.args[0] if node.args else None
    if not isinstance(made, Node) or made.target not in _NEW or node.all_input_nodes != [made]:
        return None
    return made if next(iter(made.users)) is node and "layout" in made.meta else None


def _maker(node: Node, filled: Node | None) -> Callable[[], Tensor]:
    if filled is None:
        return partial(node.target, *node.args, **node.kwargs)
    shape, strides, _, dtype, device = filled.meta["layout"]

    def make() -> Tensor:
        # laid as the program's own was: an array is filled in the order of its memory
        array = torch.empty_strided(shape, strides, dtype=dtype, device=device)
        return node.target(array, *node.args[1:], **node.kwargs)

    return make


def in_half(graph: GraphModule) -> bool:
    """Whether any of it is computed in 16 bits."""
    made = (node.meta["layout"][3] for node in graph.graph.nodes if "layout" in node.meta)
    return not {torch.bfloat16, torch.float16}.isdisjoint(made)


def saved_by_fusion(graph: GraphModule) -> tuple[int, int]:
    """What a compiler can save of a graph: operations that need no launch of their own, and bytes not written.

    Counted are the operations that work element by element, or reduce; not products, convolutions or random numbers.
    """
    operations, size = 0, 0
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if torch.Tag.pointwise not in node.target.tags and torch.Tag.reduction not in node.target.tags:
            continue
        operations += 1
        size += node.meta.get("bytes", 0)
    return operations, size
