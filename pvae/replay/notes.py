"""Notes of what Python holds, as it is: whether it still is so, and how it is put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter, call, eq, getitem, is_, methodcaller
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .held import alike
from .members import Entry, Members, now, of_class, plain, put, refill, regrouped, said, same
from .simplify import memory
from .values import SMALL

_PLACE, _TRAINED = methodcaller("data_ptr"), attrgetter("requires_grad")


class Notes:
    """Attributes, items, parameters and arrays, as they were when they were noted."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.generators: list[torch.Generator] = []
        self.hosts: list[Any] = []
        """Generators of Python's and NumPy's."""
        self._entries: dict[tuple[int, Any], Entry] = {}
        self._held: list[Entry] = []
        """Those of them that are of tensors which programs hold."""
        self._lacking: set[tuple[int, Any]] = set()
        """The entries that are of a class's attributes, which an instance's own would take the place of."""
        self._columns: list[list[Any]] | None = None
        """The entries' parts, so that an unchanged step looks at all at once."""
        self._contents: list[tuple[str, Any, Any]] = []
        self._lengths: tuple[list[Any], list[int]] = ([], [])
        self._grouped: list[tuple[str, Any, Any]] = []
        """Of the containers, sets, and dicts with None: no entry tells whether a member is gone."""
        self._members = Members()
        self._arrays: list[tuple[str, np.ndarray, bytes]] = []
        self._places: tuple[list[str], list[Tensor], list[int]] = ([], [], [])
        """Tensors, and where their memory is."""
        self._placed: set[int] = set()
        self._parameters: tuple[list[str], list[Tensor], list[bool]] = ([], [], [])
        """Parameters and loose tensors, and whether they are trained."""
        self._read: list[tuple[Tensor, int, Tensor | None]] = []
        """Tensors whose values Python has read: how often they were changed, and if they are small, the values."""

    # Whether all is as it was.

    def changed(self) -> str:
        """The name of what is no longer as it was; empty if all is."""
        return self._resized() or self._other() or self._moved() or self._rewritten()

    def replaced(self) -> list[Entry]:
        """Where others like them have taken the place of tensors that programs hold."""
        return [place for place in self._held if alike(place[4], found := now(*place[1:4])) and found is not place[4]]

    def leave_out(self, places: Iterable[Entry]) -> None:
        """Do not look at these any longer."""
        for _, _, holder, key, _ in places:
            self._entries.pop((id(holder), key), None)
        self._columns = None
        self._held = [entry for entry in self._held if (id(entry[2]), entry[3]) in self._entries]

    def _resized(self) -> str:
        holders, lengths = self._lengths
        if not all(map(eq, map(len, holders), lengths)):
            for name, holder, was in self._contents:
                if len(holder) != len(was):
                    return f"the length of {name} (was {len(was)}, is {len(holder)})"
        for name, holder, was in self._grouped:
            if regrouped(holder, was):
                return f"what is in {name}"
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
            name, was = next(
                (n, was) for n, p, was in zip(names, tensors, trained, strict=True) if p.requires_grad is not was
            )
            return f"whether {name} is trained (was {was}, is {not was})"
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
            if regrouped(holder, was):
                refill(holder, was)
        self._members.restore()
        for place, (_, read, holder, key, was) in self._entries.items():
            if now(read, holder, key) is not was:
                if place in self._lacking:
                    del holder[key]
                else:
                    put(holder, key, was)
        for _, array, values in self._arrays:
            if array.tobytes() != values:
                array[...] = np.frombuffer(values, array.dtype).reshape(array.shape)

    def restore_buffers(self) -> None:
        """Put back the buffers of modules alone, where programs have put others in their place."""
        for _, holder, members in self._members.parts:
            for key, was in members.items():
                if isinstance(was, Tensor) and not isinstance(was, nn.Parameter) and key in holder:
                    holder[key] = was

    def settle(self, read: Sequence[Tensor], kept: Collection[str] = ()) -> str:
        """After a step: forget what it put others in the place of; the name of a tensor that it had read before.

        Not that of these names, which are to stay.
        """
        storages = {memory(tensor) for tensor in read} - {0}
        for place, (name, how, holder, key, was) in list(self._entries.items()):
            if plain(was) or name in kept or now(how, holder, key) is was:
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
        if tensor.layout is torch.strided and tensor.device.type != "meta" and id(tensor) not in self._placed:
            self._placed.add(id(tensor))
            for noted, value in zip(self._places, (name, tensor, _PLACE(tensor)), strict=True):
                noted.append(value)

    def _note_trained(self, name: str, tensor: Tensor) -> None:
        for noted, value in zip(self._parameters, (name, tensor, tensor.requires_grad), strict=True):
            noted.append(value)

    def _note_length(self, name: str, holder: Any) -> None:
        self._contents.append((name, holder, holder.copy()))
        if isinstance(holder, set) or (isinstance(holder, dict) and any(value is None for value in holder.values())):
            self._grouped.append(self._contents[-1])
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

    def buffers(self) -> list[Tensor]:
        """The buffers of all modules, which a step may change."""
        return [buffer for module in self.modules for buffer in module._buffers.values() if buffer is not None]

    def tensors(self) -> list[Tensor]:
        """All that programs hold."""
        return self._places[1]

    def every(self) -> list[Tensor]:
        """These, and the parameters and buffers of modules."""
        return [*self._places[1], *self._parameters[1], *self.buffers()]

    def parameters(self) -> list[Tensor]:
        """Those of modules, and what else has a gradient of its own."""
        return [t for t in self._parameters[1] if isinstance(t, nn.Parameter) or (t.requires_grad and t.is_leaf)]

    def leaves(self) -> list[Tensor]:
        """Those of them, and of the modules' parameters, that a gradient may be added to."""
        found = dict.fromkeys((*self._places[1], *self._parameters[1]))
        return [tensor for tensor in found if tensor.requires_grad and tensor.is_leaf]
