"""Discretized logistics and their mixtures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from ..errors import more_than, whole_number
from .levels import OfLevels, support_of
from .likelihood import Likelihood
from .scaled import Scaled, inverse_softplus

_LEAST = 5e-4  # that of a level's width in which a bin about the mean holds 0.96


class DiscretizedLogistic(Scaled, name="discretized_logistic"):
    """Each level is a logistic's mass in its bin: P(x_d) = F((x_d + h - m_d) / s_d) - F((x_d - h - m_d) / s_d).

    F is the logistic function, h half the distance of two levels; the lowest and highest bin take the tails, so that
    the probabilities of all levels sum to one. A log-probability, in nats
    (Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling 2016; Salimans, Karpathy, Chen and Kingma 2017).

    Args:
        decoder: from latents to means; under 'decoder' to means and raw scales.
        shape: of one datum.
        scale: s, in units of the range of pixels: a number (fixed), 'shared' (one, learned), 'pixel' (one for each
            pixel, learned) or 'decoder' (of each pixel and latent).
        min_scale: the scale is bounded below by it.
        levels: how many there are, from 0 to 1.

    Raises:
        InputError: an unknown scale, or one below `min_scale`, or a `min_scale` that is not positive; fewer than two
            levels.

    >>> DiscretizedLogistic(nn.Linear(2, 3), (3,))(torch.zeros(4, 2)).log_prob(torch.tensor([0.0, 0.2, 1.0])).shape
    torch.Size([4])
    """

    support = "levels"

    def __init__(
        self,
        decoder: nn.Module,
        shape: Sequence[int],
        scale: float | Literal["shared", "pixel", "decoder"] = "shared",
        min_scale: float = _LEAST,
        levels: int = 256,
    ) -> None:
        whole_number(2, levels=levels)
        super().__init__(decoder, shape, scale, min_scale, start=0.1)
        self.levels, self.support = levels, support_of(levels)

    @classmethod
    def support_for(cls, **options: Any) -> str:  # noqa: D102
        return support_of(options["levels"])

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        return _Logistic(*self.located(z, y), event_dim=len(self.shape), top=self.levels - 1)

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the means at the training mean, and a learned scale where the deviation is the training data's."""
        mean = x.mean(0)
        self.start_at(mean, _scale_of(self.average((x - mean).square())))


