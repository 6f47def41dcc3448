"""The guide with a covariance of its own for every datum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..distributions import LastDraw
from .gaussian import DependentNormal
from .guide import Guide
from .scales import BoundedScale


class FullCovariance(Guide, name="full_covariance"):
    """A Gaussian with any covariance: q(z|x) = N(m, L L'), m and the lower triangular L from one encoder.

    The diagonal of L is bounded on both sides as the scale of `MeanField` is; what is below it is free.

    Args:
        encoder: from data to means, then numbers of the diagonal, then what is below it, row by row; and as many
            numbers without use as make their count a multiple of `latent`.
        min_scale: lower bound of the diagonal.
        max_scale: upper bound of the diagonal, above 1.

    Raises:
        InputError: bounds out of order.

    Source: Kingma and Welling 2019.

    >>> guide = FullCovariance(nn.Linear(6, 9), latent=3)
    >>> guide(torch.zeros(5, 6)).covariance_matrix.shape
    torch.Size([5, 3, 3])
    """

    place: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        latent: int,
        event_dim: int | None = None,
        min_scale: float = 1e-4,
        max_scale: float = 10.0,
    ) -> None:
        super().__init__(encoder, latent, event_dim)
        self.outputs = self.outputs_for(latent)
        self.scale = BoundedScale(min_scale, max_scale)
        place = torch.full((latent, latent), latent * (latent - 1) // 2)  # of a zero, above the diagonal and on it
        place[tuple(torch.tril_indices(latent, latent, -1))] = torch.arange(latent * (latent - 1) // 2)
        self.register_buffer("place", place.flatten(), persistent=False)

    @classmethod
    def outputs_for(cls, latent: int, **options: Any) -> int:  # noqa: D102
        return -(-(latent + latent * (latent + 1) // 2) // latent)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        k, numbers = self.latent, self.encode(x, y)
        used = [k, k, k * (k - 1) // 2]
        mean, raw, below, _ = numbers.split([*used, numbers.shape[-1] - sum(used)], -1)
        below = nn.functional.pad(below, (0, 1)).index_select(-1, self.place)
        root = below.unflatten(-1, (k, k)) + torch.diag_embed(self.scale(raw))
        return CovarianceNormal(mean, root)


class CovarianceNormal(DependentNormal):
    """N(loc, L L'), the triangle L kept once for all draws; nothing is checked, nothing factored.

    The log-density of the very tensor that was drawn last is that of its noise, as of a `FlowDistribution`: to solve
    for the noise multiplies a draw's rounding by L's condition, which nothing bounds.

    Args:
        loc: (..., D).
        root: L (..., D, D), zero above its diagonal and positive on it.

    >>> q = CovarianceNormal(torch.zeros(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    >>> q.covariance_matrix
    tensor([[1., 1.],
            [1., 2.]])
    """

    arg_constraints: ClassVar = {"loc": constraints.real_vector, "root": constraints.lower_cholesky}

    def __init__(self, loc: Tensor, root: Tensor) -> None:
        self.loc, self.root = loc, root
        self._last = LastDraw()
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> CovarianceNormal:  # noqa: D102
        return CovarianceNormal(self.loc.expand(*batch_shape, *self.event_shape), self.root)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.empty(shape, dtype=self.loc.dtype, device=self.loc.device).normal_()
        z = self.loc + torch.einsum("...ij,...j->...i", self.root, noise)
        self._last.keep(z, noise)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """-1/2 |L^-1 (z - m)|^2 - sum_i log L_ii - D/2 log 2 pi."""
        squared = self._squared(value)
        return -0.5 * squared - self.half_log_det - 0.5 * math.log(2 * math.pi) * self.event_shape[0]

    def _squared(self, value: Tensor) -> Tensor:
        """|L^-1 (z - m)|^2, (...)."""
        if (noise := self._last.known(value)) is not None:
            return noise.square().sum(-1)
        centred = value - self.loc
        extra = centred.shape[: max(0, centred.dim() - self.root.dim() + 1)]
        columns = centred.reshape(extra.numel(), *centred.shape[len(extra) :]).movedim(0, -1)
        standard = torch.linalg.solve_triangular(self.root, columns, upper=False)
        squared = standard.square().sum(-2).movedim(-1, 0)
        return squared.reshape(extra + squared.shape[1:])

    @property
    def half_log_det(self) -> Tensor:  # noqa: D102
        return self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:  # noqa: D102
        return self.root.square().sum(-1).expand_as(self.loc)

    @property
    def covariance_matrix(self) -> Tensor:
        """L L', (..., D, D)."""
        return (self.root @ self.root.mT).expand(*self.batch_shape, -1, -1)
