"""The times of our own CUDA kernels beside the plain computation: in a whole step, in an evaluation, and alone.

python -m benchmarks.kernels
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain, product
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import pyro
import torch
from torch import Tensor, nn

from pvae import kernels
from pvae.cells import Kept
from pvae.data import binarize
from pvae.distributions import IndependentBernoulli
from pvae.evaluate import evaluate
from pvae.kernels import launch
from pvae.replay import overlap
from pvae.replay.precision import of

from . import common
from .common import NETWORKS, PIXELS

SIZES = {
    **{name: (n.particles * n.batch, n.batch, n.hidden[0]) for name, n in NETWORKS.items()},
    "evaluation": (4096, 128, 200),
}
"""Rows, data and hidden units; in an evaluation of so many as are scored at once."""
BLOCKS = [launch.Blocks(*b) for b in product((64, 128), (16, 32, 64), (4, 8), (1, 2, 3)) if b[0] <= 16 * b[2]]
CALLS = 20
"""In one CUDA graph."""

Run = Callable[[], Any]


def main() -> int:
    """Run it; 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=1000, help="of the evaluation with 5,000 draws")
    parser.add_argument("--blocks", action="store_true", help="other blocks of the programs at size C as well")
    parser.add_argument("--device", choices=("auto", "cuda"), default="auto")
    parser.add_argument("--out", metavar="FILE", help="of the JSON")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.kernels: no CUDA device found, expected one: run it on a machine with a GPU", file=sys.stderr)
        return 2
    record: dict[str, Any] = {"environment": common.environment(common.device_record("cuda")), "microseconds": {}}
    # what is asked first comes first: it may be cut off
    tables = [_overlaps, _steps, partial(_evaluations, options.images), _alone, *([_blocks] if options.blocks else [])]
    with pyro.validation_enabled(False):
        for name, runs in chain.from_iterable(table() for table in tables):
            record["microseconds"][name] = found = _interleaved(runs, options.rounds)
            path = common.save("kernels", record, options.out)
            print(f"{name}: " + ", ".join(f"{key} {median(times):,.1f} us" for key, times in found.items()), flush=True)
    print(f"\nwritten to {path}")
    return 0


