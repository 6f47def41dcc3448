"""K-hat against known tails and under every arviz; paired differences; mutual information against closed forms."""

import math
from fractions import Fraction

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import transforms

import pvae
from pvae import diagnostics, exact
from pvae.diagnostics import khat, khat_threshold, mutual_information, paired


def gaussian(scale, draws, n, seed=0):
    """Log-weights of a standard normal target and a proposal of another scale: k = 1 - scale^2."""
    z = scale * torch.from_numpy(np.random.default_rng(seed).standard_normal((draws, n)))
    return (z / scale).square() / 2 - z.square() / 2


# Pareto k-hat ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.7, 0.85])
def test_khat_is_that_of_the_tail(scale):
    found = khat(gaussian(scale, 5000, 100))
    assert found.mean().item() == pytest.approx(1 - scale**2, abs=0.11)
    assert 0.05 < found.std() < 0.17
    assert found.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.3, 0.5, 0.7])
def test_khat_comes_closer_with_more_draws(scale):
    assert khat(gaussian(scale, 10**6, 20)).mean().item() == pytest.approx(1 - scale**2, abs=0.07)


def test_khat_of_pareto_weights_is_their_shape():
    draws = torch.from_numpy(np.random.default_rng(0).pareto(2.0, (5000, 100)) + 1)
    assert khat(draws.log()).mean().item() == pytest.approx(0.5, abs=0.02)
    assert khat(3 * draws.log()).mean().item() == pytest.approx(1.5, abs=0.06)
    assert khat(-draws.log()).mean() < 0  # the weights' upper end is bounded: the other tail is not theirs


# From arviz 0.23.4 and from arviz-stats 1.3.3: equal to the last digits.
KNOWN = {
    30: [0.284181815301, 0.518679057587, 0.295790428253],
    224: [0.794338889387, 0.447451819634, 0.518277662369],
    226: [0.52186792791, 0.755176343178, 0.626434970729],
    2000: [0.696616666243, 0.426140282035, 0.391142766873],
}


@pytest.mark.parametrize("draws", KNOWN)
def test_khat_is_the_same_under_every_arviz(draws):
    found = khat(gaussian(0.6, draws, 3, seed=draws))
    torch.testing.assert_close(found, torch.tensor(KNOWN[draws], dtype=torch.float64), rtol=0, atol=1e-9)


def test_khat_of_draws_that_are_alike():
    """As those of discrete latents: arviz 0.23 fits them, 1.x none whose smallest quarter is equal."""
    log_w = torch.from_numpy(np.random.default_rng(0).standard_normal((100, 3))).mul(4).round() / 4
    known = torch.tensor([0.43093054341209486, 0.2567660806865876, -0.03197719725116913], dtype=torch.float64)
    torch.testing.assert_close(khat(log_w), known, rtol=0, atol=1e-9)


def test_khat_is_arvizs_own():
    """With the size of the tail that this arviz would choose, where it is that of ours."""
    log_w = gaussian(0.6, 1600, 4)  # 3 sqrt(1600) is whole
    try:
        from arviz_stats.base import array_stats

        expected = array_stats.psislw(-log_w.T.numpy())[1]
    except ModuleNotFoundError:
        arviz = pytest.importorskip("arviz")
        expected = arviz.psislw(log_w.T.numpy())[1]
    np.testing.assert_allclose(khat(log_w).numpy(), expected, rtol=0, atol=1e-10)


def test_khat_does_not_depend_on_chunks_nor_on_a_constant():
    log_w = gaussian(0.6, 400, 11)
    expected = khat(log_w)
    assert torch.equal(khat(log_w, chunk=3), expected)
    torch.testing.assert_close(khat(log_w - 5000), expected, rtol=0, atol=1e-6)
    assert torch.equal(khat(log_w[:, [5]]), expected[[5]])


def test_log_weights_are_left_alone():
    log_w = gaussian(0.6, 400, 3)
    before = log_w.clone()
    khat(log_w)
    assert torch.equal(log_w, before)


def column(*parts):
    """Log-weights of one datum: (value, how many), ..."""
    return torch.cat([torch.full((count,), float(value)) for value, count in parts])[:, None].double()


ROUNDING = -95 + 1e-6 * torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
EDGES = {
    "constant": (column((-90, 500)), -math.inf),
    "constant but for rounding": (ROUNDING, -math.inf),
    "a top of equal weights": (column((-2, 450), (1, 50)), -math.inf),
    "equal weights, the others zero": (column((-math.inf, 450), (0, 50)), -math.inf),
    "one weight that is all": (column((-5000, 499), (0, 1)), math.inf),
    "five of five hundred": (column((-5000, 495), (0, 5)), math.inf),
    "a wide tail": (500 * torch.randn(500, 1, generator=torch.Generator().manual_seed(0)), math.inf),
}


