"""What a step is taken on: by its key a graph is known to be the right one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.utils._pytree import TreeSpec, register_pytree_node, tree_flatten, tree_map, tree_unflatten

from ..errors import InputError
from ..replay.members import CONSTANTS
from ..replay.names import library

CONSTANT = 2
"""Values of an argument that get a graph each."""
LARGEST = {int: 2**31, float: 1e30}
"""Of numbers that are taken as tensors: products of larger ones may leave their range."""


def _around() -> list[Any]:
    """What a step stands in that a graph takes in: kinds of numbers, and Pyro's handlers with what they hold."""
    casts = [torch.get_autocast_dtype(device) for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    held = [value for handler in _PYRO_STACK for value in (type(handler), *vars(handler).values())]
    held += [inner for value in held if isinstance(value, dict) for inner in value.values()]  # as data of a condition
    return [torch.get_default_dtype(), torch.is_grad_enabled(), *casts, *held]


@dataclass(frozen=True)
class Call:
    """The tensors that a step is taken on, and how the programs' arguments come of them."""

    inputs: tuple[Tensor, ...]
    arguments: Callable[..., tuple[tuple, dict[str, Any]]]
    key: Hashable
    """Calls of one key differ in the values of their tensors alone. None: cannot be told from others."""
    label: str
    """The key as it is known in another process."""
    given: tuple[tuple, dict[str, Any]] | None = None
    """The programs' arguments, where they came so."""

    prepare: Callable[..., Any] | None = None
    """What they are made with, where they are rows."""
    numbers: dict[int, type] = field(default_factory=dict)
    """The types of those inputs that are numbers there, by place."""
    sources: tuple[Tensor, ...] = ()
    """The inputs as they were given, where they were then brought to the device."""
    objects: tuple[Any, ...] = ()
    """Arguments that are of some other class, as options, and what functions hold: to be the same at each step."""
    functions: tuple[Any, ...] = ()
    """Arguments that are functions, which may be made anew at each step."""

    around: list[Any] = field(default_factory=_around)
    handlers: list[Any] = field(default_factory=lambda: [each for each in _PYRO_STACK if not library(type(each))])
    """Those of a user's own that the step stands in."""

    @property
    def looked_at(self) -> tuple[Any, ...]:
        """What may hold what a graph takes in."""
        return (*self.objects, *self.functions, *self.handlers)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs as they were given."""
        return self.sources or self.inputs

    def steady(self, before: Call) -> list[int]:
        """Which inputs are the same tensors, unchanged in between, as an earlier call's."""
        pairs = zip(self.tensors, before.tensors, self.now(), before.versions, strict=True)
        return [i for i, (one, other, now, then) in enumerate(pairs) if one is other and now == then]

    def same_ones(self) -> list[int]:
        """For each input the first that is the same tensor."""
        given = [*map(id, self.tensors)]
        return [*map(given.index, given)]

    def elsewhere(self, before: Call) -> bool:
        """Whether other handlers of Pyro's are around it than were around an earlier call, or another autocast."""
        pairs = zip_longest(self.around, before.around)
        return not all(one is other or (isinstance(one, CONSTANTS) and one == other) for one, other in pairs)

    def now(self) -> list[int]:
        """How often each tensor that was given has been changed in place."""
        return versions(self.tensors)

    @functools.cached_property
    def versions(self) -> list[int]:
        """The same when it was first asked for."""
        return self.now()

    def plain(self) -> tuple[tuple, dict[str, Any]]:
        """The programs' arguments."""
        return self.given or self.arguments(*self.inputs)

    def again(self) -> tuple[tuple, dict[str, Any]]:
        """The same for a run beside the step."""
        return anew(*self.plain())


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each has been changed in place."""
    return [-1 if value.is_inference() else value._version for value in tensors]


def anew(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Arguments for one more run of a program: the tensors' memory, in other objects.

    A program may keep what it made of an argument, as a transform with a cache does: without a gradient, say. And the
    gradient that an argument asks for is the step's alone.
    """
    if all(isinstance(leaf, (Tensor, *CONSTANTS)) for leaf in (*args, *kwargs.values())):
        return tuple(map(_other, args)), {name: _other(leaf) for name, leaf in kwargs.items()}
    return tree_map(_other, (args, kwargs))


def _other(leaf: Any) -> Any:
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


class Numbers:
    """Which arguments are numbers that change from step to step, as an annealing factor: a graph takes them as tensors.

    >>> numbers = Numbers()
    >>> [numbers.changes("beta", value) for value in (0.1, 0.1, 0.2, 0.3, 0.1)]
    [False, False, False, True, True]
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {}
        self.refused: set[type] = set()
        """Numbers of these types the programs don't take as tensors."""

    def changes(self, place: str, value: Any) -> bool:
        """Whether the number at this place has had more than `CONSTANT` values by now."""
        if type(value) not in (int, float) or type(value) in self.refused or abs(value) > LARGEST[type(value)]:
            return False
        values = self.seen.setdefault(place, [])
        if len(values) <= CONSTANT and value not in values:
            values.append(value)
        return len(values) > CONSTANT

    def refuse(self, types: Collection[type]) -> None:
        """Leave those of one of these types as they are: whole numbers are counted with, or indices, more often."""
        self.refused.add(int if int in types else float)


def of_arguments(args: tuple, kwargs: dict[str, Any], numbers: Numbers, device: torch.device | None = None) -> Call:
    """A call with a step's own arguments; tensors are found in lists, tuples and dicts.

    With a device the inputs are there: a captured graph would go on taking the first number of a tensor on the CPU.
    """
    leaves = [*args, *kwargs.values()]
    if all(isinstance(leaf, (Tensor, *CONSTANTS)) for leaf in leaves):
        tree, place = _flat(len(args), tuple(kwargs))
    else:
        leaves, tree = _opened((args, kwargs))
        place = str(tree)
    first = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), torch.empty(0, device=device))
    dtype = torch.promote_types(first.dtype, torch.float32) if first.is_floating_point() else torch.get_default_dtype()
    taken = [
        first.new_full((), leaf, dtype=torch.int64 if type(leaf) is int else dtype)
        if numbers.changes(f"{place} {index}", leaf)
        else leaf
        for index, leaf in enumerate(leaves)
    ]
    tensors = tuple(leaf for leaf in taken if isinstance(leaf, Tensor))
    functions = tuple(leaf for leaf in taken if inspect.isroutine(leaf))
    objects = [leaf for leaf in taken if _part(leaf) is None]
    known = all(hasattr(leaf, "__dict__") for leaf in objects)
    parts = [_known(leaf, objects) if inspect.isroutine(leaf) else _part(leaf) for leaf in taken]
    key = (place, *parts, *map(id, objects)) if known else None

    def arguments(*inputs: Tensor) -> tuple[tuple, dict[str, Any]]:
        given = iter(inputs)
        return tree_unflatten([next(given) if isinstance(leaf, Tensor) else leaf for leaf in taken], tree)

    given = [leaf for leaf, other in zip(leaves, taken, strict=True) if isinstance(other, Tensor)]
    as_tensors = {place: type(leaf) for place, leaf in enumerate(given) if not isinstance(leaf, Tensor)}
    inputs = tensors if device is None else tuple(_there(value, device) for value in tensors)
    label = str((place, *parts, *(type(leaf).__name__ for leaf in objects)))
    common = {"numbers": as_tensors, "sources": tensors, "objects": tuple(objects), "functions": functions}
    return Call(inputs, arguments, key, label, (args, kwargs), **common)


