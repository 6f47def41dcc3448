"""Whole fits as a user types them: wall time and test bounds of the main job and of MNIST.

python -m benchmarks.fit --data-dir data
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common, parts

JOBS = {
    "digits, the main job": "--likelihood bernoulli",
    "MNIST, 784-400-20, batch 128": "--data mnist --data-dir {data_dir} --likelihood bernoulli --epochs 20",
}


def fit(options: str, threads: int) -> dict[str, Any]:
    """Run a fit in a process of its own, bound to `threads` processors; its time and its test bounds."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        parts.command("fit", f"{options} --out {folder}/run", threads)
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
