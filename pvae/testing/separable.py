"""Distributions whose numbers are independent: integrals and moments number by number.

With log p(x) = sum_i f_i(x_i), log of the integral is log p(x) + sum_i log int p(x with x_i = v) / p(x) dv for any x:
that it is the same for several x says that the numbers are independent. Each has a density, or few values, or both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.supports import has_levels

POINTS = 2000
CHUNK = 2_000_000
TOLERANCE = 2e-3
OFTEN = 0.01
"""The share of draws that a value has which is a point mass beside a density."""
UNIT = {"unit_interval", "open_unit_interval", "levels", "binary"}


class Grid(NamedTuple):
    """Values of each number, (G, d), and the logarithm of what each counts for in a sum."""

    value: Tensor
    log_weight: Tensor


class Separated(NamedTuple):
    """A distribution whose numbers are independent, taken apart."""

    total: Tensor
    """The logarithm of its integral."""
    error: float
    """How far that is another by way of another draw, as where its numbers are not quite independent."""
    value: Tensor
    """Values of each number, (G, d)."""
    mass: Tensor
    """Their shares of it, (G, d)."""

    @property
    def size(self) -> int:
        """How many numbers there are, d."""
        return self.value.shape[1]


def separate(p: Any, draws: Tensor, support: str) -> Separated | None:
    """The distribution taken apart by way of three of its draws; None where they don't agree."""
    grid = _grid(draws, support)
    moving = draws.flatten(1).std(0) > 0
    totals, log_mass = [], grid.log_weight
    for x in draws[:3]:
        found, log_mass = _log_total(p, x, grid)
        totals.append(found)
        alone = (log_mass > log_mass.amax(0) - 40).sum(0) <= 1  # no other value goes with the other numbers
        apart = bool(found.isfinite()) and max(totals) - min(totals) <= TOLERANCE * grid.value.shape[1]
        if not apart or bool((alone & moving).any()):
            return None
    return Separated(totals[0], float(max(totals) - min(totals)), grid.value, log_mass.softmax(0))


