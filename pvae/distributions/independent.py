"""Distributions over one datum, scored with few arrays and few steps of autograd.

Those that name an `Independent` of Pyro's are it in every other respect: closed-form KL, moments, support.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn

from .. import kernels


class _Independent(dist.Independent):
    """An `Independent` whose distribution within is made when it is asked for, which a step does not do.

    A subclass says `base_dist`, as a cached property, and `has_rsample`.
    """

    has_rsample = False

    def __init__(self, batch_shape: torch.Size, event_shape: torch.Size) -> None:
        self.reinterpreted_batch_ndims = len(event_shape)
        self._batch_shape, self._event_shape = batch_shape, event_shape
        if self._validate_args:
            self.base_dist  # noqa: B018  which looks at its parameters

    @property
    def _validate_args(self) -> bool:
        return self.__dict__.get("_validated", torch.distributions.Distribution._validate_args)

    @_validate_args.setter
    def _validate_args(self, value: bool) -> None:
        self.__dict__["_validated"] = value


class DiagonalNormal(_Independent):
    """`dist.Normal(loc, scale).to_event(1)`.

    Args:
        loc: (..., D).
        scale: (..., D), of the same shape.

    >>> DiagonalNormal(torch.zeros(3, 2), torch.ones(3, 2)).log_prob(torch.zeros(2))
    tensor([-1.8379, -1.8379, -1.8379])
    """

    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:])

    @cached_property
    def base_dist(self) -> dist.Normal:  # type: ignore[override]  # noqa: D102
        return dist.Normal(self.loc, self.scale)

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
        return torch.rsub(self.scale.log().add(standard.square(), alpha=0.5).sum(-1), -self._constant)

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
        squared = torch.rsub(value.square().sum(-1), -self._constant, alpha=0.5)
        if squared.shape == self.batch_shape:
            return squared
        return squared.expand(torch.broadcast_shapes(squared.shape, self.batch_shape))


class IndependentBernoulli(_Independent):
    """`dist.Bernoulli(logits=logits).to_event(event_dim)`; log_prob allocates two arrays in place of ten.

    Args:
        logits: (..., *event).
        event_dim: how many dimensions an event has.

    >>> IndependentBernoulli(torch.zeros(3, 2, 2), 2).log_prob(torch.ones(2, 2))
    tensor([-2.7726, -2.7726, -2.7726])
    """

    def __init__(self, logits: Tensor, event_dim: int) -> None:
        self._logits = logits
        batch = logits.dim() - event_dim
        super().__init__(logits.shape[:batch], logits.shape[batch:])

    @cached_property
    def base_dist(self) -> dist.Bernoulli:  # type: ignore[override]
        """The distribution of each pixel."""
        return dist.Bernoulli(logits=self._logits)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> IndependentBernoulli:  # noqa: D102
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        return IndependentBernoulli(self._logits.expand(*batch_shape, *self.event_shape), len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        if torch._C._functorch.peek_interpreter_stack() is not None:  # within vmap nothing can be done in place
            return super().log_prob(value)
        logits = self._logits
        if logits.shape != value.shape:
            logits, value = torch.broadcast_tensors(logits, value)
        scores = _BernoulliLogProb.apply(logits, value)
        return scores.sum(-1) if len(self.event_shape) == 1 else sum_rightmost(scores, len(self.event_shape))


class BernoulliOfLinear(IndependentBernoulli):
    """An `IndependentBernoulli` of a linear layer's outputs, which it scores without writing them: see `pvae.kernels`.

    Logits are made where something else is asked of it. Parameters are not validated.

    Args:
        hidden: (..., H), what the layer is applied to.
        layer: from H to as many numbers as an event has.
        shape: of an event.
        precision: of the product where logits are not written, see `pvae.kernels.log_prob`.

    >>> p = BernoulliOfLinear(torch.zeros(3, 5), nn.Linear(5, 4), (2, 2), "tf32")
    >>> p.log_prob(torch.ones(2, 2)).shape, p.mean.shape
    (torch.Size([3]), torch.Size([3, 2, 2]))
    """

    _validate_args = False

    def __init__(self, hidden: Tensor, layer: nn.Linear, shape: Sequence[int], precision: str) -> None:
        self.hidden, self.layer, self.precision = hidden, layer, precision
        _Independent.__init__(self, hidden.shape[:-1], torch.Size(shape))

    @cached_property
    def _logits(self) -> Tensor:  # type: ignore[override]
        logits = self.layer(self.hidden)
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits  # under autocast
        return logits.reshape(self.batch_shape + self.event_shape)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]  # noqa: D102
        return not self.event_shape

    @property
    def support(self) -> constraints.Constraint:  # noqa: D102
        return constraints.independent(constraints.boolean, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        data = self._data(value)
        if data is None or torch._C._functorch.peek_interpreter_stack() is not None:
            return super().log_prob(value)
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])
        found = kernels.log_prob(hidden, self.layer.weight, self.layer.bias, data, self.precision)
        return found.reshape(self.batch_shape)

    def _data(self, value: Tensor) -> Tensor | None:
        """The value as (B, D), repeated along what the batch has on the left of B; None where it is not so."""
        left = value.dim() - len(self.event_shape)
        if not 0 <= left <= len(self.batch_shape) or value.shape[left:] != self.event_shape:
            return None
        lead = value.shape[:left]
        while lead[:1] == (1,):
            lead = lead[1:]
        if lead != self.batch_shape[len(self.batch_shape) - len(lead) :]:
            return None
        if value.dtype != torch.float32 or value.requires_grad:
            return None
        return value.reshape(-1, self.event_shape.numel())


class _BernoulliLogProb(torch.autograd.Function):
    """x l - log(1 + exp l), elementwise, with the gradient x - sigmoid(l)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        return nn.functional.softplus(logits).neg_().addcmul_(logits, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, x = ctx.saved_tensors
        residual = torch.sigmoid(logits)
        if torch.is_grad_enabled():  # the gradient is to be differentiated
            residual = x - residual
        else:
            torch.sub(x, residual, out=residual)
        return residual * grad, grad * logits if ctx.needs_input_grad[1] else None
