"""Where data come from: named sets, array files and image folders, read into NumPy arrays.

`read` finds the source, reads it whole and refuses what is damaged or unfit; what comes out is uniform, whatever
it was read from. `data.load` divides it and makes it tensors. A new named set is one function and its line in
`_SOURCES`; a new kind of file, one in `_FILES`.
"""

import gzip
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, nearest
from .csvs import read_csv

PARTS = ("train", "validation", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
# Sub-folders named by numbers below this are labelled by them; by larger ones, as dates, they are counted.
_LARGEST = 10_000
# Other names of labels and of the validation part, which are refused in place of being left out.
_MEANT = dict.fromkeys(("label", "labels", "target", "targets"), "y") | dict.fromkeys(
    ("val", "valid", "dev"), "validation"
)
_PATHS = "a path to a .npz, .npy or .csv file or to a folder of images"


class Arrays(NamedTuple):
    """One part as it is kept: `x` (N, *shape), uint8 (0 to 255) or float32; `y` labels or covariates, or None.

    Labels are (N,) int64, covariates (N, C) float32.
    """

    x: np.ndarray
    y: np.ndarray | None


# {"all": ...} where the set comes undivided, else "train" and "test" (and "validation").
Parts = dict[str, Arrays]


class Source(NamedTuple):
    """What a reader returns: the parts, and in words what of a file they are, where that is to be told."""

    parts: Parts
    said: str = ""


def read(data: str, data_dir: str | Path | None = None) -> Source:
    """Everything at that name or path: `all` where it comes undivided, else `train` and `test` (`validation`).

    Args:
        data: as in `data.load`.
        data_dir: where named sets lie and are downloaded to; by default `$PVAE_DATA`, else `data`.

    Raises:
        InputError: unknown name, missing or damaged file, wrong dtype or shape, too few data, or a download that
            failed.

    >>> {part: arrays.x.shape for part, arrays in read("digits").parts.items()}
    {'all': (1797, 8, 8)}
    """
    found = _read(data, data_dir)
    parts = {part: _stored(data, part, *arrays) for part, arrays in found.parts.items()}
    _check_parts(data, parts)
    return Source(parts, found.said)


def _read(data: str, data_dir: str | Path | None) -> Source:
    if data in _SOURCES:
        return Source(_SOURCES[data](Path(data_dir or os.environ.get("PVAE_DATA") or "data").expanduser()))
    path = Path(data).expanduser()
    if data and path.is_dir():  # an empty name is not the working folder
        return _read_images(path)
    if not data or not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise InputError(f"{data}: no such file or folder (looked for {path.absolute()}), expected {_PATHS}")
        raise InputError(f"data: unknown name {data!r}: {nearest(data, list(NAMED))}; or give {_PATHS}")
    if not path.is_file():
        raise InputError(f"{data}: found neither a file nor a folder, expected {_PATHS}: save what comes out of a pipe")
    if path.suffix.lower() not in _FILES:
        raise InputError(f"{data}: cannot read files of kind {path.suffix!r}, expected {_PATHS}: convert it")
    with _reading(path):
        return _FILES[path.suffix.lower()](path)


def _stored(data: str, part: str, x: np.ndarray, y: np.ndarray | None) -> Arrays:
    """The arrays in the dtypes they are kept in, or an error that says which array is not fit for it."""
    end = "" if part == "all" else f"_{part}"
    if x.dtype.kind not in "buif":
        raise InputError(f"{data}: x{end} has dtype {x.dtype}, expected bool, integers or floats: convert it first")
    if x.ndim < 2 or not np.prod(x.shape[1:]):
        mend = "add the missing dimension" if x.ndim < 2 else "give it data"
        raise InputError(f"{data}: x{end} has shape {x.shape}, expected (N, ...), at least one value a datum: {mend}")
    if y is not None:
        y = _labels(f"{data}: y{end}", y, len(x))
    if x.dtype.kind == "b":
        return Arrays(x.astype(np.uint8) * np.uint8(255), y)
    return Arrays(x if x.dtype == np.uint8 else _float32(f"{data}: x{end}", x), y)


def _float32(where: str, values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if values.dtype.kind == "f" and values.dtype.itemsize > found.itemsize:
        beyond = np.isinf(found) & np.isfinite(values)
        if beyond.any():
            at = [int(i) for i in np.unravel_index(beyond.argmax(), beyond.shape)]
            expected = "expected numbers within float32's range, 3.4e38: rescale them to a size near 1"
            raise InputError(f"{where}: found {values[tuple(at)]:g} at {at}, {expected}")
    return found


def _labels(where: str, y: np.ndarray, n: int) -> np.ndarray:
    """Labels as int64 (N,), covariates as float32 (N, size)."""
    if y.shape != (n,) and not (y.ndim == 2 and len(y) == n and y.dtype.kind == "f" and y.shape[1] > 0):
        raise InputError(
            f"{where} has shape {y.shape}, expected ({n},) to go with x: give one label a datum (covariates are floats"
            f" of shape ({n}, size))"
        )
    if y.dtype.kind not in "buif":
        raise InputError(f"{where} has dtype {y.dtype}, expected whole numbers as labels: number the classes")
    if y.ndim == 2:
        y = _float32(where, y)
        if not np.isfinite(y).all():
            at = np.argwhere(~np.isfinite(y))[0].tolist()
            raise InputError(f"{where}: found {y[tuple(at)]:g} at {at}, expected finite covariates: mend that datum")
        return y
    odd = ~((np.abs(y.astype(float)) < 2.0**63) & (y == np.floor(y)))
    if odd.any():
        found = f"found {y[odd][0]:g} at {odd.argmax()}"
        raise InputError(
            f"{where}: {found}, expected whole numbers as labels: give covariates the shape ({n}, 1), or name it"
            " otherwise if it is data"
        )
    return y.astype(np.int64)


def _check_parts(data: str, parts: Parts) -> None:
    def kind(arrays: Arrays) -> str:
        beside = "without labels"
        if arrays.y is not None:
            beside = "with labels" if arrays.y.ndim == 1 else f"with {arrays.y.shape[1]} covariates"
        return f"{arrays.x.dtype} of shape {arrays.x.shape[1:]} {beside}"

    (first, model), *_ = parts.items()
    for part, arrays in parts.items():
        least = 2 if part == "all" else part != "validation"
        if len(arrays.x) < least:
            where = data if part == "all" else f"{data}, {part} part"
            raise InputError(f"{where}: found {len(arrays.x)} data, expected at least {least:d}: give it more")
        if kind(arrays) != kind(model):
            expected = f"expected {kind(model)} as in the {first} part: store them alike"
            raise InputError(f"{data}: the {part} part is {kind(arrays)}, {expected}")


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


def _read_numpy(path: Path) -> Source:
    with path.open("rb") as file:  # np.load would leave a damaged .npz open
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return Source({"all": Arrays(loaded, None)})
        found = {name: loaded[name] for name in loaded.files}
    name = next(iter(found), "y")
    if len(found) == 1 and name != "y" and not name.startswith("y_"):
        return Source({"all": Arrays(found[name], None)}, "" if name == "x" else f"its array {name}")
    ends = {"all": ""} if "x" in found else {part: f"_{part}" for part in PARTS if f"x_{part}" in found}
    if "all" not in ends and not {"train", "test"} <= ends.keys():
        expected = "expected x (and y), or x_train and x_test (and y_*), or one array: rename them"
        if {"indptr", "indices", "data"} <= found.keys():
            expected = "a sparse matrix of SciPy, expected a dense array: save its toarray()"
        raise InputError(f"{path}: found arrays {', '.join(found) or 'none'}; {expected}")
    parts = {part: Arrays(found["x" + end], found.get("y" + end)) for part, end in ends.items()}
    known = found.keys() & {letter + end for letter in "xy" for end in ends.values()}
    left = [name for name in found if name not in known]
    for name in left:
        _check_left(path, name, known)
    return Source(parts, f"arrays left out: {_listed(left)}" if left else "")


def _check_left(path: Path, name: str, known: set[str]) -> None:
    """Refuse an array that would be left out, where by its name it is labels or a part."""
    words = [_MEANT.get(word, word) for word in name.lower().split("_")]
    meant = "_".join(sorted(words, key=lambda word: word not in ("x", "y")))  # val_x is x_validation
    if meant in known or meant not in {letter + end for letter in "xy" for end in ("", *(f"_{p}" for p in PARTS))}:
        return
    expected = f"x_{meant[2:]} beside it" if meant == name else meant
    if "x" not in known and len(meant) == 1:
        expected = f"{meant}_train and {meant}_test"
    elif "x" in known and meant != "y":
        expected = "x_train and x_test in place of x"
    raise InputError(f"{path}: found an array {name}, expected {expected}: name them so, or save without {name}")


def _read_csv(path: Path) -> Source:
    x, y, said = read_csv(path)
    return Source({"all": Arrays(x, y)}, said)


def _read_images(folder: Path) -> Source:
    from PIL import Image

    files = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES]
    names = sorted(file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts))
    if not names:
        raise InputError(f"{folder}: found no image, expected {', '.join(_SUFFIXES)} files: check the path")
    images: list[np.ndarray] = []
    for name in names:
        with _reading(folder / name), Image.open(folder / name) as image:
            images.append(_image(image))
        if images[-1].shape != images[0].shape:
            expected = f"expected {images[0].shape} like {names[0]}: make them all alike"
            raise InputError(f"{folder / name}: found an image of shape {images[-1].shape}, {expected}")
    y, said = _classes([name.split("/")[0] if "/" in name else "" for name in names])
    return Source({"all": Arrays(np.stack(images), y)}, said)


