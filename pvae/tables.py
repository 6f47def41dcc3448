"""A comparison written down: as text for a terminal, CSV, JSON, LaTeX, and labelled arrays."""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .comparison import Comparison, Estimate, Measured, is_bound
from .diagnostics import FEWEST, Paired, khat_threshold
from .evaluate import BOUNDS

COLUMN = 20
"""Characters of a column; longer names are broken."""
Arrays = dict[str, dict[str, tuple[tuple[str, ...], Any]]]
_Row = tuple[str, dict[str, list[str]]]
"""A label, and each model's lines."""


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
    known = {"elbo": "ELBO", "ess": "ESS of the weights", "log_p": "log p(x)", "information": "mutual information"}
    return known.get(quantity, quantity)


def plus_minus(value: Estimate | Paired, form: str = "") -> tuple[str, str]:
    """A mean and its standard error as text, the error with two significant digits.

    >>> plus_minus(Estimate(-98.96123, 0.2512, 100)), plus_minus(Estimate(3.0, float("nan"), 1))
    (('-98.96', '0.25'), ('3.000', 'nan'))
    """
    fine = math.isfinite(value.se) and value.se > 0
    decimals = min(max(1 - math.floor(math.log10(value.se)), 0), 8) if fine else 3
    return f"{value.mean:{form}.{decimals}f}", f"{value.se:.{decimals}f}"


def text(found: Comparison, protocol: dict[str, Any], width: int = 100) -> str:
    """The tables of a comparison, no wider than `width` characters where a column fits into it."""
    first, *others = found.models
    tables = [(title, [first, *others], rows) for title, rows in _sections(found)]
    if others:
        title = f"less {first}, paired by datum; below it wins/losses, and p of a two-sided sign test"
        tables.append((title, others, list(_pairs(found, others))))
    notes = "\n".join(textwrap.fill(line, width) for line in _notes(found, protocol))
    return "\n\n".join([notes, *(_aligned(*table, width) for table in tables)])


def _notes(found: Comparison, protocol: dict[str, Any]) -> Iterator[str]:
    """What the numbers are, in sentences."""
    plan = found.plan
    yield (
        f"{found.size:,} test data of {protocol['data']}, {_drawn(protocol)}; nats / datum, "
        f"mean +- standard error over the data"
    )
    if protocol["numbers"] != BOUNDS:
        yield f"The numbers are {protocol['numbers']}"
    groups = ", ".join(f"{plan.total // k:,} of K={k}" for k in plan.particles)
    yield f"{plan.total:,} draws for each datum (seed {plan.seed}); L_K is averaged over disjoint groups: {groups}"
    if plan.total < FEWEST:
        yield f"Pareto k-hat is not given: it needs at least {FEWEST} draws for each datum"
    else:
        above = f"Pareto k-hat above the threshold, {khat_threshold(plan.total):.2f}"
        yield f"{above}: the bounds of that datum cannot be relied on"
    if plan.information:
        drawn = f"Mutual information: from {min(plan.information, found.size):,} draws"
        yield f"{drawn}, at most log N = {math.log(found.size):.2f}"
    yield from protocol.get("notes", ())
    for name in found.models:
        yield from _too_short(name, found.estimates(name))


def _drawn(protocol: dict[str, Any]) -> str:
    """What was made of the pixels before they were scored."""
    dequantization = protocol.get("dequantization", "none")
    return f"binarization {protocol['binarization']}" + (
        f", dequantization {dequantization}" if dequantization != "none" else ""
    )


def _too_short(name: str, parts: dict[str, dict[str, Estimate]]) -> Iterator[str]:
    """What cannot be, but for noise: annealing below a bound, a fitted guide below the amortized one."""
    for part, kind, words in (
        ("ais", " - ", "is below zero: annealing, a bound too, is the looser: raise --temperatures or --chains"),
        ("gap", "amortization", "is below zero: the guides of each datum are not yet fitted: raise --steps"),
    ):
        for key, value in parts.get(part, {}).items():
            if kind in key and value.mean < -2 * value.se:
                yield f"{name}: {label(key)} {words}"


