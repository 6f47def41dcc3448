"""What a model is conditioned on: labels or covariates as features, and networks that take them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from .base import Member, leading, path_of
from .errors import InputError
from .networks import Decoder, Encoder, split

MOST = 10_000
"""Classes at most, each of which is a row of as many numbers."""


class Condition(Member, nn.Module, family="condition"):
    """The family of what a model is conditioned on. Its call takes labels y to their features (..., size).

    Args:
        size: how many features there are.
    """

    totals = False
    """Whether what it is made of, y, is the total count of each datum."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @classmethod
    def of(cls, y: Tensor | None, **options: Any) -> Condition:
        """The condition that fits the labels of all data.

        Raises:
            InputError: they are missing, or of another type.
        """
        raise NotImplementedError

    @classmethod
    def beside(cls, x: Tensor, y: Tensor | None) -> Tensor | None:
        """What is known beside data x (N, *shape): their labels y, unless it is made of the data.

        Raises:
            InputError: the data are not such that it can be made of them.
        """
        return y

    def examples(self, n: int) -> Tensor:
        """Labels of n data such as it takes, where no data are there yet: numbers (n, size) or else classes, of zero.

        Raises:
            InputError: it takes neither.
        """
        where = next(self.buffers(), next(self.parameters(), torch.empty(0))).device
        for y in (torch.zeros(n, self.size, device=where), torch.zeros(n, dtype=torch.int64, device=where)):
            with torch.no_grad(), suppress(Exception):  # what it says of labels that it does not take is its own
                if self(y).shape == (n, self.size):
                    return y
        raise InputError(
            f"condition {path_of(type(self))}: found that it takes neither numbers (N, {self.size}) nor whole numbers"
            f" (N,) to features (N, {self.size}): give it `examples(n)`, n labels that it takes"
        )

    def forward(self, y: Tensor | None) -> Tensor:
        """Labels y (...) or (..., size) to features (..., size)."""
        raise NotImplementedError


class Unconditional(Condition, name="none"):
    """Nothing: labels are left alone."""

    def __init__(self) -> None:
        super().__init__(0)

    @classmethod
    def of(cls, y: Tensor | None, **options: Any) -> Unconditional:  # noqa: D102
        return cls()


class Label(Condition, name="label"):
    """The class of each datum, one-hot.

    Args:
        size: how many classes there are.

    >>> Label(3)(torch.tensor([2, 0]))
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """

    one_hot: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("one_hot", torch.eye(size), persistent=False)

    @classmethod
    def of(cls, y: Tensor | None, **options: Any) -> Label:  # noqa: D102
        if y is None or y.dtype != torch.int64 or y.dim() != 1 or not len(y):
            raise InputError(f"label: {_found(y)}, expected a whole number for each datum: give the data labels y (N,)")
        if y.min() < 0:
            raise InputError(f"label: found {y.min().item()}, expected classes from 0 on: number them again")
        if y.max() >= MOST:
            found = f"found {len(y.unique()):,} labels up to {y.max():,}, of as many classes"
            raise InputError(f"label: {found}, expected at most {MOST:,}, from 0 on: number them again")
        return cls(int(y.max()) + 1, **options)

    def examples(self, n: int) -> Tensor:
        """Every class in turn."""
        return torch.arange(n, device=self.one_hot.device) % self.size

    def forward(self, y: Tensor | None) -> Tensor:
        """Classes y (...), whole numbers, to (..., size).

        Within a step nothing looks at values: a class that is none is an IndexError there, on CUDA a failed assertion.
        """
        if y is None or y.dtype not in (torch.int64, torch.int32, torch.uint8):
            kind = "" if y is None or y.is_floating_point() else ", as int64"
            raise InputError(f"y: {_found(y)}, expected whole numbers below {self.size}{kind}: the model takes labels")
        if torch.distributions.Distribution._validate_args and ((y < 0) | (y >= self.size)).any():
            raise InputError(f"y: found {y.min()} to {y.max()}, expected labels from 0 to {self.size - 1}")
        # not one_hot[y], which takes -1 for the last class, and uint8 for a mask
        return nn.functional.embedding(y.long(), self.one_hot)


