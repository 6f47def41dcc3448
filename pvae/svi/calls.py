"""What a step is taken on, and what of Python it has seen: by these a graph is known to be still the right one."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

CONSTANTS = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
LIBRARIES = ("torch", "pyro", __name__.partition(".")[0])
FLAGS = ("training", "p", "eps", "momentum", "forward")
"""What may change of a module of torch's own."""
CONSTANT = 2
"""Values of an argument that get a graph each."""
DEPTH = 4
MANY = 1000
"""So many numbers in a list are data, and are not looked at again."""


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
    numbers: bool = False
    """Whether some of the inputs are numbers there."""
    sources: tuple[Tensor, ...] = ()
    """The inputs as they were given, where they were then brought to the device."""

    def versions(self) -> list[int]:
        """How often each tensor that was given has been changed in place."""
        return [0 if value.is_inference() else value._version for value in self.sources or self.inputs]

    def plain(self) -> tuple[tuple, dict[str, Any]]:
        """The programs' arguments."""
        return self.given or self.arguments(*self.inputs)


class Numbers:
    """Which arguments are numbers that change from step to step, as an annealing factor: a graph takes them as tensors.

    >>> numbers = Numbers()
    >>> [numbers.changes("beta", value) for value in (0.1, 0.1, 0.2, 0.3, 0.1)]
    [False, False, False, True, True]
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {}
        self.refused = False
        """The programs don't take tensors for them."""

    def changes(self, place: str, value: Any) -> bool:
        """Whether the number at this place has had more than `CONSTANT` values by now."""
        if self.refused or type(value) is not float:
            return False
        values = self.seen.setdefault(place, [])
        if len(values) <= CONSTANT and value not in values:
            values.append(value)
        return len(values) > CONSTANT


def of_arguments(args: tuple, kwargs: dict[str, Any], numbers: Numbers, device: torch.device | None = None) -> Call:
    """A call with a step's own arguments; tensors are found in lists, tuples and dicts.

    With a device the inputs are there: a captured graph would go on taking the first number of a tensor on the CPU.
    """
    leaves = [*args, *kwargs.values()]
    if all(isinstance(leaf, (Tensor, *CONSTANTS)) for leaf in leaves):
        tree, place = _flat(len(args), tuple(kwargs))
    else:
        leaves, tree = tree_flatten((args, kwargs))
        place = str(tree)
    first = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), torch.empty(0, device=device))
    dtype = first.dtype if first.is_floating_point() else torch.get_default_dtype()
    taken = [
        first.new_full((), leaf, dtype=dtype) if numbers.changes(f"{place} {index}", leaf) else leaf
        for index, leaf in enumerate(leaves)
    ]
    tensors = tuple(leaf for leaf in taken if isinstance(leaf, Tensor))
    parts = [_part(leaf) for leaf in taken]
    key = None if None in parts else (place, *parts)

    def arguments(*inputs: Tensor) -> tuple[tuple, dict[str, Any]]:
        given = iter(inputs)
        return tree_unflatten([next(given) if isinstance(leaf, Tensor) else leaf for leaf in taken], tree)

    as_tensors = any(a is not b for a, b in zip(taken, leaves, strict=True))
    inputs = tensors if device is None else tuple(value.to(device, non_blocking=True) for value in tensors)
    return Call(inputs, arguments, key, str(key), (args, kwargs), numbers=as_tensors, sources=tensors)


@functools.cache
def _flat(count: int, names: tuple[str, ...]) -> tuple[TreeSpec, str]:
    """How arguments lie that are no lists or dicts, and its text: to write that takes long."""
    _, tree = tree_flatten(((None,) * count, dict.fromkeys(names)))
    return tree, str(tree)


def of_rows(data: Sequence[Any], prepare: Callable[..., Any]) -> Callable[[Tensor], Call]:
    """From rows to a call with these rows of data that stay where they are."""
    common = (_identity(prepare), *(id(d) for d in data))
    chosen = functools.partial(take, data=data, prepare=prepare)
    return lambda rows: Call(
        (rows,), chosen, ("rows", _part(rows), *common), f"rows {tuple(rows.shape)}", prepare=prepare
    )


