"""Flat names and values in a YAML file, in which numbers are decimal and only true and false are so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from .errors import InputError

# As YAML 1.2 has them. By 1.1, PyYAML's, `010` is 8, `1:30` 90, `off` false, and `1e-3` text.
_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, str] = {}
        for key, _ in node.value:
            name = _normal(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if name in seen:
                lines = f"found {seen[name]} and {_at(key)}, expected one of them"
                raise yaml.constructor.ConstructorError(None, None, lines)
            seen[name] = _at(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that is a number or the like by either version."""

    yaml_implicit_resolvers: ClassVar = {
        first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _kind, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def dump(values: Mapping[str, Any]) -> str:
    r"""Flat names and values as YAML that `read` reads.

    >>> dump({"lr": 0.002, "data": "010"})
    "lr: 0.002\ndata: '010'\n"
    """
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)


def read(path: str | Path) -> dict[str, Any]:
    """The flat names and values of a YAML file.

    Raises:
        InputError: no such file, not a flat mapping, or a name that is there twice.
    """
    try:
        values = yaml.load(Path(path).read_text(), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.constructor.ConstructorError as error:
        raise InputError(f"--config {path}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"--config {path}: found {type(values).__name__}, expected lines of `name: value`")
    return {_normal(key): value for key, value in values.items()}


def _normal(name: str) -> str:
    """batch_size as batch-size; a member's option as it is."""
    return name if "." in name else name.replace("_", "-")


def _at(key: yaml.ScalarNode) -> str:
    return f"`{key.value}` in line {key.start_mark.line + 1}"
