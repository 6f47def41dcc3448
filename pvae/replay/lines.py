"""Which line of a program a message names: the one that a person would look at."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

import pyro
import torch

TORCH, PYRO = (str(Path(module.__file__).parent) for module in (torch, pyro))
OURS = str(Path(__file__).parents[1])
_STEPS = str(Path(OURS, "svi"))
_MACHINERY = (str(Path(__file__).parent), _STEPS, "<")
"""What takes steps and writes them down, of which no person wants to hear."""
_PYTHON = sysconfig.get_path("stdlib")


def of(error: BaseException) -> str:
    """The line of an error, and ": "; empty where there is none."""
    return _said((frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__))


def here() -> str:
    """The line of a step's programs that is being run, and ": "."""
    walked = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(sys._getframe(1)))
    return _said(reversed(list(takewhile(lambda place: not place[0].startswith(_STEPS), walked))))


def outside() -> int:
    """How far up from its caller the first line is that is in no library: where a warning points."""
    frame, level = sys._getframe(1), 1
    while frame is not None and _of_library(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return level


def _said(places: Iterable[tuple[str, int]]) -> str:
    """The last that is in no library; or the last of ours or of Pyro's."""
    known = [place for place in places if not place[0].startswith((*_MACHINERY, TORCH)) and not _of_python(place[0])]
    theirs = [place for place in known if not place[0].startswith((OURS, PYRO))] or known
    return f"{theirs[-1][0]}:{theirs[-1][1]}: " if theirs else ""


def _of_library(name: str) -> bool:
    return name.startswith((OURS, PYRO, TORCH)) or _of_python(name)


def _of_python(name: str) -> bool:
    return name.startswith(_PYTHON) and "-packages" not in name
