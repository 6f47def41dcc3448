"""Particles in parts: the same bound and gradient in less memory."""

import copy
from functools import partial
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae.distributions import DiagonalNormal
from pvae.errors import InputError
from pvae.estimators import chunks


def gradients(objective, programs, x):
    torch.manual_seed(3)
    loss = objective.differentiable_loss(programs.model, programs.guide, x)
    found = torch.autograd.grad(loss, list(programs.parameters()), allow_unused=True)
    return loss.detach(), [g for g in found if g is not None]


def compare(make, options, chunk, programs, x, distribution, sites=1):
    """What is found in parts, and at once from the very noise that the parts drew, site by site."""
    drawn, real = [], distribution.rsample

    def noting(self, *shape):
        value = real(self, *shape)
        drawn.append(((value - self.loc) / self.scale).detach())
        return value

    in_parts, at_once = looked(make(chunk=chunk, **options), programs, x), looked(make(**options), programs, x)
    with patch.object(distribution, "rsample", noting):
        parts = gradients(in_parts, programs, x)
    first = drawn[: len(drawn) // 2]  # the other half is the second run
    torch.testing.assert_close(drawn[len(drawn) // 2 :], reversed_parts(first, sites))
    dim = max(noise.dim() for noise in first) + (chunk == 1)  # one particle has no dimension
    noises = [torch.cat([n.expand(1, *n.shape) if n.dim() < dim else n for n in first[i::sites]]) for i in range(sites)]

    with patch.object(distribution, "rsample", lambda self, *_: self.loc + self.scale * noises.pop(0)):
        whole = gradients(at_once, programs, x)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)


def looked(objective, programs, x):
    """The objective, which has looked at the programs, and does not look again."""
    objective.loss(programs.model, programs.guide, x)
    return objective


def reversed_parts(drawn, sites):
    """Gradients are taken from the last part to the first."""
    parts = [drawn[i : i + sites] for i in range(0, len(drawn), sites)]
    return [noise for part in reversed(parts) for noise in part]


class EachDraw(pvae.IWAE):
    """With a weight of the KL for each draw."""

    def beta_for(self, rate):
        return 0.1 + (rate > rate.mean(0)).to(rate.dtype)


OBJECTIVES = {
    "elbo": (pvae.ELBO, "reparam"),
    "iwae": (pvae.IWAE, "reparam"),
    "stl": (pvae.IWAE, "stl"),
    "dreg": (pvae.IWAE, "dreg"),
    "gdreg": (pvae.IWAE, "gdreg"),
    "vimco": (pvae.IWAE, "vimco"),
    "rws": (pvae.IWAE, "rws"),
    "tvo": (pvae.TVO, "reparam"),
    "each draw's beta": (EachDraw, "dreg"),
    "miwae": (lambda k, **options: pvae.MIWAE(k, groups=5, **options), "dreg"),
}


@pytest.mark.parametrize("chunk", [1, 4, 9])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_give_the_same_bound_and_gradient(name, chunk, vae, x):
    make, gradient = OBJECTIVES[name]
    options = {"gradient": gradient, "max_plate_nesting": 1}
    compare(partial(make, 10), options, chunk, vae.double(), x.double(), DiagonalNormal)


@pytest.mark.parametrize("options", [{"beta": 0.3}, {"warmup": 4}, {"free_bits": 100.0}], ids=str)
def test_parts_under_a_weighted_kl(options, vae, x):
    compare(partial(pvae.IWAE, 10), {**options, "max_plate_nesting": 1}, 4, vae.double(), x.double(), DiagonalNormal)


class Chain(nn.Module):
    """Two latent sites, the second within a plate of its own inside the plate of data."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(v)) for v in (0.3, 0.8, -0.2))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.c, 1.0))
            with pyro.plate("inner", 2, dim=-2):
                u = pyro.sample("u", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(u.sum(-2, keepdim=True), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.a * x, 0.7))
            with pyro.plate("inner", 2, dim=-2):
                pyro.sample("u", dist.Normal(self.b * z, 0.6))


@pytest.mark.parametrize("gradient", ["reparam", "dreg", "vimco"])
def test_several_sites_and_plates(gradient):
    options = {"gradient": gradient, "max_plate_nesting": 2}
    compare(partial(pvae.IWAE, 6), options, 3, Chain().double(), torch.randn(5).double(), dist.Normal, sites=2)


def test_a_fit_in_parts(vae, x):
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pvae.IWAE(8, chunk=3))
    before = svi.step(x)
    assert [svi.step(x) for _ in range(100)][-1] < before - 5
    assert not svi._graphs._graphs, "its random numbers are drawn twice, which a graph cannot do"


def test_without_a_gradient(vae, x):
    found = pvae.IWAE(8, chunk=3).loss(vae.model, vae.guide, x)
    assert found == pytest.approx(pvae.IWAE(8).loss(vae.model, vae.guide, x), rel=0.05)


def test_the_memory_of_the_gradient_does_not_grow_with_k(new_vae):
    vae, x = new_vae(shape=(20, 20)), torch.ones(7, 20, 20)

    def kept(k, chunk):
        sizes = []

        def note(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            pvae.IWAE(k, chunk=chunk).differentiable_loss(vae.model, vae.guide, x)
        return sum(sizes)

    assert kept(400, 20) - kept(40, 20) < 360 * 7 * 10  # a few numbers for each particle and datum
    assert kept(400, 400) - kept(40, 40) > 360 * 7 * 400


@pytest.mark.cuda
def test_no_more_than_its_share_of_a_gpu_is_free(cuda):
    x = torch.ones(3, device="cuda")
    every = chunks._free((x,))
    if cuda is None:
        torch.cuda.set_per_process_memory_fraction(0.01)
    else:
        cuda.share = 0.01
    try:
        assert 0 < chunks._free((x,)) < 0.1 * every
    finally:
        if cuda is None:
            torch.cuda.set_per_process_memory_fraction(1.0)


def test_what_fits_is_found_from_the_free_memory(vae, x, monkeypatch):
    def fitting(free):
        monkeypatch.setattr(chunks, "_free", lambda args: free)
        return chunks.fitting(vae.model, vae.guide, 1000, 1, (x,), {})

    before = torch.get_rng_state()
    assert fitting(2**40) == 1000
    assert fitting(0) == 1
    few, more = fitting(2**21), fitting(2**22)
    assert 1 < few < 1000
    assert more == pytest.approx(2 * few, abs=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert chunks.fitting(vae.model, vae.guide, chunks.FEW, 1, (x,), {}) == chunks.FEW


@pytest.fixture
def room(monkeypatch):
    """Room for 1,000 particles of two data, not of seven; what is looked for is counted."""
    sizes, fitting = [], chunks.fitting

    def noting(*args, **options):
        sizes.append(len(args[4][0]))
        return fitting(*args, **options)

    monkeypatch.setattr(chunks, "_free", lambda args: 2**21)
    monkeypatch.setattr(chunks, "fitting", noting)
    return sizes


def fit_of(vae, compile="off"):
    return pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pvae.IWAE(1000), compile=compile)


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_what_fits_is_found_anew_for_a_larger_batch_alone(mode, new_vae, x, room):
    expected = fit_of(new_vae())
    expected.step(x)
    svi = fit_of(new_vae(), mode)
    room.clear()
    for batch in (x[:1], x[:2], x[:1], x[:2]):
        svi.step(batch)
    assert (room, svi.objective.in_parts) == ([1, 2], False)
    for batch in (x, x[:1], x, x[:1]):
        svi.step(batch)
        assert 1 < svi.objective._fits[True] == expected.objective._fits[True] < 1000
    assert room == [1, 2, 7]


def test_larger_batches_that_fit_leave_the_graphs_that_there_are(vae, x, room):
    svi = fit_of(vae, "graph")
    svi.step(x[:1])
    svi.step(x[:1])
    (graph,) = svi._graphs._graphs.values()
    svi.step(x[:2])
    svi.step(x[:1])
    assert room == [1, 2]
    assert next(iter(svi._graphs._graphs.values())) is graph
    assert graph.played == 2


def test_a_loss_without_a_gradient_says_nothing_of_the_steps(vae, x, room):
    svi = fit_of(vae)
    svi.evaluate_loss(x[:1])
    svi.step(x[:2])
    svi.evaluate_loss(x)
    svi.step(x[:2])
    assert (room, svi.objective.in_parts) == ([1, 2, 7], False)


def test_a_resumed_fit_takes_as_many_at_once(new_vae, x, room):
    vae = new_vae()
    svi = fit_of(vae)
    for batch in (x[:1], x):
        svi.step(batch)
    saved = copy.deepcopy((vae.state_dict(), svi.state_dict())), torch.get_rng_state()
    expected = [svi.step(batch) for batch in (x[:1], x)]
    pyro.clear_param_store()
    (weights, state), random = saved
    vae = new_vae(seed=1)
    vae.load_state_dict(weights)
    svi = fit_of(vae)
    svi.load_state_dict(state)
    torch.set_rng_state(random)
    room.clear()
    assert [svi.step(batch) for batch in (x[:1], x)] == expected
    assert not room


def test_what_fits_is_found_anew_without_a_trace(x, room):
    class Running(Chain):
        """Of data that a layer has centred; its running mean moves."""

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def guide(self, x):
            pyro.module("programs", self)
            super().guide(self.norm(x.unsqueeze(1))[:, 0])

    found = []
    for known in (0, 9):
        programs, x = Running(), torch.arange(9.0)
        svi = fit_of(programs)
        torch.manual_seed(0)
        svi.step(x[:4])
        svi.objective._largest[True] = known or 4
        found.append((svi.step(x), programs.norm.running_mean.clone(), torch.get_rng_state()))
        pyro.clear_param_store()
    assert room == [4, 9, 4]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_the_free_memory_of_a_cpu_is_known_or_guessed(monkeypatch):
    assert chunks._free(()) > 2**20
    monkeypatch.delitem(chunks.os.sysconf_names, "SC_AVPHYS_PAGES")  # as on macOS
    assert chunks._free(()) == chunks.UNKNOWN
    monkeypatch.delattr(chunks.os, "sysconf_names")  # as on Windows
    assert chunks._free(()) == chunks.UNKNOWN


def test_bad_chunks():
    with pytest.raises(InputError, match="chunk: found 0, expected at least 1"):
        pvae.IWAE(5, chunk=0)
    with pytest.raises(InputError, match="analytic_kl: found a chunk"):
        pvae.ELBO(5, analytic_kl=True, chunk=2)


def test_the_analytic_kl_of_many_particles(vae, x):
    assert pvae.ELBO(100, analytic_kl=True).bounds(vae.model, vae.guide, x).shape == (7,)
