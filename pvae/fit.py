"""`python -m pvae.fit`: fit a variational autoencoder, evaluate it, draw it.

python -m pvae.fit --likelihood bernoulli
python -m pvae.fit --resume runs/NAME
"""

from __future__ import annotations

import copy
import importlib
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from threading import current_thread, main_thread
from typing import Any

import pyro
import torch

from . import build, cli, config, data, report
from .config import FAMILIES, PARTS, Config, flag
from .errors import InputError
from .load import begin_with, read_data, run_data
from .noise import forked, pythons_forked
from .progress import Progress
from .runs import Checkpoint, Run, check_free, load_weights
from .start import importing
from .svi.own import parameters
from .svi.unsaved import unsaved
from .train import Training, steady, svi
from .vae import Autoencoder

RESUMABLE = ("device", "eval_chunk", "epochs")
"""What may change in a resumed run: where it runs, its memory, and where it ends."""


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    found, own = cli.parse_with_members(_parser(argv), argv)
    if found.resume is not None:
        with Run.open(Run.folder_of(found.resume)).held():
            return _resume(found, own)
    settings = cli.config_from(found, own, found.config)
    if found.print_config:
        print(config.to_yaml(settings), end="")
        return 0
    device = cli.device(settings.device)
    if settings.precision == "tf32" and device.type != "cuda":
        raise InputError("--precision tf32: found no GPU, which has that format: leave it out, or use bf16")
    check_free(found.out)
    dataset = read_data(settings)
    torch.manual_seed(settings.seed)
    vae = build.model(settings, dataset)
    build.check_drawn(vae, settings, dataset)
    vae.to(device)
    start = _start(vae, settings, dataset) if settings.start_from else {}
    training = _training(vae, settings, dataset.to(device))
    _check_learned(training)
    _check_together(training)
    with _Signals() as signals, Run.create(found.out, settings) as run:
        run.describe(dataset, device, start)
        return _fit(run, training, signals)


def _parser(argv: Sequence[str]) -> cli.Parser:
    about = {
        "usage": "pvae fit [OPTION VALUE ...]",
        "description": "Fit a variational autoencoder, evaluate it, draw it.",
    }
    parser = cli.Parser(prog="pvae fit", **about)
    group = parser.add_argument_group("the run")
    group.add_argument("--out", metavar="DIR", help="the run folder (default: a fresh one under runs/)")
    group.add_argument("--config", metavar="FILE", help="a configuration file; options override it")
    group.add_argument(
        "--resume",
        metavar="DIR",
        help="continue a run, or one of its checkpoints: from then on it is the newest; one from before the learning"
        " rate fell also with more --epochs",
    )
    group.add_argument("--print-config", action="store_true", help="print the configuration as YAML, and stop")
    cli.add_config_options(parser, argv)
    return parser


def _start(vae: Any, settings: Config, dataset: data.Dataset) -> dict[str, Any]:
    """Give the model the weights of a run, and say which."""
    start = begin_with(vae, settings.start_from or "")
    line = f"weights of {start['checkpoint']}: {', '.join(start['taken'])}"
    line += f"; anew: {', '.join(start['anew'])}" if start["anew"] else ""
    own = {"sha256": dataset.sha256, "sizes": dataset.sizes, "data_seed": settings.data_seed}
    if any(start["data"][key] != value for key, value in own.items()):
        line += f"; fitted on other data or another split ({start['data']['name']}): what is held out here may be in it"
    print(line, flush=True)
    cli.say_changed(Run.open(Run.folder_of(settings.start_from or "")), settings)
    return {"start": start}


def _training(vae: Any, settings: Config, dataset: data.Dataset) -> Training:
    with importing():  # here, as torch's optimizers would where they are made
        importlib.import_module("torch._dynamo")
    steps = settings.steps_for(len(dataset.train.x))
    parts = build.objective(settings), build.optimizer(settings)
    made = svi(vae, *parts, settings, steps, lambda line: print(f"step: {line}", flush=True))
    return Training(vae, made, dataset, settings)


