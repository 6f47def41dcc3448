"""`python -m pvae.sample`: draw images from a run's prior.

python -m pvae.sample runs/NAME -n 64 -o samples.png
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import cli, plots
from .checkpoints import disk
from .errors import InputError
from .load import load
from .report import picture, sample

ENDINGS = (".png", ".pdf", ".svg", ".npy")


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="pvae sample", description="Draw images from a run's prior.")
    parser.add_argument("run", help="a run folder, or one of its checkpoints")
    parser.add_argument("-n", default="64", metavar="N", help="how many (default: 64)")
    parser.add_argument(
        "-o", default="samples.png", metavar="FILE", help=f"{', '.join(ENDINGS)} (default: samples.png)"
    )
    parser.add_argument("--label", metavar="Y", help="of one class alone, for a model conditioned on labels")
    parser.add_argument("--draw", action="store_true", help="draw x from p(x|z) too, in place of its mean")
    parser.add_argument("--seed", default="0", metavar="SEED", help="of the draws (default: 0)")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda (default: auto)")
    return parser


def _check_label(label: int, condition: str, y: Tensor | None) -> None:
    if condition != "label" or y is None:
        raise InputError(f"--label {label}: the run is not conditioned on labels: fit one with --condition label")
    if not (y == label).any():
        raise InputError(f"--label {label}: found no such class, expected one of 0 to {y.max().item()}")


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    found = _parser().parse(argv)
    n, seed = cli.whole(found.n, "-n", 1), cli.whole(found.seed, "--seed", 0)
    out = cli.output(found.o, "-o", ENDINGS)
    device = cli.device(found.device)
    vae, dataset, run = load(found.run, device)
    label = None if found.label is None else cli.whole(found.label, "--label", 0)
    if label is not None:
        _check_label(label, run.config.condition, dataset.test.y)
    images = sample(vae, n, seed, dataset.test, mean=not found.draw, label=label)
    with disk(out):
        if out.suffix == ".npy":
            import numpy as np

            np.save(out, images.cpu().numpy())
        else:
            plots.save(plots.image_grid(picture(images, dataset.test)), out)
    print(f"{n} samples in {out}")
    return 0


if __name__ == "__main__":
    cli.run(main, "sample")
