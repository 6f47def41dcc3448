"""Estimators that rest on the score of q, for draws of any kind."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from .. import bounds, programs
from ..errors import InputError
from ..programs import Drawn, Traces
from . import others
from .gradient import Bounded, Gradient, alone, made, other_bound
from .surrogates import Coefficients, Draws, Pairs, dream


class Baselined(Gradient):
    """The base of score functions that take a baseline off the bound: a = c, b = 0, s_k = L - baseline_k - c_k."""

    @classmethod
    def misfit(cls, objective: Bounded) -> str:
        """One particle alone."""
        return alone(objective)

    def baseline(self, objective: Bounded, log_w: Tensor) -> Tensor:
        """What each draw's bound is held against, (K, B): from the other draws alone."""
        raise NotImplementedError

    def coefficients(self, objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
        """The bound less its baseline."""
        _, a = bounds.slope(objective.bound, log_w)
        value, c = bounds.slope(objective.guide_bound, log_w)
        gain = value - self.baseline(objective, log_w)
        return Coefficients(a, None, gain - beta * c, gain)


class Score(Baselined, name="score"):
    """The score function, for draws of any kind, with what the other draws give as the baseline; unbiased.

    a = c, b = 0, s_k = L - L_(-k) - c_k, L_(-k) the same bound of the other K - 1 draws.
    Williams 1992; for the baseline Kool, van Hoof and Welling 2019.
    """

    def baseline(self, objective: Bounded, log_w: Tensor) -> Tensor:
        """The bound of the other draws."""
        return objective.left_out(log_w)


class VIMCO(Baselined, name="vimco"):
    """The score function with, as the baseline, the bound with each draw's weight replaced by a mean of the others'.

    a = c, b = 0, s_k = L - L(log w with log w_k replaced) - c_k. Unbiased, for draws of any kind and any bound. For
    the importance-weighted bound the arithmetic mean gives the same as `score`. Mnih and Rezende 2016.

    Args:
        mean: of the other weights: geometric (the mean of the log-weights) or arithmetic.
    """

    def __init__(self, mean: Literal["geometric", "arithmetic"] = "geometric") -> None:
        self.power = _choice("mean", mean, {"geometric": 0.0, "arithmetic": 1.0})

    def baseline(self, objective: Bounded, log_w: Tensor) -> Tensor:
        """The bound with each draw's weight replaced."""
        return objective.stood_in(log_w, others.left_out_of_power(log_w, self.power))


class OVIS(Gradient, name="ovis"):
    """The score function with the baseline that is best for the importance-weighted bound of many draws; unbiased.

    a = v, b = 0, s_k = (1 - gamma) log(1 - 1/K) - log(1 - v_k) - v_k, v the normalized weights.
    Lievin et al. 2020 (the asymptotic form).

    Args:
        gamma: 1 where the effective sample size is large; at 0 it is VIMCO with the arithmetic mean.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        if not 0 <= gamma <= 1:
            raise InputError(f"gamma: found {gamma}, expected 0 to 1")
        self.gamma = gamma

    @classmethod
    def misfit(cls, objective: Bounded) -> str:
        """Another bound than the importance-weighted one; one particle alone."""
        return other_bound(objective) or alone(objective)

    def coefficients(self, objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
        """What is left of the bound after its baseline."""
        value, v = bounds.slope(objective.bound, log_w)
        k = objective.num_particles
        gain = value - objective.left_out(log_w)
        return Coefficients(v, None, gain - self.gamma * math.log(1 - 1 / k) - beta * v, gain)


class ReweightedWakeSleep(Gradient, name="rws"):
    """The model climbs the importance-weighted bound, the guide comes nearer to the posterior or to the model's dreams.

    a = v, b = 0, and for the guide s = v, v the normalized weights (wake: it descends KL(p(z|x) || q(z|x)), biased as
    the weights are normalized); or log q(z|x) of pairs that the model draws (sleep); or half of each. For draws of any
    kind. Bornschein and Bengio 2015; Le et al. 2018.

    Args:
        phase: the guide's: wake, sleep or both.
    """

    beside = "the guide's is of another objective"

    def __init__(self, phase: Literal["wake", "sleep", "both"] = "wake") -> None:
        self.wake = _choice("phase", phase, {"wake": 1.0, "sleep": 0.0, "both": 0.5})

    @classmethod
    def misfit(cls, objective: Bounded) -> str:
        """Another bound than the importance-weighted one."""
        return other_bound(objective)

    def coefficients(self, objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
        """The normalized weights."""
        _, v = bounds.slope(objective.bound, log_w)
        return Coefficients(v, None, self.wake * v)

    def more(self, objective: Bounded, draws: Draws, traces: Traces, weight: Tensor) -> Pairs:
        """The dreams."""
        if self.wake == 1:
            return []
        step = draws.step
        found = dream(step.model, step.guide, traces, *step.args, **step.kwargs)
        share = traces.particles / objective.num_particles  # each part of the particles dreams anew
        return [(torch.full_like(found, share * (1 - self.wake)), found)]

    def check_sites(self, drawn: Drawn, objective: Bounded) -> None:
        """Refuse latents made of auxiliary draws, too, but for the phase wake where no parameter makes them."""
        super().check_sites(drawn, objective)
        for site in programs.made_of(drawn):
            if self.wake < 1 or site["value"].requires_grad:
                raise made(
                    site, "rests on it where the model draws, or holds it fixed", "vimco, or for draws with a path dreg"
                )


def _choice(option: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise InputError(f"{option}: found '{name}', expected {' or '.join(known)}")
    return known[name]
