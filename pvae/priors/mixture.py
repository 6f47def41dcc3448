"""A mixture of normals as the prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..distributions import DiagonalNormal
from ..distributions.mixtures import FiniteMixture
from ..errors import whole_number
from .prior import Prior


class Mixture(Prior, name="mixture"):
    """A mixture of normals with learned weights, means and scales: p(z) = sum_c w_c N(z; m_c, diag s_c^2).

    The means start as draws from N(0, I / 2) and the variances at 1/2, so that a mixture of many starts close to the
    standard normal, with components far enough apart that each has data of its own to move to.

    Args:
        latent: size of the latent.
        components: how many normals.

    Raises:
        InputError: fewer than one component.

    >>> Mixture(2, components=10)().log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    def __init__(self, latent: int, components: int = 100) -> None:
        super().__init__(latent)
        whole_number(1, components=components)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(0.5**0.5 * torch.randn(components, latent))
        self.log_scale = nn.Parameter(torch.full((components, latent), 0.5).log() / 2)

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        return FiniteMixture(self.logits, DiagonalNormal(self.loc, self.log_scale.exp()))
