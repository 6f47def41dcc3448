"""Maps of vectors onto vectors that know their log-determinant both ways."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributions import Transform, constraints


class TwoWay(Transform):
    """A map that knows its log-determinant both ways. A subclass writes `call_and_ladj` and `inverse_and_ladj`."""

    bijective = True

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T(x), and log |det dT/dx| of each event."""
        raise NotImplementedError

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """T^-1(y), and the log-determinant of the inverse."""
        raise NotImplementedError

    @property
    def inv(self) -> Transform:
        """The map in the other direction."""
        return _Back(self)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return self.call_and_ladj(x)[1]


class OfVectors(TwoWay):
    """A map of vectors (..., D) onto vectors, whose log-determinant is (...)."""

    domain = constraints.real_vector
    codomain = constraints.real_vector


class _Back(TwoWay):
    """The inverse of a map."""

    def __init__(self, there: TwoWay) -> None:
        super().__init__()
        self.there, self.domain, self.codomain = there, there.codomain, there.domain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.there.inverse_and_ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.there.call_and_ladj(y)

    @property
    def inv(self) -> Transform:
        return self.there


class _Composed(OfVectors):
    def __init__(self, parts: Sequence[TwoWay]) -> None:
        super().__init__()
        self.parts = parts

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _through(self.parts, x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return _through([part.inv for part in reversed(self.parts)], y)


def _through(parts: Sequence[Transform], x: Tensor) -> tuple[Tensor, Tensor]:
    x, total = parts[0].call_and_ladj(x)
    for part in parts[1:]:
        x, ladj = part.call_and_ladj(x)
        total = total + ladj
    return x, total


def compose(transforms: Sequence[Transform]) -> Transform:
    """One transform after the other, the first first."""
    return _Composed(transforms)
