"""Random numbers that belong to data: the same for a datum however many others are worked on beside it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor

CELL = 32
"""Data that one generator draws for."""


def block_size(device: torch.device, particles: int, chunk: int | None = None) -> int:
    """How many data to work on at once, whole cells: about `chunk` pairs of a particle and a datum.

    >>> block_size(torch.device("cpu"), particles=16)
    128
    """
    if chunk is None:
        chunk = 2048 if device.type == "cpu" else 16384  # a CPU's caches are small, a GPU's launches slow
    return CELL * max(1, chunk // (CELL * particles))


def forked(device: torch.device | None = None) -> AbstractContextManager:
    """Within it draws on the CPU and on a device leave the generators that others see as they are.

    Args:
        device: that is drawn on; if not given, the current one of CUDA, where CUDA is in use.
    """
    if device is None:
        return torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else [])
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def pythons_forked() -> Iterator[None]:
    """Within it draws of Python's and numpy's own leave the generators that others see as they are."""
    known, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(known)
        np.random.set_state(numpys)


def seed(number: int, device: torch.device) -> None:
    """As `torch.manual_seed` for draws on a device and on the CPU: that writes down where it was called, each time."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(number)


class Noise:
    """Draws for a block of data, each cell of `CELL` data from a generator of its own.

    The generators that others see are left as they are.

    Args:
        seed: whole numbers; the first datum's cell is appended, so blocks may share it.
        first: index of the block's first datum, a multiple of `CELL`.
        size: how many data the block has.
        device: where the numbers are wanted.

    >>> both = Noise((0,), 0, 40, "cpu").normal(torch.zeros(2, 40, 3))
    >>> second = Noise((0,), 32, 8, "cpu").normal(torch.zeros(2, 8, 3))
    >>> torch.equal(both[:, 32:], second)
    True
    """

    def __init__(self, seed: tuple[int, ...], first: int, size: int, device: torch.device | str) -> None:
        self.cells = [slice(start, min(start + CELL, size)) for start in range(0, size, CELL)]
        self.seeds = [(*seed, first // CELL + cell) for cell in range(len(self.cells))]
        self.generators = [torch.Generator(device).manual_seed(_number((*each, 0))) for each in self.seeds]
        self.device, self.times = torch.device(device), 0

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape, dtype and place of `like` (K, B, ...)."""
        return self._draw(torch.randn, like)

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers in [0, 1) in the shape, dtype and place of `like` (K, B, ...)."""
        return self._draw(torch.rand, like)

    def seeded(self) -> Iterator[slice]:
        """Each cell's data in turn, with torch's own generators seeded for it: to be used within `forked`."""
        self.times += 1  # new draws every time; 0 is the stream of the cell's generator
        for cell, each in zip(self.cells, self.seeds, strict=True):
            seed(_number((*each, self.times)), self.device)
            yield cell

    def _draw(self, draw: Callable[..., Tensor], like: Tensor) -> Tensor:
        # Each cell's into an array of its own: what is drawn into part of a larger one depends on its strides.
        shape, place = like.shape, {"dtype": like.dtype, "device": like.device}
        parts = [
            draw((shape[0], cell.stop - cell.start, *shape[2:]), generator=generator, **place)
            for cell, generator in zip(self.cells, self.generators, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _number(numbers: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
