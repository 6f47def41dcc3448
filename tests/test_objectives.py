"""Bounds against closed forms, and against Pyro's own objectives at the same seed."""

import contextlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from registry import EACH, FITTING

import pvae
from pvae import bounds, exact, programs
from pvae.programs import kl

SAME = [
    (pvae.ELBO(), Trace_ELBO()),
    (pvae.ELBO(5), Trace_ELBO(num_particles=5, max_plate_nesting=1, vectorize_particles=True)),
    (pvae.ELBO(analytic_kl=True), TraceMeanField_ELBO()),
    (
        pvae.ELBO(5, analytic_kl=True),
        TraceMeanField_ELBO(num_particles=5, max_plate_nesting=1, vectorize_particles=True),
    ),
    (pvae.IWAE(5), RenyiELBO(alpha=0, num_particles=5, max_plate_nesting=1, vectorize_particles=True)),
    (pvae.IWAE(1), Trace_ELBO()),
]


def loss_and_gradient(vae, objective, *args):
    vae.zero_grad()
    torch.manual_seed(1)
    loss = objective.loss_and_grads(vae.model, vae.guide, *args)
    return float(loss), torch.cat([p.grad.flatten() for p in vae.parameters()])


@pytest.mark.parametrize(("ours", "pyros"), SAME, ids=lambda o: f"{type(o).__name__}{o.num_particles}")
def test_value_and_gradient_are_pyros_at_the_same_seed(vae, x, ours, pyros):
    loss, gradient = loss_and_gradient(vae, ours, x)
    expected_loss, expected_gradient = loss_and_gradient(vae, pyros, x)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    assert gradient.norm() > 1


@pytest.mark.parametrize("objective", [pvae.ELBO(3), pvae.IWAE(3)])
def test_an_objective_is_a_differentiable_module_and_a_number(vae, x, objective):
    torch.manual_seed(1)
    module_loss = objective(vae.model, vae.guide)(x)
    assert module_loss.requires_grad
    torch.manual_seed(1)
    assert objective.loss(vae.model, vae.guide, x) == pytest.approx(module_loss.item())
    torch.manual_seed(1)
    assert -objective.bounds(vae.model, vae.guide, x).sum().item() == pytest.approx(module_loss.item())


# Linear-Gaussian truth ------------------------------------------------------------------------------------------------


