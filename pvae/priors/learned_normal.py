"""A normal prior whose mean and scale are learned."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..distributions import DiagonalNormal
from .prior import Prior


class LearnedNormal(Prior, name="learned_normal"):
    """A normal whose mean and scale are learned: p(z) = N(m, diag s^2), s = exp(a).

    It starts at the standard normal, m = 0 and a = 0. A decoder and a guide whose first and last layers are linear can
    take up m and s themselves; it is of use where they are not, or are fixed, or are bounded.

    Args:
        latent: size of the latent.

    >>> LearnedNormal(2)().log_prob(torch.zeros(2)).item()
    -1.837877...
    """

    def __init__(self, latent: int) -> None:
        super().__init__(latent)
        self.loc = nn.Parameter(torch.zeros(latent))
        self.log_scale = nn.Parameter(torch.zeros(latent))

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        return DiagonalNormal(self.loc, self.log_scale.exp())
