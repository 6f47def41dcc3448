"""A normal prior for each label."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from ..base import full_precision
from ..distributions import DiagonalNormal
from ..errors import InputError
from .prior import Prior


class ClassNormal(Prior, name="class_normal"):
    """A normal for each label, or one that covariates move: p(z|y) = N(m(y), diag s(y)^2), m and log s linear in y.

    For classes that is a mean and a scale each. It starts at the standard normal for every label: nothing has to be
    told apart by chance, as every mean has the gradient of its own data.

    Args:
        latent: size of the latent.
        condition: from labels y to their features; it has to be given.

    >>> import torch
    >>> from pvae import Label
    >>> ClassNormal(2, condition=Label(10))(torch.tensor([3, 1, 4])).batch_shape
    torch.Size([3])
    """

    condition: nn.Module

    def __init__(self, latent: int, *, condition: nn.Module) -> None:
        super().__init__(latent, condition=condition)
        if condition is None:
            raise InputError(
                "condition: found none, expected one, as pvae.Label(10): means and scales are of its features"
            )
        self.linear = nn.Linear(condition.size, 2 * latent)  # type: ignore[arg-type]
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z|y): batch shape that of y, event shape (latent,)."""
        loc, log_scale = full_precision(self.linear(self.condition(y))).chunk(2, -1)
        return DiagonalNormal(loc, log_scale.exp())
