"""Parts that do not fit one another, and what a model is started from: refused where it is made, by name."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import pvae
from pvae import guides, priors
from pvae.data import load
from pvae.distributions.discrete import RelaxedBernoullis, RelaxedOneHots
from pvae.guides.full_covariance import CovarianceNormal
from pvae.guides.low_rank import LowRankNormal


def vae(**parts):
    made = {
        "prior": pvae.Normal(2),
        "likelihood": pvae.Bernoulli(nn.Linear(2, 6), (6,)),
        "guide": pvae.MeanField(nn.Linear(6, 4), 2),
    }
    return pvae.VAE(**{**made, **parts})


# draws that are known again -------------------------------------------------------------------------------------------

KNOWN = {
    "iaf": lambda: guides.IAF(nn.Linear(6, 6), 2)(torch.rand(3, 6)),
    "maf": lambda: guides.MAF(nn.Linear(6, 6), 2)(torch.rand(3, 6)),
    "realnvp": lambda: priors.RealNVP(2)().expand([3]),
    "spline": lambda: priors.Spline(2)().expand([3]),
    "full_covariance": lambda: guides.FullCovariance(nn.Linear(6, 6), 2)(torch.rand(3, 6)),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", KNOWN)
def test_a_draw_that_was_changed_in_place_is_scored_as_what_it_is_now(kind, grad):
    torch.manual_seed(0)
    q = KNOWN[kind]()
    with torch.set_grad_enabled(grad):
        z = q.rsample()
        before = q.log_prob(z)
        with torch.no_grad():
            torch.testing.assert_close(q.log_prob(z.clone()), before, rtol=1e-3, atol=1e-3)
        z[..., 0] = 3.0
        after = q.log_prob(z)
        assert (after - before).abs().min() > 0.1
        torch.testing.assert_close(after, q.log_prob(z.clone()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KNOWN)
def test_draws_are_known_again_under_inference_mode(kind):
    q = KNOWN[kind]()
    with torch.inference_mode():
        z = q.sample()
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=1e-3, atol=1e-3)


def test_dependent_normals_have_the_shapes_that_they_are_expanded_to():
    loc = torch.randn(4, 3)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.2, 0.1, 2.0]]).expand(4, 3, 3)
    for q in (CovarianceNormal(loc, root), LowRankNormal(loc, torch.rand(4, 3) + 0.5, torch.randn(4, 3, 2))):
        wide = q.expand((7, 4))
        assert wide.covariance_matrix.shape == (7, 4, 3, 3)
        assert wide.half_log_det.shape == wide.log_prob(wide.sample()).shape == (7, 4)
        torch.testing.assert_close(wide.half_log_det, 0.5 * torch.logdet(wide.covariance_matrix), rtol=1e-4, atol=1e-4)


# what stands for a datum ----------------------------------------------------------------------------------------------


def layered(guide, prior):
    def make(inputs, latent):
        return guide(nn.Linear(inputs, guide.outputs_for(latent) * latent), latent)

    return pvae.Hierarchy(
        prior(3), [make(3, 4)], pvae.Bernoulli(nn.Linear(4, 6), (6,)), pvae.BottomUp([make(6, 4), make(4, 3)])
    )


def test_what_stands_for_a_datum_lies_where_draws_do_in_every_layer():
    torch.manual_seed(0)
    model, x = layered(guides.Bernoulli, priors.Bernoulli), torch.rand(20, 6).round()
    code = model.code(x)
    assert set(code.unique().tolist()) <= {0.0, 1.0}
    first = model.encode(x)["z1"]
    torch.testing.assert_close(code, (first.mean > 0.5).float())
    above = model.posterior.guides[1](code)  # the layer above is inferred from it
    torch.testing.assert_close(model.encode(x)["z2"].mean, above.mean)
    torch.testing.assert_close(model.means(x)["z1"], first.mean)
    torch.testing.assert_close(model.reconstruct(x), model.likelihood(code).mean)


def test_of_normal_layers_it_is_the_mean():
    model, x = layered(pvae.MeanField, pvae.Normal), torch.rand(5, 6)
    torch.testing.assert_close(model.code(x), model.means(x)["z1"], rtol=0, atol=0)


# what a model is started from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 6), r"x: found shape \(0, 6\), expected \(data, 6\), one or more"),
        (torch.zeros(6), r"x: found shape \(6,\), expected \(data, 6\): a single datum is x\[None\]"),
        (torch.zeros(5, 2, 3), r"x: found shape \(5, 2, 3\)"),
        (torch.tensor(1.0), r"x: found shape \(\)"),
        ([[0.0] * 6], "x: found list, expected a tensor"),
        (torch.zeros(5, 6, dtype=torch.int64), "x: found"),
        (torch.zeros(5, 6).index_fill(0, torch.tensor(3), math.nan), "x: datum 3 has values that are not finite"),
    ],
)
def test_a_model_is_started_from_data_of_its_likelihood(x, message):
    for model in (vae(), layered(pvae.MeanField, pvae.Normal)):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(pvae.InputError, match=message):
            model.initialize(x)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])


# parts that do not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: vae(prior=pvae.MeanField(nn.Linear(6, 4), 2), guide=pvae.Normal(2)),
            "prior: found the guide .*MeanField, expected a prior",
        ),
        (
            lambda: vae(likelihood=pvae.Bernoulli(nn.Linear(2, 6), (2, 3))),
            "guide: takes data of 1 dimensions, expected the likelihood's 2: give it event_dim=2",
        ),
        (lambda: pvae.Normal(0), "latent: found 0, expected at least 1"),
        (lambda: pvae.MeanField(nn.Linear(6, 4), 2.0), "latent: found 2.0, expected a whole number"),
        (lambda: priors.ClassNormal(2, condition=None), "condition: found none, expected one"),
        (lambda: pvae.Label.of(torch.empty(0, dtype=torch.int64)), "label: found int64 of shape"),
        (lambda: pvae.Covariates.of(torch.empty(0, 2)), "covariates: found float32 of shape"),
        (
            lambda: pvae.Label(3)(torch.ones(2, dtype=torch.int16)),
            "y: found int16 .*, expected whole numbers .*, as int64",
        ),
        (
            lambda: pvae.ConditionedDecoder(pvae.MLPDecoder(2, (4,)), pvae.Label(3)),
            r"decoder: MLPDecoder takes 2 numbers, expected those of a latent and 3 of Label: make it with latent \+ 3",
        ),
        (lambda: pvae.BottomUp([nn.Linear(6, 2)]), "guide: found Linear of z1, expected a pvae.Part"),
        (lambda: pvae.BottomUp([]), "BottomUp: found 0 guides and 0 networks"),
        (lambda: pvae.TopDown([pvae.MeanField(nn.Linear(6, 4), 2)]), "TopDown: found 1 guides and 0 networks"),
        (lambda: pvae.mlp(4, [8], 2, activation=nn.ReLU), "activation: unknown name"),
        (lambda: pvae.Gaussian(nn.Linear(2, 6), (6,), scale=None), "scale: found None, expected"),
        (lambda: pvae.Gaussian(nn.Linear(2, 6), (6,), scale=math.inf), "scale: found inf, expected"),
        (lambda: priors.Laplace(2, scale=math.inf), "scale: found inf, expected a finite number"),
        (lambda: pvae.MeanField(nn.Linear(6, 4), 2, max_scale=math.inf), "min_scale, max_scale: found 0.0001, inf"),
        (lambda: priors.RelaxedBernoulli(2, temperature=0.001), "temperature: found 0.001, expected at least 0.01"),
        (lambda: pvae.data.dequantize(torch.rand(3), "uniform"), "dequantize: found torch.float32, expected stored"),
        (lambda: pvae.testing.check_prior(pvae.Normal(2), skip="fast"), r"skip: found 'fast', expected .* \['fast'\]"),
        (lambda: vae().sample(-1), "n: found -1, expected at least 0"),
        (lambda: vae().reconstruct(np.zeros((5, 6))), "x: found ndarray, expected a tensor"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(wrong, message):
    with pytest.raises(pvae.InputError, match=message) as found:
        wrong()
    assert "\n" not in str(found.value)


def test_one_array_may_have_any_name_that_is_not_that_of_labels(tmp_path):
    for name in ("yale", "years", "images"):
        np.savez(tmp_path / "data.npz", **{name: np.random.default_rng(0).random((50, 4))})
        assert load(tmp_path / "data.npz").train.x.shape[1:] == (4,)
    np.savez(tmp_path / "data.npz", y_train=np.zeros((50, 4)))
    with pytest.raises(pvae.InputError, match="found arrays y_train; expected x"):
        load(tmp_path / "data.npz")


# numbers at the ends of what there is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e6])
def test_covariates_of_any_size_are_brought_to_scale(scale):
    torch.manual_seed(0)
    y = scale * torch.randn(1000, 1)
    found = pvae.Covariates.of(y)(y)
    torch.testing.assert_close(found.std(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)


def test_covariates_that_do_not_differ_are_near_zero():
    for y in (torch.full((100, 1), 0.1), torch.full((100, 1), 1e6 + 0.3)):
        assert pvae.Covariates.of(y)(y).abs().max() < 1e-6 * y.max()


@pytest.mark.parametrize(("temperature", "logit"), [(0.01, 20.0), (0.05, 30.0), (0.5, 30.0)])
def test_the_rate_of_relaxed_draws_is_that_of_their_kl_at_the_lowest_temperatures(temperature, logit):
    """KL of the logistic v = (l + e) / t does not depend on t: E[log q - log p] of e + l against e."""
    torch.manual_seed(0)
    q, p = (RelaxedBernoullis(temperature, torch.tensor([each])) for each in (logit, 0.0))
    z = q.sample((100_000,))
    found = q.log_prob(z) - p.log_prob(z)
    noise = torch.distributions.TransformedDistribution(
        torch.distributions.Uniform(torch.tensor(0.0, dtype=torch.float64), 1.0),
        [torch.distributions.transforms.SigmoidTransform().inv],
    )
    e = noise.sample((100_000,))
    exact = noise.log_prob(e) - noise.log_prob(e + logit)
    error = math.hypot(found.std() / len(found) ** 0.5, exact.std() / len(exact) ** 0.5)
    assert abs(found.mean() - exact.mean()) < 4 * error + 0.01 * logit


def test_relaxed_draws_take_a_list_of_a_shape():
    assert RelaxedOneHots(0.5, torch.zeros(2, 5)).sample((3,)).shape == (3, 10)
    for member in (pvae.likelihoods.ContinuousBernoulli, pvae.likelihoods.LogitNormal):
        made = member(nn.Linear(2, member.outputs * 6), (6,))
        assert made(torch.zeros(4, 2)).sample([2]).shape == (2, 4, 6)


@pytest.mark.parametrize("errors", [[0.1, 0.1, 0.1], [-0.1, 0.1], -1.0])
def test_errors_of_other_units_are_refused(errors):
    with pytest.raises(pvae.InputError, match=r"errors: found shape .*, expected .*, each at least 0"):
        pvae.plots.active_units([1.0, 2.0], errors=errors)


def test_signals_of_no_particles_are_refused():
    with pytest.raises(pvae.InputError, match="ks: found 0, expected at least 1 particle"):
        pvae.plots.signal_against_k([0, 4], {"iwae": [0.8, 0.2]})
