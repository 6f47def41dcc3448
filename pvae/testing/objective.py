"""`check_objective`: what is climbed is a bound of each datum, clause by clause."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from ..base import path_of
from ..exact import LinearVAE
from ..objectives import Objective, shapes
from ..svi import SVI
from .contract import Report, looked
from .densities import SIGMAS
from .setting import expect

DIM, LATENT = 4, 2
BATCH, MANY = 7, 2000
SPREADS = (1.0, 300.0)
"""Nats between log-weights: of draws that are alike, and of those that are not."""
STEPS = 6
CALLS = 200
"""Of a bound that may be random."""


@dataclass
class Climbed:
    """An objective under test, and a model to climb it."""

    objective: Objective
    vae: Any
    data: tuple[Any, ...]
    lower: bool

    def copy(self) -> Climbed:
        """The same, apart: what steps change is this one."""
        return Climbed(copy.deepcopy(self.objective), copy.deepcopy(self.vae), self.data, self.lower)

    @property
    def bounds(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Its functions of log-weights; called each time as the first time, whatever it keeps."""
        own = type(self.objective).bound is not Objective.bound or "bound" in vars(self.objective)
        names = ["bound", "guide_bound"] if self.objective.apart else ["bound"] if own else []
        return {name: lambda log_w, name=name: getattr(copy.deepcopy(self.objective), name)(log_w) for name in names}

    def log_w(self, size: int, spread: float = 1.0) -> Tensor:
        """Log-weights of its particles."""
        return spread * torch.randn(self.objective.num_particles, size) - 10


def shape(s: Climbed) -> str | None:
    """What it gives, of any number of data, is a number for each datum."""
    for size in (1, 2, 5, s.objective.num_particles + 1):
        for name in s.bounds:
            with shapes.checked(s.objective, {}):
                getattr(s.objective, name)(s.log_w(size))
    s.objective.differentiable_loss(s.vae.model, s.vae.guide, *s.data)
    return None if s.bounds else "it has no bound of log-weights; of its differentiable, one batch"


def alone(s: Climbed) -> str | None:
    """The bound of a datum does not depend on the others of its batch; of one that is random, its mean does not."""
    log_w = s.log_w(4)
    for name, bound in s.bounds.items():
        found, error = _mean(bound, log_w)
        for i in range(4):
            (one,), (one_error,) = _mean(bound, log_w[:, i : i + 1])
            noise = SIGMAS * float(error[i].square() + one_error.square()) ** 0.5
            expect(
                torch.allclose(one, found[i], rtol=1e-4, atol=1e-4 + noise),
                f"a {name} of {found[i]:.5g} of a datum in a batch of 4, {one:.5g} of it alone",
                "the same",
                "let nothing mix data (a mean over the batch): reduce the particles, dimension 0, alone",
            )
    return None if s.bounds else "it has no bound of log-weights"


