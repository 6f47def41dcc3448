"""Values of options, which may be text, converted to the types that they are annotated with."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any, Literal

from ..errors import InputError


def convert(value: Any, kind: Any, where: str) -> Any:
    """A value, which may be text, as the type it should have.

    >>> from collections.abc import Sequence
    >>> convert("3", int | None, "--k"), convert("1,2", Sequence[int], "--ks")
    (3, (1, 2))

    Raises:
        InputError: it does not fit.
    """
    for candidate in sorted(_alternatives(kind), key=lambda a: a is not type(None)):  # "none" is also text
        try:
            return _as(value, candidate)
        except (ValueError, TypeError, OverflowError, AttributeError):
            continue
    choices = [c for a in _alternatives(kind) if typing.get_origin(a) is Literal for c in typing.get_args(a)]
    close = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.5)
    hint = f": did you mean '{close[0]}'?" if close else ""
    large = int in _alternatives(kind) and str(value).strip().lstrip("+-").isdecimal()
    expected = describe(kind) + " between -2^63 and 2^63" * large
    raise InputError(f"{where}: found '{value}', expected {expected}{hint}")


_PLURALS = {int: "whole numbers", float: "numbers"}


def describe(kind: Any) -> str:
    """A type in words.

    >>> describe(float | Literal["shared", "pixel"] | None)
    'a number, shared, pixel or none'
    """
    words: list[str] = []
    for a in _alternatives(kind):
        if typing.get_origin(a) is Literal:
            words += typing.get_args(a)
        elif typing.get_origin(a) is not None:
            kinds = typing.get_args(a)
            named = ", ".join(typing.get_args(kinds[0])) if typing.get_origin(kinds[0]) is Literal else ""
            words.append(f"{named or _PLURALS.get(kinds[0], 'values')} with commas")
        else:
            words.append(
                {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}.get(
                    a, getattr(a, "__name__", "any value")
                )
            )
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _alternatives(kind: Any) -> list[Any]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [a for arg in typing.get_args(kind) for a in _alternatives(arg)]
    return [kind]


def _as(value: Any, kind: Any) -> Any:
    text = isinstance(value, str)
    if typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
        raise ValueError
    if typing.get_origin(kind) is not None:
        items = value if isinstance(value, list | tuple) else [value]
        items = [v for v in value.split(",") if v.strip()] if text else items
        return tuple(_as(item, typing.get_args(kind)[0]) for item in items)
    if kind is type(None):
        if value is None or (text and value.lower() in ("none", "null")):
            return None
        raise ValueError
    if kind is bool:
        if isinstance(value, bool):
            return value
        if value.lower() not in ("true", "false"):
            raise ValueError
        return value.lower() == "true"
    if isinstance(value, bool) or value is None or (kind is str and isinstance(value, dict | list)):
        raise ValueError
    if kind is int and ((not text and value != int(value)) or abs(int(value)) >= 2**63):
        raise ValueError
    if kind is float and not float(value) < float("inf"):
        raise ValueError
    return kind(value) if kind in (int, float, str) else value