@pytest.fixture
def linear():
    """A linear VAE with a rotated decoder, whose best diagonal guide has a gap; data from the model; exact log p."""
    weight = torch.tensor([[1.0, 0.8], [0.2, 0.7], [-0.5, -0.3], [0.7, -0.2]], dtype=torch.float64)
    truth = exact.LinearGaussian(weight, torch.zeros(4, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
    vae = exact.LinearVAE(4, 2, covariance="diagonal").double().set_(truth)
    _, x = truth.sample(400, torch.Generator().manual_seed(3))
    return vae, truth, x


def assert_mean(values, expected, errors=4.0):
    """The mean of values (repetitions, ...) is the expected one within its own standard error."""
    se = values.std(0) / math.sqrt(len(values))
    z = (values.mean(0) - expected) / se
    assert z.abs().max() < errors, f"off by {z.abs().max():.1f} standard errors"
    return se


def test_elbo_is_log_p_less_the_exact_gap(linear):
    vae, truth, x = linear
    with torch.no_grad():
        found = torch.stack([pvae.ELBO(50).bounds(vae.model, vae.guide, x).mean() for _ in range(30)])
    assert truth.gap() > 0.05
    assert_mean(found, truth.log_prob(x).mean() - truth.gap())


def test_elbo_with_analytic_kl_has_the_same_expectation(linear):
    vae, truth, x = linear
    with torch.no_grad():
        found = torch.stack([pvae.ELBO(50, analytic_kl=True).bounds(vae.model, vae.guide, x).mean() for _ in range(30)])
    assert_mean(found, truth.log_prob(x).mean() - truth.gap())


def test_every_weight_is_log_p_under_the_exact_guide(linear):
    _, truth, x = linear
    vae = exact.LinearVAE(4, 2, covariance="full").double().set_(truth)
    log_w = pvae.log_weights(vae.model, vae.guide, x, particles=3).log_w
    torch.testing.assert_close(log_w, truth.log_prob(x).expand(3, -1), rtol=0, atol=1e-9)


def test_the_elbos_gradient_is_that_of_the_exact_elbo(linear):
    """In expectation over draws, by autograd through the closed form."""
    vae, _, x = linear
    x = x[:20]
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.1 * torch.randn_like(p))
    parameters = list(vae.parameters())

    def gradient(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

    q = guide_distribution(vae, x)
    model = exact.LinearGaussian(vae.weight, vae.mean, (2 * vae.log_scale).exp())
    expected = gradient(model.elbo(x, q.mean, q.variance[0]).sum())
    draws = torch.stack([gradient(pvae.ELBO(20).bounds(vae.model, vae.guide, x).sum()) for _ in range(100)])
    noisy = draws.std(0) > 1e-9
    assert_mean(draws[:, noisy], expected[noisy], errors=4.5)


def guide_distribution(vae, x):
    traced = poutine.trace(vae.guide).get_trace(x)
    return traced.nodes["z"]["fn"].base_dist


def test_a_fitted_linear_vae_reaches_probabilistic_pca(linear):
    _, truth, _ = linear
    x = truth.sample(500, torch.Generator().manual_seed(5))[1]
    vae = exact.LinearVAE(4, 2, covariance="full", mean=x.mean(0)).double()
    svi = pvae.SVI(
        vae.model,
        vae.guide,
        pyro.optim.Adam({"lr": 2e-2}),
        pvae.ELBO(),
        schedule=lambda step: 0.5 * (1 + math.cos(math.pi * min(1, step / 2500))),
    )
    for _ in range(2500):
        svi.step(x)
    assert exact.ppca_log_likelihood(x, 2) - vae.exact().log_prob(x).mean() < 0.01


# Programs of other shapes ---------------------------------------------------------------------------------------------


def hierarchy(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        with pyro.plate("time", 3):
            pyro.sample("x", dist.Normal(b, 1.0), obs=x.T)


def hierarchy_guide(x):
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Normal(x.mean(-1), 0.5))
        pyro.sample("a", dist.Normal(b / 2, 0.7))


def test_several_latent_sites_and_an_inner_plate():
    x = torch.randn(6, 3)
    found = pvae.log_weights(hierarchy, hierarchy_guide, x, particles=4, plate="data")
    assert found.log_w.shape == (4, 6)
    torch.manual_seed(2)
    ours = pvae.ELBO(plate="data").loss(hierarchy, hierarchy_guide, x)
    torch.manual_seed(2)
    assert ours == pytest.approx(Trace_ELBO().loss(hierarchy, hierarchy_guide, x), rel=1e-5)
    # marginally x_t = b + noise with b ~ N(0, 2)
    covariance = 2 * torch.ones(3, 3) + torch.eye(3)
    truth = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    many = pvae.log_weights(hierarchy, hierarchy_guide, x, particles=20_000, plate="data").log_w
    torch.testing.assert_close(bounds.iwae(many), truth, rtol=0, atol=0.05)


def test_a_masked_site_counts_where_the_mask_is():
    mask = torch.tensor([True, False, True])

    def masked(x):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    found = pvae.log_weights(masked, guide, torch.randn(3), particles=2)
    assert found.likelihood[:, 1].eq(0).all()
    assert found.likelihood[:, 0].ne(0).all()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("user", ["elbo", "log_weights", "evaluate"])
def test_a_latent_that_one_program_alone_masks_is_told_of(user, inside):
    """log q then counts what p(x, z) does not have: the bound of no data at all is its entropy, above log 1."""
    x = torch.tensor([1.0, -1.0, 2.0])

    def site(name, fn, mask, **given):
        with contextlib.nullcontext() if inside or mask is None else poutine.mask(mask=mask):
            return pyro.sample(name, fn.mask(mask) if inside and mask is not None else fn, **given)

    def model(x, mask):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(site("z", dist.Normal(0.0, 1.0), mask(x)), 1.0), obs=x)

    def guide(x, mask):
        with pyro.plate("data", len(x)):
            site("z", dist.Normal(torch.zeros_like(x), 0.1), mask(x))

    def none(x):
        return None

    def some(x):
        return x > 0

    def all_of_it(x):
        return torch.tensor(False)

    def use(of_model, of_guide):
        programs = (lambda x: model(x, of_model)), (lambda x: guide(x, of_guide))
        match user:
            case "elbo":
                pvae.ELBO().loss(*programs, x)
            case "log_weights":
                pvae.log_weights(*programs, x)
            case "evaluate":
                pvae.evaluate.evaluate(*programs, x, particles=[1])

    for masks, expected in (
        ((some, none), "the guide keeps what the model's mask leaves out"),
        ((none, some), "the model keeps what the guide's mask leaves out"),
        ((none, all_of_it), "the model keeps"),
    ):
        with pytest.warns(UserWarning, match=f"site 'z': {expected}") as said:
            use(*masks)
        assert {warning.filename for warning in said} == {__file__}
    for mask in (some, all_of_it, none):
        use(mask, mask)  # warnings are errors here
    use(all_of_it, none)  # a flat prior


def test_a_closed_kl_counts_where_the_mask_is():
    mask, x = torch.tensor([True, False, True]), torch.randn(3)

    def model(x):
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(x / 2, 0.5))

    torch.manual_seed(3)
    found = pvae.ELBO(analytic_kl=True, max_plate_nesting=1).bounds(model, guide, x)
    torch.manual_seed(3)
    z = torch.distributions.Normal(x / 2, 0.5).sample()
    kl = torch.distributions.kl_divergence(dist.Normal(x / 2, 0.5), dist.Normal(torch.zeros(3), 1.0))
    torch.testing.assert_close(found, (dist.Normal(z, 1.0).log_prob(x) - kl) * mask)


