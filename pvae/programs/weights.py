"""Log-weights from Pyro traces: log p(x|z), log p(z) and log q(z|x) for each particle and each datum.

Everything else is a function of these. Any (model, guide) pair with a plate of data will do, however many latent
sites it has; or any at all, with one weight for the whole program. The values are unscaled, one a datum; nothing here
waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ..errors import InputError
from ..replay.turns import taken_in_turn
from ..svi.observed import inside_by_element
from .collect import Collect, Look, Program, drawn_of, fits, look, sites_of, unvalidated, vectorized
from .masks import counted, unmasked
from .plates import Site, check_log_prob, data_plate, is_auxiliary, subsampling


class NoInverse(InputError):
    """A distribution that scores only what it has just drawn."""


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


@dataclass
class Traces:
    """A guide's sites and the model's, run on what the guide drew, for K particles."""

    model: dict[str, Site]
    guide: dict[str, Site]
    particles: int
    max_plate_nesting: int
    plate: str | None = ""
    args: tuple[Any, ...] = ()
    """The arguments that both programs ran on, as x and y, and those by name."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = field(init=False)
    """That of the plate of data; None, as its dimension, where the whole program has one weight: B is 1 then."""
    dim: int | None = field(init=False)
    size: int = field(init=False)
    scale: float = field(init=False)
    """By how much a sum over the plate's data is scaled: above 1 where the plate subsamples."""
    shape: tuple[int, ...] = field(init=False)
    """That of a value for each particle and datum, where there are no other plates; else empty."""

    def __post_init__(self) -> None:
        guide, model = (dict(sites_of(sites, observed=True)) for sites in (self.guide, self.model))
        frame = data_plate(guide, model, self.plate)
        self.name = frame and frame.name
        self.dim = frame and frame.dim
        self.size = frame.size if frame else 1
        self.scale = (frame.full_size or frame.size) / frame.size if frame else 1.0
        shape = (self.size,) if self.particles == 1 else (self.particles, self.size)
        self.shape = shape if self.max_plate_nesting == 1 else ()

    def by_datum(self, value: Tensor) -> Tensor:
        """Sum a site's log-probabilities over every plate but the particles' and the data's: (K, B)."""
        if self.shape and value.shape == self.shape:
            return value if self.particles > 1 else value.unsqueeze(0)
        particle = -1 - self.max_plate_nesting
        kept = (particle,) if self.dim is None else (particle, self.dim)
        others = [d for d in range(-value.dim(), 0) if d not in kept and value.shape[d] > 1]
        value = value.sum(others, keepdim=True) if others else value
        have = [value.shape[d] if value.dim() >= -d else 1 for d in kept]
        return value.reshape(have if self.dim is not None else (*have, 1)).expand(self.particles, self.size)

    def scaled(self, site: Site, value: Tensor) -> Tensor:
        """A site's log-probability, scaled for the plates that subsample, but for that of the data."""
        return site["scale"] / self.scale * value if self.thins(site) else value

    def thins(self, site: Site) -> bool:
        """Whether a site is in a plate that subsamples, other than that of the data."""
        return site["scale"] != self.scale and abs(site["scale"] / self.scale - 1) > 1e-9

    def spread(self, value: Tensor) -> Tensor:
        """A value for each particle and datum, (K, B), with a dimension for every plate: `by_datum` gives it back."""
        shape = [self.particles, *[1] * self.max_plate_nesting]
        if self.dim is not None:
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
        sites = dict(sites_of(self.sites, observed=True))
        log_q = {name: site["fn"].log_prob(site["value"]) for name, site in sites.items()}
        for start in range(0, self.particles, size):
            part = slice(start, min(start + size, self.particles))
            sub = dict(self.sites)
            for name, site in sites.items():
                value = self._slice(site["value"], part, site["fn"].event_dim)
                mask = self._slice(site["mask"], part) if isinstance(site["mask"], Tensor) else site["mask"]
                sub[name] = {**site, "value": value, "mask": mask, "log_prob": self._slice(log_q[name], part)}
            yield Drawn(sub, part.stop - part.start, self.max_plate_nesting)

    def latent_means(self, dim: int | None) -> dict[str, Averaged]:
        """The posterior mean of every latent number, by site, for data in the plate at dimension `dim`; or for all.

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
            particle = mean.dim() - right - self.max_plate_nesting
            mean = mean.unsqueeze(0) if dim is None else mean.movedim(mean.dim() - right + dim, 0)
            if self.particles > 1:
                drawn = particle > 0 and mean.shape[particle] > 1 and mean.stride(particle) > 0
            drawn = drawn or bool(site.get("made"))
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


def score(model: Program, drawn: Drawn, *args: Any, plate: str | None = "", **kwargs: Any) -> Traces:
    """Run the model on what a guide drew; arguments as for `trace`."""
    with unvalidated(), vectorized(drawn.particles, drawn.max_plate_nesting):
        sites = Collect(model, drawn.sites)(*args, **kwargs)
    return Traces(sites, drawn.sites, drawn.particles, drawn.max_plate_nesting, plate, args, kwargs)


def trace(
    model: Program,
    guide: Program,
    *args: Any,
    particles: int = 1,
    plate: str | None = "",
    max_plate_nesting: int | None = None,
    **kwargs: Any,
) -> Traces:
    """Run the guide for K particles at once, and the model on what it drew.

    Args:
        model: p(x, z), a Pyro program.
        guide: q(z|x), a Pyro program with the same arguments.
        *args: theirs.
        particles: K, how many draws for each datum.
        plate: the plate whose elements the weights belong to, needed only where there are several; None where the
            whole program is to have one weight, B = 1, as it must where data share a latent.
        max_plate_nesting: how deep the programs' plates go; found out by a run of both if not given, which a loss that
            is to be replayed cannot do.
        **kwargs: theirs.

    Raises:
        InputError: particles below 1; a site outside the plate of data; a site whose log-probability is scaled;
            sites in guide and model that do not match.
    """
    if max_plate_nesting is None:
        max_plate_nesting = look(model, guide, *args, plate=plate, **kwargs).nesting
    drawn = draw(guide, *args, particles=particles, max_plate_nesting=max_plate_nesting, **kwargs)
    return score(model, drawn, *args, plate=plate, **kwargs)


@taken_in_turn
def log_weights(
    model: Program,
    guide: Program,
    *args: Any,
    particles: int = 1,
    plate: str | None = "",
    max_plate_nesting: int | None = None,
    **kwargs: Any,
) -> LogWeights:
    """The log-weights of K draws from the guide; arguments as for `trace`.

    Raises:
        InputError: as `trace` does; a plate, other than that of the data, that subsamples.

    >>> import pyro, torch
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
    for _, site in sites_of(traces.model, observed=True):
        if traces.thins(site):
            thin = next(
                f.name for f in site["cond_indep_stack"] if f.name != traces.name and f.full_size not in (None, f.size)
            )
            raise subsampling(thin, "weights of draws are wanted")
    return split(traces)


