"""The run folder: configuration, environment, metrics, checkpoints, final numbers, labelled results, figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from .. import config
from ..config import Config
from ..data import Dataset
from ..errors import InputError
from ..files import RESUME, RETRY, as_json, disk, whole
from . import checkpoints, metrics
from .checkpoints import Checkpoint
from .environment import environment, own_parts
from .locks import LOCK, locked

BEGINNING = {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints"}
"""What a run folder holds before its first checkpoint."""
ELSEWHERE = "choose another folder"


@dataclass(frozen=True)
class Run:
    """A run folder.

    | file | what |
    |---|---|
    | `config.yaml` | the configuration, loads with `--config` |
    | `environment.json` | versions, device, commit, seed, SHA-256 of the data and of one's own files |
    | `metrics.jsonl` | a line an epoch |
    | `checkpoints/` | the last two, the best, and the last before the learning rate falls |
    | `summary.json` | final numbers, their standard errors, their protocol |
    | `results.nc` | labelled arrays, opens with arviz |
    | `figures/` | pictures |
    | `.lock` | held while a process trains in it |
    """

    folder: Path
    config: Config

    @classmethod
    @contextmanager
    def create(cls, folder: str | Path | None, config_: Config) -> Iterator[Run]:
        """Make a run folder, a fresh one under `runs/` if none is named, and hold it; left empty, it is deleted.

        Raises:
            InputError: the folder holds something already, another process trains in it, or it cannot be written to.
        """
        run = cls(_made(folder, config_), config_)
        with locked(run.folder, ELSEWHERE):
            check_content(run.folder)  # which another process may have filled before it was held
            try:
                yield run
            except BaseException:
                if run.is_empty():  # it ended before its first checkpoint
                    shutil.rmtree(run.folder, ignore_errors=True)
                raise

    def describe(self, dataset: Dataset, device: torch.device, start: Mapping[str, Any]) -> None:
        """Write what is known before the first step: configuration, environment, whose weights; no metrics yet."""
        with disk(self.folder, self._then):
            self.write_config(self.config)
            self.write_json("environment.json", {**environment(self.config, dataset, device), **start})
            self._write("metrics.jsonl", "")

    def is_empty(self) -> bool:
        """Whether it has no checkpoint: nothing to resume from, and nothing to lose."""
        return not self.names()

    def names(self) -> list[str]:
        """The names of its checkpoints, oldest first."""
        return checkpoints.names(self.folder / "checkpoints")

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """An existing run folder.

        Raises:
            InputError: no such folder, or no run in it.
        """
        path = Path(folder)
        if not path.is_dir():
            raise InputError(f"{path}: no such run folder: expected one that a fit wrote, as those in runs/")
        file = path / "config.yaml"
        if not file.is_file():
            raise InputError(f"{path}: not a run folder: found no config.yaml in it: expected one that a fit wrote")
        try:
            return cls(path, config.from_flat(config.read(file)))
        except InputError as error:
            raise InputError(f"{file}: {str(error).removeprefix(f'--config {file}: ')}") from error

    def held(self) -> AbstractContextManager[None]:
        """Hold the folder, to train in it.

        Raises:
            InputError: another process does.
        """
        return locked(self.folder, "wait until it ends, or stop it")

    @staticmethod
    def folder_of(path: str | Path) -> Path:
        """The folder of the run that is named, itself or by one of its checkpoints."""
        where = Path(path).resolve()
        return where.parent.parent if checkpoints.is_one(where) else Path(path)

    @classmethod
    def at(cls, path: str | Path) -> tuple[Run, Checkpoint]:
        """A run and a checkpoint of it: the newest of a run folder, or the one that is named.

        Raises:
            InputError: no run is there, or its checkpoint is damaged.
        """
        run = cls.open(cls.folder_of(path))
        return run, run.last() if run.folder == Path(path) else run._read(Path(path).resolve())

    @classmethod
    def chosen(cls, path: str | Path) -> tuple[Run, Checkpoint]:
        """A run and a checkpoint of it: the best of a run folder, or the one that is named.

        Raises:
            InputError: as `at`.
        """
        run, checkpoint = cls.at(path)
        return run, run.best() if run.folder == Path(path) else checkpoint

    def rewind(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was: delete later checkpoints, metrics and final numbers.

        Files of one's own that have changed since the steps before are noted in `environment.json`.
        Earlier checkpoints stay, but for those that a killed process had no time to delete.
        """
        lines = metrics.until(self.folder / "metrics.jsonl", checkpoint.state["epoch"])
        with disk(self.folder):
            self._write("metrics.jsonl", lines)
            for name in ("summary.json", "results.nc"):
                (self.folder / name).unlink(missing_ok=True)
            self._note_parts(checkpoint.state["steps"])
            self._prune(checkpoint.state)

    def _note_parts(self, steps: int) -> None:
        """Note the files of one's own that a run goes on with after so many steps, if they are others than before."""
        found = self.read_json("environment.json")
        noted, now = found.get("own_later", {}), own_parts(self.config)
        later = {name: own for name, own in noted.items() if checkpoints.steps(name) < steps}
        before = later[max(later)] if later else found.get("own")
        if _others(before, now):
            later[_name(steps)] = now
        if later != noted:
            self.write_json("environment.json", {**found, "own_later": later})

    def write_config(self, config_: Config) -> None:
        """Write `config.yaml`."""
        self._write("config.yaml", config.to_yaml(config_))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self._write(name, as_json(value))

    def _write(self, name: str, text: str) -> None:
        with whole(self.folder / name, self._then) as aside:
            aside.write_text(text)

    @property
    def _then(self) -> str:
        """What to do where a disk was full: without a checkpoint the folder is deleted."""
        return RETRY if self.is_empty() else RESUME

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            return json.loads((self.folder / name).read_text())
        except FileNotFoundError as error:
            then = "restore it, or fit again" if name in BEGINNING else f"finish the run with --resume {self.folder}"
            raise InputError(f"{self.folder / name}: missing: {then}") from error
        except ValueError as error:
            raise InputError(f"{self.folder / name}: damaged: not JSON: restore it, or fit again") from error

    def fitted_on(self) -> dict[str, Any]:
        """Of `environment.json` what it says of the data: their name, SHA-256 and sizes.

        Raises:
            InputError: it is missing or damaged.
        """
        found = self.read_json("environment.json")
        data = found.get("data") if isinstance(found, dict) else None
        kinds = {"name": str, "sha256": str, "sizes": dict, "directory": str}
        data = {"directory": ".", **data} if isinstance(data, dict) else {}
        if not all(data.get(key) and isinstance(data[key], kind) for key, kind in kinds.items()):
            where = self.folder / "environment.json"
            raise InputError(f"{where}: damaged: found no 'data' with name, sha256 and sizes: restore it, or fit again")
        return data

    def changed_parts(self, config_: Config | None = None) -> list[str]:
        """A line for each class and module of one's own whose file is known to be another than when the run began.

        Args:
            config_: whose classes are looked at, if not those of the run.
        """
        return [f"{self.folder}: {changed}: used as it is" for changed in self._changed(config_ or self.config)]

    def _changed(self, config_: Config) -> list[str]:
        found = self.read_json("environment.json").get("own")
        return [f"the file of {name} has changed since the run began" for name in _others(found, own_parts(config_))]

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with disk(self.folder, self._then):
            metrics.append(self.folder / "metrics.jsonl", record)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`.

        Raises:
            InputError: it is missing or damaged.
        """
        return metrics.read(self.folder / "metrics.jsonl")

    def save(self, vae: torch.nn.Module, state: dict[str, Any]) -> None:
        """Write a checkpoint; keep the last two, the best, and the last that a longer run would have, too."""
        folder = self.folder / "checkpoints"
        lasting = config.lasting(self.config)
        if state["steps"] <= state["steady"]:
            del lasting["epochs"]
        state = {**state, "config": lasting}
        with disk(self.folder, self._then):
            metrics.sync(self.folder / "metrics.jsonl")
        checkpoints.save(folder, _name(state["steps"]), vae.state_dict(), state)
        self._prune(state)

    def _prune(self, state: Mapping[str, Any]) -> None:
        """Delete all checkpoints but those that are kept where training is in that state."""
        best = {_name(state["best"]["steps"])} if state["best"] is not None else set()
        names = [name for name in self.names() if checkpoints.steps(name) <= state["steps"]]
        wanted = {*names[-2:], *best, self.steady(state)}.intersection(names)  # a later one may be steady, too
        checkpoints.keep(self.folder / "checkpoints", wanted)

    def steady(self, state: Mapping[str, Any]) -> str:
        """The name of the newest checkpoint that a longer run would have, too; nothing where there is none."""
        return next((name for name in reversed(self.names()) if checkpoints.steps(name) <= state.get("steady", 0)), "")

    def last(self) -> Checkpoint:
        """The newest checkpoint.

        Raises:
            InputError: there is none, or it is damaged (the newest whole one is offered).
        """
        if self.is_empty():
            again = f"python -m pvae.fit --config {self.folder}/config.yaml"
            raise InputError(f"{self.folder}: no checkpoint in it: fit it again, in another folder, with {again}")
        return self._read(self.folder / "checkpoints" / self.names()[-1])

    def _read(self, path: Path) -> Checkpoint:
        """A checkpoint, that was written with this configuration."""
        found = checkpoints.load(path)
        if changed := config.changed(self.config, found.state.get("config")):
            raise InputError(
                f"{self.folder}/config.yaml: found {changed} when {path.name} was written: put that back; to fit with"
                f" other options start a new run with --config {self.folder}/config.yaml"
            )
        return found

    def best(self) -> Checkpoint:
        """The checkpoint with the best validation bound; the newest where there was no validation."""
        last = self.last()
        best = last.state["best"]
        name = _name(best["steps"]) if best is not None else last.path.name
        # a run that went back to an older checkpoint may no longer have what was the best then
        return self._read(last.path.parent / name) if name in self.names() else last


def _others(before: Any, now: dict[str, str]) -> list[str]:
    """The names whose files are others than before, of those that are known from then."""
    return [name for name, own in now.items() if isinstance(before, dict) and before.get(name, own) != own]


def check_free(folder: str | Path | None) -> None:
    """Whether a run may begin there: nothing is there, or what a run leaves that ended before its first checkpoint.

    Raises:
        InputError: the folder holds something else, or another process trains in it.
    """
    path = Path(folder or "runs")
    with disk(path, RETRY):
        if not path.exists() or (folder is None and path.is_dir()):
            return
    check_content(path)
    with locked(path, ELSEWHERE):
        pass


def check_content(path: Path) -> None:
    """Refuse a folder that holds more than what a run leaves that ended before its first checkpoint."""
    with disk(path, RETRY):
        if not path.is_dir():
            raise InputError(f"--out {path}: found a file, expected a folder that is empty or not there yet")
        names = {file.name for file in path.iterdir()} - {LOCK}
        found = {name.removeprefix(".").replace(".writing", "") for name in names}
        if found <= BEGINNING and not checkpoints.names(path / "checkpoints"):
            return
    resumable = (path / "config.yaml").exists() and checkpoints.names(path / "checkpoints")
    hint = f"continue it with --resume {path}, or choose" if resumable else "choose"
    raise InputError(f"--out {path}: exists and is not empty: {hint} another folder")


def _made(folder: str | Path | None, config_: Config) -> Path:
    """The folder of that name, or a fresh one."""
    check_free(folder)
    path = Path(folder) if folder is not None else Path("runs") / _name_of(config_)
    stem, i = path.name, 1
    with disk(path, RETRY):
        while True:
            try:
                path.mkdir(parents=True, exist_ok=folder is not None)
                return path
            except FileExistsError:  # another run began in this second
                path, i = path.with_name(f"{stem}-{i}"), i + 1


def load_weights(vae: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        InputError: the checkpoint is of another model.
    """
    own, found = vae.state_dict(), checkpoint.weights
    wrong = [k for k in {**own, **found} if k not in own or k not in found or own[k].shape != found[k].shape]
    if wrong:
        key = wrong[0]
        have = tuple(found[key].shape) if key in found else "nothing"
        want = tuple(own[key].shape) if key in own else "nothing"
        run = Run.open(Run.folder_of(checkpoint.path))
        changed = ", ".join(run._changed(run.config))
        then = f"{changed}: restore it" if changed else "put it back into the run folder that wrote it"
        raise InputError(f"{checkpoint.path}: of another model: '{key}' has shape {have}, expected {want}: {then}")
    vae.load_state_dict(found)


def _name(steps: int) -> str:
    return f"step-{steps:09d}"


def _name_of(config_: Config) -> str:
    parts = [Path(config_.data).stem, *(name.rpartition(":")[2] for name in (config_.likelihood, config_.objective))]
    return "-".join([*parts, f"{datetime.now():%Y%m%d-%H%M%S}"])