@pytest.mark.parametrize("case", EDGES)
def test_khat_of_weights_without_a_tail_to_fit(case):
    log_w, expected = EDGES[case]
    assert khat(log_w).tolist() == [expected]


def test_khat_where_most_weights_are_zero_is_that_of_the_rest():
    tail = gaussian(0.6, 40, 1)
    found = khat(torch.cat([tail, torch.full((460, 1), -math.inf)]))
    assert found.isfinite().all()
    for others in (torch.full((460, 1), -5000.0), -1000 - torch.rand(460, 1)):
        torch.testing.assert_close(found, khat(torch.cat([tail, others])))


@pytest.mark.parametrize(
    ("log_w", "message"),
    [
        (torch.zeros(29, 3), "found shape \\(29, 3\\), expected \\(S, N\\), S at least 30 draws"),
        (torch.zeros(30, 0), "found shape \\(30, 0\\)"),
        (torch.zeros(30), "found shape \\(30,\\)"),
        (torch.zeros(30, 4).index_fill(1, torch.tensor([2]), math.nan), "datum 2 are NaN"),
        (torch.zeros(30, 4).index_fill(1, torch.tensor([3]), math.inf), "datum 3 are NaN or infinite"),
        (torch.zeros(30, 4).index_fill(1, torch.tensor([1]), -math.inf), "datum 1 are zero, all of them"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 256])
def test_weights_that_are_none_are_refused(log_w, message, chunk):
    with pytest.raises(pvae.InputError, match=message):
        khat(log_w, chunk)


def test_the_threshold():
    assert khat_threshold(30) == 1 - 1 / math.log10(30)
    assert khat_threshold(100) == 0.5
    assert khat_threshold(10**4) == 0.7
    with pytest.raises(pvae.InputError, match="draws: found 29"):
        khat_threshold(29)


# Paired differences ---------------------------------------------------------------------------------------------------


def test_paired_differences():
    a, b = torch.tensor([1.0, 5.0, 2.0, 2.0, 0.0]), torch.tensor([0.0, 2.0, 2.0, 3.0, -4.0])
    found = paired(a, b)
    difference = (a - b).double()
    assert found.mean == pytest.approx(difference.mean().item())
    assert found.se == pytest.approx(difference.std().item() / math.sqrt(5))
    assert (found.wins, found.losses) == (3, 1)
    assert found.p_value == pytest.approx(2 * 5 / 16)
    swapped = paired(b, a)
    assert (swapped.mean, swapped.wins, swapped.losses) == (-found.mean, 1, 3)
    assert swapped.p_value == found.p_value
    assert math.isnan(paired(a[:1], b[:1]).se)
    assert paired(a, a).p_value == 1.0


@pytest.mark.parametrize(("wins", "losses"), [(0, 1), (1, 0), (7, 7), (3, 12), (40, 61), (2000, 2150)])
def test_the_sign_test_is_the_exact_binomial(wins, losses):
    n = wins + losses
    tail = sum(Fraction(math.comb(n, i)) for i in range(min(wins, losses) + 1)) / 2**n
    value = torch.cat([torch.ones(wins), -torch.ones(losses), torch.zeros(5)])
    assert paired(value, torch.zeros(n + 5)).p_value == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-9)


def test_values_that_cannot_be_paired_are_refused():
    for a, b in ((torch.zeros(3), torch.zeros(4)), (torch.zeros(0), torch.zeros(0)), (torch.zeros(2, 2),) * 2):
        with pytest.raises(pvae.InputError, match="found shapes"):
            paired(a, b)
    with pytest.raises(pvae.InputError, match="datum 1 is not a number"):
        paired(torch.tensor([0.0, math.nan]), torch.zeros(2))


# Mutual information ---------------------------------------------------------------------------------------------------


def test_information_of_a_linear_gaussian_guide():
    """Of the population: 1/2 [ln det(A C A' + S) - ln det S]."""
    weight = torch.tensor([[1.0, 0.8], [0.2, 0.7], [-0.5, -0.3]], dtype=torch.float64)
    truth = exact.LinearGaussian(weight, torch.zeros(3).double(), torch.tensor(0.5).double())
    vae = exact.LinearVAE(3, 2, covariance="full").double().set_(truth)
    _, x = truth.sample(4000, torch.Generator().manual_seed(0))
    noise = torch.linalg.inv(truth.precision)
    spread = truth.encoder @ (weight @ weight.mT + 0.5 * torch.eye(3)) @ truth.encoder.mT
    expected = (torch.logdet(spread + noise) - torch.logdet(noise)) / 2
    found = mutual_information(vae.guide, x, samples=2000)
    assert found.shape == (2000,)
    assert (found.mean() - expected).abs() < 4 * found.std() / math.sqrt(2000)
    # the aggregate is the prior here, so the rate is all information
    rate = exact.gaussian_kl_full(x @ truth.encoder.mT, noise, torch.zeros(2).double(), torch.eye(2).double())
    assert (found.mean() - rate.mean()).abs() < 4 * found.std() / math.sqrt(2000) + 0.05


