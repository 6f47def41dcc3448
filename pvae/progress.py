"""Progress of a fit: two live lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .train import Training

WIDTH = 20
"""Of the bar, in characters."""


class Progress:
    """Shows records as they come, and on a terminal the batches between them; a context manager.

    Args:
        training: whose records they are.
        console: where to; standard output if not given.
        every: seconds between plain lines, where there is no terminal.
    """

    def __init__(self, training: Training, console: Console | None = None, every: float = 5.0) -> None:
        self.training, self.every = training, every
        self.console = console or Console(file=sys.stdout)
        self.images = len(training.dataset.train.x)
        self.first = self._done()
        self.began = self.shown = time.monotonic()
        self._numbers = self._held = ""
        live = Live(get_renderable=self._drawn, console=self.console, refresh_per_second=4)
        self._live = live if self.console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Show the record of an epoch that has ended."""
        if "validation.elbo" in record:
            elbo, iw = record["validation.elbo"], record["validation.iw.10"]
            self._held = f", validation ELBO {elbo:.2f}, IW bound (K=10) {iw:.2f}"
        name = self.training.config.objective.rpartition(":")[2].upper()
        self._numbers = f"train {name} {record['train']:.2f}{self._held} nats/datum"
        last = record["epoch"] == self.training.epochs
        if self._live is None and (last or time.monotonic() - self.shown >= self.every):
            self.shown = time.monotonic()
            print(f"epoch {record['epoch']}/{self.training.epochs}: {self._numbers}, {self._pace()}", flush=True)

    def _done(self) -> int:
        """Images seen, from the first epoch on."""
        return self.training.at.epoch * self.images + self.training.at.count

    def _pace(self) -> str:
        rate = (self._done() - self.first) / max(time.monotonic() - self.began, 1e-9)
        if not rate:
            return "starting"
        left = (self.training.epochs * self.images - self._done()) / rate
        return f"{rate:,.0f} images/s, {timedelta(seconds=round(left))} left"

    def _drawn(self) -> Text:
        epochs, done = self.training.epochs, self._done()
        full = WIDTH * done // (epochs * self.images)
        bar = "━" * full + "─" * (WIDTH - full)
        line = f"epoch {min(self.training.at.epoch + 1, epochs)}/{epochs} {bar} {self._pace()}"
        return Text("\n".join(filter(None, [line, self._numbers])), no_wrap=True, overflow="ellipsis")
