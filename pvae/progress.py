"""Progress of a fit: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from .train import Training


class Progress:
    """Shows records as they come; a context manager.

    Args:
        training: whose records they are.
        console: where to; standard output if not given.
        every: seconds between plain lines, where there is no terminal.
    """

    def __init__(self, training: Training, console: Console | None = None, every: float = 5.0) -> None:
        self.training, self.every = training, every
        self.console = console or Console(file=sys.stdout)
        self.images = len(training.dataset.train.x)
        self.first = training.at.epoch
        self.began = self.shown = time.monotonic()
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._held = ""

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            columns = [
                TextColumn("epoch {task.completed}/{task.total}"),
                BarColumn(20),
                TextColumn("{task.fields[line]}"),
            ]
            self._bar = Bar(*columns, TextColumn("left"), TimeRemainingColumn(), console=self.console)
            self._task = self._bar.add_task("", total=self.training.epochs, completed=self.first, line="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Show the record of an epoch that has ended."""
        if "validation.elbo" in record:
            self._held = (
                f"validation ELBO {record['validation.elbo']:.2f}, IW bound (K=10) {record['validation.iw.10']:.2f}"
            )
        rate = self.images * (record["epoch"] - self.first) / (time.monotonic() - self.began)
        name = self.training.config.objective.upper()
        line = ", ".join(filter(None, [f"train {name} {record['train']:.2f}", self._held])) + " nats/datum"
        line += f", {rate:,.0f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=record["epoch"], line=line)
        elif time.monotonic() - self.shown >= self.every or record["epoch"] == self.training.epochs:
            self.shown = time.monotonic()
            left = (self.training.epochs - record["epoch"]) * self.images / rate
            print(f"epoch {record['epoch']}/{self.training.epochs}: {line}, {left:.0f} s left", flush=True)

    def say(self, text: str) -> None:
        """A line of what comes after training."""
        print(text, flush=True) if self._bar is None else self.console.print(text)
