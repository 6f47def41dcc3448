"""Flows: densities against numerical Jacobians, quadrature and draws; starting values; parameters; extremes."""

import gc
import pickle
import subprocess
import sys

import pyro
import pytest
import scipy.stats
import torch
from programs import assert_replayed
from torch.autograd.functional import jacobian
from torch.utils.flop_counter import FlopCounterMode

import pvae
from pvae import guides, priors
from pvae.distributions import DiagonalNormal
from pvae.flows import AutoregressiveMap, Conditioner, CouplingMap, FlowDistribution, PlanarMap, affine, spline, splines
from pvae.flows.transform import TwoWay

STEPS = {
    "autoregressive": lambda latent, **options: AutoregressiveMap(latent, hidden=(7, 6), **options),
    "autoregressive spline": lambda latent, **options: AutoregressiveMap(latent, splines(5, 4.0), (8,), **options),
    "coupling": lambda latent, **options: CouplingMap(latent, hidden=(7, 6), **options),
    "coupling spline": lambda latent, **options: CouplingMap(latent, splines(5, 4.0), (8,), **options),
    "planar": lambda latent, **options: PlanarMap(latent, options["context"]),
}
PRIORS = {
    "realnvp": lambda latent, **options: priors.RealNVP(latent, 2, (8,), **options),
    "maf": lambda latent, **options: priors.MAF(latent, 2, (8,), **options),
    "spline": lambda latent, **options: priors.Spline(latent, 2, (8,), 5, 4.0, **options),
    "autoregressive": lambda latent, **options: priors.Autoregressive(latent, 3, (8, 8), **options),
}
GUIDES = {
    "iaf": lambda *args, context=1: guides.IAF(*args, None, 2, (8,), context),
    "maf": lambda *args, context=1: guides.MAF(*args, None, 2, (8,), context),
    "planar": lambda *args, context=1: guides.Planar(*args, None, 2, context),
    "spline": lambda *args, context=1: guides.Spline(*args, None, 2, (8,), 5, 4.0, context),
}
sizes = pytest.mark.parametrize("latent", [1, 2, 5])
every_prior = pytest.mark.parametrize("name", PRIORS)
every_guide = pytest.mark.parametrize("name", GUIDES)


def stirred(module, by=0.4, seed=0):
    """A module far from where it starts, float64."""
    torch.manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by * torch.randn_like(parameter)
    return module


def guide_of(name, latent, context=1):
    return GUIDES[name](torch.nn.Linear(4, (2 + context) * latent), latent, context=context)


# Maps -----------------------------------------------------------------------------------------------------------------


