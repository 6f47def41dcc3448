"""Parts in a user's own file: what is wrong with one is a line that says so, at every door."""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from commands import go, quick, refused
from torch import nn

import pvae

SMALL = [
    "--data=data.npz",
    "--epochs=1",
    "--encoder.hidden=8",
    "--decoder.hidden=8",
    "--latent=2",
    "--eval-particles=2",
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pvae.__file__).parents[1])}
HEAD = """
import pvae
import pyro.distributions as dist
import torch
from torch import nn

class Right(pvae.Prior):
    def forward(self, y=None):
        return dist.Normal(torch.zeros(self.latent), 1.0).to_event(1)
"""


@pytest.fixture(autouse=True)
def here(here):
    arrays("data.npz", (4, 4))
    return here


def arrays(name, shape=(6,), **more):
    np.savez(name, x=np.random.default_rng(0).random((60, *shape)).astype("float32"), **more)


def write(source, name="mylab"):
    Path(f"{name}.py").write_text(HEAD + textwrap.dedent(source))


def prior(body, init=""):
    return f"""
    class Bad(Right):
        {init or "pass"}
        def forward(self, y=None):
            {body}
    """


BAD = [
    (
        "return torch.zeros(2)",
        "prior mylab:Bad: forward returned Tensor, expected a distribution of pyro.distributions",
    ),
    ("return None", "prior mylab:Bad: forward returned NoneType, expected a distribution of pyro.distributions"),
    (
        "return torch.distributions.Normal(torch.zeros(2), 1.0)",
        "found one of torch.distributions, which cannot be a Pyro site",
    ),
    (
        "return dist.Normal(torch.zeros(2), 1.0)",
        r"event shape \(\), expected .* event shape \(2,\): add .to_event\(1\)",
    ),
    ("return dist.Normal(torch.zeros(3), 1.0).to_event(1)", r"event shape \(3,\), expected .* event shape \(2,\)"),
    ("return dist.Normal(torch.zeros(7, 2), 1.0).to_event(1)", r"batch shape \(7,\) .*, expected batch shape \(\) and"),
    (
        "return dist.Normal(torch.zeros(2), -1.0).to_event(1)",
        r"mylab.py:14: the scale of a Normal, of shape .*: found values outside",
    ),
    (
        "return dist.Normal(self.nosuch, 1.0)",
        "--prior mylab:Bad: failed at .*mylab.py:14: AttributeError: 'Bad' object",
    ),
    ("return 1 / 0", "--prior mylab:Bad: failed at .*mylab.py:14: ZeroDivisionError: division by zero"),
    ("raise RuntimeError('no\\nway')", "--prior mylab:Bad: failed at .*mylab.py:14: RuntimeError: no$"),
]


@pytest.mark.parametrize(("body", "text"), BAD, ids=[b[0][:30] for b in BAD])
def test_a_forward_that_gives_the_wrong_thing(capsys, body, text):
    write(prior(body))
    assert re.search(text, refused(capsys, *SMALL, "--prior", "mylab:Bad"), re.MULTILINE)


@pytest.mark.parametrize("particles", [1, 3])
def test_a_likelihood_that_does_not_broadcast_over_particles(capsys, particles):
    write("""
    class Bad(pvae.Likelihood):
        def forward(self, z, y=None):
            return dist.Normal(self.decode(z, y).view(len(z), *self.shape), 1.0).to_event(2)
    """)
    assert go(*SMALL, "--likelihood", "mylab:Bad", "--objective", "iwae", "--particles", particles) == 2
    text = capsys.readouterr().err
    assert re.search(
        r"site 'z': found shape .* fails at .*mylab.py:\d+ though .*: expected shapes that broadcast", text
    )
    assert text.count("\n") == 1
    assert "--lr" not in text


