"""Bounds and diagnostics for each datum, from one set of draws; memory bounded, whatever the number of draws.

Draws are made from the guide in cells of `CELL` data by some particles, each from a seed of its own, and scored by the
model in chunks. So the numbers depend on the seed and the kind of device, on the size of the chunks by rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import bounds, diagnostics, programs
from .cells import CELL, Cells, Kept, chunk_of
from .diagnostics import FEWEST
from .errors import InputError, whole_number
from .frozen import frozen
from .means import mean_and_se, standard_error, with_error
from .noise import forked
from .programs import LogWeights, Look, Program
from .replay.turns import taken_in_turn

BOUNDS = "bounds on log p(x)"
NO_BOUNDS = "no bounds on log p(x): the guide is a point mass, and they are log p(x, z) at its point"
"""What the numbers are, with a guide that has a density and without."""
UNUSED = "no latent unit is active: fit with more --epochs, or try --objective.warmup"
"""What is said of a model that has none."""
SEVERAL = 20
"""Groups whose spread alone tells the error of their mean."""
AT_ONCE = 2**16
"""Log-weights that are reduced at once, if they are of more than one cell: each reduction is many small operations."""


class Layer(NamedTuple):
    """What is found of one latent site."""

    rate: Tensor
    """(N,): its log q - log p, averaged over the draws: for z1, ..., zL they sum to the rate of all."""
    variance: Tensor
    """(l,): variance over the data of its posterior mean, for each of its dimensions; see `Evaluation`."""
    se: Tensor
    """(l,): its Monte Carlo standard error, 0 where the mean is known."""

    @property
    def active_units(self) -> int | None:
        """As `Evaluation.active_units`."""
        return active_units(self.variance, self.se)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What `evaluate` found, for each of N data; all on the CPU in float64, nats. Prints as means and errors."""

    elbo: Tensor
    """(N,): the mean of log w over the draws."""
    iw: dict[int, Tensor]
    """(N,) for each K: the importance-weighted bound, averaged over disjoint groups of K draws."""
    rate: Tensor
    """(N,): log q(z|x) - log p(z), averaged: a Monte Carlo estimate of KL(q(z|x) || p(z))."""
    distortion: Tensor
    """(N,): -log p(x|z), averaged. ELBO = -(rate + distortion)."""
    ess: Tensor
    """(N,): effective sample size of all the weights, 1 / sum w^2 for weights that sum to one."""
    latent_variance: Tensor
    """(L,): variance over the data of the posterior mean, for each latent dimension, site by site as the guide draws
    them; NaN of a latent without a mean, as a class is. Where the mean is an average of draws (of a flow, of a layer
    given those before it), their noise is taken out: the estimate is unbiased, and may be below 0; of one draw it is
    NaN."""
    se: dict[str, Tensor]
    """(N,) by column: Monte Carlo standard errors of elbo, iw.K, rate and distortion for each datum, from the spread of
    the draws, or of the groups of K; of fewer than 20 groups, which mostly spread too little, at least what the weights
    in each say (delta method). That alone, of one group, is too low where few of its weights count: see `ess`."""
    draws: int
    khat: Tensor | None = None
    """(N,): Pareto k-hat of all the weights (`pvae.diagnostics.khat`), where it was asked for."""
    layers: dict[str, Layer] = field(default_factory=dict)
    """By latent site, z1 before z2 before z10, where there are several."""
    latent_se: Tensor | None = None
    """(L,): Monte Carlo standard errors of `latent_variance`, 0 where posterior means are known; None: all are."""

    def __repr__(self) -> str:
        errors = {name: se.item() for name, se in self.se.items() if len(se) == 1}  # of one datum: of its draws
        found = self.summary() | {f"rate {name}": value for name, value in self.rates().items()}
        rows = [
            f"{name:<12}{with_error({**value, 'se': errors.get(name, value['se'])}, 12)}"
            for name, value in found.items()
        ]
        shown = units(self.latent_variance, self.latent_se)
        return "\n".join([*rows, f"active units {shown}; {len(self.elbo)} data, {self.draws} draws each"])

    @property
    def active_units(self) -> int | None:
        """Latent dimensions whose posterior mean varies by more than 0.01 (Burda et al. 2015, section 5.2).

        By two standard errors more, where its variance is an estimate; None where no variance is known: of latents
        without a mean, of estimates from one draw. The threshold is meant for a prior of unit scale.
        """
        return active_units(self.latent_variance, self.latent_se)

    def columns(self) -> dict[str, Tensor]:
        """The values for each datum by name: elbo, iw.K, rate, distortion, ess."""
        iw = {f"iw.{k}": value for k, value in self.iw.items()}
        return {"elbo": self.elbo, **iw, "rate": self.rate, "distortion": self.distortion, "ess": self.ess}

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean over the data and its standard error, by column."""
        return {name: mean_and_se(value) for name, value in self.columns().items()}

    def rates(self) -> dict[str, dict[str, float]]:
        """Mean over the data and its standard error of each layer's rate."""
        return {name: mean_and_se(layer.rate) for name, layer in self.layers.items()}


