"""The uniform prior on the sphere and its guides: against scipy's Bessel functions, quadrature and Monte Carlo."""

import math

import pytest
import scipy.special
import scipy.stats
import torch
from torch import nn
from torch.distributions import kl_divergence

import pvae
from pvae import guides, priors
from pvae.distributions import sphere

KINDS = {"vmf": sphere.VonMisesFisher, "power": sphere.PowerSpherical}
both = pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))
CONCENTRATIONS = [0.0, 1e-3, 0.7, 5.0, 60.0, 1e3, 1e4]


def make(kind, k, d, dtype=torch.float64, seed=0):
    """A distribution about some axis."""
    axis = torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return kind(nn.functional.normalize(axis, dim=0).to(dtype), torch.tensor(k, dtype=dtype))


def angles(n=40_001):
    return torch.linspace(0, math.pi, n, dtype=torch.float64)


def angle_density(q, a):
    """Of the angle from the axis: the density on the sphere times the area of a ring."""
    d = q.event_shape[0]
    across = torch.zeros(d).double()
    across[q.axis.abs().argmin()] = 1
    across = nn.functional.normalize(across - (across @ q.axis) * q.axis, dim=0)
    z = a.cos().unsqueeze(-1) * q.axis + a.sin().unsqueeze(-1) * across
    ring = sphere.log_area(d - 1) if d > 2 else math.log(2)
    return q.log_prob(z).exp() * math.exp(ring) * a.sin() ** (d - 2)


# Bessel functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3, 4, 7, 20, 41, 42, 43, 64, 100])
def test_bessel_functions_are_scipys(d):
    k = torch.logspace(-3, 4, 60, dtype=torch.float64)
    v = d / 2 - 1
    scaled = scipy.special.ive(v, k.numpy())
    seen = scaled > 1e-290  # scipy's underflow: those at order 50 and small arguments
    assert seen.sum() > 30
    found = sphere._LogBessel.apply(k, v)
    expected = torch.from_numpy(scaled).log() - v * k.log()
    torch.testing.assert_close(found[seen], expected[seen], rtol=0, atol=1e-9)
    ratio = sphere._BesselRatio.apply(k, v)
    expected = torch.from_numpy(scipy.special.ive(v + 1, k.numpy()) / scaled)
    torch.testing.assert_close(ratio[seen], expected[seen], rtol=1e-10, atol=0)


@pytest.mark.parametrize("d", [2, 3, 20, 100])
def test_bessel_functions_near_zero(d):
    """log I_v(k) - v log k -> -v log 2 - log Gamma(v + 1), and the ratio -> k / d."""
    v, k = d / 2 - 1, torch.tensor([0.0, 1e-9], dtype=torch.float64, requires_grad=True)
    expected = torch.full((2,), -v * math.log(2) - math.lgamma(v + 1), dtype=torch.float64) - k.detach()
    found = sphere._LogBessel.apply(k, v)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), k)[0], k.detach() / d - 1, rtol=0, atol=1e-14)
    (slope,) = torch.autograd.grad(sphere._BesselRatio.apply(k, v).sum(), k)
    torch.testing.assert_close(slope, torch.full_like(slope, 1 / d))


@pytest.mark.parametrize("d", [2, 3, 20, 100])
def test_slopes_are_those_of_differences(d):
    v, k = d / 2 - 1, torch.tensor([0.01, 0.5, 3.0, 20.0, 150.0, 2000.0]).double().requires_grad_()
    for function in (sphere._LogBessel, sphere._BesselRatio):
        assert torch.autograd.gradcheck(lambda x, f=function: f.apply(x, v), k, eps=1e-5, atol=1e-8)
    low, high = (sphere._BesselRatio.apply(k.detach() * s, v) for s in (1 - 1e-4, 1 + 1e-4))
    (slope,) = torch.autograd.grad(sphere._BesselRatio.apply(k, v).sum(), k)
    torch.testing.assert_close(slope, (high - low) / (2e-4 * k.detach()), rtol=1e-5, atol=0)


@both
def test_a_whole_number_is_a_concentration_too(kind):
    axis = torch.tensor([0.0, 0.0, 1.0])
    whole, same = kind(axis, torch.tensor(2)), kind(axis, torch.tensor(2.0))
    assert whole.log_prob(axis) == same.log_prob(axis)
    assert whole.kl_to_uniform() == same.kl_to_uniform()


def test_the_slope_at_the_largest_concentration():
    """1 - r^2 - (d - 1) r / k is (d - 1) / (2 k^2) there, in which all but 1e-8 cancels."""
    for d in (2, 20, 100):
        k = torch.tensor(1e4).double().requires_grad_()
        (slope,) = torch.autograd.grad(sphere._BesselRatio.apply(k, d / 2 - 1), k)
        assert slope.item() == pytest.approx((d - 1) / 2e8, rel=0.02)


