"""Priors that are the standard normal times what a network says of a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..base import leading
from ..distributions import Unexpanded
from ..errors import InputError
from ..networks import mlp
from .prior import Prior, full_precision

TRAINING, EVALUATION = 1024, 2**16
"""How many draws of N(0, I) an expectation is estimated by."""


class Resampled(Prior, name="resampled"):
    """The normal, each draw accepted or tried again, T times at most: p(z) = N(z) (a(z) (1 - r) / Z + r).

    r = (1 - Z)^(T - 1) is the probability that the last draw, which is taken as it is, is reached; a(z) in (0, 1) is a
    network's, and Z = E_N[a(z)]. Source: Bauer and Mnih 2019.

    Z is not known but estimated, with a relative standard error of sqrt((1 - Z) / (Z S)) at most, S the number of
    draws: in training 1,024 new ones at each call; in evaluation the same 65,536 at every call, so that log p(z) is off
    by one constant, of standard error 0.004 nats at most where Z is 1/2 and 0.012 where Z is 1/10. A bound is a bound
    up to that constant.

    Args:
        latent: size of the latent.
        hidden: sizes of the hidden layers of a's network.
        truncation: T, how many draws are tried; at 1 the prior is the standard normal.

    Raises:
        InputError: a truncation below 1.

    >>> Resampled(2)().log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    fixed: Tensor

    def __init__(self, latent: int, hidden: Sequence[int] = (100, 100), truncation: int = 100) -> None:
        super().__init__(latent)
        if truncation < 1:
            raise InputError(f"truncation: found {truncation}, expected at least 1")
        self.truncation = truncation
        self.network = mlp(latent, hidden, 1, "tanh")
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("fixed", torch.randn(EVALUATION, latent, generator=generator), persistent=False)

    def log_accept(self, z: Tensor) -> Tensor:
        """Log a(z) for z (..., latent): (...)."""
        out = full_precision(leading(self.network, z, event_dim=1).squeeze(-1))
        return nn.functional.logsigmoid(out)

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        draws = torch.randn_like(self.fixed[:TRAINING]) if self.training else self.fixed
        return TruncatedRejection(self.log_accept, self.log_accept(draws).exp().mean(), self.latent, self.truncation)


class TruncatedRejection(Unexpanded):
    """What truncated rejection from the standard normal draws: N(z) (a(z) (1 - r) / Z + r), r = (1 - Z)^(T - 1).

    Args:
        log_accept: log a(z) of z (..., D): (...).
        rate: Z = E_N[a(z)], ().
        size: D.
        truncation: T.
    """

    support = dist.constraints.real_vector

    def __init__(self, log_accept: Callable[[Tensor], Tensor], rate: Tensor, size: int, truncation: int) -> None:
        # at Z = 1 the derivative of r is 0 times infinity
        self.log_accept, self.rate, self.truncation = log_accept, rate.clamp(1e-12, 1 - 1e-6), truncation
        super().__init__(torch.Size(), torch.Size([size]))

    def density(self, value: Tensor) -> Tensor:  # noqa: D102
        log_left = (self.truncation - 1) * torch.log1p(-self.rate)
        accepted = self.log_accept(value).exp() * (-torch.expm1(log_left) / self.rate)
        return _log_normal(value) + (accepted + log_left.exp()).log()

    def draw(self, shape: torch.Size) -> Tensor:  # noqa: D102
        tried = torch.randn(*shape, self.truncation, *self.event_shape, dtype=self.rate.dtype, device=self.rate.device)
        accept = self.log_accept(tried).exp()
        accepted = torch.rand_like(accept) < accept
        accepted[..., -1] = True
        first = accepted.int().argmax(-1)[..., None, None]
        return torch.take_along_dim(tried, first, -2).squeeze(-2)


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1) - 0.5 * math.log(2 * math.pi) * z.shape[-1]
