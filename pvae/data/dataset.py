"""Data sets as tensors: their three parts, binarization, dequantization, batch order, and the checks at the door.

Pixels are stored as they were read (uint8, or float32) and scaled by `pixels` where they are used. Every draw
made here is a pure function of a seed of its own: nothing reads or moves the global generators.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, nearest, whole_number
from .sources import PARTS, Arrays, Parts, read
from .supports import check_part, pixels, supports_to

BINARIZATIONS = ("dynamic", "static", "threshold", "none")
DEQUANTIZATIONS = ("uniform", "none")
# Each use of a seed draws from its own stream, so that no two uses see the same numbers.
_TEST, _VALIDATION, _ORDER, _BINARIZE, _DEQUANTIZE = 1, 2, 3, 4, 5
_CELLS = 2**15
# Pixels none of which is brighter are perhaps levels of another range, or counts.
_DARK = 128
_LARGE = 1000.0


class Split(NamedTuple):
    """One part: `x` (N, *shape), uint8 (0 to 255) or float32; `y` (N,) int64 labels, (N, C) covariates, or None."""

    x: Tensor
    y: Tensor | None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three parts of one set, and the SHA-256 of everything read: x and y with dtypes and shapes, undivided.

    >>> digits = load("digits")
    >>> digits.shape, digits.sizes
    ((8, 8), {'train': 1294, 'validation': 144, 'test': 359})
    """

    name: str
    train: Split
    validation: Split
    test: Split
    sha256: str
    note: str = ""
    """How numbers were read, where that may surprise; a fit says it."""
    source: str = ""
    """What of a file was read: its array, its columns, or which label is which sub-folder; a fit says it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one datum, such as (28, 28) or (3, 32, 32)."""
        return tuple(self.train.x.shape[1:])

    @property
    def sizes(self) -> dict[str, int]:
        """The number of data in each part."""
        return {part: len(getattr(self, part).x) for part in PARTS}

    def to(self, device: torch.device | str) -> "Dataset":
        """The same set with every part on `device`."""
        moved = {}
        for part in PARTS:
            x, y = getattr(self, part)
            moved[part] = Split(x.to(device), None if y is None else y.to(device))
        return replace(self, **moved)


def load(
    data: str = "digits",
    data_dir: str | Path | None = None,
    *,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    support: str = "real",
    likelihood: str = "",
    sha256: str = "",
) -> Dataset:
    """The data set of that name or at that path, divided in three.

    Args:
        data: one of `NAMED`, or a path to a `.npz` (`x`, optionally `y`; or one array of any name; or `x_train`,
            `x_test`, optionally `x_validation`, and their `y_*`), a `.npy`, a `.csv` (numbers; optional header: a
            column `label` or `y` holds the labels, one without a name that counts rows is left out) or a folder of
            images (names of sub-folders become labels: numbers as they are, else 0, 1, ... in the order of the names).
            uint8 is kept, to be read as x / 255; bool, and uint8 whose largest value in all parts is 1, become 0 or
            255; other numbers float32. `y` (N,) are labels, `y` (N, size) covariates. `./digits` is a folder, `digits`
            the set.
        data_dir: where named sets lie and are downloaded to; by default `$PVAE_DATA`, else `data`.
        validation: fraction in [0, 1) of what is left for training; 0 gives an empty part.
        test: fraction in (0, 1) of everything; unused where the set has a test part of its own.
        seed: draws the parts, and nothing else.
        support: what every pixel must lie in, as in `check`, held before the division so that a datum that does
            not is named by its place in the file.
        likelihood: whose support that is, for the message.
        sha256: of the data that a run was fitted on, if it was: others are refused before they are looked at.

    Raises:
        InputError: unknown name, missing or damaged file, wrong dtype or shape, too few data, a fraction out of
            range, a pixel outside `support`, or a download that failed.

    >>> load("digits", validation=0.0, test=0.5).sizes
    {'train': 899, 'validation': 0, 'test': 898}
    """
    for name, fraction in (("validation", validation), ("test", test)):
        if not 0 <= fraction < 1:
            raise InputError(f"{name}: found {fraction}, expected a fraction in [0, 1): name a share of the data")
    data = str(data)
    parts, source = read(data, data_dir)
    parts, note = _as_pixels(parts)
    found = _sha256(parts)
    if sha256 and found != sha256:
        raise InputError(
            f"the data '{data}' have changed since the run began: found SHA-256 {found[:12]}, expected {sha256[:12]}:"
            " restore them, or start a new run"
        )
    for part, arrays in parts.items():
        for each in supports_to(support):
            check_part(data, part, _tensors(*arrays).x, each, likelihood)
    note = note or (_unscaled(parts) if support == "real" else "")
    if "all" in parts:
        if test == 0:
            raise InputError(f"test: found 0, but {data} has no test part of its own: expected above 0, such as 0.2")
        parts["train"], parts["test"] = _draw(parts["all"], test, 1, _generator(seed, _TEST))
    if "validation" not in parts:
        rest, drawn = _draw(parts["train"], validation, 0, _generator(seed, _VALIDATION))
        parts |= {"train": rest, "validation": drawn}
    return Dataset(data, *(_tensors(*parts[part]) for part in PARTS), sha256=found, note=note, source=source)