def _classes(folders: list[str]) -> tuple[np.ndarray | None, str]:
    """The label of each image, by the sub-folder it is in: a number as it is, else its place, which is said."""
    names = sorted(set(folders))
    if names == [""]:
        return None, ""
    if all(name.isascii() and name.isdecimal() for name in names) and len(set(map(int, names))) == len(names):
        names.sort(key=int)
        if int(names[-1]) < _LARGEST:
            return np.array([int(name) for name in folders]), ""
    label = {name: i for i, name in enumerate(names)}
    said = "labels: " + _listed([f"{i} = {name or '.'}" for name, i in label.items()])
    return np.array([label[name] for name in folders]), said


def _listed(words: list[str]) -> str:
    return ", ".join(words if len(words) <= 10 else [*words[:3], "...", words[-1]])


def _image(image: Any) -> np.ndarray:
    """A PIL image as uint8: (H, W) where it is grey, (3, H, W) where it has colour."""
    if image.mode[0] in "IF":  # PIL would clip these silently
        found = f"found {image.mode} pixels, expected 8 bits a channel"
        raise InputError(f"{image.filename}: {found}: convert the images, or save a .npz")
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _digits(root: Path) -> Parts:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"all": Arrays((digits.images / 16).astype(np.float32), digits.target)}


