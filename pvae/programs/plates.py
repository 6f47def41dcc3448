"""The plates of data and of particles, and the refusal of programs that have no weight for each datum.

Names and sizes only: nothing is read back from the device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import Unit
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.plate_messenger import PlateMessenger
from torch import Tensor

from ..errors import InputError, fails, written_at

Site = dict[str, Any]
"""A sample site as Pyro's handlers see it: name, fn, value, is_observed, mask, scale, cond_indep_stack."""
PARTICLES = "_particles"
"""The plate of the draws; no program has one of that name."""


def is_subsample(site: Site) -> bool:
    """Whether it is the draw of a plate's indices."""
    return type(site["fn"]).__name__ == "_Subsample"


def is_untraced(site: Site) -> bool:
    """Whether it is a draw within a site, whose density that site has: as Pyro's tracing leaves it out."""
    return bool(site["infer"].get("_do_not_trace"))


def is_auxiliary(site: Site) -> bool:
    """Whether it is a draw of the guide's that the model has no use for, but what latents are made of."""
    return bool(site["infer"].get("is_auxiliary")) and not site["is_observed"]


class Plate(PlateMessenger):
    """A `pyro.plate` of all its elements, of which no indices are drawn: what that takes is most of a plate's time.

    >>> import pyro
    >>> with Plate("data", 3):
    ...     pyro.sample("z", pyro.distributions.Normal(0.0, 1.0)).shape
    torch.Size([3])
    """

    def __init__(self, name: str, size: int, dim: int | None = None) -> None:
        IndepMessenger.__init__(self, name, size, dim)
        self.subsample_size = size

    def _process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "module":  # which is in no plate
            super()._process_message(msg)


def data_plate(guide: Mapping[str, Site], model: Mapping[str, Site], plate: str | None = "") -> Any:
    """The frame of the plate of data, checked to hold every site; None where the whole program has one weight.

    Args:
        guide: its sites, latent ones and others.
        model: its sites, latent and observed.
        plate: the name of the plate, needed only where several hold every site; None for one weight of all.

    Raises:
        InputError: sites that do not match or lie outside; several plates to choose from; a scaled log-probability.
    """
    _check_match(guide, model)
    sites = {**{f"{name} (guide)": site for name, site in guide.items()}, **model}
    if plate is None:
        for name, site in sites.items():
            _check_scale(name, site)
        return None
    frames = {
        frame.name: frame
        for site in sites.values()
        for frame in site["cond_indep_stack"]
        if frame.vectorized and frame.name != PARTICLES
    }
    if not plate and len(frames) != 1:
        names = [{frame.name for frame in site["cond_indep_stack"]} for site in sites.values()]
        shared = [name for name in frames if all(name in each for each in names)]
        if len(shared) != 1:
            _check_inside(sites, next(iter(frames), ""))
            both = ", ".join(shared)
            raise InputError(f"plate: found {both}, expected the name of the one that the data are in: pass plate=")
        plate = shared[0]
    plate = plate or next(iter(frames))
    if plate not in frames:
        raise InputError(f"plate: no plate '{plate}' in the programs: found {', '.join(frames) or 'none'}")
    _check_inside(sites, plate)
    for name, site in sites.items():
        _check_scale(name, site)
    return frames[plate]


def check_named(plate: str | None) -> None:
    """Refuse to be asked about a whole program where values for each datum are the answer."""
    if plate is None:
        raise InputError(
            "plate: found None, expected the name of the plate of data, for values are of each datum: bounds of a whole"
            " program are given by pvae.evaluate.evaluate and pvae.ais.ais"
        )


