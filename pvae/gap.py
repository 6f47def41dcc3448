"""The inference gap log p(x) - ELBO, split into the approximation gap (of the family of q) and the amortization gap.

A guide of its own is optimised for each datum, all data at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from . import programs
from .ais import Annealed
from .errors import InputError, nearest, whole_number
from .frozen import frozen
from .means import mean_and_se, standard_error, with_error
from .noise import Noise, block_size, forked
from .programs import Density, Program
from .replay.turns import taken_in_turn

HIDDEN = 16
"""Units of each layer of a local flow."""
LAYERS = 4
"""Its coupling layers."""
STEEPEST = 300.0
"""At most so long is the gradient of a datum: ten times what noise makes it and more, in units of the guide's scale.
"""


@dataclass(frozen=True, repr=False)
class Gap:
    """What `gap` found for each of N data; on the CPU in float64, nats. Prints as means over the data."""

    log_p: Tensor
    """(N,): log p(x), as it was given."""
    elbo: Tensor
    """(N,): of the guide."""
    local: dict[str, Tensor]
    """(N,) by family: the ELBO of a guide optimised for the datum alone."""
    se: dict[str, Tensor]
    """(N,): the Monte Carlo standard errors of log_p, elbo and each family."""

    def columns(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The gaps for each datum with their standard errors, (N,) each.

        inference: log p - ELBO; for each family, approximation: log p - ELBO*, amortization: ELBO* - ELBO.
        """
        terms = {"log_p": self.log_p, "elbo": self.elbo, **self.local}
        pairs = {"inference": ("log_p", "elbo")}
        for family in self.local:
            pairs |= {f"approximation.{family}": ("log_p", family), f"amortization.{family}": (family, "elbo")}
        return {name: (terms[a] - terms[b], torch.hypot(self.se[a], self.se[b])) for name, (a, b) in pairs.items()}

    def __repr__(self) -> str:
        rows = [f"{name:<26}{with_error(mean_and_se(value), 10)}" for name, (value, _) in self.columns().items()]
        return "\n".join([*rows, f"nats, {len(self.log_p)} data"])


