"""The commands: what a person did wrong is one line; what was interrupted goes on as if it had not been."""

import builtins
import errno
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import SMALL, go, refused
from rich.console import Console

import pvae.__main__
from pvae import cli, config, fit, load, report, runs, svi
from pvae.runs import checkpoints

pytestmark = pytest.mark.usefixtures("here")


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_equal_runs(a, b):
    """Bit for bit: weights, optimizer, generators, metrics, final numbers."""
    for last in (runs.Run.open(a).last(), runs.Run.open(a).best()):
        other = checkpoints.load(Path(b) / "checkpoints" / last.path.name)
        assert same(last.weights, other.weights)
        assert same(last.state, other.state)
    for name in ("metrics.jsonl", "summary.json"):
        assert (Path(a) / name).read_text() == (Path(b) / name).read_text()


def after_step(monkeypatch, number, do):
    """Do something once, right after a step."""
    real, done = svi.SVI.run, []

    def run(self, *args, **kwargs):
        for losses in real(self, *args, **kwargs):
            if self.steps == number and not done:
                done.append(True)
                do()
            yield losses

    monkeypatch.setattr(svi.SVI, "run", run)


def send(*signals):
    return lambda: [os.kill(os.getpid(), number) for number in signals]


# what a person can get wrong ----------------------------------------------------------------------------------------

OPTIONS = {
    "--likelihood bernouli": "did you mean 'bernoulli'?",
    "--prior norml": "did you mean 'normal'?",
    "--objective iwea": "did you mean 'iwae'?",
    "--prior ''": "unknown prior ''",
    "--prior nosuchmodule:Prior": "no module named 'nosuchmodule'",
    "--prior os:getcwd": "expected a subclass of pvae.Prior",
    "--prior pvae.likelihoods:Gaussian": "expected a subclass of pvae.Prior",
    "--encoder.activation rleu": "did you mean 'relu'?",
    "--data mnits": "did you mean 'mnist'?",
    "--data nosuch.npz": "no such file",
    "--schedule cosin": "did you mean 'cosine'?",
    "--binarize dynamc": "did you mean 'dynamic'?",
    "--device gpu": "found 'gpu', expected auto, cpu or cuda",
    "--epoch 3": "did you mean --epochs?",
    "--x 3": "--x: unknown option: see pvae fit --help",
    "--LATENT 3": "--LATENT: unknown option: did you mean --latent?",
    "''": "'': found one word too many",
    "--latent 1,3 --layer categorical": "--layer categorical: categories: found 1 for a latent of size 1",
    "--epochs": "--epochs: expected one argument",
    "--epochs ten": "--epochs: found 'ten', expected a whole number",
    "--epochs 1.5": "--epochs: found '1.5'",
    "--epochs 0": "--epochs: found 0, expected at least 1",
    "--latent 0": "--latent: found 0, expected at least 1",
    "--latent 4611686018427387904": "out of memory",
    "--particles 0": "--particles: found 0, expected at least 1",
    "--batch-size -3": "--batch-size: found -3, expected at least 1",
    "--lr 0": "--lr: found 0.0, expected more than 0",
    "--lr -1": "--lr: found -1.0, expected more than 0",
    "--lr nan": "--lr: found 'nan', expected a number",
    "--clip-norm 0": "--clip-norm: found 0.0, expected more than 0",
    "--seed -1": "--seed: found -1, expected at least 0",
    "--seed 99999999999999999999": "found '99999999999999999999', expected a whole number between -2^63 and 2^63",
    "--eval-particles 0,5": "--eval-particles: found (0, 5), expected at least 1",
    "--eval-particles ,": "--eval-particles: found none",
    "--eval-chunk 5": "--eval-chunk: found 5, expected at least 128",
    "--validation 1": "validation: found 1.0, expected a fraction",
    "--test 0": "test: found 0",
    "--encoder.hidden 0": "--encoder.hidden: found 0, expected each to be at least 1",
    "--encoder.hidden 5,-5": "--encoder.hidden: found 5,-5",
    "--encoder.channels 3": "it belongs to conv",
    "--likelihood.scale 3": "it belongs to discretized_logistic, gaussian, laplace",
    "--likelihood.scal 3": "likelihood 'bernoulli' has no such option",
    "--likelihood gaussian --likelihood.scale opt": "did you mean 'optimal'?",
    "--likelihood gaussian --likelihood.scale -1": "--likelihood.scale: found -1.0",
    "--objective.analytic_kl maybe": "expected true or false",
    "--prior.scale 3": "prior 'normal' has no such option",
    "--prior.scale 3 --zzz": "--zzz: unknown option",
    "--lik.scale 3": "--lik.scale: unknown option",
    "stray": "stray: found one word too many",
    "--config nosuch.yaml": "--config nosuch.yaml: cannot be read",
    "--resume nosuch": "nosuch: no such run folder",
}


@pytest.mark.parametrize("line", OPTIONS)
def test_a_wrong_option(line, capsys):
    assert (
        OPTIONS[line] in refused(capsys, *shlex.split(line), "--epochs", "1")
        if "--epochs" not in line
        else (OPTIONS[line] in refused(capsys, *shlex.split(line)))
    )


X = np.random.default_rng(0).random((40, 4, 4), dtype=np.float32)


def changed(value):
    x = X.copy()
    x[17, 2, 3] = value
    return x


