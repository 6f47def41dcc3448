"""KL(q(z|x) || p(z)) of a pair of traces: in closed form where that is right and known, else from the draws."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence
from torch.distributions.kl import _KL_REGISTRY

from .collect import densities, is_known, is_point, sites_of, unvalidated
from .masks import masks_within
from .plates import Site, is_auxiliary
from .weights import Traces, log_prob, scored, total


def kl(traces: Traces) -> Tensor:
    """KL(q(z|x) || p(z)) for each datum, (B,), nats: the terms that `closed` finds, and the others' by their draws.

    A later site's term is the mean over the draws of the sites before it. Pyro's `TraceMeanField_ELBO` takes the closed
    form whatever the order.

    >>> import pyro, torch, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x, 1.0))
    >>> from pvae.programs import trace
    >>> kl(trace(model, guide, torch.tensor([0.0, 2.0])))
    tensor([0., 2.])
    """
    found = closed(traces)
    with unvalidated():
        terms = [
            traces.by_datum(traces.scaled(site, found[name]))
            if name in found
            else log_prob(site, traces) - log_prob(traces.model[name], traces)
            for name, site in sites_of(traces.guide)
        ]
        every = sites_of(traces.guide, observed=True)
        factors = [log_prob(site, traces) for _, site in every if site["is_observed"] or is_auxiliary(site)]
    return total(terms + factors).mean(0)


def closed(traces: Traces) -> dict[str, Tensor]:
    """KL(q || p) in closed form, in its batch shape, of each latent site for which that is right and known.

    Right it is where the guide, too, draws every latent before the site that the model does. Any other may come from
    this site's draw, and p depend on it: then no average over the site alone is the term. And where both programs mask
    a site, or neither: a prior that is left out alone is a flat one, and there the term is found by the draws. Known it
    is of a class, and not of one made of it that has another density; and of no point mass, which may have any.
    """
    order = [name for name, _ in sites_of(traces.model)]
    found, drawn = {}, set()
    for name, site in sites_of(traces.guide):
        prior = traces.model[name]
        if _formulated(site["fn"]) and _formulated(prior["fn"]) and drawn.issuperset(order[: order.index(name)]):
            with unvalidated(), suppress(NotImplementedError):
                value = kl_divergence(site["fn"], prior["fn"])
                if (value := _masked(value, site, prior)) is not None:
                    found[name] = value
        drawn.add(name)
    return found


def _formulated(fn: Any) -> bool:
    """Whether a closed form, where one is registered, is of this distribution's own density."""
    return not is_point(fn) and all(
        is_known(kind) or any(kind in pair for pair in _KL_REGISTRY) for kind in densities(fn)
    )


def _masked(value: Tensor, site: Site, prior: Site) -> Tensor | None:
    """A KL where both programs count, 0 where neither does, and by the draws elsewhere; None if that is everywhere."""
    if [*map(id, masks_within(site["fn"]))] != [*map(id, masks_within(prior["fn"]))]:
        return None
    own, kept = (True if each["mask"] is None else each["mask"] for each in (site, prior))
    if own is kept:
        return value if own is True else scale_and_mask(value, mask=own)
    if not isinstance(own, Tensor) and not isinstance(kept, Tensor):
        return None
    terms = (scale_and_mask(scored(each), mask=mask) for each, mask in ((site, own), (prior, kept)))
    by_draws = next(terms) - next(terms)
    return scale_and_mask(value, mask=own).where(torch.as_tensor(own == kept, device=value.device), by_draws)
