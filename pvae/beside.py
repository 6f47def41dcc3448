"""What a program draws beside its sites, as dropout in training mode does: the same in all runs of one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .errors import InputError

UNTAGGED = ("_standard_gamma", "_sample_dirichlet", "binomial")
"""Random operations that not every torch says are."""


class _Note(NamedTuple):
    """What a random operation was given, in shapes; what it gave; what it left in arrays that it was given to fill."""

    op: Any
    given: Any
    result: Any
    filled: list[Tensor]


class Beside(TorchDispatchMode):
    """Notes what random operations give in a program's first run, and gives the same in its later ones.

    What sites draw is no concern of it: later runs are given that. Nothing here waits for the device, and a graph that
    is traced of all the runs has each random operation once.

    Raises:
        InputError: a later run draws what the first did not.

    >>> beside = Beside()
    >>> with beside.first():
    ...     mask = torch.rand(3)
    >>> with beside.again():
    ...     bool((torch.rand(3) == mask).all())
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self._notes: list[_Note] = []
        self._left: Iterator[_Note] | None = None
        """Those not asked for yet, in a later run."""
        self.at_a_site = False

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first run."""
        with _Sites(self), self:
            yield

    @contextmanager
    def again(self) -> Iterator[None]:
        """A later run; it costs nothing where the first drew at its sites alone."""
        if not self._notes:
            yield
            return
        self._left = iter(self._notes)
        with self.first():
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.at_a_site or not _random(func):
            return func(*args, **kwargs)
        given = tree_map_only(Tensor, lambda tensor: tensor.shape, args)
        fills = [args[key] if isinstance(key, int) else kwargs[key] for key in _fills(func)]
        if self._left is not None:
            return self._noted(func, given, fills)
        result = func(*args, **kwargs)
        # copies, for the program may change the arrays themselves
        self._notes.append(_Note(func, given, _copy(result) if _makes(func) else None, _copy(fills)))
        return result

    def _noted(self, func: Any, given: Any, fills: list[Tensor]) -> Any:
        # those passed over were drawn by what a program does once, as it sets itself up
        note = next((note for note in self._left or () if (note.op, note.given) == (func, given)), None)
        if note is None:
            raise InputError(
                f"guide: run again at its own draws it drew by {func} beside its sites, as it had not before: expected"
                " the same random numbers in each run: pass the gradient reparam or score, which run it once"
            )
        for array, value in zip(fills, note.filled, strict=True):
            array.copy_(value)
        if _makes(func):
            return _copy(note.result)
        return fills[0] if len(func._schema.returns) == 1 else tuple(fills)


class _Sites(Messenger):
    """Tells when a site draws."""

    def __init__(self, beside: Beside) -> None:
        super().__init__()
        self.beside = beside

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        self.beside.at_a_site = True

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        self.beside.at_a_site = False


@cache
def _random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags or func.overloadpacket.__name__ in UNTAGGED


@cache
def _fills(func: Any) -> list[int | str]:
    """The arguments that an operation writes to, by place or name."""
    arguments = enumerate(func._schema.arguments)
    return [a.name if a.kwarg_only else i for i, a in arguments if a.alias_info and a.alias_info.is_write]


@cache
def _makes(func: Any) -> bool:
    """Whether what an operation returns is new."""
    return not any(value.alias_info for value in func._schema.returns)


def _copy(values: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, values)
