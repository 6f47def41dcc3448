"""The log-density of a Pyro program's latents, all of them as one vector without constraints, and its gradient."""

from __future__ import annotations

import warnings
from math import prod
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..errors import InputError, written_at
from ..noise import Noise, forked
from ..replay.lines import outside
from .collect import Collect, Program, check_supports, is_point, sites_of, vectorized, whole
from .masks import counted
from .plates import Site, check_auxiliary, check_factors
from .unconstrained import Unconstrained, at_an_end, is_circle, numbers_of
from .weights import Traces, check_whole, log_prob, outside_support, total

FEW = 0.02
"""So large a share of the starting draws may lie at an end of what their type holds."""


class _Slot(NamedTuple):
    """Where a site's numbers lie: its name, how many batch dimensions it has, and its shape but for K and B."""

    name: str
    batch: int
    rest: torch.Size


class State(NamedTuple):
    """A point u (K, B, d), and there: two log-densities (K, B), nats, and their gradients (K, B, d)."""

    u: Tensor
    base: Tensor
    """log p(z), or log q(z|x) where there is a guide to start from"""
    ratio: Tensor
    """log p(x, z) less the base"""
    base_grad: Tensor
    ratio_grad: Tensor

    def log_density(self, beta: Tensor) -> Tensor:
        """The geometric path between the two ends, base + beta ratio: (K, B), nats."""
        return self.base + beta * self.ratio

    def grad(self, beta: Tensor) -> Tensor:
        """Its gradient, (K, B, d)."""
        return self.base_grad + beta * self.ratio_grad


