"""The Student-t likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from ..distributions import OfPixels, student_t
from ..errors import InputError, more_than
from .scaled import LocationScale, inverse_softplus


class StudentT(LocationScale, name="student_t"):
    """Each pixel is Student-t about the decoder's output: log p(x|z) = sum_d log t(x_d; df, m_d, s_d).

    Its tails fall as a power, so that single pixels far off the mean weigh little. Full normalising constants, in nats
    with respect to the data's own units. The standard deviation is s sqrt(df / (df - 2)), where df > 2.

    Args:
        df: degrees of freedom above 1, for there to be a mean: a number (fixed), or 'learned' (one, from 5 on).

    Raises:
        InputError: degrees of freedom of 1 or less.

    >>> StudentT(nn.Linear(2, 3), (3,), df=4.0)(torch.zeros(4, 2)).log_prob(torch.zeros(3)).shape
    torch.Size([4])
    """

    def __init__(
        self,
        decoder: nn.Module,
        shape: Sequence[int],
        scale: float | Literal["shared", "pixel", "decoder"] = "shared",
        min_scale: float = 1e-3,
        df: float | Literal["learned"] = 5.0,
    ) -> None:
        super().__init__(decoder, shape, scale, min_scale)
        if isinstance(df, str):
            if df != "learned":
                raise InputError(f"df: found '{df}', expected a number or 'learned'")
            self.raw_df = nn.Parameter(inverse_softplus(torch.tensor(4.0)))
        else:
            more_than(1, ", for there to be a mean", df=df)
            self.register_buffer("fixed_df", torch.tensor(float(df)))

    @property
    def df(self) -> Tensor:
        """The degrees of freedom, ()."""
        return 1 + nn.functional.softplus(self.raw_df) if hasattr(self, "raw_df") else self.fixed_df

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        return _StudentT(*self.located(z, y), self.df, event_dim=len(self.shape))

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the means at the training mean, and a learned scale where the deviation is the training data's."""
        mean = x.mean(0)
        narrower = (1 - 2 / self.df.detach()).clamp(min=0.1)  # there is no deviation where df is 2 or less
        self.start_at(mean, (self.average((x - mean).square()) * narrower).sqrt())


class _StudentT(OfPixels):
    """Student-t pixels: location, scale, degrees of freedom."""

    support = constraints.real

    @property
    def mean(self) -> Tensor:
        return self.parameters[0].expand(self.shape())

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        location, scale, df = self.parameters
        return dist.StudentT(df, location, scale).sample(sample_shape)

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        location, scale, df = self.parameters
        return student_t.log_density((value - location) / scale, df) - scale.log()