# Densities ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3, 4, 20, 100])
def test_the_area(d):
    assert sphere.log_area(d) == pytest.approx(math.log(2 * math.pi ** (d / 2) / math.gamma(d / 2)))
    z = nn.functional.normalize(torch.randn(5, d), dim=-1)
    torch.testing.assert_close(priors.Sphere(d)().log_prob(z), torch.full((5,), -sphere.log_area(d)))


@both
@pytest.mark.parametrize("k", CONCENTRATIONS)
@pytest.mark.parametrize("d", [2, 3, 4, 20, 100])
def test_a_density_integrates_to_one_and_has_its_mean(kind, k, d):
    q, a = make(kind, k, d), angles()
    density = angle_density(q, a)
    assert torch.trapezoid(density, a).item() == pytest.approx(1, abs=2e-5)
    assert torch.trapezoid(density * a.cos(), a).item() == pytest.approx(q.mean_cosine().item(), abs=2e-5)
    torch.testing.assert_close(q.mean, q.axis * q.mean_cosine())


@both
def test_a_density_on_the_circle_and_the_sphere_point_by_point(kind):
    """Not by angles from the axis: all round, in coordinates that know nothing of it."""
    q, round_ = make(kind, 4.0, 2), torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)
    z = torch.stack([round_.cos(), round_.sin()], -1)
    assert torch.trapezoid(q.log_prob(z).exp(), round_).item() == pytest.approx(1, abs=1e-9)
    q, up = make(kind, 4.0, 3), torch.linspace(-1, 1, 2001, dtype=torch.float64)
    h, t = torch.meshgrid(up, round_, indexing="ij")
    across = (1 - h.square()).clamp(min=0).sqrt()
    density = q.log_prob(torch.stack([across * t.cos(), across * t.sin(), h], -1)).exp()
    assert torch.trapezoid(torch.trapezoid(density, round_), up).item() == pytest.approx(1, abs=1e-4)


def test_von_mises_fisher_is_scipys():
    for d, k in ((2, 0.5), (3, 7.0), (10, 40.0)):
        q = make(sphere.VonMisesFisher, k, d)
        z = nn.functional.normalize(torch.randn(20, d).double(), dim=-1)
        expected = scipy.stats.vonmises_fisher(q.axis.numpy(), k).logpdf(z.numpy())
        torch.testing.assert_close(q.log_prob(z), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


@both
def test_without_concentration_it_is_uniform(kind):
    z = nn.functional.normalize(torch.randn(9, 6).double(), dim=-1)
    torch.testing.assert_close(
        make(kind, 0.0, 6).log_prob(z), torch.full((9,), -sphere.log_area(6), dtype=torch.float64), rtol=0, atol=1e-9
    )


# Draws ----------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("d", [2, 3, 10, 100])
@pytest.mark.parametrize("k", [1e-3, 1.0, 30.0, 1e4])
def test_draws_are_from_the_density(kind, d, k):
    torch.manual_seed(0)
    q = make(kind, k, d, torch.float32)
    z = q.expand([20_000]).sample()
    assert ((z.norm(dim=-1) - 1).abs() < 1e-6).all()
    exact, a = make(kind, k, d), angles()
    exact.axis = q.axis.double()
    cdf = torch.cumulative_trapezoid(angle_density(exact, a), a)
    found = 2 * torch.asin((z.double() - q.axis.double()).norm(dim=-1).clamp(max=2) / 2)
    assert scipy.stats.kstest(found.numpy(), lambda v: _interpolate(v, a[1:], cdf)).pvalue > 1e-3
    # all round the axis alike
    mean = z.double().mean(0) - q.mean
    assert (mean.abs() < 4.5 * z.double().std(0) / math.sqrt(len(z)) + 1e-7).all()


def _interpolate(v, a, cdf):
    import numpy as np

    return np.interp(v, a.numpy(), cdf.numpy())


def test_uniform_draws():
    torch.manual_seed(0)
    z = priors.Sphere(4)().expand([40_000]).sample().double()
    assert (z.mean(0).abs() < 4 / 2 / math.sqrt(len(z))).all()
    second = z.T @ z / len(z)
    torch.testing.assert_close(second, torch.eye(4).double() / 4, rtol=0, atol=4 * 0.25 / math.sqrt(len(z)))


def test_proposals_are_enough():
    """The chance that none is taken, 24 times none, at concentrations and sizes of all kinds."""
    torch.manual_seed(0)
    for d in (2, 3, 10, 100):
        for k in (1e-3, 1.0, 10.0, 100.0, 1e4):
            concentration = torch.full((4000,), k)
            shape = torch.full((4000,), (d - 1) / 2)
            b = (d - 1) / (2 * concentration + (4 * concentration.square() + (d - 1) ** 2).sqrt())
            e = torch.distributions.Beta(shape, shape).sample()
            w, x0 = (1 - (1 + b) * e) / (1 - (1 - b) * e), (1 - b) / (1 + b)
            log_taken = concentration * (w - x0) + (d - 1) * ((1 - x0 * w) / (1 - x0.square())).log()
            assert (1 - log_taken.exp().clamp(max=1).mean()) ** sphere.PROPOSALS < 1e-10


@both
@pytest.mark.parametrize("d", [2, 3, 5, 30])
@pytest.mark.parametrize("k", [0.1, 3.0, 40.0, 2000.0])
def test_the_gradient_of_an_expectation_in_the_concentration(kind, d, k):
    """E[f(angle)] by quadrature, differentiated through the density; draws' gradients against it."""
    torch.manual_seed(0)

    def f(cosine):
        return (1 + k) * (cosine + (1 + k) * (1 - cosine).square())

    one = torch.tensor(k).double().requires_grad_()
    q, a = kind(make(kind, k, d).axis, one), angles()
    (expected,) = torch.autograd.grad(torch.trapezoid(angle_density(q, a) * f(a.cos()), a), one)
    many = torch.full((40_000,), k).double().requires_grad_()
    q = kind(q.axis.expand(40_000, d), many)
    (found,) = torch.autograd.grad(f((q.rsample() * q.axis).sum(-1)).sum(), many)
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(found))
    assert found.std() / math.sqrt(len(found)) < 0.1 * abs(expected) + 1e-3


