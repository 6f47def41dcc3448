"""What steps learn, or programs make, that is not in a module's state: nothing of it is there once that is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import pyro
import torch
from torch import Tensor, nn


def unsaved(module: nn.Module, loss: Callable[[], Tensor], others: Collection[Tensor] = ()) -> Iterator[str]:
    """Yields the names of what a loss trains of Pyro's store, and of Parameters that programs make while they run.

    Args:
        module: whose state is saved; it runs in evaluation mode and in training mode, and is left in the latter.
        loss: of a step; called twice in each mode.
        others: parameters that are saved too.

    What Pyro's store has of a parameter beside it, as a contiguous copy, is not meant unless the loss depends on it.
    """
    store, first = pyro.get_param_store(), dict(module.named_parameters())
    with store.scope(store.get_state()):
        for mode in (False, True):
            module.train(mode)
            for _ in range(2):  # it may put a copy in a parameter's place, once
                before, value = dict(module.named_parameters()), loss()
            after = dict(module.named_parameters())
            known = {id(each) for each in (*first.values(), *before.values(), *after.values(), *others)}
            loose = {
                name: each for name, each in store.named_parameters() if each.requires_grad and id(each) not in known
            }
            if loose and value.requires_grad:
                slopes = torch.autograd.grad(value, list(loose.values()), allow_unused=True)
                yield from (
                    f"pyro.param '{name}'" for name, slope in zip(loose, slopes, strict=True) if slope is not None
                )
            for name, each in after.items():
                if name not in first or before.get(name) is not each:
                    yield f"Parameter '{name}', made by forward,"
