"""What a part has that is not in its model's state: nothing of it is there again once a run is loaded."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Size, Tensor, nn

from .. import unset
from ..base import Part
from ..networks import Decoder, Encoder
from ..noise import pythons_forked
from ..svi.unsaved import unsaved
from .setting import Subject, expect

TIMES = 3
"""That a part is made anew: what it draws may be the same twice."""


def in_state(s: Subject, loss: Callable[[Subject], Tensor], made: list[Part]) -> None:
    """Refuse what is learned beside the part's parameters, and buffers neither saved nor the same when made anew.

    Args:
        s: the part; it is left as it is.
        loss: of a step, by the model that it is in.
        made: the same part, see `made_anew`.
    """
    s = s.copy()
    for found in unsaved(s.part, lambda: loss(s), list(s.vae.parameters())):
        do = "make it in __init__, self.NAME = torch.nn.Parameter(...), and use it in forward"
        expect(False, f"the {found} which is not in the model's state", "a Parameter that is made once", do)
    other = _another(made)
    found = f"a buffer '{other}' of persistent=False, which no run saves, with other numbers when it is made anew"
    expect(other is None, found, "it in the state, or the same each time", "leave out persistent=False")


def made_anew(part: Part) -> list[Part]:
    """The same part, made a few times, each with random numbers of its own; none where it cannot be."""
    with suppress(Exception), unset.marked(), pythons_forked():  # what it was made with may not be what it holds
        return [_new(part) for _ in range(TIMES)]
    return []


def _new(module: Any) -> Any:
    """A module like another, and its networks; what does not say how it is made is copied."""
    names = inspect.signature(type(module)).parameters
    options = {name: copy.deepcopy(getattr(module, name)) for name in names if hasattr(module, name)}
    for name, network in module.named_children():
        if name in options and isinstance(network, Encoder | Decoder):
            with suppress(Exception):
                made = _new(network)
                if _shapes(made) == _shapes(network):
                    options[name] = made
    return type(module)(**options)


def _shapes(module: nn.Module) -> dict[str, Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _another(made: list[Part]) -> str | None:
    """The name of a buffer that is not saved and differs where a part is made twice."""
    if not made:
        return None
    saved, (here, there) = made[0].state_dict(), (dict(one.named_buffers()) for one in made[:2])
    loose = here.keys() & there.keys() - saved.keys()
    return min((name for name in loose if not unset.same(here[name], there[name])), default=None)
