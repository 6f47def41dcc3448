"""The command that compares runs: what it prints and writes, and what it refuses."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import commands
import numpy as np
import pytest
import torch

import pvae
from pvae import compare, comparison, config, fit, plots
from pvae.evaluate import BOUNDS
from pvae.exact import LinearVAE
from pvae.load import load
from pvae.pace import pace

SMALL = ["--epochs", "2", "--encoder.hidden", "8", "--decoder.hidden", "8", "--latent", "2", "--eval-particles", "2"]
ON = {"numbers": BOUNDS, "bounds_on": {}}
QUICK = ["--subset", "2", "--temperatures", "5", "--chains", "2", "--leapfrog", "1"]


go, refused = partial(commands.go, command="compare"), partial(commands.refused, command="compare")


@pytest.fixture(autouse=True)
def here(here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    return here


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs on the digits: ELBO, IWAE, and a linear one of grey pixels, which has an exact answer."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        commands.quick(patch)
        assert fit.main([*SMALL, "--out", str(folder / "vae")]) == 0
        assert fit.main([*SMALL, "--objective", "iwae", "--particles", "3", "--out", str(folder / "iwae")]) == 0
        linear = ["--likelihood", "gaussian", "--decoder.hidden", "", "--epochs", "2", "--out", str(folder / "linear")]
        assert fit.main([*SMALL, *linear]) == 0
    return {name: folder / name for name in ("vae", "iwae", "linear")}


def test_two_runs_in_every_form(runs, capsys):
    names = ["x.json", "x.csv", "x.data.csv", "x.tex", "x.nc", "x.png", "x.pdf", "x.svg", "x.khat.png"]
    outs = [word for name in names for word in ("--out", name)]
    assert go(runs["vae"], runs["iwae"], "--particles", "5,1,40", *outs) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line for line in out.splitlines() if line.startswith("written")] == [f"written: {name}" for name in names]
    assert "less vae, paired by datum" in out
    assert "training, 359 data, 1 draw each" in out
    found = json.loads(Path("x.json").read_text())
    assert found["settings"]["K"] == [1, 5, 40]
    assert found["protocol"]["sizes"]["test"] == 359
    assert found["packages"]["pvae"]
    means = [found["runs"]["iwae"]["test"][key]["mean"] for key in ("elbo", "iw.5", "iw.40")]
    assert means == sorted(means)
    assert list(found["runs"]["vae"]) == ["test", "train", "difference"]
    rows = list(csv.DictReader(Path("x.data.csv").read_text().splitlines()))
    assert np.mean([float(row["iw.40"]) for row in rows[359:]]) == pytest.approx(means[2])
    assert Path("x.tex").read_text().count(r"\mathbf") >= 3  # a best one of each bound
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    test = arviz.from_netcdf("x.nc")["test"]
    assert test["run"].values.tolist() == ["vae", "iwae"]
    assert float(test["iw"].sel(run="iwae", K=40).mean()) == pytest.approx(means[2])


def test_the_numbers_are_those_of_the_runs_test_data(runs):
    assert go(runs["vae"], "--particles", "7", "--draws", "21", "--seed", "3", "--out", "x.json") == 0
    vae, dataset, _ = load(runs["vae"])
    x = pvae.data.pixels(dataset.test.x)
    alone = pvae.evaluate.evaluate(vae.model, vae.guide, x, particles=[7], draws=21, seed=3)
    found = json.loads(Path("x.json").read_text())["runs"]["vae"]
    assert found["test"]["iw.7"]["mean"] == alone.summary()["iw.7"]["mean"]
    train = compare.training_data(dataset, load(runs["vae"])[2].config, 359, 3)
    assert set(train.x.unique().tolist()) == {0.0, 1.0}  # drawn, as the test data are
    again = pvae.evaluate.evaluate(vae.model, vae.guide, train.x, particles=[7], seed=3)
    assert found["train"]["iw.7"]["mean"] == again.summary()["iw.7"]["mean"]


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory):
    """Runs on the same counts: conditioned on their totals, and on a covariate of the file."""
    folder, r = tmp_path_factory.mktemp("conditioned"), np.random.default_rng(0)
    x = r.poisson(r.gamma(2.0, 5.0, (120, 1)) * np.ones(5))
    np.savez(folder / "counts.npz", x=x, y=r.normal(50, 5, (120, 1)))
    with pytest.MonkeyPatch.context() as patch:
        commands.quick(patch)
        for name, *own in (("library", "--likelihood.library"), ("covariates",)):
            argv = ["--data", str(folder / "counts.npz"), "--likelihood", "poisson", "--condition", name, *own]
            assert fit.main([*SMALL, *argv, "--compile", "off", "--out", str(folder / name)]) == 0
    return folder


def test_each_run_is_measured_beside_what_it_is_conditioned_on(conditioned):
    names, found = ("library", "covariates"), {}
    for chosen in (names, names[::-1], *zip(names, strict=True)):
        argv = [conditioned / name for name in chosen]
        assert go(*argv, "--particles", "1,5", "--ais", *QUICK, "--out", f"{'-'.join(chosen)}.json") == 0
        found["-".join(chosen)] = json.loads(Path(f"{'-'.join(chosen)}.json").read_text())
    for both in ("library-covariates", "covariates-library"):
        for name in names:
            assert found[both]["runs"][name] == found[name]["runs"][name]
    assert set(found["library"]["runs"]["library"]) >= {"test", "train", "difference", "ais"}
    one, other = (found[both]["paired"][0]["mean"] for both in ("library-covariates", "covariates-library"))
    means = [found[name]["runs"][name]["test"]["elbo"]["mean"] for name in names]
    assert one == pytest.approx(means[1] - means[0])
    assert one == pytest.approx(-other)
    totals = load(conditioned / "library")[1].test
    torch.testing.assert_close(totals.y, totals.x.sum(1, keepdim=True))
    summary = json.loads((conditioned / "library" / "summary.json").read_text())["test"]["elbo"]
    assert means[0] == pytest.approx(summary["mean"], abs=0.5 * summary["se"])


def test_training_data_are_the_seeds(runs):
    _, dataset, run = load(runs["vae"])
    some = compare.training_data(dataset, run.config, 50, 1)
    rows = comparison.choose(1294, 50, 1)
    assert torch.equal(some.x, compare.training_data(dataset, run.config, 50, 1).x)
    assert not torch.equal(some.x, compare.training_data(dataset, run.config, 50, 2).x)
    every = [compare.training_data(dataset, run.config, 2000, seed).x for seed in (1, 2)]
    assert every[0].shape == every[1].shape == (1294, 8, 8)
    assert not torch.equal(*every)  # the same images, drawn anew
    grey = pvae.data.pixels(dataset.train.x[rows])
    assert bool((some.x[grey == 0] == 0).all())
    assert bool((some.x[grey == 1] == 1).all())
    assert torch.equal(some.y, dataset.train.y[rows])
    _, dataset, run = load(runs["linear"])
    assert torch.equal(compare.training_data(dataset, run.config, 50, 1).x, dataset.train.x[rows])


def test_without_training_data(runs, capsys):
    assert go(runs["vae"], "--particles", "1,30", "--train", "0") == 0
    assert "training" not in capsys.readouterr().out
    assert go(runs["vae"], "--particles", "1,30", "--train", "9", "--train-particles", "4,2", "--out", "x.json") == 0
    found = json.loads(Path("x.json").read_text())["runs"]["vae"]
    assert [key for key in found["train"] if key.startswith("iw")] == ["iw.2", "iw.4"]
    assert found["train"]["elbo"]["n"] == 9
    assert list(found["difference"]) == ["elbo"]  # no K of both


def test_annealing_beside_the_bounds(runs, capsys):
    outs = ["--out", "x.nc", "--out", "x.json", "--out", "x.tex"]
    assert (
        go(
            runs["vae"],
            runs["iwae"],
            "--particles",
            "1,40",
            "--train",
            "0",
            "--ais",
            "--gap",
            *QUICK,
            "--steps",
            "3",
            *outs,
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "annealed importance sampling from the prior: 2 of the test data, 5 temperatures, 2 chains" in out
    assert "approximation, mean-field" in out
    assert "amortization, flow" in out
    assert max(map(len, out.splitlines())) <= 100
    found = json.loads(Path("x.json").read_text())["runs"]["iwae"]
    assert found["ais"]["log_p"]["n"] == 2
    total = found["gap"]["approximation.flow"]["mean"] + found["gap"]["amortization.flow"]["mean"]
    assert total == pytest.approx(found["gap"]["inference"]["mean"])


def test_annealing_alone_from_the_guide(runs, capsys):
    argv = [runs["vae"], "--particles", "1,40", "--train", "0", "--ais", "--start", "guide", *QUICK]
    assert go(*argv, "--out", "x.json") == 0
    assert "annealed importance sampling from the guide" in capsys.readouterr().out
    found = json.loads(Path("x.json").read_text())
    assert found["settings"]["annealing"]["start"] == "guide"
    assert "gap" not in found["runs"]["vae"]


def test_the_exact_value_where_there_is_one(runs, capsys):
    argv = [runs["linear"], "--particles", "1,3000", "--train", "0"]
    assert go(*argv, "--out", "x.json", "--out", "x.svg") == 0
    assert "log p(x) - L_3000" in capsys.readouterr().out
    found = json.loads(Path("x.json").read_text())["runs"]["linear"]["exact"]
    vae, dataset, _ = load(runs["linear"])
    w, b = vae.likelihood.decoder.layers[-1].weight.double(), vae.likelihood.decoder.layers[-1].bias.double()
    covariance = w @ w.mT + vae.likelihood.scale.double().square() * torch.eye(64)
    truth = torch.distributions.MultivariateNormal(b, covariance).log_prob(dataset.test.x.flatten(1).double())
    assert found["log_p"]["mean"] == pytest.approx(truth.mean().item(), abs=1e-4)
    assert found["log_p - iw.3000"]["mean"] < 0.1 * found["log_p - elbo"]["mean"]


@pytest.mark.parametrize(
    ("known", "names"),
    [
        ({"a": -1.0}, ["a, exact"]),
        ({"a": -1.0, "b": -2.0}, ["a, exact", "b, exact"]),
        ({"a": -1.0, "b": -1.0}, ["exact"]),
        ({}, []),
    ],
)
def test_the_chart_says_whose_the_exact_values_are(known, names):
    vae = LinearVAE(4, 2)
    exact = {name: torch.full((5,), value) for name, value in known.items()}
    programs = dict.fromkeys(("a", "b"), (vae.model, vae.guide))
    found = comparison.compare(programs, comparison.Data(torch.randn(5, 4)), plan=comparison.Plan((1, 2)), exact=exact)
    shown = [text.get_text().partition("\n")[0] for text in compare._bounds(found, ON).legends[0].get_texts()]
    assert [name for name in shown if "exact" in name] == names


def test_the_chart_tells_runs_and_what_their_bounds_are_on_apart():
    vae = LinearVAE(4, 2)
    names = ("a", "a ", "exact", "a\nb", "a b")
    exact = {"exact": torch.full((5,), -1.0)}
    programs = dict.fromkeys(names, (vae.model, vae.guide))
    found = comparison.compare(programs, comparison.Data(torch.randn(5, 4)), plan=comparison.Plan((1, 2)), exact=exact)
    found = replace(found, models={name: found.models[name] for name in names})

    def shown(**shared):
        figure = compare._bounds(found, {**ON, **shared})
        return {
            text.get_text().partition("\n")[0]: text.get_text().split("\n")[-1]
            for text in figure.legends[0].get_texts()
        }

    assert set(shown()) == {"a (run 1)", "a (run 2)", "exact", "exact, exact", "a b (run 4)", "a b (run 5)"}
    on = dict.fromkeys(names, "log p(x)") | {"exact": "log p(x|y)"}
    assert {"exact, log p(x|y)", "a b, log p(x) (run 4)"} < set(shown(bounds_on=on))


def test_a_point_mass_has_no_bounds_in_any_file(capsys, monkeypatch):
    commands.quick(monkeypatch)
    assert fit.main([*SMALL, "--guide", "delta", "--compile", "off", "--out", "run"]) == 0
    outs = [f"x{ending}" for ending in (".csv", ".json", ".data.csv", ".png")]
    charts = []
    monkeypatch.setattr(plots, "save", lambda figure, path: (charts.append(figure), path.write_text("")))
    argv = ["--particles", "1,10", "--draws", "50", "--train", "0"]
    assert go("run", *argv, *(word for out in outs for word in ("--out", out))) == 0
    with open("x.csv") as table, open("x.data.csv") as data:
        rows, of_data = list(csv.DictReader(table)), list(csv.DictReader(data))
    assert {row["bounds_on"] for row in rows} == {row["bounds_on"] for row in of_data} == {"nothing"}
    assert not any("khat" in row["quantity"] for row in rows)
    assert "khat" not in of_data[0]
    found = json.loads(Path("x.json").read_text())
    assert found["protocol"]["bounds_on"] == {"run": "nothing"}
    assert not any("khat" in key for key in found["runs"]["run"]["test"])
    (axes,) = charts[0].axes
    assert axes.get_title() == "Point masses: no bounds"
    assert axes.get_ylabel().startswith("log p(x, z) ")
    assert "k-hat is not given: a point mass has no weights" in capsys.readouterr().out
    for wanted in (["--khat"], ["--out", "x.khat.png"]):
        assert f"{' '.join(wanted)}: found guides that are point masses" in refused(capsys, "run", *argv, *wanted)


def test_every_option_reaches_the_plan():
    argv = "run --particles 9,3 --draws 11 --train-particles 2 --seed 5 --eval-chunk 777 --gap --subset 7 --steps 8"
    argv += " --temperatures 21 --chains 22 --leapfrog 23 --start guide --families flow"
    assert compare._plan(compare._parser().parse(argv.split())) == comparison.Plan(
        particles=(3, 9),
        draws=11,
        train_particles=(2,),
        annealing=pvae.ais.Annealing(21, 22, 23),
        start="guide",
        families=("flow",),
        subset=7,
        steps=8,
        seed=5,
        chunk=777,
    )
    plain = compare._plan(compare._parser().parse(["run"]))
    assert plain == comparison.Plan()  # the library's defaults are the command's


def test_a_run_that_began_with_anothers_weights_is_told_of():
    plain = config.Config()
    assert compare.notes("b", plain) == []
    assert compare.notes("b", replace(plain, start_from="a")) == [
        "b began with the weights of a: it was trained for longer than its epochs"
    ]


def test_other_data_are_said_once():
    one = {"data": "a", "sha256": "1" * 64, "sizes": {"test": 1}, "binarization": "none"}
    other = {**one, "data": "b", "sha256": "2" * 64, "sizes": {"test": 2}}
    expected = "A and B: found different protocols, data 'a' and 'b', expected the same of both: fit one of them"
    with pytest.raises(pvae.InputError) as found:
        compare.check_protocols({"A": one, "B": other})
    assert str(found.value) == f"{expected} again with the other's --data"
    with pytest.raises(pvae.InputError, match=r"sha256 '1+' and '2+', expected the same"):
        compare.check_protocols({"A": one, "B": {**one, "sha256": "2" * 64}})


def test_a_path_can_be_written_in_many_ways(conditioned, capsys, monkeypatch):
    one = {"data": "a.npz", "sha256": "1" * 64, "sizes": {"test": 1}, "data_seed": 0}
    assert compare.check_protocols({"A": one, "B": {**one, "data": "./a.npz"}}) == one
    expected = "sizes '{'test': 1}' and '{'test': 2}', expected the same"
    with pytest.raises(pvae.InputError, match=re.escape(expected)):
        compare.check_protocols({"A": one, "B": {**one, "data": "./a.npz", "sizes": {"test": 2}}})
    with pytest.raises(pvae.InputError, match="data seed '0' and '1', expected the same"):
        compare.check_protocols({"A": one, "B": {**one, "data": "./a.npz", "data_seed": 1}})
    commands.quick(monkeypatch)
    same = ["--data", f"../{conditioned.name}/counts.npz", "--likelihood", "poisson", "--condition", "covariates"]
    monkeypatch.chdir(conditioned)
    assert fit.main([*SMALL, *same, "--compile", "off", "--out", "again"]) == 0
    capsys.readouterr()
    monkeypatch.chdir("/")  # where no such path leads to the data
    assert go(conditioned / "covariates", conditioned / "again", "--train", "0", "--particles", "1") == 0
    *_, paired = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ELBO")]
    assert float(paired[1]) == 0  # the same data, seeds and settings


def test_data_are_where_the_run_began_or_else_here(here, monkeypatch):
    np.savez("mine.npz", x=np.random.default_rng(0).random((40, 3)))
    commands.quick(monkeypatch)
    argv = ["--data", "mine.npz", "--likelihood", "gaussian", "--compile", "off", "--out", "run"]
    assert fit.main([*SMALL, *argv]) == 0
    (there := here / "there").mkdir()
    np.savez(there / "mine.npz", x=np.zeros((40, 3)))  # others, of the same name
    monkeypatch.chdir(there)
    _, dataset, run = load(here / "run")
    assert (dataset.name, run.config.data) == ("mine.npz", "mine.npz")
    (here / "mine.npz").rename(there / "mine.npz")  # both were moved
    assert load(here / "run")[1].sha256 == dataset.sha256
    monkeypatch.chdir(here)
    with pytest.raises(pvae.InputError, match=r"mine.npz: no such file or folder"):
        load("run")


def test_the_epoch_of_the_weights_and_bits_are_shown(runs, capsys):
    argv = ["--particles", "1,4", "--train", "0", "--out", "x.json"]
    checkpoints = sorted((runs["vae"] / "checkpoints").iterdir())
    assert go(checkpoints[0], runs["vae"], *argv) == 0
    out = capsys.readouterr().out
    (epochs,) = [line.split() for line in out.splitlines() if line.startswith("  epoch")]
    best = json.loads((runs["vae"] / "summary.json").read_text())["epoch"]
    assert epochs == ["epoch", "1", str(best)]
    found = json.loads(Path("x.json").read_text())
    assert found["protocol"]["epoch"] == {checkpoints[0].name: 1, "vae": best}
    bits = found["runs"]["vae"]["test"].get("bits_per_dim")
    volume = config.Config().level_volume
    assert (bits is None) == (volume is None) == ("bits / dim" not in out)


@pytest.mark.parametrize("columns", ["80", "120"])
def test_it_fits_the_terminal(runs, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert go(runs["vae"], runs["iwae"], "--particles", "1,30") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= int(columns)


def test_too_few_draws_for_khat(runs, capsys):
    assert go(runs["vae"], "--particles", "1,29", "--train", "0") == 0
    assert "Pareto k-hat is not given: it needs at least 30 draws" in capsys.readouterr().out
    for wanted in (["--khat"], ["--out", "x.khat.png"]):
        message = refused(capsys, runs["vae"], "--particles", "1,29", *wanted)
        assert f"{' '.join(wanted)}: found 29 draws, expected at least 30: raise --draws or --particles" in message
    assert go(runs["vae"], "--particles", "1,29", "--train", "0", "--out", "my.khat.csv") == 0  # a table as any
    assert go(runs["vae"], "--particles", "1,29", "--draws", "30", "--khat", "--train", "0") == 0
    assert "k-hat, median" in capsys.readouterr().out


def test_names_that_charts_and_tables_must_bear(runs):
    names = ["_hidden", "a$b_{$c", "x" * 60]
    for name in names:
        Path(name).symlink_to(runs["vae"])
    # links to one run are one run
    assert go(*names, "--particles", "1,30") == 2
    for name in names:
        Path(name).unlink()
        subprocess.run(["cp", "-r", runs["vae"], name], check=True)
    outs = ["--out", "x.png", "--out", "x.khat.png", "--out", "x.tex", "--out", "x.nc"]
    assert go(*names, "--particles", "1,30", "--train", "0", *outs) == 0
    assert r"\_hidden & a\$b\_\{\$c & " in Path("x.tex").read_text()


WRONG = {
    "VAE VAE": "found one of them twice",
    "VAE --particles 1,0": "--particles: found '1,0', expected numbers of draws, each at least 1",
    "VAE --particles 5,5": "--particles: found '5,5', expected each K once",
    "VAE --train-particles 2,2": "--train-particles: found '2,2', expected each K once",
    "VAE --train 0 --train-particles 2": "--train-particles: found it with --train 0, which leaves training data out",
    "VAE --train 00 --train-particles 2": "--train-particles: found it with --train 0, which leaves training data out",
    "VAE --particles 50 --draws 49": "--draws: found 49, expected at least the largest K, 50",
    "VAE --draws 0": "--draws: found 0, expected at least 1",
    "VAE --train -1": "--train: found -1, expected at least 0",
    "VAE --ais --temperatures 0": "--temperatures: found 0, expected at least 1",
    "VAE --ais --chains 0": "--chains: found 0",
    "VAE --ais --leapfrog 0": "--leapfrog: found 0",
    "VAE --ais --subset 0": "--subset: found 0",
    "VAE --gap --steps 0": "--steps: found 0",
    "VAE --gap --families flwo": "families: unknown 'flwo': did you mean 'flow'?",
    "VAE --gap --families ,": "--families",
    "VAE --ais --start middle": "--start",
    "VAE --out x.json --out x.json": "--out x.json: found twice, expected different files",
    "VAE --out x.json --out y.txt": "--out y.txt: found the ending '.txt', expected one of .json, .csv, .tex,"
    " .data.csv, .nc, .png, .pdf, .svg, .khat.png, .khat.pdf, .khat.svg",
    "VAE LINEAR": "found different protocols, binarization 'dynamic' and 'none', measure 'probability' and"
    " 'density', expected the same of both: fit one of them again with the other's --binarize and a likelihood of the",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_it_refuses(line, runs, capsys):
    argv = [str(runs.get(word.lower(), word)) for word in line.split()]
    assert WRONG[line] in refused(capsys, *argv)


@pytest.mark.parametrize("name", ["x.json", "x.data.csv", "x.tex", "x.nc", "x.png"])
def test_a_full_disk_leaves_no_half_of_a_file(name, runs, capsys, here, monkeypatch):
    def full(path, *_):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(plots, "save", lambda figure, path: full(path))
    assert go(runs["vae"], "--particles", "1", "--train", "0", "--out", name) == 2
    out, err = capsys.readouterr()
    assert f"{name}: the disk is full: free some space, then run it again\n" in err
    assert "  ELBO  " in out
    assert list(here.iterdir()) == []


def test_the_files_after_one_that_cannot_be_written(runs, capsys, here, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(plots, "save", full)
    outs = [option for name in ("x.png", "x.json", "x.svg", "x.csv") for option in ("--out", name)]
    assert go(runs["vae"], "--particles", "1", "--train", "0", *outs) == 2
    out, err = capsys.readouterr()
    assert out.endswith("\n\nwritten: x.json\nwritten: x.csv\n")
    assert "x.png: the disk is full: free some space, then run it again; x.svg: the disk is full" in err
    assert {path.name for path in here.iterdir()} == {"x.json", "x.csv"}


def test_files_are_there_though_nobody_reads(runs):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    argv = [str(runs["vae"]), "--particles", "1", "--train", "0", "--out", "x.json", "--out", "x.csv"]
    with contextlib.redirect_stdout(Closed()), pytest.raises(BrokenPipeError):
        compare.main(argv)
    assert json.loads(Path("x.json").read_text())["runs"]
    assert Path("x.csv").read_text()


def test_where_nothing_can_be_written(runs, capsys, here, monkeypatch):
    (here / "x.png").mkdir()
    assert "--out x.png: found a folder, expected a file" in refused(capsys, runs["vae"], "--out", "x.png")
    monkeypatch.setattr(os, "access", lambda *_: False)  # as on a read-only file system
    message = refused(capsys, runs["vae"], "--out", "y.png")
    assert "--out y.png: nothing can be written into that folder: choose another place" in message


def test_data_that_are_gone(capsys, monkeypatch):
    commands.quick(monkeypatch)
    np.savez("mine.npz", x=np.random.default_rng(0).random((40, 5)).round())
    assert fit.main([*SMALL, "--data", "mine.npz", "--out", "run"]) == 0
    Path("mine.npz").rename("moved.npz")
    assert "mine.npz" in refused(capsys, "run")


def test_weights_that_are_not_numbers(runs, capsys, monkeypatch):
    vae, dataset, run = load(runs["linear"])
    with torch.no_grad():
        vae.likelihood.decoder.layers[-1].bias[3] = math.nan
    monkeypatch.setattr(compare, "load", lambda *_: (vae, dataset, run))
    message = refused(capsys, runs["linear"], "--particles", "1")
    assert "linear: evaluate: the log-likelihood of datum 0 is not a number: the model has diverged" in message


def test_progress_is_told_on_standard_error(runs, capsys, monkeypatch):
    monkeypatch.setattr(compare, "pace", lambda *given, every, began: pace(*given, every=0.0, began=began))
    assert go(runs["vae"], "--particles", "1,30") == 0
    out, err = capsys.readouterr()
    assert "left" not in out
    lines = err.splitlines()
    assert re.fullmatch(r"vae, test data: 128 of 359, 0:\d\d:\d\d left", lines[0])
    assert lines[-1].startswith("vae, training data: 256 of 359, ")


def test_ctrl_c_leaves_nothing(runs, here, capsys, monkeypatch):
    real = comparison.mutual_information
    monkeypatch.setattr(
        comparison, "mutual_information", lambda *a, **k: (signal.raise_signal(signal.SIGINT), real(*a, **k))
    )
    assert go(runs["vae"], "--particles", "1,30", "--out", "x.json") == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "pvae compare: error: interrupted: nothing to resume was written\n"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subset", "3"], "--subset: found it without --ais or --gap"),
        (["--start", "guide"], "--start: found it without --ais or --gap"),
        (["--ais", "--steps", "5"], "--steps: found it without --gap"),
    ],
)
def test_options_that_would_do_nothing(options, message, runs, capsys):
    assert message in refused(capsys, runs["vae"], *options)
