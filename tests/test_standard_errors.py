"""Standard errors have the size that they claim: over many replications, against closed forms."""

import math

import pytest
import torch
from torch.distributions import Binomial, Normal

from pvae import exact
from pvae.ais import Annealing, ais, bdmc
from pvae.evaluate import evaluate
from pvae.gap import gap
from pvae.means import FEWEST_OF_TAILS, estimate, quantile, share


def covered(found, error, truth):
    """The share of replications within two standard errors of the truth, and the error of that share at 95%."""
    inside = ((found - truth).abs() <= 2 * error + 1e-12).double().mean().item()
    return inside, math.sqrt(0.95 * 0.05 / len(found))


@pytest.mark.parametrize("groups", [1, 2, 3, 10, 25])
def test_the_monte_carlo_error_of_a_bound_from_few_groups(groups):
    """Of two groups of draws the spread alone would cover 70%, fewer than the spread of the weights in one of them."""
    k, n = 100, 2000
    truth = exact.LinearGaussian(torch.tensor([[1.0], [0.5]]).double(), torch.zeros(2).double(), torch.tensor(0.5))
    vae = exact.LinearVAE(2, 1).double().set_(truth)
    with torch.no_grad():
        vae.guide_log_scales.add_(0.3)
    x = torch.tensor([[1.0, -0.5]]).double().expand(n, 2)  # the same datum, each time with draws of its own
    found = evaluate(vae.model, vae.guide, x, particles=[k], draws=groups * k + 3)
    q = truth.posterior(x[:1])
    lacking = truth.iwae_limit(x[:1], q.mean, vae.guide_log_scales.exp().square().detach())
    bound = truth.log_prob(x[:1]) - lacking / k  # but for terms of order 1 / k^2
    inside, slack = covered(found.iw[k], found.se[f"iw.{k}"], bound)
    assert 0.94 - 4 * slack < inside < 0.97 + 4 * slack
    size = found.se[f"iw.{k}"].square().mean().sqrt() / found.iw[k].std()
    assert 0.95 < size < 1.3


@pytest.mark.parametrize("n", [5, 30, 200])
@pytest.mark.parametrize("p", [0.01, 0.05, 0.3, 0.98])
def test_the_error_of_a_share(n, p):
    """Also where it is none or all of the data found, of which the usual error would be 0."""
    torch.manual_seed(0)
    counts = Binomial(n, torch.tensor(p)).sample((2000,)).long()
    of_count = {}
    for count in counts.unique().tolist():
        of_count[count] = share(torch.arange(n) < count)
    found, error, _ = torch.tensor([of_count[c] for c in counts.tolist()]).double().T
    inside, slack = covered(found, error, p)
    assert inside > 0.93 - 4 * slack
    assert error.min() > 0
    assert (
        n < 30 or not 0.05 <= p <= 0.95 or error.square().mean().sqrt() / found.std() == pytest.approx(1.15, abs=0.25)
    )


def test_of_one_datum_there_is_no_error():
    one = torch.tensor([0.1])
    for found in (share(one > 0), estimate(one), *(quantile(one, p) for p in (0.1, 0.5, 0.9))):
        assert math.isnan(found.se)
        assert found.mean in (1, one.item())


@pytest.mark.parametrize("n", [2, FEWEST_OF_TAILS - 1, FEWEST_OF_TAILS, 400])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_error_of_a_quantile(n, p):
    """There is one where both ends of its interval are among the data."""
    torch.manual_seed(0)
    every = [quantile(values, p) for values in torch.randn(2000, n).double()]
    found, error, _ = torch.tensor(every).double().T
    if n == 2 or (n < FEWEST_OF_TAILS and p != 0.5):
        assert error.isnan().all()
        return
    inside, slack = covered(found, error, Normal(0.0, 1.0).icdf(torch.tensor(p)).item())
    assert inside > 0.92 - 4 * slack
    assert 0.9 < error.square().mean().sqrt() / found.std() < 1.6


def test_of_one_datum_results_print_with_a_dash():
    truth = exact.LinearGaussian(torch.eye(3, 2), torch.zeros(3), torch.tensor(0.5))
    vae, (_, x) = exact.LinearVAE(3, 2).set_(truth), truth.sample(1)
    annealing = Annealing(1, 2, 1)
    for found in (
        evaluate(vae.model, vae.guide, x, particles=[1]),
        ais(vae.model, x, annealing=annealing),
        bdmc(vae.model, x, annealing=annealing),
        gap(vae.model, vae.guide, x, log_p=truth.log_prob(x), families=[], draws=2),
    ):
        assert "+- -" in repr(found)
        assert "+- nan" not in repr(found)
