"""Masks of sites: which numbers of a value count."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent

from ..replay.lines import outside
from .plates import Site


def counted(site: Site) -> Tensor | None:
    """Which of a site's numbers count, bool, in a shape that broadcasts to its value's; None where nothing is masked.

    Both masks are looked for: `poutine.mask` round the site, and `.mask(...)` of its distribution, in `.to_event`, too.

    >>> import pyro.distributions as dist
    >>> inside = dist.Normal(torch.zeros(2, 3), 1.0).mask(torch.tensor([True, True, False])).to_event(1)
    >>> counted({"fn": inside, "mask": None, "value": inside.sample()})
    tensor([[ True,  True, False],
            [ True,  True, False]])
    """
    found = [] if site["mask"] is None else [(site["mask"], site["fn"].event_dim)]
    found += [(fn._mask, fn.event_dim) for fn in _within(site["fn"]) if isinstance(fn, MaskedDistribution)]
    value = None
    for mask, event in found:
        mask = torch.as_tensor(mask, device=site["value"].device)
        mask = mask.reshape([*mask.shape, *[1] * event])
        value = mask if value is None else value & mask
    return value


def masks_within(fn: Any) -> list[Any]:
    """Those of a distribution itself."""
    return [inner._mask for inner in _within(fn) if isinstance(inner, MaskedDistribution)]


def unmasked(fn: Any) -> Any:
    """A distribution without the masks within it."""
    if isinstance(fn, MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, Independent) and isinstance(fn.base_dist, Independent | MaskedDistribution):
        return unmasked(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    return fn


def _within(fn: Any) -> Iterator[Any]:
    """A distribution, and what it is made of."""
    yield fn
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
        yield fn


def warn_of_unmasked(guide: Mapping[str, Site], model: Mapping[str, Site]) -> None:
    """Say where one program counts numbers of a latent that the other leaves out: no bound has that.

    A prior that is left out whole is a flat one, as people write it.
    """
    for name in (name for name, site in model.items() if name in guide and not site["is_observed"]):
        own, kept = (counted(sites[name]) for sites in (guide, model))
        if own is None and kept is None:
            continue
        own, kept = (torch.ones_like(kept if own is None else own) if m is None else m for m in (own, kept))
        wrong = ""
        if (kept & ~own).any() and not any(isinstance(fn, Delta) for fn in _within(guide[name]["fn"])):
            wrong = "the model keeps what the guide's mask leaves out, and log q lacks it"
        elif kept.any() and (own & ~kept).any():
            wrong = "the guide keeps what the model's mask leaves out, and log q counts it"
        if wrong:
            warnings.warn(f"site '{name}': {wrong}: a bound may be above log p: mask both alike", stacklevel=outside())
