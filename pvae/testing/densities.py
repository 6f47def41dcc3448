"""The clauses that hold log_prob and draws against one another."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor

from . import joint, separable
from .setting import Broken, Subject, expect
from .spaces import space_of

DRAWS = 8000
SIGMAS = 5.0
"""Standard errors that a statistic may be off by; a right part fails one of a hundred statistics in 10^4 seeds."""


def also_moved(clause: Callable[[Subject], str | None]) -> Callable[[Subject], str | None]:
    """A clause that is asked at the parameters as they are, and once more at parameters that were moved."""

    @functools.wraps(clause)
    def asked(s: Subject) -> str | None:
        if (why := clause(s)) or (moved := s.moved()) is None:
            return why
        torch.manual_seed(torch.initial_seed())  # so that every clause has the same inputs
        try:
            why = clause(moved)
        except Broken as error:
            raise Broken(f"once its parameters are moved a little, {error}") from error
        return f"only at its parameters as they are; moved a little: {why}" if why else None

    return asked


@contextlib.contextmanager
def _one(s: Subject) -> Iterator[Any]:
    """The part's distribution for one datum, in evaluation mode, with nothing checked."""
    with torch.no_grad(), pyro.validation_enabled(False):
        yield s.part(*s.inputs())


def scores_anything(p: Any) -> bool:
    """Whether it has a log_prob for values that it has not just drawn."""
    with torch.no_grad(), pyro.validation_enabled(False):
        try:
            value = p.sample()
        except NotImplementedError:
            return True
        try:
            p.log_prob(value.clone())
        except (NotImplementedError, KeyError):
            return False
    return True


@also_moved
def integrates(s: Subject) -> str | None:
    """exp(log_prob) integrates, or sums, to one."""
    with _one(s) as p:
        draws = _draws(p)
        if draws is not None and space_of(draws.flatten(1)).kind == "point":
            return "its draws are a point: it has no density"
        if draws is not None and not scores_anything(p):
            return "it scores only what it has just drawn: see 'samples'"
        found = _total(s, p, draws)
    if isinstance(found, str):
        return found
    total, error, tolerance = found
    expect(
        abs(total - 1) <= SIGMAS * error + tolerance,
        f"exp(log_prob) with an integral of {total:.4g}" + (f" +- {error:.2g}" if error else ""),
        "1",
        "look at its constants, its scale and its .to_event" + _piled(draws),
    )
    return None


def _piled(draws: Tensor | None) -> str:
    """What is to be known where draws are of a point mass beside a density, as a hurdle's are."""
    columns = () if draws is None else draws.flatten(1).double().unbind(1)
    atoms = next((found for column in columns if len(found := separable.atoms(column))), ())
    return "".join(
        f"; at {value:.4g}, where draws pile up, log_prob is to be of a probability, elsewhere of a density"
        for value in atoms[:1]
    )


def _total(s: Subject, p: Any, draws: Tensor | None) -> Any:
    """The integral, its standard error and a tolerance; or why it is not known."""
    if _few(s, draws) and not isinstance(found := joint.mass(p, draws), str):
        return found
    if (found := _separated(s, p, draws)) is not None:
        return float(found.total.exp()), found.error, separable.TOLERANCE * (found.size + 1) + _at_edges(draws)
    if s.part.family == "likelihood":
        return "its pixels depend on one another"
    if isinstance(points := _weighted(s, p, draws), str):
        return points
    return float(points.w.mean()), points.error, 2e-3 if points.random else 5e-3


def _at_edges(draws: Tensor) -> float:
    """The share of draws as near to 0 or 1 as single precision tells apart: what lies beyond cannot be integrated."""
    flat = draws.flatten(1).double()
    near = flat.minimum(1 - flat)
    return float(((near > 0) & (near < 1e-6)).any(1).double().mean()) if bool((near >= 0).all()) else 0.0


