"""Likelihoods of pixels: against closed forms, quadrature and scipy; their data, dequantization and bits."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from torch import nn

import pvae
from pvae import build, compare, config, data, distributions, fit, likelihoods
from pvae.config import Config, from_flat
from pvae.data import Dataset, Split
from pvae.data.supports import is_discrete
from pvae.distributions import IndependentBernoulli
from pvae.errors import InputError
from pvae.evaluate import Evaluation, bits_per_dim
from pvae.load import read_data
from pvae.runs import protocol
from pvae.train import Training, svi

LOGITS = torch.tensor([-50.0, -10.0, -1.2, -1.0, -0.3, -1e-4, 0.0, 1e-9, 1e-3, 0.9999, 1.0001, 4.0, 50.0])


def of(member, *shape, **options):
    """A part whose decoder is the identity, in float64: numbers (..., outputs * pixels) to its distribution."""
    return member(nn.Identity(), shape, **options).double()


def of_one(member, numbers, **options):
    """The distribution of one pixel, given its numbers (..., outputs)."""
    return of(member, 1, **options)(numbers.double())


def raw(spread, least):
    return torch.tensor(spread - least).double().expm1().log()


def quadrature(p, low, high, weigh=lambda x: 1.0, points=100_001):
    """The integral of p(x) weigh(x) over one pixel by Simpson's rule, p of batch shape ()."""
    x = torch.linspace(low, high, points, dtype=torch.float64)
    return scipy.integrate.simpson((p.log_prob(x[:, None]).exp() * weigh(x)).numpy(), x=x.numpy())


# Densities ------------------------------------------------------------------------------------------------------------

DENSITIES = {
    "continuous_bernoulli": (likelihoods.ContinuousBernoulli, {}, (0, 1)),
    "laplace": (likelihoods.Laplace, {"scale": 0.5}, (-30, 30)),
    "student_t": (likelihoods.StudentT, {"scale": 0.5, "df": 7.0}, (-300, 300)),
    "beta": (likelihoods.Beta, {"precision": 12.0}, (1e-9, 1 - 1e-9)),
    "logit_normal": (likelihoods.LogitNormal, {"scale": 0.7}, (1e-9, 1 - 1e-9)),
}


@pytest.mark.parametrize("at", [-1.0, 0.0, 0.4, 1.5])
@pytest.mark.parametrize("case", DENSITIES)
def test_a_density_integrates_to_one_and_has_its_mean(case, at):
    member, options, ends = DENSITIES[case]
    p = of_one(member, torch.tensor([at]), **options)
    assert quadrature(p, *ends) == pytest.approx(1, abs=1e-6)
    assert quadrature(p, *ends, lambda x: x) == pytest.approx(p.mean.item(), abs=1e-5)


@pytest.mark.parametrize("at", [-1.0, 0.0, 1.5])
@pytest.mark.parametrize("case", DENSITIES)
def test_draws_have_the_density(case, at):
    member, options, ends = DENSITIES[case]
    p = of_one(member, torch.tensor([at]), **options)
    x = p.expand([20_000]).sample().squeeze(-1)
    grid = torch.linspace(*ends, 200_001, dtype=torch.float64)
    mass = p.log_prob(grid[:, None]).exp()
    distribution = torch.cumulative_trapezoid(mass, grid)
    at_draws = np.interp(x, grid[1:], distribution / distribution[-1])
    assert scipy.stats.kstest(at_draws, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("scale", [0.05, 3.0])
def test_laplace_and_student_t_are_scipys(scale):
    mean, x = torch.randn(5, 4, 2, 3).double(), 3 * torch.randn(4, 2, 3).double()
    for member, options, theirs in (
        (likelihoods.Laplace, {}, scipy.stats.laplace),
        (likelihoods.StudentT, {"df": 3.5}, scipy.stats.t(3.5).dist),
    ):
        p = of(member, 2, 3, scale=scale, **options)(mean.flatten(-2))
        shape = (options["df"],) if options else ()
        expected = theirs.logpdf(x, *shape, loc=mean, scale=float(np.float32(scale))).sum((-2, -1))
        np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-10)
        assert torch.equal(p.mean, mean)


@pytest.mark.parametrize("df", [1.5, 30.0, 1e4, 1e6, 1e15])
def test_student_t_keeps_its_digits_in_float32(df):
    part = likelihoods.StudentT(nn.Identity(), (1,), scale=0.5, df=df)
    x = torch.linspace(-3, 3, 50)[:, None]
    expected = scipy.stats.t.logpdf(x[:, 0].double(), df, scale=0.5)
    np.testing.assert_allclose(part(torch.zeros(50, 1)).log_prob(x), expected, atol=2e-6, rtol=1e-5)


