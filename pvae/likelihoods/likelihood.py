"""Likelihoods p(x|z): a decoder and what its numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..base import Part, check_distribution, full_precision, leading
from ..conditions import ConditionedDecoder
from ..errors import InputError
from ..networks import Decoder


class Likelihood(Part, family="likelihood"):
    """The family of likelihoods. A member takes `decoder` and `shape` first, then options of its own.

    Its call takes a latent z (..., latent) and the labels y (or None) and returns a distribution with batch shape
    (...) and event shape `shape`, whose `mean` is what a picture shows.

    Args:
        decoder: a module from (..., latent) to (..., *shape), or (..., outputs, *shape) where a member needs
            several numbers for each pixel. Any module that knows one batch dimension will do, flat or shaped.
        shape: of one datum.
    """

    outputs: int = 1
    """How many numbers the decoder gives for each pixel."""
    support: str = "real"
    """What data it scores, a name that `data.check` knows."""
    dequantization: ClassVar[str] = "none"
    """What `--dequantize auto` stands for: 'uniform' where stored levels have no density at 0 and 1, else 'none'."""

    def __init__(self, decoder: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.decoder, self.shape = decoder, torch.Size(shape)

    @classmethod
    def outputs_for(cls, **options: Any) -> int:
        """`outputs` of a member with these options, all of them given: what sizes its decoder before it is made."""
        return cls.outputs

    @classmethod
    def support_for(cls, **options: Any) -> str:
        """`support` of a member with these options, all of them given."""
        return cls.support

    def check(self, found: Any, z: Tensor, y: Tensor | None = None) -> None:  # noqa: D102
        check_distribution(self, found, [tuple(z.shape[:-1])], tuple(self.shape))

    def check_largest(self, largest: float) -> None:
        """Refuse data for their largest number, which its options leave no room for; before a fit."""

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """The decoder's numbers for latents z (..., latent), and labels y where it takes them.

        (..., *shape), or (..., outputs, *shape) where there are several for each pixel.
        """
        out = self._applied(self.decoder, z, y)
        shape = decoded_shape(self.shape, self.outputs)
        if out.shape[z.dim() - 1 :].numel() != prod(shape):
            raise InputError(
                f"decoder: found an output of shape {tuple(out.shape[z.dim() - 1 :])} for each latent, expected {shape}"
                f" for {type(self).__name__} data of shape {tuple(self.shape)}"
            )
        out, whole = full_precision(out), (*z.shape[:-1], *shape)
        return out if out.shape == whole else out.reshape(whole)

    def _applied(self, network: Callable[..., Tensor], z: Tensor, y: Tensor | None) -> Tensor:
        """The decoder, or something that is called as it is, applied to latents and labels."""
        takes_labels = isinstance(self.decoder, ConditionedDecoder)
        return network(z, y) if takes_labels else leading(network, z, event_dim=1)

    def center(self, numbers: Tensor) -> None:
        """Start the decoder's last bias at these numbers, where it is a network that can be told to."""
        if isinstance(self.decoder, Decoder):
            self.decoder.center(numbers)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z) or p(x|z, y): batch shape (...), event shape `shape`."""
        raise NotImplementedError


def decoded_shape(shape: Sequence[int], outputs: int) -> tuple[int, ...]:
    """What a decoder gives for one latent: `shape`, with the number of outputs before it if above one.

    >>> decoded_shape((28, 28), 1), decoded_shape((28, 28), 2)
    ((28, 28), (2, 28, 28))
    """
    return tuple(shape) if outputs == 1 else (outputs, *shape)
