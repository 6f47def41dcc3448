"""What of Python a step has seen: by this a graph is known to be still the right one."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from operator import eq, is_
from typing import Any

import torch
from torch import Tensor, nn

from .calls import CONSTANTS
from .values import SMALL

LIBRARIES = ("torch", "pyro", __name__.partition(".")[0])
FLAGS = ("training", "p", "eps", "momentum", "forward")
"""What may change of a module of torch's own."""
NOTED = (*CONSTANTS, Tensor)
DEPTH = 4
MANY = 1000
"""So many numbers in a list are data, and are not looked at again."""


class Held:
    """Some of what a dict, a list or a closure's cell holds, as it was."""

    def __init__(self, holder: Any, entries: Iterable[tuple[str, Any, Any]]) -> None:
        self.names, self.keys, self.values = map(list, zip(*entries, strict=True))
        self.holder = holder
        read = holder.get if isinstance(holder, dict) else getattr(holder, "__getitem__", None)
        self._read = read or (lambda key: getattr(holder, key, None))

    def changed(self) -> str:
        """What is another now: a tensor where it is not the same object, anything else where it is not equal."""
        if all(map(is_, map(self._read, self.keys), self.values)):
            return ""
        for name, value, was in zip(self.names, map(self._read, self.keys), self.values, strict=True):
            if isinstance(was, Tensor) and value is not was:
                return f"the tensor {name}"
            if value is not was and (isinstance(value, Tensor) or value != was):
                return f"{name} (was {was}, is {value})"
        return ""

    def restore(self) -> None:
        """Put back what is another now."""
        if not self.changed():
            return
        for key, value in zip(self.keys, self.values, strict=True):
            if isinstance(self.holder, dict | list):
                self.holder[key] = value
            else:
                setattr(self.holder, key, value)

    def written(self) -> list[bool]:
        """Whether each is a tensor in whose place there is now another."""
        entries = zip(self.keys, self.values, strict=True)
        return [isinstance(was, Tensor) and self._read(key) is not was for key, was in entries]


