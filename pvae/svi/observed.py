"""Whether what a program observes lies in the supports of its sites, at every step, replayed or not."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints

LONG = 100
"""Characters of a support from which on its bounds are not shown: it may print a page of them."""
BY_ELEMENT = (
    constraints.greater_than,
    constraints.greater_than_eq,
    constraints.half_open_interval,
    constraints.integer_interval,
    constraints.interval,
    constraints.less_than,
    *map(type, (constraints.boolean, constraints.nonnegative_integer, constraints.one_hot, constraints.simplex)),
)
"""What is looked at. Of a real number that is not finite the loss tells; the others take too long, or wait."""


class Observed(Messenger):
    """Holds observed values against the supports of their sites, where Pyro's validation would: by tensors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = False
        """Whether this step's values are new; those of data that stay are looked at by who loads them."""
        self.names: frozenset[str] | None = None
        """The sites that are validated; not yet known."""
        self._inside: list[Tensor] = []

    def learn(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        """Run both programs to see which observed sites are validated."""
        self.names = frozenset()
        if not Distribution._validate_args:
            return
        try:
            with poutine.block(), torch.no_grad():
                drawn = poutine.trace(guide).get_trace(*args, **kwargs)
                sites = poutine.trace(poutine.replay(model, drawn)).get_trace(*args, **kwargs).nodes
        except Exception:  # a loss may run programs in a way of its own
            return
        self.names = frozenset(name for name, site in sites.items() if validated(site))

    def __enter__(self) -> Observed:
        self._inside.clear()
        return super().__enter__()

    def _pyro_post_sample(self, site: dict[str, Any]) -> None:
        if self.looks and self.names and site["name"] in self.names:
            self._inside.append(_all_inside(inner(site["fn"]), site["value"]))

    def held(self, losses: tuple) -> tuple:
        """The losses of the step; the first is infinite where a value lies outside: its density is zero."""
        if not self._inside or not losses or not isinstance(losses[0], Tensor):
            return losses
        return losses[0].where(torch.stack(self._inside).all(), inf), *losses[1:]


def _all_inside(fn: Any, value: Tensor) -> Tensor:
    """What `support.check(value).all()` says; of zeros and ones in a fifth of the time: truth values are slow."""
    if _elements(fn) is constraints.boolean and value.is_floating_point():
        return torch.addcmul(value, value, value, value=-1).abs().amax() == 0
    return fn.support.check(value).all()


def outside(site: dict[str, Any], masked: bool = True) -> str:
    """The first of a site's values that is outside its support, and where; empty where all are inside.

    Args:
        site: whose they are.
        masked: whether those that a mask leaves out are looked at too.
    """
    fn, value = site["fn"], site["value"]
    support = _elements(fn)
    if support is None or (inside := support.check(value) if masked else counted_inside(site, support)).all():
        return ""
    at = (~inside).nonzero()[0].tolist()
    found = f"{value[tuple(at)].item():.7g}" if inside.shape == value.shape else "a value outside"
    scores = type(inner(fn)).__name__
    expected = shortened(str(support))
    return f"found {found} at {at}, of shape {tuple(value.shape)}, expected {expected}, as {scores} scores"


def shortened(support: str) -> str:
    """What torch prints of a support, without its bounds where they are many numbers.

    >>> shortened(f"IntegerInterval(lower_bound=0, upper_bound={torch.ones(100)})")
    'IntegerInterval'
    """
    return support if len(support) < LONG else support.partition("(")[0]


def counted_inside(site: dict[str, Any], support: constraints.Constraint | None = None) -> Tensor:
    """Whether a site's values are inside its support; those that a mask leaves out are."""
    fn = site["fn"]
    support = support or _elements(fn)
    inside, masks = support.check(site["value"]), [(site["mask"], fn.event_dim)]
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            masks.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    for mask, event_dim in masks:
        if isinstance(mask, Tensor):
            inside = inside | ~mask.reshape(*mask.shape, *[1] * (event_dim - support.event_dim))
        elif mask is False:
            inside = torch.ones_like(inside)
    return inside


def inside_by_element(site: dict[str, Any]) -> Tensor:
    """`counted_inside`, in a site's batch shape."""
    inside = counted_inside(site)
    right = site["fn"].event_dim - _elements(site["fn"]).event_dim
    return inside.flatten(-right).all(-1) if right else inside


def validated(site: dict[str, Any]) -> bool:
    """Whether it is observed, with a support that is looked at, and validation on as it was made."""
    if site["type"] != "sample" or not site["is_observed"] or not isinstance(site["value"], Tensor):
        return False
    fn = inner(site["fn"])
    return getattr(fn, "_validate_args", False) and isinstance(_elements(fn), BY_ELEMENT)


def inner(fn: Any) -> Any:
    """The distribution that looks at values, within what only shapes or masks it."""
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return fn


def _elements(fn: Any) -> Any:
    try:
        return single(getattr(fn, "support", None))
    except NotImplementedError:  # a distribution that does not say
        return None


def single(support: Any) -> Any:
    """What a support asks of single numbers."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support
