"""The tests that need a GPU, run by pytest: how many passed, and what the others said.

python -m benchmarks.cuda --marker "cuda and slow"
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from . import common

TIMEOUT = 100
"""Seconds for one test, where pytest-timeout is there."""


def main() -> int:
    """Run them; pytest's exit status."""
    parser = common.parser("cuda", __doc__)
    parser.add_argument("--marker", default="cuda and not slow", help="which tests, as of pytest's -m")
    parser.add_argument("--keyword", default="", help="of their names, as of pytest's -k")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    device = common.choose_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, *f"-m pytest -n {options.workers} -v -rfE".split()]
        command += ["-m", options.marker, "-k", options.keyword]
        if find_spec("pytest_timeout"):
            command.append(f"--timeout={TIMEOUT}")
        command += ["--tb=short", f"--junitxml={report}", "-p", "no:cacheprovider", *_files()]
        code = subprocess.run(command, cwd=common.ROOT).returncode
        found = _read(report)
    record = {"environment": common.environment(common.device_record(device)), "marker": options.marker, **found}
    print(f"written to {common.save('cuda', record, options.out)}")
    return code


def _files() -> list[str]:
    """Those that have such tests: to look through all others takes long."""
    files = (common.ROOT / "tests").glob("test_*.py")
    return sorted(str(path.relative_to(common.ROOT)) for path in files if "mark.cuda" in path.read_text())


def _read(report: Path) -> dict[str, Any]:
    """Counts, and what each test that did not pass said first, from pytest's report."""
    if not report.exists():
        return {"tests": 0, "skipped": 0, "failed": {}}
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {}
    for case in cases:
        for kind in ("failure", "error"):
            for found in case.iter(kind):
                failed[f"{case.get('classname')}::{case.get('name')}"] = (found.get("message") or "")[:500]
    skipped = sum(next(case.iter("skipped"), None) is not None for case in cases)
    return {"tests": len(cases), "skipped": skipped, "failed": failed}


if __name__ == "__main__":
    sys.exit(main())
