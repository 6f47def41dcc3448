"""Runs a Pyro program and collects its sample sites; looks at programs for what is wrong before the work begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import pyro
import torch
import torch.distributions as td
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from torch.nn.utils import parametrize

from ..errors import InputError, fails, written_at
from ..noise import forked
from ..replay.known import recording
from ..replay.values import Untraceable
from ..svi.calls import anew
from ..svi.faults import in_a_line
from ..svi.observed import inner, outside, validated
from .masks import warn_of_unmasked
from .plates import (
    PARTICLES,
    Plate,
    Site,
    check_log_prob,
    check_shapes,
    data_plate,
    is_auxiliary,
    is_subsample,
    is_untraced,
    subsampling,
)

Program = Callable[..., Any]


class Enough(Exception):
    """A run has seen the sites that it is for."""


class Collect(Messenger):
    """Runs a program and collects its sample sites, with the values of another run where it has them.

    What `poutine.trace` and `poutine.replay` do together, without the graph: a step is to be quick. Draws may be
    detached as they are made, before later sites see them; the run may end with the last of some sites. What the model
    observes is none of a guide's sites that runs the model, as Pyro's guide messengers do.
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
        self._auxiliary, self._runs_model = False, isinstance(poutine.unwrap(program), GuideMessenger)

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
        with _unseen():
            Collect(self.program)(*args, **kwargs)

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]]["value"], True

    def _pyro_post_sample(self, msg: Site) -> None:
        if is_untraced(msg) or (self._runs_model and msg["is_observed"]):
            return
        if msg["name"] in self.sites:
            what, do = "site", "names to differ"
            if is_subsample(msg):
                what, do = "plate", "one pyro.plate, made before its first use and entered at each"
            raise InputError(f"{what} '{msg['name']}': found twice in one program: expected {do}")
        auxiliary = is_auxiliary(msg)
        msg["made"] = self._auxiliary and not (auxiliary or msg["is_observed"]) and is_point(msg["fn"])
        self._auxiliary = self._auxiliary or auxiliary
        if self.detach and not msg["is_observed"] and not msg["made"]:
            msg["value"] = msg["value"].detach()
        self.sites[msg["name"]] = msg
        if self.until and self.until <= self.sites.keys():
            raise Enough


class Look(NamedTuple):
    """What a run of both programs tells of them."""

    nesting: int
    """How deep their plates go."""
    validated: frozenset[str]
    """The observed sites whose values are held against a support."""
    factors: dict[str, bool]
    """The guide's sites that are not drawn, as of `pyro.factor`, and whether they are as those of reparameterized
    draws."""
    thin: tuple[str, ...] = ()
    """The plates that subsample, all but that of the data."""


class _Subsampling(Messenger):
    """Notes the plates that subsample."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def _pyro_post_sample(self, msg: Site) -> None:
        if is_subsample(msg) and len(msg["value"]) < msg["fn"].size and msg["name"] not in self.names:
            self.names.append(msg["name"])


@contextmanager
def _unseen() -> Iterator[None]:
    """Within it programs run of which nothing is left: no draws, sites or gradients, nor weights that torch keeps."""
    with forked(), poutine.block(), torch.no_grad(), patch.object(parametrize, "_cache_enabled", 0):
        yield


def look(model: Program, guide: Program, *args: Any, plate: str | None = "", **kwargs: Any) -> Look:
    """Run both programs once for one particle, with Pyro's validation as it is set.

    Draws nothing from the generators that others see. Values and parameters outside their support, and batch dimensions
    that are no plate's, are found here and not in `pvae.programs.trace`: looking at values waits for the device, and of
    as many particles as data shapes do not tell.

    Raises:
        InputError: a value outside the support of its site, a parameter outside its constraint; a log-probability that
            is not of the shape of its plates.
    """
    seen = _Subsampling()
    found, drawn, sites = _look(model, guide, args, kwargs, seen, _scores)
    frame = data_plate(drawn, sites, plate) if drawn and plate is not None else None
    return found._replace(thin=tuple(sorted(set(seen.names) - {frame and frame.name})))


def whole(model: Program, guide: Program, *data: Any, plate: str | None = "") -> Look:
    """As `look` at the first of some data, for programs that are to see all of them; masked values may be anything.

    Of the others the shapes alone are looked at. A program of one weight, plate None, is looked at as it is.

    Raises:
        InputError: as `look` does; a plate that subsamples.
    """
    if plate is None:
        found = look(model, guide, *data, plate=None)
        if found.thin:
            raise subsampling(found.thin[0])
        return found._replace(validated=frozenset())  # all values have just been looked at
    seen = _Subsampling()
    try:
        for part in [[rows[:1] for rows in data]] + [data] * (len(data[0]) > 1):
            shape_of = fits if part is data else partial(_scores, masked=False)
            found, *_ = _look(model, guide, tuple(part), {}, seen, shape_of)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if seen.names and not isinstance(error, InputError):
            raise subsampling(seen.names[0]) from error
        if not (
            isinstance(error, InputError) or part is data or fails(lambda: _look(model, guide, data, {}, seen, fits))
        ):
            raise InputError(
                f"one datum alone: {in_a_line(error) or error}, where all data are taken: values are of each datum:"
                " where data are not apart pass plate=None, for one bound on log p of all"
            ) from error
        raise
    if seen.names:
        raise subsampling(seen.names[0])
    return found


def check_supports(
    model: Program, guide: Program, data: Sequence[torch.Tensor], outside: torch.Tensor, first: int = 0
) -> None:
    """Refuse the first of the data that is outside a support at every draw; waits for the device.

    Args:
        model: the program.
        guide: its guide.
        data: their arguments.
        outside: (B,): 1 for such data.
        first: the number of the first datum.
    """
    if not (found := outside == 1).any():
        return
    datum = int(found.nonzero()[0])
    try:
        whole(model, guide, *(part[datum : datum + 1] for part in data))
        what = "a value outside the support of its site"
    except InputError as error:
        what = str(error)
    raise InputError(f"datum {first + datum}: {what}")


def _look(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seen: _Subsampling,
    shape_of: Callable[[Site], Sequence[int]],
) -> tuple[Look, dict[str, Site], dict[str, Site]]:
    """What there is to see but for `thin`, and the sites of guide and model."""
    if recording():  # the draws would be every later step's, too
        raise Untraceable("programs are run once more, to see how deep their plates go: give it max_plate_nesting")
    with _unseen(), seen:
        drawn = Collect(guide)(*args, **kwargs)
        scored = dict(sites_of(drawn, observed=True))
        sites = dict(sites_of(Collect(model, drawn)(*args, **kwargs), observed=True))
        each = [*scored.values(), *sites.values()]
        nesting = max(
            (-frame.dim for site in each for frame in site["cond_indep_stack"] if frame.vectorized), default=0
        )
        for site in each:
            check_log_prob(site, shape_of(site), 1, nesting)
        warn_of_unmasked(scored, sites)
    factors = {name: getattr(site["fn"], "has_rsample", False) for name, site in scored.items() if site["is_observed"]}
    names = frozenset(name for name, site in sites.items() if validated(site))
    return Look(nesting, names, factors), scored, sites


def _scores(site: Site, masked: bool = True) -> Sequence[int]:
    """The shape of a site's log-probability, whose value validation looks at: of what is masked too, or not."""
    try:
        shape = site["fn"].log_prob(site["value"]).shape
    except ValueError as error:
        shape = fits(site)
        if not masked and outside(site) and not outside(site, masked=False):
            return shape
        raise InputError(f"site '{site['name']}': {outside(site) or in_a_line(error) or error}") from error
    return _masked(site, shape)


