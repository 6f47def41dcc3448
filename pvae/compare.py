"""`python -m pvae.compare`: evaluate runs on the same test data, side by side.

python -m pvae.compare runs/A runs/B --particles 1,10,100,1000
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from . import cli, plots
from .checkpoints import disk
from .data import pixels
from .errors import InputError
from .evaluate import Evaluation, evaluate, mean_and_se
from .load import load
from .runs import protocol

ENDINGS = (".json", ".png", ".pdf", ".svg")


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    found = _parser().parse(argv)
    particles = cli.numbers(found.particles, "--particles")
    seed, chunk = cli.whole(found.seed, "--seed", 0), cli.whole(found.eval_chunk, "--eval-chunk", 128)
    device = cli.device(found.device)
    out = None if found.out is None else cli.output(found.out, "--out", ENDINGS)
    loaded = {name: load(path, device) for name, path in _names(found.runs).items()}
    protocols = {name: protocol(run.config, dataset) for name, (_, dataset, run) in loaded.items()}
    check_protocols(protocols)
    evaluations = {}
    for name, (vae, dataset, _) in loaded.items():
        x, y = pixels(dataset.test.x), dataset.test.y
        evaluations[name] = evaluate(vae.model, vae.guide, x, y, particles=particles, seed=seed, chunk=chunk)
    shared = next(iter(protocols.values()))
    print(table(evaluations, shared))
    _write(out, evaluations, shared)
    return 0


def check_protocols(protocols: dict[str, dict[str, Any]]) -> None:
    """Hold runs to one protocol.

    Raises:
        InputError: two differ: in what, and how to make them equal.
    """
    (first, expected), *rest = protocols.items()
    for name, found in rest:
        for key, value in expected.items():
            if found[key] != value:
                raise InputError(
                    f"{first} and {name} were measured under different protocols: {key} is {value} and {found[key]}: "
                    f"fit one of them again with the other's --data, --test, --validation, --data-seed and --binarize"
                )


def table(evaluations: dict[str, Evaluation], shared: dict[str, Any]) -> str:
    """Means and standard errors as text, and differences to the first run, paired by datum."""
    columns = {name: found.columns() for name, found in evaluations.items()}
    first, *others = columns
    width = max(12, *(len(name) for name in columns)) + 2
    lines = [
        f"test, {shared['sizes']['test']:,} data of {shared['data']}, binarization {shared['binarization']}, nats/datum"
    ]
    lines += [f"{'':<14}" + "".join(f"{name:>{width + 8}}" for name in columns)]
    for key in columns[first]:
        cells = [_cell(column[key]) for column in columns.values()]
        lines += [f"{_label(key):<14}" + "".join(f"{cell:>{width + 8}}" for cell in cells)]
    units = [f"{e.active_units} of {len(e.latent_variance)}" for e in evaluations.values()]
    lines += [f"{'active units':<14}" + "".join(f"{cell:>{width + 8}}" for cell in units)]
    for name in others:
        lines += [f"\n{name} - {first}, paired by datum"]
        for key in columns[first]:
            if key == "elbo" or key.startswith("iw."):
                lines += [f"{_label(key):<14}{_cell(columns[name][key] - columns[first][key]):>{width + 8}}"]
    return "\n".join(lines)


def _label(key: str) -> str:
    return {"elbo": "ELBO", "ess": "ESS"}.get(key, f"IW, K={key[3:]}" if key.startswith("iw.") else key)


def _cell(value: Tensor) -> str:
    found = mean_and_se(value)
    return f"{found['mean']:.3f} +- {found['se']:.3f}"


def _write(path: Path | None, evaluations: dict[str, Evaluation], shared: dict[str, Any]) -> None:
    if path is None:
        return
    with disk(path):
        if path.suffix == ".json":
            runs = {
                name: {**found.summary(), "active_units": found.active_units} for name, found in evaluations.items()
            }
            path.write_text(json.dumps({"protocol": shared, "runs": runs}, indent=1) + "\n")
        else:
            ks = list(next(iter(evaluations.values())).iw)
            summaries = {name: [mean_and_se(found.iw[k]) for k in ks] for name, found in evaluations.items()}
            means = {name: [s["mean"] for s in found] for name, found in summaries.items()}
            errors = {name: [s["se"] for s in found] for name, found in summaries.items()}
            plots.save(plots.bound_against_k(ks, means, errors), path)
    print(f"\nwritten: {path}")


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Runs by the last part of their path, or by all of it where that is not enough to tell them apart."""
    short = [Path(path).resolve().name for path in paths]
    if len(set(map(str, paths))) < len(paths):
        raise InputError(f"runs: found one of them twice in {' '.join(paths)}, expected different runs")
    return dict(zip(short if len(set(short)) == len(short) else paths, paths, strict=True))


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="pvae compare", description="Evaluate runs on the same test data, side by side.")
    parser.add_argument("runs", nargs="+", help="run folders, or checkpoints of them")
    parser.add_argument("--particles", default="1,10,100", metavar="K,...", help="every K (default: 1,10,100)")
    parser.add_argument(
        "--out", metavar="FILE", help="write it: .json (numbers), or .png, .pdf, .svg (bound against K)"
    )
    parser.add_argument("--seed", default="0", metavar="SEED", help="of the draws (default: 0)")
    parser.add_argument("--eval-chunk", default="4096", metavar="N", help="pairs of particle and datum scored at once")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (default: auto)")
    return parser


if __name__ == "__main__":
    cli.run(main, "compare")
