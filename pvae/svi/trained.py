"""What an `SVI` trains: parameters, optimizer, rates and clock; how a trial of a step is undone, and a run resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pyro
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import InputError
from ..replay.guards import Guards
from ..replay.held import Places, Unwritten
from ..replay.known import recording
from ..replay.members import Private
from ..replay.values import WITHIN, Untraceable
from . import optimizers, own, rates, shares
from .arguments import check_optim
from .calls import Call, Numbers
from .parameters import Parameters, Snapshot

if TYPE_CHECKING:
    from .graphs import Graphs


ALONE = "make another SVI, and give it state_dict() of this one"
"""What to do where programs cannot be copied with it."""


class Trained(pyro.infer.SVI):
    """All that a step changes. It is `SVI` that takes steps."""

    _graphs: Graphs

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: optimizers.Optim,
        loss: ELBO | Callable,
        loss_and_grads: Callable | None,
        schedule: Callable[[int], float] | None,
        **kwargs: Any,
    ) -> None:
        stand_in = optim if isinstance(optim, PyroOptim) else PyroOptim(torch.optim.SGD, {"lr": 0.0})
        super().__init__(model, guide, stand_in, loss, loss_and_grads, **kwargs)
        self.optim, self.schedule = optim, schedule
        self.objective = loss if isinstance(loss, ELBO) else None
        if self.objective is None and loss_and_grads is None:
            self.loss_and_grads = partial(_with_gradient, loss)
        # Pyro's own objectives take a gradient only where they see param sites
        self._own = not getattr(loss, "needs_param_sites", True)
        self._begin()

    def _begin(self) -> None:
        """Be as before the first step."""
        self.steps = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self._rates: Tensor | None = None
        self._ran: Callable | None = None
        """The loss of the last eager step."""
        self._names: dict[Tensor, str] = {}
        self._used = Parameters(noting=self._own)
        self._having: list[Tensor] = []
        """The parameters that the last step's programs named and that had a gradient."""
        self._waiting: dict[str, Any] | None = None
        self._clock: Tensor | None = None
        self._found: list[Tensor] = []
        self._held: dict[int, tuple[Tensor, int]] = {}
        """Tensors that the programs hold, and how often each had been changed in place when it was first seen."""
        self._fresh: list[Tensor] = []
        """Those of them that are new: whether steps change these is not known."""
        self._generators: list[torch.Generator] = []
        self._numbers = Numbers()
        self._copied: dict[Tensor, str] = {}
        """Of the one that this is a copy of."""
        self._aside: shares.Aside = WeakIdKeyDictionary()
        """Parameters that Pyro's store no longer has; they may come back."""
        self._places: list[int] = []
        self._marks = own.marks(objective) if (objective := getattr(self, "objective", None)) else {}
        """What the objective holds, as it was before the first step."""

    def check(self) -> None:
        """Look whether all losses so far were finite."""
        raise NotImplementedError

    @contextmanager
    def _undone(self, call: Call) -> Iterator[None]:
        """Within it steps may be tried: all that they change is put back, also what programs hold in Python.

        But for that where parameters have turned up: programs have set themselves up, and buffers alone are put back.
        """
        known, held = len(self._names), Guards((*self._programs, *call.looked_at), {})
        given = [] if call.given is None else [t for t in call.inputs if not (t.is_inference() or _expanded(t))]
        before = self._snapshot(list(dict.fromkeys((*self._changing(), *held.parameters(), *given))))
        gradients = [(p, p.grad) for p in dict.fromkeys((*self._names, *held.leaves(), *before.stored.values()))]
        for parameter, _ in gradients:
            parameter.grad = None
        private, loaded = Private(held.modules), self._waiting or {}
        loose = Unwritten(held.tensors())  # it is not known yet which of these a step changes
        places = Places(held.every())
        try:
            with loose if loaded else nullcontext(), patch.object(parametrize, "_cache_enabled", 0):
                yield
        finally:
            if len(self._names) == known:
                places.restore()
            loose.restore()
            before.restore()
            if len(self._names) == known:
                held.restore()
                private.restore()
            else:
                held.restore_buffers()
            own.restore(self.objective, loaded.get("objective", {}))
            for parameter in self._names:
                parameter.grad = None
            for parameter, gradient in gradients:
                parameter.grad = gradient

    def _snapshot(self, tensors: list[Tensor]) -> Snapshot:
        return Snapshot(tensors, self._generators)

    def _changing(self, buffers: bool = True) -> list[Tensor]:
        """All tensors that a step changes."""
        state = optimizers.state_tensors(self.optimizer) if self.optimizer is not None else []
        found = [*self._buffers(anew=True), *self._fresh] if buffers else []
        return [*self._names, *state, *found, *([] if self._clock is None else [self._clock])]

    def _buffers(self, anew: bool = False) -> list[Tensor]:
        """Those of the programs' modules, as they were when last looked for; their generators as well.

        And what else they hold and have changed in place.
        """
        if anew or self.optimizer is None:
            guards = Guards(self._programs, {})
            self._found, self._generators = guards.buffers(), guards.generators
            loose = [t for t in guards.tensors() if not t.is_inference() and not _expanded(t)]
            held = {id(t): (t, t._version) for t in loose}
            known = {*map(id, self._names), *map(id, self._found), *(self._held or held)}
            self._fresh = [t for key, (t, _) in held.items() if key not in known]
            self._held = {key: self._held.get(key, found) for key, found in held.items()}
            known = {*map(id, self._names), *map(id, self._found)}
            self._found += [t for t, was in self._held.values() if t._version != was and id(t) not in known]
        return self._found

    # Rates and the clock.

    def _set_rates(self, ahead: int = 0) -> None:
        """The learning rates of the step that is `ahead` of the next."""
        self._rates = rates.at_step(self.optimizer, self._rates, self.schedule, self.steps + ahead)

    def _align(self) -> None:
        """After parameters have got other memory, lay the optimizer's state as they now lie."""
        places = [parameter.data_ptr() for parameter in self._names]
        if places != self._places:
            self._places = places
            optimizers.aligned(self.optimizer, self._names)

    def _scheduled(self, count: int) -> Tensor:
        """The learning rates (count, groups) of the next steps, which a captured graph reads."""
        rates.hold(self.optimizer, self._rates)
        return rates.scheduled(self.optimizer, self.schedule, self.steps, count)

    def _set_clock(self, call: Call) -> None:
        """Give an objective that depends on the number of steps taken a tensor of it, which the steps advance."""
        if not (hasattr(self.objective, "clock") and getattr(self.objective, "clocked", True)):
            return
        if self._clock is None:
            device = call.inputs[0].device if call.inputs else self._device
            self._clock = torch.tensor(self.steps, device=device)
        self.objective.clock = self._clock  # others may have the same objective

    @property
    def _programs(self) -> tuple[Callable, ...]:
        """What a step runs."""
        return self.model, self.guide, self.loss, self.loss_and_grads

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self._names), torch.device("cpu"))

    @property
    def _devices(self) -> set[str]:
        """The kinds of devices that a step may work on: before the first one it is not known where parameters are."""
        return {self._device.type} | ({"cuda"} if not self._names and torch.cuda.is_available() else set())

    # What resuming needs.

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the parameters: the optimizer's state and the number of steps taken.

        And what the objective holds itself and steps have changed: numbers, tensors, modules' states; how deep the
        programs' plates go (to find it they run once more, which may change a module's buffers); and which arguments
        have graphs.

        Raises:
            NonFiniteError: as `check`.
        """
        self.check()
        if self._waiting is not None:
            return self._waiting
        if self.optimizer is not None:
            self._settle()
        return {
            "steps": self.steps,
            "optimizer": self._state_of_optimizer() if self.optimizer else None,
            "max_plate_nesting": getattr(self.objective, "max_plate_nesting", None),
            "objective": own.changed(self.objective, self._marks) if self.objective else {},
            "graphs": dict(self._graphs.counts),
            "numbers": {place: list(values) for place, values in self._numbers.seen.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the optimizer takes it over at the first step, when it is built."""
        self.check()
        self.steps = state["steps"]
        self._graphs.counts = dict(state.get("graphs", {}))
        self._numbers.seen = {place: list(values) for place, values in state.get("numbers", {}).items()}
        if self._clock is not None:
            self._clock.fill_(self.steps)
        if self.objective is not None and state.get("max_plate_nesting") is not None:
            self.objective.max_plate_nesting = state["max_plate_nesting"]
        own.restore(self.objective, changes := state.get("objective", {}))
        self._marks = {path: mark for path, mark in self._marks.items() if path not in changes}
        if self.optimizer is None:
            self._waiting = state
        elif state["optimizer"] is not None:
            self._restore_optimizer(state["optimizer"])

    def _state_of_optimizer(self) -> dict[str, Any]:
        if isinstance(self.optim, PyroOptim):
            return shares.state_of(self.optim, self._keys(self._names))
        return self.optimizer.state_dict()

    def _keys(self, names: dict[Tensor, str]) -> dict[Tensor, str]:
        return {p: self._used.keys.get(p, name) for p, name in names.items()}

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        pyros = isinstance(self.optim, PyroOptim)
        if pyros == ("param_groups" in state):
            found, expected = ("a torch", "a pyro.optim") if pyros else ("a pyro.optim", "a torch")
            raise InputError(f"state: found that of {found} optimizer, expected that of {expected} optimizer")
        if pyros:
            shares.WISHES.pop(self.optimizer, None)
            shares.resume(self.optim, self.optimizer, state, self._keys(self._names))
        else:
            self.optimizer.load_state_dict(copy.deepcopy(state))  # torch would go on in the very tensors
        self._places.clear()
        self._used.had.update(p for p in self._names if self.optimizer.state.get(p))
        self._rates = rates.prepare(self.optimizer)
        self._graphs.forget()  # they hold the tensors of the state before

    def _replace(self) -> None:
        """Follow Pyro's store where it has another parameter of a name."""
        pairs = list(self._used.replaced)
        if recording():
            raise Untraceable(WITHIN.format(f"parameter '{self._names.get(pairs[0][0])}' of Pyro's store"))
        self._used.replaced.clear()
        for old, new in pairs:
            self._names = {new if p is old else p: name for p, name in self._names.items()}
            self._used.had.discard(old)
        shares.replace(self.optim, self.optimizer, pairs, self._names, self._aside)
        self._used.had.update(new for _, new in pairs if self.optimizer.state.get(new))  # those that come back
        self._rates = rates.prepare(self.optimizer)
        found = {new: self._names[new] for _, new in pairs if new in self._names}
        shares.attach(self.optim, self.optimizer, self._keys(found))
        self._settle()
        self._graphs.forget()

    def _settle(self) -> None:
        """Take over what was set by hand on the parameters' own parts of the optimizer."""
        if self.optimizer not in shares.WISHES:
            return
        if shares.settle(self.optimizer):
            self._rates = rates.prepare(self.optimizer)
            self._graphs.forget()
        self._rates = rates.at_step(self.optimizer, self._rates, None, self.steps)

    def _begin_anew(self) -> None:
        """With another optimizer, and the parameters as they are."""
        known, self._names, self.optimizer = self._names, {}, None
        self._aside.clear()
        self._take(known)

    @property
    def optim(self) -> optimizers.Optim:
        """What was given; another one put in its place begins anew, with the parameters as they are."""
        return self._optim

    @optim.setter
    def optim(self, optim: optimizers.Optim) -> None:
        check_optim(optim)
        self._optim = optim
        if getattr(self, "optimizer", None) is not None:
            self.check()
            self._begin_anew()

    # Copies.

    def __getstate__(self) -> dict[str, Any]:
        state = self.state_dict()
        if self._used.stored:
            names = ", ".join(list(self._used.stored)[:3])
            raise InputError(
                f"SVI cannot be copied: Pyro's store has its parameters ({names}), not its programs: {ALONE}"
            )
        blank = type(self).__new__(type(self))
        blank._own = self._own
        blank._begin()
        kept = {name: value for name, value in vars(self).items() if name not in vars(blank)}
        return {**kept, "_own": self._own, "state": state, "names": dict(self._names)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names, saved = state.pop("names"), state.pop("state")
        self.__dict__.update(state)
        self._begin()
        self._copied = names
        self.load_state_dict(saved)

    def __copy__(self) -> Trained:
        raise InputError(
            "SVI cannot be copied with its programs left where they are: take copy.deepcopy, or make another"
        )

    def _take(self, new: dict[Tensor, str]) -> None:
        """Build the optimizer over the parameters seen first; add those that turn up later."""
        if left := [name for p, name in new.items() if name in self._copied.values() and p not in self._copied]:
            raise InputError(f"parameter '{left[0]}' was not copied with its SVI: {ALONE}")
        self._copied = {}
        self._names.update(new)
        if self._clock is not None:
            self._clock = self.objective.clock = self._clock.to(self._device)
        first = self.optimizer is None
        self.optimizer, added = shares.over(self.optim, self.optimizer, new)
        if isinstance(self.optim, torch.optim.Optimizer):  # also those that no program names
            given = [p for group in self.optimizer.param_groups for p in group["params"] if p not in self._names]
            self._names.update({p: f"number {place} of the optimizer's others" for place, p in enumerate(given)})
        self._used.had = optimizers.HAD.setdefault(self.optimizer, self._used.had)
        self._rates = rates.prepare(self.optimizer)
        shares.attach(self.optim, self.optimizer, self._keys(new if first else added))
        if first and self._waiting is not None and self._waiting["optimizer"] is not None:
            self._restore_optimizer(self._waiting["optimizer"])
        self._waiting = None
        self._settle()
        self._graphs.forget()
        optimizers.warn_untrained(self.optimizer, new)


def _expanded(tensor: Tensor) -> bool:
    """Whether several of its numbers are one in memory, which nothing can set."""
    if tensor.layout is not torch.strided:
        return False
    return any(size > 1 and not step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _with_gradient(loss: Callable, *args: Any, **kwargs: Any) -> Any:
    """A loss with its gradient added to the parameters'."""
    value = loss(*args, **kwargs)
    if getattr(value, "requires_grad", False):
        value.backward(retain_graph=True)
    return value
