"""The family of objectives: each is a `pyro.infer.ELBO`, a bound for each datum summed over the batch.

They work with stock `pyro.infer.SVI`, with `pvae.SVI`, and as `objective(model, guide)`, a module that returns a
differentiable loss. A loss is minus the bound in nats, summed over the data as Pyro's are (and scaled up where the
plate of data subsamples). None of them waits for the device, but for `loss`, which Pyro defines as a float.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar
from weakref import WeakKeyDictionary, ref

import pyro.infer
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from .. import bounds, estimators, programs
from ..base import Member, lookup, path_of
from ..errors import InputError, whole_number
from ..estimators import Gradient, chunks, intervals, others, refused, surrogates
from ..estimators.surrogates import Step
from ..noise import forked
from ..programs import Program, Site, Traces
from . import shapes


class Objective(Member, pyro.infer.ELBO, family="objective"):
    """The family of objectives. A member takes `num_particles` first, then options of its own, and writes `bound`.

    Args:
        num_particles: K, how many draws for each datum; always vectorized.
        plate: the plate of data, needed only where a program has several that hold every site; None for one bound, on
            log p of all data, as where they share latents.
        max_plate_nesting: how deep the programs' plates go; if not given, found out at the first call with programs
            and with arguments of other shapes, by a run that looks at shapes and values too.
        gradient: the estimator of the bound's gradient, by name or as a `pvae.Gradient`.
        beta: the weight of KL(q(z|x) || p(z)), or of log p(z) - log q(z|x) in the log-weights, in the gradient.
        warmup: steps in which beta rises from 0 in a straight line.
        chunk: how many particles are taken at once; where they are fewer than K the programs run again for the
            gradient, memory is flat in K (but for what a CPU's allocator holds on to), and no step is replayed. By
            default as many as there is memory for, of the largest batch so far.
        free_bits: nats a datum (its mean over the batch) below which the KL has no gradient.

    Raises:
        InputError: K below 1; a gradient that does not fit; programs without a bound for each datum (see
            `pvae.programs.trace`); a site of the guide that is not reparameterized, where the gradient needs it; at the
            first step with a gradient, supports and masks for which that would be wrong (see
            `pvae.estimators.refused` and `intervals`), and a `bound` that gives no number for each datum.

    The value is always that of the bound itself: beta, warm-up and free bits change the gradient alone, and leave
    model and guide as they are. The number of steps taken is `clock`, a tensor () that the one who takes the steps
    sets and advances in place; while it is None an objective with a warm-up counts the losses that it has given with
    a gradient. Bowman et al. 2016 (warm-up); Kingma et al. 2016 (free bits, here of all latent sites together).
    Another weight of the KL is `beta_for`, overridden: a number, or a tensor made of the steps `taken`.

    Programs may be random, and keep state, beside their sites: dropout, running statistics in training mode. A step may
    run them several times: a guide of several sites again with the gradients stl, dreg and gdreg, and with reparam
    under PIWAE and Chi; the model's prior with gdreg; both for each part of the particles, twice. All runs on the same
    particles draw the same of torch's random numbers (each part has its own dropout), and what programs change in place
    is changed by the first run alone. Of other random numbers, and of attributes that Python sets, nothing of the kind
    is known. The first call runs both programs once more, to see how they are nested, unless `max_plate_nesting` is
    given. An evaluation runs programs many times, and in training mode each run moves their state: call `eval()` first.

    A new bound is one method:

    >>> class Best(Objective):
    ...     def bound(self, log_w):
    ...         return log_w.amax(0)
    >>> import pvae
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    >>> Best(5, gradient="vimco", warmup=100).bounds(vae.model, vae.guide, torch.ones(3, 6)).shape
    torch.Size([3])

    A schedule of the KL of one's own, in cycles (Fu et al. 2019), is one too:

    >>> class Cyclic(pvae.ELBO):
    ...     def beta_for(self, rate):
    ...         return (self.taken(rate.device) % 1000 / 500).clamp(max=1)
    >>> svi = pvae.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), Cyclic())
    >>> loss = svi.step(torch.ones(3, 6))

    So is a penalty, of the guide's sites say, which goes with the gradient reparam alone. A network that it needs is
    trained if it is named by `pyro.module`; what an objective holds and steps change is part of the SVI's state:

    >>> class Penalized(pvae.ELBO):
    ...     def differentiable(self, traces):
    ...         return super().differentiable(traces) - traces.guide["z"]["fn"].mean.square().mean()
    >>> Penalized(3).bounds(vae.model, vae.guide, torch.ones(3, 6)).shape
    torch.Size([3])
    """

    needs_param_sites = False
    """Parameters get their gradient by autograd alone; programs need not say which they use."""
    options: ClassVar[tuple[str, ...]] = ("beta", "warmup", "free_bits", "chunk")
    """Arguments of the family that are options of every member."""
    power: float | None = None
    """s, where the bound is 1/s log 1/K sum_k w_k^s (the mean log-weight at 0)."""
    apart: ClassVar[bool] = False
    """Whether the guide climbs another bound, `guide_bound`, than the model: so it does where a class writes one."""
    several = True
    """Whether the guide was last seen to have several latent sites, or has not been seen."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _signature(cls)
        if cls.guide_bound is not Objective.guide_bound:
            cls.apart = True
        kinds = cls.__mro__[: cls.__mro__.index(Objective)]
        giving = [number for number, kind in enumerate(kinds) if {"bound", "guide_bound"} & vars(kind).keys()]
        if len(giving) > 1:  # of another bound than a base's, of which that knows more
            for name in ("power", "twice_slope", "left_out", "stood_in"):
                if not any(name in vars(kind) for kind in kinds[: giving[0] + 1]):
                    setattr(cls, name, vars(Objective)[name])

    def __init__(
        self,
        num_particles: int = 1,
        *,
        plate: str | None = "",
        max_plate_nesting: int | None = None,
        gradient: str | Gradient = "reparam",
        beta: float = 1.0,
        warmup: int = 0,
        free_bits: float = 0.0,
        chunk: int | None = None,
    ) -> None:
        whole_number(1, particles=num_particles)
        for name, value in (("beta", beta), ("warmup", warmup), ("free_bits", free_bits)):
            if not 0 <= value < float("inf"):
                raise InputError(f"{name}: found {value}, expected at least 0")
        whole_number(1, " particle", chunk=1 if chunk is None else chunk)
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self.plate = plate
        self.max_plate_nesting, self._nesting_given = max_plate_nesting, max_plate_nesting is not None
        self.beta, self.warmup, self.free_bits = float(beta), warmup, free_bits
        self.chunk = chunk
        self._fits, self._largest = [0, 0], [0, 0]
        """How many particles at once, and how large a batch that was chosen for: without a gradient, and with one."""
        self.clock: Tensor | None = None
        self._losses: Tensor | None = None
        self.gradient = lookup("gradient", gradient, "gradient")() if isinstance(gradient, str) else gradient
        estimators.check(self.gradient, self)
        if self.whole:
            self._check_whole()

    @property
    def whole(self) -> str:
        """Why it takes the gradient reparam alone, of all particles at once; nothing where it takes any."""
        own = type(self).differentiable is not Objective.differentiable
        return f"{path_of(type(self))}: its own differentiable" if own else ""

    def _check_whole(self) -> None:
        about, _, why = self.whole.partition(": ")
        for fits, found, expected in (
            (isinstance(self.gradient, estimators.Reparameterized), f"gradient {self.gradient.name}", "reparam"),
            (not self.apart, "a bound of the guide's own", "one of model and guide"),
            (self.chunk is None, "a chunk", "none: all particles are taken at once"),
        ):
            if not fits:
                raise InputError(f"{about}: found {found}, expected {expected}: nothing else asks for {why}")

    @property
    def in_parts(self) -> bool:
        """Whether the particles are too many to be taken at once: the same random numbers are then drawn twice."""
        return 0 < self._fits[True] < self.num_particles

    def bound(self, log_w: Tensor) -> Tensor:
        """The bound for each datum, (B,), nats, of log-weights (K, B)."""
        raise NotImplementedError

    def guide_bound(self, log_w: Tensor) -> Tensor:
        """What the guide climbs, (B,), nats, of log-weights (K, B): the same, unless a member writes another."""
        return self.bound(log_w)

    def twice_slope(self, log_w: Tensor) -> Tensor:
        """See `pvae.bounds.twice_slope`; a member may know a quicker way."""
        if self.power is None:
            return bounds.twice_slope(self.guide_bound, log_w)
        return bounds.twice_slope_of_power(log_w, self.power)

    def left_out(self, log_w: Tensor) -> Tensor:
        """See `pvae.estimators.others.left_out`; a member may know a quicker way."""
        if self.power is None:
            return others.left_out(self.guide_bound, log_w)
        return others.left_out_of_power(log_w, self.power)

    def stood_in(self, log_w: Tensor, instead: Tensor) -> Tensor:
        """See `pvae.estimators.others.stood_in`; a member may know a quicker way."""
        if self.power is None:
            return others.stood_in(self.guide_bound, log_w, instead)
        return others.stood_in_of_power(log_w, self.power, instead)

    def differentiable(self, traces: Traces) -> Tensor:
        """The bound for each datum, (B,), nats, to be differentiated through the draws.

        Asked for by the gradient reparam alone, where all particles are taken at once and model and guide climb the
        same: an objective that has its own is refused others, and takes them so.
        """
        terms = programs.split(traces)
        if self._plain:
            return self.bound(terms.log_w)
        beta = self.beta_for((terms.posterior - terms.prior).detach())
        return surrogates.with_gradient_of(self.bound(terms.log_w), self.bound(surrogates.weigh(terms, beta)))

    def beta_for(self, rate: Tensor) -> float | Tensor:
        """The weight of the KL at this step, where the rate log q(z|x) - log p(z) of the draws is `rate` (K, B)."""
        beta: float | Tensor = self.beta
        if self.warmup:
            beta = beta * (self.taken(rate.device) / self.warmup).clamp(0, 1)
        return beta * (rate.mean() > self.free_bits) if self.free_bits else beta

    def bounds(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The bound for each datum, (B,), nats, with the gradient's estimate."""
        return self._estimate(model, guide, args, kwargs)[0]

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the sum of the bound over the data, (), nats."""
        bound, scale = self._estimate(model, guide, args, kwargs)
        if self._losses is not None and self.clock is None and torch.is_grad_enabled():
            self._losses.add_(1)
        return -scale * bound.sum()

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
    def clocked(self) -> bool:
        """Whether it asks for the number of steps taken, which is then to be its `clock`."""
        return bool(self.warmup) or type(self).beta_for is not Objective.beta_for

    @property
    def _plain(self) -> bool:
        return self.beta == 1 and not self.clocked and not self.free_bits

    def taken(self, device: torch.device) -> Tensor:
        """The number of steps taken, (): the `clock`, or else how many losses it has given with a gradient."""
        if self.clock is not None:
            return self.clock
        if self._losses is None:
            self._losses = torch.zeros((), device=device)
        return self._losses

    # As Pyro's objectives give them: by these `pvae.SVI` finds the site where a step is not finite.

    def _get_traces(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Iterator[tuple[Trace, Trace]]:
        yield self._get_trace(model, guide, args, kwargs)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        with programs.vectorized(self.num_particles, self.max_plate_nesting or 0):
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        return model_trace, guide_trace

    def _estimate(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Tensor, float]:
        if "guide_bound" in vars(self) or ("bound" in vars(self) and type(self).bound is not Objective.bound):
            raise InputError(
                f"{self.name or type(self).__name__}: found a bound set on an object, where estimators go by what its"
                " class says of its own: expected a class with a `bound`"
            )
        self._look(model, guide, args, kwargs)
        at_once = self.num_particles if self.whole else self._choose(model, guide, args, kwargs)
        step = surrogates.Step(
            model, guide, args, kwargs, self.num_particles, self.plate, self.max_plate_nesting, at_once
        )
        looked, key = _LOOKED.setdefault(self, {}), ("sites", _key(model, guide, (), {}))
        if key not in looked:
            validates = pyro.distributions.is_validation_enabled()
            step = replace(step, look=partial(self._look_at_sites, validates, lambda: looked.setdefault(key)))
        with programs.unvalidated(), nullcontext() if shapes.LOOKED in looked else shapes.checked(self, looked):
            return self.gradient.estimate(self, step)

    def _choose(self, model: Program, guide: Program, args: Any, kwargs: Any) -> int:
        """How many particles are taken at once: chosen anew where a batch is larger than all before, and never more."""
        graded, size = torch.is_grad_enabled(), chunks.size(args, kwargs)
        before = self._fits[graded]
        if not before or size > self._largest[graded]:
            found = self.chunk or chunks.fitting(
                model, guide, self.num_particles, self.max_plate_nesting, args, kwargs, again=before > 0
            )
            self._fits[graded], self._largest[graded] = min(found, before or found), size
        return self._fits[graded]

    def _look_at_sites(self, validates: bool, looked: Callable[[], Any], step: Step, traces: Traces) -> None:
        """Refuse what the gradient is wrong for, plates, factors, supports and masks, at the first step with one."""
        _check(programs.look_at(traces), self)
        if not torch.is_grad_enabled():
            return

        def apart() -> dict[str, Site]:
            with forked():
                return step.draw(detach=True).sites

        path, scores = self.gradient.reparameterized, self.gradient.scores
        by = f"{self.name or type(self).__name__} with gradient {self.gradient.name}"
        moves = isinstance(self.gradient, estimators.Reparameterized)
        whole = moves and not self.apart and step.chunk >= self.num_particles
        refused.check(traces, apart, by, other=self.apart, path=path and not moves, scores=scores, whole=whole)
        intervals.check(traces, apart, by, path=path, moves=moves, narrow=path or validates)
        if path and scores and self.power != 0:
            refused.check_masked(step, traces, by)
        looked()

    def _look(self, model: Program, guide: Program, args: Any, kwargs: Any) -> None:
        """Look at programs that are new, or whose arguments are of new shapes."""
        looked = _LOOKED.setdefault(self, {})
        key = _key(model, guide, args, kwargs)
        nesting = None if key is None else looked.get(key)
        if nesting is None and (self._nesting_given or (self.max_plate_nesting is not None and not looked)):
            # said, or a resumed fit's: to run programs once more may move what they keep, as running statistics
            nesting = looked[key] = self.max_plate_nesting
        if nesting is None:
            found = programs.look(model, guide, *args, plate=self.plate, **kwargs)
            _check(found, self)
            if len(looked) == MANY:
                looked.clear()
            nesting = looked[key] = found.nesting
        if not self._nesting_given:
            self.max_plate_nesting = nesting


def _check(look: programs.Look, objective: Objective) -> None:
    """Refuse programs for which an objective's value or gradient would be wrong."""
    gradient = objective.gradient
    named = f"{objective.name or type(objective).__name__} with gradient {gradient.name}"
    if look.thin and (objective.power != 0 or gradient.scores):
        raise InputError(
            f"plate '{look.thin[0]}': it subsamples within the data, and then {named} is wrong: expected pvae.ELBO with"
            " gradient reparam or stl, or a plate of all its elements"
        )
    plain = isinstance(gradient, estimators.Reparameterized) and not objective.apart
    for site, reparameterized in look.factors.items():
        if not (plain and reparameterized):
            found = "a factor" if reparameterized else "a factor that is not one of reparameterized draws"
            raise InputError(
                f"site '{site}': found {found} in the guide, for which {named} is wrong: expected none, or one with"
                " has_rsample=True under the gradient reparam, and one bound for model and guide"
            )


_LOOKED: WeakKeyDictionary[Objective, dict[Any, int | None]] = WeakKeyDictionary()
"""How deep plates go, by objective and by `_key`, and whose sites have been looked at.

No objective holds programs, or is copied with them.
"""
MANY = 10_000
"""So many keys are known at once."""


def _key(model: Program, guide: Program, args: Any, kwargs: Any) -> tuple | None:
    """Which programs, and arguments of which shapes, but for the number of data, of which one alone broadcasts.

    None where the programs cannot be told from others.
    """
    shapes = [
        (len(arg.shape), arg.shape[:1] == (1,), arg.shape[1:]) if isinstance(arg, Tensor) else arg is True
        for arg in (*args, *kwargs.values())
    ]
    try:
        key = (_weak(model), _weak(guide), *shapes)
        hash(key)
    except TypeError:
        return None
    return key


def _weak(program: Program) -> tuple:
    return ref(getattr(program, "__self__", program)), getattr(program, "__func__", None)


def _signature(member: type[Objective]) -> inspect.Signature:
    """A member's arguments: its own, and in place of `**shared` those that every objective takes by name."""

    def of(cls: type[Objective]) -> list[inspect.Parameter]:
        try:
            found = inspect.signature(cls.__init__, eval_str=True)
        except NameError:  # an annotation that is imported for type checkers alone
            found = inspect.signature(cls.__init__)
        return list(found.parameters.values())[1:]

    own = [p for p in of(member) if p.kind is not p.VAR_KEYWORD]
    if len(own) < len(of(member)):
        own += [p for p in of(Objective) if p.kind is p.KEYWORD_ONLY and p.name not in {o.name for o in own}]
    return inspect.Signature(own)
