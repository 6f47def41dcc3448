"""A comparison as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from ..comparison import Comparison
from .rows import Table, notes, tables

COLUMN = 20
"""Characters of a column, unless its numbers are wider; longer names are broken."""


def text(found: Comparison, protocol: dict[str, Any], width: int = 100) -> str:
    """The tables of a comparison, no wider than `width` characters where a column fits into it."""
    above = "\n".join(textwrap.fill(line, width) for line in notes(found, protocol))
    return "\n\n".join([above, *(_aligned(table, width) for table in tables(found, protocol))])


def _aligned(table: Table, width: int) -> str:
    """A table: names above, broken where they are long; labels on the left, again where the columns do not fit."""
    names = table.names
    labels = max([COLUMN, *(2 + len(row.label) for row in table.rows)])
    column = max([COLUMN, *(2 + len(word) for row in table.rows for cell in row.cells.values() for word in cell)])
    at_once = max(1, (width - labels) // column)
    lines = textwrap.wrap(table.title, width)
    for start in range(0, len(names), at_once):
        lines += [""] if start else []
        shown = names[start : start + at_once]
        heads = [textwrap.wrap(name, column - 2) for name in shown]
        height = max(map(len, heads))
        lines += _block("", [[""] * (height - len(head)) + head for head in heads], labels, column)
        for row in table.rows:
            lines += _block(f"  {row.label}", [row.cells.get(each, []) for each in shown], labels, column)
    return "\n".join(lines)


def _block(label: str, cells: Sequence[Sequence[str]], labels: int, column: int) -> list[str]:
    """The lines of a row whose cells have several."""
    rows = zip_longest([label], *cells, fillvalue="")
    return [(f"{first:<{labels}}" + "".join(f"{word:>{column}}" for word in rest)).rstrip() for first, *rest in rows]
