"""The guide whose encoder's answer is refined for every datum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..base import Part
from ..distributions import DiagonalNormal
from ..errors import InputError, whole_number
from .guide import Guide
from .scales import BoundedScale


class SemiAmortized(Guide, name="semi_amortized"):
    """A mean-field Gaussian refined by steps up the ELBO of each datum: q(z|x) = N(m, diag s^2), from the encoder's.

    A step takes g, the gradient of L(m, log s) = E_e[log p(x|m + s e) + log p(m + s e)] + sum log s, and goes along the
    natural gradient, whose size depends on no scale (Khan and Lin 2017): with rate r

        log s <- log s + min(r g_s, 1) / 2, or -1/2 log(1 - r g_s) where g_s < 0;    m <- m + r s^2 g_m

    The expectation is over pairs of points e and -e with entries 1 and -1, other ones at each step, so that the same
    datum is always given the same q; its mean and variances are exact, its covariances are once there are as many pairs
    as the first power of two that is at least the number of latent dimensions. Networks are as in evaluation while q is
    refined.

    Args:
        encoder: from data to means, then numbers of the scale: 2 * latent of them.
        steps: how many.
        step_size: r, above 0 and at most 1; above 2 / latent they may diverge where the latents are much correlated.
        pairs: of points at each step: each costs two runs of the likelihood, and their gradient.
        through: differentiate through the steps in training; else what they add to mean and log-scale is a constant.
        min_scale: lower bound of the scale.
        max_scale: upper bound of the scale, above 1.

    Raises:
        InputError: options out of range; when called before a VAE has shown it its prior and likelihood.

    Source: Kim et al. 2018; Marino, Yue and Mandt 2018.

    >>> import pvae
    >>> guide = SemiAmortized(nn.Linear(6, 4), latent=2)
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(nn.Linear(2, 6), (6,)), guide)
    >>> guide(torch.ones(5, 6)).mean.shape
    torch.Size([5, 2])
    """

    points: Tensor
    _prior: Part | None
    _likelihood: Part | None

    def __init__(
        self,
        encoder: nn.Module,
        latent: int,
        event_dim: int | None = None,
        steps: int = 3,
        step_size: float = 0.1,
        pairs: int = 1,
        through: bool = True,
        min_scale: float = 1e-4,
        max_scale: float = 10.0,
    ) -> None:
        super().__init__(encoder, latent, event_dim)
        whole_number(1, steps=steps, pairs=pairs)
        if not 0 < step_size <= 1:
            raise InputError(f"step_size: found {step_size}, expected above 0 and at most 1")
        self.steps, self.step_size, self.pairs, self.through = steps, step_size, pairs, through
        self.scale = BoundedScale(min_scale, max_scale)
        self.register_buffer("points", _points(steps, pairs, latent), persistent=False)
        self._prior = self._likelihood = None

    def connect(self, prior: Part, likelihood: Part, guide: Part) -> None:
        """Meet the prior and the likelihood of the model, whose ELBO is climbed."""
        for name, part in (("_prior", prior), ("_likelihood", likelihood)):
            object.__setattr__(self, name, part)  # or its parameters would be this part's as well

    def amortized(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """The encoder's q(z|x), unrefined."""
        mean, raw = self.encode(x, y).chunk(2, -1)
        return DiagonalNormal(mean, self.scale(raw))

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        if self._prior is None or self._likelihood is None:
            raise InputError(
                "guide SemiAmortized: found no prior and likelihood to refine against, expected those of a model: make"
                " a pvae.VAE of them, or call guide.connect(prior, likelihood, guide)"
            )
        start = self.amortized(x, y)
        mean, log_scale = start.loc, start.scale.log()
        follow = self.through and torch.is_grad_enabled()
        # where particles come in parts nothing is kept for the gradient, which the steps take at once
        kept = torch.autograd.graph.saved_tensors_hooks(lambda value: value, lambda value: value)
        with _as_in_evaluation(self._prior, self._likelihood), kept:
            # once, as it may take more than all steps; not by its call, which would say once more that it is used
            prior = self._prior.forward(y)
            for step in range(self.steps):
                mean, log_scale = self._step(step, mean, log_scale, prior, x, y, follow)
        return DiagonalNormal(mean, log_scale.exp())

    def _step(
        self, step: int, mean: Tensor, log_scale: Tensor, prior: Any, x: Tensor, y: Tensor | None, follow: bool
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-scale after a step; the gradient passes through it if it is to be followed."""
        with torch.enable_grad():
            # nodes of their own, through which no other path of the graph leads
            at = [
                part.view_as(part) if follow and part.requires_grad else part.detach().requires_grad_()
                for part in (mean, log_scale)
            ]
            bound = self._bound(step, *at, prior, x, y)
            of_mean, of_scale = torch.autograd.grad(bound.sum(), at, create_graph=follow)
        with torch.set_grad_enabled(follow):
            rise = self.step_size * of_scale
            rise = rise.clamp(0, 1) / 2 - torch.log1p((-rise).clamp(min=0)) / 2
            after = log_scale + rise
            change = self.step_size * (2 * after).exp() * of_mean
            after = after.clamp(math.log(self.scale.low), math.log(self.scale.high))
        if follow:
            return mean + change, after
        return mean + change, log_scale + (after - log_scale.detach())

    def _bound(self, step: int, mean: Tensor, log_scale: Tensor, prior: Any, x: Tensor, y: Tensor | None) -> Tensor:
        """L for each datum, (...), up to a constant."""
        points = self.points[step].reshape(2 * self.pairs, *[1] * (mean.dim() - 1), self.latent)
        z = mean + log_scale.exp() * points
        value = self._likelihood.forward(z, y).log_prob(x) + prior.log_prob(z)  # type: ignore[union-attr]
        return value.mean(0) + log_scale.sum(-1)


def _points(steps: int, pairs: int, latent: int) -> Tensor:
    """Those of each step, (steps, 2 * pairs, latent): rows of a Hadamard matrix in turn, and their opposites.

    The rows, of 1 and -1, are as many as the power of two that is at least `latent` and `pairs`; over all of them the
    columns are orthogonal.
    """
    rows = torch.ones(1, 1)
    while len(rows) < max(latent, pairs):
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    order = torch.arange(steps * pairs).reshape(steps, pairs) % len(rows)
    points = rows[order, :latent]
    return torch.cat([points, -points], 1)


@contextmanager
def _as_in_evaluation(*parts: Part) -> Iterator[None]:
    """No dropout, and no running mean is moved: what is looked at here is no batch of training."""
    modules = [module for part in parts for module in part.modules() if module.training]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module in modules:
            module.training = True
