"""What likelihoods with a location and a scale have in common: where the scale comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError, more_than, nearest
from .likelihood import Likelihood


class Scaled(Likelihood):
    """Likelihoods of a location, which the decoder gives, and a positive spread: a number, learned, or the decoder's.

    Args:
        decoder: from latents to locations; under 'decoder' to locations and what their spreads are made of.
        shape: of one datum.
        spread: a number (fixed), 'shared' (one, learned), 'pixel' (one for each pixel, learned), 'decoder' (of each
            pixel and latent), or another word of the member's own.
        least: the spread is bounded below by it.
        start: where a learned spread starts.
        known: the words that it may be.

    A spread that is not fixed is least + softplus(raw): nearly exponential below 1, linear above.

    Raises:
        InputError: an unknown spread, or one below `least`, or a `least` that is not positive.
    """

    spread: ClassVar[str] = "scale"
    """What the spread is called."""

    def __init__(
        self,
        decoder: nn.Module,
        shape: Sequence[int],
        spread: float | str,
        least: float,
        start: float = 1.0,
        known: Sequence[str] = ("shared", "pixel", "decoder"),
    ) -> None:
        super().__init__(decoder, shape)
        name, lowest = self.spread, f"min_{self.spread}"
        more_than(0, **{lowest: least})
        if isinstance(spread, str) and spread not in known:
            raise InputError(
                f"{name}: found '{spread}', expected a number or a known word: {nearest(spread, list(known))}"
            )
        if not isinstance(spread, str) and not (isinstance(spread, Real) and least <= spread < math.inf):
            raise InputError(f"{name}: found {spread}, expected at least {lowest} = {least}")
        self.kind, self.least = spread, least
        self.outputs = self.outputs_for(**{self.spread: spread})
        if spread in ("shared", "pixel"):
            self.raw_scale = nn.Parameter(self._raw(torch.full(self.shape if spread == "pixel" else (), start)))
        elif not isinstance(spread, str):
            self.register_buffer("fixed_scale", torch.tensor(float(spread)))

    @classmethod
    def outputs_for(cls, **options: Any) -> int:  # noqa: D102
        return 2 if options.get(cls.spread) == "decoder" else 1

    @property
    def scale(self) -> Tensor:
        """The spread where it does not depend on the latent, () or `shape`."""
        if self.kind in ("shared", "pixel"):
            return self._spread(self.raw_scale)
        return self.fixed_scale

    def located(self, z: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The location (..., *shape), and the spread: (), `shape` or (..., *shape)."""
        out = self.decode(z, y)
        if self.kind != "decoder":
            return out, self.scale
        location, raw = out.unbind(out.dim() - len(self.shape) - 1)
        return location, self._spread(raw)

    def start_at(self, location: Tensor, spread: Tensor) -> None:
        """Start the location and a learned spread, () or `shape`, at these."""
        raw = self._raw(spread)
        if self.kind in ("shared", "pixel"):
            with torch.no_grad():
                self.raw_scale.copy_(raw)
        both = self.kind == "decoder"
        self.center(torch.stack([location, raw.expand_as(location)]) if both else location)

    def average(self, deviation: Tensor) -> Tensor:
        """The mean of deviations (N, *shape): over everything, or for each pixel where each has a spread to learn."""
        return deviation.mean() if self.kind in ("shared", "optimal") else deviation.mean(0)

    def _spread(self, raw: Tensor) -> Tensor:
        return self.least + nn.functional.softplus(raw)

    def _raw(self, spread: Tensor) -> Tensor:
        return inverse_softplus((spread - self.least).clamp(min=1e-3))


class LocationScale(Scaled):
    """Likelihoods of a location and a scale.

    Args:
        decoder: from latents to locations; under 'decoder' to locations and raw scales.
        shape: of one datum.
        scale: s: a number (fixed), 'shared' (one, learned), 'pixel' (one for each pixel, learned) or 'decoder' (of each
            pixel and latent).
        min_scale: the scale is bounded below by it, as a density at a constant pixel is not.

    Raises:
        InputError: an unknown scale, or one below `min_scale`, or a `min_scale` that is not positive.
    """

    def __init__(
        self,
        decoder: nn.Module,
        shape: Sequence[int],
        scale: float | Literal["shared", "pixel", "decoder"] = "shared",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(decoder, shape, scale, min_scale)


def inverse_softplus(value: Tensor) -> Tensor:
    """log(exp(value) - 1)."""
    return value + torch.log(-torch.expm1(-value))
