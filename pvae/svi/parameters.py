"""The tensors that a step changes: which parameters programs use, and how to put all back as it was."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.params import module_from_param_with_module_name
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn import Module, Parameter

from ..replay.generators import Drawn
from ..replay.members import Members

PLACE = "module "
APART = (
    "'{}' of Pyro's store is another parameter than the module's own, which is used but not trained: pass"
    " update_module_params=True to pyro.module once, or call pyro.clear_param_store() before"
)


class Parameters(Messenger):
    """Collects the parameters that programs use: each the first time it is seen, a known module's at no cost."""

    def __init__(self, noting: bool) -> None:
        super().__init__()
        self.noting = noting
        self._known: set[Any] = set()
        self._modules: dict[Module, Layers] = {}
        self._used: dict[Any, None] = {}
        """Those that the last step's programs named, and modules."""
        self._ever: set[Any] = set()
        """Those that any step's have."""
        self._seen: set[str] = set()
        """Names of Pyro's store that they have asked for: what they then put there themselves is seen the next time."""
        self.had: set[Tensor] = set()
        """Those that have had a gradient; belongs to the optimizer, which may be another's too."""
        self.stored: dict[str, Tensor] = {}
        """Those of Pyro's store, by name."""
        self._left: dict[str, Tensor] = {}
        """As the last eager step left it."""
        self.others = False
        """Whether it has had another than the one that a module gave."""
        self.keys: dict[Tensor, str] = {}
        """What they are called in a state: a module's name may be another in another process, when it came is not."""
        self._places: dict[Module, str] = {}
        self._before = 0
        """How many modules were known when the programs began to run."""
        self._adopts = False
        self._adopted: list[tuple[str, Parameter, Tensor]] = []
        """What modules have taken over: its name, the module's own, and the values that Pyro's store had."""
        self._apart: dict[Parameter, str] = {}
        """A module's own, where Pyro's store has another under its name."""
        self._told = False
        self.new: dict[Tensor, str] = {}
        self.replaced: list[tuple[Tensor, Tensor]] = []
        """Pairs of a parameter of Pyro's store that is no longer there, and the one that has its name now."""

    def __enter__(self) -> Parameters:
        self._used.clear()
        self._seen.clear()
        self._apart.clear()
        self._before = len(self._places)
        return super().__enter__()

    def taken(self) -> dict[Tensor, str]:
        """The new ones, which are then no longer new."""
        new, self.new = self.new, {}
        return new

    def trained(self, every: Collection[Tensor], hidden: bool) -> list[Tensor]:
        """Those of all that have a gradient; only where the step's programs named them, if others are `hidden`.

        As Pyro does, a parameter that had a gradient before, and is used with none now, has zero.
        """
        self._ever.update(self._used)
        hidden = hidden and len(self._used) < len(self._ever)
        lacking = [p for p in every if p.grad is None and p.requires_grad and p in self.had]
        having = [p for p in every if p.grad is not None]
        if lacking or hidden:
            named = {p for used in self._used for p in (used.parameters() if isinstance(used, Module) else (used,))}
            for parameter in named.intersection(lacking):
                parameter.grad = torch.zeros_like(parameter)
            having = [p for p in every if p.grad is not None and (p in named or not hidden)]
        apart = [name for own, name in self._apart.items() if own.grad is not None and own not in set(having)]
        if having and apart and not self._told:
            self._told = True
            warnings.warn(APART.format(apart[0]), stacklevel=2)
        self.had.update(having)
        return having

    def look_again(self) -> None:
        """Look for parameters in modules that are known, too: they may have got some."""
        self._modules.clear()

    def _pyro_module(self, msg: dict[str, Any]) -> None:
        (module,) = msg["args"]
        if module not in self._modules or self._modules[module].changed():
            self._modules[module] = Layers(module)
            place = self._places.setdefault(module, f"{PLACE}{self._before}.{len(self._places)}")
            for name, parameter in module.named_parameters():
                self.keys.setdefault(parameter, f"{place}: {name}")
                if parameter.requires_grad:
                    self._add(parameter, f"{msg['name']}.{name}")
        if self.noting:
            self._used[module] = None
        msg["value"], msg["done"] = self.noting, True

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        name, stored = msg["name"], pyro.get_param_store()._params.get(msg["name"])
        own = next((given for given in msg["args"] if isinstance(given, Parameter)), None)
        if own is None or stored is None or stored is own or module_from_param_with_module_name(name) == name:
            return
        if self._adopts and own.shape == stored.shape:
            self._adopted.append((name, own, stored.detach().clone()))
            self._adopt(*self._adopted[-1])
        else:
            self._apart[own] = name

    @contextmanager
    def adopting(self) -> Iterator[None]:
        """Modules take over what Pyro's store has of them: after a resume that is what was saved.

        Also where the run within is undone.
        """
        self._adopts = True
        try:
            yield
            for adopted in self._adopted:
                self._adopt(*adopted)
        finally:
            self._adopts, self._adopted = False, []

    def _adopt(self, name: str, own: Parameter, values: Tensor) -> None:
        own.data.copy_(values)
        store = pyro.get_param_store()
        store._param_to_name.pop(store._params[name], None)
        store._params[name], store._param_to_name[own] = own, name

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        name, parameter = msg["name"], msg["value"].unconstrained()
        self._used[parameter] = None
        self.keys.setdefault(parameter, name)
        if pyro.get_param_store()._params.get(name) is not parameter:
            self._add(parameter, name)  # one that is the module's own
            return
        before = self.stored.get(name)
        if name in self._seen and before not in self.new:
            return
        self._seen.add(name)
        self.others |= any(isinstance(given, Parameter) and given is not parameter for given in msg["args"])
        self.stored[name] = parameter
        if before is None:
            self._add(parameter, name)
        elif before is not parameter:  # as after `pyro.clear_param_store`
            self._known = self._known - {before} | {parameter}
            self._ever.discard(before)
            self.keys.pop(before, None)
            if before in self.new:
                self.new = {parameter if p is before else p: name for p, name in self.new.items()}
            else:
                self.replaced.append((before, parameter))

    def leave(self) -> None:
        """Note what Pyro's store has: a step may put parameters there itself, as a running mean."""
        self._left = stored()
        self.stored = {name: parameter for name, parameter in self.stored.items() if name in self._left}

    def away(self) -> bool:
        """Whether others than steps have put parameters there."""
        now = pyro.get_param_store()._params
        return any(now.get(name) is not self._left.get(name, known) for name, known in self.stored.items())

    def changed(self) -> str:
        """The name of a parameter that Pyro's store holds no longer as it was seen; empty if none."""
        now = pyro.get_param_store()._params
        other = (name for name, parameter in self.stored.items() if now.get(name) is not parameter)
        return next((f"parameter '{name}' of Pyro's store" for name in other), "")

    def _add(self, parameter: Tensor, name: str) -> None:
        if parameter not in self._known:
            self._known.add(parameter)
            self.new[parameter] = name


