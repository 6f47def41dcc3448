"""The clauses that ask of a part what a model, an objective and a checkpoint rely on."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..base import Part
from ..conditions import Label
from ..data.supports import is_discrete, supports_to
from ..errors import LIBRARIES, InputError, written_at
from ..objectives import ELBO, IWAE, Objective
from ..svi import SVI, NonFiniteError
from .densities import scores_anything
from .kept import in_state, made_anew
from .separable import on_few_values
from .setting import Broken, Subject, expect, foreign_support, values

LEADS = ((), (3,), (2, 3))
DRAWS = 1000
STEPS = 3
START = 100
"""Data that a part starts from."""


def shapes(s: Subject) -> str | None:
    """A distribution of the right event for any leading dimensions; it expands, scores and broadcasts."""
    for lead in LEADS:
        p = s.part(*s.inputs(*lead))
        expanded = p.expand(torch.Size((4, *lead)))
        _same(tuple(expanded.batch_shape), (4, *lead), "batch shape after .expand")
        for one, batch in ((p, tuple(p.batch_shape)), (expanded, (4, *lead))):
            value = _draw(s, one, batch)
            _same(tuple(value.shape), (*batch, *s.event), "draw")
            _typed(value, "a draw")
            _scored(one, value, batch)
        if scores_anything(p):
            value = _draw(s, expanded, (4, *lead))
            with torch.no_grad():
                _same(tuple(p.log_prob(value).shape), (4, *lead), "log_prob of a draw with a dimension to its left")
    return None


def _draw(s: Subject, p: Any, batch: tuple[int, ...]) -> Tensor:
    try:
        return values(p)
    except NotImplementedError:
        return s.latents(*batch)


def _scored(p: Any, value: Tensor, batch: tuple[int, ...]) -> None:
    with torch.no_grad():
        log_prob = p.log_prob(value)
    _same(tuple(log_prob.shape), batch, "log_prob")
    _typed(log_prob, "a log_prob")
    expect(bool(log_prob.isfinite().all()), "a log_prob of a draw that is not finite", "a number", "look at its scale")


def _typed(value: Tensor, what: str) -> None:
    found, expected = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, torch.get_default_dtype()))
    do = "make its constants of its parameters' type, and no .double()"
    expect(found == expected, f"{what} of {found}", f"{expected}, as the model's", do)


def _same(found: tuple[int, ...], expected: tuple[int, ...], what: str) -> None:
    expect(found == expected, f"{what} of shape {found}", f"{expected}", "keep batch dimensions left, the event right")


def labels(s: Subject) -> str | None:
    """It takes labels of any leading dimensions; where it is conditioned, its density depends on them."""
    if s.labels(2) is None:
        for lead in LEADS[1:]:
            inputs = s.inputs(*lead)[:-1]
            p = s.part(*inputs, torch.zeros(lead, dtype=torch.int64))
            _same(tuple(p.event_shape), s.event, "event with labels")
        taken = inspect.signature(type(s.part)).parameters.get("condition")
        keeps = taken is None or taken.default is not taken.empty
        expect(keeps, "a condition that it takes and does not keep", "it in use", "use y, or do not take it")
        return None if taken is None else _with_condition(s)
    if s.condition is None and s.y is None:
        return None
    _shaken(s.part)
    return next(filter(None, [_depends(s, lead) for lead in LEADS[1:]]), None)


def _with_condition(s: Subject) -> str | None:
    """Of a part that takes a condition, if only as its family does, and was made without: the same with one."""
    try:
        made = type(s.part)(s.latent, condition=Label(3))
        vae = type(s.vae)(made, s.vae.likelihood, s.vae.posterior)
    except (TypeError, ValueError, AttributeError):
        return "it was made without a condition, and is not made with one by its defaults: check one that has it"
    _shaken(made)
    asked: list[bool] = []
    if (condition := getattr(made, "condition", None)) is not None:
        condition.register_forward_pre_hook(lambda *_: asked.append(True))
    try:
        return _depends(Subject(made, vae.eval(), s.latent, s.shape), (8,))
    except Broken as error:
        if not asked and type(s.part).__init__.__module__.partition(".")[0] in LIBRARIES:  # which no one wrote for it
            return "it depends on no labels"
        raise Broken(
            f"made with condition=Label(3), which its __init__ takes: {error}; if it has no labels to depend on, write"
            " an __init__(self, latent) that does not take one"
        ) from error


def _depends(s: Subject, lead: tuple[int, ...]) -> str | None:
    inputs, y = s.inputs(*lead)[:-1], s.labels(*lead)
    p = s.part(*inputs, y)
    value = _draw(s, p, tuple(p.batch_shape))
    others = [s.labels(*lead) for _ in range(8)]
    if all(torch.equal(y, other) for other in others):
        return "the examples of its condition are all alike: pass y="
    if scores_anything(p):
        with torch.no_grad():
            here = p.log_prob(value)
            depends = any(not torch.equal(here, s.part(*inputs, other).log_prob(value)) for other in others)
        do = "use y, or leave the condition out"
        expect(depends, "the same log_prob under other labels", "a density that depends on them", do)
    _same(tuple(p.batch_shape), lead, "batch with labels")
    return None


def support(s: Subject) -> str | None:
    """What it says of where its draws, or its data, lie is known; and draws fit it."""
    if s.part.family == "likelihood":
        supports_to(s.part.support)
        with torch.no_grad(), pyro.validation_enabled(False):
            draws = s.part(*s.inputs()).expand(torch.Size((DRAWS,))).sample()
        found, expected = "draws of few values", f"a density, as support = '{s.part.support}' says"
        do = "let `support` be 'binary', 'counts' or 'N levels', or take a density, as ContinuousBernoulli of grey data"
        expect(is_discrete(s.part.support) or not on_few_values(draws), found, expected, do)
        return None
    return foreign_support(s.part) or None


def repeats(s: Subject) -> str | None:
    """In evaluation mode a call on the same inputs gives the same density."""
    s.vae.eval()
    inputs = s.inputs(4)
    p = s.part(*inputs)
    value = _draw(s, p, tuple(p.batch_shape))
    if not scores_anything(p):
        return "it scores only what it has just drawn"
    with torch.no_grad():
        expect(
            torch.equal(p.log_prob(value), s.part(*inputs).log_prob(value)),
            "another log_prob of the same value at a second call",
            "the same",
            "draw nothing at random in forward, but where self.training is true",
        )
    return None


# Parameters.


def gradients(s: Subject) -> str | None:
    """A training step gives every parameter a gradient that is finite and not zero."""
    _shaken(s.part)
    s.vae.train()
    x, y = s.batch()
    with _where_both_are(s):
        _objectives(s)[-1].loss_and_grads(s.vae.model, s.vae.guide, x, y)
    for name, parameter in s.part.named_parameters():
        if not parameter.requires_grad:
            continue
        found = parameter.grad
        do = "use it in forward, without .item(), .data or .detach(); what is not learned is a buffer"
        expect(found is not None, f"no gradient at '{name}'", "one at every parameter", do)
        expect(bool(found.isfinite().all()), f"a gradient at '{name}' that is not finite", "numbers", "bound it")
        expect(bool((found != 0).any()), f"a gradient at '{name}' that is zero", "one at every parameter", do)
    return None


def _shaken(module: torch.nn.Module) -> None:
    """Away from a start at which gradients vanish."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