def check_auxiliary(guide: Mapping[str, Site]) -> None:
    """Refuse auxiliary draws of which no latent is made: their density is no part of any latent's.

    Raises:
        InputError: such a draw after which no site is a `Delta`; draws of more numbers than what is made of them has.
    """
    left, drawn, made = "", {}, 0
    for name, site in guide.items():
        left = (left or name) if is_auxiliary(site) else "" if site.get("made") else left
        if is_auxiliary(site):
            drawn[name] = site["value"].numel()
        elif site.get("made"):
            made += site["value"].numel()
    if left:
        raise InputError(
            f"site '{left}': an auxiliary draw of the guide of which no latent is made, so that no bound on log p has"
            " its density: expected pyro.sample(latent, Delta(value, log_density)) after it, the log_density of the map"
            " from draw to value, or the draw as a latent of the model too"
        )
    if sum(drawn.values()) > made:
        raise InputError(
            f"sites {', '.join(drawn)}: found {sum(drawn.values())} numbers of auxiliary draws in the guide, and"
            f" {made} of latents made of them, so that no latent has the density of all draws, and a bound may be above"
            " log p: expected no auxiliary draw that nothing is made of"
        )


def check_factors(model: Mapping[str, Site], do: str) -> None:
    """Refuse a model's factors where it is to draw z and x: drawing site by site leaves them out.

    Args:
        model: its sites.
        do: what to do where there is one.

    Raises:
        InputError: the factor.
    """
    for name, site in model.items():
        if isinstance(site["fn"], Unit):
            raise InputError(
                f"site '{name}': found a factor, which draws of data from the model leave out: they would be those of"
                f" another model: expected one without: {do}"
            )


def _check_match(guide: Mapping[str, Site], model: Mapping[str, Site]) -> None:
    check_auxiliary(guide)
    latents, drawn = ({name for name, site in sites.items() if not site["is_observed"]} for sites in (model, guide))
    drawn -= {name for name, site in guide.items() if is_auxiliary(site)}
    if missing := sorted(latents ^ drawn):
        where = "model" if missing[0] in drawn else "guide"
        raise InputError(f"site '{missing[0]}': missing in the {where}: expected the same latent sites in both")
    for name in [name for name, site in guide.items() if site["is_observed"] and name in model]:
        if not isinstance(guide[name]["fn"], Unit | None):
            raise InputError(
                f"site '{name}': observed in the guide as in the model, and counts against itself: expected a guide"
                " without it: of one that runs the model, as Pyro's guide messengers do, give the messenger itself"
            )
    if not drawn:
        raise InputError("guide: no latent site: expected at least one pyro.sample")
    if len(latents) == len(model):
        raise InputError("model: no observed site: expected one with obs=")


def _check_inside(sites: Mapping[str, Site], plate: str) -> None:
    for name, site in sites.items():
        if plate not in [frame.name for frame in site["cond_indep_stack"]]:
            raise InputError(
                f"site '{name}': outside the plate of data '{plate}': weights belong to data, so a latent shared by all"
                " of them has no bound for each: move the site into the plate, or pass plate=None for one bound on log"
                " p of all data"
            )


def _check_scale(name: str, site: Site) -> None:
    expected = 1.0
    for frame in site["cond_indep_stack"]:
        share = (frame.full_size or frame.size) / frame.size
        if frame.vectorized:
            expected *= share
        elif share > 1:
            raise InputError(
                f"site '{name}': in a loop over plate '{frame.name}', which subsamples: expected one over all of its"
                f" elements, or the sites of all at once, within `with pyro.plate('{frame.name}', ...) as rows:`"
            )
    if isinstance(site["scale"], Tensor) or abs(site["scale"] - expected) > 1e-6 * expected:
        raise InputError(
            f"site '{name}': its log-probability is scaled by {site['scale']}: a bound needs p and q themselves: take"
            " poutine.scale out of the programs and weight the terms in the objective"
        )