def test_a_learned_df_starts_at_five_and_stays_above_one():
    part = likelihoods.StudentT(nn.Identity(), (3,), df="learned")
    assert part.df.item() == pytest.approx(5)
    part(torch.zeros(4, 3)).log_prob(torch.randn(3)).sum().backward()
    assert part.raw_df.grad.abs() > 0
    part.raw_df.data.fill_(-1e3)
    assert part.df == 1


@pytest.mark.parametrize("precision", [0.2, 3.0, 40.0, 1e5])
def test_beta_is_scipys(precision):
    logits = torch.tensor([-4.0, -1.0, 0.0, 2.5]).double()
    x = torch.linspace(0.001, 0.999, 333).double()[:, None]
    mean = 1e-4 + (1 - 2e-4) * logits.sigmoid()
    precision = np.float64(np.float32(precision))
    expected = scipy.stats.beta.logpdf(x, mean * precision, (1 - mean) * precision).sum(-1)
    found = of(likelihoods.Beta, 4, precision=precision)(logits).log_prob(x.expand(333, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-7)


def test_beta_keeps_its_digits_in_float32():
    """About its mean, where with log-gammas of 1e4 it would be off by 0.01 nats a pixel."""
    x = torch.linspace(0.29, 0.31, 41)[:, None]
    logit = torch.full((1,), math.log(0.3 / 0.7))
    part = likelihoods.Beta(nn.Identity(), (1,), precision=1e4)
    exact = part.double()(logit.double()).log_prob(x.double())
    assert (part.float()(logit).log_prob(x) - exact).abs().max() < 3e-5


@pytest.mark.parametrize("least", [0.01, 1.0])
def test_logit_normal_is_scipys(least):
    part = of(likelihoods.LogitNormal, 4, scale="pixel", min_scale=least)
    part.raw_scale.data += torch.randn(4).double()
    mean, x = torch.randn(5, 4).double(), torch.rand(5, 4).double()
    expected = scipy.stats.norm.logpdf(x.logit(), mean, part.scale.detach()) - (x * (1 - x)).log().numpy()
    np.testing.assert_allclose(part(mean).log_prob(x).detach(), expected.sum(-1), rtol=1e-10)


# Continuous Bernoulli -------------------------------------------------------------------------------------------------


def closed_form(p, x):
    """Loaiza-Ganem and Cunningham 2019, equations 1 and 3, p off 1/2."""
    constant = (2 * np.arctanh(1 - 2 * p)) / (1 - 2 * p)
    return np.log(constant) + x * np.log(p) + (1 - x) * np.log1p(-p)


def test_continuous_bernoulli_is_its_closed_form():
    p = np.concatenate([np.linspace(0.001, 0.999, 400), 0.5 + np.array([-1, 1, 30, 1e3, 1e4])[:, None].ravel() * 1e-6])
    x = np.linspace(0, 1, 7)[:, None]
    logits = torch.from_numpy(np.log(p) - np.log1p(-p))
    part = of(likelihoods.ContinuousBernoulli, 1)
    found = part(logits[:, None]).expand([7, len(p)]).log_prob(torch.from_numpy(x)[..., None].expand(7, len(p), 1))
    np.testing.assert_allclose(found, closed_form(p, x), atol=1e-9)
    near = np.abs(p - 0.5) < 0.01
    taylor = np.log(2) + 4 / 3 * (p - 0.5) ** 2 + 104 / 45 * (p - 0.5) ** 4
    np.testing.assert_allclose(
        (found.numpy() - x * np.log(p) - (1 - x) * np.log1p(-p))[:, near],
        np.broadcast_to(taylor[near], (7, near.sum())),
        atol=1e-6,
    )
    mean = p / (2 * p - 1) + 1 / (2 * np.arctanh(1 - 2 * p))
    far = np.abs(p - 0.5) > 1e-3
    np.testing.assert_allclose(part(logits[:, None]).mean[far, 0], mean[far], atol=1e-10)


def test_continuous_bernoulli_is_finite_and_smooth_everywhere_in_float32():
    logits = torch.cat([LOGITS, torch.tensor([-1e30, -1e4, 1e4, 1e30])]).requires_grad_()
    x = torch.tensor([[0.0], [0.3], [1.0]])
    found = likelihoods.ContinuousBernoulli(nn.Identity(), (1,))(logits[:, None]).log_prob(x[:, None])
    assert found.isfinite().all()
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all()
    exact = LOGITS.double().requires_grad_()
    expected = of(likelihoods.ContinuousBernoulli, 1)(exact[:, None]).log_prob(x.double()[:, None])
    torch.testing.assert_close(found[:, : len(LOGITS)].double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        gradient[: len(LOGITS)].double(), torch.autograd.grad(expected.sum(), exact)[0], rtol=1e-5, atol=1e-6
    )


def test_continuous_bernoullis_gradients_are_right():
    logits, x = LOGITS[2:-1].double().requires_grad_(), torch.rand(10).double().requires_grad_()
    part = of(likelihoods.ContinuousBernoulli, 10)
    assert torch.autograd.gradcheck(lambda a, b: part(a).log_prob(b), (logits, x))


# Levels ---------------------------------------------------------------------------------------------------------------


def every_level(count=256):
    return torch.arange(count) / (count - 1)


def logistic_cases():
    for mean in (-3.0, 0.0, 0.2501, 0.5, 1.0, 50.0):
        for scale in (5e-4, 2e-3, 0.05, 1.0, 50.0):
            yield mean, scale


@pytest.mark.parametrize("count", [2, 17, 256])
def test_discretized_logistic_sums_to_one_and_is_its_formula(count):
    for mean, scale in logistic_cases():
        part = likelihoods.DiscretizedLogistic(nn.Identity(), (1,), scale=scale, levels=count)
        log_prob = part(torch.tensor([mean])).log_prob(every_level(count)[:, None])
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)
        x, half = np.arange(count) / (count - 1), 0.5 / (count - 1)
        upper, lower = ((x + sign * half - mean) / np.float32(scale) for sign in (1, -1))
        F = scipy.stats.logistic
        mass = np.where(x > 0.5, F.sf(lower) - F.sf(upper), F.cdf(upper) - F.cdf(lower))
        mass[0], mass[-1] = F.cdf(upper[0]), F.sf(lower[-1])
        np.testing.assert_allclose(log_prob.exp(), mass, atol=2e-6)