def _few(s: Subject, draws: Tensor | None) -> bool:
    return s.part.family != "likelihood" and draws is not None and space_of(draws).kind == "discrete"


def _separated(s: Subject, p: Any, draws: Tensor | None) -> separable.Separated | None:
    """The distribution taken apart; None where its numbers are not independent. Once for all clauses."""
    if draws is None:
        return None
    if "separated" not in s.memo:
        s.memo["separated"] = separable.separate(p, draws, s.part.support)
    return s.memo["separated"]


def _weighted(s: Subject, p: Any, draws: Tensor | None) -> joint.Weighted | str:
    """Weighted points, or why there are none. Once for all clauses."""
    if "weighted" not in s.memo:
        s.memo["weighted"] = joint.weighted(p, s.latent, draws)
    return s.memo["weighted"]


@also_moved
def samples(s: Subject) -> str | None:
    """Draws are distributed as log_prob says: means of bounded functions agree within their standard errors."""
    with _one(s) as p:
        draws = _draws(p)
        if draws is None:
            return "it cannot be sampled"
        if space_of(draws.flatten(1)).kind == "point":
            return "its draws are a point: it has no density"
        found = _moments(s, p, draws)
    if isinstance(found, str):
        return found
    difference, error = found
    worst = int((difference.abs() / error).argmax())
    expect(
        bool((difference.abs() <= SIGMAS * error).all()),
        f"draws whose mean of a test function is {difference.flatten()[worst]:.3g} from what log_prob says (standard"
        f" error {error.flatten()[worst]:.2g})",
        "the same distribution",
        "let sample and log_prob use the same parameters",
    )
    return None


def _moments(s: Subject, p: Any, draws: Tensor) -> tuple[Tensor, Tensor] | str:
    """Differences of means of bounded functions and their standard errors; or why they are not known."""
    if not scores_anything(p):
        return joint.returned(p)
    if _few(s, draws) and not isinstance(found := joint.counted(p, draws), str):
        return found
    if (apart := _separated(s, p, draws)) is not None:
        difference, error = separable.moments(apart, draws)
        return difference, error + _at_edges(draws)
    if s.part.family == "likelihood":
        return "its pixels depend on one another"
    points = _weighted(s, p, draws)
    return points if isinstance(points, str) else joint.moments(points, draws)


@also_moved
def mean(s: Subject) -> str | None:
    """`.mean`, where there is one, is that of the draws; a likelihood must have one."""
    with _one(s) as p:
        draws = _draws(p)
        try:
            found = p.mean
        except NotImplementedError:
            expect(s.part.family != "likelihood", "no .mean", "the mean of p(x|z), which pictures show", "write it")
            return "it has no mean"
        if draws is None:
            return "it cannot be sampled"
        draws = draws.double()
        expect(tuple(found.shape) == s.event, f".mean of shape {tuple(found.shape)}", f"{s.event}", "mend it")
        error = draws.std(0) / len(draws) ** 0.5 + 1e-4 * (1 + draws.abs().mean(0))
    light = _light(draws) & found.isfinite()
    off = ((draws.mean(0) - found).abs() / error)[light]
    expect(
        bool((off <= SIGMAS).all()),
        f".mean {off.max() if len(off) else 0:.1f} standard errors from the mean of the draws",
        "their mean",
        "mend one of the two",
    )
    return None if light.all() else "tails too heavy for a mean of draws"


def _light(draws: Tensor) -> Tensor:
    """Where a mean of draws has a standard error that can be relied on."""
    centred = (draws - draws.median(0).values).abs()
    largest = centred.amax(0)
    varies = (largest > 0) | bool((largest == 0).all())  # other values than one may be too rare to be seen
    return varies & (largest <= 0.05 * centred.sum(0) + 1e-12)


def _draws(p: Any) -> Tensor | None:
    try:
        return p.expand(torch.Size((DRAWS,))).sample() if not p.batch_shape else None
    except NotImplementedError:
        return None
