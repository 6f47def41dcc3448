"""Losses that are not finite: where the first such value comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from math import isfinite

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..errors import LIBRARIES
from .observed import outside, shortened


class NonFiniteError(ArithmeticError, ValueError):
    """A loss or gradient that is not finite. The step was not taken: the parameters are those before it.

    A `ValueError` too, as Pyro's validation raises in an eager step, which looks before there is a loss.
    """

    def __init__(self, step: int, loss: float, where: str) -> None:
        super().__init__(f"step {step}: the loss is {loss}: {where}")
        self.step, self.loss, self.where = step, loss, where


LOST = (
    "their batches have been changed in place since, so which it was is lost: parameters are those before this step:"
    " pass a new tensor at each step, or set check_every=1"
)


_OF = r"\(Tensor of shape (\(.*?\))\)"
_PARAMETER = rf"Expected parameter (\w+) {_OF} of distribution (\w+)\(.*\) to satisfy the constraint (.*)"
_VALUE = rf"Expected value argument {_OF} to be within the support \((.*)\) of the distribution (\w+)\("
_FEW = "Expected more than 1 value per channel when training"


def in_a_line(error: Exception) -> str:
    """What torch's validation refuses, without the page of numbers that it prints; nothing where it is no such error.

    >>> try:
    ...     torch.distributions.Normal(torch.tensor([0.0, float("nan")]), 1.0)
    ... except ValueError as error:
    ...     in_a_line(error)
    'the loc of a Normal, of shape (2,): found nan, expected Real(): parameters or data are not finite'
    """
    if str(error).startswith(_FEW):
        return (
            "batch normalization in training mode was given one datum, over which it cannot average: expected"
            " evaluation mode: call .eval() on the network first; to train, give it 2 data or more"
        )
    text, refused, found = " ".join(str(error).split()).partition(", but found invalid values")
    if not refused:
        return ""
    lost = re.search(r"\bnan\b|\binf\b", found.partition(")")[0])
    what = lost[0] if lost else "values outside"
    end = ": parameters or data are not finite" if lost else ""
    site = re.match(r"Error while computing log_prob at (site '.*?'): ", text)
    where = f"{site[1]}: " if site else ""
    if parts := re.search(_PARAMETER, text):
        name, shape, kind, expected = parts.groups()
        return f"{where}the {name} of a {kind}, of shape {shape}: found {what}, expected {_inner(expected)}{end}"
    if parts := re.search(_VALUE, text):
        shape, expected, kind = parts.groups()
        return f"{where}a value of shape {shape}: found {what}, expected {_inner(expected)}, as {kind} scores{end}"
    return text[:300]


@contextmanager
def in_lines() -> Iterator[None]:
    """Within it what torch's validation refuses is a ValueError of one line."""
    try:
        yield
    except ValueError as error:
        if line := in_a_line(error):
            raise ValueError(line) from error
        raise


def _inner(constraint: str) -> str:
    """A constraint without what says how many dimensions are one event."""
    while found := re.fullmatch(r"IndependentConstraint\((.*), \d+\)", constraint):
        constraint = found[1]
    return shortened(constraint)


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Of all tensors together, ()."""
    return torch.linalg.vector_norm(norms_of(tensors))


def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """Of each tensor, (tensors,)."""
    dense = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
    return torch.stack(torch._foreach_norm(dense))


def head(losses: Sequence[Tensor], norm: Tensor) -> Tensor:
    """Losses and norm of the gradient in one tensor (losses + 1,), of the widest type among them."""
    values = [loss.detach() for loss in losses] + [norm]
    dtype = reduce(torch.promote_types, (value.dtype for value in values))
    return torch.stack([value.to(norm.device, dtype) for value in values])


def read(losses: Sequence[Tensor | float], norm: Tensor) -> list[float]:
    """Losses and norm of the gradient as numbers; one wait for the device."""
    if norm.device.type != "cpu" and all(isinstance(loss, Tensor) for loss in losses):
        return head(losses, norm).tolist()
    return [*(loss.item() if isinstance(loss, Tensor) else float(loss) for loss in losses), norm.item()]


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
    own = elbo is not None and type(elbo).__module__.partition(".")[0] not in LIBRARIES
    of = f", or what {type(elbo).__name__} makes of them is not finite" if own else ""
    return f"each site's value and log_prob, each parameter and gradient is finite: their sum or norm overflows{of}"


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
            if (bad := ~value.isfinite()).any():
                index = bad.nonzero()[0].tolist()
                return f"site '{name}': its {what} is {value[tuple(index)].item()} at {index}"
    return ""
