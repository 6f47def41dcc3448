"""Maps that leave half of the dimensions as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from .conditioner import Conditioner
from .transform import OfVectors
from .univariate import AFFINE, Univariate


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
        return _Coupling(lambda kept: self.univariate(numbers(kept)), self.half, self.reverse)


class _Coupling(OfVectors):
    """Zuko's, without its look at a mask's values."""

    def __init__(self, meta: Callable[[Tensor], Transform], half: int, reverse: bool) -> None:
        super().__init__()
        self.meta, self.half, self.reverse = meta, half, reverse

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(x)
        return self._joined(kept, *self.meta(kept).call_and_ladj(moved))

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(y)
        return self._joined(kept, *self.meta(kept).inverse_and_ladj(moved))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.reverse:
            return x[..., x.shape[-1] - self.half :], x[..., : x.shape[-1] - self.half]
        return x[..., : self.half], x[..., self.half :]

    def _joined(self, kept: Tensor, moved: Tensor, ladj: Tensor) -> tuple[Tensor, Tensor]:
        kept = kept.expand(*moved.shape[:-1], -1)
        return torch.cat([moved, kept] if self.reverse else [kept, moved], -1), ladj.sum(-1)
