"""The network that gives the numbers of each dimension's map, from those dimensions that it may see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from ..base import full_precision
from ..networks.network import check_sizes

START = 1e-2
"""What the last weights of a network are multiplied with, so that a flow starts near the identity.

A flow guide is then the mean-field guide at first, and a flow prior the standard normal: training starts where these
do, and the depth of a flow, whose maps would else multiply, cannot make its first steps wild. They are not zero, for
the layers before them would have no gradient.
"""


class Conditioner(nn.Module):
    """A multilayer perceptron of which each output sees some of the inputs only (Germain et al. 2015).

    It has no parameter on which no output depends: where nothing is seen it is a bias. It starts near zero.

    Args:
        sees: (m, n), which of n inputs each of m outputs sees. Of two outputs, one sees all that the other does.
        numbers: how many numbers each output has.
        hidden: sizes of the hidden layers.
        context: size of a vector that every output sees.

    >>> sees = torch.ones(3, 3).tril(-1).bool()
    >>> numbers = Conditioner(sees, 2)(None)
    >>> numbers(torch.zeros(5, 3)).shape
    torch.Size([5, 3, 2])
    """

    order: Tensor

    def __init__(self, sees: Tensor, numbers: int, hidden: Sequence[int] = (64,), context: int = 0) -> None:
        super().__init__()
        check_sizes("hidden", hidden)
        self.outputs = (len(sees), numbers)
        degree = sees.sum(-1)
        usable = [int((degree == d).nonzero()[0]) for d in degree.unique().tolist() if d or context]
        # a unit of a layer sees what the output does that stands for it
        layers = [torch.tensor([usable[i * len(usable) // n] for i in range(n)]) for n in hidden if usable]
        layers.append(torch.arange(len(sees)).repeat_interleave(numbers))
        size = len(layers[0])
        self.inputs = nn.Linear(sees.shape[1], size, bias=False) if sees.any() else None
        self.context = nn.Linear(context, size, bias=False) if context else None
        self.bias = nn.Parameter(torch.zeros(size))
        self.layers = nn.ModuleList(nn.Linear(len(a), len(b)) for a, b in pairwise(layers))
        self.register_buffer("mask0", sees[layers[0]].float(), persistent=False)
        for i, (a, b) in enumerate(pairwise(layers), 1):
            self.register_buffer(f"mask{i}", (degree[a] <= degree[b, None]).float(), persistent=False)
        self.turns = degree.argsort().tolist()
        """The outputs, those that see less first."""
        self.register_buffer("order", degree.argsort(), persistent=False)
        self.new = [[int((degree[layer] == d).sum()) for d in degree.sort()[0].tolist()] for layer in layers]
        """Of each layer, how many units see what an output does and no output before it; hidden ones are in order."""
        self._start()

    def _start(self) -> None:
        """Near zero."""
        with torch.no_grad():
            for layer in self.layers[-1:] or filter(None, (self.inputs, self.context)):
                layer.weight *= START
                if layer.bias is not None:
                    layer.bias.zero_()

    def forward(self, context: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The function from inputs (..., n) to numbers (..., m, numbers), given the context (..., size).

        In memory all numbers of a kind lie together, as maps of one number take them.
        """
        first = self.first(context).movedim(-1, 0)
        weight = None if self.inputs is None else self.inputs.weight * self.mask0
        later = [(layer.weight * getattr(self, f"mask{i}"), layer.bias) for i, layer in enumerate(self.layers, 1)]

        def numbers(x: Tensor) -> Tensor:
            lead = torch.broadcast_shapes(x.shape[:-1], first.shape[1:])
            out = _beside(first, len(lead))
            if weight is not None:
                out = _product(weight, _beside(x.movedim(-1, 0), len(lead))) + out
            for weights, bias in later:
                out = _product(weights, elu(out), bias)
            out = full_precision(out)
            return out.expand(-1, *lead).unflatten(0, self.outputs).movedim((0, 1), (-2, -1))

        return numbers

    def first(self, context: Tensor | None) -> Tensor:
        """What the first layer's units are where all inputs are zero, (..., units)."""
        return self.bias if self.context is None else self.context(context) + self.bias

    def in_turn(
        self, context: Tensor | None, batch: Sequence[int], dimension: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
        """The inputs (*batch, n), found one after the other: each from the numbers of the output of the same place.

        Of as many inputs as outputs, of which each sees those that are found before it. Units are computed when all
        that they see is there, once; arrays have a row for each unit, which is whole in memory.

        Args:
            context: (..., size).
            batch: what the context's shape and that of the inputs broadcast to.
            dimension: from a place, and the numbers there (..., numbers), to the input there (*batch).
        """
        weights, sums = self._in_order(self.first(context), len(batch))
        of_inputs = weights[0].split(self.new[0])
        of_units = [weight.split(new, 1) for weight, new in zip(weights[1:], self.new, strict=False)]
        found: dict[int, Tensor] = {}
        for turn, place in enumerate(self.turns):
            out, sums[0] = _cut(sums[0], self.new[0][turn])
            if found and len(out):
                out = out + _product(of_inputs[turn][:, :turn], torch.stack([*found.values()]))
            for layer, columns in enumerate(of_units, 1):
                if len(out):  # what units give is added up where it is wanted, at once
                    sums[layer] = sums[layer] + _product(
                        columns[turn][len(columns[turn]) - len(sums[layer]) :], elu(out)
                    )
                out, sums[layer] = _cut(sums[layer], self.new[layer][turn])
            found[place] = dimension(place, out.movedim(0, -1))
        return torch.stack([found[place] for place in range(len(found))]).movedim(0, -1)

    def _in_order(self, first: Tensor, dims: int) -> tuple[list[Tensor], list[Tensor]]:
        """Each layer's weights and biases (units, ...), inputs and outputs in the order of their turns."""
        ahead = _beside(first.movedim(-1, 0), dims)
        nothing = first.new_zeros(first.shape[-1], len(self.order))
        weight = nothing if self.inputs is None else self.inputs.weight.index_select(1, self.order)
        weights = [weight, *(layer.weight for layer in self.layers)]
        biases = [ahead, *(layer.bias.reshape(-1, *[1] * dims) for layer in self.layers)]
        for each in (weights, biases):
            each[-1] = each[-1].unflatten(0, self.outputs).index_select(0, self.order).flatten(0, 1)
        return weights, biases


def _cut(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    first, rest = rows.split([count, len(rows) - count])
    return first, rest


def _beside(rows: Tensor, dims: int) -> Tensor:
    """Rows (n, ...) with so many dimensions after the first."""
    return rows.reshape(len(rows), *[1] * (dims - rows.dim() + 1), *rows.shape[1:])


def _product(weight: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product with each column of rows (n, *batch), and a bias; in the weights' precision, also under autocast."""
    flat = rows.reshape(len(rows), rows[0].numel())
    found = weight @ flat if bias is None else torch.addmm(bias.unsqueeze(1), weight, flat)
    return found.reshape(len(weight), *rows.shape[1:])
