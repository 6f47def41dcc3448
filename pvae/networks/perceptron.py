"""Multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from .network import Activation, Decoder, Encoder, flat, mlp, split


class MLPEncoder(Encoder, name="mlp"):
    """A multilayer perceptron on the flattened datum, and the context after it.

    Args:
        shape: of one datum.
        outputs: how many numbers it gives.
        hidden: sizes of the hidden layers.
        activation: after each hidden layer.
        context: size of the context; 0 for none.

    >>> MLPEncoder((28, 28), 40, hidden=[200, 200], activation="tanh")(torch.zeros(5, 3, 28, 28)).shape
    torch.Size([5, 3, 40])
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        hidden: Sequence[int] = (400,),
        activation: Activation = "relu",
        *,
        context: int = 0,
    ) -> None:
        super().__init__(shape, outputs, context=context)
        self.layers = mlp(prod(shape) + context, hidden, outputs, activation)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., *shape), and (..., context) where there is one, to (..., outputs)."""
        return self.layers(flat(x, len(self.shape), context))


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

    def split(self) -> tuple[Callable[..., Tensor], nn.Linear] | None:  # noqa: D102
        return split(self.layers)

    def center(self, value: Tensor) -> None:  # noqa: D102
        last: nn.Linear = self.layers[-1]  # type: ignore[assignment]
        with torch.no_grad():
            last.bias.copy_(value.expand(self.shape).reshape(-1))
