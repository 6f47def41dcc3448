"""A comparison as files: JSON, CSV, and labelled arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import files
from ..comparison import Comparison, Measured
from ..diagnostics import FEWEST, khat_threshold
from .rows import bits, khat_state

Arrays = dict[str, dict[str, tuple[tuple[str, ...], Any]]]


def summary(found: Comparison, protocol: dict[str, Any], versions: dict[str, Any]) -> dict[str, Any]:
    """Everything but the values of each datum, ready for JSON; what is not finite is None, a k-hat with its `state`."""
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
    runs, levels = {}, bits(found, protocol)
    for name, each in found.models.items():
        estimates = found.estimates(name)
        parts = {
            part: {key: _plain(value._asdict()) for key, value in values.items()} for part, values in estimates.items()
        }
        for key, value in estimates["test"].items():
            if key.startswith("khat") and (state := khat_state(value, estimates["test"]["ess"], found)):
                parts["test"][key]["state"] = state
        parts["test"]["active_units"] = each.test.active_units
        if name in levels:
            parts["test"]["bits_per_dim"] = _plain(levels[name])
        runs[name] = parts
    pairs = [
        {"a": a, "b": b, "quantity": key, **_plain(pair._asdict()), "n": found.size}
        for (a, b), values in found.differences().items()
        for key, pair in values.items()
    ]
    return {"protocol": protocol, "settings": settings, **versions, "runs": runs, "paired": pairs}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def as_csv(found: Comparison, protocol: dict[str, Any]) -> str:
    """A row for each number: run, less, part, quantity, K, mean, se, n, draws, wins, losses, p_value, bounds_on.

    The last says what a run's bounds are on, log p(x) or log p(x|y), or nothing, as of a point mass; of a difference
    "one less the other" where the two differ.
    """
    rows: list[dict[str, Any]] = []
    about = {name: protocol.get("bounds_on", {}).get(name) for name in found.models}
    for name, each in found.models.items():
        draws = {"test": each.test.draws, "train": each.train.draws if each.train else None}
        for part, values in found.estimates(name).items():
            shared = {"run": name, "part": part, "draws": draws.get(part), "bounds_on": about[name]}
            rows += [{**shared, **_quantity(key), **value._asdict()} for key, value in values.items()]
        units = {"quantity": "active_units", "mean": each.test.active_units, "n": found.size}
        rows.append({"run": name, "part": "test", "draws": found.plan.total, "bounds_on": about[name], **units})
    for (a, b), pairs in found.differences().items():
        both = about[a] if about[a] == about[b] else f"{about[a]} less {about[b]}"
        shared = {"run": a, "less": b, "part": "paired", "n": found.size, "draws": found.plan.total, "bounds_on": both}
        rows += [{**shared, **_quantity(key), **pair._asdict()} for key, pair in pairs.items()]
    columns = ["run", "less", "part", "quantity", "K", "mean", "se", "n", "draws", "wins", "losses", "p_value"]
    columns.append("bounds_on")
    return files.as_csv(columns, rows)


def data_csv(found: Comparison, protocol: dict[str, Any]) -> str:
    """A row for each model and test datum: its bounds, their Monte Carlo errors, rate, distortion, ess, khat.

    The last column says what the bounds are on, as in `as_csv`.
    """
    rows: list[dict[str, Any]] = []
    for name, each in found.models.items():
        columns, about = _columns(each), protocol.get("bounds_on", {}).get(name)
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        rows += [
            {"run": name, "datum": datum, **dict(zip(columns, value, strict=True)), "bounds_on": about}
            for datum, value in enumerate(values)
        ]
    return files.as_csv(["run", "datum", *columns, "bounds_on"], rows)


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
