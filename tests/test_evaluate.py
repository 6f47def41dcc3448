"""Evaluation against closed forms and against the same numbers by hand; what it leaves alone; its memory."""

import itertools
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from watching import Largest

import pvae
from pvae import comparison, exact, programs, tables
from pvae import evaluate as evaluate_room
from pvae.evaluate import CELL, Evaluation, evaluate
from pvae.means import mean_and_se

WEIGHT = torch.tensor([[1.0, 0.8], [0.2, 0.7], [-0.5, -0.3], [0.7, -0.2]], dtype=torch.float64)
N = 200


def linear(covariance="diagonal", spread=1.0, n=N):
    """A linear VAE with its best guide (its scale times `spread`), the truth it was set to, and data from it."""
    truth = exact.LinearGaussian(WEIGHT, torch.zeros(4).double(), torch.tensor(0.5).double())
    vae = exact.LinearVAE(4, 2, covariance=covariance).double().set_(truth)
    with torch.no_grad():
        vae.guide_log_scales.add_(math.log(spread))
    _, x = truth.sample(n, torch.Generator().manual_seed(3))
    return vae, truth, x


def assert_within_error(found, expected, errors=4.0):
    """The mean over data of a value's difference from what is expected of it is 0 within its standard error."""
    difference = found - expected
    assert difference.mean().abs() < errors * difference.std() / math.sqrt(len(difference))


# Against closed forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_elbo_is_the_exact_one(covariance):
    vae, truth, x = linear(covariance, spread=1.3)
    q = truth.posterior(x)
    variance = truth.best_diagonal().diag() if covariance == "diagonal" else q.covariance_matrix[0]
    scale = 1.3 * torch.linalg.cholesky(variance)
    if covariance == "full":  # only the diagonal of the root was spread
        scale = torch.linalg.cholesky(variance).tril(-1) + scale.diagonal().diag()
    expected = truth.elbo(x, q.mean, scale @ scale.mT)
    found = evaluate(vae.model, vae.guide, x, particles=[300])
    assert_within_error(found.elbo, expected)
    assert (found.elbo - expected).abs().max() < 0.5
    mean, se = found.summary()["elbo"].values()
    assert mean == pytest.approx(found.elbo.mean().item())
    assert se == pytest.approx(found.elbo.std().item() / math.sqrt(N))


def test_rate_and_distortion_are_the_exact_ones():
    vae, truth, x = linear()
    found = evaluate(vae.model, vae.guide, x, particles=[300])
    mean, variance = truth.posterior(x).mean, truth.best_diagonal()
    rate = exact.gaussian_kl_full(mean, variance.diag(), torch.zeros(2).double(), torch.eye(2).double())
    assert_within_error(found.rate, rate)
    assert_within_error(found.distortion, -(truth.elbo(x, mean, variance) + rate))
    assert found.rate.mean() > 0.5


def test_rate_and_distortion_are_the_elbo():
    vae, _, x = linear(spread=1.5)
    found = evaluate(vae.model, vae.guide, x, particles=[7])
    torch.testing.assert_close(found.rate + found.distortion, -found.elbo, rtol=0, atol=1e-12)


def test_bounds_rise_with_k_to_log_p():
    vae, truth, x = linear(spread=1.5)
    ks = (1, 2, 8, 64, 512)
    found = evaluate(vae.model, vae.guide, x, particles=ks)
    log_p = truth.log_prob(x)
    assert list(found.iw) == list(ks)
    for low, high in itertools.pairwise(ks):  # paired: from the same draws
        rise = found.iw[high] - found.iw[low]
        assert rise.mean() > 4 * rise.std() / math.sqrt(N), f"L_{high} is not above L_{low}"
    left = log_p - found.iw[512]
    assert left.mean() > -4 * left.std() / math.sqrt(N)
    assert left.mean() < 0.01 < (log_p - found.elbo).mean()