CLASSES = [
    ("class Bad(pvae.Prior): pass", "prior mylab:Bad: found no forward, expected one: return a distribution"),
    (
        "class Bad(Right):\n    def forward(self):\n        return 1",
        r"prior mylab:Bad: forward: found that it takes \(\), expected 1 argument: too many",
    ),
    (
        "class Bad(Right):\n    def __init__(self):\n        super().__init__(2)",
        r"--prior mylab:Bad: __init__: found that it takes \(\), expected 1 argument: too many",
    ),
    (
        "class Bad(Right):\n    def __init__(self, latent):\n        self.scale = nn.Linear(2, 2)",
        r"--prior mylab:Bad: failed at .*mylab.py:12: AttributeError: cannot assign module before Module.__init__",
    ),
    (
        "class Bad(Right):\n    def __init__(self, latent):\n        super().__init__(latent + 1)",
        "latent: found size 3 of the prior, 2 of the guide, expected the same of both",
    ),
    ("class Bad: pass", "--prior mylab:Bad: found <class 'mylab.Bad'>, expected a subclass of pvae.Prior"),
    ("class Bad(pvae.MeanField): pass", "--prior mylab:Bad: found <class 'mylab.Bad'>, expected a subclass of pvae.Pr"),
    ("class Bed(Right): pass", "--prior mylab:Bad: 'mylab' has no class 'Bad': did you mean 'Bed'"),
    ("1 / 0", "--prior mylab:Bad: importing it failed at .*mylab.py:10: ZeroDivisionError: division by zero"),
    (
        "import nosuchmodule",
        "importing it failed at .*mylab.py:10: ModuleNotFoundError: No module named 'nosuchmodule'",
    ),
]


@pytest.mark.parametrize(("source", "text"), CLASSES, ids=[c[0][:40] for c in CLASSES])
def test_a_class_that_is_no_part(capsys, source, text):
    write(source)
    assert re.search(text, refused(capsys, *SMALL, "--prior", "mylab:Bad"))


MIXTURE = """
class Mixture(pvae.Prior):
    def __init__(self, latent, components: int = 5):
        super().__init__(latent)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, latent))
    def forward(self, y=None):
        each = dist.Normal(self.means, 1.0).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), each)
"""


@pytest.mark.parametrize("name", ["mylab:Mixture", "mychild:Mine"])
def test_an_option_that_its_constructor_fails_at(capsys, name):
    write(MIXTURE)
    write("import mylab\nclass Mine(mylab.Mixture): pass", name="mychild")
    text = refused(capsys, *SMALL, "--prior", name, "--prior.components", "-1")
    assert re.search(
        rf"error: --prior {name}: failed at .*mylab.py:14: RuntimeError: .*: look at --prior.components -1$", text
    )


def test_an_option_that_its_distribution_fails_at(capsys):
    """In torch's own lines alone."""
    write(MIXTURE)
    text = refused(capsys, *SMALL, "--prior", "mylab:Mixture", "--prior.components", "0")
    assert re.search(
        "error: --prior mylab:Mixture: what forward at .*mylab.py:16 returns cannot be drawn and scored: .*Error: .*"
        ": look at --prior.components 0$",
        text,
    )


def test_a_part_that_is_tried_leaves_no_trace(here):
    """It is in training mode again, and what is drawn later is as it was."""
    write("class Mine(Right): pass")
    found = []
    for name in ("normal", "mylab:Mine"):
        config = pvae.config.from_flat({"data": "data.npz", "latent": "2", "prior": name})
        torch.manual_seed(0)
        made = pvae.build.model(config, pvae.data.load("data.npz"))
        assert all(module.training for module in made.modules())
        found.append(torch.rand(3))
    assert torch.equal(*found)


def test_an_option_that_it_does_not_have(capsys):
    write("class Mine(Right):\n    def __init__(self, latent, scale: float = 1.0):\n        super().__init__(latent)")
    text = refused(capsys, *SMALL, "--prior", "mylab:Mine", "--prior.scal", "1")
    assert "--prior.scal: prior 'mylab:Mine' has no such option: did you mean 'scale'? known: scale" in text


