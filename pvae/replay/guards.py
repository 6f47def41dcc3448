"""Guards: what programs reach in Python, by which a graph is known to be still the right one."""

from __future__ import annotations

import functools
import inspect
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from operator import attrgetter, call, eq, getitem, is_, methodcaller
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import hooks
from .members import CONSTANTS, CONTAINERS, Members, now, of_class, plain, refill, said, same
from .names import library, named
from .simplify import memory
from .values import SMALL

NOTED = (*CONSTANTS, Tensor)
DEPTH = 6
MANY = 1000
"""So many numbers in a list or an array are data, and are not looked at again."""
_PLACE, _TRAINED = methodcaller("data_ptr"), attrgetter("requires_grad")

Entry = tuple[str, Callable[[Any, Any], Any], Any, Any, Any]
"""What it is called, how it is read, of what, by which key, and what it was."""


class Guards:
    """The numbers, flags, functions and tensors that programs can reach in Python, and their parameters, as they were.

    A graph holds them as they were when this was made: `changed` names the first that no longer is.
    """

    def __init__(self, programs: Sequence[Any], parameters: dict[Tensor, str]) -> None:
        self.modules: list[nn.Module] = []
        self.generators: list[torch.Generator] = []
        self._entries: dict[tuple[int, Any], Entry] = {}
        self._lacking: set[tuple[int, Any]] = set()
        """The entries that are of a class's attributes, which an instance's own would take the place of."""
        self._columns: list[list[Any]] | None = None
        """The entries' parts, so that an unchanged step looks at all at once."""
        self._contents: list[tuple[str, Any, Any]] = []
        self._lengths: tuple[list[Any], list[int]] = ([], [])
        self._members = Members()
        self._arrays: list[tuple[str, np.ndarray, bytes]] = []
        self._places: tuple[list[str], list[Tensor], list[int]] = ([], [], [])
        """Tensors, and where their memory is."""
        self._parameters: tuple[list[str], list[Tensor], list[bool]] = ([], [], [])
        """Parameters, and whether they are trained."""
        self._named: set[str] = set()
        self._methods: list[tuple[str, str, Any]] = []
        """Of classes, those that no code has named yet."""
        for parameter, name in parameters.items():
            self._note_place(f"parameter {name}", parameter)
        known: set[int] = set()
        for parameter, name in parameters.items():
            for found, hook in self._parameter(name, parameter):
                self._look(found, hook, known, 1)
        for program in programs:
            self._look(getattr(program, "__name__", type(program).__name__), program, known, 0)
        self._look_at_methods(known)
        self._read: list[tuple[Tensor, int, Tensor | None]] = []
        """Tensors whose values Python has read: how often they were changed, and if they are small, the values."""

    def add_prepare(self, function: Any) -> None:
        """Note what a function reaches; of the object that it is a method of, what its code names."""
        inner, known = getattr(function, "__func__", function), set()
        self._look("prepare", inner, known, 0)
        owner = getattr(function, "__self__", None)
        if inspect.isfunction(inner) and hasattr(owner, "__dict__"):
            chosen = {key: vars(owner)[key] for key in inner.__code__.co_names if key in vars(owner)}
            for name, value in self._attributes("prepare's", chosen, vars(owner)):
                self._look(name, value, known, 1)

    # Whether all is as it was.

    def changed(self) -> str:
        """The name of what is no longer as it was; empty if all is."""
        return self._resized() or self._other() or self._moved() or self._rewritten()

    def _resized(self) -> str:
        holders, lengths = self._lengths
        if not all(map(eq, map(len, holders), lengths)):
            for name, holder, was in self._contents:
                if len(holder) != len(was):
                    return f"the length of {name} (was {len(was)}, is {len(holder)})"
        name = self._members.changed()
        return f"a module, parameter or buffer of {name}" if name else ""

    def _other(self) -> str:
        """What is another now: constants are compared by value, all else is to be the same object."""
        if self._columns is None:
            self._columns = [list(part) for part in zip(*self._entries.values(), strict=True)] or [[]] * 5
        names, reads, holders, keys, values = self._columns
        try:
            if all(map(is_, map(call, reads, holders, keys), values)):
                return ""
        except (AttributeError, LookupError, ValueError):  # it is no longer there: the next lines find it
            pass
        for place, (name, read, holder, key, was) in enumerate(zip(*self._columns, strict=True)):
            value = now(read, holder, key)
            if value is was:
                continue
            if not same(value, was):
                return f"{names[place]} (was {was}, is {value})" if plain(was) and plain(value) else said(name, was)
            values[place] = value  # which the next look then finds at once
        return ""

    def _moved(self) -> str:
        names, tensors, places = self._places
        if not all(map(eq, map(_PLACE, tensors), places)):
            return next(n for n, t, place in zip(names, tensors, places, strict=True) if _PLACE(t) != place)
        names, tensors, trained = self._parameters
        if not all(map(is_, map(_TRAINED, tensors), trained)):
            return next(
                f"parameter {n}" for n, p, was in zip(names, tensors, trained, strict=True) if _TRAINED(p) != was
            )
        return ""

    def _rewritten(self) -> str:
        for name, array, values in self._arrays:
            if array.tobytes() != values:
                return f"the array {name}"
        for tensor, version, values in self._read:
            if tensor._version != version or (values is not None and not torch.equal(tensor, values)):
                return f"a tensor of shape {tuple(tensor.shape)} whose values are read in Python"
        return ""

    def restore(self) -> None:
        """Put back what is no longer as it was."""
        for _, holder, was in self._contents:
            if len(holder) != len(was):
                refill(holder, was)
        self._members.restore()
        for place, (_, read, holder, key, was) in self._entries.items():
            if now(read, holder, key) is not was:
                if place in self._lacking:
                    del holder[key]
                elif isinstance(holder, CONTAINERS):
                    holder[key] = was
                else:
                    setattr(holder, key, was)
        for _, array, values in self._arrays:
            if array.tobytes() != values:
                array[...] = np.frombuffer(values, array.dtype).reshape(array.shape)

    def restore_buffers(self) -> None:
        """Put back the buffers of modules alone, where programs have put others in their place."""
        for _, holder, members in self._members.parts:
            for key, was in members.items():
                if isinstance(was, Tensor) and not isinstance(was, nn.Parameter) and key in holder:
                    holder[key] = was

    def settle(self, read: Sequence[Tensor]) -> str:
        """After a step: forget what it put others in the place of; the name of a tensor that it had read before."""
        storages = {memory(tensor) for tensor in read} - {0}
        for place, (name, how, holder, key, was) in list(self._entries.items()):
            if plain(was) or now(how, holder, key) is was:
                continue
            if isinstance(was, Tensor) and memory(was) in storages:
                return f"the tensor {name}"
            del self._entries[place]
        self._columns = None
        return ""

    # What is noted.

    def add(self, name: str, holder: Any, keys: Sequence[str]) -> None:
        """Note some attributes more, as they are, whatever they are."""
        for key in keys:
            self._note(f"{key} of the {name}", vars(holder), key, vars(holder)[key])

    def _note(self, name: str, holder: Any, key: Any, value: Any) -> None:
        if isinstance(holder, dict):
            read: Any = dict.get
        else:
            read = getitem if isinstance(holder, list | deque) else getattr
        if read is getattr and isinstance(holder, type):
            read = of_class
        self._columns = None
        self._entries.setdefault((id(holder), key), (name, read, holder, key, value))
        if isinstance(value, Tensor):
            self._note_place(said(name, value), value)

    def _note_place(self, name: str, tensor: Tensor) -> None:
        if tensor.layout is torch.strided and tensor.device.type != "meta":
            for noted, value in zip(self._places, (name, tensor, _PLACE(tensor)), strict=True):
                noted.append(value)

    def _note_length(self, name: str, holder: Any) -> None:
        self._contents.append((name, holder, holder.copy()))
        self._lengths[0].append(holder)
        self._lengths[1].append(len(holder))

    def add_places(self, tensors: Iterable[Tensor]) -> None:
        """Note where the memory of these is, which a graph reads."""
        for tensor in tensors:
            self._note_place(f"a tensor of shape {tuple(tensor.shape)}", tensor)

    def add_read(self, tensors: Iterable[Tensor]) -> None:
        """Note that a step has read the values of these."""
        for tensor in tensors:
            exact = not tensor.is_floating_point() and tensor.numel() <= SMALL and tensor.device.type == "cpu"
            self._read.append((tensor, tensor._version, tensor.clone() if exact else None))

    def add_optimizer(self, optimizer: torch.optim.Optimizer, clips: Any, replayable: bool) -> None:
        """Note what its groups say, but for the learning rates, which a graph reads; its state if that is replayed."""
        self.add("optimizer", optimizer, ("param_groups", "state"))
        deque(self._hooks("the optimizer", hooks.of_optimizer(optimizer)), 0)
        for parameter, state in optimizer.state.items() if replayable else ():
            self._note("the optimizer's state", optimizer.state, parameter, state)
            for key, value in state.items():
                if isinstance(value, Tensor):
                    self._note(f"'{key}' of the optimizer's state", state, key, value)
        self._note_length("the optimizer's groups", optimizer.param_groups)
        for group in optimizer.param_groups:
            self._note_length("the optimizer's parameters", group["params"])
            for key, value in group.items():
                if key not in ("params", "lr", "initial_lr"):
                    self._note(f"'{key}' of the optimizer", group, key, value)
        self._look("clipping", clips, set(), 0)

    def buffers(self) -> list[Tensor]:
        """The buffers of all modules, which a step may change."""
        return [buffer for module in self.modules for buffer in module._buffers.values() if buffer is not None]

    def tensors(self) -> list[Tensor]:
        """All that programs hold."""
        return self._places[1]

    # How programs reach it.

    def _look(self, name: str, value: Any, known: set[int], depth: int) -> None:
        if id(value) in known or depth > DEPTH or isinstance(value, (*NOTED, types.ModuleType, Enum)):
            return
        known.add(id(value))
        for child, found in self._children(name, value):
            self._look(child, found, known, depth + 1)

    def _children(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        if isinstance(value, functools.partial):
            return [(name, value.func), *value.keywords.items(), *((name, a) for a in value.args)]
        if inspect.ismethod(value):
            return [(name, value.__self__), (name, value.__func__)]
        if inspect.isfunction(value):
            return self._function(name, value)
        if isinstance(value, type):
            return () if library(value) else self._class(value)
        if isinstance(value, property):
            return [(name, function) for function in (value.fget,) if function]
        if isinstance(value, classmethod | staticmethod):
            return [(name, value.__func__)]
        if isinstance(value, nn.Module):
            return self._module(name, value)
        if isinstance(value, (*CONTAINERS, tuple)):
            return self._items(name, value)
        if isinstance(value, np.ndarray):
            if value.size < MANY and not value.dtype.hasobject:
                self._arrays.append((name, value, value.tobytes()))
            return ()
        if isinstance(value, torch.Generator):
            self.generators.append(value)
            return ()
        return self._object(name, value)

    def _items(self, name: str, values: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(values, tuple):
            self._note_length(name, values)
        if isinstance(values, tuple | set):
            yield from ((name, value) for value in values)
            return
        pairs = list(values.items() if isinstance(values, dict) else enumerate(values))
        yield from ((name, value) for _, value in pairs)
        if len(pairs) < MANY:
            for key, value in pairs:
                self._note(f"{name}[{key!r}]", values, key, value)

    def _function(self, name: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        held = {}
        for key, cell in cells.items():
            try:
                held[key] = cell.cell_contents
            except ValueError:  # not yet filled
                continue
            self._note(f"'{key}' of {name}", cell, "cell_contents", held[key])
            yield key, held[key]
        yield from self._attributes(name, vars(function), vars(function))
        if library(function):
            return
        chains, attributes = named(function.__code__)
        self._named |= attributes
        for chain in chains:
            if chain[0] not in held:
                yield from self._follow("global '", chain, function.__globals__)
            elif isinstance(held[chain[0]], types.ModuleType):
                yield from self._follow("'", chain, held)
        if function.__kwdefaults__:
            yield name, function.__kwdefaults__
        yield name, function.__defaults__

    def _follow(self, name: str, chain: Sequence[str], holder: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """What a chain of names leads to, through modules that are the program's."""
        key, *rest = chain
        value = holder.get(key)
        if isinstance(value, types.ModuleType):
            if rest and not library(value):
                yield from self._follow(f"{name}{key}.", rest, vars(value))
        elif key in holder and not (isinstance(value, types.FunctionType | type) and library(value)):
            self._note(f"{name}{key}'", holder, key, value)
            yield key, value

    def _class(self, cls: type) -> Iterator[tuple[str, Any]]:
        """A class of the program's: its attributes, and those of its methods that are called, as far as is known."""
        for key, value in vars(cls).items():
            name = f"{cls.__name__}.{key}"
            if isinstance(value, types.FunctionType | property | classmethod | staticmethod):
                self._note(name, cls, key, value)
                self._methods.append((key, name, value))
            elif not key.startswith("__"):
                self._note(name, cls, key, value)
                yield name, value
        inherited = [base for base in cls.__mro__[1:] if library(base)]
        self._named |= {key for key in vars(cls) if any(hasattr(base, key) for base in inherited)}
        yield from ((base.__name__, base) for base in (*cls.__bases__, type(cls)))

    def _look_at_methods(self, known: set[int]) -> None:
        while found := [method for method in self._methods if method[0] in self._named or method[0][:2] == "__"]:
            self._methods = [method for method in self._methods if method not in found]
            for _, name, value in found:
                self._look(name, value, known, 1)

    def _module(self, name: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
        for path, child in module.named_modules():
            if any(child is m for m in self.modules):
                continue
            self.modules.append(child)
            full = f"{name}.{path}" if path else name
            for members in (child._modules, child._parameters, child._buffers):
                self._members.add(full, members)
            for key, parameter in child._parameters.items():
                if parameter is not None:
                    yield from self._parameter(f"{full}.{key}", parameter)
            yield from self._hooks(full, hooks.of_module(child))
            self._note_lacking(full, child, ["forward"])
            yield from self._attributes(full, vars(child), vars(child))
            yield type(child).__name__, type(child)

    def _parameter(self, name: str, parameter: Tensor) -> Iterator[tuple[str, Any]]:
        for noted, value in zip(self._parameters, (name, parameter, parameter.requires_grad), strict=True):
            noted.append(value)
        for key in hooks.TENSOR:
            self._note(f"the hooks of parameter {name}", parameter, key, getattr(parameter, key))
        yield from self._hooks(f"parameter {name}", hooks.of_tensor(parameter))

    def _hooks(self, name: str, held: Iterable[hooks.Hooks]) -> Iterator[tuple[str, Any]]:
        for functions in held:
            self._note_length(f"the hooks of {name}", functions)
            for key, hook in functions.items():
                self._note(f"a hook of {name}", functions, key, hook)
                yield f"a hook of {name}", hook

    def _object(self, name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if hasattr(value, "__dict__"):
            private = not any(map(library, type(value).__mro__[:-1]))
            self._note_lacking(name, value)
            yield from self._attributes(name, vars(value), vars(value), private)
        for cls in type(value).__mro__:
            for key in () if library(cls) else vars(cls).get("__slots__", ()):
                if hasattr(value, key) and key != "__dict__":
                    self._note(f"{name}.{key}", value, key, getattr(value, key))
                    yield f"{name}.{key}", getattr(value, key)
        yield type(value).__name__, type(value)

    def _note_lacking(self, name: str, value: Any, more: Iterable[str] = ()) -> None:
        held, classes = vars(value), [vars(cls) for cls in type(value).__mro__ if not library(cls)]
        for key in {*more}.union(*classes) - held.keys():
            if not key.startswith("__"):
                self._lacking.add((id(held), key))
                self._note(f"{name}.{key}", held, key, None)

    def _attributes(
        self, name: str, values: dict[str, Any], holder: dict[str, Any], private: bool = False
    ) -> Iterator[tuple[str, Any]]:
        """What is private to a library's object says nothing of the program."""
        for key, value in values.items():
            if private or isinstance(value, (*NOTED, nn.Module)) or not key.startswith("_") or key == "__wrapped__":
                self._note(f"{name}.{key}", holder, key, value)
                yield f"{name}.{key}", value
