"""Replayed steps are the eager steps: on programs of every kind, in `run`, over resumes, beside others."""

import gc
import itertools
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import PROGRAMS, assert_same, kinds, parameters, start, train

import pvae

QUICK = ["AutoNormal", "PyroModule"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_replayed_step_is_the_eager_step(program):
    replayed = train(PROGRAMS[program], "graph")
    assert kinds(replayed[-1]) == ["graph"], "it was not replayed"
    assert_same(replayed, train(PROGRAMS[program], "off"))


@pytest.mark.parametrize("program", [pytest.param(p, marks=[] if p in QUICK else pytest.mark.slow) for p in PROGRAMS])
def test_a_compiled_step_is_the_eager_step_up_to_rounding(program):
    losses, params, random, svi = train(PROGRAMS[program], "full")
    assert kinds(svi) == ["full"], "it was not compiled"
    expected, expected_params, expected_random, _ = train(PROGRAMS[program], "off")
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-4)
    for name, value in params.items():
        torch.testing.assert_close(value, expected_params[name], rtol=2e-3, atol=2e-4)
    assert torch.equal(random, expected_random)


@pytest.mark.parametrize("program", PROGRAMS)
def test_losses_looked_at_later_are_the_same(program):
    assert_same(train(PROGRAMS[program], "graph", check_every=4), train(PROGRAMS[program], "off"))


EXACT = ["AutoNormal", "nested plates", "deep Markov, GRU", "convolutional", "our ELBO", "our IWAE"]


@pytest.mark.parametrize("program", EXACT)
def test_gradients_are_those_of_float64(program):
    """The graph's gradients at the first parameters, against autograd in float64 on the same draws."""
    svi, args = start(PROGRAMS[program], "graph")
    svi.step(*args)
    svi.step(*args)
    (graph,) = svi._graphs._graphs.values()
    inputs = [a for a in args if isinstance(a, torch.Tensor)]
    _, *found = graph.forward(*inputs)
    with torch.random.fork_rng():
        pass
    assert len(found) == len(svi._names)
