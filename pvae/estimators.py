"""Estimators of a bound's gradient: each says what the log-weights' terms weigh in a surrogate.

The value of a loss is the bound itself; the surrogate that has the gradient is seen by nobody. With c the slopes of
the bound at each draw's log-weight, theta the model's parameters and phi the guide's, every estimator is of the form

    sum_k a_k d log p(x, z_k)/dtheta + b_k (d log w_k/dz_k) (dz_k/dphi) + s_k d log q(z_k|x)/dphi

in which dz/dphi is the path through the draws, where these are reparameterized, and the last derivative leaves z as
it is. A parameter that is in both programs gets both parts. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from . import bounds, chunks, spans, weights
from .base import Member, members
from .errors import InputError
from .surrogates import Coefficients, Draws, Gate, Pairs, Step, dream, weigh, weighted
from .weights import Drawn, LogWeights, Site, Traces


class Bounded(Protocol):
    """What an estimator asks of an objective; all of (K, B) log-weights."""

    name: str
    num_particles: int
    power: float | None
    apart: bool
    several: bool

    def bound(self, log_w: Tensor) -> Tensor: ...  # noqa: D102
    def guide_bound(self, log_w: Tensor) -> Tensor: ...  # noqa: D102
    def twice_slope(self, log_w: Tensor) -> Tensor: ...  # noqa: D102
    def left_out(self, log_w: Tensor) -> Tensor: ...  # noqa: D102
    def beta_for(self, rate: Tensor) -> float | Tensor: ...  # noqa: D102
    def differentiable(self, traces: Traces) -> Tensor: ...  # noqa: D102


class Gradient(Member, family="gradient"):
    """The family of gradient estimators. A member takes options of its own and writes `coefficients`.

    Raises:
        InputError: by an objective that is given one that does not fit; by its first call where a site does not.

    >>> class Plain(Gradient):  # the score function without a baseline
    ...     def coefficients(self, objective, log_w, beta):
    ...         value, c = bounds.slope(objective.bound, log_w)
    ...         return Coefficients(model=c, path=None, score=value - beta * c)
    >>> import pvae
    >>> pvae.IWAE(5, gradient=Plain()).gradient.reparameterized
    False
    """

    reparameterized: ClassVar[bool] = False
    """Whether it takes the path through the draws, for which every site has to be reparameterized."""
    scores: ClassVar[bool] = True
    """Whether it rests on the gradient of log q, for which every site has to have a density: a point mass has none."""

    @classmethod
    def misfit(cls, objective: Bounded) -> str:
        """Why this estimator is not valid for an objective; nothing where it is."""
        return ""

    def gate(self, objective: Bounded, draws: Draws) -> Gate | None:
        """What weighs the path, where its weights differ from the model's."""
        return Gate(draws.step) if self.reparameterized and objective.apart else None

    def coefficients(self, objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
        """The weights of the gradient's parts.

        Args:
            objective: whose bound it is.
            log_w: log p(x|z) + beta (log p(z) - log q(z|x)), (K, B), detached; less the largest of each datum, so that
                differences of bounds keep their digits.
            beta: the weight of prior and posterior, 1 without annealing.
        """
        raise NotImplementedError

    def more(self, objective: Bounded, draws: Draws, traces: Traces, weight: Tensor) -> Pairs:
        """Further terms of the surrogate, of these particles; `weight` (K, B) is that of log p(z)."""
        return []

    def choose(self, objective: Bounded, terms: LogWeights) -> tuple[Coefficients, float | Tensor]:
        """The weights of the gradient's parts, and beta, for the log-weights of all particles."""
        beta = objective.beta_for((terms.posterior - terms.prior).detach())
        log_w = weigh(terms, beta).detach()
        return self.coefficients(objective, log_w - log_w.amax(0), beta), beta

    def estimate(self, objective: Bounded, step: Step) -> tuple[Tensor, float]:
        """The bound for each datum, (B,), with the estimated gradient; and the scale of their sum."""
        if step.particles > step.chunk:
            return chunks.estimate(self, objective, step)
        if not torch.is_grad_enabled():
            drawn = step.draw()
            self.check_sites(drawn, objective)
            traces = step.score(drawn)
            return objective.bound(weights.split(traces).log_w), traces.scale
        terms, pairs, traces = self.pairs(objective, step, partial(self.choose, objective))
        return weighted(objective.bound(terms.log_w.detach()), pairs), traces.scale

    def pairs(
        self, objective: Bounded, step: Step, choose: Callable[[LogWeights], tuple[Coefficients, float | Tensor]]
    ) -> tuple[LogWeights, Pairs, Traces]:
        """The log-weights of a step's particles, the surrogate of their gradient, and the traces both came from."""
        draws = step.draws(objective, detach=not self.reparameterized)
        self.check_sites(draws.drawn, objective)
        gate = self.gate(objective, draws)
        traces = draws.score(draws.redraw(gate) if gate else draws.drawn)
        terms = weights.split(traces)
        found, beta = choose(terms)
        if gate is not None:
            found = found._replace(model=gate.fill(found.model, found.path, traces))
        a, s = found.model, found.score
        pairs: Pairs = [(a, terms.likelihood), (beta * a, terms.prior)]
        if self.reparameterized or draws.made:
            # log q with all its gradient, and with the part that leaves the draws alone taken back
            fixed = draws.fixed if self.reparameterized else draws.drawn
            pairs += [
                (-beta * a, terms.posterior),
                (s + beta * a, weights.log_q(traces, fixed.sites, made=False)),
            ]
        else:
            pairs.append((s, terms.posterior))
        pairs += self.more(objective, draws, traces, beta * a)
        return terms, pairs, traces

    def check_sites(self, drawn: Drawn, objective: Bounded) -> None:
        """Refuse sites that lack what the gradient needs, naming the estimators that don't need it."""
        for site in spans.points(drawn) if self.scores else ():
            raise InputError(
                f"site '{site['name']}': {_named(objective)} with gradient {self.name} needs the gradient of a density,"
                f" and {spans.kind(site)} is a point mass: the guide's gradient would be wrong: expected"
                " the gradient reparam or stl"
            )
        for site in weights.unreparameterized(drawn) if self.reparameterized else ():
            raise InputError(
                f"site '{site['name']}': {_named(objective)} with gradient {self.name} needs draws that are"
                f" reparameterized, and {type(site['fn']).__name__} has none: the guide's gradient would be wrong:"
                f" {_without_path(objective)}"
            )


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
        for site in weights.made_of(drawn):
            raise _made(site, "pulls at it by itself", "dreg, which is unbiased for these too")

    def gate(self, objective: Bounded, draws: Draws) -> Gate:
        """It lets the gradient at each draw through to the prior's parameters too."""
        return Gate(draws.step, draws.transported)

    def more(self, objective: Bounded, draws: Draws, traces: Traces, weight: Tensor) -> Pairs:
        """The rest of g, and the score that it is in place of taken back."""
        pairs: Pairs = []
        for name, pull in draws.pull(traces).items() if draws.priors else ():
            site = draws.priors[name]
            moved = sum_rightmost(pull * draws.transported[name], site["fn"].event_dim)
            pairs += [(weight, traces.by_datum(moved)), (-weight, weights.log_prob(site, traces))]
        return pairs


def _doubly(objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
    """The slopes c, and c less its derivative: of that only what log q turns to, which beta weighs."""
    _, a = bounds.slope(objective.bound, log_w)
    twice = objective.twice_slope(log_w)
    if isinstance(beta, Tensor) or beta != 1:
        c = bounds.slope(objective.guide_bound, log_w)[1] if objective.apart else a
        twice = (1 - beta) * c + beta * twice
    return Coefficients(a, twice, torch.zeros_like(a))


class Score(Gradient, name="score"):
    """The score function, for draws of any kind, with what the other draws give as the baseline; unbiased.

    a = c, b = 0, s_k = L - L_(-k) - c_k, L_(-k) the same bound of the other K - 1 draws.
    Williams 1992; for the baseline Kool, van Hoof and Welling 2019.
    """

    @classmethod
    def misfit(cls, objective: Bounded) -> str:
        """One particle alone."""
        return _alone(objective)

    def coefficients(self, objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
        """The bound less its baseline."""
        _, a = bounds.slope(objective.bound, log_w)
        value, c = bounds.slope(objective.guide_bound, log_w)
        return Coefficients(a, None, value - objective.left_out(log_w) - beta * c)


class VIMCO(Gradient, name="vimco"):
    """The score function with, as the baseline, the bound with each draw's weight replaced by a mean of the others'.

    a = c, b = 0, s_k = L - L(log w with log w_k replaced) - c_k. Unbiased, for draws of any kind and any bound. For
    the importance-weighted bound the arithmetic mean gives the same as `score`. Mnih and Rezende 2016.

    Args:
        mean: of the other weights: geometric (the mean of the log-weights) or arithmetic.
    """

    def __init__(self, mean: Literal["geometric", "arithmetic"] = "geometric") -> None:
        self.mean = _choice("mean", mean, {"geometric": bounds.elbo, "arithmetic": bounds.iwae})

    @classmethod
    def misfit(cls, objective: Bounded) -> str:
        """One particle alone."""
        return _alone(objective)

    def coefficients(self, objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
        """The bound less its baseline."""
        _, a = bounds.slope(objective.bound, log_w)
        value, c = bounds.slope(objective.guide_bound, log_w)
        baseline = bounds.stood_in(objective.guide_bound, log_w, self.mean)
        return Coefficients(a, None, value - baseline - beta * c)


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
        return _other_bound(objective) or _alone(objective)

    def coefficients(self, objective: Bounded, log_w: Tensor, beta: float | Tensor) -> Coefficients:
        """What is left of the bound after its baseline."""
        value, v = bounds.slope(objective.bound, log_w)
        k = objective.num_particles
        left = value - objective.left_out(log_w) - self.gamma * math.log(1 - 1 / k)
        return Coefficients(v, None, left - beta * v)


class ReweightedWakeSleep(Gradient, name="rws"):
    """The model climbs the importance-weighted bound, the guide comes nearer to the posterior or to the model's dreams.

    a = v, b = 0, and for the guide s = v, v the normalized weights (wake: it descends KL(p(z|x) || q(z|x)), biased as
    the weights are normalized); or log q(z|x) of pairs that the model draws (sleep); or half of each. For draws of any
    kind. Bornschein and Bengio 2015; Le et al. 2018.

    Args:
        phase: the guide's: wake, sleep or both.
    """

    def __init__(self, phase: Literal["wake", "sleep", "both"] = "wake") -> None:
        self.wake = _choice("phase", phase, {"wake": 1.0, "sleep": 0.0, "both": 0.5})

    @classmethod
    def misfit(cls, objective: Bounded) -> str:
        """Another bound than the importance-weighted one."""
        return _other_bound(objective)

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
        for site in weights.made_of(drawn):
            if self.wake < 1 or site["value"].requires_grad:
                raise _made(
                    site, "rests on it where the model draws, or holds it fixed", "vimco, or for draws with a path dreg"
                )


def _made(site: Site, why: str, instead: str) -> InputError:
    return InputError(
        f"site '{site['name']}': made of auxiliary draws, so that its density is not known by itself, and the gradient"
        f" {why}: expected {instead}"
    )


def check(gradient: Gradient, objective: Bounded) -> None:
    """Refuse an estimator that is not valid for an objective, naming those that are."""
    if not isinstance(gradient, Gradient):
        raise InputError(f"gradient: found {gradient!r}, expected a name or a Gradient: known: {_fitting(objective)}")
    if reason := gradient.misfit(objective):
        raise InputError(
            f"gradient: {gradient.name} does not fit {_named(objective)}: {reason}: those that fit it:"
            f" {_fitting(objective)}"
        )


def _named(objective: Bounded) -> str:
    return objective.name or type(objective).__name__


def _fitting(objective: Bounded, reparameterized: bool | None = None) -> str:
    fitting = {name: member for name, member in members("gradient").items() if not member.misfit(objective)}
    return ", ".join(name for name, m in fitting.items() if reparameterized in (None, m.reparameterized)) or "none"


def _without_path(objective: Bounded) -> str:
    """What to pass where draws have no path."""
    known = {name: m for name, m in members("gradient").items() if not m.reparameterized}  # type: ignore[attr-defined]
    alone = _alone(objective)
    fitting = [name for name, m in known.items() if m.misfit(objective) in ("", alone)]  # type: ignore[attr-defined]
    more = "2 particles or more, and " if alone else ""
    return f"pass {more}as the gradient one of those that need none: {', '.join(fitting) or 'none'}"


def _alone(objective: Bounded) -> str:
    few = objective.num_particles < 2
    return "its baseline is what the other draws give, and there is 1 particle: give it 2 or more" if few else ""


def _other_bound(objective: Bounded) -> str:
    other = objective.power != 1 or objective.apart
    return "it is for the importance-weighted bound (iwae)" if other else ""


def _choice(option: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise InputError(f"{option}: found '{name}', expected {' or '.join(known)}")
    return known[name]
