"""Bounds as functions of log-weights: against their formulas, float64, and the exact values of a Gaussian model."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal

import pvae
from pvae import bounds, exact
from pvae.errors import InputError
from pvae.estimators import others

PARTITIONS = (0.0, 0.05, 0.3, 1.0)
BOUNDS = {
    "elbo": bounds.elbo,
    "iwae": bounds.iwae,
    **{f"renyi{a:g}": lambda w, a=a: bounds.renyi(w, a) for a in (-3.0, -0.5, 0, 0.3, 0.9, 1 - 1e-6, 1, 1.001, 2, 5)},
    "ciwae": lambda w: bounds.ciwae(w, 0.3),
    "miwae": lambda w: bounds.miwae(w, 2 if len(w) % 2 == 0 else 1),
    "piwae-model": lambda w: bounds.piwae(w, 1)[0],
    "piwae-guide": lambda w: bounds.piwae(w, 2 if len(w) % 2 == 0 else 1)[1],
    "tvo": lambda w: bounds.tvo(w, PARTITIONS),
    "tvo-upper": lambda w: bounds.tvo(w, PARTITIONS, upper=True),
    "cubo": lambda w: bounds.cubo(w, 2.0),
}
every_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)


def log_weights(k, b=7, seed=0):
    return 3 * torch.randn(k, b, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 5


# Their formulas -------------------------------------------------------------------------------------------------------


def test_formulas():
    log_w = log_weights(6)
    w = log_w.exp()
    for alpha in (-2.0, 0.25, 0.75, 3.0):
        expected = (w ** (1 - alpha)).mean(0).log() / (1 - alpha)
        torch.testing.assert_close(bounds.renyi(log_w, alpha), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bounds.iwae(log_w), w.mean(0).log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bounds.cubo(log_w, 3.0), (w**3).mean(0).log() / 3, rtol=1e-12, atol=1e-12)
    lower = upper = 0.0
    for low, high in ((0.0, 0.05), (0.05, 0.3), (0.3, 1.0)):
        mean = {b: (w**b * log_w).sum(0) / (w**b).sum(0) for b in (low, high)}
        lower, upper = lower + (high - low) * mean[low], upper + (high - low) * mean[high]
    torch.testing.assert_close(bounds.tvo(log_w, PARTITIONS), lower, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bounds.tvo(log_w, PARTITIONS, upper=True), upper, rtol=1e-12, atol=1e-12)


def test_limits():
    log_w = log_weights(6)
    elbo, iwae = bounds.elbo(log_w), bounds.iwae(log_w)
    for found, expected in (
        (bounds.renyi(log_w, 1), elbo),
        (bounds.renyi(log_w, 0), iwae),
        (bounds.ciwae(log_w, 1), elbo),
        (bounds.ciwae(log_w, 0), iwae),
        (bounds.miwae(log_w, 6), elbo),
        (bounds.miwae(log_w, 1), iwae),
        (bounds.tvo(log_w, (0, 1)), elbo),
        (bounds.cubo(log_w, 1), iwae),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # alpha = 1 is the limit from both sides, in value and slope
    for alpha in (1 - 1e-7, 1 + 1e-7):
        torch.testing.assert_close(bounds.renyi(log_w, alpha), elbo, rtol=0, atol=1e-5)
        _, slope = bounds.slope(lambda w, a=alpha: bounds.renyi(w, a), log_w)
        torch.testing.assert_close(slope, torch.full_like(slope, 1 / 6), rtol=0, atol=1e-5)


def test_miwae_normalizes_over_the_draws_of_a_group_at_two_groups_of_64():
    log_w = log_weights(128)
    first, second = log_w[:64], log_w[64:]
    expected = (first.exp().mean(0).log() + second.exp().mean(0).log()) / 2
    torch.testing.assert_close(bounds.miwae(log_w, 2), expected, rtol=1e-12, atol=1e-12)
    assert (bounds.miwae(log_w, 64) - expected).abs().min() > 0.1  # the other axis
    torch.testing.assert_close(bounds.piwae(log_w, 2)[0], log_w.exp().mean(0).log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bounds.piwae(log_w, 2)[1], expected, rtol=1e-12, atol=1e-12)


@every_bound
def test_one_datum_does_not_know_the_others_and_one_weight_for_all_is_the_bound(bound):
    log_w = log_weights(8)
    torch.testing.assert_close(bound(log_w)[3:4], bound(log_w[:, 3:4]), rtol=1e-13, atol=1e-13)
    same = log_w[:1].expand(8, -1)
    torch.testing.assert_close(bound(same), log_w[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bound(log_w + 2), bound(log_w) + 2, rtol=1e-12, atol=1e-12)


KINDS = {
    "spread": lambda w: 1e4 * (2 * torch.rand_like(w) - 1),
    "high": lambda w: 1e4 + torch.randn_like(w),
    "low": lambda w: -1e4 + torch.randn_like(w),
    "near": lambda w: torch.randn_like(w),
    "mixed": lambda w: torch.randn_like(w) * 10.0 ** (6 * torch.rand_like(w) - 2),
    "one": lambda w: torch.cat([torch.zeros_like(w[:1]), torch.full_like(w[1:], -1e4)]),
}


@pytest.mark.parametrize("k", [1, 2, 100, 10_000])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@every_bound
def test_float32_is_float64s_to_a_millionth(bound, kind, k):
    log_w = kind(torch.empty(k, 5)).clamp(-1e4, 1e4).requires_grad_()
    found, expected = bound(log_w), bound(log_w.double())
    scale = torch.stack([expected.abs(), log_w.abs().mean(0).double()]).amax(0).clamp(min=1)
    assert ((found - expected).abs() / scale).max() < 1e-6
    (gradient,) = torch.autograd.grad(found.sum(), log_w)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient.sum(0), torch.ones(5), rtol=0, atol=5e-3)


@pytest.mark.parametrize("power", [-20.0, -4.0, 0.4, 0.6, 5.0, 50.0])
@pytest.mark.parametrize("away", [0.0, 1e4, -1e4])
def test_power_means_keep_their_digits_at_any_power_and_size(power, away):
    torch.manual_seed(0)
    log_w = (torch.randn(10_000, 4) + away).requires_grad_()
    double = log_w.detach().double().requires_grad_()
    found, expected = bounds.power_mean(log_w, power), double.mul(power).logsumexp(0).sub(math.log(10_000)) / power
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    gradient, exact = (torch.autograd.grad(each.sum(), w)[0] for each, w in ((found, log_w), (expected, double)))
    assert (gradient - exact).abs().sum(0).max() < 1e-4


def test_a_weight_of_zero_counts_for_nothing():
    log_w = torch.tensor([[0.0], [-math.inf], [2.0]])
    expected = math.log((1 + math.exp(2)) / 3)
    assert bounds.iwae(log_w).item() == pytest.approx(expected)
    assert bounds.tvo(log_w, (0, 1), upper=True).isfinite()
    assert bounds.tvo(log_w, (0, 1)) == -math.inf
    assert bounds.renyi(log_w, 0.9).isfinite()
    for power in (0.5, 3.0):
        assert bounds.power_mean(log_w, power).item() == pytest.approx(math.log((1 + math.exp(2 * power)) / 3) / power)
        assert bounds.power_mean(torch.full((3, 1), -math.inf), power) == -math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: bounds.miwae(w, 0), "groups: found 0 for 6 particles, expected a divisor"),
        (lambda w: bounds.miwae(w, 4), "groups: found 4 for 6 particles, expected a divisor"),
        (lambda w: bounds.miwae(w[:0], 1), "groups: found 1 for 0 particles"),
        (lambda w: bounds.tvo(w, (0, 0.5, 0.2, 1)), "partitions: found 0,0.5,0.2,1, expected numbers that rise"),
        (lambda w: bounds.tvo(w, (0, 0.5, 0.5, 1)), "partitions: found 0,0.5,0.5,1"),
        (lambda w: bounds.tvo(w, (0.1, 1)), "partitions: found 0.1,1"),
        (lambda w: bounds.tvo(w, (0, 0.9)), "partitions: found 0,0.9"),
        (lambda w: bounds.tvo(w, ()), "partitions: found none"),
        (lambda w: bounds.cubo(w, 0.5), "order: found 0.5, expected a finite number of at least 1"),
        (lambda w: bounds.ciwae(w, 1.5), "beta: found 1.5, expected the share of the ELBO"),
        (
            lambda w: bounds.elbo(w[:0]),
            r"log_w: found K of 0, in shape \(0, 7\), expected \(K, B\) with a K of at least",
        ),
        (lambda w: bounds.iwae(w[:0]), "log_w: found K of 0"),
        (lambda w: bounds.renyi(w[:0], 1.0), "log_w: found K of 0"),
        (lambda w: bounds.cubo(w[:0]), "log_w: found K of 0"),
        (lambda w: bounds.tvo(w[:0], (0, 1)), "log_w: found K of 0"),
        (lambda w: bounds.renyi(w, math.nan), "alpha: found nan, expected a finite number"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(pvae.InputError, match=message) as found:
        call(log_weights(6))
    assert "\n" not in str(found.value)


# What estimators ask of them ------------------------------------------------------------------------------------------


@every_bound
def test_slopes_are_those_of_each_draw(bound):
    log_w, step = log_weights(4), 1e-4
    value, slope = bounds.slope(bound, log_w)
    twice = bounds.twice_slope(bound, log_w)
    torch.testing.assert_close(value, bound(log_w))
    for k in range(4):
        up, down = log_w.clone(), log_w.clone()
        up[k], down[k] = up[k] + step, down[k] - step
        first = (bound(up) - bound(down)) / (2 * step)
        second = (bound(up) - 2 * value + bound(down)) / step**2
        torch.testing.assert_close(slope[k], first, rtol=0, atol=1e-6)
        torch.testing.assert_close(twice[k], first - second, rtol=0, atol=1e-5)


@pytest.mark.parametrize("power", [0, 0.3, 1, 2, -1.5])
def test_the_quick_way_for_power_means_is_the_general_one(power):
    log_w = log_weights(5)
    expected = bounds.twice_slope(lambda w: bounds.power_mean(w, power), log_w)
    torch.testing.assert_close(bounds.twice_slope_of_power(log_w, power), expected, rtol=1e-10, atol=1e-12)


def test_twice_the_slope_keeps_its_digits_where_weights_are_small():
    """There it is the difference of two numbers that are almost one another."""
    log_w = torch.linspace(-14.0, 0.0, 12)[:, None]
    found = bounds.twice_slope(bounds.iwae, log_w)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (2 * log_w.double().log_softmax(0)).exp().float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("pairs", [others.PAIRS, 30, 1])
def test_a_draw_left_out_or_replaced(pairs, monkeypatch):
    """However many draws are looked at at once."""
    monkeypatch.setattr(others, "PAIRS", pairs)
    log_w = log_weights(4)
    means = (others.left_out_of_power(log_w, power) for power in (0.0, 1.0))
    left = others.left_out(bounds.iwae, log_w)
    geometric, arithmetic = (others.stood_in(bounds.iwae, log_w, mean) for mean in means)
    for k in range(4):
        rest = torch.cat([log_w[:k], log_w[k + 1 :]])
        torch.testing.assert_close(left[k], bounds.iwae(rest))
        torch.testing.assert_close(geometric[k], bounds.iwae(torch.cat([rest, rest.mean(0, keepdim=True)])))
        torch.testing.assert_close(arithmetic[k], bounds.iwae(rest))  # the same, for this bound


@pytest.mark.parametrize("power", [-2.0, -0.3, -1e-9, 0.0, 1e-9, 1e-4, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("draws", [2, 3, 50])
def test_of_a_power_mean_a_draw_is_left_out_or_replaced_in_one_pass(power, draws):
    log_w = 5 * log_weights(draws).double() - 100
    log_w[0, 0] = 30.0  # one that weighs more than all others
    bound = partial(bounds.power_mean, power=power)
    found, expected = others.left_out_of_power(log_w, power), others.left_out(bound, log_w)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    found, expected = (others.stood_in_of_power(log_w, power, expected), others.stood_in(bound, log_w, expected))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert others.left_out_of_power(log_w.float(), power).dtype == torch.float32


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_draws_of_no_weight_are_left_out_too(power):
    log_w = torch.tensor([[-torch.inf, -torch.inf], [1.0, -torch.inf], [2.0, 3.0]])
    found = others.left_out_of_power(log_w, power)
    expected = others.left_out(partial(bounds.power_mean, power=power), log_w)
    torch.testing.assert_close(found, expected)
    assert found[2, 1] == -torch.inf


@pytest.mark.parametrize("gradient", ["score", "vimco", "ovis"])
def test_baselines_of_many_draws_take_one_pass(gradient, monkeypatch):
    """Of the importance-weighted bound; the same gradient as by looking at all draws for each."""
    log_w = log_weights(20)
    objective = pvae.IWAE(20, gradient=gradient)
    quick = objective.gradient.coefficients(objective, log_w, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(type(objective), "left_out", lambda self, w: others.left_out(self.bound, w))
        patch.setattr(type(objective), "stood_in", lambda self, w, instead: others.stood_in(self.bound, w, instead))
        slow = objective.gradient.coefficients(objective, log_w, 1.0)
    torch.testing.assert_close(quick.score, slow.score, rtol=1e-5, atol=1e-6)
    many = pvae.IWAE(200_000, gradient=gradient)  # of each draw all others would be 300 GB
    assert many.gradient.coefficients(many, torch.randn(200_000, 1), 1.0).score.isfinite().all()


@pytest.mark.parametrize("member", [pvae.MIWAE, pvae.PIWAE])
def test_a_draw_left_out_of_its_group(member):
    log_w = log_weights(6)
    found = member(6, groups=2).left_out(log_w)
    for k in range(6):
        first, second = ([j for j in range(start, start + 3) if j != k] for start in (0, 3))
        expected = (bounds.iwae(log_w[first]) + bounds.iwae(log_w[second])) / 2
        torch.testing.assert_close(found[k], expected)


# Against exact answers ------------------------------------------------------------------------------------------------


@pytest.fixture
def gaussian():
    """p(z) = N(0, 1), p(x|z) = N(1.2 z, 0.5), x = 0.9, and a guide that is wider than the posterior and off its mean.

    Its moments under weights w^b are those of Gaussians, here by quadrature in float64.
    """
    one = torch.ones((), dtype=torch.float64)
    truth = exact.LinearGaussian(torch.tensor([[1.2]], dtype=torch.float64), torch.zeros(1).double(), 0.5 * one)
    x = torch.tensor([[0.9]], dtype=torch.float64)
    posterior = truth.posterior(x)
    q = Normal(posterior.mean.squeeze() + 0.15, 1.3 * posterior.variance.squeeze().sqrt())
    z = torch.linspace(-12, 12, 40_001, dtype=torch.float64) * q.scale + q.loc

    def log_w(z):
        return Normal(0 * one, 1.0).log_prob(z) + Normal(1.2 * z, (0.5 * one).sqrt()).log_prob(x[0, 0]) - q.log_prob(z)

    def power(b):
        """Log E_q[w^b]."""
        return (q.log_prob(z) + b * log_w(z)).logsumexp(0) + (z[1] - z[0]).log()

    def mean(b):
        """E[log w] under q w^b, normalized."""
        return ((q.log_prob(z) + b * log_w(z)).softmax(0) * log_w(z)).sum()

    return truth.log_prob(x).item(), q, log_w, power, mean


def sampled(gaussian, k, n):
    _, q, log_w, *_ = gaussian
    return log_w(q.sample((k, n)))


def test_many_draws_give_the_exact_values(gaussian):
    """At K = 5,000 what is left is of order 1/K, here below 2/K."""
    log_p, _, _, power, mean = gaussian
    assert power(1.0).item() == pytest.approx(log_p, abs=1e-9)
    log_w = sampled(gaussian, 5000, 400)
    lower = sum((b - a) * mean(a) for a, b in pairwise(PARTITIONS))
    upper = sum((b - a) * mean(b) for a, b in pairwise(PARTITIONS))
    exactly = {
        "iwae": (bounds.iwae(log_w), log_p),
        "elbo": (bounds.elbo(log_w), mean(0.0)),
        **{f"renyi{a}": (bounds.renyi(log_w, a), power(1 - a) / (1 - a)) for a in (-1.0, 0.5, 0.9, 1.5)},
        "ciwae": (bounds.ciwae(log_w, 0.3), 0.3 * mean(0.0) + 0.7 * log_p),
        "cubo": (bounds.cubo(log_w, 2.0), power(2.0) / 2),
        "tvo": (bounds.tvo(log_w, PARTITIONS), lower),
        "tvo-upper": (bounds.tvo(log_w, PARTITIONS, upper=True), upper),
    }
    for name, (values, expected) in exactly.items():
        se = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - expected) < 4 * se + 2 / 5000, name
    # in the order that theory says, and upper bounds above
    order = ["renyi1.5", "elbo", "renyi0.9", "renyi0.5", "iwae", "renyi-1.0"]
    found = [exactly[name][1] for name in order]
    assert all(a < b - 1e-3 for a, b in pairwise(found))
    assert exactly["elbo"][1] < lower < log_p < upper
    assert exactly["cubo"][1] > log_p + 1e-3


def test_each_bound_rises_with_k_to_5000(gaussian):
    log_p = gaussian[0]
    log_w = sampled(gaussian, 5000, 200)
    means = {}
    for k in (1, 2, 10, 50, 500, 5000):
        groups = log_w.reshape(5000 // k, k, 200).transpose(0, 1)
        means[k] = bounds.iwae(groups).mean(0)
        torch.testing.assert_close(bounds.miwae(log_w, 5000 // k), means[k])
    for low, high in pairwise(means):
        rise = means[high] - means[low]
        # beyond some K the rise is below the noise
        assert rise.mean() > (4 if high <= 50 else -4) * rise.std() / math.sqrt(200), f"L_{high} is not above L_{low}"
    assert abs(means[5000].mean() - log_p) < 4 * means[5000].std() / math.sqrt(200) + 1e-3


def test_a_surrogates_value_is_no_bound(gaussian):
    """The sum of w log w is above log p: logged as the bound it would look like a better one."""
    log_w = sampled(gaussian, 500, 200)
    surrogate = (log_w.softmax(0) * log_w).sum(0)
    assert surrogate.mean() > gaussian[0] + 4 * surrogate.std() / math.sqrt(200)


def test_a_bound_at_k_is_the_mean_over_disjoint_groups():
    log_w = torch.randn(11, 3).double()
    expected = (bounds.iwae(log_w[:4]) + bounds.iwae(log_w[4:8])) / 2
    torch.testing.assert_close(bounds.at(bounds.iwae, log_w, 4), expected)
    torch.testing.assert_close(bounds.at(bounds.elbo, log_w, 11), log_w.mean(0))
    for particles in (0, 12):
        with pytest.raises(InputError, match=f"particles: found {particles}, expected 1 to 11"):
            bounds.at(bounds.iwae, log_w, particles)


@pytest.mark.parametrize("log_w", [[[-math.inf], [0.0], [1.0]], [[-math.inf]] * 3])
def test_the_ends_of_ciwae_are_the_two_bounds_where_a_weight_is_zero_too(log_w):
    log_w = torch.tensor(log_w)
    assert torch.equal(bounds.ciwae(log_w, 0.0), bounds.iwae(log_w))
    assert torch.equal(bounds.ciwae(log_w, 1.0), bounds.elbo(log_w))
    assert bounds.ciwae(log_w, 0.5).item() == -math.inf
    if log_w.max() > 0:
        torch.testing.assert_close(bounds.slope(lambda w: bounds.ciwae(w, 0.0), log_w)[1], log_w.softmax(0))
