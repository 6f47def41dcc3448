"""Files that are written whole or not at all, and what is said where a disk is full; JSON and CSV."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

RESUME, RETRY = "resume; what was saved stays", "run it again"
"""What to do where a disk was full and there is space now: of a run, and of what writes one file."""


@contextmanager
def whole(path: Path, then: str = RESUME) -> Iterator[Path]:
    """Where to write a file, which is put in its place when all is written, or removed; errors as of `disk`."""
    aside = path.with_name(f".{path.stem}.writing{path.suffix}")  # by its ending some writers know what to write
    with disk(path, then):
        try:
            yield aside
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def disk(where: Path, then: str = RESUME) -> Iterator[None]:
    """Say it in one line where a disk is full or a folder cannot be written to, and what to do then."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"the disk is full: free some space, then {then}"
        elif error.errno == errno.EFBIG:
            text = f"the limit on a file's size is too low: raise it (ulimit -f), then {then}"
        else:
            text = f"cannot be written to ({error.strerror or error}): choose another place"
        raise InputError(f"{where}: {text}") from error


def as_json(value: Any, indent: int | None = 1) -> str:
    r"""A value as JSON, and the end of its line; what is no finite number is null, for which JSON has no other word.

    >>> as_json({"mean": 1.5, "se": float("nan")}, None)
    '{"mean": 1.5, "se": null}\n'
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=indent, allow_nan=False) + "\n"


def as_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Rows as CSV, with a header; what a row has not is left empty.

    >>> as_csv(["a", "b"], [{"a": 1, "b": 2}, {"b": 3}])
    'a,b\n1,2\n,3\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
