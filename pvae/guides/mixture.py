"""The guide with several modes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..errors import at_least, whole_number
from .guide import Guide
from .scales import BoundedScale


class Mixture(Guide, name="mixture"):
    """A mixture of diagonal Gaussians: q(z|x) = sum_c w_c N(m_c, diag s_c^2), all of them from one encoder.

    Draws carry a gradient to weights, means and scales, see `DiagonalMixture`. To each mean a learned place is added,
    the same for all data and drawn at random when the guide is made, so that the components begin apart.

    Args:
        encoder: from data to means, then numbers of the scales, each component by component, then the logits of the
            weights; and as many numbers without use as make their count a multiple of `latent`.
        components: how many there are.
        apart: how far from one another they begin: the standard deviation of their places.
        min_scale: lower bound of the scales.
        max_scale: upper bound of the scales, above 1.

    Raises:
        InputError: fewer than 2 components; `apart` below 0; bounds out of order.

    Source: Jaakkola and Jordan 1998.

    >>> q = Mixture(nn.Linear(6, 15), latent=3, components=2)(torch.zeros(5, 6))
    >>> q.locs.shape
    torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        encoder: nn.Module,
        latent: int,
        event_dim: int | None = None,
        components: int = 3,
        apart: float = 0.5,
        min_scale: float = 1e-4,
        max_scale: float = 10.0,
    ) -> None:
        super().__init__(encoder, latent, event_dim)
        whole_number(2, ", or guide mean_field for one", components=components)
        at_least(0, apart=apart)
        self.components, self.outputs = components, self.outputs_for(latent, components=components)
        self.scale = BoundedScale(min_scale, max_scale)
        self.places = nn.Parameter(apart * torch.randn(components, latent))

    @classmethod
    def outputs_for(cls, latent: int, **options: Any) -> int:  # noqa: D102
        components = options["components"]
        return 2 * components - (-components // latent)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (...), event shape (latent,)."""
        each = self.components * self.latent
        numbers = self.encode(x, y)
        logits = numbers[..., 2 * each : 2 * each + self.components]
        means, raw = (part.unflatten(-1, (-1, self.latent)) for part in numbers[..., : 2 * each].chunk(2, -1))
        return DiagonalMixture(logits, means + self.places, self.scale(raw))


class DiagonalMixture(dist.TorchDistribution):
    """sum_c w_c N(loc_c, diag scale_c^2), w the softmax of logits, whose draws carry a gradient to all three.

    A draw moves with the parameters so that the density changes as it should (pathwise, for any function of it). With
    r_c(z) the probability that z is of component c, it moves with a component's loc and scale as that component's own
    draws do, times r_c (Jankowiak and Karaletsos 2019); with the weights as the solution z of F_d(z_d | z_<d) = u_d for
    d = 1, 2, ... at fixed u does, F_d the conditional distribution functions (Figurnov, Mohamed and Mnih 2018).

    Args:
        logits: (..., C).
        locs: (..., C, D).
        scales: (..., C, D), positive.

    >>> q = DiagonalMixture(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    >>> q.mean, q.variance
    (tensor([0.]), tensor([2.]))
    """

    arg_constraints: ClassVar = {
        "logits": constraints.real_vector,
        "locs": constraints.independent(constraints.real, 2),
        "scales": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, logits: Tensor, locs: Tensor, scales: Tensor) -> None:
        self.logits, self.locs, self.scales = logits.log_softmax(-1), locs, scales
        super().__init__(locs.shape[:-2], locs.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> DiagonalMixture:  # noqa: D102
        new = type(self).__new__(type(self))
        new.logits = self.logits.expand(*batch_shape, -1)
        new.locs, new.scales = (part.expand(*batch_shape, *part.shape[-2:]) for part in (self.locs, self.scales))
        super(DiagonalMixture, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        shape = self._extended_shape(torch.Size(sample_shape))
        lead, count = shape[:-1], self.logits.shape[-1]
        with torch.no_grad():
            noise = torch.empty(shape, dtype=self.locs.dtype, device=self.locs.device).normal_()
            uniform = torch.rand((*lead, 1), dtype=self.locs.dtype, device=self.locs.device)
            which = (uniform > self.logits.exp().cumsum(-1)[..., :-1]).sum(-1, keepdim=True)
            which = which.unsqueeze(-1).expand(*lead, 1, shape[-1])
            loc, scale = (
                part.expand(*lead, count, -1).gather(-2, which).squeeze(-2) for part in (self.locs, self.scales)
            )
            value = torch.addcmul(loc, scale, noise)
        return _Moving.apply(value, self.logits, self.locs, self.scales)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log sum_c w_c N(z; loc_c, diag scale_c^2)."""
        standard = (value.unsqueeze(-2) - self.locs) / self.scales
        each = self.logits - 0.5 * standard.square().sum(-1) - self.scales.log().sum(-1)
        return each.logsumexp(-1) - 0.5 * math.log(2 * math.pi) * self.event_shape[0]

    @property
    def mean(self) -> Tensor:  # noqa: D102
        return (self.logits.exp().unsqueeze(-1) * self.locs).sum(-2)

    @property
    def variance(self) -> Tensor:  # noqa: D102
        spread = self.scales.square() + (self.locs - self.mean.unsqueeze(-2)).square()
        return (self.logits.exp().unsqueeze(-1) * spread).sum(-2)


class _Moving(torch.autograd.Function):
    """A mixture's draws (..., D), as they are, with the gradient of how they move; logits are log-weights (..., C)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, logits: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(value, logits, locs, scales)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        value, logits, locs, scales = ctx.saved_tensors
        standard = (value.unsqueeze(-2) - locs) / scales
        log_density = -0.5 * standard.square() - scales.log() - 0.5 * math.log(2 * math.pi)
        share = (logits + log_density.sum(-1)).softmax(-1).unsqueeze(-1) * grad.unsqueeze(-2)
        weights = _weights_gradient(grad, logits, standard, log_density, scales)
        found = (weights, share, share * standard)
        shapes = (logits.shape, locs.shape, scales.shape)
        return None, *(part.sum_to_size(shape) for part, shape in zip(found, shapes, strict=True))


def _weights_gradient(grad: Tensor, logits: Tensor, standard: Tensor, log_density: Tensor, scales: Tensor) -> Tensor:
    """What a gradient (..., D) at draws is at the log-weights (..., C).

    With r_cd the weight of component c given z_<d, A_cd = r_cd (Phi_cd - F_d) is the slope of F_d in the log-weight;
    F_d has the slope sum_c A_cd dlog N_cj/dz_j in an earlier z_j, and the conditional density in z_d. The triangular
    system of these slopes, transposed, is solved for u against the gradient: what is wanted is -sum_d A_cd u_d.
    """
    before = log_density.cumsum(-1) - log_density
    weight = (logits.unsqueeze(-1) + before).softmax(-2)
    density = (weight * log_density.exp()).sum(-2)
    lower, upper = (0.5 * torch.erfc(sign * standard / math.sqrt(2)) for sign in (-1, 1))
    below, above = ((weight * tail).sum(-2, keepdim=True) for tail in (lower, upper))
    slope = weight * torch.where(below < above, lower - below, above - upper)  # of the smaller tail: it has the digits
    pull = -standard / scales
    moved = torch.zeros_like(slope[..., 0])
    for d in reversed(range(grad.shape[-1])):
        u = (grad[..., d] - (pull[..., d] * moved).sum(-1)) / density[..., d]
        moved = moved + slope[..., d] * u.unsqueeze(-1)
    return -moved
