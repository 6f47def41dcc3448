"""Generators of random numbers: torch's, put back as they were; Python's and NumPy's, watched."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def undrawn() -> Iterator[Callable[[], bool]]:
    """Gives a function whether Python's or NumPy's random numbers have been drawn within; puts those back after it."""
    before, state = random.getstate(), np.random.get_state()

    def drawn() -> bool:
        now = np.random.get_state()
        return random.getstate() != before or now[2:] != state[2:] or not np.array_equal(now[1], state[1])

    try:
        yield drawn
    finally:
        random.setstate(before)
        np.random.set_state(state)


def random_state() -> list[Tensor]:
    """The state of torch's generators, of the CPU and of the current GPU."""
    cuda = torch.cuda.is_initialized()
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if cuda else [])]


def set_random_state(states: list[Tensor]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
