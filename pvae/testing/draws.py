"""The clauses that ask of draws that they are apart from one another, and that gradients are those of what is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from . import separable
from .densities import SIGMAS, scores_anything
from .setting import Broken, Subject, expect
from .spaces import space_of

CALLS, REPEATS, PARTICLES, DATA, MANY = 5, 105, 3, 7, 501
"""Of draws that are held against one another; odd, so that none meets another twice."""
CALL = f".sample(({MANY},))"
LOOKED = 64
"""Numbers of an event that are held against those of other draws."""
OFTEN = 0.9
"""The share of draws that are as the one before, above which few draws may all be the same."""
DIRECTIONS = 8
DRAWS, MOVED, BLOCK, BLOCKS = 2, 3, 100, 40
"""Of each of a few data."""
STEP, ROUNDING, TOLERANCE = 1e-3, 5e-6, 0.02
"""Of finite differences: single precision leaves them two or three digits."""
EDGE = 4.0
"""How near to the edges of an interval z is moved, as a logit."""


def alone(s: Subject) -> str | None:
    """What a datum gets depends neither on the others of its batch, of a guide while training too, nor on particles."""
    inputs = s.inputs(4)
    p = s.part(*inputs).expand(torch.Size((4, 4)))
    value = _value(s, p)
    if not scores_anything(p):
        return "it scores only what it has just drawn"
    do = "let nothing in the part mix data (a mean over the batch, batch normalisation)"
    with torch.no_grad():
        here = p.log_prob(value)
        for i in range(4):
            k = (i + 1) % 4
            only = s.part(*(None if v is None else v[i : i + 1] for v in inputs)).expand(torch.Size((1,)))
            one = only.log_prob(value[k, i : i + 1])[0]
            found = f"log_prob {here[k, i]:.5g} of a datum in a batch of 4, with 4 particles, {one:.5g} of it alone"
            expect(torch.allclose(one, here[k, i], rtol=1e-4, atol=1e-4), found, "the same", do)
    if s.part.family == "guide":
        pairs = zip(inputs, s.inputs(4), strict=True)
        mixed = tuple(None if v is None else torch.cat([v[:1], other[1:]]) for v, other in pairs)
        here, there = (_while_training(s, given, value[0]) for given in (inputs, mixed))
        found = f"log_prob {here:.5g} of a datum in training mode, {there:.5g} of it beside other data"
        expect(torch.allclose(here, there, rtol=1e-4, atol=1e-4), found, "the same", do)
    return None


def _while_training(s: Subject, inputs: tuple[Any, ...], value: Tensor) -> Tensor:
    """The log_prob of the first of 4 data in training mode, with the same random numbers each time, as of dropout."""
    one = s.copy()
    one.vae.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(torch.initial_seed())
        return one.part(*inputs).log_prob(value)[0]


def independent(s: Subject) -> str | None:
    """Draws for different data and for different particles, and those of different calls, are independent."""
    do = "draw noise of the whole shape, self._extended_shape(sample_shape)"
    with torch.no_grad(), pyro.validation_enabled(False):
        p = s.part(*s.inputs(DATA))
        whole = p.expand(torch.Size((REPEATS, PARTICLES, DATA)))
        try:
            z = whole.sample().flatten(3)
            still, same = _still(z), torch.ones(z.shape[-1], dtype=torch.bool)
            columns = torch.randperm(len(same))[:LOOKED]
            calls = [z[..., columns]]
            for _ in range(CALLS - 1):
                again = whole.sample().flatten(3)
                same &= (again == z).flatten(0, 2).all(0)
                calls.append(again[..., columns])
            many = p.expand(torch.Size((DATA,))).sample(torch.Size((MANY,)))
        except NotImplementedError:
            return "it cannot be sampled"
    if bool((still & same).all()):
        return "its draws are points"
    one = still & _still(again) & (again != z).flatten(0, 2).all(0)
    _none(~still & same, "the same draws{} at a second call", "others", "draw from torch's own generator")
    _none(one, "the same draw{} for every datum and particle", "independent ones", do)
    _apart(torch.stack(calls), ("calls", "particles", "particles", "data"), do)
    shape = (MANY, DATA, *p.event_shape)
    expect(tuple(many.shape) == shape, f"draws of shape {tuple(many.shape)} by {CALL}", f"{shape}", do)
    many = many.flatten(2).unsqueeze(1)
    one = _still(many) & ((z == z.roll(1, 0)).double().mean((0, 1, 2)) < OFTEN)
    _none(one, f"the same draw{{}} {MANY} times by {CALL}", "independent ones", do)
    _apart(many[None, ..., columns], ("", f"places of {CALL}", "", "data"), do)
    return None


def _still(z: Tensor) -> Tensor:
    """Which numbers of draws z (repeats, particles, data, numbers) are the same for all draws of a datum."""
    return (z == z[:1, :1]).flatten(0, 2).all(0)


def _none(numbers: Tensor, found: str, expected: str, do: str) -> None:
    """Refuse what is found of some of the numbers, or of all."""
    if bool(numbers.any()):
        expect(False, found.format("" if bool(numbers.all()) else f" of number {numbers.int().argmax()}"), expected, do)


def _apart(z: Tensor, names: tuple[str, ...], do: str) -> None:
    """Refuse draws z (calls, repeats, particles, data, numbers) that go with those some way off, in sign or in size."""
    lead = (0, 1, 2, 3)
    z = z.double() - z.double().flatten(0, 1).median(0).values
    bounded = (z / z.abs().mean((0, 1)).clamp(min=1e-6)).tanh()
    x = torch.cat([bounded, bounded.abs()], -1)
    x = x - x.mean((0, 1))
    x = x / x.square().mean((0, 1)).sqrt().clamp(min=1e-6)
    sums, squares = (
        torch.fft.ifftn(torch.fft.fftn(v, dim=lead).abs().square(), dim=lead).real for v in (x, x.square())
    )
    size = z[..., 0].numel()
    off = sums / squares.clamp(min=size).sqrt()  # seen, or expected: rare values seldom meet
    off[0, 0, 0, 0] = 0  # each draw with itself
    worst = torch.unravel_index(off.abs().argmax(), off.shape)
    limit = (SIGMAS**2 + 2 * math.log(max(1.0, off.numel() / 100))) ** 0.5
    name = next((name for name, step in zip(names, worst, strict=False) if step), "")
    found = f"draws for different {name} that go together (a correlation of {sums[worst] / size:.2f})"
    expect(bool(off[worst].abs() <= limit), found, "independent ones", do)


def derivatives(s: Subject) -> str | None:
    """Gradients of log_prob, in parameters and in z, and of draws where they have one, are those of what they are.

    By finite differences along random directions, with the same random numbers; where draws jump as parameters move,
    as by rejection, d/dt E[f(z)] is taken from draws and from log_prob, which agree.
    """
    inputs, s = s.inputs(MOVED), s.moved() or s
    parameters = [parameter for parameter in s.part.parameters() if parameter.requires_grad]

    def made(n: int = DRAWS) -> Any:
        return s.part(*inputs).expand(torch.Size((n, MOVED)))

    def drawn(i: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed() + 1 + i)
            return made().rsample()

    with pyro.validation_enabled(False):
        p = made()
        given = [_value(s, p) for _ in range(DIRECTIONS)]
        scores = scores_anything(p) and not torch.equal(given[0], given[1])  # points have no density
        if scores:
            _told("log_prob", _differs(lambda i: made().log_prob(given[i]), parameters))
            _told("log_prob", _in_z(s, inputs, given), " of z")
        if s.part.family == "likelihood" or not p.has_rsample:
            return None
        found = _differs(drawn, parameters)
        if found and scores:
            found = _by_scores(made, parameters)
        _told("rsample", found)
    return None


def _in_z(s: Subject, inputs: tuple[Any, ...], given: list[Tensor]) -> tuple[float, float] | None:
    """Of log_prob as z moves, where z has a gradient; z stays where its draws lie, and not at an edge."""
    if not s.vae.posterior(*s.batch()).has_rsample:
        return None
    if s.part.family == "likelihood":
        z = inputs[0].clone().requires_grad_()
        return _differs(lambda i: s.part(z, inputs[1]).log_prob(given[i]), [z])
    z = torch.stack(given)
    space = space_of(z.reshape(-1, s.latent))
    if space.kind == "discrete":
        return None
    if space.kind == "real":
        near = z.abs().clamp(max=1)  # so that what is positive stays so
        u, to_z = torch.zeros_like(z), lambda u: z + near * u
    else:
        u, to_z = space.to_real(z), space.from_real
        u = u if space.kind == "sphere" else u.clamp(-EDGE, EDGE)
    u.requires_grad_()
    return _differs(lambda i: s.part(*inputs).expand(z.shape[1:-1]).log_prob(to_z(u)[i]), [u])


def _told(what: str, found: tuple[float, float] | None, of: str = "") -> None:
    if found:
        raise Broken(
            f"found a gradient of {what} of {found[0]:.4g} along a direction{of}, expected {found[1]:.4g}, as it"
            f" changes: use no .detach(), .data or .item() in forward or {what}; where a gradient is left out on"
            " purpose, skip this clause"
        )


def _value(s: Subject, p: Any) -> Tensor:
    with torch.no_grad():
        try:
            return p.sample()
        except NotImplementedError:
            return s.latents(*p.batch_shape)


def _differs(function: Callable[[int], Tensor], parameters: list[Tensor]) -> tuple[float, float] | None:
    """A directional derivative and the finite difference that it is not; None where they agree along most directions.

    They need not along all: there are kinks.
    """
    off = []
    for i in range(DIRECTIONS if parameters else 0):
        found, expected, error = _slopes(lambda i=i: function(i), parameters)
        if not abs(found - expected) <= error:
            off.append((found, expected))
    return off[0] if len(off) > DIRECTIONS / 2 else None


def _slopes(function: Callable[[], Tensor], parameters: list[Tensor]) -> tuple[float, float, float]:
    """Along a random direction, of a random sum of a function's numbers: derivative, finite difference, its error."""
    directions = [torch.randn_like(parameter) for parameter in parameters]

    def change(step: float) -> Tensor:
        high, low = (_shifted(function, parameters, directions, way) for way in (step, -step))
        return (high - low) / (2 * step)

    step, each, out = STEP, change(STEP), function()
    known = each.isfinite()  # not where a step leads out of a support
    weight = torch.randn_like(out[known])
    out, each = weight * out[known], weight * each[known]
    found, size, slope = _along(out.sum(), parameters, directions), float(out.detach().norm()), float(each.norm())
    if (flat := max(size, float(weight.norm()))) < slope:  # over such a step it may bend: a shorter one
        step = STEP * flat / slope
        each = weight * change(step)[known]
    return found, float(each.sum()), TOLERANCE * float(each.norm()) + ROUNDING / step * size


