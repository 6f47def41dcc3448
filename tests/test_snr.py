"""Signal and noise of gradients, against a model whose gradients are known."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pvae
from pvae import snr
from pvae.errors import InputError


@pytest.fixture
def toy():
    return snr.Toy(dimensions=3, n=16, perturbation=0.3)


def measured(toy, objective, **options):
    return snr.measure(objective, toy.model, toy.guide, toy.groups(), toy.x, **options)


def test_mean_and_variance_are_those_of_the_gradient(toy):
    samples = 4000
    found = measured(toy, pvae.ELBO(), samples=samples)["model"]
    exact = -(toy.x @ toy.a.T + toy.b - toy.mu).sum(0).detach().double()  # of the loss, by mu: z is N(A x + b, 2/3)
    variance = 2 / 3 * len(toy.x)
    assert ((found.mean - exact).abs() < 4 * math.sqrt(variance / samples)).all()
    assert torch.allclose(found.variance, torch.tensor(variance).double(), rtol=4 * math.sqrt(2 / samples))
    expected = (exact.abs() / math.sqrt(variance)).mean().item()
    assert found.snr == pytest.approx(expected, abs=4 / math.sqrt(samples))


def test_no_signal_is_at_the_floor():
    toy = snr.Toy(dimensions=3, n=16, perturbation=0.0)
    found = measured(toy, pvae.ELBO(), samples=2000)["guide"]  # the optimum: the gradient is noise alone
    assert found.snr == pytest.approx(found.floor, rel=0.5)


def test_the_directional_ratio_of_a_noiseless_gradient_is_large(toy):
    values = torch.randn(50, 1).double() * 1e-6 + torch.ones(50, 4).double()
    assert snr._statistics(values).dsnr > 1e5
    noise = torch.randn(20_000, 5).double() + torch.tensor(
        [1.0, 0.0, 0.0, 0.0, 0.0]
    )  # parallel N(1, 1), the rest N(0, I)
    ratio = (noise[:, 0].abs() / noise[:, 1:].norm(dim=1)).mean()
    assert snr._statistics(noise).dsnr == pytest.approx(ratio.item(), rel=0.02)


@pytest.mark.parametrize("column", ["silent", "once", "constant"])
def test_the_error_of_a_gradient_whose_parts_are_silent_at_times(column):
    """As of a rectifier that is seldom on: without a block it is never."""
    torch.manual_seed(0)
    values = torch.randn(400, 5).double() + 1
    expected = snr._statistics(values[:, 1:])
    values[:, 0] = 0.1 if column == "constant" else 0.0
    if column == "once":
        values[7, 0] = 0.3
    found = snr._statistics(values)
    if column == "once":
        assert 0.03 < found.se["snr"] < 0.3
    else:
        assert (found.snr, found.se["snr"]) == pytest.approx((expected.snr, expected.se["snr"]))


def test_of_one_parameter_nothing_is_perpendicular():
    found = snr._statistics(torch.randn(4, 1).double() / 100)  # whose quotients by the least number are finite
    assert found.dsnr == math.inf
    assert math.isnan(found.se["dsnr"])


@pytest.mark.parametrize("signal", [0.0, 0.3, 2.0])
def test_errors_are_the_spread_of_the_numbers(signal):
    """Over replications of gradients that are normal about a known mean."""
    torch.manual_seed(0)
    mean, samples, n = torch.tensor([signal, -signal, 2 * signal] * 4).double(), 100, 600
    every = [snr._statistics(mean + torch.randn(samples, 12).double()) for _ in range(n)]
    for name in ("snr", "dsnr", "variance"):
        found = torch.tensor([one.summary()[name] for one in every])
        size = torch.tensor([one.se[name] for one in every]).square().mean().sqrt() / found.std()
        # by the jackknife it is too large where a mean of 0 has a sign by chance
        assert 0.88 < size < (1.12 if signal or name == "variance" else 1.8), name
    inside = [abs(one.snr - 4 / 3 * signal) < 2 * one.se["snr"] for one in every]
    assert not signal or np.mean(inside) > 0.93 - 4 * math.sqrt(0.95 * 0.05 / n)


def test_the_errors_are_those_of_blocks_left_out():
    torch.manual_seed(1)
    values = torch.randn(103, 5).double() + 0.3
    blocks = values.tensor_split(20)
    rest = [snr._statistics(torch.cat(blocks[:i] + blocks[i + 1 :])).summary() for i in range(20)]
    for name, error in snr._statistics(values).se.items():
        assert error == pytest.approx(math.sqrt(19) * np.std([one[name] for one in rest]), rel=1e-9)
    for few in (2, 3):
        assert all(math.isnan(error) for error in snr._statistics(values[:few]).se.values())


def test_a_sample_of_the_coordinates(toy):
    every, some = (measured(toy, pvae.IWAE(4), samples=20, coordinates=n) for n in (10_000, 5))
    assert len(every["guide"].mean) == 12
    assert len(some["guide"].mean) == 5
    assert set(some["guide"].mean.tolist()) <= set(every["guide"].mean.tolist())


def test_the_seed_is_all_that_counts(toy):
    before = torch.get_rng_state()
    a, b, c = (measured(toy, pvae.IWAE(4), samples=5, seed=seed)["guide"].mean for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


class Rising(pvae.ELBO):
    """A schedule of one's own."""

    def beta_for(self, rate):
        return self.taken(rate.device) / 10