def test_a_mixture_sums_to_one_and_is_its_components_weighed():
    options = {"components": 3, "min_scale": 0.01}
    numbers = torch.randn(6, 9, 2).double()
    numbers[0] *= 30
    p = of(likelihoods.DiscretizedLogisticMixture, 2, **options)(numbers.flatten(1))
    x = every_level().double()
    log_prob = p.expand([256, 6]).log_prob(x[:, None, None].expand(256, 6, 2))
    logits, mean, raws = numbers.chunk(3, 1)
    by_pixel = torch.zeros(256, 6, 2).double()
    for k in range(3):
        scale = 0.01 + nn.functional.softplus(raws[:, k])
        upper, lower = ((x[:, None, None] + s / 510 - mean[:, k]) / scale for s in (1, -1))
        upper[-1], lower[0] = math.inf, -math.inf
        by_pixel += logits.softmax(1)[:, k] * (upper.sigmoid() - lower.sigmoid())
    torch.testing.assert_close(by_pixel.sum(0), torch.ones(6, 2).double())
    good = by_pixel.prod(-1) > 1e-12
    torch.testing.assert_close(log_prob.exp()[good], by_pixel.prod(-1)[good], rtol=1e-3, atol=1e-13)
    torch.testing.assert_close(p.mean, (by_pixel * x[:, None, None]).sum(0))


def test_one_component_is_the_logistic():
    numbers, x = torch.randn(5, 3, 4).double(), every_level()[torch.randint(256, (5, 4))].double()
    mixture = of(likelihoods.DiscretizedLogisticMixture, 4, components=1)(numbers.flatten(1))
    single = of(likelihoods.DiscretizedLogistic, 4, scale="decoder")(numbers[:, 1:].flatten(1))
    torch.testing.assert_close(mixture.log_prob(x), single.log_prob(x))
    torch.testing.assert_close(mixture.mean, single.mean)


@pytest.mark.parametrize("count", [2, 16, 256])
def test_categorical_is_torchs(count):
    numbers = (3 * torch.randn(5, count, 2, 3)).double().requires_grad_()
    level = torch.randint(count, (4, 5, 2, 3))
    part = of(likelihoods.Categorical, 2, 3, levels=count)
    p = part(numbers.flatten(1))
    theirs = torch.distributions.Categorical(logits=numbers.movedim(1, -1))
    found, expected = p.log_prob(level / (count - 1)), theirs.log_prob(level).sum((-2, -1))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(p.expand([4, 5]).log_prob(level[0] / (count - 1)), expected[:1].expand(4, 5))
    weight = torch.randn(4, 5).double()
    for ours, right in zip(
        torch.autograd.grad((found * weight).sum(), numbers),
        torch.autograd.grad((expected * weight).sum(), numbers),
        strict=True,
    ):
        torch.testing.assert_close(ours, right)
    torch.testing.assert_close(p.mean, theirs.probs.detach() @ torch.arange(count).double() / (count - 1))


LEVELS = {
    "discretized_logistic": (likelihoods.DiscretizedLogistic, 2, {"scale": "decoder"}),
    "mixture": (likelihoods.DiscretizedLogisticMixture, 6, {"components": 2}),
    "categorical": (likelihoods.Categorical, 6, {}),
}


