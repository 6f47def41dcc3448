"""The gap split against the exact gaps of a model whose posterior is correlated."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pvae
from pvae import exact
from pvae.ais import Annealed, Annealing, ais
from pvae.gap import gap
from pvae.noise import CELL

WEIGHT = torch.tensor([[1.0, 0.8], [0.2, 0.7], [-0.5, -0.3], [0.7, -0.2]], dtype=torch.float64)


def linear(n=60):
    """A linear VAE with a guide worse than its best diagonal one, the truth, data, log p(x) and the exact ELBO."""
    truth = exact.LinearGaussian(WEIGHT, torch.zeros(4).double(), torch.tensor(0.1).double())
    vae = exact.LinearVAE(4, 2).double().set_(truth)
    with torch.no_grad():
        vae.guide_log_scales.add_(torch.tensor([0.3, -0.5]))
        vae.encoder.bias.add_(0.1)
    _, x = truth.sample(n, torch.Generator().manual_seed(3))
    with torch.no_grad():
        elbo = truth.elbo(x, vae.encoder(x), (2 * vae.guide_log_scales).exp())
    return vae, truth, x, truth.log_prob(x), elbo


def test_the_gaps_are_the_exact_ones():
    vae, truth, x, log_p, elbo = linear()
    found = gap(vae.model, vae.guide, x, log_p=log_p, steps=300, draws=2000)
    columns = found.columns()
    expected = {
        "inference": log_p - elbo,
        "approximation.mean_field": truth.gap().expand(len(x)),
        "amortization.mean_field": log_p - truth.gap() - elbo,
        "approximation.flow": torch.zeros(len(x)),  # a Gaussian posterior is in the family
        "amortization.flow": log_p - elbo,
    }
    assert list(columns) == list(expected)
    slack = {"approximation.mean_field": 0.004, "amortization.mean_field": 0.004}  # the fit stops short of the best
    for name, (value, se) in columns.items():
        error = 4 * se.square().sum().sqrt() / len(x)
        assert (value - expected[name]).mean().abs() < error + slack.get(name, 0.01), name
        # the errors said for each datum are the right size
        standard = (value - expected[name]) / se
        if "flow" not in name:
            assert 0.7 < standard.std() < 1.4, name
    assert columns["approximation.mean_field"][0].mean() > 0.15
    assert columns["approximation.flow"][0].mean() > 0  # no bound is above log p(x)


def test_a_guide_at_its_best_has_no_amortization_gap():
    truth = exact.LinearGaussian(WEIGHT, torch.zeros(4).double(), torch.tensor(0.1).double())
    vae = exact.LinearVAE(4, 2).double().set_(truth)
    _, x = truth.sample(60, torch.Generator().manual_seed(3))
    found = gap(vae.model, vae.guide, x, log_p=truth.log_prob(x), families=["mean_field"], steps=200)
    value, se = found.columns()["amortization.mean_field"]
    assert value.mean().abs() < 4 * se.square().sum().sqrt() / 60 + 0.004


def test_log_p_may_come_from_annealing():
    vae, _, x, log_p, _ = linear(20)
    annealed = ais(vae.model, x, annealing=Annealing(100, 8, 5))
    found = gap(vae.model, vae.guide, x, log_p=annealed, families=[], draws=20)
    assert torch.equal(found.log_p, annealed.log_p)
    assert torch.equal(found.se["log_p"], annealed.se)
    assert list(found.columns()) == ["inference"]
    assert (found.log_p - log_p).abs().mean() < 0.3
    assert isinstance(annealed, Annealed)


def test_a_posterior_on_a_bounded_support_and_several_sites():
    """Log p(x) by conjugacy; the guide is the exact posterior of one site and the prior of the other."""
    x = torch.tensor([0.0, 2.0, 6.0]).double().repeat(20)

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0).double(), 1.0))
            pyro.sample("idle", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(3.0 + x, 2.0))
            pyro.sample("idle", dist.Normal(torch.ones(2).double(), 1.0).to_event(1))

    log_p = dist.GammaPoisson(torch.tensor(3.0).double(), 1.0).log_prob(x)
    found = gap(model, guide, x, torch.zeros(60), log_p=log_p, steps=200)
    value, se = found.columns()["inference"]
    assert (value.mean() - 1).abs() < 4 * se.mean() / math.sqrt(60)  # KL of N(1, I) from N(0, I), two dimensions
    approximation, _ = found.columns()["approximation.mean_field"]
    assert 0 < approximation.mean() < 0.05  # a log-normal is near the Gamma
    richer, _ = found.columns()["approximation.flow"]
    assert richer.mean() < approximation.mean() + 0.005


def test_a_flow_bends_where_a_gaussian_cannot():
    """x = z_0 exactly known but for noise, and z_1 near z_0^2: a banana."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 1] - z[..., 0].square(), 0.3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 0.5).expand([len(x), 2]).to_event(1))

    x = torch.linspace(-1, 1, 4)
    grid = torch.linspace(-6, 6, 1201)
    z = torch.cartesian_prod(grid, grid)
    joint = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(z[:, 1] - z[:, 0] ** 2, 0.3).log_prob(x[:, None])
    log_p = joint.logsumexp(1) + 2 * math.log(0.01)
    found = gap(model, guide, x, log_p=log_p, steps=600)
    mean_field, flow = (found.columns()[f"approximation.{family}"][0] for family in ("mean_field", "flow"))
    assert (mean_field > 0.25).all()
    assert (flow < 0.25 * mean_field).all()
    assert (flow > -0.02).all()


