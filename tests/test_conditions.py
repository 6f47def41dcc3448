"""Models conditioned on labels or covariates: what parts see of y, and that it is used."""

import copy

import numpy as np
import pyro
import pytest
import torch
from commands import refused
from torch import nn

import pvae
from pvae import build, compare, config, fit, load, sample
from pvae.conditions import Condition
from pvae.data import pixels
from pvae.errors import InputError
from pvae.evaluate import evaluate

CLASSES, LATENT, SIZE = 3, 2, 4
QUIET = ["--epochs", "1", "--eval-particles", "1,2", "--compile", "off"]


def conditioned(prior=None, gradient_width=5):
    """A small model whose decoder and encoder take labels."""
    torch.manual_seed(0)
    label = pvae.Label(CLASSES)
    decoder = pvae.MLPDecoder(LATENT + CLASSES, (SIZE,), [gradient_width])
    encoder = pvae.MLPEncoder((SIZE,), 2 * LATENT, [gradient_width], context=CLASSES)
    return pvae.VAE(
        prior or pvae.Normal(LATENT),
        pvae.Bernoulli(pvae.ConditionedDecoder(decoder, label), (SIZE,)),
        pvae.MeanField(pvae.ConditionedEncoder(encoder, label), LATENT),
    )


def exact():
    """A linear-Gaussian model with a mean for each class, its exact guide, and log p(x|y)."""
    torch.manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64))
    weight, b, s2 = q[:, :LATENT] * torch.tensor([2.0, 0.7]), torch.randn(SIZE, CLASSES).double(), 0.3
    precision = weight.square().sum(0) / s2 + 1
    label = pvae.Label(CLASSES)
    decoder = pvae.MLPDecoder(LATENT + CLASSES, (SIZE,), [])
    encoder = pvae.MLPEncoder((SIZE,), 2 * LATENT, [], context=CLASSES)
    guide = pvae.MeanField(pvae.ConditionedEncoder(encoder, label), LATENT).double()
    vae = pvae.VAE(
        pvae.Normal(LATENT), pvae.Gaussian(pvae.ConditionedDecoder(decoder, label), (SIZE,), scale=s2**0.5), guide
    ).double()
    with torch.no_grad():
        decoder.layers[0].weight.copy_(torch.cat([weight, b], 1))
        decoder.layers[0].bias.zero_()
        to_mean = weight.T / s2 / precision[:, None]
        encoder.layers[0].weight.zero_()
        encoder.layers[0].weight[:LATENT] = torch.cat([to_mean, -to_mean @ b], 1)
        low, high = guide.scale.low, guide.scale.high
        share = (precision.rsqrt() - low) / (high - low)
        encoder.layers[0].bias.copy_(torch.cat([torch.zeros(LATENT).double(), share.logit() + guide.scale._shift]))
    covariance = weight @ weight.T + s2 * torch.eye(SIZE)
    return vae, lambda x, y: torch.distributions.MultivariateNormal(b.T[y], covariance).log_prob(x)


@pytest.fixture
def covariates(tmp_path):
    """Vectors that follow one of two numbers beside them."""
    rng = np.random.default_rng(0)
    y = rng.normal(3.0, 2.0, (300, 2))
    np.savez(tmp_path / "c.npz", x=(y[:, :1] + 0.1 * rng.normal(size=(300, 5))).astype(np.float32), y=y)
    return tmp_path / "c.npz"


# What parts see -------------------------------------------------------------------------------------------------------


def test_under_the_exact_guide_every_weight_is_the_conditional_density():
    vae, log_p = exact()
    x, y = torch.randn(6, SIZE).double(), torch.tensor([0, 1, 2, 2, 1, 0])
    log_w = vae.log_weights(x, y, particles=3).log_w
    torch.testing.assert_close(log_w, log_p(x, y).expand(3, 6))
    assert (log_p(x, y) - log_p(x, (y + 1) % CLASSES)).abs().min() > 1e-3  # another label is another number


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_an_encoder_sees_its_context_at_any_leading_dimensions(network):
    torch.manual_seed(0)
    encoder = pvae.base.lookup("encoder", network)((6, 5), 7, context=CLASSES)
    wrapped = pvae.ConditionedEncoder(encoder, pvae.Label(CLASSES))
    x, y = torch.rand(2, 4, 6, 5), torch.tensor([0, 1, 2, 0])
    out = wrapped(x, y)
    assert out.shape == (2, 4, 7)
    torch.testing.assert_close(out[1, 2], wrapped(x[1, 2:3], y[2:3])[0])
    assert not torch.allclose(out, wrapped(x, (y + 1) % CLASSES))


