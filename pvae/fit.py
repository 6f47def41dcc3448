"""`python -m pvae.fit`: fit a variational autoencoder, evaluate it, draw it.

python -m pvae.fit --likelihood bernoulli
python -m pvae.fit --resume runs/NAME
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from . import cli, config, data, report
from .config import Config
from .errors import InputError
from .load import read_data, run_data
from .progress import Progress
from .runs import Run, load_weights
from .train import Training, svi


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    rest, extra = cli.foreign_options(argv)
    found = parser.parse(rest)
    if found.resume:
        return _resume(found, argv)
    settings = cli.config_from(found, extra, found.config)
    if found.print_config:
        print(config.to_yaml(settings), end="")
        return 0
    device = cli.device(settings.device)
    dataset = read_data(settings)
    torch.manual_seed(settings.seed)
    vae = config.build(settings, dataset).to(device)
    training = _training(vae, settings, dataset.to(device))
    run = Run.create(found.out, settings, dataset, device)
    return _fit(run, training)


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="pvae fit", description="Fit a variational autoencoder, evaluate it, draw it.")
    group = parser.add_argument_group("the run")
    group.add_argument("--out", metavar="DIR", help="the run folder (default: a fresh one under runs/)")
    group.add_argument("--config", metavar="FILE", help="a configuration file; options override it")
    group.add_argument("--resume", metavar="DIR", help="continue a run, or one of its checkpoints")
    group.add_argument("--print-config", action="store_true", help="print the configuration as YAML, and stop")
    cli.add_config_options(parser)
    return parser


def _training(vae: Any, settings: Config, dataset: data.Dataset) -> Training:
    steps = settings.epochs_for(len(dataset.train.x)) * -(-len(dataset.train.x) // settings.batch_size)
    return Training(vae, svi(vae, config.objective(settings), settings, steps), dataset, settings)


def _resume(found: Any, argv: Sequence[str]) -> int:
    given = [
        name for name, value in vars(found).items() if value not in (None, False) and name not in ("resume", "device")
    ]
    if given:
        raise InputError(
            f"--resume with --{given[0].replace('_', '-')}: a resumed run keeps its configuration: leave it out, or"
            f" start a new run with --config {found.resume}/config.yaml"
        )
    run, checkpoint = Run.at(found.resume)
    settings = run.config
    device = cli.device(found.device or settings.device)
    dataset = run_data(run)
    vae = config.build(settings, dataset).to(device)
    load_weights(vae, checkpoint)
    training = _training(vae, settings, dataset.to(device))
    training.load_state_dict(checkpoint.state)
    run.forget_metrics_after(training.at.epoch)
    return _fit(run, training)


def _fit(run: Run, training: Training) -> int:
    print(report.opening(run, training), flush=True)
    with _signals() as caught, Progress(training) as progress:
        for record in training.records(stop=lambda: bool(caught)):
            run.log(record)
            progress.show(record)
            if training.saves:
                run.save(training.vae, training.state_dict())
        if caught and training.at.epoch < training.epochs:
            run.save(training.vae, training.state_dict())
            return _interrupted(run, training, caught[0])
        load_weights(training.vae, run.best())
        report.write(run, training, progress.say)
    print(report.closing(run))
    return 128 + caught[0] if caught else 0


def _interrupted(run: Run, training: Training, number: int) -> int:
    at, name = training.at, signal.Signals(number).name
    print(
        f"\n{name}: saved at epoch {at.epoch + 1}, batch {at.batch}: continue with\n"
        f"  python -m pvae.fit --resume {shlex.quote(str(run.folder))}",
        flush=True,
    )
    return 128 + number


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted; whoever is at work stops at its next good point."""
    caught: list[int] = []
    before = {n: signal.signal(n, lambda number, _: caught.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    cli.run(main, "fit")
