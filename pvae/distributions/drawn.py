"""What is known of the tensor that was drawn last, and of no other."""

from __future__ import annotations

import torch
from torch import Tensor


class LastDraw:
    """Keeps a number for each draw of the very tensor that was drawn last, while nobody has changed it in place.

    With a gradient, where it is asked for with one: not of what was drawn without.

    >>> last, z = LastDraw(), torch.zeros(2)
    >>> last.keep(z, torch.tensor(1.0))
    >>> last.known(z), last.known(z.clone()), last.known(z.add_(1.0))
    (tensor(1.), None, None)
    """

    def __init__(self) -> None:
        self._kept: tuple[Tensor, int, Tensor, bool] | None = None

    def keep(self, z: Tensor, known: Tensor) -> None:
        """Note what is known of a draw."""
        self._kept = z, _version(z), known, torch.is_grad_enabled()

    def known(self, value: Tensor) -> Tensor | None:
        """What is known of a value, if it is that draw."""
        if self._kept is None:
            return None
        z, version, known, with_gradient = self._kept
        same = value is z and _version(value) == version
        return known if same and (with_gradient or not torch.is_grad_enabled()) else None


def _version(value: Tensor) -> int:
    """How often a tensor was changed in place; 0 under inference mode, which does not count it."""
    return 0 if value.is_inference() else value._version
