"""Stochastic variational inference with one optimizer over all parameters. Generic: any Pyro model and guide."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.params.param_store import normalize_param_name
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

FLUSH_EVERY = 200
"""Steps between two looks for denormal numbers in the optimizer's state."""
Groups = list[dict[str, Any]]


class NonFiniteError(ArithmeticError):
    """A loss or gradient that is not finite. The step was not taken: the parameters are those before it."""

    def __init__(self, step: int, loss: float, where: str) -> None:
        super().__init__(f"step {step}: the loss is {loss}: {where}")
        self.step, self.loss, self.where = step, loss, where


class SVI(pyro.infer.SVI):
    """`pyro.infer.SVI` with one fused torch optimizer over all parameters; same constructor, same `step`.

    Args:
        model: a Pyro program.
        guide: a Pyro program with the same arguments.
        optim: a `pyro.optim.PyroOptim` (its optimizer and arguments are taken over; per-parameter arguments become
            parameter groups); a torch optimizer; or a function from parameters to a torch optimizer.
        loss: a `pyro.infer.ELBO`, Pyro's or ours, or a function of (model, guide, *args) to a loss.
        loss_and_grads: as in Pyro, with a loss that is a function.
        clip_norm: clip the gradient to this global norm.
        schedule: a function from the number of steps taken to a factor of the learning rates.

    Raises:
        NonFiniteError: by `step`, when the loss or the gradient is not finite; names the step and the site.

    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 0.5))
    >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    >>> losses = [svi.step(torch.ones(10)) for _ in range(3)]
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: PyroOptim | torch.optim.Optimizer | Callable[[Groups], torch.optim.Optimizer],
        loss: ELBO | Callable,
        loss_and_grads: Callable | None = None,
        *,
        clip_norm: float | None = None,
        schedule: Callable[[int], float] | None = None,
        **kwargs: Any,
    ) -> None:
        stand_in = optim if isinstance(optim, PyroOptim) else PyroOptim(torch.optim.SGD, {"lr": 0.0})
        super().__init__(model, guide, stand_in, loss, loss_and_grads, **kwargs)
        self.optim = optim
        self.clip_norm, self.schedule = clip_norm, schedule
        self.steps = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self._elbo = loss if isinstance(loss, ELBO) else None
        self._names: dict[Tensor, str] = {}
        # Pyro's own objectives take a gradient only where they see param sites
        self._used = _Parameters(noting=not getattr(loss, "needs_param_sites", True))
        self._waiting: dict[str, Any] | None = None

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take one gradient step; args and kwargs go to model and guide.

        Returns:
            The loss before the step, as Pyro's.

        Raises:
            NonFiniteError: the loss or the gradient is not finite; nothing was changed.
        """
        random = _random_state()
        with self._used:
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        if self._used.new:
            self._take(self._used.taken())
        parameters = [p for p in self._names if p.grad is not None]
        if not parameters:
            raise ValueError("no parameter of model or guide has a gradient: there is nothing to fit")
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([p.grad for p in parameters])))
        value, finite = _read(loss, norm)
        if not finite:
            where = self._blame(random, args, kwargs)
            self.optimizer.zero_grad()
            raise NonFiniteError(self.steps + 1, value, where)
        self._clip(parameters, norm)
        if self.schedule is not None:
            factor = self.schedule(self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        self.optimizer.step()
        for parameter in self._names:
            parameter.grad = None
        self.steps += 1
        if self.steps % FLUSH_EVERY == 0:
            _flush(self.optimizer)
        return value

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the parameters: the optimizer's state and the number of steps taken.

        And how deep the programs' plates go: to find it they run once more, which may change a module's buffers.
        """
        if self._waiting is not None:
            return self._waiting
        return {
            "steps": self.steps,
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "max_plate_nesting": getattr(self._elbo, "max_plate_nesting", None),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the optimizer takes it over at the first step, when it is built."""
        self.steps = state["steps"]
        if self._elbo is not None and state.get("max_plate_nesting") is not None:
            self._elbo.max_plate_nesting = state["max_plate_nesting"]
        if self.optimizer is None:
            self._waiting = state
        elif state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])

    def _take(self, new: dict[Tensor, str]) -> None:
        """Build the optimizer over the parameters seen first; add those that turn up later."""
        self._names.update(new)
        if self.optimizer is None:
            self.optimizer = _optimizer(self.optim, new)
            if self._waiting is not None and self._waiting["optimizer"] is not None:
                self.optimizer.load_state_dict(self._waiting["optimizer"])
            self._waiting = None
            _attach_scheduler(self.optim, self.optimizer)
        elif isinstance(self.optim, PyroOptim):
            for group in _groups(self.optim, new):
                self.optimizer.add_param_group(group)
        _warn_untrained(self.optimizer, new)

    def _clip(self, parameters: list[Tensor], norm: Tensor) -> None:
        if self.clip_norm is not None:
            clip_grads_with_norm_(parameters, self.clip_norm, norm, foreach=True)
        clip_args = getattr(self.optim, "pt_clip_args", None)
        if not clip_args:
            return
        for parameter in parameters:  # Pyro clips each parameter by itself
            args = clip_args(*_module_and_name(self._names[parameter])) if callable(clip_args) else clip_args
            PyroOptim._clip_grad(parameter, **args)

    def _blame(self, random: list[Tensor], args: tuple, kwargs: dict) -> str:
        """Where the first value that is not finite comes from, by running the step's programs again."""
        for parameter, name in self._names.items():
            if not parameter.isfinite().all():
                return f"parameter '{name}' was not finite before the step"
        _set_random_state(random)
        with torch.no_grad(), pyro.validation_enabled(False):
            for model_trace, guide_trace in self._traces_again(args, kwargs):
                for program, trace in (("guide", guide_trace), ("model", model_trace)):
                    if found := _first_not_finite(trace):
                        return f"in the {program}, {found}"
        for parameter, name in self._names.items():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                return f"the gradient of '{name}' is not finite, though every site's value and log_prob are"
        return "no site, parameter or gradient taken alone is: their sum overflows"

    def _traces_again(self, args: tuple, kwargs: dict) -> Iterator[tuple[poutine.Trace, poutine.Trace]]:
        if self._elbo is not None:
            yield from self._elbo._get_traces(self.model, self.guide, args, kwargs)
        else:
            guide_trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
            yield poutine.trace(poutine.replay(self.model, guide_trace)).get_trace(*args, **kwargs), guide_trace


