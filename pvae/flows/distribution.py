"""The distribution of a base's draws through an invertible map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform

from ..distributions import LastDraw


class FlowDistribution(dist.TransformedDistribution):
    """The distribution of T(e), e from a base: log p(z) = log b(T^-1(z)) - log |det dT/de|.

    The log-density of the very tensor that was drawn last is known from its draw, without the inverse. Its gradient is
    that of a draw: through the noise's path as well. Of any other tensor, also of the same numbers detached, or of one
    that was changed in place since, it takes the inverse.

    Args:
        base: of the noise e, with event shape (D,).
        transform: T, a transform with `call_and_ladj`.

    >>> from pvae.flows import CouplingMap, compose
    >>> flow = FlowDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), compose([CouplingMap(2)(None)]))
    >>> z = flow.sample()
    >>> flow.event_shape, flow.log_prob(z).shape
    (torch.Size([2]), torch.Size([]))
    """

    bulk: ClassVar[int] = 16
    """How many numbers the density makes for each of an event's, where a normal's makes one; roughly."""

    def __init__(self, base: dist.TorchDistribution, transform: Transform) -> None:
        super().__init__(base, [transform])
        self._last = LastDraw()

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> FlowDistribution:  # noqa: D102
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        return type(self)(self.base_dist.expand(batch_shape), self.transforms[0])

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        noise = self.base_dist.rsample(torch.Size(sample_shape))
        z, ladj = self.transforms[0].call_and_ladj(noise)
        self._last.keep(z, self.base_dist.log_prob(noise) - ladj)
        return z

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        if (known := self._last.known(value)) is not None:
            return known
        noise, ladj = self.transforms[0].inv.call_and_ladj(value)
        return self.base_dist.log_prob(noise) + ladj
