"""The Laplace likelihood."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from .scaled import LocationScale


class Laplace(LocationScale, name="laplace"):
    """Each pixel is Laplace about the decoder's output: log p(x|z) = sum_d -|x_d - m_d| / s_d - log(2 s_d).

    Full normalising constants, in nats with respect to the data's own units. The standard deviation is sqrt(2) s.

    >>> import torch
    >>> Laplace(torch.nn.Linear(2, 3), (3,), scale=0.5)(torch.zeros(4, 2)).log_prob(torch.zeros(3)).shape
    torch.Size([4])
    """

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        return dist.Laplace(*self.located(z, y)).to_event(len(self.shape))

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the means at the training mean, and a learned scale at the mean absolute deviation from it."""
        mean = x.mean(0)
        self.start_at(mean, self.average((x - mean).abs()))
