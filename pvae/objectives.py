"""Objectives: each is a `pyro.infer.ELBO`, a bound for each datum summed over the batch.

They work with stock `pyro.infer.SVI`, with `pvae.SVI`, and as `objective(model, guide)`, a module that returns a
differentiable loss. A loss is minus the bound in nats, summed over the data as Pyro's are (and scaled up where the
plate of data subsamples). None of them waits for the device, but for `loss`, which Pyro defines as a float.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pyro.infer
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from . import bounds, weights
from .base import Member
from .errors import InputError
from .weights import Program, Traces


class Objective(Member, pyro.infer.ELBO, family="objective"):
    """The family of objectives. A member takes `num_particles` first, then options of its own, and writes `bound`.

    Args:
        num_particles: K, how many draws for each datum; always vectorized.
        plate: the plate of data, needed only where a program has several that hold every site.
        max_plate_nesting: how deep the programs' plates go; found out at the first call if not given.

    Raises:
        InputError: K below 1; programs without a bound for each datum (see `pvae.weights.trace`); a site of the guide
            that is not reparameterized.
    """

    needs_param_sites = False
    """Parameters get their gradient by autograd alone; programs need not say which they use."""

    def __init__(self, num_particles: int = 1, *, plate: str = "", max_plate_nesting: int | None = None) -> None:
        if num_particles < 1:
            raise InputError(f"particles: found {num_particles}, expected at least 1")
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self.plate = plate
        self.max_plate_nesting = max_plate_nesting

    def bound(self, traces: Traces) -> Tensor:
        """The bound for each datum, (B,), nats."""
        raise NotImplementedError

    def bounds(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The bound for each datum, (B,), nats, differentiable."""
        return self.bound(self._traces(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the sum of the bound over the data, (), nats."""
        traces = self._traces(model, guide, *args, **kwargs)
        return -traces.scale * self.bound(traces).sum()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Minus the sum of the bound over the data, as a number: waits for the device."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss (), detached, with its gradient added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.detach()

    def _get_traces(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        yield self._get_trace(model, guide, args, kwargs)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        particles = pyro.plate(weights.PARTICLES, self.num_particles, dim=-1 - (self.max_plate_nesting or 0))
        with particles if self.num_particles > 1 else nullcontext():
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        return model_trace, guide_trace

    def _traces(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Traces:
        if self.max_plate_nesting is None:
            self.max_plate_nesting = weights.inspect(model, guide, *args, **kwargs)
        traces = weights.trace(
            model,
            guide,
            *args,
            particles=self.num_particles,
            plate=self.plate,
            max_plate_nesting=self.max_plate_nesting,
            **kwargs,
        )
        if sites := weights.unreparameterized(traces):
            raise InputError(
                f"site '{sites[0]}': {type(self).__name__} needs draws that are reparameterized, and"
                f" {type(traces.guide[sites[0]]['fn']).__name__} has none: the guide's gradient would be wrong:"
                " use pyro.infer.Trace_ELBO, or a continuous relaxation"
            )
        return traces


class ELBO(Objective, name="elbo"):
    """The evidence lower bound. Value and gradient are those of Pyro's `Trace_ELBO` (vectorized) at the same seed.

    Args:
        num_particles: K, how many draws for each datum are averaged.
        analytic_kl: take KL(q(z|x) || p(z)) in closed form where there is one (Pyro's `TraceMeanField_ELBO`).
        plate: the plate of data, needed only where a program has several that hold every site.
        max_plate_nesting: how deep the programs' plates go; found out at the first call if not given.

    Kingma and Welling 2014, eq. 3 (and eq. 2 for the closed form).

    >>> import pvae
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    >>> ELBO().bounds(vae.model, vae.guide, torch.ones(5, 6)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        num_particles: int = 1,
        analytic_kl: bool = False,
        *,
        plate: str = "",
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(num_particles, plate=plate, max_plate_nesting=max_plate_nesting)
        self.analytic_kl = analytic_kl

    def bound(self, traces: Traces) -> Tensor:
        """1/K sum_k log w_k, or 1/K sum_k log p(x|z_k) - KL: (B,), nats."""
        if self.analytic_kl:
            return weights.split(traces).likelihood.mean(0) - weights.kl(traces)
        return bounds.elbo(weights.split(traces).log_w)


class IWAE(Objective, name="iwae"):
    """The importance-weighted bound, log 1/K sum_k w_k, with the reparameterized gradient.

    Value and gradient are those of Pyro's `RenyiELBO(alpha=0)` at the same seed, for plates that do not subsample.

    Args:
        num_particles: K, how many draws for each datum.
        plate: the plate of data, needed only where a program has several that hold every site.
        max_plate_nesting: how deep the programs' plates go; found out at the first call if not given.

    Burda, Grosse and Salakhutdinov 2015, eqs. 8 and 14.

    >>> import pvae
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    >>> IWAE(50).differentiable_loss(vae.model, vae.guide, torch.ones(5, 6)).shape
    torch.Size([])
    """

    def bound(self, traces: Traces) -> Tensor:
        """Log 1/K sum_k w_k: (B,), nats."""
        return bounds.iwae(weights.split(traces).log_w)