def _check_together(training: Training) -> None:
    """Refuse parts for which the gradient would be wrong, as the first step does, before a run is written.

    Raises:
        InputError: naming what meets there.
    """
    vae, settings, (x, y) = training.vae, training.config, training.dataset.train
    try:
        with forked(x.device), _unstored():
            few = training.prepare(x[:2], None if y is None else y[:2])
            build.objective(settings).bounds(vae.eval().model, vae.guide, *few)
    except Exception as error:
        if isinstance(error, InputError) and str(error).startswith("site '"):
            named = (f"{flag(name)} {getattr(settings, name)}" for name in (*PARTS, "objective", "gradient"))
            raise InputError(f"{' '.join(named)}: {error}") from error
        # of all else the first step says more
    finally:
        vae.train()


def _check_learned(training: Training) -> None:
    """Refuse parts of one's own by which a step learns what is none of its parameters: no checkpoint would have it.

    Raises:
        InputError: naming that, and the parts that are not the package's.
    """
    settings, (x, y) = training.config, training.dataset.train
    own = {name: value for name in FAMILIES if ":" in (value := getattr(settings, name))}
    found: list[str] = []
    with suppress(Exception), forked(x.device), pythons_forked():  # of an error the first step says more
        if own:
            objective, few = build.objective(settings), training.prepare(x[:2], None if y is None else y[:2])
            with _to_change(training.vae) as vae:
                loss = partial(objective.differentiable_loss, vae.model, vae.guide, *few)
                found.extend(unsaved(vae, loss, [*parameters(objective), *training.vae.parameters()]))
    if found:
        named = " ".join(f"{flag(name)} {value}" for name, value in own.items())
        climbs = not own.keys().isdisjoint(("objective", "gradient"))
        then = ", which an objective asks for by pyro.param('NAME', self.NAME)" * climbs
        raise InputError(
            f"{named}: found the {found[0]} which no checkpoint would have, expected a Parameter that is made once:"
            f" make it in __init__, self.NAME = torch.nn.Parameter(...){then}"
        )


@contextmanager
def _to_change(vae: Autoencoder) -> Iterator[Autoencoder]:
    """A copy of it; where it cannot be copied, itself, whose state is put back."""
    try:
        copied = copy.deepcopy(vae)
    except Exception:  # of what a part holds, as a lock
        copied = None
    state = {} if copied else copy.deepcopy(vae.state_dict())
    try:
        yield copied or vae
    finally:
        vae.load_state_dict(state, strict=False)


def _resume(found: Namespace, own: dict[str, str]) -> int:
    given = {name: value for name, value in {**vars(found), **own}.items() if value not in (None, False)}
    path = given.pop("resume", "")
    changes = {name: given.pop(name) for name in RESUMABLE if name in given}
    run, checkpoint = Run.at(path)
    if given:
        raise InputError(
            f"--resume with {flag(next(iter(given)))}: a resumed run keeps its configuration: leave it out, or"
            f" start a new run with --config {run.folder}/config.yaml"
        )
    settings = config.from_flat({**config.to_flat(run.config), **{k.replace("_", "-"): v for k, v in changes.items()}})
    device = cli.device(settings.device)
    dataset = run_data(run)
    _check_whole(run, checkpoint, len(dataset.train.x))
    if "epochs" in changes:
        _check_longer(run, checkpoint, settings, len(dataset.train.x))
    vae = build.model(settings, dataset).to(device)
    load_weights(vae, checkpoint)
    training = _training(vae, settings, dataset.to(device))
    try:
        training.load_state_dict(checkpoint.state)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{checkpoint.path}: foreign: its state is not one that this program writes") from error
    cli.say_changed(run)
    with _Signals() as signals:
        run.rewind(checkpoint)
        if "epochs" in changes:
            run.write_config(replace(run.config, epochs=settings.epochs))
        return _fit(replace(run, config=settings), training, signals)


def _check_whole(run: Run, checkpoint: Checkpoint, n: int) -> None:
    """Refuse epochs that were made so few that the steps until here would have been others."""
    steps, was = (checkpoint.state.get(name, 0) for name in ("steps", "steady"))
    if steady(run.config, n) < steps <= was:
        raise InputError(
            f"{run.folder}/config.yaml: found {run.config.epochs_for(n):,} epochs, in which the learning rate falls, or"
            f" which end, before {checkpoint.path.name}: put back as many as it was written with, or more"
        )