class Seen:
    """The numbers, flags and tensors that programs can reach in Python, and their parameters, as they were.

    A graph holds them as they were when this was made: `changed` names the first that no longer is.
    """

    def __init__(self, programs: Sequence[Any], parameters: dict[Tensor, str]) -> None:
        self.modules: list[nn.Module] = []
        self._values: dict[int, tuple[Any, list[tuple[str, Any, Any]]]] = {}
        """By holder: names, keys and values."""
        self._held: list[Held] | None = None
        self._lengths: tuple[list[str], list[Any], list[int]] = ([], [], [])
        self._members: list[tuple[str, dict[str, Any], list[Any]]] = []
        known: set[int] = set()
        for program in programs:
            self._look(getattr(program, "__name__", type(program).__name__), program, known, 0)
        self._read: list[tuple[Tensor, int, Tensor | None]] = []
        """Tensors whose values Python has read: how often they were changed, and if they are small, the values."""
        self._parameters = [(name, p, p.data_ptr(), p.requires_grad) for p, name in parameters.items()]

    def add_prepare(self, function: Any) -> None:
        """Note what a function reaches; of the object that it is a method of, what its code names."""
        inner, known = getattr(function, "__func__", function), set()
        self._look("prepare", inner, known, 0)
        owner = getattr(function, "__self__", None)
        if inspect.isfunction(inner) and hasattr(owner, "__dict__"):
            named = {key: vars(owner)[key] for key in inner.__code__.co_names if key in vars(owner)}
            for name, value in self._attributes("prepare's", named, vars(owner)):
                self._look(name, value, known, 1)

    def changed(self) -> str:
        """The name of what is no longer as it was; empty if all is."""
        _, holders, lengths = self._lengths
        if not all(map(eq, map(len, holders), lengths)):
            name, holder, length = next(
                found for found in zip(*self._lengths, strict=True) if len(found[1]) != found[2]
            )
            return f"the length of {name} (was {length}, is {len(holder)})"
        for name, holder, members in self._members:
            if len(holder) != len(members) or not all(map(is_, holder.values(), members)):
                return f"the modules or parameters of {name}"
        for held in self._holdings():
            if found := held.changed():
                return found
        for name, parameter, where, trained in self._parameters:
            if parameter.data_ptr() != where or parameter.requires_grad != trained:
                return f"parameter {name}"
        for tensor, version, values in self._read:
            if tensor._version != version or (values is not None and not torch.equal(tensor, values)):
                return f"a tensor of shape {tuple(tensor.shape)} whose values are read in Python"
        return ""

    def _holdings(self) -> list[Held]:
        if self._held is None:
            self._held = [Held(holder, entries) for holder, entries in self._values.values()]
        return self._held

    def restore(self) -> None:
        """Put back the values that are no longer as they were."""
        for held in self._holdings():
            held.restore()

    def settle(self, read: Sequence[Tensor]) -> str:
        """After a step: forget tensors that it put others in the place of; the name of one that it had read before."""
        storages = {tensor.untyped_storage()._cdata for tensor in read}
        for holder, entries in self._values.values():
            written = Held(holder, entries).written()
            for name, _, was in compress(entries, written):
                if was.untyped_storage()._cdata in storages:
                    return f"the tensor {name}"
            entries[:] = [entry for entry, new in zip(entries, written, strict=True) if not new]
        self._values = {key: found for key, found in self._values.items() if found[1]}
        self._held = None
        return ""

    def add(self, name: str, holder: Any, keys: Sequence[str]) -> None:
        """Note some attributes more, as they are, whatever they are."""
        for key in keys:
            self._note(f"{key} of the {name}", vars(holder), key, vars(holder)[key])

    def _note(self, name: str, holder: Any, key: Any, value: Any) -> None:
        self._held = None
        self._values.setdefault(id(holder), (holder, []))[1].append((name, key, value))

    def _note_length(self, name: str, holder: Any) -> None:
        for noted, value in zip(self._lengths, (name, holder, len(holder)), strict=True):
            noted.append(value)

    def add_read(self, tensors: Iterable[Tensor]) -> None:
        """Note that a step has read the values of these."""
        for tensor in tensors:
            exact = not tensor.is_floating_point() and tensor.numel() <= SMALL and tensor.device.type == "cpu"
            self._read.append((tensor, tensor._version, tensor.clone() if exact else None))

    def add_optimizer(self, optimizer: torch.optim.Optimizer, optim: Any) -> None:
        """Note what an optimizer's groups say, but for the learning rates, which a graph reads; and clipping."""
        self._note_length("the optimizer's groups", optimizer.param_groups)
        for group in optimizer.param_groups:
            self._note_length("the optimizer's parameters", group["params"])
            for key, value in group.items():
                if key not in ("params", "lr", "initial_lr"):
                    self._note(f"'{key}' of the optimizer", group, key, value)
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
            children = self._attributes(name, vars(value), vars(value))
        else:
            children = []
        for child, found in children:
            self._look(child, found, known, depth + 1)

    def _items(self, name: str, values: Any) -> Iterator[tuple[str, Any]]:
        self._note_length(name, values)
        if not isinstance(values, list | dict):
            yield from ((name, value) for value in values)
            return
        noted = []
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            if isinstance(value, NOTED):
                noted.append((key, value))
            else:
                yield name, value
        if len(noted) < MANY:
            for key, value in noted:
                self._note(f"{name}[{key!r}]", values, key, value)

    def _function(self, name: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not yet filled
                continue
            if isinstance(value, NOTED):
                self._note(f"'{key}' of {name}", cell, "cell_contents", value)
            else:
                yield key, value
        if _library(function):
            return
        for key in function.__code__.co_names:
            if key in function.__globals__:
                value = function.__globals__[key]
                if isinstance(value, NOTED):
                    self._note(f"global '{key}'", function.__globals__, key, value)
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
                for key in FLAGS:
                    self._note(f"{full}.{key}", vars(child), key, vars(child).get(key))
            else:
                yield from self._attributes(full, vars(child), vars(child))

    def _attributes(self, name: str, values: dict[str, Any], holder: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, NOTED):
                self._note(f"{name}.{key}", holder, key, value)
            elif not key.startswith("_") or isinstance(value, nn.Module):  # what is private says nothing of the program
                yield f"{name}.{key}", value


def _library(function: types.FunctionType) -> bool:
    """Whether what a function has global is none of a program's: such as registers that shrink as others are freed."""
    return function.__module__.partition(".")[0] in LIBRARIES
