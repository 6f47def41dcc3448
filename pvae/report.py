"""What a finished run leaves: final numbers, labelled results, figures, and the table that is printed."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import weights
from .checkpoints import disk
from .data import Split, pixels
from .errors import InputError
from .evaluate import Evaluation, evaluate
from .pace import pace
from .runs import Run, protocol, write_results
from .train import Training
from .vae import VAE, mean_of
from .weights import LogWeights

SHOWN = 100
"""Test data whose draws go into the results."""
DRAWS = 200
"""Draws for each of them."""


def opening(run: Run, training: Training) -> str:
    """What is about to happen, in two lines."""
    config, sizes = run.config, training.dataset.sizes
    parameters = sum(p.numel() for p in training.vae.parameters())
    parts = f"{config.prior} prior, {config.likelihood} likelihood, {config.guide} guide, {parameters:,} parameters"
    device = next(training.vae.parameters()).device
    counts = ", ".join(f"{n:,} {part}" for part, n in sizes.items())
    data = f"{config.data} ({counts}; binarization: {config.binarization})"
    resumed = f" from epoch {training.at.epoch + 1:,}" if training.at.epoch or training.at.batch else ""
    gradient = "" if config.gradient == "reparam" else f", gradient {config.gradient}"
    objective = f"{config.objective} with K={config.particles}{gradient}"
    return f"{data}\n{parts}; {objective}, {training.epochs:,} epochs{resumed} on {device}, into {run.folder}"


def write(run: Run, training: Training, say: Callable[[str], None]) -> None:
    """Evaluate on the test data; write `summary.json`, `results.nc` and `figures/`."""
    config, vae, dataset = run.config, training.vae.eval(), training.dataset
    say(f"evaluating {len(dataset.test.x):,} test data with {max(config.eval_particles)} draws each")
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
        "test": nested(found),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "epoch": best["epoch"] if best else training.at.epoch,
        "protocol": {**protocol(config, dataset), "seed": config.seed, "K": list(found.iw), "draws": found.draws},
    }
    arrays = results(vae, dataset.test, found, config.data_seed, config.eval_chunk)
    write_results(run.folder / "results.nc", arrays, attributes(summary))
    figures(run, vae, dataset.test, found, say)
    run.write_json("summary.json", summary)


def nested(found: Evaluation) -> dict[str, Any]:
    """The summary as nested dictionaries: elbo.mean, elbo.se, iw.200.mean, ..., active_units."""
    flat = found.summary()
    iw = {name.removeprefix("iw."): value for name, value in flat.items() if name.startswith("iw.")}
    rest = {name: value for name, value in flat.items() if not name.startswith("iw.")}
    return {**rest, "iw": iw, "active_units": found.active_units}


def attributes(summary: dict[str, Any]) -> dict[str, Any]:
    """The protocol as attributes of a results file: text and numbers."""
    flat = {**summary["protocol"], "epoch": summary["epoch"]}
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in flat.items()}


@torch.no_grad()
def results(
    vae: VAE, split: Split, found: Evaluation, seed: int, chunk: int
) -> dict[str, dict[str, tuple[tuple[str, ...], Tensor]]]:
    """The arrays of a results file: bounds of every test datum, draws and reconstructions of the first of them."""
    x = pixels(split.x)[:SHOWN]
    y = None if split.y is None else split.y[:SHOWN]
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        drawn = weights.draw(vae.guide, x, y, particles=DRAWS, max_plate_nesting=1)
    parts = drawn.parts(max(1, chunk // len(x)))
    scored = [weights.split(weights.score(vae.model, part, x, y)) for part in parts]
    terms = LogWeights(*(torch.cat(term) for term in zip(*scored, strict=True)))
    draws, pixel = ("chain", "draw", "shown"), tuple(f"x_{i}" for i in range(x.dim() - 1))
    constant = {"x": (("shown", *pixel), x)}
    if y is not None:
        constant["label"] = (("shown", *(f"y_{i}" for i in range(y.dim() - 1))), y)
    return {
        "posterior": {"z": ((*draws, "latent"), drawn.sites["z"]["value"].unsqueeze(0))},
        "log_likelihood": {"x": (draws, terms.likelihood.unsqueeze(0))},
        "sample_stats": {
            "log_weight": (draws, terms.log_w.unsqueeze(0)),
            "log_prior": (draws, terms.prior.unsqueeze(0)),
            "log_posterior": (draws, terms.posterior.unsqueeze(0)),
        },
        "observed_data": constant,
        "constant_data": {
            **{name.replace(".", "_"): (("datum",), value) for name, value in found.columns().items()},
            "latent_variance": (("latent",), found.latent_variance),
            "reconstruction": (("shown", *pixel), vae.reconstruct(x, y)),
        },
    }


@torch.no_grad()
def figures(run: Run, vae: VAE, test: Split, found: Evaluation, say: Callable[[str], None]) -> None:
    """Draw the run's figures into `figures/`; what cannot be drawn is said."""
    from . import plots

    folder = run.folder / "figures"
    with disk(folder):
        folder.mkdir(exist_ok=True)
        x = pixels(test.x)
        few = slice(0, 50)
        y = test.y
        drawn = {
            "learning_curves": plots.learning_curves(*curves(run)),
            "reconstructions": plots.reconstructions(
                _numpy(x[few]), _numpy(vae.reconstruct(x[few], None if y is None else y[few]))
            ),
            "latent_space": plots.latent_scatter(
                _numpy(mean_of(vae.encode(x[:5000], None if y is None else y[:5000]))),
                None if y is None or y.dim() > 1 else _numpy(y[:5000]),
                title="Posterior means of test data",
            ),
            "active_units": plots.active_units(_numpy(found.latent_variance)),
        }
        try:
            images = picture(sample(vae, 100, run.config.seed, test), test)
            drawn["samples"] = plots.image_grid(images, title="Samples from the prior")
            if run.config.latent == 2 and x.dim() > 2:  # a mosaic of pictures
                drawn["latent_plane"] = plots.latent_plane(*plane(vae, x.device))
        except InputError as error:  # of a prior that is only scored, or a decoder that needs labels
            say(f"no figure of {'the plane of latents' if 'samples' in drawn else 'samples'}: {error}")
        for name, figure in drawn.items():
            plots.save(figure, folder / f"{name}.png")


