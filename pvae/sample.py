"""`python -m pvae.sample`: draw images from a run's prior.

python -m pvae.sample runs/NAME -n 64 -o samples.png
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import cli, plots
from .config import Config
from .data import Dataset, Split, pixels
from .errors import InputError
from .figures import BESIDE, picture, sample
from .files import RETRY, whole
from .load import load

ENDINGS = (".png", ".pdf", ".svg", ".npy")


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="pvae sample", description="Draw images from a run's prior.")
    add = parser.add_argument
    add("run", help="a run folder, or one of its checkpoints")
    add("-n", default="64", metavar="N", help="how many (default: 64)")
    add("-o", default="samples.png", metavar="FILE", help=f"{', '.join(ENDINGS)} (default: samples.png)")
    add("--label", metavar="Y", help="of one class alone, for a model conditioned on labels")
    add("--draw", action="store_true", help="draw x from p(x|z) too, in place of its mean")
    add("--seed", default="0", metavar="SEED", help="of the draws (default: 0)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (default: auto)")
    return parser


def _check_label(label: int, config: Config, dataset: Dataset) -> None:
    y = dataset.test.y
    classes = config.condition != "none" and y is not None and not y.is_floating_point()
    if not (classes and config.of_model):
        what = "its guide alone is" if classes else "the run is not"
        raise InputError(
            f"--label {label}: {what} conditioned on labels: fit one with --condition label, of prior or likelihood"
        )
    there = torch.cat([getattr(dataset, name).y for name in dataset.sizes]).unique().tolist()
    if label not in there:
        each = there == list(range(len(there)))
        known = f"0 to {there[-1]}" if each else ", ".join(map(str, there[:20])) + ", ..." * (len(there) > 20)
        raise InputError(f"--label {label}: found no such class, expected one of {known}")


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    found = _parser().parse(argv)
    n, seed = cli.whole(found.n, "-n", 1), cli.whole(found.seed, "--seed", 0)
    out = cli.output(found.o, "-o", ENDINGS)
    device = cli.device(found.device)
    vae, dataset, run = load(found.run, device, cli.say)
    label = None if found.label is None else cli.whole(found.label, "--label", 0)
    if label is not None:
        _check_label(label, run.config, dataset)
    images = sample(vae, n, seed, dataset.test, mean=not found.draw, label=label)
    with whole(out, RETRY) as aside:
        if out.suffix == ".npy":
            import numpy as np

            np.save(aside, images.cpu().numpy())
        else:
            name = "draws" if found.draw else "means of p(x|z)"
            plots.save(_figure(images, dataset.test, name, "" if label is None else f", label {label}"), aside)
    print(f"{n} sample{'s' * (n != 1)} in {out}")
    return 0


def _figure(images: torch.Tensor, test: Split, name: str, label: str) -> Any:
    """Images in a grid; of a table how its columns are distributed, beside the test data's."""
    x = pixels(test.x).cpu().numpy()
    if not plots.is_drawn(x.shape[1:]):
        raise InputError(
            f"-o: found data of shape {x.shape[1:]}, which is no picture: write numbers, with -o samples.npy"
        )
    if plots.is_table(x):
        return plots.samples(
            x, images.cpu().numpy(), names=("test data", f"{len(images)} {name}"), title=BESIDE + label
        )
    return plots.image_grid(picture(images, test), title=f"Samples: {name}{label}")


if __name__ == "__main__":
    cli.run(main, "sample")
