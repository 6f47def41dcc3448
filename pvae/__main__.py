"""`pvae COMMAND ...`, the same as `python -m pvae.COMMAND ...`."""

from __future__ import annotations

import importlib
import sys

from . import cli
from .errors import InputError, nearest

COMMANDS = {
    "fit": "fit a variational autoencoder, evaluate it, draw it",
    "compare": "evaluate runs on the same test data, side by side",
    "gradients": "signal and noise of gradient estimators against the number of particles",
    "sample": "draw images from a run's prior",
    "parts": "list every prior, likelihood, guide, network, objective and gradient",
}


def main() -> None:
    """The console script."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: pvae COMMAND ...\n")
        print("\n".join(f"  {name:<11}{text}" for name, text in COMMANDS.items()))
        print("\n`pvae COMMAND --help` lists a command's options, `pvae --version` says which version this is.")
        raise SystemExit(0 if argv else 2)
    if argv[0] == "--version":
        cli.Parser().parse(argv)
    name, *rest = argv
    if name not in COMMANDS:
        cli.run(_unknown, name, [name])
    cli.run(importlib.import_module(f"pvae.{name}").main, name, rest)


def _unknown(argv: list[str]) -> int:
    raise InputError(f"unknown command: {nearest(argv[0], list(COMMANDS))}")


if __name__ == "__main__":
    main()