@pytest.mark.parametrize("objective", [lambda: pvae.ELBO(warmup=10), Rising])
def test_a_warm_up_stays_where_it_is(toy, objective):
    rising, given = objective(), objective()
    for _ in range(5):  # steps by which it counts
        rising.taken(toy.x.device)
        rising.differentiable_loss(toy.model, toy.guide, toy.x)
    given.clock = torch.tensor(5.0)
    half = pvae.ELBO(beta=0.5)
    for _ in range(2):
        found, same, expected = (measured(toy, each, samples=20)["guide"] for each in (rising, given, half))
        torch.testing.assert_close(found.mean, expected.mean)
        torch.testing.assert_close(same.mean, expected.mean)
    assert rising.clock is None
    assert rising.taken(toy.x.device) == 5
    rising.differentiable_loss(toy.model, toy.guide, toy.x)
    assert rising.taken(toy.x.device) == 6


def test_a_program_that_cannot_be_traced(toy):
    class Reading(pvae.ELBO):
        def differentiable_loss(self, *args, **kwargs):
            loss = super().differentiable_loss(*args, **kwargs)
            return loss if loss > -math.inf else -loss

    plain, reading = (measured(toy, objective, samples=5)["guide"].mean for objective in (pvae.ELBO(), Reading()))
    assert torch.equal(plain, reading)


@pytest.mark.parametrize("draw", [np.random.standard_normal, np.random.default_rng(3).standard_normal])
def test_random_numbers_of_numpy_are_drawn_anew(toy, draw):
    """A graph would have the first ones for good."""
    samples = 4000

    def guide(x):
        with pyro.plate("data", len(x)):
            mean = toy.mu + torch.from_numpy(draw(x.shape)).float()
            pyro.sample("z", dist.Normal(mean, 1e-3).to_event(1))

    found = snr.measure(pvae.ELBO(), toy.model, guide, {"model": [toy.mu]}, toy.x, samples=samples)["model"]
    assert torch.allclose(found.variance, torch.tensor(16.0).double(), rtol=4 * math.sqrt(2 / samples))


def test_too_few_samples(toy):
    with pytest.raises(InputError, match="samples: found 1, expected at least 2"):
        measured(toy, pvae.ELBO(), samples=1)


def test_a_gradient_that_is_not_a_number(toy):
    with torch.no_grad():
        toy.b[1] = math.inf
    with pytest.raises(InputError, match="the gradient of the guide is not a finite number: the model has diverged"):
        measured(toy, pvae.ELBO(), samples=5)


def test_no_parameters(toy):
    with pytest.raises(InputError, match="nobody: found no parameters"):
        snr.measure(pvae.ELBO(), toy.model, toy.guide, {"nobody": []}, toy.x, samples=2)


def test_slopes():
    found, error = snr.slope([1, 4, 16, 64], [3 * k**0.5 for k in (1, 4, 16, 64)])
    assert found == pytest.approx(0.5)
    assert error == pytest.approx(0.0, abs=1e-6)


def test_the_error_of_a_slope_is_at_least_that_of_its_values():
    """Of three values the line that they are off tells it so badly that two errors would cover 70%."""
    random, ks, n = np.random.default_rng(0), [4, 16, 64], 2000
    truth, errors = np.array([3.0, 6.0, 12.0]), np.array([0.2, 0.3, 1.0])
    noisy = [truth + errors * random.standard_normal(3) for _ in range(n)]
    found, error = np.array([snr.slope(ks, values, errors) for values in noisy]).T
    slack = 4 * math.sqrt(0.95 * 0.05 / n)
    assert 0.954 - slack < np.mean(abs(found - 0.5) < 2 * error) < 0.98 + slack
    assert np.median(error) < 1.1 * found.std()
    assert np.mean(abs(found - 0.5) < 2 * np.array([snr.slope(ks, values)[1] for values in noisy])) < 0.75
    # and no power of K has values that fall and rise again
    assert snr.slope(ks, [1.0, 0.5, 1.0], [0.01] * 3)[1] > 0.2
    assert snr.slope([1, 4], [1.0, 2.0], [0.1, 0.2]) == (pytest.approx(0.5), pytest.approx(0.1 * 2**0.5 / math.log(4)))