def test_large_k_closes_the_gap_as_theory_says():
    vae, truth, x = linear(spread=1.5)
    k = 200
    found = evaluate(vae.model, vae.guide, x, particles=[k, 100 * k])
    limit = truth.iwae_limit(x, truth.posterior(x).mean, 1.5**2 * truth.best_diagonal())
    scaled = k * (truth.log_prob(x) - found.iw[k])
    se = scaled.std() / math.sqrt(N)
    assert abs(scaled.mean() - limit.mean()) < 4 * se + 3 * limit.mean() / k


def test_the_exact_guide_has_equal_weights():
    vae, truth, x = linear("full")
    found = evaluate(vae.model, vae.guide, x, particles=[1, 3, 50])
    log_p = truth.log_prob(x)
    for value in (found.elbo, *found.iw.values()):
        torch.testing.assert_close(value, log_p, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.ess, torch.full_like(found.ess, 50), rtol=0, atol=1e-6)


def test_ess_lies_between_one_and_the_draws():
    for spread, low, high in ((1.0, 30, 50), (0.05, 1, 25)):
        vae, _, x = linear(spread=spread)
        found = evaluate(vae.model, vae.guide, x, particles=[50])
        assert found.ess.min() >= 1
        assert found.ess.max() <= 50
        assert low < found.ess.mean() < high


def test_the_expected_ess_is_that_of_the_second_moment():
    """draws / ess tends to E_q[w^2] / E_q[w]^2 = 1 + Var_q(p(z|x) / q(z|x))."""
    vae, truth, x = linear(spread=1.5, n=50)
    found = evaluate(vae.model, vae.guide, x, particles=[5000])
    second = 1 + 2 * truth.iwae_limit(x, truth.posterior(x).mean, 1.5**2 * truth.best_diagonal())
    torch.testing.assert_close(5000 / found.ess, second, rtol=0.1, atol=0)


# Against the same by hand ---------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    """Every block of log-weights that `evaluate` reduces, as it goes by."""
    import pvae.evaluate as module

    blocks, reduce = [], module._reduce
    monkeypatch.setattr(module, "_reduce", lambda terms, ks: blocks.append(terms) or reduce(terms, ks))
    return blocks


def test_every_number_is_that_of_the_log_weights_by_hand(seen):
    vae, _, x = linear(spread=1.5)
    found = evaluate(vae.model, vae.guide, x, particles=[1, 3, 5, 64])
    log_w = torch.cat([terms.log_w for terms in seen], 1)
    assert log_w.shape == (64, N)
    torch.testing.assert_close(found.elbo, log_w.mean(0))
    torch.testing.assert_close(found.iw[1], found.elbo)
    for k in (3, 5, 64):  # disjoint groups of the draws, those left over unused
        groups = [log_w[start : start + k].exp().mean(0).log() for start in range(0, 64 - k + 1, k)]
        assert len(groups) == 64 // k
        torch.testing.assert_close(found.iw[k], torch.stack(groups).mean(0))
    w = log_w.softmax(0)
    torch.testing.assert_close(found.ess, 1 / w.square().sum(0))
    parts = [torch.cat([getattr(terms, name) for terms in seen], 1).mean(0) for name in programs.LogWeights._fields]
    torch.testing.assert_close(found.distortion, -parts[0])
    torch.testing.assert_close(found.rate, parts[2] - parts[1])


def test_its_log_weights_are_those_of_the_programs(seen):
    """The first cell's draws, drawn again at its seed in one go."""
    vae, _, x = linear(n=20)
    evaluate(vae.model, vae.guide, x, particles=[100], seed=5, chunk=128)
    torch.manual_seed(int(np.random.SeedSequence((5, 0, 0)).generate_state(1, np.uint64)[0]))
    expected = pvae.log_weights(vae.model, vae.guide, x, particles=100)
    for found, right in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


def test_the_bound_at_k_has_the_expectation_of_k_draws():
    """From many draws or from k: the mean over repetitions is the same, its error is not."""
    vae, _, x = linear(spread=2.0, n=20)
    many = torch.stack([evaluate(vae.model, vae.guide, x, particles=[4, 64], seed=s).iw[4] for s in range(60)])
    alone = torch.stack([evaluate(vae.model, vae.guide, x, particles=[4], seed=100 + s).iw[4] for s in range(400)])
    difference = many.mean(0) - alone.mean(0)
    error = (many.var(0) / len(many) + alone.var(0) / len(alone)).sqrt()
    assert (difference / error).abs().max() < 4
    assert many.std(0).mean() < 0.4 * alone.std(0).mean()