def _sections(found: Comparison) -> Iterator[tuple[str, list[_Row]]]:
    """Titles, and the rows below them."""
    estimates = {name: found.estimates(name) for name in found.models}
    for part, title in _titles(found).items():
        if not (values := {name: each[part] for name, each in estimates.items() if part in each}):
            continue
        keys = _shown(values.values())
        rows = [
            (label(key), {name: [_cell(key, each[key])] for name, each in values.items() if key in each})
            for key in keys
        ]
        if part == "test":
            rows.append(("active units", {name: [_units(each)] for name, each in found.models.items()}))
        yield title, rows


def _titles(found: Comparison) -> dict[str, str]:
    plan, annealing, size = found.plan, found.plan.annealing, next(iter(found.models.values())).train
    few = f"{len(found.chosen):,} of the test data"
    return {
        "test": "test",
        "train": "" if size is None else f"training, {len(size.elbo):,} data, {size.draws:,} draws each",
        "difference": "training less test",
        "exact": "exact",
        "ais": ""
        if annealing is None
        else f"annealed importance sampling from the {plan.start}: {few}, {annealing.temperatures:,} temperatures, "
        f"{annealing.chains} chains, {annealing.leapfrog} leapfrog steps; from below",
        "gap": f"inference gap, log p(x) - ELBO, split by guides fitted to each datum alone: {few}",
    }


def _pairs(found: Comparison, others: Sequence[str]) -> Iterator[_Row]:
    first, differences = next(iter(found.models)), found.differences()
    every = {name: differences[name, first] for name in others}
    for key in _shown(every.values()):
        cells = {}
        for name, each in every.items():
            if key in each:
                pair = each[key]
                cells[name] = [" +- ".join(plus_minus(pair, "+")), f"{pair.wins}/{pair.losses}, {_p(pair.p_value)}"]
        yield label(key), cells


def _p(value: float) -> str:
    return f"p={value:.{1 if value < 1e-3 else 2}g}" if value >= 1e-300 else "p<1e-300"


def _shown(values: Iterable[Mapping[str, Any]]) -> list[str]:
    """The quantities of any model, in order, without L_1: the ELBO, from the same draws."""
    keys = dict.fromkeys(key for each in values for key in each)
    return [key for key in keys if not key.endswith("iw.1")]


def _cell(key: str, value: Estimate) -> str:
    if key == "khat.above":
        return f"{100 * value.mean:.1f}% +- {100 * value.se:.1f}%"
    return " +- ".join(plus_minus(value))


def _units(found: Measured) -> str:
    return f"{found.test.active_units} of {len(found.test.latent_variance)}"