@pytest.mark.parametrize("case", LEVELS)
def test_draws_of_levels_have_their_probabilities(case):
    member, numbers, options = LEVELS[case]
    p = of_one(member, 2 * torch.randn(numbers), **options, levels=6)
    level = 5 * p.expand([30_000]).sample().squeeze(-1)
    assert torch.equal(level, level.round())
    probability = p.log_prob(every_level(6).double()[:, None]).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-12)
    counts = torch.bincount(level.long(), minlength=6)
    keep = probability * 30_000 > 5
    assert counts[~keep].sum() <= 30
    assert (
        scipy.stats.chisquare(counts[keep], (counts[keep].sum() * probability[keep] / probability[keep].sum()))[1]
        > 1e-4
    )
    assert p.mean.item() == pytest.approx((probability * every_level(6)).sum().item())


@pytest.mark.parametrize("case", LEVELS)
def test_gradients_of_levels_are_right(case):
    member, numbers, options = LEVELS[case]
    part = of(member, 2, **options, levels=6)
    x = every_level(6).double()[torch.tensor([[0, 5], [1, 3], [2, 4]])]
    z = torch.randn(3, 2 * numbers).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: part(z).log_prob(x), z)


FINITE = {
    **{name: (member, 1, {}) for name, (member, _, _) in DENSITIES.items()},
    **{f"{n}-decoder": (DENSITIES[n][0], 2, {"scale": "decoder"}) for n in ("laplace", "student_t", "logit_normal")},
    "beta-decoder": (likelihoods.Beta, 2, {"precision": "decoder"}),
    **{name: (member, n if name != "categorical" else 256, o) for name, (member, n, o) in LEVELS.items()},
}


@pytest.mark.parametrize("case", FINITE)
def test_values_and_gradients_are_finite_at_the_extremes_in_float32(case):
    """Numbers of the decoder of +-50, so that scales are at their bound too, at the ends of the support."""
    member, numbers, options = FINITE[case]
    part = member(nn.Identity(), (1,), **options)
    cells = torch.tensor([-50.0, 0.0, 50.0])
    z = torch.cartesian_prod(*[cells] * numbers) if numbers < 6 else 50 * torch.randn(40, numbers).sign()
    z = z.reshape(-1, numbers).requires_grad_()
    edge = 0.5 / 256 / data.dataset._CELLS if part.support == "open_unit_interval" else 0.0
    for x in (edge, 51 / 255, 1 - max(edge, 0.0)):
        x = min(x, 1 - 2**-24) if edge else x
        log_prob = part(z).log_prob(torch.full((1,), x))
        assert log_prob.isfinite().all()
        found = torch.autograd.grad(log_prob.sum(), [z, *part.parameters()])
        assert all(gradient.isfinite().all() for gradient in found)
    assert part(z).mean.isfinite().all()
    assert part(z).sample().isfinite().all()


@pytest.mark.parametrize("case", ["continuous_bernoulli", "discretized_logistic", "categorical"])
def test_own_gradients_under_vmap(case):
    member, numbers, options = FINITE[case]
    part = member(nn.Identity(), (1,), **options)
    z, x = torch.randn(4, numbers), torch.tensor([[0.0], [0.2], [1.0], [0.0]])

    def score(z, x):
        return part(z).log_prob(x)

    with pyro.validation_enabled(False):
        torch.testing.assert_close(torch.vmap(score)(z, x), score(z, x))
        leaf = z.clone().requires_grad_()
        expected = torch.autograd.grad(score(leaf, x).sum(), leaf)[0]
        torch.testing.assert_close(torch.vmap(torch.func.grad(score))(z, x), expected)


# Scales ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", [pvae.Gaussian, likelihoods.Laplace, likelihoods.LogitNormal])
def test_the_decoders_scale_comes_after_the_location(member):
    numbers, x = torch.randn(5, 2, 2, 3).double(), torch.rand(5, 2, 3).double()
    p = of(member, 2, 3, scale="decoder", min_scale=0.05)(numbers.flatten(1))
    scale = 0.05 + nn.functional.softplus(numbers[:, 1])
    for i in range(5):
        for j in range(3):
            one = of_one(member, numbers[i, 0, 1, j : j + 1], scale=scale[i, 1, j].item(), min_scale=0.05)
            whole = of(member, 2, 3, scale="decoder", min_scale=0.05)(numbers[i].flatten())
            moved = x[i].clone()
            moved[1, j] = 0.77
            difference = whole.log_prob(moved) - whole.log_prob(x[i])
            expected = one.log_prob(torch.tensor([0.77]).double()) - one.log_prob(x[i, 1, j : j + 1])
            torch.testing.assert_close(difference, expected, rtol=1e-5, atol=1e-5)
    assert p.log_prob(x).shape == (5,)


