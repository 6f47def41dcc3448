"""The refusal of guides whose draws an estimator takes for what they are not, or that a mask leaves out of log q.

Looked at once, in one step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import RelaxedBernoulliStraightThrough, RelaxedOneHotCategoricalStraightThrough

from .. import programs
from ..errors import InputError
from ..programs import Site, Traces
from ..svi.observed import inner
from .intervals import kind
from .surrogates import Step

ROUNDED = RelaxedBernoulliStraightThrough, RelaxedOneHotCategoricalStraightThrough
"""Their draws are scored as what they were rounded from, which only the very tensor that was drawn remembers."""


def check(
    traces: Traces, apart: Callable[[], dict[str, Site]], by: str, *, other: bool, path: bool, scores: bool, whole: bool
) -> None:
    """Refuse draws for which the gradient would be wrong.

    Args:
        traces: of a step.
        apart: gives the guide's sites whose draws have no gradient.
        by: the objective and its estimator.
        other: whether the guide has a bound of its own.
        path: whether the path through the draws is taken apart from the score of log q.
        scores: whether it rests on that score, for which points are refused at every step.
        whole: whether it is the gradient reparam of one bound and of all particles at once, which takes any draws.

    Raises:
        InputError: the site.
    """
    sites = dict(programs.drawn_of(traces.guide))
    for name, site in sites.items() if not whole else ():
        if isinstance(inner(site["fn"]), ROUNDED) or (path and _is_discrete(site["fn"])):
            raise _straight_through(name, site, by)
    if other and any(site.get("made") for site in traces.guide.values()):
        _check_made(apart(), by)
    if path and not scores and any(programs.is_point(site["fn"]) for site in sites.values()):
        _check_points(apart(), by)


def check_masked(step: Step, traces: Traces, by: str) -> None:
    """Refuse masked draws that the log-weights depend on, for an estimator that turns the score of log q into a path.

    That has no score of such a draw, so that there is nothing to turn. One that nothing else sees, as of a padded
    sequence or of a datum that is observed, does no harm, nor one that no parameter moves. What is masked, and what is
    made of it, is looked at once, in one step.

    Args:
        step: which is being taken.
        traces: of it, with the path through its draws.
        by: the objective and its estimator.

    Raises:
        InputError: the site.
    """
    sites = {name: site for name, site in programs.drawn_of(traces.guide) if site["value"].requires_grad}
    masked = {name: counted for name, site in sites.items() if (counted := programs.counted(site)) is not None}
    if not masked:
        return
    one = next(iter(sites.values()))["value"].new_ones(())
    for weights in (step.path, step.aside):  # which are not yet known
        weights.update(dict.fromkeys(sites, one))
    log_w = programs.split(traces).log_w.sum()
    found = torch.autograd.grad(log_w, [sites[name]["value"] for name in masked], retain_graph=True, allow_unused=True)
    for (name, counted), gradient in zip(masked.items(), found, strict=True):
        if gradient is not None and (gradient.abs() > 0)[~counted.expand_as(gradient)].any():
            raise InputError(
                f"site '{name}': the guide's mask leaves out draws that the log-weights depend on, and {by} has no"
                " score of them: the gradient would be wrong: expected what is made of them masked alike, or the"
                " gradient reparam"
            )


def _straight_through(name: str, site: Site, by: str) -> InputError:
    return InputError(
        f"site '{name}': found {kind(site)}, whose draws pass a gradient straight through what rounds them, for which"
        f" {by} is wrong: expected the gradient reparam, of one bound and of all particles at once, or draws that are"
        " discrete under a gradient that needs no path, such as vimco"
    )


def _check_made(sites: dict[str, Site], by: str) -> None:
    """Refuse latents that the guide's own parameters make of auxiliary draws: these would climb the model's bound."""
    for name, site in programs.sites_of(sites):
        if site["made"] and site["value"].requires_grad:
            raise InputError(
                f"site '{name}': made of auxiliary draws by parameters, which would climb the model's bound, and {by}"
                " has another for the guide: expected iwae, or parameters in the auxiliary draws alone"
            )


def _check_points(sites: dict[str, Site], by: str) -> None:
    """Refuse points with a density that parameters move, which stays where the points are fixed: it is no score."""
    for name, site in programs.drawn_of(sites):
        if programs.is_point(site["fn"]) and programs.scored(site).requires_grad:
            raise InputError(
                f"site '{name}': found a point mass whose log_density has parameters, and {by} would leave out its"
                " gradient: expected the gradient reparam, or the draw that it is made of as a site, with"
                " infer={'is_auxiliary': True}"
            )


def _is_discrete(fn: Any) -> bool:
    try:
        return bool(getattr(getattr(fn, "support", None), "is_discrete", False))
    except (NotImplementedError, ValueError):  # it does not say
        return False
