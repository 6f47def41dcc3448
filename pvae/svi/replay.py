"""A step as a graph, replayed: on a CPU operation by operation, on CUDA as one captured graph; compiled if wished."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .tracing import lifted, record, saved_by_fusion

Forward = Callable[..., tuple[Tensor, ...]]
"""From a call's inputs to the head, losses and norm of the gradient in one tensor, and the gradients."""
Update = Callable[..., Any]
"""From the head and the gradients to changed parameters."""


def compiled(graph: GraphModule, inputs: Sequence[Tensor]) -> Forward:
    """The graph compiled by inductor; its random numbers are those that the graph itself would draw."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a CUDA that is not asked for
    module, constants = lifted(graph)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own making
        import torch._inductor.config as inductor
        from torch._inductor.compile_fx import compile_fx

        with inductor.patch(fallback_random=True, reorder_for_locality=False):
            # a compiled function is built at its first call; what it does is undone with all else that building did
            run = compile_fx(module, [*constants, *inputs])
            run(*constants, *inputs)
    return lambda *given: run(*constants, *given)


class Captured:
    """A block of steps as one CUDA graph: inputs and learning rates are copied in, heads come out.

    Args:
        forward: see `Forward`; no part of it waits for the device.
        update: see `Update`; likewise. None where it is run by the caller, on `gradients`: for a block of one.
        inputs: of one step, an example; copied.
        rates: the learning rates (groups,) that the update reads, where they have a schedule.
        block: how many steps.
        device: where.
    """

    def __init__(
        self,
        forward: Forward,
        update: Update | None,
        inputs: Sequence[Tensor],
        rates: Tensor | None,
        block: int,
        device: torch.device,
    ) -> None:
        self.inputs = [torch.stack([value] * block) for value in inputs]
        self.rates = None if rates is None else torch.stack([rates] * block)
        self.heads = torch.zeros(0)
        self.gradients: list[Tensor] = []

        def body() -> None:
            for step in range(block):
                if rates is not None:
                    rates.copy_(self.rates[step])
                head, *self.gradients = forward(*(value[step] for value in self.inputs))
                if not len(self.heads):
                    self.heads = torch.zeros(block, len(head), device=device)
                self.heads[step].copy_(head)
                if update is not None:
                    update(head, *self.gradients)

        self.graph = _captured(body)

    def play(self, inputs: Sequence[Sequence[Tensor]], rates: Tensor | None) -> Tensor:
        """Take the steps, each on inputs of its own; returns their heads, one a row, which the next call changes."""
        for place, values in zip(self.inputs, zip(*inputs, strict=True), strict=True):
            for held, value in zip(place, values, strict=True):
                held.copy_(value, non_blocking=True)
        if self.rates is not None and rates is not None:
            self.rates.copy_(rates, non_blocking=True)
        self.graph.replay()
        return self.heads


def _captured(body: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """What a function does on the device, after two calls to warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(2):
            body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        body()
    return graph


def replayed(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, compile: bool = False) -> Forward:
    """A function of tensors as a graph of its own, without gradients: on a CPU the same numbers.

    What it returns on CUDA is overwritten by the next call. Random numbers are fresh in each call, from torch's
    generator as it then is.

    Raises:
        Untraceable: see `pvae.svi.tracing.record`.

    >>> double = replayed(lambda x: (2 * x,), torch.ones(2))
    >>> double(torch.tensor([1.0, 3.0]))
    (tensor([2., 6.]),)
    """
    with torch.no_grad():
        graph = record(function, *inputs)
        run = compiled(graph, inputs) if compile else graph
    if not inputs[0].is_cuda:
        return torch.no_grad()(run)
    held = [value.clone() for value in inputs]
    outputs: list[tuple[Tensor, ...]] = []
    captured = _captured(lambda: outputs.append(run(*held)))

    def replay(*given: Tensor) -> tuple[Tensor, ...]:
        for place, value in zip(held, given, strict=True):
            place.copy_(value, non_blocking=True)
        captured.replay()
        return outputs[-1]

    return replay


BUILD = {"cpu": 5.0, "cuda": 20.0}
"""Seconds that inductor takes, cold."""
LAUNCH = {"cpu": 8e-6, "cuda": 1.2e-6}
"""Seconds that an operation costs which a compiler would have made part of another."""
BANDWIDTH = {"cpu": 15e9, "cuda": 1.5e12}
"""Bytes a second that such an operation writes and reads."""


def choose(graph: GraphModule, device: str, steps: int | None) -> tuple[str, str]:
    """`graph` or `full`, and why, in one line. A function of graph and steps alone: a resumed run chooses alike."""
    if steps is None:
        return "graph", "how many steps will come is not known (steps=)"
    operations, size = saved_by_fusion(graph)
    saved = steps * (operations * LAUNCH[device] + 2 * size / BANDWIDTH[device])
    name = "full" if saved > 2 * BUILD[device] else "graph"
    return name, (
        f"compiling would take about {BUILD[device]:.0f} s and save about {saved:.0f} s in {steps:,} steps"
        f" ({operations} operations, {size / 2**20:.0f} MiB a step)"
    )
