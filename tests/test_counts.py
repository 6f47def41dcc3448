"""Likelihoods of counts: against scipy, sums, moments of draws; totals beside the data; the checks at the door."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from commands import go
from torch import nn

import pvae
from pvae import build, config, data, fit
from pvae.base import members
from pvae.conditions import Library
from pvae.config import Config, from_flat
from pvae.likelihoods import Binomial, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pvae.likelihoods.counts import BOUND, bounded, unbounded
from pvae.load import read_data
from pvae.networks import Log1pEncoder

COUNTS = [member for member in members("likelihood").values() if member.support == "counts"]
X = torch.tensor([0.0, 1.0, 2.0, 7.0, 50.0, 1000.0, 1e6])
LOG_MEANS = torch.tensor([-18.0, -5.0, -0.5, 0.0, 2.0, 7.0, 13.8])


def raw(log_mean):
    """What a decoder gives for these logarithms of means."""
    return BOUND * torch.atanh(torch.as_tensor(log_mean, dtype=torch.float64) / BOUND)


def negative_binomial(log_mean, log_theta):
    """A negative binomial of scalars, (...), all from the decoder."""
    numbers = torch.stack(torch.broadcast_tensors(raw(log_mean), raw(log_theta)), -1)
    return NegativeBinomial(nn.Identity(), (), dispersion="decoder")(numbers)


def zinb(log_mean, gate, log_theta):
    numbers = torch.stack(torch.broadcast_tensors(raw(log_mean), torch.as_tensor(gate).double(), raw(log_theta)), -1)
    return ZeroInflatedNegativeBinomial(nn.Identity(), (), dispersion="decoder")(numbers)


def grid(*values):
    return torch.meshgrid(*(torch.as_tensor(v).double() for v in values), indexing="ij")


# Values ---------------------------------------------------------------------------------------------------------------


def test_poisson_is_scipys():
    x, log_mean = grid(X, LOG_MEANS)
    found = Poisson(nn.Identity(), ())(raw(log_mean)[..., None]).log_prob(x)
    expected = scipy.stats.poisson.logpmf(x.numpy(), log_mean.exp().numpy())
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-7)


def test_binomial_is_scipys():
    x, logits = grid([0, 1, 5, 15, 16], [-30.0, -3.0, 0.0, 1.0, 20.0])
    found = Binomial(nn.Identity(), (), total=16)(logits[..., None]).log_prob(x)
    # with p near 1 scipy loses 1 - p: count the failures then
    expected = np.where(
        logits > 0,
        scipy.stats.binom.logpmf(16 - x.numpy(), 16, (-logits).sigmoid().numpy()),
        scipy.stats.binom.logpmf(x.numpy(), 16, logits.sigmoid().numpy()),
    )
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("log_theta", [-6.0, -1.0, 0.0, 3.0])
def test_negative_binomial_is_scipys(log_theta):
    x, log_mean = grid(X, LOG_MEANS[1:])
    theta = math.exp(log_theta)
    found = negative_binomial(log_mean, log_theta).log_prob(x)
    expected = scipy.stats.nbinom.logpmf(x.numpy(), theta, theta / (theta + log_mean.exp().numpy()))
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-8, atol=1e-7)


def in_many_digits(x, log_mean, log_theta):
    """The negative binomial's log p(x) in 60 digits: SciPy has few left of large theta, small means and huge counts."""
    with mpmath.workdps(60):
        x, mean, theta = mpmath.mpf(x), mpmath.exp(log_mean), mpmath.exp(log_theta)
        ways = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
        return float(ways + theta * mpmath.log(theta / (theta + mean)) + x * mpmath.log(mean / (theta + mean)))


@pytest.mark.parametrize("log_theta", [-18.0, -6.0, 0.0, 8.0, math.log(1e6), 18.0])
def test_negative_binomial_in_many_digits(log_theta):
    x, log_mean = grid(X, LOG_MEANS)
    found = negative_binomial(log_mean, log_theta).log_prob(x)
    expected = [
        in_many_digits(*each, log_theta) for each in zip(x.flatten().tolist(), log_mean.flatten().tolist(), strict=True)
    ]
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("gate", [-40.0, -2.0, 0.0, 3.0])
def test_zero_inflation_by_hand(gate):
    x, log_mean, log_theta = grid(X[:-1], LOG_MEANS[1:-1], [-1.0, 2.0])
    theta, share = log_theta.exp().numpy(), 1 / (1 + math.exp(-gate))
    pmf = scipy.stats.nbinom.pmf(x.numpy(), theta, theta / (theta + log_mean.exp().numpy()))
    found = zinb(log_mean, gate, log_theta).log_prob(x).exp()
    torch.testing.assert_close(found, torch.from_numpy(share * (x.numpy() == 0) + (1 - share) * pmf), rtol=1e-9, atol=0)


