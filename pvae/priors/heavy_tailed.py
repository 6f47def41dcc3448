"""Priors with heavier tails than the normal."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from .. import distributions
from ..errors import more_than
from .prior import Prior


class Laplace(Prior, name="laplace"):
    """Independent Laplace dimensions, which favour sparse latents: log p(z) = sum_d -|z_d| / b - log 2b.

    Args:
        latent: size of the latent.
        scale: b, above 0; the variance is 2 b^2.

    Raises:
        InputError: a scale that is not above 0.

    >>> Laplace(2)().log_prob(torch.zeros(2))
    tensor(-1.3863)
    """

    zero: Tensor
    scale: Tensor

    def __init__(self, latent: int, scale: float = 1.0) -> None:
        super().__init__(latent)
        more_than(0, scale=scale)
        self.register_buffer("zero", torch.zeros(latent), persistent=False)
        self.register_buffer("scale", torch.full((latent,), float(scale)), persistent=False)

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        return dist.Laplace(self.zero, self.scale).to_event(1)


class StudentT(Prior, name="student_t"):
    """Independent Student-t dimensions, with heavy tails: p(z) = prod_d t(z_d; df), of unit scale.

    It is the standard normal as df grows, and the Cauchy at df = 1.

    Args:
        latent: size of the latent.
        df: degrees of freedom, above 0; the variance is df / (df - 2), or none up to 2.

    Raises:
        InputError: degrees of freedom that are not above 0.

    >>> StudentT(1, df=1.0)().log_prob(torch.zeros(1))
    tensor(-1.1447)
    """

    zero: Tensor
    one: Tensor
    df: Tensor

    def __init__(self, latent: int, df: float = 5.0) -> None:
        super().__init__(latent)
        more_than(0, df=df)
        self.register_buffer("zero", torch.zeros(latent), persistent=False)
        self.register_buffer("one", torch.ones(latent), persistent=False)
        self.register_buffer("df", torch.full((latent,), float(df)), persistent=False)

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        return distributions.StudentT(self.df, self.zero, self.one).to_event(1)
