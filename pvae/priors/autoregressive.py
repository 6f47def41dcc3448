"""The autoregressive prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..distributions import Unexpanded
from ..errors import whole_number
from ..flows import SLOPE, Conditioner
from .prior import Prior


class Autoregressive(Prior, name="autoregressive"):
    """A mixture of Gaussians for each dimension given those before: p(z) = prod_d sum_k w_k N(z_d; m_k, s_k^2).

    The weights, means and scales of dimension d are given by one masked network that sees z_<d. The density takes one
    pass, a draw D. It starts near the standard normal: components at half the centres of its equally probable parts,
    so that they differ, with what is left of the variance within each.

    Args:
        latent: size of the latent, D.
        components: how many there are in each mixture.
        hidden: sizes of the hidden layers of the network.
        condition: from labels to their features, or None for a prior that does not depend on them.

    Raises:
        InputError: less than one component.

    Source: for the network Germain et al. 2015; for the mixtures Uria, Murray and Larochelle 2013.

    >>> Autoregressive(2)().log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    centres: Tensor
    zero: Tensor

    def __init__(
        self,
        latent: int,
        components: int = 5,
        hidden: Sequence[int] = (128,),
        *,
        condition: nn.Module | None = None,
    ) -> None:
        super().__init__(latent, condition=condition)
        whole_number(1, components=components)
        context: Any = getattr(condition, "size", 0)
        sees = torch.ones(latent, latent).tril(-1).bool()
        self.conditioner = Conditioner(sees, 3 * components, hidden, context)
        quantiles = (torch.arange(components) + 0.5) / components
        self.register_buffer("zero", torch.zeros(latent), persistent=False)
        self.register_buffer("centres", 0.5 * torch.special.ndtri(quantiles), persistent=False)
        self._within = 0.5 * math.log(1 - float(self.centres.square().mean()))

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z) or p(z|y): batch shape () or that of y, event shape (latent,)."""
        context = None if self.condition is None else self.condition(y)
        numbers = self.conditioner(context)

        def mixture(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, mean, raw = numbers(z).chunk(3, -1)
            log_scale = self._within + raw / (1 + (raw / math.log(SLOPE)).abs())
            return logits.log_softmax(-1), mean + self.centres, log_scale

        return AutoregressiveMixture(mixture, self.zero, () if context is None else context.shape[:-1])


class AutoregressiveMixture(Unexpanded):
    """The distribution prod_d sum_k w_k N(z_d; m_k, s_k^2), what is of dimension d a function of z_<d.

    Args:
        mixture: from z (..., D) to log-weights, means and log-scales, (..., D, K) each.
        zero: (D,), of the type and on the device of the draws.
        batch_shape: of what the mixture depends on.
    """

    support = constraints.real_vector

    def __init__(
        self, mixture: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], zero: Tensor, batch_shape: Any = ()
    ) -> None:
        self.mixture, self.zero = mixture, zero
        super().__init__(torch.Size(batch_shape), zero.shape)

    def density(self, value: Tensor) -> Tensor:  # noqa: D102
        log_weight, mean, log_scale = self.mixture(value)
        standard = (value.unsqueeze(-1) - mean) * torch.exp(-log_scale)
        each = log_weight - 0.5 * standard.square() - log_scale - 0.5 * math.log(2 * math.pi)
        return each.logsumexp(-1).sum(-1)

    def draw(self, shape: torch.Size) -> Tensor:
        """One dimension after the other, in D passes."""
        z = self.zero.expand(*shape, *self.event_shape)
        for d in range(len(self.zero)):
            log_weight, mean, log_scale = (part[..., d, :] for part in self.mixture(z))
            noise = torch.rand_like(log_weight).clamp_(min=1e-20)
            picked = (log_weight - torch.log(-torch.log(noise))).argmax(-1, keepdim=True)
            mean, log_scale = (part.gather(-1, picked) for part in (mean, log_scale))
            drawn = mean + log_scale.exp() * torch.randn_like(mean)
            z = torch.cat([z[..., :d], drawn, z[..., d + 1 :]], -1)
        return z
