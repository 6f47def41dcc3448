"""From programs and data to a comparison, and how it is written down."""

import csv
import dataclasses
import io
import json
import math
import re
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.mathtext import MathTextParser
from torch import nn
from watching import Largest

import pvae
from pvae import diagnostics, guides, priors, tables
from pvae import evaluate as evaluate_room
from pvae.ais import Annealing
from pvae.comparison import Comparison, Data, Measured, Plan, choose, compare
from pvae.evaluate import BOUNDS, CELL, Evaluation, evaluate
from pvae.exact import LinearVAE, linear_gaussian
from pvae.gap import Gap
from pvae.means import Estimate, estimate
from pvae.programs import check_weights
from pvae.runs import write_results
from pvae.tables import rows

PROTOCOL = {"data": "toy_1", "binarization": "none", "sizes": {"test": 4}, "numbers": BOUNDS}
SMALL = Plan(particles=(1, 4), draws=40, subset=3, annealing=Annealing(20, 3, 2), families=("mean_field",), steps=5)


def linear(seed=0):
    torch.manual_seed(seed)
    return LinearVAE(4, 2)


def programs(*seeds):
    return {f"linear{seed}": (linear(seed).model, linear(seed).guide) for seed in seeds}


@pytest.fixture(scope="module")
def whole():
    """A comparison of two models, with everything in it."""
    torch.manual_seed(1)
    x = torch.randn(9, 4)
    known = {"linear1": linear(1).exact().log_prob(x)}
    return compare(programs(0, 1), Data(x), Data(torch.randn(5, 4)), SMALL, exact=known)


def evaluation(bound, khat=None, draws=100):
    """An evaluation whose ELBO and L_1 are these values."""
    value = torch.tensor(bound, dtype=torch.float64)
    return Evaluation(
        elbo=value,
        iw={1: value, 10: value + 1},
        rate=value.abs(),
        distortion=-value - value.abs(),
        ess=torch.ones_like(value),
        latent_variance=torch.tensor([1.0, 0.0]),
        se={"elbo": value * 0, "iw.1": value * 0, "iw.10": value * 0, "rate": value * 0, "distortion": value * 0},
        draws=draws,
        khat=khat,
    )


def comparison(plan=None, **bounds):
    models = {name: Measured(evaluation(bound)) for name, bound in bounds.items()}
    size = len(next(iter(bounds.values())))
    return Comparison(models, plan or Plan(particles=(1, 10), draws=100, information=0), size)


# One set of draws -----------------------------------------------------------------------------------------------------


@pytest.fixture
def weighed(monkeypatch):
    """An evaluation in two blocks, and all its log-weights."""
    blocks, real = [], diagnostics.khat
    monkeypatch.setattr(diagnostics, "khat", lambda log_w: (blocks.append(log_w), real(log_w))[1])
    vae, x = linear(), torch.randn(CELL + 20, 4)
    found = evaluate(vae.model, vae.guide, x, particles=[1, 7, 70, 200], draws=300, khat=True)
    assert len(blocks) == 2
    return found, torch.cat(blocks, 1), real