ARRAYS = {
    "pixels outside [0, 1]": (changed(3), [], ["datum 17, position (2, 3): found 3", "--likelihood gaussian"]),
    "grey": (X, ["--binarize", "none"], ["expected 0 or 1", "--binarize dynamic"]),
    "nan": (changed(np.nan), [], ["datum 17, position (2, 3): found nan, expected a finite number"]),
    "infinite": (changed(np.inf), ["--likelihood", "gaussian"], ["datum 17, position (2, 3): found inf"]),
    "a vector": (X[:, 0, 0], [], ["shape (40,)", "expected (N, ...)"]),
    "text": (np.array([["a"], ["b"]]), [], ["dtype <U1"]),
    "no data": (X[:0], [], ["found 0 data, expected at least 2"]),
    "one datum": (X[:1], [], ["found 1 data, expected at least 2"]),
    "objects": (np.array([{}, 2], dtype=object), [], ["pickled objects"]),
    "not an image": (X[:, 0], ["--encoder", "conv"], ["expected images"]),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_wrong_data(case, here, capsys):
    x, options, texts = ARRAYS[case]
    np.savez("mine.npz", x=x)
    message = refused(capsys, "--data", "mine.npz", *options)
    assert "mine.npz" in message or case == "not an image"
    for text in texts:
        assert text in message


def test_damaged_data(here, capsys):
    np.savez("mine.npz", x=X)
    Path("mine.npz").write_bytes(Path("mine.npz").read_bytes()[:400])
    assert "mine.npz: cannot be read" in refused(capsys, "--data", "mine.npz")


CONFIGS = {
    "epoch: 3": "did you mean 'epochs'?",
    "an epoch: 3": "--an epoch: unknown option",
    "epochs: ten": "--epochs: found 'ten'",
    "likelihood.scale: 3": "it belongs to discretized_logistic, gaussian, laplace",
    "likelihood: {name: gaussian}": "--likelihood: found",
    "- 1": "found list",
    "": "found NoneType",
    "a: [1": "not YAML",
    "a: " + "[" * 2000: "not YAML",
    "\0": "not YAML",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_a_wrong_configuration_file(text, here, capsys):
    Path("mine.yaml").write_text(text)
    message = refused(capsys, "--config", "mine.yaml")
    assert "--config mine.yaml: " in message
    assert CONFIGS[text] in message


def test_out_is_taken(here, run, capsys, monkeypatch):
    (here / "file").touch()
    (here / "full").mkdir()
    (here / "full" / "mine").touch()
    monkeypatch.setattr(fit, "read_data", None)  # refused before any work
    assert "found a file" in refused(capsys, "--out", "file")
    assert "choose another folder" in refused(capsys, "--out", "full")
    assert f"continue it with --resume {run}" in refused(capsys, "--out", run)


def test_out_cannot_be_written(here, capsys):
    (here / "file").touch()
    assert "cannot be written to" in refused(capsys, *SMALL, "--out", "file/run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda(run, capsys):
    for command, argv in {"fit": [], "compare": [run], "sample": [run]}.items():
        assert "no CUDA device is there" in refused(capsys, *argv, "--device", "cuda", command=command)


def test_resume_keeps_the_configuration(run, capsys):
    for given in (["--epochs", "5"], ["--prior.scale", "1"], ["--out", "x"], ["--print-config"]):
        assert f"--resume with {given[0]}" in refused(capsys, "--resume", run, *given)


def test_a_run_is_trained_further_where_no_schedule_ends_with_it(capsys, plain):
    constant = [*SMALL, "--schedule", "constant", "--compile", "off"]
    assert go(*constant, "--out", "whole") == 0
    assert go(*constant, "--epochs", "2", "--out", "part") == 0
    for epochs in ("1", "2"):
        message = refused(capsys, "--resume", "part", "--epochs", epochs)
        assert f"--resume with --epochs {epochs}: expected more than the run's 2" in message
    assert go("--resume", "part", "--epochs", "3") == 0
    assert "3 epochs from epoch 3" in capsys.readouterr().out
    assert_equal_runs("whole", "part")
    assert Path("whole/config.yaml").read_text() == Path("part/config.yaml").read_text()
    before = Path("part/checkpoints") / checkpoints.names(Path("part/checkpoints"))[0]
    for path in (before, "part"):  # of before it was made longer; and to where it ends now
        assert go("--resume", path) == 0
        assert_equal_runs("whole", "part")


def test_a_run_is_trained_further_from_before_its_rate_fell(capsys, plain):
    """As if it had been that long from the start."""
    short = [*SMALL, "--compile", "off", "--save-every", "1"]
    assert go(*short, "--epochs", "5", "--out", "whole") == 0
    assert go(*short, "--epochs", "3", "--out", "part") == 0
    names = checkpoints.names(Path("part/checkpoints"))
    steady = Path("part/checkpoints") / names[0]  # 26 of the 33 steps
    assert steady.name == "step-000000022"
    message = refused(capsys, "--resume", "part", "--epochs", "5")
    assert (
        f"in {names[-1]} the learning rate is on its way to zero over 3 epochs (--schedule cooldown): go back to"
        f" before, --resume {steady} --epochs 5, which deletes what came after" in message
    )
    assert go("--resume", steady, "--epochs", "5") == 0
    assert_equal_runs("whole", "part")
    assert Path("whole/config.yaml").read_text() == Path("part/config.yaml").read_text()
    assert go("--resume", "part") == 0
    assert_equal_runs("whole", "part")


@pytest.mark.parametrize(("schedule", "number"), [("cooldown", 30), ("constant", 40)])
def test_epochs_that_were_made_too_few_for_where_a_run_is(schedule, number, capsys, monkeypatch, plain):
    with monkeypatch.context() as patch:
        after_step(patch, number, send(signal.SIGINT))
        assert go(*SMALL, "--epochs", "9", "--schedule", schedule, "--compile", "off", "--out", "run") == 130
    file = Path("run/config.yaml")
    given = file.read_text()
    file.write_text(given.replace("epochs: 9", "epochs: 3"))
    for more in ([], ["--epochs", "12"]):
        message = refused(capsys, "--resume", "run", *more)
        assert (
            "run/config.yaml: found 3 epochs, in which the learning rate falls, or which end, before step-" in message
        )
    file.write_text(given)
    assert go("--resume", "run", "--epochs", "12") == 0


def test_a_run_whose_rate_has_fallen_is_not_trained_further(capsys, plain):
    assert go(*SMALL, "--save-every", "3", "--compile", "off", "--out", "run") == 0
    for schedule in ("cooldown", "cosine"):
        message = refused(capsys, "--resume", "run", "--epochs", "5")
        assert (
            f"over 3 epochs (--schedule {schedule}): start a new run with --config run/config.yaml --epochs 5"
            in message
        )
        if schedule == "cooldown":
            assert go(*SMALL, "--schedule", "cosine", "--compile", "off", "--out", "cosine") == 0
            Path("run").rename("before")
            Path("cosine").rename("run")


def test_a_fit_begins_with_the_weights_of_another(run, capsys, plain, monkeypatch):
    """Of the parts that are alike: an importance-weighted bound, and another prior, on a model that is fitted."""
    begun = []
    monkeypatch.setattr(fit, "_fit", lambda run, training, signals: begun.append(training.vae) or 0)
    fitted = load.load(run)[0].state_dict()
    for out, more, line in (
        ("same", ["--objective", "iwae", "--particles", "5"], "likelihood, guide\n"),
        ("other", ["--prior", "mixture", "--decoder.hidden", "17"], "guide; anew: prior, likelihood\n"),
    ):
        torch.manual_seed(7)
        assert go(*SMALL, *more, "--start-from", run, "--out", out) == 0
        assert f"weights of {run}/checkpoints/step-000000033: {line}" in capsys.readouterr().out
        found, start = begun.pop().state_dict(), json.loads(Path(out, "environment.json").read_text())["start"]
        assert Path(start["checkpoint"]).name == "step-000000033"
        assert start["taken"] == line.partition(";")[0].strip().split(", ")
        for name, value in found.items():
            taken = name.partition(".")[0].replace("posterior", "guide") in start["taken"]
            assert not taken or torch.equal(value, fitted[name]), name
            assert taken or name not in fitted or not torch.equal(value, fitted.get(name)), name


def test_weights_to_begin_with_are_of_the_best_checkpoint_or_the_one_named(run, capsys):
    kept = runs.Run.open(run)
    vae = load.load(run)[0]
    other = {name: value + 1 for name, value in vae.state_dict().items()}
    checkpoints.save(run / "checkpoints", "step-000000034", other, kept.last().state)
    for folder, more in ((run, 0), (run / "checkpoints" / "step-000000034", 1)):
        new = load.load(run)[0]
        load.begin_with(new, folder)
        for name, value in new.state_dict().items():
            assert torch.equal(value, vae.state_dict()[name] + more)


def test_a_run_that_began_with_anothers_weights_resumes_without_it(run, plain, capsys):
    begun = [*SMALL, "--start-from", run, "--schedule", "constant", "--compile", "off"]
    assert go(*begun, "--out", "whole") == 0
    assert go(*begun, "--epochs", "2", "--out", "part") == 0
    shutil.rmtree(run)
    assert go("--resume", "part", "--epochs", "3") == 0
    assert_equal_runs("whole", "part")


def test_weights_to_begin_with_that_were_fitted_on_other_data_are_told_of(run, capsys, monkeypatch):
    monkeypatch.setattr(fit, "_fit", lambda run, training, signals: 0)
    for seed, told in (("0", False), ("1", True)):
        assert go(*SMALL, "--data-seed", seed, "--start-from", run, "--out", f"new{seed}") == 0
        assert ("fitted on other data or another split (digits)" in capsys.readouterr().out) is told


def test_no_weights_to_begin_with(run, capsys):
    assert "nosuch: no such run folder" in refused(capsys, *SMALL, "--start-from", "nosuch", "--out", "new")
    wider = [*SMALL, "--latent", "3", "--start-from", run, "--out", "new"]
    assert "found weights of other shapes for each part of this model (likelihood, guide)" in refused(capsys, *wider)
    assert not Path("new").exists()


def test_resume_of_what_is_no_run(here, run, capsys):
    assert "not a run folder" in refused(capsys, "--resume", here)
    assert "no such checkpoint" in refused(capsys, "--resume", run / "checkpoints" / "step-000000001")
    shutil.rmtree(run / "checkpoints")
    again = f"in another folder, with python -m pvae.fit --config {run}/config.yaml"
    assert again in refused(capsys, "--resume", run)
    assert again in refused(capsys, run, command="sample")
    assert "exists and is not empty: choose another folder" in refused(capsys, "--out", run)  # no way round in a circle


def edit(folder, old, new):
    text = (Path(folder) / "config.yaml").read_text()
    assert old in text
    (Path(folder) / "config.yaml").write_text(text.replace(old, new))


EDITS = {
    "lr 0.01, which was 0.002": ("\nlr: 0.002", "\nlr: 0.01"),
    "seed 1, which was 0": ("\nseed: 0", "\nseed: 1"),
    "epochs 5, which was 3": ("epochs: 3", "epochs: 5"),
    "save-every 2, which was None": ("save-every: null", "save-every: 2"),
    "latent 3, which was 2": ("latent: 2", "latent: 3"),
    "objective.beta 2.0, which was not set": ("gradient:", "objective.beta: 2.0\ngradient:"),
    "encoder.hidden not set, which was [16]": ("encoder.hidden:\n- 16\n", ""),
}


@pytest.mark.parametrize("found", EDITS)
def test_a_configuration_that_was_edited_is_refused(found, run, capsys):
    """Else it would go on, or be measured, as neither the one run nor the other."""
    edit(run, *EDITS[found])
    last = run / "checkpoints" / runs.Run.open(run).names()[-1]
    for command, argv in {"fit": ["--resume", run], "compare": [run], "sample": [last]}.items():
        assert f"config.yaml: found {found} when {last.name} was" in refused(capsys, *argv, command=command)


def test_where_a_run_and_its_data_lie_may_be_edited(run, finished, plain):
    edit(run, "device: auto", "device: cpu")
    edit(run, "eval-chunk: null", "eval-chunk: 1024")
    edit(run, "data-dir: null", "data-dir: elsewhere")
    assert go("--resume", run) == 0
    assert (run / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()


def test_a_checkpoint_of_another_run_is_refused(run, capsys, plain):
    assert go(*SMALL, "--seed", "1", "--out", "other") == 0
    name = runs.Run.open(run).names()[-1]
    shutil.rmtree(run / "checkpoints" / name)
    shutil.copytree(Path("other/checkpoints") / name, run / "checkpoints" / name)
    assert f"found seed 0, which was 1 when {name} was written" in refused(capsys, "--resume", run)


def test_resume_of_another_model(run, capsys):
    """Of a checkpoint that says nothing of its configuration, as those of earlier versions."""
    last = runs.Run.open(run).last()
    shutil.rmtree(last.path)
    state = {key: value for key, value in last.state.items() if key != "config"}
    checkpoints.save(last.path.parent, last.path.name, last.weights, state)
    edit(run, "latent: 2", "latent: 3")
    assert "of another model: 'likelihood.decoder" in refused(capsys, "--resume", run)


def test_resume_of_a_foreign_state(run, capsys):
    last = runs.Run.open(run).last()
    shutil.rmtree(last.path)
    checkpoints.save(last.path.parent, last.path.name, last.weights, {"epoch": 3})
    assert "foreign" in refused(capsys, "--resume", run)


def test_data_have_changed(here, capsys, plain):
    np.savez("mine.npz", x=X)
    assert go(*SMALL, "--data", "mine.npz", "--out", "run") == 0
    np.savez("mine.npz", x=X + 0)
    assert go("--resume", "run") == 0
    np.savez("mine.npz", x=X[::-1])
    for command, argv in {"fit": ["--resume", "run"], "compare": ["run"], "sample": ["run"]}.items():
        assert "mine.npz' have changed since the run began" in refused(capsys, *argv, command=command)


def test_one_is_not_many(here, capsys, plain):
    assert go(*SMALL, "--eval-particles", "1", "--out", "run") == 0
    assert "test data with 1 draw each\n" in "".join(capsys.readouterr())
    assert go("run", "-n", "1", "-o", "x.npy", command="sample") == 0
    assert capsys.readouterr().out == "1 sample in x.npy\n"


def test_data_that_have_changed_are_told_of_before_they_are_looked_at(here, capsys, plain):
    np.savez("mine.npz", x=X.round())
    assert go(*SMALL, "--likelihood", "bernoulli", "--binarize", "none", "--data", "mine.npz", "--out", "run") == 0
    np.savez("mine.npz", x=X.round() / 2)  # which it does not score
    message = refused(capsys, "run", command="compare")
    assert re.search(r"error: run: the data '.*mine\.npz' have changed since the run began", message)
    Path("mine.npz").write_bytes(b"none")
    assert re.search(r"error: run: .*mine\.npz: ", refused(capsys, "run", command="compare"))


OTHERS = {
    "compare RUN --out RUN/summary.json": "summary.json: found a run's own file, expected another: choose another name",
    "gradients RUN --out RUN/environment.json": "environment.json: found a run's own file",
    "compare": "the following arguments are required: runs",
    "compare RUN nosuch": "nosuch: no such run folder",
    "compare RUN --seed -1": "--seed: found -1, expected at least 0",
    "compare RUN --eval-chunk 3": "--eval-chunk: found 3, expected at least 128",
    "compare RUN --out nodir/x.png": "--out nodir/x.png: expected a file in a folder that exists: make it",
    "sample RUN -n 0": "-n: found 0, expected at least 1",
    "sample RUN -n ten": "-n: found 'ten'",
    "sample RUN -n 100000000000": "out of memory: lower -n",
    "sample RUN --seed -1": "--seed: found -1",
    "sample RUN -o x.txt": "-o x.txt: found the ending '.txt'",
    "sample RUN -o nodir/x.png": "-o nodir/x.png: expected a file in a folder that exists: make it",
    "sample RUN other": "other: found one word too many",
}


@pytest.mark.parametrize("line", OTHERS)
def test_a_wrong_option_of_the_others(line, finished, capsys):
    command, *argv = line.replace("RUN", str(finished)).split()
    assert OTHERS[line] in refused(capsys, *argv, command=command)


def test_an_unknown_command():
    done = subprocess.run([sys.executable, "-m", "pvae", "fti"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'fit'?" in done.stderr


# what goes wrong by itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_in_training(error, capsys, monkeypatch):
    def step(*_, **__):
        raise error

    monkeypatch.setattr(svi.SVI, "run", step)
    message = refused(capsys, *SMALL, "--out", "new")  # and leaves no folder
    assert "out of memory: lower --batch-size, --particles" in message


def test_out_of_memory_in_evaluation(capsys, monkeypatch, plain, finished):
    def evaluate(*_, **__):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(report, "evaluate", evaluate)
        assert go(*SMALL, "--out", "new") == 2
    assert "--resume with a lower --eval-chunk" in capsys.readouterr().err
    assert go("--resume", "new", "--eval-chunk", "200") == 0
    assert_equal_runs(finished, "new")


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(fit, "read_data", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.run(fit.main, "fit", SMALL)


def test_nan_at_once(capsys):
    message = refused(capsys, *SMALL, "--lr", "1e30", "--out", "new")
    assert "epoch 1, batch 2 of 11, step 2: the loss is nan: in the guide, site 'z'" in message
    assert "lower --lr" in message


def test_large_numbers_are_named_where_training_diverges(here, capsys):
    np.save("mine.npy", 9e8 * np.random.default_rng(0).random((60, 200)))
    assert go(*SMALL, "--data", "mine.npy", "--likelihood", "gaussian", "--lr", "1e5", "--out", "new") == 2
    out, err = capsys.readouterr()
    assert "up to 9e+08 in size: standardize the data lest training diverge" in out.splitlines()[0]
    assert err.endswith("the data are up to 9e+08 in size: standardize the data lest training diverge\n")


def test_nan_found_by_validation(capsys):
    message = refused(capsys, *SMALL, "--lr", "1e30", "--batch-size", "5000", "--out", "new")
    assert "validation after epoch 1, step 1" in message


def test_nan_later_leaves_the_last_checkpoint(capsys, monkeypatch, plain, finished):
    real = svi.SVI.run

    def run(self, rows, x, y, prepare):
        for losses in real(self, rows, x, y, prepare=prepare):
            if self.steps == 25:
                next(iter(self._names)).data.fill_(float("nan"))
            yield losses

    with monkeypatch.context() as patch:
        patch.setattr(svi.SVI, "run", run)
        assert go(*SMALL, "--out", "new") == 2
    assert "epoch 3, batch 4 of 11, step 26: the loss is nan" in capsys.readouterr().err
    assert runs.Run.open("new").names() == ["step-000000011", "step-000000022"]
    for name in runs.Run.open("new").names():
        found = checkpoints.load(Path("new/checkpoints") / name)
        assert all(value.isfinite().all() for value in found.weights.values())
    assert go("--resume", "new") == 0
    assert_equal_runs(finished, "new")


def fill_the_disk(monkeypatch, after):
    """Every write but the first few fails, as on a full disk."""
    real, writes = builtins.open, []

    def full(file, mode="r", *args, **kwargs):
        opened = real(file, mode, *args, **kwargs)
        if set("wa") & set(mode) and "new" in str(file):
            writes.append(file)
            if len(writes) > after:
                opened.close()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        return opened

    monkeypatch.setattr(builtins, "open", full)
    monkeypatch.setattr(io, "open", full)


@pytest.mark.parametrize("after", [0, 2, 4, 6, 7, 9, 11, 14])
def test_the_disk_is_full(after, capsys, monkeypatch, plain, finished):
    with monkeypatch.context() as patch:
        fill_the_disk(patch, after)
        assert go(*SMALL, "--out", "new") == 2
    err = capsys.readouterr().err
    assert "the disk is full: free some space" in err
    assert err.count("\n") == 1
    assert Path("new").exists() == (after > 6)  # three files, a line of metrics and three of a checkpoint
    assert go(*(["--resume", "new"] if after > 6 else [*SMALL, "--out", "new"])) == 0
    assert_equal_runs(finished, "new")


def test_results_on_a_full_disk(capsys, monkeypatch, plain, finished):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        assert go(*SMALL, "--out", "new") == 2
    assert "new/results.nc: the disk is full" in capsys.readouterr().err
    assert go("--resume", "new") == 0
    assert_equal_runs(finished, "new")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint(damage, run, finished, capsys, plain):
    last = runs.Run.open(run).last().path / checkpoints.STATE
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.unlink() if damage == "remove" else last.write_bytes(content if damage == "flip" else content[:99])
    message = refused(capsys, "--resume", run)
    assert "step-000000033: damaged" in message
    offered = re.search(r"newest whole one is (\S+):", message)[1]
    assert offered.endswith("step-000000022")
    refused(capsys, run, command="sample")
    assert go(offered, "-o", "x.npy", command="sample") == 0
    assert go("--resume", offered) == 0
    assert_equal_runs(finished, run)


# resuming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 11, 17, 22, 33], ids=lambda n: f"step {n}")
def test_interrupted_and_resumed(number, capsys, monkeypatch, plain, finished):
    after_step(monkeypatch, number, send(signal.SIGTERM))
    assert go(*SMALL, "--out", "new") == 143
    err = capsys.readouterr().err
    assert "SIGTERM: stopped" in err
    command = shlex.split(err.splitlines()[-1])
    assert command == ["python", "-m", "pvae.fit", "--resume", "new"]
    assert runs.Run.open("new").names()[-1] == f"step-{number:09d}"
    assert go(*command[3:]) == 0
    assert_equal_runs(finished, "new")


@pytest.mark.parametrize(
    ("command", "module"),
    [*((each, "torch") for each in ("fit", "compare", "gradients", "sample", "parts", "")), ("fit", "rich.console")],
)
def test_interrupted_while_it_is_being_imported(command, module, here):
    """Ctrl-C as a module begins to be imported: by the package, or by the command after it."""
    (here / "sitecustomize.py").write_text(f"""if True:
        import os, signal, sys
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "{module}":
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Finder())
    """)
    name = ".".join(filter(None, ["pvae", command]))
    paths = os.pathsep.join([str(here), str(Path(pvae.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-m", name, "--help"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == f"{name.replace('.', ' ')}: error: interrupted: nothing to resume was written\n"


def test_interrupted_while_an_optimizer_is_imported(here):
    """Ctrl-C as torch is about to import a compiler, which makes another exception of one, and ends the process."""
    (here / "sitecustomize.py").write_text("""if True:
        import os, signal, sys
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "torch._dynamo":
                    try:
                        os.kill(os.getpid(), signal.SIGINT)
                    except KeyboardInterrupt:
                        os.abort()
        sys.meta_path.insert(0, Finder())
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(Path(pvae.__file__).parents[1])])}
    argv = [sys.executable, "-m", "pvae.fit", *SMALL, "--out", "new"]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert done.returncode == 130
    assert done.stderr == "pvae fit: error: interrupted: nothing to resume was written\n"
    assert not Path("new").exists()


def test_interrupted_again_and_again(monkeypatch, plain):
    options = [*SMALL, "--likelihood", "gaussian", "--likelihood.scale", "optimal", "--objective", "iwae"]
    options += ["--particles", "3", "--clip-norm", "5", "--save-every", "2"]
    assert go(*options, "--out", "whole") == 0
    argv = [*options, "--out", "new"]
    for number in (1, 2, 11, 12, 30):
        after_step(monkeypatch, number, send(signal.SIGINT))
        assert go(*argv) == 130
        argv = ["--resume", "new"]
    assert go(*argv) == 0
    assert_equal_runs("whole", "new")


def test_a_fit_in_another_thread_is_the_same(plain, finished):
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(go, *SMALL, "--out", "new").result() == 0
    assert_equal_runs(finished, "new")


def test_a_second_signal_stops_at_once(monkeypatch, capsys, plain, finished):
    with monkeypatch.context() as patch:
        after_step(patch, 5, send(signal.SIGINT, signal.SIGINT))
        assert go(*SMALL, "--out", "new") == 130
    assert not Path("new").exists()
    with monkeypatch.context() as patch:
        after_step(patch, 25, send(signal.SIGTERM, signal.SIGTERM))
        assert go(*SMALL, "--out", "new") == 143
    assert "checkpoint step-000000022: continue with" in capsys.readouterr().err
    assert go("--resume", "new") == 0
    assert_equal_runs(finished, "new")


def test_a_signal_during_evaluation(monkeypatch, capsys, plain, finished):
    real = report.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(report, "evaluate", lambda *a, **k: (send(signal.SIGINT)(), real(*a, **k)))
        assert go(*SMALL, "--out", "new") == 130
    assert "SIGINT: stopped after training" in capsys.readouterr().err
    assert not Path("new/summary.json").exists()
    assert go("--resume", "new") == 0
    assert_equal_runs(finished, "new")


@pytest.mark.parametrize("where", ["evaluate", "results", "write_results"])
def test_a_signal_in_a_destructor_during_evaluation(where, monkeypatch, capsys, plain, finished):
    """There Python drops the exception."""

    class Dropped:
        def __del__(self):
            send(signal.SIGTERM)()

    real = getattr(report, where)
    with monkeypatch.context() as patch:
        patch.setattr(report, where, lambda *a, **k: (Dropped() and None, real(*a, **k))[1])
        assert go(*SMALL, "--out", "new") == 143
    out, err = capsys.readouterr()
    assert "run folder" not in out
    assert err == "SIGTERM: stopped after training, checkpoint step-000000033: continue with\n" + (
        "  python -m pvae.fit --resume new\n"
    )
    assert go("--resume", "new") == 0
    assert_equal_runs(finished, "new")


def test_a_signal_before_training(monkeypatch, capsys):
    def read_data(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "read_data", read_data)
    assert go(*SMALL, "--out", "new") == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("new").exists()


def test_killed_at_any_moment(finished):
    """`kill -9` wherever it falls: what is left resumes, or starts cleanly under the same name."""
    draw = random.Random(0)
    body = """if True:
        import os, sys, h5netcdf, sklearn.datasets, torch._dynamo, xarray  # once for all children
        import pvae.fit as fit, pvae.runs.checkpoints as c, pvae.runs.run as runs, pvae.report as report
        report.figures.draw = lambda *_: None
        left = [int(sys.argv[1])]
        os.fsync = lambda _: None
        def deadly(where, name):
            real = getattr(where, name)
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0: os.kill(os.getpid(), 9)
                return real(*args, **kwargs)
            setattr(where, name, call)
        for name in ("fsync", "rename", "replace", "mkdir", "open"): deadly(os, name)
        for name in ("log", "save", "write_json"): deadly(runs.Run, name)
        for kills in map(int, sys.argv[2].split(",")):
            pid = os.fork()
            if not pid:
                left[0] = kills
                names = os.path.isdir("new/checkpoints") and c.names(__import__("pathlib").Path("new/checkpoints"))
                os._exit(fit.main(["--resume", "new"] if names else sys.argv[3:]))
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        """
    moments = [draw.randrange(1, 25) for _ in range(10)] + [10**9]
    argv = [sys.executable, "-c", body, str(10**9), ",".join(map(str, moments)), *SMALL, "--out", "new"]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    codes = [int(line) for line in done.stdout.splitlines() if re.fullmatch(r"-?\d+", line)]
    assert set(codes) <= {0, -9}, done.stderr
    assert codes.count(-9) > 3
    assert codes[-1] == 0
    assert_equal_runs(finished, "new")


def test_going_back_to_an_older_checkpoint(run, finished, plain):
    assert go("--resume", run / "checkpoints" / "step-000000022") == 0
    assert_equal_runs(finished, run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--prior bernoulli --guide bernoulli",
            "--prior bernoulli --likelihood bernoulli --guide bernoulli --objective elbo --gradient reparam: site 'z':"
            " elbo with gradient reparam needs draws that are reparameterized",
        ),
        ("--guide delta --gradient score --particles 2", "Point is a point mass"),
        ("--prior mixture --gradient gdreg --particles 2", "--gradient gdreg: site 'z': found a prior FiniteMixture"),
        (
            "--encoder conv --data rows.npy --likelihood gaussian",
            "--encoder conv: found data of shape (3,), expected image",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused_before_a_run_begins(options, message, here, capsys):
    np.save("rows.npy", np.zeros((20, 3), dtype=np.float32))
    assert go(*SMALL[:2], *options.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not Path("runs").exists()


def test_a_refused_resume_deletes_nothing(run, capsys):
    before = runs.Run.open(run).names()
    environment = json.loads((run / "environment.json").read_text())
    environment["data"]["sha256"] = "0" * 64
    (run / "environment.json").write_text(json.dumps(environment))
    refused(capsys, "--resume", run / "checkpoints" / before[0])
    assert runs.Run.open(run).names() == before


def test_the_last_two_and_the_best_are_kept_and_the_last_before_the_rate_falls(plain, monkeypatch):
    real = fit.Training._validate

    def validate(self):
        found = real(self)
        if self.at.epoch > 2:
            self.at.best = {"steps": 22, "epoch": 2, "bound": 0.0}
        return found

    monkeypatch.setattr(fit.Training, "_validate", validate)
    assert go(*SMALL, "--epochs", "6", "--out", "new") == 0
    assert [checkpoints.steps(name) for name in runs.Run.open("new").names()] == [22, 44, 55, 66]
    assert json.loads(Path("new/summary.json").read_text())["epoch"] == 2


# what works ---------------------------------------------------------------------------------------------------------


def test_configuration_round_trip(capsys):
    options = "--likelihood gaussian --likelihood.scale optimal --lr 1e-3 --eval-particles 1,7 --encoder.hidden 8,9"
    assert go(*options.split(), "--print_config") == 0
    printed = capsys.readouterr().out
    Path("mine.yaml").write_text(printed)
    assert go("--config", "mine.yaml", "--print-config") == 0
    assert capsys.readouterr().out == printed
    assert go("--config", "mine.yaml", "--lr", "5e-3", "--likelihood", "bernoulli", "--print-config") == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["lr"] == 5e-3
    assert found["encoder.hidden"] == [8, 9]
    assert "likelihood.scale" not in found  # it went with its member


def test_options_of_a_file_that_another_member_has_too_are_kept(here, capsys):
    Path("mine.yaml").write_text("objective: elbo\nobjective.warmup: 200\nobjective.analytic_kl: true\nprior: normal\n")
    assert go("--config", "mine.yaml", "--objective", "iwae", "--print-config") == 0
    found, said = capsys.readouterr()
    assert yaml.safe_load(found)["objective.warmup"] == 200
    assert said == "--config mine.yaml: left out objective.analytic_kl: not of objective iwae\n"
    Path("mine.yaml").write_text("objective: renyi\nobjective.alhpa: 0.2\n")
    said = refused(capsys, "--config", "mine.yaml", "--objective", "iwae")
    assert "--config mine.yaml: --objective.alhpa" in said


FILES = {
    "prior.components: 3": ["--prior", "vamp"],
    "layer-hidden: 7": ["--latent", "8,4"],
    "lr: ten": ["--lr", "0.1"],
    "prior: vmap": ["--prior", "vamp"],
}


@pytest.mark.parametrize("text", FILES)
def test_a_configuration_file_is_the_command_line_written_down(text, here, capsys):
    Path("mine.yaml").write_text(text)
    written = [word for line in text.split("\n") for word in f"--{line}".split(": ")]
    printed = []
    for argv in (["--config", "mine.yaml"], written):
        assert go(*argv, *FILES[text], "--print-config") == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_mistake_is_told_of_where_it_stands(here, capsys):
    belongs = "prior 'normal' has no such option; it belongs to autoregressive, mixture, vamp: choose"
    Path("mine.yaml").write_text("prior.components: 3\n")
    said = refused(capsys, "--config", "mine.yaml", "--prior", "normal")
    assert f"error: --config mine.yaml: --prior.components: {belongs}" in said
    Path("mine.yaml").write_text("prior.componets: 3\n")
    said = refused(capsys, "--config", "mine.yaml", "--prior", "vamp")
    assert "--config mine.yaml: --prior.componets: prior 'vamp' has no such option: did you mean 'components'?" in said
    for argv in (["--prior", "vmap"], ["--prior", "vamp", "--prior.componets", "2"]):
        assert "error: --prior" in refused(capsys, "--config", "mine.yaml", *argv)
    Path("mine.yaml").write_text("binarize: dynamic\n")
    said = refused(capsys, "--config", "mine.yaml", "--likelihood", "logit_normal")
    assert "--config mine.yaml: --binarize dynamic: found it with --dequantize auto" in said


def test_a_run_of_anothers_configuration(finished, plain):
    argv = ["--config", finished / "config.yaml", "--epochs", "1", "--objective", "iwae", "--particles", "50"]
    assert go(*argv, "--out", "new") == 0
    found = runs.Run.open("new").config
    assert (found.latent, found.epochs, found.objective, found.particles) == (2, 1, "iwae", 50)


MYLAB = '''
import pyro.distributions as dist
import torch
from pvae.priors import Prior

class Horseshoe(Prior):
    """Heavy tails.

    Args:
        latent: size of the latent.
        scale: of each latent.
    """

    def __init__(self, latent: int, scale: float, degrees=3, wide: bool = False) -> None:
        super().__init__(latent)
        self.scale, self.degrees, self.wide = scale, degrees, wide
        assert type(scale) is float and type(degrees) is int and wide is True

    def forward(self, y=None):
        return dist.StudentT(self.degrees, torch.zeros(self.latent), self.scale).to_event(1)
'''


def test_a_class_of_ones_own(here, capsys, monkeypatch, plain):
    Path("mylab_of_this_test.py").write_text(MYLAB)
    name = "mylab_of_this_test:Horseshoe"
    assert "--prior.scale: found none" in refused(capsys, "--prior", name)
    assert "did you mean 'scale'?" in refused(capsys, "--prior", name, "--prior.scal", "1")
    assert "--prior.scale: found 'two', expected a number" in refused(capsys, "--prior", name, "--prior.scale", "two")
    own = ["--prior", name, "--prior.scale", "0.5", "--prior.degrees=4", "--prior.wide"]
    assert go(*SMALL, *own, "--out", "whole") == 0
    with monkeypatch.context() as patch:
        after_step(patch, 17, send(signal.SIGTERM))
        assert go(*SMALL, *own, "--out", "new") == 143
    assert go("--resume", "new") == 0
    assert_equal_runs("whole", "new")
    assert go("new", "-n", "3", "-o", "x.npy", command="sample") == 0
    assert np.load("x.npy").shape == (3, 8, 8)
    assert runs.Run.open("new").config.options["prior"] == {"scale": 0.5, "degrees": 4, "wide": True}


def test_frey_faces(real_data, plain):
    argv = ["--data", real_data / "freyfaces.npz", "--likelihood", "gaussian", "--likelihood.scale", "optimal"]
    assert go(*SMALL, *argv, "--epochs", "1", "--out", "new") == 0
    assert json.loads(Path("new/summary.json").read_text())["protocol"]["measure"] == "density"


def test_help_lists_every_option(capsys):
    assert go("--help") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 110
    for option in config.fields():
        assert f"{config.flag(option.name)} " in text
        if option.default is not None and not isinstance(option.default, tuple):
            described = text.partition(f"\n  {config.flag(option.name)} ")[2].partition("\n  --")[0]
            assert f"(default: {option.default})" in " ".join(described.split())
    for family in config.FAMILIES:
        for member in pvae.base.members(family).values():
            for option in config.member_options(family, member):
                assert f"--{family}.{option} " in text


@pytest.mark.parametrize("command", ["fit", "compare", "sample"])
def test_the_console_script(command):
    done = subprocess.run([sys.executable, "-m", "pvae", command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: pvae {command}")


@pytest.mark.parametrize("command", ["fit", "compare", "gradients", "sample", "parts"])
def test_the_version(command, capsys, monkeypatch):
    expected = f"pvae {runs.versions()['packages']['pvae']}\n"
    assert go("--version", command=command) == 0
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, "argv", ["pvae", "--version"])
    with pytest.raises(SystemExit) as ended:
        pvae.__main__.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == expected


def test_sample(finished):
    assert go(finished, "-n", "5", "-o", "x.png", command="sample") == 0
    assert go(finished, "-n", "5", "-o", "x.npy", "--draw", command="sample") == 0
    assert set(np.unique(np.load("x.npy"))) <= {0.0, 1.0}


# what is shown ------------------------------------------------------------------------------------------------------


def shown(monkeypatch, terminal, width=80):
    """What a small fit shows of its progress."""
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=terminal, width=width)
    real = fit.Progress
    monkeypatch.setattr(fit, "Progress", lambda training: real(training, console, every=0.0))
    assert go(*SMALL, "--out", "new") == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.getvalue())


def test_plain_lines(monkeypatch, capsys, plain):
    assert shown(monkeypatch, terminal=False) == ""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    number = r"-?[\d.,:]+"
    assert len(lines) == 3
    assert re.fullmatch(
        f"epoch 1/3: train ELBO {number}, validation ELBO {number}, IW bound \\(K=10\\) {number} nats/datum, "
        f"{number} images/s, {number} left",
        lines[0],
    )


def test_live_lines(monkeypatch, plain):
    drawn = shown(monkeypatch, terminal=True)
    assert "epoch 3/3 ━━━━━━━━━━━━━━━━━━━━ " in drawn
    for words in ("train ELBO ", "validation ELBO ", "IW bound (K=10) ", "nats/datum", "images/s", " left"):
        assert words in drawn
    assert "…" not in drawn


@pytest.mark.parametrize("argv", [["--help"], [*SMALL, "--epochs", "2000", "--out", "new"]], ids=["help", "fit"])
def test_a_reader_that_goes(argv):
    code = "import pvae.progress, pvae.fit, pvae.cli, functools as f; pvae.fit.Progress = f.partial(pvae.progress."
    code += f"Progress, every=0.0); pvae.cli.run(pvae.fit.main, 'fit', {argv})"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        while "new" in argv and process.poll() is None and not checkpoints.names(Path("new/checkpoints")):
            time.sleep(0.01)
        process.stdout.close()
        err = process.stderr.read()
    assert "Traceback" not in err
    assert "Exception" not in err
    if "new" in argv:
        assert process.returncode == 141
        assert err.splitlines()[-1].strip() == "python -m pvae.fit --resume new"
        assert runs.Run.open("new").last().state["steps"] > 0


def test_streams_that_are_closed(here, plain, monkeypatch):
    """As by >&- and 2>&-."""
    monkeypatch.setattr(sys, "stdout", None)
    assert go(*SMALL, "--epochs", "1", "--out", "new") == 0
    assert go("new", "-n", "3", "-o", "x.npy", command="sample") == go("--help") == 0
    assert Path("x.npy").exists()
    monkeypatch.setattr(sys, "stderr", None)
    assert go("--epochs", "x") == 2
    assert go("new", command="compare") == 0


def test_a_name_that_is_not_unicode(capsys):
    message = "pvae fit: error: '--out=r\\udcff': found bytes that are not UTF-8, expected text: rename it"
    assert message in refused(capsys, "--out=r\udcff")


def test_names_that_the_terminal_cannot_show(here, plain, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert go(*SMALL, "--epochs", "1", "--out", "größe") == 0
    assert rb"run folder: 'gr\xf6\xdfe'" in shown.buffer.getvalue()


def test_help_shows_the_options_of_a_class_of_ones_own(tmp_path, monkeypatch, capsys):
    source = 'import pvae\nclass Wide(pvae.Prior):\n    """Wide.\n\n    Args:\n        width: how wide.\n    """\n'
    source += "    def __init__(self, latent, width: float = 2.0):\n        super().__init__(latent)\n"
    (tmp_path / "helplab.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    for words in (["--prior", "helplab:Wide"], ["--prior=helplab:Wide"]):
        with pytest.raises(SystemExit) as ended:
            fit.main([*words, "--help"])
        assert ended.value.code == 0
        assert "helplab:Wide (default: 2.0): how wide. [a number]" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("objective", "judged"), [("elbo", "elbo"), ("iwae", "iw.10")])
def test_the_best_is_best_by_the_bound_that_is_fitted(objective, judged, monkeypatch):
    assert go(*SMALL, "--objective", objective, "--particles", "5", "--out", "new") == 0
    lines = [json.loads(line) for line in Path("new/metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line[f"validation.{judged}"])
    assert json.loads(Path("new/summary.json").read_text())["epoch"] == best["epoch"]
    position = runs.Run.open("new").last().state["best"]
    assert position == {"steps": best["steps"], "epoch": best["epoch"], "bound": best[f"validation.{judged}"]}
