"""The signal-to-noise ratio of gradient estimates: taken many times at fixed parameters, from fresh draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .errors import InputError, whole_number
from .noise import forked
from .replay.captured import replayed
from .replay.generators import Drawn
from .replay.precision import tolerance
from .replay.turns import taken_in_turn
from .replay.values import Untraceable

BLOCKS = 20
"""Blocks of samples that are left out in turn, where there are twice as many: standard errors are from these."""
Groups = Mapping[str, Sequence[Tensor]]
"""Parameters by what they belong to, as `guide` and `model`."""


@dataclass(frozen=True)
class Signal:
    """What was found of one group of parameters; sums over the data, nats for a unit of the parameter."""

    mean: Tensor
    """(P,): the mean over the samples, for each of the parameters looked at."""
    variance: Tensor
    """(P,): the variance of one estimate."""
    dsnr: float
    """The mean of ||parallel|| / ||perpendicular||, each estimate split along the mean one; infinite of one parameter,
    and without a finite mean of two."""
    samples: int
    se: dict[str, float] = field(default_factory=dict)
    """Standard errors of snr, dsnr and the mean of `variance`; NaN of fewer than 4 samples, or of what is infinite."""

    @property
    def snr(self) -> float:
        """|mean| / std, averaged over parameters that have noise. Nothing below `floor` can be told from nothing."""
        noisy = self.variance > 0
        return (self.mean.abs() / self.variance.sqrt())[noisy].mean().item() if noisy.any() else math.inf

    @property
    def floor(self) -> float:
        """What `snr` is in the mean where there is no signal: sqrt(2 / (pi samples)), if these are tens or more."""
        return math.sqrt(2 / (math.pi * self.samples))

    def summary(self) -> dict[str, float]:
        """Its numbers by name, and their standard errors."""
        return {
            "snr": self.snr,
            "dsnr": self.dsnr,
            "variance": self.variance.mean().item(),
            "norm": self.mean.norm().item(),
            "floor": self.floor,
            **{f"{name}_se": error for name, error in self.se.items()},
        }


@torch.inference_mode(False)
@taken_in_turn
def measure(
    objective: Any,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    groups: Groups,
    *data: Tensor | None,
    samples: int = 1000,
    coordinates: int = 10_000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Signal]:
    """Take the gradient of an objective many times; its signal and noise for each group of parameters.

    Args:
        objective: a `pvae.Objective`, or another with a `differentiable_loss` that does not read values. One with a
            warm-up is measured at the step where it is, and stays there.
        model: a Pyro program.
        guide: a Pyro program of the same arguments.
        groups: the parameters (frozen ones are left out), such as {"guide": [...], "model": [...]}.
        *data: the programs' arguments.
        samples: how many gradients, at least 2.
        coordinates: of each group at most so many parameters are looked at, chosen once by the seed: it bounds memory.
        seed: of the draws; the generators that others see are left as they are.
        progress: called with how many are done, and of how many.

    Raises:
        InputError: fewer than 2 samples; a group without parameters; a gradient that is no finite number.

    Rainforth et al. 2018 (SNR, section 3; DSNR, section 4), "Tighter variational bounds are not necessarily better".

    >>> import pvae
    >>> toy = Toy(dimensions=2, n=8)
    >>> found = measure(pvae.IWAE(4), toy.model, toy.guide, toy.groups(), toy.x, samples=10)
    >>> sorted(found), found["guide"].mean.shape
    (['guide', 'model'], torch.Size([6]))
    """
    whole_number(2, samples=samples)
    whole_number(1, coordinates=coordinates)
    whole_number(0, seed=seed)
    groups = {name: [p for p in group if p.requires_grad] for name, group in groups.items()}
    for name, group in groups.items() or (("groups", ()),):
        if not group:
            raise InputError(f"{name}: found no parameters that have a gradient, expected some to take it of")
    parameters = [p for group in groups.values() for p in group]
    tensors = tuple(part.clone() if part.is_inference() else part for part in data if part is not None)

    def gradient(*given: Tensor) -> tuple[Tensor, ...]:
        left = iter(given)
        args = [None if part is None else next(left) for part in data]
        with torch.enable_grad():
            loss = objective.differentiable_loss(model, guide, *args)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return tuple(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True))

    device = tensors[0].device if tensors else None
    with forked(device), pyro.validation_enabled(False), _held(objective, device or torch.device("cpu")):
        gradient(*tensors)  # finds out how deep the plates go
        torch.manual_seed(seed)
        gradient = _quick(gradient, tensors)
        chosen = {name: _chosen(group, coordinates, seed) for name, group in groups.items()}
        kept = {name: torch.empty(samples, sum(map(len, at)), dtype=torch.float64) for name, at in chosen.items()}
        for sample in range(samples):
            found = iter(gradient(*tensors))
            for name, group in groups.items():
                parts = [g.flatten()[at] for g, at in zip((next(found) for _ in group), chosen[name], strict=True)]
                kept[name][sample] = torch.cat(parts).double().cpu()
                if not kept[name][sample].isfinite().all():
                    raise InputError(f"the gradient of the {name} is not a finite number: the model has diverged")
            if progress is not None:
                progress(sample + 1, samples)
    return {name: _statistics(values) for name, values in kept.items()}


@contextmanager
def _held(objective: Any, device: torch.device) -> Iterator[None]:
    """An objective that counts the steps taken itself, at the one where it is."""
    counts = getattr(objective, "clocked", False) and objective.clock is None
    if counts:
        objective.clock = objective.taken(device).clone()
    try:
        yield
    finally:
        if counts:
            objective.clock = None


def _quick(gradient: Callable[..., tuple[Tensor, ...]], data: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """A gradient as a graph, where it can be one that has the same numbers, from the same draws; else as it is."""
    before = Drawn()
    try:
        graph = replayed(gradient, *data)
        expected = [g.clone() for g in gradient(*data)]
        before.restore()
        near = tolerance("float32", data[0].device.type)
        scale = max(float(g.abs().max()) for g in expected)
        if not math.isfinite(scale):  # nothing is near it
            return gradient
        pairs = zip(graph(*data), expected, strict=True)
        return graph if all(torch.allclose(*pair, rtol=near, atol=near * scale) for pair in pairs) else gradient
    except Untraceable:
        return gradient
    finally:
        before.restore()


def _chosen(group: Sequence[Tensor], coordinates: int, seed: int) -> list[Tensor]:
    """The places, in each parameter, that are looked at."""
    sizes = [p.numel() for p in group]
    total = sum(sizes)
    flat = np.sort(np.random.default_rng(seed).choice(total, min(coordinates, total), replace=False))
    starts = np.cumsum([0, *sizes])
    return [
        torch.from_numpy(flat[(flat >= start) & (flat < stop)] - start).to(p.device)
        for p, start, stop in zip(group, starts, starts[1:], strict=False)
    ]


def _statistics(values: Tensor) -> Signal:
    mean, tiny = values.mean(0), torch.finfo(values.dtype).tiny
    direction = mean / mean.norm().clamp(min=tiny)
    parallel = values @ direction
    perpendicular = (values - parallel.unsqueeze(1) * direction).norm(dim=1)
    dsnr = (parallel.abs() / perpendicular.clamp(min=tiny)).mean().item() if values.shape[1] > 1 else math.inf
    return Signal(mean, values.var(0), dsnr, len(values), _errors(values, mean))


def _errors(values: Tensor, mean: Tensor) -> dict[str, float]:
    """By the jackknife: from what is found without one of some blocks of the samples (S, P), for each of them.

    Near the floor it is too large, by half to two thirds: the size of a mean has a kink at 0.
    """
    away = values - mean
    blocks = away.tensor_split(min(BLOCKS, len(values) // 2))
    if len(blocks) < 2:
        return dict.fromkeys(("snr", "dsnr", "variance"), math.nan)
    left = torch.tensor([[len(values) - len(block)] for block in blocks])
    sums, squares = (torch.stack([block.pow(power).sum(0) for block in blocks]) for power in (1, 2))
    means = mean - sums / left
    variance = (squares.sum(0) - squares - sums.square() / left).clamp(min=0) / (left - 1)
    ratios = _directional(values, away, means).split([len(block) for block in blocks])
    rest = [torch.cat(ratios[:i] + ratios[i + 1 :])[:, i].mean() for i in range(len(blocks))]
    noisy = (variance > 0) & (values.var(0) > 0)  # without a block a parameter may have no noise
    snr = (means.abs() / variance.sqrt()).masked_fill(~noisy, 0).sum(1) / noisy.sum(1)
    dsnr = torch.stack(rest) if values.shape[1] > 1 else snr.new_full((), math.nan)
    found = {"snr": snr, "dsnr": dsnr, "variance": variance.mean(1)}
    return {name: math.sqrt(len(left) - 1) * value.std(correction=0).item() for name, value in found.items()}


def _directional(values: Tensor, away: Tensor, means: Tensor) -> Tensor:
    """||parallel|| / ||perpendicular|| of values (S, P), split along each of some means (B, P): (S, B).

    `away` (S, P) is the values less their own mean: in what a mean leaves of a value nothing cancels.
    """
    tiny = torch.finfo(values.dtype).tiny
    directions = (means / means.norm(dim=1, keepdim=True).clamp(min=tiny)).T
    off = values.mean(0) - means  # (B, P): from each of the means to that of all
    whole = away.square().sum(1, keepdim=True) + 2 * away @ off.T + off.square().sum(1)
    along = away @ directions + (off.T * directions).sum(0)
    return (values @ directions).abs() / (whole - along.square()).clamp(min=tiny).sqrt()


def slope(ks: Sequence[int], values: Sequence[float], errors: Sequence[float] | None = None) -> tuple[float, float]:
    """The slope of log value against log K by least squares, and its standard error.

    Args:
        ks: K, at least two.
        values: above 0.
        errors: their standard errors. That of the slope is then at least what follows from these; else it is from how
            far values are off the line alone, which of three or four says little.

    >>> found, error = slope([1, 4, 16], [8.0, 4.0, 2.0], [0.8, 0.4, 0.2])
    >>> round(found, 3), round(error, 3)  # of values that are 10% off
    (-0.5, 0.051)
    """
    x, y = np.log(np.asarray(ks, float)), np.log(np.asarray(values, float))
    x = x - x.mean()
    found = float(x @ y / (x @ x))
    rest = y - y.mean() - found * x
    off = math.sqrt(float(rest @ rest) / (len(x) - 2) / float(x @ x)) if len(x) > 2 else math.nan
    if errors is None:
        return found, off
    given = float(np.linalg.norm(x * np.asarray(errors, float) / np.exp(y)) / (x @ x))
    return found, given if math.isnan(off) else max(given, off)


class Toy(nn.Module):
    """The model on which gradients of tight bounds are studied: all is Gaussian, and the optimum is known.

    p(z) = N(mu, I), p(x|z) = N(z, I), q(z|x) = N(A x + b, 2/3 I); mu, A and b are the best ones, mean(x), I/2 and
    mu/2, moved by N(0, perturbation^2).

    Args:
        dimensions: D, of z and x.
        n: how many data, drawn from the model with mu drawn from N(0, I).
        perturbation: how far from the optimum.
        seed: of data and perturbation.

    Rainforth et al. 2018, section 4.

    >>> Toy(dimensions=3, n=5).x.shape
    torch.Size([5, 3])
    """

    def __init__(self, dimensions: int = 20, n: int = 1024, perturbation: float = 0.01, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        d = dimensions
        self.x = normal(d) + math.sqrt(2) * normal(n, d)
        mean = self.x.mean(0)
        self.mu = nn.Parameter(mean + perturbation * normal(d))
        self.a = nn.Parameter(torch.eye(d) / 2 + perturbation * normal(d, d))
        self.b = nn.Parameter(mean / 2 + perturbation * normal(d))

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.a.T + self.b, math.sqrt(2 / 3)).to_event(1))

    def groups(self) -> dict[str, list[Tensor]]:
        """The parameters of guide and model."""
        return {"guide": [self.a, self.b], "model": [self.mu]}
