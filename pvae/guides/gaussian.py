"""What Gaussians whose dimensions depend on one another have in common."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints, register_kl

from ..distributions import DiagonalNormal


class DependentNormal(dist.TorchDistribution):
    """A Gaussian about `loc` (..., D). A subclass says `expand`, `rsample`, `log_prob`, and what follows."""

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector
    has_rsample = True
    loc: Tensor

    @property
    def mean(self) -> Tensor:  # noqa: D102
        return self.loc

    @property
    def covariance_matrix(self) -> Tensor:
        """C, (..., D, D)."""
        raise NotImplementedError

    @property
    def half_log_det(self) -> Tensor:
        """Half the log-determinant of the covariance, (...)."""
        raise NotImplementedError


@register_kl(DependentNormal, DiagonalNormal)
def _kl(q: DependentNormal, p: DiagonalNormal) -> Tensor:
    """1/2 [sum_i (C_ii + (m_i - n_i)^2) / t_i^2 - D] + sum_i log t_i - 1/2 log det C, C the covariance."""
    distance = ((q.variance + (q.loc - p.loc).square()) / p.scale.square() - 1).sum(-1)
    return 0.5 * distance + p.scale.log().sum(-1) - q.half_log_det