def test_towards_infinite_theta_it_is_a_poisson():
    x, log_mean = grid([0, 1, 3, 12, 40], [-3.0, 0.0, 2.5])
    expected = scipy.stats.poisson.logpmf(x.numpy(), log_mean.exp().numpy())
    errors = [
        np.abs(negative_binomial(log_mean, t).log_prob(x).numpy() - expected).max() for t in (9.0, 11.3, 13.6, 15.9)
    ]
    assert errors[-1] < 1e-3
    assert all(0.08 < after / before < 0.12 for before, after in pairwise(errors))  # e^-2.3 = 0.1


def test_float32_parameters_are_scored_without_loss():
    """lgamma of a million in float32 is off by a nat."""
    for x in (1e5, 1e6):
        mean, theta = torch.tensor([x * 1.001]).log(), torch.tensor([1e6]).log()
        for p in (Poisson(nn.Identity(), ())(raw(mean).float()[..., None]), negative_binomial(mean, theta)):
            found = p.base_dist if hasattr(p, "base_dist") else p
            exact = type(found)(*(v.double() for v in found.parameters)).log_prob(torch.tensor([x]).double())
            single = type(found)(*(v.float() for v in found.parameters)).log_prob(torch.tensor([x]))
            assert single.dtype == torch.float32
            assert abs(single.item() - exact.item()) < 1e-4 * abs(exact.item())


# Sums, moments, gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_mean", [-8.0, 0.0, 3.0])
@pytest.mark.parametrize("log_theta", [-1.0, 1.0, 13.0])
def test_probabilities_sum_to_one_and_have_their_mean(log_mean, log_theta):
    x = torch.arange(20_000).double()
    for p in (
        negative_binomial(log_mean, log_theta),
        zinb(log_mean, -0.7, log_theta),
        Poisson(nn.Identity(), ())(raw(log_mean)[None]),
    ):
        pmf = p.log_prob(x).exp()
        assert pmf.sum().item() == pytest.approx(1, abs=1e-9)
        assert (pmf * x).sum().item() == pytest.approx(p.mean.item(), rel=1e-7)


def test_a_binomials_probabilities_sum_to_one_and_end_at_the_total():
    p = Binomial(nn.Identity(), (), total=9)(torch.tensor([[0.3]]))
    pmf = p.log_prob(torch.arange(10.0)[:, None]).exp()
    assert pmf.sum().item() == pytest.approx(1, abs=1e-6)
    assert (pmf[:, 0] * torch.arange(10)).sum().item() == pytest.approx(p.mean.item(), rel=1e-6)
    with pyro.validation_enabled(False):
        beyond = Binomial(nn.Identity(), (), total=9)(torch.tensor([[0.3]])).log_prob(torch.tensor([[10.0], [11.0]]))
    assert (beyond == -math.inf).all()


@pytest.mark.parametrize(
    ("p", "size"),
    [
        pytest.param(lambda: Poisson(nn.Identity(), ())(raw(1.3)[None]), 100, id="poisson"),
        pytest.param(lambda: Binomial(nn.Identity(), (), total=11)(torch.tensor([-0.4])), 12, id="binomial"),
        pytest.param(lambda: negative_binomial(1.3, 0.4), 2000, id="negative_binomial"),
        pytest.param(lambda: negative_binomial(1.3, 14.0), 100, id="negative_binomial-large"),
        pytest.param(lambda: negative_binomial(-1.0, -1.5), 2000, id="negative_binomial-small"),
        pytest.param(lambda: zinb(1.3, -0.8, 0.4), 2000, id="zinb"),
    ],
)
def test_draws_have_the_mean_and_variance_of_the_probabilities(p, size):
    x, p = torch.arange(size).double(), p()
    pmf = p.log_prob(x).exp().double()
    mean = (pmf * x).sum()
    variance = (pmf * (x - mean) ** 2).sum()
    fourth = (pmf * (x - mean) ** 4).sum()
    n = 40_000
    drawn = p.expand([n]).sample().double()
    assert (drawn == drawn.floor()).all()
    assert abs(drawn.mean() - mean) < 4 * (variance / n).sqrt()
    assert abs((drawn - mean).square().mean() - variance) < 4 * ((fourth - variance**2) / n).sqrt()
    # and how often each count is drawn
    for count in range(4):
        share = pmf[count]
        assert abs((drawn == count).double().mean() - share) < 4 * (share * (1 - share) / n).sqrt()


