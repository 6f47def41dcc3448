"""One torch optimizer over all parameters, from whatever a Pyro user gives."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import pyro.optim
import torch
from pyro.optim import PyroOptim
from pyro.optim.adagrad_rmsprop import AdagradRMSProp
from pyro.params.param_store import normalize_param_name
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from ..replay import hooks
from ..replay.lines import outside
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
    own = vars(optimizer).get("step")  # put over its class's, as schedules of torch's do to count
    if any(hooks.of_optimizer(optimizer)) or not (own is None or hasattr(own, "_wrapped_by_lr_sched")):
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


def begin(optimizer: Optimizer) -> None:
    """Give parameters that begin later than others the state that they lack, where a step does not make it.

    Of an `SGD` the momentum, as its fused step wants that of all or none: such that after their first step it is their
    gradient, as torch has it. Of Pyro's `AdagradRMSProp` what it makes where it is made itself.
    """
    if isinstance(optimizer, AdagradRMSProp):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if not optimizer.state.get(parameter):
                optimizer.state[parameter] = AdagradRMSProp([parameter]).state[parameter]
    for group in optimizer.param_groups if type(optimizer) is SGD else ():
        if not (group["momentum"] and group.get("fused")):
            continue
        states = {p: optimizer.state.get(p, {}).get("momentum_buffer") for p in group["params"] if p.grad is not None}
        if all(value is None for value in states.values()):
            continue
        for p in (p for p, value in states.items() if value is None):
            gradient = (-p.grad if group["maximize"] else p.grad) + group["weight_decay"] * p.detach()
            optimizer.state[p]["momentum_buffer"] = gradient * (group["dampening"] / group["momentum"])


@contextmanager
def only(optimizer: Optimizer, parameters: Collection[Tensor]) -> Iterator[None]:
    """Within it none of its other parameters has a gradient: those, as of another `SVI`, stay as they are."""
    chosen, every = set(parameters), (p for group in optimizer.param_groups for p in group["params"])
    others = [(p, p.grad) for p in every if p.grad is not None and p not in chosen]
    for parameter, _ in others:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in others:
            parameter.grad = gradient


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
            stacklevel=outside(),
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
