"""Guides q(z|x): an encoder and the distribution its numbers parametrize."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
from torch import Tensor, nn

from ..base import Part, check_distribution, full_precision, leading, mean_of
from ..conditions import ConditionedEncoder
from ..errors import InputError, whole_number


class Guide(Part, family="guide"):
    """The family of amortized posteriors. A member takes `encoder` and `latent` first, then options of its own.

    Its call takes data x (..., *shape) and the labels y (or None) and returns a distribution with batch shape (...)
    and event shape (latent,).

    Args:
        encoder: a module from (..., *shape) to (..., outputs * latent).
        latent: size of the latent.
        event_dim: how many dimensions one datum has; by default that of the encoder's `shape`, or 1.
    """

    outputs: int = 2
    """How many numbers the encoder gives for each latent dimension."""
    support: str = "the real numbers"
    """Where its draws lie: a prior's must lie there too."""
    bound: ClassVar[bool] = True
    """Whether log p(x, z) - log q(z|x) of its draws is a bound on log p(x): not where q has no density."""

    def __init__(self, encoder: nn.Module, latent: int, event_dim: int | None = None) -> None:
        super().__init__()
        whole_number(1, latent=latent)
        self.encoder, self.latent = encoder, latent
        self.event_dim = len(getattr(encoder, "shape", (0,))) if event_dim is None else event_dim

    @classmethod
    def outputs_for(cls, latent: int, **options: Any) -> int:
        """`outputs` of a member with these options, all of them given: what sizes its encoder before it is made."""
        return cls.outputs

    def check(self, found: Any, x: Tensor, y: Tensor | None = None) -> None:  # noqa: D102
        check_distribution(self, found, [tuple(x.shape[: x.dim() - self.event_dim])], (self.latent,))

    def amortized(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x) before any refinement that looks at the model: what a prior made of the guide is made of."""
        return self(x, y)

    def point(self, q: dist.Distribution) -> Tensor:
        """One latent in place of a draw from q, as pictures take it: its mean, where that can be one."""
        return mean_of(q)

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The encoder's numbers (..., outputs * latent) for data x (..., *shape), and labels y where it takes them."""
        takes_labels = isinstance(self.encoder, ConditionedEncoder)
        out = self.encoder(x, y) if takes_labels else leading(self.encoder, x, self.event_dim)
        if out.shape[-1] != self.outputs * self.latent:
            raise InputError(
                f"encoder: found {out.shape[-1]} outputs, expected {self.outputs} for each of {self.latent} latent"
                f" dimensions of {type(self).__name__}"
            )
        return full_precision(out)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x) or q(z|x, y): batch shape (...), event shape (latent,)."""
        raise NotImplementedError
