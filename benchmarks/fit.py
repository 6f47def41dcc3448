"""Whole fits as a user types them: wall time and test bounds of the main job and of MNIST.

python -m benchmarks.fit --data-dir data
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common

JOBS = {
    "digits, the main job": "--likelihood bernoulli",
    "MNIST, 784-400-20, batch 128": "--data mnist --data-dir {data_dir} --likelihood bernoulli --epochs 20",
}


def fit(options: str, threads: int) -> dict[str, Any]:
    """Run a fit in a process of its own, bound to `threads` processors; its time and its test bounds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pvae.fit", *options.split(), "--out", f"{folder}/run"]
        began = time.perf_counter()
        subprocess.run(
            command,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads]),
        )
        seconds = time.perf_counter() - began
        test = json.loads(Path(folder, "run/summary.json").read_text())["test"]
    return {"options": options, "seconds": seconds, "elbo": test["elbo"], "iw.200": test["iw"]["200"]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Wall time and test bounds of whole fits.")
    parser.add_argument("--data-dir", default=common.DATA, help="where MNIST lies")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="of the JSON")
    args = parser.parse_args()
    jobs = {name: fit(options.format(data_dir=args.data_dir), args.threads) for name, options in JOBS.items()}
    device = {"kind": "cpu", "cpu": common.cpu_name(), "threads": args.threads}
    path = common.save("fit", {"environment": common.environment(device), "jobs": jobs}, args.out)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
