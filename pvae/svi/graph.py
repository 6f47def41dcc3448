"""A step as a graph that is replayed, and whether it is still the program's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor

from ..replay.captured import Captured
from ..replay.precision import in_single_steps, products
from .building import Step
from .calls import Call
from .faults import norm_of, norms_of, read

if TYPE_CHECKING:
    from .engine import SVI

UNWATCHED = (
    "Pass it to the step as a tensor or a number, or keep it where it is looked at: in an attribute, a global, a dict"
)

ROUGHER = 10
"""Times as much as a loss may its gradient be off: in exp(log w) the last digits of log w are the first that count."""


@dataclass
class Graph(Step):
    """A step for one kind of arguments."""

    wanted: str
    had: int
    """How many parameters had had a gradient: another, where it is used, has a gradient of zero from then on."""
    call: Call
    """What it was built for; a key may have the addresses of what is in it."""
    captures: dict[int, Captured] = field(default_factory=dict)
    """By number of steps; on CUDA."""
    played: int = 0
    compared: int = 0
    """The step that was last compared with the program; 0 before the first."""
    miscompiled: bool = False
    """Whether it differed at once, compiled: then it is not Python that changed."""
    missed: int = 0
    """Steps in which Python read other values than it was made for."""
    in_a_row: int = 0
    """Those of them up to the last step."""
    gradients: Sequence[Tensor] = ()
    """Those of the last step, where it was taken by itself."""
    right: Sequence[Tensor] = ()
    """The gradients that the program itself has in the step to come; of what is compiled, the first time."""
    off: tuple[float, int] = (0.0, 0)
    """By how much the graph's then differed, relative, and in which of the parameters, where it is most."""

    def changed(self, call: Call) -> str:
        """What of a call this was not built for; empty if all is well."""
        if call.elsewhere(self.call):
            return "a handler, or the autocast, around the step"
        if self.written and call.same_ones() != self.call.same_ones():
            return "which arguments of the step are one tensor, and changed in place,"
        now = pyro.get_param_store()._params
        for other, name in self.others.items():
            if name and now.get(name) is not other:
                return f"parameter '{name}' of Pyro's store"
        if all(call.tensors[i] is self.call.tensors[i] for i in self.read):
            return ""
        return "an argument whose values are read in Python"

    @property
    def rough(self) -> float:
        """By how much a gradient may differ from the program's, of its norm; of a small one, of that share of all."""
        return ROUGHER * self.tolerance

    @property
    def next_is_due(self) -> bool:
        """Whether the next step is to be compared with the program: the 1st, 10th, 100th, ... of this graph."""
        return math.log10(self.played + 1).is_integer()

    def due(self) -> bool:
        """The same of this step, which is counted."""
        due = self.next_is_due
        self.played += 1
        return due

    def expected(self, svi: SVI, call: Call) -> list[float]:
        """Losses and norm of the gradient as the program itself has them, from the same random numbers."""
        with svi._undone(call), in_single_steps(svi._device.type, self.guards.modules):
            values = read(*svi._gradients(*call.again()))
            changed = svi._device.type == "cuda" and self.replayable and self.clips  # by the time that it is read
            looks = self.kind == "full" and not (self.compared or changed) and math.isfinite(values[-1])
            self.right, self.off = [p.grad for p in svi._having] if looks else (), (0.0, 0)
        return values

    def hold(self, gradients: Sequence[Tensor]) -> None:
        """Hold a graph's gradients, before the optimizer's step, against the program's, if these are known."""
        if self.right:
            pairs = zip(self.right, gradients, strict=False)  # after them come rows, and the gradients of others
            norms = norms_of(self.right)
            least = self.rough * torch.linalg.vector_norm(norms).clamp(min=1.0)
            worst = (norms_of([found - right for right, found in pairs]) / norms.maximum(least)).max(0)
            self.right, self.off = (), (worst.values.item(), int(worst.indices))

    def differs(self, svi: SVI, expected: Sequence[float], found: Sequence[float]) -> str:
        """How losses or gradient differ from the program's in the step to come, in words; empty if they don't."""
        step = svi.steps + 1
        since, self.compared = self.compared, step
        names = ["loss"] * (len(expected) - 1) + ["norm of the gradient"]
        for what, right, value in zip(names, expected, found, strict=True):
            if math.isfinite(right) and not abs(right - value) <= self.tolerance * max(1.0, abs(right)):
                self.miscompiled = self.kind == "full" and not since
                if self.miscompiled:
                    return f"the {what} of step {step} is {value:.6g} when compiled, the program's own is {right:.6g}"
                doubt = f"; steps {since + 1} to {step - 1} may have used what it was before" if since else ""
                return (
                    f"the {what} of the traced step {step} is {value:.6g}, the program's own is {right:.6g}: something"
                    f" that is no tensor changes between steps{doubt}. {UNWATCHED}"
                )
        off, place = self.off
        self.miscompiled = not off <= self.rough
        if self.miscompiled:
            name = svi._names[svi._having[place]]
            norm = f"norm (or {self.rough:.0%} of the whole gradient's, where that is more)"
            return f"the gradient of '{name}' in step {step} is off by {off:.3g} times its {norm} when compiled"
        return ""

    def heads(self, svi: SVI, block: Sequence[Call]) -> Tensor:
        """Take the steps; losses and norm of the gradient of each (block, losses + 1), not yet looked at."""
        if svi._device.type != "cuda":
            return torch.stack([self._one(svi, call, ahead) for ahead, call in enumerate(block)])
        captured = self.captures.get(len(block))
        if captured is None:
            captured = self.captures[len(block)] = self._captured(svi, block)
        rates = None
        if captured.rates is None:
            svi._set_rates()
        else:
            rates = svi._scheduled(len(block))
        heads = captured.play([call.inputs for call in block], rates)
        self.gradients = captured.gradients
        self.hold(self.gradients)
        if not self.replayable:
            self.update(heads[0], *self.gradients)
        return heads.clone()

    def _captured(self, svi: SVI, block: Sequence[Call]) -> Captured:
        svi._set_rates()
        rates = svi._rates if svi.schedule is not None else None
        update = self.update if self.replayable else None
        with svi._undone(block[0]), products(svi.precision):
            return Captured(self.forward, update, block[0].inputs, rates, len(block), svi._graphs.pool)

    def misses(self, values: Sequence[float]) -> bool:
        """Whether Python may have read other values in this step, whose head has these; they are counted."""
        missed = bool(self.supposed) and all(map(math.isnan, values))
        self.missed, self.in_a_row = self.missed + missed, self.in_a_row + 1 if missed else 0
        return missed

    def found(self, heads: Tensor) -> list[float]:
        """Losses and norm of the gradient of one step, whose heads these are."""
        if self.normed:
            return heads[0].tolist()
        given = self.captures[1].gradients
        gradients = [value for value in given[: len(given) - len(self.others)] if value.is_floating_point()]  # no rows
        return read(heads[0, :-1].unbind(), norm_of(gradients))

    def _one(self, svi: SVI, call: Call, ahead: int) -> Tensor:
        svi._set_rates(ahead)
        values, *gradients = self.forward(*call.inputs)
        self.hold(gradients)
        self.update(values, *gradients)
        self.gradients = gradients
        return values

    @torch.no_grad()
    def pass_on(self, gradients: Sequence[Tensor]) -> None:
        """Add the last of these to the gradients of others, as the step's own backward pass would have."""
        self.gradients = ()
        for other, gradient in zip(self.others, gradients[len(gradients) - len(self.others) :], strict=True):
            if other.grad is None:
                other.grad = gradient.clone()
            elif other.grad.is_sparse and not gradient.is_sparse:
                other.grad = gradient + other.grad
            else:
                other.grad.add_(gradient)
