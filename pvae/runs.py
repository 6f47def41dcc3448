"""The run folder: configuration, environment, metrics, checkpoints, final numbers, labelled results, figures."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoints, config
from .checkpoints import Checkpoint, disk
from .config import Config
from .data import Dataset
from .errors import InputError


@dataclass(frozen=True)
class Run:
    """A run folder.

    | file | what |
    |---|---|
    | `config.yaml` | the configuration, loads with `--config` |
    | `environment.json` | versions, device, commit, seed, SHA-256 of the data |
    | `metrics.jsonl` | a line an epoch |
    | `checkpoints/` | the last two and the best |
    | `summary.json` | final numbers, their standard errors, their protocol |
    | `results.nc` | labelled arrays, opens with arviz |
    | `figures/` | pictures |
    """

    folder: Path
    config: Config

    @classmethod
    def create(cls, folder: str | Path | None, config_: Config, dataset: Dataset, device: torch.device) -> Run:
        """Make a run folder; a fresh one under `runs/` if none is named.

        Raises:
            InputError: the folder holds something already, or cannot be written to.
        """
        path = Path(folder) if folder is not None else _fresh(config_)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            is_run = (path / "config.yaml").exists()
            hint = f"continue it with --resume {path}, or choose" if is_run else "choose"
            raise InputError(f"--out {path}: exists and is not empty: {hint} another folder")
        with disk(path):
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, config_)
            run.write_config()
            run.write_json("environment.json", _environment(config_, dataset, device))
            (path / "metrics.jsonl").touch()
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """An existing run folder.

        Raises:
            InputError: no such folder, or no run in it.
        """
        path = Path(folder)
        if not path.is_dir():
            raise InputError(f"{path}: no such run folder")
        if not (path / "config.yaml").is_file():
            raise InputError(f"{path}: not a run folder: no config.yaml in it")
        return cls(path, config.from_flat(config.read(path / "config.yaml")))

    @classmethod
    def at(cls, path: str | Path) -> tuple[Run, Checkpoint]:
        """A run and the checkpoint to continue from: the newest of a run folder, or the one that is named.

        A checkpoint that is named is the newest from then on: later ones are deleted.

        Raises:
            InputError: no run is there, or its checkpoint is damaged.
        """
        path = Path(path)
        if path.parent.name != "checkpoints":
            run = cls.open(path)
            return run, run.last()
        run, checkpoint = cls.open(path.parent.parent), checkpoints.load(path)
        checkpoints.keep(path.parent, {name for name in checkpoints.names(path.parent) if name <= path.name})
        return run, checkpoint

    def write_config(self) -> None:
        """Write `config.yaml`."""
        (self.folder / "config.yaml").write_text(config.to_yaml(self.config))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        with disk(self.folder):
            aside = self.folder / f".{name}.writing"
            aside.write_text(json.dumps(value, indent=1) + "\n")
            os.replace(aside, self.folder / name)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            return json.loads((self.folder / name).read_text())
        except FileNotFoundError as error:
            raise InputError(f"{self.folder / name}: missing: finish the run with --resume {self.folder}") from error
        except ValueError as error:
            raise InputError(f"{self.folder / name}: damaged: not JSON") from error

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with disk(self.folder), open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def forget_metrics_after(self, epochs: int) -> None:
        """Keep the first lines of `metrics.jsonl`: those of the epochs that a checkpoint has seen."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        aside = path.with_suffix(".writing")
        aside.write_text("".join(lines[:epochs]))
        os.replace(aside, path)

    def save(self, vae: torch.nn.Module, state: dict[str, Any]) -> None:
        """Write a checkpoint; keep the last two and the best."""
        folder = self.folder / "checkpoints"
        checkpoints.save(folder, _name(state["steps"]), vae.state_dict(), state)
        best = {_name(state["best"]["steps"])} if state["best"] is not None else set()
        checkpoints.keep(folder, {*checkpoints.names(folder)[-2:], *best})

    def last(self) -> Checkpoint:
        """The newest checkpoint.

        Raises:
            InputError: there is none, or it is damaged (the newest whole one is offered).
        """
        folder = self.folder / "checkpoints"
        names = checkpoints.names(folder)
        if not names:
            raise InputError(
                f"{self.folder}: no checkpoint to resume from: start again with --config {self.folder}/config.yaml"
            )
        return checkpoints.load(folder / names[-1])

    def best(self) -> Checkpoint:
        """The checkpoint with the best validation ELBO; the newest where there was no validation."""
        last = self.last()
        best = last.state["best"]
        if best is None or best["steps"] == last.state["steps"]:
            return last
        return checkpoints.load(last.path.parent / _name(best["steps"]))


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
        raise InputError(
            f"{checkpoint.path}: of another model: '{key}' has shape {have}, expected {want}: "
            "is it in the run folder that wrote it?"
        )
    vae.load_state_dict(found)


def protocol(config_: Config, dataset: Dataset) -> dict[str, Any]:
    """What numbers must have in common to be put side by side, K apart."""
    return {
        "data": dataset.name,
        "sha256": dataset.sha256,
        "sizes": dataset.sizes,
        "data_seed": config_.data_seed,
        "binarization": config_.binarization,
        "density": "mass" if config_.binarization != "none" else "density",
        "unit": "nats / datum",
    }


def write_results(
    path: Path, groups: dict[str, dict[str, tuple[tuple[str, ...], Tensor]]], attributes: dict[str, Any]
) -> None:
    """Write labelled arrays that arviz opens, 0.23 and 1.x alike.

    Args:
        path: a `.nc` file.
        groups: {"posterior": {"z": (("chain", "draw", "datum", "latent"), tensor)}, ...}.
        attributes: of the file.
    """
    import xarray

    tree = {
        f"/{name}": xarray.Dataset({key: (dims, value.cpu().numpy()) for key, (dims, value) in group.items()})
        for name, group in groups.items()
    }
    tree["/"] = xarray.Dataset(attrs=attributes)
    with disk(path):
        aside = path.with_suffix(".writing")
        xarray.DataTree.from_dict(tree).to_netcdf(aside, engine="h5netcdf")
        os.replace(aside, path)


def _name(steps: int) -> str:
    return f"step-{steps:09d}"


def _fresh(config_: Config) -> Path:
    stem = f"{Path(config_.data).stem}-{config_.likelihood.rpartition(':')[2]}-{config_.objective.rpartition(':')[2]}"
    base = Path("runs") / f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    path, i = base, 1
    while path.exists():
        path, i = base.with_name(f"{base.name}-{i}"), i + 1
    return path


def _environment(config_: Config, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "packages": {name: version(name) for name in ("pvae", "pyro-ppl", "torch", "numpy", "arviz")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({torch.get_num_threads()} threads)",
        "commit": _commit(),
        "seed": config_.seed,
        "data": {"name": dataset.name, "sha256": dataset.sha256, "sizes": dataset.sizes},
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The commit of the package's own sources, where they lie in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