@both
@pytest.mark.parametrize("d", [2, 3, 6])
def test_the_gradient_of_an_expectation_in_the_axis(kind, d):
    """E[c.z + (e.z)^2] has a closed form in the axis: r c.m + A (e.m)^2 + B, with A = E[(w^2 - (1 - w^2)/(d - 1))]."""
    torch.manual_seed(0)
    raw, c, e = (torch.randn(d).double() for _ in range(3))
    q, a, n = make(kind, 3.0, d), angles(), 100_000
    w = a.cos()
    second = torch.trapezoid(angle_density(q, a) * (w.square() - (1 - w.square()) / (d - 1)), a)
    raw.requires_grad_()
    axis = nn.functional.normalize(raw, dim=0)
    (expected,) = torch.autograd.grad(q.mean_cosine() * c @ axis + second * (e @ axis).square(), raw)
    many = raw.detach().expand(n, d).clone().requires_grad_()
    z = kind(nn.functional.normalize(many, dim=-1), torch.full((n,), 3.0).double()).rsample()
    (found,) = torch.autograd.grad((z @ c + (z @ e).square()).sum(), many)
    assert ((found.mean(0) - expected).abs() < 4 * found.std(0) / math.sqrt(n)).all()
    assert found.abs().max() < 20 * found.std()  # no direction in which it explodes