def _interleaved(runs: dict[str, tuple[Run, int]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each, one after the other in every round; each is a call, and what its time is divided by."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (run, count) in runs.items():
            run()
            torch.cuda.synchronize()
            start = perf_counter()
            run()
            torch.cuda.synchronize()
            found[name].append((perf_counter() - start) / count * 1e6)
    return found


# The likelihood alone, without and with its gradients.


def _alone() -> Iterator[tuple[str, dict[str, tuple[Run, int]]]]:
    for (size, numbers), precision, backward in product(SIZES.items(), ("tf32", "bf16", "float32"), (False, True)):
        if size == "evaluation" and backward:
            continue
        with of(precision, "cuda"):
            runs = _likelihoods(*numbers, precision, backward)
        yield f"{size}, {precision}, {'forward and backward' if backward else 'forward'}", runs


def _likelihoods(rows: int, data: int, hidden: int, precision: str, backward: bool) -> dict[str, tuple[Run, int]]:
    factors, g, x = _numbers(rows, data, hidden)

    def logits(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return nn.functional.linear(h, w, b).float().view(-1, data, PIXELS)

    def plain(*factors: Tensor) -> Tensor:
        return IndependentBernoulli(logits(*factors), 1).log_prob(x).view(-1)

    torch.compiler.reset()  # else after some sizes it would compile for any, and then not at all

    @partial(torch.compile, dynamic=False)
    def compiled(*factors: Tensor) -> Tensor:
        return (
            -nn.functional.binary_cross_entropy_with_logits(
                logits(*factors), x.expand(rows // data, -1, -1), reduction="none"
            )
            .sum(-1)
            .view(-1)
        )

    found: dict[str, Callable[..., Tensor]] = {"plain": plain, "compiled": compiled}
    if precision != "float32" and launch.blocks(precision, hidden, backward):
        found["fused"] = lambda h, w, b: kernels.log_prob(h, w, b, x, precision)

    def slopes(function: Callable[..., Tensor]) -> Any:
        score = function(*factors)
        return torch.autograd.grad((score * g).sum(), factors) if backward else score

    with torch.set_grad_enabled(backward):
        return {name: (_captured(partial(slopes, function), backward), CALLS) for name, function in found.items()}


def _numbers(rows: int, data: int, hidden: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """The factors h, w, b; the gradient g; the data."""
    shapes = (rows, hidden), (PIXELS, hidden), (PIXELS,)
    h, w, b = (torch.randn(shape, device="cuda") for shape in shapes)
    factors = [value.requires_grad_() for value in (h.tanh(), w / hidden**0.5, b)]
    return factors, torch.rand(rows, device="cuda"), torch.rand(data, PIXELS, device="cuda").round()


def _captured(function: Run, gradient: bool) -> Run:
    """Some calls as one CUDA graph, so that only the device's work is timed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.set_grad_enabled(gradient):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.set_grad_enabled(gradient):
        for _ in range(CALLS):
            function()
    return graph.replay


def _blocks() -> Iterator[tuple[str, dict[str, tuple[Run, int]]]]:
    """The programs with other blocks, those that fit."""
    rows, data, hidden = SIZES["C"]
    for precision in launch.DTYPES:
        (h, w, b), g, x = _numbers(rows, data, hidden)
        h, w, b = h.detach().to(launch.DTYPES[precision]), w.detach().to(launch.DTYPES[precision]), b.detach()
        for block in BLOCKS:
            calls = {
                "score": partial(launch.scores, h, w, b, x, False, precision, block),
                "score and slope": partial(launch.scores, h, w, b, x, True, precision, block),
                "slopes": partial(launch.slopes, g, h, w, b, x, precision, block),
            }
            runs = {}
            for name, call in calls.items():
                try:
                    runs[name] = (_captured(call, False), CALLS)
                except Exception as error:  # of shared memory there is too little
                    print(f"{precision}, {tuple(block)}, {name}: {str(error).splitlines()[0][:80]}")
                    torch.cuda.synchronize()
            yield f"C, {precision}, blocks {tuple(block)}", runs


# Whole steps and evaluations, with the kernels and without.


@contextmanager
def _without() -> Iterator[None]:
    with patch.object(kernels, "choose", lambda *args: None):
        yield


def _overlaps() -> Iterator[tuple[str, dict[str, tuple[Run, int]]]]:
    for name, mode in product(NETWORKS, ("full", "graph")):
        runs = {}
        for kind in ("with", "without"):
            steps = _step(name, mode, "tf32", plain=False)
            with patch.object(overlap, "overlapped", lambda graph: graph) if kind == "without" else nullcontext():
                steps()
            runs[kind] = (steps, 200)
        yield f"step of {name}, {mode}, a layer's gradients side by side", runs


def _steps() -> Iterator[tuple[str, dict[str, tuple[Run, int]]]]:
    for name, mode, precision in product(("B", "C"), ("graph", "full"), ("tf32", "bf16")):
        runs = {}
        for kind in ("with", "without"):
            steps = _step(name, mode, precision, kind == "without")
            steps()
            runs[kind] = (steps, 200)
        yield f"step of {name}, {mode}, {precision}", runs


def _step(name: str, mode: str, precision: str, plain: bool) -> Run:
    network = NETWORKS[name]
    torch.manual_seed(0)
    vae = common.vae(network).cuda()
    svi = common.svi(vae, common.objective(network), compile=mode, precision=precision)
    data = torch.from_numpy(common.images(10_000)).cuda()
    rows = torch.randint(len(data), (200, network.batch), device="cuda")
    run = partial(common.take, svi, rows, data)
    return _without()(run) if plain else run


def _evaluations(images: int) -> Iterator[tuple[str, dict[str, tuple[Run, int]]]]:
    torch.manual_seed(0)
    vae = common.vae(NETWORKS["B"]).cuda()
    x = binarize(torch.from_numpy(common.images(images)).cuda(), "dynamic")
    for mode, precision in product(("graph", "full"), ("tf32", "bf16")):
        call = partial(evaluate, vae.model, vae.guide, x, particles=[5000], compile=mode)
        run, other = (of(precision, "cuda")(partial(call, kept=Kept())) for _ in range(2))  # built in the first round
        yield (
            f"evaluation of {images} images, 5,000 draws, {mode}, {precision}",
            {
                "with": (run, 1),
                "without": (_without()(other), 1),
            },
        )


if __name__ == "__main__":
    sys.exit(main())