def test_in_a_process_of_its_own(here):
    write(prior("return 1 / 0"))
    command = [sys.executable, "-m", "pvae.fit", *SMALL, "--prior", "mylab:Bad"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert found.returncode == 2
    assert re.fullmatch(
        r"pvae fit: error: --prior mylab:Bad: failed at .*mylab.py:14: ZeroDivisionError: division by zero\n",
        found.stderr,
    )


UNSAMPLED = """
class Scored(dist.Normal):
    has_rsample = False
    def expand(self, batch_shape, _instance=None):
        return Scored(self.loc.expand(batch_shape), self.scale.expand(batch_shape))
    def sample(self, sample_shape=()):
        raise NotImplementedError

class Energy(pvae.Prior):
    def forward(self, y=None):
        return Scored(torch.zeros(self.latent), torch.ones(self.latent)).to_event(1)
"""


def test_a_prior_that_cannot_be_sampled_is_fitted_and_says_so(capsys):
    write(UNSAMPLED)
    assert go(*SMALL, "--prior", "mylab:Energy", "--out", "run") == 0
    text = capsys.readouterr().out
    line = "prior mylab:Energy: Independent has no sample: it can be fitted and evaluated, but not sampled from"
    assert f"no figure of samples: {line}" in text
    assert "pvae.sample" not in text
    names = {path.stem for path in Path("run/figures").iterdir()}
    assert "samples" not in names
    assert {"reconstructions", "latent_space", "learning_curves"} <= names
    assert refused(capsys, "run", command="sample") == f"pvae sample: error: {line}\n"


def test_a_likelihood_and_a_guide_without_a_mean(capsys):
    write(
        """
        class NoMean(dist.Normal):
            def expand(self, batch_shape, _instance=None):
                return NoMean(self.loc.expand(batch_shape), self.scale.expand(batch_shape))
            @property
            def mean(self):
                raise NotImplementedError

        class Picture(pvae.Likelihood):
            def forward(self, z, y=None):
                mean = self.decode(z, y)
                return NoMean(mean, torch.ones_like(mean)).to_event(len(self.shape))

        class Guide(pvae.Guide):
            def forward(self, x, y=None):
                mean, raw = self.encode(x, y).chunk(2, -1)
                return NoMean(mean, raw.exp()).to_event(1)
        """
    )
    assert go(*SMALL, "--likelihood", "mylab:Picture", "--out", "run") == 2
    text = "likelihood mylab:Picture: Independent has no mean, which pictures show: give it one"
    assert text in capsys.readouterr().err
    assert go(*SMALL, "--guide", "mylab:Guide", "--out", "other") == 0


# Labels ---------------------------------------------------------------------------------------------------------------


def test_labels_that_are_not_there_or_of_another_type(capsys):
    arrays("plain.npz")
    arrays("real.npz", y=np.linspace(0, 1, 60).astype("float32"))
    arrays("few.npz", y=np.zeros(7, dtype=int))
    arrays("two.npz", y=np.zeros((60, 2), dtype=int))
    small = [*SMALL, "--likelihood", "gaussian", "--condition", "label", "--data"]
    assert "--condition label: plain.npz: found none, expected a whole number for each" in refused(
        capsys, *small, "plain.npz"
    )
    for name in ("real.npz", "few.npz", "two.npz"):
        text = refused(capsys, *small, name)
        assert name in text
        assert "expected" in text
    wanted = "--condition covariates: plain.npz: found none, expected numbers"
    assert wanted in refused(capsys, *[*small[:-2], "covariates", "--data"], "plain.npz")


@pytest.mark.parametrize("condition", ["label", "covariates"])
def test_a_conditioned_fit_from_beginning_to_end(condition):
    y = np.arange(60) % 3 if condition == "label" else np.random.default_rng(1).random((60, 2)).astype("float32")
    arrays("d.npz", (4, 4), y=y)
    options = ["--likelihood", "gaussian", "--condition", condition, "--data", "d.npz", "--out", "run"]
    assert go(*SMALL, *options) == 0
    assert Path("run/figures/samples.png").exists()
    assert go("run", "-n", "5", "-o", "x.npy", command="sample") == 0
    assert np.load("x.npy").shape == (5, 4, 4)


def conditioned():
    condition = pvae.Label(3)
    encoder = pvae.ConditionedEncoder(pvae.MLPEncoder((6,), 4, [8], context=3), condition)
    decoder = pvae.ConditionedDecoder(pvae.MLPDecoder(5, (6,), [8]), condition)
    return pvae.VAE(pvae.Normal(2), pvae.Bernoulli(decoder, (6,)), pvae.MeanField(encoder, 2))


@pytest.mark.parametrize(
    ("y", "text"),
    [
        (None, "y: found none, expected whole numbers below 3: the model takes labels"),
        (
            torch.zeros(4, dtype=torch.int64),
            r"y: found a tensor of shape \(4,\), expected .* one label for each of 5 data",
        ),
        (torch.tensor(1), r"y: found a tensor of shape \(\), expected a tensor with one label for each of 5 data"),
        ([0, 1, 2, 0, 1], "y: found list, expected a tensor with one label for each of 5 data"),
        (torch.zeros(5), r"y: found float32 of shape \(5,\), expected whole numbers below 3"),
        (
            torch.zeros(5, 2, dtype=torch.int64),
            r"y: found labels of shape \(\d, 2\) for \(\d,\) data, expected one for ea",
        ),
    ],
    ids=["none", "few", "scalar", "list", "float", "two"],
)
def test_labels_in_the_api(y, text):
    vae = conditioned()
    with pytest.raises(pvae.InputError, match=text) as found:
        vae.log_weights(torch.zeros(5, 6), y)
    assert "\n" not in str(found.value)
    for use in (lambda: vae.sample(5, y), lambda: vae.model(torch.zeros(5, 6), y)):
        with pytest.raises(pvae.InputError, match=text):
            use()


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_label_that_is_no_class(wrong):
    vae, y = conditioned(), torch.tensor([0, 1, 2, wrong, 0])
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pvae.ELBO())
    for use in (lambda: vae.encode(torch.zeros(5, 6), y), lambda: svi.step(torch.zeros(5, 6), y)):
        with pytest.raises(
            pvae.InputError, match=f"y: found {min(wrong, 0)} to {max(wrong, 2)}, expected labels from 0 to 2"
        ):
            use()


