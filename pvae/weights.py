"""Log-weights from Pyro traces: log p(x|z), log p(z) and log q(z|x) for each particle and each datum.

Everything else is a function of these. Any (model, guide) pair with a plate of data will do, however many latent
sites it has. The values are unscaled, one a datum; nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from .errors import InputError
from .plates import PARTICLES, Plate, Site, check_shapes, data_plate, written_at
from .svi.calls import anew
from .svi.faults import in_a_line
from .svi.observed import outside

Program = Callable[..., Any]


class LogWeights(NamedTuple):
    """The three terms of the log-weight, each (K, B), nats."""

    likelihood: Tensor
    """log p(x|z)"""
    prior: Tensor
    """log p(z)"""
    posterior: Tensor
    """log q(z|x)"""

    @property
    def log_w(self) -> Tensor:
        """Log p(x, z) - log q(z|x), (K, B)."""
        return self.likelihood + self.prior - self.posterior


class Enough(Exception):
    """A run has seen the sites that it is for."""


class Collect(Messenger):
    """Runs a program and collects its sample sites, with the values of another run where it has them.

    What `poutine.trace` and `poutine.replay` do together, without the graph: a step is to be quick. Draws may be
    detached as they are made, before later sites see them; the run may end with the last of some sites.
    """

    def __init__(
        self,
        program: Program,
        values: dict[str, Site] | None = None,
        detach: bool = False,
        until: Set[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.program, self.values, self.detach, self.until = program, values or {}, detach, until
        self.sites: dict[str, Site] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Site]:
        """Run the program on these arguments; its sites by name."""
        args, kwargs = anew(args, kwargs)
        try:
            with self:
                self.program(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            check_shapes(error, dict(sites_of(self.sites, observed=True)), lambda: self._alone(*args, **kwargs))
            if line := in_a_line(error):
                before = [name for name, _ in sites_of(self.sites, observed=True)]
                where = f"after site '{before[-1]}'" if before else "at the first site"
                raise InputError(f"{where}{written_at(error)}: {line}") from error
            raise
        return self.sites

    def _alone(self, *args: Any, **kwargs: Any) -> None:
        """Run the program for one particle, unseen."""
        with torch.random.fork_rng(devices=cuda_devices()), poutine.block(), torch.no_grad():
            Collect(self.program)(*args, **kwargs)

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]]["value"], True

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["name"] in self.sites:
            raise InputError(f"site '{msg['name']}': found twice in one program: expected names to differ")
        if self.detach and not msg["is_observed"]:
            msg["value"] = msg["value"].detach()
        self.sites[msg["name"]] = msg
        if self.until and self.until <= self.sites.keys():
            raise Enough


@dataclass(frozen=True)
class Traces:
    """A guide's sites and the model's, run on what the guide drew, for K particles."""

    model: dict[str, Site]
    guide: dict[str, Site]
    particles: int
    max_plate_nesting: int
    plate: str = ""
    dim: int = field(init=False)
    size: int = field(init=False)
    scale: float = field(init=False)
    """By how much a sum over the plate's data is scaled: above 1 where the plate subsamples."""

    def __post_init__(self) -> None:
        frame = data_plate(dict(sites_of(self.guide)), dict(sites_of(self.model, observed=True)), self.plate)
        object.__setattr__(self, "dim", frame.dim)
        object.__setattr__(self, "size", frame.size)
        object.__setattr__(self, "scale", (frame.full_size or frame.size) / frame.size)

    def by_datum(self, value: Tensor) -> Tensor:
        """Sum a site's log-probabilities over every plate but the particles' and the data's: (K, B)."""
        if self.max_plate_nesting == 1:
            if value.shape == (self.particles, self.size):
                return value
            if self.particles == 1 and value.shape == (self.size,):
                return value.unsqueeze(0)
        particle = -1 - self.max_plate_nesting
        kept = (particle, self.dim)
        others = [d for d in range(-value.dim(), 0) if d not in kept and value.shape[d] > 1]
        value = value.sum(others, keepdim=True) if others else value
        have = [value.shape[d] if value.dim() >= -d else 1 for d in kept]
        return value.reshape(have).expand(self.particles, self.size)

    def spread(self, value: Tensor) -> Tensor:
        """A value for each particle and datum, (K, B), with a dimension for every plate: `by_datum` gives it back."""
        shape = [self.particles, *[1] * self.max_plate_nesting]
        shape[self.dim] = self.size
        return value.reshape(shape)

    def like(self, value: Tensor, draw: Tensor, event_dim: int) -> Tensor:
        """A value for each particle and datum, (K, B), in a shape that multiplies a site's draw."""
        value = self.spread(value)
        value = value.reshape(*value.shape, *[1] * event_dim)
        return value.reshape(value.shape[max(0, value.dim() - draw.dim()) :])


class Averaged(NamedTuple):
    """A site's posterior mean, as particles have it."""

    mean: Tensor
    """(B, L): averaged over them"""
    square: Tensor
    """(B, L): of its squares; float64, where it is drawn"""
    drawn: bool
    """Whether it differs between them, by their draws of this site or of those before it."""


