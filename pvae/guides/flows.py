"""Guides that are normalizing flows of an amortized Gaussian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import Transform

from ..distributions import DiagonalNormal
from ..errors import whole_number
from ..flows import AFFINE, AutoregressiveMap, CouplingMap, FlowDistribution, PlanarMap, compose, splines
from .guide import Guide
from .scales import BoundedScale


class FlowGuide(Guide):
    """A flow of the mean-field guide: z = T(z_0; h(x)), z_0 ~ N(m(x), diag s(x)^2), m, s and h from one encoder.

    Args:
        encoder: from data to means, numbers for the scales as those of `MeanField`, then the context h.
        transforms: how many layers the flow has.
        context: how many numbers h has for each latent dimension.
        step: makes one, of the size of h, and of whether the dimensions are in reverse order.
    """

    def __init__(
        self,
        encoder: nn.Module,
        latent: int,
        event_dim: int | None,
        transforms: int,
        context: int,
        step: Callable[[int, bool], nn.Module],
    ) -> None:
        super().__init__(encoder, latent, event_dim)
        whole_number(1, transforms=transforms)
        whole_number(0, context=context)
        self.outputs = 2 + context
        self.scale = BoundedScale(1e-4, 10.0)
        self.steps = nn.ModuleList(step(context * latent, i % 2 == 1) for i in range(transforms))

    @classmethod
    def outputs_for(cls, latent: int, **options: Any) -> int:
        """A mean, a scale, and the context."""
        return 2 + options["context"]

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        numbers = self.encode(x, y)
        mean, raw, context = numbers.split([self.latent, self.latent, (self.outputs - 2) * self.latent], -1)
        steps = [step(context if self.outputs > 2 else None) for step in self.steps]
        return FlowDistribution(DiagonalNormal(mean, self.scale(raw)), self.to_draws(compose(steps)))

    def to_draws(self, transform: Transform) -> Transform:
        """The map from noise to draws; the steps' own, or their inverse."""
        return transform


class AutoregressiveGuide(FlowGuide):
    """A flow whose layers are affine maps of each dimension that those before it parametrize.

    Args:
        hidden: sizes of the hidden layers of each one's network.
    """

    def __init__(
        self,
        encoder: nn.Module,
        latent: int,
        event_dim: int | None = None,
        transforms: int = 2,
        hidden: Sequence[int] = (128,),
        context: int = 1,
    ) -> None:
        super().__init__(
            encoder, latent, event_dim, transforms, context, partial(AutoregressiveMap, latent, AFFINE, hidden)
        )


class IAF(AutoregressiveGuide, name="iaf"):
    """An inverse autoregressive flow: z_d = exp(a(z_0,<d, h)) z_0,d + b(z_0,<d, h), layer by layer, z_0 mean-field.

    The context h(x) comes from the encoder beside mean and scale; the order of the dimensions is reversed from layer
    to layer. A draw and its own density take one pass; the density of another point finds one dimension after the
    other, with about as many products. It starts near mean-field.

    Source: Kingma et al. 2016.

    >>> import torch
    >>> q = IAF(nn.Linear(6, 6), latent=2)(torch.zeros(5, 6))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([2]))
    """


class MAF(AutoregressiveGuide, name="maf"):
    """A masked autoregressive flow: z_0,d = exp(a(z_<d, h)) z_d + b(z_<d, h), layer by layer, z_0 mean-field.

    A density takes one pass at any point, a draw goes dimension by dimension: for objectives that score more than they
    draw. It starts near mean-field.

    Source: Papamakarios, Pavlakou and Murray 2017.

    >>> import torch
    >>> q = MAF(nn.Linear(6, 6), latent=2)(torch.zeros(5, 6))
    >>> q.log_prob(torch.zeros(3, 5, 2)).shape
    torch.Size([3, 5])
    """

    def to_draws(self, transform: Transform) -> Transform:
        """The steps go from draws to noise."""
        return transform.inv


class Planar(FlowGuide, name="planar"):
    """Planar flows: z = z_0 + u tanh(w.z_0 + b), layer by layer, z_0 mean-field; u, w and b depend on the datum.

    A draw takes one pass; the density of another point solves an equation of one number in each layer. It starts near
    mean-field.

    Args:
        encoder: from data to means, scales and what u, w and b are made of: (2 + context) * latent numbers.
        context: how many numbers for each latent dimension u, w and b are made of; with 0 they are the same for all.

    Source: Rezende and Mohamed 2015.

    >>> import torch
    >>> q = Planar(nn.Linear(6, 6), latent=2)(torch.zeros(5, 6))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([2]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        latent: int,
        event_dim: int | None = None,
        transforms: int = 8,
        context: int = 1,
    ) -> None:
        super().__init__(encoder, latent, event_dim, transforms, context, lambda size, reverse: PlanarMap(latent, size))


class Spline(FlowGuide, name="spline"):
    """A neural spline flow: z_b = s(z_0,b; z_0,a, h), z_a = z_0,a, layer by layer, z_0 mean-field; s is a spline.

    Splines are rational-quadratic, monotone within +-bound and the identity outside; each layer moves half of the
    dimensions, the halves in turn; draws and densities take one pass. It starts near mean-field.

    Args:
        hidden: sizes of the hidden layers of each one's network.
        bins: of each spline.
        bound: where the splines end.

    Source: Durkan et al. 2019.

    >>> import torch
    >>> q = Spline(nn.Linear(6, 6), latent=2)(torch.zeros(5, 6))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([2]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        latent: int,
        event_dim: int | None = None,
        transforms: int = 2,
        hidden: Sequence[int] = (128,),
        bins: int = 8,
        bound: float = 5.0,
        context: int = 1,
    ) -> None:
        step = partial(CouplingMap, latent, splines(bins, bound), hidden)
        super().__init__(encoder, latent, event_dim, transforms, context, step)
