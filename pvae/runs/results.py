"""Labelled arrays in a file that arviz opens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import RESUME, whole


def write_results(
    path: Path,
    groups: Mapping[str, Mapping[str, tuple[tuple[str, ...], Any]]],
    attributes: dict[str, Any],
    then: str = RESUME,
) -> None:
    """Write labelled arrays that arviz opens, 0.23 and 1.x alike.

    Args:
        path: a `.nc` file.
        groups: {"posterior": {"z": (("chain", "draw", "datum", "latent"), tensor or array)}, ...}; what is named as its
            dimension labels it.
        attributes: of the file; what is neither text nor a number is written as text.
        then: what to do where the disk was full.
    """
    import xarray

    tree = {
        f"/{name}": xarray.Dataset({key: (dims, _array(value)) for key, (dims, value) in group.items()})
        for name, group in groups.items()
    }
    plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in attributes.items()}
    tree["/"] = xarray.Dataset(attrs=plain)
    # In memory, as HDF5 crashes on a full disk; copied, as Python 3.12.1 crashes where a view of it is garbage.
    made = bytes(xarray.DataTree.from_dict(tree).to_netcdf(engine="h5netcdf"))
    with whole(path, then) as aside:
        aside.write_bytes(made)


def _array(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value
