"""How far numbers can be trusted: Pareto k-hat of importance weights, paired differences, mutual information."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from . import programs
from .errors import InputError, whole_number
from .means import mean_and_se
from .noise import CELL, Noise, forked
from .programs import NoInverse as NoInverse
from .programs import Program, Site, counted, data_plate
from .replay.turns import taken_in_turn

SMALLEST = 6
"""Draws in a tail that is fitted, at least."""
FEWEST = 5 * SMALLEST
"""Draws of which a fifth, the tail, are so many."""
PAIRS, NUMBERS = 2**17, 2**23
"""Of a draw and a datum that are scored at once, at most, and numbers in their draws: more are no faster."""


def khat(log_w: Tensor, chunk: int = 256) -> Tensor:
    """Pareto k-hat for each datum, (N,), float64: the shape of the tail of its S importance weights.

    1/k moments of the weights exist. Below `khat_threshold` estimates from S draws can be relied on; from 1 the mean
    itself is infinite. It is an estimate too: at S = 1,000 to 5,000 it spreads by 0.1 to 0.17.

    A tail of equal weights (equal but for rounding in float32: the guide is exact) has -inf; one of fewer than 6 draws
    above the rest, or that cannot be fitted, inf.

    Args:
        log_w: (S, N), nats, S at least 30.
        chunk: how many data are looked at at once: it bounds the memory.

    Raises:
        InputError: too few draws; NaN or infinite weights (which datum); all weights of a datum zero.

    Vehtari, Simpson, Gelman, Yao and Gabry 2024. The same as arviz's, but that 0.23 takes the tail a draw longer where
    its size is rounded, and 1.x fits none whose smallest quarter is of equal weights, as those of discrete latents.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> z = 0.5 * torch.randn(5000, 30)  # a guide of half the posterior's scale: k = 3/4
    >>> round(khat(-z.square() / 2 + (z / 0.5).square() / 2).mean().item(), 2)
    0.71
    >>> khat(torch.zeros(100, 1))
    tensor([-inf], dtype=torch.float64)
    """
    whole_number(1, chunk=chunk)
    if log_w.ndim != 2 or len(log_w) < FEWEST or not log_w.numel():
        raise InputError(f"log_w: found shape {tuple(log_w.shape)}, expected (S, N), S at least {FEWEST} draws, N data")
    parts = [_khat_rows(part.T, start * chunk) for start, part in enumerate(log_w.detach().split(chunk, 1))]
    return torch.cat(parts)


def khat_threshold(draws: int) -> float:
    """The k-hat above which estimates from S draws are not to be relied on: min(1 - 1 / log10 S, 0.7).

    Vehtari, Simpson, Gelman, Yao and Gabry 2024.

    >>> khat_threshold(100), khat_threshold(5000)
    (0.5, 0.7)
    """
    if draws < FEWEST:
        raise InputError(f"draws: found {draws}, expected at least {FEWEST}")
    return min(1 - 1 / math.log10(draws), 0.7)


class Paired(NamedTuple):
    """Differences of two values for the same data."""

    mean: float
    """of a - b, nats"""
    se: float
    """its standard error, NaN for one datum"""
    wins: int
    """data for which a is above b"""
    losses: int
    """data for which it is below"""
    p_value: float
    """of the two-sided exact sign test, ties left out"""


def paired(a: Tensor, b: Tensor) -> Paired:
    """Compare two values (N,) of the same data, datum by datum.

    The sign test asks how likely wins and losses at least as uneven would be if both were equally likely:
    min(1, 2 P(X <= min(wins, losses))), X binomial with probability 1/2.

    Raises:
        InputError: shapes that differ, no data, a value that is not a number.

    >>> paired(torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([0.0, 1.0, 3.0, 7.0]))
    Paired(mean=0.0, se=0.7071067811865476, wins=2, losses=1, p_value=1.0)
    """
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InputError(f"paired: found shapes {tuple(a.shape)} and {tuple(b.shape)}, expected (N,) twice, N above 0")
    difference = a.double() - b.double()
    if difference.isnan().any():
        datum = int(difference.isnan().nonzero()[0])
        raise InputError(f"paired: the difference of datum {datum} is not a number, expected one: leave that datum out")
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return Paired(**mean_and_se(difference), wins=wins, losses=losses, p_value=_sign_test(wins, losses))


@taken_in_turn
def mutual_information(
    guide: Program,
    x: Tensor,
    y: Tensor | None = None,
    *,
    model: Program | None = None,
    plate: str = "",
    samples: int = 1000,
    seed: int = 0,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """What z says of which datum it came from: a value for each of M draws, (M,), float64, whose mean is I(x; z), nats.

    log q(z_i | x_i) - log 1/N sum_n q(z_i | x_n),  z_i ~ q(z | x_i),  x_i the M data chosen

    Its mean estimates, without bias, the information in the guide about the N data given, which is at most log N.
    As an estimate for the distribution that the data are from it is therefore too low where the truth is near log N or
    above. The rate is its sum with KL(q(z) || p(z)), q(z) = 1/N sum_n q(z | x_n): that KL is the rate less this.
    Which latents are masked is part of z: a datum that masks others could not have made it.

    Args:
        guide: q(z|x), a Pyro program of x, or of (x, y) if there are labels.
        x: (N, *shape).
        y: labels (N,) or None.
        model: p(x, z): where several plates hold every latent, its observed sites may show which is the data's.
        plate: its name; needed only where that is not enough.
        samples: M, at most N: data chosen at random.
        seed: of the choice and the draws.
        chunk: how many pairs of a draw and a datum are scored at once: it bounds the memory (default: 131,072, fewer
            where latents have more than 64 numbers).
        progress: called after every block of data with how many are done, and of how many.

    Raises:
        InputError: no data; samples below 1; several plates that the data could be in, or a latent outside; a plate
            that subsamples.
        NoInverse: a flow that scores only what it has just drawn.

    Hoffman and Johnson 2016.

    >>> import pyro.distributions as dist
    >>> def guide(x):  # far apart, so that z tells the datum: log 4
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x, 0.01))
    >>> mutual_information(guide, torch.arange(4.0))
    tensor([1.3863, 1.3863, 1.3863, 1.3863], dtype=torch.float64)
    """
    whole_number(1, samples=samples, chunk=1 if chunk is None else chunk)
    whole_number(0, seed=seed)
    programs.check_named(plate)
    data = programs.given("mutual_information", x, y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:samples].sort().values.to(x.device)
    first = tuple(part[: max(CELL, (chunk or PAIRS) // len(order))] for part in data)
    nesting = programs.whole(lambda *_: None, guide, *first).nesting
    with torch.no_grad(), forked(x.device), pyro.validation_enabled(False):
        pairs = _Pairs(guide, nesting, _plate_of(guide, model, first, plate))
        noise = Noise((seed,), 0, len(order), x.device)
        cells = [pairs.draw(*(part[order[cell]] for part in data)) for cell in noise.seeded()]
        own = torch.cat([programs.total([pairs.by_datum(site) for site in cell.values()]).double() for cell in cells])
        done, every, sites = 0, torch.full_like(own, -math.inf), {name: pairs.joined(name, cells) for name in cells[0]}
        numbers = sum(site["value"].numel() for site in sites.values()) // len(order)
        size = max(1, (chunk or min(PAIRS, NUMBERS // max(1, numbers))) // len(order))
        for part in zip(*(value.split(size) for value in data), strict=True):
            every = every.logaddexp(pairs.log_q(part, sites, len(order)).logsumexp(1))
            done += len(part[0])
            if progress is not None:
                progress(done, len(x))
    return (own - every + math.log(len(x))).cpu()


def _plate_of(guide: Program, model: Program | None, data: tuple[Tensor, ...], plate: str) -> str:
    """The name of the plate that the data are in."""
    latent = dict(programs.sites_of(programs.Collect(guide)(*data)))
    if model is not None:
        sites = dict(programs.sites_of(programs.Collect(model, latent)(*data), observed=True))
    else:  # as if what is observed were beside a latent
        sites = {**latent, "": {**next(iter(latent.values()), {}), "is_observed": True}}
    return data_plate(latent, sites, plate).name


@dataclass(frozen=True)
class _Pairs:
    """A guide's draws, each for a datum of its own, scored for other data."""

    guide: Program
    nesting: int
    plate: str

    def draw(self, *data: Tensor) -> dict[str, Site]:
        """The guide's sites for some data; with which of their numbers count."""
        sites = dict(programs.sites_of(programs.Collect(self.guide)(*data)))
        for name, site in sites.items():
            if site["made"]:
                raise NoInverse(
                    f"site '{name}': made of auxiliary draws, so that it is not known how it scores for one datum what"
                    " it has drawn for another: expected a guide that draws it itself"
                )
        return {name: {**site, "counted": _counted(site)} for name, site in sites.items()}

    def joined(self, name: str, cells: list[dict[str, Site]]) -> Site:
        """A site's draws for the data of several runs."""
        site = cells[0][name]
        dim = self.dim(site) - site["fn"].event_dim
        return {**site, **{key: torch.cat([cell[name][key] for cell in cells], dim) for key in ("value", "counted")}}

    def log_q(self, data: tuple[Tensor, ...], sites: dict[str, Site], draws: int) -> Tensor:
        """The log-density of each draw given each datum, (draws, B), float64; -inf where other numbers count."""
        values, masks = (
            {name: self.as_particles(site, key, len(data[0])) for name, site in sites.items()}
            for key in ("value", "counted")
        )
        given, terms = {name: {"value": value} for name, value in values.items()}, []
        with pyro.plate(programs.PARTICLES, draws, dim=-1 - self.nesting):
            scored = dict(programs.sites_of(programs.Collect(self.guide, given)(*data)))
        for name, site in scored.items():
            other = self.by_pair(masks[name] != _counted(site), site, site["fn"].event_dim).any(-1)
            terms.append(self.by_pair(_log_prob(site), site).sum(-1).masked_fill(other, -math.inf))
        return programs.total(terms).double()

    def as_particles(self, site: Site, key: str, size: int) -> Tensor:
        """A site's draws, one for each datum of its own, as so many particles for each of `size` data."""
        value, event, dim = site[key], site["fn"].event_dim, self.dim(site)
        value = value.reshape(*[1] * (self.nesting + event - value.dim()), *value.shape).unsqueeze(0)
        data = value.dim() - event + dim
        value = value.transpose(0, data)
        return value.expand(*value.shape[:data], size, *value.shape[data + 1 :])

    def by_pair(self, value: Tensor, site: Site, right: int = 0) -> Tensor:
        """A site's numbers, with so many event dimensions, by particle and datum: (draws, B, rest)."""
        value = value.movedim((-1 - self.nesting - right, self.dim(site) - right), (0, 1))
        return value.reshape(*value.shape[:2], -1)

    def by_datum(self, site: Site) -> Tensor:
        """The log-probability of each datum's own draw, (B,), summed over its other plates."""
        value = _log_prob(site).movedim(self.dim(site), 0)
        return value.reshape(len(value), -1).sum(-1)

    def dim(self, site: Site) -> int:
        """The dimension of the data's plate."""
        return next(frame.dim for frame in site["cond_indep_stack"] if frame.name == self.plate)


