"""Bounds of groups of draws."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import bounds
from ..errors import InputError
from .objective import Objective


class MIWAE(Objective, name="miwae"):
    """The mean of the importance-weighted bounds of M groups of K draws, 1/M sum_m log 1/K sum_k w_mk.

    Args:
        num_particles: M K, how many draws for each datum in all.
        groups: M, a divisor of their number; 1 is the importance-weighted bound.
        **shared: what every `Objective` takes.

    Rainforth et al. 2018.
    """

    def __init__(self, num_particles: int = 1, groups: int = 1, **shared: Any) -> None:
        self.groups = _divisor(groups, num_particles)
        super().__init__(num_particles, **shared)

    def bound(self, log_w: Tensor) -> Tensor:
        """1/M sum_m log 1/K sum_k w_mk: (B,), nats."""
        return bounds.miwae(log_w, self.groups)

    def left_out(self, log_w: Tensor) -> Tensor:
        """The bound of which a draw's own group has lost it."""
        return _left_out_of_group(log_w, self.groups)


class PIWAE(Objective, name="piwae"):
    """The model climbs log 1/(M K) sum_mk w_mk, which is the value; the guide climbs 1/M sum_m log 1/K sum_k w_mk.

    Args:
        num_particles: M K, how many draws for each datum in all.
        groups: M, a divisor of their number; 1 is the importance-weighted bound.
        **shared: what every `Objective` takes.

    Rainforth et al. 2018.
    """

    apart = True

    def __init__(self, num_particles: int = 1, groups: int = 1, **shared: Any) -> None:
        self.groups = _divisor(groups, num_particles)
        super().__init__(num_particles, **shared)

    def bound(self, log_w: Tensor) -> Tensor:
        """The model's, L_MK: (B,), nats."""
        return bounds.iwae(log_w)

    def guide_bound(self, log_w: Tensor) -> Tensor:
        """The guide's, 1/M sum_m log 1/K sum_k w_mk: (B,), nats."""
        return bounds.miwae(log_w, self.groups)

    def left_out(self, log_w: Tensor) -> Tensor:
        """The bound of which a draw's own group has lost it."""
        return _left_out_of_group(log_w, self.groups)


def _divisor(groups: int, particles: int) -> int:
    if groups < 1 or particles % groups:
        raise InputError(f"groups: found {groups} for {particles} particles, expected a divisor of their number")
    return groups


def _left_out_of_group(log_w: Tensor, groups: int) -> Tensor:
    """MIWAE's bound without each draw, (M K, B): its own group has one less."""
    group = bounds.grouped(log_w, groups)
    k, _, b = group.shape
    change = bounds.left_out(bounds.iwae, group.reshape(k, groups * b)).reshape(k, groups, b) - bounds.iwae(group)
    return bounds.miwae(log_w, groups) + change.transpose(0, 1).reshape(k * groups, b) / groups
