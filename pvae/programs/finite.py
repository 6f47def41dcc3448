"""The refusal of log-weights that are no numbers, which says at which site of the programs they come about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf

import torch
from torch import Tensor

from ..errors import InputError
from ..noise import forked
from .collect import Collect, Program, sites_of, unvalidated, vectorized
from .weights import Traces, log_prob

AGAIN = 100
"""So many draws are made anew to find the site, at most."""


def check_weights(
    by: str,
    terms: Mapping[str, Tensor],
    pair: tuple[Program, Program | None],
    data: Sequence[Tensor],
    *,
    nesting: int,
    plate: str | None = "",
    first: int = 0,
) -> None:
    """Refuse weights that are no numbers, infinite, or zero, all of a datum's; one wait for the device.

    Args:
        by: what found them.
        terms: (K, B) each: those that a log-weight is the sum of, and "weight", itself.
        pair: the model, and the guide that draws, if it is not the model that does.
        data: their arguments: B data, or those of one weight.
        nesting: how deep their plates go.
        plate: that of the data; None where all have one weight.
        first: the number of the first datum.

    Raises:
        InputError: the datum, the term, and the first site whose log-probability is not finite there, if new draws are
            as bad.
    """
    log_w = terms["weight"]
    zero = (log_w == -inf).all(0)
    if not (zero.any() | ~(log_w < inf).all()):
        return
    nan = {name: bad for name, term in terms.items() if (bad := term.isnan().any(0)).any()}
    bad = next(iter(nan.values()), zero if zero.any() else (log_w == inf).any(0))
    row = int(bad.nonzero()[0])
    of, own = (f"datum {first + row}", [part[row : row + 1] for part in data]) if plate is not None else ("", data)
    of = of or "the program"
    if nan:
        lost = plate is not None and not own[0].isfinite().all()
        what = f"the log-{next(iter(nan))} of {of} is not a number"
        why = "the datum has values that are not finite" if lost else "the model has diverged"
    else:
        infinite = next(name for name, term in terms.items() if term[:, row].isinf().any())
        number = "zero, all of them" if zero.any() else "infinite"
        what = f"the weights of {of} are {number}: its log-{infinite} is infinite"
        why = "the model gives it no probability, or has diverged"
    raise InputError(f"{by}: {what}: {why}{_where(pair, own, min(AGAIN, len(log_w)), nesting, plate)}")


def _where(
    pair: tuple[Program, Program | None], data: Sequence[Tensor], particles: int, nesting: int, plate: str | None
) -> str:
    """At which site new draws of the data's latents are not finite: at all of them, or at some; empty at none."""
    model, guide = pair
    with suppress(Exception), torch.no_grad(), forked(data[0].device), unvalidated():
        with vectorized(particles, nesting):
            drawn = Collect(guide)(*data) if guide is not None else {}
            sites = Collect(model, drawn)(*data)
        traces = Traces(sites, drawn or dict(sites_of(sites)), particles, nesting, plate)
        lost = {
            f", at site '{name}'{of}": ~log_prob(site, traces).isfinite()
            for found, of in ((drawn, " of the guide"), (sites, ""))
            for name, site in sites_of(found, observed=True)
        }
        for enough in (torch.all, torch.any):
            for where, bad in lost.items():
                if enough(bad):
                    return where
    return ""
