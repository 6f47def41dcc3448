"""Where draws lie, by looking at them; and numbers of a real space in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["point", "discrete", "sphere", "simplex", "interval", "real"]


@dataclass(frozen=True)
class Space:
    """Where a distribution over (d,) lies: `u` are numbers without bounds, `z` its draws."""

    kind: Kind
    size: int
    """d."""
    groups: int = 1
    """How many simplices there are side by side."""

    @property
    def free(self) -> int:
        """How many numbers u has."""
        return self.size - self.groups if self.kind == "simplex" else self.size

    def to_real(self, z: Tensor) -> Tensor:
        """Draws z (..., d) to u (..., free)."""
        if self.kind == "interval":
            return z.clamp(1e-7, 1 - 1e-7).logit()
        if self.kind == "simplex":
            logs = z.clamp(min=1e-30).log().unflatten(-1, (self.groups, -1))
            return (logs[..., :-1] - logs[..., -1:]).flatten(-2)
        return z

    def from_real(self, u: Tensor) -> Tensor:
        """The inverse."""
        if self.kind == "interval":
            return u.sigmoid()
        if self.kind == "simplex":
            u = u.unflatten(-1, (self.groups, -1))
            return torch.cat([u, torch.zeros_like(u[..., :1])], -1).softmax(-1).flatten(-2)
        if self.kind == "sphere":
            return torch.nn.functional.normalize(u, dim=-1)
        return u

    def log_jacobian(self, u: Tensor) -> Tensor:
        """Log |dz/du|, with z in a simplex counted by all but its last number."""
        if self.kind == "interval":
            return (torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)).sum(-1)
        if self.kind == "simplex":
            return self.from_real(u).log().sum(-1)
        return torch.zeros(u.shape[:-1])


def space_of(z: Tensor) -> Space:
    """Where draws z (N, d) lie.

    >>> space_of(torch.randn(100, 3)).kind, space_of(torch.bernoulli(torch.full((100, 3), 0.5))).kind
    ('real', 'discrete')
    """
    d = z.shape[-1]
    if bool((z == z[0]).all()):
        return Space("point", d)
    if bool((z == z.round()).all()):
        return Space("discrete", d)
    if d > 1 and bool((z.norm(dim=-1) - 1).abs().max() < 1e-4):
        return Space("sphere", d)
    if bool(((z >= 0) & (z <= 1)).all()):
        for size in range(2, d + 1):
            if d % size == 0 and bool((z.unflatten(-1, (-1, size)).sum(-1) - 1).abs().max() < 1e-4):
                return Space("simplex", d, d // size)
        return Space("interval", d)
    return Space("real", d)
