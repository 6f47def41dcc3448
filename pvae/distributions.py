"""Pyro's own distributions over one datum, scored with fewer arrays and fewer steps of autograd.

Each is the `Independent` that it names in every other respect: closed-form KL, moments, support.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn


class DiagonalNormal(dist.Independent):
    """`dist.Normal(loc, scale).to_event(1)`.

    Args:
        loc: (..., D).
        scale: (..., D), of the same shape.

    >>> DiagonalNormal(torch.zeros(3, 2), torch.ones(3, 2)).log_prob(torch.zeros(2))
    tensor([-1.8379, -1.8379, -1.8379])
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(dist.Normal(loc, scale), 1)
        self.loc, self.scale = loc, scale

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> DiagonalNormal:  # noqa: D102
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        shape = (*batch_shape, *self.event_shape)
        return type(self)(self.loc.expand(shape), self.scale.expand(shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.empty(shape, dtype=self.loc.dtype, device=self.loc.device).normal_()
        return torch.addcmul(self.loc, self.scale, noise)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        standard = (value - self.loc) / self.scale
        return -(0.5 * standard * standard + self.scale.log()).sum(-1) - self._constant

    @property
    def _constant(self) -> float:
        return 0.5 * math.log(2 * math.pi) * self.event_shape[0]


class StandardNormal(DiagonalNormal):
    """A `DiagonalNormal` whose loc is 0 and whose scale is 1.

    >>> StandardNormal(torch.zeros(2), torch.ones(2)).log_prob(torch.zeros(2))
    tensor(-1.8379)
    """

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        squared = value.square().sum(-1).mul(-0.5) - self._constant
        if squared.shape == self.batch_shape:
            return squared
        return squared.expand(torch.broadcast_shapes(squared.shape, self.batch_shape))


class IndependentBernoulli(dist.Independent):
    """`dist.Bernoulli(logits=logits).to_event(event_dim)`; log_prob allocates two arrays in place of ten.

    Args:
        logits: (..., *event).
        event_dim: how many dimensions an event has.

    >>> IndependentBernoulli(torch.zeros(3, 2, 2), 2).log_prob(torch.ones(2, 2))
    tensor([-2.7726, -2.7726, -2.7726])
    """

    def __init__(self, logits: Tensor, event_dim: int) -> None:
        super().__init__(dist.Bernoulli(logits=logits), event_dim)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> IndependentBernoulli:  # noqa: D102
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        return IndependentBernoulli(
            self.base_dist.logits.expand(*batch_shape, *self.event_shape), len(self.event_shape)
        )

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        if torch._C._functorch.peek_interpreter_stack() is not None:  # within vmap nothing can be done in place
            return super().log_prob(value)
        logits, value = torch.broadcast_tensors(self.base_dist.logits, value)
        return sum_rightmost(_BernoulliLogProb.apply(logits, value), len(self.event_shape))


class _BernoulliLogProb(torch.autograd.Function):
    """x l - log(1 + exp l), elementwise, with the gradient x - sigmoid(l)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        return nn.functional.softplus(logits).neg_().addcmul_(logits, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, x = ctx.saved_tensors
        residual = torch.sigmoid(logits)
        torch.sub(x, residual, out=residual)
        return residual * grad, grad * logits if ctx.needs_input_grad[1] else None


class OfPixels(dist.TorchDistribution):
    """A datum whose pixels are independent given parameters that each pixel has of its own.

    A subclass says `support`, `mean`, `sample` and the log-probability of pixels; batch and event are said here.

    Args:
        parameters: that broadcast to (..., *event), or to (..., C, *event) where a pixel has a mixture's or a
            category's C numbers.
        event_dim: how many dimensions a datum has.
    """

    arg_constraints: ClassVar[dict] = {}
    numbers: ClassVar[int] = 0
    """How many dimensions the parameters have between batch and event."""

    def __init__(self, *parameters: Tensor, event_dim: int) -> None:
        self.parameters = parameters
        shape = torch.broadcast_shapes(*(p.shape for p in parameters))
        batch = len(shape) - event_dim - self.numbers
        self._inner = shape[batch:]
        super().__init__(shape[:batch], shape[batch + self.numbers :])

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> OfPixels:  # noqa: D102
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        shape = (*batch_shape, *self._inner)
        return self._like(*(p.expand(shape) for p in self.parameters))

    def _like(self, *parameters: Tensor) -> OfPixels:
        return type(self)(*parameters, event_dim=len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        return sum_rightmost(self.log_prob_of_pixels(value), len(self.event_shape))

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        """Of each pixel, (..., *event)."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return type(self).__name__.strip("_")


class OpenUnitInterval(constraints.Constraint):
    """Numbers above 0 and below 1."""

    def check(self, value: Tensor) -> Tensor:  # noqa: D102
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "numbers above 0 and below 1"
