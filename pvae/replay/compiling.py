"""A graph compiled by inductor, if long in pieces; and whether that is worth its time."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.fx import GraphModule

from .pieces import cut
from .tracing import constants, first_draws, lifted, saved_by_fusion

Forward = Callable[..., tuple[Tensor, ...]]
"""From a call's inputs to the head, losses and norm of the gradient in one tensor, and the gradients."""
Update = Callable[..., Any]
"""From the head and the gradients to changed parameters."""


def compiled(graph: GraphModule, inputs: Sequence[Tensor]) -> Forward:
    """The graph compiled by inductor; its random numbers are those that the graph itself would draw."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a CUDA that is not asked for
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own making
        import torch._inductor.config as inductor

        # what depends on a clock is left out: a resumed run is to be the same bit for bit; draws keep their order
        chosen = {"fallback_random": True, "reorder_for_locality": False, "reorder_for_peak_memory": False}
        if any(value.is_cuda for value in (*constants(graph), *inputs)):
            # a capture can hold no graphs of inductor's own, which a user may have asked for
            chosen |= {"deterministic": True, "shape_padding": False, "triton.cudagraphs": False}
        with inductor.patch(chosen), parts_kept():
            try:
                return _in_pieces(graph, inputs) or _whole(graph, inputs)
            except Exception as error:
                if "CppCompileError" not in f"{type(error).__name__}: {error}" or " error: " in str(error):
                    raise
            # the compiler had nothing to say: Ctrl-C has ended it, too, as a terminal sends that to all that it runs
            return _in_pieces(graph, inputs) or _whole(graph, inputs)


@contextmanager
def parts_kept() -> Iterator[None]:
    """Within it inductor puts no result in the place of a part of a concatenation.

    It asks whether others still read the part, not whether the whole's memory, which the part is in, goes to others
    before the result has been read (torch 2.11 and 2.15; `benchmarks/NOTES.md`). A torch that asks in another way puts
    no result in another's place at all.
    """
    import torch._inductor.config as inductor
    from torch._inductor import ir
    from torch._inductor.codegen import wrapper

    fits = getattr(wrapper, "can_match_buffer_size", None)
    if fits is None:
        with inductor.patch(inplace_buffers=False):
            yield
        return

    def fits_alone(given: Any, made: Any) -> bool:
        return not isinstance(given.get_output_spec(), ir.NonOwningLayout) and fits(given, made)

    with patch.object(wrapper, "can_match_buffer_size", fits_alone):
        yield


def _whole(graph: GraphModule, inputs: Sequence[Tensor]) -> Forward:
    module, given = lifted(graph)
    run = _inductor(module, [*given, *inputs])
    run(*given, *inputs)  # built at its first call; what that does is undone with all else that building did
    return lambda *values: run(*given, *values)


def _inductor(module: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Compile a graph of inputs like these, or take it from inductor's cache, which it uses only in such a context."""
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    module, draw = first_draws(module)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with tracing(TracingContext(mode)):
        examples = [mode.from_tensor(value, static_shapes=True) for value in (*draw(), *inputs)]
        run = compile_fx(module, examples)
    return lambda *values: run(*draw(), *values)


def _in_pieces(graph: GraphModule, inputs: Sequence[Tensor]) -> Forward | None:
    """A long graph that repeats itself, see `cut`; None for any other. All its kernels are compiled side by side."""
    from torch._inductor.async_compile import AsyncCompile

    whole, pieces = cut(graph)
    if not pieces:
        return None
    module, given = lifted(whole)
    module(*given, *inputs)  # each piece keeps what it gets
    waiting: list[tuple[AsyncCompile, dict]] = []
    with patch.object(AsyncCompile, "wait", lambda kernels, scope: waiting.append((kernels, scope))):
        built = [_inductor(piece.graph, piece.example) for piece in pieces]
    for kernels, scope in waiting:
        kernels.wait(scope)
    for piece, run in zip(pieces, built, strict=True):
        piece.run, piece.example = run, ()
    try:
        module(*given, *inputs)
    except AssertionError:  # one lays a result in another order than the next was built for
        return None
    return lambda *values: module(*given, *values)


BUILD = {"cpu": 5.0, "cuda": 20.0}
"""Seconds that inductor takes, cold, of a step of a hundred operations."""
LAUNCH = {"cpu": 8e-6, "cuda": 1.2e-6}
"""Seconds that an operation costs which a compiler would have made part of another."""
BANDWIDTH = {"cpu": 15e9, "cuda": 1.5e12}
"""Bytes a second that such an operation writes and reads."""


def building(operations: int, device: str) -> float:
    """Seconds that inductor takes of so many operations; a long graph is cut into pieces that are alike."""
    return BUILD[device] * (0.8 + operations / 500)


def choose(graph: GraphModule, device: str, steps: int | None) -> tuple[str, str]:
    """`graph` or `full`, and why, in one line. A function of graph and steps alone: a resumed run chooses alike."""
    if steps is None:
        return "graph", "how many steps will come is not known (steps=)"
    operations, size = saved_by_fusion(graph)
    saved = steps * (operations * LAUNCH[device] + 2 * size / BANDWIDTH[device])
    takes = building(operations, device)
    name = "full" if saved > 2 * takes else "graph"
    return name, (
        f"compiling would take about {takes:.0f} s and save about {saved:.0f} s in {steps:,} steps"
        f" ({operations} operations, {size / 2**20:.0f} MiB a step)"
        + ("; it is done where it saves twice as much as it takes" if takes < saved <= 2 * takes else "")
    )
