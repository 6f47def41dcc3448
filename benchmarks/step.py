"""The time of one training step, ours and its peers': gather, binarize, forward, backward, Adam.

python -m benchmarks.step --networks A,B --seconds 1 --rounds 5
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import traceback
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from . import common
from .common import NETWORKS, PIXELS, Network
from .contestants import BATCHES, CONTESTANTS, REFERENCE, Contestant, Task


@dataclass(frozen=True)
class Timing:
    """What was measured for one contestant."""

    loss: float
    """Nats a datum, the mean over the last steps of the check."""
    steps: int
    """In each round."""
    seconds: list[float]
    """A step, for each round."""
    start: float
    """Seconds until it was built and checked."""
    note: str
    """See `Contestant`."""


# The measurement.


def main() -> int:
    """Run it; 1 where contestants disagree on the loss."""
    options = _options()
    device = _prepare(options)
    environment = common.environment(common.device_record(device))
    record: dict[str, Any] = {"environment": environment, "precision": options.precision, "networks": {}}
    agree = True
    for name in options.networks:
        task = _task(NETWORKS[name], device, options.precision)
        timings, skipped = _measure(task, options)
        result = _result(task, timings, skipped)
        agree &= result["loss_spread"] <= options.tolerance
        _show(f"{name}: {task.network}, {task.precision}", result, device, options.tolerance)
        record["networks"][name] = result
        record["load_after"] = common.load()
        print(f"\nwritten to {common.save('step', record, options.out)}", flush=True)
    return 0 if agree else 1


def _options() -> argparse.Namespace:
    parser = common.parser("step", __doc__, threads=True)
    parser.add_argument("--networks", type=common.some_of(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--only", type=common.some_of(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--seconds", type=float, default=1.0, help="that each contestant runs in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check-steps", type=int, help="before timing (400, but 30 for C on a CPU)")
    parser.add_argument("--tolerance", type=float, default=0.03, help="by how much losses may differ")
    parser.add_argument("--precision", choices=("float32", "tf32"), help="of everyone's products (tf32 on CUDA)")
    parser.add_argument("--flush-denormals", action="store_true", help="in torch on the CPU; XLA always does")
    return parser.parse_args()


def _prepare(options: argparse.Namespace) -> str:
    """Give everyone the same processors and threads; before JAX starts, which counts the processors it may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    if options.flush_denormals:
        torch.set_flush_denormal(True)  # before torch's threads start: they take it over
    torch.set_num_threads(options.threads)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = common.choose_device(options.device)
    if device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    options.precision = options.precision or ("tf32" if device == "cuda" else "float32")
    torch.set_float32_matmul_precision("high" if options.precision == "tf32" else "highest")
    return device


def _task(network: Network, device: str, precision: Literal["float32", "tf32"]) -> Task:
    torch.manual_seed(0)
    sizes = (PIXELS, *network.hidden)
    layers = []
    for ends in ((*sizes, 2 * network.latent), (network.latent, *sizes[::-1])):
        linear = [nn.Linear(before, after) for before, after in pairwise(ends)]
        layers.append([(m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy()) for m in linear])
    data = common.images(10_000)
    rows = np.random.default_rng(0).integers(len(data), size=(BATCHES, network.batch))
    long = device == "cpu" and network.batch * network.particles > 10_000
    return Task(network, device, data, rows, *layers, scan=10 if long else 200, precision=precision)


def _measure(task: Task, options: argparse.Namespace) -> tuple[dict[str, Timing], dict[str, str]]:
    """Build and check each contestant, then time them in turn, round after round; and who was skipped, and why."""
    contestants: dict[str, Contestant] = {}
    losses: dict[str, float] = {}
    starts: dict[str, float] = {}
    skipped: dict[str, str] = {}
    check = options.check_steps or (400 if task.scan == 200 else 30)
    for who in options.only:
        start = perf_counter()
        try:
            contestant = CONTESTANTS[who](task)
            losses[who] = _check(task, contestant, check)
        except ModuleNotFoundError as error:
            skipped[who] = str(error)
        except Exception as error:
            traceback.print_exc()
            skipped[who] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        else:
            contestants[who], starts[who] = contestant, perf_counter() - start
    seconds: dict[str, list[float]] = {who: [] for who in contestants}
    steps = {who: _steps(task, contestant, options.seconds) for who, contestant in contestants.items()}
    for _ in range(options.rounds):
        for who, contestant in contestants.items():
            seconds[who].append(_time(task, contestant, steps[who]))
    timings = {
        who: Timing(losses[who], steps[who], seconds[who], starts[who], contestant.note())
        for who, contestant in contestants.items()
    }
    return timings, skipped


