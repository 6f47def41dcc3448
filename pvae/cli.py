"""What the commands share: options from the configuration's fields and the members' constructors, and errors."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import sys
import typing
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import config, start
from .base import blame, lookup, members
from .config import FAMILIES, Config, flag, member_help, member_options
from .config.values import convert, describe
from .errors import InputError, at_least
from .runs import Run, versions

OF_A_RUN = ("environment.json", "summary.json", "results.nc")
"""Files of a run folder that are not to be written over."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s, and that offers the nearest option for an unknown one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **kwargs)
        self.add_argument("--version", action="version", version=f"pvae {versions()['packages']['pvae']}")

    def error(self, message: str) -> NoReturn:
        """Raise in place of printing the usage."""
        raise InputError(f"{message.removeprefix('argument ')}: see {self.prog} --help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; refuse what is left over."""
        found, rest = self.parse_known_args([_normal(word) for word in argv])
        self.refuse(rest)
        return found

    def refuse(self, rest: Sequence[str]) -> None:
        """Refuse words that nothing has taken, naming the nearest known option."""
        if not rest:
            return
        if not rest[0].startswith("-"):
            raise InputError(
                f"{rest[0] or repr('')}: found one word too many, expected options: see {self.prog} --help"
            )
        known = {word.lstrip("-"): word for action in self._actions for word in action.option_strings}
        name = rest[0].partition("=")[0].lstrip("-").lower()  # dashes are alike in all
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {known[close[0]]}?" if close else f"see {self.prog} --help"
        raise InputError(f"{rest[0]}: unknown option: {hint}")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


def _normal(word: str) -> str:
    """--batch_size as --batch-size, --objective.analytic-kl as --objective.analytic_kl."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    first, dot, own = name[2:].partition(".")
    return "--" + first.replace("_", "-") + dot + own.replace("-", "_") + equals + value


def add_config_options(parser: Parser, argv: Sequence[str]) -> None:
    """An option for each field of the configuration and each option of a member.

    Of classes that `argv` names by import path too, so that `--help` shows theirs.
    """
    group = parser.add_argument_group("options, also names in a configuration file")
    types_of = typing.get_type_hints(Config)
    for option in config.fields():
        kind, default = types_of[option.name], option.default
        text = option.metadata["help"]
        if option.name in FAMILIES:
            text += f": {', '.join(members(option.name))}, or your own class as module:Class"
        elif kind is not str:
            text += f"; {describe(kind)}"
        if default is not None:
            text += f" (default: {_shown(default)})"
        group.add_argument(flag(option.name), metavar=option.name.upper(), help=text.replace("%", "%%"), default=None)
    chosen = [(family, name, lookup(family, name)) for family in FAMILIES for name in _named(family, argv)]
    every = [(family, name, member) for family in FAMILIES for name, member in members(family).items()]
    _add_member_options(
        parser.add_argument_group("options of members; of one alone: python -m pvae.parts NAME"), [*chosen, *every]
    )


def _named(family: str, argv: Sequence[str]) -> list[str]:
    """The classes of a family that are named by import path: "--prior=mylab:Mine" or "--prior mylab:Mine"."""
    given = [word.removeprefix(f"--{family}=") for word in argv if word.startswith(f"--{family}=")]
    given += [after for word, after in pairwise(argv) if word == f"--{family}"]
    return [name for name in given if ":" in name.strip(":")]


def _add_member_options(group: Any, found: Sequence[tuple[str, str, Any]]) -> None:
    """An entry for each option; where members share its name, who means what by it, and by which default."""
    entries: dict[str, dict[str, dict[str, list[str]]]] = {}
    bare = set()
    for family, name, member in found:
        for option, parameter in member_options(family, member).items():
            word = f"--{family}.{option}"
            kind = "" if parameter.annotation is parameter.empty else f" [{describe(parameter.annotation)}]"
            default = "" if parameter.default is parameter.empty else f" (default: {_shown(parameter.default)})"
            meanings = entries.setdefault(word, {}).setdefault(member_help(member, option) + kind, {})
            meanings.setdefault(default, []).append(name)
            bare |= {word} if parameter.annotation is bool else set()
    for word, meanings in entries.items():
        text = "; ".join(
            ", ".join(", ".join(names) + default for default, names in who.items()) + f": {meaning}"
            for meaning, who in meanings.items()
        )
        more: dict[str, Any] = {"nargs": "?", "const": "true"} if word in bare else {}
        metavar, dest = word.partition(".")[2].upper(), word.removeprefix("--")
        group.add_argument(word, dest=dest, metavar=metavar, help=text.replace("%", "%%"), default=None, **more)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def config_from(found: argparse.Namespace, extra: dict[str, Any], file: str | None) -> Config:
    """The configuration: defaults, overridden by a file, overridden by options.

    An option that chooses another member than the file does leaves out the file's options which that one lacks, and
    says so.

    Raises:
        InputError: as `config.from_flat`; of what stands in the file alone it names the file.
    """
    given = {
        name if "." in name else name.replace("_", "-"): value
        for name, value in vars(found).items()
        if value is not None and (("." in name) or name in {f.name for f in config.fields()})
    }
    given |= extra
    base = {} if file is None else config.read(file)
    for family in FAMILIES & base.keys() & given.keys():
        if left := _left_out(family, base, given[family]):
            base = {name: value for name, value in base.items() if name not in left}
            say(f"--config {file}: left out {', '.join(left)}: not of {family} {given[family]}")
    try:
        return config.from_flat({**base, **given})
    except InputError as error:
        if any(str(error).startswith((f"--{name}:", f"--{name} ")) for name in base.keys() - given.keys()):
            raise InputError(f"--config {file}: {error}") from error
        raise


def _left_out(family: str, base: dict[str, Any], now: str) -> list[str]:
    """The file's options of the member that it names which the one chosen now does not have."""
    try:
        before, after = (member_options(family, lookup(family, name)) for name in (base[family], now))
    except InputError:  # which is told of where it is used
        return []
    mine = {f"{family}.{name}" for name in before.keys() - after.keys()}
    return [name for name in base if name in mine]


def parse_with_members(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parse, and gather the options of members that the parser does not know: {"prior.scale": "0.1"}.

    They are those of a class named by import path, or mistakes; `config.from_flat` knows which.
    """
    found, rest = parser.parse_known_args([_normal(word) for word in argv])
    own = {}
    while rest and (family := rest[0].partition(".")[0]) != rest[0] and family.removeprefix("--") in FAMILIES:
        name, equals, value = rest.pop(0).removeprefix("--").partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        own[name] = value
    parser.refuse(rest)
    return found, own


def device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: there is no such device here.
    """
    convert(name, typing.get_type_hints(Config)["device"], "--device")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is there: choose --device cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def whole(text: str, where: str, least: int) -> int:
    """A whole number that is at least `least`."""
    found = convert(text, int, where)
    at_least(least, **{where: found})
    return found


def numbers(text: str, where: str) -> tuple[int, ...]:
    """Whole numbers with commas, each at least 1 and there once."""
    found = convert(text, Sequence[int], where)
    if not found or min(found) < 1:
        raise InputError(f"{where}: found '{text}', expected numbers of draws, each at least 1")
    if len(set(found)) < len(found):
        raise InputError(f"{where}: found '{text}', expected each K once")
    return found


def output(name: str, option: str, endings: Sequence[str]) -> Path:
    """Where a file is to be written, looked at before the work begins.

    Raises:
        InputError: another ending, a file that a run has of that name, or no folder to write into.
    """
    path = Path(name)
    if path.suffix.lower() not in endings:
        raise InputError(f"{option} {path}: found the ending '{path.suffix}', expected one of {', '.join(endings)}")
    if path.name in OF_A_RUN and path.with_name("config.yaml").is_file():
        raise InputError(f"{option} {path}: found a run's own file, expected another: choose another name")
    if path.is_dir():
        raise InputError(f"{option} {path}: found a folder, expected a file: choose another name")
    if not path.parent.is_dir():
        raise InputError(f"{option} {path}: expected a file in a folder that exists: make it")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{option} {path}: nothing can be written into that folder: choose another place")
    return path


def write_and_print(outs: Sequence[Path], write: Callable[[Path], bool | None], text: str) -> None:
    """Write every file that can be written, and print a text with their names.

    Args:
        outs: the files.
        write: writes one; gives False where there was nothing to write.
        text: is printed after the files are there, though nobody may read it.

    Raises:
        InputError: of the files that could not be written.
    """
    shown, errors = [], []
    try:
        for out in outs:
            try:
                shown += [f"written: {out}"] * (write(out) is not False)
            except InputError as error:
                errors.append(str(error))
    finally:
        print("\n".join([text, *([""] if shown else []), *shown]))
    if errors:
        raise InputError("; ".join(errors))


def say(line: str) -> None:
    """A line beside the output, at once."""
    print(line, file=sys.stderr, flush=True)


def say_changed(run: Run, settings: Config | None = None) -> None:
    """Say which of one's own files, of these settings or of the run's, are others than when the run began."""
    for line in run.changed_parts(settings):
        say(line)


def run(main: Callable[[Sequence[str]], int], name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command's main; what a person did wrong is one line and exit code 2."""
    try:
        start.imported()
        try:
            code = main(_as_text(sys.argv[1:] if argv is None else argv))
        finally:
            if sys.stdout is not None:  # as where it is closed (>&-)
                sys.stdout.flush()
    except KeyboardInterrupt as error:
        code = _complain(name, "interrupted: nothing to resume was written", 128 + (*error.args, 2)[0])
    except BrokenPipeError:  # a reader like `head` has gone: so that the interpreter does not complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        message = _explain(name, error)
        if message is None:
            raise
        code = _complain(name, message, 2)
    raise SystemExit(code)


def _as_text(argv: Sequence[str]) -> Sequence[str]:
    """The words, which are Unicode; what a terminal or a pipe cannot show of them is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # what a notebook puts there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{word!a}: found bytes that are not UTF-8, expected text: rename it") from error
    return argv


def _explain(name: str, error: Exception) -> str | None:
    """What a person can do about an error; None where it is a fault of the program."""
    if isinstance(error, InputError):
        return str(error)
    memory = any(words in str(error) for words in ("allocate memory", "Storage size calculation overflowed"))
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or memory:
        return f"out of memory: {_LOWER.get(name, 'take less at once')}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'output'}: the disk is full: free some space; checkpoints that were written stay"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    where, about = blame(error), "".join(getattr(error, "__notes__", ()))
    return f"{where}: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}{about}" if where else None


_LOWER = {
    "fit": "lower --batch-size, --particles or the model's size; if it was in evaluation, --resume with a lower "
    "--eval-chunk",
    "compare": "lower --eval-chunk",
    "sample": "lower -n",
}


def _complain(name: str, message: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(f"pvae {name}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code
