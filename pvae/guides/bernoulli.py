"""Guides of zeros and ones, and of numbers between."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from ..distributions import IndependentBernoulli
from ..distributions.discrete import RelaxedBernoullis, check_temperature
from .guide import Guide


class Bernoulli(Guide, name="bernoulli"):
    """Independent zeros and ones: log q(z|x) = sum_d z_d l_d - log(1 + exp l_d), l from the encoder.

    Draws have no gradient: it is for the gradients score, vimco, ovis and rws.

    Args:
        encoder: from data to logits: latent of them.

    >>> import torch
    >>> Bernoulli(nn.Linear(6, 2), latent=2)(torch.zeros(5, 6)).event_shape
    torch.Size([2])
    """

    outputs = 1
    support = "0 and 1"

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        return IndependentBernoulli(self.encode(x, y), 1)

    def point(self, q: dist.Distribution) -> Tensor:
        """The mode, as a decoder knows zeros and ones alone."""
        return (q.mean > 0.5).to(q.mean.dtype)


class RelaxedBernoulli(Guide, name="relaxed_bernoulli"):
    """Independent numbers between 0 and 1: z = sigmoid((l + e) / t), e logistic noise, l from the encoder.

    See `pvae.distributions.discrete` for how densities so close to 0 and 1 are taken.
    Source: Maddison, Mnih and Teh 2017; Jang, Gu and Poole 2017.

    Args:
        encoder: from data to logits: latent of them.
        temperature: t; towards 0 they become zeros and ones, and the gradient's variance grows.

    Raises:
        InputError: a temperature that is not positive.

    >>> import torch
    >>> RelaxedBernoulli(nn.Linear(6, 2), latent=2)(torch.zeros(5, 6)).rsample().requires_grad
    True
    """

    outputs = 1
    support = "numbers between 0 and 1"

    def __init__(
        self, encoder: nn.Module, latent: int, event_dim: int | None = None, temperature: float = 2 / 3
    ) -> None:
        super().__init__(encoder, latent, event_dim)
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        return RelaxedBernoullis(self.temperature, self.encode(x, y))

    def point(self, q: dist.Distribution) -> Tensor:
        """The median, as the mean has no closed form."""
        return q.median
