"""The interval that a latent's draws lie in, and the refusal of guides whose interval makes a gradient wrong.

A gradient through draws knows nothing of weights that are zero where the guide reaches beyond the prior's bounds, and
one that rests on the score knows nothing of bounds that move with parameters. Looked at once, as it reads bounds; where
they are not known nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import torch
import torch.distributions as td
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import constraints

from .. import programs
from ..errors import InputError
from ..programs import Drawn, Site, Traces
from ..svi.observed import inner, single

NARROWER = (dist.VonMises, dist.SineBivariateVonMises, dist.SineSkewed, dist.Empirical, dist.Unit)
"""Their support is said to be the real numbers, yet their draws lie in a part of them."""
LIBRARIES = ("torch.", "pyro.", "pvae.")
"""Whose word on where draws lie is taken: a class of one's own may say `real` and draw between bounds."""
ROUNDING = 1e-5
"""Bounds differ by so much of their size if they differ."""


class Span(NamedTuple):
    """The least and the largest number of a distribution's support; infinite ones are floats."""

    low: Tensor | float
    high: Tensor | float

    def __str__(self) -> str:
        if _same(self, REAL):
            return "the real numbers"
        return "numbers between " + " and ".join(map(_said, self))


REAL = Span(-inf, inf)


def span(fn: Any) -> Span | None:
    """Between which numbers the draws of a distribution lie; None where that is not known.

    >>> print(span(dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(2.0, 3.0))))
    the real numbers
    >>> print(span(dist.Uniform(-1.0, torch.tensor([2.0, 3.0])).to_event(1)))
    numbers between -1 and 2..3
    """
    fn = inner(fn)
    if programs.is_point(fn):
        return None
    if isinstance(fn, td.MixtureSameFamily):
        return _widest(fn.component_distribution)
    if isinstance(fn, td.TransformedDistribution) and type(fn).support is td.TransformedDistribution.support:
        found = span(fn.base_dist)
        for transform in fn.transforms:
            found = None if found is None else _image(transform, found)
        return found
    try:
        return _between(single(getattr(fn, "support", None)))
    except (NotImplementedError, ValueError):  # as a mixture of parts with different supports
        return None


def points(drawn: Drawn) -> list[Site]:
    """The guide's sites that are point masses: they have no density."""
    return [site for _, site in programs.drawn_of(drawn.sites) if programs.is_point(site["fn"])]


def kind(site: Site) -> str:
    """The name of a site's distribution, within what is wrapped round it."""
    return type(inner(site["fn"])).__name__


def check(
    traces: Traces, apart: Callable[[], dict[str, Site]], by: str, *, path: bool, moves: bool, narrow: bool
) -> None:
    """Refuse a guide whose support an estimator of the gradient cannot do with; one look, which waits for the device.

    Args:
        traces: of a step.
        apart: gives the guide's sites whose draws have no gradient.
        by: the objective and its estimator.
        path: whether the gradient goes through the draws, for which no weight may be zero.
        moves: whether it is right where the support moves.
        narrow: whether a prior of narrower support is refused.

    Raises:
        InputError: the site and both supports.
    """
    spans = {name: span(site["fn"]) for name, site in programs.drawn_of(traces.guide)}
    if not moves and any(found and any(map(_has_gradient, found)) for found in spans.values()):
        _stay(apart(), by)  # bounds that move with the draws before them alone do no harm
    for name, found in spans.items() if narrow else ():
        prior = traces.model.get(name)
        if found and prior and _leaves(found, traces.guide[name], prior):
            _refuse_wider(name, found, traces.guide[name], prior, by if path else "")


def _stay(sites: dict[str, Site], by: str) -> None:
    for name, site in programs.drawn_of(sites):
        if (found := span(site["fn"])) and any(map(_depends, found)):
            raise InputError(
                f"site '{name}': the guide's support, {found}, moves with its parameters, and {by} takes it to stay:"
                " the gradient would be wrong: expected the gradient reparam, or a guide whose support has no"
                " parameters, such as a transformed normal"
            )


def _refuse_wider(name: str, found: Span, guide: Site, prior: Site, by: str) -> None:
    q, p = (f"{where} ({kind(site)})" for where, site in ((found, guide), (span(prior["fn"]), prior)))
    why = f", and with {by} the gradient would be wrong" if by else ", which validation refuses"
    raise InputError(
        f"site '{name}': the guide's support is {q}, the prior's {p}: draws outside have weight zero{why}: expected a"
        " guide within the prior's support, such as a normal distribution transformed into it by"
        " dist.transforms.biject_to, or a prior with density wherever the guide draws"
    )


