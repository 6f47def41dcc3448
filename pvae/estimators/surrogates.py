"""What gradient estimators share: a step's programs and draws, surrogate losses, weights on the path through draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.distributions as td
from pyro import poutine
from torch import Tensor

from .. import programs
from ..errors import InputError
from ..programs import Drawn, LogWeights, Program, Site, Traces
from .reruns import Reruns

Pairs = list[tuple[Tensor, Tensor]]
"""Weights (K, B), detached, and the terms (K, B) of a surrogate that they multiply."""
SMALL = 1e-20
"""So small a weight of a draw is as good as none, yet a float32 can be divided by it."""


class Coefficients(NamedTuple):
    """What the parts of the gradient weigh, each (K, B), detached: see `pvae.estimators`."""

    model: Tensor
    """a: of log p(x, z)."""
    path: Tensor | None
    """b: of the path through the draws; None where there is none."""
    score: Tensor
    """s: of log q(z|x) at draws that stay where they are."""
    unscored: Tensor | None = None
    """The same of draws that a mask leaves out of log q, where there is no path; nothing if not given. It is s without
    the -c, which is there for the log q in the bound."""


@dataclass(frozen=True)
class Step:
    """The two programs and the arguments of one step."""

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    particles: int
    plate: str | None
    max_plate_nesting: int
    chunk: int
    """How many particles are taken at once."""
    path: dict[str, Tensor] = field(default_factory=dict)
    """What weighs the path through each site's draws, see `Gate`; the same where the step is run again."""
    aside: dict[str, Tensor] = field(default_factory=dict)
    """Likewise the draws beside."""
    look: Callable[[Step, Traces], None] | None = None
    """Is shown the step's traces: what an estimator cannot do with is refused there."""

    def draw(self, detach: bool = False) -> Drawn:
        """K draws from the guide."""
        return programs.draw(
            self.guide,
            *self.args,
            particles=self.particles,
            max_plate_nesting=self.max_plate_nesting,
            detach=detach,
            **self.kwargs,
        )

    def draws(self, objective: Any, detach: bool) -> Draws:
        """K draws; what the guide does beside its sites is noted if it had several, or has not been seen yet."""
        if detach:
            return Draws(self, self.draw(detach=True), Reruns())
        noted, reruns = objective.several, Reruns()
        with reruns.first() if noted else nullcontext():
            draws = Draws(self, self.draw(), reruns)
        objective.several = draws.several
        return draws if noted or not draws.several else self.draws(objective, detach)

    def score(self, drawn: Drawn) -> Traces:
        """The model at what the guide drew."""
        traces = programs.score(self.model, drawn, *self.args, plate=self.plate, **self.kwargs)
        if self.look is not None:
            self.look(self, traces)
        return traces


@dataclass(frozen=True)
class Draws:
    """A guide's draws in one step, as they are and without their gradient."""

    step: Step
    drawn: Drawn
    reruns: Reruns
    """What the guide drew beside its sites."""
    model: Reruns = field(default_factory=lambda: Reruns(partly=True))
    """Likewise the model."""

    @cached_property
    def several(self) -> bool:
        """Whether the guide draws at several sites, or makes latents of what it draws."""
        return len(dict(programs.drawn_of(self.drawn.sites))) > 1 or bool(self.made)

    @cached_property
    def made(self) -> list[Site]:
        """See `programs.made_of`. Whatever moves the draws that they are made of moves them too."""
        return programs.made_of(self.drawn)

    def redraw(self, change: Callable[[Site], Tensor]) -> Drawn:
        """The guide at other values, each what `change` makes of a site's own.

        Where there are several sites the guide runs again: the distributions of later ones depend on earlier values.
        """
        drawn, step = self.drawn, self.step
        latents = programs.drawn_of(drawn.sites)
        sites = {**drawn.sites, **{name: {**site, "value": change(site)} for name, site in latents}}
        for site in self.made:
            del sites[site["name"]]
        if self.several:
            with (
                programs.unvalidated(),
                programs.vectorized(drawn.particles, drawn.max_plate_nesting),
                self.reruns.again(),
            ):
                sites = programs.Collect(step.guide, sites)(*step.args, **step.kwargs)
        return Drawn(sites, drawn.particles, drawn.max_plate_nesting)

    def score(self, drawn: Drawn) -> Traces:
        """The model at these draws."""
        with self.model.again():
            return self.step.score(drawn)

    @cached_property
    def fixed(self) -> Drawn:
        """The guide at its own draws as if these were data: what has a gradient is the guide's parameters alone."""
        return self.redraw(lambda site: site["value"].detach())

    @cached_property
    def priors(self) -> dict[str, Site]:
        """The priors that have a gradient at the fixed draws, by site."""
        with self.model.first():
            sites = priors(self.step.model, self.fixed, *self.step.args, **self.step.kwargs)
        return {name: site for name, site in sites.items() if programs.scored(site).requires_grad}

    @cached_property
    def transported(self) -> dict[str, Tensor]:
        """The same draws as the priors' own."""
        return {name: transported(site) for name, site in self.priors.items()}

    def pull(self, traces: Traces) -> dict[str, Tensor]:
        """The gradient of log q(z|x) - log p(z) at each draw, by the sites of `priors`, detached."""
        leaf = self.redraw(lambda site: site["value"].detach().requires_grad_())
        values = {name: leaf.sites[name]["value"] for name in self.priors}
        with torch.enable_grad():
            log_q = programs.log_q(traces, leaf.sites).sum()
            log_p = sum(
                programs.log_prob({**site, "value": values[name]}, traces).sum() for name, site in self.priors.items()
            )
            return dict(zip(values, torch.autograd.grad(log_q - log_p, list(values.values())), strict=True))


