"""What a graph does on a device, captured as a CUDA graph and replayed as one launch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .compiling import Forward, Update, compiled
from .generators import Drawn
from .guards import Guards
from .placement import placed
from .tracing import constants, record
from .values import Untraceable


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
    torch.cuda.current_stream().wait_stream(stream)  # on which the capture has begun with the generator's state
    return graph


_failed: list[torch.cuda.CUDAGraph] = []


def _recover(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Make good what torch 2.11 leaves behind where a capture fails: its allocator and generator think it goes on."""
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)  # until then no memory is given back, wanted as it may be
    except RuntimeError:  # the capture had come to its end
        return
    _failed.append(graph)  # the allocators go on asking it
    with suppress(RuntimeError):
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
    function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, compile: bool = False, guards: Guards | None = None
) -> Forward:
    """A function of tensors as a graph of its own, without gradients: on a CPU the same numbers.

    What it returns on CUDA is overwritten by the next call. Random numbers are fresh in each call, from torch's
    generator as it then is; building draws none. `guards` are told which tensors it reads.

    Raises:
        Untraceable: see `pvae.replay.tracing.record`; on CUDA also for want of memory.

    >>> double = replayed(lambda x: (2 * x,), torch.ones(2))
    >>> double(torch.tensor([1.0, 3.0]))
    (tensor([2., 6.]),)
    """
    before = Drawn()
    try:
        with torch.no_grad():
            graph, read = record(function, *inputs), []
            if inputs[0].is_cuda:
                graph, read = placed(graph, inputs[0].device)
            if guards is not None:
                guards.add_places(constants(graph))
                guards.add_read(read)
            run = compiled(graph, inputs) if compile else graph
        return _Replayed(run, inputs) if inputs[0].is_cuda else torch.no_grad()(run)
    except torch.OutOfMemoryError as error:
        raise Untraceable("no memory is left on the device for a graph") from error
    finally:
        before.restore()