@dataclass(frozen=True)
class Drawn:
    """A guide's sites for K particles."""

    sites: dict[str, Site]
    particles: int
    max_plate_nesting: int

    def parts(self, size: int) -> Iterator[Drawn]:
        """The same draws in parts of at most `size` particles."""
        if self.particles <= size:
            yield self
            return
        log_q = {name: site["fn"].log_prob(site["value"]) for name, site in sites_of(self.sites)}
        for start in range(0, self.particles, size):
            part = slice(start, min(start + size, self.particles))
            sub = dict(self.sites)
            for name, site in sites_of(self.sites):
                value = self._slice(site["value"], part, site["fn"].event_dim)
                sub[name] = {**site, "value": value, "log_prob": self._slice(log_q[name], part)}
            yield Drawn(sub, part.stop - part.start, self.max_plate_nesting)

    def latent_means(self, dim: int) -> dict[str, Averaged]:
        """The posterior mean of every latent number, by site, for data in the plate at dimension `dim`.

        Averaged over the particles, on which later sites depend; of the draws where a distribution knows no mean.
        """
        means: dict[str, Averaged] = {}
        for name, site in sites_of(self.sites):
            drawn = bool(means)  # of one particle: what came before it may be what it depends on
            try:
                mean = site["fn"].mean
            except NotImplementedError:
                mean, drawn = site["value"], True
            right = site["fn"].event_dim
            mean = mean.movedim(mean.dim() - right + dim, 0)
            particle = mean.dim() - right - self.max_plate_nesting
            if self.particles > 1:
                drawn = particle > 0 and mean.shape[particle] > 1 and mean.stride(particle) > 0
            mean = mean.double() if drawn else mean  # far from 0 squares in float32 tell no small differences
            average = mean.mean(particle) if self.particles > 1 and particle > 0 else mean
            square = mean.square().mean(particle) if self.particles > 1 and drawn else average.square()
            means[name] = Averaged(*(value.reshape(len(value), -1) for value in (average, square)), drawn)
        return means

    def _slice(self, value: Tensor, part: slice, right: int = 0) -> Tensor:
        dim = value.dim() - right - self.max_plate_nesting - 1
        return value[(slice(None),) * dim + (part,)] if dim >= 0 and value.shape[dim] > 1 else value


def draw(
    guide: Program, *args: Any, particles: int = 1, max_plate_nesting: int, detach: bool = False, **kwargs: Any
) -> Drawn:
    """Run the guide for K particles at once; arguments as for `trace`. Draws that are detached carry no gradient."""
    if particles < 1:
        raise InputError(f"particles: found {particles}, expected at least 1")
    with unvalidated(), vectorized(particles, max_plate_nesting):
        return Drawn(Collect(guide, detach=detach)(*args, **kwargs), particles, max_plate_nesting)


def score(model: Program, drawn: Drawn, *args: Any, plate: str = "", **kwargs: Any) -> Traces:
    """Run the model on what a guide drew; arguments as for `trace`."""
    with unvalidated(), vectorized(drawn.particles, drawn.max_plate_nesting):
        sites = Collect(model, drawn.sites)(*args, **kwargs)
    return Traces(sites, drawn.sites, drawn.particles, drawn.max_plate_nesting, plate)


def trace(
    model: Program,
    guide: Program,
    *args: Any,
    particles: int = 1,
    plate: str = "",
    max_plate_nesting: int | None = None,
    **kwargs: Any,
) -> Traces:
    """Run the guide for K particles at once, and the model on what it drew.

    Args:
        model: p(x, z), a Pyro program.
        guide: q(z|x), a Pyro program with the same arguments.
        *args: theirs.
        particles: K, how many draws for each datum.
        plate: the plate whose elements the weights belong to; needed only where there are several.
        max_plate_nesting: how deep the programs' plates go; found out by a run of both if not given.
        **kwargs: theirs.

    Raises:
        InputError: particles below 1; a site outside the plate of data; a site whose log-probability is scaled;
            sites in guide and model that do not match.
    """
    if max_plate_nesting is None:
        max_plate_nesting = inspect(model, guide, *args, **kwargs)
    drawn = draw(guide, *args, particles=particles, max_plate_nesting=max_plate_nesting, **kwargs)
    return score(model, drawn, *args, plate=plate, **kwargs)


def log_weights(
    model: Program,
    guide: Program,
    *args: Any,
    particles: int = 1,
    plate: str = "",
    max_plate_nesting: int | None = None,
    **kwargs: Any,
) -> LogWeights:
    """The log-weights of K draws from the guide; arguments as for `trace`.

    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):  # the exact posterior, so that every weight is p(x)
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
    >>> x = torch.tensor([0.0, 2.0])
    >>> w = log_weights(model, guide, x, particles=3).log_w
    >>> torch.allclose(w, dist.Normal(0.0, 2**0.5).log_prob(x).expand(3, 2))
    True
    """
    traces = trace(model, guide, *args, particles=particles, plate=plate, max_plate_nesting=max_plate_nesting, **kwargs)
    return split(traces)


