"""A step as a graph, replayed: on a CPU operation by operation, on CUDA as one captured graph; compiled if wished."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.fx import GraphModule

from .parameters import random_state, set_random_state
from .pieces import cut
from .placement import placed
from .seen import Seen
from .tracing import constants, first_draws, lifted, record, saved_by_fusion
from .values import Untraceable

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

        # what depends on a clock is left out: a resumed run is to be the same bit for bit; draws keep their order;
        # results that are put in the place of what they are made of can be wrong (benchmarks/NOTES.md)
        chosen = {"fallback_random": True, "inplace_buffers": False}
        chosen |= {"reorder_for_locality": False, "reorder_for_peak_memory": False}
        if any(value.is_cuda for value in constants(graph)):
            # a capture can hold no graphs of inductor's own, which a user may have asked for
            chosen |= {"deterministic": True, "shape_padding": False, "triton.cudagraphs": False}
        with inductor.patch(chosen):
            return _in_pieces(graph, inputs) or _whole(graph, inputs)


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


class Captured:
    """A block of steps as one CUDA graph: inputs and learning rates are copied in, heads come out.

    Args:
        forward: see `Forward`; no part of it waits for the device.
        update: see `Update`; likewise. None where it is run by the caller: for a block of one.
        inputs: of one step, an example; on the device.
        rates: the learning rates (groups,) that the update reads, where they have a schedule.
        block: how many steps.
        pool: the memory that this graph works in, as others do that are replayed before or after it.
    """

    def __init__(
        self,
        forward: Forward,
        update: Update | None,
        inputs: Sequence[Tensor],
        rates: Tensor | None,
        block: int,
        pool: Any = None,
    ) -> None:
        self.inputs = [torch.stack([value] * block) for value in inputs]
        self.rates = None if rates is None else torch.stack([rates] * block)
        self.heads = torch.empty(0)
        self.gradients: list[Tensor] = []

        def body() -> None:
            heads = []
            for step in range(block):
                if rates is not None:
                    rates.copy_(self.rates[step])
                head, *gradients = forward(*(value[step] for value in self.inputs))
                heads.append(head)
                if update is not None:
                    update(head, *gradients)
            self.heads, self.gradients = torch.stack(heads), gradients if block == 1 else []

        self.graph = _captured(body, pool)

    @torch.no_grad()
    def play(self, inputs: Sequence[Sequence[Tensor]], rates: Tensor | None) -> Tensor:
        """Take the steps, each on inputs of its own; returns their heads, one a row, which the next call changes."""
        for place, values in zip(self.inputs, zip(*inputs, strict=True), strict=True):
            torch.stack(values, out=place)  # one launch for all
        if self.rates is not None:
            self.rates.copy_(rates, non_blocking=True)
        self.graph.replay()
        return self.heads


@torch.no_grad()
def _captured(body: Callable[[], None], pool: Any = None) -> torch.cuda.CUDAGraph:
    """What a function does on the device, after one call to warm up: kernels are loaded, workspaces are there.

    Raises:
        Untraceable: it does what a CUDA graph cannot hold.
    """
    stream, pool = _stream(torch.cuda.current_device()), pool or torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # torch 2.11 does not leave the stream where a capture fails, unless it is told twice
        with (
            _uncollected(),
            torch.cuda.stream(stream),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            body()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _recover(graph, pool)
        raise Untraceable(f"a CUDA graph cannot hold it: {str(error).strip().splitlines()[0][:200]}") from error
    return graph


_failed: list[torch.cuda.CUDAGraph] = []


def _recover(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Make good what torch 2.11 leaves behind where a capture fails: its allocator and generator think it goes on."""
    _failed.append(graph)  # the allocators go on asking it
    device = torch.cuda.current_device()
    with suppress(RuntimeError):  # that the capture had come to its end
        torch._C._cuda_endAllocateToPool(device, pool)  # until then no memory is given back, wanted as it may be
        torch._C._cuda_releasePool(device, pool)
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=_stream(device), capture_error_mode="thread_local"):
        torch.zeros((), device="cuda")  # one that ends well: the generator is then as it was, in every graph


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """The one stream to capture on: cuBLAS keeps a workspace for each that it was ever used on."""
    return torch.cuda.Stream(device)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within it no garbage is collected: a graph, freed in the capture of another, could spoil that."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


class _Replayed:
    """A function of tensors as a captured graph; what it returns is overwritten by the next call."""

    def __init__(self, run: Forward, inputs: Sequence[Tensor]) -> None:
        self.run = run  # the graph reads its constants where they are
        self.inputs = [value.clone() for value in inputs]
        self.outputs: tuple[Tensor, ...] = ()
        self.graph = _captured(self._body)

    def _body(self) -> None:
        self.outputs = self.run(*self.inputs)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for place, value in zip(self.inputs, inputs, strict=True):
            place.copy_(value, non_blocking=True)
        self.graph.replay()
        return self.outputs


def replayed(
    function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, compile: bool = False, seen: Seen | None = None
) -> Forward:
    """A function of tensors as a graph of its own, without gradients: on a CPU the same numbers.

    What it returns on CUDA is overwritten by the next call. Random numbers are fresh in each call, from torch's
    generator as it then is; building draws none. `seen` is told which tensors it reads.

    Raises:
        Untraceable: see `pvae.svi.tracing.record`; on CUDA also for want of memory.

    >>> double = replayed(lambda x: (2 * x,), torch.ones(2))
    >>> double(torch.tensor([1.0, 3.0]))
    (tensor([2., 6.]),)
    """
    before = random_state()
    try:
        with torch.no_grad():
            graph, read = record(function, *inputs), []
            if inputs[0].is_cuda:
                graph, read = placed(graph, inputs[0].device)
            if seen is not None:
                seen.add_places(constants(graph))
                seen.add_read(read)
            run = compiled(graph, inputs) if compile else graph
        return _Replayed(run, inputs) if inputs[0].is_cuda else torch.no_grad()(run)
    except torch.OutOfMemoryError as error:
        raise Untraceable("no memory is left on the device for a graph") from error
    finally:
        set_random_state(before)


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
    )
