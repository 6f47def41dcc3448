"""`python -m pvae.parts`: every member of every family: what it is, its formula, its options, its paper.

python -m pvae.parts
python -m pvae.parts vamp
python -m pvae.parts mylab:Mine
python -m pvae.parts --family prior
python -m pvae.parts --markdown
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from . import cli
from .base import Member, lookup, members, own_class
from .config import FAMILIES, member_help, member_options
from .config.values import describe
from .errors import InputError, nearest

WIDTH = 100
BEGIN, END = "<!-- members: python -m pvae.parts --write README.md -->", "<!-- end of members -->"


class Option(NamedTuple):
    """An option of a member."""

    name: str
    kind: str
    default: str
    text: str


@dataclass(frozen=True)
class Entry:
    """What the catalogue says of a member."""

    family: str
    name: str
    sentence: str
    """What it is, and its formula."""
    paper: str
    options: tuple[Option, ...]


def entry(member: type[Member]) -> Entry:
    """What a member's docstring and constructor say of it.

    >>> from pvae import Normal
    >>> entry(Normal).sentence
    'The standard normal: p(z) = N(0, I).'
    """
    text = inspect.cleandoc(vars(member).get("__doc__") or "")
    first = " ".join(text.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.])\s+(?=[A-Z])", first, maxsplit=1)[0]
    options = tuple(
        Option(
            name,
            "" if p.annotation is p.empty else describe(p.annotation),
            "" if p.default is p.empty else _shown(p.default),
            member_help(member, name),
        )
        for name, p in member_options(member.family, member).items()
    )
    return Entry(member.family, member.name, sentence, "; ".join(papers(text.partition(">>>")[0])), options)


AUTHOR = r"(?:(?:van der|van den|van|von|de|den) )?[A-Z][\w'’-]+"
PAPER = re.compile(rf"{AUTHOR}(?:,? (?:and )?{AUTHOR})*(?: et al\.)?,? \(?(?:19|20)\d\d[a-z]?\)?")


def papers(text: str) -> list[str]:
    """The papers that a docstring names: authors and year, each once.

    >>> papers("As in the variational lower bound (Burda, Grosse and Salakhutdinov 2015, eq. 8; Mnih and Rezende 2016)")
    ['Burda, Grosse and Salakhutdinov 2015', 'Mnih and Rezende 2016']
    """
    found = (" ".join(match[0].split()) for match in PAPER.finditer(" ".join(text.split())))
    return list(dict.fromkeys(re.sub(r",? \(?(\d{4}[a-z]?)\)?$", r" \1", one) for one in found))


def _shown(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(_shown, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def catalogue(families: Sequence[str] = FAMILIES) -> Iterator[Entry]:
    """The entries of families, in the order that they are registered."""
    for family in families:
        for member in members(family).values():
            yield entry(member)


def text_of(found: Entry) -> str:
    """An entry as text."""
    lines = [f"{found.family} {found.name}", *_wrapped(found.sentence, "  ")]
    for option in found.options:
        default = f" (default: {option.default})" if option.default else ""
        kind = f" [{option.kind}]" if option.kind else ""
        lines += _wrapped(f"--{found.family}.{option.name}{default}: {option.text}{kind}", "    ", "        ")
    return "\n".join([*lines, *(_wrapped(found.paper, "  Paper: ", "    ") if found.paper else [])])


def _wrapped(text: str, first: str, rest: str | None = None) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=first if rest is None else rest)


def markdown(families: Sequence[str] = FAMILIES) -> str:
    """The families as a table of names: a row for each."""
    names = {family: ", ".join(f"`{found.name}`" for found in catalogue([family])) for family in families}
    rows = [f"| {family} | {members_} |" for family, members_ in names.items()]
    return "\n".join(["| family | members |", "|---|---|", *rows])


def section() -> str:
    """The table between the marks of a page."""
    return f"{BEGIN}\n\n{markdown()}\n\n{END}"


def write(path: Path) -> None:
    """Put the table between the marks of a page.

    Raises:
        InputError: the page cannot be read, or has no marks.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--write {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"--write {path}: found no lines '{BEGIN}' and '{END}', expected both: add them")
    path.write_text(before + section() + after)


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="pvae parts", description="Every member of every family.")
    parser.add_argument("name", nargs="?", help="a member, a family, or your own class as module:Class (default: all)")
    parser.add_argument("--family", metavar="FAMILY", help=f"one of {', '.join(FAMILIES)}")
    parser.add_argument("--markdown", action="store_true", help="as a table of names")
    parser.add_argument("--write", metavar="FILE", help="put that table between the marks of a page")
    return parser


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    found = _parser().parse(argv)
    if found.family is not None and found.family not in FAMILIES:
        raise InputError(f"--family: unknown family '{found.family}': {nearest(found.family, list(FAMILIES))}")
    if (found.write or found.markdown) and (found.name or (found.write and found.family)):
        raise InputError(f"{found.name or '--family'}: the table is of all members: leave it out")
    families = [found.family] if found.family else list(FAMILIES)
    if found.write:
        write(Path(found.write))
    elif found.markdown:
        print(markdown(families))
    else:
        print("\n\n".join(map(text_of, _named(found.name, families))))
    return 0


def _named(name: str | None, families: Sequence[str]) -> list[Entry]:
    if name in FAMILIES:
        return list(catalogue([str(name)]))
    if name is not None and ":" in name.strip(":"):
        member = lookup(families[0], name) if len(families) == 1 else own_class(name)
        return [replace(entry(member), name=name)]
    entries = list(catalogue(families))
    chosen = [found for found in entries if name is None or found.name == name]
    if not chosen:
        raise InputError(f"unknown member '{name}': {nearest(str(name), sorted({found.name for found in entries}))}")
    return chosen


if __name__ == "__main__":
    cli.run(main, "parts")