@pytest.mark.parametrize("left_out", [False, torch.tensor(False), torch.tensor([True, False, False])])
@pytest.mark.filterwarnings("ignore:site 'z'")  # of the mask that is one for each datum
def test_a_prior_that_is_left_out_alone_is_flat_under_a_closed_kl_too(left_out):
    x, mean = torch.randn(3), torch.zeros(3, requires_grad=True)

    def model(x):
        with pyro.plate("data", 3):
            with poutine.mask(mask=left_out):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(mean, 0.5))

    def bound_and_gradient(closed):
        torch.manual_seed(3)
        found = pvae.ELBO(analytic_kl=closed).bounds(model, guide, x)
        return found, *torch.autograd.grad(found.sum(), mean)

    left = ~torch.as_tensor(left_out).expand(3)  # elsewhere there is a closed form
    for closed, drawn in zip(bound_and_gradient(True), bound_and_gradient(False), strict=True):
        torch.testing.assert_close(closed[left], drawn[left])
        assert bool((closed != drawn)[~left].all())


@pytest.mark.parametrize("inside", [False, True])
def test_where_masks_differ_a_closed_kl_is_found_by_the_draws(inside):
    own, kept = torch.tensor([True, True, False]), torch.tensor([True, False, False])

    def site(fn, mask):
        with poutine.mask(mask=True if inside else mask):
            return pyro.sample("z", fn.mask(mask) if inside else fn)

    def model(x):
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(site(dist.Normal(0.0, 1.0), kept), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 3):
            site(dist.Normal(x / 2, 0.5), own)

    def bound(closed):
        torch.manual_seed(3)
        return pvae.ELBO(analytic_kl=closed).bounds(model, guide, torch.ones(3))

    with pytest.warns(UserWarning, match="the guide keeps what"):
        found, expected = bound(True), bound(False)
    torch.testing.assert_close(found[1:], expected[1:])