def test_what_is_no_part():
    part = conditioned()
    with pytest.raises(
        pvae.InputError, match=r"likelihood: found Linear, expected a pvae\.Part: subclass pvae\.Likeli"
    ):
        pvae.VAE(part.prior, nn.Linear(2, 2), part.posterior)


LABELLED = """
class Prior(pvae.Prior):
    def __init__(self, latent):
        super().__init__(latent)
        self.by = nn.Embedding(3, latent)
    def forward(self, y=None):
        mean = torch.zeros(self.latent) if y is None else self.by(y)
        return dist.Normal(mean, 1.0).to_event(1)

class Likelihood(pvae.Likelihood):
    support = "unit_interval"
    def forward(self, z, y=None):
        mean = self.decode(z, y)
        mean = mean if y is None else mean + y.reshape(-1, 1, 1)
        return dist.Normal(mean, 1.0).to_event(2)

class Left(pvae.Likelihood):
    support = "unit_interval"
    def forward(self, z, y=None):
        if y is not None:
            return dist.Normal(self.decode(z, y), 1.0).to_event(2)
        return dist.Normal(self.decode(z), 1.0).to_event(2)
"""


def test_a_part_that_takes_labels_is_refused_where_bounds_would_be_said_to_be_without(here, capsys):
    arrays("labelled.npz", (4, 4), y=np.arange(60) % 3)
    write(LABELLED)
    data = ["--data=labelled.npz", *SMALL[1:]]
    for family in ("prior", "likelihood"):
        likelihood = [] if family == "likelihood" else ["--likelihood=mylab:Left"]
        options = [*data, f"--{family}", f"mylab:{family.title()}", *likelihood]
        message = refused(capsys, *options)
        assert f"--{family} mylab:{family.title()}: found that it takes labels" in message
        assert "bounds are on log p(x given y): pass --condition label" in message
        assert go(*options, "--condition", "label") == 0
    assert go(*data, "--likelihood", "mylab:Left") == 0