def moments(p: Separated, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of means of test functions of each number, and of pairs; and their standard errors."""
    flat = draws.flatten(1).double()
    center, spread = _place(flat)
    theory, practice = (tested((v - center) / spread) for v in (p.value, flat))
    found = practice.mean(1) - (p.mass * theory).sum(1)
    error = practice.std(1) / len(flat) ** 0.5 + 5e-4
    if not 1 < flat.shape[1] <= 20:
        return found, error
    pairs, pair_errors = _together(flat, center, spread)
    return torch.cat([found.flatten(), pairs]), torch.cat([error.flatten(), pair_errors])


def tested(v: Tensor) -> Tensor:
    """Bounded functions of numbers, (functions, *v)."""
    return torch.stack([v.tanh(), (2 * v).tanh().square(), v.sin(), v.cos(), (2 * v).sin(), (3 * v).cos()])


def _together(flat: Tensor, center: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Covariances of bounded functions of two numbers, which are 0."""
    one = ((flat - center) / spread).tanh()
    one = one - one.mean(0)
    i, j = torch.triu_indices(one.shape[1], one.shape[1], 1)
    products, spreads = one[:, i] * one[:, j], one.std(0)
    deviation = products.std(0).maximum(spreads[i] * spreads[j])  # seen, or expected: rare values seldom meet
    return products.mean(0), deviation / len(flat) ** 0.5 + 1e-6


def _place(flat: Tensor) -> tuple[Tensor, Tensor]:
    quantiles = flat.quantile(torch.tensor([0.16, 0.5, 0.84], dtype=flat.dtype), 0)
    spread = (quantiles[2] - quantiles[0]) / 2
    return quantiles[1], torch.where(spread > 1e-6, spread, flat.std(0, correction=0).clamp(1e-3, 1.0))


def _grid(draws: Tensor, support: str) -> Grid:
    flat = draws.flatten(1).double()
    known = flat[:1000].unique()
    levels = len(known) < 0.5 * min(1000, len(flat))
    if support in ("binary", "counts") or has_levels(support):
        return _levels(flat, known, support) if levels else _smooth(flat, support)
    piled = [atoms(column) for column in flat.unbind(1)]
    if levels and not any(map(len, piled)):
        return _levels(flat, known, support)
    if any(map(len, piled)) or any(map(_graded, flat.unbind(1))):
        return _joined([_column(flat[:, [i]], found, support) for i, found in enumerate(piled)])
    return _smooth(flat, support)


def on_few_values(draws: Tensor) -> bool:
    """Whether draws (N, ...) have few values in every number, and no density beside them.

    >>> on_few_values(torch.bernoulli(torch.full((1000, 2), 0.3))), on_few_values(torch.rand(1000, 2))
    (True, False)
    """
    columns = [column for column in draws.flatten(1).double().unbind(1) if column.std() > 0]
    return len(columns) > 0 and all(_graded(column) and not len(atoms(column)) for column in columns)


def atoms(column: Tensor) -> Tensor:
    """The values that a number takes again and again, beside others that it takes once: a point mass and a density."""
    values, counts = column.unique(return_counts=True)
    often, once = counts > OFTEN * len(column), values[counts == 1]
    beside = len(once) > 0.9 * counts[~often].sum() and (once != once.round()).any()
    rounded = (values != values.round()) & ((values - values.round()).abs() < 1e-6)  # next to the edge of an interval
    return values[often & beside & ~rounded]


def _graded(column: Tensor) -> bool:
    """Whether a number has few values, some way apart, or one."""
    values = column[:1000].unique()
    return len(values) < 0.5 * min(1000, len(column)) and bool((values.diff() > 1e-4).all())


def _column(flat: Tensor, piled: Tensor, support: str) -> Grid:
    """Of one number (N, 1). Of few values those that are seen: what lies beyond may not be asked for."""
    if _graded(flat[:, 0]) and not len(piled):
        rows = flat.unique().unsqueeze(1)
        return Grid(rows, torch.zeros_like(rows))
    if not len(piled):
        return _smooth(flat, support)
    smooth = _smooth(flat[~torch.isin(flat, piled)].unsqueeze(1), support)
    rows = piled.unsqueeze(1)
    return Grid(torch.cat([rows, smooth.value]), torch.cat([torch.zeros_like(rows), smooth.log_weight]))


def _joined(columns: list[Grid]) -> Grid:
    """Side by side; what is short is filled with what counts for nothing."""
    size = max(len(column.value) for column in columns)
    value = [torch.cat([c.value, c.value[-1:].expand(size - len(c.value), -1)]) for c in columns]
    weight = [torch.cat([c.log_weight, c.log_weight.new_full((size - len(c.value), 1), -torch.inf)]) for c in columns]
    return Grid(torch.cat(value, 1), torch.cat(weight, 1))


def _smooth(flat: Tensor, support: str) -> Grid:
    """Of numbers with a density."""
    unit = support in UNIT or bool(((flat >= 0) & (flat <= 1)).all())
    u = (torch.arange(POINTS, dtype=torch.float64).unsqueeze(1) + 0.5) / POINTS
    standard = (torch.pi * (u - 0.5)).tan()  # quantiles of Cauchy's distribution
    log_density = -(torch.pi * (1 + standard.square())).log()
    real = flat.clamp(1e-7, 1 - 1e-7).logit() if unit else flat
    center, spread = _place(real)
    value = center + spread * standard
    log_weight = spread.log() - log_density - torch.tensor(float(POINTS)).log()
    if unit:
        log_weight = log_weight - torch.nn.functional.softplus(value) - torch.nn.functional.softplus(-value)
        value = value.sigmoid()
    return Grid(value, log_weight.expand_as(value))


def _levels(flat: Tensor, known: Tensor, support: str) -> Grid:
    every = flat.unique()
    gaps = every.diff()
    step = gaps[gaps > 1e-4].min() if len(every) > 1 else torch.tensor(1.0)
    step = 1 / (1 / step).round() if step < 1 else step.round()
    span = float(every.max() - every.min()) + 50 * float(step)
    low, high = float(every.min()) - span, float(every.max()) + 2 * span
    if support in UNIT or has_levels(support) or (float(step) < 1 and every.min() >= 0 and every.max() <= 1):
        low, high = 0.0, 1.0
    low = max(low, 0.0) if every.min() >= 0 else low
    count = min(int((high - low) / float(step) + 1.5), 20_000)
    value = low + float(step) * torch.arange(count, dtype=torch.float64)
    value = value.unsqueeze(1).expand(-1, flat.shape[1])
    return Grid(value, torch.zeros_like(value))


def _log_total(p: Any, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The logarithm of the integral by way of x; and of each value's mass, (G, d), up to a constant for each number."""
    d = x.numel()
    here = p.log_prob(x).double()
    rows = max(1, CHUNK // (d * d))
    parts = [_scores(p, x, value) for value in grid.value.split(rows)]
    log_mass = torch.cat(parts).double() + grid.log_weight
    return here + (log_mass - here).logsumexp(0).sum(), log_mass


def _scores(p: Any, x: Tensor, value: Tensor) -> Tensor:
    """log_prob of x with each of its numbers, one at a time, replaced by a value: (g, d)."""
    d = x.numel()
    full = x.flatten().expand(len(value), d, d).clone()
    full.diagonal(dim1=1, dim2=2).copy_(value.to(full.dtype))
    full = full.reshape(len(value), d, *x.shape)
    found = p.log_prob(full)
    try:
        inside = p.support.check(full)
    except (NotImplementedError, AttributeError):
        return found
    while inside.dim() > found.dim():  # a support that speaks of single numbers
        inside = inside.all(-1)
    return torch.where(inside, found, -torch.inf)