def split(traces: Traces) -> LogWeights:
    """The log-weights of a pair of traces, split into likelihood, prior and posterior."""
    likelihood, prior = [], []
    with unvalidated():
        for _, site in sites_of(traces.model, observed=True):
            (likelihood if site["is_observed"] else prior).append(log_prob(site, traces))
    return LogWeights(total(likelihood), total(prior), log_q(traces, traces.guide))


def log_q(traces: Traces, sites: dict[str, Site], made: bool = True) -> Tensor:
    """Log q(z|x) of a guide's sites and of its factors, (K, B), nats.

    Latents that are made of auxiliary draws may be left out, which leaves the density of these draws.
    """
    with unvalidated():
        scored = [site for _, site in sites_of(sites, observed=True) if made or not site.get("made")]
        return total([log_prob(site, traces) for site in scored])


def unscored(traces: Traces) -> Tensor | None:
    """The log-density of what the guide drew and masks leave out of log q, (K, B), nats; None where nothing is masked.

    The score of such draws is the guide's too, where the rest of a program sees them.
    """
    masked = [site for _, site in drawn_of(traces.guide) if counted(site) is not None]
    if not masked:
        return None
    with unvalidated():
        full = [log_prob({**site, "fn": unmasked(site["fn"]), "mask": None}, traces) for site in masked]
        return total(full) - total([log_prob(site, traces) for site in masked])


