"""Many particles in little memory: the model is scored in parts, and scored again when the gradient is taken.

What grows with K is the latent draws alone, not what the networks keep of them for the gradient.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import weights
from .weights import Drawn, Program, Site, Traces

SHARE = 0.25
"""Of the free memory, that one part may take for its gradient; as much again comes and goes beside it."""
FEW = 64
"""So many particles are taken at once without a look at the memory."""


def score(model: Program, drawn: Drawn, size: int, *args: Any, plate: str = "", **kwargs: Any) -> Traces:
    """`pvae.weights.score` in parts of at most `size` particles: the same values and gradients.

    The model's sites hold their log-probabilities, and no distribution.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
    >>> x = torch.zeros(3)
    >>> drawn = weights.draw(guide, x, particles=5, max_plate_nesting=1)
    >>> parts, whole = weights.split(score(model, drawn, 2, x)), weights.split(weights.score(model, drawn, x))
    >>> torch.allclose(parts.log_w, whole.log_w)
    True
    """
    found: dict[str, list[Tensor]] = {}
    sites: dict[str, Site] = {}
    latents = [name for name, _ in weights.sites_of(drawn.sites)]
    for part in drawn.parts(size):

        def run(*values: Tensor, part: Drawn = part) -> tuple[Tensor, ...]:
            given = {name: {**part.sites[name], "value": value} for name, value in zip(latents, values, strict=True)}
            again = Drawn({**part.sites, **given}, part.particles, part.max_plate_nesting)
            traces = weights.score(model, again, *args, plate=plate, **kwargs)
            scored = dict(weights.sites_of(traces.model, observed=True))
            sites.update({name: {**site, "fn": None, "value": None, "mask": None} for name, site in scored.items()})
            return tuple(traces.spread(weights.log_prob(site, traces)) for site in scored.values())

        parts = checkpoint(run, *(part.sites[name]["value"] for name in latents), use_reentrant=False)
        for name, value in zip(sites, parts, strict=True):
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        sites[name]["log_prob"] = torch.cat(values)
    return Traces(sites, drawn.sites, drawn.particles, drawn.max_plate_nesting, plate)


def fitting(model: Program, guide: Program, particles: int, max_plate_nesting: int, args: Any, kwargs: Any) -> int:
    """How many particles at once the free memory has room for, of K; found by two runs of few particles.

    Draws nothing from the generators that others see.
    """
    if particles <= FEW:
        return particles
    few, more = (_kept(model, guide, k, max_plate_nesting, args, kwargs) for k in (2, 4))
    each = max(1, (more - few) // 2)
    return max(1, min(particles, int(SHARE * _free(args)) // each))


def _kept(model: Program, guide: Program, particles: int, max_plate_nesting: int, args: Any, kwargs: Any) -> int:
    """Bytes that are kept for the gradient."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.random.fork_rng(devices=weights.cuda_devices()), torch.enable_grad(), hooks:
        drawn = weights.draw(guide, *args, particles=particles, max_plate_nesting=max_plate_nesting, **kwargs)
        terms = weights.split(weights.score(model, drawn, *args, **kwargs))
        del drawn
        return sum(seen.values()) * (terms is not None)


def _free(args: Any) -> int:
    """Bytes free where the data are."""
    if any(isinstance(arg, Tensor) and arg.is_cuda for arg in args):
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
