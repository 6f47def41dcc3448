"""What a run prints as it begins, and what it writes at its end: final numbers, labelled results, the table."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import figures, programs
from .cells import chunk_of
from .config import Config
from .data import Dataset, Split, pixels
from .evaluate import UNUSED, Evaluation, bits_per_dim, evaluate
from .means import with_error
from .noise import forked
from .pace import pace
from .programs import LogWeights
from .programs.kl import closed
from .runs import Run, protocol, write_results
from .train import Training
from .vae import Autoencoder

SHOWN = 100
"""Test data whose draws go into the results."""
DRAWS = 200
"""Draws for each of them."""


def opening(run: Run, training: Training) -> str:
    """What is about to happen, in two lines; a third where an analytic KL is from draws."""
    config, sizes = run.config, training.dataset.sizes
    parameters = sum(p.numel() for p in training.vae.parameters())
    parts = f"{config.prior} prior, {config.likelihood} likelihood, {config.guide} guide, {parameters:,} parameters"
    device = next(training.vae.parameters()).device
    counts = ", ".join(f"{n:,} {part}" for part, n in sizes.items())
    drawn = f"binarization: {config.binarization}"
    drawn += f", dequantization: {config.dequantization}" if config.dequantization != "none" else ""
    source, note = training.dataset.source, training.dataset.note
    data = (
        f"{config.data}{source and f', {source}'} ({counts}; {_datum(training.dataset)}; {drawn}{note and f'; {note}'})"
    )
    at, epochs = training.at, f"{training.epochs:,} epoch{'s' * (training.epochs != 1)}"
    if at.epoch or at.batch:
        epochs += f" from epoch {at.epoch + 1:,}" if at.epoch < training.epochs else ", all done"
    gradient = "" if config.gradient == "reparam" else f", gradient {config.gradient}"
    objective = f"{config.objective} with K={config.particles}{gradient}"
    lines = [data, f"{parts}; {objective}, {epochs} on {device}, into {run.folder}"]
    analytic = config.options.get("objective", {}).get("analytic_kl")
    return "\n".join([*lines, *(_sampled(training) if analytic else [])])


def _sampled(training: Training) -> list[str]:
    """A line of the latents whose KL is not in closed form, where it is to be."""
    vae, (x, y), mode = training.vae, training.dataset.train, training.vae.training
    with torch.no_grad(), forked(x.device):
        few = training.prepare(x[:2], None if y is None else y[:2])
        traces = programs.trace(vae.eval().model, vae.guide, *few)
    vae.train(mode)
    found, latents = closed(traces), [name for name, _ in programs.sites_of(traces.guide)]
    if not (rest := [name for name in latents if name not in found]):
        return []
    why = "there is none, or the guide draws in another order than the model"
    where = ", ".join(found) or "no latent"
    return [f"analytic_kl: in closed form of {where}; from draws of {', '.join(rest)}: {why}"]


def _datum(dataset: Dataset) -> str:
    """The shape of a datum, and what is known beside it."""
    ys = [getattr(dataset, part).y for part in dataset.sizes if dataset.sizes[part]]
    if ys[0] is None:
        beside = "without labels"
    elif ys[0].dim() == 1:
        beside = f"with labels {min(y.min().item() for y in ys)} to {max(y.max().item() for y in ys)}"
    else:
        beside = f"with {ys[0].shape[1]} number{'s' * (ys[0].shape[1] != 1)} beside it"
    return f"a datum: {' x '.join(map(str, dataset.shape))}, {beside}"


def write(run: Run, training: Training, say: Callable[[str], None]) -> None:
    """Evaluate on the test data, say the numbers; write `summary.json`, `results.nc` and `figures/`."""
    config, vae, dataset = run.config, training.vae.eval(), training.dataset
    most = max(config.eval_particles)
    say(f"evaluating {len(dataset.test.x):,} test data with {most} draw{'s' * (most != 1)} each")
    x, y = pixels(dataset.test.x), dataset.test.y
    found = evaluate(
        vae.model,
        vae.guide,
        x,
        y,
        particles=config.eval_particles,
        seed=config.data_seed,
        chunk=config.eval_chunk,
        progress=pace(say, "evaluated", " (--eval-particles with a smaller largest K is quicker)"),
    )
    best = training.at.best
    summary = {
        "test": nested(found) | bits_per_dim(found, config.level_volume, prod(dataset.shape)),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "epoch": best["epoch"] if best else training.at.epoch,
        "protocol": {**protocol(config, dataset), "seed": config.seed, "K": list(found.iw), "draws": found.draws},
    }
    say(table(config, summary))  # before what may fail on a full disk
    run.write_json("summary.json", summary)
    arrays = results(vae, dataset.test, found, config.data_seed, config.eval_chunk, pace(say, "draws of results.nc:"))
    write_results(run.folder / "results.nc", arrays, {**summary["protocol"], "epoch": summary["epoch"]})
    figures.draw(run, vae, dataset.test, found, say)


def nested(found: Evaluation) -> dict[str, Any]:
    """The summary as nested dictionaries: elbo.mean, elbo.se, iw.200.mean, ..., active_units, layers.z1.rate.mean."""
    flat = found.summary()
    iw = {str(k): flat.pop(f"iw.{k}") for k in found.iw}
    layers = {
        name: {"rate": rate, "active_units": found.layers[name].active_units, "units": len(found.layers[name].variance)}
        for name, rate in found.rates().items()
    }
    return {**flat, "iw": iw, "active_units": found.active_units, **({"layers": layers} if layers else {})}


@torch.no_grad()
def results(
    vae: Autoencoder,
    split: Split,
    found: Evaluation,
    seed: int,
    chunk: int | None,
    progress: Callable[[int, int], None],
) -> dict[str, dict[str, tuple[tuple[str, ...], Tensor]]]:
    """The arrays of a results file: bounds of every test datum, draws and reconstructions of the first of them."""
    x = pixels(split.x[:SHOWN])
    y = None if split.y is None else split.y[:SHOWN]
    with forked(x.device):
        torch.manual_seed(seed)
        drawn = programs.draw(vae.guide, x, y, particles=DRAWS, max_plate_nesting=1)
    scored, size = [], max(1, (chunk or chunk_of(x)) // len(x))
    for part in drawn.parts(size):
        scored.append(programs.split(programs.score(vae.model, part, x, y)))
        progress(min(len(scored) * size, DRAWS), DRAWS)
    terms = LogWeights(*(torch.cat(term) for term in zip(*scored, strict=True)))
    draws, pixel = ("chain", "draw", "shown"), tuple(f"x_{i}" for i in range(x.dim() - 1))
    observed = {"x": (("shown", *pixel), x)}
    if y is not None:
        observed |= {"label": (("shown",), y)} if y.dim() == 1 else {"covariates": (("shown", "covariate"), y)}
    return {
        "posterior": {
            name: ((*draws, f"latent{figures.suffix(vae, name)}"), drawn.sites[name]["value"].unsqueeze(0))
            for name in vae.sites
        },
        "log_likelihood": {"x": (draws, terms.likelihood.unsqueeze(0))},
        "sample_stats": {
            "log_weight": (draws, terms.log_w.unsqueeze(0)),
            "log_prior": (draws, terms.prior.unsqueeze(0)),
            "log_posterior": (draws, terms.posterior.unsqueeze(0)),
        },
        "observed_data": observed,
        "constant_data": {
            **{name.replace(".", "_"): (("datum",), value) for name, value in found.columns().items()},
            **{
                f"latent_variance{end}": ((f"latent{end}",), value)
                for end, (value, _) in figures.variances(vae, found).items()
            },
            **{f"rate_{name}": (("datum",), layer.rate) for name, layer in found.layers.items()},
            "reconstruction": (("shown", *pixel), vae.reconstruct(x, y)),
        },
    }


def table(config: Config, summary: dict[str, Any]) -> str:
    """The final numbers as a table."""
    test, protocol_ = summary["test"], summary["protocol"]
    rows = [("ELBO", test["elbo"])]
    rows += [(f"IW bound, K={k}", value) for k, value in test["iw"].items()]
    rows += [("rate", test["rate"]), ("distortion", test["distortion"])]
    lines = [f"\ntest, {protocol_['sizes']['test']:,} data, nats / datum, epoch {summary['epoch']}"]
    lines += [f"  {name:<18}{with_error(value, 10)}" for name, value in rows]
    lines += [] if protocol_["sizes"]["test"] > 1 else ["  of one test datum there is no standard error"]
    lines += [f"  {'active units':<18}{_or_dash(test['active_units']):>6} of {sum(config.layers)}"]
    lines += [f"  {UNUSED}"] if test["active_units"] == 0 else []
    lines += [] if config.bounded else [f"  the numbers are {protocol_['numbers']}"]
    if bits := test.get("bits_per_dim"):
        lines += [f"  {'bits / dim, K=' + str(bits['K']):<18}{with_error(bits, 10)}"]
    for name, layer in test.get("layers", {}).items():
        units = f"{_or_dash(layer['active_units'])} of {layer['units']} active"
        lines += [f"  {f'{name}: rate':<18}{with_error(layer['rate'], 10)}, {units}"]
    return "\n".join(lines)


def closing(run: Run) -> str:
    """The run folder, and the next command to type."""
    folder = shlex.quote(str(Path(run.folder)))
    lines = [f"\nrun folder: {folder}"]
    drawn = run.folder / "figures"
    if not drawn.exists() or (drawn / "samples.png").exists():
        lines += [f"next: python -m pvae.sample {folder} -n 64 -o samples.png"]
    return "\n".join(lines)


def _or_dash(count: int | None) -> int | str:
    return "-" if count is None else count
