"""A comparison as LaTeX."""

from __future__ import annotations

import math
import re
from itertools import zip_longest
from pathlib import PurePath
from typing import Any

from ..comparison import Comparison, is_bound
from .rows import Row, Table, bounds_on, notes, tables


def latex(found: Comparison, protocol: dict[str, Any]) -> str:
    """A table for a paper, in the style of booktabs.

    Bounds in bold are the highest, and those less than two standard errors of their paired difference below it. What
    is above a part of the table is short; what else its title says is in the caption, where lines are broken.
    """
    names, parts = list(found.models), list(tables(found, protocol))
    about = bounds_on(found, protocol)
    sections = [_section(found, table, about) for table in parts]
    said = [*notes(found, protocol), *(_upper(table.title) for table in parts if _short(table.title) != table.title)]
    if len(names) > 1:
        highest = "the highest bound on each of these" if about else "the highest bound"
        said.append(f"Bold: {highest}, and those within two standard errors of the paired difference from it")
    caption = " ".join(f"{escape(sentence)}." for sentence in said)
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{{_label(names, protocol)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(names)}}}",
            r"\toprule",
            " & ".join(["", *(_name(name) for name in names)]) + r" \\",
            r"\midrule",
            "\n\\midrule\n".join(sections),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _name(words: str) -> str:
    """A name as it is: two hyphens are no dash."""
    return words.translate(_ESCAPED).replace("--", "-{}-")


def _label(names: list[str], protocol: dict[str, Any]) -> str:
    """What the table is referred to by, in letters, digits and hyphens: its data and its models."""
    about = " ".join([PurePath(protocol["data"]).stem, *names])
    return "tab:bounds-" + re.sub("[^a-zA-Z0-9]+", "-", about).strip("-")


def _section(found: Comparison, table: Table, about: dict[str, str]) -> str:
    lines = [line for row in table.rows for line in _lines(found, table.part, row, about)]
    if table.part != "test":
        columns = 1 + len(found.models)
        lines.insert(0, rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{escape(_short(table.title))}}}}} \\")
    return "\n".join(lines)


def _short(title: str) -> str:
    return re.split("[:;,] ", title)[0]


def _upper(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _lines(found: Comparison, part: str, row: Row, about: dict[str, str]) -> list[str]:
    """The lines of a row whose cells have several."""
    best = set()
    if part == "test" and is_bound(row.quantity):
        groups = [[name for name in found.models if about.get(name) == on] for on in {*about.values()} or {None}]
        best = set().union(*(_best(found, row.quantity, group) for group in groups))
    cells = [[_cell(line, name in best) for line in row.cells.get(name, [])] for name in found.models]
    return [" & ".join(line) + r" \\" for line in zip_longest([escape(row.label)], *cells, fillvalue="")]


def _cell(words: str, bold: bool) -> str:
    mean, between, se = words.partition(" +- ")
    if not between:
        return escape(words)
    percent = r"\,\%" if mean.endswith("%") else ""
    mean, se = (_number(word.removesuffix("%")) for word in (mean, se))
    if se == "-":  # of one datum
        return rf"$\mathbf{{{mean}}}$" if bold else rf"${mean}{percent}$"
    return rf"$\mathbf{{{mean}}} \pm {se}$" if bold else rf"${mean} \pm {se}{percent}$"


def _number(word: str) -> str:
    return {"nan": "?", "inf": r"\infty", "-inf": r"-\infty"}.get(word, word)


def _best(found: Comparison, key: str, names: list[str]) -> set[str]:
    """Of some models those with the highest bound, and those that cannot be told from it; none of one model."""
    means = {name: found.models[name].test.columns()[key].mean().item() for name in names}
    means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    if len(names) < 2 or not means:
        return set()
    first, differences, best = max(means, key=means.__getitem__), found.differences(), {max(means, key=means.get)}
    for name in means.keys() - {first}:
        pair = differences.get((name, first), differences.get((first, name), {})).get(key)
        if pair is not None and abs(pair.mean) <= 2 * pair.se:
            best.add(name)
    return best


_ESCAPED = str.maketrans(
    {char: rf"\{char}" for char in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "|": "$|$",
    }
)


def escape(words: str) -> str:
    r"""Text as LaTeX prints it; L_K is set as a formula, +- and a minus as their signs.

    >>> print(escape("log p(x) - L_10, 50% of run_1: raise --steps"))
    $\log p(x)$ $-$ $L_{10}$, 50\% of run\_1: raise -{}-steps
    """
    parts = re.split(
        r"(\bL_(?:\d+|K)\b|\+-|--| - |\bk-hat\b|\blog p\(x(?:\|y)?\)|\blog N\b|\bp[=<][\d.]+e[+-]\d+)", words
    )
    known = {"+-": r"$\pm$", "--": "-{}-", " - ": " $-$ ", "k-hat": r"$\hat{k}$", "log N": r"$\log N$"}
    known |= {words: rf"$\{words}$" for words in ("log p(x)", "log p(x|y)")}
    return "".join(
        (known.get(part) or _power(part) or f"$L_{{{part[2:]}}}$") if i % 2 else part.translate(_ESCAPED)
        for i, part in enumerate(parts)
    )


def _power(words: str) -> str:
    """A p-value such as p=3e-40 as a formula; else nothing."""
    found = re.fullmatch(r"p([=<])([\d.]+)e([+-]\d+)", words)
    if not found:
        return ""
    sign, factor, power = found[1], "" if found[2] == "1" else rf"{found[2]} \cdot ", int(found[3])
    return f"$p {sign} {factor}10^{{{power}}}$"
