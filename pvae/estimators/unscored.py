"""The refusal of draws that a mask leaves out of log q where something else is made of them."""

from __future__ import annotations

import torch

from .. import programs
from ..errors import InputError
from ..programs import Traces
from .surrogates import Step


def check(step: Step, traces: Traces, by: str) -> None:
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