def test_draws_far_out_do_not_throw_a_flow_off():
    """A layer whose scale is an exponential of the one above: now and then a gradient is huge."""

    def model(x):
        with pyro.plate("data", len(x)):
            above = pyro.sample("above", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(torch.zeros(3), above.exp()).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            above = pyro.sample("above", dist.Normal(torch.zeros(1), 1.0).expand([len(x), 1]).to_event(1))
            pyro.sample("z", dist.Normal(torch.zeros(3), above.exp()).to_event(1))

    found = gap(model, guide, torch.linspace(-1, 1, 8), log_p=torch.zeros(8), steps=300)
    assert (found.local["flow"] > found.local["mean_field"]).all()  # in whose family it is
    assert found.local["mean_field"].min() > -8


def test_chunks_change_nothing_and_nothing_is_disturbed():
    vae, _, x, log_p, _ = linear(CELL + 5)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    before, ticks = [p.clone() for p in vae.parameters()], []
    found = [
        gap(vae.model, vae.guide, x, log_p=log_p, steps=3, draws=20, chunk=chunk, progress=lambda *n: ticks.append(n))
        for chunk in (1, 10**6)
    ]
    for (name, (value, se)), (other, other_se) in zip(
        found[0].columns().items(), found[1].columns().values(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-9, msg=name)
        torch.testing.assert_close(se, other_se, rtol=0, atol=1e-9, msg=name)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(vae.parameters(), before, strict=True))
    assert ticks == [(n, 12) for n in range(1, 13)] + [(n, 6) for n in range(1, 7)]
    assert "nats, 37 data" in repr(found[0])


@pytest.mark.parametrize("latent", [1, 3])
def test_any_number_of_latents_and_labels(new_vae, latent):
    vae = new_vae(latent=latent)
    x, y = torch.bernoulli(torch.rand(5, 4, 5)), torch.arange(5)
    found = gap(vae.model, vae.guide, x, y, log_p=torch.zeros(5), steps=2, draws=3, particles=1)
    for value, se in found.columns().values():
        assert value.shape == se.shape == (5,)
        assert value.dtype == torch.float64
        assert not value.requires_grad


def inside(x, n, obs=True):
    """x_t about log z_t, of which each datum has its first n, masked in the event; or the exact posterior."""
    mask = torch.arange(4) < n[:, None]
    mean, scale = (torch.zeros(len(x), 4).double(), 1.0) if obs else (x / 2, 0.5**0.5)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(mean, scale).mask(mask).to_event(1))
        if obs:
            pyro.sample("x", dist.Normal(z.log(), 1.0).mask(mask).to_event(1), obs=x)


