"""The Gaussian likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .scaled import Scaled


class Gaussian(Scaled, name="gaussian"):
    """Each pixel is Gaussian about the decoder's output: log p(x|z) = sum_d log N(x_d; m_d, s_d^2).

    Full normalising constants, so the value is a log-density in nats with respect to the data's own units.

    Args:
        decoder: from latents to means; under 'decoder' to means and raw scales.
        shape: of one datum.
        scale: s: a number (fixed), 'shared' (one, learned), 'pixel' (one for each pixel, learned), 'decoder' (of each
            pixel and latent), or 'optimal' (one, at its maximum-likelihood value in closed form: the root of the mean
            squared error; Rybkin, Daniilidis and Levine 2021, eq. 6).
        min_scale: the scale is bounded below by it, as a density at a constant pixel is not.

    Under 'optimal' the scale is that of the batch while training; the running mean, over about a hundred batches, is
    what evaluation uses, so that a test datum has a density that does not depend on itself.

    Raises:
        InputError: an unknown scale, or one below `min_scale`, or a `min_scale` that is not positive.

    >>> Gaussian(nn.Linear(2, 3), (3,), scale=0.5)(torch.zeros(4, 2)).log_prob(torch.zeros(3)).shape
    torch.Size([4])
    """

    def __init__(
        self,
        decoder: nn.Module,
        shape: Sequence[int],
        scale: float | Literal["shared", "pixel", "decoder", "optimal"] = "shared",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(decoder, shape, scale, min_scale, known=("shared", "pixel", "decoder", "optimal"))
        if scale == "optimal":
            self.register_buffer("variance", torch.ones(()))

    @property
    def scale(self) -> Tensor:  # noqa: D102
        return self.variance.sqrt() if self.kind == "optimal" else super().scale

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        mean, scale = self.located(z, y)
        optimal = self.kind == "optimal" and self.training
        normal = _BatchOptimal(mean, self) if optimal else dist.Normal(mean, scale)
        return normal.to_event(len(self.shape))

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the means at the training mean, and a learned scale at the training deviation about it."""
        mean = x.mean(0)
        variance = self.average((x - mean).square()).clamp(min=self.least**2)
        self.start_at(mean, variance.sqrt())
        if self.kind == "optimal":
            self.variance.copy_(variance)


class _BatchOptimal(dist.Normal):
    """A normal whose scale, when a batch is scored, is the root of that batch's mean squared error."""

    def __init__(self, mean: Tensor, part: Gaussian) -> None:
        self.part = part
        super().__init__(mean, part.scale.expand_as(mean))

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> _BatchOptimal:
        return _BatchOptimal(self.loc.expand(batch_shape), self.part)

    def log_prob(self, value: Tensor) -> Tensor:
        # The gradient through the optimal variance is zero at the optimum: it is the optimum, so it is not followed.
        with torch.no_grad():
            variance = (value - self.loc).square().mean().clamp(min=self.part.least**2)
            self.part.variance.lerp_(variance.where(variance.isfinite(), self.part.variance), 0.01)
        return dist.Normal(self.loc, variance.sqrt()).log_prob(value)
