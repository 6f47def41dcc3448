"""Priors that are normalizing flows of the standard normal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..distributions import StandardNormal
from ..errors import whole_number
from ..flows import AFFINE, AutoregressiveMap, CouplingMap, FlowDistribution, compose, splines
from .prior import Prior


class FlowPrior(Prior):
    """A flow to the standard normal: T(z) = e ~ N(0, I), so that densities take one pass.

    With a condition T depends on the labels' features.

    Args:
        latent: size of the latent.
        transforms: how many layers the flow has.
        condition: from labels to their features, or None for a prior that does not depend on them.
        step: makes one, of the size of the features, and of whether the dimensions are in reverse order.
    """

    zero: Tensor
    one: Tensor

    def __init__(
        self,
        latent: int,
        transforms: int,
        condition: nn.Module | None,
        step: Callable[[int, bool], nn.Module],
    ) -> None:
        super().__init__(latent, condition=condition)
        whole_number(1, transforms=transforms)
        context: Any = getattr(condition, "size", 0)
        self.steps = nn.ModuleList(step(context, i % 2 == 1) for i in range(transforms))
        self.register_buffer("zero", torch.zeros(latent), persistent=False)
        self.register_buffer("one", torch.ones(latent), persistent=False)

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z) or p(z|y): batch shape () or that of y, event shape (latent,)."""
        context = None if self.condition is None else self.condition(y)
        noise = StandardNormal(self.zero, self.one).expand(() if context is None else context.shape[:-1])
        return FlowDistribution(noise, compose([step(context) for step in self.steps]).inv)


class RealNVP(FlowPrior, name="realnvp"):
    """Affine coupling layers: e_b = exp(a(z_a)) z_b + b(z_a), e_a = z_a, layer by layer, at last e ~ N(0, I).

    Each layer moves half of the dimensions, the halves in turn; draws and densities take one pass. It starts near the
    standard normal.

    Args:
        hidden: sizes of the hidden layers of each one's network.

    Source: Dinh, Sohl-Dickstein and Bengio 2017.

    >>> RealNVP(2)().sample().shape
    torch.Size([2])
    """

    def __init__(
        self,
        latent: int,
        transforms: int = 4,
        hidden: Sequence[int] = (128,),
        *,
        condition: nn.Module | None = None,
    ) -> None:
        super().__init__(latent, transforms, condition, partial(CouplingMap, latent, AFFINE, hidden))


class MAF(FlowPrior, name="maf"):
    """A masked autoregressive flow: e_d = exp(a(z_<d)) z_d + b(z_<d), layer by layer, at last e ~ N(0, I).

    The order of the dimensions is reversed from layer to layer. Densities take one pass, draws go dimension by
    dimension. It starts near the standard normal.

    Args:
        hidden: sizes of the hidden layers of each one's network.

    Source: Papamakarios, Pavlakou and Murray 2017.

    >>> MAF(2)().log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        latent: int,
        transforms: int = 3,
        hidden: Sequence[int] = (128,),
        *,
        condition: nn.Module | None = None,
    ) -> None:
        super().__init__(latent, transforms, condition, partial(AutoregressiveMap, latent, AFFINE, hidden))


class Spline(FlowPrior, name="spline"):
    """A neural spline flow: e_b = s(z_b; z_a), e_a = z_a, layer by layer, at last e ~ N(0, I); s is a spline.

    Splines are rational-quadratic, monotone within +-bound and the identity outside; each layer moves half of the
    dimensions, the halves in turn; draws and densities take one pass. It starts near the standard normal.

    Args:
        hidden: sizes of the hidden layers of each one's network.
        bins: of each spline.
        bound: where the splines end.

    Source: Durkan et al. 2019.

    >>> Spline(2)().log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        latent: int,
        transforms: int = 3,
        hidden: Sequence[int] = (128,),
        bins: int = 8,
        bound: float = 5.0,
        *,
        condition: nn.Module | None = None,
    ) -> None:
        super().__init__(latent, transforms, condition, partial(CouplingMap, latent, splines(bins, bound), hidden))
