"""Estimators of a bound's gradient: each says what the log-weights' terms weigh in a surrogate.

The value of a loss is the bound itself; the surrogate that has the gradient is seen by nobody. With c the slopes of
the bound at each draw's log-weight, theta the model's parameters and phi the guide's, every estimator is of the form

    sum_k a_k d log p(x, z_k)/dtheta + b_k (d log w_k/dz_k) (dz_k/dphi) + s_k d log q(z_k|x)/dphi

in which dz/dphi is the path through the draws, where these are reparameterized, and the last derivative leaves z as
it is. A parameter that is in both programs gets both parts. Of latents that are made of auxiliary draws u, z_k is u_k:
what makes them, and its Jacobian, go with the model. Draws that a mask leaves out of log q have their score all the
same, with s + c, where the path is not taken. Nothing here waits for the device.

`gradient` is what all share, `path` and `score` are the estimators; made of `surrogates`, of programs run twice in a
step (`reruns`), what the `others` among the draws give, particles in parts (`chunks`), the `intervals` that draws lie
in, and draws that are `refused` for what they are.
"""

from .gradient import Gradient, check
from .path import DoublyReparameterized, GeneralizedDReG, Reparameterized, StickingTheLanding
from .score import OVIS, VIMCO, ReweightedWakeSleep, Score

__all__ = [
    "OVIS",
    "VIMCO",
    "DoublyReparameterized",
    "GeneralizedDReG",
    "Gradient",
    "Reparameterized",
    "ReweightedWakeSleep",
    "Score",
    "StickingTheLanding",
    "check",
]
