"""Peak memory and time of `pvae.evaluate.evaluate` against the number of particles K, each K in a process of its own.

python -m benchmarks.evaluate --data-dir data
python -m benchmarks.evaluate --data-dir data --network B --images 10000 --particles 5000 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from . import common

MIB = 2**20
SEED = 0
LIMIT = 1024
"""MiB over the baseline: above it the memory is not bounded as promised."""


def main() -> int:
    """Run it; 1 where memory goes over the limit."""
    options = _options()
    if options.child:
        print(json.dumps(_child(options)))
        return 0
    results = [_start(options, particles) for particles in options.particles]
    devices = [found.pop("device") for found in results]
    record = {
        "environment": common.environment(devices[0]),
        "network": str(common.NETWORKS[options.network]),
        "precision": options.precision,
        "compile": options.compile,
        "limit_mib": LIMIT,
        "results": results,
        "load_after": common.load(),
    }
    print(f"{record['network']}, {options.precision}, {results[0]['images']} images, {results[0]['data']}\n")
    columns = [
        "K",
        "MiB over the baseline",
        "baseline, MiB",
        "seconds",
        "again",
        "with the graph kept",
        "IW bound, nats",
    ]
    print(common.table(columns, [_row(found) for found in results]))
    print(f"\nwritten to {common.save('evaluate', record, options.out)}")
    return 0 if all(found["over_mib"] < LIMIT for found in results) else 1


def _options() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = common.parser("evaluate", __doc__, threads=True)
    parser.add_argument("--data-dir", default=common.DATA)
    parser.add_argument("--particles", type=numbers, default=[10, 100, 1000], metavar="K,K")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--network", choices=list(common.NETWORKS), default="A")
    parser.add_argument("--repeats", type=int, default=0, help="of the evaluation, whose time alone is taken then")
    parser.add_argument("--compile", choices=("off", "graph", "full"), default="graph")
    parser.add_argument("--precision", choices=("float32", "tf32"), default="float32", help="of products")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _start(options: argparse.Namespace, particles: int) -> dict[str, Any]:
    """Measure one K in a fresh process. This one has loaded nothing: Linux counts its size in the child's peak."""
    passed = ("data_dir", "images", "network", "repeats", "compile", "precision", "device", "threads")
    given = {key: getattr(options, key) for key in passed}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    command = [sys.executable, "-m", "benchmarks.evaluate", "--child", f"--particles={particles}", *flags]
    found = subprocess.run(command, cwd=common.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def _child(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from pvae.cells import Kept
    from pvae.evaluate import evaluate

    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high" if options.precision == "tf32" else "highest")
    device, (particles,) = common.choose_device(options.device), options.particles
    x, data = common.mnist(options.data_dir, options.images)
    x, vae = x.to(device), common.vae(common.NETWORKS[options.network]).to(device)
    evaluate(vae.model, vae.guide, x[:16], particles=[1])
    forget_peak(device)
    before, peak_before = memory(device)

    def timed(kept: Kept | None = None) -> tuple[float, Any]:
        start = perf_counter()
        found = evaluate(vae.model, vae.guide, x, particles=[particles], seed=SEED, compile=options.compile, kept=kept)
        return perf_counter() - start, found

    seconds, found = timed()
    _, peak = memory(device)
    kept = Kept()
    return {
        "device": common.device_record(device),
        "data": data,
        "images": len(x),
        "particles": particles,
        "baseline_mib": before,
        "peak_before_mib": peak_before,
        "peak_mib": peak,
        "over_mib": peak - before,
        "seconds": seconds,
        "again": [timed()[0] for _ in range(options.repeats)],
        "kept": [timed(kept)[0] for _ in range(options.repeats and options.repeats + 1)][1:],
        "eager": options.compile != "off" and None in kept.graphs.values(),
        "iw": found.iw[particles].mean().item(),
    }


def forget_peak(device: str) -> None:
    """Start the peak anew, where the system can: loading the data may have used more than evaluating does."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory(device: str) -> tuple[float, float]:
    """In use now, and the peak up to now, MiB: of the GPU's memory on CUDA."""
    import torch

    if device == "cuda":
        return torch.cuda.memory_allocated() / MIB, torch.cuda.max_memory_allocated() / MIB
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _row(found: dict[str, Any]) -> list[str]:
    memory = [f"{found[key]:,.0f}" for key in ("over_mib", "baseline_mib")]
    more = [f"{min(found[key]):.2f}" if found[key] else "" for key in ("again", "kept")]
    return [str(found["particles"]), *memory, f"{found['seconds']:.2f}", *more, f"{found['iw']:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
