"""The training loop: yields a record an epoch, and can be stopped and continued anywhere, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from math import cos, pi
from typing import Any

import pyro
import torch
from torch import Tensor

from .cells import Kept
from .config import Config
from .data import Dataset, batch_rows, binarize, dequantize, pixels
from .errors import InputError
from .evaluate import evaluate
from .optimizers import Optimizer
from .svi import SVI, NonFiniteError
from .svi.engine import unsaid
from .vae import Autoencoder

VALIDATION_PARTICLES = (1, 10)
FALL = 5
"""Of so many parts of a run's steps the last one is taken at a falling rate, under `cooldown`."""


@dataclass
class Position:
    """Where training is: what resuming needs beside parameters, optimizer and generators."""

    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    total: float | Tensor = 0.0
    """The sum of the loss over them, nats; on CUDA on the device until it is asked for."""
    count: int = 0
    """The number of data in them."""
    best: dict[str, Any] | None = None
    """Where the best validation bound was seen: {"steps", "epoch", "bound"}."""


class Training:
    """A model, its SVI and where they are; `records` runs it.

    Args:
        vae: on the device it trains on.
        svi: of its model and guide.
        dataset: on the same device, binarized or dequantized where it is fixed.
        config: batch size, epochs, seeds, binarization, dequantization.
    """

    def __init__(self, vae: Autoencoder, svi: SVI, dataset: Dataset, config: Config) -> None:
        self.vae, self.svi, self.dataset, self.config = vae, svi, dataset, config
        self.epochs = config.epochs_for(len(dataset.train.x))
        self.save_every = config.save_every_for(self.epochs)
        self.at = Position()
        self._kept = Kept()

    def records(self, stop: Callable[[], bool] = lambda: False) -> Iterator[dict[str, Any]]:
        """Train to the end, a record for each epoch; returns early, after a step, once `stop()` is true.

        Raises:
            InputError: a loss or gradient that is not finite: names epoch, batch, step and site.
        """
        while self.at.epoch < self.epochs and not stop():
            if not self._epoch(stop):
                return
            at = self.at
            record = {"epoch": at.epoch + 1, "steps": self.svi.steps, "train": -at.total / at.count}
            self.at = Position(epoch=at.epoch + 1, best=at.best)
            if self.saves:
                record |= self._validate()
            yield record

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is due: every so many epochs, and at the end."""
        at = self.at
        return at.batch == 0 and at.epoch > 0 and (at.epoch % self.save_every == 0 or at.epoch == self.epochs)

    def _epoch(self, stop: Callable[[], bool]) -> bool:
        """Run this epoch from where it is; False if stopped within it."""
        config, at = self.config, self.at
        x, y = self.dataset.train
        rows = batch_rows(len(x), config.batch_size, config.seed, at.epoch, start=at.batch, device=x.device)
        number = at.batch + len(rows)
        try:
            for losses in self.svi.run(rows, x, y, prepare=self.prepare):
                at.total += losses.sum(dtype=torch.float64) if losses.is_cuda else losses.item()
                at.batch += len(losses)
                at.count = min(at.batch * config.batch_size, len(x))
                if stop() and at.batch < number:
                    return False
            at.total = float(at.total)
            self.svi.check()
        except NonFiniteError as error:
            epoch, batch = divmod(error.step - 1, number)
            where = f"epoch {epoch + 1}, batch {batch + 1} of {number}"
            raise InputError(f"{where}, {error}: training stopped before it: {self._advice}") from error
        return True

    @property
    def _advice(self) -> str:
        """What to do where training diverges."""
        note = self.dataset.note
        return "lower --lr, or set --clip-norm" + (f"; the data are {note}" if note else "")

    def prepare(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A batch as the programs take it."""
        if self.config.dequantization != "none":
            return dequantize(x, self.config.dequantization), y
        return binarize(x, "dynamic" if self.config.binarization == "dynamic" else "none"), y

    def _validate(self) -> dict[str, Any]:
        x, y = self.dataset.validation
        if not len(x):
            self.at.best = None
            return {}
        self.vae.eval()
        try:
            with pyro.validation_enabled(False):  # what is not a number is found in the sums, and named
                found = evaluate(
                    self.vae.model,
                    self.vae.guide,
                    pixels(x),
                    y,
                    particles=VALIDATION_PARTICLES,
                    seed=self.config.data_seed,
                    chunk=self.config.eval_chunk,
                    kept=self._kept,
                )
        except InputError as error:
            where = f"validation after epoch {self.at.epoch}, step {self.svi.steps}"
            hint = f": {self._advice}" if "diverged" in str(error) else ""
            raise InputError(f"{where}: {error}{hint}") from error
        self.vae.train()
        summary = found.summary()
        # by the ELBO a model that is fitted under a bound that weighs its draws would be best when it has hardly begun
        judged = "elbo" if getattr(self.svi.objective, "power", 0.0) == 0 else f"iw.{VALIDATION_PARTICLES[-1]}"
        bound = summary[judged]["mean"]
        if self.at.best is None or bound > self.at.best["bound"]:
            self.at.best = {"steps": self.svi.steps, "epoch": self.at.epoch, "bound": bound}
        means = {f"validation.{name}": value["mean"] for name, value in summary.items() if name != "iw.1"}
        return {**means, "validation.active_units": found.active_units}

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the weights: position, optimizer, generators; loads with `weights_only=True`."""
        cuda = next(self.vae.parameters()).device.type == "cuda"
        return {
            **asdict(self.at),
            "total": float(self.at.total),
            "steady": steady(self.config, len(self.dataset.train.x)),
            **self.svi.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if cuda else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.at = Position(**{key: state[key] for key in asdict(self.at)})
        self.svi.load_state_dict({key: state[key] for key in self.svi.state_dict().keys() & state.keys()})
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["random_cuda"])


def svi(
    vae: Autoencoder,
    objective: Any,
    optimizer: Optimizer,
    config: Config,
    steps: int,
    notice: Callable[[str], None] = unsaid,
) -> SVI:
    """The optimizer over all parameters, the schedule, the clipping and the compilation of a configuration."""
    return SVI(
        vae.model,
        vae.guide,
        partial(optimizer, lr=config.lr),
        objective,
        clip_norm=config.clip_norm,
        schedule=partial(SCHEDULES[config.schedule], steps) if config.schedule in SCHEDULES else None,
        compile=config.compile,
        steps=steps,
        precision=config.precision,
        notice=notice,
    )


def _cosine(steps: int, step: int) -> float:
    """From 1 to 0 in so many steps."""
    return 0.5 * (1 + cos(pi * min(step, steps) / steps))


def _cooldown(steps: int, step: int) -> float:
    """1, and in the last fifth of so many steps in a straight line to 0. Hägele et al. 2024."""
    return min(1.0, FALL * max(0.0, 1 - step / steps))


def steady(config: Config, n: int) -> int:
    """How many steps on n data are the same in a longer run: those before the learning rate falls."""
    steps = config.steps_for(n)
    return {"constant": steps, "cooldown": steps - -(-steps // FALL)}.get(config.schedule, 0)


SCHEDULES = {"cooldown": _cooldown, "cosine": _cosine}
"""By name, from all steps and those taken to a factor of the learning rate."""