def _idx_set(name: str, train: str, test: str, root: Path, **options: Any) -> Parts:
    """The MNIST family, read in place whether unpacked or not (torchvision reads unpacked files only)."""
    folder = root / name / "raw"
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    stems = {part: [f"{start}-{kind}" for kind in kinds] for part, start in (("train", train), ("test", test))}

    def find(stem: str) -> Path | None:
        return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)

    wanted = [stem for pair in stems.values() for stem in pair]
    if not all(map(find, wanted)):
        _torchvision(name, root, folder, f"{', '.join(wanted)} (or the same with .gz)", **options)
    return {part: Arrays(*(_idx(find(stem) or folder / stem) for stem in pair)) for part, pair in stems.items()}


def _idx(path: Path) -> np.ndarray:
    """An IDX file of bytes: two zeros, type 8, the number of dimensions, the sizes as big-endian int32, the data."""
    with _reading(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        raw = file.read()
        if raw[:3] != b"\0\0\x08":
            raise ValueError(f"a file that begins {raw[:3]!r}, not an IDX file of bytes")
        shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def _emnist(root: Path) -> Parts:
    parts = _idx_set("EMNIST", "emnist-balanced-train", "emnist-balanced-test", root, split="balanced")
    return {p: a._replace(x=a.x.transpose(0, 2, 1)) for p, a in parts.items()}  # its files hold letters on their side


def _image_set(name: str, files: str, train: dict[str, Any], test: dict[str, Any], root: Path) -> Parts:
    parts = {}
    for part, options in (("train", train), ("test", test)):
        loaded = _torchvision(name, root, root, files, **options)
        with _reading(root / files):
            images, labels = zip(*loaded, strict=True)
            parts[part] = Arrays(np.stack([_image(image) for image in images]), np.array(labels))
    return parts


def _omniglot(root: Path) -> Parts:
    from PIL import Image, ImageOps

    def shrink(image: Any) -> Any:
        return ImageOps.invert(image).resize((28, 28), Image.Resampling.BILINEAR)  # bright strokes on black

    options = [{"background": background, "transform": shrink} for background in (True, False)]
    files = "omniglot-py/images_background.zip, omniglot-py/images_evaluation.zip and what they unpack to"
    with _none_left_empty(root / "omniglot-py"):
        parts = _image_set("Omniglot", files, *options, root)
    shift = parts["train"].y.max() + 1  # the test characters are others than the training ones
    return parts | {"test": parts["test"]._replace(y=parts["test"].y + shift)}


def _torchvision(name: str, root: Path, folder: Path, files: str, **options: Any) -> Any:
    """The set as torchvision has it, downloaded into `root` where it is absent."""
    from torchvision import datasets

    try:
        with _none_left_empty(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)  # CIFAR's pickles are old
            return getattr(datasets, name)(root, download=True, **options)
    except Exception as error:  # of whatever type: URLError, RuntimeError, OSError, IncompleteRead, ...
        found = " ".join(f"{type(error).__name__} {error}".split())
        what = f"is not whole in {folder.resolve()} and could not be downloaded ({found})"
        do = f"connect, or place there by hand: {files}; a fit takes another folder by `--data-dir`"
        raise InputError(f"{name} {what}: {do}") from error


@contextmanager
def _none_left_empty(folder: Path) -> Iterator[None]:
    """Of a folder and those that it is in, leave none that was not there before and is empty."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in absent:
            with suppress(OSError):  # it is not there, or not empty
                path.rmdir()


_FILES: dict[str, Callable[[Path], Source]] = {".npz": _read_numpy, ".npy": _read_numpy, ".csv": _read_csv}
_IS_TRAIN: tuple[dict[str, Any], ...] = ({"train": True}, {"train": False})
_SOURCES: dict[str, Callable[[Path], Parts]] = {
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
