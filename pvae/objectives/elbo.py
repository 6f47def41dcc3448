"""The evidence lower bound."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import bounds, programs
from ..base import path_of
from ..errors import InputError
from ..estimators import surrogates
from ..programs import Traces
from ..programs.kl import kl
from .objective import Objective


class ELBO(Objective, name="elbo"):
    """The evidence lower bound: E_q[log p(x, z) - log q(z|x)].

    Value and gradient are those of Pyro's `Trace_ELBO` (vectorized) at the same seed.

    Args:
        num_particles: K, how many draws for each datum are averaged.
        analytic_kl: take KL(q(z|x) || p(z)) in closed form (as Pyro's `TraceMeanField_ELBO`) at each latent site that
            has one, and before which the guide draws every latent that the model does; elsewhere from the draws. So a
            guide from the bottom of a hierarchy has it at the top alone.
        **shared: what every `Objective` takes.

    Kingma and Welling 2014, eq. 2 (and eq. 3 for the closed form).

    >>> import pvae, torch
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    >>> ELBO().bounds(vae.model, vae.guide, torch.ones(5, 6)).shape
    torch.Size([5])
    """

    power = 0.0

    def __init__(self, num_particles: int = 1, analytic_kl: bool = False, **shared: Any) -> None:
        self.analytic_kl = analytic_kl
        super().__init__(num_particles, **shared)
        if analytic_kl and type(self).bound is not ELBO.bound:
            raise InputError(f"analytic_kl: found it with the bound of {path_of(type(self))}, expected the ELBO's own")

    @property
    def whole(self) -> str:  # noqa: D102
        own = type(self).differentiable is not ELBO.differentiable
        return "analytic_kl: a KL in closed form" if self.analytic_kl else super().whole if own else ""

    def bound(self, log_w: Tensor) -> Tensor:
        """1/K sum_k log w_k: (B,), nats."""
        return bounds.elbo(log_w)

    def differentiable(self, traces: Traces) -> Tensor:
        """1/K sum_k log w_k, or 1/K sum_k log p(x|z_k) - KL: (B,), nats."""
        if not self.analytic_kl:
            return super().differentiable(traces)
        likelihood, rate = programs.split(traces).likelihood.mean(0), kl(traces)
        if self._plain:
            return likelihood - rate
        return surrogates.with_gradient_of(likelihood - rate, likelihood - self.beta_for(rate.detach()) * rate)