def test_a_subsampled_plate_gives_unscaled_weights_and_a_scaled_loss():
    data = torch.randn(10)

    def model(x):
        with pyro.plate("data", 10, subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x):
        with pyro.plate("data", 10, subsample_size=4) as index:
            pyro.sample("z", dist.Normal(x[index] / 2, 0.5**0.5))

    found = pvae.log_weights(model, guide, data, particles=3)
    truth = dist.Normal(0.0, 2**0.5).log_prob(data)
    assert found.log_w.shape == (3, 4)
    for value in found.log_w[0]:  # the exact guide: every weight is p(x) of some datum, not 2.5 times it
        assert (value - truth).abs().min() < 1e-5
    loss = pvae.IWAE(3).loss(model, guide, data)
    assert -10 * truth.max() - 1e-3 < loss < -10 * truth.min() + 1e-3


def test_what_is_only_written_down_counts_for_nothing():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.deterministic("total", z.sum())  # outside the plate

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.tensor([0.0, 2.0])
    found = pvae.log_weights(model, guide, x, particles=3).log_w
    torch.testing.assert_close(found, dist.Normal(0.0, 2**0.5).log_prob(x).expand(3, 2))


def test_a_kl_without_a_closed_form_is_sampled_and_reads_nothing():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(3.0, 0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.randn(6)
    analytic, sampled = pvae.ELBO(analytic_kl=True), pvae.ELBO()
    analytic.loss(model, guide, x)  # the first call looks at the programs
    torch.manual_seed(1)
    expected = sampled.bounds(model, guide, x)
    torch.manual_seed(1)
    with NoReading():
        found = analytic.bounds(model, guide, x)
    torch.testing.assert_close(found, expected)


def chain(x):
    """z2 -> z1 -> x, all Gaussian: x ~ N(0, 2.25)."""
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
        z1 = pyro.sample("z1", dist.Normal(z2, 0.5))
        pyro.sample("x", dist.Normal(z1, 1.0), obs=x)


def upward(x):
    """The exact posterior of `chain` from the bottom: z1 given x, then z2 given z1."""
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(x * 1.25 / 2.25, (1.25 / 2.25) ** 0.5))
        pyro.sample("z2", dist.Normal(0.8 * z1, 0.2**0.5))


def downward(x):
    """The same from the top."""
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(x / 2.25, (1.25 / 2.25) ** 0.5))
        pyro.sample("z1", dist.Normal(0.2 * x + 0.8 * z2, 0.2**0.5))


@pytest.mark.parametrize(("guide", "closed"), [(upward, ["z2"]), (downward, ["z2", "z1"])])
def test_a_closed_kl_is_right_in_whichever_order_the_guide_draws(guide, closed):
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 5)
    found = pvae.ELBO(40_000, analytic_kl=True, max_plate_nesting=1).bounds(chain, guide, x)
    torch.testing.assert_close(found, dist.Normal(0.0, 1.5).log_prob(x), rtol=0, atol=0.03)
    assert list(kl.closed(programs.trace(chain, guide, x))) == closed


def test_latents_that_the_guide_draws_in_another_order_count_where_the_mask_is():
    mask, x = torch.tensor([True, False, True]), torch.tensor([0.5, 1.0, -1.0])
    masked = [poutine.mask(program, mask=mask) for program in (chain, upward)]
    found = pvae.ELBO(40_000, analytic_kl=True, max_plate_nesting=1).bounds(*masked, x)
    torch.testing.assert_close(found, dist.Normal(0.0, 1.5).log_prob(x) * mask, rtol=0, atol=0.03)


@pytest.mark.parametrize("guide", [upward, downward])
def test_the_gradient_of_a_kl_in_another_order_vanishes_at_the_posterior(guide):
    torch.manual_seed(0)
    x, shift = torch.linspace(-2, 2, 5), torch.zeros(5, requires_grad=True)
    objective = pvae.ELBO(40_000, analytic_kl=True, max_plate_nesting=1)
    objective.bounds(chain, lambda x: guide(x + shift), x).sum().backward()
    torch.testing.assert_close(shift.grad, torch.zeros(5), rtol=0, atol=0.03)


# Refusals -------------------------------------------------------------------------------------------------------------


def simple_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def simple_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def global_model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def global_guide(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))


def discrete_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def discrete_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(0.5))


def scaled_model(x):
    with poutine.scale(scale=0.5):
        simple_model(x)