def _leaves(found: Span, guide: Site, prior: Site) -> bool:
    """Whether the support of a guide's site reaches beyond that of the prior."""
    within = span(prior["fn"])
    if within is None or _same(within, REAL) or not _trusted(guide["fn"]) or _discrete(guide) or _discrete(prior):
        return False
    try:
        out = _below(found.low, within.low) | _below(*(-1 * end for end in (found.high, within.high)))
        mask = prior["mask"]
        if mask is not None:
            out = out & (
                mask.reshape((*mask.shape, *[1] * prior["fn"].event_dim)) if isinstance(mask, Tensor) else mask
            )
    except RuntimeError:  # shapes that do not go together
        return False
    return bool(out.any())


def _below(end: Tensor | float, bound: Tensor | float) -> Tensor:
    end, bound = (torch.as_tensor(value).detach() for value in (end, bound))
    return end < bound - ROUNDING * (1 + bound.abs()).where(bound.isfinite(), 0.0)


def _trusted(fn: Any) -> bool:
    """Whether draws fill all of what is said to be their support."""
    parts = [inner(fn)]
    while isinstance(fn := parts[-1], td.TransformedDistribution | td.MixtureSameFamily):
        parts += getattr(fn, "transforms", [])
        parts.append(inner(fn.base_dist if isinstance(fn, td.TransformedDistribution) else fn.component_distribution))
    return all(type(part).__module__.startswith(LIBRARIES) and not isinstance(part, NARROWER) for part in parts)


def _discrete(site: Site) -> bool:
    try:
        return bool(site["fn"].support.is_discrete)
    except (NotImplementedError, ValueError):
        return True


def _said(end: Tensor | float) -> str:
    """A bound in words: of one that differs from datum to datum the least and the largest."""
    ends = torch.as_tensor(end).detach()
    found = dict.fromkeys(f"{value.item():.4g}" for value in (ends.amin(), ends.amax()))
    return "..".join(found)


def _same(one: Span, other: Span) -> bool:
    return all(isinstance(a, float) and isinstance(b, float) and a == b for a, b in zip(one, other, strict=True))


def _between(support: Any) -> Span | None:
    """The bounds that a constraint on single numbers names."""
    if support is constraints.real:
        return REAL
    if support is constraints.boolean:
        return Span(0.0, 1.0)
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is None and high is None:
        return None
    return Span(-inf if low is None else _plain(low), inf if high is None else _plain(high))


def _widest(components: Any) -> Span | None:
    """Of the components of a mixture, which are the last of their batch dimensions."""
    found = span(components)
    if found is None:
        return None
    shape, dim = components.batch_shape + components.event_shape, -1 - len(components.event_shape)
    low, high = (end.expand(shape) if isinstance(end, Tensor) else end for end in found)
    return Span(
        low.amin(dim) if isinstance(low, Tensor) else low,
        high.amax(dim) if isinstance(high, Tensor) else high,
    )


def _image(transform: Any, found: Span | None) -> Span | None:
    """What a transform makes of the numbers between two bounds; None where it is not known to be monotone."""
    if hasattr(transform, "parts"):
        for part in transform.parts:
            found = _image(part, found)
        return found
    if found is None:
        return None
    try:
        domain, codomain = (_between(single(side)) for side in (transform.domain, transform.codomain))
        if _same(found, domain):
            return codomain  # from all that it takes to all that it gives
        if not isinstance(transform.sign, Tensor | int):
            return None
        ends = [torch.as_tensor(_plain(transform(torch.as_tensor(end)))) for end in found]
        return Span(_plain(torch.minimum(*ends)), _plain(torch.maximum(*ends)))
    except (NotImplementedError, AttributeError, RuntimeError, TypeError, ValueError):
        return None


def _plain(end: Any) -> Tensor | float:
    """A bound as a float, where it is the same throughout and nothing moves it."""
    if not isinstance(end, Tensor):
        return float(end)
    first = end.detach().flatten()[:1]
    if (end == first).all() and len(first) and (first.isinf() or not end.requires_grad):
        return first.item()
    return end


def _has_gradient(end: Tensor | float) -> bool:
    return isinstance(end, Tensor) and end.requires_grad


def _depends(end: Tensor | float) -> bool:
    """Whether a bound changes with parameters: one that is 0 times a scale does not."""
    if not _has_gradient(end):
        return False
    if end.grad_fn is None:
        return True
    ahead, leaves = [end.grad_fn], {}
    met = set(ahead)
    while ahead:
        node = ahead.pop()
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        new = {next_node for next_node, _ in node.next_functions if next_node is not None} - met
        met |= new
        ahead += new
    weighed = (end * torch.arange(1, end.numel() + 1, device=end.device).reshape(end.shape)).sum()
    found = torch.autograd.grad(weighed, list(leaves.values()), retain_graph=True, allow_unused=True)
    return any(gradient is not None and bool((gradient != 0).any()) for gradient in found)
