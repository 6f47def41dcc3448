"""The Gaussian likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..errors import InputError, nearest
from ..networks import Decoder
from .likelihood import Likelihood


class Gaussian(Likelihood, name="gaussian"):
    """Each pixel is Gaussian about the decoder's output: log p(x|z) = sum_d log N(x_d; m_d, s_d^2).

    Full normalising constants, so the value is a log-density in nats with respect to the data's own units.

    Args:
        decoder: from latents to means.
        shape: of one datum.
        scale: s: a number (fixed), 'shared' (one, learned), 'pixel' (one for each pixel, learned), or 'optimal' (one,
            at its maximum-likelihood value in closed form: the root of the mean squared error; Rybkin, Daniilidis
            and Levine 2021, eq. 6).
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
        scale: float | Literal["shared", "pixel", "optimal"] = "shared",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(decoder, shape)
        if not min_scale > 0:
            raise InputError(f"min_scale: found {min_scale}, expected a positive number")
        if isinstance(scale, str) and scale not in (known := ["shared", "pixel", "optimal"]):
            raise InputError(f"scale: found '{scale}', expected a number or a known word: {nearest(scale, known)}")
        if not isinstance(scale, str) and not scale >= min_scale:
            raise InputError(f"scale: found {scale}, expected at least min_scale = {min_scale}")
        self.kind, self.min_scale = scale, min_scale
        start = torch.full(self.shape if scale == "pixel" else (), 1.0 if isinstance(scale, str) else float(scale))
        if scale in ("shared", "pixel"):
            self.raw_scale = nn.Parameter(_inverse_softplus((start - min_scale).clamp(min=1e-3)))
        else:
            self.register_buffer("variance", start.square())

    @property
    def scale(self) -> Tensor:
        """s, () or `shape`."""
        if self.kind in ("shared", "pixel"):
            return self.min_scale + nn.functional.softplus(self.raw_scale)
        return self.variance.sqrt()

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        mean = self.decode(z, y)
        if self.kind == "optimal" and self.training:
            normal: dist.Normal = _BatchOptimal(mean, self)
        else:
            normal = dist.Normal(mean, self.scale)
        return normal.to_event(len(self.shape))

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the means at the training mean, and a learned scale at the training deviation about it."""
        if isinstance(self.decoder, Decoder):
            self.decoder.center(x.mean(0))
        deviation = (x - x.mean(0)).square()
        variance = (deviation.mean(0) if self.kind == "pixel" else deviation.mean()).clamp(min=self.min_scale**2)
        with torch.no_grad():
            if self.kind in ("shared", "pixel"):
                self.raw_scale.copy_(_inverse_softplus((variance.sqrt() - self.min_scale).clamp(min=1e-3)))
            elif self.kind == "optimal":
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
            variance = (value - self.loc).square().mean().clamp(min=self.part.min_scale**2)
            self.part.variance.lerp_(variance.where(variance.isfinite(), self.part.variance), 0.01)
        return dist.Normal(self.loc, variance.sqrt()).log_prob(value)


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))