def split(traces: Traces) -> LogWeights:
    """The log-weights of a pair of traces, split into likelihood, prior and posterior."""
    likelihood, prior = [], []
    with unvalidated():
        for _, site in sites_of(traces.model, observed=True):
            (likelihood if site["is_observed"] else prior).append(log_prob(site, traces))
    return LogWeights(total(likelihood), total(prior), log_q(traces, traces.guide))


def log_q(traces: Traces, sites: dict[str, Site]) -> Tensor:
    """Log q(z|x) of a guide's sites, (K, B), nats."""
    with unvalidated():
        return total([log_prob(site, traces) for _, site in sites_of(sites)])


def log_prob(site: Site, traces: Traces) -> Tensor:
    """One site's log-probability, (K, B), nats: masked, unscaled, summed over its other plates."""
    value = site["log_prob"] if "log_prob" in site else scored(site)
    if site["mask"] is not None:
        value = scale_and_mask(value, mask=site["mask"])
    return traces.by_datum(value)


def scored(site: Site) -> Tensor:
    """A site's own log-probability of its value, in its batch shape, nats."""
    try:
        return site["fn"].log_prob(site["value"])
    except (NotImplementedError, KeyError) as error:  # Pyro's transforms raise either
        raise InputError(
            f"site '{site['name']}': {type(site['fn']).__name__} has no inverse, so that it scores only what it has"
            " just drawn: expected the gradient reparam, or a flow with an inverse"
        ) from error


def rates(traces: Traces) -> dict[str, Tensor]:
    """Each latent site's log q - log p, (K, B), nats: what they sum to is log q(z|x) - log p(z)."""
    with unvalidated():
        return {
            name: log_prob(site, traces) - log_prob(traces.model[name], traces) for name, site in sites_of(traces.guide)
        }


def kl(traces: Traces) -> Tensor:
    """KL(q(z|x) || p(z)) for each datum, (B,): in closed form at each latent site that has one, else by its draws.

    For later sites it is the mean over the draws of the sites before them. See Pyro's `TraceMeanField_ELBO`.
    """
    terms = []
    for name, site in sites_of(traces.guide):
        prior = traces.model[name]
        with unvalidated():
            try:
                value = kl_divergence(site["fn"], prior["fn"])
            except NotImplementedError:
                value = site["fn"].log_prob(site["value"]) - prior["fn"].log_prob(prior["value"])
        if site["mask"] is not None:
            value = scale_and_mask(value, mask=site["mask"])
        terms.append(traces.by_datum(value))
    return total(terms).mean(0)


def unreparameterized(drawn: Drawn) -> list[Site]:
    """The guide's sites whose draws carry no gradient to its parameters (discrete ones, mostly)."""
    return [site for _, site in sites_of(drawn.sites) if not getattr(site["fn"], "has_rsample", False)]


def points(drawn: Drawn) -> list[Site]:
    """The guide's sites that are point masses: they have no density."""
    return [site for _, site in sites_of(drawn.sites) if isinstance(site["fn"], Delta)]


def inspect(model: Program, guide: Program, *args: Any, **kwargs: Any) -> int:
    """Run both programs once with Pyro's validation as it is set: how deep their plates go.

    Draws nothing from the generators that others see. Values and parameters outside their support are found here and
    not in `trace`, because looking at values waits for the device.

    Raises:
        InputError: a value outside the support of its site, a parameter outside its constraint.
    """
    with torch.random.fork_rng(devices=cuda_devices()), poutine.block(), torch.no_grad():
        drawn = Collect(guide)(*args, **kwargs)
        sites = [*sites_of(drawn), *sites_of(Collect(model, drawn)(*args, **kwargs), observed=True)]
        for name, site in sites:
            try:
                site["fn"].log_prob(site["value"])
            except ValueError as error:
                raise InputError(f"site '{name}': {outside(site) or in_a_line(error) or error}") from error
    frames = [frame for _, site in sites for frame in site["cond_indep_stack"] if frame.vectorized]
    return max((-frame.dim for frame in frames), default=0)


def unvalidated() -> AbstractContextManager:
    """Without Pyro's validation, to switch which takes long beside a look whether it is on."""
    on = (
        pyro.distributions.is_validation_enabled()
        or pyro.infer.is_validation_enabled()
        or pyro.poutine.is_validation_enabled()
    )
    return pyro.validation_enabled(False) if on else nullcontext()


def vectorized(particles: int, max_plate_nesting: int) -> AbstractContextManager:
    """A plate of particles on the left of the programs' own; one particle needs no dimension."""
    return Plate(PARTICLES, particles, dim=-1 - max_plate_nesting) if particles > 1 else nullcontext()


def cuda_devices() -> list[int]:
    """The devices whose generator a run may draw from, beside the CPU's."""
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []


def sites_of(sites: dict[str, Site], observed: bool = False) -> Iterator[tuple[str, Site]]:
    """The sites that are random or scored: not a plate's indices, nor what `pyro.deterministic` writes down."""
    for name, site in sites.items():
        if type(site["fn"]).__name__ == "_Subsample" or site["infer"].get("_deterministic"):
            continue
        if observed or not site["is_observed"]:
            yield name, site


def total(terms: list[Tensor]) -> Tensor:
    """The sum of some tensors."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
