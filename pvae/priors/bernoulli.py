"""Priors of zeros and ones, and of numbers between."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..distributions import IndependentBernoulli
from ..distributions.discrete import RelaxedBernoullis, check_temperature
from .prior import Prior


class Bernoulli(Prior, name="bernoulli"):
    """Zeros and ones: log p(z) = sum_d z_d l_d - log(1 + exp l_d), logits l learned, 0 at the start.

    Args:
        latent: size of the latent.

    >>> Bernoulli(2)().log_prob(torch.tensor([0.0, 1.0])).detach()  # -2 log 2
    tensor(-1.3863)
    """

    support = "0 and 1"

    def __init__(self, latent: int) -> None:
        super().__init__(latent)
        self.logits = nn.Parameter(torch.zeros(latent))

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        return IndependentBernoulli(self.logits, 1)


class RelaxedBernoulli(Prior, name="relaxed_bernoulli"):
    """Numbers between 0 and 1, mostly close to one: z = sigmoid((l + e) / t), e logistic noise, logits l learned.

    Draws have a gradient; a guide has the same support, at a temperature of its own. See
    `pvae.distributions.discrete` for how densities so close to 0 and 1 are taken.
    Source: Maddison, Mnih and Teh 2017; Jang, Gu and Poole 2017.

    Args:
        latent: size of the latent.
        temperature: t; towards 0 they become zeros and ones.

    Raises:
        InputError: a temperature that is not positive.

    >>> RelaxedBernoulli(2)().sample().shape
    torch.Size([2])
    """

    support = "numbers between 0 and 1"

    def __init__(self, latent: int, temperature: float = 0.5) -> None:
        super().__init__(latent)
        check_temperature(temperature)
        self.temperature = temperature
        self.logits = nn.Parameter(torch.zeros(latent))

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        return RelaxedBernoullis(self.temperature, self.logits)