SHAPE = (2, 3)


def start(member, x, decoder=pvae.MLPDecoder, **options):
    every = {n: p.default for n, p in config.member_options("likelihood", member).items()} | options
    outputs = member.outputs_for(**every)
    part = member(decoder(2, likelihoods.decoded_shape(SHAPE, outputs)), SHAPE, **options)
    for p in part.decoder.parameters():
        p.data.zero_()
    part.initialize(x)
    return part


@pytest.mark.parametrize("decoder", [pvae.MLPDecoder, pvae.ConvDecoder])
@pytest.mark.parametrize(
    ("member", "options", "tolerance"),
    [
        (likelihoods.ContinuousBernoulli, {}, 1e-4),
        (likelihoods.Laplace, {"scale": "decoder"}, 1e-5),
        (likelihoods.StudentT, {"scale": "pixel"}, 1e-5),
        (likelihoods.Beta, {"precision": "decoder"}, 1e-3),
        (likelihoods.LogitNormal, {"scale": "decoder"}, 0.02),
        (likelihoods.DiscretizedLogistic, {"scale": "decoder"}, 0.03),
        (likelihoods.DiscretizedLogistic, {"scale": "pixel"}, 0.03),
        (likelihoods.DiscretizedLogisticMixture, {}, 0.03),
        (likelihoods.Categorical, {}, 0.1),
    ],
    ids=str,
)
def test_a_likelihood_starts_at_the_training_data(member, options, tolerance, decoder):
    """Its mean at the data's; and with a scale for each pixel, it gives them as much as a few bits a pixel allow."""
    spread = torch.linspace(0.05, 0.2, 6).reshape(SHAPE)
    x = (0.3 + torch.linspace(0, 0.4, 6).reshape(SHAPE) + spread * torch.randn(2000, *SHAPE)).clamp(0.01, 0.99)
    x = (255 * x).round() / 255
    part = start(member, x, decoder, **options)
    p = part(torch.zeros(2))
    assert (p.mean - x.mean(0)).abs().max() < tolerance
    levels = 0 if is_discrete(part.support) else 6 * math.log(255)
    found = p.expand([2000]).log_prob(x).mean().item() - levels
    assert -found / 6 / math.log(2) < (8 if member is likelihoods.ContinuousBernoulli else 7.1)


def test_scales_start_at_the_training_deviation():
    x = 3 + 2 * torch.randn(500, *SHAPE)
    deviation = x.std(0, correction=0)
    root, mean = deviation.square().mean().sqrt(), (x - x.mean(0)).abs().mean()
    found = {
        "laplace": (start(likelihoods.Laplace, x).scale, mean),
        "t": (start(likelihoods.StudentT, x, df=4.0).scale * math.sqrt(4 / 2), root),
        "t by pixel": (start(likelihoods.StudentT, x, df=4.0, scale="pixel").scale * math.sqrt(4 / 2), deviation),
        "logistic": (start(likelihoods.DiscretizedLogistic, x).scale * math.pi / math.sqrt(3), root),
    }
    for name, (scale, expected) in found.items():
        torch.testing.assert_close(scale.detach(), expected, rtol=1e-4, atol=0, msg=name)


# Data -----------------------------------------------------------------------------------------------------------------


def dataset(x):
    return Dataset("mine", Split(x, None), Split(x[:0], None), Split(x, None), "")


@pytest.mark.parametrize(
    ("support", "good", "bad", "expected"),
    [
        (
            "levels",
            [0.0, 51 / 255, 1.0],
            0.31415,
            "256 grey levels, multiples of 1/255, as mine scores: pass `--likelihood continuous_bern",
        ),
        ("17 levels", [0.0, 1 / 16, 1.0], 0.2, "17 grey levels, multiples of 1/16, as mine scores"),
        ("open_unit_interval", [1e-9, 0.5], 0.0, "a pixel inside (0, 1), as mine scores: pass `--likelihood cont"),
        ("open_unit_interval", [1e-9, 0.5], 1.0, "a pixel inside (0, 1), as mine scores: pass `--likelihood cont"),
        ("levels", [0.0], 1.5, "a pixel in [0, 1], as mine scores: pass `--likelihood gaussian`"),
        ("binary", [0.0, 1.0], 0.5, "0 or 1, as mine scores: pass `--binarize dynamic`"),
    ],
)
def test_data_outside_the_support_are_refused(support, good, bad, expected):
    data.check(dataset(torch.tensor([good])), support=support, likelihood="mine")
    with pytest.raises(InputError) as found:
        data.check(dataset(torch.tensor([[*good, bad]])), support=support, likelihood="mine")
    where = f"mine: datum 0 of the train part, position ({len(good)}): found {torch.tensor(bad):.7g}, expected "
    assert str(found.value).startswith(where + expected)
    assert "\n" not in str(found.value)


