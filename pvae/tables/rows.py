"""The rows of a comparison's tables, as text: what a terminal and a paper show alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from ..comparison import Comparison, Measured
from ..diagnostics import FEWEST, Paired, khat_threshold
from ..evaluate import BOUNDS, UNUSED, Evaluation, bits_per_dim, units
from ..means import FEWEST_OF_TAILS, Estimate


class Row(NamedTuple):
    """A row of a table."""

    quantity: str
    label: str
    cells: dict[str, list[str]]
    """The lines of each model's cell, by its name; numbers as "mean +- standard error"."""


class Table(NamedTuple):
    """Rows that belong together."""

    part: str
    """What they are of, as `Comparison.estimates` calls it, or paired."""
    title: str
    names: list[str]
    """The models that have a column."""
    rows: list[Row]


def label(quantity: str) -> str:
    """How a quantity is called in a table.

    >>> label("iw.500"), label("log_p - elbo"), label("khat.50")
    ('L_500', 'log p(x) - ELBO', 'k-hat, median')
    """
    if " - " in quantity:
        return " - ".join(map(label, quantity.split(" - ")))
    first, _, rest = quantity.partition(".")
    if first == "iw":
        return f"L_{rest}"
    if first == "khat":
        return {"50": "k-hat, median", "above": "k-hat > threshold"}.get(rest, f"k-hat, {rest}%")
    if rest and first in ("approximation", "amortization", "rate"):
        return f"{first}, {rest.replace('_', '-')}"
    known = {"elbo": "ELBO", "ess": "ESS of the weights", "log_p": "log p(x)"}
    known |= {"information": "mutual information", "inference": "log p(x) - ELBO"}
    return known.get(quantity, quantity)


def plus_minus(value: Estimate | Paired, form: str = "") -> tuple[str, str]:
    """A mean and its standard error as text, the error with two significant digits.

    >>> plus_minus(Estimate(-98.96123, 0.2512, 100)), plus_minus(Estimate(3.0, float("nan"), 1))
    (('-98.96', '0.25'), ('3.000', '-'))
    """
    fine = math.isfinite(value.se) and value.se > 0
    decimals = min(max(1 - math.floor(math.log10(value.se)), 0), 8) if fine else 3
    return f"{value.mean:{form}.{decimals}f}", "-" if math.isnan(value.se) else f"{value.se:.{decimals}f}"


def tables(found: Comparison, protocol: dict[str, Any]) -> Iterator[Table]:
    """The tables of a comparison."""
    estimates, names = {name: found.estimates(name) for name in found.models}, list(found.models)
    about = bounds_on(found, protocol)
    for part, title in _titles(found).items():
        values = {name: each[part] for name, each in estimates.items() if part in each}
        if not values:
            continue
        rows = [
            Row(
                key,
                label(key),
                {name: [_cell(key, each, found, protocol)] for name, each in values.items() if key in each},
            )
            for key in _shown(values.values())
        ]
        if part == "test":
            rows = [*_with_left_out(rows, found), *_of_test(found, protocol)]
            rows = [*([Row("", "bounds on", {name: [about[name]] for name in names})] if about else []), *rows]
        yield Table(part, title, names, rows)
    if len(names) > 1:
        title = f"less {names[0]}, paired by datum; below it wins/losses, and p of a two-sided sign test"
        yield Table("paired", title, names[1:], list(_pairs(found, about)))


def _with_left_out(rows: list[Row], found: Comparison) -> list[Row]:
    """A dash for the mutual information of the models that have none."""
    none = {name: ["-"] for name, each in found.models.items() if each.left_out}
    if none and not any(row.quantity == "information" for row in rows):
        rows = [*rows, Row("information", label("information"), {})]
    return [row._replace(cells={**row.cells, **none}) if row.quantity == "information" else row for row in rows]