OTHERS = """
class Embedded(pvae.Condition):
    def __init__(self, size, width: int = 4):
        super().__init__(width)
        self.table = nn.Embedding(size, width)
    @classmethod
    def of(cls, y, width: int = 4):
        return cls(int(y.max()) + 1, width)
    def forward(self, y):
        return self.table(y)

class Scaled(pvae.Decoder):
    def __init__(self, inputs, shape):
        super().__init__(inputs, shape)
        self.a, self.b = nn.Linear(inputs, 16), nn.Linear(inputs, 16)
    def forward(self, z):
        return (self.a(z).tanh() * self.b(z)).reshape(*z.shape[:-1], *self.shape)
"""


def test_a_condition_and_a_decoder_without_a_bias_of_its_own(here, capsys):
    arrays("labelled.npz", (4, 4), y=np.arange(60) % 3)
    write(OTHERS)
    options = ["--data=labelled.npz", "--likelihood=continuous_bernoulli", "--condition=mylab:Embedded"]
    small = [option for option in SMALL[1:] if "decoder" not in option]
    assert go(*options, "--decoder=mylab:Scaled", *small, "--out", "run") == 0
    assert go("run", "-n", "2", "-o", "samples.png", "--label", "2", command="sample") == 0
    message = refused(capsys, "run", "-n", "2", "-o", "others.png", "--label", "7", command="sample")
    assert "--label 7: found no such class, expected one of 0 to 2" in message


def test_a_file_that_has_changed_since_the_fit_is_told_of(capsys, monkeypatch):
    quick(monkeypatch)
    write("class Mine(Right):\n    pass")
    assert go(*SMALL, "--likelihood=gaussian", "--prior=mylab:Mine", "--out=run") == 0
    commands = {
        "compare": ["--particles=1", "--train=0"],
        "gradients": ["--particles=1", "--samples=2", "--gradient=reparam"],
        "sample": ["-n=2", "-o=x.npy"],
        "fit": [*SMALL, "--likelihood=gaussian", "--start-from=run", "--prior=mylab:Mine", "--out=new"],
    }

    def said():
        capsys.readouterr()
        for command, argv in commands.items():
            shutil.rmtree("new", ignore_errors=True)
            assert go(*["run"] * (command != "fit"), *argv, command=command) == 0
            yield capsys.readouterr().err

    line = "run: the file of mylab:Mine has changed since the run began: used as it is\n"
    assert line not in "".join(said())
    Path("mylab.py").write_text(Path("mylab.py").read_text() + "# mended\n")
    assert [err.count(line) for err in said()] == [1, 1, 1, 1]
    with pytest.warns(UserWarning, match=re.escape(line.strip())) as told:
        pvae.load.load("run")
    assert told[0].filename == __file__
    assert go(*commands["fit"][:-2], "--prior=normal") == 0  # which has nothing of that file
    assert line not in capsys.readouterr().err
    environment = json.loads(Path("run/environment.json").read_text())
    for own in ({}, {"own": 3}):  # of a run that did not write it down, and a damaged one
        Path("run/environment.json").write_text(json.dumps({**environment, "own": {}, **own}))
        assert line not in "".join(said())


def test_a_file_that_has_changed_before_a_run_is_resumed_is_told_of_and_noted(capsys, monkeypatch):
    quick(monkeypatch)
    write("class Mine(Right):\n    pass")
    for out, later in (("same", set()), ("run", {"step-000000001"})):
        assert go(*SMALL, "--likelihood=gaussian", "--prior=mylab:Mine", f"--out={out}", "--schedule=constant") == 0
        if later:
            Path("mylab.py").write_text(Path("mylab.py").read_text() + "# mended\n")
        capsys.readouterr()
        assert go("--resume", out, "--epochs=2") == 0
        line = f"{out}: the file of mylab:Mine has changed since the run began: used as it is\n"
        assert capsys.readouterr().err.count(line) == len(later)
        assert json.loads(Path(out, "environment.json").read_text()).get("own_later", {}).keys() == later


