"""Priors that are the standard normal times what a network says of a point; their normalizers are estimated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from ..base import full_precision, leading
from ..distributions import Unexpanded
from ..distributions.mixtures import choose, pick
from ..errors import more_than, whole_number
from ..frozen import once
from ..networks import mlp
from .prior import Prior

TRAINING, EVALUATION = 1024, 2**16
"""How many points of N(0, I) an expectation is estimated by."""
CANDIDATES = 256
"""How many draws of N(0, I) one draw from an energy is chosen from, where it is not by rejection."""
TRIES = 10_000
"""How many draws of N(0, I) rejection may take for one, on average."""


class Tilted(Prior):
    """The base of these priors: a network from z to one number, and points of N(0, I) to normalize by."""

    fixed: Tensor

    def __init__(self, latent: int, hidden: Sequence[int]) -> None:
        super().__init__(latent)
        self.network = mlp(latent, hidden, 1, "tanh")
        self.register_buffer("fixed", _even_points(EVALUATION, latent), persistent=False)

    def score(self, z: Tensor) -> Tensor:
        """The network's number for z (..., latent): (...)."""
        return full_precision(leading(self.network, z, event_dim=1).squeeze(-1))

    def normalizer(self, estimate: Callable[[Tensor], Tensor]) -> Tensor:
        """What `estimate` makes of points of N(0, I): new draws in training, the same even points in evaluation."""
        if self.training:
            return estimate(torch.randn_like(self.fixed[:TRAINING]))
        return once(self, lambda: estimate(self.fixed))


class Resampled(Tilted, name="resampled"):
    """The normal, each draw accepted or tried again, T times at most: p(z) = N(z) (a(z) (1 - r) / Z + r).

    r = (1 - Z)^(T - 1) is the probability that the last draw, which is taken as it is, is reached; a(z) in (0, 1) is a
    network's, and Z = E_N[a(z)]. Source: Bauer and Mnih 2019.

    Z is not known but estimated: by 1,024 new draws at each call in training, by the same 65,536 points of a scrambled
    Sobol sequence at every call in evaluation. There log p(z) is off by one error of Z, in one direction for all z that
    are mostly accepted: 0.0001 nats of a network fitted to digits (20 dimensions, Z = 0.49), where as many draws have
    0.0024. No bound on it is of use in many dimensions; that of draws would be sqrt((1 - Z) / (Z 65,536)) at most:
    0.004 nats where Z is 1/2, 0.012 where it is 1/10. A bound is a bound up to that.

    Args:
        latent: size of the latent.
        hidden: sizes of the hidden layers of a's network.
        truncation: T, how many draws are tried; at 1 the prior is the standard normal.

    Raises:
        InputError: a truncation below 1.

    >>> Resampled(2)().log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    def __init__(self, latent: int, hidden: Sequence[int] = (100, 100), truncation: int = 100) -> None:
        super().__init__(latent, hidden)
        whole_number(1, truncation=truncation)
        self.truncation = truncation

    def accept(self, z: Tensor) -> Tensor:
        """The probability a(z) that z (..., latent) is accepted: (...)."""
        return torch.sigmoid(self.score(z))

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        rate = self.normalizer(lambda draws: self.accept(draws).mean())
        return TruncatedRejection(self.accept, rate, self.latent, self.truncation)


class TruncatedRejection(Unexpanded):
    """What truncated rejection from the standard normal draws: N(z) (a(z) (1 - r) / Z + r), r = (1 - Z)^(T - 1).

    Args:
        accept: a(z) of z (..., D): (...).
        rate: Z = E_N[a(z)], ().
        size: D.
        truncation: T.
    """

    support = dist.constraints.real_vector

    def __init__(self, accept: Callable[[Tensor], Tensor], rate: Tensor, size: int, truncation: int) -> None:
        # at Z = 1 the derivative of r would be 0 times infinity
        self.accept, self.rate, self.truncation = accept, rate.clamp(1e-12, 1 - 1e-6), truncation
        super().__init__(torch.Size(), torch.Size([size]))

    def density(self, value: Tensor) -> Tensor:  # noqa: D102
        log_left = (self.truncation - 1) * torch.log1p(-self.rate)
        accepted = self.accept(value) * (-torch.expm1(log_left) / self.rate)
        return _log_normal(value) + (accepted + log_left.exp()).log()

    def draw(self, shape: torch.Size) -> Tensor:  # noqa: D102
        tried = _normal_draws(self.rate, *shape, self.truncation, *self.event_shape)
        accept = self.accept(tried)
        accepted = torch.rand_like(accept) < accept
        accepted[..., -1] = True
        return pick(tried, accepted.int().argmax(-1))  # the first


class Energy(Tilted, name="energy"):
    """The normal weighed by a learned energy: p(z) = N(z) exp(-f(z)) / Z, with |f(z)| below a bound.

    f is b tanh(. / b) of a network's number, and Z = E_N[exp(-f(z))]; it is normalized by draws of the normal in place
    of the paper's Markov chains. Source: Pang et al. 2020.

    Z is not known but estimated: by 1,024 new draws at each call in training, by the same 65,536 points of a scrambled
    Sobol sequence at every call in evaluation. There log p(z) is off by one constant: 0.0002 nats of a network fitted
    to digits (20 dimensions), where as many draws have 0.0012. No bound on it is of use in many dimensions; that of
    draws would be sinh(b) / sqrt(65,536) at most, 0.04 nats for b = 3. A bound is a bound up to that. In training log
    p(z) is high by about Var_N[exp(-f(z)) / Z] / 2,048 in expectation: 0.00005 nats of that network, sinh(b)^2 / 2,048
    at most, 0.05 for b = 3.

    Draws are exact in evaluation: those of the normal that are accepted, with the probability exp(-f(z) - b), Z exp(-b)
    of them on average and exp(-2 b) at least. Where they would be less than one in 10,000, at which one draw takes some
    milliseconds, and in training, whose steps are to be alike, draws are approximate, each resampled from 256 of
    N(0, I) by its weight; the former with a warning. A step of `pvae.SVI` that draws from it in evaluation mode is
    not replayed: how many are tried is chance.

    Args:
        latent: size of the latent.
        hidden: sizes of the hidden layers of f's network.
        bound: b, above 0; without one the estimate of Z could be off by anything.

    Raises:
        InputError: a bound that is not above 0.

    >>> Energy(2)().log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    def __init__(self, latent: int, hidden: Sequence[int] = (100, 100), bound: float = 3.0) -> None:
        super().__init__(latent, hidden)
        more_than(0, bound=bound)
        self.bound = bound

    def energy(self, z: Tensor) -> Tensor:
        """f(z) of z (..., latent): (...), nats."""
        return self.bound * torch.tanh(self.score(z) / self.bound)

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        log_normalizer = self.normalizer(lambda draws: (-self.energy(draws)).logsumexp(0) - math.log(len(draws)))
        return NormalByEnergy(self.energy, log_normalizer, self.latent, None if self.training else self.bound)