def fits(site: Site) -> Sequence[int]:
    """The shape that a site's log-probability is to have, by those of its value and its distribution."""
    fn, value = site["fn"], site["value"].shape
    return _masked(site, fn.batch_shape, value[: len(value) - fn.event_dim])


def _masked(site: Site, *shapes: Sequence[int]) -> Sequence[int]:
    mask = [site["mask"].shape] if isinstance(site["mask"], torch.Tensor) else []
    try:
        return torch.broadcast_shapes(*shapes, *mask)
    except RuntimeError as error:
        found = ", ".join(str(tuple(shape)) for shape in (*shapes, *mask))
        raise InputError(
            f"site '{site['name']}': its distribution, value or mask have batch shapes {found}, expected ones that"
            " broadcast: those of its plates"
        ) from error


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


def is_point(fn: Any) -> bool:
    """Whether a distribution is a point mass, whatever is wrapped round it.

    >>> Delta = pyro.distributions.Delta
    >>> is_point(Delta(torch.zeros(2)).to_event(1).mask(torch.tensor(True)))
    True
    """
    while isinstance(fn := inner(fn), td.TransformedDistribution):
        fn = fn.base_dist
    return isinstance(fn, pyro.distributions.Delta)


def densities(fn: Any) -> Iterator[type]:
    """The classes that say the density of a distribution, and of those that it wraps or transforms.

    >>> [kind.__module__ for kind in densities(pyro.distributions.FoldedDistribution(pyro.distributions.Normal(0, 1)))]
    ['pyro.distributions.folded', 'torch.distributions.normal']
    """
    while fn is not None:
        yield next((kind for kind in type(fn).__mro__ if "log_prob" in vars(kind)), object)
        fn = vars(fn).get("base_dist")


def is_known(kind: type) -> bool:
    """Whether a density is that of torch's class of the name, of Pyro's form of it, or this package's own."""
    return kind.__module__.startswith(("torch.", "pyro.distributions.torch", "pvae."))


def sites_of(sites: dict[str, Site], observed: bool = False) -> Iterator[tuple[str, Site]]:
    """The latent sites, or all that are scored: not a plate's indices, nor what `pyro.deterministic` writes down."""
    for name, site in sites.items():
        if is_subsample(site) or site["infer"].get("_deterministic"):
            continue
        if observed or not (site["is_observed"] or is_auxiliary(site)):
            yield name, site


def drawn_of(sites: dict[str, Site]) -> Iterator[tuple[str, Site]]:
    """The sites at which a guide draws: auxiliary ones and latents, but for those made of auxiliary ones."""
    for name, site in sites_of(sites, observed=True):
        if not (site["is_observed"] or site.get("made")):
            yield name, site
