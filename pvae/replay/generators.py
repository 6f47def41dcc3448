"""Generators of random numbers: torch's, put back as they were; Python's and NumPy's, watched."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

HOSTS = (random.Random, np.random.RandomState, np.random.Generator, np.random.BitGenerator)
"""Generators of Python's and of NumPy's."""


@contextmanager
def undrawn(generators: Sequence[Any]) -> Iterator[Callable[[], bool]]:
    """Gives a function whether random numbers of Python or NumPy have been drawn within; puts those back after it.

    Of their own generators, and of these.
    """
    every = [random.getstate.__self__, np.random.get_state.__self__, *generators]
    before = [_state(generator) for generator in every]
    known = pickle.dumps(before)
    try:
        yield lambda: pickle.dumps([_state(generator) for generator in every]) != known
    finally:
        for generator, state in zip(every, before, strict=True):
            if isinstance(generator, random.Random):
                generator.setstate(state)
            elif isinstance(generator, np.random.RandomState):
                generator.set_state(state)
            else:
                getattr(generator, "bit_generator", generator).state = state


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return getattr(generator, "bit_generator", generator).state


class Drawn:
    """How far torch's generators are, those of the CPU and of the current GPU, and these."""

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self._own = [(generator, generator.get_state()) for generator in generators]

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
        for generator, state in self._own:
            generator.set_state(state)