def state(s: Subject) -> str | None:
    """`state_dict`, through a file, is all that a trained part is: a fresh one that loads it has the same density."""
    objective, made = _objectives(s)[-1], made_anew(s.part)
    with _where_both_are(s):
        in_state(s, lambda one: objective.differentiable_loss(one.vae.model, one.vae.guide, *one.batch()), made)
    _same_anew(s, made)
    trained, fresh = s.copy(), s.copy()
    with suppress(Exception):  # it may want other data to start from
        trained.part.initialize(s.data(START), s.labels(START))
    _train(trained, objective, "off", 1e-2)
    _shaken(trained.vae)
    _shaken(fresh.vae)
    file = io.BytesIO()
    torch.save(trained.vae.state_dict(), file)
    file.seek(0)
    fresh.vae.load_state_dict(torch.load(file, weights_only=True))
    here, there = (_density(one) for one in (trained, fresh))
    expect(
        torch.allclose(here, there, rtol=1e-5, atol=1e-5),
        "other draws or another log_prob after a trained part's state_dict was loaded",
        "the same",
        "keep what training, or `initialize`, changes in parameters and buffers that are saved",
    )
    return None


def _same_anew(s: Subject, made: list[Part]) -> None:
    """Those that are made anew, as by a run that is loaded, have the same density once they have the same state."""
    found: list[Tensor] = []
    with suppress(Exception):  # it may want more than it is made with
        state = s.copy().part
        _shaken(state)
        for one in made:
            one.load_state_dict(state.state_dict())
        found = [_density(replace(s, part=one.eval())) for one in made]
    expect(
        all(torch.allclose(found[0], other, rtol=1e-5, atol=1e-5, equal_nan=True) for other in found[1:]),
        "other draws or another log_prob of one that is made anew and loads the state_dict",
        "the same",
        "keep what __init__ draws, or reads, in buffers that are saved",
    )


