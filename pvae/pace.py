"""Lines about the progress of long work, every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta


def pace(
    say: Callable[[str], None], what: str, hint: str = "", *, every: float = 10.0, began: float | None = None
) -> Callable[[int, int], None]:
    """Says how far something is, every so many seconds, and how long the rest of it will take.

    Args:
        say: is given a line.
        what: is done.
        hint: the end of the line.
        every: seconds between lines.
        began: when it began, by `time.monotonic`; now if not given.

    >>> import time
    >>> progress = pace(print, "evaluated", every=0.0, began=time.monotonic() - 10)
    >>> progress(1000, 3000)
    evaluated 1,000 of 3,000, 0:00:20 left
    >>> progress(3000, 3000)
    """
    start = shown = time.monotonic() if began is None else began

    def progress(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= every and done < total:
            shown = now
            left = timedelta(seconds=round((now - start) * (total - done) / done))
            say(f"{what} {done:,} of {total:,}, {left} left{hint}")

    return progress
