"""Guides of one-hot vectors, and of probability vectors close to them."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from ..distributions.discrete import OneHots, RelaxedOneHots, check_temperature, grouped
from .guide import Guide


class Categorical(Guide, name="categorical"):
    """Independent one-hot vectors, concatenated: log q(z|x) = sum_gc z_gc log softmax(l_g)_c, l from the encoder.

    Draws have no gradient: it is for the gradients score, vimco, ovis and rws.

    Args:
        encoder: from data to logits: latent of them.
        latent: size of the latent: of all the vectors together.
        categories: of each vector; by default the latent is one vector.

    Raises:
        InputError: categories that do not divide the latent.

    >>> import torch
    >>> Categorical(nn.Linear(6, 10), latent=10, categories=5)(torch.zeros(6)).sample().sum()
    tensor(2.)
    """

    outputs = 1
    support = "one-hot vectors"

    def __init__(
        self, encoder: nn.Module, latent: int, event_dim: int | None = None, categories: int | None = None
    ) -> None:
        super().__init__(encoder, latent, event_dim)
        self.groups = grouped(latent, categories)
        self.support = f"{type(self).support} of {self.groups[1]}"

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        return OneHots(self.encode(x, y).unflatten(-1, self.groups))

    def point(self, q: dist.Distribution) -> Tensor:
        """The mode, as a decoder knows one-hot vectors alone."""
        return q.mode


class RelaxedCategorical(Guide, name="relaxed_categorical"):
    """Independent probability vectors, concatenated: z_g = softmax((l_g + e) / t), e Gumbel noise, l from the encoder.

    See `pvae.distributions.discrete` for how densities so close to 0 are taken.
    Source: Maddison, Mnih and Teh 2017; Jang, Gu and Poole 2017.

    Args:
        encoder: from data to logits: latent of them.
        latent: size of the latent: of all the vectors together.
        categories: of each vector; by default the latent is one vector.
        temperature: t; towards 0 they become one-hot vectors, and the gradient's variance grows.

    Raises:
        InputError: categories that do not divide the latent; a temperature that is not positive.

    >>> import torch
    >>> RelaxedCategorical(nn.Linear(6, 10), latent=10, categories=5)(torch.zeros(6)).rsample().requires_grad
    True
    """

    outputs = 1
    support = "probability vectors"

    def __init__(
        self,
        encoder: nn.Module,
        latent: int,
        event_dim: int | None = None,
        categories: int | None = None,
        temperature: float = 2 / 3,
    ) -> None:
        super().__init__(encoder, latent, event_dim)
        check_temperature(temperature)
        self.temperature = temperature
        self.groups = grouped(latent, categories)
        self.support = f"{type(self).support} of {self.groups[1]}"

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        return RelaxedOneHots(self.temperature, self.encode(x, y).unflatten(-1, self.groups))

    def point(self, q: dist.Distribution) -> Tensor:
        """The draw without noise, as the mean has no closed form."""
        return q.noiseless