@pytest.mark.parametrize("k", [1, 7, 70, 200])
def test_every_k_is_from_disjoint_groups_of_the_same_draws(weighed, k):
    found, log_w, _ = weighed
    groups = [log_w[i * k : (i + 1) * k].logsumexp(0) - math.log(k) for i in range(300 // k)]
    torch.testing.assert_close(found.iw[k], torch.stack(groups).mean(0), rtol=0, atol=1e-12)
    error = torch.stack(groups).std(0) / math.sqrt(len(groups)) if len(groups) > 1 else 0 * groups[0]
    if len(groups) < 20:  # at least that of the weights: of log mean w the standard error of mean w, over mean w
        w = log_w[: len(groups) * k].exp().reshape(len(groups), k, -1)
        each = w.var(1, correction=0) / (k - 1) / w.mean(1).square()
        error = error.maximum(each.sum(0).sqrt() / len(groups))
    torch.testing.assert_close(found.se[f"iw.{k}"], error, rtol=1e-9, atol=0)


def test_khat_by_block_is_that_of_all_the_weights(weighed):
    found, log_w, khat = weighed
    torch.testing.assert_close(found.khat, khat(log_w), rtol=0, atol=0)
    assert found.khat.shape == (CELL + 20,)


def test_the_monte_carlo_errors_are_those_of_the_draws(weighed):
    found, log_w, _ = weighed
    torch.testing.assert_close(found.se["elbo"], log_w.std(0) / math.sqrt(300), rtol=1e-12, atol=0)
    # ELBO = -(rate + distortion): its error is at most the sum of theirs
    assert bool((found.se["elbo"] <= found.se["rate"] + found.se["distortion"]).all())
    other = evaluate(linear().model, linear().guide, torch.randn(3, 4), particles=[1])
    assert all(bool(value.isnan().all()) for value in other.se.values())
    assert other.khat is None


def test_bounds_at_every_k_agree_with_the_exact_value():
    torch.manual_seed(3)
    vae = LinearVAE(3, 2, covariance="full")
    x = vae.exact().sample(600)[1]
    with torch.no_grad():
        vae.set_(vae.exact()).guide_log_scales.add_(0.15)  # a little wide: finite variance
    found = compare(
        {"a": (vae.model, vae.guide)}, Data(x), plan=Plan((1, 10, 1000)), exact={"a": vae.exact().log_prob(x)}
    )
    exact = found.estimates("a")["exact"]
    posterior = vae.exact().posterior(x)
    root = vae.guide_lower.tril(-1) + vae.guide_log_scales.exp().diag()
    gap = vae.exact().log_prob(x) - vae.exact().elbo(x, posterior.mean, root @ root.mT)
    assert exact["log_p - elbo"].mean == pytest.approx(
        gap.mean().item(), abs=4 * found.models["a"].test.se["elbo"].mean().item()
    )
    assert abs(exact["log_p - iw.1000"].mean) < 4 * exact["log_p - iw.1000"].se + 1e-3
    assert exact["log_p - elbo"].mean > exact["log_p - iw.10"].mean > exact["log_p - iw.1000"].mean


def shifted(x, y):
    """p(x|y) = N(y, 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + y.squeeze(-1), 1.0), obs=x)


def posterior(x, y):
    """Of that model, so that every weight is p(x|y)."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x - y.squeeze(-1)) / 2, 0.5**0.5))


def test_each_model_is_given_its_own_labels():
    torch.manual_seed(4)
    x, other = torch.randn(40), torch.randn(30)
    test = {"near": Data(x, torch.zeros(40, 1)), "far": Data(x, torch.linspace(3, 9, 40).unsqueeze(1))}
    train = {"near": Data(other, torch.ones(30, 1)), "far": Data(other, torch.linspace(-9, 2, 30).unsqueeze(1))}
    plan = Plan(
        (1, 3), draws=6, subset=7, annealing=Annealing(20, 8, 5), start="guide", families=("mean_field",), steps=5
    )
    found = compare(dict.fromkeys(test, (shifted, posterior)), test, train, plan)
    for name, each in found.models.items():
        for part, data in ((each.test, test[name]), (each.train, train[name])):
            exact = dist.Normal(data.y.squeeze(1), 2**0.5).log_prob(data.x).double()
            torch.testing.assert_close(part.elbo, exact, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(part.iw[1], exact, rtol=1e-5, atol=1e-5)
        exact = dist.Normal(test[name].y.squeeze(1), 2**0.5).log_prob(x).double()
        torch.testing.assert_close(each.annealed.log_p, exact[found.chosen], rtol=1e-3, atol=1e-2)
        assert found.estimates(name)["gap"]["inference"].mean == pytest.approx(0, abs=1e-2)
        alone = diagnostics.mutual_information(posterior, *test[name], samples=1000)
        torch.testing.assert_close(each.information, alone, rtol=0, atol=0)
    difference = found.models["far"].test.elbo - found.models["near"].test.elbo
    assert found.differences()["far", "near"]["elbo"].mean == pytest.approx(difference.mean().item())


@pytest.mark.parametrize(
    ("test", "text"),
    [
        ({"a": Data(torch.zeros(3))}, "test: found no data of 'b', expected those of each model, or one Data for all"),
        ({"a": Data(torch.zeros(3)), "b": Data(torch.ones(3))}, "test: found other x of 'b' than of 'a', expected the"),
        ({"a": Data(torch.zeros(3)), "b": Data(torch.zeros(4))}, "test: found other x of 'b' than of 'a', .* y alone"),
    ],
)
def test_data_differ_in_their_labels_alone(test, text):
    with pytest.raises(pvae.InputError, match=text):
        compare(dict.fromkeys("ab", (shifted, posterior)), test)


def test_no_array_grows_with_draws_times_data():
    largest = []
    for n in (2 * CELL, 6 * CELL):
        with Largest() as seen:
            compare(programs(0), Data(torch.randn(n, 4)), Data(torch.randn(n, 4)), Plan((1, 400), information=100))
        largest.append(seen.numel)
    assert largest[0] == largest[1] == 3 * 400 * CELL  # the three terms of a block of data
    assert largest[1] < 400 * 6 * CELL


# Numbers --------------------------------------------------------------------------------------------------------------


def test_differences_are_paired_by_datum():
    found = comparison(b=[0.0, 2.0, 5.0, 1.0], a=[1.0, 2.0, 3.0, 4.0], c=[1.0, 3.0, 6.0, 2.0]).differences()
    assert list(found) == [("a", "b"), ("c", "b"), ("c", "a")]
    pair = found["a", "b"]["elbo"]
    assert pair[:1] + pair[2:] == (0.5, 2, 1, 1.0)  # differences 1, 0, -2, 3
    assert pair.se == pytest.approx(math.sqrt(13 / 3) / 2)
    assert found["c", "b"]["iw.10"] == (1.0, 0.0, 4, 0, pytest.approx(2 / 2**4))
    assert list(found["c", "a"]) == ["elbo", "iw.1", "iw.10"]


def test_a_bound_that_is_infinite_is_left_out_of_the_differences():
    a, b = evaluation([0.0, -math.inf]), evaluation([0.0, 1.0])
    a = dataclasses.replace(a, iw={1: a.iw[1], 10: torch.zeros(2)})
    found = Comparison({"a": Measured(a), "b": Measured(b)}, Plan((1, 10), information=0), 2)
    assert list(found.differences()["b", "a"]) == ["iw.10"]
    assert json.loads(json.dumps(tables.summary(found, PROTOCOL, {})))["runs"]["a"]["test"]["elbo"]["mean"] is None


def test_training_less_test():
    found = comparison(a=[0.0, 2.0, 4.0])
    found.models["a"] = Measured(evaluation([0.0, 2.0, 4.0]), train=evaluation([10.0, 11.0], draws=10))
    parts = found.estimates("a")
    gap = parts["difference"]["elbo"]
    assert (gap.mean, gap.n) == (8.5, 2)
    assert gap.se == pytest.approx(math.hypot(2 / math.sqrt(3), 0.5))
    assert "rate" not in parts["difference"]
    assert "ess" not in parts["train"]


def test_the_distribution_of_khat():
    values = torch.tensor([0.1, 0.9, 0.3, 0.2, 0.4, 0.6, 0.7, 0.5, 1.0, 0.8], dtype=torch.float64)
    found = comparison(a=[0.0] * 10)
    found.models["a"] = Measured(evaluation([0.0] * 10, khat=values[torch.randperm(10)]))
    test = found.estimates("a")["test"]
    assert [test[f"khat.{p}"].mean for p in (10, 50, 90)] == [0.1, 0.5, 0.9]
    assert test["khat.above"] == (0.5, pytest.approx(math.sqrt(0.25 / 10)), 10)  # above 0.5, from 100 draws
    assert test["khat.50"].se == pytest.approx((0.9 - 0.2) / 4)  # the 1.8th and the 8.2th of ten
    assert math.isnan(test["khat.90"].se)


def test_the_error_of_a_median_is_its_own():
    torch.manual_seed(0)
    medians = []
    for _ in range(300):
        found = comparison(a=[0.0] * 101)
        found.models["a"] = Measured(evaluation([0.0] * 101, khat=torch.randn(101).double()))
        medians.append(found.estimates("a")["test"]["khat.50"])
    spread = torch.tensor([each.mean for each in medians]).std().item()
    assert np.mean([each.se for each in medians]) == pytest.approx(spread, rel=0.15)


def test_annealing_and_guides_are_of_the_same_chosen_data(whole):
    rows = choose(9, 3, 0)
    assert torch.equal(whole.chosen, rows)
    found = whole.models["linear1"]
    ais = pvae.ais.ais(linear(1).model, _x()[rows], annealing=SMALL.annealing)
    assert torch.equal(found.annealed.log_w, ais.log_w)
    part = whole.estimates("linear1")["ais"]
    assert part["log_p - iw.4"] == estimate(ais.log_p - found.test.iw[4][rows])
    assert part["elbo"] == estimate(found.test.elbo[rows])  # of these data, which stand beside log p(x)
    # the exact values are better than annealing's where there are any
    torch.testing.assert_close(found.gap.log_p, linear(1).exact().log_prob(_x())[rows].double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(whole.models["linear0"].gap.log_p, whole.models["linear0"].annealed.log_p)
    # one gap, of the same draws, in both tables
    parts = whole.estimates("linear0")
    assert parts["gap"]["inference"] == parts["ais"]["log_p - elbo"]
    assert torch.equal(whole.models["linear0"].gap.se["elbo"], whole.models["linear0"].test.se["elbo"][rows])
    split = [parts["gap"][f"{name}.mean_field"].mean for name in ("approximation", "amortization")]
    assert sum(split) == pytest.approx(parts["gap"]["inference"].mean, rel=1e-9)


def _x():
    torch.manual_seed(1)
    return torch.randn(9, 4)


def test_annealing_may_start_from_the_guide():
    plan = dataclasses.replace(SMALL, families=(), start="guide")
    found = compare(programs(0), Data(_x()), plan=plan).models["linear0"]
    ais = pvae.ais.ais(linear().model, _x()[choose(9, 3, 0)], guide=linear().guide, annealing=SMALL.annealing)
    assert torch.equal(found.annealed.log_w, ais.log_w)


def test_each_part_is_what_its_own_function_finds(whole):
    vae, found = linear(0), whole.models["linear0"]
    alone = evaluate(vae.model, vae.guide, _x(), particles=[1, 4], draws=40, khat=True)
    assert torch.equal(found.test.iw[4], alone.iw[4])
    assert torch.equal(found.test.khat, alone.khat)
    assert torch.equal(found.information, diagnostics.mutual_information(vae.guide, _x()))
    assert list(found.train.iw) == [1, 4]  # both up to a tenth of the 40 draws
    assert found.train.draws == 4


def test_what_is_done_is_told():
    told = []
    compare(programs(0), Data(_x()), Data(_x()), SMALL, progress=lambda *at: told.append(at))
    assert ("linear0, test data", 9, 9) in told
    assert list(dict.fromkeys(what for what, _, _ in told)) == [
        f"linear0, {what}"
        for what in ("test data", "training data", "mutual information", "annealing, steps", "guides, steps")
    ]


def test_labels_go_with_their_data():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y.float()[:, None], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y[:, None]) / 2, 0.5**0.5).to_event(1))

    x, y = torch.randn(20, 1), torch.arange(20)
    found = compare({"a": (model, guide)}, Data(x, y), plan=dataclasses.replace(SMALL, families=()))
    log_p = torch.distributions.Normal(y[:, None].float(), 2**0.5).log_prob(x).double().squeeze(1)
    torch.testing.assert_close(found.models["a"].test.elbo, log_p, rtol=1e-5, atol=1e-5)
    assert found.models["a"].annealed.log_p.sub(log_p[found.chosen]).abs().max() < 3
    assert bool((found.models["a"].test.khat == -math.inf).all())
    for text in (tables.text(found, PROTOCOL), tables.latex(found, PROTOCOL)):
        assert re.search(r"median.*exact", text)
        assert "-inf" not in text
        assert r"\infty" not in text


# Exact values ---------------------------------------------------------------------------------------------------------


def test_equal_largest_weights_have_no_tail_and_a_guide_of_all_equal_weights_is_exact():
    """Of a discrete latent many draws are alike; that says nothing of the guide."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)

    def guide(x, off=1.0):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=3 * x - 4.5 + math.log(3 / 7) + off))

    def best(x):
        guide(x, 0.0)

    found = compare(
        {"far": (model, guide), "best": (model, best)}, Data(torch.linspace(0.5, 2.5, 9)), plan=Plan((1, 99))
    )
    assert bool((found.models["far"].test.khat.median() == -math.inf).all())
    text = tables.text(found, PROTOCOL)
    assert re.search(r"k-hat, median +no tail +exact\n", text)
    assert "no tail: its largest weights are equal" in " ".join(text.split())


def test_khat_that_could_not_be_fitted_is_left_out_and_said():
    """As of discrete latents, of whose weights few exceed the rest."""
    values = torch.tensor([0.1, 0.2, 0.6, -math.inf] * 10 + [math.inf] * 5, dtype=torch.float64)
    found = comparison(some=[0.0] * 45, none=[0.0] * 45)
    some = evaluation([0.0] * 45, khat=values)
    some.ess[40:] = torch.tensor([7.0, 5.5, 9.0, 8.0, 6.0])
    found.models["some"] = Measured(some)
    found.models["none"] = Measured(evaluation([0.0] * 45, khat=values.new_full((45,), math.inf)))
    test = found.estimates("some")["test"]
    assert [test[f"khat.{p}"].mean for p in (10, 50, 90)] == [-math.inf, 0.1, 0.6]
    assert all(test[f"khat.{p}"].n == 40 for p in (10, 50, 90, "above"))
    assert test["khat.above"].mean == 0.25  # above 0.5, from 100 draws
    assert math.isnan(test["khat.10"].se)  # an end of its interval is infinite
    text, tex = " ".join(tables.text(found, PROTOCOL).split()), tables.latex(found, PROTOCOL)
    assert "k-hat, 10% no tail no fit k-hat, median 0.100" in text
    assert "some: 5 of the 45 data, whose ESS is at least 5.5, are left out of k-hat" in text
    assert "none: 45 of the 45 data, whose ESS is at least 1.0, are left out of k-hat" in text
    assert re.search(r"threshold & \$25\.0 \\pm .* & no fit", tex)
    assert not re.search(r"\binf|nan|\\infty", text + tex)
    unfit = {"mean": None, "se": None, "n": 0, "state": "no fit"}
    assert tables.summary(found, PROTOCOL, {})["runs"]["none"]["test"]["khat.50"] == unfit
    assert "none,,test,khat.50,,nan,nan,0," in tables.as_csv(found, PROTOCOL)


def test_too_few_data_for_the_error_of_a_quantile_are_said(whole):
    said = "no standard error of the 10% and 90% quantiles"
    assert said in " ".join(tables.text(whole, PROTOCOL).split())
    enough = comparison(a=[0.0] * 37)
    enough.models["a"] = Measured(evaluation([0.0] * 37, khat=torch.randn(37).double()))
    assert said not in " ".join(tables.text(enough, PROTOCOL).split())
    assert all(math.isfinite(enough.estimates("a")["test"][f"khat.{p}"].se) for p in (10, 50, 90))


def test_one_temperature_has_no_transitions_to_accept():
    vae = linear()
    found = compare({"a": (vae.model, vae.guide)}, Data(_x()), plan=Plan((1,), annealing=Annealing(1, 2, 1)))
    assert "acceptance" not in found.estimates("a")["ais"]
    assert "nan" not in tables.text(found, PROTOCOL)


class Wide(pvae.Prior):
    def forward(self, y=None):
        return dist.Normal(torch.tensor([1.0, -2.0]).to(self.at), torch.tensor([0.5, 3.0]).to(self.at)).to_event(1)

    def __init__(self, latent):
        super().__init__(latent)
        self.at = nn.Parameter(torch.zeros(()))


class Heavy(Wide):
    def forward(self, y=None):
        return dist.Laplace(self.at.expand(2), 1.0).to_event(1)


def decoder(*hidden):
    return pvae.MLPDecoder(2, (2, 3), hidden)


def test_a_linear_gaussian_model_is_solved():
    likelihood = pvae.Gaussian(decoder(), (2, 3), scale=0.7)
    found, (layer,) = linear_gaussian(Wide(2), likelihood), likelihood.decoder.layers
    w, m0, s0 = layer.weight.double(), torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    covariance = w @ s0.square().diag() @ w.mT + 0.7**2 * torch.eye(6)
    truth = torch.distributions.MultivariateNormal(w @ m0 + layer.bias, covariance).log_prob(x)
    torch.testing.assert_close(found.log_prob(x), truth, rtol=1e-6, atol=1e-6)
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("prior", "likelihood"),
    [
        (Heavy(2), pvae.Gaussian(decoder(), (2, 3))),
        (pvae.Normal(2), pvae.Bernoulli(decoder(), (2, 3))),
        (pvae.Normal(2), pvae.Gaussian(decoder(4), (2, 3))),
        (pvae.Normal(2), pvae.Gaussian(pvae.MLPDecoder(2, (2, 3), (4,), "tanh"), (2, 3))),
    ],
)
def test_other_models_have_no_closed_form(prior, likelihood):
    assert linear_gaussian(prior, likelihood) is None


def test_a_scale_for_each_pixel_has_no_closed_form():
    likelihood = pvae.Gaussian(decoder(), (2, 3), scale="pixel")
    with torch.no_grad():
        likelihood.raw_scale[0, 0] += 1
    assert linear_gaussian(pvae.Normal(2), likelihood) is None


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"particles": ()}, r"particles: found \[\]"),
        ({"particles": (0,)}, r"particles: found \[0\]"),
        ({"particles": (5, 1, 5)}, r"particles: found \[5, 1, 5\], expected different"),
        ({"train_particles": (0,)}, r"train_particles: found \[0\]"),
        ({"draws": 99}, "draws: found 99, expected at least the largest K, 100"),
        ({"start": "posterior"}, "start: found 'posterior', expected prior or guide"),
        ({"subset": 0}, "subset: found 0"),
        ({"information": -1}, "information: found -1"),
        ({"steps": 0}, "steps: found 0"),
    ],
)
def test_a_plan_that_cannot_be(wrong, message):
    with pytest.raises(pvae.InputError, match=message):
        Plan(**wrong)


def test_what_cannot_be_compared():
    x = torch.randn(5, 4)
    with pytest.raises(pvae.InputError, match="found no model"):
        compare({}, Data(x))
    with pytest.raises(pvae.InputError, match=r"linear0: exact: found shape \(3,\), expected .*\(5,\)"):
        compare(programs(0), Data(x), exact={"linear0": torch.zeros(3)})
    with pytest.raises(pvae.InputError, match="linear0: families: found neither annealing nor exact values"):
        compare(programs(0), Data(x), plan=Plan((1,), families=("mean_field",)))
    with pytest.raises(pvae.InputError, match="draws: found 20, expected at least 30, as k-hat needs"):
        evaluate(*programs(0)["linear0"], x, particles=[20], khat=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-math.inf, "linear: evaluate: the weights of datum 130 are zero, all of them: its log-likelihood is infinite"),
        (math.inf, "linear: evaluate: the weights of datum 130 are infinite: its log-likelihood is infinite"),
        (math.nan, "linear: evaluate: the log-likelihood of datum 130 is not a number"),
    ],
)
def test_weights_that_are_no_weights_name_model_datum_term_and_site(value, message):
    vae, x = linear(), torch.randn(CELL + 9, 4)
    x[CELL + 2, 0] = 50.0

    def broken(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, True), 1.0).to_event(1), obs=x[:, :1])
            pyro.factor("odd", torch.where(x[:, 0] > 40, value, 0.0))

    with pyro.validation_enabled(False), pytest.raises(pvae.InputError, match=f"{message}.*, at site 'odd'$"):
        compare({"linear": (broken, vae.guide)}, Data(x), plan=Plan((40,)))


def test_terms_that_only_together_are_no_number():
    none = torch.full((3, 2), -math.inf, dtype=torch.float64)
    zero = torch.zeros_like(none)
    terms = {"prior": none, "posterior": none, "likelihood": zero, "weight": none - none}
    pair = linear().model, linear().guide
    with pytest.raises(pvae.InputError, match="the log-weight of datum 7 is not a number"):
        check_weights("evaluate", terms, pair, [torch.zeros(2, 4)], nesting=1, first=7)


def test_a_few_weights_of_zero_are_no_error():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("x", torch.where(z[..., 0] > 0, 0.0, -math.inf) + 0 * x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    found = evaluate(model, guide, torch.randn(3, 4), particles=[1000])
    assert bool((found.elbo == -math.inf).all())
    torch.testing.assert_close(found.iw[1000].exp(), torch.full((3,), 0.5).double(), rtol=0, atol=0.08)


# Text -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("names", [["a"], ["vae", "iwae"], [f"run-{'x' * 9 * i}_{i}" for i in range(5)]])
def test_the_text_keeps_to_the_width(width, names):
    found = comparison(**{name: [1.0 + i, 2.0, 3.5 * i, 4.0] for i, name in enumerate(names)})
    text = tables.text(found, PROTOCOL, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.replace(" ", "").replace("\n", "").count("ELBO") >= len(names) // 3
    for i in range(len(names)):
        mean = np.mean([1.0 + i, 2.0, 3.5 * i, 4.0])
        assert f"{mean:.2f}" in text or f"{mean:.3f}" in text or f"{mean:.1f}" in text


def test_the_text_says_what_it_shows(whole):
    text = tables.text(whole, PROTOCOL, 100)
    assert "40 draws for each datum (seed 0); L_K is averaged over disjoint groups: 40 of K=1, 10 of K=4" in text
    assert "at most log N = 2.20" in text
    assert "annealed importance sampling from the prior: 3 of the test data, 20 temperatures, 3 chains, 2" in text
    assert "training, 5 data, 4 draws each" in text
    assert re.search(r"less linear0, paired by datum; below it wins/losses", text)
    assert "L_1 " not in text  # the ELBO
    row = next(line for line in text.splitlines() if line.startswith("  L_4"))
    for name in whole.models:
        assert " +- ".join(tables.plus_minus(whole.estimates(name)["test"]["iw.4"])) in row


def test_bounds_on_something_else_are_marked_wherever_they_stand_side_by_side():
    found = comparison(plain=[1.0, 2.0, 3.0, 4.0], labels=[2.0, 2.0, 3.5, 4.0], more=[2.0, 2.0, 3.5, 4.4])
    about = {"plain": "log p(x)", "labels": "log p(x|y)", "more": "log p(x|y)"}
    protocol = {**PROTOCOL, "bounds_on": about}
    lines = [" ".join(line.split()) for line in tables.text(found, protocol).splitlines()]
    assert lines.count("bounds on log p(x) log p(x|y) log p(x|y)") == 1
    at = lines.index("bounds on log p(x|y) log p(x|y)")
    assert lines[at + 1] == "less log p(x) less log p(x)"
    tex = tables.latex(found, protocol)
    assert r"bounds on & $\log p(x)$ & $\log p(x|y)$ & $\log p(x|y)$ \\" in tex
    assert r" &  & less $\log p(x)$ & less $\log p(x)$ \\" in tex
    found_rows = list(csv.DictReader(io.StringIO(tables.as_csv(found, protocol))))
    marks = {(row["run"], row["less"]): row["bounds_on"] for row in found_rows if row["quantity"] == "elbo"}
    assert marks["labels", ""] == "log p(x|y)"
    assert marks["labels", "plain"] == "log p(x|y) less log p(x)"
    assert marks["more", "labels"] == "log p(x|y)"
    of_data = list(csv.DictReader(io.StringIO(tables.data_csv(found, protocol))))
    assert [row["bounds_on"] for row in of_data[::4]] == list(about.values())
    alike = {**PROTOCOL, "bounds_on": dict.fromkeys(about, "log p(x)")}
    assert "bounds on" not in tables.text(found, alike)


def test_the_best_are_of_bounds_on_the_same_thing():
    found = comparison(plain=[1.0, 2.0, 3.0, 4.0], other=[0.0, 1.0, 2.0, 3.0], labels=[5.0, 6.0, 7.0, 8.0])
    tex = tables.latex(
        found, {**PROTOCOL, "bounds_on": {"plain": "log p(x)", "other": "log p(x)", "labels": "log p(x|y)"}}
    )
    (elbo,) = [line for line in tex.splitlines() if line.startswith("ELBO & $")]
    assert elbo == r"ELBO & $\mathbf{2.50} \pm 0.65$ & $1.50 \pm 0.65$ & $6.50 \pm 0.65$ \\"
    assert "Bold: the highest bound on each of these, and those within" in tex
    assert r"$\mathbf{6.50}" in tables.latex(found, PROTOCOL)


def test_a_point_mass_has_no_khat():
    found = compare(programs(0), Data(_x()), plan=Plan((1, 30)))
    text = tables.text(found, {**PROTOCOL, "numbers": evaluate_room.NO_BOUNDS})
    assert re.search(r"k-hat, median +-\n", text)
    assert re.search(r"k-hat > threshold +-\n", text)
    assert "Pareto k-hat is not given: a point mass has no weights\n" in text
    assert "above the threshold" not in text


def test_why_a_khat_is_no_number_is_in_the_json():
    vae, x = linear(), _x()
    truth = vae.exact()

    def guide(x):  # the posterior: all weights are equal
        posterior = truth.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(posterior.loc, posterior.covariance_matrix))

    found = compare({"a": (vae.model, vae.guide), "b": (vae.model, guide)}, Data(x), plan=Plan((1, 40)))
    gone = dataclasses.replace(found.models["a"].test, khat=torch.full((len(x),), -math.inf))
    none = dataclasses.replace(gone, khat=torch.full((len(x),), math.inf))
    more = {name: dataclasses.replace(found.models["a"], test=test) for name, test in (("c", gone), ("d", none))}
    found = dataclasses.replace(found, models={**found.models, **more})
    said = {name: parts["test"]["khat.50"] for name, parts in tables.summary(found, PROTOCOL, {})["runs"].items()}
    assert "state" not in said["a"]
    assert [(said[name]["mean"], said[name]["state"]) for name in "cd"] == [(None, "no tail"), (None, "no fit")]


@pytest.mark.parametrize(("n", "end"), [(1, ""), (2, "s")])
def test_one_is_not_many(n, end):
    plan = Plan((1,), draws=n, subset=2, annealing=Annealing(n, n, n), information=n)
    text = " ".join(tables.text(compare(programs(0), Data(_x()), plan=plan), PROTOCOL).split())
    assert f"{n} draw{end} for each datum" in text
    assert f"{n} temperature{end}, {n} chain{end}, {n} leapfrog step{end}; log p(x) from below" in text
    assert f"from {n} draw{end}, at most" in text


def test_too_few_draws_for_khat_are_said():
    found = compare(programs(0), Data(_x()), plan=Plan((1, 29)))
    text = " ".join(tables.text(found, PROTOCOL).split())
    assert "Pareto k-hat is not given: it needs at least 30 draws" in text
    assert "k-hat, median" not in text
    assert tables.summary(found, PROTOCOL, {})["settings"]["khat_threshold"] is None
    assert "k-hat, median" in tables.text(compare(programs(0), Data(_x()), plan=Plan((1, 30))), PROTOCOL)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Estimate(-98.96123, 0.2512, 9), ("-98.96", "0.25")),
        (Estimate(-98.96123, 2.512, 9), ("-99.0", "2.5")),
        (Estimate(-98.96123, 25.12, 9), ("-99", "25")),
        (Estimate(1e-5, 3.14e-6, 9), ("0.0000100", "0.0000031")),
        (Estimate(1.0, 0.0, 9), ("1.000", "0.000")),
        (Estimate(-math.inf, math.nan, 9), ("-inf", "-")),
    ],
)
def test_errors_have_two_digits(value, shown):
    assert tables.plus_minus(value) == shown


# Files ----------------------------------------------------------------------------------------------------------------


def test_json_has_every_number_and_what_it_rests_on(whole):
    def refuse(word):
        raise AssertionError(word)

    text = json.dumps(tables.summary(whole, PROTOCOL, {"python": "3"}), allow_nan=False)
    found = json.loads(text, parse_constant=refuse)
    for name in whole.models:
        for part, values in whole.estimates(name).items():
            for key, value in values.items():
                assert found["runs"][name][part][key]["mean"] == value.mean
                assert found["runs"][name][part][key]["n"] == value.n
    (pair,) = [each for each in found["paired"] if each["quantity"] == "iw.4"]
    expected = whole.differences()["linear1", "linear0"]["iw.4"]
    assert (pair["a"], pair["b"], pair["mean"], pair["p_value"]) == (
        "linear1",
        "linear0",
        expected.mean,
        expected.p_value,
    )
    assert found["settings"]["annealing"]["temperatures"] == 20
    assert found["settings"]["draws"] == 40
    assert found["runs"]["linear0"]["test"]["active_units"] == whole.models["linear0"].test.active_units


def test_csv_has_the_same_numbers(whole):
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(whole, PROTOCOL))))
    found = {(row["run"], row["less"], row["part"], row["quantity"], row["K"]): row for row in rows}
    assert len(found) == len(rows)
    row = found["linear1", "", "test", "iw", "4"]
    value = whole.estimates("linear1")["test"]["iw.4"]
    assert (float(row["mean"]), float(row["se"]), row["n"], row["draws"]) == (value.mean, value.se, "9", "40")
    assert found["linear1", "", "train", "iw", "4"]["draws"] == "4"
    assert found["linear1", "", "ais", "log_p - iw", "4"]["n"] == "3"
    assert (
        int(found["linear1", "linear0", "paired", "elbo", ""]["wins"])
        == whole.differences()["linear1", "linear0"]["elbo"].wins
    )


def test_the_csv_of_data_has_a_row_for_each(whole):
    rows = list(csv.DictReader(io.StringIO(tables.data_csv(whole, PROTOCOL))))
    assert [(row["run"], row["datum"]) for row in rows] == [(name, str(i)) for name in whole.models for i in range(9)]
    test = whole.models["linear1"].test
    for column, value in {"iw.4": test.iw[4], "iw.4.se": test.se["iw.4"], "khat": test.khat, "ess": test.ess}.items():
        assert [float(row[column]) for row in rows[9:]] == value.tolist()


def test_netcdf_opens_with_arviz(whole, tmp_path):
    write_results(tmp_path / "x.nc", tables.arrays(whole), {"data": "toy"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arviz 0.23 announces arviz 1
        import arviz
    found = arviz.from_netcdf(tmp_path / "x.nc")
    test = found["test"]
    assert dict(test["iw"].sizes) == {"run": 2, "datum": 9, "K": 2}
    one = test["iw"].sel(run="linear1", K=4).values
    np.testing.assert_array_equal(one, whole.models["linear1"].test.iw[4].numpy())
    np.testing.assert_array_equal(test["khat"].sel(run="linear0").values, whole.models["linear0"].test.khat.numpy())
    assert bool(np.isnan(test["log_p"].sel(run="linear0")).all())
    assert found["ais"]["log_p"].datum.values.tolist() == whole.chosen.tolist()
    assert dict(found["ais"]["log_weight"].sizes) == {"run": 2, "chain": 3, "datum": 3}
    gap, _ = whole.models["linear1"].gap.columns()["amortization.mean_field"]
    np.testing.assert_array_equal(found["gap"]["amortization_mean_field"].sel(run="linear1").values, gap.numpy())
    error = test["iw_se"].sel(run="linear1", K=1).values
    np.testing.assert_array_equal(error, whole.models["linear1"].test.se["iw.1"].numpy())
    assert dict(found["train"]["iw_se"].sizes) == {"run": 2, "datum": 5, "K": 2}


def test_the_table_for_a_paper():
    found = comparison(first=[1.0, 2.0, 3.0, 4.0], a_b=[1.5, 2.5, 3.5, 4.5], c=[2.0, 2.0, 3.5, 4.4])
    text = tables.latex(found, PROTOCOL)
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert r" & first & a\_b & c \\" in text
    # c is -0.025 +- 0.18 of a_b's: not to be told from it
    assert body[0] == r"ELBO & $2.50 \pm 0.65$ & $\mathbf{3.00} \pm 0.65$ & $\mathbf{2.98} \pm 0.59$ \\"
    assert body[1] == r"$L_{10}$ & $3.50 \pm 0.65$ & $\mathbf{4.00} \pm 0.65$ & $\mathbf{3.98} \pm 0.59$ \\"
    units, _, title, *paired = body[body.index(r"active units & 1 of 2 & 1 of 2 & 1 of 2 \\") :]
    assert units.startswith("active")
    assert title == r"\multicolumn{4}{l}{\emph{less first}} \\"
    assert (
        r"Less first, paired by datum; below it wins/losses, and p of a two-sided sign test. Bold: the highest" in text
    )
    assert paired[:2] == [
        r"ELBO &  & $+0.500 \pm 0.000$ & $+0.48 \pm 0.21$ \\",
        r" &  & 4/0, p=0.12 & 3/0, p=0.25 \\",
    ]
    assert r"test data of toy\_1" in text
    assert r" & x-{}-y \\" in tables.latex(comparison(**{"x--y": [1.0, 2.0]}), PROTOCOL)
    assert r"\label{tab:bounds-toy-1-first-a-b-c}" in text
    assert r"mean $\pm$ standard error" in text


def test_one_datum_has_no_standard_error():
    found = comparison(a=[-1.0], b=[-2.0])
    text, tex = tables.text(found, PROTOCOL), tables.latex(found, PROTOCOL)
    assert re.search(r"ELBO +-1.000 \+- - +-2.000 \+- -\n", text)
    assert r"ELBO & $\mathbf{-1.000}$ & $-2.000$ \\" in tex
    for words in (text, tex):
        assert "Of one datum there is no standard error" in words
        assert "nan" not in words


@pytest.mark.parametrize("one", [False, True])
def test_the_table_for_a_paper_is_well_formed(whole, one):
    found = dataclasses.replace(whole, models={"L_x%_~^\\{|a_b": whole.models["linear1"]}) if one else whole
    text = tables.latex(found, PROTOCOL)
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert text.replace(r"\$", "").count("$") % 2 == 0
    assert re.findall(r"\\(begin|end)\{(\w+)\}", text) == [
        ("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table")
    ]  # fmt: skip
    columns = 1 + len(found.models)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(row.count("&") == columns - 1 or row.startswith(rf"\multicolumn{{{columns}}}") for row in rows)
    body = text.partition("\\toprule\n")[2].partition("\n\\bottomrule")[0].splitlines()
    assert [line for line in body if line != r"\midrule"] == rows
    assert max(map(len, re.findall(r"\\emph\{(.*?)\}", text))) < 50  # such a line is never broken
    assert "--" not in text
    assert (r"\mathbf" in text) is not one
    assert (r" & L\_x\%\_\textasciitilde{}\textasciicircum{}\textbackslash{}\{$|$a\_b \\" in text) is one
    for formula in re.findall(r"\$[^$]+\$", text.replace(r"\$", "")):
        MathTextParser("path").parse(formula)
    assert not re.search(r"(?<!\\)[%#]", "\n".join(text.splitlines()[1:]))


def test_the_plate_of_the_data_is_the_models():
    """Two hold every latent, and the model's data are in one."""

    def guide(x):
        with pyro.plate("dims", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", dist.Normal(x.T, 1e-3))

    def model(x):
        data = pyro.plate("data", len(x), dim=-1)
        with pyro.plate("dims", 3, dim=-2), data:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with data:
            pyro.sample("x", dist.Normal(z.mT.unsqueeze(-3), 1.0).to_event(1), obs=x)

    found = compare({"one": (model, guide)}, Data(torch.arange(15.0).reshape(5, 3)), plan=Plan((1, 4)))
    assert found.estimates("one")["test"]["information"].mean == pytest.approx(math.log(5))


def test_a_guide_without_an_inverse_has_all_but_the_mutual_information():
    flow = dist.transforms.Planar(2)
    vae = LinearVAE(4, 2)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(x[:, :2], 1.0).to_event(1), [flow]))

    found = compare({"planar": (vae.model, guide), **programs(0)}, Data(torch.randn(9, 4)), plan=Plan((1, 4)))
    assert "information" not in found.estimates("planar")["test"]
    assert "information" in found.estimates("linear0")["test"]
    text = " ".join(tables.text(found, PROTOCOL).split())
    assert re.search(r"mutual information - \d", text)
    assert "planar: mutual information is left out: site 'z': TransformedDistribution has no inverse" in text
    assert "Mutual information: from 9 draws" in text
    alone = Comparison({"planar": found.models["planar"]}, found.plan, 9)
    text = " ".join(tables.text(alone, PROTOCOL).split())
    assert re.search(r"mutual information - ", text)
    assert "Mutual information: from" not in text
    for write in (tables.as_csv, tables.latex):
        assert write(alone, PROTOCOL)
    assert tables.summary(alone, PROTOCOL, {})


