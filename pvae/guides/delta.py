"""The guide of a plain autoencoder."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
from torch import Tensor

from .guide import Guide


class Delta(Guide, name="delta"):
    """A point mass at the encoder's output, as an autoencoder has: q(z|x) = delta(z - m), log q = 0.

    What is climbed is log p(x|m) + log p(m): it is no bound on log p(x), and its numbers stand beside no bound's. It
    has no density whose gradient an estimator could weigh: it goes with gradient reparam and stl.

    Args:
        encoder: from data to points: latent of them.

    Source: Hinton and Salakhutdinov 2006.

    >>> import torch
    >>> from torch import nn
    >>> q = Delta(nn.Linear(6, 2), latent=2)(torch.zeros(5, 6))
    >>> q.log_prob(q.sample())
    tensor([0., 0., 0., 0., 0.])
    """

    outputs = 1
    bound: ClassVar[bool] = False

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        return Point(self.encode(x, y), event_dim=1)


class Point(dist.Delta):
    """Pyro's `Delta`, at whose point are also numbers that differ from its own by rounding.

    >>> import torch
    >>> Point(torch.ones(2), event_dim=1).log_prob(torch.tensor([[1.0, 1.000001], [1.0, 1.1]]))
    tensor([0., -inf])
    """

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        here = ((value - self.v).abs() <= 1e-4 * (1 + self.v.abs())).to(value.dtype)
        return here.log().sum(-1) + self.log_density