def take(rows: Tensor, data: Sequence[Any], prepare: Callable[..., Any]) -> tuple[tuple, dict[str, Any]]:
    """The programs' arguments for some rows of the data."""
    batch = prepare(*(None if d is None else d.index_select(0, rows) for d in data))
    return (batch if isinstance(batch, tuple) else (batch,)), {}


def _identity(function: Any) -> Hashable:
    """The same for a function that is written once and made often: a lambda in a loop, a bound method, a partial."""
    if isinstance(function, functools.partial):
        given = [*function.args, *(part for item in sorted(function.keywords.items()) for part in item)]
        return ("partial", _identity(function.func), *map(_of_value, given))
    inner = getattr(function, "__func__", function)
    if not inspect.isfunction(inner):
        return id(function)
    values = [cell.cell_contents for cell in inner.__closure__ or ()]
    values += [*(inner.__defaults__ or ()), *(inner.__kwdefaults__ or {}).values()]
    return (inner.__code__, id(getattr(function, "__self__", None)), *map(_of_value, values))


def _of_value(value: Any) -> Hashable:
    return value if isinstance(value, CONSTANTS) else id(value)


def _part(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return (tuple(leaf.shape), leaf.stride(), leaf.dtype, str(leaf.device), leaf.requires_grad)
    return (type(leaf).__name__, leaf) if isinstance(leaf, CONSTANTS) else None


class Seen:
    """The numbers and flags of Python that programs can reach, and their parameters, as they were when this was made.

    A graph holds them as they were: `changed` names the first that no longer is.
    """

    def __init__(self, programs: Sequence[Any], parameters: dict[Tensor, str]) -> None:
        self.modules: list[nn.Module] = []
        self._values: list[tuple[str, Any, str, Any]] = []
        self._lengths: list[tuple[str, Any, int]] = []
        self._members: list[tuple[str, dict[str, Any], list[Any]]] = []
        self._read: list[tuple[Tensor, int]] = []
        known: set[int] = set()
        for program in programs:
            self._look(getattr(program, "__name__", type(program).__name__), program, known, 0)
        self._parameters = [(name, p, p.data_ptr(), p.requires_grad) for p, name in parameters.items()]

    def add_prepare(self, function: Any) -> None:
        """Note what a function reaches; of the object that it is a method of, what its code names."""
        inner, known = getattr(function, "__func__", function), set()
        self._look("prepare", inner, known, 0)
        owner = getattr(function, "__self__", None)
        if inspect.isfunction(inner) and hasattr(owner, "__dict__"):
            named = {key: vars(owner)[key] for key in inner.__code__.co_names if key in vars(owner)}
            for name, value in self._attributes("prepare's", named):
                self._look(name, value, known, 1)
            self._values = [(n, vars(owner) if h is named else h, k, v) for n, h, k, v in self._values]

    def changed(self) -> str:
        """The name of what is no longer as it was; empty if all is."""
        for name, holder, length in self._lengths:
            if len(holder) != length:
                return f"the length of {name} (was {length}, is {len(holder)})"
        for name, holder, members in self._members:
            if len(holder) != len(members) or not all(map(is_, holder.values(), members)):
                return f"the modules or parameters of {name}"
        for name, holder, key, value in self._values:
            now = holder.get(key) if isinstance(holder, dict) else _found(holder, key)
            if now is not value and now != value:
                return f"{name} (was {value}, is {now})"
        for name, parameter, where, trained in self._parameters:
            if parameter.data_ptr() != where or parameter.requires_grad != trained:
                return f"parameter {name}"
        if any(value._version != version for value, version in self._read):
            return "a tensor on the CPU that the programs read"
        return ""

    def add(self, name: str, holder: Any, keys: Sequence[str]) -> None:
        """Note some attributes more, as they are, whatever they are."""
        self._values += [(f"{key} of the {name}", vars(holder), key, vars(holder)[key]) for key in keys]

    def add_read(self, tensors: Sequence[Tensor]) -> None:
        """Note tensors whose values are in the graph."""
        self._read += [(value, value._version) for value in tensors if not value.is_inference()]

    def add_optimizer(self, optimizer: torch.optim.Optimizer, optim: Any) -> None:
        """Note what an optimizer's groups say, but for the learning rates, which a graph reads; and clipping."""
        self._lengths.append(("the optimizer's groups", optimizer.param_groups, len(optimizer.param_groups)))
        for group in optimizer.param_groups:
            self._lengths.append(("the optimizer's parameters", group["params"], len(group["params"])))
            fixed = {key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")}
            self._values += [(f"'{key}' of the optimizer", group, key, value) for key, value in fixed.items()]
        self._look("clipping", getattr(optim, "pt_clip_args", None), set(), 0)

    def buffers(self) -> list[Tensor]:
        """The buffers of all modules, which a step may change."""
        return [buffer for module in self.modules for buffer in module._buffers.values() if buffer is not None]

    def _look(self, name: str, value: Any, known: set[int], depth: int) -> None:
        if id(value) in known or depth > DEPTH or isinstance(value, type | types.ModuleType | Tensor):
            return
        known.add(id(value))
        if isinstance(value, functools.partial):
            children: Any = [(name, value.func), *value.keywords.items(), *((name, a) for a in value.args)]
        elif inspect.ismethod(value):
            children = [(name, value.__self__), (name, value.__func__)]
        elif inspect.isfunction(value):
            children = self._function(name, value)
        elif isinstance(value, nn.Module):
            children = self._module(name, value)
        elif isinstance(value, list | tuple | dict | set):
            children = self._items(name, value)
        elif hasattr(value, "__dict__"):
            children = self._attributes(name, vars(value))
        else:
            children = []
        for child, found in children:
            self._look(child, found, known, depth + 1)

    def _items(self, name: str, values: Any) -> Iterator[tuple[str, Any]]:
        self._lengths.append((name, values, len(values)))
        if not isinstance(values, list | dict):
            yield from ((name, value) for value in values)
            return
        constants = []
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            if isinstance(value, CONSTANTS):
                constants.append((f"{name}[{key!r}]", values, key, value))
            else:
                yield name, value
        if len(constants) < MANY:
            self._values += constants

    def _function(self, name: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not yet filled
                continue
            if isinstance(value, CONSTANTS):
                self._values.append((f"'{key}' of {name}", cell, "cell_contents", value))
            else:
                yield key, value
        if _library(function):
            return
        for key in function.__code__.co_names:
            if key in function.__globals__:
                value = function.__globals__[key]
                if isinstance(value, CONSTANTS):
                    self._values.append((f"global '{key}'", function.__globals__, key, value))
                elif not inspect.isfunction(value) or not _library(value):
                    yield key, value

    def _module(self, name: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
        for path, child in module.named_modules():
            if any(child is m for m in self.modules):
                continue
            self.modules.append(child)
            full = f"{name}.{path}" if path else name
            held = (child._modules, child._parameters, child._buffers, child._forward_hooks, child._forward_pre_hooks)
            self._members += [(full, members, list(members.values())) for members in held]
            if type(child).__module__.startswith("torch."):
                self._values += [(f"{full}.{key}", vars(child), key, vars(child).get(key)) for key in FLAGS]
            else:
                yield from self._attributes(full, vars(child))

    def _attributes(self, name: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, CONSTANTS):
                self._values.append((f"{name}.{key}", values, key, value))
            elif not key.startswith("_") or isinstance(value, nn.Module):  # what is private says nothing of the program
                yield f"{name}.{key}", value


def _found(holder: Any, key: Any) -> Any:
    return holder[key] if isinstance(holder, list) else getattr(holder, key, None)


def _library(function: types.FunctionType) -> bool:
    """Whether what a function has global is none of a program's: such as registers that shrink as others are freed."""
    return function.__module__.partition(".")[0] in LIBRARIES
