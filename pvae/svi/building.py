"""How a step becomes a graph: traced, compiled if wished, its update too; all that this does is undone."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import count
from math import nan
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..replay import compiling
from ..replay.compiling import Forward, Update
from ..replay.generators import undrawn
from ..replay.guards import Guards
from ..replay.held import Copies, Places
from ..replay.known import Known
from ..replay.members import Private
from ..replay.pieces import arranged
from ..replay.placement import placed
from ..replay.precision import SAME, tolerance
from ..replay.simplify import memory
from ..replay.supposed import Supposed
from ..replay.tracing import in_half, record, saved_by_fusion, unkept
from ..replay.unfused import UNFUSED
from ..replay.values import WITHIN, Untraceable
from . import optimizers, rates
from .calls import Call, anew, versions
from .faults import head
from .parameters import drop_new, put_back, stored

if TYPE_CHECKING:
    from .engine import SVI

EVERY = 5.0
"""Seconds between two lines of how far a trace is."""
SUBSAMPLE = "_pyro_subsample"
"""The attribute of a parameter by which Pyro's plates say which of its rows they took, by dimension."""
SET = "the tensor {} is set before each step, and changed in place within it: pass it to the step, and return it"

GENERATOR = "a torch.Generator is made within the step: make it once, and keep it in an attribute or a global"
HOOK = "what is no parameter of the step has a hook of register_post_accumulate_grad_hook, for a gradient that adds up"


class Unsettled(Exception):
    """Something in Python has changed within a step: a program may set itself up, where it is first run so."""


@dataclass
class Step:
    """A step as a graph: its losses and gradients, and what is done with them."""

    forward: Forward
    update: Update
    kind: str
    why: str
    guards: Guards
    replayable: bool
    """Whether the update is a graph as well."""
    clips: bool
    """Whether the update changes the gradients in place."""
    normed: bool
    """Whether the head has the norm of the gradient; else it has the first loss once more."""
    read: list[int]
    """Which inputs' values Python has read."""
    written: list[int]
    """Which inputs the step changes in place."""
    supposed: list[str]
    """The lines that read values which later steps may have otherwise: then the head is not a number."""
    held: Copies
    """Of what programs hold, where that keeps changing."""
    others: dict[Tensor, str]
    """What has a gradient and is no parameter that these programs show, as those of a network of the user's own; and
    its name in Pyro's store, if it is there."""
    tolerance: float
    """By how much its losses may differ from the program's own, relative."""
    waits: bool
    """Whether each step is looked at before the next: lines read for more than an assertion, copies are filled, or
    there are others, whose gradients add up."""


