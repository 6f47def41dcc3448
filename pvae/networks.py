"""Networks: an encoder takes data to numbers, a decoder takes a latent to numbers for each pixel.

Every network takes any number of leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from .base import Member, leading
from .errors import InputError, nearest

Activation = Literal["relu", "tanh", "gelu", "silu", "elu", "leaky_relu", "softplus", "sigmoid"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
}


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise InputError(f"activation: unknown name '{name}': {nearest(name, list(ACTIVATIONS))}")
    return ACTIVATIONS[name]()


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: Activation = "relu") -> nn.Sequential:
    """A multilayer perceptron: (..., inputs) to (..., outputs), an activation after each hidden layer.

    >>> mlp(4, [8, 8], 2)(torch.zeros(5, 3, 4)).shape
    torch.Size([5, 3, 2])
    """
    _check_sizes("hidden", hidden)
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), _activation(activation)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class Encoder(Member, nn.Module, family="encoder"):
    """The family of networks from data (..., *shape) to (..., outputs)."""

    def __init__(self, shape: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.shape, self.outputs = tuple(shape), outputs


class Decoder(Member, nn.Module, family="decoder"):
    """The family of networks from (..., inputs) to numbers for each pixel (..., *shape)."""

    def __init__(self, inputs: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.inputs, self.shape = inputs, tuple(shape)

    def center(self, value: Tensor) -> None:
        """Start the last bias at value, which broadcasts to `shape`: the output's mean before training."""
        raise NotImplementedError


class MLPEncoder(Encoder, name="mlp"):
    """A multilayer perceptron on the flattened datum.

    Args:
        shape: of one datum.
        outputs: how many numbers it gives.
        hidden: sizes of the hidden layers.
        activation: after each hidden layer.

    >>> MLPEncoder((28, 28), 40, hidden=[200, 200], activation="tanh")(torch.zeros(5, 3, 28, 28)).shape
    torch.Size([5, 3, 40])
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        hidden: Sequence[int] = (400,),
        activation: Activation = "relu",
    ) -> None:
        super().__init__(shape, outputs)
        self.layers = mlp(prod(shape), hidden, outputs, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(..., *shape) to (..., outputs)."""
        return self.layers(x.flatten(x.dim() - len(self.shape)) if self.shape else x.unsqueeze(-1))


class MLPDecoder(Decoder, name="mlp"):
    """A multilayer perceptron whose output is shaped as a datum.

    Args:
        inputs: size of the latent.
        shape: of one datum.
        hidden: sizes of the hidden layers.
        activation: after each hidden layer.

    >>> MLPDecoder(20, (28, 28), hidden=[200, 200])(torch.zeros(5, 3, 20)).shape
    torch.Size([5, 3, 28, 28])
    """

    def __init__(
        self,
        inputs: int,
        shape: Sequence[int],
        hidden: Sequence[int] = (400,),
        activation: Activation = "relu",
    ) -> None:
        super().__init__(inputs, shape)
        self.layers = mlp(inputs, hidden, prod(shape), activation)

    def forward(self, z: Tensor) -> Tensor:
        """(..., inputs) to (..., *shape)."""
        return self.layers(z).reshape(*z.shape[:-1], *self.shape)

    def center(self, value: Tensor) -> None:  # noqa: D102
        last: nn.Linear = self.layers[-1]  # type: ignore[assignment]
        with torch.no_grad():
            last.bias.copy_(value.expand(self.shape).reshape(-1))


def _halvings(size: Sequence[int], times: int) -> list[tuple[int, ...]]:
    sizes = [tuple(size)]
    for _ in range(times):
        sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
    return sizes


class ConvEncoder(Encoder, name="conv"):
    """Convolutions of stride 2, then one linear layer, for images of any size.

    Args:
        shape: of one image, (height, width) or (channels, height, width).
        outputs: how many numbers it gives.
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
    ) -> None:
        super().__init__(shape, outputs)
        _check_image(self.shape)
        _check_sizes("channels", channels)
        planes = [prod(self.shape[:-2]), *channels]
        layers: list[nn.Module] = []
        for before, after in pairwise(planes):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), _activation(activation)]
        smallest = _halvings(self.shape[-2:], len(channels))[-1]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(planes[-1] * prod(smallest), outputs))
        self._planes = (planes[0], *self.shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        """(..., *shape) to (..., outputs)."""
        lead = x.shape[: x.dim() - len(self.shape)]
        return leading(self.layers, x.reshape(*lead, *self._planes), event_dim=3)


class ConvDecoder(Decoder, name="conv"):
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
        super().__init__(inputs, shape)
        _check_image(self.shape)
        _check_sizes("channels", channels)
        sizes = _halvings(self.shape[-2:], len(channels))[::-1]
        planes = [*channels, prod(self.shape[:-2])]
        layers: list[nn.Module] = [
            nn.Linear(inputs, planes[0] * prod(sizes[0])),
            nn.Unflatten(1, (planes[0], *sizes[0])),
        ]
        for i in range(len(channels)):
            # 2n - 1 without padding at the end, 2n with it: whichever the encoder's halving came from
            extra = tuple(after - (2 * before - 1) for before, after in zip(sizes[i], sizes[i + 1], strict=True))
            last = i == len(channels) - 1
            layers += [
                _activation(activation),
                nn.ConvTranspose2d(
                    planes[i], planes[i + 1], 3, stride=2, padding=1, output_padding=extra, bias=not last
                ),
            ]
        self.layers = nn.Sequential(*layers)
        self.bias = nn.Parameter(torch.zeros(self.shape))

    def forward(self, z: Tensor) -> Tensor:
        """(..., inputs) to (..., *shape)."""
        return leading(self.layers, z, event_dim=1).reshape(*z.shape[:-1], *self.shape) + self.bias

    def center(self, value: Tensor) -> None:  # noqa: D102
        with torch.no_grad():
            self.bias.copy_(value.expand(self.shape))


def _check_image(shape: tuple[int, ...]) -> None:
    if len(shape) < 2:
        raise InputError(
            f"conv: found data of shape {shape}, expected images (height, width) or (channels, height, width): "
            "use mlp for vectors"
        )


def _check_sizes(name: str, sizes: Sequence[int]) -> None:
    if any(size < 1 for size in sizes):
        raise InputError(f"{name}: found {','.join(map(str, sizes))}, expected each to be at least 1")
