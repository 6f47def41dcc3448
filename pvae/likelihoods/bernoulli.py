"""The Bernoulli likelihood."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from .. import kernels
from ..distributions import BernoulliOfLinear, IndependentBernoulli
from ..networks import split
from .likelihood import Likelihood


class Bernoulli(Likelihood, name="bernoulli"):
    """Each pixel is 0 or 1: log p(x|z) = sum_d x_d l_d - log(1 + exp l_d), with logits l = decoder(z).

    Args:
        decoder: from latents to logits.
        shape: of one datum.

    >>> import torch
    >>> from torch import nn
    >>> p = Bernoulli(nn.Linear(2, 6), (2, 3))(torch.zeros(5, 4, 2))
    >>> p.batch_shape, p.event_shape
    (torch.Size([5, 4]), torch.Size([2, 3]))
    """

    support = "binary"

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        fused = self._fused(z, y)
        return IndependentBernoulli(self.decode(z, y), len(self.shape)) if fused is None else fused

    def _fused(self, z: Tensor, y: Tensor | None) -> dist.Distribution | None:
        """The same, whose logits are not written; None where they are to be."""
        found = split(self.decoder) if kernels.run_on(z.device) else None
        if found is None or found[1].out_features != self.shape.numel():
            return None
        body, last = found
        precision = kernels.choose(z.shape[:-1].numel(), last, z.device)
        if precision is None:
            return None
        return BernoulliOfLinear(self._applied(body, z, y), last, self.shape, precision)

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the decoder's last bias at the logit of the training mean, clipped to [0.001, 0.999].

        Burda, Grosse and Salakhutdinov 2015, in the authors' code.
        """
        self.center(x.mean(0).clamp(1e-3, 1 - 1e-3).logit())
