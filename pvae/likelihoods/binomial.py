"""The binomial likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..errors import InputError, whole_number
from .counts import BinomialCounts
from .likelihood import Likelihood


class Binomial(Likelihood, name="binomial"):
    """Counts of successes out of a total n: log p(x|z) = sum_d log(n choose x_d) + x_d l_d - n log(1 + exp l_d).

    The logits are l = decoder(z).

    Args:
        decoder: from latents to logits.
        shape: of one datum.
        total: n, the largest count that there can be.

    Raises:
        InputError: a total below 1.

    >>> p = Binomial(nn.Linear(2, 3), (3,), total=16)(torch.zeros(5, 2))
    >>> p.log_prob(torch.tensor([0.0, 9.0, 16.0])).shape
    torch.Size([5])
    """

    support = "counts"
    total: Tensor

    def __init__(self, decoder: nn.Module, shape: Sequence[int], total: int = 1) -> None:
        super().__init__(decoder, shape)
        whole_number(1, ": the largest count that there can be", total=total)
        self.register_buffer("total", torch.tensor(float(total)), persistent=False)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        logits = self.decode(z, y)
        return BinomialCounts(logits, self.total.to(logits.dtype)).to_event(len(self.shape))

    def check_largest(self, largest: float) -> None:
        """Refuse a count above the total."""
        if largest > self.total:
            raise InputError(
                f"likelihood.total: found {self.total.item():.7g}, but the largest count of the data is {largest:.7g}:"
                " expected at least that, and the largest of all data: set it to that"
            )

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the decoder's last bias at the logit of the training mean's share of the total.

        Raises:
            InputError: a count above the total.
        """
        self.check_largest(x.max().item())
        least = (0.5 / len(x) / self.total).clamp(min=1e-6)  # where nothing was counted, half a count
        self.center((x.mean(0) / self.total).clamp(least, 1 - least).logit())
