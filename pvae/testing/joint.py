"""Distributions over a few numbers that depend on one another: integrals by quadrature, or by importance sampling.

The proposal is a mixture of heavy-tailed kernels about draws of the distribution, or, where it cannot be drawn from,
about draws of a wide proposal that are resampled a few times (population Monte Carlo, Cappe et al. 2004).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..distributions.sphere import log_area
from .separable import tested
from .spaces import Space, space_of

SIDE = {1: 10_000, 2: 250}
"""Points of a quadrature along each number."""
KERNELS, POINTS, FREEDOM = 500, 8000, 3.0
LEAST = 100.0
"""Effective sample size below which nothing is said."""


class Weighted:
    """Points u (N, free) with the weight p / q of each, and whether they were drawn at random."""

    def __init__(self, p: Any, space: Space, u: Tensor, log_q: Tensor, random: bool) -> None:
        self.z, self.free, self.random = space.from_real(u), space.free, random
        log_p = p.log_prob(self.z.to(torch.get_default_dtype())).double()
        log_w = log_p + space.log_jacobian(u) - log_q
        self.w = log_w.nan_to_num(-torch.inf, posinf=torch.inf).exp()

    @property
    def size(self) -> float:
        """The effective sample size."""
        return float(self.w.sum() ** 2 / self.w.square().sum())

    @property
    def error(self) -> float:
        """Of the mean weight; of a lattice, as the means differ of those that every second point of a number makes."""
        w = self.w
        if not self.random:
            halves = w.reshape(*[SIDE[self.free] // 2, 2] * self.free)
            w = halves.mean(list(range(0, halves.dim(), 2)))
        return float(w.std() / w.numel() ** 0.5)


def moments(found: Weighted, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of means of test functions along many directions, and their standard errors."""
    latent = draws.shape[1]
    flat = draws.double()
    directions = torch.cat([torch.eye(latent), torch.randn(2 * latent, latent)]).double()
    directions = directions / directions.norm(dim=1, keepdim=True)
    low, center, high = (flat @ directions.T).quantile(torch.tensor([0.16, 0.5, 0.84]).double(), 0)
    spread = ((high - low) / 2).clamp(min=1e-4)
    theory, practice = (tested((v @ directions.T - center) / spread) for v in (found.z.double(), flat))
    w = (found.w / found.w.mean()).unsqueeze(1)
    expected = (w * theory).mean(1)
    deviation = (w * (theory - expected.unsqueeze(1))).square().mean(1).sqrt() / len(w) ** 0.5
    error = practice.std(1).square() / len(flat) + (deviation.square() if found.random else 0.0)
    return practice.mean(1) - expected, error.sqrt() + 1e-3


def returned(p: Any) -> tuple[Tensor, Tensor] | str:
    """For a distribution that scores only its own draws: E_p[q / p] = 1 for a normalized q, and the error of that."""
    parts = []
    for _ in range(2):
        expanded = p.expand(torch.Size((POINTS,)))
        z = expanded.sample()
        parts.append((z.double(), expanded.log_prob(z).double()))
    (fitted, _), (z, log_p) = parts
    space = space_of(fitted)
    if space.kind != "real":
        return f"it scores only what it has just drawn, on {space.kind} draws"
    q = torch.distributions.MultivariateNormal(fitted.mean(0), 0.5 * _covariance(fitted))
    w = (q.log_prob(z) - log_p).exp()
    if float(w.sum() ** 2 / w.square().sum()) < LEAST:
        return "its draws are too far from a normal distribution to be compared with one"
    return w.mean().reshape(1) - 1, (w.std() / len(w) ** 0.5).reshape(1)


def weighted(p: Any, latent: int, draws: Tensor | None) -> Weighted | str:
    """Points with weights; or why there are none that say anything."""
    space = space_of(draws) if draws is not None else Space("real", latent)
    if space.kind == "sphere":
        u = torch.nn.functional.normalize(torch.randn(4 * POINTS, latent, dtype=torch.float64), dim=-1)
        found = Weighted(p, space, u, torch.full((len(u),), -log_area(latent), dtype=torch.float64), random=True)
    elif space.free in SIDE:
        found = Weighted(p, space, *_lattice(p, space, draws), random=False)
    else:
        u = space.to_real(draws.double()) if draws is not None else _found_alone(p, space)
        found = Weighted(p, space, *propose(u), random=True)
    if found.random and found.size < LEAST:
        return f"effective sample size {found.size:.0f} of {len(found.w)}: look at it with a smaller latent"
    return found


