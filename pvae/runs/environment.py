"""Where a run's numbers come from: versions, device, commit, data; and what numbers side by side must share."""

from __future__ import annotations

import ast
import hashlib
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import resolve_name
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch

from ..base import lookup
from ..config import FAMILIES, Config
from ..data import Dataset
from ..errors import LIBRARIES
from ..evaluate import BOUNDS, NO_BOUNDS


def protocol(config_: Config, dataset: Dataset) -> dict[str, Any]:
    """What numbers must have in common to be put side by side, K apart."""
    return {
        "data": dataset.name,
        "sha256": dataset.sha256,
        "sizes": dataset.sizes,
        "data_seed": config_.data_seed,
        "binarization": config_.binarization,
        "dequantization": config_.dequantization,
        "measure": config_.measure,
        "unit": "nats / datum",
        "numbers": BOUNDS if config_.bounded else NO_BOUNDS,
    }


def versions() -> dict[str, Any]:
    """Of the packages that numbers depend on, and of Python."""
    packages = {name: _version(name) for name in ("pvae", "pyro-ppl", "torch", "numpy", "arviz")}
    return {"packages": packages, "python": platform.python_version()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a tree of sources, found by PYTHONPATH
        return "not installed"


def environment(config_: Config, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """What a run was made with and when."""
    cuda = device.type == "cuda"
    return {
        **versions(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({torch.get_num_threads()} threads)",
        "commit": _commit(),
        "seed": config_.seed,
        "data": {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "sizes": dataset.sizes,
            "directory": str(Path.cwd()),
        },
        "own": own_parts(config_),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def own_parts(config_: Config) -> dict[str, str]:
    """SHA-256 of the file of each class that was named by import path, and of each module of one's own it imports."""
    named = {family: name for family in FAMILIES if ":" in (name := getattr(config_, family))}
    modules = {name: lookup(family, name).__module__ for family, name in named.items()}
    files = {name: _file_of(module) for name, module in modules.items()}
    imported: dict[str, Path] = {}
    for module in modules.values():
        _add_imported(module, imported)
    files |= {module: file for module, file in imported.items() if module not in modules.values()}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()}


def _file_of(module: str) -> Path:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).absolute() if file else Path()


def _add_imported(module: str, found: dict[str, Path]) -> None:
    """Add a module that is loaded, its packages, what it imports, and these import; libraries are left out."""
    file = _file_of(module)
    library = module.partition(".")[0] in LIBRARIES or not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
    if module in found or library or file.suffix != ".py" or not file.is_file():
        return
    found[module] = file
    parent = module.rpartition(".")[0]
    for name in (parent, *_names(file.read_bytes(), sys.modules[module].__package__)):
        _add_imported(name, found)


@lru_cache(maxsize=10_000)
def _names(source: bytes, package: str | None) -> list[str]:
    """The names in a file's import statements that may be modules."""
    names: list[str] = []
    with suppress(SyntaxError, ValueError, ImportError), catch_warnings():  # of a file that has changed since
        simplefilter("ignore")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                whole = resolve_name("." * node.level + (node.module or ""), package)
                names += [whole, *(f"{whole}.{alias.name}" for alias in node.names)]
    return names


def _commit() -> str | None:
    """The commit of the package's own sources, where they lie in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