def _check_longer(run: Run, checkpoint: Checkpoint, settings: Config, n: int) -> None:
    """Refuse epochs that are no more than before, or with which the steps until here would have been others."""
    before, asked = run.config.epochs_for(n), f"--resume with --epochs {settings.epochs}"
    if settings.epochs_for(n) <= before:
        raise InputError(f"{asked}: expected more than the run's {before:,}: name more, or leave it out")
    if checkpoint.state["steps"] > checkpoint.state.get("steady", 0):
        found = run.steady(checkpoint.state)
        again = "start a new run with --config {}/config.yaml --epochs {}"
        if found:
            again = f"go back to before, --resume {{}}/checkpoints/{found} --epochs {{}}, which deletes what came after"
        raise InputError(
            f"{asked}: in {checkpoint.path.name} the learning rate is on its way to zero over {before:,} epochs"
            f" (--schedule {settings.schedule}): {again.format(run.folder, settings.epochs)}"
        )


@contextmanager
def _unstored() -> Iterator[None]:
    """Leave nothing new in Pyro's store, which has one network of a name: an objective's are others in each fit."""
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        yield
    finally:
        for name in set(store.keys()) - before:
            del store[name]


def _fit(run: Run, training: Training, signals: _Signals) -> int:
    print(report.opening(run, training), flush=True)
    try:
        with _unstored():
            _train(run, training, signals)
        signals.at_once = True
        if not signals.number:
            load_weights(training.vae, run.best())
            report.write(run, training, signals.say)
            signals.check()
            print(report.closing(run))
            return 0
    except KeyboardInterrupt:
        if run.is_empty():
            raise
    return _interrupted(run, training, signals.number or signal.SIGINT)  # of none, where a part raised it


def _train(run: Run, training: Training, signals: _Signals) -> None:
    """To the end, or to the first signal, after which the step is finished and saved."""
    try:
        with Progress(training) as progress:
            for record in training.records(stop=lambda: bool(signals.number)):
                run.log(record)
                if training.saves:
                    run.save(training.vae, training.state_dict())
                progress.show(record)
    except BrokenPipeError:  # nobody reads on
        signals.number = signal.SIGPIPE
    if signals.number:
        run.save(training.vae, training.state_dict())


def _interrupted(run: Run, training: Training, number: int) -> int:
    at, again = training.at, f"  python -m pvae.fit --resume {shlex.quote(str(run.folder))}"
    where = f"at epoch {at.epoch + 1}, batch {at.batch}" if at.epoch < training.epochs else "after training"
    with suppress(BrokenPipeError):
        print(
            f"{signal.Signals(number).name}: stopped {where}, checkpoint {run.names()[-1]}: continue with\n{again}",
            file=sys.stderr,
        )
    return 128 + number


class _Signals:
    """Notes the first SIGINT or SIGTERM: training stops at its next good point. A second one stops at once.

    With `at_once` so does the first, or, where Python drops the interrupt, as in a destructor, at the next `check`. In
    another thread than the main one, where none can be noted, nothing is.
    """

    at_once = False
    number = 0

    def __enter__(self) -> _Signals:
        numbers = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()
        self._before, self._hook = {n: signal.signal(n, self._note) for n in numbers}, sys.unraisablehook
        if numbers:
            sys.unraisablehook = self._dropped
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        again, self.number = self.at_once or self.number, number
        if again:
            raise KeyboardInterrupt(number)

    def _dropped(self, what: Any) -> None:
        if not (self.number and issubclass(what.exc_type, KeyboardInterrupt)):
            self._hook(what)

    def check(self) -> None:
        """Raise the interrupt, if a signal was noted."""
        if self.number:
            raise KeyboardInterrupt(self.number)

    def say(self, text: str) -> None:
        """Print a line of what comes after training, and check."""
        print(text, flush=True)
        self.check()


if __name__ == "__main__":
    cli.run(main, "fit")
