"""The commands, as a person runs them, in this process; and what makes a small run quick."""

import importlib
import os
from pathlib import Path

import pytest

from pvae import cli, report

SMALL = ["--epochs", "3", "--encoder.hidden", "16", "--decoder.hidden", "16", "--latent", "2", "--eval-particles", "2"]


def go(*argv, command="fit"):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        cli.run(importlib.import_module(f"pvae.{command}").main, command, [str(word) for word in argv])
    return ended.value.code


def refused(capsys, *argv, command="fit"):
    """The one line that a command refuses with; nothing was written."""
    before = _paths()
    capsys.readouterr()
    assert go(*argv, command=command) == 2
    out, err = capsys.readouterr()
    assert out.count("\n") in ((0, 2, 3) if command == "fit" else (0,))  # at most what is about to happen
    assert err.count("\n") == 1
    assert err.startswith(f"pvae {command}: error: ")
    assert _paths() == before
    return err


def _paths():
    """All below this folder but bytecode, and the folder that runs without a name go to."""
    return {path for path in Path().rglob("*") if "__pycache__" not in str(path)} - {Path("runs")}


def quick(patch):
    """Without figures, which take most of a small run's time, and without waiting for a disk that others write to."""
    patch.setattr(report.figures, "draw", lambda *_: None)
    patch.setattr(os, "fsync", lambda _: None)
