"""`python -m pvae.gradients`, and the slopes that theory gives."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import types
from pathlib import Path

import pytest
import torch
from commands import go

import pvae
from pvae import gradients, snr
from pvae.load import load


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients") / "run"
    small = ["--epochs", 1, "--latent", 2, "--encoder.hidden", 8, "--decoder.hidden", 8, "--eval-particles", 2]
    assert go(*small, "--out", folder) == 0
    return folder


def test_a_run(run, tmp_path, capsys):
    files = [tmp_path / f"found{ending}" for ending in (".JSON", ".csv", ".png")]
    options = ["--particles", "1,4", "--gradient", "reparam,vimco", "--samples", 5]
    assert go(run, *options, *(word for file in files for word in ("--out", file)), command="gradients") == 0
    text = capsys.readouterr().out
    assert "signal-to-noise ratio, guide" in text
    assert "run, 20 test data, iwae, 5 gradients each" in text
    assert "nan" not in text
    assert "\nvimco              -" in text
    assert "-: too few particles for vimco\n" in text
    found = json.loads(files[0].read_text())
    rows = found["rows"]
    slopes = {(each["gradient"], each["parameters"], each["number"]): each for each in found["slopes"]}
    assert len(slopes) == 6  # VIMCO has one K, and no slope
    each = slopes["reparam", "guide", "snr"]
    assert each["particles"] == [1, 4]
    assert f"{each['slope']:+.2f} +- {each['se']:.2f}\n" in text
    # VIMCO has none at K = 1: there are no other draws
    assert {(row["gradient"], row["particles"]) for row in rows} == {("reparam", 1), ("reparam", 4), ("vimco", 4)}
    with files[1].open() as file:
        assert [float(row["snr"]) for row in csv.DictReader(file)] == pytest.approx([row["snr"] for row in rows])
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_the_toy(capsys):
    assert go("--toy", "--particles", "1,4", "--gradient", "reparam", "--samples", 10, command="gradients") == 0
    out = capsys.readouterr().out
    assert out.startswith("the Gaussian toy, iwae, 10 gradients each\n")
    assert out.count("\nreparam  ") == 6  # three numbers of two groups
    assert "biased" not in out
    assert go("--toy", "--particles", "1,4", "--gradient", "dreg,stl,rws", "--samples", 10, command="gradients") == 0
    stl, rws = capsys.readouterr().out.splitlines()[-2:]
    assert stl.startswith("stl: biased for a bound that weighs its draws")
    assert rws == "rws: the guide's is of another objective"


class Closed(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def test_files_are_there_though_nobody_reads(here):
    argv = ["--toy", "--particles", "1,4", "--gradient", "reparam", "--samples", "5", "--out", "x.json"]
    with contextlib.redirect_stdout(Closed()), pytest.raises(BrokenPipeError):
        gradients.main(argv)
    assert json.loads(Path("x.json").read_text())["rows"]


def test_the_numbers_are_shown_though_they_cannot_be_written(here, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    argv = ["--toy", "--particles", "1,4", "--gradient", "reparam", "--samples", "5", "--out", "x.json"]
    assert go(*argv, "--out", "x.png", command="gradients") == 2
    out, err = capsys.readouterr()
    assert out.startswith("the Gaussian toy, iwae, 5 gradients each\n")
    assert out.endswith("\n\nwritten: x.png\n")
    assert Path("x.png").is_file()
    assert err.endswith("x.json: the disk is full: free some space, then run it again\n")


def test_gradients_that_are_not_numbers(run, capsys, monkeypatch):
    found = load(run)
    with torch.no_grad():
        found[0].likelihood.decoder.layers[-1].bias[3] = math.nan
    monkeypatch.setattr(gradients, "load", lambda *_: found)
    assert go(run, "--particles", "1,2", "--samples", "5", command="gradients") == 2
    said = f"{run}: reparam, K=1: the gradient of the guide is not a finite number: the model has diverged"
    assert capsys.readouterr().err == f"pvae gradients: error: {said}\n"


def test_an_estimator_that_does_not_fit_is_refused_before_any_is_measured(tmp_path, capsys, monkeypatch):
    small = ["--epochs", 1, "--latent", 2, "--encoder.hidden", 8, "--decoder.hidden", 8, "--eval-particles", 2]
    discrete = [
        "--prior",
        "bernoulli",
        "--guide",
        "bernoulli",
        "--objective",
        "iwae",
        "--gradient",
        "score",
        "--particles",
        2,
    ]
    assert go(*small, *discrete, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    monkeypatch.setattr(gradients, "measure", lambda *_, **__: pytest.fail("measured"))
    argv = ["--particles", "2,4", "--gradient", "score,reparam", "--samples", "5"]
    assert go(tmp_path / "run", *argv, command="gradients") == 2
    err = capsys.readouterr().err
    assert f"error: {tmp_path / 'run'}: site 'z': iwae with gradient reparam needs draws that are" in err


def test_a_gradient_without_noise_has_no_ratio(tmp_path, capsys, monkeypatch):
    small = ["--epochs", 1, "--latent", 2, "--encoder.hidden", 8, "--decoder.hidden", 8, "--eval-particles", 2]
    assert go(*small, "--guide", "delta", "--out", tmp_path / "run") == 0
    capsys.readouterr()
    outs = [word for ending in ("json", "png", "csv") for word in ("--out", tmp_path / f"x.{ending}")]
    argv = ["--particles", "1,2,4", "--gradient", "reparam", "--samples", 5]
    assert go(tmp_path / "run", *argv, *outs, command="gradients") == 0
    out, err = capsys.readouterr()
    assert "nan" not in out
    assert f"{tmp_path / 'x.png'}: without reparam: guide: its gradient has no noise\n" in err
    assert f"not written: {tmp_path / 'x.png'}: no gradient has both signal and noise\n" in err
    assert {path.suffix for path in tmp_path.glob("x.*")} == {".json", ".csv"}

    def refuse(word):
        raise ValueError(word)

    rows = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)["rows"]
    assert {row["snr"] for row in rows} == {None}
    some = gradients._drawn(Path("x.png"), {"a: guide": [math.inf, math.inf], "b: guide": [math.inf, 2.0], "c": [0.0]})
    assert some == {"b: guide": [math.inf, 2.0]}
    assert "without c: its gradient has no signal" in capsys.readouterr().err


def test_estimators_that_coincide_are_one_line():
    def found(guide, model):
        return {k: {"guide": g, "model": m} for k, g, m in zip((1, 4, 16), guide, model, strict=True) if g}

    def signal(snr):
        return types.SimpleNamespace(summary=lambda: {"snr": snr}) if snr else None

    def signals(*values):
        return list(map(signal, values))

    results = {
        "reparam": found(signals(4, 2, 1), signals(5, 6, 7)),
        "vimco": found(signals(None, 3.001, 3), signals(None, 6, 7)),
        "stl": found(signals(4, 3, 3), signals(5, 6, 7)),
    }
    lines = gradients._lines(results, [1, 4, 16])
    assert lines == {"reparam: guide": [4, 2, 1], "vimco, stl: guide": [4, 3.001, 3], "all: model": [5, 6, 7]}


def test_the_error_of_a_slope_is_from_those_of_its_ratios():
    def found(se):
        every = {1: 9.0, 4: 8.0, 16: 4.0, 64: 2.0}
        return {
            k: {"guide": types.SimpleNamespace(summary=lambda v=v: {"snr": v, "snr_se": se * v})}
            for k, v in every.items()
        }

    assert gradients._shown(gradients._slope(found(0.1), "guide", "snr")) == "-0.50 +- 0.05"
    assert gradients._shown(gradients._slope(found(math.nan), "guide", "snr")) == "-0.50 +- -"


def test_what_a_prior_shares_with_the_guide_is_the_guides(run):
    vae, _, _ = pvae.load.load(run)
    vae.prior.guide = vae.posterior
    found = gradients.groups(vae)
    assert len(found["guide"]) == len(list(vae.posterior.parameters()))
    assert len(found["model"]) == len(list(vae.likelihood.parameters()))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "found neither a run nor --toy"),
        (["x", "--toy"], "found both a run and --toy"),
        (["--toy", "--gradient", "vimco", "--particles", "1"], "error: --gradient: vimco does not fit iwae: "),
        (["--toy", "--gradient", "drag"], "--gradient: unknown gradient 'drag': did you mean 'dreg'?"),
        (["--toy", "--objective", "chi", "--gradient", "gdreg"], "error: --gradient: gdreg does not fit chi"),
        (["--toy", "--particles", "0"], "--particles: found '0'"),
        (["--toy", "--particles", "2,4,4"], "--particles: found '2,4,4', expected each K once"),
        (["--toy", "--batch-size", "3"], "--batch-size: found it with --toy, which has data of its own: leave it out"),
        (["--toy", "--gradient", ","], "--gradient: found ',', expected estimators"),
        (["--toy", "--samples", "1"], "--samples"),
        (["--toy", "--out", "x.txt"], "--out x.txt: found the ending '.txt'"),
        (["nowhere"], "nowhere"),
    ],
)
def test_bad_input(argv, message, capsys):
    assert go(*argv, command="gradients") == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert message in err
    assert not Path("x.txt").exists()


# gradient, group: slope, every K, data, samples. DReG's rise, and the model's, show only past K of about 16;
# the reparameterized guide's signal is in the noise past 64.
SLOPES = {
    "reparam guide": (-0.5, (4, 16, 64), 1024, 300),
    "dreg guide": (0.5, (64, 256, 1024), 64, 100),
    "stl guide": (0.5, (64, 256, 1024), 64, 100),
    "reparam model": (0.5, (64, 256, 1024), 64, 400),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOPES)
def test_slopes_of_the_signal(case):
    gradient, group = case.split()
    expected, ks, n, samples = SLOPES[case]
    toy = snr.Toy(n=n, perturbation=0.01)
    objectives = [pvae.IWAE(k, gradient=gradient) for k in ks]
    found = [snr.measure(o, toy.model, toy.guide, toy.groups(), toy.x, samples=samples)[group] for o in objectives]
    assert snr.slope(ks, [one.snr for one in found])[0] == pytest.approx(expected, abs=0.1)
