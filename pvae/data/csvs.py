"""Tables of numbers in a .csv file: what is a header, row numbers, labels; and what is wrong, by the file's lines."""

from __future__ import annotations

import csv
import re
import warnings
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ..errors import InputError

_LABELS = ("label", "y")
_MISSING = ("", "na", "n/a", "null", "none", "?", "-", ".")
_BETWEEN = ": found {} between the numbers, expected commas: export it with them, and with decimal points"
_OPTIONS: dict[str, Any] = {"comments": None, "quotechar": '"', "encoding": "utf-8-sig", "delimiter": ",", "ndmin": 2}


class Table(NamedTuple):
    """What was read: `x` (N, D), `y` (N,) or None, and in words what of the file that is."""

    x: np.ndarray
    y: np.ndarray | None
    said: str


class _Top(NamedTuple):
    """The beginning of a file: its first row, and the lines before it and to its end."""

    row: list[str]
    before: int
    lines: int
    comment: list[str]
    """The last line before it that begins with a #, in cells."""


def read_csv(path: Path) -> Table:
    """The numbers of a file, with its column `label` or `y` as labels, and without its row numbers.

    A first row is a header if anything in it is no number, or by `_are_names`; so is a comment above it, of as many
    cells. A first column without a name that counts rows is left out.

    Raises:
        InputError: a cell that is no number, rows or names of another length, or text that is not UTF-8.
    """
    try:
        top = _top(path)
        rest = _numbers(path, top)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: found text that is not UTF-8, expected numbers with commas: save it so") from error
    names, how, is_header = _header(path, top, rest)
    if top.row and not is_header:
        first = np.array([[float(cell) for cell in top.row]])
        rest = np.concatenate([first, rest]) if rest.size else first
    if not rest.size:
        if any("\n" in cell for cell in top.row):
            found = "found nothing but one row, in which a quote holds several lines"
            raise InputError(f"{path}: line {top.before + 1}: {found}: close the quote, or give it data")
        return Table(np.empty((0, 1)), None, "")
    said, dropped = [f"{rest.shape[1]} column{'s' * (rest.shape[1] != 1)} {how}"], []
    if names and not names[0] and _count(rest[:, 0]):
        dropped.append(0)
        said.append("row numbers left out")
    label = next((names.index(name) for name in _LABELS if name in names), None)
    if label is not None:
        dropped.append(label)
        said.append(f"labels of column {names[label]}")
    y = None if label is None else rest[:, label]
    return Table(np.delete(rest, dropped, axis=1), y, ", ".join(said))


def _top(path: Path) -> _Top:
    comment, before, line = "", 0, ""
    with path.open(encoding="utf-8-sig", newline="") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                break
            comment, before, line = (line if line.strip() else comment), before + 1, ""
        reader = csv.reader(chain([line] if line else [], file))
        row = [cell.strip() for cell in next(reader, [])]
    cells = [cell.strip() for cell in next(csv.reader([comment.lstrip("# ")]), [])]
    return _Top(row, before, before + reader.line_num, cells)


def _numbers(path: Path, top: _Top) -> np.ndarray:
    """All below the first row; where that has cells without a number, what is wrong is said of the file's lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of no data; said where they are counted
        try:
            return np.loadtxt(path, skiprows=top.lines, **_OPTIONS)
        except ValueError as error:
            _refuse(path, top, error)


def _header(path: Path, top: _Top, rest: np.ndarray) -> tuple[list[str], str, bool]:
    """The names of the columns in lower case, if any, what to say of them, and whether the first row is they."""
    row = top.row
    if any(cell and not _is_number(cell) for cell in row):
        names, how = row, "with a header"
    elif rest.size and len(row) == rest.shape[1] and _are_names(row, rest):
        shown = " to ".join(dict.fromkeys([row[0] or row[1], row[-1]]))
        names, how = row, f"with its first row, {shown}, as a header"
    elif len(row) > 1 and len(row) == len(top.comment) and not all(map(_is_number, top.comment)):
        names, how = top.comment, "with a comment as a header"
    else:
        names, how = [], "without a header"
    odd = not all(row) or "_" in "".join(row) or (rest.size and len(row) != rest.shape[1])
    if names is not row and row and odd:
        _refuse(path, top, None)
    if rest.size and names and len(names) != rest.shape[1]:
        raise InputError(f"{path}: found {len(names)} names over {rest.shape[1]} columns, expected as many: mend it")
    return ["" if name.lower() == "unnamed: 0" else name.lower() for name in names], how, names is row


def _are_names(row: list[str], rest: np.ndarray) -> bool:
    """Whether a first row of numbers, above all the rest, is a header: what pandas writes, or years.

    Distinct whole numbers are where the first cell is empty above row numbers, where they count from 0 over more than
    three columns, or where no other row is of whole numbers alone.
    """
    cells = row if row[0] else row[1:]
    if not _are_whole(cells):
        return False
    if not row[0]:
        return _count(rest[:, 0])
    from_zero = cells == [str(i) for i in range(len(cells))]
    if from_zero and len(cells) > 3:
        return True
    return (from_zero or len(cells) > 1) and not (rest == rest.round()).all(1).any()


def _are_whole(cells: list[str]) -> bool:
    """Whether cells are distinct whole numbers, written as such."""
    return 0 < len(cells) == len(set(cells)) and all(re.fullmatch(r"\d+", cell) for cell in cells)


def _count(column: np.ndarray) -> bool:
    """Whether a column is 0, 1, ... or 1, 2, ..."""
    return any(np.array_equal(column, np.arange(len(column)) + first) for first in (0, 1))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _refuse(path: Path, top: _Top, error: ValueError | None) -> NoReturn:
    """Say what is wrong with the first row that cannot be read, if it is found; else what NumPy said."""
    named = any(cell and not _is_number(cell) for cell in top.row) or (top.row and not top.row[0])
    names = top.row if error is not None and named else []
    skipped = top.lines if names else top.before
    with path.open(encoding="utf-8-sig", newline="") as file:
        for _ in range(skipped):
            file.readline()
        reader = csv.reader(file)
        for row in filter(None, reader):
            wrong = _wrong(row, len(top.row), names)
            if wrong:
                raise InputError(f"{path}: line {skipped + reader.line_num}{wrong}") from error
    raise InputError(f"{path}: cannot be read: {error}: expected numbers with commas between them") from error


def _wrong(row: list[str], length: int, names: list[str]) -> str:
    """What is wrong with a row, if anything."""
    text = ",".join(row)
    for mark, what in ((";", "';'"), ("\t", "a tab")):
        if mark in text:
            return _BETWEEN.format(what)
    if len(row) == 1 and len(cells := text.split()) > 1 and all(map(_is_number, cells)):
        return _BETWEEN.format("spaces")
    for i, cell in enumerate(row):
        if _is_number(cell) and "_" not in cell:  # which Python reads, and NumPy does not
            continue
        where = f", column {i + 1}" + (f" ({names[i]})" if i < len(names) and names[i] else "")
        where += f": found {cell[:40]!r}"
        if cell.strip().lower() in _MISSING:
            return f"{where}, a missing value, expected a number: fill it in, or leave out that row or column"
        if i < len(names) and names[i].lower() in _LABELS:
            return f"{where}, expected whole numbers as labels: number the classes"
        return f"{where}, expected a number: write it as one, or leave that column out"
    return f": found {len(row)} values, expected {length} as in the first row: mend it" if len(row) != length else ""