def outside(x, n, obs=True):
    """The same in a plate of its own, masked by the handler; one site shows which plate is the data's."""
    mean, scale = (torch.zeros(len(x), 4).double(), 1.0) if obs else (x / 2, 0.5**0.5)
    data, steps = pyro.plate("data", len(x), dim=-2), pyro.plate("steps", 4, dim=-1)
    with data, steps, poutine.mask(mask=torch.arange(4) < n[:, None]):
        z = pyro.sample("z", dist.LogNormal(mean, scale))
        if obs:
            pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)
    if obs:
        with data:
            pyro.sample("n", dist.Delta(n[:, None]), obs=n[:, None])


def in_turn(x, n, obs=True):
    """The same as four sites."""
    with pyro.plate("data", len(x)):
        for t in range(4):
            with poutine.mask(mask=n > t):
                mean, scale = (torch.zeros(()).double(), 1.0) if obs else (x[:, t] / 2, 0.5**0.5)
                z = pyro.sample(f"z{t}", dist.LogNormal(mean, scale))
                if obs:
                    pyro.sample(f"x{t}", dist.Normal(z.log(), 1.0), obs=x[:, t])


@pytest.mark.parametrize("program", [inside, outside, in_turn])
def test_masked_latents_are_in_no_gap(program):
    n = torch.tensor([1, 2, 3, 4]).repeat(5)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()
    log_p = (dist.Normal(0.0, 2**0.5).log_prob(x) * (torch.arange(4) < n[:, None])).sum(-1)
    found = gap(program, partial(program, obs=False), x, n, log_p=log_p, steps=200)
    for name, (value, _) in found.columns().items():  # a Gaussian in log z is in both families
        assert value.abs().max() < 0.1, name


def test_a_mask_that_draws_choose_is_refused():
    def program(x, obs=True):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=z > 0):
                pyro.sample("w", dist.Normal(0.0, 1.0))
            if obs:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(pvae.InputError, match="masked in some draws of a datum and not in others"):
        gap(program, partial(program, obs=False), torch.zeros(3), log_p=torch.zeros(3), steps=1)


def test_angles_are_refused():
    def program(x, obs=True):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.VonMises(x, 2.0).mask(True))
            if obs:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(pvae.InputError, match="gap: site 'z': found angles"):
        gap(program, partial(program, obs=False), torch.zeros(3), log_p=torch.zeros(3), steps=1)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_the_scale_of_latents_does_not_matter(scale):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale * 0.5**0.5))

    x = scale * torch.linspace(-1, 1, 5)
    found = gap(model, guide, x, log_p=dist.Normal(0.0, 2**0.5 * scale).log_prob(x), steps=50)
    for name, (value, _) in found.columns().items():
        assert value.abs().max() < 0.05, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": ["flows"]}, "did you mean 'flow'"),
        ({"steps": 0}, "steps: found 0"),
        ({"particles": 0}, "particles: found 0"),
        ({"draws": 0}, "draws: found 0"),
        ({"log_p": torch.zeros(4)}, r"log_p: found shape \(4,\)"),
    ],
)
def test_bad_input_is_refused(vae, x, options, message):
    with pytest.raises(pvae.InputError, match=message):
        gap(vae.model, vae.guide, x, **{"log_p": torch.zeros(7), **options})


def test_a_fit_that_diverges_is_named(vae, x):
    with pytest.raises(pvae.InputError, match=r"the mean_field of datum \d+ is not a number"):
        gap(vae.model, vae.guide, x, log_p=torch.zeros(7), families=["mean_field"], steps=3, draws=3, rate=math.inf)