def doubled_model(x):
    simple_model(x)
    with pyro.plate("data again", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def two_plates(x):
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def two_plates_guide(x):
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (global_model, global_guide, r"site 'z \(guide\)': outside the plate of data 'data'"),
        (
            discrete_model,
            discrete_guide,
            "site 'z': iwae with gradient reparam needs draws that are reparameterized, and Bernoulli",
        ),
        (scaled_model, simple_guide, "site 'z': its log-probability is scaled by 0.5"),
        (doubled_model, simple_guide, "site 'z': found twice in one program: expected names to differ"),
        (simple_model, lambda x: None, "site 'z': missing in the guide"),
        (simple_guide, simple_guide, "model: no observed site"),
        (two_plates, two_plates_guide, "plate: found rows, columns, expected the name of the one"),
    ],
)
def test_programs_without_a_bound_are_refused(model, guide, message):
    x = torch.randn(2, 3) if model is two_plates else torch.randn(5)
    with pytest.raises(pvae.InputError, match=message) as found:
        pvae.IWAE(2).loss(model, guide, x)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("scale", [0.5, torch.tensor(1.0)])
def test_one_bound_of_all_data_has_no_scale_but_that_of_subsampling(scale):
    message = "its log-probability is scaled by"
    with pytest.raises(pvae.InputError, match=message):
        pvae.IWAE(2, plate=None).loss(poutine.scale(simple_model, scale), simple_guide, torch.randn(5))
    with pytest.raises(pvae.InputError, match=message):
        pvae.log_weights(simple_model, poutine.scale(simple_guide, scale), torch.randn(5), plate=None)


def test_a_loop_over_a_plate_that_subsamples_is_told_what_to_be():
    def model(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for row in pyro.plate("data", len(x), subsample_size=size):
            pyro.sample(f"x{row}", dist.Normal(z, 1.0), obs=x[row])

    def guide(x, size):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.randn(6)
    assert pvae.ELBO(plate=None).bounds(model, guide, x, None).isfinite().all()
    with pytest.raises(pvae.InputError, match=r"site 'x\d': in a loop over plate 'data', which subsamples: expected"):
        pvae.ELBO(plate=None).bounds(model, guide, x, 2)


def joined_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        joined = torch.cat([z, x], -1)
        pyro.sample("x", dist.Normal(joined[..., :3], 1.0).to_event(1), obs=x)


def undeclared_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
        pyro.sample("x", dist.Normal(z @ torch.ones(2, 3), 1.0).to_event(1), obs=x)


def global_product(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x @ w, 1.0), obs=x[:, 0])


def vector_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (
            joined_model,
            vector_guide,
            r"site 'z': found shape \(4, 5, 2\) with 4 particles, which stand on the left, and what follows it fails at"
            r" \S+test_objectives.py:\d+ though it does not with one: .*dimensions.*: expected shapes that broadcast",
        ),
        (
            undeclared_model,
            vector_guide,
            r"site 'z': found 2 at dimension -1 of its batch shape, where plate 'data' has \d: expected .*\.to_event",
        ),
        (
            global_product,
            lambda x: pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1)),
            r"site 'w( \(guide\))?'.* outside the plate of data",
        ),
    ],
)
def test_programs_that_do_not_broadcast_are_refused_in_a_line(model, guide, message):
    for run in (
        lambda x: pvae.IWAE(4).loss(model, guide, x),
        lambda x: pvae.log_weights(model, guide, x, particles=4),
        lambda x: pvae.evaluate.evaluate(model, guide, x, particles=[4]),
    ):
        with pytest.raises(pvae.InputError, match=message) as found:
            run(torch.randn(5, 3))
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("error", [RuntimeError("mine"), RuntimeError("can't allocate memory"), KeyError("mine")])
def test_an_error_that_particles_are_not_to_blame_for_stays_itself(error):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if z.dim() == 3 or "mine" in str(error):
                raise error

    with pytest.raises(type(error), match=error.args[0]) as found:
        pvae.IWAE(4, max_plate_nesting=1).loss(model, vector_guide, torch.randn(5, 3))
    assert found.value is error