def test_a_latent_that_is_not_used_is_told_of():
    found = comparison(a=[-1.0, -2.0], b=[-1.0, -3.0])
    found.models["b"] = Measured(dataclasses.replace(found.models["b"].test, latent_variance=torch.zeros(2)))
    said = [note for note in rows.notes(found, PROTOCOL) if "active" in note]
    assert said == [f"b: {evaluate_room.UNUSED}"]
    unknown = torch.full((2,), math.nan)
    one_draw = dataclasses.replace(found.models["b"].test, latent_variance=unknown, latent_se=unknown)
    found.models["b"] = Measured(one_draw)
    (said,) = [note for note in rows.notes(found, PROTOCOL) if "active" in note]
    assert said.startswith("b: its posterior means are averages of draws")
    assert evaluate_room.units(unknown, unknown) == "- of 2"
    assert tables.summary(found, PROTOCOL, {})["runs"]["b"]["test"]["active_units"] is None


def test_wide_numbers_stand_apart():
    found = comparison(a=[-33.0, -34.0, -32.0], b=[-3e14, 1e13, 3.0])
    out = tables.text(found, PROTOCOL)
    lines = [line for line in out.splitlines() if line.startswith("  ELBO ")]
    assert len(re.split(" {2,}", lines[0].strip())) == 3, lines[0]