@torch.inference_mode(False)
@frozen()
@taken_in_turn
def gap(
    model: Program,
    guide: Program,
    x: Tensor,
    y: Tensor | None = None,
    *,
    log_p: Tensor | Annealed,
    families: Sequence[str] = ("mean_field", "flow"),
    steps: int = 1000,
    rate: float = 0.05,
    particles: int = 16,
    draws: int = 1000,
    plate: str = "",
    seed: int = 0,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Gap:
    """Split log p(x) - ELBO into what the family of guides cannot reach and what amortization loses.

    log p(x) - ELBO[q] = (log p(x) - ELBO[q*]) + (ELBO[q*] - ELBO[q]),  q* the best of a family for this one datum

    The families are those of numbers without constraints, from which each site's value is mapped into its support:
    "mean_field" (independent Gaussians) and "flow" (couplings, then a full lower triangular map: it has every Gaussian
    in it). Both start at the guide's own mean and scale, and are fitted by Adam with a rate that falls to 0 and
    gradients clipped datum by datum. Take the family that the guide is of: a richer one says what it would gain; of a
    narrower one, amortization may be below 0. All ELBOs are from fresh draws.

    Args:
        model: p(x, z), a Pyro program of x, or of (x, y) if there are labels; its latents continuous.
        guide: q(z|x), a Pyro program of the same.
        x: (N, *shape), as the likelihood scores them.
        y: labels (N,) or None.
        log_p: log p(x) (N,) where it is known, or what `pvae.ais.ais` found.
        families: which to fit.
        steps: of the optimisation: its whole budget.
        rate: Adam's, at the start, in units of the guide's scale.
        particles: draws of each step, for each datum.
        draws: fresh draws of each ELBO, rounded up to whole multiples of `particles`.
        plate: the plate of data, needed only where several hold every site.
        seed: of the draws; the generators that others see are left as they are.
        chunk: how many pairs of a particle and a datum are worked on at once (at least a cell of 32 data); by default
            2,048 on a CPU and 16,384 on CUDA.
        progress: called after every step with how many are done, and of how many.

    Raises:
        InputError: no data; an unknown family; numbers below 1; log_p of another shape; an ELBO that is not a number.

    Cremer, Li and Duvenaud 2018.

    >>> from pvae.exact import LinearGaussian, LinearVAE
    >>> truth = LinearGaussian(torch.tensor([[1.0, 0.5]]), torch.zeros(1), torch.tensor(0.5))
    >>> vae, (_, x) = LinearVAE(1, 2).set_(truth), truth.sample(4)  # the best guide of its family
    >>> found = gap(vae.model, vae.guide, x, log_p=truth.log_prob(x), families=["mean_field"], steps=100)
    >>> approximation, _ = found.columns()["approximation.mean_field"]
    >>> bool((approximation.mean() - truth.gap()).abs() < 0.1)
    True
    """
    programs.check_named(plate)
    check_families(families)
    whole_number(1, steps=steps, particles=particles, draws=draws)
    whole_number(0, seed=seed)
    whole_number(1, chunk=1 if chunk is None else chunk)
    given = programs.given("gap", x, y)
    truth, truth_se = _known(log_p, len(x))
    size = block_size(x.device, particles, chunk)
    done, total = count(1), steps * len(families) * math.ceil(len(x) / size)

    def tick() -> None:
        if progress is not None:
            progress(next(done), total)

    found: dict[str, list[Tensor]] = {name: [] for name in ("elbo", *families)}
    for start in range(0, len(x), size):
        data = tuple(part[start : start + size] for part in given)
        fit = _Fit(model, guide, data, start, particles, seed, steps, rate, tick, plate)
        rounds = math.ceil(draws / particles)
        found["elbo"].append(fit.amortized(rounds))
        for name in families:
            found[name].append(fit.local(name, rounds))
    values = {name: torch.cat(parts, 1) for name, parts in found.items()}
    _check(values)
    means = {name: value.mean(0) for name, value in values.items()}
    errors = {name: standard_error(value) for name, value in values.items()}
    return Gap(truth, means.pop("elbo"), means, {"log_p": truth_se, **errors})


@dataclass(frozen=True)
class _Fit:
    """A block of data, and how guides are fitted to each of them."""

    model: Program
    guide: Program
    data: tuple[Tensor, ...]
    first: int
    particles: int
    seed: int
    steps: int
    rate: float
    tick: Callable[[], None]
    plate: str

    def noise(self, purpose: int) -> Noise:
        return Noise((self.seed, purpose), self.first, len(self.data[0]), self.data[0].device)

    def density(self, guide: Program | None = None) -> Density:
        given = {"particles": self.particles, "plate": self.plate, "first": self.first}
        return Density(self.model, self.data, guide=guide, **given)

    def amortized(self, rounds: int) -> Tensor:
        """Log-weights of the guide's own draws, (draws, B), float64, on the CPU."""
        noise, found = self.noise(0), []
        nesting = self.density(self.guide).nesting  # which looks at all that can be wrong
        with torch.no_grad(), forked(self.data[0].device):
            for _ in range(rounds):
                parts = [
                    programs.log_weights(
                        self.model,
                        self.guide,
                        *(part[cell] for part in self.data),
                        particles=self.particles,
                        plate=self.plate,
                        max_plate_nesting=nesting,
                    ).log_w
                    for cell in noise.seeded()
                ]
                found.append(torch.cat(parts, 1).double().cpu())
        return torch.cat(found)

    def local(self, family: str, rounds: int) -> Tensor:
        """Log-weights of draws from guides of the family, one fitted to each datum: (draws, B), float64, on the CPU."""
        noise = self.noise(1)
        start = self.density(self.guide)
        u = torch.cat([start.draw(noise) for _ in range(math.ceil(256 / self.particles))])
        mean, scale = u.mean(0), _scale(u)
        density = self.density()
        kept = _kept(density, mean)
        parameters, flow = _FAMILIES[family](mean, noise, kept)
        like = mean.expand(self.particles, -1, -1)

        def log_w() -> Tensor:
            w, log_q = flow(noise.normal(like) * kept)
            base, ratio = density.terms(mean + scale * w)
            return base + ratio - (log_q - (kept * scale.log()).sum(-1))

        optimizer = torch.optim.Adam(parameters, lr=self.rate)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.rate * (1 + math.cos(math.pi * step / self.steps)) / 2
            loss = -log_w().mean(0).sum()
            for parameter, grad in zip(parameters, _clipped(torch.autograd.grad(loss, parameters)), strict=True):
                parameter.grad = grad
            optimizer.step()
            self.tick()
        noise = self.noise(2)
        with torch.no_grad():
            return torch.cat([log_w().double().cpu() for _ in range(rounds)])


def _clipped(grads: Sequence[Tensor]) -> list[Tensor]:
    """Gradients (B, ...), those of each datum together no longer than `STEEPEST`: of a draw far out they are huge."""
    norm = sum(grad.flatten(1).square().sum(1) for grad in grads).sqrt()
    factor = (STEEPEST / norm).clamp(max=1)
    return [torch.einsum("b,b...->b...", factor, grad) for grad in grads]


def _scale(u: Tensor) -> Tensor:
    """The spread of draws u (K, B, d) of the guide, (B, d): at least what their type can tell apart there."""
    least = torch.finfo(u.dtype).eps * u.abs().amax(0)
    return u.std(0).maximum(least.where(least > 0, 1e-6))


def _kept(density: Density, like: Tensor) -> Tensor:
    """1 for the numbers of each datum that are in the model, 0 for those that it masks: in the shape of `like` (B, d).

    Raises:
        InputError: a mask that depends on the latents; angles.
    """
    if density.circles:
        raise InputError(
            f"gap: site '{density.circles[0]}': found angles, expected latents on the real numbers, or between bounds:"
            " a guide fitted to each datum goes round the circle"
        )
    if density.counted is None:
        return torch.ones_like(like)
    if (density.counted != density.counted[:1]).any():
        raise InputError(
            "gap: found latents that are masked in some draws of a datum and not in others, expected masks that depend"
            " on the data alone: a guide fitted to each datum has so many numbers"
        )
    return density.counted[0].to(like)


_Flow = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From standard normal noise (K, B, d) to numbers (K, B, d) and their log-density (K, B).

The density is of the numbers that are kept: the noise of the others is 0.
"""


def _mean_field(like: Tensor, _: Noise, kept: Tensor) -> tuple[list[Tensor], _Flow]:
    """Independent Gaussians for each datum; they start as the noise. `like` and `kept` are (B, d)."""
    mean, log_scale = (torch.zeros_like(like, requires_grad=True) for _ in range(2))

    def flow(noise: Tensor) -> tuple[Tensor, Tensor]:
        return mean + log_scale.exp() * noise, _log_normal(noise, kept) - (kept * log_scale).sum(-1)

    return [mean, log_scale], flow


def _flow(like: Tensor, noise: Noise, kept: Tensor) -> tuple[list[Tensor], _Flow]:
    """Affine couplings with small networks, then z = m + L w: weights for each datum; they start as the noise.

    Dinh, Sohl-Dickstein and Bengio 2017.
    """
    (size, d), layers = like.shape, []
    mean, log_scale = (torch.zeros_like(like, requires_grad=True) for _ in range(2))
    lower = like.new_zeros(size, d, d, requires_grad=True)
    half = torch.arange(d, device=like.device) % 2
    for layer in range(LAYERS):
        inner = noise.normal(like.new_empty(d, size, HIDDEN)).transpose(0, 1) / math.sqrt(d)
        outer = like.new_zeros(size, HIDDEN + 1, 2 * d, requires_grad=True)
        layers.append(((half + layer) % 2, inner.contiguous().requires_grad_(), outer))

    def flow(noise: Tensor) -> tuple[Tensor, Tensor]:
        w, log_q = noise, _log_normal(noise, kept)
        for mask, inner, outer in layers:
            hidden = torch.einsum("kbd,bdh->kbh", w * mask, inner).tanh()
            out = torch.einsum("kbh,bhe->kbe", hidden, outer[:, 1:]) + outer[:, 0]
            shift, stretch = (kept * (1 - mask) * part for part in (out[..., :d], out[..., d:].tanh()))
            w, log_q = w * stretch.exp() + shift, log_q - stretch.sum(-1)
        moved = torch.einsum("bij,kbj->kbi", lower.tril(-1), w) + log_scale.exp() * w
        return mean + moved, log_q - (kept * log_scale).sum(-1)

    return [mean, log_scale, lower, *(value for _, *pair in layers for value in pair)], flow


_FAMILIES = {"mean_field": _mean_field, "flow": _flow}


def check_families(families: Sequence[str]) -> None:
    """Hold families to those there are.

    Raises:
        InputError: an unknown one, or one named twice.
    """
    for name in families:
        if name not in _FAMILIES:
            raise InputError(f"families: unknown '{name}': {nearest(name, list(_FAMILIES))}")
        if list(families).count(name) > 1:
            raise InputError(f"families: found {name} twice, expected different ones")


def _log_normal(noise: Tensor, kept: Tensor) -> Tensor:
    return -(noise.square().sum(-1) + kept.sum(-1) * math.log(2 * math.pi)) / 2


def _known(log_p: Tensor | Annealed, n: int) -> tuple[Tensor, Tensor]:
    value = log_p.log_p if isinstance(log_p, Annealed) else log_p
    wrong = ""
    if not isinstance(value, Tensor):
        wrong = type(value).__name__
    elif value.shape != (n,):
        wrong = f"shape {tuple(value.shape)}"
    elif value.isnan().any():
        wrong = "NaN"
    if wrong:
        raise InputError(f"log_p: found {wrong}, expected what ais found, or a tensor ({n},), a number for each datum")
    se = log_p.se if isinstance(log_p, Annealed) else torch.zeros_like(value)
    return value.detach().double().cpu(), se.double().cpu()


def _check(values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        if value.isnan().any():
            datum = value.isnan().any(0).nonzero()[0].item()
            raise InputError(f"gap: the {name} of datum {datum} is not a number: the model or the fit has diverged")
