"""What the commands share: options from the configuration's fields and the members' constructors, and errors."""

from __future__ import annotations

import argparse
import difflib
import errno
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from . import config
from .base import lookup, members
from .config import FAMILIES, Config, describe, flag, member_help, member_options
from .errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s, and that offers the nearest option for an unknown one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise in place of printing the usage."""
        raise InputError(f"{message}: see {self.prog} --help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; refuse what is left over, naming the nearest known option."""
        found, rest = self.parse_known_args([_normal(word) for word in argv])
        if rest:
            known = [word for action in self._actions for word in action.option_strings]
            name = rest[0].partition("=")[0]
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"see {self.prog} --help"
            raise InputError(f"{rest[0]}: unknown option: {hint}")
        return found


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


def add_config_options(parser: Parser) -> None:
    """An option for each field of the configuration and each option of a member."""
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
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
            text += f" (default: {shown})"
        group.add_argument(flag(option.name), metavar=option.name.upper(), help=text.replace("%", "%%"), default=None)
    group = parser.add_argument_group("options of members")
    taken: dict[str, argparse.Action] = {}
    for family in FAMILIES:
        for name, member in members(family).items():
            _add_member_options(group, family, name, member, taken)


def _add_member_options(group: Any, family: str, name: str, member: Any, taken: dict[str, argparse.Action]) -> None:
    for option, parameter in member_options(family, member).items():
        word = f"--{family}.{option}"
        default = "" if parameter.default is inspect.Parameter.empty else f" (default: {_shown(parameter.default)})"
        if word in taken:  # another member's option of the same name: one entry says both
            taken[word].help = f"{name}{default}; {taken[word].help}"
            continue
        text = f"{name}{default}: {member_help(member, option)} [{describe(parameter.annotation)}]"
        bare = {"nargs": "?", "const": "true"} if parameter.annotation is bool else {}
        taken[word] = group.add_argument(
            word, dest=f"{family}.{option}", metavar=option.upper(), help=text.replace("%", "%%"), default=None, **bare
        )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def config_from(found: argparse.Namespace, extra: dict[str, Any], file: str | None) -> Config:
    """The configuration: defaults, overridden by a file, overridden by options.

    An option that chooses another member drops the file's options of the member before.
    """
    given = {
        name if "." in name else name.replace("_", "-"): value
        for name, value in vars(found).items()
        if value is not None and (("." in name) or name in {f.name for f in config.fields()})
    }
    given |= extra
    base = config.read(file) if file else {}
    for family in FAMILIES:
        if family in given and given[family] != base.get(family):
            base = {name: value for name, value in base.items() if not name.startswith(f"{family}.")}
    return config.from_flat({**base, **given})


def foreign_options(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split off options of a member that is named by import path: (the rest, {"prior.scale": "0.1"})."""
    argv = [_normal(word) for word in argv]
    paths = {family: name for family in FAMILIES if ":" in (name := _value(argv, f"--{family}"))}
    known = {f"{f}.{o}" for f in FAMILIES for m in members(f).values() for o in member_options(f, m)}
    own: dict[str, Any] = {}
    for family, name in paths.items():
        own |= {f"{family}.{o}": p for o, p in member_options(family, lookup(family, name)).items()}
    rest, extra = [], {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in own and name not in known:
            if not equals:
                value = "true" if own[name].annotation is bool else next(words, "")
            extra[name] = value
        else:
            rest.append(word)
    return rest, extra


def _value(argv: Sequence[str], option: str) -> str:
    for i, word in enumerate(argv):
        if word.startswith(option + "="):
            return word.partition("=")[2]
        if word == option and i + 1 < len(argv):
            return argv[i + 1]
    return ""


def device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: there is no such device here.
    """
    config.convert(name, typing.get_type_hints(Config)["device"], "--device")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is there: choose --device cpu, or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def numbers(text: str, where: str) -> tuple[int, ...]:
    """Whole numbers with commas, each at least 1."""
    found = config.convert(text, Sequence[int], where)
    if not found or min(found) < 1:
        raise InputError(f"{where}: found '{text}', expected numbers of draws, each at least 1")
    return found


def run(main: Callable[[Sequence[str]], int], name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command's main; what a person did wrong is one line and exit code 2."""
    try:
        code = main(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        code = _complain(name, str(error))
    except torch.OutOfMemoryError:
        code = _complain(name, f"out of device memory: {_LOWER}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        code = _complain(name, f"out of memory: {_LOWER}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        code = _complain(
            name, f"the disk is full ({error.filename}): free some space; checkpoints that were written stay"
        )
    except BrokenPipeError:
        code = 0
    raise SystemExit(code)


_LOWER = "lower --particles or --batch-size (in training), or --eval-chunk (in evaluation)"


def _complain(name: str, message: str) -> int:
    sys.stdout.flush()
    print(f"pvae {name}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