def check_log_prob(site: Site, shape: Sequence[int], particles: int, nesting: int) -> None:
    """Refuse a log-probability that is not of the shape of its site's plates, as Pyro's validation does.

    Args:
        site: whose it is.
        shape: its shape. A dimension of size 1 is taken for all of its plate.
        particles: how many there are.
        nesting: how deep the plates of programs go, on the left of which the particles are.
    """
    sizes = {}
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and frame.name == PARTICLES:
            sizes[frame.dim] = particles
        elif frame.vectorized:
            sizes[frame.dim] = frame.size
            if frame.dim < -nesting:
                raise InputError(
                    f"site '{site['name']}': plate '{frame.name}' is at dimension {frame.dim}, where plates go"
                    f" {nesting} deep, as was said or found: give the objective max_plate_nesting={-frame.dim} or more"
                )
    if all(size in (1, sizes.get(dim, 1)) for dim, size in zip(range(-len(shape), 0), shape, strict=True)):
        return
    expected = tuple(sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0))
    mask = site["mask"]
    masked = f" and a mask of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else ""
    wide = particles > 1 and len(shape) > nesting + 1  # which one particle is not
    hint = (
        f", and let shapes broadcast as they are: of {particles} particles, on the left, a latent in no plate has batch"
        f" shape {(particles, *[1] * nesting)}"
    )
    raise InputError(
        f"site '{site['name']}': found a log-probability of shape {tuple(shape)}, from a value of shape"
        f" {tuple(site['value'].shape)}{masked}, where its plates have {expected}: expected no batch dimensions but the"
        f" plates': declare those of one draw by .to_event(1), or squeeze a column of data{hint if wide else ''}"
    )


def subsampling(name: str, what: str = "all of its elements are needed") -> InputError:
    """The refusal of a plate that subsamples."""
    return InputError(f"plate '{name}': it subsamples, where {what}: expected the programs without subsample_size")


def check_shapes(error: Exception, sites: Mapping[str, Site], alone: Callable[[], Any]) -> None:
    """Refuse a program that failed because of its plates; nothing where that was not why.

    Args:
        error: what it raised.
        sites: those that it had got to.
        alone: runs it for one particle.

    Raises:
        InputError: batch dimensions that are no plate's; operations that do not broadcast over the particles (it fails
            for several at once, and not for one).
    """
    collision = re.match(r'at plates "(.+)" and "(.+)", collide at dim=(-\d+)', str(error))
    if collision and PARTICLES in collision.groups():
        name, dim = collision[1 + (collision[1] == PARTICLES)], collision[3]
        raise InputError(
            f"plate '{name}': found at dimension {dim}, where the particles are: plates go deeper than was said or"
            f" found: give the objective max_plate_nesting={-int(dim)} or more"
        ) from error
    mismatch = re.match(r"Shape mismatch inside plate\('(.+)'\) at site (.+) dim (-\d+), (\d+) vs (\d+)", str(error))
    last = next(reversed(sites), "")
    frames = sites[last]["cond_indep_stack"] if last else []
    particles = next((frame.size for frame in frames if frame.name == PARTICLES), 1)
    no_memory = isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error).lower()
    if particles > 1 and not (no_memory or isinstance(error, InputError | torch.linalg.LinAlgError) or fails(alone)):
        shared = [
            name for name, site in sites.items() if all(frame.name == PARTICLES for frame in site["cond_indep_stack"])
        ]
        where, what = written_at(error), _first_line(error)
        outside = (
            f" (site '{shared[0]}' is outside the plate of data: its bound is had by plate=None)" if shared else ""
        )
        raise InputError(
            f"site '{last}': found shape {tuple(sites[last]['value'].shape)} with {particles} particles, which stand on"
            f" the left, and what follows it fails{where} though it does not with one: {what}: expected shapes that"
            " broadcast: count dimensions from the right, as (w * x).sum(-1) in place of x @ w and b[..., i] of b[i],"
            f" and expand what is joined to it{outside}; or use Pyro's own objectives, which can take one particle at a"
            " time"
        ) from error
    if mismatch:
        plate, name, dim, size, have = mismatch.groups()
        raise InputError(
            f"site '{name}': found {have} at dimension {dim} of its batch shape, where plate '{plate}' has {size}:"
            " expected no batch dimensions but the plates': declare those of one draw by .to_event(1)"
        ) from error


def _first_line(error: Exception) -> str:
    return " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())[:200]
