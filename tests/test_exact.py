"""The closed forms against other routes to the same number: torch's densities, quadrature, Monte Carlo, autograd."""

import copy
import dataclasses
import math
import re

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pvae.errors import InputError
from pvae.exact import (
    LinearGaussian,
    LinearVAE,
    fit_ppca,
    gaussian_kl,
    gaussian_kl_full,
    ppca_log_likelihood,
)

N, D, K = 7, 5, 3
DRAWS = 200_000
STANDARD_ERRORS = 4


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def covariance(*batch, size=K):
    root = randn(*batch, size, size)
    return root @ root.mT / size + 0.5 * torch.eye(size, dtype=torch.float64)


def rotation(size=K):
    return torch.linalg.qr(randn(size, size))[0]


def linear_gaussian(dim=D, latent=K, variance=0.7):
    return LinearGaussian(randn(dim, latent), randn(dim), torch.tensor(variance, dtype=torch.float64))


def marginal(model):
    eye = torch.eye(len(model.mean), dtype=torch.float64)
    return MultivariateNormal(model.mean, model.weight @ model.weight.mT + model.variance * eye)


def data(n=200):
    """Gaussian, with standard deviations of 3 to 0.5 along axes of its own."""
    scales = torch.tensor([3.0, 2.0, 1.2, 0.8, 0.5], dtype=torch.float64)
    return randn(n, D) * scales @ rotation(D) + randn(D)


def log_joint(model, z, x):
    """log p(x, z) of z (..., N, k) and x (N, D): (..., N)."""
    prior = Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)
    return prior + Normal(z @ model.weight.mT + model.mean, model.variance.sqrt()).log_prob(x).sum(-1)


def assert_close(found, expected, atol=1e-10):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def assert_within_error(draws, expected):
    """The mean over the first dimension is the expected one within 4 of its standard errors."""
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - expected).abs() <= STANDARD_ERRORS * error).all()


# Gaussian KL


def test_gaussian_kl_is_torchs_and_broadcasts():
    mean_q, scale_q, mean_p, scale_p = randn(4, 3), randn(4, 3).exp(), randn(3), randn(4, 1).exp()
    expected = kl_divergence(Normal(mean_q, scale_q), Normal(mean_p.expand(4, 3), scale_p.expand(4, 3)))
    assert_close(gaussian_kl(mean_q, scale_q, mean_p, scale_p), expected)


def test_gaussian_kl_is_the_reference_formula():
    m1, s1, m2, s2 = 0.3, 0.5, -1.0, 2.0
    expected = math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5
    arguments = (torch.tensor(value, dtype=torch.float64) for value in (m1, s1, m2, s2))
    assert gaussian_kl(*arguments).item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("batch", [(), (4,), (2, 4)])
def test_gaussian_kl_full_is_torchs(batch):
    mean_q, cov_q, mean_p, cov_p = randn(*batch, K), covariance(*batch), randn(K), covariance()
    expected = kl_divergence(MultivariateNormal(mean_q, cov_q), MultivariateNormal(mean_p, cov_p))
    assert_close(gaussian_kl_full(mean_q, cov_q, mean_p, cov_p), expected)


def test_gaussian_kl_full_of_diagonals_is_the_sum_of_gaussian_kl():
    mean_q, scale_q, mean_p, scale_p = randn(K), randn(K).exp(), randn(K), randn(K).exp()
    full = gaussian_kl_full(mean_q, (scale_q**2).diag(), mean_p, (scale_p**2).diag())
    assert_close(full, gaussian_kl(mean_q, scale_q, mean_p, scale_p).sum())


# The model


@pytest.mark.parametrize("variance", [1e-4, 0.7, 30.0])
@pytest.mark.parametrize(("dim", "latent"), [(5, 3), (1, 1), (2, 4)])
def test_log_prob_is_the_marginal_density(dim, latent, variance):
    model = linear_gaussian(dim, latent, variance)
    _, x = model.sample(N)
    assert_close(model.log_prob(x), marginal(model).log_prob(x), atol=1e-8 if variance < 1e-3 else 1e-10)