def test_files_that_a_run_went_on_with_are_those_of_the_steps_that_are_left(capsys, monkeypatch):
    quick(monkeypatch)
    write("class Mine(Right):\n    pass")
    file = Path("mylab.py")
    first = file.read_text()
    assert go(*SMALL, "--likelihood=gaussian", "--prior=mylab:Mine", "--out=run", "--schedule=constant") == 0
    own, later = json.loads(Path("run/environment.json").read_text())["own"], {}
    for epochs, text in enumerate((first, first + "# 1\n", first + "# 1\n", first, first + "# 2\n"), 2):
        file.write_text(text)
        assert go("--resume=run", f"--epochs={epochs}") == 0
        now = {"mylab:Mine": hashlib.sha256(text.encode()).hexdigest()}
        if now != (list(later.values()) or [own])[-1]:
            later[f"step-{epochs - 1:09d}"] = now
        assert json.loads(Path("run/environment.json").read_text()).get("own_later", {}) == later
    assert list(later) == ["step-000000002", "step-000000004", "step-000000005"]
    file.write_text(first)
    assert go("--resume=run/checkpoints/step-000000005") == 0
    del later["step-000000005"]
    assert json.loads(Path("run/environment.json").read_text())["own_later"] == later


def test_what_a_file_imports_is_of_the_run_too(here, monkeypatch):
    sources = {
        "mylab/priors/mine.py": "from ..base import Base\nimport helper, numpy\nfrom . import numbers\n"
        "class Mine(Base): pass",
        "mylab/priors/numbers.py": "ONE = 1",
        "mylab/priors/aside.py": "",
        "mylab/base.py": "from .priors import numbers as n\nimport pvae\nclass Base(pvae.Prior): pass",
        "mylab/__init__.py": "",
        "mylab/priors/__init__.py": "",
        "beside.py": "",
        "helper.py": "import mylab.base, beside, elsewhere\ntext = '\\d'",
    }
    for name, source in sources.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(source)
    Path("../elsewhere.py").write_text("")
    for folder in (here.parent, here):
        monkeypatch.syspath_prepend(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an escape sequence
        importlib.import_module("helper")
    config = pvae.config.Config(data="data.npz", prior="mylab.priors.mine:Mine")
    dataset = pvae.data.load("data.npz")
    with pvae.runs.Run.create("run", config) as run:
        run.describe(dataset, torch.device("cpu"), {})
    importlib.import_module("mylab.priors.aside")
    assert run.changed_parts() == []
    for name, told in (
        *(("mylab.base", 1), ("mylab.priors.numbers", 2), ("mylab.priors.aside", 2), ("mylab.priors.mine", 3)),
        *(("mylab.__init__", 4), ("mylab.priors.__init__", 5), ("beside", 6), ("../elsewhere", 7)),
    ):
        file = Path(re.sub(r"\b\.", "/", name) + ".py")
        file.write_text(file.read_text() + "# mended\n")
        assert len(run.changed_parts()) == told
    for name in ("beside.py", "../elsewhere.py"):
        Path(name).write_text("")
    Path("helper.py").write_text("what is no Python")
    lines = run.changed_parts()
    names = "mylab.priors.mine:Mine", "mylab.base", "helper", "mylab.priors.numbers", "mylab", "mylab.priors"
    assert {re.search("the file of ([^ ]*) has changed", line)[1] for line in lines} == {*names}
    record = run.read_json("environment.json")
    own = {"mylab.priors.mine:Mine": record["own"]["mylab.priors.mine:Mine"]}  # as of earlier versions
    run.write_json("environment.json", {**record, "own": own})
    assert run.changed_parts() == lines[:1]


def test_weights_that_a_file_which_has_changed_does_not_take(capsys, monkeypatch):
    quick(monkeypatch)
    mine = """
    class Mine(Right):
        def __init__(self, latent):
            super().__init__(latent)
            self.width = nn.Parameter(torch.zeros(latent))
    """
    write(mine)
    assert go(*SMALL, "--likelihood=gaussian", "--prior=mylab:Mine", "--out=run") == 0
    write(mine.replace("width", "widths"))
    del sys.modules["mylab"]
    for command, argv in (("fit", ["--resume", "run"]), ("sample", ["run", "-n=2", "-o=x.npy"])):
        message = refused(capsys, *argv, command=command)
        assert (
            "of another model: 'prior.widths' has shape nothing, expected (2,): the file of mylab:Mine has" in message
        )
        assert message.endswith(" changed since the run began: restore it\n")


FAILING = """
class Mine(pvae.Prior):
    count = 0
    def __init__(self, latent):
        super().__init__(latent)
        self.loc = nn.Parameter(torch.zeros(latent))
    def forward(self, y=None):
        Mine.count += self.training
        loc = self.loc
        if Mine.count == 20:
            OUTCOME
        return dist.Normal(loc, 1.0).to_event(1)
"""
OUTCOMES = {
    "raise ValueError('no')": (2, "failed at .*mylab.py:.*: ValueError: no\n"),
    "raise KeyboardInterrupt": (130, "SIGINT: stopped at .*, checkpoint step-0.*: continue with\n.*--resume stopped\n"),
    "loc = loc * torch.nan": (2, "epoch .*, step .*: the loss is nan: .*: training stopped before it: .*\n"),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.filterwarnings("ignore:the program runs eagerly")
def test_a_run_that_a_part_ends_is_resumed(capsys, monkeypatch, outcome):
    quick(monkeypatch)
    options = [*SMALL, "--likelihood=gaussian", "--prior=mylab:Mine", "--epochs=25", "--save-every=5", "--compile=off"]
    write(FAILING.replace("OUTCOME", outcome))
    code, text = OUTCOMES[outcome]
    assert go(*options, "--out=stopped") == code
    assert re.fullmatch(f"(pvae fit: error: .*)?{text}", capsys.readouterr().err)
    sys.modules["mylab"].Mine.count = 100
    assert go("--resume=stopped") == 0
    assert go(*options, "--out=whole") == 0
    assert Path("stopped/metrics.jsonl").read_text() == Path("whole/metrics.jsonl").read_text()


LEARNED = """
class Stored(pvae.Prior):
    def forward(self, y=None):
        return dist.Normal(pyro.param("loc", torch.zeros(self.latent)), 1.0).to_event(1)

class Anew(pvae.Prior):
    def forward(self, y=None):
        self.loc = nn.Parameter(torch.zeros(self.latent))
        return dist.Normal(self.loc, 1.0).to_event(1)

class Named(pvae.Prior):
    def __init__(self, latent):
        super().__init__(latent)
        self.net = nn.Linear(1, latent)
    def forward(self, y=None):
        return dist.Normal(pyro.module("net", self.net)(torch.ones(1)), 1.0).to_event(1)

class AtStart(pvae.Prior):
    def __init__(self, latent):
        super().__init__(latent)
        pyro.param("at_start", torch.zeros(latent))
    def forward(self, y=None):
        return dist.Normal(pyro.param("at_start"), 1.0).to_event(1)

class Training(Named):
    def forward(self, y=None):
        loc = pyro.param("training", torch.zeros(self.latent)) if self.training else torch.zeros(self.latent)
        return dist.Normal(loc, 1.0).to_event(1)

class Late(Named):
    def forward(self, y=None):
        if self.training and not hasattr(self, "late"):
            self.late = nn.Parameter(torch.zeros(self.latent))
        return dist.Normal(getattr(self, "late", torch.zeros(self.latent)), 1.0).to_event(1)

class Transposed(Named):
    def __init__(self, latent):
        super().__init__(latent)
        self.net = pyro.nn.PyroModule[nn.Linear](3, latent)
        self.net.weight = nn.Parameter(self.net.weight.detach().t().contiguous().t())
    def forward(self, y=None):
        return dist.Normal(self.net(torch.ones(3)), 1.0).to_event(1)

class Asking(Named):
    def __init__(self, latent):
        super().__init__(latent)
        self.loc = nn.Parameter(torch.zeros(latent))
    def forward(self, y=None):
        return dist.Normal(pyro.param("asked", self.loc), 1.0).to_event(1)

class Locked(Stored):
    def __init__(self, latent):
        super().__init__(latent)
        self.lock = threading.Lock()
    def forward(self, y=None):
        pyro.param("fixed", torch.zeros(())).requires_grad_(False)
        return super().forward(y)

class Penalized(pvae.ELBO):
    def bound(self, log_w):
        return super().bound(log_w) - pyro.param("penalty", torch.ones(()), constraint=dist.constraints.positive)

class Held(pvae.ELBO):
    def __init__(self, num_particles=1, **shared):
        super().__init__(num_particles, **shared)
        self.penalty = nn.Parameter(torch.ones(()))
    def bound(self, log_w):
        return super().bound(log_w) - pyro.param("penalty", self.penalty).square()
"""


@pytest.mark.parametrize("latent", ["2", "3,2"])
def test_what_is_learned_is_a_parameter_of_the_model(capsys, latent, monkeypatch):
    quick(monkeypatch)
    write("import threading\nimport pyro\nimport pyro.nn\n" + LEARNED)
    options = [*SMALL, "--likelihood=gaussian", "--latent", latent]
    for name, found in (
        ("prior mylab:Stored", "pyro.param 'loc'"),
        ("prior mylab:Anew", "Parameter 'prior.loc', made by forward,"),
        ("prior mylab:AtStart", "pyro.param 'at_start'"),
        ("prior mylab:Training", "pyro.param 'training'"),
        ("prior mylab:Late", "Parameter 'prior.late', made by forward,"),
        ("prior mylab:Locked", "pyro.param 'loc'"),
        ("objective mylab:Penalized", "pyro.param 'penalty'"),
    ):
        for _ in range(2):  # Pyro's store is left as it was
            message = refused(capsys, *options, *f"--{name}".split())
            assert (
                f"--{name}: found the {found} which no checkpoint would have, expected a Parameter that is" in message
            )
            assert message.count("asks for by pyro.param('NAME', self.NAME)") == ("objective" in name)
    assert go(*options, "--prior=mylab:Asking") == 0
    assert go(*options, "--prior=mylab:Named", "--out=run") == 0
    assert go("run", "--particles=1", "--train=0", command="compare") == 0
    assert go(*options, "--prior=mylab:Transposed", "--objective=mylab:Held") == 0


BUFFERS = """
class Drawn(pvae.Prior):
    saved = False
    def __init__(self, latent):
        super().__init__(latent)
        self.register_buffer("loc", torch.randn(latent), persistent=self.saved)
        self.register_buffer("one", torch.ones(latent), persistent=False)
        self.register_buffer("unknown", torch.full((latent,), torch.nan), persistent=False)
        self.register_buffer("start", torch.zeros(()), persistent=False)
        self.register_buffer("last", torch.zeros(latent), persistent=False)
        for i, kind in enumerate((torch.float32, torch.int64, torch.bool)):
            self.register_buffer(f"scratch{i}", torch.empty(1000, dtype=kind), persistent=False)
        self.shift = torch.nn.Parameter(torch.randn(latent))
    def initialize(self, x, y=None):
        self.start.fill_(x.mean())
    def forward(self, y=None):
        self.last.copy_(self.shift.detach())
        return dist.Normal(self.loc + self.shift, self.one).to_event(1)

class Saved(Drawn):
    saved = True

class Within(Saved):
    def __init__(self, latent):
        super().__init__(latent)
        self.net = nn.Linear(1, 1)
        self.net.register_buffer("drawn", torch.randn(latent), persistent=False)
"""


def test_random_numbers_of_a_part_are_saved_with_it(capsys, monkeypatch):
    quick(monkeypatch)
    write(BUFFERS)
    for name, buffer in (("Drawn", "loc"), ("Within", "net.drawn")):
        message = refused(capsys, *SMALL, "--likelihood=gaussian", f"--prior=mylab:{name}")
        assert f"mylab:{name}: found random numbers in the buffer 'prior.{buffer}', which no checkpoint" in message
    assert go(*SMALL, "--likelihood=gaussian", "--prior=mylab:Saved", "--out=run") == 0
    fitted, again = (pvae.load.load("run")[0].prior for _ in range(2))
    assert torch.equal(fitted.loc, again.loc)
    assert torch.equal(fitted.start, again.start)