def test_no_two_draws_are_the_same(seen):
    """Data, particles and cells have draws of their own; so have seeds."""
    vae, _, x = linear(n=CELL + 5)
    x = x[:1].expand(CELL + 5, -1)
    for seed in (0, 1):
        evaluate(vae.model, vae.guide, x, particles=[CELL + 5], seed=seed)
    log_q = torch.cat([terms.posterior.flatten() for terms in seen])
    assert len(log_q) == 2 * (CELL + 5) ** 2
    assert len(log_q.unique()) == len(log_q)


def test_mean_and_standard_error():
    value = torch.tensor([1.0, 2.0, 6.0]).double()
    assert mean_and_se(value) == {"mean": 3.0, "se": pytest.approx(math.sqrt(7 / 3))}
    assert math.isnan(mean_and_se(value[:1])["se"])


# What it depends on, and what it leaves alone -------------------------------------------------------------------------


def equal(a: Evaluation, b: Evaluation, atol=0.0):
    assert a.columns().keys() == b.columns().keys()
    for name, value in a.columns().items():
        torch.testing.assert_close(value, b.columns()[name], rtol=0, atol=atol)
    torch.testing.assert_close(a.latent_variance, b.latent_variance, rtol=0, atol=atol)


@pytest.mark.parametrize(("n", "draws"), [(N, 300), (3, 1000), (300, 1), (CELL, CELL), (CELL + 1, CELL + 1)])
def test_chunks_change_nothing(n, draws):
    vae, _, x = linear(n=n)
    first, *others = (
        evaluate(vae.model, vae.guide, x, particles=[1, draws], chunk=chunk) for chunk in (128, 300, 4096, 10**7)
    )
    for other in others:
        equal(first, other, atol=1e-12)


@pytest.mark.parametrize("khat", [False, True])
def test_how_many_cells_are_reduced_at_once_changes_nothing(khat, monkeypatch):
    vae, _, x = linear(n=4 * CELL + 5)
    together = evaluate(vae.model, vae.guide, x, particles=[1, 40], khat=khat)
    monkeypatch.setattr("pvae.evaluate.AT_ONCE", 2 * CELL * 40)
    by_twos = evaluate(vae.model, vae.guide, x, particles=[1, 40], khat=khat)
    equal(together, by_twos, atol=1e-12)
    assert not khat or torch.equal(together.khat, by_twos.khat)


def test_the_result_depends_on_the_seed_alone():
    vae, _, x = linear()
    found = []
    for state, seed in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(state)
        pyro.set_rng_seed(state)
        found.append(evaluate(vae.model, vae.guide, x, particles=[10], seed=seed))
    equal(found[0], found[1])
    assert not torch.equal(found[0].elbo, found[2].elbo)


def test_generators_parameters_and_gradients_are_left_alone():
    vae, _, x = linear()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    before = [p.clone() for p in vae.parameters()]
    found = evaluate(vae.model, vae.guide, x, particles=[10])
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(vae.parameters(), before, strict=True))
    assert not any(value.requires_grad for value in found.columns().values())
    assert len(pyro.get_param_store()) == 0


def test_numbers_are_double_and_on_the_cpu(vae, x):
    found = evaluate(vae.model, vae.guide, x, particles=(5, 2, 5))
    assert (list(found.iw), found.draws) == ([2, 5], 5)
    assert list(found.columns()) == ["elbo", "iw.2", "iw.5", "rate", "distortion", "ess"]
    for value in found.columns().values():
        assert (value.shape, value.dtype, value.device.type) == ((7,), torch.float64, "cpu")
    assert found.latent_variance.shape == (3,)


# Active units ---------------------------------------------------------------------------------------------------------