@pytest.mark.parametrize(
    ("p", "shown"),
    [(1e-40, r"$p = 10^{-40}$"), (3.2e-5, r"$p = 3 \cdot 10^{-5}$"), (0.25, "p=0.25"), (0.0, r"$p < 10^{-300}$")],
)
def test_small_p_values_are_powers_of_ten(p, shown):
    written = tables.tex.escape(f"3/4, {rows._p(p)}")
    assert written == f"3/4, {shown}"
    for formula in re.findall(r"\$[^$]+\$", written):
        MathTextParser("path").parse(formula)


def test_levels_are_in_bits_as_well():
    found = comparison(a=[-1.0, -3.0], b=[-1.0, -2.0])
    protocol = PROTOCOL | {"level_volume": {"a": 0.0, "b": None}, "dimensions": 4, "epoch": {"a": 1200, "b": 7}}
    out = tables.text(found, protocol)
    (bits,) = [line.split() for line in out.splitlines() if "bits / dim" in line]
    assert bits[:3] == ["bits", "/", "dim,"]
    mean = -(-2.0 + 1) / (4 * math.log(2))
    assert bits[4:] == [f"{mean:.2f}", "+-", f"{1 / (4 * math.log(2)):.2f}"]
    assert [line.split() for line in out.splitlines() if "epoch" in line] == [["epoch", "1,200", "7"]]
    written = tables.summary(found, protocol, {})["runs"]
    assert written["a"]["test"]["bits_per_dim"]["mean"] == pytest.approx(mean)
    assert "bits_per_dim" not in written["b"]["test"]


