"""A run read back: its model with the best weights, and its data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import build, data
from .base import lookup
from .config import Config
from .data import Dataset
from .data.sources import NAMED
from .errors import InputError
from .runs import Run, load_weights
from .vae import Autoencoder


def read_data(settings: Config, sha256: str = "") -> Dataset:
    """The data of a configuration: checked, split, and binarized or dequantized where it is fixed.

    Args:
        settings: the configuration.
        sha256: of the data that are expected, if they are known.

    Raises:
        InputError: it cannot be read, is not what is expected, or does not fit the likelihood.
    """
    support, drawn = settings.support, settings.binarization != "none"
    before = "unit_interval" if drawn else "real" if settings.dequantization != "none" else support
    with _advised(settings):
        dataset = _load(settings, before, sha256)
        if settings.dequantization != "none" and dataset.train.x.dtype != torch.uint8:  # no levels to dequantize
            _load(settings, support, sha256)
    dataset = data.fix_binarization(_with_known(dataset, settings), settings.binarization, settings.data_seed)
    dataset = data.fix_dequantization(dataset, settings.dequantization, settings.data_seed)
    if before != support:
        data.check(dataset, support=support, likelihood=settings.likelihood, parts=("validation", "test"))
    return dataset


def _load(settings: Config, support: str, sha256: str) -> Dataset:
    return data.load(
        settings.data,
        settings.data_dir,
        validation=settings.validation,
        test=settings.test,
        seed=settings.data_seed,
        support=support,
        likelihood=settings.likelihood if settings.binarize == "auto" else "",
        sha256=sha256,
    )


@contextmanager
def _advised(settings: Config) -> Iterator[None]:
    """To the advice for data that a likelihood does not score, add what asks for pixels beside it."""
    asked = {"binarize": settings.binarize, "dequantize": settings.dequantize}
    undo = " ".join(f"--{name} none" for name, mode in asked.items() if mode not in ("auto", "none"))
    try:
        yield
    except InputError as error:
        if undo and "expected a pixel" in str(error):
            raise InputError(f"{error}; for numbers as they are pass `{undo}` too") from error
        raise


def _with_known(dataset: Dataset, settings: Config) -> Dataset:
    """The data with what their model is conditioned on beside them, where that is made of them."""
    known = lookup("condition", settings.condition).beside  # type: ignore[attr-defined]
    with build.told_of_condition(settings, dataset):
        parts = {part: getattr(dataset, part) for part in dataset.sizes}
        return replace(dataset, **{part: split._replace(y=known(*split)) for part, split in parts.items()})


def run_data(run: Run) -> Dataset:
    """The data of a run, held against the SHA-256 it was fitted on.

    Raises:
        InputError: the data are gone, or have changed.
    """
    fitted = run.fitted_on()
    try:
        dataset = read_data(_there(run.config, fitted.get("directory")), fitted["sha256"])
    except InputError as error:
        raise InputError(f"{run.folder}: {error}") from error
    return replace(dataset, name=run.config.data)


def _there(settings: Config, directory: str | None) -> Config:
    """With relative paths of data from the directory where the run began, if they are there: it may not be this one."""
    paths = {name: value for name in ("data", "data_dir") if (value := getattr(settings, name)) and value not in NAMED}
    there = {name: Path(directory, value) for name, value in paths.items()} if directory else {}
    return replace(settings, **{name: str(path) for name, path in there.items() if path.exists()})


def load(
    folder: str | Path, device: torch.device | str = "cpu", say: Callable[[str], None] | None = None
) -> tuple[Autoencoder, Dataset, Run]:
    """A run's model with the weights of its best checkpoint, in evaluation mode, its data, and the run.

    Args:
        folder: a run, or a checkpoint of it to take in place of the best.
        device: where model and data go.
        say: takes a line for each class or module of one's own whose file has changed since the run began; if it is
            not given, each is a warning.

    Raises:
        InputError: no run is there, its checkpoint is damaged, its data have changed, or there is no such device.
    """
    try:
        torch.empty(0, device=device)
    except Exception as error:  # of a dozen types
        raise InputError(f"device: found '{device}', which is not there: pass 'cpu', or leave it out") from error
    run, checkpoint = Run.chosen(folder)
    dataset = run_data(run)
    with torch.random.fork_rng(devices=[]):
        vae = build.model(run.config, dataset)
    load_weights(vae, checkpoint)
    for line in run.changed_parts():
        say(line) if say else warnings.warn(line, stacklevel=2)
    return vae.to(device).eval(), dataset.to(torch.device(device)), run


def begin_with(vae: Autoencoder, folder: str | Path) -> dict[str, Any]:
    """Give a model the weights of a run, of each part that has weights of the same names and shapes in both.

    Args:
        vae: the model; its parts are prior, likelihood, guide, and the layers between.
        folder: a run, of which the best checkpoint is taken, or a checkpoint of it.

    Returns:
        `checkpoint`, its path, `data`, what it was fitted on, `taken`, the parts by name, and `anew`, those that stay
        as they are.

    Raises:
        InputError: no run is there, its checkpoint is damaged, or no part is alike.
    """
    run, checkpoint = Run.chosen(folder)
    taken, anew = [], []
    for name, part in vae.named_children():
        own = part.state_dict()
        found = {k.removeprefix(f"{name}."): v for k, v in checkpoint.weights.items() if k.startswith(f"{name}.")}
        alike = own.keys() == found.keys() and all(own[key].shape == found[key].shape for key in own)
        if alike:
            part.load_state_dict(found)
        if own:  # the program of that name is the guide
            (taken if alike else anew).append("guide" if name == "posterior" else name)
    if not taken:
        raise InputError(
            f"--start-from {folder}: found weights of other shapes for each part of this model ({', '.join(anew)}):"
            " expected one with the same sizes and networks at least"
        )
    data = {**run.fitted_on(), "data_seed": run.config.data_seed}
    return {"checkpoint": str(checkpoint.path), "data": data, "taken": taken, "anew": anew}
