"""`python -m pvae.compare`: measure runs on the same test data, side by side.

python -m pvae.compare runs/A runs/B --particles 1,10,100,1000 --out bounds.png --out table.tex
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from . import cli, plots, tables
from .ais import Annealing
from .comparison import Comparison, Data, Plan, choose, compare
from .config import Config
from .config.values import convert
from .data import Dataset, binarize, dequantize, pixels
from .diagnostics import FEWEST, khat_threshold
from .errors import InputError
from .exact import linear_gaussian
from .files import RETRY, as_json, whole
from .load import load
from .means import estimate
from .pace import pace
from .runs import Run, protocol, versions, write_results
from .vae import VAE, Autoencoder

IDLE = {
    **dict.fromkeys(("subset", "temperatures", "chains", "leapfrog", "start"), ("ais", "gap")),
    **dict.fromkeys(("steps", "families"), ("gap",)),
}
"""Options, and what they are for."""
AGAIN = {
    **dict.fromkeys(("data", "sha256"), "the other's --data"),
    "sizes": "the other's --test and --validation",
    "data_seed": "the other's --data-seed",
    "binarization": "the other's --binarize",
    "dequantization": "the other's --dequantize",
    "measure": "a likelihood of the same measure",
    "numbers": "the other's --guide",
}
"""What makes protocols equal, by what differs."""
NOTHING = "nothing"
"""What the numbers of a point mass are bounds on."""
ENDINGS = (
    *(".json", ".csv", ".tex", ".data.csv", ".nc", ".png", ".pdf", ".svg"),
    *(".khat.png", ".khat.pdf", ".khat.svg"),
)


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    found = _parser().parse(argv)
    plan, outs, device = _plan(found), _outs(found.out or []), cli.device(found.device)
    train = _train(found)
    asked = ["--khat"] * found.khat + [f"--out {out}" for out in outs if _is_of_khat(out)]
    if plan.total < FEWEST and asked:
        raise InputError(
            f"{asked[0]}: found {plan.total} draws, expected at least {FEWEST}: raise --draws or --particles"
        )
    loaded = {name: load(path, device, cli.say) for name, path in _names(found.runs).items()}
    shared = check_protocols({name: protocol(run.config, dataset) for name, (_, dataset, run) in loaded.items()})
    shared["bounds_on"] = {name: bounds_on(run.config) for name, (_, _, run) in loaded.items()}
    points = NOTHING in shared["bounds_on"].values()
    if points and asked:
        raise InputError(f"{asked[0]}: found guides that are point masses, which have no weights: leave it out")
    shared["epoch"] = {name: Run.chosen(path)[1].state["epoch"] for name, path in _names(found.runs).items()}
    shared["level_volume"] = {name: run.config.level_volume for name, (_, _, run) in loaded.items()}
    shared["dimensions"] = prod(next(iter(loaded.values()))[1].shape)
    shared["notes"] = [note for name, (_, _, run) in loaded.items() for note in notes(name, run.config)]
    # the data were looked at; what is not a number is found in the sums, and named
    with pyro.validation_enabled(False):
        comparison = _compared(loaded, plan, train)
    if points:
        comparison = _without_khat(comparison)
    text = tables.text(comparison, shared, shutil.get_terminal_size((100, 24)).columns)
    cli.write_and_print(outs, lambda out: _write(out, comparison, shared), text)
    return 0


def notes(name: str, config: Config) -> list[str]:
    """What is to be known of a run's numbers beside those of others, in sentences."""
    found = []
    if config.condition != "none":
        who = name if config.of_model else f"the guide of {name} alone"
        on = f": its bounds are on {bounds_on(config)}" if config.bounded else ""
        found.append(f"{who} is conditioned on {config.condition}{on}")
    if config.start_from is not None:
        found.append(f"{name} began with the weights of {config.start_from}: it was trained for longer than its epochs")
    return found


