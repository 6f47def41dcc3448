"""The error for what a person did wrong, said in one line; checks that raise it, and what its message tells."""

import math
import sys
import traceback
from collections.abc import Callable
from numbers import Integral
from typing import Any

LIBRARIES = {"torch", "pyro", __name__.partition(".")[0], *sys.stdlib_module_names}
"""Modules that are not a person's own."""


class InputError(ValueError):
    """Bad input: what was wrong, where, what was found, what is expected, what to do.

    The message is one line. The command line prints it and exits with code 2; in Python it is a `ValueError`.

    >>> raise InputError("--particles: found 0, expected at least 1: name how many draws to take")
    Traceback (most recent call last):
    ...
    pvae.errors.InputError: --particles: found 0, expected at least 1: name how many draws to take
    """


def at_least(least: float, hint: str = "", **options: float) -> None:
    """Refuse options below a number.

    >>> at_least(1, components=0)
    Traceback (most recent call last):
    ...
    pvae.errors.InputError: components: found 0, expected at least 1
    """
    for name, value in options.items():
        if not value >= least:
            raise InputError(f"{name}: found {value}, expected at least {least}{hint}")


def whole_number(least: int, hint: str = "", **options: Any) -> None:
    """Refuse options that are no whole numbers, or below one.

    >>> whole_number(1, particles=2.0)
    Traceback (most recent call last):
    ...
    pvae.errors.InputError: particles: found 2.0, expected a whole number of at least 1
    """
    for name, value in options.items():
        if not isinstance(value, Integral):
            raise InputError(f"{name}: found {value!r}, expected a whole number of at least {least}{hint}")
    at_least(least, hint, **options)


def more_than(least: float, hint: str = "", **options: float) -> None:
    """Refuse options that are not above a number, or infinite.

    >>> more_than(0, scale=0.0)
    Traceback (most recent call last):
    ...
    pvae.errors.InputError: scale: found 0.0, expected more than 0
    """
    for name, value in options.items():
        if not value > least:
            raise InputError(f"{name}: found {value}, expected more than {least}{hint}")
        if value == math.inf:
            raise InputError(f"{name}: found {value}, expected a finite number")


def nearest(unknown: Any, known: list[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, then all of them.

    >>> nearest("bernouli", ["bernoulli", "gaussian"])
    "did you mean 'bernoulli'? known: bernoulli, gaussian"
    """
    import difflib

    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(unknown).lower(), list(lower), n=1, cutoff=0.5)
    hint = f"did you mean '{lower[close[0]]}'? " if close else ""
    return f"{hint}known: {', '.join(sorted(known))}"


def written_at(error: Exception) -> str:
    """The last line that a person wrote: none of a library's."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_globals.get("__name__", "").partition(".")[0] not in LIBRARIES:
            return f" at {frame.f_code.co_filename}:{line}"
    return ""


def fails(run: Callable[[], Any]) -> bool:
    """Whether it raises anything.

    >>> fails(lambda: 1 / 0)
    True
    """
    try:
        run()
    except Exception:
        return True
    return False