def test_a_latent_without_a_mean_is_in_no_count_of_active_units():
    """A class has none; beside it, a number that varies and one that does not."""

    def program(x, numbers, obs):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=torch.stack([-x, x], -1)))
            for name, factor in numbers.items():
                pyro.sample(name, dist.Normal(factor * x, 1.0))
            if obs:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.linspace(-3, 3, 100)
    for numbers, active, said in (({}, None, "- of 1"), ({"a": 1, "b": 0}, 1, "1 of 2, 1 without a mean")):
        found = evaluate(partial(program, numbers=numbers, obs=True), partial(program, numbers=numbers, obs=False), x)
        assert found.latent_variance.isnan().tolist() == [True, *[False] * len(numbers)]
        assert found.active_units == active
        assert f"active units {said}; 100 data" in repr(found)
        measured = comparison.Comparison({"one": comparison.Measured(found)}, comparison.Plan((1, 100)), 100)
        text = tables.text(measured, {"data": "toy", "binarization": "none", "numbers": evaluate_room.BOUNDS})
        assert evaluate_room.UNUSED not in text
        assert said in text


def test_active_units_are_those_whose_posterior_mean_varies():
    vae, truth, x = linear()
    found = evaluate(vae.model, vae.guide, x, particles=[5])
    torch.testing.assert_close(found.latent_variance, truth.posterior(x).mean.var(0, correction=0))
    assert found.active_units == 2


@pytest.mark.parametrize(("factor", "active"), [(0.0, 1), (0.5, 1), (2.0, 2)])
def test_inactive_dimensions_are_found_at_the_threshold(factor, active):
    """The second latent's mean has a variance of 0.01 times the factor."""
    encoder = nn.Linear(2, 4)
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.bias.zero_()
        encoder.weight[0, 0], encoder.weight[1, 1] = 1.0, math.sqrt(0.01 * factor)
    vae = pvae.VAE(pvae.Normal(2), pvae.Gaussian(nn.Linear(2, 2), (2,)), pvae.MeanField(encoder, 2))
    x = torch.tensor([1.0, -1.0]).repeat(150)[:, None] * torch.tensor([3.0, 1.0])
    found = evaluate(vae.model, vae.guide, x)
    torch.testing.assert_close(found.latent_variance, torch.tensor([9, 0.01 * factor]).double(), rtol=1e-5, atol=1e-12)
    assert found.latent_se.tolist() == [0, 0]
    assert found.active_units == active


class Drawn(dist.Normal):
    """A normal whose mean is not known, as that of a flow."""

    @property
    def mean(self):
        raise NotImplementedError


def guided(*sites):
    """A program without data of its own, and a guide whose sites are given x and the draws before them."""

    def guide(x, y=None):
        draws = []
        with pyro.plate("data", len(x)):
            for i, site in enumerate(sites):
                draws.append(pyro.sample(f"z{i}", site(x, *draws)))

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            for i, _ in enumerate(sites):
                pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return model, guide


@pytest.mark.parametrize("guide", ["iaf", "maf", "planar", "spline"])
@pytest.mark.parametrize("draws", [10, 100])
def test_a_collapsed_flow_has_no_active_units(guide, draws):
    """Its mean is that of its draws, whose variance is of the size of 1 / draws."""
    torch.manual_seed(0)
    member = pvae.base.lookup("guide", guide)
    encoder = nn.Linear(2, 20 * member.outputs_for(20, **pvae.config.defaults(member)))
    for parameter in encoder.parameters():
        nn.init.zeros_(parameter)
    vae = pvae.VAE(pvae.Normal(20), pvae.Gaussian(nn.Linear(20, 2), (2,)), member(encoder, 20))
    x = torch.randn(150, 2)
    found = evaluate(vae.model, vae.guide, x, particles=[draws])
    assert found.active_units == 0
    assert (found.latent_variance.abs() < 5 * found.latent_se).all()
    assert (found.latent_se < 0.3 / draws).all()


@pytest.mark.parametrize("draws", [2, 5, 129, 300])
def test_the_noise_of_draws_is_no_variance_of_posterior_means(draws):
    x = torch.randn(300, generator=torch.Generator().manual_seed(0))
    programs = guided(lambda x: Drawn(0.2 * x + 1e4, 2.0))  # far from 0, where squares in float32 cancel
    expected = 0.04 * x.double().var(correction=0)
    errors, several = [], []
    for seed in range(20):
        found = evaluate(*programs, x, particles=[draws], seed=seed)
        several.append(found.latent_variance - expected)
        errors.append(found.latent_se)
    several, errors = torch.cat(several), torch.cat(errors)
    assert several.mean().abs() < 4 * several.std() / math.sqrt(20)
    assert (several.abs() < 4 * errors).all()
    assert 0.4 < several.std() / errors.mean() < 1.4


