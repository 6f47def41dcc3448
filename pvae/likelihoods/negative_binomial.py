"""The negative binomial likelihood, plain and with additional zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..errors import InputError, nearest
from .counts import NegativeBinomialCounts, ZeroInflatedCounts, bounded, log_means, starting_means, unbounded
from .likelihood import Likelihood

Dispersion = Literal["shared", "feature", "decoder"]
GATE = 0.1
"""The probability of an additional zero before training."""


class NegativeBinomial(Likelihood, name="negative_binomial"):
    """Counts with variance m + m^2 / t: p(x|z) = prod_d G(x+t) / (G(t) x!) (t/(t+m))^t (m/(t+m))^x.

    G is the Gamma function, m the mean and t the inverse dispersion: towards infinity it is a Poisson distribution.
    The means are exp(20 tanh(a / 20)) of the decoder's numbers a, which lie between 2e-9 and 5e8; or, with `library`,
    total * softmax(a), with the softmax over all of a datum. Then the density is p(x | z, total): the total is taken as
    given beside the datum, y (..., 1), and x is not made to sum to it. The inverse dispersion is bounded as the means.

    Args:
        decoder: from latents to logarithms of means, or logits of shares; then of t, where that is of the decoder.
        shape: of one datum.
        dispersion: what has a t of its own: 'shared' (one, learned), 'feature' (one for each feature, learned), or
            'decoder' (one for each feature of each datum, from the decoder).
        library: whether means are shares of the datum's total count, its library size.

    Raises:
        InputError: an unknown dispersion.

    Source: Lopez, Regier, Cole, Jordan and Yosef 2018 (scVI), with an observed library size.

    >>> p = NegativeBinomial(nn.Linear(2, 3), (3,))(torch.zeros(5, 2))
    >>> p.log_prob(torch.tensor([0.0, 3.0, 1e6])).shape
    torch.Size([5])
    """

    support = "counts"

    def __init__(
        self, decoder: nn.Module, shape: Sequence[int], dispersion: Dispersion = "feature", library: bool = False
    ) -> None:
        super().__init__(decoder, shape)
        self.outputs = self.outputs_for(dispersion=dispersion)
        self.library = library
        self.theta = InverseDispersion(dispersion, shape)

    @classmethod
    def outputs_for(cls, *, dispersion: Dispersion, **options: Any) -> int:  # noqa: D102
        return cls.outputs + (dispersion == "decoder")

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z) or p(x|z, total): batch shape (...), event shape `shape`."""
        mean, *rest = _numbers(self, z, y)
        log_mean = log_means(mean, y, self.library, len(self.shape))
        return NegativeBinomialCounts(log_mean, self.theta(rest)).to_event(len(self.shape))

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the means at the training mean, or at its shares of the total, and t where it fits the variance."""
        start, mean = starting_means(x, y, self.library)
        theta = self.theta.start(x, mean)
        self.center(_stacked(start, *theta))


class ZeroInflatedNegativeBinomial(NegativeBinomial, name="zinb"):
    """A negative binomial with additional zeros: p(x|z) = prod_d g_d [x_d = 0] + (1 - g_d) NB(x_d; m_d, t_d).

    The gate g is the sigmoid of the decoder's second number; means m and inverse dispersions t are as in the
    negative binomial, and so is `library`: the density is then p(x | z, total), with the total
    taken as given beside the datum, y (..., 1).

    Args:
        decoder: from latents to logarithms of means, or logits of shares; then logits of the gate; then logarithms of
            t, where that is of the decoder.
        shape: of one datum.
        dispersion: what has a t of its own: 'shared' (one, learned), 'feature' (one for each feature, learned), or
            'decoder' (one for each feature of each datum, from the decoder).
        library: whether means m are shares of the datum's total count, its library size.

    Raises:
        InputError: an unknown dispersion.

    Source: Lopez, Regier, Cole, Jordan and Yosef 2018 (scVI), with an observed library size.

    >>> p = ZeroInflatedNegativeBinomial(nn.Linear(2, 6), (3,))(torch.zeros(5, 2))
    >>> p.log_prob(torch.tensor([0.0, 3.0, 1e6])).shape
    torch.Size([5])
    """

    outputs = 2

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z) or p(x|z, total): batch shape (...), event shape `shape`."""
        mean, gate, *rest = _numbers(self, z, y)
        log_mean = log_means(mean, y, self.library, len(self.shape))
        return ZeroInflatedCounts(log_mean, self.theta(rest), gate).to_event(len(self.shape))

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """As a negative binomial, with a gate of 0.1 and means that make up for it."""
        start, mean = starting_means(x, y, self.library, 1 - GATE)
        theta = self.theta.start(x, mean)
        self.center(_stacked(start, torch.full_like(start, GATE).logit(), *theta))


class InverseDispersion(nn.Module):
    """The logarithm of t, a parameter or of the decoder.

    Args:
        kind: as a likelihood's `dispersion`.
        shape: of one datum.
    """

    def __init__(self, kind: Dispersion, shape: Sequence[int]) -> None:
        super().__init__()
        if kind not in (known := ["shared", "feature", "decoder"]):
            raise InputError(f"dispersion: found '{kind}', expected a known word: {nearest(kind, known)}")
        self.kind = kind
        if kind != "decoder":
            self.raw = nn.Parameter(torch.zeros(tuple(shape) if kind == "feature" else ()))

    def forward(self, rest: Sequence[Tensor]) -> Tensor:
        """The logarithm of t, from what is left of the decoder's numbers."""
        return bounded(rest[0] if self.kind == "decoder" else self.raw)

    def start(self, x: Tensor, mean: Tensor) -> list[Tensor]:
        """Let t fit the variance of counts x (N, *shape) about these means; the decoder's number, where it is its."""
        excess = (x - mean).square() - mean
        square = mean.square().expand_as(x)
        moments = (square.mean(), excess.mean()) if self.kind == "shared" else (square.mean(0), excess.mean(0))
        # no more than a Poisson's variance, or far more than can be told from a few data
        raw = unbounded((moments[0] / moments[1].clamp(min=1e-8)).clamp(1e-2, 1e2).log())
        if self.kind == "decoder":
            return [raw]
        with torch.no_grad():
            self.raw.copy_(raw)
        return []


def _numbers(part: Likelihood, z: Tensor, y: Tensor | None) -> Sequence[Tensor]:
    """The decoder's numbers, each (..., *shape)."""
    out = part.decode(z, y)
    return out.unbind(-1 - len(part.shape)) if part.outputs > 1 else [out]


def _stacked(first: Tensor, *rest: Tensor) -> Tensor:
    return torch.stack([first, *rest]) if rest else first