def _density(s: Subject) -> Tensor:
    """Draws of the part and their log-probabilities; the same for the same seed."""
    s.vae.eval()
    torch.manual_seed(1)
    inputs = s.inputs(4)
    if s.part.family == "guide":
        inputs = (torch.bernoulli(torch.full((4, *s.shape), 0.5)), inputs[1])
    with torch.no_grad(), pyro.validation_enabled(False), pyro.get_param_store().scope():
        p = s.part(*inputs)
        torch.manual_seed(1)
        value = _draw(s, p, tuple(p.batch_shape))
        return torch.cat([value.flatten(), p.log_prob(value).flatten()])


def copies(s: Subject) -> str | None:
    """A model that holds it is copied and pickled, also after it was used."""
    _train(s, _objectives(s)[-1], "off", 1e-3)
    expected = _density(s)
    found = [s.copy()]
    if "<locals>" not in type(s.part).__qualname__:
        found.append(s.within(pickle.loads(pickle.dumps(s.vae))))
    for one in found:
        what = "other draws or another log_prob of a copy"
        expect(torch.equal(_density(one), expected), what, "the same", "keep all it is in the module")
    return None if len(found) > 1 else "copied; a class within a function cannot be pickled"


# The fast step.


class _Read(Exception):
    """A tensor's value was asked for on the host."""