def test_annealing_and_fits_below_what_they_bound_are_said():
    low, zero = Estimate(-1.0, 0.1, 9), Estimate(-0.1, 0.1, 9)
    parts = {
        "ais": {"log_p": low, "log_p - elbo": low, "log_p - iw.5": zero},
        "gap": {"amortization.flow": low, "amortization.mean_field": zero, "approximation.flow": low},
    }
    ais, approximation, gap = rows._below_zero("run", parts)
    assert ais.startswith("run: log p(x) - ELBO is below zero: annealing, a bound too, is the looser")
    assert approximation.startswith("run: approximation, flow is below zero: annealing, a bound too, is the looser")
    assert len(list(rows._below_zero("run", {**parts, "exact": {"log_p": low}}))) == 2
    assert gap.startswith(
        "run: amortization, flow is below zero: where the run's guide is of a wider or another family"
    )
    assert gap.endswith("where it is of this one, the guides of each datum are not yet fitted: raise --steps")
    assert rows._p(0.0) == "p<1e-300"


def test_a_flow_below_what_its_family_contains_is_said():
    zero = torch.zeros(3)
    errors = dict.fromkeys(("log_p", "elbo", "mean_field", "flow"), zero + 0.1)

    def said(**local):
        return list(rows._worse_than_contained("run", Measured(None, gap=Gap(zero, zero, local, errors))))

    low = torch.tensor([0.0, -0.5, -1.0])
    expected = "run: the flow of 1 of the 3 data is worse than the mean-field guide, which it could be: raise --steps"
    assert said(mean_field=zero, flow=low) == [expected]
    assert said(mean_field=zero, flow=zero) == said(flow=low) == []