def test_stored_bytes_are_256_levels():
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, -1)
    data.check(dataset(grey), support="levels")
    data.check(dataset(data.pixels(grey)), support="levels")
    with pytest.raises(InputError, match="17 grey levels"):
        data.check(dataset(grey), support="17 levels")
    with pytest.raises(InputError, match="found 0, expected a pixel inside"):
        data.check(dataset(grey), support="open_unit_interval")
    data.check(dataset(grey[:, 1:-1]), support="open_unit_interval")


def test_dequantized_levels_are_even_within_their_level():
    levels = torch.tensor([0, 1, 100, 255], dtype=torch.uint8).expand(100_000, 4)
    x = data.dequantize(levels, "uniform", torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32
    assert (x > 0).all()
    assert (x < 1).all()
    assert torch.equal((256 * x).floor(), levels.float())
    within = 256 * x - levels
    for column in within.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-4
    assert within.unique().numel() == data.dataset._CELLS
    assert not torch.equal(within[:, 0], within[:, 1])
    assert data.dequantize(levels, "none").max() == 1


def test_a_bernoullis_gradient_is_that_of_differences_in_logits_and_data():
    logits, x = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def score(logits, x):
        return IndependentBernoulli(logits, 1).log_prob(x)

    with pyro.validation_enabled(False):
        assert torch.autograd.gradcheck(score, (logits, x))
        assert torch.autograd.gradgradcheck(score, (logits, x))


def test_training_draws_dequantized_pixels_anew_at_each_step():
    training, levels = SimpleNamespace(config=Config(likelihood="beta")), torch.tensor([[0, 7, 255]], dtype=torch.uint8)
    first, again = (Training.prepare(training, levels, None)[0] for _ in range(2))
    assert (256 * first).floor().tolist() == (256 * again).floor().tolist() == levels.tolist()
    assert not torch.equal(first, again)


def test_dequantization_is_fixed_for_held_out_parts():
    grey = torch.randint(256, (30, 5), dtype=torch.uint8)
    whole = Dataset("mine", Split(grey, None), Split(grey, None), Split(grey, None), "")
    fixed = data.fix_dequantization(whole, "uniform", 0)
    again, other = (data.fix_dequantization(whole, "uniform", seed) for seed in (0, 1))
    assert fixed.train is whole.train
    assert torch.equal(fixed.test.x, again.test.x)
    assert torch.equal((256 * fixed.test.x).floor(), grey.float())
    assert not torch.equal(fixed.test.x, other.test.x)
    assert not torch.equal(fixed.test.x, fixed.validation.x)
    assert data.fix_dequantization(whole, "none", 0) is whole
    with pytest.raises(InputError, match=r"mine: found numbers of float32, expected uint8, .*pass `--dequantize none`"):
        data.fix_dequantization(dataset(torch.rand(3, 2)), "uniform", 0)
    with pytest.raises(InputError, match="dequantize: unknown mode 'unifrm': did you mean 'uniform'"):
        data.dequantize(grey, "unifrm")


def test_a_uniform_density_is_eight_bits():
    """A likelihood that knows nothing: log p(x) = 0 on (0, 1)^D, 8 bits a dimension; and one that is off by log 2."""
    for log_p, bits in ((0.0, 8.0), (10 * math.log(2), 7.0)):
        found = Evaluation.__new__(Evaluation)
        object.__setattr__(found, "iw", {1: None, 50: None})
        object.__setattr__(found, "summary", lambda: {"iw.50": {"mean": log_p, "se": math.log(2)}})  # noqa: B023
        value = bits_per_dim(found, -math.log(256), 10)["bits_per_dim"]
        assert value == {"mean": pytest.approx(bits), "se": pytest.approx(0.1), "K": 50}
        assert bits_per_dim(found, 0.0, 10)["bits_per_dim"]["mean"] == pytest.approx(bits - 8)
        assert bits_per_dim(found, None, 10) == {}


def test_a_dequantized_density_bounds_the_levels_probability():
    """E_u log p((v + u) / 256) - log 256 is at most log P(v), and close to it where the density is smooth."""
    part = of(likelihoods.LogitNormal, 1, scale=1.0)
    p = part(torch.tensor([0.3]).double())
    edges = torch.arange(257).double() / 256
    cdf = torch.distributions.Normal(0.3, 1.0).cdf(edges.logit())
    levels = torch.arange(256, dtype=torch.uint8)
    x = data.dequantize(levels.expand(4000, 256), "uniform").double()
    bound = p.expand([4000, 256]).log_prob(x[..., None]).mean(0) - math.log(256)
    gap = (cdf.diff().log() - bound)[1:-1]
    assert gap.min() > -0.01
    assert gap[20:-20].max() < 0.01


# Configuration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "options", "support", "binarization", "dequantization", "measure", "volume"),
    [
        ("bernoulli", {}, "binary", "dynamic", "none", "probability", None),
        ("gaussian", {}, "real", "none", "none", "density", None),
        ("gaussian", {"dequantize": "uniform"}, "real", "none", "uniform", "density", -math.log(256)),
        ("continuous_bernoulli", {}, "unit_interval", "none", "none", "density", None),
        ("beta", {}, "open_unit_interval", "none", "uniform", "density", -math.log(256)),
        ("logit_normal", {"dequantize": "none"}, "open_unit_interval", "none", "none", "density", None),
        ("discretized_logistic", {}, "levels", "none", "none", "probability", 0.0),
        ("categorical", {"likelihood.levels": 17}, "17 levels", "none", "none", "probability", 0.0),
    ],
)
def test_what_auto_stands_for(likelihood, options, support, binarization, dequantization, measure, volume):
    settings = from_flat({"likelihood": likelihood, **options})
    found = (settings.support, settings.binarization, settings.dequantization, settings.measure, settings.level_volume)
    assert found == (support, binarization, dequantization, measure, volume)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dequantize": "uniform"},
            "--dequantize uniform: found likelihood 'bernoulli', which scores the stored levels",
        ),
        (
            {"likelihood": "categorical", "dequantize": "uniform"},
            "found likelihood 'categorical', which scores the sto",
        ),
        (
            {"likelihood": "gaussian", "dequantize": "uniform", "binarize": "static"},
            "--binarize static: found it with --dequantize uniform under likelihood 'gaussian', expected one of",
        ),
        ({"likelihood": "beta", "binarize": "dynamic"}, "--binarize dynamic: found it with --dequantize auto under"),
    ],
)
def test_draws_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(InputError, match=message) as found:
        Config(**options)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: of(likelihoods.StudentT, 1, df=1.0), "df: found 1.0, expected more than 1, for there to be a mean"),
        (lambda: of(likelihoods.StudentT, 1, df="learn"), "df: found 'learn', expected a number or 'learned'"),
        (lambda: of(likelihoods.Beta, 1, precision="pixl"), "precision: found 'pixl', .*: did you mean 'pixel'"),
        (
            lambda: of(likelihoods.Beta, 1, precision=0.01),
            "precision: found 0.01, expected at least min_precision = 0.1",
        ),
        (
            lambda: of(likelihoods.Laplace, 1, scale="optimal"),
            "scale: found 'optimal', .*known: decoder, pixel, shared",
        ),
        (lambda: of(likelihoods.DiscretizedLogistic, 1, levels=1), "levels: found 1, expected at least 2"),
        (lambda: of(likelihoods.Categorical, 1, levels=0), "levels: found 0, expected at least 2"),
        (lambda: of(likelihoods.DiscretizedLogisticMixture, 1, components=0), "components: found 0, expected at least"),
        (
            lambda: of(likelihoods.DiscretizedLogisticMixture, 1, min_scale=0.0),
            "min_scale: found 0.0, expected more than 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(wrong, message):
    with pytest.raises(InputError, match=message) as found:
        wrong()
    assert "\n" not in str(found.value)


def test_a_value_outside_the_support_is_refused():
    for member, options, bad in (
        (likelihoods.Beta, {}, 1.0),
        (likelihoods.LogitNormal, {}, 0.0),
        (likelihoods.ContinuousBernoulli, {}, 1.1),
        (likelihoods.DiscretizedLogistic, {}, 0.3),
    ):
        p = member(nn.Identity(), (1,), **options)(torch.zeros(1))
        with pytest.raises(ValueError, match="support"):
            p.log_prob(torch.tensor([bad]))


# Whole runs -----------------------------------------------------------------------------------------------------------

SMALL = ["--epochs=2", "--latent=2", "--decoder.hidden=8", "--encoder.hidden=8", "--eval-particles=1,5"]


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A file of smooth grey images."""
    path = tmp_path_factory.mktemp("grey") / "grey.npz"
    draw = np.random.default_rng(0)
    x = 128 + 60 * draw.normal(size=(90, 1, 1)) + 5 * draw.normal(size=(90, 4, 3))
    np.savez(path, x=x.clip(0, 255).round().astype(np.uint8))
    return path


def run(grey, folder, *options):
    assert fit.main(["--data", str(grey), *SMALL, *options, "--out", str(folder)]) == 0
    return json.loads((folder / "summary.json").read_text())


def test_runs_report_bits_and_what_was_drawn(grey, tmp_path, capsys):
    gaussian = run(grey, tmp_path / "a", "--likelihood", "gaussian", "--dequantize", "uniform")
    assert "bits / dim, K=5" in capsys.readouterr().out
    levels = run(grey, tmp_path / "b", "--likelihood", "discretized_logistic")
    for summary, volume in ((gaussian, 12 * math.log(256)), (levels, 0.0)):
        bits, bound = summary["test"]["bits_per_dim"], summary["test"]["iw"]["5"]
        assert bits["mean"] == pytest.approx((volume - bound["mean"]) / (12 * math.log(2)))
        assert bits["se"] == pytest.approx(bound["se"] / (12 * math.log(2)))
        assert 4 < bits["mean"] < 9
    with pytest.raises(InputError, match="different protocols, dequantization 'uniform' and 'none'"):
        compare.main([str(tmp_path / "a"), str(tmp_path / "b"), "--particles", "1"])
    assert compare.main([str(tmp_path / "a"), "--particles", "1,5"]) == 0
    assert "dequantization uniform" in " ".join(capsys.readouterr().out.split())


def test_measures_are_kept_apart():
    grey = dataset(torch.randint(256, (9, 4), dtype=torch.uint8))
    found = {name: protocol(Config(likelihood=name), grey) for name in ("gaussian", "categorical", "laplace")}
    with pytest.raises(InputError, match=r"gaussian and categorical: found different .* measure 'density' and 'prob"):
        compare.check_protocols(found)
    del found["categorical"]
    assert compare.check_protocols(found)["dequantization"] == "none"


def test_training_draws_anew():
    settings = Config(likelihood="beta", latent=2)
    whole = dataset(torch.randint(256, (9, 4), dtype=torch.uint8))
    training = Training(build.model(settings, whole), None, data.fix_dequantization(whole, "uniform", 0), settings)
    x, y = training.dataset.train
    (first, _), (second, _) = (training.prepare(x, y) for _ in range(2))
    assert torch.equal((256 * first).floor(), x.float())
    assert not torch.equal(first, second)
    once, again = (compare.training_data(training.dataset, settings, 9, seed=3).x for _ in range(2))
    assert torch.equal(once, again)
    assert torch.equal((256 * once).floor().flatten().sort().values, x.float().flatten().sort().values)
    assert not torch.equal(once.flatten().sort().values, data.pixels(x).flatten().sort().values)


def test_an_epochs_bound_is_the_mean_over_its_data():
    settings = Config(likelihood="bernoulli", latent=2, batch_size=4, epochs=2, save_every=3)
    whole = dataset(torch.randint(256, (9, 4), dtype=torch.uint8))
    vae, losses = build.model(settings, whole), []
    steps = svi(vae, pvae.ELBO(), build.optimizer(settings), settings, steps=6)
    run = steps.run
    steps.run = lambda *args, **options: (losses.append(block) or block for block in run(*args, **options))
    records = list(Training(vae, steps, whole, settings).records())
    batches = len(losses) // 2
    assert [record["steps"] for record in records] == [batches, 2 * batches]
    for record, epoch in zip(records, (losses[:batches], losses[batches:]), strict=True):
        assert record["train"] == pytest.approx(-torch.cat(epoch).sum().item() / len(whole.train.x), rel=1e-6)
    assert records[0]["train"] < 0


def test_digits_are_seventeen_levels():
    settings = from_flat({"likelihood": "discretized_logistic", "likelihood.levels": 17})
    digits = read_data(settings)
    vae = build.model(settings, digits)
    assert vae.log_weights(digits.test.x[:4]).log_w.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--likelihood", "beta"], "found 0, expected a pixel inside (0, 1), as beta scores: pass `--likelihood c"),
        (["--likelihood", "beta", "--dequantize", "none"], "found 0, expected a pixel inside (0, 1), as beta scores"),
        (["--likelihood", "categorical"], "256 grey levels, multiples of 1/255, as categorical scores"),
        (["--likelihood", "beta", "--dequantize", "none", "--binarize", "static"], "expected a pixel inside (0, 1)"),
    ],
)
def test_data_that_a_likelihood_does_not_score(options, message, tmp_path):
    with pytest.raises(InputError) as found:
        fit.main([*options, *SMALL, "--out", str(tmp_path / "run")])
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda bad: distributions.DiagonalNormal(torch.zeros(3, 2), torch.full((3, 2), bad)),
        lambda bad: distributions.IndependentBernoulli(torch.full((3, 2), bad), 1),
    ],
)
def test_parameters_are_looked_at_where_they_are_validated_and_there_alone(make):
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="to satisfy the constraint"):
        make(float("nan"))
    with pyro.validation_enabled(False):
        assert "base_dist" not in vars(make(float("nan")))
