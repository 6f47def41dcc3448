"""What a `PyroOptim` is to its users, an optimizer for each parameter, of the one optimizer over all."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import InputError
from .arguments import checked
from .optimizers import build, groups, replayable, untrained
from .parameters import PLACE

Aside = WeakIdKeyDictionary
"""By parameter, what the optimizer's state of it and the arguments of its group were."""
WISHES: WeakKeyDictionary[Optimizer, dict[Tensor, dict[str, Any]]] = WeakKeyDictionary()
"""By optimizer, the arguments that parameters have been given since its last step."""


HOW = ("fused", "foreach", "capturable", "differentiable")
"""Arguments of how a step is computed: no others' part."""


class Own(MutableMapping):
    """The arguments of one parameter of those in a group; what is set is its own from the next step on."""

    def __init__(self, optimizer: Optimizer, parameter: Tensor, group: dict[str, Any]) -> None:
        self.optimizer, self.parameter, self.group = optimizer, parameter, group

    def _now(self) -> dict[str, Any]:
        found = {**self.group, "params": [self.parameter], **WISHES.get(self.optimizer, {}).get(self.parameter, {})}
        return {**found, "lr": float(found["lr"])} if "lr" in found else found  # Pyro's `AdagradRMSProp` has none

    def __getitem__(self, key: str) -> Any:
        return self._now()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        WISHES.setdefault(self.optimizer, {}).setdefault(self.parameter, {})[key] = value

    def __delitem__(self, key: str) -> None:
        raise KeyError(f"'{key}' of the optimizer: expected to be set, not deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


class Share(Optimizer):
    """What a parameter has of an optimizer over all, as Pyro's users know it: an optimizer of its own.

    Its steps are those of the whole; a schedule of torch's may be made of it.
    """

    _opt_called = True

    def __init__(self, optimizer: Optimizer, parameter: Tensor) -> None:
        self.whole, self.parameter = optimizer, parameter
        self.alone: list[Own] = []
        """Its arguments while the whole does not have it."""

    def step(self, closure: Any = None) -> None:
        """Refused: the steps are its SVI's."""
        raise TypeError("optim_objs: a parameter's part takes no step by itself: call step of the SVI")

    step._wrapped_by_lr_sched = True  # schedules look whether steps are taken, as of an optimizer of their own

    @property
    def defaults(self) -> dict[str, Any]:
        """Those of the whole."""
        return self.whole.defaults

    @property
    def state(self) -> dict[Tensor, Any]:
        """The parameter's."""
        return {p: state for p, state in self.whole.state.items() if p is self.parameter}

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @property
    def param_groups(self) -> list[Own]:
        """The arguments that the parameter has."""
        having = [g for g in self.whole.param_groups if any(p is self.parameter for p in g["params"])]
        return [Own(self.whole, self.parameter, group) for group in having] or self.alone

    def state_dict(self) -> dict[str, Any]:
        """As a torch optimizer over the one parameter."""
        groups = [{**group, "params": [0]} for group in self.param_groups]
        return {"state": {0: dict(self.whole.state.get(self.parameter, {}))}, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, or that of a torch optimizer of the parameter's own."""
        for group, other in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({key: value for key, value in other.items() if key not in ("params", *HOW)})
        found = state["state"].get(0)
        if found:
            steps = {"step": torch.tensor(float(found["step"]))} if "step" in found and replayable(self.whole) else {}
            values = {**found, **steps}.items()
            self.whole.state[self.parameter] = {
                key: value.to(self.parameter.device, copy=True) if isinstance(value, Tensor) else value
                for key, value in values
            }


def attach(optim: Any, optimizer: Optimizer, parameters: dict[Tensor, str]) -> None:
    """Let what a user does with a `PyroOptim` reach the optimizer: `step`, `get_state`, `set_state`, `optim_objs`."""
    if not isinstance(optim, PyroOptim):
        return
    for parameter, name in parameters.items():
        own, share = _known(optim, parameter), Share(optimizer, parameter)
        if own is None or own.whole is not optimizer:
            made = optim.pt_scheduler_constructor(share, **optim.kwargs) if schedules(optim) else share
            optim.optim_objs[parameter] = made
            state = optim._state_waiting_to_be_consumed.pop(name, None)
            if state is not None:
                _load(optim, parameter, share, state)


def _load(optim: Any, parameter: Tensor, share: Share, state: dict[str, Any]) -> None:
    if schedules(optim):
        optim.optim_objs[parameter].load_state_dict(copy.deepcopy(state["scheduler"]))
        state = state["optimizer"]
    share.load_state_dict(state)


def _known(optim: Any, parameter: Tensor) -> Share | None:
    """The part that a parameter has been given, also by another `SVI`."""
    found = getattr(optim, "optim_objs", {}).get(parameter)
    found = getattr(found, "optimizer", found)  # that of a schedule
    return found if isinstance(found, Share) else None


def resume(optim: PyroOptim, optimizer: Optimizer, state: dict[str, Any], parameters: dict[Tensor, str]) -> None:
    """Go on from what `state_of` gave; what others have in it, they take over when they turn up.

    Raises:
        InputError: it has other parameters; or modules came at other steps than before, by which alone they are known.
    """
    waiting, keys = copy.copy(state), list(_keys(parameters))
    if state and not any(key in state for _, key in keys):
        raise InputError(
            f"state: it has '{next(iter(state))}', the programs '{keys[0][1]}': expected the same parameters"
        )
    for parameter, key in keys:
        if key.startswith(PLACE) and key not in state:
            raise InputError("state: its modules came at other steps: expected programs that use the same at the first")
        if key in waiting:
            _load(optim, parameter, Share(optimizer, parameter), waiting.pop(key))
    optim.set_state(waiting)


def state_of(optim: PyroOptim, parameters: dict[Tensor, str]) -> dict[str, Any]:
    """By name, what a parameter has of the optimizer, and how far its schedule is; of those in no store as well."""
    found = {key: optim.optim_objs[p] for p, key in _keys(parameters) if p in optim.optim_objs}
    if not schedules(optim):
        return {key: share.state_dict() for key, share in found.items()}
    return {key: {"scheduler": s.state_dict(), "optimizer": s.optimizer.state_dict()} for key, s in found.items()}


def _keys(parameters: dict[Tensor, str]) -> Iterator[tuple[Tensor, str]]:
    """Each parameter's name, with a number where others, as of another module, have it too."""
    known: Counter[str] = Counter()
    for parameter, name in parameters.items():
        known[name] += 1
        yield parameter, name if known[name] == 1 else f"{name}, {known[name]}"


def _follow(schedule: Any) -> None:
    """Give a parameter the learning rate that its schedule is at."""
    for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = float(rate)


def schedules(optim: Any) -> bool:
    """Whether it has a schedule of torch's for the learning rates."""
    return hasattr(optim, "pt_scheduler_constructor")


def over(optim: Any, optimizer: Optimizer | None, new: dict[Tensor, str]) -> tuple[Optimizer, dict[Tensor, str]]:
    """The one optimizer, which has these parameters too now, and those of them that were added to it.

    All that have the same `PyroOptim` have the same: another `SVI` may have made it, and brought some of them.
    """
    if optimizer is None:
        known = (_known(optim, p) for p in getattr(optim, "optim_objs", ()))
        optimizer = next((share.whole for share in known if share), None)
    if optimizer is None:
        return checked(build(optim, new)), {}
    added = untrained(optimizer, new)
    if added and isinstance(optim, PyroOptim):
        for group in groups(optim, added):
            optimizer.add_param_group(group)
    return optimizer, added


def replace(
    optim: Any, optimizer: Optimizer, pairs: list[tuple[Tensor, Tensor]], names: dict[Tensor, str], aside: Aside
) -> None:
    """Put parameters in the place of others, whose state and arguments are put aside until they come back.

    What is new begins as in Pyro with the arguments of the `PyroOptim`, whatever has become of the learning rate.
    """
    for old, new in pairs:
        group = next((group for group in optimizer.param_groups if any(p is old for p in group["params"])), None)
        if group is None:
            continue
        aside[old] = optimizer.state.pop(old, {}), _arguments(group)
        if (share := _known(optim, old)) is not None:  # a schedule goes on with it
            share.alone = [Own(optimizer, old, {**_arguments(group), **_number(group)})]
        state, own = aside.pop(new, None) or ({}, _first(optim, optimizer, new, names.get(new, "")))
        if not untrained(optimizer, {new: ""}):  # another SVI has brought it
            group["params"][:] = [p for p in group["params"] if p is not old]
            continue
        if _has(group, own):
            group["params"][:] = [new if p is old else p for p in group["params"]]
        else:
            _move(optimizer, old, group, new, own)
        if state:
            optimizer.state[new] = state
        if schedules(optim):
            _begin_or_go_on(optim, optimizer, new)
    _drop_empty(optimizer)


def _begin_or_go_on(optim: Any, optimizer: Optimizer, parameter: Tensor) -> None:
    """Give a parameter the first learning rate, or that of its schedule where it had one before."""
    if _known(optim, parameter) is not None:
        _follow(optim.optim_objs[parameter])
        return
    for group in Share(optimizer, parameter).param_groups:
        group["lr"] = float(group.get("initial_lr", group["lr"]))


def settle(optimizer: Optimizer) -> bool:
    """Give parameters the arguments that were set; whether they are in other groups now."""
    wishes, parted = WISHES.pop(optimizer, {}), False
    for group in list(optimizer.param_groups) if wishes else ():
        own = [wishes.pop(p, {}) for p in group["params"]]
        if all(wish == own[0] for wish in own):
            group.update(own[0])
            continue
        parted, before = True, {key: value for key, value in group.items() if key != "params"}
        for parameter, wish in zip(list(group["params"]), own, strict=True):
            if wish:
                _move(optimizer, parameter, group, parameter, {**before, **_number(before), **wish})
    if wishes:
        WISHES[optimizer] = wishes  # of those put aside
    _drop_empty(optimizer)
    return parted


def _move(optimizer: Optimizer, old: Tensor, group: dict[str, Any], new: Tensor, own: dict[str, Any]) -> None:
    """Take a parameter out of its group, and put one into a group with these arguments."""
    group["params"][:] = [p for p in group["params"] if p is not old]
    home = next((other for other in optimizer.param_groups if other is not group and _has(other, own)), None)
    optimizer.add_param_group({"params": [new], **own}) if home is None else home["params"].append(new)


def _drop_empty(optimizer: Optimizer) -> None:
    if not all(group["params"] for group in optimizer.param_groups):
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def _number(group: dict[str, Any]) -> dict[str, Any]:
    return {"lr": float(group["lr"])} if "lr" in group else {}


def _arguments(group: dict[str, Any]) -> dict[str, Any]:
    """A group's own, with the learning rate that it has without a schedule."""
    rate = {"lr": float(group.get("initial_lr", group["lr"]))} if "lr" in group else {}
    return {name: value for name, value in group.items() if name != "params"} | rate


def _first(optim: Any, optimizer: Optimizer, parameter: Tensor, name: str) -> dict[str, Any]:
    """The arguments that a parameter begins with; none where they are to be those of its group."""
    if not isinstance(optim, PyroOptim):
        return {}
    found = {**optimizer.defaults, **groups(optim, {parameter: name})[0]}
    return {key: value for key, value in found.items() if key not in ("params", *HOW)}


def _has(group: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether a group's arguments are these."""
    found = {**group, **_number(group)} if "initial_lr" in own else _arguments(group)
    pairs = [(found.get(name), value) for name, value in own.items()]
    return all(
        math.isclose(one, other, rel_tol=1e-6) if isinstance(one, float) and isinstance(other, float) else one == other
        for one, other in pairs
    )
