"""The mean-field guide."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from ..distributions import DiagonalNormal
from .guide import Guide
from .scales import BoundedScale


class MeanField(Guide, name="mean_field"):
    """A Gaussian with independent dimensions: q(z|x) = N(m, diag s^2), m and s from one encoder.

    The scale is s = min_scale + (max_scale - min_scale) sigmoid(a - log((max_scale - 1) / (1 - min_scale))) for the
    encoder's number a: 1 at a = 0, close to exp(a) below, bounded on both sides and smooth.

    Args:
        encoder: from data to means, then numbers a: 2 * latent of them.
        min_scale: lower bound of the scale.
        max_scale: upper bound of the scale, above 1.

    Raises:
        InputError: bounds out of order.

    >>> import torch
    >>> q = MeanField(nn.Linear(6, 4), latent=2)(torch.zeros(5, 6))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([2]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        latent: int,
        event_dim: int | None = None,
        min_scale: float = 1e-4,
        max_scale: float = 10.0,
    ) -> None:
        super().__init__(encoder, latent, event_dim)
        self.scale = BoundedScale(min_scale, max_scale)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        mean, raw = self.encode(x, y).chunk(2, -1)
        return DiagonalNormal(mean, self.scale(raw))
