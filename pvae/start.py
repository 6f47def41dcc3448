"""Ctrl-C while a command is still being imported, which takes seconds: one line and code 130, no traceback."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


def _command() -> str:
    """What is run, as `pvae fit`; nothing where it is no command of this package."""
    words = [*sys.orig_argv, ""]
    name = words[words.index("-m") + 1] if "-m" in words else os.path.basename(sys.argv[0])
    return name.replace(".", " ") if name.partition(".")[0] == __name__.partition(".")[0] else ""


def _stop(*_: Any) -> None:
    # not by an exception: an extension that is being imported would make another of it
    with suppress(OSError):  # of a standard error that is closed
        os.write(2, f"{_command()}: error: interrupted: nothing to resume was written\n".encode())
    os._exit(128 + signal.SIGINT)


def imported() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def importing() -> Iterator[None]:
    """Round what is imported when it is needed: Ctrl-C ends the process, as before `imported`."""
    if _command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        imported()


if _command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)
