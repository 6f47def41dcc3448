"""The logit-normal likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import OfPixels, OpenUnitInterval
from .scaled import LocationScale


class LogitNormal(LocationScale, name="logit_normal"):
    """Each pixel's logit is Gaussian: log p(x|z) = sum_d log N(logit x_d; m_d, s_d^2) - log x_d (1 - x_d).

    A density inside (0, 1), in nats: pixels of 0 or 1 have none, so stored levels are dequantized
    (Aitchison and Shen 1980).

    >>> LogitNormal(torch.nn.Linear(2, 3), (3,))(torch.zeros(4, 2)).log_prob(torch.full((3,), 0.5)).shape
    torch.Size([4])
    """

    support = "open_unit_interval"
    dequantization = "uniform"

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        return _LogitNormal(*self.located(z, y), event_dim=len(self.shape))

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start means and a learned scale at mean and deviation of the training data's logits, each within +-6.24."""
        logits = x.clamp(1 / 512, 1 - 1 / 512).logit()  # the middles of the lowest and highest of 256 levels
        mean = logits.mean(0)
        self.start_at(mean, self.average((logits - mean).square()).sqrt())


class _LogitNormal(OfPixels):
    """Logit-normal pixels: location and scale of the logits."""

    support = OpenUnitInterval()

    @property
    def mean(self) -> Tensor:
        """By the trapezoidal rule, which for an integrand as smooth as this has 7 digits up to a scale of 5."""
        location, scale = (p.detach() for p in self.parameters)
        points = torch.linspace(-8, 8, 65, dtype=torch.float64)
        weights = torch.softmax(-0.5 * points.square(), 0)
        pairs = zip(points.tolist(), weights.tolist(), strict=True)
        return sum((w * torch.sigmoid(location + scale * e) for e, w in pairs), torch.zeros_like(location))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        location, scale = (p.detach() for p in self.parameters)
        noise = torch.randn(self.shape(torch.Size(sample_shape)), dtype=location.dtype, device=location.device)
        tiny = torch.finfo(location.dtype).eps
        return torch.sigmoid(location + scale * noise).clamp(tiny, 1 - tiny)

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        location, scale = self.parameters
        rest = torch.log1p(-value)
        standard = (value.log() - rest - location) / scale
        return -0.5 * standard.square() - scale.log() - 0.5 * math.log(2 * math.pi) - value.log() - rest
