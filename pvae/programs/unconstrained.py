"""Latents as numbers without constraints: the map from these to a site's support, and its log-determinant."""

from __future__ import annotations

from math import pi

import torch
from pyro.distributions import SineBivariateVonMises, SineSkewed
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import (
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    VonMises,
    biject_to,
    constraints,
)

from ..errors import InputError
from ..svi.observed import inner, single
from .collect import Collect, Program
from .masks import counted
from .plates import Site

CIRCLES = (VonMises, SineBivariateVonMises, SineSkewed)
"""Whose draws are angles."""


class Unconstrained(Collect):
    """Runs a model on numbers without constraints: a latent's value is their image in its support.

    The support may depend on the latents before it.
    """

    def __init__(self, program: Program, numbers: dict[str, Tensor]) -> None:
        super().__init__(program)
        self.numbers = numbers
        self.log_dets: list[Tensor] = []

    def _pyro_sample(self, msg: Site) -> None:
        if msg["is_observed"] or msg["name"] not in self.numbers:
            return
        numbers = self.numbers[msg["name"]]
        msg["value"], msg["done"] = numbers, True
        if is_circle(msg):
            msg["value"] = numbers - 2 * pi * (numbers / (2 * pi)).round()
        elif not _is_real(support := _support(msg)):
            msg["value"] = biject_to(support)(numbers)
            self.log_dets.append(_log_det(msg, numbers))


def numbers_of(site: Site) -> Tensor:
    """A site's value without constraints.

    Raises:
        InputError: a support that no such numbers map onto one to one.
    """
    support = _support(site)
    return site["value"] if _is_real(support) else _map_to(site["name"], support).inv(site["value"])


def at_an_end(site: Site) -> Tensor | None:
    """Which of a site's numbers are where its map stands still, in their shape, bool; None where it has no ends.

    That is beyond the last value that their type tells from an end of the support, which may be infinite: all draws
    from there on are this value, and the density of numbers further out is too small.
    """
    support = _support(site)
    if _is_real(support):
        return None
    numbers, to_value = numbers_of(site), biject_to(support)
    least, most = torch.finfo(numbers.dtype).tiny, torch.finfo(numbers.dtype).max / 2
    found = torch.zeros_like(numbers, dtype=torch.bool)
    for further in (-1, 1):
        with torch.enable_grad():
            u = (numbers + further).detach().requires_grad_()
            value = to_value(u)
            place = torch.ones_like(value).cumsum(-1)  # by which they are weighed, as some sum to a constant
            slope = torch.autograd.grad((value * (1 + place / place.max())).sum(), u)[0].abs()
        found |= ~((slope >= least) & (slope < most))
    if (mask := counted(site)) is None:
        return found
    each = biject_to(single(support))
    return found & mask[(..., *[0] * each.codomain.event_dim)][(..., *[None] * each.domain.event_dim)]


def is_circle(site: Site) -> bool:
    """Whether draws are angles, which torch calls real: their densities are of one turn, and the same a turn on.

    Raises:
        InputError: angles that are mapped to other numbers, of which a turn is of another length.
    """
    fn, mapped = inner(site["fn"]), False
    while isinstance(fn, TransformedDistribution | MixtureSameFamily):
        mapped = mapped or isinstance(fn, TransformedDistribution)
        fn = inner(fn.base_dist if isinstance(fn, TransformedDistribution) else fn.component_distribution)
    if mapped and isinstance(fn, CIRCLES):
        raise InputError(
            f"site '{site['name']}': found angles of {type(fn).__name__} that a transform maps to other numbers,"
            " expected angles themselves: draw these, and map them in the model"
        )
    return isinstance(fn, CIRCLES)


def _support(site: Site) -> constraints.Constraint:
    """Where a site's values lie; of a mixture, where those of any of its components do."""
    return _unmixed(site["fn"].support)


def _unmixed(support: constraints.Constraint) -> constraints.Constraint:
    if isinstance(support, constraints.independent):
        return constraints.independent(_unmixed(support.base_constraint), support.reinterpreted_batch_ndims)
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return _widest(_unmixed(support.base_constraint), -1 - support.event_dim)
    return support


def _widest(support: constraints.Constraint, dim: int) -> constraints.Constraint:
    """Without the dimension of a mixture's components: from the least of their bounds to the largest."""
    if isinstance(support, constraints.independent):
        return constraints.independent(_widest(support.base_constraint, dim), support.reinterpreted_batch_ndims)
    ends = {"lower_bound": torch.amin, "upper_bound": torch.amax}
    bounds = {name: getattr(support, name) for name in ends if hasattr(support, name)}
    wide = {name: ends[name](end, dim) for name, end in bounds.items() if isinstance(end, Tensor) and end.dim() >= -dim}
    return type(support)(**bounds | wide) if wide else support


def _is_real(support: constraints.Constraint) -> bool:
    return single(support) is constraints.real


def _map_to(name: str, support: constraints.Constraint) -> Transform:
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise InputError(
            f"site '{name}': found latents that no numbers without constraints map onto one to one: expected ones on"
            " the real numbers, or between bounds"
        ) from error


def _log_det(site: Site, numbers: Tensor) -> Tensor:
    """The log-determinant of the map from numbers to a site's value, in its batch shape, of what is not masked."""
    support = single(_support(site))
    value = biject_to(support).log_abs_det_jacobian(numbers, site["value"])
    if (mask := counted(site)) is not None:
        value = value.where(mask[(..., *[0] * support.event_dim)], 0.0)
    return sum_rightmost(value, site["fn"].event_dim - support.event_dim)
