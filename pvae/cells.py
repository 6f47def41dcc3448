"""The programs of an evaluation, run for some data and particles at a time: a cell; as a graph where there are many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import noise, programs
from .programs import LogWeights, Look, Program
from .replay.captured import replayed
from .replay.compiling import Forward
from .replay.guards import Guards
from .replay.precision import in_single_steps, tolerance
from .replay.values import Untraceable

CELL = 128
"""Data that one seed's draws are made for."""
PARTICLES = {"cpu": 128, "cuda": 1000}
"""Particles that one seed's draws are made for: a GPU wants much work at a time, and one graph for all of 5,000."""
CHUNK = {"cpu": 4096, "cuda": 32768}
"""Pairs of a particle and a datum that are scored at once, of data of up to `NUMBERS` numbers; of larger ones fewer."""
NUMBERS = 1024
TRACED_AFTER = 5
"""Cells of one shape after which it is worth a graph."""


def of_device(sizes: dict[str, int], x: Tensor) -> int:
    """The size for the kind of device that x is on."""
    return sizes.get(x.device.type, sizes["cpu"])


def chunk_of(x: Tensor) -> int:
    """How many pairs of a particle and one of the data x are scored at once: as many as memory has room for.

    >>> chunk_of(torch.zeros(5, 28, 28)), chunk_of(torch.zeros(5, 3, 64, 64))
    (4096, 341)
    """
    size = of_device(CHUNK, x)
    return max(CELL, min(size, size * NUMBERS // max(1, x[0].numel())))


class Kept:
    """Graphs of a pair of programs, for its evaluations to come: between them parameters may change, in place.

    Where anything else that the programs reach is another, graphs are built anew. For what is not looked at (see
    `pvae.SVI`) the first cell of every evaluation is done by the programs as well, and compared. On CUDA a graph holds
    the memory that the programs need for a cell.

    >>> import pvae
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    >>> x, kept = torch.ones(1000, 6), Kept()
    >>> for epoch in range(2):  # the second traces nothing
    ...     found = pvae.evaluate.evaluate(vae.model, vae.guide, x, kept=kept)
    >>> len(kept.graphs)
    1
    """

    def __init__(self) -> None:
        self.graphs: dict[Any, Forward | None] = {}
        self.constants: dict[object, Tensor] = {}
        """What depends on parameters alone, see `pvae.frozen`: graphs read it where it is."""
        self._programs: tuple[Program, Program] | None = None
        self._guards = Guards((), {})

    def look(self, pair: tuple[Program, Program]) -> None:
        """Forget all graphs, unless they are of these programs and still right; asked for once constants are found."""
        if self._programs != pair or self._guards.changed():
            self.graphs.clear()
            self._programs, self._guards = pair, Guards((*pair, self.constants), {})

    @property
    def modules(self) -> list[nn.Module]:
        """Those of the programs."""
        return self._guards.modules

    def build(self, key: Any, program: Forward, data: tuple[Tensor, ...], full: bool) -> None:
        """Make a graph; None where there can be none."""
        self.graphs[key] = None
        with suppress(Untraceable):
            self.graphs[key] = replayed(program, *data, compile=full, guards=self._guards)


@dataclass
class Cells:
    """A model and its guide in one evaluation."""

    model: Program
    guide: Program
    look: Look
    """What was seen of them."""
    plate: str | None
    """The name of the plate of data, where there are several; None where the whole program has one weight."""
    size: tuple[int, int]
    """How many data there are, and draws for each."""
    cell: int
    """How many data come at once."""
    chunk: int
    """How many pairs of a particle and a datum are scored at once."""
    compile: str
    """As for `evaluate`."""
    kept: Kept
    """Graphs that there are."""
    sites: list[str] = field(default_factory=list)
    drawn: set[str] = field(default_factory=set)
    """Sites whose posterior means are averages of draws: see `programs.Averaged`."""
    _runs: dict[Any, Forward] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept.look((self.model, self.guide))

    def draw(self, data: tuple[Tensor, ...], seed: tuple[int, int]) -> tuple[LogWeights, list[Tensor]]:
        """The log-weights of all draws, (draws, B), and the averages over them that `_program` gives; float64."""
        terms, sums, draws = torch.empty(0), [], self.size[1]
        for cell, start in enumerate(range(0, draws, size := of_device(PARTICLES, data[0]))):
            state = np.random.SeedSequence((*seed, cell)).generate_state(1, np.uint64)[0]
            particles = min(size, draws - start)
            found, *averages = self._cell(particles, data, int(state))
            if not start:  # room for all at once: what is kept would else pin the heap between the cells' large arrays
                terms = found.new_empty(3, draws, found.shape[-1])
                sums = [0.0] * len(averages)
            terms[:, start : start + particles] = found
            sums = [total + particles * value.double() for total, value in zip(sums, averages, strict=True)]
        return LogWeights(*terms.double()), [total / draws for total in sums]

    def _cell(self, particles: int, data: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
        """What `_program` says, from the draws of a seed."""
        key = (particles, self.chunk, self.compile, self.plate, self.look.validated)
        key += tuple((part.shape, part.dtype, part.stride(), part.device) for part in data)
        if key not in self._runs:
            program = partial(self._program, particles)
            graph = self._graph(key, program, data, seed) if self._often(particles, data[0]) else None
            self._runs[key] = graph or program
        return _seeded(self._runs[key], data, seed)

    def _often(self, particles: int, x: Tensor) -> bool:
        """Whether so many cells of this shape are to come that a graph is worth it."""
        n, draws = self.size
        like = _sizes(n, self.cell)[len(x)] * _sizes(draws, of_device(PARTICLES, x))[particles]
        return self.compile != "off" and like > TRACED_AFTER

    def _graph(self, key: Any, program: Forward, data: tuple[Tensor, ...], seed: int) -> Forward | None:
        """A graph that does this cell as the program does; None where there is none."""
        graphs = self.kept.graphs
        if graphs.get(key, program) is None:
            return None
        with in_single_steps(data[0].device.type, self.kept.modules):
            expected = _means(_seeded(program, data, seed))
        near = tolerance("float32", data[0].device.type) / 10

        def right(graph: Forward | None) -> bool:
            if graph is None:
                return False
            try:
                found = _means(_seeded(graph, data, seed))
            except (RuntimeError, IndexError):  # it has been written down wrong: the program has just done the same
                return False
            return found.shape == expected.shape and torch.allclose(found, expected, near, near, equal_nan=True)

        if not right(graphs.get(key)):
            self.kept.build(key, program, data, self.compile == "full")
            if not right(graphs[key]):
                graphs[key] = None
        return graphs[key]

    def _program(self, particles: int, *data: Tensor) -> tuple[Tensor, ...]:
        """What is found of the data for so many particles.

        The three terms (3, particles, B); which data are outside a support (B,); each site's posterior mean (B, l),
        then their squares; of several sites, the rates (B, sites).
        """
        drawn = programs.draw(self.guide, *data, particles=particles, max_plate_nesting=self.look.nesting)
        several = len(list(programs.sites_of(drawn.sites))) > 1
        parts, rates, outside = [], [], []
        for part in drawn.parts(max(1, self.chunk // len(data[0]))):
            traces = programs.score(self.model, part, *data, plate=self.plate)
            if not parts:
                if self.plate is not None:
                    programs.check_whole(traces, len(data[0]))
                outside = [programs.outside_support(traces, self.look.validated)] if self.look.validated else []
            parts.append(torch.stack(programs.split(traces)))
            if several:
                rates.append(torch.stack(list(programs.rates(traces).values()), -1))
        means, terms = drawn.latent_means(traces.dim), torch.cat(parts, 1)
        if not self.sites:  # of the first cell, none has more particles
            self.sites, self.drawn = list(means), {name for name, each in means.items() if each.drawn}
        moments = [each.mean for each in means.values()] + [each.square for each in means.values()]
        return (
            terms,
            *(outside or [torch.zeros_like(terms[0, 0])]),
            *moments,
            *([torch.cat(rates).mean(0)] if rates else []),
        )


def _seeded(run: Callable[..., tuple[Tensor, ...]], data: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    noise.seed(seed, data[0].device)
    return run(*data)


def _means(found: tuple[Tensor, ...]) -> Tensor:
    """What was found, for each datum, averaged over the particles."""
    terms, *averages = found
    return torch.cat([terms.mean(1).flatten(), *(value.flatten() for value in averages)])


def _sizes(total: int, size: int) -> Counter[int]:
    """How many pieces there are of each size, where some number is cut into pieces of one."""
    return Counter(min(size, total - start) for start in range(0, total, size))