@sizes
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("name", STEPS)
def test_log_determinants_are_those_of_the_jacobian(name, context, reverse, latent):
    step = stirred(STEPS[name](latent, context=context, reverse=reverse), by=0.6)
    c = torch.randn(4, context).double() if context else None
    x = 2 * torch.randn(3, 4, latent).double()
    y, ladj = step(c).call_and_ladj(x)
    assert ladj.shape == (3, 4)
    for i, j in ((0, 0), (1, 2), (2, 3)):
        one = step(None if c is None else c[j])
        matrix = jacobian(one, x[i, j])
        torch.testing.assert_close(ladj[i, j], torch.linalg.slogdet(matrix)[1], rtol=1e-9, atol=1e-10)
        back = one.inv.call_and_ladj(y[i, j])
        torch.testing.assert_close(back, (x[i, j], -ladj[i, j]), rtol=1e-7, atol=1e-8)
        # the inverse's own gradient is the inverse of the Jacobian
        torch.testing.assert_close(jacobian(one.inv, y[i, j]) @ matrix, torch.eye(latent).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", STEPS)
def test_the_inverse_has_the_parameters_gradient(name):
    """T(T^-1(y)) does not depend on the parameters."""
    step = stirred(STEPS[name](3, context=2, reverse=False))
    c, y = torch.randn(6, 2).double(), torch.randn(6, 3).double()
    there = step(c)
    round_trip = (there(there.inv(y)) * torch.randn(6, 3).double()).sum()
    plain = (there.inv(y) * torch.randn(6, 3).double()).sum()
    for found, scale in zip(
        torch.autograd.grad(round_trip, list(step.parameters()), retain_graph=True),
        torch.autograd.grad(plain, list(step.parameters())),
        strict=True,
    ):
        assert scale.norm() > 1e-6
        assert found.norm() < 1e-7 * (1 + scale.norm())


@pytest.mark.parametrize("reverse", [False, True])
def test_autoregressive_maps_see_only_the_dimensions_before(reverse):
    step = stirred(AutoregressiveMap(4, hidden=(9, 9), reverse=reverse))
    matrix = jacobian(step(None), torch.randn(4).double())
    triangle, other = (matrix.triu(1), matrix.tril(-1))[:: -1 if reverse else 1]
    assert (triangle == 0).all()
    assert (other != 0).sum() == 6


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("hidden", [(), (2,), (16, 3, 16)], ids=str)
def test_an_autoregressive_map_comes_back_in_one_pass(hidden, context, reverse):
    """Whatever its layers; with no more products than the map itself takes."""
    step = stirred(AutoregressiveMap(6, hidden=hidden, context=context, reverse=reverse), by=0.3)
    there, x = step(torch.randn(4, context).double() if context else None), torch.randn(50, 4, 6).double()
    with FlopCounterMode(display=False) as forward:
        y, ladj = there.call_and_ladj(x)
    with FlopCounterMode(display=False) as backward:
        found = there.inv.call_and_ladj(y)
    torch.testing.assert_close(found, (x, -ladj), rtol=1e-9, atol=1e-9)
    assert backward.get_total_flops() <= forward.get_total_flops()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_log_determinants_are_sums_in_full_precision(name, reverse):
    """Networks may be in half: what they say is then of either pass within their digits, and added up in all."""
    there = stirred(STEPS[name](5, context=2, reverse=reverse)).float()(torch.randn(7, 2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, ladj = there.call_and_ladj(x := torch.randn(7, 5))
        back, other = there.inv.call_and_ladj(y)
    assert {value.dtype for value in (y, ladj, back, other)} == {torch.float32}
    torch.testing.assert_close((back, other), (x, -ladj), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("name", STEPS)
def test_an_inverse_is_freed_when_it_is_no_longer_wanted(name):
    """Not when garbage is looked for: until then its arrays would fill the memory."""
    there = STEPS[name](3, context=2, reverse=False)(torch.randn(4, 2))
    there.inv.call_and_ladj(torch.randn(4, 3))  # whatever torch loads at first
    gc.collect()
    gc.disable()
    try:
        there.inv.call_and_ladj(torch.randn(4, 3))
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("reverse", [False, True])
def test_couplings_leave_one_half(reverse):
    step = stirred(CouplingMap(5, hidden=(9,), reverse=reverse))
    x = torch.randn(7, 5).double()
    left = step(None)(x) == x
    assert left.tolist() == [[False] * 3 + [True] * 2 if reverse else [True] * 2 + [False] * 3] * 7


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("sees", [torch.ones(4, 4).tril(-1), torch.ones(4, 4).triu(1), torch.ones(3, 2)], ids=str)
@pytest.mark.parametrize("hidden", [(), (2,), (16,), (16, 3, 16)], ids=str)
def test_a_conditioner_sees_what_it_may_and_all_of_it(sees, hidden, context):
    network = stirred(Conditioner(sees.bool(), 3, hidden, context), by=1.0)
    c = torch.randn(context).double() if context else None
    found = jacobian(network(c), torch.randn(sees.shape[1]).double()).abs()
    assert (found.sum(1)[sees == 0] == 0).all()
    if not hidden or min(hidden) >= 16:
        assert (found > 0).all(1)[sees == 1].all()
    for value in network(c)(torch.randn(sees.shape[1]).double()).flatten()[:2] if context else ():
        assert torch.autograd.grad(value, network.context.weight, retain_graph=True)[0].norm() > 0
    network(c)(torch.randn(sees.shape[1]).double()).sum().backward()
    assert all(p.grad.norm() > 0 for p in network.parameters())


def test_splines_are_monotone_and_the_identity_outside():
    numbers = 3 * torch.randn(20, 1, 3 * 6 - 1).double()
    x = torch.linspace(-6, 6, 2001).double().reshape(1, -1, 1).expand(20, -1, 1)
    there = spline(numbers.unsqueeze(1), bound=3.0)
    y = there(x)
    assert (y.diff(dim=1) > 0).all()
    outside = x.abs() > 3
    assert torch.equal(y[outside], x[outside])
    slope = y.diff(dim=1) / x.diff(dim=1)
    assert slope.max() < 1 / 0.01**2
    torch.testing.assert_close(spline(torch.zeros(1, 1, 1, 17).double(), 3.0)(x), x)


def test_splines_are_zukos():
    MonotonicRQSTransform = pytest.importorskip("zuko.transforms").MonotonicRQSTransform
    numbers, x = 3 * torch.randn(50, 4, 3 * 6 - 1).double(), 2.5 * torch.randn(50, 4).double()
    ours, theirs = spline(numbers, 3.0), MonotonicRQSTransform(*numbers.split([6, 6, 5], -1), bound=3.0, slope=0.01)
    torch.testing.assert_close(ours.call_and_ladj(x), theirs.call_and_ladj(x))
    y = theirs(x)
    torch.testing.assert_close(ours.inv.call_and_ladj(y), (x, -theirs.call_and_ladj(x)[1]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", ["call_and_ladj", "inverse_and_ladj"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 3)], ids=str)
def test_a_splines_gradient_is_that_of_finite_differences_and_so_is_its_gradient(shape, way):
    """In every bin and outside of all, of numbers that are shared too; and under torch.func it is the same."""
    numbers, x = torch.randn(*shape, 3 * 4 - 1).double(), torch.linspace(-4, 4, 6).double().reshape(2, 3)

    def found(numbers, x):
        return getattr(spline(numbers, 3.0), way)(x)

    given = numbers.requires_grad_(), x.requires_grad_()
    assert torch.autograd.gradcheck(found, given)
    assert torch.autograd.gradgradcheck(found, given)
    (own,) = torch.autograd.grad(sum(part.sin().sum() for part in found(*given)), given[0])
    other = torch.func.grad(lambda numbers: sum(part.sin().sum() for part in found(numbers, x.detach())))(numbers)
    torch.testing.assert_close(own, other)


def test_a_steep_spline_comes_back_in_float32():
    """Where it is all but flat beside all but upright rounding would take the root of a negative number."""
    torch.manual_seed(1)
    numbers = 1000 * torch.randn(4000, 3, 3 * 4 - 1)
    there = spline(numbers, 5.0)
    y = there._bin(10 * torch.rand(4000, 3) - 5, 1)[1][1]  # at the ends of bins
    y.requires_grad_()
    x = there.inv(y)
    assert x.isfinite().all()
    assert ((there(x) - y).abs() < 0.01).float().mean() > 0.9  # slopes are in the hundreds
    x.sum().backward()
    assert y.grad.isfinite().all()


def test_affine_scales_are_bounded_and_exact_near_zero():
    numbers = torch.tensor([[0.5, 1e9], [0.5, -1e9], [0.5, 0.0], [0.5, 0.01]]).double()
    _, ladj = affine(numbers).call_and_ladj(torch.ones(4).double())
    torch.testing.assert_close(ladj[:2].exp(), torch.tensor([100.0, 0.01]).double(), rtol=1e-6, atol=0)
    assert ladj[2] == 0
    assert ladj[3] == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_planar_maps_can_be_inverted_whatever_their_parameters(size, context):
    step = PlanarMap(3, context).double()
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
    c = torch.randn(500, 2).double() if context else None
    there, x = step(c), 3 * torch.randn(500, 3).double()
    assert (there.stretch > -1).all()
    torch.testing.assert_close((there.u * there.w).sum(-1, keepdim=True), there.stretch, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(there.inv(there(x)), x, rtol=1e-5, atol=1e-5 * (1 + size))


# Priors ---------------------------------------------------------------------------------------------------------------


def grid(bound, n=250):
    axis = torch.linspace(-bound, bound, n).double()
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    return points.reshape(-1, 2), (axis[1] - axis[0]) ** 2


def check_density(p, bound, draws=None, n=40_000):
    """log_prob integrates to one over the plane, and draws have the moments that it says."""
    points, cell = grid(bound=bound)
    with torch.no_grad():
        weight = p.log_prob(points).exp() * cell
        draws = p.expand([n]).sample() if draws is None else draws
    assert weight.sum().item() == pytest.approx(1, abs=2e-3)
    a, b = torch.randn(2, 6).double(), torch.randn(6).double()

    def features(z):
        return torch.cat([torch.cos(z @ a + b), torch.tanh(z), torch.tanh(z[:, :1] * z[:, 1:])], -1)

    expected, found = weight @ features(points), features(draws)
    assert ((found.mean(0) - expected) / (found.std(0) / len(draws) ** 0.5)).abs().max() < 4.5


@every_prior
@sizes
def test_a_prior_starts_near_the_standard_normal(name, latent):
    torch.manual_seed(0)
    p, z = PRIORS[name](latent)(), torch.randn(500, latent)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert (p.log_prob(z) - standard).abs().mean() < 0.05 * latent
    assert (standard - p.log_prob(z)).mean() < 0.01 * latent


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "autoregressive"])
@sizes
def test_a_flow_priors_density_is_the_change_of_variables(name, latent):
    p = stirred(PRIORS[name](latent))()
    noise = torch.randn(6, latent).double()
    there = p.transforms[0]
    for one in noise:
        expected = scipy.stats.norm.logpdf(one).sum() - torch.linalg.slogdet(jacobian(there, one))[1].item()
        assert p.log_prob(there(one)).item() == pytest.approx(expected, rel=1e-8)


@sizes
def test_the_autoregressive_density_is_its_mixtures_by_hand(latent):
    prior = stirred(PRIORS["autoregressive"](latent))
    z = torch.randn(5, latent).double()
    log_weight, mean, log_scale = prior().mixture(z)
    torch.testing.assert_close(log_weight.exp().sum(-1), torch.ones(5, latent).double())
    expected = 0
    for d in range(latent):
        parts = scipy.stats.norm.pdf(z[:, d, None], mean[:, d].detach(), log_scale[:, d].exp().detach())
        expected = expected + torch.from_numpy(parts * log_weight[:, d].exp().detach().numpy()).sum(-1).log()
    torch.testing.assert_close(prior().log_prob(z).detach(), expected)
    moved = z.clone()
    moved[:, -1] += 1  # what is of the last dimension nobody sees
    for a, b in zip(prior().mixture(z), prior().mixture(moved), strict=True):
        assert torch.equal(a, b)


def test_the_autoregressive_priors_components_part_from_the_first_step():
    prior = priors.Autoregressive(1, components=4)
    prior().log_prob(torch.randn(50, 1)).sum().backward()
    assert prior.conditioner.bias.grad.unique().numel() == 12
    one = priors.Autoregressive(2, components=1)
    torch.testing.assert_close(
        one().log_prob(torch.zeros(2)), pvae.Normal(2)().log_prob(torch.zeros(2)), atol=1e-3, rtol=0
    )


class Features(torch.nn.Module):
    size = 3

    def forward(self, y):
        return torch.eye(3, dtype=torch.float64)[y]


@every_prior
@sizes
def test_a_prior_depends_on_labels_where_it_is_given_a_condition(name, latent):
    prior = stirred(PRIORS[name](latent, condition=Features()))
    y = torch.tensor([0, 1, 2, 1])
    p = prior(y)
    assert (p.batch_shape, p.event_shape) == ((4,), (latent,))
    z = torch.randn(latent).double()
    log_prob = p.log_prob(z)
    assert log_prob.shape == (4,)
    assert log_prob[1] == log_prob[3]
    assert log_prob[:3].unique().numel() == 3
    torch.testing.assert_close(log_prob[2], prior(y[2]).log_prob(z))
    assert p.expand([5, 4]).sample().shape == (5, 4, latent)
    assert p.expand([5, 4]).log_prob(z).shape == (5, 4)
    log_prob.sum().backward()
    assert all(q.grad is not None and q.grad.norm() > 0 for q in prior.parameters())


@every_prior
def test_a_draw_of_a_conditional_prior_is_of_its_label(name):
    prior = stirred(PRIORS[name](2, condition=Features()), by=0.15)
    draws = prior(torch.tensor([0, 2])).expand([20_000, 2]).sample()
    for i, y in enumerate((0, 2)):
        check_density(prior(torch.tensor(y)), bound=12.0, draws=draws[:, i])


# Guides ---------------------------------------------------------------------------------------------------------------


@every_guide
@pytest.mark.parametrize("context", [0, 1])
def test_a_guides_density_integrates_to_one_and_is_that_of_its_draws(name, context):
    guide = stirred(guide_of(name, 2, context), by=0.2)
    check_density(guide(torch.tensor([0.3, -1.0, 0.5, 1.0]).double()), bound=12.0)


@every_guide
@pytest.mark.parametrize("context", [0, 1, 2])
@sizes
def test_a_guide_starts_near_mean_field(name, latent, context):
    torch.manual_seed(0)
    guide = guide_of(name, latent, context)
    x, z = torch.randn(50, 4), torch.randn(50, latent)
    mean, raw = guide.encode(x).split([latent, latent, context * latent], -1)[:2]
    expected = DiagonalNormal(mean, guide.scale(raw)).log_prob(z)
    assert (guide(x).log_prob(z) - expected).abs().mean() < 0.15 * latent


@every_guide
@sizes
def test_a_draws_own_density_is_the_inverses_with_the_same_gradient(name, latent):
    guide = stirred(guide_of(name, latent))
    q = guide(torch.randn(3, 4).double()).expand([2, 3])
    z = q.rsample()
    own, other = q.log_prob(z), q.log_prob(z.view_as(z))
    torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-8)
    weight = torch.randn(2, 3).double()
    parameters = list(guide.parameters())
    found, expected = (
        torch.autograd.grad((weight * value).sum(), parameters, retain_graph=True) for value in (own, other)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_draws_own_density_takes_no_inverse(monkeypatch):
    q = guide_of("iaf", 4)(torch.randn(3, 4)).expand([2, 3])
    z, fixed = q.rsample(), q.sample()
    monkeypatch.setattr(TwoWay, "inv", property(lambda self: 1 / 0))
    with torch.no_grad():
        q.log_prob(fixed)
    with pytest.raises(ZeroDivisionError):  # the score at a draw that stays where it is
        q.log_prob(fixed)
    last = q.rsample()
    assert q.log_prob(last).requires_grad
    for value in (z, last.detach(), last.view_as(last)):
        with pytest.raises(ZeroDivisionError):
            q.log_prob(value)


def test_densities_of_maf_and_of_priors_take_no_inverse(monkeypatch):
    def refuse(self, y):
        raise AssertionError

    for kind in (type(AutoregressiveMap(2)(None)), type(CouplingMap(2)(None))):
        monkeypatch.setattr(kind, "_inverse", refuse)
    z = torch.randn(5, 3)
    guide_of("maf", 3)(torch.randn(5, 4)).log_prob(z)
    guide_of("iaf", 3)(torch.randn(5, 4)).rsample()
    guide_of("spline", 3)(torch.randn(5, 4)).rsample()
    for make in PRIORS.values():
        make(3)().log_prob(z)


def test_a_draw_without_a_gradient_is_scored_with_one():
    """The score of q at draws that stay where they are; its expectation is 0."""
    guide = stirred(guide_of("iaf", 2))
    q = guide(torch.randn(1, 4).double()).expand([40, 100, 1])
    log_prob = q.log_prob(q.sample())
    groups = [torch.autograd.grad(part, list(guide.parameters()), retain_graph=True) for part in log_prob.mean((1, 2))]
    rows = torch.stack([torch.cat([part.flatten() for part in group]) for group in groups])
    t = rows.mean(0) / (rows.std(0) / 40**0.5)
    assert t[rows.std(0) > 1e-9].abs().max() < 5  # of a hundred


@every_guide
@sizes
@pytest.mark.parametrize("context", [0, 2])
def test_every_parameter_of_a_guide_has_a_gradient(name, latent, context):
    guide = guide_of(name, latent, context)
    q = guide(torch.randn(16, 4))
    (q.log_prob(q.rsample()) * torch.randn(16)).sum().backward()
    for key, parameter in guide.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.norm() > 1e-7, key


@every_prior
@sizes
def test_every_parameter_of_a_prior_has_a_gradient(name, latent):
    prior = PRIORS[name](latent)
    prior().log_prob(2 * torch.randn(50, latent)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.norm() > 1e-6 for parameter in prior.parameters())


# Extremes -------------------------------------------------------------------------------------------------------------


@every_prior
@pytest.mark.parametrize("far", [1e2, 1e4, 1e6])
def test_far_out_a_prior_is_finite(name, far):
    prior = stirred(PRIORS[name](4), by=1.0).float()
    z = (far * torch.tensor([[1.0, 1, 1, 1], [-1, 1, -1, 1], [0, 0, 0, -1]])).requires_grad_()
    log_prob = prior().log_prob(z)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert z.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in prior.parameters())


@every_guide
@pytest.mark.parametrize("far", [1e2, 1e4])
def test_a_guide_of_extreme_data_is_finite(name, far):
    guide = stirred(guide_of(name, 4)).float()
    q = guide(far * torch.randn(20, 4)).expand([3, 20])
    z = q.rsample()
    log_prob = q.log_prob(z)
    log_prob.sum().backward()
    assert z.isfinite().all()
    assert log_prob.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in guide.parameters())


# Whole models ---------------------------------------------------------------------------------------------------------


def vae_of(prior=None, guide=None, latent=2, seed=0):
    torch.manual_seed(seed)
    guide = guide_of(guide, latent) if guide else pvae.MeanField(torch.nn.Linear(4, 2 * latent), latent)
    return pvae.VAE(
        PRIORS[prior](latent) if prior else pvae.Normal(latent),
        pvae.Bernoulli(torch.nn.Linear(latent, 4), (4,)),
        guide,
    )


@pytest.mark.parametrize(("prior", "guide"), [(None, "planar"), ("spline", "iaf"), ("realnvp", "spline")])
def test_a_traced_step_through_inverses_is_the_eager_one(prior, guide):
    def program():
        vae = vae_of(prior, guide)
        return vae.model, vae.guide, pvae.IWAE(3, gradient="dreg"), (torch.bernoulli(torch.rand(6, 4)),)

    assert_replayed(program)


def test_a_model_with_flows_is_shown_and_sampled():
    vae, x = vae_of("maf", "iaf"), torch.bernoulli(torch.rand(6, 4))
    mean = stirred(vae.posterior).float()(x).sample((4000,)).mean(0)
    assert (vae.means(x)["z"] - mean).abs().max() < 1
    assert torch.equal(vae_of("maf").means(x)["z"], vae_of("maf").posterior(x).mean)
    assert vae.reconstruct(x).shape == (6, 4)
    assert vae.sample(3).shape == (3, 4)


def test_a_flow_guide_learns_what_mean_field_cannot():
    """A posterior bent round a parabola."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pvae.Normal(2)())
            mean = z[..., 0] ** 2 + z[..., 1]
            pyro.sample("x", pyro.distributions.Normal(mean, 0.2), obs=x[:, 0])

    found = {}
    for name in ("mean_field", "iaf"):
        torch.manual_seed(0)
        part = pvae.MeanField(torch.nn.Linear(4, 4), 2) if name == "mean_field" else guide_of(name, 2)

        def guide(x, part=part):
            with pyro.plate("data", len(x)):
                pyro.sample("z", part(x))

        x = torch.zeros(64, 4)
        svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), pvae.ELBO(), compile="graph")
        losses = [svi.step(x) / 64 for _ in range(300)]
        found[name] = sum(losses[-50:]) / 50
    assert found["iaf"] < found["mean_field"] - 0.1


def test_importing_and_unpickling_leave_validation_as_it_is():
    code = (
        "import sys, pickle, torch, pvae; assert torch.distributions.Distribution._validate_args;"
        "pickle.loads(sys.stdin.buffer.read()); assert torch.distributions.Distribution._validate_args"
    )
    data = pickle.dumps([guide_of("spline", 2), PRIORS["maf"](2)])
    subprocess.run([sys.executable, "-c", code], input=data, check=True)


def test_the_options_of_a_guide_size_its_encoder():
    options = {"transforms": 2, "hidden": (8,), "context": 3}
    assert guides.IAF.outputs_for(5, **options) == 5
    assert guides.IAF(torch.nn.Linear(4, 25), 5, **options).outputs == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: priors.RealNVP(2, transforms=0), "transforms: found 0, expected at least 1"),
        (lambda: guides.IAF(torch.nn.Linear(4, 6), 2, transforms=0), "transforms: found 0, expected at least 1"),
        (lambda: guides.IAF(torch.nn.Linear(4, 6), 2, context=-1), "context: found -1, expected at least 0"),
        (lambda: priors.MAF(2, hidden=(0,)), "hidden: found 0, expected each to be at least 1"),
        (lambda: priors.Spline(2, bins=1), "bins: found 1, expected at least 2"),
        (lambda: priors.Spline(2, bound=0.0), "bound: found 0.0, expected more than 0"),
        (lambda: priors.Autoregressive(2, components=0), "components: found 0, expected at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(pvae.InputError, match=message):
        wrong()


def test_a_flow_broadcasts_what_it_scores():
    flow = FlowDistribution(DiagonalNormal(torch.zeros(3, 2), torch.ones(3, 2)), stirred(CouplingMap(2)).float()(None))
    assert flow.log_prob(torch.zeros(5, 1, 2)).shape == (5, 3)
    assert flow.expand([3]) is flow
    assert flow.expand([4, 3]).rsample([5]).shape == (5, 4, 3, 2)
    assert flow.support.event_dim == 1