def binarize(x: Tensor, mode: str, generator: torch.Generator | None = None) -> Tensor:
    """Pixels in [0, 1] made 0 or 1: drawn as Bernoulli(x), or cut at 0.5.

    Args:
        x: floats in [0, 1], or stored uint8, any shape.
        mode: `dynamic` and `static` draw (they differ in how often: see `fix_binarization`), `threshold` is
            x > 0.5, `none` returns the pixels as they are.
        generator: on the device of x; by default torch's global one.

    Raises:
        InputError: unknown mode.

    Source: Salakhutdinov and Murray (2008), who drew the binary images once; Burda et al. (2016), who drew anew
        at each use.

    >>> binarize(torch.tensor([0.0, 0.4, 0.6, 1.0]), "threshold")
    tensor([0., 0., 1., 1.])
    """
    _check_mode(mode)
    if mode == "none":
        return pixels(x)
    if mode == "threshold":
        return (pixels(x) > 0.5).to(torch.float32)
    if x.dtype == torch.uint8:  # 1 with probability x / 255, without a float for each pixel
        return (torch.randint(255, x.shape, generator=generator, dtype=x.dtype, device=x.device) < x).to(torch.float32)
    return torch.bernoulli(x, generator=generator)


def fix_binarization(dataset: Dataset, mode: str, seed: int) -> Dataset:
    """The set with its held-out parts made binary once, so that every run is measured on the same images.

    Under `dynamic` validation and test are drawn here and train is left grey, to be drawn anew at each step;
    under `static` all three are drawn, under `threshold` all three are cut at 0.5; `none` changes nothing. Binary
    parts are stored as uint8 0 or 255, on the device they were on; the draw is made on the CPU, the same for all.

    Raises:
        InputError: unknown mode, or (except under `none`) a value outside [0, 1].

    >>> binary = fix_binarization(load("digits"), "dynamic", seed=0)
    >>> binary.train.x.dtype, binary.test.x.unique().tolist()
    (torch.float32, [0, 255])
    """
    _check_mode(mode)
    if mode == "none":
        return dataset
    check(dataset, support="unit_interval")
    fixed = {}
    for stream, part in enumerate(PARTS):
        if mode != "dynamic" or part != "train":
            split = getattr(dataset, part)
            fixed[part] = split._replace(x=_binary(split.x, mode, _generator(seed, _BINARIZE, stream)))
    return replace(dataset, **fixed)