def curves(run: Run) -> tuple[list[int], dict[str, list[float]]]:
    """Epochs, and the learning curves over them by name; NaN where nothing was measured."""
    records = run.metrics()
    objective = run.config.objective.upper()
    names = {
        "train": f"training {objective}" + (f" (K={run.config.particles})" if run.config.particles > 1 else ""),
        "validation.elbo": "validation ELBO",
        "validation.iw.10": "validation IW bound (K=10)",
    }
    return [r["epoch"] for r in records], {
        label: [r.get(key, float("nan")) for r in records]
        for key, label in names.items()
        if any(key in r for r in records)
    }


def sample(vae: VAE, n: int, seed: int, split: Split, *, mean: bool = True) -> Tensor:
    """Means of p(x|z), or draws, for n draws z ~ p(z) from a seed of their own; with the labels of data, if any."""
    device = next(vae.parameters()).device
    y = None if split.y is None else split.y[torch.arange(n, device=device) % len(split.y)]
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return vae.sample(n, y, mean=mean)


def picture(images: Tensor, split: Split) -> Any:
    """Images as an array, cut to the range that data have: a few stray pixels would else grey all the others."""
    x = pixels(split.x)
    return _numpy(images.clamp(x.min(), x.max()))


def plane(vae: VAE, device: torch.device, side: int = 15) -> tuple[Any, Any, Any]:
    """Means of p(x|z) on a grid over the plane of a two-dimensional latent, and the grid."""
    grid = torch.linspace(-2.5, 2.5, side)
    images = vae.likelihood(torch.cartesian_prod(grid, grid).to(device)).mean
    images = torch.nn.functional.pad(images, (0, 1, 0, 1), value=images.max().item())  # a line between neighbours
    # rows of the mosaic are z2, columns z1
    images = images.reshape(side, side, *images.shape[1:]).transpose(0, 1)
    return _numpy(images), grid.numpy(), grid.numpy()


def _numpy(value: Tensor) -> Any:
    return value.detach().cpu().numpy()


def closing(run: Run) -> str:
    """The final numbers as a table, the run folder, and the next command to type."""
    summary = run.read_json("summary.json")
    test, protocol_ = summary["test"], summary["protocol"]
    rows = [("ELBO", test["elbo"])]
    rows += [(f"IW bound, K={k}", value) for k, value in test["iw"].items()]
    rows += [("rate", test["rate"]), ("distortion", test["distortion"])]
    lines = [f"\ntest, {protocol_['sizes']['test']:,} data, nats / datum, epoch {summary['epoch']}"]
    lines += [f"  {name:<18}{value['mean']:>10.3f} +- {value['se']:.3f}" for name, value in rows]
    lines += [f"  {'active units':<18}{test['active_units']:>6} of {run.config.latent}"]
    folder = shlex.quote(str(Path(run.folder)))
    lines += [f"\nrun folder: {folder}"]
    drawn = run.folder / "figures"
    if not drawn.exists() or (drawn / "samples.png").exists():
        lines += [f"next: python -m pvae.sample {folder} -n 64 -o samples.png"]
    return "\n".join(lines)
