"""The uniform prior on the unit sphere."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions.sphere import SphereUniform, check_latent
from .prior import Prior


class Sphere(Prior, name="sphere"):
    """Uniform on the unit sphere: p(z) = Gamma(d/2) / (2 pi^(d/2)) for |z| = 1, d the size of the latent.

    Source: Davidson, Falorsi, De Cao, Kipf and Tomczak 2018.

    Args:
        latent: size of the latent, at least 2.

    Raises:
        InputError: a latent of size 1.

    >>> Sphere(3)().log_prob(torch.tensor([1.0, 0.0, 0.0]))  # -log(4 pi)
    tensor(-2.5310)
    """

    support = "the unit sphere"
    zero: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__(latent)
        check_latent(latent)
        self.register_buffer("zero", torch.zeros(latent), persistent=False)

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        return SphereUniform(self.zero)