def test_a_fit_that_is_too_short_is_in_the_table():
    vae = LinearVAE(6, 3)
    plan = Plan(particles=(1, 5), annealing=Annealing(temperatures=2, chains=1), families=("flow",), subset=40, steps=1)
    found = compare({"short": (vae.model, vae.guide)}, Data(3 * torch.randn(40, 6)), plan=plan)
    assert "short: amortization, flow is below zero" in " ".join(tables.text(found, PROTOCOL).split())


def test_a_guide_of_a_wider_family_than_the_fitted_one_is_told_of():
    """It is the posterior, of dependent latents: no independent ones are as good, however long they are fitted."""
    vae, x = linear(), torch.randn(20, 4)
    truth = vae.exact()

    def guide(x):
        posterior = truth.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(posterior.loc, posterior.covariance_matrix))

    plan = Plan(particles=(1,), families=("mean_field",), subset=20, steps=100)
    found = compare({"wide": (vae.model, guide)}, Data(x), plan=plan, exact={"wide": truth.log_prob(x)})
    said = (
        "wide: amortization, mean-field is below zero: where the run's guide is of a wider or another family, that is"
    )
    assert f"{said} no error of the fit (--families flow" in " ".join(tables.text(found, PROTOCOL).split())
    assert f"{said} no error of the fit (-{{}}-families flow" in tables.latex(found, PROTOCOL)


