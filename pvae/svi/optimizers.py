"""One torch optimizer over all parameters, from whatever a Pyro user gives."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import pyro.optim
import torch
from pyro.optim import PyroOptim
from pyro.params.param_store import normalize_param_name
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.utils.weak import WeakIdKeyDictionary

from ..replay import hooks
from .arguments import checked
from .clipped_adam import ClippedAdam

Optim = PyroOptim | Optimizer | Callable[..., Optimizer]
"""What an `SVI` is given to make its optimizer of."""

Groups = list[dict[str, Any]]


HAD: WeakKeyDictionary[Optimizer, set[Tensor]] = WeakKeyDictionary()
"""By optimizer, the parameters that have had a gradient."""
FUSED = (Adam, AdamW, SGD, Adagrad)
"""Optimizers of torch that have all of a step in one kernel; their learning rate may be a tensor."""
FLUSH_EVERY = 200
"""Steps between two looks for denormal numbers in an optimizer's state."""


def build(optim: Any, parameters: dict[Tensor, str]) -> Optimizer:
    """The optimizer over parameters: one given, or made by a function, or out of a `PyroOptim`'s arguments."""
    if isinstance(optim, Optimizer):
        return optim
    if not isinstance(optim, PyroOptim):
        return optim(list(parameters))
    constructor, own = optim.pt_optim_constructor, groups(optim, parameters)
    if constructor is pyro.optim.clipped_adam.ClippedAdam:
        constructor = ClippedAdam
    defaults = {} if callable(optim.pt_optim_args) else dict(optim.pt_optim_args)
    known = inspect.signature(constructor).parameters
    chosen = {"fused", "foreach", "capturable", "differentiable"} & set().union(*own, defaults)
    can = "fused" in known and not chosen and all(map(fusable, parameters))
    if can and _fuses(constructor, next(iter(parameters)).device.type):
        defaults["fused"] = True
    return constructor(own, **defaults)


def groups(optim: PyroOptim, parameters: dict[Tensor, str]) -> Groups:
    """Parameter groups: one for all, or one for each set of arguments where the arguments go by parameter."""
    if not callable(optim.pt_optim_args):
        return [{"params": list(parameters), **optim.pt_optim_args}]
    found: Groups = []
    for parameter, name in parameters.items():
        if optim.pt_optim_args_argc == 1:
            args = optim.pt_optim_args(normalize_param_name(name))
        else:
            args = optim.pt_optim_args(*module_and_name(name))
        same = next((g for g in found if {k: v for k, v in g.items() if k != "params"} == args), None)
        if same:
            same["params"].append(parameter)
        else:
            found.append({"params": [parameter], **args})
    return found


def replace(optimizer: Optimizer, old: Tensor, new: Tensor, aside: WeakIdKeyDictionary) -> None:
    """Put a parameter in the place of another, whose state is put aside; one that comes back has its state again."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    aside[old] = optimizer.state.pop(old, {})
    if state := aside.pop(new, None):
        optimizer.state[new] = state


def aligned(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Lay the state as the parameters lie in memory: a fused kernel takes the numbers of both in that order."""
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)


def clip_each(optim: Any, parameters: Sequence[Tensor], names: dict[Tensor, str]) -> None:
    """Clip each parameter's gradient by itself, as a `PyroOptim` with clip arguments does."""
    clip_args = getattr(optim, "pt_clip_args", None)
    if not clip_args:
        return
    for parameter in parameters:
        args = clip_args(*module_and_name(names[parameter])) if callable(clip_args) else clip_args
        PyroOptim._clip_grad(parameter, **args)


def clips(optim: Any, optimizer: Optimizer) -> bool:
    """Whether a gradient that is not finite may leave the parameters finite, as it is cut."""
    return isinstance(optimizer, ClippedAdam) or bool(getattr(optim, "pt_clip_args", None))


def module_and_name(name: str) -> tuple[str, str]:
    """How Pyro tells a parameter to arguments that go by parameter."""
    module, _, own = name.replace("$$$", ".").partition(".")
    return (module, own) if own else ("", module)


def replayable(optimizer: Optimizer) -> bool:
    """Whether a step of it is tensor operations alone, so that a graph of one step is right for the next.

    Others count steps in Python, or read a tensor there; hooks may do so.
    """
    if any(hooks.of_optimizer(optimizer)):
        return False
    if type(optimizer) is ClippedAdam:
        return True
    flags = [(group.get("fused"), group.get("capturable")) for group in optimizer.param_groups]
    if type(optimizer) in FUSED:
        return all(fused for fused, _ in flags)
    return type(optimizer) is RMSprop and all(capturable for _, capturable in flags)