class DiscretizedLogisticMixture(Likelihood, name="discretized_logistic_mixture"):
    """Each level is a mixture of logistics' mass in its bin: P(x_d) = sum_k w_dk (F(u_dk) - F(l_dk)).

    F(u) - F(l) is what component k of a `DiscretizedLogistic` gives the level; weights, means and scales are all the
    decoder's. Channels of a colour are independent given the latent. A log-probability, in nats
    (Salimans, Karpathy, Chen and Kingma 2017).

    Args:
        decoder: from latents to logits of weights, means and raw scales, `components` of each for each pixel.
        shape: of one datum.
        components: how many logistics.
        min_scale: the scales are bounded below by it, in units of the range of pixels.
        levels: how many there are, from 0 to 1.

    Raises:
        InputError: no components, a `min_scale` that is not positive, fewer than two levels.

    >>> p = DiscretizedLogisticMixture(nn.Linear(2, 18), (3,), components=2)(torch.zeros(4, 2))
    >>> p.log_prob(torch.tensor([0.0, 0.2, 1.0])).shape
    torch.Size([4])
    """

    support = "levels"

    def __init__(
        self,
        decoder: nn.Module,
        shape: Sequence[int],
        components: int = 5,
        min_scale: float = _LEAST,
        levels: int = 256,
    ) -> None:
        super().__init__(decoder, shape)
        whole_number(2, levels=levels)
        whole_number(1, components=components)
        more_than(0, min_scale=min_scale)
        self.components, self.least, self.levels = components, min_scale, levels
        self.outputs, self.support = 3 * components, support_of(levels)

    @classmethod
    def outputs_for(cls, **options: Any) -> int:  # noqa: D102
        return 3 * options["components"]

    @classmethod
    def support_for(cls, **options: Any) -> str:  # noqa: D102
        return support_of(options["levels"])

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        out = self.decode(z, y)
        logits, mean, raw = out.chunk(3, out.dim() - len(self.shape) - 1)
        return _Mixture(mean, self.least + softplus(raw), logits, event_dim=len(self.shape), top=self.levels - 1)

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start means spread over a deviation about the training mean, with even weights and as much scale each."""
        mean, variance = x.mean(0), (x - x.mean(0)).square().mean(0).clamp(min=1e-4)
        at = (torch.arange(self.components, device=x.device) + 0.5) / self.components - 0.5
        means = mean + 2 * variance.sqrt() * at.reshape(-1, *[1] * len(self.shape))
        raw = inverse_softplus((_scale_of(variance) - self.least).clamp(min=1e-3)).expand_as(means)
        self.center(torch.cat([torch.zeros_like(means), means, raw]))


def _scale_of(variance: Tensor) -> Tensor:
    """Of the logistic that has this variance."""
    return (3 * variance).sqrt() / math.pi


class _Logistic(OfLevels):
    """Discretized logistic pixels: mean and scale."""

    @property
    def mean(self) -> Tensor:
        mean, scale = (p.detach() * self.top for p in self.parameters)
        return (_mean_level(mean, scale, self.top) / self.top).expand(self.shape())

    def sample_levels(self, sample_shape: torch.Size) -> Tensor:
        mean, scale = (p * self.top for p in self.parameters)
        noise = torch.rand(self.shape(sample_shape), dtype=mean.dtype, device=mean.device).logit()
        return (mean + scale * noise).round().clamp(0, self.top)

    def log_prob_of_levels(self, level: Tensor) -> Tensor:
        return _log_mass(*self.parameters, level, self.top)


class _Mixture(OfLevels):
    """Mixtures of discretized logistics: means, scales and logits of weights, each with the components first."""

    numbers = 1

    @property
    def mean(self) -> Tensor:
        mean, scale, logits = (p.detach() for p in self.parameters)
        levels = _mean_level(self.top * mean, self.top * scale, self.top)
        return (logits.softmax(self._dim) * levels).sum(self._dim) / self.top

    def sample_levels(self, sample_shape: torch.Size) -> Tensor:
        logits = self.parameters[2].expand(*sample_shape, *self.parameters[2].shape)
        chosen = dist.Categorical(logits=logits.movedim(self._dim, -1)).sample().unsqueeze(self._dim)
        mean, scale = (p.expand_as(logits).gather(self._dim, chosen).squeeze(self._dim) for p in self.parameters[:2])
        return _Logistic(mean, scale, event_dim=len(self.event_shape), top=self.top).sample_levels(torch.Size())

    def log_prob_of_levels(self, level: Tensor) -> Tensor:
        mean, scale, logits = self.parameters
        log_mass = _log_mass(mean, scale, level.unsqueeze(self._dim), self.top)
        return (log_mass + logits).logsumexp(self._dim) - logits.logsumexp(self._dim)


def _mean_level(mean: Tensor, scale: Tensor, top: int) -> Tensor:
    """The sum over levels v above 0 of P(level >= v), term by term: there are as many as levels."""
    total = torch.zeros_like(mean)
    for level in range(1, top + 1):
        total += torch.sigmoid((mean - level + 0.5) / scale)
    return total


def _log_mass(mean: Tensor, scale: Tensor, level: Tensor, top: int) -> Tensor:
    """The log of a logistic's mass in the bin of a level, exactly: F(u) - F(l) = F(u) F(-l) (1 - exp(l - u)).

    No two close numbers are subtracted, whatever the level, mean and scale. In units of levels, u - l is 1 / scale;
    the factor F(u) is one in the highest bin, F(-l) in the lowest, and the last is one in both.
    """
    rate = 1 / (top * scale)
    log_width = torch.log(-torch.expm1(-rate))
    inner = ((level > 0) & (level < top)).to(mean.dtype)
    sides = _Sides.apply(*torch.broadcast_tensors(level - top * mean, rate, level), top)
    return sides + inner * log_width


class _Sides(torch.autograd.Function):
    """log F((d + 1/2) r) of all but the highest level and log F(-(d - 1/2) r) of all but the lowest, elementwise."""

    generate_vmap_rule = True

    @staticmethod
    def forward(distance: Tensor, rate: Tensor, level: Tensor, top: int) -> Tensor:
        above = logsigmoid((distance + 0.5) * rate) * (level < top)
        return above + logsigmoid((0.5 - distance) * rate) * (level > 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        *saved, ctx.top = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        distance, rate, level = ctx.saved_tensors
        above, below = distance + 0.5, 0.5 - distance
        up = torch.sigmoid(-above * rate) * (level < ctx.top)
        down = torch.sigmoid(-below * rate) * (level > 0)
        return grad * (up - down) * rate, grad * (up * above + down * below), None, None
