"""The time of one training step, ours and its peers': gather, binarize, forward, backward, Adam.

python -m benchmarks.step --networks A,B --seconds 1 --rounds 5
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

import pvae
from pvae.data import binarize

from . import common
from .common import NETWORKS, PIXELS, Network

REFERENCE = "torch"
RATE = 1e-3
BATCHES = 1000
"""Batches of indices, the same for every contestant, taken in a circle."""

Layers = list[tuple[np.ndarray, np.ndarray]]
"""Weights (outputs, inputs) and biases, layer by layer."""


@dataclass(frozen=True)
class Task:
    """What every contestant is given."""

    network: Network
    device: str
    data: np.ndarray
    """(N, 784), uint8."""
    rows: np.ndarray
    """(BATCHES, batch): which data each step takes."""
    encoder: Layers
    """What to start from: mean and log-scale come from one last layer, in this order."""
    decoder: Layers
    scan: int
    """How many steps `lax.scan` takes in one call."""


@dataclass(frozen=True)
class Contestant:
    """A way to train."""

    run: Callable[[int, int], Sequence[Any]]
    """From the number of the first step, and how many, to their losses: sums over the batch, maybe still under way."""
    unit: int = 1
    """Steps come in multiples of this."""


@dataclass(frozen=True)
class Timing:
    """What was measured for one contestant."""

    loss: float
    """Nats a datum, the mean over the last steps of the check."""
    steps: int
    """In each round."""
    seconds: list[float]
    """A step, for each round."""


# The contestants: each takes the task and gives a way to train.


class Hand(nn.Module):
    """The network in plain torch, as one would write it with care."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.encoder = _network(task.encoder, task.network.activation)
        self.decoder = _network(task.decoder, task.network.activation)
        self.particles = task.network.particles

    def forward(self, x: Tensor) -> Tensor:
        """Minus the bound, summed over the batch, nats."""
        mean, log_scale = self.encoder(x).chunk(2, -1)
        lead = () if self.particles == 1 else (self.particles,)
        noise = torch.randn(*lead, *mean.shape, device=x.device)
        z = mean + log_scale.exp() * noise
        logits = self.decoder(z)
        if self.particles == 1:
            nll = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            return nll + (0.5 * (z.square() - noise.square()) - log_scale).sum()
        nll = nn.functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        kl = (0.5 * (z.square() - noise.square()) - log_scale).sum(-1)
        return -((-nll - kl).logsumexp(0) - math.log(self.particles)).sum()


def _network(layers: Layers, activation: str) -> nn.Sequential:
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(*weight.shape[::-1])
        _copy([linear.weight, linear.bias], [(weight, bias)])
        modules += [linear, {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]()]
    return nn.Sequential(*modules[:-1])


def _copy(parameters: Sequence[Tensor], layers: Layers) -> None:
    with torch.no_grad():
        for parameter, array in zip(parameters, (array for layer in layers for array in layer), strict=True):
            parameter.copy_(torch.from_numpy(array))


def _torch(task: Task, *, fused: bool = True, compiled: bool = False) -> Contestant:
    """Torch by hand."""
    model = Hand(task).to(task.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, **({"fused": True} if fused else {}))
    loss_of = torch.compile(model) if compiled else model
    data, rows = _resident(task)

    def step(i: int) -> Tensor:
        x = torch.bernoulli(data[rows[i % BATCHES]].float() / 255)
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Contestant(lambda first, count: [step(i) for i in range(first, first + count)])


def _pvae(task: Task, *, mode: str) -> Contestant:
    """`pvae`, as `python -m pvae.fit --compile MODE` trains."""
    vae = common.vae(task.network)
    _copy(list(vae.posterior.parameters()), task.encoder)
    _copy(list(vae.likelihood.parameters()), task.decoder)
    vae.to(task.device)
    objective = pvae.ELBO() if task.network.particles == 1 else pvae.IWAE(task.network.particles)
    adam = partial(torch.optim.Adam, lr=RATE, fused=True)
    svi = pvae.SVI(vae.model, vae.guide, adam, objective, compile=mode)
    data, rows = _resident(task)
    dynamic = partial(binarize, mode="dynamic")

    def run(first: int, count: int) -> list[Tensor]:
        batches = [rows[i % BATCHES] for i in range(first, first + count)]
        return [loss for losses in svi.run(batches, data, prepare=dynamic) for loss in losses.unbind()]

    return Contestant(run)