class Covariates(Condition, name="covariates"):
    """Numbers beside each datum, each brought to mean 0 and, if it differs, deviation 1 over the data.

    Args:
        size: how many there are.

    >>> Covariates.of(torch.tensor([[1.0], [3.0]]))(torch.tensor([[3.0]]))
    tensor([[0.7071]])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    @classmethod
    def of(cls, y: Tensor | None, **options: Any) -> Covariates:  # noqa: D102
        if y is None or not y.is_floating_point() or y.dim() != 2 or not len(y):
            raise InputError(f"covariates: {_found(y)}, expected numbers y (N, size) beside the data")
        made = cls(y.shape[1], **options)
        made.mean.copy_(y.mean(0))
        deviation = y.std(0)
        apart = deviation > 1e-6 * y.abs().amax(0)  # what is one number but for rounding, or one datum, stays as it is
        made.deviation.copy_(deviation.where(apart, 1.0))
        return made

    def forward(self, y: Tensor | None) -> Tensor:
        """Covariates y (..., size), brought to scale."""
        if y is None or not y.is_floating_point() or y.shape[-1:] != (self.size,):
            raise InputError(f"y: {_found(y)}, expected (..., {self.size}) numbers: the model takes covariates")
        return (y - self.mean) / self.deviation


class Library(Condition, name="library"):
    """The total count of each datum, its library size: its logarithm, of mean 0 and deviation 1 over the data.

    The totals y (N, 1) are made of the data, and taken as given beside them: densities are p(x | y).

    >>> Library.of(torch.tensor([[10.0], [1000.0]]))(torch.tensor([[100.0]]))
    tensor([[0.]])
    """

    totals = True

    def __init__(self) -> None:
        super().__init__(1)
        self.covariates = Covariates(1)

    @classmethod
    def beside(cls, x: Tensor, y: Tensor | None) -> Tensor:  # noqa: D102
        expected = "expected counts, whole numbers of at least 0 that are not stored as uint8"
        if x.dtype == torch.uint8:
            raise InputError(
                f"library: found uint8, which is read as pixels in [0, 1], {expected}: store them as int32"
            )
        if not (whole := (x >= 0) & (x == x.floor())).all():
            raise InputError(f"library: found {x[~whole][0].item():.7g}, {expected}: leave it out")
        return x.double().flatten(1).sum(1, keepdim=True).float()

    @classmethod
    def of(cls, y: Tensor | None, **options: Any) -> Library:  # noqa: D102
        if y is None or not y.is_floating_point() or y.dim() != 2 or y.shape[1] != 1:
            raise InputError(f"library: {_found(y)}, expected the total count of each datum, floats (N, 1)")
        made = cls(**options)
        made.covariates = Covariates.of(_log_total(y))
        return made

    def forward(self, y: Tensor | None) -> Tensor:
        """Totals y (..., 1) to (..., 1)."""
        return self.covariates(y if y is None else _log_total(y))


def _log_total(y: Tensor) -> Tensor:
    return y.clamp(min=1).log()


class ConditionedEncoder(Encoder):
    """An encoder that sees labels: its network takes (x, context) with their features as the context.

    Args:
        network: from data (..., *shape) and a context (..., size) to numbers; an `Encoder` made with `context`, say.
        condition: from labels to features.

    >>> from pvae import Label, MLPEncoder
    >>> encoder = ConditionedEncoder(MLPEncoder((4,), 6, context=3), Label(3))
    >>> encoder(torch.zeros(5, 2, 4), torch.tensor([0, 2])).shape
    torch.Size([5, 2, 6])
    """

    def __init__(self, network: Encoder, condition: Condition) -> None:
        if getattr(network, "context", 0) != condition.size:
            raise InputError(
                f"encoder: {type(network).__name__} takes a context of {getattr(network, 'context', 0)}, expected"
                f" {condition.size} numbers of {type(condition).__name__}: make it with context={condition.size}"
            )
        super().__init__(network.shape, network.outputs, context=condition.size)
        self.network, self.condition = network, condition

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Data (..., *shape) and labels, that broadcast against it on the left, to (..., outputs)."""
        return self.network(x, _beside(self.condition(y), x.shape[: x.dim() - len(self.shape)]))


class ConditionedDecoder(Decoder):
    """A decoder that sees labels: their features come after the latent.

    Args:
        network: from (..., latent + size) to numbers for each pixel.
        condition: from labels to features.

    >>> from pvae import Label, MLPDecoder
    >>> decoder = ConditionedDecoder(MLPDecoder(2 + 3, (4,)), Label(3))
    >>> decoder(torch.zeros(5, 2, 2), torch.tensor([0, 2])).shape
    torch.Size([5, 2, 4])
    """

    def __init__(self, network: Decoder, condition: Condition) -> None:
        if network.inputs <= condition.size:
            raise InputError(
                f"decoder: {type(network).__name__} takes {network.inputs} numbers, expected those of a latent and"
                f" {condition.size} of {type(condition).__name__}: make it with latent + {condition.size} inputs"
            )
        super().__init__(network.inputs - condition.size, network.shape)
        self.network, self.condition = network, condition

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Latents (..., latent) and labels, that broadcast against them on the left, to (..., *shape)."""
        return leading(self.network, self._given(z, y), event_dim=1)

    def split(self) -> tuple[Callable[..., Tensor], nn.Linear] | None:  # noqa: D102
        found = split(self.network)
        if found is None:
            return None
        body, last = found
        return lambda z, y=None: leading(body, self._given(z, y), event_dim=1), last

    def _given(self, z: Tensor, y: Tensor | None) -> Tensor:
        return torch.cat([z, _beside(self.condition(y), z.shape[:-1])], -1)

    def center(self, value: Tensor) -> None:  # noqa: D102
        self.network.center(value)


def _beside(features: Tensor, lead: torch.Size) -> Tensor:
    """Features of labels, for every particle."""
    given = features.shape[:-1]
    if given != lead[len(lead) - len(given) :]:
        raise InputError(f"y: found labels of shape {tuple(given)} for {tuple(lead)} data, expected one for each datum")
    return features.expand(*lead, -1)


def _found(y: Tensor | None) -> str:
    return "found none" if y is None else f"found {str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}"
