"""Time to the test NLL of the importance-weighted autoencoder's paper: k = 50, one stochastic layer, all of MNIST.

python -m benchmarks.iwae --data-dir data --seconds 200
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import pvae
from pvae.data import order, pixels
from pvae.evaluate import evaluate
from pvae.means import mean_and_se

from . import common

GOAL = 84.78
"""Burda, Grosse and Salakhutdinov 2015, table 1: nats, 5,000 samples."""
TOGETHER = 100
"""Steps between two looks at the clock."""
TIMED = 2.0
"""Seconds of steps that are timed to plan how many there will be."""
PLANNED = 0.98
"""Share of the seconds that is planned for: the card may slow down."""


def main() -> int:
    """Train, evaluate at the marks, write; 1 if the bound is no better at the last mark than at the first."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = common.choose_device(options.device)
    options.precision = options.precision or {"cuda": "tf32"}.get(device, "float32")
    grey, test, data = common.mnist_parts(options.data_dir, max(options.test, 1000))
    test = common.binarized(test[: options.test], options.test_seed).to(device)
    training = Training(grey.to(device), options)
    record: dict[str, Any] = {
        "environment": common.environment(common.device_record(device)),
        "network": str(training.network),
        "data": f"{data}: {len(grey)} images to train on, {len(test)} binarized once to test on",
        "options": {key: value for key, value in vars(options).items() if key not in ("data_dir", "out")},
        "goal": GOAL,
        "curve": [],
    }
    print(f"{training.network}, {options.precision}, {record['data']}\n")
    training.plan(options.steps, options.seconds)
    for mark in training.marks(options.marks):
        training.to(mark)
        with training.averaged():
            record["curve"].append(training.place() | _measure(training.vae, test, options.samples))
        record |= _summary(training, record["curve"])
        path = common.save("iwae", record, options.out)
        print(_line(record["curve"][-1]), flush=True)
    print(f"\n{_report(record)}\nwritten to {path}")
    return 0 if record["nll"] < record["curve"][0]["nll"] or len(record["curve"]) == 1 else 1


# The training.


class Training:
    """The network and its training, as the paper's authors start it; a clock that stands still between calls.

    Args:
        grey: images to train on, (N, 784), uint8, on the device.
        options: of the command.
    """

    def __init__(self, grey: Tensor, options: argparse.Namespace) -> None:
        self.grey, self.seconds, self.first = grey, 0.0, 0.0
        self.network = replace(common.NETWORKS["B"], batch=options.batch)
        self.rows = batches(len(grey), options.batch, options.seed, grey.device)
        self.schedule, self.share = Schedule(options.flat), options.average
        # so wide are the bounds that the scale is exp of the encoder's number, as theirs, to a few millionths
        self.vae = common.vae(self.network, min_scale=1e-6, max_scale=1e6)
        for module in self.vae.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.vae.initialize(pixels(grey.cpu())).to(grey.device)
        self.parameters = [p.detach() for p in self.vae.parameters()]
        self.average = [p.clone() for p in self.parameters]
        self.svi = pvae.SVI(
            self.vae.model,
            self.vae.guide,
            partial(torch.optim.Adam, lr=options.rate, eps=options.eps, fused=True),
            pvae.IWAE(self.network.particles, gradient=options.gradient),
            schedule=self.schedule,
            compile=options.compile,
            precision=options.precision,
            notice=print,
        )

    def to(self, step: int) -> None:
        """Train until so many steps are done, a multiple of `TOGETHER`."""
        start = perf_counter()
        while self.svi.steps < step:
            common.take(self.svi, next(self.rows), self.grey)
            if self.share:
                torch._foreach_lerp_(
                    self.average, self.parameters, -math.expm1(-TOGETHER / (self.share * self.svi.steps))
                )
        self.svi.check()
        common.wait(self.grey.device)
        self.seconds += perf_counter() - start
        self.first = self.first or self.seconds

    def plan(self, steps: int | None, seconds: float) -> None:
        """Take the first steps, which build the graph; without a number of them time some, and plan for seconds."""
        self.to(TOGETHER)
        if steps is None:
            while self.seconds - self.first < TIMED:
                self.to(self.svi.steps + TOGETHER)
            each = (self.seconds - self.first) / (self.svi.steps - TOGETHER)
            steps = self.svi.steps + int((PLANNED * seconds - self.seconds) / each)
            print(f"{each * 1e6:,.0f} us a step: {steps:,} steps in {seconds:g} s")
        self.schedule.steps = _whole(max(steps, self.svi.steps + 1))

    def marks(self, shares: Sequence[float]) -> list[int]:
        """At which steps to measure: whole blocks, those that are still to come, the last of all among them."""
        found = {_whole(share * self.schedule.steps) for share in (*shares, 1.0)}  # type: ignore[operator]
        return sorted(mark for mark in found if mark > self.svi.steps)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the parameters are their average over the last steps, as many as a share of all so far."""
        kept = [p.clone() for p in self.parameters]
        if self.share:
            torch._foreach_copy_(self.parameters, self.average)
        yield
        torch._foreach_copy_(self.parameters, kept)

    def place(self) -> dict[str, Any]:
        """Where it is."""
        return {"steps": self.svi.steps, "seconds": self.seconds}


def _whole(steps: float) -> int:
    """The next multiple of `TOGETHER`."""
    return TOGETHER * math.ceil(steps / TOGETHER)


@dataclass
class Schedule:
    """The factor of the learning rate: 1 at first, then in a straight line to 0 at the last step."""

    flat: float
    """The share of the steps that it is 1 for."""
    steps: int | None = None
    """How many there will be; while that is not known it is 1."""

    def __call__(self, step: int) -> float:
        """The factor after so many steps."""
        if self.steps is None:
            return 1.0
        return min(1.0, max(0.0, (1 - step / self.steps) / (1 - self.flat)))


def batches(n: int, size: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Rows of the next `TOGETHER` batches, (TOGETHER, size): permutations of the n data, one after another."""
    left, epoch = torch.empty(0, dtype=torch.int64), 0
    while True:
        while len(left) < TOGETHER * size:
            left = torch.cat([left, order(n, seed, epoch)])
            epoch += 1
        yield left[: TOGETHER * size].view(TOGETHER, size).to(device)
        left = left[TOGETHER * size :]