@pytest.mark.parametrize("member", COUNTS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, -1e3])
def test_gradients_are_finite_at_nothing_and_at_much(member, scale):
    """Also where the decoder has gone far off: its numbers are brought back."""
    options = {"total": 1_000_000} if member is Binomial else {}
    for library in (False, True) if "library" in config.member_options("likelihood", member) else (False,):
        chosen = options | ({"library": True} if library else {})
        outputs = member.outputs_for(**{"dispersion": "feature"} | chosen)
        part = member(nn.Identity(), (len(X),), **chosen)
        numbers = (scale * torch.randn(2, outputs * len(X))).requires_grad_()
        y = torch.tensor([[0.0], [2e6]]) if library else None
        log_prob = part(numbers, y).log_prob(X)
        assert log_prob.isfinite().all()
        (gradient,) = torch.autograd.grad(log_prob.sum(), numbers)
        assert gradient.isfinite().all()
        p = part(numbers, y)
        assert p.mean.isfinite().all()
        assert p.sample().isfinite().all()


def test_a_gradient_is_that_of_differences():
    x = torch.tensor([0.0, 3.0]).double()
    for member, outputs in ((NegativeBinomial, 2), (ZeroInflatedNegativeBinomial, 3)):
        part = member(nn.Identity(), (2,), dispersion="decoder", library=True)
        numbers = torch.randn(2 * outputs).double().requires_grad_()
        y = torch.tensor([9.0]).double()
        assert torch.autograd.gradcheck(lambda a: part(a, y).log_prob(x), numbers)  # noqa: B023


def test_bounds_are_smooth_and_inverted():
    value = torch.linspace(-19, 19, 39).double()
    torch.testing.assert_close(bounded(unbounded(value)), value)
    far = torch.tensor([-100.0, 100.0]).requires_grad_()
    assert (bounded(far).abs() <= BOUND).all()
    assert (torch.autograd.grad(bounded(far).sum(), far)[0] > 0).all()


# Parts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", [NegativeBinomial, ZeroInflatedNegativeBinomial])
@pytest.mark.parametrize("dispersion", ["shared", "feature", "decoder"])
@pytest.mark.parametrize("shape", [(5,), (2, 3)], ids=str)
def test_numbers_of_the_decoder_are_means_then_gates_then_dispersions(member, dispersion, shape):
    outputs = member.outputs_for(dispersion=dispersion)
    part = member(nn.Identity(), shape, dispersion=dispersion).double()
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    numbers = torch.randn(4, 3, outputs, *shape).double()
    x = torch.randint(0, 4, (3, *shape)).double()
    p = part(numbers.flatten(2))
    assert (p.batch_shape, p.event_shape) == ((4, 3), shape)
    mean = bounded(numbers[:, :, 0]).exp().numpy()
    theta = bounded(numbers[:, :, -1] if dispersion == "decoder" else part.theta.raw.detach()).exp().numpy()
    assert np.shape(theta) == {"shared": (), "feature": shape, "decoder": (4, 3, *shape)}[dispersion]
    pmf = scipy.stats.nbinom.pmf(x.numpy(), theta, theta / (theta + mean))
    if member is ZeroInflatedNegativeBinomial:
        gate = numbers[:, :, 1].sigmoid().numpy()
        pmf = gate * (x.numpy() == 0) + (1 - gate) * pmf
        mean = (1 - gate) * mean
    expected = torch.from_numpy(np.log(pmf).reshape(4, 3, -1).sum(-1))
    torch.testing.assert_close(p.log_prob(x).detach(), expected)
    torch.testing.assert_close(p.mean, torch.from_numpy(mean))