def change(program: Callable[..., Any], now: Call, before: Call) -> str:
    """What of a program's arguments is of another shape or value than before: "x of shape (3,) after (2,)"."""
    if now.given is None or before.given is None:
        return f"{now.label} after {before.label}"
    try:
        signature = inspect.signature(getattr(program, "forward", program))
        bound = [signature.bind(*args, **kwargs).arguments for args, kwargs in (now.given, before.given)]
        for name in (name for name, given in signature.parameters.items() if given.kind is given.VAR_KEYWORD):
            bound = [{**arguments, **arguments.pop(name, {})} for arguments in bound]
    except (TypeError, ValueError):  # a program that tells nothing of its arguments
        bound = [{"arguments": call.given} for call in (now, before)]
    for name in bound[0]:
        for leaf, was in zip(*(_opened(arguments.get(name))[0] for arguments in bound), strict=False):
            if isinstance(leaf, Tensor) and isinstance(was, Tensor):
                if leaf.shape != was.shape:
                    return f"{name} of shape {tuple(leaf.shape)} after {tuple(was.shape)}"
            elif _part(leaf) != _part(was):
                return f"{name} {leaf!r} after {was!r}"
    return "their types or how they lie in memory"


def _there(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, when this returns: the next batch may be written to the same pinned memory."""
    return value.to(device, non_blocking=not (value.device.type == "cpu" and value.is_pinned()))


@functools.cache
def _flat(count: int, names: tuple[str, ...]) -> tuple[TreeSpec, str]:
    """How arguments lie that are no lists or dicts, and its text: to write that takes long."""
    _, tree = tree_flatten(((None,) * count, dict.fromkeys(names)))
    return tree, str(tree)


def of_rows(data: Sequence[Any], prepare: Callable[..., Any]) -> Callable[[Tensor], Call]:
    """From rows to a call with these rows of data that stay where they are.

    Raises:
        InputError: data that are no tensors.
    """
    for found in data:
        if not isinstance(found, Tensor | None):
            raise InputError(
                f"data: found {type(found).__name__}, expected tensors (N, ...) or None: pass each by itself, and put"
                " them together in prepare"
            )
    common = (_identity(prepare), *(id(d) for d in data))
    chosen = functools.partial(take, data=data, prepare=prepare)
    return lambda rows: Call(
        (rows,), chosen, ("rows", _part(rows), *common), f"rows {tuple(rows.shape)}", prepare=prepare
    )


def take(rows: Tensor, data: Sequence[Any], prepare: Callable[..., Any]) -> tuple[tuple, dict[str, Any]]:
    """The programs' arguments for some rows of the data."""
    batch = prepare(*(None if d is None else d.index_select(0, rows) for d in data))
    return (batch if isinstance(batch, tuple) else (batch,)), {}


class Opened:
    """A `functools.partial` among arguments, taken apart: it may be made anew at each step, with other numbers."""

    def __init__(self, whole: functools.partial) -> None:
        self.whole = whole


def _parts_of(opened: Opened) -> tuple[list[Any], Any]:
    whole = opened.whole
    parts = [whole.func, *whole.args, *whole.keywords.values()]
    return tree_map(_open, parts), (len(whole.args), tuple(whole.keywords))


def _joined(parts: Sequence[Any], context: Any) -> functools.partial:
    count, names = context
    function, *rest = parts
    return functools.partial(function, *rest[:count], **dict(zip(names, rest[count:], strict=True)))


register_pytree_node(Opened, _parts_of, _joined)


def _open(leaf: Any) -> Any:
    return Opened(leaf) if isinstance(leaf, functools.partial) else leaf


def _opened(tree: Any) -> tuple[list[Any], TreeSpec]:
    leaves, spec = tree_flatten(tree)
    whole = any(isinstance(leaf, functools.partial) for leaf in leaves)
    return tree_flatten(tree_map(_open, tree)) if whole else (leaves, spec)


def _identity(function: Any) -> Hashable:
    """The same for a function that is written once and made often: a lambda in a loop, a bound method, a partial."""
    held: list[Any] = []
    known = _known(function, held)
    return (known, *map(id, held))


def _known(value: Any, held: list[Any], seen: frozenset[int] = frozenset()) -> Hashable:
    """The name of a function, with the numbers that it holds; the objects that it holds are added to `held`."""
    inner = getattr(value, "__func__", value)
    if id(inner) in seen:
        return "itself"
    if isinstance(value, functools.partial):
        holds: list[Any] = [
            value.func,
            *value.args,
            *(part for item in sorted(value.keywords.items()) for part in item),
        ]
    elif inspect.isfunction(inner):
        holds = [inner.__code__, getattr(value, "__self__", None), *_cells(inner)]
        holds += [*(inner.__defaults__ or ()), *(inner.__kwdefaults__ or {}).values()]
    elif isinstance(value, CONSTANTS):
        return value
    else:
        held.append(value)
        return type(value).__name__
    name = getattr(inner, "__qualname__", "partial")
    return (name, *(_known(part, held, seen | {id(inner)}) for part in holds))


def _cells(function: Any) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not yet filled
            yield cell.cell_contents


def _laid(tensor: Tensor) -> tuple[Hashable, ...]:
    """How its numbers lie in memory."""
    if tensor.layout is torch.strided:
        return tensor.stride(), tensor.is_conj(), tensor.is_neg()
    return (tensor.layout, tensor._nnz(), tensor.is_coalesced()) if tensor.is_sparse else (tensor.layout,)


def _part(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor) and not leaf.is_nested:
        return (tuple(leaf.shape), *_laid(leaf), leaf.dtype, str(leaf.device), leaf.requires_grad)
    if inspect.isroutine(leaf):
        return _identity(leaf)
    return (type(leaf).__name__, leaf) if isinstance(leaf, CONSTANTS) else None