class Tutorial(nn.Module):
    """The programs of Pyro's tutorial on variational autoencoders, with logits in place of probabilities."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        latent, (weight, bias) = task.network.latent, task.encoder[-1]
        self.body = nn.Sequential(*_network(task.encoder, task.network.activation)[:-1])
        self.mean = _network([(weight[:latent], bias[:latent])], task.network.activation)
        self.log_scale = _network([(weight[latent:], bias[latent:])], task.network.activation)
        self.decoder = _network(task.decoder, task.network.activation)

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            shape = torch.Size((x.shape[0], self.mean[0].out_features))
            zero, one = torch.zeros(shape, device=x.device), torch.ones(shape, device=x.device)
            z = pyro.sample("latent", pyro.distributions.Normal(zero, one).to_event(1))
            p = pyro.distributions.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1)
            pyro.sample("obs", p, obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x)."""
        pyro.module("encoder", nn.ModuleList([self.body, self.mean, self.log_scale]))
        with pyro.plate("data", x.shape[0]):
            hidden = self.body(x)
            q = pyro.distributions.Normal(self.mean(hidden), self.log_scale(hidden).exp()).to_event(1)
            pyro.sample("latent", q)


def _pyro(task: Task) -> Contestant:
    """Pyro as its tutorial has it: its SVI, its Adam, its objective; validation of distributions off, as there."""
    pyro.clear_param_store()
    programs = Tutorial(task).to(task.device)
    k = task.network.particles
    many = {"num_particles": k, "vectorize_particles": True}
    objective = pyro.infer.Trace_ELBO() if k == 1 else pyro.infer.RenyiELBO(alpha=0, **many)
    svi = pyro.infer.SVI(programs.model, programs.guide, pyro.optim.Adam({"lr": RATE}), objective)
    data, rows = _resident(task)

    def run(first: int, count: int) -> list[float]:
        with pyro.distributions.validation_enabled(False):
            batches = (rows[i % BATCHES] for i in range(first, first + count))
            return [svi.step(torch.bernoulli(data[batch].float() / 255)) for batch in batches]

    return Contestant(run)


