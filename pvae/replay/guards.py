"""Guards: what programs reach in Python, by which a graph is known to be still the right one."""

from __future__ import annotations

import functools
import inspect
import random
import types
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import chain as joined
from typing import Any

import numpy as np
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from . import hooks
from .generators import HOSTS
from .members import CONSTANTS, CONTAINERS, said
from .names import library, named
from .notes import Notes

TOLD = (
    *(*CONSTANTS, Tensor, nn.Module, tuple, frozenset, np.ndarray, torch.Generator, *HOSTS),
    *(types.FunctionType, types.MethodType, functools.partial, types.SimpleNamespace),
)
"""What is looked at in private attributes as well."""
ABSTRACT = ("abc", "typing", "builtins")
"""Modules whose classes give others no attributes."""
CALLED = ("__", "_pyro_")
"""How names of methods begin that no code has to name."""
DEPTH = 6
MANY = 1000
"""So many numbers or tensors in a list, or numbers in an array, are data, and are not looked at again."""


class Guards(Notes):
    """The numbers, flags, functions and tensors that programs can reach in Python, and their parameters, as they were.

    A graph holds them as they were when this was made: `changed` names the first that no longer is.
    """

    def __init__(self, programs: Sequence[Any], parameters: dict[Tensor, str]) -> None:
        super().__init__()
        self._named: set[str] = set()
        self._asked: set[str] = set()
        """Those that code asks for which runs in a step: no `__init__`."""
        self._methods: list[tuple[str, str, Any]] = []
        """Of classes, those that no code has named yet."""
        self._loops: list[tuple[str, dict[str, Any]]] = []
        """Attributes of what holds an SVI, which counts its steps, say: the program's are those that its code names."""
        for parameter, name in parameters.items():
            self._note_place(f"parameter {name}", parameter)
        known: set[int] = set()
        for parameter, name in parameters.items():
            for found, hook in self._parameter(name, parameter):
                self._look(found, hook, known, 1)
        for program in programs:
            self._look(getattr(program, "__name__", type(program).__name__), program, known, 0)
        self._look_at_methods(known)
        self._held = [entry for entry in self._entries.values() if isinstance(entry[4], Tensor)]

    def add_prepare(self, function: Any) -> None:
        """Note what a function reaches; of the object that it is a method of, what its code names."""
        inner, known = getattr(function, "__func__", function), set()
        self._look("prepare", inner, known, 0)
        owner = getattr(function, "__self__", None)
        if inspect.isfunction(inner) and hasattr(owner, "__dict__"):
            chosen = {key: vars(owner)[key] for key in inner.__code__.co_names if key in vars(owner)}
            for name, value in self._attributes("prepare's", chosen, vars(owner)):
                self._look(name, value, known, 1)

    def add_optimizer(self, optimizer: torch.optim.Optimizer, clips: Any, replayable: bool) -> None:
        """Note which parameters it has; if it is replayed its state and arguments, but not its rates."""
        self.add("optimizer", optimizer, ("param_groups", "state"))
        deque(self._hooks("the optimizer", hooks.of_optimizer(optimizer)), 0)
        for parameter, state in optimizer.state.items() if replayable else ():
            self._note("the optimizer's state", optimizer.state, parameter, state)
            for key, value in state.items():
                if isinstance(value, Tensor):
                    self._note(f"'{key}' of the optimizer's state", state, key, value)
        if "step" not in vars(optimizer):
            self._lacking.add((id(vars(optimizer)), "step"))
        self._note("the optimizer's step", vars(optimizer), "step", vars(optimizer).get("step"))
        self._note_length("the optimizer's groups", optimizer.param_groups)
        for place, group in enumerate(optimizer.param_groups):
            self._note("the optimizer's groups", optimizer.param_groups, place, group)
            self._note("the optimizer's parameters", group, "params", group["params"])
            self._note_length("the optimizer's parameters", group["params"])
            for number, parameter in enumerate(group["params"]):
                self._note("the optimizer's parameters", group["params"], number, parameter)
            for key, value in group.items() if replayable else ():
                if key not in ("params", "lr", "initial_lr"):
                    self._note(f"'{key}' of the optimizer", group, key, value)
        self._look("clipping", clips, set(), 0)

    def add_parameter(self, name: str, parameter: Tensor) -> None:
        """Note whether it is trained, and its hooks."""
        deque(self._parameter(name, parameter), 0)

    # How programs reach it.

    def _look(self, name: str, value: Any, known: set[int], depth: int) -> None:
        if id(value) in known or depth > DEPTH or isinstance(value, (*CONSTANTS, types.ModuleType, Enum)):
            return
        known.add(id(value))
        for child, found in self._children(name, value):
            self._look(child, found, known, depth + 1)

    def _children(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        if isinstance(value, Tensor):
            self._note_place(said(name, value), value)  # also where no entry is of it, as in a tuple or a partial
            if value.requires_grad and value.is_leaf:
                return self._parameter(name, value)
            self._note_trained(name, value)
            return ()
        if isinstance(value, functools.partial):
            return [(name, value.func), (name, value.keywords), *((name, a) for a in value.args)]
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
        if isinstance(value, SVI):
            return ()
        if isinstance(value, nn.Module):
            return self._module(name, value)
        if isinstance(value, (*CONTAINERS, tuple)):
            own = () if library(type(value)) else self._object(name, value)
            return joined(self._items(name, value), own)
        if isinstance(value, np.ndarray):
            if value.size < MANY and not value.dtype.hasobject:
                self._arrays.append((name, value, value.tobytes()))
            return ()
        if isinstance(value, torch.Generator):
            self.generators.append(value)
            return ()
        if isinstance(value, HOSTS):
            if not isinstance(value, random.SystemRandom):
                self.hosts.append(value)
            return ()
        return self._object(name, value)

    def _items(self, name: str, values: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(values, tuple):
            self._note_length(name, values)
        pairs = list(values.items() if isinstance(values, dict) else enumerate(values))
        few = len(pairs) < MANY
        yield from ((name, value) for _, value in pairs if few or not isinstance(value, Tensor))
        if few and not isinstance(values, tuple | set):
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
        for key in ("__code__", "__defaults__"):  # which may be set, as where a module is loaded anew
            self._note(f"{key} of {name}", function, key, getattr(function, key))
        chains, attributes = named(function.__code__)
        self._named |= attributes
        self._asked |= attributes if function.__name__ != "__init__" else set()
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
        done: set[tuple[int, str]] = set()
        while True:
            methods = [method for method in self._methods if method[0] in self._named or method[0].startswith(CALLED)]
            self._methods = [method for method in self._methods if method not in methods]
            found = [(name, value) for _, name, value in methods]
            for name, held in self._loops:
                for key in self._asked & held.keys() - {key for place, key in done if place == id(held)}:
                    done.add((id(held), key))
                    self._note(f"{name}.{key}", held, key, held[key])
                    found.append((f"{name}.{key}", held[key]))
            if not found:
                return
            for name, value in found:
                self._look(name, value, known, 1)

    def _module(self, name: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
        for path, child in module.named_modules():
            if any(child is m for m in self.modules):
                continue
            self.modules.append(child)
            full = f"{name}.{path}" if path else name
            sampled = vars(child).get("_pyro_samples", {})
            for members in (child._modules, child._parameters, child._buffers, sampled):
                self._members.add(full, members)
            yield from ((f"{full}.{key}", prior) for key, prior in sampled.items())
            for key, parameter in child._parameters.items():
                if parameter is not None:
                    yield from self._parameter(f"{full}.{key}", parameter)
            yield from self._hooks(full, hooks.of_module(child))
            self._note_lacking(full, child, ["forward"])
            yield from self._attributes(full, vars(child), vars(child))
            yield from self._kind(full, child)

    def _parameter(self, name: str, parameter: Tensor) -> Iterator[tuple[str, Any]]:
        self._note_trained(name, parameter)
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
        if isinstance(getattr(value, "__dict__", None), dict):  # not so of list[int]
            private = not any(library(cls) for cls in type(value).__mro__[:-1] if cls.__module__ not in ABSTRACT)
            self._note_lacking(name, value)
            yield from self._attributes(name, vars(value), vars(value), private)
        for cls in type(value).__mro__:
            slots = () if library(cls) else vars(cls).get("__slots__", ())
            for key in (slots,) if isinstance(slots, str) else slots:
                key = f"_{cls.__name__.lstrip('_')}{key}" if key[:2] == "__" and key[-2:] != "__" else key
                if hasattr(value, key) and key != "__dict__":
                    self._note(f"{name}.{key}", value, key, getattr(value, key))
                    yield f"{name}.{key}", getattr(value, key)
        yield from self._kind(name, value)

    def _kind(self, name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if not library(type(value)):
            self._note(f"the class of {name}", value, "__class__", type(value))
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
        """What is private to a library's object says nothing of the program, nor do caches."""
        if any(isinstance(value, SVI) for value in values.values()):
            self._loops.append((name, holder))
            return
        for key, value in values.items():
            own = type(value).__name__ == "Namespace" or not library(type(value))  # also argparse's
            told = isinstance(value, TOLD) or (own and not isinstance(value, CONTAINERS))
            if private or told or not key.startswith("_") or key == "__wrapped__":
                self._note(f"{name}.{key}", holder, key, value)
                yield f"{name}.{key}", value