def _lattice(p: Any, space: Space, draws: Tensor | None) -> tuple[Tensor, Tensor]:
    """Points that divide a product of Student's t with 2 degrees of freedom into equal parts."""
    side = SIDE[space.free]
    v = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    standard = (2 * v - 1) / (2 * v * (1 - v)).sqrt()
    points = torch.cartesian_prod(*[standard] * space.free).reshape(-1, space.free)
    u = space.to_real(draws.double()) if draws is not None else _found_alone(p, space)
    low, center, high = u.quantile(torch.tensor([0.16, 0.5, 0.84]).double(), 0)
    spread = ((high - low) / 2).clamp(min=1e-6)
    log_q = (-1.5 * (2 + points.square()).log() - spread.log()).sum(-1)
    return center + spread * points, log_q


def _covariance(u: Tensor) -> Tensor:
    """Of draws, those far out brought nearer."""
    low, center, high = u.quantile(torch.tensor([0.16, 0.5, 0.84]).double(), 0)
    reach = 4 * (high - low).clamp(min=1e-6)
    near = torch.maximum(torch.minimum(u, center + reach), center - reach)
    return torch.cov(near.T).reshape(u.shape[1], u.shape[1]) + 1e-10 * torch.eye(u.shape[1]).double()


def propose(u: Tensor) -> tuple[Tensor, Tensor]:
    """Points drawn from a mixture of kernels about u (N, d), one in ten wide; and their log-density."""
    d = u.shape[1]
    root = torch.linalg.cholesky(_covariance(u))
    centers = u[torch.randperm(len(u))[:KERNELS]]
    narrow = min(1.0, 1.2 * len(centers) ** (-1 / (d + 4)))
    which = torch.randint(len(centers), (POINTS,))
    scale = torch.where(torch.rand(POINTS, 1) < 0.1, 2.0, narrow).double()
    noise = torch.randn(POINTS, d, dtype=torch.float64)
    chi = torch.distributions.Chi2(torch.tensor(FREEDOM).double()).sample((POINTS, 1)) / FREEDOM
    points = centers[which] + scale * (noise / chi.sqrt()) @ root.T
    away = torch.cdist(_standard(root, points), _standard(root, centers)).square()
    logs = [_log_kernel(away, s, d).logsumexp(1) + math.log(share) for s, share in ((narrow, 0.9), (2.0, 0.1))]
    log_q = torch.logaddexp(*logs) - math.log(len(centers)) - root.diagonal().log().sum()
    return points, log_q


def _standard(root: Tensor, u: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(root, u.T, upper=False).T


def _log_kernel(away: Tensor, scale: float, d: int) -> Tensor:
    """Multivariate Student's t at squared distances."""
    constant = math.lgamma((FREEDOM + d) / 2) - math.lgamma(FREEDOM / 2) - d / 2 * math.log(FREEDOM * math.pi)
    return constant - d * math.log(scale) - (FREEDOM + d) / 2 * torch.log1p(away / (FREEDOM * scale**2))


def _found_alone(p: Any, space: Space) -> Tensor:
    """Draws from a density that has no `sample`, roughly: resampled by their weights a few times."""
    u = 3 * torch.randn(POINTS, space.free, dtype=torch.float64)
    for _ in range(5):
        points, log_q = propose(u)
        w = Weighted(p, space, points, log_q, random=True).w
        u = points[torch.multinomial(w / w.max(), POINTS, replacement=True)]
    return u


# Few values.


def mass(p: Any, draws: Tensor) -> tuple[float, float, float] | str:
    """The mass of the values seen and, by Good 1953, of those not seen."""
    known, counts = draws.unique(dim=0, return_counts=True)
    once = int((counts == 1).sum())
    if once > 0.5 * len(draws):
        return "too many values to be seen: look at it with a smaller latent"
    seen = float(p.log_prob(known).double().exp().sum())
    return seen + once / len(draws), (once + 1) ** 0.5 * 1.5 / len(draws), 1e-3


def counted(p: Any, draws: Tensor) -> tuple[Tensor, Tensor] | str:
    """Shares of the values that are seen often, less their mass."""
    known, counts = draws.unique(dim=0, return_counts=True)
    mass = p.log_prob(known).double().exp()
    often = (counts >= 20) | (mass * len(draws) >= 20)
    if not often.any():
        return "too many values to be seen often: look at it with a smaller latent"
    share = counts[often] / len(draws)
    q = mass[often].clamp(max=1)
    return share - q, (torch.maximum(q, share) / len(draws)).sqrt()