def priors(model: Program, drawn: Drawn, *args: Any, **kwargs: Any) -> dict[str, Site]:
    """The model's latent sites at what a guide drew: it is run as far as the last of them."""
    run = programs.Collect(model, drawn.sites, until={name for name, _ in programs.sites_of(drawn.sites)})
    with (
        programs.unvalidated(),
        programs.vectorized(drawn.particles, drawn.max_plate_nesting),
        suppress(programs.Enough),
    ):
        run(*args, **kwargs)
    return {name: site for name, site in run.sites.items() if name in run.until}


def dream(model: Program, guide: Program, traces: Traces, *args: Any, **kwargs: Any) -> Tensor:
    """Log q(z|x) of pairs z, x that the model draws, (1, B), nats: as many as there are data.

    Raises:
        InputError: a factor; an observed site whose value is not one of the programs' arguments, as it stands there.
    """
    run = programs.Collect(poutine.uncondition(model))
    with torch.no_grad(), programs.unvalidated(), run:
        run.program(*args, **kwargs)  # the very objects: by them it is known which is observed
    sites = run.sites
    programs.check_factors(sites, "use the phase wake")
    dreamed = {
        id(site["infer"]["obs"]): site
        for _, site in programs.sites_of(sites, observed=True)
        if site["infer"].get("was_observed")
    }
    given = {id(arg) for arg in (*args, *kwargs.values())}
    for key, site in dreamed.items():
        if key not in given:
            raise InputError(
                f"site '{site['name']}': what it observes is not an argument of the programs as it stands: expected"
                " that, so that the guide can be given what the model draws: use the phase wake"
            )
    args = tuple(dreamed[id(arg)]["value"] if id(arg) in dreamed else arg for arg in args)
    kwargs = {name: dreamed[id(arg)]["value"] if id(arg) in dreamed else arg for name, arg in kwargs.items()}
    with programs.unvalidated():
        return programs.log_q(replace(traces, particles=1), programs.Collect(guide, sites)(*args, **kwargs))


def weigh(terms: LogWeights, beta: float | Tensor) -> Tensor:
    """Log p(x|z) + beta (log p(z) - log q(z|x)), (K, B), nats."""
    if isinstance(beta, float) and beta == 1:
        return terms.log_w
    return terms.likelihood + beta * (terms.prior - terms.posterior)


def weighted(value: Tensor, pairs: Pairs) -> Tensor:
    """A value (B,) with the gradient of sum_i (weight_i * term_i).sum(0)."""
    return _Weighted.apply(value, *(part for pair in pairs for part in pair))


def with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """The value of one tensor with the gradient of another."""
    return _Weighted.apply(value.detach(), torch.ones_like(other), other)


