"""The Poisson likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from .counts import PoissonCounts, log_means, starting_means
from .likelihood import Likelihood


class Poisson(Likelihood, name="poisson"):
    """Counts without dispersion of their own: log p(x|z) = sum_d x_d log m_d - m_d - log x_d!, with means m.

    The means are exp(20 tanh(decoder(z) / 20)), which lie between 2e-9 and 5e8; or, with `library`, total *
    softmax(decoder(z)), with the softmax over all of a datum. Then the density is p(x | z, total): the total is taken
    as given beside the datum, y (..., 1), and x is not made to sum to it.

    Args:
        decoder: from latents to logarithms of means, or logits of shares.
        shape: of one datum.
        library: whether means are shares of the datum's total count, its library size.

    >>> import torch
    >>> p = Poisson(nn.Linear(2, 3), (3,), library=True)(torch.zeros(5, 2), torch.full((5, 1), 80.0))
    >>> p.mean.sum(-1).allclose(torch.tensor(80.0))
    True
    """

    support = "counts"

    def __init__(self, decoder: nn.Module, shape: Sequence[int], library: bool = False) -> None:
        super().__init__(decoder, shape)
        self.library = library

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z) or p(x|z, total): batch shape (...), event shape `shape`."""
        n = len(self.shape)
        return PoissonCounts(log_means(self.decode(z, y), y, self.library, n)).to_event(n)

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the means at the training mean, or at its shares of the total."""
        start, _ = starting_means(x, y, self.library)
        self.center(start)