class Layers:
    """Which layers and parameters a module has, and which of these are frozen."""

    def __init__(self, module: Module) -> None:
        self._members = Members()
        for name, child in module.named_modules():
            for members in (child._modules, child._parameters):
                self._members.add(f"layer {name}", members)
        self._frozen = [p for p in module.parameters() if not p.requires_grad]

    def changed(self) -> bool:
        """Whether it has others now, or one that was frozen is trained."""
        return bool(self._members.changed()) or any(p.requires_grad for p in self._frozen)


class Snapshot:
    """Tensors as they are now, with the generators of random numbers; `restore` puts all back."""

    def __init__(self, tensors: Sequence[Tensor], generators: Sequence[torch.Generator]) -> None:
        self.tensors = list(tensors)
        self.copies = _copies(self.tensors)
        self.stored = stored()
        self.drawn = Drawn(generators)

    def restore(self) -> None:
        """Put values and generators back."""
        self.restore_values()
        self.drawn.restore()

    def restore_values(self) -> None:
        """Put values back, and let random numbers go on: a step that is tried once more is to draw others."""
        _copy([tensor.data for tensor in self.tensors], self.copies)  # by their data: it is not to count as a change
        for _ in put_back(self.stored):
            pass

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put values back where something is raised within, as by Pyro's validation, or an interrupt."""
        try:
            yield
        except BaseException:
            self.restore_values()
            raise


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    if not any(tensor.is_cuda for tensor in tensors):  # there are no launches to save
        return [tensor.detach().clone() for tensor in tensors]
    copies = [torch.empty_like(tensor) for tensor in tensors]
    _copy(copies, tensors)
    return copies


@torch.no_grad()
def _copy(to: list[Tensor], tensors: list[Tensor]) -> None:
    """On a GPU in one launch for all of a dtype; on a CPU what differs: some memory may be there to be read alone."""
    for kind in {(tensor.device, tensor.dtype) for tensor in tensors}:
        chosen = [(a, b) for a, b in zip(to, tensors, strict=True) if (b.device, b.dtype) == kind]
        if kind[0].type != "cpu":
            torch._foreach_copy_(*map(list, zip(*chosen, strict=True)))
            continue
        for a, b in chosen:
            if not _same(a, b):
                a.copy_(b)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.layout is not torch.strided or a.shape != b.shape:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def stored() -> dict[str, Tensor]:
    """The parameters of Pyro's store, by name."""
    return dict(pyro.get_param_store()._params)


def drop_new(before: dict[str, Tensor]) -> bool:
    """Take out of Pyro's store the parameters that were not there before; whether there were any."""
    store = pyro.get_param_store()
    new = [name for name in store._params if name not in before]
    for name in new:
        store._param_to_name.pop(store._params.pop(name), None)  # a parameter may have two names
        store._constraints.pop(name, None)
    return bool(new)


def put_back(before: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Put parameters back into Pyro's store where another is in their place; yields name, parameter and the other.

    What is new there stays.
    """
    store = pyro.get_param_store()
    for name, parameter in before.items():
        other = store._params.get(name)
        if other is not parameter:
            store._param_to_name.pop(other, None)
            store._params[name], store._param_to_name[parameter] = parameter, name
            yield name, parameter, other