@pytest.mark.parametrize(
    "objective",
    [pvae.ELBO(1), pvae.ELBO(3), pvae.IWAE(3), pvae.IWAE(3, gradient="dreg"), pvae.IWAE(4, chunk=2)],
    ids=["elbo", "elbo-3", "iwae", "dreg", "in parts"],
)
def test_labels_pass_through_every_kind_of_step(objective):
    x, y = torch.rand(8, SIZE).round(), torch.arange(8) % CLASSES
    found = []
    for mode in ("off", "graph"):
        vae = conditioned()
        torch.manual_seed(3)
        svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), copy.deepcopy(objective), compile=mode)
        found.append([float(svi.step(x, (y + i) % CLASSES)) for i in range(4)])
    assert found[0] == found[1]


def test_stock_pyro_trains_it_and_every_parameter_moves():
    vae = conditioned()
    before = copy.deepcopy(vae.state_dict())
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO())
    for _ in range(3):
        svi.step(torch.rand(30, SIZE).round(), torch.arange(30) % CLASSES)
    assert all(not torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_covariates_are_brought_to_scale():
    y = torch.randn(500, 2) * torch.tensor([3.0, 0.0]) + 7
    made = pvae.Covariates.of(y)
    assert made(y)[:, 0].mean().abs() < 1e-4
    assert abs(made(y)[:, 0].std().item() - 1) < 1e-4
    assert made(y)[:, 1].isfinite().all()  # one that never changes


# What is used ---------------------------------------------------------------------------------------------------------


def test_the_right_label_beats_a_wrong_one(tmp_path, plain):
    argv = ["--condition", "label", "--epochs", "30", "--eval-particles", "1,10", "--out", str(tmp_path / "r")]
    assert fit.main(argv) == 0
    vae, dataset, _ = load.load(tmp_path / "r")
    x, y = pvae.data.pixels(dataset.test.x), dataset.test.y
    torch.manual_seed(0)
    right, wrong = (
        pvae.evaluate.evaluate(vae.model, vae.guide, x, labels, particles=(10,)).iw[10] for labels in (y, (y + 1) % 10)
    )
    gain = right - wrong
    assert gain.mean() > 10 * gain.std() / len(gain) ** 0.5
    assert (gain > 0).double().mean() > 0.9

    assert sample.main([str(tmp_path / "r"), "-n", "6", "--label", "3", "-o", str(tmp_path / "s.npy")]) == 0
    for label, message in (("10", "no such class, expected one of 0 to 9"), ("-1", "expected at least 0")):
        with pytest.raises(InputError, match=message):
            sample.main([str(tmp_path / "r"), f"--label={label}", "-o", str(tmp_path / "s.npy")])


def test_a_fit_on_covariates(tmp_path, covariates, plain):
    argv = [*QUIET, "--data", str(covariates), "--likelihood", "gaussian", "--latent", "2"]
    argv += ["--likelihood.scale", "shared"]
    numbers = {}
    for condition in ("none", "covariates"):
        out = tmp_path / condition
        assert fit.main([*argv, "--epochs", "60", "--condition", condition, "--out", str(out)]) == 0
        _, _, run = load.load(out)
        numbers[condition] = run.read_json("summary.json")["test"]["elbo"]["mean"]
    assert numbers["covariates"] > numbers["none"] + 1


@pytest.mark.parametrize("parts", ["likelihood", "guide", "prior,guide"])
def test_only_some_parts_are_conditioned(parts):
    settings = config.from_flat({"condition": "label", "conditioned": parts, "decoder.hidden": "8"})
    vae = build.model(settings, pvae.data.load("digits"))
    found = {
        "likelihood": isinstance(vae.likelihood.decoder, pvae.ConditionedDecoder),
        "guide": isinstance(vae.posterior.encoder, pvae.ConditionedEncoder),
    }
    assert found == {name: name in parts for name in found}


# What is refused ------------------------------------------------------------------------------------------------------

WRONG = {
    "no labels": ((None,), "y: found none, expected whole numbers below 3: the model takes labels"),
    "too few": ((torch.tensor([0, 1]),), r"y: found a tensor of shape \(2,\), expected .* one label for each of 4"),
    "floats": ((torch.zeros(4),), r"y: found float32 of shape \(4,\), expected whole numbers below 3"),
    "another class": ((torch.tensor([0, 1, 2, 3]),), "y: found 0 to 3, expected labels from 0 to 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_labels_are_refused(case):
    (y,), message = WRONG[case]
    vae = conditioned()
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), pvae.ELBO())
    with pytest.raises(InputError, match=message):
        svi.step(torch.rand(4, SIZE).round(), y)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_class_that_is_none_is_refused_wherever_it_is_seen(wrong):
    vae, x, y = conditioned(), torch.zeros(4, SIZE), torch.tensor([0, 1, 2, wrong])
    with pytest.raises(InputError, match=f"y: found {min(wrong, 0)} to {max(wrong, 2)}, expected labels from 0 to 2"):
        vae.log_weights(x, y)
    with pyro.validation_enabled(False), pytest.raises(IndexError):  # and not the last class for -1
        vae.log_weights(x, y)


@pytest.mark.parametrize("wrong", [-1, 3])
@pytest.mark.parametrize("validated", [True, False])
def test_evaluation_names_the_datum_of_a_label_that_is_none(wrong, validated):
    vae, x, y = conditioned(), torch.zeros(300, SIZE), torch.arange(300) % 3
    y[200] = wrong
    with (
        pyro.validation_enabled(validated),
        pytest.raises(InputError, match=rf"evaluate: datum 200, label {wrong}: ") as found,
    ):
        evaluate(vae.model, vae.guide, x, y, particles=[1], progress=lambda *done: pytest.fail("work was done"))
    assert not validated or "expected labels from 0 to 2" in str(found.value)
    with pytest.raises(InputError, match="y: found 299 labels for 300 data, expected one for each"):
        evaluate(vae.model, vae.guide, x, y[1:])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_classes_of_any_whole_type_are_the_same(kind):
    y = torch.tensor([2, 0, 1])  # as many as classes: uint8 is no mask
    torch.testing.assert_close(pvae.Label(3)(y.to(kind)), pvae.Label(3)(y))


def test_a_hierarchy_refuses_labels_of_another_number():
    vae = build.model(config.Config(latent=(3, 2)), load.read_data(config.Config()))
    for program in (vae.model, vae.guide):
        with pytest.raises(InputError, match="y: found a tensor of shape \\(2,\\), expected a tensor with one label"):
            program(torch.zeros(4, 8, 8), torch.tensor([0, 1]))


def test_data_without_what_is_asked_are_refused(tmp_path, covariates):
    np.savez(tmp_path / "n.npz", x=np.random.default_rng(0).random((50, 5)))
    np.savez(tmp_path / "m.npz", x=np.random.default_rng(0).random((50, 5)), y=np.arange(50) - 1)
    cases = [
        (
            "label",
            tmp_path / "n.npz",
            "n.npz: found none, expected a whole number for each datum: give the data labels",
        ),
        ("covariates", tmp_path / "n.npz", "n.npz: found none, expected numbers y"),
        ("label", covariates, r"c.npz: found float32 of shape \(300, 2\), expected a whole number for each datum"),
        ("covariates", tmp_path / "m.npz", r"m.npz: found int64 of shape \(50,\), expected numbers y"),
        ("label", tmp_path / "m.npz", "m.npz: found -1, expected classes from 0 on"),
    ]
    gaussian = ["--likelihood", "gaussian"]
    for condition, data, message in cases:
        with pytest.raises(InputError, match=f"--condition {condition}: .*{message}"):
            fit.main([*QUIET, *gaussian, "--data", str(data), "--condition", condition, "--out", str(tmp_path / "r")])
        assert not (tmp_path / "r").exists()


def test_an_encoder_that_takes_no_context_is_refused():
    with pytest.raises(InputError, match="MLPEncoder takes a context of 0, expected 3 numbers of Label: make it with"):
        pvae.ConditionedEncoder(pvae.MLPEncoder((4,), 4), pvae.Label(3))


def test_a_condition_of_ones_own(tmp_path, monkeypatch):
    code = """
import torch, pvae
class Parity(pvae.Condition):
    @classmethod
    def of(cls, y, **options):
        return cls(1)
    def forward(self, y):
        assert y.dtype == torch.int64
        return (y % 2).float().unsqueeze(-1)
"""
    (tmp_path / "myconditions.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert fit.main([*QUIET, "--condition", "myconditions:Parity", "--out", "r"]) == 0
    vae, _, _ = load.load("r")
    assert isinstance(vae.likelihood.decoder.condition, Condition)
    assert isinstance(vae.likelihood.decoder.network, nn.Module)
    vamp = ["--prior", "vamp", "--prior.components", "5"]
    assert fit.main([*QUIET, "--condition", "myconditions:Parity", *vamp, "--out", "v"]) == 0
    vae, dataset, run = load.load("v")
    assert vae.prior.labels.dtype == torch.int64
    assert vae.prior.labels.shape == (5,)
    x, y = pixels(dataset.test.x), dataset.test.y
    found = pvae.evaluate.evaluate(vae.model, vae.guide, x, y, particles=[1, 2])
    assert found.elbo.mean().item() == pytest.approx(run.read_json("summary.json")["test"]["elbo"]["mean"], abs=1e-3)


def test_a_condition_that_nothing_takes_is_refused():
    label, cases = {"condition": "label"}, {"prior": r"--conditioned prior: found no part", "none": "--conditioned: "}
    with pytest.raises(InputError, match=cases["prior"]):
        config.Config(**label, conditioned=("prior",))
    with pytest.raises(InputError, match=cases["none"]):
        config.Config(conditioned=("guide",))
    assert config.Config(**label).of_model
    assert config.Config(**label, conditioned=("prior",), prior="class_normal").of_model
    assert not config.Config(**label, conditioned=("prior", "guide")).of_model  # the normal takes none


def test_labels_to_sample_are_those_of_the_data(tmp_path, plain):
    rng, run, out = np.random.default_rng(0), str(tmp_path / "r"), str(tmp_path / "s.npy")
    np.savez(tmp_path / "d.npz", x=rng.random((60, 5)), y=rng.choice([0, 2, 5], 60))
    plain = [*QUIET, "--data", str(tmp_path / "d.npz"), "--likelihood", "gaussian", "--condition", "label"]
    assert fit.main([*plain, "--out", run]) == 0
    assert sample.main([run, "--label", "5", "-o", out]) == 0
    with pytest.raises(InputError, match="--label 3: found no such class, expected one of 0, 2, 5"):
        sample.main([run, "--label", "3", "-o", out])
    assert fit.main([*plain, "--conditioned", "guide", "--out", run + "g"]) == 0
    with pytest.raises(InputError, match="--label 5: its guide alone is conditioned"):
        sample.main([run + "g", "--label", "5", "-o", out])
    _, _, guided = load.load(run + "g")
    (note,) = compare.notes("g", guided.config)
    assert note.endswith("its bounds are on log p(x)")


def test_too_many_classes_are_a_line():
    with pytest.raises(
        InputError, match=r"found 3 labels up to 199,000,000, .* at most 10,000, from 0 on: number them"
    ):
        pvae.conditions.Label.of(torch.tensor([0, 5, 5, 199_000_000]))
    with pytest.raises(InputError, match="found 1 labels up to 10,000"):
        pvae.conditions.Label.of(torch.tensor([10_000]))
    assert pvae.conditions.Label.of(torch.tensor([0, 9_999])).size == 10_000


@pytest.mark.parametrize(
    ("given", "do"),
    [
        ([], "pass --condition label"),
        (["--condition", "label", "--conditioned", "likelihood"], "name prior in --conditioned"),
    ],
)
def test_a_prior_that_depends_on_labels_and_has_none_says_what_to_do(given, do, here, capsys):
    said = refused(capsys, *given, "--prior", "class_normal")
    assert f"--prior class_normal: found no labels to depend on: {do}" in said