class Build:
    """Makes a graph of a step on arguments of one kind.

    Args:
        svi: whose step it is.
        call: what it is taken on.
        wanted: the mode.
        steady: inputs, by place, whose values Python may read.
    """

    def __init__(self, svi: SVI, call: Call, wanted: str, steady: Collection[int]) -> None:
        self.svi, self.call, self.wanted, self.steady = svi, call, wanted, steady
        self.device = svi._device
        # a tensor given twice, or that is a program's own too, is one object: a trace would take the one for the other
        self.inputs = anew(call.inputs, {})[0]
        if self.device.type != "cpu":
            self.inputs = [value.contiguous() for value in self.inputs]  # as they are captured
        self._programs = (*svi._programs, *call.looked_at)
        self._having: list[Tensor] = []
        self._others: dict[Tensor, str] = {}
        self._rows: list[tuple[dict, Any]] = []
        """Where plates say which rows of a parameter they took, for an optimizer that asks; it is not replayed."""
        self._read: list[Tensor] = []
        self._supposed = Supposed()

    def __call__(self) -> Step | None:
        """The graph; None where this step must be eager, as the optimizer's state is made by its first step.

        Or as the objective takes its particles in parts.

        Raises:
            Untraceable: the program, and where.
            Unsettled: the program, for the first time on such arguments.
        """
        if self.device.type == "cuda" and self.device.index != torch.cuda.current_device():
            raise Untraceable(
                f"parameters are on {self.device}, which is not the current device: call torch.cuda.set_device("
                f"{self.device.index}) before the first step"
            )
        svi = self.svi
        if not self._set_up() or getattr(svi.objective, "in_parts", False):  # as is known once it has been run
            return None
        svi._look_at_values(self.call)
        self.held = Copies(svi._graphs.held)
        with self.held.in_place():
            step = self._made()
        self.guards.leave_out(self.held.places)
        return step

    def _made(self) -> Step:
        svi = self.svi
        self.guards = Guards(self._programs, svi._names)
        clips, replayed = getattr(svi.optim, "pt_clip_args", None), svi._graphs.replays_update()
        self.guards.add_optimizer(svi.optimizer, clips, replayed)
        if self.call.prepare is not None:
            self.guards.add_prepare(self.call.prepare)
        self.guards.add("svi", svi, ("clip_norm", "precision", "schedule", "model", "guide", "loss_and_grads"))
        # a device finds later, in the parameters, that a gradient was not finite: its norm takes time
        clips = svi.clip_norm is not None or optimizers.clips(svi.optim, svi.optimizer)
        self.normed = self.device.type != "cuda" or clips
        with unkept(), svi._undone(self.call):
            were = versions(self.inputs)
            traced, read = self._traced()
            written = [i for i, changes in enumerate(versions(self.inputs)) if changes != were[i]]
            if changed := self.held.changed():
                raise Untraceable(SET.format(changed))
            for other, name in self._others.items():
                if other._post_accumulate_grad_hooks:
                    raise Untraceable(HOOK)
                self.guards.add_parameter(name, other)
            forward, kind, why = self._compiled(traced)
            update, replayable = self._updating(forward, kind)
        guards, places = self.guards, list(self._supposed.places)
        waits = self._supposed.decided or bool(self.held.places or self._others)
        alike = (self.device.type, kind) == ("cpu", "graph") and not in_half(traced)  # autocast casts anew in a trace
        rest = self.held, self._others, SAME if alike else tolerance(svi.precision, self.device.type), waits
        return Step(forward, update, kind, why, guards, replayable, clips, self.normed, read, written, places, *rest)

    def _set_up(self) -> bool:
        """Let programs and optimizer set up what these arguments need; whether the optimizer now has all."""
        svi, call, before, resumed = self.svi, self.call, stored(), self.svi._waiting is not None
        with svi._undone(call):
            with undrawn(Guards(self._programs, {}).hosts) as drawn:
                try:
                    svi._gradients(*call.again())
                except (Untraceable, torch.OutOfMemoryError):
                    raise
                except Exception:  # the step itself will raise it
                    return False
                if drawn():
                    raise Untraceable(
                        "random numbers of Python or NumPy are drawn, which a graph cannot do: draw torch's"
                    )
            having = svi._having
            svi._rates = rates.prepare(svi.optimizer) if svi._rates is None else svi._rates
        if not resumed and drop_new(before):
            return False  # what a program draws for them comes before the step's own draws; there that is long ago
        optimizers.aligned(svi.optimizer, having)
        svi._set_rates()  # somebody may have set one to a number, which a trace would take for all steps
        return optimizers.ready(svi.optimizer, having)

    def _traced(self) -> tuple[GraphModule, list[int]]:
        """The step, traced, and which inputs' values Python has read."""
        varying = [value for i, value in enumerate(self.inputs) if i not in self.steady]
        known = Known([*self.svi._changing(buffers=False), *varying, *self.held.tensors], outside=True)
        private, places = Private(self.guards.modules), Places(self.guards.every())
        numbers = [self.inputs[place] for place in self.call.numbers]
        traced = self._written(self._step, *self.inputs, known=known, supposed=self._supposed, numbers=numbers)
        held = [getattr(traced, node.target) for node in traced.graph.find_nodes(op="get_attr")]
        drawing = {generator._cdata for generator in held if isinstance(generator, torch.Generator)}
        if not drawing <= {generator._cdata for generator in self.guards.generators}:
            raise Untraceable(GENERATOR)
        if places.moved():
            raise Untraceable(WITHIN.format("the memory of a tensor"))
        read = {memory(tensor) for tensor in self._read} - {0}
        for name, was in private.changed():
            if read & {memory(tensor) for tensor in Guards((was,), {}).tensors()}:
                raise Untraceable(WITHIN.format(f"'{name}', which a module keeps to itself,"))
        found = known.read.values()
        self.guards.add_read(found)
        before = self.svi._graphs.unsettled
        if changed := self.guards.settle(self._read, before.values()) or self.guards.changed():
            if self.call.label in before:
                raise Untraceable(WITHIN.format(changed))
            before[self.call.label] = changed.partition(" (")[0]
            raise Unsettled
        return traced, [i for i, value in enumerate(self.inputs) if memory(value) in known.read]  # also by its views

    def _written(self, function: Callable[..., Any], *values: Tensor, **options: Any) -> GraphModule:
        graph = record(function, *values, each=_progress(self.svi.notice), **options)
        self._read = graph.meta.pop("read")  # also where it had no part in the losses, as a running mean
        if self.device.type == "cuda":
            graph, read = placed(graph, self.device)
            self.guards.add_read(read)
        return graph

    def _step(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """From inputs to the head and the gradients, those of others at the end."""
        before = stored()
        losses, norm = self.svi._gradients(*self.call.arguments(*inputs))
        _keep(before, self.svi._names)
        losses = [torch.as_tensor(loss, device=norm.device) for loss in losses]  # a number, where nothing is scored
        self._having, known = self.svi._having, set(self.svi._having)
        every = dict.fromkeys((*self.svi._names, *self.guards.leaves()), "") | {p: name for name, p in before.items()}
        self._others = {p: name for p, name in every.items() if p.grad is not None and p not in known}
        taken = [] if optimizers.replayable(self.svi.optimizer) else [vars(p).get(SUBSAMPLE, {}) for p in self._having]
        self._rows = [(rows, dim) for rows in taken for dim in rows]
        made = head(losses, norm if self.normed or not losses else losses[0])
        if held := self._supposed.held:
            made = made.where(torch.stack([value.to(made.device) for value in held]).all(), nan)
        rows = [rows[dim] for rows, dim in self._rows]
        return made, *(p.grad for p in self._having), *rows, *(p.grad for p in self._others)

    def _change(self, values: Tensor, *given: Tensor) -> tuple:
        """From these to changed parameters."""
        for parameter, gradient in zip(self._having, given[: len(self._having)], strict=True):
            parameter.grad = gradient
        for (rows, dim), taken in zip(self._rows, given[len(self._having) :], strict=False):
            rows[dim] = taken.clone()  # in memory of its own, not the graph's
        self.svi._update(values[-1], self._having)
        return ()

    def _compiled(self, traced: GraphModule) -> tuple[Forward, str, str]:
        """The graph as it is run, its kind, and why."""
        device, kind, why = self.device.type, self.wanted, ""
        if kind == "auto":
            kind, why = compiling.choose(traced, device, self.svi.steps_to_come)
        if kind == "full":
            traced = arranged(traced)
        if device == "cuda":
            from ..replay.overlap import overlapped  # not before it is wanted: it registers an operation

            traced = overlapped(traced)
        if kind == "graph":
            return _without_gradient(traced), kind, why
        takes = compiling.building(saved_by_fusion(traced)[0], device)
        self.svi.notice(f"full: compiling, about {takes:.0f} s{why and ': '}{why}")
        try:
            return _without_gradient(compiling.compiled(traced, self.inputs)), kind, why
        except Exception as error:  # as a missing compiler
            return _without_gradient(traced), "graph", f"inductor: {str(error).strip().splitlines()[0][:200]}"

    def _updating(self, forward: Forward, kind: str) -> tuple[Update, bool]:
        """What is done with head and gradients, and whether it is a graph as well."""
        if not self.svi._graphs.replays_update():
            return self._change, False
        try:
            outputs = forward(*self.inputs)
        except (RuntimeError, IndexError) as error:  # though the program itself has just run
            raise Untraceable(f"its graph does not run: {str(error).strip().splitlines()[0][:200]}") from error
        wide = kind == "full" and self.device.type == "cuda"
        try:
            traced = self._written(self._change, *outputs, replaced=UNFUSED if wide else None)
        except Untraceable:  # as by clipping that reads a norm: it is run as it is
            return self._change, False
        return _without_gradient(compiling.compiled(traced, outputs) if wide else traced), True


def _progress(notice: Callable[[str], None]) -> Callable[[], None]:
    """Says now and then how far a trace is; to be called at each operation."""
    start, numbers = perf_counter(), count(1)
    said = start

    def traces() -> None:
        nonlocal said
        number, now = next(numbers), perf_counter()
        if now - said >= EVERY:
            said = now
            notice(f"tracing: {number:,} operations in {now - start:.0f} s")

    return traces


def _without_gradient(function: Any) -> Any:
    return torch.no_grad()(function)


@torch.no_grad()
def _keep(before: dict[str, Tensor], parameters: Collection[Tensor]) -> None:
    """Make what a step has put in the place of parameters of Pyro's store, as a running mean, their new values."""
    for name, parameter, other in put_back(before):
        if other is None or other.shape != parameter.shape or other in parameters:
            raise Untraceable(WITHIN.format(f"parameter '{name}' of Pyro's store"))
        parameter.copy_(other)
