"""Estimators that go through reparameterized draws."""

from __future__ import annotations

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from .. import bounds, programs
from ..programs import Drawn, Traces
from .gradient import Bounded, Gradient, made
from .surrogates import Coefficients, Draws, Gate, Pairs, Step


class Reparameterized(Gradient, name="reparam"):
    """Automatic differentiation of the bound through reparameterized draws; unbiased, for any bound.

    a = c, b = c, s = -c. Kingma and Welling 2014.
    """

    reparameterized = True
    scores = False

    def coefficients(self, objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
        """Where the guide has a bound of its own, or particles come in parts; else `estimate` has no need of them."""
        _, a = bounds.slope(objective.bound, log_w)
        _, c = bounds.slope(objective.guide_bound, log_w)
        return Coefficients(a, c, -beta * c)

    def estimate(self, objective: Bounded, step: Step) -> tuple[Tensor, float]:
        """The bound for each datum, (B,), as autograd differentiates it; and the scale of their sum."""
        if objective.apart or step.particles > step.chunk:
            return super().estimate(objective, step)
        drawn = step.draw()
        self.check_sites(drawn, objective)
        traces = step.score(drawn)
        return objective.differentiable(traces), traces.scale


class StickingTheLanding(Gradient, name="stl"):
    """The reparameterized gradient without the score of q; biased for a bound that weighs its K > 1 draws.

    a = c, b = c, s = 0. Unbiased for the ELBO; its variance vanishes at the exact posterior. Roeder et al. 2017.
    """

    reparameterized = True
    scores = False
    beside = "biased for a bound that weighs its draws, as iwae of K > 1"

    def coefficients(self, objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
        """The slopes, and nothing for the score."""
        _, a = bounds.slope(objective.bound, log_w)
        c = bounds.slope(objective.guide_bound, log_w)[1] if objective.apart else a
        return Coefficients(a, c, torch.zeros_like(c))


class DoublyReparameterized(Gradient, name="dreg"):
    """The score of q reparameterized a second time; unbiased for any bound, also where a prior shares its parameters.

    a = c, b_k = c_k - dc_k/dlog w_k, s = 0: for the importance-weighted bound b is the square of the normalized
    weights, for the ELBO it is sticking the landing. From E[c_k dlog q(z_k)/dphi] = E[dc_k/dz_k dz_k/dphi] with c_k
    a function of z_k. Tucker et al. 2018.
    """

    reparameterized = True

    def gate(self, objective: Bounded, draws: Draws) -> Gate:
        """The path always has weights of its own."""
        return Gate(draws.step)

    def coefficients(self, objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
        """The slopes, and the slopes less their own derivative."""
        return _doubly(objective, log_w, beta)


class GeneralizedDReG(Gradient, name="gdreg"):
    """The doubly reparameterized gradient, and for the priors' parameters too: their score is reparameterized as well.

    With g = dc_k/dlog w_k d log w_k/dz + c_k d(log q(z|x) - log p(z))/dz at each draw, the score c_k d log p(z)/dlambda
    of a prior's parameters lambda, shared with the guide or not, becomes g dT/dlambda, T the map from noise to the
    prior's draws, taken at the noise that gives z. Unbiased, for priors of location and scale and flows of them.
    Bauer and Mnih 2021.
    """

    reparameterized = True

    @classmethod
    def misfit(cls, objective: Bounded) -> str:
        """A guide with a bound of its own."""
        return "model and guide climb different bounds" if objective.apart else ""

    def coefficients(self, objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
        """As `dreg`."""
        return _doubly(objective, log_w, beta)

    def check_sites(self, drawn: Drawn, objective: Bounded) -> None:
        """Refuse latents made of auxiliary draws, too."""
        super().check_sites(drawn, objective)
        for site in programs.made_of(drawn):
            raise made(site, "pulls at it by itself", "dreg, which is unbiased for these too")

    def gate(self, objective: Bounded, draws: Draws) -> Gate:
        """It lets the gradient at each draw through to the prior's parameters too."""
        return Gate(draws.step, draws.transported)

    def more(self, objective: Bounded, draws: Draws, traces: Traces, weight: Tensor) -> Pairs:
        """The rest of g, and the score that it is in place of taken back."""
        pairs: Pairs = []
        for name, pull in draws.pull(traces).items() if draws.priors else ():
            site = draws.priors[name]
            moved = sum_rightmost(pull * draws.transported[name], site["fn"].event_dim)
            pairs += [(weight, traces.by_datum(moved)), (-weight, programs.log_prob(site, traces))]
        return pairs


def _doubly(objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
    """The slopes c, and c less its derivative: of that only what log q turns to, which beta weighs."""
    _, a = bounds.slope(objective.bound, log_w)
    twice = objective.twice_slope(log_w)
    if isinstance(beta, Tensor) or beta != 1:
        c = bounds.slope(objective.guide_bound, log_w)[1] if objective.apart else a
        twice = (1 - beta) * c + beta * twice
    return Coefficients(a, twice, torch.zeros_like(a))