UNFIT = {
    "a point": (pvae.Normal(2), guides.Delta(pvae.mlp(3, [], 2), 2), "m: site 'z': the guide is a point mass"),
    "discrete": (priors.Bernoulli(2), guides.Bernoulli(pvae.mlp(3, [], 2), 2), "m: site 'z': discrete"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_has_no_gap_is_refused_before_the_work(case, monkeypatch):
    prior, guide, message = UNFIT[case]
    vae = pvae.VAE(prior, pvae.Bernoulli(pvae.mlp(2, [], 3), (3,)), guide)
    annealing, data = Annealing(temperatures=2, chains=2, leapfrog=1), Data(torch.ones(2, 3))
    plan = Plan(particles=(1, 2), annealing=annealing, families=["mean_field"])
    with monkeypatch.context() as patched:
        patched.setattr("pvae.comparison.evaluate", None)
        with pytest.raises(pvae.InputError, match=message):
            compare({"m": (vae.model, vae.guide)}, data, plan=plan)
    if case == "a point":  # log p(x) itself can be had
        plan = Plan(particles=(1, 2), annealing=annealing)
        assert compare({"m": (vae.model, vae.guide)}, data, plan=plan).models["m"].annealed is not None


def test_the_rate_of_each_layer_stands_beside_a_model_of_one():
    one = evaluation([-2.0, -3.0])
    rates = {"z1": torch.tensor([1.0, 2.0]), "z2": torch.tensor([0.5, 1.5])}
    layers = {site: evaluate_room.Layer(rate, torch.ones(2), torch.zeros(2)) for site, rate in rates.items()}
    several = dataclasses.replace(one, layers=layers)
    found = Comparison({"one": Measured(one), "several": Measured(several)}, Plan(particles=(1,)), 2, torch.arange(0))
    assert found.estimates("several")["test"]["rate.z2"].mean == 1.0
    assert "rate.z2" not in found.estimates("one")["test"]
    (row,) = [line for line in tables.text(found, PROTOCOL).splitlines() if line.strip().startswith("rate, z1")]
    assert row.split() == ["rate,", "z1", "1.50", "+-", "0.50"]
    assert "rate, z2" in tables.latex(found, PROTOCOL)
    assert "rate.z2" in tables.as_csv(found, PROTOCOL)