def test_of_one_draw_an_average_of_draws_says_nothing():
    x = torch.randn(50)
    found = evaluate(*guided(lambda x: Drawn(x, 1.0)), x, particles=[1])
    assert found.active_units is None
    assert found.latent_variance.isnan().all()
    assert "active units - of 1" in repr(found)
    known = evaluate(*guided(lambda x: dist.Normal(x, 1.0)), x, particles=[1])
    assert known.active_units == 1
    assert torch.equal(known.latent_variance, x.double().var(correction=0, keepdim=True))
    assert torch.equal(known.latent_se, torch.zeros(1).double())


@pytest.mark.parametrize("draws", [1, 2, 10, 129])
def test_a_layer_is_not_active_by_the_draws_before_it(draws):
    """The mean of the second given x is 0 for all, though it is that of the first draw."""
    programs = guided(
        lambda x: dist.Normal(0 * x, 1.0), lambda x, z: dist.Normal(z, 0.1), lambda x, *_: dist.Normal(x, 1)
    )
    found = evaluate(*programs, torch.linspace(-1, 1, 200), particles=[draws])
    layers = {name: layer.active_units for name, layer in found.layers.items()}
    assert layers == ({"z0": 0, "z1": 0, "z2": 1} if draws > 1 else {"z0": 0, "z1": None, "z2": None})
    assert found.active_units == (1 if draws > 1 else None)
    assert found.layers["z0"].se == 0
    assert draws == 1 or found.layers["z2"].se == 0


def test_graphs_find_the_same_active_units():
    programs = guided(lambda x: Drawn(0.2 * x, 1.0), lambda x, z: dist.Normal(z, 0.1))
    x = torch.randn(7 * CELL + 3)
    eager, graph = (evaluate(*programs, x, particles=[20], compile=compile) for compile in ("off", "graph"))
    torch.testing.assert_close(graph.latent_variance, eager.latent_variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(graph.latent_se, eager.latent_se, rtol=1e-5, atol=0)


def test_several_latent_sites_each_count():
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a.sum(-1, keepdim=True), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(b, 1.0).to_event(1), obs=x[:, None])

    def guide(x, y=None):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(0.75 * x[:, None], 0.9).to_event(1))
            pyro.sample("a", dist.Normal((b / 3).expand(*b.shape[:-1], 2), 1.0).to_event(1))

    x = torch.linspace(-3, 3, 150)
    found = evaluate(model, guide, x, particles=[600])
    assert found.latent_variance.shape == (3,)
    # b's mean is 3x/4; each a's is b/3, averaged over the draws of b
    expected = torch.tensor([9 / 16, 1 / 16, 1 / 16]).double() * x.double().var(correction=0)
    torch.testing.assert_close(found.latent_variance, expected, rtol=0.03, atol=0)
    assert found.active_units == 3
    truth = torch.distributions.Normal(0.0, 2.0).log_prob(x)
    assert (found.iw[600] - truth).abs().mean() < 0.1
    assert found.elbo.mean() < truth.mean()


def test_a_latent_number_without_an_event_dimension_is_one_unit():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.randn(20)
    for particles in (1, 4):
        found = evaluate(model, guide, x, particles=[particles])
        assert found.latent_variance.tolist() == pytest.approx([(x / 2).var(correction=0).item()], rel=1e-5)


# Labels and errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_hot", [False, True])
def test_labels_are_passed_block_by_block(one_hot):
    def number(y):
        return y.argmax(-1, keepdim=True) if one_hot else y[:, None]

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(y).float(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, y):  # the exact posterior, so that every weight is p(x|y)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + number(y)) / 2, 0.5**0.5).to_event(1))

    x, y = torch.randn(2 * CELL + 9, 1), torch.randint(0, 5, (2 * CELL + 9,))
    found = evaluate(model, guide, x, torch.nn.functional.one_hot(y, 5) if one_hot else y, particles=[3])
    truth = torch.distributions.Normal(y[:, None].float(), 2**0.5).log_prob(x).double().squeeze(1)
    torch.testing.assert_close(found.elbo, truth, rtol=0, atol=1e-5)


