"""`python -m pvae.gradients`: signal and noise of gradient estimators against the number of particles K.

python -m pvae.gradients runs/A --gradient reparam,stl,dreg --particles 1,4,16,64,256
python -m pvae.gradients --toy
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch

from . import cli, plots
from .base import lookup
from .data import pixels
from .errors import InputError
from .files import RETRY, as_csv, as_json, whole
from .load import load
from .pace import pace
from .snr import Signal, Toy, measure, slope
from .vae import Autoencoder

ENDINGS = (".json", ".csv", ".png", ".pdf", ".svg")
NUMBERS = {"snr": "signal-to-noise ratio", "dsnr": "directional SNR", "variance": "variance of one estimate"}
LARGEST = 3
"""Of so many K slopes are taken."""
Found = dict[str, dict[int, dict[str, Signal]]]
"""By estimator, K and group of parameters."""


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    found = _parser().parse(argv)
    ks = cli.numbers(found.particles, "--particles")
    samples, size = cli.whole(found.samples, "--samples", 2), cli.whole(found.batch_size, "--batch-size", 1)
    seed, outs = cli.whole(found.seed, "--seed", 0), [cli.output(out, "--out", ENDINGS) for out in found.out or []]
    names = list(dict.fromkeys(name for name in found.gradient.split(",") if name))
    if not names:
        raise InputError(f"--gradient: found '{found.gradient}', expected estimators, as in reparam,stl,dreg")
    objectives = {name: {k: _objective(found.objective, k, name, max(ks)) for k in ks} for name in names}
    model, guide, parameters, data, title = _programs(found, size)
    with _of(found.run):
        for name in names:
            for k in ks:
                _try(_objective(found.objective, k, name, max(ks)), model, guide, data)
    results: Found = {name: {} for name in names}
    for name, by_k in objectives.items():
        for k, objective in by_k.items():
            if objective is not None:
                told = pace(cli.say, f"{name}, K={k}: gradient")
                options = {"samples": samples, "seed": seed, "progress": told}
                with _of(found.run, f"{name}, K={k}: "):
                    results[name][k] = measure(objective, model, guide, parameters, *data, **options)
    about = {"of": title, "objective": found.objective, "samples": samples, "seed": seed}
    text = table(results, ks, f"{title}, {found.objective}, {samples:,} gradients each")
    cli.write_and_print(outs, lambda out: _write(out, results, ks, about), text)
    return 0


@contextmanager
def _of(run: str | None, what: str = "") -> Iterator[None]:
    """Say of which run, and of what, an error is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{run or '--toy'}: {what}{error}") from error


def _try(objective: Any, model: Any, guide: Any, data: tuple) -> None:
    """Take a loss: an estimator that does not fit the programs is refused before others are measured."""
    if objective is not None:
        with pyro.validation_enabled(False):
            objective.differentiable_loss(model, guide, *data)


def _objective(objective: str, k: int, gradient: str, most: int) -> Any:
    """None where an estimator needs more particles than these, of which it has enough at the most there are."""
    made, estimator = lookup("objective", objective), lookup("gradient", gradient)
    try:
        return made(k, gradient=estimator())  # type: ignore[call-arg]
    except InputError as error:
        if k == most:
            raise InputError(f"--{error}") from error
        _objective(objective, most, gradient, most)  # refused, where no number of particles would do
        return None


def _programs(found: Any, size: int) -> tuple[Any, Any, dict[str, list[torch.Tensor]], tuple, str]:
    device = cli.device(found.device)
    if found.toy == (found.run is not None):
        both = "both a run and --toy" if found.toy else "neither a run nor --toy"
        raise InputError(f"found {both}, expected one of them, as in: pvae gradients runs/NAME")
    if found.toy:
        if found.batch_size != _parser().get_default("batch_size"):
            raise InputError("--batch-size: found it with --toy, which has data of its own: leave it out")
        toy = Toy(perturbation=0.01).to(device)
        return toy.model, toy.guide, toy.groups(), (toy.x.to(device),), "the Gaussian toy"
    vae, dataset, run = load(found.run, device, cli.say)
    x, y = dataset.test
    data = (pixels(x[:size]), None if y is None else y[:size])
    return vae.model, vae.guide, groups(vae), data, f"{run.folder.name}, {len(data[0])} test data"


def groups(vae: Autoencoder) -> dict[str, list[torch.Tensor]]:
    """The parameters of guide and model; what a prior shares with the guide is the guide's."""
    guide = dict.fromkeys(vae.posterior.parameters())
    model = dict.fromkeys(p for p in vae.parameters() if p not in guide)
    return {"guide": list(guide), "model": list(model)}


def table(results: Found, ks: Sequence[int], title: str) -> str:
    """A block for each number and group of parameters, with slopes of log number against log K at the largest K."""
    lines = [title]
    width = max(len(name) for name in results) + 2
    for number, meaning in NUMBERS.items():
        for group in next(iter(next(iter(results.values())).values())):
            lines += [
                "",
                f"{meaning}, {group}",
                " " * width + "".join(f"{f'K={k}':>11}" for k in ks) + f"{'slope':>16}",
            ]
            for name, by_k in results.items():
                values = _values(by_k, ks, group, number)
                cells = "".join(
                    f"{f'{value:.4g}' if k in by_k else '-':>11}" for k, value in zip(ks, values, strict=True)
                )
                lines.append(f"{name:<{width}}{cells}{_shown(_slope(by_k, group, number)):>16}")
    end = f"slopes over the {min(LARGEST, len(ks))} largest K, +- standard error"
    end += f"; no signal: an SNR of {_floor(results):.3g}"
    lacking = [name for name, by_k in results.items() if len(by_k) < len(ks)]
    lines += ["", f"-: too few particles for {', '.join(lacking)}"] if lacking else [""]
    notes = [f"{name}: {beside}" for name in results if (beside := getattr(lookup("gradient", name), "beside", ""))]
    return "\n".join([*lines, end, *notes])


