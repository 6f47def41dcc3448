"""Bounds of groups of draws."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import bounds
from ..estimators import others
from .objective import Objective


class Grouped(Objective):
    """The base of bounds of M groups of K draws; the guide climbs the mean of theirs.

    Args:
        num_particles: M K, how many draws for each datum in all.
        groups: M, a divisor of their number; 1 is the importance-weighted bound.
        **shared: what every `Objective` takes.
    """

    def __init__(self, num_particles: int = 1, groups: int = 1, **shared: Any) -> None:
        super().__init__(num_particles, **shared)
        bounds.check_groups(num_particles, groups)
        self.groups = groups

    def left_out(self, log_w: Tensor) -> Tensor:
        """MIWAE's bound without each draw, (M K, B): its own group has one less; or is none, where it was of one."""
        if self.groups == len(log_w):
            return others.left_out_of_power(log_w, 0.0)
        group = bounds.grouped(log_w, self.groups)
        k, m, b = group.shape
        change = others.left_out_of_power(group.reshape(k, m * b), 1.0).reshape(k, m, b) - bounds.iwae(group)
        return bounds.miwae(log_w, m) + change.transpose(0, 1).reshape(k * m, b) / m


class MIWAE(Grouped, name="miwae"):
    """The mean of the importance-weighted bounds of M groups of K draws, 1/M sum_m log 1/K sum_k w_mk.

    Rainforth et al. 2018.
    """

    def bound(self, log_w: Tensor) -> Tensor:
        """1/M sum_m log 1/K sum_k w_mk: (B,), nats."""
        return bounds.miwae(log_w, self.groups)


class PIWAE(Grouped, name="piwae"):
    """The model climbs log 1/(M K) sum_mk w_mk, which is the value; the guide climbs 1/M sum_m log 1/K sum_k w_mk.

    Rainforth et al. 2018.
    """

    apart = True

    def bound(self, log_w: Tensor) -> Tensor:
        """The model's, L_MK: (B,), nats."""
        return bounds.iwae(log_w)

    def guide_bound(self, log_w: Tensor) -> Tensor:
        """The guide's, 1/M sum_m log 1/K sum_k w_mk: (B,), nats."""
        return bounds.miwae(log_w, self.groups)