class _Parameters(Messenger):
    """Collects the parameters that programs use: each the first time it is seen, a known module's at no cost."""

    def __init__(self, noting: bool) -> None:
        super().__init__()
        self.noting = noting
        self._known: set[Any] = set()
        self.new: dict[Tensor, str] = {}

    def taken(self) -> dict[Tensor, str]:
        """The new ones, which are then no longer new."""
        new, self.new = self.new, {}
        return new

    def _pyro_module(self, msg: dict[str, Any]) -> None:
        (module,) = msg["args"]
        if module not in self._known:
            self._known.add(module)
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    self._add(parameter, f"{msg['name']}.{name}")
        msg["value"], msg["done"] = self.noting, True

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        self._add(msg["value"].unconstrained(), msg["name"])

    def _add(self, parameter: Tensor, name: str) -> None:
        if parameter not in self._known:
            self._known.add(parameter)
            self.new[parameter] = name


def _read(loss: Any, norm: Tensor) -> tuple[float, bool]:
    """The loss as a number, and whether it and the gradient's norm are finite; one wait for the device."""
    if isinstance(loss, Tensor):
        value, norm = torch.stack([loss.detach().to(norm), norm]).tolist()
    else:
        value, norm = float(loss), norm.item()
    return value, abs(value) < float("inf") and norm < float("inf")


def _first_not_finite(trace: poutine.Trace) -> str:
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        for what, value in (("value", site["value"]), ("log_prob", site["fn"].log_prob(site["value"]))):
            bad = ~value.isfinite() if value.is_floating_point() else torch.zeros(())
            if bad.any():
                index = bad.nonzero()[0].tolist()
                return f"site '{name}': its {what} is {value[tuple(index)].item()} at {index}"
    return ""


def _optimizer(optim: Any, parameters: dict[Tensor, str]) -> torch.optim.Optimizer:
    if isinstance(optim, torch.optim.Optimizer):
        return optim
    if not isinstance(optim, PyroOptim):
        return optim(list(parameters))
    constructor, groups = optim.pt_optim_constructor, _groups(optim, parameters)
    defaults = {} if callable(optim.pt_optim_args) else dict(optim.pt_optim_args)
    known = inspect.signature(constructor).parameters
    chosen = {"fused", "foreach", "capturable", "differentiable"} & set().union(*groups, defaults)
    fits = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    if "fused" in known and fits and not chosen:
        defaults["fused"] = True
    return constructor(groups, **defaults)


def _groups(optim: PyroOptim, parameters: dict[Tensor, str]) -> Groups:
    """Parameter groups: one for all, or one for each set of arguments where the arguments go by parameter."""
    if not callable(optim.pt_optim_args):
        return [{"params": list(parameters), **optim.pt_optim_args}]
    groups: Groups = []
    for parameter, name in parameters.items():
        if optim.pt_optim_args_argc == 1:
            args = optim.pt_optim_args(normalize_param_name(name))
        else:
            args = optim.pt_optim_args(*_module_and_name(name))
        same = next((g for g in groups if {k: v for k, v in g.items() if k != "params"} == args), None)
        if same:
            same["params"].append(parameter)
        else:
            groups.append({"params": [parameter], **args})
    return groups


def _module_and_name(name: str) -> tuple[str, str]:
    module, _, own = name.replace("$$$", ".").partition(".")
    return (module, own) if own else ("", module)


def _flush(optimizer: torch.optim.Optimizer) -> None:
    """Set denormal numbers in the optimizer's state to zero.

    The momentum of a parameter whose gradient has become zero, as of a rectifier that is off for all data, decays to
    a denormal number and stays there by rounding; a CPU computes with those many times slower.
    """
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.is_floating_point() and value.device.type == "cpu":
                value.masked_fill_(value.abs() < torch.finfo(value.dtype).tiny, 0.0)


def _attach_scheduler(optim: Any, optimizer: torch.optim.Optimizer) -> None:
    """Give a `PyroLRScheduler` its one scheduler, so that the user's `optim.step()` goes on working."""
    if hasattr(optim, "pt_scheduler_constructor"):
        optim.optim_objs = {"all": optim.pt_scheduler_constructor(optimizer, **optim.kwargs)}


def _warn_untrained(optimizer: torch.optim.Optimizer, parameters: dict[Tensor, str]) -> None:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = [name for p, name in parameters.items() if id(p) not in trained]
    if left:
        warnings.warn(
            f"{len(left)} parameters of the program are not in the torch optimizer and will not train: "
            + ", ".join(left[:3]),
            stacklevel=3,
        )


def _random_state() -> list[Tensor]:
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if cuda else [])]


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