class NormalByEnergy(Unexpanded):
    """The standard normal weighed by an energy: N(z) exp(-f(z)) / Z.

    Args:
        energy: f(z) of z (..., D): (...).
        log_normalizer: log Z, ().
        size: D.
        bound: b, which |f| does not exceed, for exact draws by rejection; None for approximate ones, in one pass.
    """

    support = dist.constraints.real_vector

    def __init__(
        self, energy: Callable[[Tensor], Tensor], log_normalizer: Tensor, size: int, bound: float | None = None
    ) -> None:
        self.energy, self.log_normalizer, self.bound = energy, log_normalizer, bound
        super().__init__(torch.Size(), torch.Size([size]))

    def density(self, value: Tensor) -> Tensor:  # noqa: D102
        return _log_normal(value) - self.energy(value) - self.log_normalizer

    def draw(self, shape: torch.Size) -> Tensor:  # noqa: D102
        if self.bound is not None:
            log_tries = self.bound - self.log_normalizer.item()
            if log_tries <= math.log(TRIES):
                return self._accepted(shape.numel(), self.bound, math.exp(log_tries)).reshape(shape + self.event_shape)
            warnings.warn(
                f"prior energy: rejection would take exp({log_tries:.1f}) draws of N(0, I) for one, expected at most"
                f" {TRIES:,}: draws are approximate, chosen from {CANDIDATES}: start annealing from the guide, or fit"
                " with a smaller bound",
                stacklevel=2,
            )
        tried = _normal_draws(self.log_normalizer, *shape, CANDIDATES, *self.event_shape)
        return pick(tried, choose(-self.energy(tried)))

    def _accepted(self, n: int, bound: float, tries: float) -> Tensor:
        """The first n draws of N(0, I) that are accepted, (n, D), each after so many on average."""
        found, left = [_normal_draws(self.log_normalizer, 0, *self.event_shape)], n
        while left > 0:
            count = min(EVALUATION, math.ceil(1.1 * left * tries) + 64)
            tried = _normal_draws(self.log_normalizer, count, *self.event_shape)
            energy = self.energy(tried).double()  # as are the uniform numbers: float32 has few that are small
            found.append(tried[torch.rand_like(energy).log() < -bound - energy])
            left -= len(found[-1])
        return torch.cat(found)[:n]


def _even_points(count: int, size: int) -> Tensor:
    """Points (count, size) of N(0, I) that fill space more evenly than draws: expectations are far closer by them."""
    uniform = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(count, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(2**-40, 1 - 2**-40)).to(torch.get_default_dtype())


def _normal_draws(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, device=like.device)


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square().sum(-1) + math.log(2 * math.pi) * z.shape[-1])