CENTERS = torch.tensor([-1.0, 0.0, 2.5]).double()


def three(x, y=None):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 0.8))


def test_information_about_the_data_given_is_that_by_quadrature():
    grid = torch.linspace(-12, 14, 20001, dtype=torch.float64)
    q = dist.Normal(CENTERS[:, None], 0.8).log_prob(grid)
    aggregate = q.logsumexp(0) - math.log(3)
    expected = (q.exp() * (q - aggregate)).sum(1) * (grid[1] - grid[0])
    found = torch.stack([mutual_information(three, CENTERS, seed=seed) for seed in range(1500)])
    assert ((found.mean(0) - expected).abs() < 4 * found.std(0) / math.sqrt(1500)).all()


def test_information_of_several_sites_is_that_by_hand():
    x = torch.tensor([0.5, -1.0, 1.5, 2.0]).double()[:, None]
    pyro_x = x[:, 0]

    def program(x):
        with pyro.plate("data", len(x), dim=-2):
            a = pyro.sample("a", dist.Normal(x[:, None, None].expand(-1, 1, 2), 1.0).to_event(1))
            with pyro.plate("inner", 3, dim=-1):
                pyro.sample("b", dist.Normal(a.mean(-1) + x[:, None], 0.7))

    found = torch.stack([mutual_information(program, pyro_x, seed=seed) for seed in range(800)])
    # x, and the mean of a given x, and b - mean(a): what matters is Gaussian about x (1, 1, 1)
    n = 3000
    generator = torch.Generator().manual_seed(0)
    a = pyro_x[:, None, None] + torch.randn(4, n, 2, generator=generator, dtype=torch.float64)
    b = (a.mean(-1) + pyro_x[:, None])[..., None] + 0.7 * torch.randn(4, n, 3, generator=generator, dtype=torch.float64)

    def log_q(center):
        return dist.Normal(center, 1.0).log_prob(a).sum(-1) + dist.Normal(
            a.mean(-1, keepdim=True) + center, 0.7
        ).log_prob(b).sum(-1)

    every = torch.stack([log_q(center) for center in pyro_x])
    own = torch.stack([every[i, i] for i in range(4)])
    expected = own - every.logsumexp(0) + math.log(4)
    error = (found.var(0) / 800 + expected.var(1) / n).sqrt()
    assert ((found.mean(0) - expected.mean(1)).abs() < 4 * error).all()


def test_data_are_chosen_at_random_and_keep_their_labels():
    seen = []

    def labelled(x, y):
        assert torch.equal(x, y.float())
        seen.append(x)
        guide(x, 1e-3)

    found = mutual_information(labelled, torch.arange(100.0), torch.arange(100), samples=20)
    torch.testing.assert_close(found, torch.full((20,), math.log(100)).double())
    (chosen,) = [x for x in seen if len(x) == 20]
    assert len(chosen.unique()) == 20
    assert chosen.max() > 50


def test_a_masked_site_tells_nothing():
    def masked(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.01).mask(False))
            with pyro.poutine.mask(mask=torch.tensor(False)):
                pyro.sample("w", dist.Normal(x, 0.01))

    torch.testing.assert_close(mutual_information(masked, torch.arange(9.0)), torch.zeros(9).double())


@pytest.mark.parametrize("inside", [True, False])
def test_which_latents_are_masked_is_part_of_them(inside):
    """Far apart but for the mask: z tells one of the data that have as many latents, no more."""
    n = torch.tensor([1, 1, 2, 3, 3, 3])

    def lengths(x, n, spread=1e-3):
        mask = torch.arange(3) < n[:, None]
        with pyro.plate("data", len(x), dim=-1 if inside else -2):
            q = dist.Normal(spread * x[:, None].expand(-1, 3), 1.0)
            if inside:
                pyro.sample("z", q.mask(mask).to_event(1))
            else:
                pyro.sample("idle", dist.Normal(torch.zeros(len(x), 1), 1.0))
                with pyro.plate("steps", 3, dim=-1), poutine.mask(mask=mask):
                    pyro.sample("z", q)

    x = torch.arange(6.0)
    same = torch.tensor([2, 2, 1, 3, 3, 3])
    found = mutual_information(lambda x, n: lengths(0 * x, n), x, n)
    torch.testing.assert_close(found, (6 / same).log().double())
    found = mutual_information(lambda x, n: lengths(x, n, 1e3), x, n)
    torch.testing.assert_close(found, torch.full((6,), math.log(6)).double())