def _shifted(function: Callable[[], Tensor], parameters: list[Tensor], directions: list[Tensor], step: float) -> Tensor:
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        torch._foreach_add_(parameters, directions, alpha=step)
        found = function()
        torch._foreach_copy_(parameters, before)
    return found


def _along(value: Tensor, parameters: list[Tensor], directions: list[Tensor]) -> float:
    """The derivative of a number along a direction."""
    if not value.requires_grad:
        return 0.0
    gradient = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return float(sum((g * d).sum() for g, d in zip(gradient, directions, strict=True) if g is not None))


def _by_scores(made: Callable[[int], Any], parameters: list[Tensor]) -> tuple[float, float] | None:
    """d/dt E[f(z)] from draws, and from log_prob, for an f and a direction for each of the numbers and a few more.

    None where the two agree within their errors.
    """
    size = made(BLOCK).event_shape[0]
    looks = range(size + DIRECTIONS)
    directions = [[torch.randn_like(parameter) for parameter in parameters] for _ in looks]
    weights = torch.randn(len(looks), len(separable.tested(torch.zeros(1))), 1, 1)
    blocks = []
    for _ in range(BLOCKS):
        p = made(BLOCK)
        z = p.rsample()
        scores = p.log_prob(z.detach())
        low, center, high = z.detach().quantile(torch.tensor([0.16, 0.5, 0.84]), 0)
        tested = separable.tested(((z - center) / (high - low).clamp(min=1e-6)).asinh())  # of heavy tails, too
        for i in looks:
            f = (weights[i] * tested[..., i % size]).sum(0)
            sides = (f, (f - f.mean(0)).detach() * scores)
            blocks.append([_along(side.mean(0).sum(), parameters, directions[i]) for side in sides])
    found = torch.tensor(blocks, dtype=torch.float64).reshape(BLOCKS, len(looks), 2)
    difference = found[..., 0] - found[..., 1]
    off = difference.mean(0).abs() / (difference.std(0) / BLOCKS**0.5 + 1e-4)
    worst = int(off.argmax())
    return tuple(found.mean(0)[worst].tolist()) if off[worst] > 1.2 * SIGMAS else None