@pytest.mark.parametrize("member", [Poisson, NegativeBinomial, ZeroInflatedNegativeBinomial])
def test_the_density_given_a_total_sums_to_one(member):
    outputs = member.outputs_for(dispersion="shared") if member is not Poisson else 1
    options = {} if member is Poisson else {"dispersion": "shared"}
    part = member(nn.Identity(), (1, 2), library=True, **options).double()
    numbers = torch.randn(outputs * 2).double()
    x = torch.cartesian_prod(torch.arange(400.0), torch.arange(400.0)).reshape(-1, 1, 2).double()
    p = part(numbers, torch.tensor([12.0]).double())
    assert p.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-6)
    shares = numbers[:2].softmax(0)
    kept = (-numbers[2:]).sigmoid() if member is ZeroInflatedNegativeBinomial else 1.0
    torch.testing.assert_close(p.mean.flatten(), 12 * shares * kept)


def test_each_datum_has_its_own_total_for_every_particle():
    part = Poisson(nn.Identity(), (3,), library=True)
    z, y = torch.randn(5, 4, 3), torch.tensor([[1.0], [10.0], [100.0], [0.0]])
    mean = part(z, y).mean
    torch.testing.assert_close(mean.sum(-1), y[:, 0].expand(5, 4), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(mean[:, 1], 10 * z[:, 1].softmax(-1))
    shaped = Poisson(nn.Identity(), (2, 2), library=True)(numbers := torch.randn(5, 4, 4), y).mean
    torch.testing.assert_close(shaped, (y * numbers.softmax(-1)).reshape(5, 4, 2, 2), rtol=1e-5, atol=1e-7)
    nothing = part(z, y).log_prob(torch.zeros(3))
    torch.testing.assert_close(nothing, -y[:, 0].expand(5, 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("member", [Poisson, NegativeBinomial, ZeroInflatedNegativeBinomial])
@pytest.mark.parametrize(
    ("y", "found"),
    [
        (None, "none"),
        (torch.tensor([1, 2, 3, 4]), "int64 of shape [(]4,[)]"),
        (torch.ones(4), "float32 of shape [(]4,[)]"),
        (torch.ones(3, 1), "float32 of shape [(]3, 1[)]"),
        (torch.ones(4, 2), "float32 of shape [(]4, 2[)]"),
    ],
    ids=str,
)
def test_a_missing_total_is_refused(member, y, found):
    outputs = 2 if member is ZeroInflatedNegativeBinomial else 1
    part = member(nn.Linear(2, 3 * outputs), (3,), library=True)
    text = rf"y: found {found}, expected the total count of each datum, floats \(4, 1\), .*: pass them as y,"
    for wrong in (lambda: part(torch.zeros(4, 2), y), lambda: part.initialize(torch.ones(4, 3), y)):
        with pytest.raises(pvae.InputError, match=text):
            wrong()


def counts(n=4000, seed=0):
    """Negative binomial counts of four features, means 0.5 to 40, theta 2, with their totals."""
    r = np.random.default_rng(seed)
    x = r.poisson(r.gamma(2.0, np.array([0.5, 2.0, 10.0, 40.0]) / 2.0, (n, 4)))
    x = torch.from_numpy(x).float()
    return x, x.sum(1, keepdim=True)


@pytest.mark.parametrize("member", COUNTS)
@pytest.mark.parametrize("library", [False, True])
def test_it_starts_at_the_training_mean(member, library):
    known = config.member_options("likelihood", member)
    if library and "library" not in known:
        return
    x, y = counts()
    options = {"total": 1000} if "total" in known else {"library": library}
    defaults = {name: p.default for name, p in known.items()} | options
    decoder = pvae.MLPDecoder(2, pvae.likelihoods.decoded_shape((4,), member.outputs_for(**defaults)), [])
    nn.init.zeros_(decoder.layers[-1].weight)
    part = member(decoder, (4,), **options)
    part.initialize(x, y)
    mean = part(torch.zeros(len(x), 2), y).mean
    kept = 0.9 if library and member is ZeroInflatedNegativeBinomial else 1  # shares of a total sum to one
    torch.testing.assert_close(mean.mean(0), kept * x.mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dispersion", ["shared", "feature", "decoder"])
def test_the_inverse_dispersion_starts_where_it_fits_the_variance(dispersion):
    x, _ = counts(40_000)
    decoder = pvae.MLPDecoder(2, (2, 4) if dispersion == "decoder" else (4,), [])
    nn.init.zeros_(decoder.layers[-1].weight)
    part = NegativeBinomial(decoder, (4,), dispersion=dispersion)
    part.initialize(x)
    theta = part(torch.zeros(2)).base_dist.parameters[1].exp().detach()
    torch.testing.assert_close(theta, torch.full_like(theta, 2.0), rtol=0.15, atol=0)


def test_counts_above_the_total_are_refused():
    with pytest.raises(
        pvae.InputError,
        match=r"found 10, but the largest count of the data is 11: .* set it to that$",
    ):
        Binomial(nn.Linear(2, 2), (2,), total=10).initialize(torch.tensor([[1.0, 11.0]]))
    with pytest.raises(pvae.InputError, match="total: found 0, expected at least 1"):
        Binomial(nn.Linear(2, 2), (2,), total=0)
    with pytest.raises(pvae.InputError, match=r"dispersion: found 'gene', expected a known word: .*known: decoder, fe"):
        NegativeBinomial(nn.Linear(2, 2), (2,), dispersion="gene")


def test_counts_above_the_total_in_any_part_are_refused_before_a_fit(here, capsys):
    x = torch.zeros(400, 6, dtype=torch.int64)
    x[::2] = 9
    x[8] = 15  # in the test part
    np.savez("counts.npz", x=x.numpy())
    argv = ["--data", "counts.npz", "--likelihood", "binomial", "--likelihood.total", "9", "--epochs", "1"]
    assert go(*argv) == 2
    assert "--likelihood.total: found 9, but the largest count of the data is 15" in capsys.readouterr().err


# The library size -----------------------------------------------------------------------------------------------------


def test_a_library_is_the_sum_of_each_datum_and_its_feature_standard():
    x, y = counts()
    assert torch.equal(Library.beside(x.reshape(-1, 2, 2), torch.arange(len(x))), y)
    assert torch.equal(Library.beside(x[:0], None), y[:0])
    condition = Library.of(y)
    features = condition(y)
    assert features.shape == (len(y), 1)
    assert features.mean().item() == pytest.approx(0, abs=1e-4)
    assert features.std().item() == pytest.approx(1, abs=1e-4)
    logs = y.clamp(min=1).log()
    torch.testing.assert_close(features, (logs - logs.mean()) / logs.std())
    assert condition(torch.zeros(2, 1)).isfinite().all()
    for wrong in (None, torch.tensor([1, 2]), torch.ones(3), torch.ones(3, 2)):
        with pytest.raises(pvae.InputError, match=r"library: found .* expected the total count of each datum"):
            Library.of(wrong)


def cells(folder, name="cells.npz", dtype=np.int32, n=200, features=16):
    """A simulated set of cells: three types with profiles of their own, sizes that differ, and dropout."""
    r = np.random.default_rng(0)
    y = r.integers(0, 3, n)
    profiles = np.exp(r.normal(0, 1.2, (3, features)))
    mean = np.exp(r.normal(4, 0.5, (n, 1))) * (profiles / profiles.sum(1, keepdims=True))[y]
    x = r.poisson(r.gamma(2.0, mean / 2.0)) * (r.random((n, features)) > 0.2)
    np.savez(folder / name, x=np.minimum(x, 255 if dtype is np.uint8 else x.max()).astype(dtype), y=y)
    return folder / name


def test_a_fit_of_counts_from_the_command_line(tmp_path, capsys):
    path, out = cells(tmp_path), tmp_path / "run"
    small = "--epochs 2 --latent 2 --encoder.hidden 8 --decoder.hidden 8 --eval-particles 1,5 --compile off"
    arguments = f"--data {path} --likelihood zinb --condition library --likelihood.library --out {out} {small}"
    assert fit.main(arguments.split()) == 0
    assert "ELBO" in capsys.readouterr().out
    assert {file.name for file in (out / "figures").iterdir()} >= {"samples.png", "latent_space.png"}
    vae, dataset, _ = pvae.load.load(out)
    for part in (dataset.train, dataset.validation, dataset.test):
        torch.testing.assert_close(part.y, part.x.sum(1, keepdim=True))
    assert isinstance(vae.posterior.encoder.network, Log1pEncoder)
    # the total matters: the true one is likelier than one far off
    x, y = dataset.test
    bounds = [vae.log_weights(x, total, particles=20).log_w.mean() for total in (y, 20 * y)]
    assert bounds[0] > bounds[1]
    assert vae.sample(3, y[:3]).shape == (3, 16)


def test_the_right_total_beats_that_of_another_datum():
    x, y = counts(500)
    vae = build.model(
        Config(likelihood="poisson", condition="library", options={"likelihood": {"library": True}}, latent=2),
        data.Dataset("mine", data.Split(x, y), data.Split(x[:5], y[:5]), data.Split(x[:5], y[:5]), ""),
    )
    assert isinstance(vae.posterior.encoder.network, Log1pEncoder)
    right, wrong = (vae.log_weights(x, total, particles=3).log_w.mean() for total in (y, y.flip(0)))
    assert right > wrong + 1


@pytest.mark.parametrize(
    ("dtype", "options", "text"),
    [
        (
            np.uint8,
            {"likelihood": "poisson"},
            "found uint8, which is read as pixels in .0, 1.,.* store counts as int32",
        ),
        (np.uint8, {"condition": "library"}, "--condition library: .*: found uint8, .* store them as int32"),
        (np.int32, {"likelihood": "bernoulli"}, "expected a pixel in .0, 1., .* all data are counts: pass .*poisson`"),
        (np.int32, {"likelihood": "bernoulli", "binarize": "none"}, "all data are counts: pass .*`negative_binomial`"),
        (np.float64, {}, "all data are counts: pass .*; images: store them as uint8"),
    ],
)
def test_counts_and_pixels_are_told_apart(tmp_path, dtype, options, text):
    with pytest.raises(pvae.InputError, match=text) as error:
        read_data(Config(data=str(cells(tmp_path, dtype=dtype)), **options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("member", COUNTS)
def test_grey_data_are_no_counts(member):
    with pytest.raises(pvae.InputError, match=r"found 0\.\d+, expected whole numbers of at least 0, .*hood gaussian"):
        read_data(Config(likelihood=member.name))
    with pytest.raises(pvae.InputError, match=r"--condition library: digits: found .* expected counts"):
        read_data(Config(likelihood="gaussian", condition="library"))


@pytest.mark.parametrize("condition", ["none", "covariates", "label"])
def test_shares_are_of_totals_alone(condition):
    text = rf"^--likelihood\.library: found it with --condition {condition}, expected --condition library, .* out$"
    with pytest.raises(pvae.InputError, match=text):
        from_flat({"likelihood": "poisson", "likelihood.library": "true", "condition": condition})
    from_flat({"likelihood": "poisson", "likelihood.library": "false", "condition": condition})
    assert from_flat({"likelihood": "poisson", "likelihood.library": "true", "condition": "library"}).of_model


@pytest.mark.parametrize("bad", [-1.0, 0.5, math.nan, math.inf])
def test_counts_are_checked(tmp_path, bad):
    x = np.full((30, 4), 3.0)
    x[17, 2] = bad
    np.save(tmp_path / "mine.npy", x)
    expected = "whole numbers of at least 0" if math.isfinite(bad) else "a finite number"
    with pytest.raises(
        pvae.InputError, match=rf"mine.npy: datum 17, position \(2\): found {bad:g}, expected {expected}"
    ):
        data.load(str(tmp_path / "mine.npy"), support="counts")


def test_an_encoder_of_logarithms_takes_a_context():
    torch.manual_seed(0)
    network = pvae.MLPEncoder((3,), 4, context=2)
    encoder, x, context = Log1pEncoder(network), torch.tensor([0.0, 9.0, 1e6]).expand(5, 3), torch.randn(5, 2)
    torch.testing.assert_close(encoder(x, context), network((1 + x).log(), context))
    assert (encoder.shape, encoder.outputs, encoder.context) == ((3,), 4, 2)
    plain = Log1pEncoder(pvae.MLPEncoder((3,), 4))
    torch.testing.assert_close(plain(x), plain.network((1 + x).log()))