def _counted(site: Site) -> Tensor:
    """Which of a site's numbers no mask leaves out, in the shape of its value."""
    value, mask = site["value"], counted(site)
    return torch.ones_like(value, dtype=torch.bool) if mask is None else mask.expand_as(value)


def _log_prob(site: Site) -> Tensor:
    value = programs.scored(site)
    return value if site["mask"] is None else scale_and_mask(value, mask=site["mask"])


def _khat_rows(log_w: Tensor, first: int) -> Tensor:
    """K-hat of rows (B, S)."""
    rows = log_w.double()
    high = rows.amax(1, keepdim=True)
    for bad, what in ((rows.isnan() | (rows == math.inf), "NaN or infinite"), (high == -math.inf, "zero, all of them")):
        if bad.any():
            datum = first + int(bad.any(1).nonzero()[0])
            raise InputError(
                f"log_w: the weights of datum {datum} are {what}: expected finite ones: the model diverged"
            )
    tail = min(len(rows[0]) // 5, math.isqrt(9 * len(rows[0])))  # min(S / 5, 3 sqrt(S)), rounded down
    top = (rows - high).topk(tail + 1).values.cpu()  # the tail, and the cutoff below it
    top = top.masked_fill(top < -700, -math.inf)  # nothing, once it is exponentiated
    above = (top > top[:, [tail]]).sum(1)  # the draws that are fitted: fewer where some tie with the cutoff
    # Equal is: down to the cutoff, or down to the last that is fitted, but for rounding.
    last = torch.where(above < SMALLEST, tail, above - 1).unsqueeze(1)
    exact = (-top.gather(1, last) <= 8 * torch.finfo(torch.float32).eps * high.cpu().abs().clamp(min=1)).squeeze(1)
    found = torch.full((len(rows),), math.inf, dtype=torch.float64).masked_fill(exact, -math.inf)
    for size in above[~exact].unique().tolist():
        if size >= SMALLEST:
            these = (above == size) & ~exact
            each = top[these].exp()
            found[these] = _shape((each[:, :size] - each[:, [tail]]).flip(1))
    return found.nan_to_num(math.inf, math.inf, -math.inf)


def _shape(excess: Tensor) -> Tensor:
    """The shape k of the generalized Pareto distribution that excesses (B, n), ascending, are of: (B,).

    1 + k x / sigma = 1 - b x, b averaged over its profile likelihood on a grid (Zhang and Stephens 2009), then k shrunk
    to 1/2 as by ten excesses of that shape (Vehtari et al. 2024, appendix C).
    """
    n = excess.shape[1]
    m = 30 + math.isqrt(n)
    grid = 1 - (m / (torch.arange(1, m + 1) - 0.5).double()).sqrt()
    b = 1 / excess[:, -1:] + grid / (3 * excess[:, [int(n / 4 + 0.5) - 1]])
    k = torch.stack([torch.log1p(-each.unsqueeze(1) * excess).mean(1) for each in b.unbind(1)], 1)
    weight = (n * ((-b / k).log() - k)).softmax(1)
    b = (b * weight).sum(1, keepdim=True)
    return (n * torch.log1p(-b * excess).mean(1) + 10 * 0.5) / (n + 10)


def _sign_test(wins: int, losses: int) -> float:
    n = wins + losses
    i = torch.arange(min(wins, losses) + 1, dtype=torch.float64)
    log_choose = math.lgamma(n + 1) - torch.lgamma(i + 1) - torch.lgamma(n - i + 1)
    return min(1.0, 2 * (log_choose - n * math.log(2)).exp().sum().item())
