"""All benchmarks that take a GPU, in order of importance, within so many minutes; one file of results, one log.

python -m benchmarks.gpu --minutes 9 --out DIR
python -m benchmarks.gpu --parts iwae,evaluate --also "iwae=--rate 3e-3 --seconds 120" --out DIR
python -m benchmarks.gpu --unpack DIR/gpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import IO, Any

from . import common
from .figures import FIGURES
from .plan import PARTS, Part

POLL = 2.0
"""Seconds between two looks at what a part has written so far."""
ABSENT = "left out: there is not"


def main() -> int:
    """Run the parts; 1 if one of them failed, was cut off or left out."""
    options = _options()
    if options.unpack:
        return _unpack(options.unpack)
    end = monotonic() + 60 * options.minutes
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    device = common.choose_device(options.device)
    results: dict[str, dict[str, Any]] = {}
    with (out / "log.txt").open("w") as log, tempfile.TemporaryDirectory() as folder:
        run = Run(log, Path(folder), out / "gpu.json", results, _environment(Path(folder), options.commit))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
        for name in options.parts:
            run.part(name, PARTS[name], device, options.quick, end, shlex.split(dict(options.also).get(name, "")))
        run.say("\n" + _table(results))
    return 0 if all(found["outcome"] == "done" or ABSENT in found["outcome"] for found in results.values()) else 1


class Run:
    """Runs parts one after another, each in a process group of its own, and keeps what they wrote.

    Args:
        log: takes all output.
        folder: for the parts' files.
        path: of the results of all, written anew while a part runs: they are there if this process is killed.
        results: by part; filled.
        environment: of the parts.
    """

    def __init__(
        self, log: IO[str], folder: Path, path: Path, results: dict[str, dict[str, Any]], environment: dict[str, str]
    ) -> None:
        self.log, self.folder, self.path, self.results, self.environment = log, folder, path, results, environment

    def say(self, line: str) -> None:
        """A line to the log and to the terminal."""
        print(line, flush=True)
        self.log.write(line + "\n")
        self.log.flush()

    def part(self, name: str, part: Part, device: str, quick: bool, end: float, also: Sequence[str]) -> None:
        """Run a part, with options more, if there is time for it, until it ends or its time does."""
        limit = min(part.most, end - monotonic())
        found = self.results[name] = {"outcome": "", "seconds": 0.0, "record": None}
        if lacks := part.lacks(device):
            found["outcome"] = f"{ABSENT} {lacks}"
        elif limit < (0 if quick else part.least):
            found["outcome"] = f"left out: it takes {part.least:.0f} s, {max(0, limit):.0f} s are left"
        else:
            start, own = monotonic(), self.folder / f"{name}.json"
            command = [sys.executable, "-m", *part.command(device, quick, own), *also]
            self.say(f"\n=== {name}: python {' '.join(command[1:])} (at most {limit:.0f} s)\n")
            found["outcome"] = self._wait(command, limit, partial(self._keep, found, own))
            found["seconds"] = monotonic() - start
            self._keep(found, own)
        self.say(f"=== {name}: {found['outcome']}, {found['seconds']:.0f} s")
        self._save()

    def _wait(self, command: Sequence[str], limit: float, keep: Any) -> str:
        """Start a process and wait for it; how it ended."""
        process = subprocess.Popen(
            command,
            cwd=common.ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        reader = threading.Thread(target=self._copy, args=(process.stdout,), daemon=True)
        reader.start()
        end = monotonic() + limit
        try:
            while (left := end - monotonic()) > 0:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(min(POLL, left))
                    return "done" if code == 0 else f"ended with {code}"
                keep()
            return f"cut off after {limit:.0f} s"
        finally:
            _stop(process)  # or what it has left behind
            reader.join(POLL)

    def _copy(self, stream: IO[str]) -> None:
        with stream, suppress(ValueError):  # the log was closed
            for line in stream:
                self.say(line.rstrip("\n"))

    def _keep(self, found: dict[str, Any], own: Path) -> None:
        """Take over what the part has written so far, if that is whole."""
        with suppress(OSError, ValueError):
            record = json.loads(own.read_text())
            if record != found["record"]:
                found["record"] = record
                self._save()

    def _save(self) -> None:
        """Write all results: a file that is always whole."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.results, indent=1) + "\n")
        new.replace(self.path)


def _stop(process: subprocess.Popen) -> None:
    """End the process and all that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)


def _environment(folder: Path, commit: str) -> dict[str, str]:
    """The parts' environment: one inductor's cache for all, empty at first; no network is asked for anything."""
    paths = [str(common.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "HF_HUB_OFFLINE": "1",
    }
    return {**os.environ, **own, **({"PVAE_COMMIT": commit} if commit else {})}


def _table(results: dict[str, dict[str, Any]]) -> str:
    """Figure, goal and what was found, of all parts; and how the parts ended."""
    rows = []
    for name, found in results.items():
        try:
            rows += FIGURES[PARTS[name].module](found["record"]) if found["record"] else []
        except (KeyError, TypeError, IndexError) as error:
            rows.append([f"{name}: the record is not whole", "", repr(error)])
    ends = [[name, found["outcome"], f"{found['seconds']:.0f} s"] for name, found in results.items()]
    return f"{common.table(['part', 'outcome', 'time'], ends)}\n\n{common.table(['figure', 'goal', 'found'], rows)}"


def _unpack(path: str) -> int:
    """Write each part's record that was taken on a GPU to where its own command would have."""
    for name, found in json.loads(Path(path).read_text()).items():
        record = found["record"]
        if record and record["environment"]["device"]["kind"] == "cuda":
            print(common.save(name, record, None))
    return 0


def _options() -> argparse.Namespace:
    names = common.some_of(PARTS)

    def pair(text: str) -> tuple[str, str]:
        name, _, more = text.partition("=")
        return names(name)[0], more

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", default="gpu", metavar="DIR", help="of gpu.json and log.txt")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all")
    parser.add_argument("--parts", type=names, default=list(PARTS), metavar="PART,PART", help=", ".join(PARTS))
    parser.add_argument("--also", type=pair, action="append", default=[], metavar="PART=OPTIONS", help="of its command")
    parser.add_argument("--quick", action="store_true", help="each as small as can be: does it run at all")
    parser.add_argument("--commit", default="", help="to note where there is no git")
    parser.add_argument("--unpack", metavar="FILE", help="write the records of a gpu.json to results/, and end")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
