"""Distributions on the unit sphere S^(d-1), d from 2; densities with respect to its surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, register_kl

from ..errors import InputError

PROPOSALS = 24
"""Of an angle; each is taken with a probability above 0.65, so that one in 10^11 draws takes none."""
NODES = 64
"""Of the quadrature that differentiates an angle."""
ORDER = 20
"""From which on the expansion of Bessel functions is used."""


def check_latent(latent: int) -> None:
    """Refuse a latent whose sphere is two points.

    Raises:
        InputError: a latent of size 1.
    """
    if latent < 2:
        raise InputError(f"latent: found {latent}, expected at least 2: the unit sphere in 1 dimension is two points")


def log_area(d: int) -> float:
    """The logarithm of the surface of S^(d-1): log(2 pi^(d/2) / Gamma(d/2)).

    >>> math.isclose(log_area(3), math.log(4 * math.pi))
    True
    """
    return math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)


class _Sphere(constraints.Constraint):
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value.square().sum(-1) - 1).abs() < 1e-4


class SphereUniform(dist.TorchDistribution):
    """Uniform on the sphere: log p(z) = -log(2 pi^(d/2) / Gamma(d/2)).

    Args:
        zero: (..., d), of zeros: its mean, which says how large it is and where.

    >>> SphereUniform(torch.zeros(3)).log_prob(torch.tensor([1.0, 0.0, 0.0]))  # -log(4 pi)
    tensor(-2.5310)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True
    support = _Sphere()

    def __init__(self, zero: Tensor) -> None:
        self.zero = zero
        super().__init__(zero.shape[:-1], zero.shape[-1:])

    @property
    def mean(self) -> Tensor:
        """Zero, (..., d)."""
        return self.zero

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> SphereUniform:  # noqa: D102
        return SphereUniform(self.zero.expand(*batch_shape, *self.event_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        return nn.functional.normalize(_normal(self.zero, self._extended_shape(torch.Size(sample_shape))), dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full((), -log_area(self.event_shape[0])).expand(shape)


class Directional(dist.TorchDistribution):
    """What is symmetric about an axis: a member draws the angle from it, and has a density that knows it alone.

    Draws follow the axis by the rotation that turns it in its own plane, and the angle along their meridian: velocities
    of first order, which is all that a gradient takes, without a singular direction.

    Args:
        axis: (..., d), unit vectors.
        concentration: (...,), from 0, where they are uniform.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True
    support = _Sphere()

    def __init__(self, axis: Tensor, concentration: Tensor) -> None:
        self.axis = axis
        self.concentration = concentration if concentration.is_floating_point() else concentration.to(axis.dtype)
        super().__init__(axis.shape[:-1], axis.shape[-1:])

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> Directional:  # noqa: D102
        shape = torch.Size(batch_shape)
        return type(self)(self.axis.expand(*shape, *self.event_shape), self.concentration.expand(shape))

    @property
    def mode(self) -> Tensor:
        """The axis, (..., d)."""
        return self.axis

    @property
    def mean(self) -> Tensor:
        """The axis times the mean cosine, (..., d)."""
        return self.axis * self.mean_cosine().unsqueeze(-1)

    def mean_cosine(self) -> Tensor:
        """Of the angle from the axis, (...,)."""
        raise NotImplementedError

    def kl_to_uniform(self) -> Tensor:
        """KL(q || uniform), (...,), nats."""
        raise NotImplementedError

    def angle(self, shape: torch.Size) -> Tensor:
        """Draws of the angle from the axis, with the gradient of the concentration."""
        raise NotImplementedError

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        shape = self._extended_shape(torch.Size(sample_shape))
        axis = self.axis.detach()
        angle = self.angle(shape[:-1]).unsqueeze(-1)
        fixed = angle.detach()
        noise = _normal(axis, shape)
        across = nn.functional.normalize(noise - (noise * axis).sum(-1, keepdim=True) * axis, dim=-1)
        z = nn.functional.normalize(fixed.cos() * axis + fixed.sin() * across, dim=-1)
        turned, slid = self.axis - axis, angle - fixed  # zero, with a gradient
        turn = (axis * z).sum(-1, keepdim=True) * turned - (turned * z).sum(-1, keepdim=True) * axis
        return z + turn + (fixed.cos() * across - fixed.sin() * axis) * slid


class VonMisesFisher(Directional):
    """Exponential in the cosine: log q(z) = k (m.z) + (d/2 - 1) log k - (d/2) log 2 pi - log I_(d/2-1)(k).

    Angles are drawn by rejection (Wood 1994) from a fixed number of proposals; their gradient is that of their
    distribution function (Figurnov, Mohamed and Mnih 2018).

    Args:
        axis: m (..., d), unit vectors.
        concentration: k (...,), from 0 to 10,000 or so.

    >>> q = VonMisesFisher(torch.tensor([1.0, 0.0, 0.0]), torch.tensor(2.0))
    >>> q.log_prob(torch.tensor([1.0, 0.0, 0.0]))  # 2 + log(2 / (4 pi sinh 2))
    tensor(-1.1262)
    """

    def mean_cosine(self) -> Tensor:
        """I_(d/2)(k) / I_(d/2-1)(k)."""
        return _BesselRatio.apply(self.concentration, self.event_shape[0] / 2 - 1)

    def kl_to_uniform(self) -> Tensor:
        """The mean cosine times k, less the logarithm of what normalizes."""
        d, k = self.event_shape[0], self.concentration.double()
        cosine, log_i = _BesselRatio.apply(k, d / 2 - 1), _LogBessel.apply(k, d / 2 - 1)
        kl = k * (cosine - 1) - log_i - d / 2 * math.log(2 * math.pi) + log_area(d)
        return kl.to(self.concentration.dtype)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        d = self.event_shape[0]
        # 1 - m.z as half the squared distance, which keeps its digits
        exponent = -0.5 * self.concentration * (value - self.axis).square().sum(-1)
        return exponent - _LogBessel.apply(self.concentration, d / 2 - 1) - d / 2 * math.log(2 * math.pi)

    def angle(self, shape: torch.Size) -> Tensor:
        """By rejection."""
        with torch.no_grad():
            drawn = _wood(self.concentration.detach().expand(shape), self.event_shape[0])
        return _Angle.apply(self.concentration.expand(shape), drawn, self.event_shape[0])


class PowerSpherical(Directional):
    """A power of the cosine: log q(z) = k log(1 + m.z) - log c, c = 2^(a+b) pi^b Gamma(a) / Gamma(a+b).

    With b = (d-1)/2 and a = b + k; (1 + m.z) / 2 has a Beta(a, b) distribution. De Cao and Aziz 2020.

    Args:
        axis: m (..., d), unit vectors.
        concentration: k (...,), from 0.

    >>> q = PowerSpherical(torch.tensor([1.0, 0.0, 0.0]), torch.tensor(0.0))
    >>> q.log_prob(torch.tensor([0.0, 1.0, 0.0]))  # -log(4 pi)
    tensor(-2.5310)
    """

    def mean_cosine(self) -> Tensor:
        """(a - b) / (a + b)."""
        return self.concentration / (self.concentration + self.event_shape[0] - 1)

    def kl_to_uniform(self) -> Tensor:
        """E[k log(1 + m.z)] - log c + log area."""
        a, b = self._shapes()
        mean_log = math.log(2) + torch.digamma(a) - torch.digamma(a + b)
        kl = self.concentration.double() * mean_log - self._log_constant() + log_area(self.event_shape[0])
        return kl.to(self.concentration.dtype)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        cosine_and_one = 0.5 * (value + self.axis).square().sum(-1)
        log_one = cosine_and_one.clamp(min=torch.finfo(value.dtype).tiny).log()
        return self.concentration * log_one - self._log_constant().to(self.concentration.dtype)

    def angle(self, shape: torch.Size) -> Tensor:
        """Twice the one whose squared tangent is a ratio of gammas."""
        a, b = self._shapes()
        dtype = self.concentration.dtype
        along, across = (torch._standard_gamma(v.to(dtype).expand(shape)) for v in (a, b))
        tiny = torch.finfo(dtype).tiny
        return 2 * torch.atan2(across.clamp(min=tiny).sqrt(), along.clamp(min=tiny).sqrt())

    def _shapes(self) -> tuple[Tensor, Tensor]:
        b = (self.event_shape[0] - 1) / 2
        k = self.concentration.double()
        return b + k, torch.full_like(k.detach(), b)

    def _log_constant(self) -> Tensor:
        a, b = self._shapes()
        return (a + b) * math.log(2) + b * math.log(math.pi) + torch.lgamma(a) - torch.lgamma(a + b)


@register_kl(Directional, SphereUniform)
def _kl_to_uniform(q: Directional, p: SphereUniform) -> Tensor:
    return q.kl_to_uniform()


def _normal(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device).normal_()


# Bessel functions -----------------------------------------------------------------------------------------------------


class _LogBessel(torch.autograd.Function):
    """log I_v(k) - v log k - k, smooth at 0; its slope is the ratio I_(v+1)(k) / I_v(k) less 1."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, order: float) -> Tensor:
        log_i, _, _ = _bessel(k.double(), order)
        ctx.save_for_backward(k)
        ctx.order = order
        return log_i.to(k.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (k,) = ctx.saved_tensors
        return grad * (_BesselRatio.apply(k.double(), ctx.order) - 1).to(k.dtype), None


class _BesselRatio(torch.autograd.Function):
    """r = I_(v+1)(k) / I_v(k), with the slope 1 - r^2 - (2v + 1) r / k."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, order: float) -> Tensor:
        _, ratio, over = _bessel(k.double(), order)
        ctx.save_for_backward((1 - ratio.square() - (2 * order + 1) * over).to(k.dtype))
        return ratio.to(k.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None


def _bessel(k: Tensor, order: float) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithm log I_v(k) - v log k - k, the ratio r_v = I_(v+1)(k) / I_v(k), and r_v / k; float64.

    By an expansion at an order of 20 or more, then down: r_(n-1) = k / (2n + k r_n).
    """
    steps = max(0, math.ceil(ORDER - order))
    top = order + steps
    log_i = _debye(k, top)
    over = (_debye(k, top + 1) - log_i).exp()
    for i in range(steps):
        denominator = 2 * (top - i) + k.square() * over
        log_i, over = log_i + denominator.log(), 1 / denominator
    return log_i, k * over, over


def _debye(k: Tensor, order: float) -> Tensor:
    """The same for a large order m by Debye's expansion, uniform in k, to m^-6."""
    x = k / order
    s = (1 + x.square()).sqrt()
    p = 1 / s
    series = torch.ones_like(k)
    for power, coefficients in enumerate(_DEBYE, start=1):
        polynomial = torch.zeros_like(k)
        for c in reversed(coefficients):
            polynomial = polynomial * p.square() + c
        series = series + polynomial * (p / order) ** power
    constant = -order * math.log(order) - 0.5 * math.log(2 * math.pi * order)
    return order / (s + x) - order * torch.log1p(s) - 0.5 * s.log() + series.log() + constant


def _debye_polynomials(count: int) -> list[list[float]]:
    """u_1, u_2, ... by u_(n+1)(p) = p^2 (1 - p^2) u_n'(p) / 2 + 1/8 int_0^p (1 - 5 q^2) u_n(q) dq.

    u_n is p^n times a polynomial in p^2, whose coefficients these are.
    """
    found, u = [], {0: 1.0}
    for n in range(1, count + 1):
        following: dict[int, float] = {}
        for power, c in u.items():
            for to, value in (
                (power + 1, c * (power / 2 + 1 / (8 * (power + 1)))),
                (power + 3, -c * (power / 2 + 5 / (8 * (power + 3)))),
            ):
                following[to] = following.get(to, 0.0) + value
        u = following
        found.append([u[power] for power in range(n, 3 * n + 1, 2)])
    return found


_DEBYE = _debye_polynomials(6)


# Angles of the von Mises-Fisher distribution --------------------------------------------------------------------------


def _wood(k: Tensor, d: int) -> Tensor:
    """Angles from the axis for concentrations k (...): the first of so many proposals that is taken. Wood 1994."""
    b = (d - 1) / (2 * k + (4 * k.square() + (d - 1) ** 2).sqrt()).unsqueeze(-1)
    shape = torch.full((*k.shape, PROPOSALS), (d - 1) / 2, dtype=k.dtype, device=k.device)
    across, along = torch._standard_gamma(shape), torch._standard_gamma(shape)
    angle = 2 * torch.atan2((b * across).sqrt(), along.sqrt())
    gap, short = 2 * b / (1 + b), 2 * (angle / 2).sin().square()  # 1 less the envelope's cosine, and the proposal's
    relative = (gap + (1 - gap) * short) * (1 + b).square() / (4 * b)
    log_taken = k.unsqueeze(-1) * (gap - short) + (d - 1) * relative.log()
    taken = torch.rand_like(angle).log() <= log_taken
    return angle.gather(-1, taken.to(torch.uint8).argmax(-1, keepdim=True)).squeeze(-1)


class _Angle(torch.autograd.Function):
    """Angles a, drawn with concentrations k: da/dk is that at which their distribution function stays as it is."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, angle: Tensor, d: int) -> Tensor:
        ctx.save_for_backward(k, angle)
        ctx.d = d
        return angle.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        k, angle = ctx.saved_tensors
        return grad * _angle_slope(k, angle, ctx.d), None, None


def _angle_slope(k: Tensor, angle: Tensor, d: int) -> Tensor:
    """-int_0^a (cos t - r) g(t)/g(a) dt, g(t) = sin(t)^(d-2) exp(k cos t), r the mean cosine, or from a to pi.

    Of the two, whichever has a positive integrand throughout; no further than g reaches.
    """
    cosine = 1 - 2 * (angle / 2).sin().square()
    mean = _BesselRatio.apply(k, d / 2 - 1)
    reach = 10 / (k + d - 1).sqrt()
    inward = cosine > mean
    far = torch.where(inward, (angle - reach).clamp(min=0), (angle + reach).clamp(max=math.pi))
    s = (torch.arange(NODES, dtype=k.dtype, device=k.device) + 0.5) / NODES
    # midpoints, where a substitution has flattened both ends: exact to the eighth order
    node = s**4 * (35 - 84 * s + 70 * s**2 - 20 * s**3)
    weight = 140 * (s * (1 - s)) ** 3 / NODES
    a, k, width = angle.unsqueeze(-1), k.unsqueeze(-1), (far - angle).unsqueeze(-1)
    t = a + width * node
    log_g = (d - 2) * (t.sin() / a.sin()).clamp(min=torch.finfo(t.dtype).tiny).log()
    log_g = log_g - 2 * k * ((t - a) / 2).sin() * ((t + a) / 2).sin()
    integrand = (t.cos() - mean.unsqueeze(-1)).abs() * log_g.exp()
    return -(integrand * weight).sum(-1) * width.squeeze(-1).abs()
