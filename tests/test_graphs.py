"""Replayed steps are the eager steps: on programs of every kind, in `run`, over resumes, beside others."""

import re
from contextlib import nullcontext
from functools import partial

import pyro
import pytest
import torch
from programs import PROGRAMS, assert_replayed, assert_same, kinds, start, train

import pvae
from pvae.data import binarize
from pvae.replay import compiling
from pvae.replay.tracing import first_draws, record, saved_by_fusion

QUICK = ["AutoNormal", "PyroModule"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_replayed_step_is_the_eager_step(program):
    assert_replayed(PROGRAMS[program])


@pytest.mark.parametrize("program", [pytest.param(p, marks=[] if p in QUICK else pytest.mark.slow) for p in PROGRAMS])
def test_a_compiled_step_is_the_eager_step_up_to_rounding(program):
    losses, params, random, svi = train(PROGRAMS[program], "full")
    assert kinds(svi) == ["full"], "it was not compiled"
    expected, expected_params, expected_random, _ = train(PROGRAMS[program], "off")
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-4)
    for name, value in params.items():
        torch.testing.assert_close(value, expected_params[name], rtol=2e-3, atol=2e-4)
    assert torch.equal(random, expected_random)


def test_a_compiler_gets_the_first_draws_ready_made():
    def step(x):
        first, second = torch.randn(3), torch.rand(3)
        drawn = torch.bernoulli(second * x.sigmoid())
        return first + drawn, torch.randn(3)

    x = torch.randn(3)
    graph = record(step, x)
    rest, draw = first_draws(graph)
    random = [node.name for node in rest.graph.nodes if "rand" in str(node.target) or "bernoulli" in str(node.target)]
    assert len([node for node in rest.graph.nodes if node.op == "placeholder"]) == 3
    assert len(random) == 4, "two that are given, two that are left: one of them is of what was computed"
    torch.manual_seed(1)
    expected = step(x)
    torch.manual_seed(1)
    for one, other in zip(rest(*draw(), x), expected, strict=True):
        assert torch.equal(one, other)


def test_a_compiled_step_draws_its_random_numbers_in_the_programs_order():
    """The compiler may not move a draw before another to save memory, as for this network it would."""
    encoder, decoder = pvae.MLPEncoder((20,), 6, [16]), pvae.MLPDecoder(3, (20,), [16])
    vae = pvae.VAE(pvae.Normal(3), pvae.Bernoulli(decoder, (20,)), pvae.MeanField(encoder, 3))
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.0}), pvae.ELBO(), compile="full")
    data = torch.randint(256, (40, 20), dtype=torch.uint8)
    for _ in svi.run(torch.arange(32).reshape(4, 8), data, prepare=partial(binarize, mode="dynamic")):
        pass  # the first compiled step is compared with the program's own
    assert kinds(svi) == ["full"]


def test_auto_weighs_what_compiling_saves_against_what_it_takes():
    graph = record(lambda x: ((x.exp() + 1).sin(), x @ x, torch.randn(3)), torch.ones(512, 512))
    assert saved_by_fusion(graph) == (3, 3 * 2**20)
    saves = 3 * compiling.LAUNCH["cpu"] + 2 * 3 * 2**20 / compiling.BANDWIDTH["cpu"]
    enough = 2 * compiling.building(3, "cpu") / saves
    assert compiling.choose(graph, "cpu", int(0.99 * enough))[0] == "graph"
    kind, why = compiling.choose(graph, "cpu", int(1.01 * enough))
    assert kind == "full"
    assert why.endswith("steps (3 operations, 3 MiB a step)")
    assert compiling.choose(graph, "cpu", None) == ("graph", "how many steps will come is not known (steps=)")


@pytest.mark.parametrize(
    ("mode", "steps", "why"),
    [
        ("graph", None, ""),
        ("auto", None, r": how many steps will come is not known \(steps=\)"),
        (
            "auto",
            5,
            r": compiling would take about \d+ s and save about 0 s in 5 steps \(\d+ operations, 0 MiB a step\)",
        ),
    ],
)
def test_it_is_said_once_what_was_built_and_why(mode, steps, why):
    said = []
    svi, args = start(PROGRAMS["our ELBO"], mode, steps=steps, notice=said.append)
    for _ in range(5):
        svi.step(*args)
    assert len(said) == 1
    assert re.fullmatch(rf"graph: built in \d+\.\d s{why}", said[0])


@pytest.mark.parametrize("program", PROGRAMS)
def test_losses_looked_at_later_are_the_same(program):
    assert_same(train(PROGRAMS[program], "graph", check_every=4), train(PROGRAMS[program], "off"))


EXACT = ["AutoNormal", "nested plates", "deep Markov, GRU", "PyroModule", "constraints"]


@pytest.mark.parametrize("program", EXACT)
def test_gradients_are_those_of_float64(program, monkeypatch):
    """The graph's, against the eager step's in float64, on the same draws and parameters."""

    def draw(shape, dtype, device):
        return torch.randn(shape, dtype=torch.float32).to(torch.get_default_dtype())

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", draw)
    monkeypatch.setattr(torch, "normal", lambda mean, std: mean + std * draw(mean.shape, None, None))
    svi, args = start(PROGRAMS[program], "graph", optim=pyro.optim.SGD({"lr": 0.0}))
    svi.step(*args)
    svi.step(*args)
    (graph,) = svi._graphs._graphs.values()
    torch.manual_seed(5)
    head, *found = graph.forward(*(a for a in args if isinstance(a, torch.Tensor)))
    for parameter in svi._names:
        parameter.data = parameter.data.double()
    svi.model, svi.guide = (in_double(program) for program in (svi.model, svi.guide))
    torch.manual_seed(5)
    torch.set_default_dtype(torch.float64)
    try:
        (loss,), _ = svi._gradients([a.double() if a.is_floating_point() else a for a in args], {})
    finally:
        torch.set_default_dtype(torch.float32)
    assert head[0].item() == pytest.approx(float(loss), rel=1e-5)
    expected = [p.grad for p in svi._names if p.grad is not None]
    assert all(p.dtype == torch.float64 for p in expected)
    for gradient, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, exact.float(), rtol=1e-3, atol=1e-4)


def in_double(program):
    """With buffers and distributions' constants, too."""
    module = getattr(program, "__self__", program)
    if isinstance(module, torch.nn.Module):
        module.double()
    return program


class CppCompileError(RuntimeError):
    """As inductor's."""


@pytest.mark.parametrize(
    ("failures", "kind"),
    [([""], None), (["", ""], CppCompileError), (["kernel.cpp:1:2: error: 'x' was not declared"], CppCompileError)],
)
def test_a_compiler_that_is_ended_by_a_signal_is_asked_again(monkeypatch, failures, kind):
    x, left = torch.ones(2), [CppCompileError(f"C++ compile error\n\nOutput:\n{text}") for text in failures]
    graph = record(lambda x: (2 * x,), x)

    def whole(graph, inputs):
        if left:
            raise left.pop()
        return graph

    monkeypatch.setattr(compiling, "_whole", whole)
    with pytest.raises(kind) if kind else nullcontext():
        assert compiling.compiled(graph, [x]) is graph
    assert not left