def _resident(task: Task) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The data, and the indices of each batch, on the device."""
    data, rows = (torch.from_numpy(array).to(task.device) for array in (task.data, task.rows))
    return data, rows.unbind(0)


def _numpyro(task: Task, *, scan: bool) -> Contestant:
    """NumPyro with a jitted update, one step a call or many under `lax.scan`; gather and binarization inside."""
    import jax

    if jax.default_backend() != {"cuda": "gpu"}.get(task.device, task.device):
        raise RuntimeError(f"jax runs on {jax.default_backend()}")
    svi = _numpyro_svi(task)
    data, rows = jax.device_put(task.data), jax.device_put(task.rows.astype(np.int32))

    def update(state: Any, batch: Any) -> tuple[Any, Any]:
        p = data[batch].astype(jax.numpy.float32) / 255
        key = jax.random.fold_in(state.rng_key, 1)
        return svi.update(state, jax.random.bernoulli(key, p).astype(jax.numpy.float32))

    state = svi.init(jax.random.PRNGKey(0), jax.numpy.zeros((task.network.batch, PIXELS)))
    unit = task.scan if scan else 1
    step = jax.jit(lambda state, rows: jax.lax.scan(update, state, rows)) if scan else jax.jit(update)
    batches = list(rows.reshape(-1, unit, task.network.batch) if scan else rows)

    def run(first: int, count: int) -> Any:
        nonlocal state
        losses = []
        for i in range(first // unit, (first + count) // unit):
            state, loss = step(state, batches[i % len(batches)])
            losses.append(loss)
        return jax.numpy.concatenate(losses) if scan else losses

    return Contestant(run, unit)


def _numpyro_svi(task: Task) -> Any:
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

    activation = {"relu": jax.nn.relu, "tanh": jax.numpy.tanh}[task.network.activation]
    latent, k = task.network.latent, task.network.particles

    def network(name: str, layers: Layers, x: Any) -> Any:
        *hidden, last = numpyro.param(name, [(jax.numpy.asarray(w.T), jax.numpy.asarray(b)) for w, b in layers])
        for weight, bias in hidden:
            x = activation(x @ weight + bias)
        return x @ last[0] + last[1]

    def model(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([latent]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=network("decoder", task.decoder, z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        mean, log_scale = jax.numpy.split(network("encoder", task.encoder, x), 2, axis=-1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(mean, jax.numpy.exp(log_scale)).to_event(1))

    objective = Trace_ELBO() if k == 1 else RenyiELBO(alpha=0, num_particles=k)
    return SVI(model, guide, numpyro.optim.Adam(RATE), objective)


CONTESTANTS: dict[str, Callable[[Task], Contestant]] = {
    "pvae-full": partial(_pvae, mode="full"),
    "pvae-graph": partial(_pvae, mode="graph"),
    "pvae-off": partial(_pvae, mode="off"),
    "pyro": _pyro,
    REFERENCE: _torch,
    "torch-default-adam": partial(_torch, fused=False),
    "torch-compile": partial(_torch, compiled=True),
    "numpyro-jit": partial(_numpyro, scan=False),
    "numpyro-scan": partial(_numpyro, scan=True),
}


# The measurement.


def main() -> int:
    """Run it; 1 where contestants disagree on the loss."""
    options = _options()
    device = _prepare(options)
    record: dict[str, Any] = {"environment": common.environment(common.device_record(device)), "networks": {}}
    agree = True
    for name in options.networks:
        task = _task(NETWORKS[name], device)
        timings, skipped = _measure(task, options)
        result = _result(task, timings, skipped)
        agree &= result["loss_spread"] <= options.tolerance
        _show(f"{name}: {task.network}", result, device, options.tolerance)
        record["networks"][name] = result
    record["load_after"] = [round(value, 2) for value in os.getloadavg()]
    print(f"\nwritten to {common.save('step', record, options.out)}")
    return 0 if agree else 1


def _options() -> argparse.Namespace:
    def names(known: Sequence[str], text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}: expected some of {', '.join(known)}")
        return found

    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the CPU, for all")
    parser.add_argument("--networks", type=partial(names, list(NETWORKS)), default=list(NETWORKS))
    parser.add_argument("--only", type=partial(names, list(CONTESTANTS)), default=list(CONTESTANTS))
    parser.add_argument("--seconds", type=float, default=1.0, help="that each contestant runs in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check-steps", type=int, help="before timing (400, but 30 for C on a CPU)")
    parser.add_argument("--tolerance", type=float, default=0.03, help="by how much losses may differ")
    parser.add_argument("--flush-denormals", action="store_true", help="in torch on the CPU; XLA always does")
    parser.add_argument("--out", metavar="FILE", help="of the JSON")
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
    return device


def _task(network: Network, device: str) -> Task:
    torch.manual_seed(0)
    sizes = (PIXELS, *network.hidden)
    layers = []
    for ends in ((*sizes, 2 * network.latent), (network.latent, *sizes[::-1])):
        linear = [nn.Linear(before, after) for before, after in pairwise(ends)]
        layers.append([(m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy()) for m in linear])
    data = common.images(10_000)
    rows = np.random.default_rng(0).integers(len(data), size=(BATCHES, network.batch))
    long = device == "cpu" and network.batch * network.particles > 10_000
    return Task(network, device, data, rows, *layers, scan=10 if long else 200)


def _measure(task: Task, options: argparse.Namespace) -> tuple[dict[str, Timing], dict[str, str]]:
    """Build and check each contestant, then time them in turn, round after round; and who was skipped, and why."""
    contestants: dict[str, Contestant] = {}
    losses: dict[str, float] = {}
    skipped: dict[str, str] = {}
    check = options.check_steps or (400 if task.scan == 200 else 30)
    for who in options.only:
        try:
            contestant = CONTESTANTS[who](task)
            losses[who] = _check(task, contestant, check)
        except Exception as error:
            skipped[who] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        else:
            contestants[who] = contestant
    seconds: dict[str, list[float]] = {who: [] for who in contestants}
    steps = {who: _steps(task, contestant, options.seconds) for who, contestant in contestants.items()}
    for _ in range(options.rounds):
        for who, contestant in contestants.items():
            seconds[who].append(_time(task, contestant, steps[who]))
    return {who: Timing(losses[who], steps[who], seconds[who]) for who in contestants}, skipped


def _check(task: Task, contestant: Contestant, steps: int) -> float:
    """Train from the common start on the common batches: nats a datum, the mean over the last sixth of the steps."""
    losses = contestant.run(0, -(-steps // contestant.unit) * contestant.unit)[:steps]
    last = [float(loss) for loss in losses[-max(1, steps // 6) :]]
    return sum(last) / len(last) / task.network.batch


def _steps(task: Task, contestant: Contestant, seconds: float) -> int:
    """How many steps fill a round, from the quickest of three short runs."""
    one = min(_time(task, contestant, contestant.unit) for _ in range(3))
    return max(1, round(seconds / one / contestant.unit)) * contestant.unit


def _time(task: Task, contestant: Contestant, steps: int) -> float:
    """Seconds a step; a step before it is not counted, because the contestant before has left caches its own way."""
    first = 0
    if contestant.unit == 1:
        contestant.run(0, 1)
        first = 1
    _wait(task.device)
    start = perf_counter()
    losses = contestant.run(first, steps)
    float(losses[-1])
    _wait(task.device)
    return (perf_counter() - start) / steps


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


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
        rows.append([who, *times, ratio, f"{found['loss']:.2f}", str(found["steps"])])
    columns = ["contestant", f"{unit} a step", "min", "max", f"over {REFERENCE}", "loss, nats", "steps a round"]
    print(f"\n{title}\n\n{common.table(columns, rows)}")
    for who, reason in result["skipped"].items():
        print(f"skipped {who}: {reason}")
    verdict = "the same computation" if result["loss_spread"] <= tolerance else "NOT the same computation"
    print(f"losses differ by {result['loss_spread']:.1%}: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
