"""Guides on the unit sphere."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
from torch import Tensor, nn

from ..distributions import sphere
from ..errors import InputError
from .guide import Guide


class DirectionalGuide(Guide):
    """Guides symmetric about a direction m on the unit sphere, of concentration k; m and k from one encoder.

    k = min_concentration + d log(1 + exp a), a the mean of the second half of the encoder's numbers and d the size of
    the latent; m is the first half over its length.

    Args:
        encoder: from data to a direction, then numbers a: 2 * latent of them.
        latent: size of the latent, at least 2.
        min_concentration: lower bound of k; at 0 the guide can become uniform, where its direction has no gradient.
        max_concentration: upper bound of k, at most 10000.

    Raises:
        InputError: a latent of size 1; bounds out of order.
    """

    support = "the unit sphere"
    distribution: ClassVar[type[sphere.Directional]]

    def __init__(
        self,
        encoder: nn.Module,
        latent: int,
        event_dim: int | None = None,
        min_concentration: float = 1.0,
        max_concentration: float = 1e4,
    ) -> None:
        super().__init__(encoder, latent, event_dim)
        sphere.check_latent(latent)
        if not 0 <= min_concentration < max_concentration <= 1e4:
            raise InputError(
                f"min_concentration, max_concentration: found {min_concentration}, {max_concentration}, expected"
                " 0 <= min_concentration < max_concentration <= 10000"
            )
        self.min_concentration, self.max_concentration = min_concentration, max_concentration

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        direction, a = self.encode(x, y).chunk(2, -1)
        k = self.min_concentration + self.latent * nn.functional.softplus(a.mean(-1))
        k = k.clamp(max=self.max_concentration)
        return self.distribution(nn.functional.normalize(direction, dim=-1), k)

    def point(self, q: dist.Distribution) -> Tensor:
        """The mode, as a decoder knows the sphere alone."""
        return q.mode


class VonMisesFisher(DirectionalGuide, name="von_mises_fisher"):
    """Symmetric about a direction on the unit sphere: q(z|x) = C(k) exp(k m.z), m and k from one encoder.

    Draws have a gradient without a bias. Source: Davidson, Falorsi, De Cao, Kipf and Tomczak 2018.

    >>> import torch
    >>> q = VonMisesFisher(nn.Linear(6, 6), latent=3)(torch.ones(5, 6))
    >>> q.batch_shape, q.rsample().norm(dim=-1).allclose(torch.ones(5))
    (torch.Size([5]), True)
    """

    distribution = sphere.VonMisesFisher


class PowerSpherical(DirectionalGuide, name="power_spherical"):
    """Symmetric about a direction on the unit sphere: q(z|x) = C(k) (1 + m.z)^k, m and k from one encoder.

    A draw takes one beta variate and no rejection. Source: De Cao and Aziz 2020.

    >>> import torch
    >>> PowerSpherical(nn.Linear(6, 6), latent=3)(torch.ones(5, 6)).batch_shape
    torch.Size([5])
    """

    distribution = sphere.PowerSpherical