def _aligned(title: str, names: Sequence[str], rows: Sequence[_Row], width: int) -> str:
    """A table: names above, broken where they are long; labels on the left, again where the columns do not fit."""
    labels = max(COLUMN, *(2 + len(name) for name, _ in rows)) if rows else COLUMN
    at_once = max(1, (width - labels) // COLUMN)
    lines = textwrap.wrap(title, width)
    for start in range(0, len(names), at_once):
        lines += [""] if start else []
        shown = names[start : start + at_once]
        heads = [textwrap.wrap(name, COLUMN - 2) for name in shown]
        height = max(map(len, heads))
        lines += _block("", [[""] * (height - len(head)) + head for head in heads], labels)
        for name, cells in rows:
            lines += _block(f"  {name}", [cells.get(each, []) for each in shown], labels)
    return "\n".join(lines)


def _block(label: str, cells: Sequence[Sequence[str]], labels: int) -> list[str]:
    """The lines of a row whose cells have several."""
    rows = zip_longest([label], *cells, fillvalue="")
    return [(f"{first:<{labels}}" + "".join(f"{word:>{COLUMN}}" for word in rest)).rstrip() for first, *rest in rows]


def summary(found: Comparison, protocol: dict[str, Any], versions: dict[str, Any]) -> dict[str, Any]:
    """Everything but the values of each datum, ready for JSON; what is not finite is None."""
    plan = found.plan
    settings = {
        "K": list(plan.particles),
        "draws": plan.total,
        "train_K": list(plan.of_training),
        "seed": plan.seed,
        "information_draws": min(plan.information, found.size),
        "khat_threshold": khat_threshold(plan.total) if plan.total >= FEWEST else None,
        "annealing": None if plan.annealing is None else {**vars(plan.annealing), "start": plan.start},
        "guides": {"families": list(plan.families), "steps": plan.steps} if plan.families else None,
        "subset": len(found.chosen),
    }
    runs = {}
    for name, each in found.models.items():
        parts = {
            part: {key: _plain(value._asdict()) for key, value in values.items()}
            for part, values in found.estimates(name).items()
        }
        parts["test"]["active_units"] = each.test.active_units
        runs[name] = parts
    pairs = [
        {"a": a, "b": b, "quantity": key, **_plain(pair._asdict()), "n": found.size}
        for (a, b), values in found.differences().items()
        for key, pair in values.items()
    ]
    return {"protocol": protocol, "settings": settings, **versions, "runs": runs, "paired": pairs}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def as_csv(found: Comparison) -> str:
    """A row for each number: run, less, part, quantity, K, mean, se, n, draws, wins, losses, p_value."""
    rows: list[dict[str, Any]] = []
    for name, each in found.models.items():
        draws = {"test": each.test.draws, "train": each.train.draws if each.train else None}
        for part, values in found.estimates(name).items():
            shared = {"run": name, "part": part, "draws": draws.get(part)}
            rows += [{**shared, **_quantity(key), **value._asdict()} for key, value in values.items()]
        units = {"quantity": "active_units", "mean": each.test.active_units, "n": found.size}
        rows.append({"run": name, "part": "test", "draws": found.plan.total, **units})
    for (a, b), pairs in found.differences().items():
        shared = {"run": a, "less": b, "part": "paired", "n": found.size, "draws": found.plan.total}
        rows += [{**shared, **_quantity(key), **pair._asdict()} for key, pair in pairs.items()]
    columns = ["run", "less", "part", "quantity", "K", "mean", "se", "n", "draws", "wins", "losses", "p_value"]
    return _csv(columns, rows)


def data_csv(found: Comparison) -> str:
    """A row for each model and test datum: its bounds, their Monte Carlo errors, rate, distortion, ess, khat."""
    rows: list[dict[str, Any]] = []
    for name, each in found.models.items():
        columns = _columns(each)
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        rows += [
            {"run": name, "datum": datum, **dict(zip(columns, value, strict=True))}
            for datum, value in enumerate(values)
        ]
    return _csv(["run", "datum", *columns], rows)


def _columns(found: Measured) -> dict[str, Tensor]:
    test = found.test
    columns = {}
    for key, value in test.columns().items():
        columns[key] = value
        if key in test.se:
            columns[f"{key}.se"] = test.se[key]
    return columns if test.khat is None else {**columns, "khat": test.khat}


def _quantity(key: str) -> dict[str, Any]:
    name, _, k = key.rpartition("iw.")
    return {"quantity": f"{name}iw", "K": int(k)} if "iw." in key else {"quantity": key}


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def latex(found: Comparison, protocol: dict[str, Any]) -> str:
    """A table for a paper, in the style of booktabs.

    Bounds in bold are the highest, and those less than two standard errors of their paired difference below it.
    """
    names, sections = list(found.models), []
    estimates = {name: found.estimates(name) for name in names}
    for part, title in _titles(found).items():
        values = {name: each.get(part, {}) for name, each in estimates.items()}
        keys = _shown(values.values())
        lines = [_tex_row(found, part, key, {name: values[name].get(key) for name in names}) for key in keys]
        if part == "test":
            lines.append(" & ".join(["active units", *(_units(each) for each in found.models.values())]) + r" \\")
        if lines:
            head = [rf"\multicolumn{{{len(names) + 1}}}{{l}}{{\emph{{{_escape(title)}}}}} \\"] if part != "test" else []
            sections.append("\n".join([*head, *lines]))
    bold = " Bold: the highest bound, and those within two standard errors of the paired difference from it."
    caption = " ".join(f"{_escape(note)}." for note in _notes(found, protocol)) + (bold if len(names) > 1 else "")
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * len(names)}}}",
            r"\toprule",
            " & ".join(["", *(name.translate(_ESCAPED) for name in names)]) + r" \\",
            r"\midrule",
            "\n\\midrule\n".join(sections),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex_row(found: Comparison, part: str, key: str, values: dict[str, Estimate | None]) -> str:
    best = _best(found, key) if part == "test" and is_bound(key) else set()
    cells = []
    for name, value in values.items():
        if value is None:
            cells.append("")
        elif key == "khat.above":
            cells.append(rf"${100 * value.mean:.1f} \pm {100 * value.se:.1f}\,\%$")
        else:
            mean, se = (_tex_number(word) for word in plus_minus(value))
            cells.append(rf"$\mathbf{{{mean}}} \pm {se}$" if name in best else rf"${mean} \pm {se}$")
    return " & ".join([_escape(label(key)), *cells]) + r" \\"


