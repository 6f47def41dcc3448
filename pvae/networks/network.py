"""The families of encoders and decoders, and the perceptrons that members are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ..base import Member
from ..errors import InputError, nearest

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


def activation_of(name: str) -> nn.Module:
    """The activation of that name."""
    if name not in ACTIVATIONS:
        raise InputError(f"activation: unknown name '{name}': {nearest(name, list(ACTIVATIONS))}")
    return ACTIVATIONS[name]()


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: Activation = "relu") -> nn.Sequential:
    """A multilayer perceptron: (..., inputs) to (..., outputs), an activation after each hidden layer.

    >>> mlp(4, [8, 8], 2)(torch.zeros(5, 3, 4)).shape
    torch.Size([5, 3, 2])
    """
    check_sizes("hidden", hidden)
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation_of(activation)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class Encoder(Member, nn.Module, family="encoder"):
    """The family of networks from data (..., *shape) to (..., outputs).

    Args:
        shape: of one datum.
        outputs: how many numbers it gives.
        context: size of a vector that it takes beside each datum, as what a model is conditioned on; 0 for none.
    """

    def __init__(self, shape: Sequence[int], outputs: int, *, context: int = 0) -> None:
        super().__init__()
        self.shape, self.outputs, self.context = tuple(shape), outputs, context

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., *shape), and (..., context) where there is one, to (..., outputs)."""
        raise NotImplementedError


class Log1pEncoder(Encoder):
    """An encoder of log(1 + x): counts, which may be of any size, as numbers that a network can take.

    Args:
        network: from the logarithms to numbers.

    >>> from pvae import MLPEncoder
    >>> Log1pEncoder(MLPEncoder((3,), 4))(torch.full((5, 3), 1e6)).abs().max() < 20
    tensor(True)
    """

    def __init__(self, network: Encoder) -> None:
        super().__init__(network.shape, network.outputs, context=getattr(network, "context", 0))
        self.network = network

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Counts (..., *shape), and (..., context) where there is one, to (..., outputs)."""
        return self.network(x.log1p()) if context is None else self.network(x.log1p(), context)


class Decoder(Member, nn.Module, family="decoder"):
    """The family of networks from (..., inputs) to numbers for each pixel (..., *shape)."""

    def __init__(self, inputs: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.inputs, self.shape = inputs, tuple(shape)

    def split(self) -> tuple[Callable[..., Tensor], nn.Linear] | None:
        """What it does before its last layer, and that layer, where its numbers are a linear layer's, in their order.

        It holds for the `forward` of the class that says it, see `split`.
        """
        return None

    def center(self, value: Tensor) -> None:
        """Start the last bias at value, which broadcasts to `shape`: the output's mean before training.

        Nothing, where a member has no such bias.
        """


def split(network: nn.Module) -> tuple[Callable[..., Tensor], nn.Linear] | None:
    """What a network does before its last layer, and that layer: together they do what a call of the network does.

    None where that is not known: its last layer is not linear, a subclass has a `forward` of its own, or hooks wait
    for a call of the network or of its last layer, which would not be called.

    >>> body, last = split(mlp(4, [8], 2))
    >>> body(torch.zeros(3, 4)).shape, last.out_features
    (torch.Size([3, 8]), 2)
    """
    if _watched(network):
        return None
    if type(network) is nn.Sequential and len(network) > 1:
        last = network[-1]
        return None if type(last) is not nn.Linear or _watched(last) else (lambda x: network[:-1](x), last)
    known = isinstance(network, Decoder) and _origin(type(network), "forward") is _origin(type(network), "split")
    return network.split() if known else None  # type: ignore[operator]


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _watched(module: nn.Module) -> bool:
    """Whether a call of a module does more than its class's `forward`."""
    own = "forward" in vars(module) or type(module).__call__ is not nn.Module.__call__ or module._compiled_call_impl
    return bool(own or any(getattr(module, name) for name in HOOKS) or nn.modules.module._has_any_global_hook())


def _origin(cls: type, name: str) -> type:
    """The class that a class has a method from."""
    return next(base for base in cls.__mro__ if name in vars(base))


def check_sizes(name: str, sizes: Sequence[int]) -> None:
    """Refuse sizes below 1, of layers that an option names."""
    if any(size < 1 for size in sizes):
        raise InputError(f"{name}: found {','.join(map(str, sizes))}, expected each to be at least 1")


class FlatEncoder(Encoder):
    """Layers on the flattened datum, with the context after it; a member makes them."""

    layers: nn.Sequential

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., *shape), and (..., context) where there is one, to (..., outputs)."""
        return self.layers(self._flat(x, context))

    def _flat(self, x: Tensor, context: Tensor | None) -> Tensor:
        vectors = x.flatten(x.dim() - len(self.shape)) if self.shape else x.unsqueeze(-1)
        return vectors if context is None else torch.cat([vectors, context], -1)


class FlatDecoder(Decoder):
    """Layers whose output is shaped as a datum; a member makes them, a linear one last."""

    layers: nn.Sequential

    def forward(self, z: Tensor) -> Tensor:
        """(..., inputs) to (..., *shape)."""
        out = self.layers(z)
        return out if len(self.shape) == 1 else out.reshape(*z.shape[:-1], *self.shape)

    def split(self) -> tuple[Callable[..., Tensor], nn.Linear] | None:  # noqa: D102
        return split(self.layers)

    def center(self, value: Tensor) -> None:  # noqa: D102
        last: nn.Linear = self.layers[-1]  # type: ignore[assignment]
        with torch.no_grad():
            last.bias.copy_(value.expand(self.shape).reshape(-1))
