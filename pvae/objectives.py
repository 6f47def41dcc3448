"""Objectives: each is a `pyro.infer.ELBO`, a bound for each datum summed over the batch.

They work with stock `pyro.infer.SVI`, with `pvae.SVI`, and as `objective(model, guide)`, a module that returns a
differentiable loss. A loss is minus the bound in nats, summed over the data as Pyro's are (and scaled up where the
plate of data subsamples). None of them waits for the device, but for `loss`, which Pyro defines as a float.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import pyro.infer
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from . import bounds, gradients, weights
from .base import Member, lookup
from .errors import InputError
from .gradients import Gradient
from .weights import Program, Traces


class Objective(Member, pyro.infer.ELBO, family="objective"):
    """The family of objectives. A member takes `num_particles` first, then options of its own, and writes `bound`.

    Args:
        num_particles: K, how many draws for each datum; always vectorized.
        plate: the plate of data, needed only where a program has several that hold every site.
        max_plate_nesting: how deep the programs' plates go; found out at the first call if not given.
        gradient: the estimator of the bound's gradient, by name or as a `pvae.Gradient`.
        beta: the weight of KL(q(z|x) || p(z)), or of log p(z) - log q(z|x) in the log-weights, in the gradient.
        warmup: steps in which beta rises from 0 in a straight line.
        free_bits: nats a datum (its mean over the batch) below which the KL has no gradient.

    Raises:
        InputError: K below 1; a gradient that does not fit; programs without a bound for each datum (see
            `pvae.weights.trace`); a site of the guide that is not reparameterized, where the gradient needs it.

    The value is always that of the bound itself: beta, warm-up and free bits change the gradient alone, and leave
    model and guide as they are. The number of steps taken is `clock`, a tensor () that the one who takes the steps
    sets and advances in place; while it is None an objective with a warm-up counts the losses that it has given with
    a gradient. Bowman et al. 2016 (warm-up); Kingma et al. 2016 (free bits, here of all latent sites together).

    A new bound is one method:

    >>> class Best(Objective):
    ...     def bound(self, log_w):
    ...         return log_w.amax(0)
    >>> import pvae
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    >>> Best(5, gradient="vimco", warmup=100).bounds(vae.model, vae.guide, torch.ones(3, 6)).shape
    torch.Size([3])
    """

    needs_param_sites = False
    """Parameters get their gradient by autograd alone; programs need not say which they use."""
    options: ClassVar[tuple[str, ...]] = ("beta", "warmup", "free_bits")
    """Arguments of the family that are options of every member."""
    power: float | None = None
    """s, where the bound is 1/s log 1/K sum_k w_k^s (the mean log-weight at 0)."""
    apart: ClassVar[bool] = False
    """Whether the guide climbs another bound, `guide_bound`, than the model."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _signature(cls)

    def __init__(
        self,
        num_particles: int = 1,
        *,
        plate: str = "",
        max_plate_nesting: int | None = None,
        gradient: str | Gradient = "reparam",
        beta: float = 1.0,
        warmup: int = 0,
        free_bits: float = 0.0,
    ) -> None:
        if num_particles < 1:
            raise InputError(f"particles: found {num_particles}, expected at least 1")
        for name, value in (("beta", beta), ("warmup", warmup), ("free_bits", free_bits)):
            if not 0 <= value < float("inf"):
                raise InputError(f"{name}: found {value}, expected at least 0")
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self.plate = plate
        self.max_plate_nesting = max_plate_nesting
        self.beta, self.warmup, self.free_bits = float(beta), warmup, free_bits
        self.clock: Tensor | None = None
        self._losses: Tensor | None = None
        self.gradient = lookup("gradient", gradient)() if isinstance(gradient, str) else gradient
        gradients.check(self.gradient, self)

    def bound(self, log_w: Tensor) -> Tensor:
        """The bound for each datum, (B,), nats, of log-weights (K, B)."""
        raise NotImplementedError

    def guide_bound(self, log_w: Tensor) -> Tensor:
        """What the guide climbs, (B,), nats, of log-weights (K, B): the same, unless the objective is `apart`."""
        return self.bound(log_w)

    def twice_slope(self, log_w: Tensor) -> Tensor:
        """See `pvae.bounds.twice_slope`; a member may know a quicker way."""
        if self.power is None:
            return bounds.twice_slope(self.guide_bound, log_w)
        return bounds.twice_slope_of_power(log_w, self.power)

    def left_out(self, log_w: Tensor) -> Tensor:
        """See `pvae.bounds.left_out`."""
        return bounds.left_out(self.guide_bound, log_w)

    def differentiable(self, traces: Traces) -> Tensor:
        """The bound for each datum, (B,), nats, to be differentiated through the draws."""
        terms = weights.split(traces)
        if self._plain:
            return self.bound(terms.log_w)
        beta = self.beta_for((terms.posterior - terms.prior).detach())
        return gradients.with_gradient_of(self.bound(terms.log_w), self.bound(gradients.weigh(terms, beta)))

    def beta_for(self, rate: Tensor) -> float | Tensor:
        """The weight of the KL at this step, where the rate log q(z|x) - log p(z) of the draws is `rate` (K, B)."""
        beta: float | Tensor = self.beta
        if self.warmup:
            beta = beta * (self._clock(rate.device) / self.warmup).clamp(0, 1)
        return beta * (rate.mean() > self.free_bits) if self.free_bits else beta

    def bounds(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The bound for each datum, (B,), nats, with the gradient's estimate."""
        return self._estimate(model, guide, args, kwargs)[0]

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the sum of the bound over the data, (), nats."""
        bound, traces = self._estimate(model, guide, args, kwargs)
        if self._losses is not None and self.clock is None and torch.is_grad_enabled():
            self._losses.add_(1)
        return -traces.scale * bound.sum()

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

    @property
    def _plain(self) -> bool:
        return self.beta == 1 and not self.warmup and not self.free_bits

    def _clock(self, device: torch.device) -> Tensor:
        if self.clock is not None:
            return self.clock
        if self._losses is None:
            self._losses = torch.zeros((), device=device)
        return self._losses

    def _get_traces(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        yield self._get_trace(model, guide, args, kwargs)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        particles = pyro.plate(weights.PARTICLES, self.num_particles, dim=-1 - (self.max_plate_nesting or 0))
        with particles if self.num_particles > 1 else nullcontext():
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        return model_trace, guide_trace

    def _estimate(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Tensor, Traces]:
        if self.max_plate_nesting is None:
            self.max_plate_nesting = weights.inspect(model, guide, *args, **kwargs)
        step = gradients.Step(model, guide, args, kwargs, self.num_particles, self.plate, self.max_plate_nesting)
        return self.gradient.estimate(self, step)


def _signature(member: type[Objective]) -> inspect.Signature:
    """A member's arguments: its own, and in place of `**shared` those that every objective takes by name."""

    def of(cls: type[Objective]) -> list[inspect.Parameter]:
        return list(inspect.signature(cls.__init__, eval_str=True).parameters.values())[1:]

    own = [p for p in of(member) if p.kind is not p.VAR_KEYWORD]
    if len(own) < len(of(member)):
        own += [p for p in of(Objective) if p.kind is p.KEYWORD_ONLY and p.name not in {o.name for o in own}]
    return inspect.Signature(own)


class ELBO(Objective, name="elbo"):
    """The evidence lower bound. Value and gradient are those of Pyro's `Trace_ELBO` (vectorized) at the same seed.

    Args:
        num_particles: K, how many draws for each datum are averaged.
        analytic_kl: take KL(q(z|x) || p(z)) in closed form where there is one (Pyro's `TraceMeanField_ELBO`).
        **shared: what every `Objective` takes.

    Kingma and Welling 2014, eq. 3 (and eq. 2 for the closed form).

    >>> import pvae
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    >>> ELBO().bounds(vae.model, vae.guide, torch.ones(5, 6)).shape
    torch.Size([5])
    """

    power = 0.0

    def __init__(self, num_particles: int = 1, analytic_kl: bool = False, **shared: Any) -> None:
        super().__init__(num_particles, **shared)
        self.analytic_kl = analytic_kl
        if analytic_kl and not isinstance(self.gradient, gradients.Reparameterized):
            raise InputError(
                f"analytic_kl: found gradient {self.gradient.name}, which weighs draws, and a KL in closed form has none:"
                " expected gradient reparam"
            )

    def bound(self, log_w: Tensor) -> Tensor:
        """1/K sum_k log w_k: (B,), nats."""
        return bounds.elbo(log_w)

    def differentiable(self, traces: Traces) -> Tensor:
        """1/K sum_k log w_k, or 1/K sum_k log p(x|z_k) - KL: (B,), nats."""
        if not self.analytic_kl:
            return super().differentiable(traces)
        likelihood, kl = weights.split(traces).likelihood.mean(0), weights.kl(traces)
        if self._plain:
            return likelihood - kl
        return gradients.with_gradient_of(likelihood - kl, likelihood - self.beta_for(kl.detach()) * kl)


class IWAE(Objective, name="iwae"):
    """The importance-weighted bound, log 1/K sum_k w_k.

    Value and gradient are those of Pyro's `RenyiELBO(alpha=0)` at the same seed, for plates that do not subsample.

    Args:
        num_particles: K, how many draws for each datum.
        **shared: what every `Objective` takes.

    Burda, Grosse and Salakhutdinov 2015, eqs. 8 and 14.

    >>> import pvae
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    >>> IWAE(50, gradient="dreg").differentiable_loss(vae.model, vae.guide, torch.ones(5, 6)).shape
    torch.Size([])
    """

    power = 1.0

    def bound(self, log_w: Tensor) -> Tensor:
        """Log 1/K sum_k w_k: (B,), nats."""
        return bounds.iwae(log_w)


class Renyi(Objective, name="renyi"):
    """The variational Renyi bound, 1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha).

    Args:
        num_particles: K, how many draws for each datum.
        alpha: any number; 0 is the importance-weighted bound, 1 the ELBO.
        **shared: what every `Objective` takes.

    Li and Turner 2016.
    """

    def __init__(self, num_particles: int = 1, alpha: float = 0.5, **shared: Any) -> None:
        self.alpha, self.power = alpha, 1.0 - alpha
        super().__init__(num_particles, **shared)

    def bound(self, log_w: Tensor) -> Tensor:
        """The bound for each datum: (B,), nats."""
        return bounds.renyi(log_w, self.alpha)


class CIWAE(Objective, name="ciwae"):
    """A combination of the ELBO and the importance-weighted bound.

    Args:
        num_particles: K, how many draws for each datum.
        share: of the ELBO, 0 to 1 (the paper's beta).
        **shared: what every `Objective` takes.

    Rainforth et al. 2018.
    """

    def __init__(self, num_particles: int = 1, share: float = 0.5, **shared: Any) -> None:
        if not 0 <= share <= 1:
            raise InputError(f"share: found {share}, expected 0 (IWAE) to 1 (ELBO)")
        self.share = share
        super().__init__(num_particles, **shared)

    def bound(self, log_w: Tensor) -> Tensor:
        """Share ELBO + (1 - share) L_K: (B,), nats."""
        return bounds.ciwae(log_w, self.share)


class MIWAE(Objective, name="miwae"):
    """The mean of the importance-weighted bounds of M groups of draws.

    Args:
        num_particles: M K, how many draws for each datum in all.
        groups: M, a divisor of their number; 1 is the importance-weighted bound.
        **shared: what every `Objective` takes.

    Rainforth et al. 2018.
    """

    def __init__(self, num_particles: int = 1, groups: int = 1, **shared: Any) -> None:
        self.groups = _divisor(groups, num_particles)
        super().__init__(num_particles, **shared)

    def bound(self, log_w: Tensor) -> Tensor:
        """1/M sum_m log 1/K sum_k w_mk: (B,), nats."""
        return bounds.miwae(log_w, self.groups)

    def left_out(self, log_w: Tensor) -> Tensor:
        """The bound of which a draw's own group has lost it."""
        return _left_out_of_group(log_w, self.groups)


class PIWAE(Objective, name="piwae"):
    """The model climbs the importance-weighted bound of all draws, which is the value; the guide climbs MIWAE's.

    Args:
        num_particles: M K, how many draws for each datum in all.
        groups: M, a divisor of their number; 1 is the importance-weighted bound.
        **shared: what every `Objective` takes.

    Rainforth et al. 2018.
    """

    apart = True

    def __init__(self, num_particles: int = 1, groups: int = 1, **shared: Any) -> None:
        self.groups = _divisor(groups, num_particles)
        super().__init__(num_particles, **shared)

    def bound(self, log_w: Tensor) -> Tensor:
        """The model's, L_MK: (B,), nats."""
        return bounds.iwae(log_w)

    def guide_bound(self, log_w: Tensor) -> Tensor:
        """The guide's, 1/M sum_m log 1/K sum_k w_mk: (B,), nats."""
        return bounds.miwae(log_w, self.groups)

    def left_out(self, log_w: Tensor) -> Tensor:
        """The bound of which a draw's own group has lost it."""
        return _left_out_of_group(log_w, self.groups)


class TVO(Objective, name="tvo"):
    """The thermodynamic bound: a lower Riemann sum of the integral that is log p(x).

    Args:
        num_particles: K, how many draws for each datum.
        partitions: numbers that rise from 0 to 1; 0,1 is the ELBO.
        **shared: what every `Objective` takes.

    Masrani, Le and Wood 2019.
    """

    def __init__(self, num_particles: int = 1, partitions: Sequence[float] = (0.0, 0.1, 1.0), **shared: Any) -> None:
        bounds.check_partitions(partitions)
        self.partitions = partitions
        super().__init__(num_particles, **shared)

    def bound(self, log_w: Tensor) -> Tensor:
        """The lower sum: (B,), nats."""
        return bounds.tvo(log_w, self.partitions)


class Chi(Objective, name="chi"):
    """The guide descends the chi upper bound on log p(x); the model climbs the importance-weighted bound, the value.

    Args:
        num_particles: K, how many draws for each datum.
        order: n of 1/n log 1/K sum_k w_k^n, at least 1.
        **shared: what every `Objective` takes.

    Dieng et al. 2017.
    """

    apart = True

    def __init__(self, num_particles: int = 1, order: float = 2.0, **shared: Any) -> None:
        if not 1 <= order < float("inf"):
            raise InputError(f"order: found {order}, expected a finite number of at least 1")
        self.order = order
        super().__init__(num_particles, **shared)

    def bound(self, log_w: Tensor) -> Tensor:
        """The model's, log 1/K sum_k w_k: (B,), nats."""
        return bounds.iwae(log_w)

    def guide_bound(self, log_w: Tensor) -> Tensor:
        """What the guide climbs: minus the upper bound, (B,), nats."""
        return -bounds.cubo(log_w, self.order)


def _divisor(groups: int, particles: int) -> int:
    if groups < 1 or particles % groups:
        raise InputError(f"groups: found {groups} for {particles} particles, expected a divisor of their number")
    return groups


def _left_out_of_group(log_w: Tensor, groups: int) -> Tensor:
    """MIWAE's bound without each draw, (M K, B): its own group has one less."""
    group = bounds.grouped(log_w, groups)
    k, _, b = group.shape
    change = bounds.left_out(bounds.iwae, group.reshape(k, groups * b)).reshape(k, groups, b) - bounds.iwae(group)
    return bounds.miwae(log_w, groups) + change.transpose(0, 1).reshape(k * groups, b) / groups
