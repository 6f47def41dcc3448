"""A program run several times in one step: the same random numbers beside its sites, and its state moved once.

Dropout in training mode drops the same units in each run; running statistics move once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import InputError
from ..replay.simplify import memory, views

SILENT = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
"""Operations that in training change the arrays at places 3 and 4, though they don't say so."""


class _Note(NamedTuple):
    """What a random operation was given, in shapes; what it gave; what it left in arrays that it was given to fill."""

    op: Any
    given: Any
    result: Any
    filled: list[Tensor]


class Reruns(TorchDispatchMode):
    """Notes what a program draws and changes in its first run; later runs draw the same, and change nothing.

    What sites draw is no concern of it: later runs are given that. State is what was in memory before the first run
    and is written to where it is: later runs begin with it as the first did. Nothing here waits for the device, and a
    graph that is traced of all the runs has each random operation once.

    Args:
        draws: whether draws are to be the same, too.
        partly: whether the first run may end before the later ones, which then draw anew what it did not come to.

    Raises:
        InputError: a later run draws what the first did not.

    >>> reruns, total = Reruns(), torch.zeros(())
    >>> with reruns.first():
    ...     first = total.add_(1) * torch.rand(3)
    >>> with reruns.again():
    ...     second = total.add_(1) * torch.rand(3)
    >>> bool((first == second).all()), total
    (True, tensor(1.))
    """

    def __init__(self, draws: bool = True, partly: bool = False) -> None:
        super().__init__()
        self.draws, self.partly = draws, partly
        self.at_a_site = self._ran = False
        self._notes: list[_Note] = []
        self._left: Iterator[_Note] | None = None
        """Those not asked for yet, in a later run."""
        self._made: set[int] = set()
        """The memory that the first run made."""
        self._before: dict[Any, tuple[Tensor, Tensor]] = {}
        """The state that it changed, and as it was."""

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first run."""
        self._ran = True
        with _Sites(self), self:
            yield

    @contextmanager
    def again(self) -> Iterator[None]:
        """A later run; it costs nothing where the first did nothing but at its sites."""
        now = [(state, state.clone()) for state, _ in self._before.values()]
        _put(reversed(self._before.values()))
        try:
            if self._notes:
                self._left = iter(self._notes)
                with _Sites(self), self:
                    yield
            else:
                yield
        finally:
            _put(now)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """A run that leaves no state behind."""
        try:
            with self.first():
                yield
        finally:
            _put(reversed(self._before.values()))

    def once(self) -> AbstractContextManager[None]:
        """The first run, or a later one."""
        return self.again() if self._ran else self.first()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = _kind(func)
        if not kind.random or self.at_a_site or not self.draws:
            return func(*args, **kwargs) if self._left is not None else self._watched(func, args, kwargs)
        given = tree_map_only(Tensor, lambda tensor: tensor.shape, args)
        if self._left is not None:
            # those passed over were drawn by what a program does once, as it sets itself up
            note = next((note for note in self._left if (note.op, note.given) == (func, given)), None)
            return func(*args, **kwargs) if note is None and self.partly else _as_noted(note, func, args, kwargs)
        result = self._watched(func, args, kwargs)
        # copies, for the program may change the arrays themselves
        filled = _copy(_written(func, args, kwargs)) if kind.writes else []
        self._notes.append(_Note(func, given, _copy(result) if kind.makes else None, filled))
        return result

    def _watched(self, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
        """What an operation gives; of state that it changes a copy is kept."""
        kind = _kind(func)
        for state in _written(func, args, kwargs) if kind.writes else ():
            if (name := memory(state)) and name not in self._made:
                layout = (name, state.shape, state.stride(), state.storage_offset())
                if layout not in self._before:
                    self._before[layout] = state, state.clone()
        result = func(*args, **kwargs)
        if kind.makes:
            made = (result,) if isinstance(result, Tensor) else tree_leaves(result)
            self._made.update([memory(tensor) for tensor in made if isinstance(tensor, Tensor)])
        return result


class _Sites(Messenger):
    """Tells when a site draws."""

    def __init__(self, reruns: Reruns) -> None:
        super().__init__()
        self.reruns = reruns

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        self.reruns.at_a_site = True

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        self.reruns.at_a_site = False


class _Kind(NamedTuple):
    """What an operation is."""

    random: bool
    writes: bool
    """Whether it changes what it is given, or may."""
    makes: bool
    """Whether what it returns is in memory of its own."""


@cache
def _kind(func: Any) -> _Kind:
    name = func.overloadpacket.__name__
    return _Kind(
        torch.Tag.nondeterministic_seeded in func.tags,
        func._schema.is_mutable or name in SILENT,
        name == "lift_fresh" or not views(func),
    )


def _written(func: Any, args: Sequence[Any], kwargs: Any) -> list[Tensor]:
    """The arrays that an operation writes to."""
    if func.overloadpacket.__name__ in SILENT:
        return [array for array in args[3:5] if array is not None and args[5]]
    arguments = func._schema.arguments
    given = {**dict(zip((argument.name for argument in arguments), args, strict=False)), **kwargs}
    values = [given.get(a.name) for a in arguments if a.alias_info and a.alias_info.is_write]
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _as_noted(note: _Note | None, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    if note is None:
        raise InputError(
            f"guide: run again at its own draws it drew by {func} beside its sites, as it had not before: expected"
            " the same random numbers in each run: pass the gradient reparam or score, which run it once"
        )
    filled = _written(func, args, kwargs)
    for array, value in zip(filled, note.filled, strict=True):
        array.copy_(value)
    if _kind(func).makes:
        return _copy(note.result)
    return filled[0] if len(func._schema.returns) == 1 else tuple(filled)


def _copy(values: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, values)


def _put(values: Any) -> None:
    """Give arrays their values; autograd is not told, for what it kept of them is what they have in the end."""
    for array, value in values:
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(array):
            array.copy_(value)