class _NoReads(TorchFunctionMode):
    _reads = frozenset(
        {Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.tolist, Tensor.numpy}
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._reads:
            raise _Read(func.__name__)
        return func(*args, **(kwargs or {}))


def reads(s: Subject) -> str | None:
    """Building the distribution, drawing and scoring read no tensor's value on the host."""
    inputs = s.inputs(3)
    s.vae.train()
    try:
        with pyro.validation_enabled(False), _NoReads():
            p = s.part(*inputs)
            with suppress(NotImplementedError):
                p.log_prob(p.rsample() if p.has_rsample else p.sample())
    except _Read as error:
        raise Broken(
            f"found .{error}() of a tensor{written_at(error)}, expected tensors only: a step that is replayed cannot"
            " read: keep it a tensor, or make a number of it in __init__"
        ) from error
    return None


def fast(s: Subject) -> str | None:
    """`pvae.SVI` takes the same steps eagerly and from a replayed graph."""
    objective = _objectives(s)[-1]
    data = s.batch()
    found = {}
    for mode in ("off", "graph"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            one = s.copy()
            torch.manual_seed(2)
            found[mode] = (_train(one, copy.deepcopy(objective), mode, 1e-3, data), one.vae.state_dict())
        for warning in caught:
            text = str(warning.message)
            expect("eager" not in text, f"'{text}'", "a step that can be replayed", "use torch's operations on tensors")
    (losses, here), (replayed, there) = found["off"], found["graph"]
    do = "let forward change nothing of its own in Python: what changes is a buffer"
    expect(
        torch.allclose(torch.tensor(losses), torch.tensor(replayed), rtol=1e-4),
        f"losses {replayed} from a graph",
        f"{losses} as eagerly",
        do,
    )
    for name in here:
        same = torch.allclose(here[name].double(), there[name].double(), rtol=1e-3, atol=1e-4)
        expect(same, f"another '{name}' after {STEPS} steps from a graph", "the same as eagerly", do)
    return None


def objectives(s: Subject) -> str | None:
    """Two steps under each of ELBO, IWAE and IWAE with a doubly reparameterized gradient are finite.

    Where draws carry no gradient: ELBO with the score function, IWAE with vimco.
    """
    for objective in _objectives(s):
        losses = _train(s.copy(), objective, "off", 1e-3, steps=2)
        name = f"{objective.name} with gradient {objective.gradient.name}"
        finite = all(abs(loss) < float("inf") for loss in losses)
        expect(finite, f"losses {losses} under {name}", "finite ones", "bound its scales")
    return None


def _objectives(s: Subject) -> list[Objective]:
    x, y = s.batch()
    q = s.vae.posterior(x, y)
    if q.has_rsample and torch.equal(values(q), values(q)):  # points: no density to take a gradient of
        return [ELBO(), IWAE(3)]
    if q.has_rsample:
        return [ELBO(), IWAE(3, gradient="dreg"), IWAE(3)]
    return [ELBO(3, gradient="score"), IWAE(3, gradient="vimco")]


def _train(s: Subject, objective: Objective, mode: str, lr: float, data: Any = None, steps: int = STEPS) -> list[float]:
    """Losses of a few steps on the same data, for each datum."""
    s.vae.train()
    x, y = data or s.batch()
    svi = SVI(s.vae.model, s.vae.guide, pyro.optim.Adam({"lr": lr}), objective, compile=mode)
    try:
        with pyro.get_param_store().scope(), _where_both_are(s):  # a copy's parameters have the same names there
            return [float(svi.step(x, y)) for _ in range(steps)]
    except NonFiniteError as error:
        do = "bound its scales"
        if "site 'z': its log_prob is -inf" in error.where and s.part.family in _OUTSIDE:
            do = f"{_OUTSIDE[s.part.family]}; or, of scales, bound them"
        raise Broken(f"found, at {error}, expected finite losses: {do}") from error


@contextmanager
def _where_both_are(s: Subject) -> Iterator[None]:
    """Say what to do where a draw lies outside the prior's support."""
    try:
        yield
    except InputError as error:
        if not str(error).startswith("site 'z': found") or s.part.family not in _OUTSIDE:
            raise
        raise Broken(f"{error}: {_OUTSIDE[s.part.family]}") from error


_BOTH = "and let `support` of both say where that is"
_OUTSIDE = {
    "prior": f"the guide draws where this prior has no density: pass guide= one whose draws stay within it, {_BOTH}",
    "guide": f"it draws where the prior has no density: pass prior= one that has density wherever it draws, {_BOTH}",
}
"""What to do where a draw has weight zero."""


def words(s: Subject) -> str | None:
    """It is sampled from through the model, or the model says plainly that it cannot be."""
    if s.part.family == "guide":
        return None
    try:
        found = s.vae.sample(2, s.labels(2))
    except InputError as error:
        one_line = "\n" not in str(error)
        expect(not s.drawable() and one_line, f"'{error}' when it is asked for a sample", "draws", "write `sample`")
        return "it cannot be sampled, and says so"
    _same(tuple(found.shape), (2, *s.shape), "samples of the model")
    return None