def bits(found: Comparison, protocol: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Bits a dimension at the largest K of each model that has them: mean, se, K."""
    volumes = protocol.get("level_volume", {})
    every = {
        name: bits_per_dim(each.test, volumes.get(name), protocol.get("dimensions", 1))
        for name, each in found.models.items()
    }
    return {name: each["bits_per_dim"] for name, each in every.items() if each}


def _of_test(found: Comparison, protocol: dict[str, Any]) -> Iterator[Row]:
    """What is no estimate over the test data alone: bits, active units, and the epoch of the weights."""
    if levels := bits(found, protocol):
        cells = {
            name: [" +- ".join(plus_minus(Estimate(v["mean"], v["se"], found.size)))] for name, v in levels.items()
        }
        yield Row("", f"bits / dim, K={max(found.plan.particles)}", cells)
    active = {name: [units(each.test.latent_variance, each.test.latent_se)] for name, each in found.models.items()}
    yield Row("", "active units", active)
    if epochs := protocol.get("epoch"):
        yield Row("", "epoch", {name: [f"{epoch:,}"] for name, epoch in epochs.items()})


def bounds_on(found: Comparison, protocol: dict[str, Any]) -> dict[str, str]:
    """What each model's numbers are bounds on, where that differs: log p(x) or log p(x|y)."""
    about = {name: protocol.get("bounds_on", {}).get(name, "") for name in found.models}
    return about if len(set(about.values())) > 1 and protocol["numbers"] == BOUNDS else {}


def _pairs(found: Comparison, about: dict[str, str]) -> Iterator[Row]:
    first, *others = found.models
    differences = found.differences()
    every = {name: differences[name, first] for name in others}
    if about:
        yield Row("", "bounds on", {name: [about[name], f"less {about[first]}"] for name in others})
    for key in _shown(every.values()):
        cells = {}
        for name, each in every.items():
            if key in each:
                pair = each[key]
                cells[name] = [" +- ".join(plus_minus(pair, "+")), f"{pair.wins}/{pair.losses}, {_p(pair.p_value)}"]
        yield Row(key, label(key), cells)


def _p(value: float) -> str:
    return f"p={value:.{1 if value < 1e-3 else 2}g}" if value >= 1e-300 else "p<1e-300"


def _shown(values: Iterable[Mapping[str, Any]]) -> list[str]:
    """The quantities of any model, in order, without L_1: the ELBO, from the same draws."""
    keys = dict.fromkeys(key for each in values for key in each)
    return [key for key in keys if not key.endswith("iw.1")]


def _cell(key: str, values: Mapping[str, Estimate], found: Comparison, protocol: dict[str, Any]) -> str:
    value = values[key]
    if key.startswith("khat") and protocol["numbers"] != BOUNDS:
        return "-"  # a point mass has no weights
    if key.startswith("khat") and (state := khat_state(value, values["ess"], found)):
        return state
    if key == "khat.above":
        return f"{100 * value.mean:.1f}% +- " + ("-" if math.isnan(value.se) else f"{100 * value.se:.1f}%")
    return " +- ".join(plus_minus(value))


def khat_state(value: Estimate, ess: Estimate, found: Comparison) -> str:
    """What is said of a k-hat in place of a number; nothing where there is one."""
    if not value.n:
        return "no fit"
    if value.mean == -math.inf:  # the largest weights are equal, or all are
        return "exact" if ess.mean > (1 - 1e-6) * found.plan.total else "no tail"
    return ""


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _titles(found: Comparison) -> dict[str, str]:
    """What is above each part that a comparison may have."""
    plan, annealing, train = found.plan, found.plan.annealing, next(iter(found.models.values())).train
    few = f"{len(found.chosen):,} of the test data"
    titles = {"test": "test", "train": "", "difference": "training less test", "exact": "exact", "ais": ""}
    if train is not None:
        titles["train"] = f"training, {len(train.elbo):,} data, {_count(train.draws, 'draw')} each"
    if annealing is not None:
        titles["ais"] = (
            f"annealed importance sampling from the {plan.start}: {few},"
            f" {_count(annealing.temperatures, 'temperature')}, {_count(annealing.chains, 'chain')},"
            f" {_count(annealing.leapfrog, 'leapfrog step')}; log p(x) from below, bounds of these data"
        )
    titles["gap"] = (
        f"inference gap: {few}; ELBO* is that of a guide fitted to each datum alone, approximation log p(x) - ELBO*,"
        " amortization ELBO* - ELBO"
    )
    if any(each.exact is not None for each in found.models.values()):
        titles["gap"] += "; log p(x) is the exact one where it is known"
    return titles


def notes(found: Comparison, protocol: dict[str, Any]) -> Iterator[str]:
    """What the numbers are, in sentences."""
    plan = found.plan
    yield (
        f"{found.size:,} test data of {protocol['data']}, {_drawn(protocol)}; nats / datum, "
        f"mean +- standard error over the data"
    )
    if found.size == 1:
        yield "Of one datum there is no standard error"
    if protocol["numbers"] != BOUNDS:
        yield f"The numbers are {protocol['numbers']}"
    groups = ", ".join(f"{plan.total // k:,} of K={k}" for k in plan.particles)
    drawn = f"{_count(plan.total, 'draw')} for each datum (seed {plan.seed})"
    yield f"{drawn}; L_K is averaged over disjoint groups: {groups}"
    if protocol["numbers"] != BOUNDS:
        yield "Pareto k-hat is not given: a point mass has no weights"
    elif plan.total < FEWEST:
        yield f"Pareto k-hat is not given: it needs at least {FEWEST} draws for each datum"
    else:
        above = f"Pareto k-hat above the threshold, {khat_threshold(plan.total):.2f}"
        yield f"{above}: the bounds of that datum cannot be relied on; no tail: its largest weights are equal"
        if 1 < found.size < FEWEST_OF_TAILS:
            yield "Of so few data there is no standard error of the 10% and 90% quantiles of k-hat"
    if any(each.information is not None for each in found.models.values()):
        drawn = f"Mutual information: from {_count(min(plan.information, found.size), 'draw')}"
        yield f"{drawn}, at most log N = {math.log(found.size):.2f}"
    yield from protocol.get("notes", ())
    for name, each in found.models.items():
        if each.test.latent_se is not None and each.test.latent_se.isnan().any():
            yield f"{name}: its posterior means are averages of draws, of which one says nothing of active units"
        if each.test.active_units == 0:
            yield f"{name}: {UNUSED}"
        if each.left_out:
            yield f"{name}: mutual information is left out: {each.left_out}"
        yield from _not_fitted(name, each.test)
        yield from _below_zero(name, found.estimates(name))
        yield from _worse_than_contained(name, each)


def _drawn(protocol: dict[str, Any]) -> str:
    """What was made of the pixels before they were scored."""
    dequantization = protocol.get("dequantization", "none")
    return f"binarization {protocol['binarization']}" + (
        f", dequantization {dequantization}" if dequantization != "none" else ""
    )


def _not_fitted(name: str, test: Evaluation) -> Iterator[str]:
    """How many data have no k-hat, and what else there is to tell by how good their bounds are."""
    if test.khat is not None and (left := test.khat == math.inf).any():
        data = f"{left.sum():,} of the {len(left):,} data, whose ESS is at least {test.ess[left].min():.1f}"
        yield f"{name}: {data}, are left out of k-hat: it could not be fitted, as few of their weights exceed the rest"


def _worse_than_contained(name: str, found: Measured) -> Iterator[str]:
    """How many data have a flow that is worse, but for noise, than the independent Gaussians that its family has."""
    gap = found.gap
    if gap is not None and {"mean_field", "flow"} <= gap.local.keys():
        error = torch.hypot(gap.se["mean_field"], gap.se["flow"])
        if (worse := gap.local["flow"] < gap.local["mean_field"] - 4 * error).any():
            data = f"{worse.sum():,} of the {len(worse):,} data"
            yield f"{name}: the flow of {data} is worse than the mean-field guide, which it could be: raise --steps"


def _below_zero(name: str, parts: dict[str, dict[str, Estimate]]) -> Iterator[str]:
    """What is amiss, but for noise: annealing below a bound, a fitted guide below the amortized one of its family."""
    low = "is below zero: annealing, a bound too, is the looser: raise --temperatures or --chains"
    unfitted = (
        "is below zero: where the run's guide is of a wider or another family, that is no error of the fit"
        " (--families flow has every Gaussian in it); where it is of this one, the guides of each datum are not yet"
        " fitted: raise --steps"
    )
    amiss = [("ais", " - ", low), ("gap", "approximation", low), ("gap", "amortization", unfitted)]
    if "exact" in parts:  # of which the gap is
        del amiss[1]
    for part, kind, words in amiss:
        for key, value in parts.get(part, {}).items():
            if kind in key and value.mean < -2 * value.se:
                yield f"{name}: {label(key)} {words}"