def dequantize(x: Tensor, mode: str, generator: torch.Generator | None = None) -> Tensor:
    """Stored levels v, 0 to 255, as (v + u) / 256 inside (0, 1), u drawn evenly from [0, 1); as floats of its shape.

    The mean log-density of what comes out, less log 256 a dimension, is a lower bound on the log-probability of the
    levels. u lies in the middles of 2^15 cells: v + u is then exact in float32, and no pixel is rounded to 0 or 1.

    Args:
        x: stored uint8, any shape; under `none`, anything.
        mode: `uniform`, or `none` for the pixels as they are.
        generator: on the device of x; by default torch's global one.

    Raises:
        InputError: unknown mode; data that are no stored levels.

    Source: Theis, van den Oord and Bethge 2016.

    >>> x = dequantize(torch.tensor([0, 128, 255], dtype=torch.uint8), "uniform")
    >>> (256 * x).floor()
    tensor([  0., 128., 255.])
    """
    _check_mode(mode, DEQUANTIZATIONS, "dequantize")
    if mode == "none":
        return pixels(x)
    if x.dtype != torch.uint8:
        raise InputError(f"dequantize: found {x.dtype}, expected stored levels, uint8: only these lie on a grid")
    noise = torch.empty(x.shape, dtype=torch.float32, device=x.device).random_(_CELLS, generator=generator)
    return (x + (noise + 0.5) / _CELLS) / 256


def fix_dequantization(dataset: Dataset, mode: str, seed: int) -> Dataset:
    """The set with its held-out parts dequantized once, so that every run is measured on the same numbers.

    Train is left as it is, to be drawn anew at each step. The draw is made on the CPU, the same for all devices.

    Raises:
        InputError: unknown mode, or (except under `none`) data that are not stored as uint8.

    >>> fix_dequantization(load("digits"), "none", seed=0).test.x.dtype
    torch.float32
    """
    _check_mode(mode, DEQUANTIZATIONS, "dequantize")
    if mode == "none":
        return dataset
    fixed = {}
    for stream, part in enumerate(PARTS[1:]):
        split = getattr(dataset, part)
        if split.x.dtype != torch.uint8:
            found = str(split.x.dtype).removeprefix("torch.")
            raise InputError(
                f"{dataset.name}: found numbers of {found}, expected uint8, the levels 0 to 255 that are dequantized:"
                " store them so, or pass `--dequantize none` for numbers as they are"
            )
        generator = torch.Generator().manual_seed(int(_generator(seed, _DEQUANTIZE, stream).integers(2**63)))
        fixed[part] = split._replace(x=dequantize(split.x.cpu(), mode, generator).to(split.x.device))
    return replace(dataset, **fixed)


