"""Convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from ..base import leading
from ..errors import InputError
from .network import Activation, Decoder, Encoder, activation_of, check_sizes


def halvings(size: Sequence[int], times: int) -> list[tuple[int, ...]]:
    """A size and what it becomes, halved so many times and rounded up.

    >>> halvings((7, 4), 2)
    [(7, 4), (4, 2), (2, 1)]
    """
    sizes = [tuple(size)]
    for _ in range(times):
        sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
    return sizes


def doubling(planes: Sequence[int], sizes: Sequence[Sequence[int]], bias: bool) -> nn.ConvTranspose2d:
    """A transposed convolution from as many channels and such a size to others, twice as high and wide, or one less."""
    # 2n - 1 without padding at the end, 2n with it: whichever the encoder's halving came from
    extra = tuple(after - (2 * before - 1) for before, after in zip(*sizes, strict=True))
    return nn.ConvTranspose2d(*planes, 3, stride=2, padding=1, output_padding=extra, bias=bias)


class ImageEncoder(Encoder):
    """Convolutions of stride 2, then one linear layer, for images of any size.

    Args:
        shape: of one image, (height, width) or (channels, height, width).
        outputs: how many numbers it gives.
        context: size of the context, each number of which is a constant channel of its own; 0 for none.
        channels: of each convolution; each halves height and width, rounding up.
        after: of so many channels, what comes after a convolution.
        last: what comes before the linear layer.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        context: int,
        channels: Sequence[int],
        after: Callable[[int], list[nn.Module]],
        last: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__(shape, outputs, context=context)
        planes = [prod(self.shape[:-2]) + context, *channels]
        layers: list[nn.Module] = []
        for taken, given in pairwise(planes):
            layers += [nn.Conv2d(taken, given, 3, stride=2, padding=1), *after(given)]
        smallest = halvings(self.shape[-2:], len(channels))[-1]
        layers += [*last, nn.Flatten(), nn.Linear(planes[-1] * prod(smallest), outputs)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., *shape), and (..., context) where there is one, to (..., outputs)."""
        return leading(self.layers, images(x, self.shape, context), event_dim=3)


class ConvEncoder(ImageEncoder, name="conv"):
    """Convolutions of stride 2, then one linear layer, for images of any size.

    Args:
        shape: of one image, (height, width) or (channels, height, width).
        outputs: how many numbers it gives.
        context: size of the context, each number of which is a constant channel of its own; 0 for none.
        channels: of each convolution; each halves height and width, rounding up.
        activation: after each convolution; smooth by default, because rectifiers of a decoder that is all noise at
            first die in the first hundred steps, and the posterior collapses for good.

    >>> ConvEncoder((3, 27, 20), 40)(torch.zeros(5, 2, 3, 27, 20)).shape
    torch.Size([5, 2, 40])
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        channels: Sequence[int] = (32, 64),
        activation: Activation = "silu",
        *,
        context: int = 0,
    ) -> None:
        check_image("conv", tuple(shape))
        check_order("conv", tuple(shape))
        check_sizes("channels", channels)
        super().__init__(shape, outputs, context, channels, lambda planes: [activation_of(activation)])


class ImageDecoder(Decoder):
    """One linear layer, then transposed convolutions of stride 2 up to images of any size, and a bias of each pixel.

    Args:
        inputs: size of the latent.
        shape: of one image, (height, width) or (channels, height, width).
        channels: of each transposed convolution's input; each doubles height and width.
        before: of the size of its input, what comes before a transposed convolution.
    """

    def __init__(
        self,
        inputs: int,
        shape: Sequence[int],
        channels: Sequence[int],
        before: Callable[[int], list[nn.Module]],
    ) -> None:
        super().__init__(inputs, shape)
        check_sizes("channels", channels)
        sizes = halvings(self.shape[-2:], len(channels))[::-1]
        planes = [*channels, prod(self.shape[:-2])]
        layers: list[nn.Module] = [
            nn.Linear(inputs, planes[0] * prod(sizes[0])),
            nn.Unflatten(1, (planes[0], *sizes[0])),
        ]
        for i, size in enumerate(channels):
            # pixels that were merely repeated before a convolution would hardly tell the latent from noise at first
            last = doubling(planes[i : i + 2], sizes[i : i + 2], bias=i < len(channels) - 1)
            layers += [*before(size), last]
        self.layers = nn.Sequential(*layers)
        self.bias = nn.Parameter(torch.zeros(self.shape))

    def forward(self, z: Tensor) -> Tensor:
        """(..., inputs) to (..., *shape)."""
        return leading(self.layers, z, event_dim=1).reshape(*z.shape[:-1], *self.shape) + self.bias

    def center(self, value: Tensor) -> None:  # noqa: D102
        with torch.no_grad():
            self.bias.copy_(value.expand(self.shape))


class ConvDecoder(ImageDecoder, name="conv"):
    """One linear layer, then transposed convolutions of stride 2 up to images of any size.

    The last bias is one number for each pixel.

    Args:
        inputs: size of the latent.
        shape: of one image, (height, width) or (channels, height, width).
        channels: of each transposed convolution's input; each doubles height and width.
        activation: before each transposed convolution; smooth by default, as the encoder's.

    >>> ConvDecoder(20, (3, 27, 20))(torch.zeros(5, 2, 20)).shape
    torch.Size([5, 2, 3, 27, 20])
    """

    def __init__(
        self,
        inputs: int,
        shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        activation: Activation = "silu",
    ) -> None:
        check_image("conv", tuple(shape))
        super().__init__(inputs, shape, channels, lambda planes: [activation_of(activation)])


def images(x: Tensor, shape: tuple[int, ...], context: Tensor | None = None) -> Tensor:
    """Data (..., *shape) as (..., channels, height, width), with a constant channel for each number of the context."""
    lead, size = x.shape[: x.dim() - len(shape)], shape[-2:]
    x = x.reshape(*lead, prod(shape[:-2]), *size)
    if context is None:
        return x
    return torch.cat([x, context[..., None, None].expand(*context.shape, *size)], -3)


def check_image(name: str, shape: tuple[int, ...]) -> None:
    """Refuse data that are no images, of the network of that name."""
    if len(shape) < 2:
        raise InputError(
            f"{name}: found data of shape {shape}, expected images (height, width) or (channels, height, width): "
            "use mlp for vectors"
        )


def check_order(name: str, shape: tuple[int, ...]) -> None:
    """Refuse images whose channels are last, of the encoder of that name: it would slide over rows and channels."""
    if len(shape) == 3 and shape[-1] in (1, 3) and shape[0] not in (1, 3):
        raise InputError(
            f"{name}: found images of shape {shape}, their channels last, expected (channels, height, width): store"
            " x.transpose(0, 3, 1, 2)"
        )
