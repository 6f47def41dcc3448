"""The continuous Bernoulli likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..distributions import OfPixels
from .likelihood import Likelihood


class ContinuousBernoulli(Likelihood, name="continuous_bernoulli"):
    """Each pixel in [0, 1] has a density: log p(x|z) = sum_d x_d l_d - log((exp l_d - 1) / l_d), with decoder(z) = l.

    The Bernoulli's formula with the constant that makes it a density over [0, 1], which grey pixels under a Bernoulli
    lack: C(p) p^x (1 - p)^(1 - x), log C(p) = log(2 artanh(1 - 2p) / (1 - 2p)), p = sigmoid(l). A log-density, in nats.

    Args:
        decoder: from latents to logits.
        shape: of one datum.

    Source: Loaiza-Ganem and Cunningham 2019.

    >>> from torch import nn
    >>> ContinuousBernoulli(nn.Linear(2, 3), (3,))(torch.zeros(4, 2)).log_prob(torch.rand(3)).shape
    torch.Size([4])
    """

    support = "unit_interval"

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        return _ContinuousBernoulli(self.decode(z, y), event_dim=len(self.shape))

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the decoder's last bias where the mean is the training mean, clipped to [0.01, 0.99]."""
        self.center(_logit_of_mean(x.mean(0).clamp(0.01, 0.99)))


class _ContinuousBernoulli(OfPixels):
    """Continuous Bernoulli pixels of logits."""

    support = constraints.unit_interval

    @property
    def mean(self) -> Tensor:
        return _mean(*self.parameters)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            logits = self.parameters[0].expand(self.shape(torch.Size(sample_shape)))
            slope = -logits.abs().clamp(min=1e-6)  # the quantile function of a falling density does not overflow
            x = torch.log1p(torch.rand_like(logits) * torch.expm1(slope)) / slope
            return torch.where(logits > 0, 1 - x, x).clamp(0, 1)

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        return _LogProb.apply(*torch.broadcast_tensors(self.parameters[0], value))


class _LogProb(torch.autograd.Function):
    """x l - log((exp l - 1) / l), elementwise, with the gradient x - mean(l)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, x: Tensor) -> Tensor:
        return (x - 0.5) * logits - _log_sinhc(0.5 * logits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, x = ctx.saved_tensors
        return grad * (x - _mean(logits)), grad * logits if ctx.needs_input_grad[1] else None


# log(sinh(h) / h) = sum_n a_n h^(2n): the a_n from n = 1 on; at |h| = 1/2 what is left out is below 1e-12
_SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250)
_NEAR = 0.5


def _log_sinhc(h: Tensor) -> Tensor:
    """log(sinh(h) / h), by its series near 0."""
    size = h.abs()
    far = size.clamp(min=_NEAR)
    return torch.where(
        size < _NEAR,
        _polynomial(h.square(), _SERIES) * h.square(),
        far + torch.log1p(-torch.exp(-2 * far)) - (2 * far).log(),
    )


def _mean(logits: Tensor) -> Tensor:
    """1/2 + (coth(l/2) - 2/l) / 2, by the series of its second term near 0."""
    h = 0.5 * logits
    far = h.abs().clamp(min=_NEAR)
    slopes = [2 * (n + 1) * a for n, a in enumerate(_SERIES)]
    near = _polynomial(h.square(), slopes) * h
    return 0.5 + 0.5 * torch.where(h.abs() < _NEAR, near, (1 / torch.tanh(far) - 1 / far) * h.sign())


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """c0 + c1 x + c2 x^2 + ..., by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def _logit_of_mean(mean: Tensor) -> Tensor:
    """The logits with these means, by bisection."""
    low, high = torch.full_like(mean, -200.0), torch.full_like(mean, 200.0)
    for _ in range(40):
        middle = 0.5 * (low + high)
        below = _mean(middle) < mean
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)