def _mean(bound: Callable[[Tensor], Tensor], log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of calls on the same log-weights, and its standard error: 0 of a bound that is not random."""
    calls = torch.stack([bound(log_w) for _ in range(CALLS)])
    return calls.mean(0), calls.std(0) / CALLS**0.5


def tight(s: Climbed) -> str | None:
    """Where all log-weights of a datum are alike, as under the exact posterior, they are log p(x), and so is the bound.

    Not asked of what the guide alone climbs.
    """
    if "bound" not in s.bounds:
        return "it has no bound of log-weights"
    value = 30 * torch.randn(4)
    for found, expected in zip(s.bounds["bound"](value.repeat(s.objective.num_particles, 1)), value, strict=True):
        expect(
            torch.allclose(found.to(expected.dtype), expected, rtol=1e-4, atol=1e-3),
            f"a bound of {found:.5g} where all log-weights of a datum are {expected:.5g}",
            f"{expected:.5g}",
            "look at its sign, and at what a sum over particles is divided by; skip this clause for what is no bound"
            " on log p(x)",
        )
    return None


def gradient(s: Climbed) -> str | None:
    """It has a gradient, which is finite, also of log-weights that are hundreds of nats apart."""
    undo = "use no .detach(), .data or .item()"
    for name, bound in s.bounds.items():
        for spread in SPREADS:
            value = bound(log_w := s.log_w(BATCH, spread).requires_grad_())
            expect(value.requires_grad, f"a {name} without a gradient", "one", undo)
            (slope,) = torch.autograd.grad(value.sum(), log_w)
            _finite(f"a {name}, or a slope of it, of log-weights {spread:g} nats apart", value, slope)
    s.objective.loss_and_grads(s.vae.model, s.vae.guide, *s.data)
    slopes = [parameter.grad for parameter in s.vae.parameters() if parameter.grad is not None]
    expect(any(bool(slope.any()) for slope in slopes), "a step in which no parameter has a gradient", "one", undo)
    _finite("a step's gradient", *slopes)
    return None


def _finite(what: str, *values: Tensor) -> None:
    finite = all(bool(value.isfinite().all()) for value in values)
    expect(finite, f"{what} that is not finite", "numbers", "take exponentials of differences, as logsumexp does")


def below(s: Climbed) -> str | None:
    """Of a linear model, whose log p(x) is known, a lower bound is no higher in the mean."""
    if not s.lower:
        return "it is not said to be a lower bound: lower=True"
    if not isinstance(s.vae, LinearVAE):
        return "log p(x) of this model is not known"
    _, x = s.vae.exact().sample(MANY)
    with torch.no_grad():
        over = s.objective.bounds(s.vae.model, s.vae.guide, x) - s.vae.exact().log_prob(x)
    error = float(over.std()) / MANY**0.5
    expect(
        float(over.mean()) <= SIGMAS * error + 1e-3,
        f"a mean bound {over.mean():.3g} nats above log p(x), with a standard error of {error:.2g}",
        "one below",
        "average weights within the logarithm, not after it; or leave out lower=True",
    )
    return None


def fast(s: Climbed) -> str | None:
    """`pvae.SVI` takes the same steps eagerly and from a replayed graph."""
    if (s.objective.chunk or s.objective.num_particles) < s.objective.num_particles:
        return "its particles are taken in parts: no step is replayed"
    do = "work with tensors alone, and change what an objective keeps in place"
    losses = {}
    for mode in ("off", "graph"):
        one = s.copy()
        torch.manual_seed(2)
        with pyro.get_param_store().scope(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            svi = SVI(one.vae.model, one.vae.guide, pyro.optim.Adam({"lr": 1e-2}), one.objective, compile=mode)
            losses[mode] = torch.tensor([float(svi.step(*one.data)) for _ in range(STEPS)])
        for text in (str(warning.message) for warning in caught):
            expect("eager" not in text, f"'{text}'", "a step that can be replayed", do)
    found = {mode: f"losses {values.tolist()}" for mode, values in losses.items()}
    same = torch.allclose(losses["off"], losses["graph"], rtol=1e-4)
    expect(same, f"{found['graph']} from a graph", f"{found['off']} as eagerly", do)
    return None


CLAUSES = {"shape": shape, "alone": alone, "tight": tight, "gradient": gradient, "below": below, "fast": fast}
"""Every clause by its name; its docstring says what it asks."""


def check_objective(
    objective: Objective,
    *,
    lower: bool = False,
    vae: Any = None,
    data: tuple[Any, ...] = (),
    skip: Collection[str] = (),
    seed: int = 0,
) -> Report:
    """Check that an objective gives a bound of each datum that can be climbed; the objective is left as it is.

    Args:
        objective: made, with the number of particles and the gradient that it is to be checked with.
        lower: whether it is to be a lower bound on log p(x): then it is held against a linear model's, which is known.
        vae: what has the programs `model` and `guide`, where its `differentiable` asks for other ones than
            `pvae.exact.LinearVAE`'s, which have one latent "z".
        data: what these are called with, as (x, y).
        skip: names of clauses to leave out; `CLAUSES` lists them.
        seed: of all draws; the generator is put back.

    Raises:
        ContractError: one line: the objective, the clause, what was found, what is expected, what to do.

    >>> import pvae
    >>> class Best(pvae.Objective):
    ...     def bound(self, log_w):
    ...         return log_w.amax(0)
    >>> print(check_objective(Best(5)).skipped)
    {'below': 'it is not said to be a lower bound: lower=True'}
    """

    def made() -> Climbed:
        expect(isinstance(objective, Objective), f"{objective!r}", "a pvae.Objective, made", "as pvae.IWAE(5)")
        own = LinearVAE(DIM, LATENT) if vae is None else copy.deepcopy(vae)
        return Climbed(copy.deepcopy(objective), own, data or (torch.randn(BATCH, DIM),), lower)

    return looked(f"objective {path_of(type(objective))}", made, CLAUSES, skip, seed)
