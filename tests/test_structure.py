"""The rooms of the package and what each may know of the others."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pvae

PACKAGE = Path(pvae.__file__).parent

# room: the rooms it may import from, all of them above it
ROOMS = {
    "start": set(),
    "errors": set(),
    "base": {"errors"},
    "bounds": {"errors"},
    "noise": set(),
    "means": set(),
    "unset": set(),
    "frozen": set(),
    "files": {"errors"},
    "pace": set(),
    "replay": set(),
    "svi": {"errors", "replay"},
    "kernels": set(),
    "distributions": {"errors", "kernels"},
    "networks": {"errors", "base"},
    "flows": {"errors", "base", "distributions", "networks"},
    "conditions": {"errors", "base", "networks"},
    "data": {"errors"},
    "config": {"errors", "base", "data", "networks"},
    "plots": {"errors"},
    "exact": {"errors", "base"},
    "snr": {"errors", "noise", "replay"},
    "programs": {"errors", "noise", "replay", "svi"},
    "priors": {"errors", "base", "conditions", "distributions", "flows", "frozen", "networks"},
    "likelihoods": {"errors", "base", "conditions", "distributions", "kernels", "networks"},
    "guides": {"errors", "base", "conditions", "distributions", "flows"},
    "vae": {"errors", "base", "conditions", "programs"},
    "hierarchy": {"errors", "base", "conditions", "distributions", "guides", "likelihoods", "vae"},
    "estimators": {"errors", "base", "bounds", "noise", "programs", "replay", "svi"},
    "objectives": {"errors", "base", "bounds", "estimators", "noise", "programs"},
    "optimizers": {"errors", "base"},
    "testing": {
        *{
            "errors",
            "base",
            "conditions",
            "config",
            "data",
            "distributions",
            "exact",
            "likelihoods",
            "networks",
            "noise",
        },
        *{"objectives", "svi", "unset", "vae"},
    },
    "build": {
        *{"errors", "base", "conditions", "config", "data", "hierarchy", "likelihoods", "networks", "objectives"},
        *{"optimizers", "unset", "vae"},
    },
    "ais": {"errors", "bounds", "frozen", "means", "noise", "programs", "replay"},
    "gap": {"errors", "ais", "frozen", "means", "noise", "programs", "replay"},
    "diagnostics": {"errors", "means", "noise", "programs", "replay"},
    "cells": {"noise", "programs", "replay"},
    "evaluate": {"errors", "bounds", "cells", "diagnostics", "frozen", "means", "noise", "programs", "replay"},
    "comparison": {"errors", "ais", "diagnostics", "evaluate", "gap", "means", "programs"},
    "tables": {"comparison", "diagnostics", "evaluate", "files", "means"},
    "train": {"errors", "cells", "config", "data", "evaluate", "optimizers", "svi", "vae"},
    "runs": {"errors", "base", "config", "data", "evaluate", "files"},
    "load": {"errors", "base", "build", "config", "data", "runs", "vae"},
    "figures": {"errors", "data", "evaluate", "files", "noise", "plots", "priors", "runs", "vae"},
    "report": {
        *{"cells", "config", "data", "evaluate", "figures", "means", "noise", "pace", "programs", "runs", "train"},
        *{"vae"},
    },
    "cli": {"errors", "base", "config", "runs", "start"},
    "progress": {"train"},
    "fit": {
        *{"errors", "build", "cli", "config", "data", "load", "noise", "progress", "report", "runs", "start", "svi"},
        *{"train", "vae"},
    },
    "sample": {"errors", "cli", "config", "data", "figures", "files", "load", "plots"},
    "gradients": {"errors", "base", "cli", "data", "files", "load", "pace", "plots", "snr", "vae"},
    "parts": {"errors", "base", "cli", "config"},
    "compare": {
        *{"errors", "ais", "cli", "comparison", "config", "data", "diagnostics", "exact", "files", "load", "means"},
        *{"pace", "plots", "runs", "tables", "vae"},
    },
    "__main__": {"errors", "cli"},
    "__init__": None,
}
ONLY_IN = {
    "matplotlib": {"plots"},
    "arviz": set(),
    "arviz_stats": set(),
    "xarray": {"runs"},
    "argparse": {"cli", "fit", "compare"},
    "rich": {"progress"},
    "sklearn": {"data"},
    "torchvision": {"data"},
    "safetensors": {"runs"},
    "yaml": {"config"},
    "triton": {"kernels"},
}
PRINTS = {"cli", "fit", "sample", "compare", "gradients", "parts", "progress", "__main__"}


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield pytest.param(parts[0], path, id="/".join(parts))


def imports(path, room):
    """(own rooms, other packages) that a file imports, at any depth of its code."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = path.parent != PACKAGE
            if node.level == 0:
                first, *rest = (node.module or "").split(".")
                (own if first == "pvae" else others).add(rest[0] if first == "pvae" and rest else first)
            elif node.level == 1 and inside:
                continue  # a room's own files
            else:
                own |= {node.module.partition(".")[0]} if node.module else {alias.name for alias in node.names}
    return own - {room, "pvae"}, others


@pytest.mark.parametrize(("room", "path"), list(files()))
def test_a_room_knows_only_those_below_it(room, path):
    assert room in ROOMS, f"a new room: say in {Path(__file__).name} what it may import"
    own, others = imports(path, room)
    if ROOMS[room] is not None:
        assert own <= ROOMS[room]
    for package, rooms in ONLY_IN.items():
        assert package not in others or room in rooms, f"{package} belongs in {rooms}"


def test_rooms_import_those_above_them():
    order = list(ROOMS)
    assert [
        (room, other) for room, known in ROOMS.items() for other in known or () if other in order[order.index(room) :]
    ] == []


def test_a_room_is_allowed_what_it_uses_alone():
    used, packages = {}, {}
    for room, path in (file.values for file in files()):
        own, others = imports(path, room)
        used.setdefault(room, set()).update(own)
        for package in others:
            packages.setdefault(package, set()).add(room)
    assert {room: allowed - used[room] for room, allowed in ROOMS.items() if allowed and allowed - used[room]} == {}
    assert {name: rooms - packages[name] for name, rooms in ONLY_IN.items() if rooms - packages.get(name, set())} == {}
    assert ROOMS.keys() == used.keys()


@pytest.mark.parametrize(("room", "path"), list(files()))
def test_only_commands_print(room, path):
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert not calls or room in PRINTS


def test_importing_the_package_loads_nothing_heavy():
    heavy = ["matplotlib", "arviz", "xarray", "sklearn", "torchvision", "rich", "h5netcdf"]
    code = f"import sys, pvae; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_room_is_on_the_map():
    assert [room for room in ROOMS if f"`{room}`" not in pvae.__doc__ and room != "__init__"] == []


def test_every_public_name_is_documented():
    for name in pvae.__all__:
        assert getattr(pvae, name).__doc__, name