class Density:
    """A model's latents for K particles of B data as points u (K, B, d) without constraints, and their log-densities.

    Each site's part of u is mapped into the site's support; densities are those of u (the map's log-determinant is
    counted). Angles go round: u is the angle but for whole turns, and densities are those on the circle. Masked numbers
    count nowhere. The parameters are taken as they are; nothing here waits for the device but the making, and
    draws between bounds.

    Args:
        model: p(x, z), a Pyro program of `data`.
        data: its arguments: x (B, *shape), and labels if it takes any.
        particles: K.
        guide: q(z|x), to be the base in place of the prior.
        plate: the plate of data, needed only where several hold every site; None for one density of the whole
            program, B = 1.
        first: what the first of the data is called where one is refused.

    Raises:
        InputError: a latent that is discrete, or whose guide is a point mass; programs without a bound for each datum
            (see `pvae.programs.trace`); a plate that subsamples; an observed value outside its site's support, unless a
            mask leaves it out, or one that is not finite: a mask does not spare the gradient.

    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         rate = pyro.sample("rate", dist.Exponential(1.0))
    ...         pyro.sample("x", dist.Exponential(rate), obs=x)
    >>> density = Density(model, (torch.tensor([1.0, 2.0]),), particles=3)
    >>> base, ratio = density.terms(torch.zeros(3, 2, 1))  # log rate = 0: e^-1, and e^-x
    >>> base[0], ratio[0]
    (tensor([-1., -1.]), tensor([-1., -2.]))
    """

    def __init__(
        self,
        model: Program,
        data: tuple[Tensor, ...],
        *,
        particles: int = 1,
        guide: Program | None = None,
        plate: str | None = "",
        first: int = 0,
    ) -> None:
        self.model, self.data, self.particles, self.guide = model, data, particles, guide
        self.plate = plate
        look = whole(model, guide or (lambda *_: None), *data, plate=plate)
        self.nesting = look.nesting
        with torch.no_grad(), forked(data[0].device):
            drawn, sites = self._run(slice(None))
            self._check(Traces(sites, drawn, particles, self.nesting, plate), look.validated, first)
            self.traces = Traces(_bare(sites), _bare(drawn), particles, self.nesting, plate)
            for name, site in drawn.items():
                if is_point(site["fn"]):
                    what = "makes it of auxiliary draws" if site["made"] else "is a point mass"
                    raise InputError(
                        f"site '{name}': the guide {what}, which has no density to start from, expected one"
                        " with a density: start annealing from the prior, and leave the inference gap out"
                    )
                if sites[name]["fn"].support.is_discrete:
                    raise InputError(
                        f"site '{name}': discrete: expected latents that have a gradient to follow: real numbers"
                    )
            self.slots = tuple(self._slot(name, sites[name]) for name in drawn)
            self.counted = self._counted(sites)
        self.sizes = [prod(slot.rest) for slot in self.slots]
        self.circles = [name for name in drawn if is_circle(sites[name])]

    @property
    def whole(self) -> bool:
        """Whether it is one density of the whole program."""
        return self.plate is None

    def draw(self, noise: Noise) -> Tensor:
        """Points from the base, (K, B, d); a warning where many of them lie at an end of what their type holds."""
        points, ends = [], {slot.name: [] for slot in self.slots}
        with torch.no_grad(), forked(self.data[0].device):
            for cell in noise.seeded():
                _, sites = self._run(cell)
                points.append(self.pack(sites))
                for name, found in ends.items():
                    found += self._at_an_end(sites[name])
        for name, found in ends.items():
            if found:
                _warn_of_ends(name, torch.cat(found, 1), sites[name]["value"].dtype)
        return torch.cat(points, 1)

    def pack(self, sites: dict[str, Site], particles: int | None = None) -> Tensor:
        """A model's sites, with values in their supports, as points (K, B, d)."""
        parts = [self._numbers(sites[slot.name], particles or self.particles) for slot in self.slots]
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], -1)

    def unpack(self, u: Tensor) -> dict[str, Tensor]:
        """Each site's part of u (K, B, d), shaped as the site but without constraints."""
        found = {}
        for slot, part in zip(self.slots, u.split(self.sizes, -1), strict=True):
            part = part.reshape(*u.shape[:2], *slot.rest)
            if self.particles == 1:
                part = part.squeeze(0)
                found[slot.name] = part.squeeze(0) if self.whole else part.movedim(0, slot.batch + self.traces.dim)
            elif self.whole:
                found[slot.name] = part.squeeze(1).movedim(0, slot.batch - 1 - self.nesting)
            else:
                to = (slot.batch - 1 - self.nesting, slot.batch + self.traces.dim)
                found[slot.name] = part.movedim((0, 1), to)
        return found

    def terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The base's log-density, and that of p(x, z) less the base's: (K, B) each, nats, differentiable."""
        with pyro.validation_enabled(False):
            with vectorized(self.particles, self.nesting):
                run = Unconstrained(self.model, self.unpack(u))
                sites = self._sites(run)
                guide = Collect(self.guide, sites)(*self.data) if self.guide is not None else {}
            prior = [log_prob(sites[slot.name], self.traces) for slot in self.slots]
            change = [self.traces.by_datum(value) for value in run.log_dets]
            likelihood = [
                log_prob(site, self.traces) for _, site in sites_of(sites, observed=True) if site["is_observed"]
            ]
            if self.guide is None:
                return total([*prior, *change]), total(likelihood)
            base = total([log_prob(guide[slot.name], self.traces) for slot in self.slots])
            ratio = total([*prior, *likelihood]) - base
            return total([base, *change]), ratio

    def __call__(self, u: Tensor) -> State:
        """The state at u (K, B, d): both densities, and the gradient of each, from one run of the programs."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            base, ratio = self.terms(u)
            # One by one, so that the gradient at any temperature is at hand without another run.
            base_grad, ratio_grad = _gradient(base, u), _gradient(ratio, u)
        return State(*(value.detach() for value in (u, base, ratio, base_grad, ratio_grad)))

    def _check(self, traces: Traces, validated: frozenset[str], first: int) -> None:
        """Refuse data that cannot be scored, or have no gradient."""
        if not self.whole:
            check_whole(traces, len(self.data[0]))
        if validated:
            outside = outside_support(traces, validated)
            check_supports(self.model, self.guide or (lambda *_: None), self.data, outside, first)
        for name, site in sites_of(traces.model, observed=True):
            if site["is_observed"] and not site["value"].isfinite().all():
                datum = ""
                if traces.dim is not None:
                    rows = site["value"].movedim(site["value"].dim() - site["fn"].event_dim + traces.dim, 0)
                    datum = f"datum {first + int((~rows.isfinite()).flatten(1).any(1).nonzero()[0])}: "
                raise InputError(
                    f"{datum}site '{name}': found a value that is not finite, which has no gradient,"
                    " under a mask either: expected finite ones: where a mask leaves them out, any such as 0"
                )

    def _run(self, part: slice) -> tuple[dict[str, Site], dict[str, Site]]:
        """The latent sites as drawn from the base, and all the model's on what was drawn, for some of the data."""
        data = self.data if self.whole else tuple(value[part] for value in self.data)
        with pyro.validation_enabled(False), vectorized(self.particles, self.nesting):
            found = Collect(self.guide)(*data) if self.guide is not None else {}
            check_auxiliary(found)
            drawn = dict(sites_of(found))
            sites = Collect(self.model, drawn)(*data)
        return drawn or dict(sites_of(sites)), sites

    def _sites(self, run: Unconstrained) -> dict[str, Site]:
        """The model's sites where a chain has got to."""
        try:
            return run(*self.data)
        except torch.linalg.LinAlgError as error:
            raise InputError(
                f"model{written_at(error)}: {str(error).partition(':')[0]} fails where a chain of annealing got"
                " to: expected a density, or NaN, at any values of its latents: take the factor of"
                " torch.linalg.cholesky_ex, NaN where it tells that it failed, as scale_tril"
            ) from error

    def _slot(self, name: str, site: Site) -> _Slot:
        batch = site["value"].dim() - site["fn"].event_dim
        slot = _Slot(name, batch, torch.Size())
        return slot._replace(rest=self._numbers(site, self.particles).shape[2:])

    def _numbers(self, site: Site, particles: int) -> Tensor:
        """A site's value without constraints, particles and data first: (K, B, *rest)."""
        return self._first(numbers_of(site), site["value"].dim() - site["fn"].event_dim, particles)

    def _at_an_end(self, site: Site) -> list[Tensor]:
        """Which of a site's draws lie at an end of what their type holds, (K, B) bool; nothing where there is none."""
        found = at_an_end(site)
        if found is None:
            return []
        found = self._first(found, site["value"].dim() - site["fn"].event_dim, self.particles)
        return [found.reshape(*found.shape[:2], -1).any(-1)]

    def _first(self, value: Tensor, batch: int, particles: int) -> Tensor:
        """A value with so many batch dimensions, particles and data first: (K, B, ...)."""
        if self.whole:
            return (value.unsqueeze(0) if particles == 1 else value.movedim(batch - 1 - self.nesting, 0)).unsqueeze(1)
        data = batch + self.traces.dim
        if particles == 1:
            return value.movedim(data, 0).unsqueeze(0)
        return value.movedim((batch - 1 - self.nesting, data), (0, 1))

    def _counted(self, sites: dict[str, Site]) -> Tensor | None:
        """Which numbers of the points no mask leaves out, (K, B, d) bool; None where there is no mask."""
        found = [counted(sites[slot.name]) for slot in self.slots]
        if all(mask is None for mask in found):
            return None
        parts = []
        for slot, mask in zip(self.slots, found, strict=True):
            value = sites[slot.name]["value"]
            mask = value.new_ones((), dtype=torch.bool) if mask is None else mask
            mask = mask.reshape(*[1] * (value.dim() - mask.dim()), *mask.shape)
            mask = self._first(
                mask.expand(*value.shape[: slot.batch], *mask.shape[slot.batch :]), slot.batch, self.particles
            )
            mask = mask.expand(*mask.shape[:2], *slot.rest)
            parts.append(mask.reshape(*mask.shape[:2], -1))
        return torch.cat(parts, -1)