def made_of(drawn: Drawn) -> list[Site]:
    """The latents that are made of auxiliary draws: point masses, with the density of what makes them."""
    return [site for _, site in sites_of(drawn.sites) if site.get("made")]


def log_prob(site: Site, traces: Traces) -> Tensor:
    """One site's log-probability, (K, B), nats: masked, summed over its other plates.

    Scaled up where one of these subsamples, and not where the plate of data does.
    """
    try:
        value = site["log_prob"] if "log_prob" in site else scored(site)
    except RuntimeError:  # shapes that do not broadcast, mostly
        check_log_prob(site, (), traces.particles, traces.max_plate_nesting)
        check_log_prob(site, fits(site), traces.particles, traces.max_plate_nesting)
        raise
    if site["mask"] is not None:
        value = scale_and_mask(value, mask=site["mask"])
    if value.shape != traces.shape:
        check_log_prob(site, value.shape, traces.particles, traces.max_plate_nesting)
    return traces.by_datum(traces.scaled(site, value))


def scored(site: Site) -> Tensor:
    """A site's own log-probability of its value, in its batch shape, nats."""
    try:
        return site["fn"].log_prob(site["value"])
    except (NotImplementedError, KeyError) as error:  # Pyro's transforms raise either
        raise NoInverse(
            f"site '{site['name']}': {type(site['fn']).__name__} has no inverse, so that it scores only what it has"
            " just drawn: expected a flow with an inverse, or, for training, the gradient reparam"
        ) from error


def rates(traces: Traces) -> dict[str, Tensor]:
    """Each latent site's log q - log p, (K, B), nats: what they sum to is log q(z|x) - log p(z).

    That of an auxiliary draw is in the rate of the next latent, as it is made of it.
    """
    found, before = {}, []
    with unvalidated():
        for name, site in sites_of(traces.guide, observed=True):
            if is_auxiliary(site):
                before.append(log_prob(site, traces))
            elif not site["is_observed"]:
                found[name] = total([*before, log_prob(site, traces)]) - log_prob(traces.model[name], traces)
                before.clear()
    return found


def look_at(traces: Traces) -> Look:
    """As `look`, of programs that have been run: all but which sites are validated."""
    guide = dict(sites_of(traces.guide, observed=True))
    thinned = [site for site in (*guide.values(), *traces.model.values()) if traces.thins(site)]
    frames = [frame for site in thinned for frame in site["cond_indep_stack"] if frame.name != traces.name]
    thin = {frame.name for frame in frames if (frame.full_size or 0) > frame.size}
    factors = {name: getattr(site["fn"], "has_rsample", False) for name, site in guide.items() if site["is_observed"]}
    return Look(traces.max_plate_nesting, frozenset(), factors, tuple(sorted(thin)))


def outside_support(traces: Traces, names: Iterable[str]) -> Tensor:
    """Which data have, in sites of these names, values outside the support, whatever is drawn: (B,), 1 or 0.

    Those that a mask leaves out may be anything.
    """
    found = total([traces.by_datum((~inside_by_element(traces.model[name])).float()) for name in names])
    return (found.amin(0) > 0).float()


def check_whole(traces: Traces, size: int) -> None:
    """Refuse programs whose plate of data does not hold as many as they are given."""
    if traces.size != size:
        raise InputError(
            f"plate '{traces.name}': found {traces.size} elements for {size} data, expected one for each: name the"
            " plate of data by plate=, and take its size from the data"
        )


def unreparameterized(drawn: Drawn) -> list[Site]:
    """The guide's sites whose draws carry no gradient to its parameters (discrete ones, mostly)."""
    return [site for _, site in drawn_of(drawn.sites) if not getattr(site["fn"], "has_rsample", False)]


def total(terms: list[Tensor]) -> Tensor:
    """The sum of some tensors."""
    return sum(terms[1:], terms[0])
