"""Priors of one-hot vectors, and of probability vectors close to them."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..distributions.discrete import OneHots, RelaxedOneHots, check_temperature, grouped
from .prior import Prior


class Categorical(Prior, name="categorical"):
    """One-hot vectors, concatenated: log p(z) = sum_gc z_gc log softmax(l_g)_c, logits l learned, 0 at the start.

    Args:
        latent: size of the latent: of all the vectors together.
        categories: of each vector; by default the latent is one vector.

    Raises:
        InputError: categories that do not divide the latent.

    >>> Categorical(10, categories=5)().log_prob(torch.eye(5)[[0, 3]].flatten()).detach()  # -2 log 5
    tensor(-3.2189)
    """

    support = "one-hot vectors"

    def __init__(self, latent: int, categories: int | None = None) -> None:
        super().__init__(latent)
        groups, categories = grouped(latent, categories)
        self.support = f"{type(self).support} of {categories}"
        self.logits = nn.Parameter(torch.zeros(groups, categories))

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        return OneHots(self.logits)


class RelaxedCategorical(Prior, name="relaxed_categorical"):
    """Probability vectors close to one-hot ones: z_g = softmax((l_g + e) / t), e Gumbel noise, logits l learned.

    Draws have a gradient; a guide has the same support, at a temperature of its own. See
    `pvae.distributions.discrete` for how densities so close to 0 are taken.
    Source: Maddison, Mnih and Teh 2017; Jang, Gu and Poole 2017.

    Args:
        latent: size of the latent: of all the vectors together.
        categories: of each vector; by default the latent is one vector.
        temperature: t; towards 0 they become one-hot vectors.

    Raises:
        InputError: categories that do not divide the latent; a temperature that is not positive.

    >>> round(RelaxedCategorical(10, categories=5)().sample().sum().item(), 3)
    2.0
    """

    support = "probability vectors"

    def __init__(self, latent: int, categories: int | None = None, temperature: float = 0.5) -> None:
        super().__init__(latent)
        check_temperature(temperature)
        groups, categories = grouped(latent, categories)
        self.support = f"{type(self).support} of {categories}"
        self.temperature = temperature
        self.logits = nn.Parameter(torch.zeros(groups, categories))

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        return RelaxedOneHots(self.temperature, self.logits)
