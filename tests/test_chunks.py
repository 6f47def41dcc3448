"""Particles in parts: the same bound and gradient in less memory."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pvae
from pvae import chunks, weights
from pvae.errors import InputError


def gradients(objective, programs, x):
    torch.manual_seed(3)
    loss = objective.differentiable_loss(programs.model, programs.guide, x)
    found = torch.autograd.grad(loss, list(programs.parameters()), allow_unused=True)
    return loss.detach(), [g for g in found if g is not None]


OBJECTIVES = {
    "elbo": (pvae.ELBO, "reparam"),
    "iwae": (pvae.IWAE, "reparam"),
    "stl": (pvae.IWAE, "stl"),
    "dreg": (pvae.IWAE, "dreg"),
    "gdreg": (pvae.IWAE, "gdreg"),
    "vimco": (pvae.IWAE, "vimco"),
    "rws": (pvae.IWAE, "rws"),
    "tvo": (pvae.TVO, "reparam"),
    "miwae": (lambda k, **options: pvae.MIWAE(k, groups=5, **options), "dreg"),
}


@pytest.mark.parametrize("chunk", [1, 4, 9])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_give_the_same_bound_and_gradient(name, chunk, vae, x):
    make, gradient = OBJECTIVES[name]
    vae.double()
    whole = gradients(make(10, gradient=gradient), vae, x.double())
    parts = gradients(make(10, gradient=gradient, chunk=chunk), vae, x.double())
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)


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


def test_several_sites_and_plates():
    programs, x = Chain().double(), torch.randn(5).double()
    for gradient in ("reparam", "dreg"):
        options = {"gradient": gradient, "max_plate_nesting": 2}
        whole = gradients(pvae.IWAE(7, **options), programs, x)
        torch.testing.assert_close(gradients(pvae.IWAE(7, chunk=3, **options), programs, x), whole)


def test_it_is_traced(vae, x):
    svis = [
        pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pvae.IWAE(8, chunk=3), compile=mode)
        for mode in ("off", "graph")
    ]
    start = {name: value.clone() for name, value in vae.state_dict().items()}
    found = []
    for svi in svis:
        vae.load_state_dict(start)
        torch.manual_seed(1)
        found.append([svi.step(x) for _ in range(4)])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert svis[1]._graphs._graphs


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

    latents = 7 * 3  # the draws, of which alone a few arrays are kept for every particle
    assert kept(400, 20) - kept(40, 20) < 360 * 15 * latents
    assert kept(400, 400) - kept(40, 40) > 360 * 7 * 400


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


def test_bad_chunks():
    with pytest.raises(InputError, match="chunk: found 0, expected at least 1"):
        pvae.IWAE(5, chunk=0)
    with pytest.raises(InputError, match="analytic_kl: found a chunk"):
        pvae.ELBO(5, analytic_kl=True, chunk=2)


def test_the_analytic_kl_of_many_particles(vae, x):
    assert pvae.ELBO(100, analytic_kl=True).bounds(vae.model, vae.guide, x).shape == (7,)


def test_sites_keep_no_distribution(vae, x):
    drawn = weights.draw(vae.guide, x, particles=5, max_plate_nesting=1)
    traces = chunks.score(vae.model, drawn, 2, x)
    assert {site["fn"] for site in traces.model.values()} == {None}