def bounds_on(config: Config) -> str:
    """What a run's bounds are on."""
    if not config.bounded:
        return NOTHING
    return "log p(x|y)" if config.of_model else "log p(x)"


def check_protocols(protocols: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Hold runs to one protocol, and return it.

    Raises:
        InputError: two differ: in what, and how to make them equal.
    """
    (first, expected), *rest = protocols.items()
    for name, found in rest:
        # the name of the data is but the path to them, which can be written in many ways
        if differing := [key for key, value in expected.items() if found[key] != value and key != "data"]:
            if "sha256" in differing and found["data"] != expected["data"]:  # of other data these differ too
                differing = ["data", *(key for key in differing if key not in ("sha256", "sizes"))]
            shown = [(key.replace("_", " "), *(str(each[key])[:80] for each in (expected, found))) for key in differing]
            what = ", ".join(f"{key} '{one}' and '{other}'" for key, one, other in shown)
            again = " and ".join(dict.fromkeys(AGAIN[key] for key in differing))
            raise InputError(
                f"{first} and {name}: found different protocols, {what}, expected the same of both: fit one of them"
                f" again with {again}"
            )
    return expected


def _compared(loaded: dict[str, tuple[Autoencoder, Dataset, Run]], plan: Plan, train: int | None) -> Comparison:
    """Runs under one protocol, compared: of the same x, each with what it is conditioned on beside it."""
    x = pixels(next(iter(loaded.values()))[1].test.x)
    count = len(x) if train is None else train
    trained = {name: training_data(own, run.config, count, plan.seed) for name, (_, own, run) in loaded.items()}
    return compare(
        {name: (vae.model, vae.guide) for name, (vae, _, _) in loaded.items()},
        {name: Data(x, own.test.y) for name, (_, own, _) in loaded.items()},
        trained if count else None,
        plan,
        exact={name: value for name, (vae, _, _) in loaded.items() if (value := _exact(vae, x)) is not None},
        progress=_progress(),
    )


def _without_khat(found: Comparison) -> Comparison:
    """Of point masses, which have no weights."""
    models = {name: replace(each, test=replace(each.test, khat=None)) for name, each in found.models.items()}
    return replace(found, models=models)


def training_data(dataset: Dataset, config: Config, count: int, seed: int) -> Data:
    """At most so many training data, chosen by the seed; drawn once what is drawn anew at each step."""
    rows = choose(len(dataset.train.x), count, seed).to(dataset.train.x.device)
    x, generator = dataset.train.x[rows].cpu(), torch.Generator().manual_seed(seed)
    if config.dequantization != "none":
        x = dequantize(x, config.dequantization, generator)
    else:
        x = binarize(pixels(x), "dynamic" if config.binarization == "dynamic" else "none", generator)
    x = x.to(dataset.train.x.device)
    return Data(x, None if dataset.train.y is None else dataset.train.y[rows])


def _exact(vae: Autoencoder, x: Tensor) -> Tensor | None:
    """The exact log p(x) (N,), of a model of one layer that is linear and Gaussian."""
    if not isinstance(vae, VAE):
        return None
    with suppress(Exception):  # parts of one's own may need labels, or float32: then there is no exact value
        model = linear_gaussian(vae.prior, vae.likelihood)
        return None if model is None else model.log_prob(x.flatten(1).double())
    return None


def _plan(found: argparse.Namespace) -> Plan:
    def particles(option: str) -> tuple[int, ...] | None:
        text = getattr(found, option.replace("-", "_"))
        ks = None if text is None else cli.numbers(text, f"--{option}")
        return None if ks is None else tuple(sorted(ks))

    def whole(option: str, least: int = 1) -> int:
        return cli.whole(getattr(found, option.replace("-", "_")), f"--{option}", least)

    _check_idle(found)
    ks = particles("particles") or ()
    draws = None if found.draws is None else whole("draws")
    if draws is not None and draws < ks[-1]:
        raise InputError(f"--draws: found {draws}, expected at least the largest K, {ks[-1]}")
    annealing = Annealing(whole("temperatures"), whole("chains"), whole("leapfrog"))
    families = convert(found.families, Sequence[str], "--families") if found.gap else ()
    if found.gap and not families:
        raise InputError("--families: found none, expected mean_field, flow or both")
    return Plan(
        particles=ks,
        draws=draws,
        train_particles=particles("train-particles"),
        annealing=annealing if found.ais or found.gap else None,
        start=found.start,
        families=families,
        subset=whole("subset"),
        steps=whole("steps"),
        seed=whole("seed", 0),
        chunk=None if found.eval_chunk is None else whole("eval-chunk", 128),
    )


def _train(found: argparse.Namespace) -> int | None:
    return None if found.train is None else cli.whole(found.train, "--train", 0)


def _check_idle(found: argparse.Namespace) -> None:
    """Refuse options of something that is not asked for."""
    if found.train_particles is not None and _train(found) == 0:
        raise InputError("--train-particles: found it with --train 0, which leaves training data out: drop one of them")
    parser = _parser()
    for option, wanted in IDLE.items():
        if getattr(found, option) != parser.get_default(option) and not any(getattr(found, name) for name in wanted):
            need = " or ".join(f"--{name}" for name in wanted)
            raise InputError(f"--{option}: found it without {need}, which it is for: add that, or leave it out")


def _outs(names: Sequence[str]) -> list[Path]:
    outs = [cli.output(name, "--out", ENDINGS) for name in names]
    for out in outs:
        if outs.count(out) > 1:
            raise InputError(f"--out {out}: found twice, expected different files")
    return outs


def _progress() -> Callable[[str, int, int], None]:
    """Says on standard error how far each part of the work is."""
    began = time.monotonic()
    parts: dict[str, Callable[[int, int], None]] = {}

    def progress(what: str, done: int, total: int) -> None:
        nonlocal began
        if what not in parts:
            parts[what] = pace(cli.say, f"{what}:", every=5.0, began=began)
        parts[what](done, total)
        if done == total:
            began = time.monotonic()

    return progress


def _is_of_data(path: Path) -> bool:
    """Whether a table has a row for each datum: `x.data.csv`."""
    return path.stem.endswith(".data")


def _is_of_khat(path: Path) -> bool:
    """Whether a chart is of k-hat: `x.khat.png`."""
    return path.stem.endswith(".khat") and path.suffix.lower() in (".png", ".pdf", ".svg")


def _write(path: Path, found: Comparison, shared: dict[str, Any]) -> None:
    ending = path.suffix.lower()
    if ending == ".nc":
        more = {"draws": found.plan.total, "seed": found.plan.seed, "versions": json.dumps(versions())}
        write_results(path, tables.arrays(found), {**shared, **more}, RETRY)
        return
    with whole(path, RETRY) as aside:
        if ending == ".json":
            aside.write_text(as_json(tables.summary(found, shared, versions())))
        elif ending == ".csv":
            aside.write_text(tables.data_csv(found, shared) if _is_of_data(path) else tables.as_csv(found, shared))
        elif ending == ".tex":
            aside.write_text(tables.latex(found, shared))
        else:
            plots.save(_khats(found) if _is_of_khat(path) else _bounds(found, shared), aside)


def _bounds(found: Comparison, shared: dict[str, Any]) -> Any:
    """The chart of the bounds; with the exact values, or the one of all models."""
    ks, names = list(found.plan.particles), _labels(found, tables.bounds_on(found, shared))
    estimates = {names[name]: found.estimates(name) for name in found.models}
    means = {name: [each["test"][f"iw.{k}"].mean for k in ks] for name, each in estimates.items()}
    errors = {name: [each["test"][f"iw.{k}"].se for k in ks] for name, each in estimates.items()}
    exact = {names[name]: estimate(each.exact).mean for name, each in found.models.items() if each.exact is not None}
    alike = exact.keys() == means.keys() and len(set(exact.values())) == 1
    points = {"title": "Point masses: no bounds", "of": "log p(x, z)"}
    of = points if NOTHING in shared["bounds_on"].values() else {}
    return plots.bound_against_k(ks, means, errors, exact=exact.popitem()[1] if alike else exact, **of)


def _khats(found: Comparison) -> Any:
    names = _labels(found, {})
    values: dict[str, Any] = {names[name]: each.test.khat for name, each in found.models.items()}
    return plots.khat_quantiles(values, khat_threshold(found.plan.total))


def _labels(found: Comparison, about: dict[str, str]) -> dict[str, str]:
    """How runs are called in a chart, with what their bounds are on where that differs; no two alike."""
    labels = {name: _broken(f"{name}, {about[name]}" if about else name) for name in found.models}
    every = list(labels.values())
    return {
        name: label if every.count(label) == 1 else f"{label} (run {i})"
        for i, (name, label) in enumerate(labels.items(), 1)
    }


def _broken(name: str) -> str:
    """A name as matplotlib shows it: in lines, so that it leaves room beside it; neither a formula nor hidden."""
    lines = "\n".join(textwrap.wrap(name, 20)).replace("$", r"\$")
    return f" {lines}" if lines.startswith("_") else lines


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Runs by the last part of their path, or by all of it where that is not enough to tell them apart."""
    whole = [Path(path).resolve() for path in paths]
    short = [path.name for path in whole]
    if len(set(whole)) < len(whole):
        raise InputError(f"runs: found one of them twice in {' '.join(paths)}, expected different runs")
    return dict(zip(short if len(set(short)) == len(short) else paths, paths, strict=True))


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="pvae compare", description="Measure runs on the same test data, side by side.")
    add = parser.add_argument
    add("runs", nargs="+", help="run folders, or checkpoints of them; differences are to the first")
    add("--particles", default="1,10,100", metavar="K,...", help="every K of the bounds (default: 1,10,100)")
    add("--draws", metavar="S", help="draws for each datum, shared by all K (default: the largest K)")
    add("--khat", action="store_true", help="insist on Pareto k-hat: refuse where there are too few draws for it")
    add(
        "--train",
        metavar="N",
        help="training data to measure the train-test gap with (default: as many as test; 0: none)",
    )
    add("--train-particles", metavar="K,...", help="their every K (default: those up to a tenth of the draws)")
    add(
        "--out",
        action="append",
        metavar="FILE",
        help="write it; may be given several times: .json, .csv, .tex (numbers), .data.csv, .nc (values of each datum; "
        "arviz opens .nc), .png, .pdf, .svg (bound against K), .khat.png, .khat.pdf, .khat.svg (k-hat of the data)",
    )
    add("--seed", default="0", metavar="SEED", help="of the draws and choices (default: 0)")
    add("--eval-chunk", metavar="N", help="pairs of particle and datum scored at once; by default as the device wants")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (default: auto)")
    group = parser.add_argument_group("log p(x), and what the bound lacks of it")
    group.add_argument("--ais", action="store_true", help="annealed importance sampling beside the bounds")
    group.add_argument(
        "--gap", action="store_true", help="split log p(x) - ELBO into approximation and amortization (with --ais)"
    )
    group.add_argument("--subset", default="100", metavar="N", help="test data these are for (default: 100)")
    for name, default, text in (
        ("temperatures", 1000, "of the annealing: more is tighter, and slower"),
        ("chains", 16, "for each datum"),
        ("leapfrog", 10, "steps of each transition"),
        ("steps", 1000, "of the fit of each datum's own guide"),
    ):
        group.add_argument(f"--{name}", default=str(default), metavar="N", help=f"{text} (default: {default})")
    group.add_argument("--start", default="prior", choices=("prior", "guide"), help="of the annealing (default: prior)")
    group.add_argument(
        "--families", default="mean_field,flow", metavar="NAME,...", help="of these guides (default: mean_field,flow)"
    )
    return parser


if __name__ == "__main__":
    cli.run(main, "compare")
