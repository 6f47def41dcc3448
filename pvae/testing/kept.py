"""What a part has that is not in its model's state: nothing of it is there again once a run is loaded."""

from __future__ import annotations

import copy
import inspect
from contextlib import suppress

import pyro
import torch
from torch import nn

from ..base import Part
from .setting import Subject, expect


def in_state(s: Subject) -> None:
    """Refuse parameters that forward makes, and buffers that are neither saved nor the same when made anew."""
    s = s.copy()
    store, first = pyro.get_param_store(), dict(s.part.named_parameters())
    with store.scope(), torch.no_grad():
        s.part(*s.inputs(2))  # Pyro's store puts a contiguous copy in a parameter's place, once
        before = {name: id(parameter) for name, parameter in s.part.named_parameters()}
        known = set(map(id, s.vae.parameters()))
        s.part(*s.inputs(2))
        asked = dict(store.named_parameters())
    for name, parameter in asked.items():
        found = f"pyro.param('{name}') in forward, which is not in the model's state"
        expect(id(parameter) in known, found, "a torch.nn.Parameter", "make one in __init__, and use it in forward")
    for name, parameter in s.part.named_parameters():
        found = f"a Parameter '{name}' that forward makes"
        expect(
            name in first and before.get(name) == id(parameter),
            found,
            "every Parameter made in __init__",
            "make it there",
        )
    other = _another(s.part)
    found = f"a buffer '{other}' of persistent=False, which no run saves, with other numbers when it is made anew"
    expect(other is None, found, "it in the state, or the same each time", "leave out persistent=False")


def _another(part: Part) -> str | None:
    """The name of a buffer that is not saved and differs where the part is made twice; None too where it cannot be."""
    made: list[nn.Module] = []
    with suppress(Exception):  # what it was made with may not be what it holds
        names = inspect.signature(type(part)).parameters
        options = {name: getattr(part, name) for name in names if hasattr(part, name)}
        made = [type(part)(**copy.deepcopy(options)) for _ in range(2)]
    if not made:
        return None
    saved, (here, there) = made[0].state_dict(), (dict(one.named_buffers()) for one in made)
    unsaved = here.keys() & there.keys() - saved.keys()
    same = {name: torch.equal(here[name].nan_to_num(), there[name].nan_to_num()) for name in unsaved}
    return min((name for name in same if not same[name]), default=None)
