"""Configuration files: YAML of flat names and values, which are read as text, as those of the command line are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

NOTHING = ("", "~")
"""What stands for none in YAML, beside null."""


class _Loader(yaml.BaseLoader):
    """Leaves all values text, so that `010` is 10 and `off` a word: what they are is known by their option alone."""

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        return "none" if node.value in NOTHING and node.style is None else node.value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, str] = {}
        for key, _ in node.value:
            name = _normal(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if name in seen:
                lines = f"found {seen[name]} and {_at(key)}, expected one of them"
                raise yaml.constructor.ConstructorError(None, None, lines)
            seen[name] = _at(key)
        return super().construct_mapping(node, deep)


def dump(values: Mapping[str, Any]) -> str:
    r"""Flat names and values as YAML that `read` reads.

    >>> dump({"lr": 0.002, "data": "010"})
    "lr: 0.002\ndata: '010'\n"
    """
    return yaml.safe_dump(dict(values), sort_keys=False)


def read(path: str | Path) -> dict[str, Any]:
    """The flat names and values of a YAML file; text, or lists of it.

    Raises:
        InputError: no such file, not a flat mapping, or a name that is there twice.
    """
    try:
        values = yaml.load(Path(path).read_text(), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.constructor.ConstructorError as error:
        raise InputError(f"--config {path}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: found {type(values).__name__}, expected lines of `name: value`")
    return {_normal(key): value for key, value in values.items()}


def _normal(name: str) -> str:
    """batch_size as batch-size; a member's option as it is."""
    return name if "." in name else name.replace("_", "-")


def _at(key: yaml.ScalarNode) -> str:
    return f"`{key.value}` in line {key.start_mark.line + 1}"
