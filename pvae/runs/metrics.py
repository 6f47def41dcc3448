"""The lines of `metrics.jsonl`, one an epoch: appended, made durable, read, and cut where a run goes back."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import as_json


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line."""
    with open(path, "a") as file:
        file.write(as_json(record, None))


def sync(path: Path) -> None:
    """Let the lines outlast a loss of power, as a checkpoint that is written after them does."""
    with suppress(FileNotFoundError), open(path, "rb+") as file:
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The lines.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: missing or damaged: expected a line of JSON for each epoch: restore it, or fit again"
        ) from error


def until(path: Path, epoch: int) -> str:
    """The lines up to an epoch, as text; without those before the file began anew, or all if it was deleted.

    Raises:
        InputError: one of them is missing or damaged; one after them may be, by a run that was killed.
    """
    kept, numbers = [], []
    with suppress(ValueError, TypeError, KeyError):
        for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
            number = json.loads(line)["epoch"]
            if number > epoch:
                break
            kept.append(f"{line}\n")
            numbers.append(number)
    if path.exists() and numbers != list(range(epoch - max(len(numbers), 1) + 1, epoch + 1)) and epoch:
        raise InputError(
            f"{path}: damaged: expected a line of JSON for each epoch to {epoch}: restore it, or delete it to go on"
            " without what it held"
        )
    return "".join(kept)