def test_posterior_satisfies_bayes_rule_everywhere():
    model, x, z = linear_gaussian(), randn(N, D), randn(100, N, K)
    posterior = model.posterior(x)
    assert (posterior.batch_shape, posterior.event_shape) == ((N,), (K,))
    assert_close(log_joint(model, z, x) - posterior.log_prob(z), model.log_prob(x).expand(100, N))


def test_sample_has_the_moments_of_the_model():
    model = linear_gaussian()
    z, x = model.sample(DRAWS)
    assert_within_error(x, model.mean)
    centred = x - model.mean
    assert_within_error(centred.unsqueeze(-1) * centred.unsqueeze(-2), marginal(model).covariance_matrix)
    assert_within_error(centred.unsqueeze(-1) * z.unsqueeze(-2), model.weight)


def test_sample_is_a_function_of_the_generator():
    model = linear_gaussian()
    first, second = (model.sample(3, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(model.sample(3)[1], first[1])


def test_elbo_of_the_posterior_is_log_prob():
    model, x = linear_gaussian(), randn(N, D)
    q = model.posterior(x)
    for cov in (q.covariance_matrix, q.covariance_matrix[0]):
        assert_close(model.elbo(x, q.mean, cov), model.log_prob(x))


@pytest.mark.parametrize("shape", [(), (N,)], ids=["shared", "by datum"])
def test_elbo_is_log_prob_less_the_kl_to_the_posterior(shape):
    model, x, mean, cov = linear_gaussian(), randn(N, D), randn(N, K), covariance(*shape)
    kl = kl_divergence(MultivariateNormal(mean, cov), model.posterior(x))
    assert_close(model.elbo(x, mean, cov), model.log_prob(x) - kl)


def test_elbo_takes_a_diagonal():
    model, x, mean, diagonal = linear_gaussian(), randn(N, D), randn(N, K), randn(K).exp()
    assert torch.equal(model.elbo(x, mean, diagonal), model.elbo(x, mean, diagonal.diag()))


def test_elbo_is_the_mean_log_weight():
    model, x, mean, cov = linear_gaussian(), randn(N, D), randn(N, K), covariance()
    q = MultivariateNormal(mean, cov)
    z = q.sample((DRAWS,))
    assert_within_error(log_joint(model, z, x) - q.log_prob(z), model.elbo(x, mean, cov))


def test_gap_is_what_the_best_diagonal_guide_lacks():
    model, x = linear_gaussian(), randn(N, D)
    elbo = model.elbo(x, model.posterior(x).mean, model.best_diagonal())
    assert_close(model.log_prob(x) - elbo, model.gap().expand(N))
    assert model.gap() > 0.01


def test_best_diagonal_is_a_stationary_point_and_the_best():
    model, x = linear_gaussian(), randn(N, D)
    mean, diagonal = model.posterior(x).mean.requires_grad_(), model.best_diagonal().requires_grad_()
    elbo = model.elbo(x, mean, diagonal)
    for gradient in torch.autograd.grad(elbo.sum(), (mean, diagonal)):
        assert_close(gradient, torch.zeros_like(gradient))
    for _ in range(20):
        assert (model.elbo(x, mean + 0.1 * randn(N, K), diagonal * (0.1 * randn(K)).exp()) < elbo).all()


def test_orthogonal_columns_leave_no_gap_and_a_rotation_does():
    x = data()
    assert_close(fit_ppca(x, K).gap(), torch.tensor(0.0, dtype=torch.float64))
    rotated = fit_ppca(x, K, rotation=rotation())
    assert rotated.gap() > 0.01
    q = rotated.posterior(x)
    assert_close(rotated.elbo(x, q.mean, q.covariance_matrix), rotated.log_prob(x))


def test_data_may_be_of_another_dtype():
    model, x = linear_gaussian(), randn(N, D).float()
    assert model.log_prob(x).dtype == torch.float64
    mean = torch.zeros(N, K)
    assert torch.equal(model.elbo(x, mean, torch.ones(K)), model.elbo(x.double(), mean.double(), torch.eye(K).double()))


def test_model_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        linear_gaussian().mean = torch.zeros(D)


# The limit of importance weighting


def quadrature(model, x, mean, variance):
    """1/2 Var_q(w) of one datum and one latent, on a grid: w = p(x, z) / (q(z|x) p(x))."""
    posterior, q = model.posterior(x), Normal(mean.squeeze(), variance.sqrt().squeeze())
    z = posterior.mean.squeeze() + posterior.stddev.squeeze() * torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    log_posterior = log_joint(model, z[:, None, None], x).squeeze() - model.log_prob(x)
    return (torch.trapezoid((2 * log_posterior - q.log_prob(z)).exp(), z) - 1) / 2


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_iwae_limit_is_the_integral_on_a_grid(factor, shift):
    model, x = linear_gaussian(dim=2, latent=1), randn(1, 2)
    mean, variance = model.posterior(x).mean + shift, factor * model.best_diagonal()
    assert_close(model.iwae_limit(x, mean, variance)[0], quadrature(model, x, mean, variance))


def test_iwae_limit_is_half_the_variance_of_the_weights():
    model, x = linear_gaussian(), randn(N, D)
    posterior = model.posterior(x)
    # Wider than the posterior, so that the squares of the weights have a variance and 4 errors mean something.
    q = MultivariateNormal(posterior.mean + 0.1 * randn(N, K), 1.5 * posterior.covariance_matrix)
    z = q.sample((DRAWS,))
    w = (log_joint(model, z, x) - q.log_prob(z) - model.log_prob(x)).exp()
    assert_within_error((w - 1) ** 2 / 2, model.iwae_limit(x, q.mean, q.covariance_matrix))
    assert_close(model.iwae_limit(x, q.mean, q.covariance_matrix), model.iwae_limit(x, q.mean, q.covariance_matrix[0]))


def test_iwae_limit_is_where_the_bound_goes():
    model, x, particles = linear_gaussian(dim=2, latent=1), randn(1, 2), 256
    mean, variance = model.posterior(x).mean + 0.1, 1.3 * model.best_diagonal()
    q = Normal(mean, variance.sqrt())
    z = q.sample((10_000, particles))
    w = (log_joint(model, z, x) - q.log_prob(z).sum(-1) - model.log_prob(x)).exp().mean(1)
    # w - 1 has mean 0 and takes nearly all of the noise of -log w away.
    gaps, limit = particles * (w - 1 - w.log()), model.iwae_limit(x, mean, variance)
    error = gaps.std(0) / math.sqrt(len(gaps))
    assert ((gaps.mean(0) - limit).abs() <= STANDARD_ERRORS * error + 4 * limit / particles).all()
    assert (error < limit / 50).all()


def test_iwae_limit_of_the_posterior_is_zero():
    model, x = linear_gaussian(), randn(N, D)
    q = model.posterior(x)
    assert_close(model.iwae_limit(x, q.mean, q.covariance_matrix), torch.zeros(N, dtype=torch.float64))


def test_iwae_limit_is_infinite_for_the_data_whose_guide_is_too_narrow():
    model, x = linear_gaussian(), randn(N, D)
    posterior = model.posterior(x)
    factors = torch.tensor([0.1, 0.4, 0.49, 0.51, 0.6, 1.0, 2.0], dtype=torch.float64)
    limit = model.iwae_limit(x, posterior.mean, factors[:, None, None] * posterior.covariance_matrix)
    assert limit.isinf().tolist() == [True, True, True, False, False, False, False]
    # Two directions too narrow: det M is above 0, yet M is not positive definite.
    narrow = posterior.precision_matrix[0].inverse().diagonal().min() * torch.tensor([0.01, 0.01, 10.0]).double()
    assert model.iwae_limit(x, posterior.mean, narrow).isinf().all()


# Probabilistic PCA


def sample_covariance(x):
    return torch.cov(x.mT, correction=0)


def test_ppca_has_the_stated_variance_and_reference_likelihood():
    x = data()
    values = torch.linalg.eigvalsh(sample_covariance(x)).flip(0)
    s2 = values[K:].mean()
    expected = -(D * math.log(2 * math.pi) + values[:K].log().sum() + (D - K) * s2.log() + D) / 2
    model = fit_ppca(x, K)
    assert_close(model.variance, s2)
    assert_close(model.log_prob(x).mean(), expected)
    assert_close(ppca_log_likelihood(x, K), expected)


@pytest.mark.parametrize("variance", [None, 0.5, 3.0])
def test_ppca_is_a_stationary_point(variance):
    x = data()
    model = fit_ppca(x, K, rotation=rotation(), variance=variance)
    leaves = [value.clone().requires_grad_() for value in (model.weight, model.mean, model.variance)]
    LinearGaussian(*leaves).log_prob(x).mean().backward()
    for leaf in leaves[: 2 if variance else 3]:
        assert_close(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0])
def test_ppca_is_better_than_its_neighbours(size):
    x = data()
    best = fit_ppca(x, K)
    for _ in range(20):
        other = LinearGaussian(
            best.weight + size * randn(D, K), best.mean + size * randn(D), best.variance * (size * randn(1)[0]).exp()
        )
        assert other.log_prob(x).mean() < best.log_prob(x).mean()


def test_ppca_recovers_the_model_that_drew_the_data():
    model = linear_gaussian()
    fitted = fit_ppca(model.sample(DRAWS)[1], K)
    assert_close(fitted.weight @ fitted.weight.mT, model.weight @ model.weight.mT, atol=0.1)
    assert_close(fitted.variance, model.variance, atol=0.01)


def test_rotation_changes_the_weight_and_no_likelihood():
    x, turn = data(), rotation()
    plain, rotated = fit_ppca(x, K), fit_ppca(x, K, rotation=turn)
    assert_close(rotated.weight, plain.weight @ turn)
    assert_close(rotated.log_prob(x), plain.log_prob(x))


@pytest.mark.parametrize("latent", [1, K, D])
def test_fixed_variance_counts_active_dimensions(latent):
    x = data()
    values = torch.linalg.eigvalsh(sample_covariance(x)).flip(0)
    for active, variance in enumerate([2 * values[0], *(values[:-1] * values[1:]).sqrt(), values[-1] / 2]):
        model = fit_ppca(x, latent, variance=variance.item(), rotation=rotation(latent))
        assert torch.linalg.matrix_rank(model.weight, atol=1e-7, rtol=0) == min(active, latent)
        assert_close(ppca_log_likelihood(x, latent, variance=variance.item()), model.log_prob(x).mean())


def test_fixed_variance_at_its_optimum_changes_nothing():
    x = data()
    free = fit_ppca(x, K)
    assert_close(fit_ppca(x, K, variance=free.variance.item()).weight, free.weight)


def test_ppca_works_in_float64_whatever_the_data():
    x = data().float()
    assert fit_ppca(x, K).weight.dtype == torch.float64
    assert_close(fit_ppca(x, K).weight, fit_ppca(x.double(), K).weight)
    pixels = torch.randint(0, 256, (50, D), dtype=torch.uint8)
    assert_close(fit_ppca(pixels, K).log_prob(pixels).mean(), ppca_log_likelihood(pixels, K))


# The linear VAE


def log_weights(vae, x, particles):
    """log p(x, z) - log q(z|x) from Pyro's traces, (particles, N)."""
    plate = pyro.plate("particles", particles, dim=-2)
    guide = poutine.trace(plate(vae.guide)).get_trace(x)
    model = poutine.trace(poutine.replay(plate(vae.model), guide)).get_trace(x)
    for trace in (guide, model):
        trace.compute_log_prob()
    nodes = model.nodes
    return nodes["x"]["log_prob"] + nodes["z"]["log_prob"] - guide.nodes["z"]["log_prob"]


def linear_vae(guide, dtype=torch.float64, **options):
    return LinearVAE(D, K, covariance=guide, **options).to(dtype)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_weights_of_the_exact_guide_are_log_prob_at_every_draw(dtype, atol):
    model = linear_gaussian()
    _, x = model.sample(N)
    log_w = log_weights(linear_vae("full", dtype).set_(model), x.to(dtype), particles=50)
    assert log_w.shape == (50, N)
    assert_close(log_w, model.log_prob(x).to(dtype).expand(50, N), atol)


def test_weights_of_the_diagonal_guide_vary_unless_the_columns_are_orthogonal():
    x = data()
    straight = linear_vae("diagonal").set_(fit_ppca(x, K))
    assert log_weights(straight, x, 50).std(0).max() < 1e-10
    rotated = linear_vae("diagonal").set_(fit_ppca(x, K, rotation=rotation()))
    assert log_weights(rotated, x, 50).std(0).min() > 0.01


@pytest.mark.parametrize("guide", ["diagonal", "full"])
def test_mean_weight_is_the_elbo_set_promises(guide):
    model = linear_gaussian()
    _, x = model.sample(N)
    expected = model.log_prob(x) - (model.gap() if guide == "diagonal" else 0)
    log_w = log_weights(linear_vae(guide).set_(model), x, 20_000).detach()
    assert ((log_w.mean(0) - expected).abs() <= STANDARD_ERRORS * log_w.std(0) / math.sqrt(20_000) + 1e-10).all()


@pytest.mark.parametrize("guide", ["diagonal", "full"])
def test_program_has_one_plate_two_sites_and_any_particle_dimensions(guide):
    vae, x = linear_vae(guide), randn(N, D)
    with pyro.plate("outer", 2, dim=-3), pyro.plate("inner", 4, dim=-2):
        drawn = poutine.trace(vae.guide).get_trace(x)
        trace = poutine.trace(poutine.replay(vae.model, drawn)).get_trace(x)
    trace.compute_log_prob()
    assert drawn.nodes["z"]["value"].shape == (2, 4, N, K)
    assert trace.nodes["x"]["log_prob"].shape == (2, 4, N)
    assert [frame.name for frame in trace.nodes["x"]["cond_indep_stack"]] == ["outer", "inner", "data"]
    assert [trace.nodes[site]["fn"].event_dim for site in ("z", "x")] == [1, 1]


@pytest.mark.parametrize("guide", ["diagonal", "full"])
def test_exact_is_a_copy_of_what_was_set(guide):
    model, vae = linear_gaussian(), linear_vae(guide)
    assert vae.set_(model) is vae
    found = vae.exact()
    for field in dataclasses.fields(LinearGaussian):
        assert_close(getattr(found, field.name), getattr(model, field.name))
        assert not getattr(found, field.name).requires_grad
    vae.set_(linear_gaussian())
    assert_close(found.weight, model.weight)


def test_full_guide_is_a_covariance_whatever_its_parameters():
    vae = linear_vae("full")
    with torch.no_grad():
        vae.guide_lower.normal_()
        vae.guide_log_scales.normal_()
    root = poutine.trace(vae.guide).get_trace(randn(N, D)).nodes["z"]["fn"].scale_tril[0]
    assert_close(root.diagonal(), vae.guide_log_scales.exp())
    assert_close(root, vae.guide_lower.tril(-1) + root.diagonal().diag())


def test_mean_starts_the_decoder_and_is_copied():
    mean = torch.randn(D)
    vae = LinearVAE(D, K, mean=mean)
    assert torch.equal(vae.mean, mean)
    mean.add_(1)
    assert not torch.equal(vae.mean, mean)


@pytest.mark.parametrize("guide", ["diagonal", "full"])
def test_state_round_trip(guide):
    trained, fresh, x = linear_vae(guide).set_(linear_gaussian()), linear_vae(guide), randn(N, D)
    fresh.load_state_dict(copy.deepcopy(trained.state_dict()))
    found = []
    for vae in (trained, fresh):
        torch.manual_seed(1)
        found.append(log_weights(vae, x, 3))
    assert torch.equal(*found)


@pytest.mark.parametrize("guide", ["diagonal", "full"])
def test_training_moves_every_parameter_of_one_vae_and_none_of_another(guide):
    """Stock `SVI` trains each of two in one process, and neither the other: Pyro's parameter names are global."""
    x = data(50)
    first, second = linear_vae(guide), linear_vae(guide)
    for trained, still in ((first, second), (second, first)):
        before, other = copy.deepcopy(trained.state_dict()), copy.deepcopy(still.state_dict())
        svi = SVI(trained.model, trained.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        for _ in range(3):
            svi.step(x)
        assert not any(torch.equal(before[key], value) for key, value in trained.state_dict().items())
        assert all(torch.equal(other[key], value) for key, value in still.state_dict().items())
    assert not pyro.get_param_store()


@pytest.mark.parametrize("guide", ["diagonal", "full"])
def test_gradients_vanish_at_the_optimum(guide):
    x = data()
    vae = linear_vae(guide).set_(fit_ppca(x, K))
    one_draw = -Trace_ELBO().differentiable_loss(vae.model, vae.guide, x) / len(x)
    assert_close(one_draw.detach(), ppca_log_likelihood(x, K))
    draws_at_once = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    assert -draws_at_once.loss(vae.model, vae.guide, x) / len(x) == pytest.approx(one_draw.item(), abs=1e-10)
    draws = []
    for _ in range(400):
        vae.zero_grad()
        Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
        draws.append(torch.cat([parameter.grad.flatten() for parameter in vae.parameters()]) / len(x))
    draws = torch.stack(draws)
    # 5 errors, as some 40 parameters are looked at.
    error = draws.std(0) / math.sqrt(len(draws))
    assert (draws.mean(0).abs() <= 5 * error + 1e-10).all()


@pytest.mark.parametrize("guide", ["diagonal", "full"])
def test_gradient_fitting_reaches_ppca(guide):
    """Linear VAEs have no local optimum that pPCA has not (Lucas et al. 2019)."""
    x = data(100)
    vae, best = linear_vae(guide, mean=x.mean(0)), ppca_log_likelihood(x, K)
    # A small rate or many particles would linger at the saddles between rotations of the columns.
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2000)
    for _ in range(2000):
        optimizer.zero_grad()
        Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
        optimizer.step()
        schedule.step()
    reached = vae.exact().log_prob(x).mean()
    assert best - 0.01 < reached < best


# What a person may do wrong

ERRORS = {
    "scale": (
        lambda: gaussian_kl(torch.ones(2), torch.tensor([1.0, -2.0]), torch.ones(2), torch.ones(2)),
        "scale_q: found -2, expected above 0",
    ),
    "scale of p": (
        lambda: gaussian_kl(torch.ones(2), torch.ones(2), torch.ones(2), torch.zeros(2)),
        "scale_p: found 0, expected above 0",
    ),
    "indefinite": (
        lambda: gaussian_kl_full(torch.ones(2), torch.eye(2), torch.ones(2), -torch.eye(2)),
        "cov_p: found a matrix that is not symmetric positive definite, expected a covariance",
    ),
    "asymmetric": (
        lambda: gaussian_kl_full(torch.ones(2), torch.eye(2) + torch.ones(2, 2).tril(), torch.ones(2), torch.eye(2)),
        "cov_q: found a matrix that is not symmetric positive definite, expected a covariance",
    ),
    "weight": (
        lambda: LinearGaussian(torch.ones(3), torch.ones(3), torch.tensor(1.0)),
        "weight: found shape (3,), expected (D, k)",
    ),
    "mean": (
        lambda: LinearGaussian(torch.ones(3, 2), torch.ones(2), torch.tensor(1.0)),
        "mean: found shape (2,), expected (3,)",
    ),
    "variance": (
        lambda: LinearGaussian(torch.ones(3, 2), torch.ones(3), torch.ones(3)),
        "variance: found shape (3,), expected ()",
    ),
    "no variance": (
        lambda: LinearGaussian(torch.ones(3, 2), torch.ones(3), torch.tensor(0.0)),
        "variance: found 0, expected above 0",
    ),
    "x": (lambda: linear_gaussian().log_prob(randn(N, 2)), "x: found shape (7, 2), expected (N, 5)"),
    "one x": (lambda: linear_gaussian().posterior(randn(D)), "x: found shape (5,), expected (N, 5)"),
    "x of an elbo": (
        lambda: linear_gaussian().elbo(randn(D), randn(N, K), covariance()),
        "x: found shape (5,), expected (N, 5)",
    ),
    "guide's mean": (
        lambda: linear_gaussian().elbo(randn(N, D), randn(N, 2), covariance()),
        "mean: found shape (7, 2), expected (7, 3)",
    ),
    "guide's covariance": (
        lambda: linear_gaussian().iwae_limit(randn(N, D), randn(N, K), randn(N, K)),
        "covariance: found shape (7, 3), expected (3, 3)",
    ),
    "guide's covariances": (
        lambda: linear_gaussian().elbo(randn(N, D), randn(N, K), covariance(2)),
        "covariance: found shape (2, 3, 3), expected (7, 3, 3)",
    ),
    "guide's variance": (
        lambda: linear_gaussian().elbo(randn(N, D), randn(N, K), -torch.ones(K)),
        "covariance: found a matrix that is not symmetric positive definite, expected a covariance",
    ),
    "one datum": (lambda: fit_ppca(randn(1, D), K), "x: found shape (1, 5), expected (N, D) with N of 2 or more"),
    "images": (
        lambda: ppca_log_likelihood(randn(3, 1, 8, 8), K),
        "x: found shape (3, 1, 8, 8), expected (N, D) with N of 2 or more",
    ),
    "NaN": (
        lambda: fit_ppca(torch.full((3, 4), math.nan), 2),
        "x: found NaN or infinity, expected finite values: leave those data out",
    ),
    "too many latents": (
        lambda: fit_ppca(data(), D),
        "latent: found 5, expected 1 to 4 for data of 5 dimensions",
    ),
    "too many with a variance": (
        lambda: fit_ppca(data(), D + 1, variance=1.0),
        "latent: found 6, expected 1 to 5 for data of 5 dimensions",
    ),
    "no latent": (lambda: fit_ppca(data(), 0), "latent: found 0, expected 1 to 4 for data of 5 dimensions"),
    "too few data": (
        lambda: fit_ppca(randn(4, D), K),
        "x: found no variance beyond 3 dimensions, expected some: give more data, or fewer latents",
    ),
    "constant data": (
        lambda: fit_ppca(torch.ones(9, D), K),
        "x: found no variance beyond 3 dimensions, expected some: give more data, or fewer latents",
    ),
    "fixed variance": (lambda: fit_ppca(data(), K, variance=-1.0), "variance: found -1, expected above 0"),
    "rotation's shape": (
        lambda: fit_ppca(data(), K, rotation=torch.eye(2)),
        "rotation: found shape (2, 2), expected (3, 3)",
    ),
    "rotation": (
        lambda: fit_ppca(data(), K, rotation=2 * torch.eye(K)),
        "rotation: found a matrix that is not orthogonal, expected R'R = I",
    ),
    "covariance": (
        lambda: LinearVAE(D, K, covariance="diag"),
        "covariance: found 'diag', expected 'diagonal' or 'full'",
    ),
    "decoder's mean": (
        lambda: LinearVAE(D, K, mean=torch.ones(2)),
        "mean: found shape (2,), expected (5,)",
    ),
    "other model": (
        lambda: LinearVAE(D, 2).set_(linear_gaussian()),
        "weight: found shape (5, 3), expected (5, 2)",
    ),
    "model's x": (lambda: LinearVAE(D, K).model(torch.ones(2, 4)), "x: found shape (2, 4), expected (N, 5)"),
    "guide's x": (lambda: LinearVAE(D, K).guide(torch.ones(5)), "x: found shape (5,), expected (N, 5)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_is_one_line_that_says_what_was_expected(case):
    call, message = ERRORS[case]
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call()
