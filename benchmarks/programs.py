"""The time of a step of Pyro programs that have nothing to do with images: Pyro's SVI and ours, in every mode.

python -m benchmarks.programs --threads 2 --seconds 1 --rounds 5
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, median
from time import perf_counter
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import pvae

from . import common

MODES = ("off", "graph", "full")
REFERENCE = "pyro"


@dataclass(frozen=True)
class Program:
    """A model with its guide, objective and data."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: Any
    args: tuple[Any, ...]
    rate: float = 1e-3


class DeepMarkov(nn.Module):
    """The deep Markov model of Pyro's tutorial, sizes as there; lengths by masks, the guide's network a GRU."""

    def __init__(self, notes: int = 88, latent: int = 100, hidden: int = 200, state: int = 600) -> None:
        super().__init__()
        self.latent = latent
        self.emission = nn.Sequential(nn.Linear(latent, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU())
        self.notes = nn.Linear(100, notes)
        self.transition = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.recurrent = nn.GRU(notes, state, batch_first=True)
        self.combine, self.heads = nn.Linear(latent, state), nn.Linear(state, 2 * latent)
        self.start = nn.Parameter(torch.zeros(latent))

    def model(self, x: Tensor, mask: Tensor) -> None:
        """p(x, z): x_t from z_t, z_t from the one before."""
        pyro.module("deep_markov", self)
        z = self.start.expand(len(x), self.latent)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                on = mask[:, t : t + 1]
                where, scale = self.transition(z).chunk(2, -1)
                step = dist.Normal(where, nn.functional.softplus(scale)).mask(on).to_event(1)
                z = pyro.sample(f"z_{t}", step)
                notes = dist.Bernoulli(logits=self.notes(self.emission(z))).mask(on).to_event(1)
                pyro.sample(f"x_{t}", notes, obs=x[:, t])

    def guide(self, x: Tensor, mask: Tensor) -> None:
        """q(z|x), by what is yet to come."""
        pyro.module("deep_markov", self)
        ahead = self.recurrent(x.flip(1))[0].flip(1)
        z = self.start.expand(len(x), self.latent)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                both = 0.5 * (torch.tanh(self.combine(z)) + ahead[:, t])
                where, scale = self.heads(both).chunk(2, -1)
                step = dist.Normal(where, nn.functional.softplus(scale)).mask(mask[:, t : t + 1]).to_event(1)
                z = pyro.sample(f"z_{t}", step)


def deep_markov(device: str) -> Program:
    """Twenty sequences of up to 32 steps."""
    programs = DeepMarkov().to(device)
    lengths = torch.randint(16, 33, (20, 1), device=device)
    x = (torch.rand(20, 32, 88, device=device) < 0.05).float()
    return Program(programs.model, programs.guide, Trace_ELBO(), (x, torch.arange(32, device=device) < lengths))


class SemiSupervised(nn.Module):
    """The semi-supervised VAE of Pyro's tutorial, on images without labels: the label is enumerated."""

    def __init__(self, classes: int = 10, latent: int = 50, hidden: int = 500) -> None:
        super().__init__()
        self.classes, self.latent = classes, latent
        self.classify = self._network(common.PIXELS, hidden, classes)
        self.encode = self._network(common.PIXELS + classes, hidden, 2 * latent)
        self.decode = self._network(latent + classes, hidden, common.PIXELS)

    @staticmethod
    def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, hidden), nn.Softplus(), nn.Linear(hidden, outputs))

    def model(self, x: Tensor) -> None:
        """p(x, y, z)."""
        pyro.module("semi_supervised", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), self.latent), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_full((len(x), self.classes), 1 / self.classes)))
            both = torch.cat(self._same(z, y), -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decode(both)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(y|x) q(z|x, y)."""
        pyro.module("semi_supervised", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.classify(x)))
            where, scale = self.encode(torch.cat(self._same(x, y), -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(where, scale.exp()).to_event(1))

    @staticmethod
    def _same(*values: Tensor) -> list[Tensor]:
        shape = torch.broadcast_shapes(*(value.shape[:-1] for value in values))
        return [value.expand(*shape, value.shape[-1]) for value in values]


def semi_supervised(device: str) -> Program:
    """A batch of 200 images."""
    programs = SemiSupervised().to(device)
    x = torch.from_numpy(common.images(200)).to(device).gt(127).float()
    guide = config_enumerate(programs.guide, expand=True)
    return Program(programs.model, guide, TraceEnum_ELBO(max_plate_nesting=1), (x,))


class Regression(PyroModule):
    """A Bayesian linear regression, as in Pyro's tutorial."""

    def __init__(self, features: int, device: str) -> None:
        super().__init__()
        zero, one = torch.zeros((), device=device), torch.ones((), device=device)
        self.linear = PyroModule[nn.Linear](features, 1, device=device)
        self.linear.weight = PyroSample(dist.Normal(zero, one).expand([1, features]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(zero, 10 * one).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor) -> None:
        """p(y, weights | x)."""
        scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
        where = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(where, scale), obs=y)


def regression(device: str) -> Program:
    """A thousand data with 20 features, AutoNormal."""
    x = torch.randn(1000, 20, device=device)
    y = x @ torch.randn(20, device=device) + 0.5 * torch.randn(1000, device=device)
    model = Regression(20, device)
    guide = AutoNormal(model)
    guide(x, y)
    return Program(model, guide.to(device), Trace_ELBO(), (x, y), 1e-2)


def hierarchical(device: str) -> Program:
    """Ten thousand data in 50 groups, 100 of them in a step."""
    groups = torch.randint(50, (10_000,), device=device)
    y = torch.randn(50, device=device)[groups] + 0.3 * torch.randn(10_000, device=device)

    def model(y: Tensor, groups: Tensor) -> None:
        where = pyro.sample("where", dist.Normal(y.new_zeros(()), 1.0))
        spread = pyro.sample("spread", dist.LogNormal(y.new_zeros(()), 1.0))
        with pyro.plate("groups", 50):
            means = pyro.sample("means", dist.Normal(where, spread))
        with pyro.plate("data", len(y), subsample_size=100, device=device) as rows:
            pyro.sample("y", dist.Normal(means[groups[rows]], 0.3), obs=y[rows])

    with pyro.validation_enabled(False):
        guide = AutoNormal(poutine.block(model, expose=["where", "spread", "means"]))
        guide(y, groups)
    return Program(model, guide.to(device), Trace_ELBO(), (y, groups), 1e-2)


PROGRAMS: dict[str, Callable[[str], Program]] = {
    "deep-markov": deep_markov,
    "semi-supervised": semi_supervised,
    "regression": regression,
    "hierarchical": hierarchical,
}


# The measurement.


@dataclass
class Contestant:
    """A way to take steps, and what is found of it."""

    step: Callable[[], Any]
    build: float
    loss: float
    seconds: list[float]
    graphs: list[str]
    """Of what kinds they are, or why there is none; empty where none is asked for."""

    def time(self, steps: int, device: str) -> float:
        """Seconds a step; the first of them is not counted."""
        self.step()
        common.wait(device)
        start = perf_counter()
        for _ in range(steps):
            loss = self.step()
        float(loss)
        common.wait(device)
        return (perf_counter() - start) / steps


def contestant(name: str, who: str, device: str, check: int) -> Contestant:
    """A program from the common start, trained for so many steps: the last quarter's mean loss is its loss."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    program = PROGRAMS[name](device)
    own = {} if who == REFERENCE else {"compile": who}
    svi_class = pyro.infer.SVI if who == REFERENCE else pvae.SVI
    optim = pyro.optim.Adam({"lr": program.rate})
    svi = svi_class(program.model, program.guide, optim, program.loss, **own)

    def step() -> Any:
        return svi.step(*program.args)

    torch.manual_seed(1)
    losses = [step()]
    start = perf_counter()
    losses += [step()]
    common.wait(device)
    build = perf_counter() - start
    losses += [step() for _ in range(check - 2)]
    loss = mean(float(loss) for loss in losses[-check // 4 :])
    return Contestant(step, build, loss, [], [] if who == REFERENCE else common.replayed_as(svi))


def measure(name: str, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """All contestants in turn, round after round."""
    stores, contestants = {}, {}
    for who in (REFERENCE, *options.modes):
        contestants[who] = contestant(name, who, device, options.check_steps)
        stores[who] = pyro.get_param_store().get_state()
    steps = {}
    for turn in range(options.rounds + 1):
        for who, found in contestants.items():
            pyro.get_param_store().set_state(stores[who])  # each has its own parameters under the same names
            if turn == 0:
                steps[who] = max(3, round(options.seconds / found.time(3, device)))
            else:
                found.seconds.append(found.time(steps[who], device))
    reference = median(contestants[REFERENCE].seconds)
    return {
        who: {
            "microseconds": median(found.seconds) * 1e6,
            "min": min(found.seconds) * 1e6,
            "max": max(found.seconds) * 1e6,
            "ratio": reference / median(found.seconds),
            "second_step_seconds": found.build,
            "loss": found.loss,
            "graphs": found.graphs,
            "steps": steps[who],
        }
        for who, found in contestants.items()
    }


def main() -> int:
    """Run it; 1 where contestants disagree on the loss."""
    options = _options()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    torch.set_num_threads(options.threads)
    device = common.choose_device(options.device)
    record: dict[str, Any] = {"environment": common.environment(common.device_record(device)), "programs": {}}
    agree = True
    for name in options.programs:
        result = measure(name, options, device)
        losses = [found["loss"] for found in result.values()]
        agree &= (max(losses) - min(losses)) <= options.tolerance * abs(losses[0])
        _show(name, result)
        record["programs"][name] = result
        record["load_after"] = common.load()
        print(f"\nwritten to {common.save('programs', record, options.out)}", flush=True)
    return 0 if agree else 1


def _show(name: str, result: dict[str, Any]) -> None:
    columns = ["contestant", "us a step", "min", "max", "times faster than pyro", "second step, s", "loss"]
    rows = [
        [
            who,
            *(f"{found[key]:,.0f}" for key in ("microseconds", "min", "max")),
            f"{found['ratio']:.2f}",
            f"{found['second_step_seconds']:.1f}",
            f"{found['loss']:,.2f}",
        ]
        for who, found in result.items()
    ]
    print(f"\n{name}\n\n{common.table(columns, rows)}")


def _options() -> argparse.Namespace:
    parser = common.parser("programs", __doc__, threads=True)
    parser.add_argument("--programs", type=common.some_of(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--modes", type=common.some_of(MODES), default=list(MODES))
    parser.add_argument("--seconds", type=float, default=1.0, help="that each contestant runs in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check-steps", type=int, default=40, help="before timing")
    parser.add_argument("--tolerance", type=float, default=0.05, help="by how much losses may differ")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
