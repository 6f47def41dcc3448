"""How long a training step takes to build: as a graph, compiled, and compiled once more from inductor's cache.

python -m benchmarks.build --networks A,B,C
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from time import perf_counter
from typing import Any

from . import common

MODES = ("graph", "full")
STEPS = 20
"""That are taken with the building, and again without."""


def main() -> int:
    """Run it."""
    options = _options()
    if options.child:
        print(json.dumps(_child(options.networks[0], options.child, options.device)))
        return 0
    record: dict[str, Any] = {"networks": {}}
    for name in options.networks:
        record["networks"][name] = _measure(name, options.device, options.modes)
        found = record["networks"][name]
        record["environment"] = common.environment(next(iter(found.values()))["device"])
        rows = [[how, f"{each['build']:.1f}", f"{each['ms']:.2f}"] for how, each in found.items()]
        print(f"\n{name}: {common.NETWORKS[name]}\n\n{common.table(['built', 'seconds', 'ms a step then'], rows)}")
        print(f"\nwritten to {common.save('build', record, options.out)}", flush=True)
    return 0


def _measure(name: str, device: str, modes: list[str]) -> dict[str, Any]:
    """Each way in a process of its own; the two that compile share a cache that is empty at first."""
    with tempfile.TemporaryDirectory() as cache:

        def built(mode: str) -> dict[str, Any]:
            command = [sys.executable, "-m", "benchmarks.build", "--networks", name, "--device", device]
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
            found = subprocess.run(
                [*command, "--child", mode], cwd=common.ROOT, env=environment, stdout=subprocess.PIPE, check=True
            )
            return json.loads(found.stdout.splitlines()[-1])

        found = {"graph": built("graph")} if "graph" in modes else {}
        if "full" in modes:
            found |= {"full, cold": built("full"), "full, from the cache": built("full")}
        return found


def _child(name: str, mode: str, device: str) -> dict[str, Any]:
    """Seconds that some steps take beyond what as many take afterwards."""
    import torch

    device, network = common.choose_device(device), common.NETWORKS[name]
    vae = common.vae(network).to(device)
    svi = common.svi(vae, common.objective(network), compile=mode)
    data = torch.from_numpy(common.images(10_000)).to(device)

    def take(steps: int) -> float:
        rows = torch.randint(len(data), (steps, network.batch), device=device)
        start = perf_counter()
        common.take(svi, rows, data)
        svi.check()
        return perf_counter() - start

    take(1)  # eager: programs and optimizer set themselves up
    first, then = take(STEPS), take(STEPS)
    return {"build": first - then, "ms": 1e3 * then / STEPS, "device": common.device_record(device)}


def _options() -> argparse.Namespace:
    parser = common.parser("build", __doc__)
    parser.add_argument("--networks", type=common.some_of(common.NETWORKS), default=list(common.NETWORKS))
    parser.add_argument("--modes", type=common.some_of(MODES), default=list(MODES))
    parser.add_argument("--child", choices=MODES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
