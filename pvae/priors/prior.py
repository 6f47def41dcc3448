"""Priors p(z): parameters in `__init__`, a distribution over the latent from `forward`."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
from torch import Tensor, nn

from ..base import Part, check_distribution
from ..errors import whole_number


class Prior(Part, family="prior"):
    """The family of priors. A member takes `latent` first, then options of its own.

    Its call takes the labels y (or None) and returns a distribution with event shape (latent,). A member that
    depends on the labels takes `condition` as well, and gets their features from `self.condition(y)`.

    Args:
        latent: size of the latent.
        condition: from labels y (...) to their features (..., size), or None for a prior that does not depend on them.
    """

    support: str = "the real numbers"
    """Where its draws lie: a guide's must lie there too."""
    anywhere: ClassVar[bool] = False
    """Whether they lie wherever the guide's do."""

    def __init__(self, latent: int, *, condition: nn.Module | None = None) -> None:
        super().__init__()
        whole_number(1, latent=latent)
        self.latent, self.condition = latent, condition

    def check(self, found: Any, y: Tensor | None = None) -> None:  # noqa: D102
        lead = () if y is None else tuple(y.shape)
        check_distribution(self, found, [(), *(lead[:n] for n in range(len(lead), 0, -1))], (self.latent,))

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z) or p(z|y): batch shape () or that of y, event shape (latent,)."""
        raise NotImplementedError
