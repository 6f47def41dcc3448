"""The time of one training step under each gradient estimator, over that of the reparameterized one.

python -m benchmarks.estimators --network B --rounds 15 --steps 20
"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

import pvae
from pvae.base import members
from pvae.data import binarize

from . import common

REFERENCE = "reparam"


def training(network: common.Network, gradient: str, device: str) -> pvae.SVI:
    """A model, from the same start for every estimator, and its training."""
    torch.manual_seed(0)
    vae = common.vae(network).to(device)
    return common.svi(vae, pvae.IWAE(network.particles, gradient=gradient))


def seconds(svi: pvae.SVI, batches: list[Tensor]) -> float:
    """Seconds a step."""
    start = perf_counter()
    for batch in batches:
        svi.step(batch)
    return (perf_counter() - start) / len(batches)


def measure(network: common.Network, names: list[str], device: str, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds a step by estimator and round, in turns within each round, and their medians' ratios."""
    images = torch.from_numpy(common.images(steps * network.batch)).to(device)
    batches = [binarize(batch, "dynamic") for batch in images.split(network.batch)]
    trainings = {name: training(network, name, device) for name in names}
    for svi in trainings.values():
        seconds(svi, batches)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(seconds(trainings[name], batches))
    medians = {name: median(times) for name, times in found.items()}
    return {
        name: {"seconds": found[name], "median": medians[name], "ratio": medians[name] / medians[REFERENCE]}
        for name in names
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = common.parser("estimators", __doc__, threads=True)
    parser.set_defaults(threads=2)
    several = [name for name, network in common.NETWORKS.items() if network.particles > 1]
    parser.add_argument("--network", choices=several, default="B")
    parser.add_argument("--gradient", default=",".join(members("gradient")), help="names, with commas")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20, help="in each round")
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    device, network = common.choose_device(found.device), common.NETWORKS[found.network]
    names = list(dict.fromkeys([REFERENCE, *found.gradient.split(",")]))
    timings = measure(network, names, device, found.rounds, found.steps)
    rows = [[name, f"{1e3 * t['median']:.2f}", f"{t['ratio']:.2f}"] for name, t in timings.items()]
    print(f"{network}\n\n{common.table(['gradient', 'ms a step', 'ratio'], rows)}")
    record = {"environment": common.environment(common.device_record(device)), "network": str(network)}
    common.save("estimators", {**record, "timings": timings}, found.out)


if __name__ == "__main__":
    main()
