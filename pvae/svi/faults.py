"""Losses that are not finite: where the first such value comes from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from math import isfinite

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .observed import outside


class NonFiniteError(ArithmeticError):
    """A loss or gradient that is not finite. The step was not taken: the parameters are those before it."""

    def __init__(self, step: int, loss: float, where: str) -> None:
        super().__init__(f"step {step}: the loss is {loss}: {where}")
        self.step, self.loss, self.where = step, loss, where


LOST = (
    "their batches have been changed in place since, so which it was is lost: parameters are those before this step:"
    " pass a new tensor at each step, or set check_every=1"
)


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Of all tensors together, ()."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def head(losses: Sequence[Tensor], norm: Tensor) -> Tensor:
    """Losses and norm of the gradient in one tensor (losses + 1,)."""
    return torch.stack([*(loss.detach().to(norm) for loss in losses), norm])


def read(losses: Sequence[Tensor | float], norm: Tensor) -> list[float]:
    """Losses and norm of the gradient as numbers; one wait for the device."""
    if all(isinstance(loss, Tensor) for loss in losses):
        return head(losses, norm).tolist()
    return [*map(float, losses), norm.item()]


def finite(values: Sequence[float]) -> bool:
    """Whether a step may be taken."""
    return all(map(isfinite, values))


def blame(
    parameters: dict[Tensor, str],
    validated: Collection[str],
    elbo: ELBO | None,
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
) -> str:
    """Where the first value that is not finite comes from, by running the step's programs again."""
    for parameter, name in parameters.items():
        if not parameter.isfinite().all():
            return f"parameter '{name}' was not finite before the step"
    with torch.no_grad(), pyro.validation_enabled(False):
        for model_trace, guide_trace in _traces(elbo, model, guide, args, kwargs):
            for program, trace in (("guide", guide_trace), ("model", model_trace)):
                if found := _first_not_finite(trace, validated):
                    return f"in the {program}, {found}{_given(args, kwargs)}"
    for parameter, name in parameters.items():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of '{name}' is not finite, though every site's value and log_prob are"
    return "each site's value and log_prob, each parameter and gradient is finite: their sum or norm overflows"


def _given(args: tuple, kwargs: dict) -> str:
    """Which argument of the step is not finite, if one is."""
    for number, value in enumerate(tree_leaves((args, kwargs)), 1):
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            index = (~value.isfinite()).nonzero()[0].tolist()
            return f" (argument {number} of the step is {value[tuple(index)].item()} at {index})"
    return ""


def _traces(
    elbo: ELBO | None, model: Callable, guide: Callable, args: tuple, kwargs: dict
) -> Iterable[tuple[poutine.Trace, poutine.Trace]]:
    if elbo is not None:
        return elbo._get_traces(model, guide, args, kwargs)
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    return [(poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs), guide_trace)]


def _first_not_finite(trace: poutine.Trace, validated: Collection[str]) -> str:
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        if name in validated and (found := outside(site)):
            return f"site '{name}': {found}"
        for what, value in (("value", site["value"]), ("log_prob", site["fn"].log_prob(site["value"]))):
            bad = ~value.isfinite() if value.is_floating_point() else torch.zeros(())
            if bad.any():
                index = bad.nonzero()[0].tolist()
                return f"site '{name}': its {what} is {value[tuple(index)].item()} at {index}"
    return ""
