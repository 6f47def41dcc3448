"""Peak memory and time of a training step of many particles: all that fit at once, or so many at a time.

python -m benchmarks.memory --particles 5000 --chunks auto,500
"""

from __future__ import annotations

import sys
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch

import pvae
from pvae.data import binarize

from . import common
from .evaluate import forget_peak, memory

STEPS = 3


def main() -> int:
    """Run it."""
    parser = common.parser("memory", __doc__)
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--chunks", type=lambda text: text.split(","), default=["auto", "500"], metavar="N,N")
    parser.add_argument("--limit", type=float, metavar="GIB", help="of the GPU's memory that may be taken")
    options = parser.parse_args()
    device = common.choose_device(options.device)
    if options.limit and device == "cuda":
        torch.cuda.set_per_process_memory_fraction(options.limit * 2**30 / torch.cuda.mem_get_info()[1])
    network = replace(common.NETWORKS["B"], batch=options.batch, particles=options.particles)
    environment = common.environment(common.device_record(device))
    record: dict[str, Any] = {
        "environment": environment,
        "network": str(network),
        "limit_gib": options.limit,
        "chunks": {},
    }
    for chunk in options.chunks:
        record["chunks"][chunk] = _measure(network, None if chunk == "auto" else int(chunk), device)
        path = common.save("memory", record, options.out)
    rows = [
        [chunk, str(found["at_once"]), f"{found['over_mib']:,.0f}", f"{found['ms']:,.0f}"]
        for chunk, found in record["chunks"].items()
    ]
    print(f"{network}\n\n{common.table(['chunk', 'at once', 'MiB over the start', 'ms a step'], rows)}")
    print(f"\nwritten to {path}")
    return 0


def _measure(network: common.Network, chunk: int | None, device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    if device == "cuda":
        torch.cuda.empty_cache()
    forget_peak(device)
    before, _ = memory(device)
    vae = common.vae(network).to(device)
    objective = pvae.IWAE(network.particles, chunk=chunk)
    svi = common.svi(vae, objective)
    x = binarize(torch.from_numpy(common.images(network.batch)), "dynamic").to(device)
    float(svi.step(x))
    start = perf_counter()
    losses = [svi.step(x) for _ in range(STEPS)]
    last = float(losses[-1])
    seconds = (perf_counter() - start) / STEPS
    _, peak = memory(device)
    at_once = objective._fits[True]
    return {"at_once": at_once, "over_mib": peak - before, "ms": 1e3 * seconds, "loss": last / network.batch}


if __name__ == "__main__":
    sys.exit(main())