def active_units(variance: Tensor, se: Tensor | None = None) -> int | None:
    """How many of the variances (L,) of posterior means over data are above 0.01, by two standard errors.

    None where an error is NaN, as of one draw, or every variance, as of latents without a mean; else these do not
    count.

    >>> active_units(torch.tensor([0.5, 0.02, torch.nan]), torch.tensor([0.1, 0.01, 0.0]))
    1
    """
    se = torch.zeros_like(variance) if se is None else se
    return None if se.isnan().any() or variance.isnan().all() else int((variance - 2 * se > 0.01).sum())


def units(variance: Tensor, se: Tensor | None = None) -> str:
    """How many of the latent dimensions are active, of those that have a mean.

    >>> units(torch.tensor([1.0, 0.0])), units(torch.tensor([1.0, torch.nan])), units(torch.tensor([torch.nan]))
    ('1 of 2', '1 of 1, 1 without a mean', '- of 1')
    """
    active, without = active_units(variance, se), int(variance.isnan().sum())
    if active is None:
        return f"- of {len(variance)}"
    return f"{active} of {len(variance) - without}" + (f", {without} without a mean" if without else "")


def bits_per_dim(found: Evaluation, volume: float | None, dims: int) -> dict[str, Any]:
    """Of the bound at the largest K: -(bound + D volume) / (D log 2), and its standard error; nothing without levels.

    Args:
        found: bounds in nats for each datum of D dimensions.
        volume: the log of a level's volume in each dimension: 0 of a log-probability of levels, -log 256 of a
            log-density of levels that were dequantized into (0, 1); None where there are no levels.
        dims: D.
    """
    if volume is None:
        return {}
    k = max(found.iw)
    bound, unit = found.summary()[f"iw.{k}"], dims * math.log(2)
    return {"bits_per_dim": {"mean": -(bound["mean"] + dims * volume) / unit, "se": bound["se"] / unit, "K": k}}


