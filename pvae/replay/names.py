"""Which names a function's code takes from outside: by these a program reaches what it does not hold itself."""

from __future__ import annotations

import dis
import functools
import sys
import types
from typing import Any

LIBRARIES = {"torch", "pyro", "numpy", "builtins", __name__.partition(".")[0], *sys.stdlib_module_names}


def library(value: Any) -> bool:
    """Whether a function, a class or a module is no part of a program: its globals are registers of its own."""
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] in LIBRARIES


@functools.lru_cache(2000)
def named(code: types.CodeType) -> tuple[frozenset[tuple[str, ...]], frozenset[str]]:
    """The names from outside, with the attributes asked of them (`config.kl.beta` is three); and all attributes.

    >>> chains, attributes = named((lambda x: config.kl.beta + x.size).__code__)
    >>> sorted(chains), sorted(attributes)
    ([('config',), ('config', 'kl'), ('config', 'kl', 'beta')], ['beta', 'kl', 'size'])
    """
    chains: set[tuple[str, ...]] = set()
    attributes: set[str] = set()
    chain: tuple[str, ...] = ()
    for found in dis.get_instructions(code):
        if found.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"):
            chain = (found.argval,)
        elif found.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(found.argval)
            chain = (*chain, found.argval) if chain else ()
        else:
            chain = ()
        if chain:
            chains.add(chain)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more = named(inner)
            chains |= more[0]
            attributes |= more[1]
    return frozenset(chains), frozenset(attributes)
