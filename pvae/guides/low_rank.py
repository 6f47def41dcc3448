"""The guide with a covariance of low rank beside the diagonal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..errors import whole_number
from .gaussian import DependentNormal
from .guide import Guide
from .scales import BoundedScale


class LowRank(Guide, name="low_rank"):
    """A Gaussian whose covariance is a diagonal and some directions: q(z|x) = N(m, diag s^2 + U U').

    The scale s is bounded on both sides as that of `MeanField` is; U (latent, rank) is free.

    Args:
        encoder: from data to means, then numbers of the scale, then U by columns: (2 + rank) * latent of them.
        rank: how many columns U has.
        min_scale: lower bound of the scale.
        max_scale: upper bound of the scale, above 1.

    Raises:
        InputError: a rank below 1; bounds out of order.

    Source: Ong, Nott and Smith 2018. With a diagonal and one direction as the precision: Rezende, Mohamed and Wierstra
    2014.

    >>> LowRank(nn.Linear(6, 12), latent=3, rank=2)(torch.zeros(5, 6)).covariance_matrix.shape
    torch.Size([5, 3, 3])
    """

    def __init__(
        self,
        encoder: nn.Module,
        latent: int,
        event_dim: int | None = None,
        rank: int = 2,
        min_scale: float = 1e-4,
        max_scale: float = 10.0,
    ) -> None:
        super().__init__(encoder, latent, event_dim)
        whole_number(1, " direction, or guide mean_field for none", rank=rank)
        self.rank, self.outputs = rank, self.outputs_for(latent, rank=rank)
        self.scale = BoundedScale(min_scale, max_scale)

    @classmethod
    def outputs_for(cls, latent: int, **options: Any) -> int:  # noqa: D102
        return 2 + options["rank"]

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        numbers = self.encode(x, y).unflatten(-1, (self.outputs, self.latent))
        mean, raw = numbers[..., 0, :], numbers[..., 1, :]
        return LowRankNormal(mean, self.scale(raw), numbers[..., 2:, :].mT)


class LowRankNormal(DependentNormal):
    """N(loc, diag scale^2 + U U'), U kept once for all draws.

    With V = U / scale, [V; I] = Q R by Gram and Schmidt gives the determinant, for R' R = I + V' V, and the squared
    distance, which is that of [(z - m) / scale; 0] from the span of Q. No matrix is factored by a library: that may
    wait for a device; and no squares cancel.

    Args:
        loc: (..., D).
        scale: (..., D), positive.
        factor: U (..., D, R).

    >>> q = LowRankNormal(torch.zeros(2), torch.ones(2), torch.tensor([[1.0], [1.0]]))
    >>> q.covariance_matrix
    tensor([[2., 1.],
            [1., 2.]])
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "factor": constraints.independent(constraints.real, 2),
    }

    def __init__(self, loc: Tensor, scale: Tensor, factor: Tensor) -> None:
        self.loc, self.scale, self.factor = loc, scale, factor
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> LowRankNormal:  # noqa: D102
        return LowRankNormal(self.loc.expand(*batch_shape, *self.event_shape), self.scale, self.factor)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        shape, rank = self._extended_shape(torch.Size(sample_shape)), self.factor.shape[-1]
        noise = torch.empty((*shape[:-1], shape[-1] + rank), dtype=self.loc.dtype, device=self.loc.device).normal_()
        own, shared = noise.split((shape[-1], rank), -1)
        return self.loc + self.scale * own + torch.einsum("...ir,...r->...i", self.factor, shared)

    def log_prob(self, value: Tensor) -> Tensor:
        """-1/2 |(I - Q Q') [(z - m) / s; 0]|^2 - log det - D/2 log 2 pi."""
        size = self.event_shape[0]
        span, half_log_det = self._factored()
        standard = (value - self.loc) / self.scale
        upper, lower = span[..., :size, :], span[..., size:, :]
        share = torch.einsum("...ir,...i->...r", upper, standard)
        squared = (standard - torch.einsum("...ir,...r->...i", upper, share)).square().sum(-1)
        squared = squared + torch.einsum("...ir,...r->...i", lower, share).square().sum(-1)
        return -0.5 * squared - half_log_det - 0.5 * math.log(2 * math.pi) * size

    def _factored(self) -> tuple[Tensor, Tensor]:
        """Q (..., D + R, R), and half the log-determinant of the covariance (...)."""
        rank = self.factor.shape[-1]
        eye = torch.eye(rank, dtype=self.loc.dtype, device=self.loc.device)
        scaled = self.factor / self.scale.unsqueeze(-1)
        rest = torch.cat([scaled, eye.expand(*scaled.shape[:-2], rank, rank)], -2)
        span, half_log_det = [], self.scale.log().sum(-1)
        for _ in range(rank):  # the modified Gram-Schmidt process
            squared = rest[..., :1].square().sum(-2, keepdim=True)
            half_log_det = half_log_det + 0.5 * squared.log().flatten(-2).squeeze(-1)
            unit = rest[..., :1] * squared.rsqrt()
            span.append(unit)
            rest = rest[..., 1:] - unit * (unit * rest[..., 1:]).sum(-2, keepdim=True)
        return torch.cat(span, -1), half_log_det

    @property
    def half_log_det(self) -> Tensor:  # noqa: D102
        return self._factored()[1].expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:  # noqa: D102
        return (self.scale.square() + self.factor.square().sum(-1)).expand_as(self.loc)

    @property
    def covariance_matrix(self) -> Tensor:
        """The matrix diag scale^2 + U U', (..., D, D)."""
        found = self.scale.square().diag_embed() + self.factor @ self.factor.mT
        return found.expand(*self.batch_shape, -1, -1)
