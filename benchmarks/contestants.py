"""The contestants of `benchmarks.step`: each takes the task and gives a way to train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pvae.data import binarize

from . import common
from .common import PIXELS, RATE, Network

REFERENCE = "torch"
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
    precision: Literal["float32", "tf32"]
    """Of everyone's products."""


@dataclass(frozen=True)
class Contestant:
    """A way to train."""

    run: Callable[[int, int], Sequence[Any]]
    """From the number of the first step, and how many, to their losses: sums over the batch, maybe still under way."""
    unit: int = 1
    """Steps come in multiples of this."""
    note: Callable[[], str] = str
    """What is to be known of the steps it took: empty if nothing is."""


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
    svi = common.svi(vae, common.objective(task.network), compile=mode, precision=task.precision)
    data, rows = _resident(task)
    dynamic = partial(binarize, mode="dynamic")

    def run(first: int, count: int) -> list[Tensor]:
        batches = [rows[i % BATCHES] for i in range(first, first + count)]
        return [loss for losses in svi.run(batches, data, prepare=dynamic) for loss in losses.unbind()]

    def note() -> str:
        return "" if mode == "off" or common.replayed_as(svi) == [mode] else f"not {mode}: {common.replayed_as(svi)}"

    return Contestant(run, note=note)


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
    # on a GPU JAX's own choice is tf32
    jax.config.update("jax_default_matmul_precision", "highest" if task.precision == "float32" else None)
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
        return np.concatenate([np.asarray(loss) for loss in losses]) if scan else losses

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