def test_what_cannot_be_evaluated_is_refused(vae, x):
    for particles in ([], [0], [5, -1]):
        with pytest.raises(
            pvae.InputError, match=r"particles: found \[.*\], expected a list of whole numbers of draws"
        ):
            evaluate(vae.model, vae.guide, x, particles=particles)
    with pytest.raises(pvae.InputError, match="evaluate: found no data, expected at least one datum"):
        evaluate(vae.model, vae.guide, x[:0])
    with pytest.raises(pvae.InputError, match="draws: found 9, expected at least the largest K, 10"):
        evaluate(vae.model, vae.guide, x, particles=[1, 10], draws=9)
    with pytest.raises(pvae.InputError, match="draws: found 29, expected at least 30, as k-hat needs"):
        evaluate(vae.model, vae.guide, x, particles=[1], draws=29, khat=True)
    with pytest.raises(pvae.InputError, match="compile: found 'ful', expected one of off, graph, full"):
        evaluate(vae.model, vae.guide, x, compile="ful")


@pytest.mark.parametrize("at_once", [1, 2**16])
@pytest.mark.parametrize("datum", [3, CELL + 2])
def test_a_weight_that_is_not_a_number_names_its_datum_and_term(datum, at_once, monkeypatch):
    monkeypatch.setattr("pvae.evaluate.AT_ONCE", at_once)
    vae = pvae.VAE(
        pvae.Normal(2), pvae.Gaussian(nn.Linear(2, 3), (3,)), pvae.MeanField(nn.Linear(3, 4), 2, min_scale=0.5)
    )
    x = torch.randn(CELL + 10, 3)
    x[datum, 1] = math.inf
    state = torch.get_rng_state()
    with (
        pyro.validation_enabled(False),
        pytest.raises(pvae.InputError, match=f"datum {datum} is not a number: the datum has values that are") as found,
    ):
        evaluate(vae.model, vae.guide, x)
    assert "\n" not in str(found.value)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("program", "term"), [("prior", "prior"), ("likelihood", "likelihood")])
def test_the_term_that_is_not_a_number_is_named(vae, x, program, term):
    class Broken(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, *args):
            normal = dist.Normal(torch.full((3,) if term == "prior" else (4, 5), math.nan), 1.0)
            return normal.to_event(1 if term == "prior" else 2)

    setattr(vae, program, Broken(getattr(vae, program)))
    with (
        pyro.validation_enabled(False),
        pytest.raises(pvae.InputError, match=f"the log-{term} of datum 0 is not a number"),
    ):
        evaluate(vae.model, vae.guide, x)


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("likelihood", "draws"), [(pvae.Bernoulli, 100), (pvae.Bernoulli, 500), (pvae.Gaussian, 500)])
def test_memory_is_bounded_by_the_chunk_whatever_the_draws(new_vae, draws, likelihood):
    chunk, n, pixels = 256, 64, 1600
    vae = new_vae(latent=3, shape=(40, 40), likelihood=likelihood)
    x = torch.rand(n, 40, 40).round()
    with Largest() as largest:
        evaluate(vae.model, vae.guide, x, particles=[1, draws], chunk=chunk)
    assert draws * n < chunk * pixels  # the log-weights are smaller than a chunk's pixels
    assert largest.numel == chunk * pixels


def test_an_evaluation_prints_as_a_table_and_tells_how_far_it_is(vae, x):
    told = []
    found = evaluate(vae.model, vae.guide, x, particles=[1, 5], progress=lambda *at: told.append(at))
    assert told == [(7, 7)]
    lines = repr(found).splitlines()
    assert [line.split()[0] for line in lines] == ["elbo", "iw.1", "iw.5", "rate", "distortion", "ess", "active"]
    assert lines[-1].endswith("of 3; 7 data, 5 draws each")
