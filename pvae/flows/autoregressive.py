"""Maps of each dimension that those before it parametrize."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from .conditioner import Conditioner
from .transform import OfVectors
from .univariate import AFFINE, Univariate


class AutoregressiveMap(nn.Module):
    """A map z_d = f(e_d; e_<d, context): its Jacobian is triangular.

    Its inverse finds one dimension after the other, with about as many products as the map itself.

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
        return _Autoregressive(self, context)


class _Autoregressive(OfVectors):
    def __init__(self, step: AutoregressiveMap, context: Tensor | None) -> None:
        super().__init__()
        self.step, self.context = step, context

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, ladj = self.step.univariate(self.step.conditioner(self.context)(x)).call_and_ladj(x)
        return y, ladj.sum(-1)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        batch = y.shape[:-1]
        if self.context is not None:
            batch = torch.broadcast_shapes(batch, self.context.shape[:-1])
        ladjs = []

        def dimension(d: int, numbers: Tensor) -> Tensor:
            x, ladj = self.step.univariate(numbers).inverse_and_ladj(y[..., d])
            ladjs.append(ladj)
            return x

        x = self.step.conditioner.in_turn(self.context, batch, dimension)
        return x, sum(ladjs[1:], ladjs[0])
