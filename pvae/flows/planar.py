"""Maps along one direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.nn.functional import softplus

from .conditioner import START
from .transform import OfVectors


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


class _Planar(OfVectors):
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
        return x + self.u * moved, self._ladj(moved)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        along = (self.w * y).sum(-1, keepdim=True) + self.b
        a = self._solve(along.detach(), self.stretch.detach())
        moved = torch.tanh(a)
        slope = 1 + self.stretch.detach() * (1 - moved.square())
        a = a - (a + self.stretch * moved - along) / slope  # one step more, which has the gradient
        moved = torch.tanh(a)
        return y - self.u * moved, -self._ladj(moved)

    def _ladj(self, moved: Tensor) -> Tensor:
        return torch.log1p(self.stretch * (1 - moved.square())).squeeze(-1)

    @staticmethod
    def _solve(along: Tensor, stretch: Tensor) -> Tensor:
        """The root a of a + stretch tanh(a) = along.

        Newton's steps, from where none goes too far: at positive numbers the left side bends down for a positive
        stretch, so from 0; up for a negative one, so from beyond the root.
        """
        far = along.abs()
        a = torch.where(stretch < 0, far - stretch, 0.0)
        for _ in range(20):
            moved = torch.tanh(a)
            a = a - (a + stretch * moved - far) / (1 + stretch * (1 - moved.square()))
        return along.sign() * a