def _check(task: Task, contestant: Contestant, steps: int) -> float:
    """Train from the common start on the common batches: nats a datum, the mean over the last sixth of the steps."""
    losses = contestant.run(0, -(-steps // contestant.unit) * contestant.unit)[:steps]
    last = [float(loss) for loss in losses[-max(1, steps // 6) :]]
    return sum(last) / len(last) / task.network.batch


def _steps(task: Task, contestant: Contestant, seconds: float) -> int:
    """How many steps fill a round, from a short run whose length a shorter one gives."""

    def fill(seconds: float, one: float) -> int:
        return max(1, round(seconds / one / contestant.unit)) * contestant.unit

    one = min(_time(task, contestant, contestant.unit) for _ in range(2))
    return fill(seconds, _time(task, contestant, fill(seconds / 10, one)))


def _time(task: Task, contestant: Contestant, steps: int) -> float:
    """Seconds a step; a step before it is not counted, because the contestant before has left caches its own way."""
    first = 0
    if contestant.unit == 1:
        contestant.run(0, 1)
        first = 1
    common.wait(task.device)
    start = perf_counter()
    losses = contestant.run(first, steps)
    float(losses[-1])
    common.wait(task.device)
    return (perf_counter() - start) / steps


# The report.


def _result(task: Task, timings: dict[str, Timing], skipped: dict[str, str]) -> dict[str, Any]:
    losses = [timing.loss for timing in timings.values()]
    reference = median(timings[REFERENCE].seconds) if REFERENCE in timings else math.nan
    return {
        "network": str(task.network),
        "scan": task.scan,
        "reference": REFERENCE,
        "loss_spread": (max(losses) - min(losses)) / min(losses) if losses else 0.0,
        "skipped": skipped,
        "contestants": {
            who: {
                "microseconds": median(timing.seconds) * 1e6,
                "min": min(timing.seconds) * 1e6,
                "max": max(timing.seconds) * 1e6,
                "ratio": median(timing.seconds) / reference if reference == reference else None,
                "loss": timing.loss,
                "steps": timing.steps,
                "start_seconds": timing.start,
                "note": timing.note,
                "rounds": [value * 1e6 for value in timing.seconds],
            }
            for who, timing in timings.items()
        },
    }


def _show(title: str, result: dict[str, Any], device: str, tolerance: float) -> None:
    unit, scale, places = ("us", 1, 0) if device == "cuda" else ("ms", 1e-3, 2)
    rows = []
    for who, found in result["contestants"].items():
        times = [f"{found[key] * scale:,.{places}f}" for key in ("microseconds", "min", "max")]
        ratio = "-" if found["ratio"] is None else f"{found['ratio']:.2f}"
        start = f"{found['start_seconds']:.1f} s"
        rows.append([who, *times, ratio, f"{found['loss']:.2f}", str(found["steps"]), start])
    columns = [
        "contestant",
        f"{unit} a step",
        "min",
        "max",
        f"over {REFERENCE}",
        "loss, nats",
        "steps a round",
        "start",
    ]
    print(f"\n{title}\n\n{common.table(columns, rows)}")
    for who, reason in result["skipped"].items():
        print(f"skipped {who}: {reason}")
    for who, found in result["contestants"].items():
        if found["note"]:
            print(f"{who}: {found['note']}")
    verdict = "the same computation" if result["loss_spread"] <= tolerance else "NOT the same computation"
    print(f"losses differ by {result['loss_spread']:.1%}: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
