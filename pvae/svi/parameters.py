"""The tensors that a step changes: which parameters programs use, and how to put all back as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor


class Parameters(Messenger):
    """Collects the parameters that programs use: each the first time it is seen, a known module's at no cost."""

    def __init__(self, noting: bool) -> None:
        super().__init__()
        self.noting = noting
        self._known: set[Any] = set()
        self.new: dict[Tensor, str] = {}

    def taken(self) -> dict[Tensor, str]:
        """The new ones, which are then no longer new."""
        new, self.new = self.new, {}
        return new

    def _pyro_module(self, msg: dict[str, Any]) -> None:
        (module,) = msg["args"]
        if module not in self._known:
            self._known.add(module)
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    self._add(parameter, f"{msg['name']}.{name}")
        msg["value"], msg["done"] = self.noting, True

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        self._add(msg["value"].unconstrained(), msg["name"])

    def _add(self, parameter: Tensor, name: str) -> None:
        if parameter not in self._known:
            self._known.add(parameter)
            self.new[parameter] = name


class Snapshot:
    """Tensors as they are now, with the generators of random numbers; `restore` puts all back."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.copies = [tensor.detach().clone() for tensor in self.tensors]
        self.random = random_state()

    def restore(self) -> None:
        """Put values and generators back."""
        with torch.no_grad():
            for tensor, copy in zip(self.tensors, self.copies, strict=True):
                tensor.copy_(copy)
        set_random_state(self.random)


def random_state() -> list[Tensor]:
    """The state of torch's generators, of the CPU and of the current GPU."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if cuda else [])]


def set_random_state(states: list[Tensor]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
