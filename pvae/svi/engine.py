"""`SVI`: a Pyro program's training step, written down once as a graph and replayed. Any Pyro model and guide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from math import isfinite
from operator import attrgetter, is_
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from ..errors import InputError
from ..replay.generators import Drawn
from ..replay.precision import TOLERANCE, of
from ..replay.turns import in_turn
from . import arguments, calls, optimizers, shares
from .calls import Call
from .faults import NonFiniteError, blame, finite, in_lines, norm_of, read
from .graph import Graph
from .graphs import Graphs
from .loss import Loss, numbers, told
from .observed import Observed
from .parameters import Snapshot, drop_new, stored
from .pending import Pending
from .trained import Trained

MODES = ("auto", "off", "graph", "full")
CHECK_EVERY = {"cpu": 1, "cuda": 1000}
"""Steps between two looks whether losses were finite: reading one makes a GPU wait."""
_GRADIENT = attrgetter("grad")

NOTHING = "no parameter of model or guide has a gradient: there is nothing to fit"
WITHOUT = "the step is within torch.no_grad() or torch.inference_mode(), where nothing has a gradient: take it outside"
DEPRECATED = (
    "run: found num_steps={} and num_samples={}, of Pyro's deprecated SVI.run, which is another: expected none: to take"
    " steps, call step; to sample, use pyro.infer.Predictive"
)
UNSEEN = ': those of a torch module are seen where a program calls pyro.module("name", module), or pyro.param'
UNUSED = ": the loss depends on none of {}"
OTHERS = ": Pyro's store has others under their names, as of modules made before: call pyro.clear_param_store()"


def unsaid(line: str) -> None:
    """Says nothing."""


class SVI(Trained):
    """`pyro.infer.SVI`, fast: same constructor, same `step`; a step is traced once and then replayed.

    Args:
        model: a Pyro program.
        guide: a Pyro program with the same arguments.
        optim: a `pyro.optim.PyroOptim` (its optimizer and arguments are taken over; per-parameter arguments become
            parameter groups); a torch optimizer; or a function from parameters to a torch optimizer.
        loss: a `pyro.infer.ELBO`, Pyro's or ours, or a function of (model, guide, *args) to a loss.
        loss_and_grads: as in Pyro, with a loss that is a function.
        clip_norm: clip the gradient to this global norm.
        schedule: a function from the number of steps taken to a factor of the learning rates.
        compile: `off`: eager. `graph`: the traced step's operations, replayed (on CUDA as a captured graph). `full`:
            compiled by inductor as well. `auto`: one of these two, by what compiling would save in the `steps` to come.
        steps: how many steps are to come; only `auto` asks.
        precision: of products and convolutions: `float32`, as torch is set (which does convolutions on CUDA in tf32),
            `tf32` (CUDA), or `bf16` (autocast).
        check_every: steps between two looks whether all losses were finite (default: 1 on a CPU, 1,000 on CUDA).
        notice: called with a line of text when a graph is built, and why.

    Raises:
        InputError: an unknown mode or precision, or what is no program, optimizer, objective or number as asked for.
        NonFiniteError: by `step`, when the loss or the gradient is not finite; names the step and the site.

    What a program does in Python is done once, when a step is traced: tensors are its inputs. Where a number, a flag or
    a function that it reaches has changed, the step is traced anew; now and then a step is taken eagerly too, and
    compared. What Python decides by values that a step computes is looked at in each replay, and where it would decide
    otherwise that step is taken eagerly. A program that cannot be traced runs eagerly, with one warning.
    A step trains the parameters that its programs show, as Pyro's does: what `poutine.block` hides stays as it is.
    `notebooks/any-pyro-program.md` says what is looked at, what is not, and what is refused. Threads take turns.
    `copy.deepcopy` and `pickle` take the programs along, and what the steps have changed; graphs are built anew.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 0.5))
    >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    >>> losses = [float(svi.step(torch.ones(10))) for _ in range(3)]
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: optimizers.Optim,
        loss: ELBO | Callable,
        loss_and_grads: Callable | None = None,
        *,
        clip_norm: float | None = None,
        schedule: Callable[[int], float] | None = None,
        compile: str = "auto",
        steps: int | None = None,
        precision: str = "float32",
        check_every: int | None = None,
        notice: Callable[[str], None] = unsaid,
        **kwargs: Any,
    ) -> None:
        for name, value, known in (("compile", compile, MODES), ("precision", precision, TOLERANCE)):
            if value not in known:
                raise InputError(f"{name}: found {value!r}, expected one of {', '.join(known)}")
        arguments.check({"model": model, "guide": guide}, loss, schedule, notice, clip_norm, steps, check_every)
        super().__init__(model, guide, optim, loss, loss_and_grads, schedule, **kwargs)
        self.clip_norm, self.precision, self.check_every = clip_norm, precision, check_every
        self.compile, self.steps_to_come, self.notice = compile, steps, notice

    def _begin(self) -> None:
        super()._begin()
        self._observed = Observed()
        self._kind: type = float
        """Of loss that the objective gives."""
        self._graphs = Graphs(self)
        self._pending = Pending()

    # The step.

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one gradient step; args and kwargs go to model and guide.

        Returns:
            The loss before the step, as Pyro's (a tuple where the objective gives one): on a CPU floats, on CUDA
            numbers that are read when they are asked for.

        Raises:
            NonFiniteError: the loss or the gradient is not finite, or what is observed lies outside its site's support;
                of a step that is taken eagerly (as the first ones, and some later ones, are), the `ValueError` of
                Pyro's validation, which NonFiniteError is too. The parameters are those before that step, random
                numbers go on, as in Pyro; on CUDA it may be a step up to `check_every` before.
        """
        with in_turn():
            call = self._called(args, kwargs)
            if self._set_up_again(call):  # where parameters are is known by now
                call = self._called(args, kwargs)
            (values,) = self._advance([call])
        return told(self._kind, [Loss(value) for value in values] if isinstance(values, Tensor) else values)

    def _called(self, args: tuple, kwargs: dict[str, Any]) -> Call:
        on = self._device if self._device.type == "cuda" and self._graphs.used else None
        return calls.of_arguments(args, kwargs, self._numbers, on)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss, as Pyro's method has it: nothing is trained."""
        with in_turn():
            return super().evaluate_loss(*args, **kwargs)

    def run(
        self, rows: Tensor | Iterable[Tensor], *data: Tensor | None, prepare: Callable[..., Any] = lambda *x: x
    ) -> Iterator[Tensor]:
        """Take a step on each batch of rows of data that stay on the device; yields losses, a block at a time.

        Args:
            rows: int64, (steps, B), or an iterable of (B,): which data each step takes; (steps,) is one datum a step.
            data: tensors (N, ...), or None.
            prepare: from the rows' data to the programs' arguments (a tuple, or the one argument); traced as well.

        Yields:
            The losses (block,) of the next steps, not yet read; a step is taken when they are asked for.

        Raises:
            InputError: the SVI was given `num_steps` or `num_samples`, of Pyro's deprecated method of this name, or
                what rows are is none.

        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     pyro.sample("x", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0).expand([len(x)]).to_event(1),
        ...                 obs=x)
        >>> svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
        >>> sum(len(losses) for losses in svi.run(torch.tensor([[0, 1], [2, 0]]), torch.ones(3)))
        2
        """
        if self.num_steps or self.num_samples:
            raise InputError(DEPRECATED.format(self.num_steps, self.num_samples))
        return self._run(map(calls.of_rows(data, prepare), arguments.checked_rows(rows)))

    def _run(self, coming: Iterator[Call]) -> Iterator[Tensor]:
        ahead = list[Call]()
        while True:
            with in_turn():
                ahead += islice(coming, max(0, self._graphs.most() - len(ahead)))
                if not ahead:
                    return
                count = self._graphs.together(ahead)
                losses = torch.as_tensor(self._advance(ahead[:count]), device=self._device)
            yield losses[:, 0] if losses.shape[1:] == (1,) else losses
            del ahead[:count]

    def check(self) -> None:
        """Look whether all losses so far were finite; else go back to where they last were, and step from there.

        Raises:
            NonFiniteError: by the step that it was.
        """
        with in_turn():
            if self._pending.before is not None:
                self._look(bad=not self._pending.sound(list(self._names)))

    def _look(self, bad: bool) -> None:
        pending, self._pending = self._pending, Pending()
        if bad:
            pending.again(self)

    def _advance(self, block: list[Call]) -> Any:
        """Take a step on each call; returns each one's losses, as lists of floats or one tensor."""
        self._set_up_again(block[0])
        self._set_clock(block[0])
        if self.optimizer is not None:
            if isinstance(self.optim, PyroOptim) and not self.optim.optim_objs:  # somebody has dropped its state
                self.check()
                self._begin_anew()
            if shares.WISHES:
                self._settle()
        graded = self._graded()  # to be added to, as in Pyro: eagerly
        try:
            graph = self._graphs.find(block[0], len(block)) if graded.isdisjoint(self._having) else None
            graded = self._graded()  # parameters may have turned up
            return self._advance_by(graph if graph and graded.issubset(graph.others) else None, block)
        except BaseException:  # as an interrupt: what it leaves is not to be added to
            for parameter in self._names:
                if parameter not in graded:
                    parameter.grad = None
            raise

    def _graded(self) -> set[Tensor]:
        """The parameters that have a gradient."""
        none = all(map(is_, map(_GRADIENT, self._names), repeat(None)))
        return set() if none else {p for p in self._names if p.grad is not None}

    def _advance_by(self, graph: Graph | None, block: list[Call]) -> Any:
        if graph is None:
            self.check()
            return [self._eager(call) for call in block]
        if self._every() > 1 or self._device.type == "cuda":
            return self._play(graph, block)
        return [self._replay(graph, call) for call in block]

    def _set_up_again(self, call: Call) -> bool:
        """After a resume let programs set themselves up; what they draw for that was drawn long ago."""
        if self._waiting is None or self.steps == 0:
            return False
        self._set_clock(call)
        with self._used.adopting(), self._undone(call):
            self._gradients(*call.again())
        return True

    def _eager(self, call: Call) -> list[float]:
        before = self._snapshot(self._buffers())
        self._look_at_values(call, self._own)
        with before.kept():
            losses, norm = self._gradients(*call.plain())
        self._align()
        self._set_rates()
        values = read(losses, norm)
        if not finite(values):
            raise self._fault(call, values, before)
        self._update(norm, self._having)
        self._used.leave()
        self._stepped(1)
        self._ran = self.loss_and_grads
        return values[:-1]

    def _replay(self, graph: Graph, call: Call) -> list[float]:
        """A step whose loss is looked at before anything is changed."""
        before = self._snapshot([*self._buffers(), *(call.inputs[i] for i in graph.written)])
        expected = graph.expected(self, call) if graph.due() else None
        self._set_rates()
        graph.held.fill()
        try:
            head, *gradients = graph.forward(*call.inputs)
            graph.hold(gradients)
        except (RuntimeError, IndexError):  # of values, as an index that is none: the program says it better
            before.restore()
            return self._eager(call)
        values = head.tolist()
        if graph.misses(values):
            self._graphs.missed(graph)
            before.restore()
            return self._eager(call)
        if expected is not None and (difference := graph.differs(self, expected, values)):
            self._graphs.distrust(graph, difference)
            before.restore()
            return self._eager(call)
        if not finite(values):
            raise self._fault(call, values, before)
        graph.update(head, *gradients)
        graph.pass_on(gradients)
        self._stepped(1)
        return values[:-1]

    def _play(self, graph: Graph, block: list[Call]) -> Any:
        """Steps whose losses are looked at later."""
        due = graph.due()
        if due or self._pending.touched(self):
            self.check()
        expected = graph.expected(self, block[0]) if due else None
        if self._pending.before is None:
            self._pending.before = self._snapshot(self._changing())
        drawn = Drawn(self._generators)
        graph.held.fill()
        heads = self._graphs.heads(graph, block)
        if heads is None:
            return self._instead(block)
        if graph.waits and any(map(graph.misses, heads.tolist())):  # which waits for the device
            self._graphs.missed(graph)
            return self._instead(block)
        if expected is not None and (difference := graph.differs(self, expected, graph.found(heads))):
            self._graphs.distrust(graph, difference)
            return self._instead(block)
        self._pending.add(self, block, heads, drawn)
        self._stepped(len(block))
        if graph.waits or self._pending.due(self._every()):
            self.check()
        graph.pass_on(graph.gradients)
        return heads[:, :-1]

    def _instead(self, block: list[Call]) -> list[list[float]]:
        """The steps since the last look, and these, eagerly."""
        self._look(bad=True)
        return [self._eager(call) for call in block]

    def _gradients(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, Tensor]:
        """The losses, and the norm of the gradient, which is left on the parameters."""
        with in_lines(), self._used, self._observed, of(self.precision, *self._devices):
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        if self._used.replaced:
            self._replace()
        if self._used.new or (self.optimizer is None and isinstance(self.optim, torch.optim.Optimizer)):
            self._take(self._used.taken())
        if not (torch.is_grad_enabled() or self._graded()):
            raise InputError(WITHOUT)
        self._having = self._used.trained(self._names, hidden=not isinstance(self.optim, torch.optim.Optimizer))
        if not self._having:
            raise InputError(NOTHING + self._why())
        self._kind, losses = numbers(self.objective, loss)
        return self._observed.held(losses), norm_of([p.grad for p in self._having])

    def _why(self) -> str:
        """Why nothing has a gradient."""
        if self._used.others:
            return OTHERS
        if self._used.stored:
            return UNUSED.format(", ".join(f"'{name}'" for name in list(self._used.stored)[:3]))
        return "" if self._names else UNSEEN

    def _look_at_values(self, call: Call, needed: bool = True) -> None:
        """From here on hold what is observed against the supports: where nobody else does, and the data are new."""
        self._observed.looks = needed and call.prepare is None
        if self._observed.looks and self._observed.names is None and self.steps > 0:
            before = stored()
            with self._undone(call):
                self._observed.learn(self.model, self.guide, *call.again())
            drop_new(before)  # the step itself is to draw for them

    def _update(self, norm: Tensor, having: list[Tensor]) -> None:
        """Clip the gradients on these parameters, take the optimizer's step, forget them."""
        if self.clip_norm is not None:
            clip_grads_with_norm_(having, self.clip_norm, norm, foreach=True)
        optimizers.clip_each(self.optim, having, self._names)
        with optimizers.only(self.optimizer, having):
            optimizers.begin(self.optimizer)
            self.optimizer.step()
        for parameter in having:
            parameter.grad = None
        if self._clock is not None:
            self._clock.add_(1)

    def _stepped(self, count: int) -> None:
        optimizers.flush(self.optimizer, self.steps, count)
        self.steps += count

    def _fault(self, call: Call, values: list[float], before: Snapshot) -> NonFiniteError:
        after = Drawn(self._generators)
        before.restore()
        where = blame(self._names, self._observed.names or (), self.objective, self.model, self.guide, *call.again())
        for parameter in self._names:
            parameter.grad = None
        before.restore_values()
        after.restore()
        return NonFiniteError(self.steps + 1, next((v for v in values[:-1] if not isfinite(v)), values[0]), where)

    def _every(self) -> int:
        return self.check_every or CHECK_EVERY.get(self._device.type, 1)
