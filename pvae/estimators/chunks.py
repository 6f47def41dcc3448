"""Gradient checkpointing by particles: taken in parts, each run again for the gradient, so that memory is flat in K.

On a CPU it grows somewhat nevertheless, by what glibc's allocator holds on to.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from .. import programs
from ..noise import forked
from ..programs import LogWeights, Program, Site, is_subsample
from .reruns import Reruns
from .surrogates import Coefficients, Step, weighted

if TYPE_CHECKING:
    from .gradient import Gradient

SHARE = 0.25
"""Of the free memory, that one part may take for its gradient; as much again comes and goes beside it."""
FEW = 64
"""So many particles are taken at once without a look at the memory."""
UNKNOWN = 2**31
"""Bytes that are taken to be free where the system does not say: macOS, Windows."""


class _SameElements(Messenger):
    """Where a plate subsamples, every run takes the elements that the first has drawn.

    They are drawn nevertheless: a run that is run again has the same random numbers.
    """

    def __init__(self, drawn: dict[str, Any]) -> None:
        super().__init__()
        self.drawn = drawn

    def _pyro_post_sample(self, msg: Site) -> None:
        if is_subsample(msg):
            msg["value"] = self.drawn.setdefault(msg["name"], msg["value"])


class _Part:
    """Some of the particles: their log-weights now; their share of the surrogate when the gradient is taken."""

    def __init__(
        self, gradient: Gradient, objective: Any, step: Step, elements: dict[str, Any], reruns: Reruns
    ) -> None:
        self.gradient, self.objective, self.step, self.reruns = gradient, objective, step, reruns
        self.elements = elements
        """Of plates that subsample, what the first run has drawn."""
        self.chosen: tuple[Coefficients, Any] | None = None
        """The coefficients of these particles, and beta; known once the log-weights of all are."""
        self.scale = 1.0

    def __call__(self) -> tuple[Tensor, ...]:
        with self.reruns.once(), _SameElements(self.elements):
            terms, pairs, traces = self.gradient.pairs(self.objective, self.step, self._choose)
        self.scale = traces.scale
        nothing = torch.zeros_like(terms.likelihood[0])
        return weighted(nothing, pairs), *(term.detach() for term in terms)

    def _choose(self, terms: LogWeights) -> tuple[Coefficients, Any]:
        return self.chosen or (Coefficients(*[torch.zeros_like(terms.likelihood)] * 3), 1.0)


def estimate(gradient: Gradient, objective: Any, step: Step) -> tuple[Tensor, float]:
    """The bound for each datum, (B,), with the estimated gradient, from particles in parts of at most `step.chunk`.

    Each part is run twice from the same random numbers: for its log-weights, and again for its gradient, when the
    weights of all particles are known. Value and gradient are those of all at once, but for the order of random
    numbers; the state of a program, such as running statistics, moves in the first run alone. Nothing of size
    (K, B, anything) is kept.
    """
    reruns = Reruns(draws=False)
    starts = range(0, step.particles, step.chunk)
    sizes = [min(step.chunk, step.particles - start) for start in starts]
    elements: dict[str, Any] = {}
    parts = [
        _Part(gradient, objective, replace(step, particles=size, path={}, aside={}), elements, reruns) for size in sizes
    ]
    found = [checkpoint(part, use_reentrant=False) for part in parts]
    terms = LogWeights(*(torch.cat(part) for part in zip(*(terms for _, *terms in found), strict=True)))
    if not torch.is_grad_enabled():
        return objective.bound(terms.log_w), parts[0].scale
    coefficients, beta = gradient.choose(objective, terms)
    for part, start, size in zip(parts, starts, sizes, strict=True):
        mine = slice(start, start + size)
        each = isinstance(beta, Tensor) and beta.dim() == 2 and len(beta) == step.particles
        part.chosen = (
            Coefficients(*(None if c is None else c[mine] for c in coefficients)),
            beta[mine] if each else beta,
        )
    value = objective.bound(terms.log_w)
    for surrogate, *_ in found:
        value = value + surrogate  # zeros, with the gradient
    return value, parts[0].scale


def size(args: Any, kwargs: Any) -> int:
    """How many numbers the tensors among arguments have: a batch with more of them is taken to be more work.

    >>> size((torch.ones(3, 2), {"mask": torch.ones(3)}), {"beta": 0.5})
    9
    """
    return sum(leaf.numel() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))


def fitting(
    model: Program,
    guide: Program,
    particles: int,
    max_plate_nesting: int,
    args: Any,
    kwargs: Any,
    again: bool = False,
) -> int:
    """How many particles at once the free memory has room for, of K; found by two runs of few particles.

    Draws nothing from the generators that others see; programs that have run before keep their state (`again`).
    """
    if particles <= FEW:
        return particles
    with Reruns(draws=False).undone() if again else nullcontext():
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
    with forked(), torch.enable_grad(), hooks:
        drawn = programs.draw(guide, *args, particles=particles, max_plate_nesting=max_plate_nesting, **kwargs)
        terms = programs.split(programs.score(model, drawn, *args, **kwargs))
        del drawn
        return sum(seen.values()) * (terms is not None)


def _free(args: Any) -> int:
    """Bytes free where the data are; on a GPU also those that torch keeps for later, of the share it may take."""
    if any(isinstance(arg, Tensor) and arg.is_cuda for arg in args):
        (free, total), used = torch.cuda.mem_get_info(), torch.cuda.memory_allocated()
        return (
            min(free + torch.cuda.memory_reserved(), int(torch.cuda.get_per_process_memory_fraction() * total)) - used
        )
    if "SC_AVPHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return UNKNOWN
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
