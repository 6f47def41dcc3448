"""Gated multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from .network import FlatDecoder, FlatEncoder, check_sizes


def gated_mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Layers h = (W1 x + b1) * sigmoid(W2 x + b2), one product for both, then a linear one: (..., outputs).

    Values start at twice the scale of numbers that keep their size, as the gates start at a half.

    >>> import torch
    >>> gated_mlp(4, [8, 8], 2)(torch.zeros(5, 3, 4)).shape
    torch.Size([5, 3, 2])
    """
    check_sizes("hidden", hidden)
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        both = nn.Linear(before, 2 * after)
        nn.init.normal_(both.weight[:after], std=2 / before**0.5)
        nn.init.normal_(both.weight[after:], std=1 / before**0.5)
        nn.init.zeros_(both.bias)
        layers += [both, nn.GLU(-1)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class GatedEncoder(FlatEncoder, name="gated"):
    """A perceptron on the flattened datum, and the context after it: h = (W1 x + b1) * sigmoid(W2 x + b2) in a layer.

    Args:
        shape: of one datum.
        outputs: how many numbers it gives.
        hidden: sizes of the hidden layers.
        context: size of the context; 0 for none.

    Source: Tomczak and Welling 2018; Dauphin et al. 2017.

    >>> import torch
    >>> GatedEncoder((28, 28), 40)(torch.zeros(5, 3, 28, 28)).shape
    torch.Size([5, 3, 40])
    """

    def __init__(
        self, shape: Sequence[int], outputs: int, hidden: Sequence[int] = (300, 300), *, context: int = 0
    ) -> None:
        super().__init__(shape, outputs, context=context)
        self.layers = gated_mlp(prod(shape) + context, hidden, outputs)


class GatedDecoder(FlatDecoder, name="gated"):
    """A perceptron whose output is shaped as a datum: h = (W1 z + b1) * sigmoid(W2 z + b2) in a layer.

    Args:
        inputs: size of the latent.
        shape: of one datum.
        hidden: sizes of the hidden layers.

    Source: Tomczak and Welling 2018; Dauphin et al. 2017.

    >>> import torch
    >>> GatedDecoder(20, (2, 28, 28))(torch.zeros(5, 3, 20)).shape
    torch.Size([5, 3, 2, 28, 28])
    """

    def __init__(self, inputs: int, shape: Sequence[int], hidden: Sequence[int] = (300, 300)) -> None:
        super().__init__(inputs, shape)
        self.layers = gated_mlp(inputs, hidden, prod(shape))
