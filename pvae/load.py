"""A run read back: its model with the best weights, and its data."""

from __future__ import annotations

from pathlib import Path

import torch

from . import config, data
from .config import Config
from .data import Dataset
from .errors import InputError
from .runs import Run, load_weights
from .vae import Autoencoder


def read_data(settings: Config) -> Dataset:
    """The data of a configuration: checked, split, and binarized where it is fixed.

    Raises:
        InputError: it cannot be read, or does not fit the likelihood.
    """
    drawn = settings.binarization != "none"
    dataset = data.load(
        settings.data,
        settings.data_dir,
        validation=settings.validation,
        test=settings.test,
        seed=settings.data_seed,
        support="unit_interval" if drawn else "binary" if settings.binary else "real",
    )
    return data.fix_binarization(dataset, settings.binarization, settings.data_seed)


def run_data(run: Run) -> Dataset:
    """The data of a run, held against the SHA-256 it was fitted on.

    Raises:
        InputError: the data are gone, or have changed.
    """
    dataset = read_data(run.config)
    expected = run.read_json("environment.json")["data"]["sha256"]
    if dataset.sha256 != expected:
        raise InputError(
            f"{run.folder}: the data '{run.config.data}' have changed since the run began: found SHA-256 "
            f"{dataset.sha256[:12]}, expected {expected[:12]}: restore them, or start a new run"
        )
    return dataset


def load(folder: str | Path, device: torch.device | str = "cpu") -> tuple[Autoencoder, Dataset, Run]:
    """A run's model with the weights of its best checkpoint, in evaluation mode, its data, and the run.

    Args:
        folder: a run, or a checkpoint of it to take in place of the best.
        device: where model and data go.

    Raises:
        InputError: no run is there, its checkpoint is damaged, or its data have changed.
    """
    run, checkpoint = Run.at(folder)
    dataset = run_data(run)
    with torch.random.fork_rng(devices=[]):
        vae = config.build(run.config, dataset)
    load_weights(vae, checkpoint if checkpoint.path == Path(folder) else run.best())
    return vae.to(device).eval(), dataset.to(torch.device(device)), run
