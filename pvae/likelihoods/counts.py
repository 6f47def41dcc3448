"""Distributions of counts, elementwise, and how a decoder's numbers become their means.

They are scored in float64: the terms of a count of a million are of size 1e7, where float32 is off by a nat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from ..errors import InputError

BOUND = 20.0
"""Logarithms of means and of dispersions lie within it: e^-20 is 2e-9, e^20 is 5e8."""


class Counts(dist.TorchDistribution):
    """Whole numbers of at least 0, each on its own.

    Args:
        parameters: that broadcast against one another; the first has the batch shape, the others may have less.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.nonnegative_integer

    def __init__(self, *parameters: Tensor) -> None:
        self.parameters = parameters
        super().__init__(torch.broadcast_shapes(*(p.shape for p in parameters)))

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> Counts:  # noqa: D102
        first, *rest = self.parameters
        return type(self)(first.expand(batch_shape), *rest)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        return self.score(value.double(), *(p.double() for p in self.parameters)).to(self.parameters[0].dtype)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # noqa: D102
        with torch.no_grad():
            return self.draw(*(p.expand(self._extended_shape(torch.Size(sample_shape))) for p in self.parameters))

    @staticmethod
    def score(x: Tensor, *parameters: Tensor) -> Tensor:
        """Log p(x) in the dtype of the parameters."""
        raise NotImplementedError

    @staticmethod
    def draw(*parameters: Tensor) -> Tensor:
        """One draw for each of the parameters, all of one shape."""
        raise NotImplementedError


class BinomialCounts(Counts):
    """Counts of 0 to total by their logits, then the total."""

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:  # noqa: D102
        return constraints.integer_interval(0, self.parameters[1])

    @property
    def mean(self) -> Tensor:  # noqa: D102
        logits, total = self.parameters
        return total * logits.sigmoid()

    @staticmethod
    def score(x: Tensor, logits: Tensor, total: Tensor) -> Tensor:  # noqa: D102
        ways = torch.lgamma(total + 1) - torch.lgamma(x + 1) - torch.lgamma(total - x + 1)
        return ways + x * logsigmoid(logits) + (total - x) * logsigmoid(-logits)

    @staticmethod
    def draw(logits: Tensor, total: Tensor) -> Tensor:  # noqa: D102
        return torch.binomial(total.contiguous(), logits.sigmoid())


class PoissonCounts(Counts):
    """Counts by the logarithm of their mean."""

    @property
    def mean(self) -> Tensor:  # noqa: D102
        return self.parameters[0].exp()

    @staticmethod
    def score(x: Tensor, log_mean: Tensor) -> Tensor:  # noqa: D102
        return x * log_mean - log_mean.exp() - torch.lgamma(x + 1)

    @staticmethod
    def draw(log_mean: Tensor) -> Tensor:  # noqa: D102
        return torch.poisson(log_mean.exp())


class NegativeBinomialCounts(Counts):
    """Counts by the logarithms of their mean m and of theta: their variance is m + m^2 / theta."""

    @property
    def mean(self) -> Tensor:  # noqa: D102
        return self.parameters[0].exp()

    @staticmethod
    def score(x: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:  # noqa: D102
        theta, logits = log_theta.exp(), log_mean - log_theta
        ways = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        return ways + x * logsigmoid(logits) + theta * logsigmoid(-logits)

    @staticmethod
    def draw(log_mean: Tensor, log_theta: Tensor) -> Tensor:  # noqa: D102
        # a Poisson whose mean is drawn from a Gamma distribution
        return torch.poisson(torch._standard_gamma(log_theta.exp()) * (log_mean - log_theta).exp())


class ZeroInflatedCounts(Counts):
    """Counts that are 0 with the probability of some logits, else of a negative binomial, whose parameters follow."""

    @property
    def mean(self) -> Tensor:  # noqa: D102
        log_mean, _, gate = self.parameters
        return (-gate).sigmoid() * log_mean.exp()

    @staticmethod
    def score(x: Tensor, log_mean: Tensor, log_theta: Tensor, gate: Tensor) -> Tensor:  # noqa: D102
        drawn = logsigmoid(-gate) + NegativeBinomialCounts.score(x, log_mean, log_theta)
        return torch.where(x == 0, torch.logaddexp(logsigmoid(gate), drawn), drawn)

    @staticmethod
    def draw(log_mean: Tensor, log_theta: Tensor, gate: Tensor) -> Tensor:  # noqa: D102
        return NegativeBinomialCounts.draw(log_mean, log_theta) * torch.bernoulli((-gate).sigmoid())


def bounded(value: Tensor) -> Tensor:
    """Within `BOUND` of 0, smoothly: close to value near 0, and with a gradient everywhere.

    >>> bounded(torch.tensor([0.0, 1.0, 1000.0]))
    tensor([ 0.0000,  0.9992, 20.0000])
    """
    return BOUND * torch.tanh(value / BOUND)


def unbounded(value: Tensor) -> Tensor:
    """The inverse of `bounded`, for values that are brought within 19 of 0."""
    return BOUND * torch.atanh(value.clamp(1 - BOUND, BOUND - 1) / BOUND)


def log_means(numbers: Tensor, y: Tensor | None, library: bool, event_dim: int) -> Tensor:
    """The logarithms of means: the decoder's numbers, bounded, or with `library` log(total) + log softmax(numbers).

    Args:
        numbers: (..., *shape).
        y: totals (..., 1), looked at with `library` only.
        library: whether means are shares of the totals.
        event_dim: how many dimensions one datum has.

    Raises:
        InputError: totals are missing, or not one for each datum.
    """
    if not library:
        return bounded(numbers)
    lead = numbers.shape[: numbers.dim() - event_dim]
    total = totals(y, lead, event_dim)
    shares = numbers.reshape(*lead, -1).log_softmax(-1).reshape(numbers.shape)
    # the mean of a datum without any count is as good as zero, and its logarithm finite
    return shares + total.clamp(min=1e-8).log()


def totals(y: Tensor | None, lead: torch.Size, event_dim: int) -> Tensor:
    """The total counts y (..., 1) of data with these leading dimensions, so that they broadcast against the data.

    Raises:
        InputError: they are missing, or not one for each datum.
    """
    given = None if y is None or not y.is_floating_point() or y.shape[-1:] != (1,) else y.shape[:-1]
    if y is None or given is None or given != lead[len(lead) - len(given) :]:
        found = "none" if y is None else f"{str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}"
        raise InputError(
            f"y: found {found}, expected the total count of each datum, floats ({', '.join(map(str, lead))}, 1), as the"
            " likelihood has library=True: pass them as y, as `--condition library` of the commands does"
        )
    return y.reshape((*given, *[1] * event_dim))


def starting_means(x: Tensor, y: Tensor | None, library: bool, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """The decoder's numbers at the means of counts x (N, *shape), and those means, (N, *shape) or `shape`.

    Args:
        x: the training data.
        y: their totals (N, 1), with `library`.
        library: as in `log_means`.
        share: of the mean of the data that the distribution's other parameters leave to these means.

    Raises:
        InputError: totals are missing, or not one for each datum.
    """
    mean = x.mean(0).clamp(min=0.5 / len(x))  # where nothing was counted, half a count
    if not library:
        return unbounded((mean / share).log()), mean
    shares = mean / mean.sum()
    return shares.log(), totals(y, x.shape[:1], x.dim() - 1) * shares
