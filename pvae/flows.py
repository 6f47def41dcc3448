"""Invertible maps of a latent, and the distribution of a base's draws through them.

The maps of one number (affine, spline) and the schemes that compose them are zuko's. What is here is what they need to
start near the identity, to have no parameter that nothing depends on, and to be traced: no value is read on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints
from torch.nn.functional import elu, linear, softplus

from .errors import at_least, more_than
from .networks.network import check_sizes


@contextmanager
def _validation_as_it_is() -> Iterator[None]:
    before = Distribution._validate_args
    yield
    Distribution.set_default_validate_args(before)


with _validation_as_it_is():  # importing zuko turns the validation of every distribution off
    from zuko.transforms import (
        AutoregressiveTransform,
        ComposedTransform,
        DependentTransform,
        MonotonicAffineTransform,
        MonotonicRQSTransform,
    )

SLOPE = 1e-2
"""The least slope of a map of one number; the largest is its inverse."""
START = 1e-2
"""What the last weights of a network are multiplied with, so that a flow starts near the identity.

A flow guide is then the mean-field guide at first, and a flow prior the standard normal: training starts where these
do, and the depth of a flow, whose maps would else multiply, cannot make its first steps wild. They are not zero, for
the layers before them would have no gradient.
"""


class FlowDistribution(dist.TransformedDistribution):
    """The distribution of T(e), e from a base: log p(z) = log b(T^-1(z)) - log |det dT/de|.

    The log-density of the very tensor that was drawn last is known from its draw, without the inverse. Its gradient is
    that of a draw: through the noise's path as well. Of any other tensor, also of the same numbers detached, it takes
    the inverse.

    Args:
        base: of the noise e, with event shape (D,).
        transform: T, a transform with `call_and_ladj`.

    >>> flow = FlowDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), compose([CouplingMap(2)(None)]))
    >>> z = flow.sample()
    >>> flow.event_shape, flow.log_prob(z).shape
    (torch.Size([2]), torch.Size([]))
    """

    def __init__(self, base: dist.TorchDistribution, transform: Transform) -> None:
        super().__init__(base, [transform])
        self._drawn: tuple[Tensor, Tensor, bool] | None = None

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> FlowDistribution:  # noqa: D102
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        return type(self)(self.base_dist.expand(batch_shape), self.transforms[0])

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        noise = self.base_dist.rsample(torch.Size(sample_shape))
        z, ladj = self.transforms[0].call_and_ladj(noise)
        self._drawn = z, self.base_dist.log_prob(noise) - ladj, torch.is_grad_enabled()
        return z

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        if self._drawn is not None:
            z, log_prob, with_gradient = self._drawn
            if value is z and (with_gradient or not torch.is_grad_enabled()):
                return log_prob
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape))
        noise, ladj = self.transforms[0].inv.call_and_ladj(value)
        return self.base_dist.log_prob(noise) + ladj


def compose(transforms: Sequence[Transform]) -> Transform:
    """One transform after the other, the first first."""
    return ComposedTransform(*transforms)


def affine(numbers: Tensor) -> Transform:
    """The map x -> exp(a) x + b of each of D numbers; (..., D, 2): b, and a softly kept within SLOPE and 1 / SLOPE."""
    return MonotonicAffineTransform(numbers[..., 0], numbers[..., 1], slope=SLOPE)


def spline(numbers: Tensor, bound: float) -> Transform:
    """A monotone rational-quadratic spline within +-bound, the identity outside (Durkan et al. 2019).

    Args:
        numbers: (..., D, 3 * bins - 1): widths, heights and derivatives, zero for the identity.
        bound: where it ends.
    """
    bins = (numbers.shape[-1] + 1) // 3
    return _Spline(*numbers.split([bins, bins, bins - 1], -1), bound=bound, slope=SLOPE)


class _Spline(MonotonicRQSTransform):
    """Zuko's, whose inverse takes the root of what rounding may make negative."""

    def _inverse(self, y: Tensor) -> Tensor:
        inside, x0, x1, y0, y1, d0, d1, s = self.bin(self.searchsorted(self.vertical, y) - 1)
        height, above = y1 - y0, inside * (y - y0)
        bend = above * (d0 + d1 - 2 * s)
        a, b, c = height * (s - d0) + bend, height * d0 - bend, -s * above
        root = (b.square() - 4 * a * c).clamp(min=1e-12).sqrt()
        return torch.where(inside, x0 + 2 * c / (-b - root) * (x1 - x0), y)


