"""One torch optimizer over all parameters, from whatever a Pyro user gives; its learning rates as tensors."""

from __future__ import annotations

import inspect
import math
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

from ..replay import hooks

Optim = PyroOptim | Optimizer | Callable[..., Optimizer]
"""What an `SVI` is given to make its optimizer of."""

Groups = list[dict[str, Any]]


class ClippedAdam(Optimizer):
    """Pyro's `ClippedAdam` over all parameters at once; its arguments, its numbers.

    Adam on gradients cut elementwise to [-clip_norm, clip_norm], with a learning rate that is multiplied by `lrd` at
    every step.

    >>> parameter = torch.nn.Parameter(torch.ones(2))
    >>> parameter.grad = torch.tensor([100.0, -100.0])
    >>> ClippedAdam([parameter], lr=0.5).step()
    >>> parameter.data
    tensor([0.5000, 1.5000])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float = 10.0,
        lrd: float = 1.0,
        centered_variance: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "clip_norm": clip_norm}
        super().__init__(params, {**defaults, "lrd": lrd, "centered_variance": centered_variance})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step."""
        result = None if closure is None else closure()
        for group in self.param_groups:
            group["lr"] = (
                group["lr"].mul_(group["lrd"]) if isinstance(group["lr"], Tensor) else group["lr"] * group["lrd"]
            )
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                if not self.state[p]:
                    zero = torch.zeros((), dtype=torch.float32, device=p.device)
                    self.state[p] = {"step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            if parameters:
                self._advance(group, parameters)
        return result

    def _advance(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        steps, means, squares = (
            [self.state[p][name] for p in parameters] for name in ("step", "exp_avg", "exp_avg_sq")
        )
        (beta1, beta2), clip = group["betas"], group["clip_norm"]
        grads = torch._foreach_clamp_max(torch._foreach_clamp_min([p.grad for p in parameters], -clip), clip)
        torch._foreach_add_(steps, 1)
        if group["weight_decay"] != 0:
            grads = torch._foreach_add(grads, parameters, alpha=group["weight_decay"])
        torch._foreach_lerp_(means, grads, 1 - beta1)
        spread = torch._foreach_sub(grads, means) if group["centered_variance"] else grads
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, spread, spread, value=1 - beta2)
        denominators = torch._foreach_add(torch._foreach_sqrt(squares), group["eps"])
        for p, step, mean, denominator in zip(parameters, steps, means, denominators, strict=True):
            count = step.double()  # in float32 1 - beta2**1 has 4 digits
            size = group["lr"] * (1 - beta2**count).sqrt() / (1 - beta1**count)
            p.sub_(size.to(p) * mean / denominator)


HAD: WeakKeyDictionary[Optimizer, set[Tensor]] = WeakKeyDictionary()
"""By optimizer, the parameters that have had a gradient."""
GIVEN: WeakKeyDictionary[Optimizer, dict[int, tuple[Any, int]]] = WeakKeyDictionary()
"""By optimizer, what its groups' learning rates were last set to, and how often that had been changed in place."""
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
    fusable = "fused" in known and not chosen and all(map(_fusable, parameters))
    if fusable and _fuses(constructor, next(iter(parameters)).device.type):
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


def begin(optimizer: Optimizer) -> None:
    """Give parameters of an `SGD` that begin later than others the momentum of those: its fused step wants all or none.

    It is such that after their first step it is their gradient, as torch has it.
    """
    for group in optimizer.param_groups if type(optimizer) is SGD else ():
        if not (group["momentum"] and group.get("fused")):
            continue
        states = {p: optimizer.state.get(p, {}).get("momentum_buffer") for p in group["params"] if p.grad is not None}
        if all(value is None for value in states.values()):
            continue
        for p in (p for p, value in states.items() if value is None):
            gradient = (-p.grad if group["maximize"] else p.grad) + group["weight_decay"] * p.detach()
            optimizer.state[p]["momentum_buffer"] = gradient * (group["dampening"] / group["momentum"])


def prepare(optimizer: Optimizer) -> Tensor | None:
    """Make the optimizer's step one that can be replayed, where it can be; returns its learning rates as a tensor.

    The rates (groups,) are read at every step by the kernels; each group's `lr` is an element of them. None where the
    optimizer wants numbers. Choices that a user made (`foreach`, `capturable`, ...) stay.
    """
    every = [p for group in optimizer.param_groups for p in group["params"]]
    device = every[0].device
    for group in optimizer.param_groups:
        if any(p in optimizer.state for p in group["params"]):
            continue  # it has begun otherwise
        if type(optimizer) in FUSED and all(map(_fusable, every)):
            if group.get("fused") is None and group.get("foreach") is None and not group.get("differentiable"):
                group["fused"] = True
        elif type(optimizer) is RMSprop and device.type == "cuda":
            group["capturable"] = True
    if not replayable(optimizer):
        return None
    dtype = torch.float32 if device.type == "cuda" else torch.float64
    rates = torch.tensor([float(group["lr"]) for group in optimizer.param_groups], dtype=dtype, device=device)
    hold(optimizer, rates)
    return rates


def hold(optimizer: Optimizer, rates: Tensor | None) -> None:
    """Keep each group's learning rate in `rates`, also where somebody has set it, or changed a tensor that he gave."""
    if rates is None:
        return
    given = GIVEN.setdefault(optimizer, {})
    for index, group in enumerate(optimizer.param_groups):
        lr = group["lr"]
        if not (isinstance(lr, Tensor) and lr.data_ptr() == rates.data_ptr() + index * rates.itemsize):
            given[index] = lr, -1
            group["lr"] = rates[index] if isinstance(lr, Tensor) else rates[index].fill_(lr)
        was, version = given.get(index, (None, 0))
        if isinstance(was, Tensor) and was._version != version:
            rates[index].fill_(was.detach().reshape(()))
            given[index] = was, was._version


def at_step(
    optimizer: Optimizer, rates: Tensor | None, factor: Callable[[int], float] | None, step: int
) -> Tensor | None:
    """Set the learning rates to those of a step, with a schedule a factor of what they began with; returns them."""
    if rates is not None and len(rates) < len(optimizer.param_groups):
        rates = prepare(optimizer)  # a group was added
    if factor is not None:
        _schedule(optimizer, rates, _factor(factor, step))
    hold(optimizer, rates)
    return rates


def _schedule(optimizer: Optimizer, rates: Tensor | None, factor: float) -> None:
    for index, group in enumerate(optimizer.param_groups):
        if "lr" not in group:
            kind = type(optimizer).__name__
            raise ValueError(
                f"schedule: found an optimizer without a learning rate 'lr', {kind}: expected no schedule for it"
            )
        value = group.setdefault("initial_lr", float(group["lr"])) * factor
        if rates is None:
            group["lr"] = value
        else:
            rates[index].fill_(value)


def scheduled(optimizer: Optimizer, factor: Callable[[int], float], first: int, count: int) -> Tensor:
    """The rates (count, groups) of `count` steps from the first, on the CPU."""
    start = torch.tensor([group["initial_lr"] for group in optimizer.param_groups])
    return torch.tensor([[_factor(factor, first + ahead)] for ahead in range(count)]) * start


def _factor(schedule: Callable[[int], float], step: int) -> float:
    found = schedule(step)
    try:
        factor = float(found)
    except (TypeError, ValueError):
        factor = math.nan
    if not math.isfinite(factor):
        raise ValueError(f"schedule: found {found!r} at step {step}, expected a finite factor of the learning rates")
    return factor


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
            stacklevel=4,
        )


def _fusable(parameter: Tensor) -> bool:
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