def test_information_of_masked_latents_is_that_of_the_data_that_have_them():
    """Two groups of data, by length: within each what it is without the other, and which of them, log 2."""
    centers, n = torch.tensor([-1.0, 0.0, 2.5, -1.0, 0.0, 2.5]).double(), torch.tensor([1, 1, 1, 2, 2, 2])

    def lengths(x, n):
        with pyro.plate("data", len(x)):
            q = dist.Normal(x[:, None].expand(-1, 2), 0.8)
            pyro.sample("z", q.mask(torch.arange(2) < n[:, None]).to_event(1))

    def pair(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None].expand(-1, 2), 0.8).to_event(1))

    found, one, two = (
        torch.stack([mutual_information(*of, seed=seed) for seed in range(800)])
        for of in ((lengths, centers, n), (three, CENTERS), (pair, CENTERS))
    )
    expected = torch.cat([one, two], 1) + math.log(2)
    error = ((found.var(0) + expected.var(0)) / 800).sqrt()
    assert ((found.mean(0) - expected.mean(0)).abs() < 4 * error).all()


def test_the_plate_of_the_data_is_not_the_one_that_is_entered_first():
    """As many dimensions as data, their plate first: told apart by the model, or by name."""
    x = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))

    def dims_first(x):
        with pyro.plate("dims", 5, dim=-2), pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", dist.Normal(x.T, 1.0))

    def data_first(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("dims", 5, dim=-2):
            pyro.sample("z", dist.Normal(x.T, 1.0))

    def model(x):
        data = pyro.plate("data", len(x), dim=-1)
        with pyro.plate("dims", 5, dim=-2), data:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with data:
            pyro.sample("x", dist.Normal(z.mT, 1.0).to_event(1), obs=x)

    def event(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    found, other, named = (
        torch.stack([mutual_information(*each, x, seed=seed, **given) for seed in range(300)])
        for each, given in (
            ((dims_first,), {"model": model}),
            ((event,), {}),
            ((data_first,), {"plate": "data"}),
        )
    )
    for value in (found, named):
        error = ((value.var(0) + other.var(0)) / 300).sqrt()
        assert ((value.mean(0) - other.mean(0)).abs() < 4 * error).all()
    with pytest.raises(pvae.InputError, match="plate: found dims, data, expected the name of the one that the data"):
        mutual_information(dims_first, x)


@pytest.mark.parametrize("flow", [transforms.Planar, transforms.neural_autoregressive])
def test_a_flow_without_an_inverse_is_refused(flow):
    flow = flow(2)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(x, 1.0).to_event(1), [flow]))

    with pytest.raises(diagnostics.NoInverse, match="site 'z': TransformedDistribution has no inverse"):
        mutual_information(guide, torch.zeros(3, 2))


def test_information_is_at_most_log_n_and_at_least_nothing():
    x = torch.arange(50.0)
    assert mutual_information(lambda x: guide(x, 1e-3), x).mean().item() == pytest.approx(math.log(50))
    found = mutual_information(lambda x: guide(0 * x, 1.0), x)
    torch.testing.assert_close(found, torch.zeros(50).double())


def guide(x, scale):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, scale))


def test_information_does_not_depend_on_chunks_and_disturbs_nothing(vae, x):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    x = x.repeat(10, 1, 1)
    found = [mutual_information(vae.guide, x, samples=40, chunk=chunk) for chunk in (1, 500, 10**6, None)]
    torch.testing.assert_close(torch.stack(found[1:]), found[0].expand(3, -1), rtol=0, atol=1e-5)
    assert torch.equal(torch.rand(2), expected)
    assert not found[0].requires_grad
    assert len(found[0]) == 40
    labelled = mutual_information(vae.guide, x, torch.arange(70), samples=40)
    torch.testing.assert_close(labelled, found[0], rtol=0, atol=1e-5)


def test_information_asked_of_nothing_is_refused(vae):
    with pytest.raises(pvae.InputError, match="found no data"):
        mutual_information(vae.guide, torch.zeros(0, 4, 5))
    with pytest.raises(pvae.InputError, match="samples: found 0, expected at least 1"):
        mutual_information(vae.guide, torch.zeros(2, 4, 5), samples=0)

    def outside(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(pvae.InputError, match="outside the plate"):
        mutual_information(outside, torch.zeros(3))
