"""The registry, from inside and from files beside the user; and the configuration that names its members."""

import dataclasses
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

import pvae
from pvae import base, build, config, data
from pvae.base import Member, lookup, members, root
from pvae.config import FAMILIES, Config, from_flat, to_flat, to_yaml

# The registry ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own():
    """What a test registers is gone after it."""
    before = {family: dict(known) for family, known in base._families.items()}
    yield
    for family in list(base._families):
        if family in before:
            base._families[family].clear()
            base._families[family].update(before[family])
        else:
            del base._families[family]


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Writes a module beside the user: (name, source)."""
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return tmp_path / f"{name}.py"

    yield write
    assert sys.path == path


def refused(family, name):
    with pytest.raises(pvae.InputError) as found:
        lookup(family, name)
    assert "\n" not in str(found.value)
    assert str(found.value).startswith(f"--{family}")
    return str(found.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_members_are_found_by_name_and_by_path(family):
    assert members(family)
    for name, member in members(family).items():
        assert (member.name, member.family) == (name, family)
        assert lookup(family, name) is member
        assert lookup(family, f"{member.__module__}:{member.__qualname__}") is member
        assert issubclass(member, root(family))
        assert "" not in members(family)


def test_the_members_that_ship():
    names = {family: sorted(members(family)) for family in ("prior", "likelihood", "guide", "encoder", "decoder")}
    assert {"normal"} <= set(names["prior"])
    assert {"bernoulli", "gaussian"} <= set(names["likelihood"])
    assert lookup("likelihood", "gaussian") is pvae.Gaussian
    assert lookup("guide", "mean_field") is pvae.MeanField
    assert (lookup("encoder", "conv"), lookup("decoder", "conv")) == (pvae.ConvEncoder, pvae.ConvDecoder)
    assert root("prior") is pvae.Prior


def test_a_member_shows_where_it_is_registered(own):
    class Mine(pvae.Prior, name="mine"):
        pass

    assert members("prior")["mine"] is Mine
    assert lookup("prior", "mine") is Mine
    assert "mine" in refused("prior", "normall")

    class Nameless(Mine):  # a subclass does not take its parent's name
        pass

    assert Nameless.name == ""
    assert members("prior")["mine"] is Mine
    assert base.path_of(Nameless).startswith(f"{__name__}:")


def test_families_are_apart(own):
    class Root(Member, family="flavour"):
        pass

    class One(Root, name="normal"):
        pass

    assert members("flavour") == {"normal": One}
    assert members("prior")["normal"] is pvae.Normal
    members("prior").clear()  # a copy
    assert members("prior")


def test_an_unknown_name_lists_the_nearest_and_all():
    text = refused("likelihood", "bernouli")
    assert text.startswith("--likelihood: unknown likelihood 'bernouli': did you mean 'bernoulli'? known: bernoulli, ")
    assert "gaussian" in text
    assert text.endswith("or give your own class as module:Class")
    assert "did you mean" not in refused("prior", "qqqqq")
    for name in ("", ":", ":Class", "module:"):
        assert "module:Class" in refused("prior", name)


def test_a_class_in_a_file_beside_the_user(beside):
    beside(
        "mylab",
        """
        import pvae

        class Wide(pvae.Normal):
            pass

        class Bernoulli(pvae.Likelihood):
            pass
        """,
    )
    found = lookup("prior", "mylab:Wide")
    assert (found.__name__, found.__module__) == ("Wide", "mylab")
    assert lookup("prior", "mylab:Wide") is found
    assert base.path_of(found) == "mylab:Wide"
    assert "wide" not in members("prior")
    text = refused("prior", "mylab:Wid")
    assert "'mylab' has no class 'Wid': did you mean 'Wide'? known: Bernoulli, Wide" in text
    text = refused("prior", "mylab:Bernoulli")
    assert text.endswith("found <class 'mylab.Bernoulli'>, expected a subclass of pvae.Prior")


def test_what_is_not_a_member_is_refused(beside):
    beside("things", "import pvae\nnormal = pvae.Normal(2)\nclass Plain: pass\n")
    for name in ("things:normal", "things:Plain", "pvae:Prior", "pvae:Bernoulli", "os:getcwd"):
        assert "expected a subclass of pvae.Prior" in refused("prior", name)


def test_a_module_that_is_not_there(beside):
    assert "no module named 'nosuch': expected module:Class, importable from here" in refused("prior", "nosuch:A")
    assert "no module named 'nosuch'" in refused("prior", "nosuch.priors:A")
    assert "no module named 'pvae.nosuch'" in refused("prior", "pvae.nosuch:A")
    beside("alone", "x = 1\n")
    assert "no module named 'alone.nosuch'" in refused("prior", "alone.nosuch:A")


@pytest.mark.parametrize(
    ("source", "line", "text"),
    [
        ("x = 1\n\nraise RuntimeError('no\\nway')\n", 3, "RuntimeError: no"),
        ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError: division by zero"),
        ("import pvae\nclass A(pvae.Prior, nom='a'): pass\n", None, "TypeError: "),
        ("x = 1\nclass A(:\n", 2, "SyntaxError: "),
        ("if True:\nx = 1\n", 2, "IndentationError: "),
        ("raise ValueError\n", 1, "ValueError: "),
        ("import broken_too\n", 1, "SyntaxError: "),
        ("x = 1\nimport nosuchlibrary\n", 2, "ModuleNotFoundError: No module named 'nosuchlibrary'"),
        (
            "import importlib\nimportlib.import_module('broken.too')\n",
            2,
            "ModuleNotFoundError: No module named 'broken",
        ),
    ],
)
def test_a_module_that_fails_says_where(beside, source, line, text):
    file, other = beside("broken", source), beside("broken_too", "a b\n")
    found = refused("prior", "broken:A")
    assert found.startswith("--prior broken:A: importing it failed at ")
    assert text in found
    if line is not None:
        assert f"{other if 'broken_too' in source else file}:{line}: " in found
    assert str(Path.cwd()) not in sys.path


def test_a_module_may_mend_the_search_path(beside):
    beside("mends", "import sys, pvae\nsys.path.insert(0, '/nosuch')\nclass A(pvae.Prior): pass\n")
    lookup("prior", "mends:A")
    assert sys.path.pop(0) == "/nosuch"
    assert str(Path.cwd()) not in sys.path


# The configuration ----------------------------------------------------------------------------------------------------

FULL = {
    "data": "mnist",
    "latent": "7",
    "likelihood": "gaussian",
    "likelihood.scale": "pixel",
    "likelihood.min_scale": "0.01",
    "encoder": "conv",
    "encoder.channels": "8,16",
    "decoder.hidden": "20",
    "guide.max_scale": "4",
    "objective": "elbo",
    "objective.analytic_kl": "true",
    "epochs": "none",
    "eval-particles": "1,5,50",
    "lr": "1e-4",
    "clip-norm": "100",
}


def test_text_becomes_values():
    found = from_flat(FULL)
    assert (found.latent, found.lr, found.epochs, found.clip_norm) == (7, 1e-4, None, 100.0)
    assert found.eval_particles == (1, 5, 50)
    assert found.options == {
        "likelihood": {"scale": "pixel", "min_scale": 0.01},
        "encoder": {"channels": (8, 16)},
        "decoder": {"hidden": (20,)},
        "guide": {"max_scale": 4.0},
        "objective": {"analytic_kl": True},
    }
    assert from_flat({"likelihood": "gaussian", "likelihood.scale": "0.5"}).options["likelihood"]["scale"] == 0.5
    assert from_flat({}) == Config()


@pytest.mark.parametrize("values", [{}, FULL, {"data-dir": "a b: c", "data": "'#"}, {"seed": 3, "validation": 0}])
def test_round_trips(values, tmp_path):
    found = from_flat(values)
    assert from_flat(to_flat(found)) == found
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(found))
    assert from_flat(config.read(file)) == found
    assert all("_" not in name for name in to_flat(found) if "." not in name)


def test_a_file_may_write_underscores(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("batch_size: 32\nlikelihood: gaussian\nlikelihood.min_scale: 1e-2\nlr: 1e-3\n")
    found = from_flat(config.read(file))
    assert (found.batch_size, found.lr, found.options) == (32, 1e-3, {"likelihood": {"min_scale": 0.01}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("a: [1\n", "not YAML: "),
        ("- 1\n- 2\n", "found list, expected lines of `name: value`"),
        ("", "expected lines of `name: value`"),
        ("\x00", "not YAML"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(pvae.InputError, match=message) as found:
        config.read(file)
    assert str(found.value).startswith(f"--config {file}: ")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        # unknown names
        ({"latnet": 3}, "--latnet: unknown option: did you mean 'latent'[?] known: .*batch-size"),
        ({"foo.bar": 3}, "--foo.bar: unknown option: .*known: .*decoder.*prior"),
        ({"likelihod.scale": 3}, "--likelihod.scale: unknown option: did you mean 'likelihood'"),
        ({"likelihood.": 3}, "--likelihood.: likelihood 'bernoulli' has no such option"),
        ({"likelihood": "gausian"}, "--likelihood: unknown likelihood 'gausian': did you mean 'gaussian'"),
        ({"objective": "iwea"}, "--objective: unknown objective 'iwea': did you mean 'iwae'"),
        # values of another type
        ({"latent": "many"}, "--latent: found 'many', expected a whole number"),
        ({"latent": 2.5}, "--latent: found '2.5', expected a whole number"),
        ({"latent": True}, "--latent: found 'True', expected a whole number"),
        ({"latent": None}, "--latent: found 'None', expected a whole number"),
        ({"latent": [1.5]}, "--latent: found .*, expected a whole number"),
        ({"latent": float("inf")}, "--latent: found 'inf', expected a whole number"),
        ({"lr": "nan"}, "--lr: found 'nan', expected a number"),
        ({"lr": "inf"}, "--lr: found 'inf', expected a number"),
        ({"lr": "fast"}, "--lr: found 'fast', expected a number"),
        ({"clip-norm": "off"}, "--clip-norm: found 'off', expected a number or none"),
        ({"eval-particles": "1,x"}, "--eval-particles: found '1,x', expected whole numbers with commas"),
        ({"binarize": "statc"}, "--binarize: found 'statc', expected auto, dynamic, .* or none: did you mean 'static'"),
        ({"objective.analytic_kl": "maybe"}, "--objective.analytic_kl: found 'maybe', expected true or false"),
        ({"objective.analytic_kl": 1}, "--objective.analytic_kl: found '1', expected true or false"),
        (
            {"likelihood": "gaussian", "likelihood.scale": "shred"},
            "--likelihood.scale: found 'shred', expected a number, shared, pixel, decoder or optimal: did you mean 'sh",
        ),
        # options of members
        (
            {"likelihood.scale": 1},
            "--likelihood.scale: likelihood 'bernoulli' has no such option; it belongs to .*gaussian, .*: choose one"
            " of them with --likelihood, or leave the option out",
        ),
        (
            {"likelihood": "gaussian", "likelihood.scal": 1},
            "--likelihood.scal: likelihood 'gaussian' has no such option: did you mean 'scale'[?] known: min_scale, sc",
        ),
        (
            {"encoder.channels": 1},
            "--encoder.channels: encoder 'mlp' has no such option; it belongs to conv, resnet: choose one of them",
        ),
        (
            {"likelihood.df": 3},
            "'bernoulli' has no such option; it belongs to student_t: choose it with --likelihood, or",
        ),
        (
            {"likelihood.levles": 3},
            "'bernoulli' has no such option; did you mean --likelihood.levels, of categorical, .*[?] it has no",
        ),
        ({"guide.event_dim": 1}, "--guide.event_dim: guide 'mean_field' has no such option: known: "),
        ({"likelihood.decoder": 1}, "--likelihood.decoder: .*has no such option"),
        # bounds
        ({"particles": 0}, "--particles: found 0, expected at least 1"),
        ({"latent": -2}, "--latent: found -2, expected at least 1"),
        ({"latent": "100,0"}, r"--latent: found \(100, 0\), expected at least 1"),
        ({"latent": ","}, "--latent: found none, expected a size"),
        ({"batch-size": 0}, "--batch-size: found 0, expected at least 1"),
        ({"epochs": 0}, "--epochs: found 0, expected at least 1"),
        ({"save-every": 0}, "--save-every: found 0, expected at least 1"),
        ({"seed": -1}, "--seed: found -1, expected at least 0"),
        ({"validation": -0.1}, "--validation: found -0.1, expected at least 0"),
        ({"lr": 0}, "--lr: found 0.0, expected more"),
        ({"lr": "-inf"}, "--lr: found -inf, expected"),
        ({"clip-norm": 0}, "--clip-norm: found 0.0, expected more"),
        ({"eval-particles": "1,0"}, r"--eval-particles: found \(1, 0\), expected at least 1"),
        ({"eval-particles": ""}, "--eval-particles: found none, expected numbers of draws"),
        ({"eval-chunk": 127}, "--eval-chunk: found 127, expected at least 128"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(values, message):
    with pytest.raises(pvae.InputError, match=message) as found:
        from_flat(values)
    assert "\n" not in str(found.value)


def test_a_configuration_is_frozen_and_checked_however_it_is_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().latent = 3
    with pytest.raises(pvae.InputError, match="--particles: found 0, expected at least 1"):
        Config(particles=0)
    with pytest.raises(pvae.InputError, match="--latent: found 0"):
        dataclasses.replace(Config(), latent=0)


@pytest.mark.parametrize("option", config.fields(), ids=lambda f: f.name)
def test_every_field_has_a_help_and_takes_its_default_as_text(option):
    assert option.metadata["help"]
    name = option.name.replace("_", "-")
    default = option.default
    text = ",".join(map(str, default)) if isinstance(default, tuple) else default and str(default)
    assert getattr(from_flat({name: text}), option.name) == default
    assert name in yaml.safe_load(to_yaml(Config()))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_members_own_options_take_their_defaults(family):
    for name, member in members(family).items():
        for option, parameter in config.member_options(family, member).items():
            found = from_flat({family: name, f"{family}.{option}": parameter.default})
            kept = found.options[family][option]
            assert kept == (tuple(parameter.default) if isinstance(kept, tuple) else parameter.default)
            assert from_flat(to_flat(found)) == found


def test_binarization_follows_the_likelihood():
    assert Config().binarization == "dynamic"
    assert Config(likelihood="gaussian").binarization == "none"
    assert Config(likelihood="gaussian", binarize="static").binarization == "static"


def test_epochs_and_checkpoints():
    assert Config(batch_size=100).epochs_for(1050) == 1091  # 11 batches, 12,000 steps
    assert Config(epochs=3).epochs_for(1050) == 3
    assert (Config().save_every_for(1091), Config().save_every_for(7)) == (10, 1)
    assert Config(save_every=2).save_every_for(1091) == 2


# What it builds -------------------------------------------------------------------------------------------------------


@pytest.fixture
def images():
    part = data.Split((torch.rand(30, 6, 5) * 255).to(torch.uint8), None)
    return data.Dataset("images", part, part, part, "")


@pytest.mark.parametrize("encoder", list(members("encoder")))
@pytest.mark.parametrize("decoder", list(members("decoder")))
@pytest.mark.parametrize("likelihood", list(members("likelihood")))
def test_every_combination_is_built_and_trains(images, likelihood, decoder, encoder):
    settings = Config(likelihood=likelihood, decoder=decoder, encoder=encoder, latent=3, particles=2)
    vae, objective = build.model(settings, images), build.objective(settings)
    assert (type(vae.likelihood), type(vae.likelihood.decoder)) == (
        lookup("likelihood", likelihood),
        lookup("decoder", decoder),
    )
    assert (objective.num_particles, vae.prior.latent, vae.likelihood.shape) == (2, 3, (6, 5))
    x = data.pixels(images.train.x).round()
    x = data.dequantize((255 * x).byte(), settings.dequantization) if settings.dequantization != "none" else x
    svi = pvae.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, lr=1e-3), objective)
    assert svi.step(x) < float("inf")
    assert vae.sample(2).shape == (2, 6, 5)


def test_the_objective_has_its_gradient_and_their_options():
    settings = from_flat(
        {
            "objective": "renyi",
            "particles": "4",
            "gradient": "vimco",
            "gradient.mean": "arithmetic",
            "objective.alpha": "0.5",
            "objective.beta": "0.7",
            "objective.warmup": "100",
        }
    )
    found = build.objective(settings)
    assert (found.num_particles, found.alpha, found.beta, found.warmup) == (4, 0.5, 0.7, 100)
    assert found.gradient.power == 1.0
    assert from_flat(to_flat(settings)) == settings


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"gradient": "ovis"}, "--gradient: ovis does not fit elbo"),
        ({"gradient": "score", "objective": "iwae"}, "--gradient: score does not fit iwae: .* give it 2 or more"),
        ({"objective": "miwae", "objective.groups": "0"}, "--objective.groups: found 0 for 1 particles"),
        ({"objective": "tvo", "objective.partitions": "0,1,0.5"}, "--objective.partitions: found 0,1,0.5, expected"),
        ({"objective.beta": "-1"}, "--objective.beta: found -1"),
        ({"gradient": "ovis", "gradient.gamma": "2", "objective": "iwae"}, "--gradient.gamma: found 2"),
    ],
)
def test_objectives_and_gradients_that_cannot_be(flat, message):
    with pytest.raises(pvae.InputError, match=message):
        build.objective(from_flat(flat))


def test_a_build_is_a_function_of_torchs_seed_and_starts_from_the_data(images):
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(build.model(Config(latent=3), images).state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    bias = found[0]["likelihood.decoder.layers.2.bias"]
    mean = data.pixels(images.train.x).mean(0).clamp(1e-3, 1 - 1e-3)
    torch.testing.assert_close(bias, mean.logit().flatten())


def test_options_reach_the_parts(images):
    vae = build.model(
        from_flat(
            {
                "likelihood": "gaussian",
                "likelihood.scale": 0.25,
                "encoder.hidden": "9,8",
                "decoder": "conv",
                "decoder.channels": "6",
                "guide.max_scale": 3,
            }
        ),
        images,
    )
    assert vae.likelihood.scale.item() == 0.25
    assert [p.shape[0] for n, p in vae.posterior.encoder.named_parameters() if "bias" in n] == [9, 8, 40]
    assert vae.likelihood.decoder.layers[0].out_features == 6 * 3 * 3
    assert vae.posterior.scale.high == 3


def test_what_a_member_refuses_names_the_option(images):
    with pytest.raises(pvae.InputError, match=r"^--likelihood\.scale: found 0\.0001, expected at least min_scale"):
        build.model(from_flat({"likelihood": "gaussian", "likelihood.scale": 1e-4}), images)
    with pytest.raises(pvae.InputError, match=r"^--guide\.min_scale, max_scale: found 2"):
        build.model(from_flat({"guide.min_scale": 2}), images)


def test_a_member_from_outside_with_options_of_its_own(beside, images):
    beside(
        "mylab",
        '''
        import torch, pvae
        import pyro.distributions as dist

        class Scaled(pvae.Prior):
            """N(0, s^2 I).

            Args:
                latent: size of the latent.
                scale: s.
                widen: by two.
            """

            def __init__(self, latent: int, scale: float = 1.0, *, widen: bool = False, any=None) -> None:
                super().__init__(latent)
                self.log_scale = torch.nn.Parameter(torch.tensor(scale * (1 + widen)).log())

            def forward(self, y=None):
                return dist.Normal(torch.zeros(self.latent), self.log_scale.exp()).to_event(1)
        ''',
    )
    values = {"prior": "mylab:Scaled", "prior.scale": "0.5", "prior.widen": "true", "latent": 3}
    found = from_flat(values)
    assert found.options == {"prior": {"scale": 0.5, "widen": True}}
    assert from_flat(yaml.safe_load(to_yaml(found))) == found
    assert config.member_help(lookup("prior", "mylab:Scaled"), "widen") == "by two."
    vae = build.model(found, images)
    assert vae.prior.log_scale.exp().item() == pytest.approx(1.0)
    with pytest.raises(pvae.InputError, match=r"--prior\.scal: prior 'mylab:Scaled' has no such option: did you mean"):
        from_flat({**values, "prior.scal": 1})
    with pytest.raises(pvae.InputError, match=r"--prior\.scale: found 'wide', expected a number"):
        from_flat({**values, "prior.scale": "wide"})
    with pytest.raises(
        pvae.InputError, match=r"--prior\.scale: prior 'normal' has no such option; it belongs to .*: choose"
    ):
        from_flat({"prior.scale": 1})
    vae.sample(2)
    pvae.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, lr=1e-2), pvae.ELBO()).step(torch.ones(4, 6, 5))
    assert vae.prior.log_scale.item() != 0