@taken_in_turn
def evaluate(
    model: Program,
    guide: Program,
    x: Tensor,
    y: Tensor | None = None,
    *,
    particles: Sequence[int] = (1, 100),
    draws: int | None = None,
    plate: str | None = "",
    seed: int = 0,
    chunk: int | None = None,
    khat: bool = False,
    compile: Literal["off", "graph", "full"] = "graph",
    progress: Callable[[int, int], None] | None = None,
    kept: Kept | None = None,
) -> Evaluation:
    """Evaluate a model and its guide on data.

    Args:
        model: p(x, z), a Pyro program of x, or of (x, y) if there are labels.
        guide: q(z|x), a Pyro program of the same.
        x: (N, *shape), as the likelihood scores them.
        y: labels (N,) or None.
        particles: every K to give the importance-weighted bound at.
        draws: how many draws for each datum, at least the largest K, which is the default; a bound at K is the mean
            over the draws' disjoint groups of K, so more draws mean less Monte Carlo noise.
        plate: the plate of data, needed only where several hold every site; None for one number of each kind, N = 1,
            of the whole program, as where data share latents: bounds on log p of all data.
        seed: of the draws; the generators that others see are left as they are.
        chunk: how many pairs of a particle and a datum are scored at once (at least 128): it bounds the memory. By
            default 4,096 on a CPU, 32,768 on CUDA, fewer of data of more than 1,024 numbers.
        khat: also Pareto k-hat of each datum's weights, from at least 30 draws; a block of data at a time.
        compile: `graph`: the programs are traced once and replayed (the same numbers on a CPU, captured on CUDA);
            `full`: compiled as well, which takes some seconds; `off`: run as they are, as they also are where they
            cannot be traced, where a graph has other numbers, and where there is little to do.
        progress: called after every block of data with how many are done, and of how many.
        kept: graphs of earlier evaluations of these programs, which are used again where all but the values of
            parameters is as it was, and to which this one's are added; the numbers are the same without.

    Raises:
        InputError: no data; labels of another number, or that the programs do not take (the datum and the label); a K
            below 1; fewer draws than the largest K, or than k-hat needs; a value outside the support of its site, but
            for those that a mask leaves out (which datum); a log-weight that is not a number, or infinite; all weights
            of a datum zero (which datum, which term, which site); a plate that subsamples.

    >>> import pvae
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    >>> found = evaluate(vae.model, vae.guide, torch.ones(5, 6), particles=[1, 10])
    >>> found.iw[10].shape, bool((found.iw[10] >= found.elbo).all())
    (torch.Size([5]), True)
    """
    ks, draws = _asked(particles, draws, khat, compile)
    whole_number(0, seed=seed)
    whole_number(1, chunk=1 if chunk is None else chunk)
    data = programs.given("evaluate", x, y)
    parts, drawn, averages, held = [], [], [], []
    together = max(1, AT_ONCE // (CELL * draws))
    with torch.no_grad(), forked(x.device), frozen(None if kept is None else kept.constants):
        size = chunk_of(x) if chunk is None else chunk
        look = programs.whole(model, guide, *data, plate=None) if plate is None else _look(model, guide, *data)
        cell = len(x) if plate is None else CELL
        counts = len(x), draws
        cells = Cells(model, guide, look, plate, counts, cell=cell, chunk=size, compile=compile, kept=kept or Kept())
        for start in range(0, len(x), cell):
            block = tuple(part[start : start + cell] for part in data)
            terms, (outside, *averaged) = cells.draw(block, (seed, start // cell))
            held.append(outside)
            drawn.append(terms)
            averages.append(averaged)
            done = start + len(block[0])
            if len(drawn) == together or done == len(x):
                first = done - sum(map(len, held))
                programs.check_supports(model, guide, [part[first:] for part in data], torch.cat(held), first)
                last = data if plate is None else [part[first:done] for part in data]
                named = {"nesting": look.nesting, "plate": plate, "first": first}
                check = partial(programs.check_weights, "evaluate", pair=(model, guide), data=last, **named)
                parts.append(_reduced(drawn, ks, khat, check))
                drawn.clear()
                held.clear()
            if progress is not None:
                progress(done, len(x))
    columns = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    return _evaluation(columns, ks, draws, _layers(cells, averages, whole=plate is None))


def _asked(particles: Sequence[int], draws: int | None, khat: bool, compile: str) -> tuple[list[int], int]:
    """Every K in order, and how many draws."""
    ks = check_numbers("particles", particles)
    draws = ks[-1] if draws is None else draws
    whole_number(1, draws=draws)
    if draws < ks[-1]:
        raise InputError(f"draws: found {draws}, expected at least the largest K, {ks[-1]}")
    if khat and draws < FEWEST:
        raise InputError(f"draws: found {draws}, expected at least {FEWEST}, as k-hat needs")
    if compile not in ("off", "graph", "full"):
        raise InputError(f"compile: found '{compile}', expected one of off, graph, full")
    return ks, draws


def check_numbers(name: str, particles: Any) -> list[int]:
    """Every K in order; refuse what are no numbers of draws."""
    ks = particles.tolist() if isinstance(particles, Tensor) else particles
    ks = list(ks) if isinstance(ks, Iterable) else ks
    if not ks or not isinstance(ks, list) or not all(isinstance(k, Integral) and k > 0 for k in ks):
        raise InputError(f"{name}: found {ks}, expected a list of whole numbers of draws, each at least 1")
    return sorted(set(ks))


def _evaluation(columns: dict[str, Tensor], ks: Sequence[int], draws: int, layers: dict[str, Layer]) -> Evaluation:
    """What was found, of all data and of each layer."""
    return Evaluation(
        iw={k: columns.pop(f"iw.{k}") for k in ks},
        se={name.removeprefix("se."): columns.pop(name) for name in list(columns) if name.startswith("se.")},
        latent_variance=torch.cat([layer.variance for layer in layers.values()]),
        latent_se=torch.cat([layer.se for layer in layers.values()]),
        layers={name: layers[name] for name in sorted(layers, key=lambda name: (len(name), name)) if len(layers) > 1},
        draws=draws,
        **columns,
    )


def _look(model: Program, guide: Program, x: Tensor, y: Tensor | None = None) -> Look:
    """A look at the first data, and at those of the least and largest label."""
    if y is None or y.is_floating_point() or y.dim() != 1:
        return programs.whole(model, guide, *(part[:CELL] for part in (x, y) if part is not None))
    for row in sorted({0, int(y.long().argmin()), int(y.long().argmax())}):
        try:
            programs.whole(model, guide, x[row : row + 1], y[row : row + 1])
        except (InputError, IndexError) as error:
            raise InputError(f"evaluate: datum {row}, label {y[row]}: {error}") from error
    return programs.whole(model, guide, x[:CELL], y[:CELL])


def _layers(cells: Cells, averages: Sequence[Sequence[Tensor]], whole: bool) -> dict[str, Layer]:
    """Each site's rate and variance, from the averages of each block of data; of a whole program no variance."""
    joined = [torch.cat(values).cpu() for values in zip(*averages, strict=True)]
    several, sites, draws = len(cells.sites), cells.sites, cells.size[1]
    rates = joined[-1].unbind(-1) if several > 1 else [joined[0].new_empty(0)]
    spreads = [
        _spread(mean, square, draws if name in cells.drawn else 0)
        for name, mean, square in zip(sites, joined[:several], joined[several : 2 * several], strict=True)
    ]
    if whole:  # means of one datum vary over none
        spreads = [(torch.full_like(se, math.nan), se) for _, se in spreads]
    return {name: Layer(rate, *spread) for name, rate, spread in zip(sites, rates, spreads, strict=True)}


def _spread(mean: Tensor, square: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """The variance over the data of posterior means (N, l), and its standard error; less the noise of their draws.

    The average of S draws has the variance of one over S beside that of the mean itself. The error is at least what it
    is for normal draws: 4 / N^2 sum (mean - average)^2 noise.
    """
    variance, n = mean.var(0, correction=0), len(mean)
    if not draws:
        return variance, torch.zeros_like(variance)
    if draws == 1:
        return torch.full_like(variance, math.nan), torch.full_like(variance, math.nan)
    noise = (square - mean.square()).clamp(min=0) / (draws - 1)
    apart = (mean - mean.mean(0)).square()
    # a latent without a mean has no error either, whatever the number of draws
    return variance - (1 - 1 / n) * noise.mean(0), 2 * ((apart * noise).mean(0) / n).sqrt().nan_to_num(0.0)


def _reduced(
    drawn: Sequence[LogWeights], ks: Sequence[int], khat: bool, check: Callable[[dict[str, Tensor]], None]
) -> dict[str, Tensor]:
    """The columns of some data, or of a whole program, from the log-weights of one cell after another."""
    terms = LogWeights(*map(_joined, zip(*drawn, strict=True)))
    check({**terms._asdict(), "weight": terms.log_w})
    return _reduce(terms, ks) | ({"khat": diagnostics.khat(terms.log_w.cpu())} if khat else {})


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _reduce(terms: LogWeights, ks: Sequence[int]) -> dict[str, Tensor]:
    log_w = terms.log_w
    log_normalized = log_w - log_w.logsumexp(0)
    means = {
        "elbo": _mean(log_w),
        **{f"iw.{k}": _groups(log_w, k) for k in ks},
        "rate": _mean(terms.posterior - terms.prior),
        "distortion": _mean(-terms.likelihood),
    }
    found = {name: mean for name, (mean, _) in means.items()}
    found |= {f"se.{name}": se for name, (_, se) in means.items()}
    return {**found, "ess": (-(2 * log_normalized).logsumexp(0)).exp()}


def _mean(value: Tensor) -> tuple[Tensor, Tensor]:
    return value.mean(0), standard_error(value)


def _groups(log_w: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The bound at K from all draws: the mean over disjoint groups of K, so that it has the bound's expectation."""
    groups = log_w.shape[0] // k
    each = bounds.grouped(log_w[: groups * k], groups)
    found = bounds.iwae(each)
    if k == 1 or groups >= SEVERAL:
        return _mean(found)
    inverse_ess = each.softmax(0).square().sum(0)
    within = ((k * inverse_ess - 1).clamp(min=0) / (k - 1)).sum(0).sqrt() / groups
    return found.mean(0), within.fmax(standard_error(found))  # which is NaN of one group
