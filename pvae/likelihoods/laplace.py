"""The Laplace likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
from torch import Tensor, nn

from .scaled import Scaled


class Laplace(Scaled, name="laplace"):
    """Each pixel is Laplace about the decoder's output: log p(x|z) = sum_d -|x_d - m_d| / s_d - log(2 s_d).

    Full normalising constants, in nats with respect to the data's own units. The standard deviation is sqrt(2) s.

    Args:
        decoder: from latents to means; under 'decoder' to means and raw scales.
        shape: of one datum.
        scale: s: a number (fixed), 'shared' (one, learned), 'pixel' (one for each pixel, learned) or 'decoder' (of each
            pixel and latent).
        min_scale: the scale is bounded below by it, as a density at a constant pixel is not.

    Raises:
        InputError: an unknown scale, or one below `min_scale`, or a `min_scale` that is not positive.

    >>> import torch
    >>> Laplace(nn.Linear(2, 3), (3,), scale=0.5)(torch.zeros(4, 2)).log_prob(torch.zeros(3)).shape
    torch.Size([4])
    """

    def __init__(
        self,
        decoder: nn.Module,
        shape: Sequence[int],
        scale: float | Literal["shared", "pixel", "decoder"] = "shared",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(decoder, shape, scale, min_scale)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        return dist.Laplace(*self.located(z, y)).to_event(len(self.shape))

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the means at the training mean, and a learned scale at the mean absolute deviation from it."""
        mean = x.mean(0)
        self.start_at(mean, self.average((x - mean).abs()))
