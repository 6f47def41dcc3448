"""Residual convolutions, each datum normalized on its own."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn

from ..errors import InputError, whole_number
from .convolution import ImageDecoder, ImageEncoder, check_image, check_order
from .network import Activation, activation_of, check_sizes


class Residual(nn.Module):
    """x + f(x): two times normalization, activation and a convolution of as many channels (He et al. 2016).

    Args:
        channels: of x.
        activation: before each convolution.
        scale: of the last convolution's weights before training: so that many blocks add up to no more than one.
    """

    def __init__(self, channels: int, activation: Activation, scale: float) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            last.weight.mul_(scale)
        self.layers = nn.Sequential(
            *_normalized(channels, activation),
            nn.Conv2d(channels, channels, 3, padding=1),
            *_normalized(channels, activation),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width), before and after."""
        return x + self.layers(x)


class ResNetEncoder(ImageEncoder, name="resnet"):
    """Residual blocks between convolutions of stride 2, then one linear layer: h + f(h), for images of any size.

    Normalization is over groups of channels of one datum (Wu and He 2018): what comes out for a datum depends on no
    other.

    Args:
        shape: of one image, (height, width) or (channels, height, width).
        outputs: how many numbers it gives.
        context: size of the context, each number of which is a constant channel of its own; 0 for none.
        channels: after each convolution of stride 2, which halves height and width, rounding up.
        blocks: after each of them.
        activation: within the blocks, and before the linear layer.

    Source: He, Zhang, Ren and Sun 2016.

    >>> ResNetEncoder((3, 27, 20), 40)(torch.zeros(5, 2, 3, 27, 20)).shape
    torch.Size([5, 2, 40])
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        activation: Activation = "silu",
        *,
        context: int = 0,
    ) -> None:
        _check(tuple(shape), channels, blocks)
        check_order("resnet", tuple(shape))

        def after(planes: int) -> list[nn.Module]:
            return _blocks(planes, blocks, channels, activation)

        super().__init__(shape, outputs, context, channels, after, [activation_of(activation)])


class ResNetDecoder(ImageDecoder, name="resnet"):
    """One linear layer, then residual blocks before transposed convolutions of stride 2: h + f(h), for any image size.

    The last bias is one number for each pixel. Normalization is over groups of channels of one datum (Wu and He 2018).

    Args:
        inputs: size of the latent.
        shape: of one image, (height, width) or (channels, height, width).
        channels: of each transposed convolution's input; each doubles height and width.
        blocks: before each of them.
        activation: within the blocks, and before each transposed convolution.

    Source: He, Zhang, Ren and Sun 2016.

    >>> ResNetDecoder(20, (3, 27, 20))(torch.zeros(5, 2, 20)).shape
    torch.Size([5, 2, 3, 27, 20])
    """

    def __init__(
        self,
        inputs: int,
        shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        blocks: int = 1,
        activation: Activation = "silu",
    ) -> None:
        _check(tuple(shape), channels, blocks)

        def before(planes: int) -> list[nn.Module]:
            return [*_blocks(planes, blocks, channels, activation), *_normalized(planes, activation)]

        super().__init__(inputs, shape, channels, before)


def _check(shape: tuple[int, ...], channels: Sequence[int], blocks: int) -> None:
    check_image("resnet", shape)
    check_sizes("channels", channels)
    if not channels:
        raise InputError("channels: found none, expected at least one: name how many, as 32,64")
    whole_number(1, ": conv has none", blocks=blocks)


def _blocks(planes: int, blocks: int, channels: Sequence[int], activation: Activation) -> list[nn.Module]:
    return [Residual(planes, activation, (blocks * len(channels)) ** -0.5) for _ in range(blocks)]


def _normalized(channels: int, activation: Activation) -> list[nn.Module]:
    # groups of about 16: of few channels and few pixels nothing would be left
    return [nn.GroupNorm(gcd(channels, max(1, channels // 16)), channels), activation_of(activation)]
