"""Data sets as tensors: named sets, arrays and image folders; their parts, binarization and batch order.

Pixels are stored as they were read (uint8, or float32) and scaled by `pixels` where they are used. Every draw
made here is a pure function of a seed of its own: nothing reads or moves the global generators.
"""

import gzip
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pvae.errors import InputError, nearest

PARTS = ("train", "validation", "test")
BINARIZATIONS = ("dynamic", "static", "threshold", "none")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
_PATHS = "a path to a .npz, .npy or .csv file or to a folder of images"
# Each use of a seed draws from its own stream, so that no two uses see the same numbers.
_TEST, _VALIDATION, _ORDER, _BINARIZE = 1, 2, 3, 4


class Split(NamedTuple):
    """One part: `x` (N, *shape), uint8 (0 to 255) or float32; `y` (N,) int64 labels, or None."""

    x: Tensor
    y: Tensor | None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three parts of one set, and the SHA-256 of everything that was read (before it was divided).

    >>> digits = load("digits")
    >>> digits.shape, digits.sizes
    ((8, 8), {'train': 1294, 'validation': 144, 'test': 359})
    """

    name: str
    train: Split
    validation: Split
    test: Split
    sha256: str

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


class _Arrays(NamedTuple):
    x: np.ndarray
    y: np.ndarray | None


# What a reader returns: {"all": ...} where the set comes undivided, else "train" and "test" (and "validation").
_Parts = dict[str, _Arrays]


def load(
    data: str = "digits",
    data_dir: str | Path | None = None,
    *,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """The data set of that name or at that path, divided in three.

    Args:
        data: one of `NAMED`, or a path to a `.npz` (`x`, optionally `y`; or one array of any name; or `x_train`,
            `x_test`, optionally `x_validation`, and their `y_*`), a `.npy`, a `.csv` (numbers; optional header; a
            column `label` or `y` holds the labels) or a folder of images (names of sub-folders become labels).
            uint8 is kept, bool becomes 0 or 255, other numbers float32. `./digits` is a folder, `digits` the set.
        data_dir: where named sets lie and are downloaded to; by default `$PVAE_DATA`, else `data`.
        validation: fraction in [0, 1) of what is left for training; 0 gives an empty part.
        test: fraction in (0, 1) of everything; unused where the set has a test part of its own.
        seed: draws the parts, and nothing else.

    Raises:
        InputError: unknown name, missing or damaged file, wrong dtype or shape, too few data, a fraction out of
            range, or a download that failed.

    >>> load("digits", validation=0.0, test=0.5).sizes
    {'train': 899, 'validation': 0, 'test': 898}
    """
    for name, fraction in (("validation", validation), ("test", test)):
        if not 0 <= fraction < 1:
            raise InputError(f"{name}: found {fraction}, expected a fraction in [0, 1): name a share of the data")
    data = str(data)
    parts = {part: _stored(data, part, *arrays) for part, arrays in _read(data, data_dir).items()}
    _check_parts(data, parts)
    sha256 = _sha256(parts)
    if "all" in parts:
        if test == 0:
            raise InputError(f"test: found 0, but {data} has no test part of its own: expected above 0, such as 0.2")
        parts["train"], parts["test"] = _draw(parts["all"], test, 1, _generator(seed, _TEST))
    if "validation" not in parts:
        rest, drawn = _draw(parts["train"], validation, 0, _generator(seed, _VALIDATION))
        parts |= {"train": rest, "validation": drawn}
    return Dataset(data, *(_tensors(*parts[part]) for part in PARTS), sha256=sha256)


def pixels(x: Tensor) -> Tensor:
    """Stored data as floats: uint8 is divided by 255, floats pass through; same shape and device.

    >>> pixels(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    return x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x


def binarize(x: Tensor, mode: str, generator: torch.Generator | None = None) -> Tensor:
    """Pixels in [0, 1] made 0 or 1: drawn as Bernoulli(x), or cut at 0.5.

    Args:
        x: floats in [0, 1], any shape.
        mode: `dynamic` and `static` draw (they differ in how often: see `fix_binarization`), `threshold` is
            x > 0.5, `none` returns x.
        generator: on the device of x; by default torch's global one.

    Raises:
        InputError: unknown mode.

    Source: Salakhutdinov and Murray (2008), section 5, where the binary images are draws from the grey ones.

    >>> binarize(torch.tensor([0.0, 0.4, 0.6, 1.0]), "threshold")
    tensor([0., 0., 1., 1.])
    """
    _check_mode(mode)
    if mode == "none":
        return x
    return (x > 0.5).to(x.dtype) if mode == "threshold" else torch.bernoulli(x, generator=generator)


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
    check(dataset, unit_interval=True)
    fixed = {}
    for stream, part in enumerate(PARTS):
        if mode != "dynamic" or part != "train":
            split = getattr(dataset, part)
            fixed[part] = split._replace(x=_binary(split.x, mode, _generator(seed, _BINARIZE, stream)))
    return replace(dataset, **fixed)


def order(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of 0 to n - 1, (n,) int64 on the CPU: a pure function of its three arguments.

    >>> order(5, seed=0, epoch=1).sort().values
    tensor([0, 1, 2, 3, 4])
    """
    drawn = _generator(seed, _ORDER, epoch).permutation(n)
    return torch.from_numpy(drawn.astype(np.int64, copy=False))


def batches(
    split: Split, size: int, seed: int, epoch: int, *, start: int = 0
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches of one epoch: x (size, *shape) and y (size,), as stored, on the device of the split.

    Each datum comes once, in the order of `order`; the last batch may be smaller. `start` skips that many
    batches, to go on in mid-epoch. One copy of the permutation to the device an epoch, and no synchronization.

    Raises:
        InputError: size below 1 or start below 0.

    >>> [len(x) for x, y in batches(load("digits").test, size=100, seed=0, epoch=0, start=1)]
    [100, 100, 59]
    """
    for name, value, least in (("batch size", size, 1), ("start", start, 0)):
        if value < least:
            raise InputError(f"{name}: found {value}, expected at least {least}")
    rows = order(len(split.x), seed, epoch).to(split.x.device, non_blocking=True)
    some = (rows[first : first + size] for first in range(start * size, len(rows), size))
    x, y = split
    return ((x.index_select(0, i), None if y is None else y.index_select(0, i)) for i in some)


def check(dataset: Dataset, *, unit_interval: bool) -> None:
    """The checks at the door: every value is finite and, under a Bernoulli likelihood, in [0, 1].

    Raises:
        InputError: naming the part, the datum in it, the position in the datum and the value there.

    >>> check(load("digits"), unit_interval=True)
    """
    _check_values(dataset, torch.isfinite, "a finite number: mend or leave out that datum")
    if unit_interval:
        expected = "a pixel in [0, 1] under Bernoulli: pass `--likelihood gaussian`, or rescale the data to [0, 1]"
        _check_values(dataset, lambda x: (x >= 0) & (x <= 1), expected)


def _check_values(dataset: Dataset, good: Callable[[Tensor], Tensor], expected: str) -> None:
    for part in PARTS:
        x = getattr(dataset, part).x
        if not x.is_floating_point() or not len(x):  # uint8 is finite, and in [0, 1] after `pixels`
            continue
        bad = ~good(x)
        if bad.any():
            at = tuple(int(i) for i in np.unravel_index(int(bad.flatten().byte().argmax()), x.shape))
            position = ", ".join(map(str, at[1:]))
            where = f"{dataset.name}: datum {at[0]} of the {part} part, position ({position})"
            raise InputError(f"{where}: found {x[at].item():g}, expected {expected}")


def _check_mode(mode: str) -> None:
    if mode not in BINARIZATIONS:
        raise InputError(f"binarize: unknown mode {mode!r}: {nearest(mode, list(BINARIZATIONS))}")


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


def _draw(arrays: _Arrays, fraction: float, least: int, generator: np.random.Generator) -> list[_Arrays]:
    """What is left and what was drawn, each in the order of the file; at least one datum is left."""
    n = len(arrays.x)
    count = min(max(round(fraction * n), least), n - 1)
    drawn = np.zeros(n, dtype=bool)
    drawn[generator.permutation(n)[:count]] = True
    return [_Arrays(*(a if a is None else a[rows] for a in arrays)) for rows in (~drawn, drawn)]


def _tensors(*arrays: np.ndarray | None) -> Split:
    return Split(*(a if a is None else torch.from_numpy(np.require(a, requirements=["C", "W"])) for a in arrays))


def _sha256(parts: _Parts) -> str:
    digest = hashlib.sha256()
    for part, arrays in sorted(parts.items()):
        for name, array in zip(arrays._fields, arrays, strict=True):
            if array is not None:
                digest.update(f"{name}_{part} {array.dtype.name} {array.shape};".encode())
                digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")))
    return digest.hexdigest()


def _stored(data: str, part: str, x: np.ndarray, y: np.ndarray | None) -> _Arrays:
    """The arrays in the dtypes they are kept in, or an error that says which array is not fit for it."""
    end = "" if part == "all" else f"_{part}"
    if x.dtype.kind not in "buif":
        raise InputError(f"{data}: x{end} has dtype {x.dtype}, expected bool, integers or floats: convert it first")
    if x.ndim < 2 or not np.prod(x.shape[1:]):
        expected = "expected (N, ...) with at least one value a datum: add the missing dimension"
        raise InputError(f"{data}: x{end} has shape {x.shape}, {expected}")
    if y is not None:
        y = _labels(f"{data}: y{end}", y, len(x))
    if x.dtype.kind == "b":
        return _Arrays(x.astype(np.uint8) * np.uint8(255), y)
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and `check` names it
        return _Arrays(x if x.dtype == np.uint8 else x.astype(np.float32), y)


def _labels(where: str, y: np.ndarray, n: int) -> np.ndarray:
    if y.shape != (n,):
        raise InputError(f"{where} has shape {y.shape}, expected ({n},) to go with x: give one label a datum")
    whole = y.dtype.kind in "bui" or (y.dtype.kind == "f" and bool(np.all(np.mod(y, 1) == 0)))
    if not whole:
        raise InputError(f"{where} has dtype {y.dtype}, expected whole numbers as labels: number the classes")
    return y.astype(np.int64)


def _check_parts(data: str, parts: _Parts) -> None:
    def kind(arrays: _Arrays) -> str:
        labels = "without" if arrays.y is None else "with"
        return f"{arrays.x.dtype} of shape {arrays.x.shape[1:]} {labels} labels"

    (first, model), *_ = parts.items()
    for part, arrays in parts.items():
        least = 2 if part == "all" else part != "validation"
        if len(arrays.x) < least:
            where = data if part == "all" else f"{data}, {part} part"
            raise InputError(f"{where}: found {len(arrays.x)} data, expected at least {least:d}: give it more")
        if kind(arrays) != kind(model):
            expected = f"expected {kind(model)} as in the {first} part: store them alike"
            raise InputError(f"{data}: the {part} part is {kind(arrays)}, {expected}")


def _read(data: str, data_dir: str | Path | None) -> _Parts:
    if data in _SOURCES:
        return _SOURCES[data](Path(data_dir or os.environ.get("PVAE_DATA") or "data").expanduser())
    path = Path(data).expanduser()
    if path.is_dir():
        return _read_images(path)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise InputError(f"{data}: no such file or folder in {Path.cwd()}: check the path, or give {_PATHS}")
        raise InputError(f"data: unknown name {data!r}: {nearest(data, list(NAMED))}; or give {_PATHS}")
    if path.suffix.lower() not in _FILES:
        raise InputError(f"{data}: cannot read files of kind {path.suffix!r}, expected {_PATHS}: convert it")
    with _reading(path):
        return _FILES[path.suffix.lower()](path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say which file could not be read: on damaged bytes the parsers raise a dozen unrelated types."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if "pickle" in str(error):
            end = "found pickled objects or no array at all, expected arrays of numbers: save plain arrays"
        else:
            found = " ".join(f"{type(error).__name__} {error}".split())
            end = f"found {found}; expected a complete file: copy or export it again"
        raise InputError(f"{path}: cannot be read: {end}") from error


def _read_numpy(path: Path) -> _Parts:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {"all": _Arrays(loaded, None)}
    with loaded:
        found = {name: loaded[name] for name in loaded.files}
    if "x" not in found and len(found) == 1:
        return {"all": _Arrays(*found.values(), None)}
    ends = {"all": ""} if "x" in found else {part: f"_{part}" for part in PARTS if f"x_{part}" in found}
    if ends.keys() < {"train", "test"} and "all" not in ends:
        expected = "expected x (and y), or x_train and x_test (and y_*), or one array: rename them"
        raise InputError(f"{path}: found arrays {', '.join(found) or 'none'}; {expected}")
    return {part: _Arrays(found["x" + end], found.get("y" + end)) for part, end in ends.items()}


def _read_csv(path: Path) -> _Parts:
    with path.open(encoding="utf-8-sig") as file:
        names = [name.strip().strip('"').lower() for name in file.readline().split(",")]
    # An empty cell does not make a header: a first row with a missing value must fail, not vanish.
    header = any(name and not _is_number(name) for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on an empty file; said below
        options: dict[str, Any] = {"comments": None, "quotechar": '"', "encoding": "utf-8-sig"}
        table = np.loadtxt(path, delimiter=",", skiprows=int(header), ndmin=2, **options)
    if table.size and header and len(names) != table.shape[1]:
        raise InputError(f"{path}: found {len(names)} names over {table.shape[1]} columns, expected as many: mend it")
    label = next((names.index(name) for name in ("label", "y") if name in names), None)
    if label is None or not table.size:
        return {"all": _Arrays(table.reshape(len(table), -1) if table.size else np.empty((0, 1)), None)}
    return {"all": _Arrays(np.delete(table, label, axis=1), table[:, label])}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_images(folder: Path) -> _Parts:
    from PIL import Image

    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES
    )
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not names:
        raise InputError(f"{folder}: found no image, expected {', '.join(_SUFFIXES)} files: check the path")
    images: list[np.ndarray] = []
    for name in names:
        with _reading(folder / name), Image.open(folder / name) as image:
            images.append(_image(image))
        if images[-1].shape != images[0].shape:
            expected = f"expected {images[0].shape} like {names[0]}: make them all alike"
            raise InputError(f"{folder / name}: found an image of shape {images[-1].shape}, {expected}")
    classes = [name.split("/")[0] if "/" in name else "" for name in names]
    y = np.unique(classes, return_inverse=True)[1] if any(classes) else None
    return {"all": _Arrays(np.stack(images), y)}


def _image(image: Any) -> np.ndarray:
    """A PIL image as uint8: (H, W) where it is grey, (3, H, W) where it has colour."""
    if image.mode[0] in "IF":  # PIL would clip these silently
        raise ValueError(f"{image.mode} pixels of more than 8 bits; save 8 bits a channel, or a .npz")
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _digits(root: Path) -> _Parts:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"all": _Arrays((digits.images / 16).astype(np.float32), digits.target)}


def _idx_set(name: str, train: str, test: str, root: Path, **options: Any) -> _Parts:
    """The MNIST family, read in place whether unpacked or not (torchvision reads unpacked files only)."""
    folder = root / name / "raw"
    stems = {
        p: [f"{s}-{k}-ubyte" for k in ("images-idx3", "labels-idx1")] for p, s in (("train", train), ("test", test))
    }

    def find(stem: str) -> Path | None:
        return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)

    wanted = [stem for pair in stems.values() for stem in pair]
    if not all(map(find, wanted)):
        _torchvision(name, root, folder, f"{', '.join(wanted)} (or the same with .gz)", **options)
    return {part: _Arrays(*(_idx(find(stem) or folder / stem) for stem in pair)) for part, pair in stems.items()}


def _idx(path: Path) -> np.ndarray:
    """An IDX file of bytes: two zeros, type 8, the number of dimensions, the sizes as big-endian int32, the data."""
    with _reading(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        raw = file.read()
        if raw[:3] != b"\0\0\x08":
            raise ValueError(f"a file that begins {raw[:3]!r}, not an IDX file of bytes")
        shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def _emnist(root: Path) -> _Parts:
    parts = _idx_set("EMNIST", "emnist-balanced-train", "emnist-balanced-test", root, split="balanced")
    return {p: a._replace(x=a.x.transpose(0, 2, 1)) for p, a in parts.items()}  # its files hold letters on their side


def _image_set(name: str, files: str, train: dict[str, Any], test: dict[str, Any], root: Path) -> _Parts:
    parts = {}
    for part, options in (("train", train), ("test", test)):
        images, labels = zip(*_torchvision(name, root, root, files, **options), strict=True)
        parts[part] = _Arrays(np.stack([_image(image) for image in images]), np.array(labels))
    return parts


def _omniglot(root: Path) -> _Parts:
    from PIL import Image, ImageOps

    def shrink(image: Any) -> Any:
        return ImageOps.invert(image).resize((28, 28), Image.Resampling.BILINEAR)  # bright strokes on black

    options = [{"background": background, "transform": shrink} for background in (True, False)]
    files = "omniglot-py/images_background.zip, omniglot-py/images_evaluation.zip and what they unpack to"
    parts = _image_set("Omniglot", files, *options, root)
    shift = parts["train"].y.max() + 1  # the test characters are others than the training ones
    return parts | {"test": parts["test"]._replace(y=parts["test"].y + shift)}


def _torchvision(name: str, root: Path, folder: Path, files: str, **options: Any) -> Any:
    """The set as torchvision has it, downloaded into `root` where it is absent."""
    from torchvision import datasets

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)  # CIFAR's pickles are old
            return getattr(datasets, name)(root, download=True, **options)
    except Exception as error:  # of whatever type: URLError, RuntimeError, OSError, IncompleteRead, ...
        found = " ".join(f"{type(error).__name__} {error}".split())
        what = f"is not whole in {folder.resolve()} and could not be downloaded ({found})"
        raise InputError(
            f"{name} {what}: connect, name another `--data-dir`, or place there by hand: {files}"
        ) from error


_FILES: dict[str, Callable[[Path], _Parts]] = {".npz": _read_numpy, ".npy": _read_numpy, ".csv": _read_csv}
_IS_TRAIN: tuple[dict[str, Any], ...] = ({"train": True}, {"train": False})
_SOURCES: dict[str, Callable[[Path], _Parts]] = {
    "digits": _digits,
    "mnist": partial(_idx_set, "MNIST", "train", "t10k"),
    "fashion-mnist": partial(_idx_set, "FashionMNIST", "train", "t10k"),
    "kmnist": partial(_idx_set, "KMNIST", "train", "t10k"),
    "emnist": _emnist,
    "omniglot": _omniglot,
    "cifar10": partial(_image_set, "CIFAR10", "cifar-10-batches-py (from cifar-10-python.tar.gz)", *_IS_TRAIN),
    "svhn": partial(_image_set, "SVHN", "train_32x32.mat, test_32x32.mat", {"split": "train"}, {"split": "test"}),
}
NAMED = tuple(_SOURCES)
