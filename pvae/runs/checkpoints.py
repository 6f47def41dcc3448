"""Checkpoints that are whole or absent: written aside, synced, sealed with a manifest, then renamed.

A checkpoint is a folder with `weights.safetensors`, `state.pt` (tensors and plain values only, so that loading it
runs no code) and `manifest.json`, the SHA-256 of the two, written last.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..files import RESUME, RETRY, disk

FORMAT = "pvae checkpoint 1"
WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
NAME = re.compile(r"step-\d+")
_ASIDE = ".{}.writing"


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
        name: of this one, `step-` and the number of steps.
        weights: a module's `state_dict`.
        state: tensors, numbers, text, and lists and dictionaries of them.

    Raises:
        InputError: a weight that is not finite; a disk that is full. What was there before stays.
    """
    for key, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"checkpoint {name}: '{key}' is not finite: nothing was saved, earlier checkpoints stay")
    aside, target = folder / _ASIDE.format(name), folder / name
    if _is_whole(target):  # a run that stopped again where it was resumed
        return target
    with disk(folder, RESUME if names(folder) else RETRY):
        for left in (target, *folder.glob(_ASIDE.format("step-*"))):  # damaged, or of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            for part, content in _contents(weights, state).items():
                with open(aside / part, "wb") as file:
                    file.write(content)
                    os.fsync(file.fileno())
            _sync_folder(aside)
            os.rename(aside, target)
            _sync_folder(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def _contents(weights: dict[str, Tensor], state: dict[str, Any]) -> dict[str, bytes]:
    """The files by name; made in memory, as torch and safetensors hide why a write failed."""
    from safetensors.torch import save

    buffer = io.BytesIO()
    torch.save(state, buffer)
    whole = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    contents = {WEIGHTS: save(whole), STATE: buffer.getvalue()}
    sums = {part: hashlib.sha256(content).hexdigest() for part, content in contents.items()}
    return {**contents, MANIFEST: json.dumps({"format": FORMAT, "sha256": sums}, indent=1).encode()}


def names(folder: Path) -> list[str]:
    """The checkpoints of a folder, oldest first; what else lies there is left alone."""
    return sorted((path.name for path in folder.glob("step-*") if NAME.fullmatch(path.name)), key=steps)


def steps(name: str) -> int:
    """The number of steps that a checkpoint is named by."""
    return int(name.removeprefix("step-"))


def is_one(path: Path) -> bool:
    """Whether a path is that of a checkpoint, whole or not, and not of a run in a folder of that name."""
    named = NAME.fullmatch(path.name) or (path / MANIFEST).is_file()
    return path.parent.name == "checkpoints" and bool(named) and not (path / "config.yaml").is_file()


def keep(folder: Path, wanted: set[str]) -> None:
    """Delete all checkpoints but those named, and what a run that was killed has left; none is there in part."""
    for name in names(folder):
        if name not in wanted:
            with suppress(OSError):
                os.rename(folder / name, folder / _ASIDE.format(name))
    for left in folder.glob(_ASIDE.format("step-*")):
        shutil.rmtree(left, ignore_errors=True)


def verify(path: Path) -> None:
    """Hold a checkpoint against its manifest.

    Raises:
        InputError: it is not a checkpoint, or a part of it is missing, truncated or changed.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint")
    if not (path / MANIFEST).is_file():
        raise InputError(f"{path}: not a checkpoint: no {MANIFEST} in it")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        found, expected = manifest["format"], dict(manifest["sha256"])
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
    try:
        # weights_only: a file that somebody else made runs no code
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        return Checkpoint(path, load_file(path / WEIGHTS), state)
    except Exception as error:  # the parsers raise a dozen unrelated types
        raise InputError(
            f"{path}: foreign: found files that agree with its manifest, but are not what this program writes"
        ) from error


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except InputError:
        return False
    return True


def _offer(path: Path) -> str:
    whole = (path.parent / name for name in reversed(names(path.parent)) if name != path.name)
    found = next(filter(_is_whole, whole), None)
    return f": the newest whole one is {found}: name it in place of the run" if found else ""


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
