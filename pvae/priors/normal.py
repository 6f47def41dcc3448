"""The standard normal prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import StandardNormal
from .prior import Prior


class Normal(Prior, name="normal"):
    """The standard normal: p(z) = N(0, I).

    Args:
        latent: size of the latent.

    >>> Normal(2)().log_prob(torch.zeros(2))
    tensor(-1.8379)
    """

    zero: Tensor
    one: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__(latent)
        self.register_buffer("zero", torch.zeros(latent), persistent=False)
        self.register_buffer("one", torch.ones(latent), persistent=False)

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        return StandardNormal(self.zero, self.one)
