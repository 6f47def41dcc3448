"""The refusal of draws that a mask leaves out of log q where something else is made of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from .. import programs
from ..errors import InputError
from ..noise import forked
from ..programs import Site, Traces
from .reruns import Reruns
from .surrogates import Draws, Step

TRIES = 4
"""How often other draws are tried: discrete ones may be the same by chance."""


def check(step: Step, traces: Traces, by: str) -> None:
    """Refuse masked draws that the log-weights depend on, for an estimator that rests on the gradient of log q.

    That has no such draw, so that it would climb as if these fell whatever the parameters. One that nothing else sees,
    as of a padded sequence or of a datum that is observed, does no harm. Both programs run once more, and again at
    other draws, but only where the guide masks any.

    Args:
        step: whose programs they are.
        traces: of it.
        by: the objective and its estimator.

    Raises:
        InputError: the site.
    """
    counted = {name: programs.counted(site) for name, site in programs.drawn_of(traces.guide)}
    masked = {name: mask for name, mask in counted.items() if mask is not None and not mask.all()}
    if masked and _matter(step, masked, masked):
        name = next((name for name in masked if _matter(step, masked, {name})), next(iter(masked)))
        raise InputError(
            f"site '{name}': the guide's mask leaves out draws that the log-weights depend on, and {by} has no score of"
            " them: the gradient would be wrong: expected what is made of them masked alike, or the gradient reparam;"
            " of discrete draws pyro.infer.Trace_ELBO"
        )


def _matter(step: Step, masked: dict[str, Tensor], names: Collection[str]) -> bool:
    """Whether the log-weights are others with other draws where these sites are masked, and the same with the same."""
    step, guide, model = replace(step, look=None), Reruns(), Reruns()

    def same(draws: Draws, others: dict[str, Site], log_w: Tensor) -> bool:
        def change(site: Site) -> Tensor:
            value, name = site["value"], site["name"]
            return value.where(masked[name], others[name]["value"]) if name in names else value

        found = programs.split(draws.score(draws.redraw(change))).log_w
        return bool(torch.isclose(found, log_w, rtol=1e-4, atol=1e-4, equal_nan=True).all())

    with forked(), torch.no_grad():
        with guide.first():
            drawn = step.draw()
        with model.first():
            log_w = programs.split(step.score(drawn)).log_w
        draws = Draws(step, drawn, guide, model)
        if not same(draws, drawn.sites, log_w):
            return False  # a program that is never the same tells nothing
        for _ in range(TRIES):
            with guide.again():
                others = step.draw().sites
            if not same(draws, others, log_w):
                return True
    return False
