"""Multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from .network import Activation, FlatDecoder, FlatEncoder, mlp


class MLPEncoder(FlatEncoder, name="mlp"):
    """A multilayer perceptron on the flattened datum, and the context after it.

    Args:
        shape: of one datum.
        outputs: how many numbers it gives.
        hidden: sizes of the hidden layers.
        activation: after each hidden layer.
        context: size of the context; 0 for none.

    >>> import torch
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


class MLPDecoder(FlatDecoder, name="mlp"):
    """A multilayer perceptron whose output is shaped as a datum.

    Args:
        inputs: size of the latent.
        shape: of one datum.
        hidden: sizes of the hidden layers.
        activation: after each hidden layer.

    >>> import torch
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
