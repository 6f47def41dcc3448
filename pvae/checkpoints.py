"""Checkpoints that are whole or absent: written aside, synced, sealed with a manifest, then renamed.

A checkpoint is a folder with `weights.safetensors`, `state.pt` (tensors and plain values only, so that loading it
runs no code) and `manifest.json`, the SHA-256 of the two, written last.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError

FORMAT = "pvae checkpoint 1"
WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What was read back."""

    path: Path
    weights: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, name: str, weights: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write a checkpoint: after a crash at any moment it is there whole, or not at all.

    Args:
        folder: where checkpoints go.
        name: of this one; names sort by time.
        weights: a module's `state_dict`.
        state: tensors, numbers, text, and lists and dictionaries of them.

    Raises:
        InputError: a weight that is not finite; a disk that is full. What was there before stays.
    """
    from safetensors.torch import save_file

    for key, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"checkpoint {name}: '{key}' is not finite: nothing was saved, earlier checkpoints stay")
    aside, target = folder / f".{name}.writing", folder / name
    with disk(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            save_file(
                {key: value.detach().contiguous().cpu().clone() for key, value in weights.items()}, aside / WEIGHTS
            )
            torch.save(state, aside / STATE)
            sums = {part: _sync_and_sum(aside / part) for part in (WEIGHTS, STATE)}
            (aside / MANIFEST).write_text(json.dumps({"format": FORMAT, "sha256": sums}, indent=1))
            _sync_and_sum(aside / MANIFEST)
            _sync_folder(aside)
            if target.exists():
                os.rename(target, folder / f".{name}.old")
            os.rename(aside, target)
            _sync_folder(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(folder / f".{name}.old", ignore_errors=True)
    return target


def names(folder: Path) -> list[str]:
    """The checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def keep(folder: Path, wanted: set[str]) -> None:
    """Delete all checkpoints but those named."""
    for name in names(folder):
        if name not in wanted:
            shutil.rmtree(folder / name, ignore_errors=True)


def verify(path: Path) -> None:
    """Hold a checkpoint against its manifest.

    Raises:
        InputError: it is not a checkpoint, or a part of it is missing, truncated or changed.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        expected = manifest["sha256"]
        found = manifest["format"]
    except FileNotFoundError as error:
        raise InputError(f"{path}: not a checkpoint: no {MANIFEST} in it") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{path}: damaged: its {MANIFEST} cannot be read") from error
    if found != FORMAT:
        raise InputError(f"{path}: found format '{found}', expected '{FORMAT}': another program or version wrote it")
    for part in (WEIGHTS, STATE):
        if not (path / part).is_file():
            raise InputError(f"{path}: damaged: {part} is missing")
        if _sum(path / part) != expected.get(part):
            raise InputError(f"{path}: damaged: the SHA-256 of {part} is not the manifest's")


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, after holding it against its manifest.

    Raises:
        InputError: as `verify`; the message offers the newest whole checkpoint beside a damaged one.
    """
    from safetensors.torch import load_file

    try:
        verify(path)
    except InputError as error:
        raise InputError(f"{error}{_offer(path)}") from error
    # weights_only: a file that somebody else made runs no code
    state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    return Checkpoint(path, load_file(path / WEIGHTS), state)


def _offer(path: Path) -> str:
    for name in reversed(names(path.parent)):
        if name != path.name:
            try:
                verify(path.parent / name)
            except InputError:
                continue
            return f": the newest whole one is {path.parent / name}: name it in place of the run"
    return ""


@contextlib.contextmanager
def disk(where: Path) -> Iterator[None]:
    """Say it in one line where a disk is full or a folder cannot be written to."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or "os error 28" in str(error)
        # torch's writer hides the cause of a failed write
        hidden = isinstance(error, RuntimeError) and "PytorchStreamWriter failed" in str(error)
        if full or hidden:
            raise InputError(
                f"{where}: the disk is full: free some space, then resume; what was saved stays"
            ) from error
        if isinstance(error, PermissionError) or number == errno.EROFS:
            raise InputError(f"{where}: cannot be written to ({error.strerror}): choose another folder") from error
        raise


def _sync_and_sum(path: Path) -> str:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return _sum(path)


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
