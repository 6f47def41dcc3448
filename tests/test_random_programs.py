"""Programs and loops made by chance: `pvae.SVI` has the numbers of Pyro's, and our bounds those of Pyro's traces."""

import math
import re
from collections import defaultdict
from contextlib import ExitStack
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from random_programs import EVENTS, OPTIMIZERS, Choices, Program, elbo, load

import pvae
from pvae import base
from pvae.base import members
from pvae.errors import InputError

STEPS = 14
FEW, MANY = range(10), range(100, 400)
SEEDS = [*FEW, *(pytest.param(seed, marks=pytest.mark.slow) for seed in MANY)]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def begun(text):
    """A program, as it is before the first step."""
    pyro.clear_param_store()
    base._scopes.clear()
    pyro.set_rng_seed(7)
    return load(text)


def batches(choose):
    """The arguments of each step."""
    draw = torch.Generator().manual_seed(choose.seed)
    kind, number = choose("batch", "same", "new", "in place", "sizes"), choose("number", "none", "two", "all")
    x, y = torch.randn(6, 2, generator=draw), torch.randn(6, generator=draw)
    for step in range(STEPS):
        if kind == "in place":
            x.normal_(generator=draw), y.normal_(generator=draw)
        elif kind != "same":
            rows = 4 if kind == "sizes" and step % 3 == 2 else 6
            x, y = torch.randn(rows, 2, generator=draw), torch.randn(rows, generator=draw)
        yield x, y, {"none": 1.0, "two": (0.5, 1.5)[step // 3 % 2], "all": 0.1 * step}[number]


def trained(choose, program, mode):
    """Losses, parameters after each step, what modules hold, and the state of the generator."""
    text, line = program.text, 'pyro.module("network", network)'
    if by_hand := line in text and choose("whose network", "the programs", "by hand") == "by hand":
        text = text.replace(line, "pass")
    module = begun(text)
    outer = torch.optim.SGD(module.network.parameters(), lr=0.003) if by_hand else None
    own = {} if mode == "pyro" else {"compile": mode}
    kind = pyro.infer.SVI if mode == "pyro" else pvae.SVI
    optim = OPTIMIZERS[choose("optim", *OPTIMIZERS)]()
    svi = kind(module.model, module.guide, optim, elbo(choose, program.deep), **own)
    events = defaultdict(list)
    for n in range(choose("events", 3, 6)):
        events[choose(f"at {n}", *range(1, STEPS), plain=0.0)].append(choose(f"event {n}", "", *EVENTS, plain=0.2))
    losses, values = [], []
    for step, args in enumerate(batches(choose)):
        with ExitStack() as stack:
            for name in filter(None, events[step]):
                if within := EVENTS[name](svi, module, args):
                    stack.enter_context(within)
            losses.append(float(svi.step(*args)))
        if outer is not None and step % 3 != 1:
            outer.step()
            outer.zero_grad(set_to_none=bool(step % 2))
        values.append({name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()})
    held = [network.state_dict() for network in vars(module).values() if isinstance(network, torch.nn.Module)]
    return losses, values, held, torch.get_rng_state()


def story(choose, program):
    """What is to be known where it fails."""
    return f"{choose.taken}\n{program.text}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.filterwarnings("ignore")  # of Pyro's, of what is not in the guide; of ours, that it runs eagerly
def test_steps_are_pyros(seed):
    choose = Choices(seed)
    automatic = choose("batch", "same", "new", "in place", "sizes") != "sizes"
    program = Program(choose, automatic)
    try:
        expected = trained(choose, program, "pyro")
    except (NotImplementedError, ValueError, AssertionError) as error:
        pytest.skip(f"Pyro itself refuses it: {str(error)[:80]}")
    if not all(map(math.isfinite, expected[0])):
        pytest.skip("Pyro's own losses are not finite")
    try:
        eager = trained(choose, program, "off")
    except InputError as error:  # Pyro goes on with nothing to fit
        with pytest.raises(InputError, match=f"^{re.escape(str(error))}$"):
            trained(choose, program, "graph")
        return
    replayed = trained(choose, program, "graph")
    for found in (eager, replayed):
        assert found[0] == pytest.approx(expected[0], rel=1e-6, abs=1e-6), story(choose, program)
        torch.testing.assert_close(
            found[1:], expected[1:], rtol=1e-6, atol=1e-6, msg=lambda m: m + story(choose, program)
        )
    torch.testing.assert_close(replayed[1:3], eager[1:3], rtol=1e-12, atol=1e-12)


# Objectives -----------------------------------------------------------------------------------------------------------


def log_weights(program, model, guide, args, particles, plate):
    """Those (K, B) of Pyro's own traces, drawn with its plate of particles."""
    with pyro.plate("many", particles, dim=-1 - program.deep):
        drawn = poutine.trace(guide).get_trace(*args)
        scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args)
    total = 0.0
    for sign, trace in ((1, scored), (-1, drawn)):
        for site in trace.nodes.values():
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                continue
            log_prob = site["fn"].log_prob(site["value"])
            total = total + sign * by_datum(site, log_prob, program.deep, particles, plate)
    return total


def by_datum(site, log_prob, deep, particles, plate):
    """One site's, masked and scaled, summed over all but particles and the plate."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.name == plate]
    scale = site["scale"] / math.prod((frame.full_size or frame.size) / frame.size for frame in frames)
    if site["mask"] is not None:
        log_prob = log_prob.where(torch.as_tensor(site["mask"]), 0.0)
    log_prob = (scale * log_prob).expand(torch.broadcast_shapes(log_prob.shape, (particles, *[1] * deep)))
    kept = [-1 - deep, *(frame.dim for frame in frames)]
    summed = [d for d in range(-log_prob.dim(), 0) if d not in kept]
    return (log_prob.sum(summed) if summed else log_prob).reshape(particles, -1)


@pytest.mark.parametrize("seed", [*FEW, *(pytest.param(seed, marks=pytest.mark.slow) for seed in MANY[:60])])
@pytest.mark.filterwarnings("ignore")
def test_bounds_are_those_of_pyros_traces_or_refused_in_one_line(seed):
    """Value and gradient of ELBO and IWAE; of all others, and all estimators, that they run or say why not."""
    choose = Choices(seed)
    program = Program(choose, automatic=False)
    args = next(iter(batches(choose)))
    plate, refusals = choose("plate of data", None, "data"), []
    for name, kind in members("objective").items():
        for gradient in members("gradient"):
            if seed in FEW and name not in ("elbo", "iwae") and choose(f"{name} {gradient}", 0, 1, plain=0.8) == 0:
                continue
            try:
                objective = kind(4, plate=plate, gradient=gradient)
                found = loss_and_gradient(objective.differentiable_loss, program, args)
            except InputError as error:
                refusals.append(str(error))
                continue
            assert math.isfinite(found[0]), (name, gradient, story(choose, program))
            if name in ("elbo", "iwae"):
                expected = loss_and_gradient(partial(by_hand, name, program, plate), program, args)
                assert found[0] == pytest.approx(expected[0], rel=1e-8), (name, gradient, story(choose, program))
                if gradient == "reparam":
                    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-8)
    assert [line for line in refusals if "\n" in line] == [], story(choose, program)


def by_hand(name, program, plate, model, guide, *args):
    log_w = log_weights(program, model, guide, args, 4, plate)
    bound = log_w.mean(0) if name == "elbo" else log_w.logsumexp(0) - math.log(4)
    scale = {"sub": len(args[0]) / 3, "part": 50 / len(args[0])}.get(program.frame, 1.0)
    return -bound.sum() * (scale if plate else 1.0)


def loss_and_gradient(loss_of, program, args):
    """The loss of a seed, and its gradient by parameter."""
    module = begun(program.text)
    module.guide(*args), module.model(*args)  # parameters draw what they begin with
    pyro.set_rng_seed(5)
    loss = loss_of(module.model, module.guide, *args)
    if loss.requires_grad:
        loss.backward()
    store = pyro.get_param_store()._params
    return float(loss), {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in store.items()}


# Resumed --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [*FEW[:4], *(pytest.param(seed, marks=pytest.mark.slow) for seed in MANY[:60])])
@pytest.mark.parametrize("optim", ["Adam", "ClippedAdam", "SGD", "by name"])
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(seed, optim):
    choose = Choices(seed, {"network": "", "particles": 1})
    program = Program(choose, automatic=False)
    try:
        found = [resumed(choose, program, optim, at) for at in (None, 5)]
    except NotImplementedError as error:
        pytest.skip(f"Pyro itself refuses it: {error}")
    assert found[0] == found[1], story(choose, program)


def resumed(choose, program, optim, at):
    """Losses, and the parameters as text, of replayed steps, with another SVI from one on."""
    module = begun(program.text)
    losses, svi = [], None
    for step, args in enumerate(batches(choose)):
        if svi is None or step == at:
            state = svi and svi.state_dict()
            loss = elbo(choose, program.deep)
            svi = pvae.SVI(module.model, module.guide, OPTIMIZERS[optim](), loss, compile="graph")
            if state is not None:
                svi.load_state_dict(state)
        losses.append(float(svi.step(*args)))
    return losses, {name: value.tolist() for name, value in pyro.get_param_store().named_parameters()}