@pytest.mark.parametrize("d", [2, 3, 10, 100])
@pytest.mark.parametrize("k", [0.0, 0.5, 20.0, 3000.0])
def test_an_angle_moves_as_its_distribution_function_does(d, k):
    a = angles()
    k_ = torch.tensor(k).double().requires_grad_()
    step = 1e-4 * (1 + k)
    q = [make(sphere.VonMisesFisher, k + s, d) for s in (0.0, step, 2 * step)]
    density, *_ = each = [angle_density(p, a) for p in q]
    cdf = [torch.cumulative_trapezoid(e, a) for e in each]
    slope = -(4 * cdf[1] - cdf[2] - 3 * cdf[0]) / (2 * step) / density[1:]
    inner = (cdf[0] > 1e-3) & (cdf[0] < 1 - 1e-3)
    pick = torch.arange(len(inner))[inner][:: max(1, int(inner.sum()) // 200)]
    found = sphere._angle_slope(k_.detach().expand(len(pick)), a[1:][pick], d)
    torch.testing.assert_close(found, slope[pick], rtol=1e-3, atol=1e-5 / (1 + k))
    single = sphere._angle_slope(k_.detach().float().expand(len(pick)), a[1:][pick].float(), d)
    torch.testing.assert_close(single.double(), found, rtol=2e-3, atol=1e-5 / (1 + k))


# Kullback-Leibler divergences -----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("d", [2, 3, 40])
@pytest.mark.parametrize("k", [0.0, 0.5, 10.0, 1e4])
def test_the_divergence_from_uniform(kind, d, k):
    torch.manual_seed(0)
    n, k_ = 20_000, torch.tensor(k).double().requires_grad_()
    q, p = kind(make(kind, k, d).axis, k_), priors.Sphere(d).double()()
    kl = kl_divergence(q, p)
    a = angles()
    log_ratio = q.log_prob(q.axis * a.cos().unsqueeze(-1) + _across(q) * a.sin().unsqueeze(-1)) + sphere.log_area(d)
    density = angle_density(q, a)
    integrand = torch.where(density > 1e-290, density * log_ratio, 0.0)
    assert kl.item() == pytest.approx(torch.trapezoid(integrand, a).item(), rel=1e-4, abs=1e-6)
    (slope,) = torch.autograd.grad(kl, k_)
    h = 1e-3 * (1 + k)
    after, before = (kl_divergence(make(kind, k + h * s, d), p) for s in (2, 1))
    difference = (4 * before - after - 3 * kl.detach()) / (2 * h)
    assert slope.item() == pytest.approx(difference.item(), rel=2e-3, abs=2e-5)
    single = make(kind, k, d, torch.float32).expand([n])
    z = single.sample()
    draws = (single.log_prob(z) - priors.Sphere(d)().log_prob(z)).double()
    assert abs(draws.mean() - kl.item()) < 4 * draws.std() / math.sqrt(n) + 1e-5


def _across(q):
    across = torch.zeros_like(q.axis)
    across[q.axis.abs().argmin()] = 1
    return nn.functional.normalize(across - (across @ q.axis) * q.axis, dim=0)


@pytest.mark.parametrize("guide", [guides.VonMisesFisher, guides.PowerSpherical])
def test_the_closed_form_is_what_the_elbo_takes(guide):
    torch.manual_seed(0)
    vae = pvae.VAE(priors.Sphere(3), pvae.Bernoulli(nn.Linear(3, 4), (4,)), guide(nn.Linear(4, 6), 3))
    x = torch.bernoulli(torch.rand(6, 4))
    kl = kl_divergence(vae.encode(x), vae.prior())
    torch.manual_seed(1)
    found = pvae.ELBO(50, analytic_kl=True).bounds(vae.model, vae.guide, x)
    torch.manual_seed(1)
    terms = vae.log_weights(x, particles=50)
    torch.testing.assert_close(found, terms.likelihood.mean(0) - kl)
    plain = pvae.ELBO(20_000).bounds(vae.model, vae.guide, x)
    many = pvae.ELBO(20_000, analytic_kl=True).bounds(vae.model, vae.guide, x)
    torch.testing.assert_close(plain, many, rtol=0, atol=0.03)


# Parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", [guides.VonMisesFisher, guides.PowerSpherical])
@pytest.mark.parametrize("d", [2, 3, 100])
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0, -300.0])
def test_all_is_finite_at_any_concentration(guide, d, scale):
    torch.manual_seed(0)
    raw = torch.randn(200, 2 * d)
    raw[:, d:] = scale
    raw.requires_grad_()
    q = guide(nn.Identity(), d, min_concentration=0.0)(raw)
    assert q.concentration.max() <= 1e4
    z = q.rsample()
    assert ((z.norm(dim=-1) - 1).abs() < 1e-6).all()
    loss = q.log_prob(z).sum() + z[:, 0].sum() + kl_divergence(q, priors.Sphere(d)()).sum()
    assert loss.isfinite()
    (slope,) = torch.autograd.grad(loss, raw)
    assert slope.isfinite().all()


def test_an_encoders_numbers_are_a_direction_and_a_concentration():
    raw = torch.tensor([[3.0, 0.0, -4.0, 1.0, 2.0, 3.0]])
    for guide in (guides.VonMisesFisher, guides.PowerSpherical):
        q = guide(nn.Identity(), 3)(raw)
        torch.testing.assert_close(q.axis, torch.tensor([[0.6, 0.0, -0.8]]))
        torch.testing.assert_close(q.concentration, torch.tensor([1 + 3 * math.log1p(math.exp(2.0))]))
        assert guide(nn.Identity(), 3, max_concentration=1.5)(raw).concentration.item() == 1.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: priors.Sphere(1),
            "latent: found 1, expected at least 2: the unit sphere in 1 dimension is two points",
        ),
        (lambda: guides.VonMisesFisher(nn.Identity(), 1), "latent: found 1, expected at least 2"),
        (lambda: guides.PowerSpherical(nn.Identity(), 1), "latent: found 1, expected at least 2"),
        (
            lambda: guides.VonMisesFisher(nn.Identity(), 2, max_concentration=2e4),
            "min_concentration, max_concentration: found 1.0, 20000.0, expected 0 <= min_concentration < max_conc",
        ),
        (lambda: guides.PowerSpherical(nn.Identity(), 2, min_concentration=-1.0), "found -1.0, 10000.0, expected 0"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    with pytest.raises(pvae.InputError, match=message):
        wrong()


def test_a_value_off_the_sphere_is_refused():
    for p in (priors.Sphere(3)(), make(sphere.VonMisesFisher, 1.0, 3), make(sphere.PowerSpherical, 1.0, 3)):
        with pytest.raises(ValueError, match="support"):
            p.log_prob(torch.ones(3).double())