def order(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0 to n - 1, (n,) int64 on the CPU: a pure function of its three arguments.

    >>> order(5, seed=0, epoch=1).sort().values
    tensor([0, 1, 2, 3, 4])
    """
    drawn = _generator(seed, _ORDER, epoch).permutation(n)
    return torch.from_numpy(drawn.astype(np.int64, copy=False))


def batch_rows(n: int, size: int, seed: int, epoch: int, *, start: int = 0, device: Any = "cpu") -> list[Tensor]:
    """Which data each batch of one epoch takes: (size,) int64 on the device, the last maybe smaller.

    Each datum comes once, in the order of `order`; `start` skips that many batches, to go on in mid-epoch. One copy of
    the permutation to the device, and no synchronization.

    Raises:
        InputError: size below 1 or start below 0.

    >>> [len(rows) for rows in batch_rows(359, 100, seed=0, epoch=0, start=1)]
    [100, 100, 59]
    """
    whole_number(1, **{"batch size": size})
    whole_number(0, start=start)
    rows = order(n, seed, epoch).to(device, non_blocking=True)
    return [rows[first : first + size] for first in range(start * size, n, size)]


def batches(
    split: Split, size: int, seed: int, epoch: int, *, start: int = 0
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches of one epoch: x (size, *shape) and y (size,), as stored; arguments and order as of `batch_rows`.

    >>> [len(x) for x, y in batches(load("digits").test, size=100, seed=0, epoch=0, start=1)]
    [100, 100, 59]
    """
    x, y = split
    some = batch_rows(len(x), size, seed, epoch, start=start, device=x.device)
    return ((x.index_select(0, i), None if y is None else y.index_select(0, i)) for i in some)


def check(dataset: Dataset, *, support: str, likelihood: str = "", parts: Sequence[str] = PARTS) -> None:
    """The check at the door: every pixel lies in what the likelihood scores; uint8 is read as by `pixels`.

    Args:
        dataset: what `load`, `fix_binarization` or `fix_dequantization` returned.
        support: `real` is any finite number, `unit_interval` is [0, 1], `open_unit_interval` is (0, 1), `binary` is 0
            or 1, `counts` are whole numbers of at least 0, `levels` is a multiple of 1 / 255 in [0, 1] and `17 levels`
            one of 1 / 16.
        likelihood: whose support that is, for the message.
        parts: which are looked at.

    Raises:
        InputError: naming the part, the datum in it, the position in the datum and the value there; or an unknown
            support.

    >>> check(load("digits"), support="unit_interval")
    """
    for each in supports_to(support):
        for part in parts:
            check_part(dataset.name, part, getattr(dataset, part).x, each, likelihood)


def _check_mode(mode: str, known: Sequence[str] = BINARIZATIONS, option: str = "binarize") -> None:
    if mode not in known:
        raise InputError(f"{option}: unknown mode {mode!r}: {nearest(mode, list(known))}")


def _generator(seed: int, *stream: int) -> np.random.Generator:
    """A generator of its own for each (seed, stream): NumPy's seed sequence mixes them, torch's would add them."""
    if seed < 0:
        raise InputError(f"seed: found {seed}, expected a whole number of at least 0")
    return np.random.default_rng([*stream, seed])


def _binary(x: Tensor, mode: str, generator: np.random.Generator) -> Tensor:
    def cut(block: Tensor) -> Tensor:
        p = pixels(block)
        u = 0.5 if mode == "threshold" else torch.from_numpy(generator.random(tuple(p.shape), np.float32))
        return (p > u).to(torch.uint8) * 255

    return torch.cat([cut(block) for block in x.cpu().split(4096)]).to(x.device)  # in blocks, to bound memory


def _draw(arrays: Arrays, fraction: float, least: int, generator: np.random.Generator) -> list[Arrays]:
    """What is left and what was drawn, each in the order of the file; at least one datum is left."""
    n = len(arrays.x)
    count = min(max(round(fraction * n), least), n - 1)
    drawn = np.zeros(n, dtype=bool)
    drawn[generator.permutation(n)[:count]] = True
    return [Arrays(*(a if a is None else a[rows] for a in arrays)) for rows in (~drawn, drawn)]


def _as_pixels(parts: Parts) -> tuple[Parts, str]:
    """Zeros and ones that are stored as uint8 made 0 and 255, as those of bool are; and how levels are read, if few.

    Asked of all parts together, so that a part without any 1 is read as the others are.
    """
    if any(arrays.x.dtype != np.uint8 for arrays in parts.values()):
        return parts, ""
    largest = max(int(arrays.x.max(initial=0)) for arrays in parts.values())
    if largest == 1:
        scaled = {part: arrays._replace(x=arrays.x * np.uint8(255)) for part, arrays in parts.items()}
        return scaled, "uint8 of 0 and 1, taken as such"
    return parts, f"uint8 up to {largest}, read as x / 255" if 1 < largest < _DARK else ""


def _unscaled(parts: Parts) -> str:
    """Advice for numbers so large that a network's first steps on them are wild."""
    largest = max(float(np.abs(arrays.x).max(initial=0)) for arrays in parts.values())
    return f"up to {largest:.2g} in size: standardize the data lest training diverge" if largest > _LARGE else ""


def _tensors(*arrays: np.ndarray | None) -> Split:
    return Split(*(a if a is None else torch.from_numpy(np.require(a, requirements=["C", "W"])) for a in arrays))


def _sha256(parts: Parts) -> str:
    digest = hashlib.sha256()
    for part, arrays in sorted(parts.items()):
        for name, array in zip(arrays._fields, arrays, strict=True):
            if array is not None:
                digest.update(f"{name}_{part} {array.dtype.name} {array.shape};".encode())
                digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")))
    return digest.hexdigest()
