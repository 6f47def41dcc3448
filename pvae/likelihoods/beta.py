"""The beta likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..distributions import OfPixels, OpenUnitInterval
from .scaled import Scaled

_EDGE = 1e-4
_LARGE = 10.0


class Beta(Scaled, name="beta"):
    """Each pixel is beta about the decoder's mean: log p(x|z) = sum_d log Beta(x_d; m_d c_d, (1 - m_d) c_d).

    m = sigmoid(decoder(z)), kept 1e-4 off 0 and 1, is the mean and c the precision: the variance is
    m (1 - m) / (1 + c) (Ferrari and Cribari-Neto 2004). A density inside (0, 1), in nats: at pixels of 0 or 1 it is
    zero or infinite, so stored levels are dequantized.

    Args:
        decoder: from latents to the means' logits; under 'decoder' to them and raw precisions.
        shape: of one datum.
        precision: c: a number (fixed), 'shared' (one, learned), 'pixel' (one for each pixel, learned) or 'decoder' (of
            each pixel and latent).
        min_precision: the precision is bounded below by it.

    Raises:
        InputError: an unknown precision, or one below `min_precision`, or a `min_precision` that is not positive.

    >>> Beta(nn.Linear(2, 3), (3,))(torch.zeros(4, 2)).log_prob(torch.full((3,), 0.5)).shape
    torch.Size([4])
    """

    support = "open_unit_interval"
    dequantization = "uniform"
    spread = "precision"

    def __init__(
        self,
        decoder: nn.Module,
        shape: Sequence[int],
        precision: float | Literal["shared", "pixel", "decoder"] = "shared",
        min_precision: float = 0.1,
    ) -> None:
        super().__init__(decoder, shape, precision, min_precision, start=2.0)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        return _Beta(*self.located(z, y), event_dim=len(self.shape))

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the means at the training mean, and a learned precision where the variance is the training data's."""
        mean = x.mean(0).clamp(0.01, 0.99)
        variance = self.average((x - x.mean(0)).square()).clamp(min=1e-4)
        spread = self.average((mean * (1 - mean)).unsqueeze(0))
        self.start_at(mean.logit(), (spread / variance - 1).clamp(min=2 * self.least))


class _Beta(OfPixels):
    """Beta pixels: the mean's logit, and the precision."""

    support = OpenUnitInterval()

    @property
    def _means(self) -> tuple[Tensor, Tensor]:
        """The mean and 1 less it, neither rounded to 0."""
        logits = self.parameters[0]
        return tuple(_EDGE + (1 - 2 * _EDGE) * torch.sigmoid(side) for side in (logits, -logits))  # type: ignore

    @property
    def mean(self) -> Tensor:
        return self._means[0].expand(self.shape())

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            a, b = (mean * self.parameters[1] for mean in self._means)
            tiny = torch.finfo(a.dtype).eps
            return dist.Beta(a, b).sample(sample_shape).clamp(tiny, 1 - tiny)

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        """With Stirling's formula taken out of each log-gamma: their large parts cancel on paper, not in float32."""
        (m, n), c, rest = self._means, self.parameters[1], 1 - value
        divergence = m * torch.log1p((m - value) / value) + n * torch.log1p((value - m) / rest)
        edges = 0.5 * (m.log() + n.log()) - value.log() - rest.log()
        return 0.5 * (c / (2 * math.pi)).log() - c * divergence + edges + _beyond(c) - _beyond(m * c) - _beyond(n * c)


def _beyond(z: Tensor) -> Tensor:
    """Log Gamma(z), less Stirling's (z - 1/2) log z - z + log(2 pi) / 2."""
    small, large = z.clamp(max=_LARGE), z.clamp(min=_LARGE)
    direct = torch.lgamma(small) - (small - 0.5) * small.log() + small - 0.5 * math.log(2 * math.pi)
    r = 1 / large
    return torch.where(z < _LARGE, direct, r * (1 / 12 - r.square() * (1 / 360 - r.square() / 1260)))