def _tex_number(word: str) -> str:
    return {"nan": "?", "inf": r"\infty", "-inf": r"-\infty"}.get(word, word)


def _best(found: Comparison, key: str) -> set[str]:
    """The models with the highest bound, and those that cannot be told from it; none where there is one model."""
    means = {name: each.test.columns()[key].mean().item() for name, each in found.models.items()}
    means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    if len(found.models) < 2 or not means:
        return set()
    first, differences, best = max(means, key=means.__getitem__), found.differences(), {max(means, key=means.get)}
    for name in means.keys() - {first}:
        pair = differences.get((name, first), differences.get((first, name), {})).get(key)
        if pair is not None and abs(pair.mean) <= 2 * pair.se:
            best.add(name)
    return best


_ESCAPED = str.maketrans(
    {char: rf"\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
)


def _escape(words: str) -> str:
    """Text as LaTeX prints it; L_K is set as a formula, +- as its sign."""
    parts = re.split(r"(\bL_\w+|\+-|\bk-hat\b|\blog p\(x\)|\blog N\b)", words)
    known = {"+-": r"$\pm$", "k-hat": r"$\hat{k}$", "log p(x)": r"$\log p(x)$", "log N": r"$\log N$"}
    return "".join(
        (known.get(part) or f"$L_{{{part[2:]}}}$") if i % 2 else part.translate(_ESCAPED)
        for i, part in enumerate(parts)
    )


def arrays(found: Comparison) -> Arrays:
    """The values of each datum, with dimensions run, datum and K, for `pvae.runs.write_results`."""
    names, models = np.array(list(found.models)), list(found.models.values())
    groups = {"test": _evaluations([each.test for each in models])}
    if models[0].train is not None:
        groups["train"] = _evaluations([each.train for each in models])
    exact = [each.exact for each in models]
    if any(value is not None for value in exact):
        absent = torch.full((found.size,), math.nan, dtype=torch.float64)
        stacked = torch.stack([absent if value is None else value for value in exact])
        groups["test"]["log_p"] = (("run", "datum"), stacked)
    if models[0].annealed is not None:
        log_w = torch.stack([each.annealed.log_w for each in models])
        acceptance = torch.stack([each.annealed.acceptance for each in models])
        groups["ais"] = {
            "log_weight": (("run", "chain", "datum"), log_w),
            "log_p": (("run", "datum"), torch.stack([each.annealed.log_p for each in models])),
            "acceptance": (("run", "datum"), acceptance),
        }
    if models[0].gap is not None:
        columns = [each.gap.columns() for each in models]
        groups["gap"] = {
            f"{key.replace('.', '_')}{end}": (("run", "datum"), torch.stack([each[key][i] for each in columns]))
            for key in columns[0]
            for i, end in enumerate(("", "_se"))
        }
    for name in groups.keys() & {"ais", "gap"}:
        groups[name]["datum"] = (("datum",), found.chosen)
    return {name: {**group, "run": (("run",), names)} for name, group in groups.items()}


def _evaluations(found: Sequence[Any]) -> dict[str, tuple[tuple[str, ...], Any]]:
    ks = list(found[0].iw)
    group: dict[str, tuple[tuple[str, ...], Any]] = {
        key: (("run", "datum"), torch.stack([each.columns()[key] for each in found]))
        for key in ("elbo", "rate", "distortion", "ess")
    }
    for key, value in {"iw": lambda each, k: each.iw[k], "iw_se": lambda each, k: each.se[f"iw.{k}"]}.items():
        stacked = torch.stack([torch.stack([value(each, k) for k in ks], -1) for each in found])
        group[key] = (("run", "datum", "K"), stacked)
    if found[0].khat is not None:
        group["khat"] = (("run", "datum"), torch.stack([each.khat for each in found]))
    return {**group, "K": (("K",), np.array(ks)), "datum": (("datum",), np.arange(len(found[0].elbo)))}