def _values(by_k: dict[int, dict[str, Signal]], ks: Sequence[int], group: str, number: str) -> list[float]:
    """Of every K, NaN where an estimator has none."""
    return [by_k[k][group].summary()[number] if k in by_k else float("nan") for k in ks]


def _floor(results: Found) -> float:
    return next(one.floor for by_k in results.values() for groups in by_k.values() for one in groups.values())


def _slope(by_k: dict[int, dict[str, Signal]], group: str, number: str) -> tuple[float, float] | None:
    """Over the `LARGEST` largest K, with its standard error: what theory says of slopes it says of many particles."""
    at = {k: by_k[k][group].summary() for k in sorted(by_k)[-LARGEST:]}
    values, errors = ([one[name] for one in at.values()] for name in (number, f"{number}_se"))
    if len(values) < 2 or not all(0 < value < math.inf for value in values):
        return None
    return slope(list(at), values, errors)


def _shown(slope: tuple[float, float] | None) -> str:
    return "-" if slope is None else f"{slope[0]:+.2f} +- {'-' if math.isnan(slope[1]) else format(slope[1], '.2f')}"


def _slopes(results: Found) -> list[dict[str, Any]]:
    """Of each estimator, group of parameters and number, those that the table has; over which K."""
    return [
        {"gradient": name, "parameters": group, "number": number, "particles": ks, "slope": found[0], "se": found[1]}
        for name, by_k in results.items()
        for ks in [sorted(by_k)[-LARGEST:]]
        for group in by_k[ks[0]]
        for number in NUMBERS
        if (found := _slope(by_k, group, number))
    ]


def _write(path: Path, results: Found, ks: Sequence[int], about: dict[str, Any]) -> bool:
    """Whether there was anything to write."""
    ending = path.suffix.lower()
    rows = [
        {"gradient": name, "particles": k, "parameters": group, **one.summary()}
        for name, by_k in results.items()
        for k, groups in by_k.items()
        for group, one in groups.items()
    ]
    lines = {} if ending in (".json", ".csv") else _drawn(path, _lines(results, ks))
    if not lines and ending not in (".json", ".csv"):
        cli.say(f"not written: {path}: no gradient has both signal and noise")
        return False
    with whole(path, RETRY) as aside:
        if ending == ".json":
            aside.write_text(as_json({**about, "rows": rows, "slopes": _slopes(results)}))
        elif ending == ".csv":
            aside.write_text(as_csv(list(rows[0]), rows))
        else:
            options = {"floor": _floor(results), "title": about["of"]}
            dashed = [name for name in lines if name.endswith(": model")]
            plots.save(plots.signal_against_k(ks, lines, dashed=dashed, **options), aside)
    return True


def _drawn(path: Path, lines: dict[str, list[float]]) -> dict[str, list[float]]:
    """Those lines that have a point: a gradient without noise, as of a point mass, has no ratio of signal to it."""
    shown = {name: values for name, values in lines.items() if any(0 < value < math.inf for value in values)}
    for name, values in lines.items():
        if name not in shown:
            cli.say(f"{path}: without {name}: its gradient has no {'noise' if math.inf in values else 'signal'}")
    return shown


def _lines(results: Found, ks: Sequence[int]) -> dict[str, list[float]]:
    """The SNR of each estimator and group of parameters by K; estimators that coincide in a group are one line."""
    lines: dict[str, list[float]] = {}
    for group in next(iter(next(iter(results.values())).values())):
        found: list[tuple[list[str], list[float]]] = []
        for name, by_k in results.items():
            values = _values(by_k, ks, group, "snr")
            for names, shared in found:
                both = [pair for pair in zip(shared, values, strict=True) if not any(map(math.isnan, pair))]
                if both and all(math.isclose(*pair, rel_tol=0.005) for pair in both):
                    names.append(name)
                    shared[:] = [b if math.isnan(a) else a for a, b in zip(shared, values, strict=True)]
                    break
            else:
                found.append(([name], values))
        for names, values in found:
            lines[f"{'all' if 1 < len(names) == len(results) else ', '.join(names)}: {group}"] = values
    return lines


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="pvae gradients", description="Signal and noise of gradient estimators against K.")
    add = parser.add_argument
    add("run", nargs="?", help="a run folder, or a checkpoint of it")
    add("--toy", action="store_true", help="the Gaussian toy of Rainforth et al. 2018, in place of a run")
    add("--gradient", default="reparam,stl,dreg", metavar="NAME,...", help="estimators (default: reparam,stl,dreg)")
    add("--particles", default="1,4,16,64,256", metavar="K,...", help="every K (default: 1,4,16,64,256)")
    add("--objective", default="iwae", metavar="NAME", help="whose gradient (default: iwae)")
    add("--samples", default="1000", metavar="N", help="gradients for each (default: 1000)")
    add("--batch-size", default="20", metavar="N", help="test data that the gradient is of (default: 20)")
    add(
        "--out",
        action="append",
        metavar="FILE",
        help="write it; may be given several times: .json, .csv, or .png, .pdf, .svg (SNR against K)",
    )
    add("--seed", default="0", metavar="SEED", help="of the draws (default: 0)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (default: auto)")
    return parser


if __name__ == "__main__":
    cli.run(main, "gradients")