def _measure(vae: pvae.VAE, test: Tensor, samples: int) -> dict[str, Any]:
    """Minus the importance-weighted bound of the test images, nats a datum, and active units."""
    start = perf_counter()
    found = evaluate(vae.model, vae.guide, test, particles=[samples], seed=0)
    nll = mean_and_se(-found.iw[samples])
    return {
        "nll": nll["mean"],
        "se": nll["se"],
        "active_units": found.active_units,
        "evaluation_seconds": perf_counter() - start,
    }


# The report.


def _summary(training: Training, curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last point's, and the seconds to the first that is as good as the goal."""
    to_goal = next((point["seconds"] for point in curve if point["nll"] <= GOAL), None)
    return {
        "steps": training.schedule.steps,
        "first_steps_seconds": training.first,
        "graphs": common.replayed_as(training.svi),
        "seconds_to_goal": to_goal,
        **{key: curve[-1][key] for key in ("seconds", "nll", "se", "active_units")},
    }


def _line(point: dict[str, Any]) -> str:
    return (
        f"{point['steps']:>9,} steps {point['seconds']:>7.1f} s   NLL {point['nll']:.2f} +- {point['se']:.2f}"
        f"   {point['active_units']} active units   (evaluated in {point['evaluation_seconds']:.1f} s)"
    )


def _report(record: dict[str, Any]) -> str:
    reached = record["seconds_to_goal"]
    return (
        f"{GOAL} {f'reached after {reached:.1f} s' if reached else 'not reached'}, {record['nll']:.2f} after"
        f" {record['seconds']:.1f} s, of which the first {TOGETHER} steps, with the building, took"
        f" {record['first_steps_seconds']:.1f} s"
    )


def _options() -> argparse.Namespace:
    def shares(text: str) -> list[float]:
        return [float(share) for share in text.split(",")]

    parser = common.parser("iwae", __doc__, threads=True)
    parser.add_argument("--data-dir", default=common.DATA)
    parser.add_argument("--seconds", type=float, default=200.0, help="of training, building the step included")
    parser.add_argument("--steps", type=int, help="in place of seconds")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3, help="of learning, at first")
    parser.add_argument("--flat", type=float, default=0.6, help="share of the steps before it sinks to 0")
    parser.add_argument(
        "--average", type=float, default=0.05, help="share of the steps so far whose parameters are averaged; 0: none"
    )
    parser.add_argument("--eps", type=float, default=1e-4, help="Adam's; the loss is a sum over the batch")
    parser.add_argument("--gradient", default="dreg", help="as of pvae.IWAE")
    parser.add_argument("--compile", default="full", choices=("off", "graph", "full"))
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16"), help="of training (tf32 on CUDA)")
    parser.add_argument("--marks", type=shares, default=[0.1, 0.25, 0.4, 0.5, 0.55, 0.6, 0.7, 0.85], metavar="S,S")
    parser.add_argument("--samples", type=int, default=5000, help="of the test bound")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--test-seed", type=int, default=0, help="of their binarization")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--check", action="store_true", help="does it run at all: 300 steps of 20 images, 100 to test on"
    )
    options = parser.parse_args()
    if options.check:
        vars(options).update(steps=300, batch=20, samples=50, test=100, marks=[0.4], compile="graph")
    return options


if __name__ == "__main__":
    sys.exit(main())