class _Weighted(torch.autograd.Function):
    """A value (B,) with the gradient of sum_i (weight_i * term_i).sum(0), of which nothing is computed forwards."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *pairs: Tensor) -> Tensor:
        ctx.save_for_backward(*pairs[::2])
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2::2]
        terms = [grad * weight if need else None for weight, need in zip(ctx.saved_tensors, needed, strict=True)]
        return None, *(part for term in terms for part in (None, term))


class Gate:
    """An identity on a guide's draws, which weighs the gradient that comes back through it.

    It stands between the guide, which makes draws from draws, and all that scores them: so a path through several
    sites is weighed once. The weights are known later than the draws, but before the gradient.

    Args:
        step: which holds the weights.
        beside: by site, the same draws as made by something else, to which the gradient goes with other weights.
    """

    def __init__(self, step: Step, beside: Mapping[str, Tensor] | None = None) -> None:
        self._beside = beside or {}
        self._events: dict[str, tuple[Tensor, int]] = {}
        self._path, self._aside = step.path, step.aside

    def __call__(self, site: Site) -> Tensor:
        """A site's draw, gated."""
        draw, name = site["value"], site["name"]
        self._events[name] = draw.detach(), site["fn"].event_dim
        passed = _hooked(draw, self._path, name)
        if name in self._beside:
            other = _hooked(self._beside[name], self._aside, name)
            passed = passed + (other - other.detach())
        return passed

    def fill(self, model: Tensor, path: Tensor, traces: Traces) -> Tensor:
        """Set the weights of the path, and of the draws beside.

        Args:
            model: a (K, B), detached.
            path: b (K, B), detached. The draws beside get a - b.
            traces: the model's at the gated draws.

        Returns:
            The weights to give the model's log-probabilities, for the gradient that comes back is one of these times
            what the gate makes of it: a, but where it is 0 and b is not.
        """
        path = path.masked_fill(path.abs() < SMALL, 0.0)  # else its products are denormal numbers
        carrier = model.masked_fill((model.abs() < SMALL) & (path != 0), SMALL)
        divisor = carrier.masked_fill(carrier == 0, 1.0)
        for name, (draw, event_dim) in self._events.items():
            self._path[name] = traces.like(path / divisor, draw, event_dim).to(draw.dtype)
            if name in self._beside:
                self._aside[name] = traces.like((model - path) / divisor, draw, event_dim).to(draw.dtype)
        return carrier


def _hooked(draw: Tensor, factors: dict[str, Tensor], name: str) -> Tensor:
    if not draw.requires_grad:
        return draw
    passed = draw.view_as(draw)
    # it knows the factors alone: a hook that knew the graph it hangs in would never be freed
    passed.register_hook(lambda grad: grad * factors[name])
    return passed


def transported(site: Site) -> Tensor:
    """A site's value as a reparameterized draw of its distribution: it has the parameters' gradient at fixed noise.

    But where the site is masked: there its density, which this is to stand for, has none.

    Raises:
        InputError: a distribution that is neither of location and scale nor a flow of one, or has another density.
    """
    counted = programs.counted(site)
    try:
        if not all(map(programs.is_known, programs.densities(site["fn"]))):
            raise NotImplementedError
        moved = _transported(site["fn"], site["value"])
    except NotImplementedError as error:
        raise InputError(
            f"site '{site['name']}': found a prior {type(site['fn']).__name__}, expected one of location and scale, or"
            " a flow with an inverse, with the density that torch gives it, for gradient gdreg: use dreg, which is"
            " unbiased for any prior"
        ) from error
    return moved if counted is None else moved.where(counted, site["value"].detach())


def _transported(fn: Any, value: Tensor) -> Tensor:
    if isinstance(fn, td.MultivariateNormal):
        centred = (value - fn.loc).unsqueeze(-1)
        noise = torch.linalg.solve_triangular(fn.scale_tril, centred, upper=False).detach()
        return fn.loc + (fn.scale_tril @ noise).squeeze(-1)
    if isinstance(fn, td.Normal | td.Laplace | td.Cauchy):
        return fn.loc + fn.scale * ((value - fn.loc) / fn.scale).detach()
    if isinstance(fn, td.TransformedDistribution):
        for transform in reversed(fn.transforms):
            value = transform.inv(value).detach()
        value = _transported(fn.base_dist, value)
        for transform in fn.transforms:
            value = transform(value)
        return value
    if isinstance(fn, td.Independent):
        return _transported(fn.base_dist, value)
    raise NotImplementedError