def test_either_of_two_plates_can_be_the_datas():
    x = torch.randn(2, 3)
    for plate, size in (("rows", 2), ("columns", 3)):
        found = pvae.log_weights(two_plates, two_plates_guide, x, particles=4, plate=plate)
        assert found.log_w.shape == (4, size)
        for gradient in ("reparam", "stl", "score"):
            assert pvae.IWAE(2, plate=plate, gradient=gradient).bounds(two_plates, two_plates_guide, x).shape == (size,)
    with pytest.raises(pvae.InputError, match="no plate 'planes' in the programs: found rows, columns"):
        pvae.log_weights(two_plates, two_plates_guide, x, plate="planes")


def test_no_particles_are_refused():
    with pytest.raises(pvae.InputError, match="particles: found 0, expected at least 1"):
        pvae.IWAE(0)
    with pytest.raises(pvae.InputError, match="particles: found 0"):
        pvae.log_weights(simple_model, simple_guide, torch.zeros(2), particles=0)


def test_a_value_outside_its_support_is_one_line(vae, x):
    x[3, 1, 2] = 0.5
    said = r"^site 'x': found 0\.5 at \[3, 1, 2\], of shape .*, expected Boolean\(\), as Bernoulli scores$"
    with pytest.raises(pvae.InputError, match=said):
        pvae.ELBO().loss(vae.model, vae.guide, x)
    with pytest.raises(
        ValueError, match=r"^site 'x': a value of shape .*: found values outside, expected Boolean\(\), as"
    ):
        pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO()).step(x)


@pytest.mark.parametrize("loss", [pvae.IWAE(3), pyro.infer.Trace_ELBO()], ids=["ours", "pyro"])
@pytest.mark.parametrize(("where", "after"), [("guide", "at the first site: "), ("decoder", "after site 'z': ")])
def test_a_parameter_that_is_not_finite_is_one_line(loss, where, after, new_vae, x):
    vae = new_vae()
    network = vae.posterior.encoder if where == "guide" else vae.likelihood.decoder
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    before = after if isinstance(loss, pvae.Objective) else ""
    said = rf"^{before}the \w+ of a \w+, of shape .*: found nan, expected .*: parameters or data are not finite$"
    with pytest.raises(ValueError, match=said):
        pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), loss).step(x)


def test_finding_out_the_plates_draws_nothing(vae, x):
    state = torch.get_rng_state()
    assert programs.look(vae.model, vae.guide, x).nesting == 1
    assert torch.equal(state, torch.get_rng_state())


# Without waiting for the device ---------------------------------------------------------------------------------------


class NoReading(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails where a tensor's value is read on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read on the host"
        assert func is not torch.ops.aten.nonzero.default, "a shape that depends on values"
        return func(*args, **(kwargs or {}))


@pytest.mark.cuda
def test_evaluation_on_the_device_agrees_with_the_cpus(vae, x):
    from pvae.evaluate import evaluate

    on_cpu = evaluate(vae.model, vae.guide, x, particles=[1, 500])
    vae, x = vae.cuda(), x.cuda()
    on_gpu = evaluate(vae.model, vae.guide, x, particles=[1, 500])
    assert abs(on_cpu.iw[500].mean() - on_gpu.iw[500].mean()) < 0.1


ANNEALED = {"beta": 0.5, "warmup": 5, "free_bits": 0.1}


@pytest.mark.parametrize(
    ("objective", "gradient", "options"), [*((*o, {}) for o in FITTING), *((*o, ANNEALED) for o in EACH)]
)
def test_every_objective_is_replayed_under_every_gradient(objective, gradient, options, new_vae, x):
    groups = {"groups": 2} if objective.name in ("miwae", "piwae") else {}

    def steps(mode):
        vae = new_vae()
        made = objective(8, gradient=gradient, **groups, **options)
        svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), made, compile=mode)
        torch.manual_seed(1)
        losses = [svi.step(x) for _ in range(6)]
        assert bool(svi._graphs._graphs) == (mode == "graph")
        return losses, list(vae.parameters())

    torch.testing.assert_close(steps("graph"), steps("off"), rtol=0, atol=0)
