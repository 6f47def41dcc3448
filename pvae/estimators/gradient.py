"""The family of gradient estimators, and the refusal of those that do not fit an objective."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from .. import programs
from ..base import Member, members
from ..errors import InputError
from ..programs import Drawn, LogWeights, Site, Traces
from . import chunks, intervals
from .surrogates import Coefficients, Draws, Gate, Pairs, Step, weigh, weighted


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
    def stood_in(self, log_w: Tensor, instead: Tensor) -> Tensor: ...  # noqa: D102
    def beta_for(self, rate: Tensor) -> float | Tensor: ...  # noqa: D102
    def differentiable(self, traces: Traces) -> Tensor: ...  # noqa: D102


class Gradient(Member, family="gradient"):
    """The family of gradient estimators. A member takes options of its own and writes `coefficients`.

    Raises:
        InputError: by an objective that is given one that does not fit; by its first call where a site does not.

    >>> import pvae
    >>> class Plain(Gradient):  # the score function without a baseline
    ...     def coefficients(self, objective, log_w, beta):
    ...         value, c = pvae.bounds.slope(objective.bound, log_w)
    ...         return Coefficients(model=c, path=None, score=value - beta * c)
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    >>> loss = pvae.IWAE(5, gradient=Plain()).loss_and_grads(vae.model, vae.guide, torch.ones(3, 6))
    >>> all(parameter.grad.isfinite().all() for parameter in vae.parameters())
    True
    """

    reparameterized: ClassVar[bool] = False
    """Whether it takes the path through the draws, for which every site has to be reparameterized."""
    scores: ClassVar[bool] = True
    """Whether it rests on the gradient of log q, for which every site has to have a density: a point mass has none."""
    beside: ClassVar[str] = ""
    """Where its mean is not the gradient of the bound: a signal of it is one of something else."""

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
            return objective.bound(programs.split(traces).log_w), traces.scale
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
        terms = programs.split(traces)
        found, beta = choose(terms)
        if gate is not None:
            found = found._replace(model=gate.fill(found.model, found.path, traces))
        a, s = found.model, found.score
        pairs: Pairs = [(a, terms.likelihood), (beta * a, terms.prior)]
        if self.reparameterized or draws.made:
            # log q with all its gradient, and with the part that leaves the draws alone taken back; what makes latents
            # of auxiliary draws is no such part: it weighs as the model, of whose density at the draws it is a factor
            fixed = draws.fixed if self.reparameterized else draws.drawn
            pairs += [
                (-beta * a, terms.posterior),
                (s + beta * a, programs.log_q(traces, fixed.sites, made=False)),
            ]
        else:
            pairs.append((s, terms.posterior))
        if not self.reparameterized and (unscored := programs.unscored(traces)) is not None:
            pairs.append((torch.zeros_like(s) if found.unscored is None else found.unscored, unscored))
        pairs += self.more(objective, draws, traces, beta * a)
        return terms, pairs, traces

    def check_sites(self, drawn: Drawn, objective: Bounded) -> None:
        """Refuse sites that lack what the gradient needs, naming the estimators that don't need it."""
        for site in intervals.points(drawn) if self.scores else ():
            raise InputError(
                f"site '{site['name']}': {_named(objective)} with gradient {self.name} needs the gradient of a density,"
                f" and {intervals.kind(site)} is a point mass: the guide's gradient would be wrong: expected"
                " the gradient reparam or stl"
            )
        for site in programs.unreparameterized(drawn) if self.reparameterized else ():
            raise InputError(
                f"site '{site['name']}': {_named(objective)} with gradient {self.name} needs draws that are"
                f" reparameterized, and {intervals.kind(site)} has none: the guide's gradient would be wrong:"
                f" {_without_path(objective)}"
            )


def made(site: Site, why: str, instead: str) -> InputError:
    """The refusal of a latent that is made of auxiliary draws."""
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


def _fitting(objective: Bounded) -> str:
    return ", ".join(name for name, member in members("gradient").items() if not member.misfit(objective)) or "none"


def _without_path(objective: Bounded) -> str:
    """What to pass where draws have no path."""
    known = {name: m for name, m in members("gradient").items() if not m.reparameterized}  # type: ignore[attr-defined]
    few = alone(objective)
    fitting = [name for name, m in known.items() if m.misfit(objective) in ("", few)]  # type: ignore[attr-defined]
    more = "2 particles or more, and " if few else ""
    return f"pass {more}as the gradient one of those that need none: {', '.join(fitting) or 'none'}"


def alone(objective: Bounded) -> str:
    """Why one particle alone does not do, for estimators whose baseline is of the others; nothing where it is not."""
    few = objective.num_particles < 2
    return "its baseline is what the other draws give, and there is 1 particle: give it 2 or more" if few else ""


def other_bound(objective: Bounded) -> str:
    """Why an estimator for the importance-weighted bound does not do; nothing where it is that."""
    other = objective.power != 1 or objective.apart
    return "it is for the importance-weighted bound (iwae)" if other else ""