Univariate = tuple[int, Callable[[Tensor], Transform]]
"""How many numbers a map of one number takes, and the map."""
AFFINE: Univariate = (2, affine)


def splines(bins: int, bound: float) -> Univariate:
    """Splines of so many bins within +-bound."""
    at_least(1, bins=bins)
    more_than(0, bound=bound)
    return 3 * bins - 1, partial(spline, bound=bound)


class Conditioner(nn.Module):
    """A multilayer perceptron of which each output sees some of the inputs only (Germain et al. 2015).

    It has no parameter on which no output depends: where nothing is seen it is a bias. It starts near zero.

    Args:
        sees: (m, n), which of n inputs each of m outputs sees. Of two outputs, one sees all that the other does.
        numbers: how many numbers each output has.
        hidden: sizes of the hidden layers.
        context: size of a vector that every output sees.

    >>> sees = torch.ones(3, 3).tril(-1).bool()
    >>> numbers = Conditioner(sees, 2)(None)
    >>> numbers(torch.zeros(5, 3)).shape
    torch.Size([5, 3, 2])
    """

    def __init__(self, sees: Tensor, numbers: int, hidden: Sequence[int] = (64,), context: int = 0) -> None:
        super().__init__()
        check_sizes("hidden", hidden)
        self.outputs = (len(sees), numbers)
        degree = sees.sum(-1)
        usable = [int((degree == d).nonzero()[0]) for d in degree.unique().tolist() if d or context]
        # a unit of a layer sees what the output does that stands for it
        layers = [torch.tensor([usable[i * len(usable) // n] for i in range(n)]) for n in hidden if usable]
        layers.append(torch.arange(len(sees)).repeat_interleave(numbers))
        size = len(layers[0])
        self.inputs = nn.Linear(sees.shape[1], size, bias=False) if sees.any() else None
        self.context = nn.Linear(context, size, bias=False) if context else None
        self.bias = nn.Parameter(torch.zeros(size))
        self.layers = nn.ModuleList(nn.Linear(len(a), len(b)) for a, b in pairwise(layers))
        self.register_buffer("mask0", sees[layers[0]].float(), persistent=False)
        for i, (a, b) in enumerate(pairwise(layers), 1):
            self.register_buffer(f"mask{i}", (degree[a] <= degree[b, None]).float(), persistent=False)
        self._start()

    def _start(self) -> None:
        """Near zero."""
        with torch.no_grad():
            for layer in self.layers[-1:] or filter(None, (self.inputs, self.context)):
                layer.weight *= START
                if layer.bias is not None:
                    layer.bias.zero_()

    def forward(self, context: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The function from inputs (..., n) to numbers (..., m, numbers), given the context (..., size)."""
        first = self.bias if self.context is None else self.context(context) + self.bias
        weight = None if self.inputs is None else self.inputs.weight * self.mask0
        later = [(layer.weight * getattr(self, f"mask{i}"), layer.bias) for i, layer in enumerate(self.layers, 1)]

        def numbers(x: Tensor) -> Tensor:
            out = first if weight is None else linear(x, weight) + first
            for weights, bias in later:
                out = linear(elu(out), weights, bias)
            return out.expand(*torch.broadcast_shapes(x.shape[:-1], out.shape[:-1]), -1).unflatten(-1, self.outputs)

        return numbers


class AutoregressiveMap(nn.Module):
    """A map z_d = f(e_d; e_<d, context): its Jacobian is triangular; its inverse takes D passes.

    Args:
        latent: D.
        univariate: f.
        hidden: sizes of the hidden layers of the network that gives f's numbers.
        context: size of what they depend on besides.
        reverse: count dimensions from the last.
    """

    def __init__(
        self,
        latent: int,
        univariate: Univariate = AFFINE,
        hidden: Sequence[int] = (64,),
        context: int = 0,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        sees = torch.ones(latent, latent).tril(-1).bool()
        numbers, self.univariate = univariate
        self.latent, self.conditioner = latent, Conditioner(sees.T if reverse else sees, numbers, hidden, context)

    def forward(self, context: Tensor | None) -> Transform:
        """The transform, given the context (..., size)."""
        numbers = self.conditioner(context)
        return AutoregressiveTransform(lambda e: DependentTransform(self.univariate(numbers(e)), 1), passes=self.latent)


class CouplingMap(nn.Module):
    """A map that leaves half of the dimensions, and moves the others by f(.; first half, context): one pass both ways.

    One dimension alone is moved by a map that depends on the context only.

    Args:
        latent: how many dimensions there are.
        univariate: f.
        hidden: sizes of the hidden layers of the network that gives f's numbers.
        context: size of what they depend on besides.
        reverse: leave the last half.
    """

    def __init__(
        self,
        latent: int,
        univariate: Univariate = AFFINE,
        hidden: Sequence[int] = (64,),
        context: int = 0,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        half = latent // 2
        numbers, self.univariate = univariate
        self.half, self.reverse = half, reverse
        self.conditioner = Conditioner(torch.ones(latent - half, half).bool(), numbers, hidden, context)

    def forward(self, context: Tensor | None) -> Transform:
        """The transform, given the context (..., size)."""
        numbers = self.conditioner(context)
        return _Coupling(lambda kept: DependentTransform(self.univariate(numbers(kept)), 1), self.half, self.reverse)


class _OfVectors(Transform):
    """A map of vectors onto vectors, which writes `call_and_ladj`, and `_inverse`."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]


class _Coupling(_OfVectors):
    """Zuko's, without its look at a mask's values."""

    def __init__(self, meta: Callable[[Tensor], Transform], half: int, reverse: bool) -> None:
        super().__init__()
        self.meta, self.half, self.reverse = meta, half, reverse

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.reverse:
            return x[..., x.shape[-1] - self.half :], x[..., : x.shape[-1] - self.half]
        return x[..., : self.half], x[..., self.half :]

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        kept = kept.expand(*moved.shape[:-1], -1)
        return torch.cat([moved, kept] if self.reverse else [kept, moved], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        kept, moved = self._split(y)
        return self._join(kept, self.meta(kept).inv(moved))

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(x)
        moved, ladj = self.meta(kept).call_and_ladj(moved)
        return self._join(kept, moved), ladj


class PlanarMap(nn.Module):
    """A map that moves a point along one direction by how far it is along another.

    z = e + u tanh(w.e + b), invertible as w.u > -1.

    Args:
        latent: how many dimensions there are.
        context: size of what u, w and b depend on; with none they are parameters.
    """

    def __init__(self, latent: int, context: int = 0) -> None:
        super().__init__()
        self.latent = latent
        self.bias = nn.Parameter(torch.randn(2 * latent + 1) / math.sqrt(latent))
        self.context = nn.Linear(context, 2 * latent + 1, bias=False) if context else None
        with torch.no_grad():
            self.bias[:latent] *= START
            if self.context is not None:
                self.context.weight *= START

    def forward(self, context: Tensor | None) -> Transform:
        """The transform, given the context (..., size)."""
        numbers = self.bias if self.context is None else self.context(context) + self.bias
        return _Planar(*numbers.split([self.latent, self.latent, 1], -1))


class _Planar(_OfVectors):
    """Z = e + u tanh(w.e + b), u changed along w so that w.u > LEAST - 1, and so that u = 0 stays.

    The inverse is that of one number: w.z + b = a + w.u tanh(a), a = w.e + b.
    """

    LEAST = 0.01
    SHIFT = math.log(math.expm1(1 - LEAST))

    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        raw = (u * w).sum(-1, keepdim=True)
        self.w, self.b = w, b
        self.stretch = softplus(raw + self.SHIFT) - (1 - self.LEAST)
        self.u = u + (self.stretch - raw) * w / w.square().sum(-1, keepdim=True).clamp(min=1e-12)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        moved = torch.tanh((self.w * x).sum(-1, keepdim=True) + self.b)
        return x + self.u * moved, torch.log1p(self.stretch * (1 - moved.square())).squeeze(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        along = (self.w * y).sum(-1, keepdim=True) + self.b
        a = self._solve(along.detach(), self.stretch.detach())
        moved = torch.tanh(a)
        slope = 1 + self.stretch.detach() * (1 - moved.square())
        a = a - (a + self.stretch * moved - along) / slope  # one step more, which has the gradient
        return y - self.u * torch.tanh(a)

    @staticmethod
    def _solve(along: Tensor, stretch: Tensor, steps: int = 20) -> Tensor:
        """The root a of a + stretch tanh(a) = along.

        Newton's steps, from where none goes too far: at positive numbers the left side bends down for a positive
        stretch, so from 0; up for a negative one, so from beyond the root.
        """
        far = along.abs()
        a = torch.where(stretch < 0, far - stretch, 0.0)
        for _ in range(steps):
            moved = torch.tanh(a)
            a = a - (a + stretch * moved - far) / (1 + stretch * (1 - moved.square()))
        return along.sign() * a