def ready(optimizer: Optimizer, parameters: Sequence[Tensor]) -> bool:
    """Whether the state of these parameters is there, which a parameter's first step makes."""
    if type(optimizer) is SGD and not any(group["momentum"] for group in optimizer.param_groups):
        return True
    return not replayable(optimizer) or all(optimizer.state.get(p) for p in parameters)


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """All that a step changes beside the parameters."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    held = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in (*rates, *held) if isinstance(value, Tensor)]


def flush(optimizer: Optimizer, done: int, more: int) -> None:
    """Set denormal numbers in the optimizer's state to zero, where `more` steps after so many pass the mark for it.

    The momentum of a parameter whose gradient has become zero, as of a rectifier that is off for all data, decays to
    a denormal number and stays there by rounding; a CPU computes with those many times slower.
    """
    if (done + more) // FLUSH_EVERY == done // FLUSH_EVERY:
        return
    for value in state_tensors(optimizer):
        if value.is_floating_point() and value.device.type == "cpu" and value.dim():
            value.masked_fill_(value.abs() < torch.finfo(value.dtype).tiny, 0.0)


class Share:
    """What a parameter has of an optimizer over all, as Pyro's users know it: an optimizer of its own."""

    def __init__(self, optimizer: Optimizer, parameter: Tensor) -> None:
        self.whole, self.parameter = optimizer, parameter

    @property
    def param_groups(self) -> Groups:
        """The group that the parameter is in, with others."""
        return [g for g in self.whole.param_groups if any(p is self.parameter for p in g["params"])]

    def state_dict(self) -> dict[str, Any]:
        """As a torch optimizer over the one parameter."""
        groups = [{**group, "params": [0]} for group in self.param_groups]
        for group in groups:
            group |= {"lr": float(group["lr"])} if "lr" in group else {}  # Pyro's `AdagradRMSProp` has none
        return {"state": {0: dict(self.whole.state.get(self.parameter, {}))}, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, or that of a torch optimizer of the parameter's own."""
        for group, other in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({key: value for key, value in other.items() if key in ("lr", "initial_lr")})
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
    if hasattr(optim, "pt_scheduler_constructor"):
        if not optim.optim_objs:
            optim.optim_objs = {"all": optim.pt_scheduler_constructor(optimizer, **optim.kwargs)}
        return
    for parameter, name in parameters.items():
        optim.optim_objs[parameter] = Share(optimizer, parameter)
        state = optim._state_waiting_to_be_consumed.pop(name, None)
        if state is not None:
            optim.optim_objs[parameter].load_state_dict(state)


def over(optim: Any, optimizer: Optimizer | None, new: dict[Tensor, str]) -> tuple[Optimizer, dict[Tensor, str]]:
    """The one optimizer, which has these parameters too now, and those of them that were added to it.

    The first that there is may be another `SVI`'s, made of the same `PyroOptim` over some of them.
    """
    added = new
    if optimizer is None:
        known = getattr(optim, "optim_objs", {})
        optimizer = next((known[p].whole for p in new if isinstance(known.get(p), Share)), None)
        if optimizer is None:
            return checked(build(optim, new)), {}
        added = untrained(optimizer, new)
    if added and isinstance(optim, PyroOptim):
        for group in groups(optim, added):
            optimizer.add_param_group(group)
    return optimizer, added


def untrained(optimizer: Optimizer, parameters: dict[Tensor, str]) -> dict[Tensor, str]:
    """The parameters that an optimizer does not have."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {p: name for p, name in parameters.items() if id(p) not in trained}


def warn_untrained(optimizer: Optimizer, parameters: dict[Tensor, str]) -> None:
    """Say which parameters a torch optimizer does not have."""
    left = list(untrained(optimizer, parameters).values())
    if left:
        warnings.warn(
            f"{len(left)} parameters of the program are not in the torch optimizer and will not train: "
            + ", ".join(left[:3]),
            stacklevel=4,
        )


def fusable(parameter: Tensor) -> bool:
    """Whether fused kernels take it."""
    sparse = parameter.grad is not None and parameter.grad.is_sparse
    return parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") and not sparse


@cache
def _fuses(constructor: Callable[..., Optimizer], device: str) -> bool:
    """Whether its fused step runs on such a device: torch 2.11 has no fused Adagrad on CUDA."""
    parameter = torch.zeros(1, device=device, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    try:
        constructor([parameter], fused=True).step()
    except (RuntimeError, TypeError):
        return False
    return True
