"""Mixtures of distributions of one kind, in arrays of bounded size."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .independent import DiagonalNormal
from .recompute import by_rows
from .unexpanded import Unexpanded


class FiniteMixture(Unexpanded):
    """A mixture of C distributions of one kind: p(z) = sum_c w_c p_c(z).

    Normals of diagonal covariance that all data share are scored by two products of matrices, in float64: the square
    is multiplied out, and the digits that this costs are more than a float32 has. No (..., C, D) is made. Others that
    all data share score some draws at a time, and again for the gradient.

    Args:
        log_weights: (..., C), log w_c up to a constant.
        components: of batch shape (..., C).

    >>> two = DiagonalNormal(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    >>> FiniteMixture(torch.zeros(2), two).log_prob(torch.zeros(3, 1))
    tensor([-1.4189, -1.4189, -1.4189])
    """

    def __init__(self, log_weights: Tensor, components: dist.TorchDistribution) -> None:
        self.log_weights, self.components = log_weights.log_softmax(-1), components
        super().__init__(components.batch_shape[:-1], components.event_shape)

    @property
    def support(self) -> Any:  # noqa: D102
        return self.components.support

    @property
    def mean(self) -> Tensor:  # noqa: D102
        return self._average(self.components.mean)

    @property
    def variance(self) -> Tensor:  # noqa: D102
        return self._average(self.components.variance + self.components.mean.square()) - self.mean.square()

    def density(self, value: Tensor) -> Tensor:  # noqa: D102
        if self.components.batch_shape[1:]:
            return self._all_at_once(value)
        if isinstance(self.components, DiagonalNormal):
            return self._joint_by_products(value).logsumexp(-1)
        found = by_rows(self._all_at_once, value.reshape(-1, *self.event_shape), self._numbers)
        return found.reshape(value.shape[: value.dim() - len(self.event_shape)])

    def _all_at_once(self, value: Tensor) -> Tensor:
        scores = self.components.log_prob(value.unsqueeze(self._dim))
        return (self.log_weights + scores).logsumexp(-1)

    def draw(self, shape: torch.Size) -> Tensor:  # noqa: D102
        log_weights = self.log_weights.expand(*shape, self.log_weights.shape[-1])
        chosen = choose(log_weights)
        if isinstance(self.components, DiagonalNormal):
            loc, scale = (pick(part, chosen) for part in (self.components.loc, self.components.scale))
            return torch.addcmul(loc, scale, torch.randn_like(loc))
        if self.components.batch_shape[1:]:
            return self._chosen(chosen)
        return by_rows(self._chosen, chosen.reshape(-1), self._numbers).reshape(shape + self.event_shape)

    def _chosen(self, which: Tensor) -> Tensor:
        each = self.components.expand((*which.shape, self.log_weights.shape[-1])).sample()
        return pick(each, which, len(self.event_shape))

    @property
    def _numbers(self) -> int:
        """How many are made of each draw, roughly."""
        return self.log_weights.shape[-1] * self.event_shape.numel() * getattr(self.components, "bulk", 1)

    @property
    def _dim(self) -> int:
        """Where the components are in an array (..., C, *event)."""
        return -1 - len(self.event_shape)

    def _joint_by_products(self, value: Tensor) -> Tensor:
        """Log w_c + log p_c(z) for z (..., D): (..., C)."""
        loc, scale, z = self.components.loc.double(), self.components.scale.double(), value.double()
        precision = scale.square().reciprocal()
        slopes = torch.cat([-0.5 * precision, loc * precision], -1)
        constant = -(0.5 * loc.square() * precision + scale.log()).sum(-1) - self.components._constant
        joint = nn.functional.linear(torch.cat([z.square(), z], -1), slopes, constant + self.log_weights)
        return joint.to(torch.promote_types(value.dtype, self.components.loc.dtype))

    def _average(self, parts: Tensor) -> Tensor:
        weights = self.log_weights.exp().reshape(*self.log_weights.shape, *[1] * len(self.event_shape))
        return (weights * parts).sum(self._dim).expand(self.batch_shape + self.event_shape)


def choose(log_weights: Tensor) -> Tensor:
    """A draw of c in proportion to exp log_weights (..., C): (...); without a look at the device, as Gumbel's maximum.

    >>> choose(torch.tensor([[0.0, -torch.inf], [-torch.inf, 3.0]]))
    tensor([0, 1])
    """
    waits = torch.empty_like(log_weights, memory_format=torch.contiguous_format).exponential_()
    return (log_weights - waits.log()).argmax(-1)


def pick(parts: Tensor, chosen: Tensor, event_dim: int = 1) -> Tensor:
    """The chosen (...) of parts (..., C, *event), which broadcast on the left: (..., *event).

    >>> pick(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 1, 0]))
    tensor([[3., 4.],
            [3., 4.],
            [1., 2.]])
    """
    dim = -1 - event_dim
    parts = parts.expand(*chosen.shape, *parts.shape[dim:])
    return torch.take_along_dim(parts, chosen.reshape(*chosen.shape, *[1] * -dim), dim).squeeze(dim)