def simulate(
    model: Program, x: Tensor, y: Tensor | None = None, *, noise: Noise
) -> tuple[Tensor, list[dict[str, Site]]]:
    """Draw latents and data from a model: data in the shape of x (B, *shape), and the latent sites of each cell.

    Args:
        model: p(x, z), a Pyro program of x, or of (x, y) if there are labels. Its one observed site is drawn, in place
            of x; nothing else in it may depend on x's values.
        x: its shape, dtype and device are those of the data to come.
        y: labels (B,) or None.
        noise: what to draw from.

    Raises:
        InputError: a factor; observed sites other than one; data of another shape than x.

    >>> from pvae.exact import LinearVAE
    >>> x, latents = simulate(LinearVAE(4, 2).model, torch.zeros(3, 4), noise=Noise((0,), 0, 3, "cpu"))
    >>> x.shape, latents[0]["z"]["value"].shape
    (torch.Size([3, 4]), torch.Size([3, 2]))
    """
    data = (x,) if y is None else (x, y)
    drawn, latents = [], []
    with torch.no_grad(), forked(x.device), pyro.validation_enabled(False):
        for cell in noise.seeded():
            part = tuple(value[cell] for value in data)
            found = Collect(poutine.uncondition(model))(*part)
            check_factors(found, "pvae.ais.ais counts factors, and bounds log p from below")
            sites = dict(sites_of(found))
            names = [name for name, site in sites.items() if "was_observed" in site["infer"]]
            if len(names) != 1:
                raise InputError(
                    f"model: found observed sites {', '.join(names) or '(none)'}, expected one to simulate"
                )
            value = sites.pop(names[0])["value"]
            if value.shape != part[0].shape:
                raise InputError(
                    f"site '{names[0]}': simulated data of shape {tuple(value.shape)}, expected that of x,"
                    f" {tuple(part[0].shape)}"
                )
            kept = value.to(x.dtype)
            if not x.is_floating_point() and not torch.equal(kept, value):
                raise InputError(
                    f"site '{names[0]}': simulates numbers that {x.dtype} does not hold, expected data that it does:"
                    " pass x of the dtype of the site's values"
                )
            drawn.append(kept)
            latents.append(sites)
    return torch.cat(drawn), latents


def _gradient(value: Tensor, u: Tensor) -> Tensor:
    """Of a sum of values with respect to u: zero where they don't depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(u)
    return torch.autograd.grad(value.sum(), u, retain_graph=True, materialize_grads=True)[0]


def _warn_of_ends(name: str, found: Tensor, dtype: torch.dtype) -> None:
    """Say where more draws than by chance lie at an end of what their type holds: annealing knows too little there."""
    few = FEW * found.numel()
    if found.sum() > max(1, few + 3 * few**0.5):
        wider = "" if dtype is torch.float64 else "give data and parameters in float64, or "
        warnings.warn(
            f"site '{name}': more than {FEW:.0%} of the starting draws are closer to an end of the support than {dtype}"
            f" tells apart: estimates may be off by as much or more, and above log p: {wider}draw the logit or the"
            " logarithm in its place",
            stacklevel=outside(),
        )


def _bare(sites: dict[str, Site]) -> dict[str, Site]:
    """Sites without what takes memory: values and distributions."""
    kept = ("infer", "is_observed", "cond_indep_stack", "scale")
    return {name: {"fn": None, **{key: site[key] for key in kept}} for name, site in sites_of(sites, True)}
