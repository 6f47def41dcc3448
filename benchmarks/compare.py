"""Time of `pvae.comparison.compare` over that of its evaluation alone, in turns.

python -m benchmarks.compare --data-dir data --images 500 --particles 1,5,50,500,5000
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
from time import perf_counter
from typing import Any

import torch

from pvae.comparison import Data, Plan, compare
from pvae.diagnostics import khat, mutual_information
from pvae.evaluate import evaluate

from . import common

LIMIT = 1.3
"""The ratio that is not to be passed."""


def main() -> int:
    """Run it; 1 where comparing takes too long."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = common.choose_device(options.device)
    x, data = common.mnist(options.data_dir, options.images)
    x, vae = x.to(device), common.vae(common.NETWORKS["A"]).to(device)
    plan, programs = Plan(options.particles), (vae.model, vae.guide)
    compare({"A": programs}, Data(x[:40]), Data(x[:40]), Plan((40,)))
    times: dict[str, list[float]] = {"evaluate": [], "compare": []}
    for _ in range(options.rounds):
        times["evaluate"].append(_seconds(lambda: evaluate(*programs, x, particles=[plan.total])))
        # as many training data as test data: here the same, which cost what others do
        times["compare"].append(_seconds(lambda: compare({"A": programs}, Data(x), Data(x), plan)))
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    record = {
        "environment": common.environment(common.device_record(device)),
        "network": str(common.NETWORKS["A"]),
        "data": data,
        "images": len(x),
        "particles": list(plan.particles),
        "seconds": times,
        "ratio": ratio,
        "parts": _parts(vae, x, plan),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in record["parts"].items())
    print(f"{record['network']}, {len(x)} images, {data}, K up to {plan.total}")
    print(f"evaluate {min(times['evaluate']):.1f} s, compare over it {ratio:.3f}; of that {shown}")
    print(f"peak memory of the process {record['peak_mib']:,.0f} MiB")
    print(f"\nwritten to {common.save('compare', record, options.out)}")
    return 0 if ratio < LIMIT else 1


def _parts(vae: Any, x: torch.Tensor, plan: Plan) -> dict[str, float]:
    """Seconds of what comparing adds; k-hat's from blocks of random weights."""
    log_w, blocks = torch.randn(plan.total, 128, dtype=torch.float64), -(-len(x) // 128)
    return {
        "training data": _seconds(lambda: evaluate(vae.model, vae.guide, x, particles=plan.of_training)),
        "mutual information": _seconds(lambda: mutual_information(vae.guide, x, chunk=2**17)),
        "k-hat": _seconds(lambda: [khat(log_w) for _ in range(blocks)]),
    }


def _seconds(run: Any) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def _options() -> argparse.Namespace:
    parser = common.parser("compare", __doc__, threads=True)
    parser.add_argument("--data-dir", default=common.DATA)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument(
        "--particles", type=lambda text: tuple(map(int, text.split(","))), default=(1, 5, 50, 500, 5000), metavar="K,K"
    )
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
