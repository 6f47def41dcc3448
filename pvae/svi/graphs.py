"""Which steps are replayed: when a graph is built, of what kind, and when it is no longer trusted."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from functools import cached_property
from operator import is_
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from ..replay.hooks import of_all_modules
from ..replay.lines import outside
from ..replay.members import Entry
from ..replay.precision import products
from ..replay.values import Untraceable
from . import optimizers
from .building import Build, Unsettled
from .calls import Call, change
from .graph import Graph

if TYPE_CHECKING:
    from .engine import SVI

SHAPES = 8
"""Shapes of arguments that get a graph."""
ROW, SELDOM, SHARE = 3, 10, 0.05
"""How many steps in a row, and how many and what share of all, may have other values than a graph was made for."""
REBUILDS = 3
"""How often something in Python may change too soon until the program runs eagerly."""
WORTH = {"graph": 50, "full": 5000}
"""Steps that a graph must have taken to have been worth building."""
FULL_AFTER = 200
"""Steps on arguments of another shape than the first until they are worth compiling."""
BLOCK = 10
"""Steps in one CUDA graph."""
ADVICE = "pass it to the step as a tensor; what is no part of the program, keep out of its reach"
BY_KIND = {
    r"\.training \(": "call train() and eval() less often",
    r"^a module, parameter or buffer of ": "build modules once",
    r"^a handler": "use the same handler at each step, or use it within the programs",
    r"^parameter ": "set it in place, under torch.no_grad()",
    r"^whether ": "let two sets of parameters take turns, or give each an SVI of its own",
    r"^an argument": "give the same tensor at each step",
}
"""What to do about that which keeps changing and cannot be passed to the step."""
NOT_COMPILED = "the step is not compiled, its graph is replayed as it is: {}"
OTHERS = "steps with arguments other than tensors, numbers, text and functions run eagerly: pass tensors, also in dicts"

OFTEN = "{}a tensor's value is read in Python, and changes, which a graph cannot follow: use torch.where, or a mask"
HOOKS = "steps run eagerly while there are hooks of all modules, as torch's register_module_forward_hook makes"
GRADIENTS = "steps on arguments that require a gradient run eagerly, which gives them theirs: else pass x.detach()"


class Graphs:
    """The graphs of one SVI, by what its steps are called with."""

    def __init__(self, svi: SVI) -> None:
        self.svi = svi
        self.counts: dict[str, int] = {}
        """Steps so far by kind of arguments, in the order they were first seen: the same after a resume."""
        self.eager_only = ""
        """Why the program runs eagerly."""
        self.held: list[Entry] = []
        """Where programs hold tensors that others keep taking the place of: graphs have copies of these."""
        self.eager_update = False  # as the optimizer's arguments keep changing
        self.uncompiled = False
        """Whether a compiled step had other numbers than the program."""
        self.too_many = ""
        """The argument with which there were too many shapes or values."""
        self._graphs: dict[Any, Graph] = {}
        self._aside: dict[Any, Graph] = {}
        """The ones before, where a number or a flag changed, which may come back: as between train and eval."""
        self._last: dict[str, Call] = {}
        """The last call of each kind."""
        self._rebuilt: dict[str, int] = {}
        self.unsettled: dict[str, str] = {}
        """By kind of arguments, what in Python changed within a step on these: once, it may be for good."""
        self._warned: set[str] = set()

    @cached_property
    def pool(self) -> Any:
        """The memory that CUDA graphs share: no two are replayed at once, and what comes out is copied."""
        return torch.cuda.graph_pool_handle()

    def forget(self) -> None:
        """Build anew what is needed."""
        self._graphs.clear()
        self._aside.clear()
        vars(self).pop("pool", None)  # torch takes none for a capture that all graphs of before are gone from

    def distrust(self, graph: Graph, difference: str) -> None:
        """Go on without a graph that has other numbers than the program: with one that is not compiled, or eagerly."""
        if not graph.miscompiled:
            self.give_up(difference)
            return
        self.uncompiled = True
        self.forget()
        self._warn(NOT_COMPILED.format(difference))

    def missed(self, graph: Graph) -> None:
        """After a step in which Python read other values: go on, or where that is the rule make another, or give up."""
        often = graph.missed > SELDOM + SHARE * graph.played
        if not often and graph.in_a_row < ROW:
            return
        self._graphs.pop(graph.call.key, None)
        if graph.call.numbers:
            self.svi._numbers.refuse(graph.call.numbers.values())
        elif often or self._too_soon("what Python reads", graph, 1):
            self.give_up(OFTEN.format(" ".join(graph.supposed[:3])))

    def give_up(self, reason: str) -> None:
        """Run eagerly from here on, and say why, once."""
        self.eager_only = reason
        self.forget()
        self._warn(f"the program runs eagerly: {reason}")

    def out_of_memory(self) -> None:
        """Run eagerly, which takes less. To be called when nothing refers to the graph that failed."""
        self.give_up("no memory is left on the device for a graph: take fewer particles or a smaller batch")
        torch.cuda.empty_cache()

    @property
    def used(self) -> bool:
        """Whether steps may be replayed at all."""
        return self.svi.compile != "off" and not self.eager_only and not getattr(self.svi.objective, "in_parts", False)

    def most(self) -> int:
        """How many steps can be taken at once, if all goes well."""
        svi = self.svi
        together = self.used and svi.steps > 0 and svi._device.type == "cuda"
        return BLOCK if together and svi.optimizer and self.replays_update() else 1

    def replays_update(self) -> bool:
        """Whether the optimizer's step is a part of the graph."""
        return optimizers.replayable(self.svi.optimizer) and not self.eager_update

    def together(self, calls: Sequence[Call]) -> int:
        """How many of these steps are to be taken at once."""
        if len(calls) < BLOCK or any(call.key != calls[0].key for call in calls):
            return 1
        graph = self._graphs.get(calls[0].key)
        return 1 if graph is None or self._alone(graph) else BLOCK

    def _alone(self, graph: Graph) -> bool:
        """Whether the next step is to be taken by itself: it is compared, or gradients are passed on."""
        return graph.next_is_due or bool(graph.others)

    def find(self, call: Call, steps: int = 1) -> Graph | None:
        """The graph to take steps with; None where they are to be taken eagerly."""
        svi = self.svi
        if not self.used or torch.is_anomaly_enabled() or parametrize._cache_enabled:
            return None
        if any(of_all_modules()):
            self._warn(HOOKS)
            return None
        if call.key is None:
            self._warn(OTHERS)
            return None
        if any(value.requires_grad and value not in svi._names for value in call.inputs):
            self._warn(GRADIENTS)
            return None
        if call.label not in self.counts and len(self.counts) >= SHAPES:
            if not self.too_many:  # said once, of the first
                self.too_many = change(svi.model, call, next(reversed(self._last.values()), call))
                what = f"more than {SHAPES} shapes or values, such as {self.too_many}"
                self._warn(f"arguments came in {what}: steps on later ones run eagerly")
            return None
        count = self.counts[call.label] = self.counts.get(call.label, 0) + steps
        call.versions  # noqa: B018  as they are now
        last, self._last[call.label] = self._last.get(call.label), call
        if last is not None and not all(map(is_, call.objects, last.objects)):
            self._warn(f"{OTHERS}, or the same object at each step")
            return None
        if svi.steps == 0 or svi._ran not in (None, svi.loss_and_grads):
            return None  # the first step of all, or with another loss, lets programs and optimizer set themselves up
        graph = self._still_right(call)
        if self.eager_only or svi._used.away():  # an eager step takes over those that are there now
            return None
        if graph is not None and graph.had < len(svi._used.had):
            graph = None
        place = list(self.counts).index(call.label)
        compiled = not self.uncompiled and (place == 0 or call.numbers or count > FULL_AFTER)
        wanted = svi.compile if compiled else "graph"
        if graph is None or graph.wanted != wanted:
            graph = self._build(call, wanted, () if last is None else call.steady(last))
        if graph is None or (steps > 1 and self._alone(graph)):  # which is new, though there was one for them all
            return None
        return graph if graph.held.fit() else None

    def _still_right(self, call: Call) -> Graph | None:
        """The graph that there is, if all is as it was for that; where this keeps changing, give up."""
        graph = self._graphs.get(call.key)
        changed = "" if graph is None else self._changed(graph, call)
        if not changed:
            return graph
        if (before := self._back(call, changed)) is not None:
            return before
        name = changed.partition(" (")[0]
        replaced = graph.guards.replaced() if name.startswith("the tensor ") else []
        of_update = graph.replayable and name.endswith("' of the optimizer")
        if self._too_soon(name, graph, 1 if replaced or of_update else REBUILDS):
            self.held += replaced
            self.eager_update |= of_update
            if not (replaced or of_update):
                advice = next((text for kind, text in BY_KIND.items() if re.search(kind, changed)), ADVICE)
                self.give_up(f"{changed} keeps changing, which a graph cannot see: {advice}")
        self.svi._used.look_again()
        return None

    def _changed(self, graph: Graph, call: Call) -> str:
        return graph.guards.changed() or self.svi._used.changed() or graph.changed(call)

    def _back(self, call: Call, changed: str) -> Graph | None:
        """Put a graph aside; the one that was put aside before, where all is again as it was for that."""
        other = self._aside.pop(call.key, None)
        if " (was " in changed:
            self._aside[call.key] = self._graphs[call.key]
        if other is None or self._changed(other, call):
            return None
        self._graphs[call.key] = other
        return other

    def _build(self, call: Call, wanted: str, steady: Collection[int]) -> Graph | None:
        svi = self.svi
        start = perf_counter()
        step, lacking = None, False
        try:
            with products(svi.precision):
                step = Build(svi, call, wanted, steady)()
        except Untraceable as error:
            if call.numbers:
                svi._numbers.refuse(call.numbers.values())
                return None
            self.give_up(f"it cannot be traced: {error}")
            return None
        except Unsettled:
            return None
        except torch.OutOfMemoryError:
            lacking = True
        if lacking:  # only here does nothing refer to what failed any longer
            self.out_of_memory()
        if step is None:
            return None
        self.unsettled.pop(call.label, None)
        if step.kind == wanted or wanted == "auto":
            if call.label == next(iter(self.counts)) or call.numbers or step.kind == "full":
                svi.notice(f"{step.kind}: built in {perf_counter() - start:.1f} s{step.why and ': '}{step.why}")
        else:
            self._warn(NOT_COMPILED.format(step.why))
        graph = Graph(**vars(step), wanted=wanted, had=len(svi._used.had), call=call)
        self._graphs[call.key] = graph
        if len(self._graphs) > SHAPES:
            first = next(iter(self._graphs))
            old, _ = self._graphs.pop(first), self._aside.pop(first, None)
            if self._too_soon("what steps are called with", old):
                self.give_up("what steps are called with keeps changing, as data or `prepare` of `run`")
                return None
        return graph

    def heads(self, graph: Graph, block: Sequence[Call]) -> Tensor | None:
        """Take steps, see `Graph.heads`; None where no graph can be captured of them, nor will be."""
        why = ""
        try:
            return graph.heads(self.svi, block)
        except Untraceable as error:
            why = f"it cannot be traced: {error}"
        except torch.OutOfMemoryError:
            pass
        except (RuntimeError, IndexError):  # of values, as an index that is none: the program says it better
            if self.svi._device.type == "cuda":
                raise
            return None
        # here nothing refers to what failed any longer, and its memory can be given back
        self.give_up(why) if why else self.out_of_memory()
        return None

    def _too_soon(self, name: str, graph: Graph, most: int = REBUILDS) -> bool:
        """Whether this has now too often made graphs useless that had hardly been played."""
        self._rebuilt[name] = self._rebuilt.get(name, 0) + (graph.played < WORTH[graph.kind])
        return self._rebuilt[name] > most

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=outside())
