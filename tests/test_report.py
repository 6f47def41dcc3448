"""What a finished run leaves behind."""

import errno
import json
import math
import os
import re
import resource
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import refused

from pvae import figures, fit, plots
from pvae.data import Split
from pvae.figures import picture, sample
from pvae.load import load
from pvae.networks import ConvEncoder, ResNetEncoder
from pvae.programs import log_weights
from pvae.report import table
from pvae.runs import Run, write_results
from pvae.sample import main as main_of_sample


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    command = "--epochs 2 --latent 2 --decoder.hidden 16 --encoder.hidden 16 --eval-particles 1,5,20 --eval-chunk 700"
    assert fit.main([*command.split(), "--out", str(folder)]) == 0
    return folder


QUICK = ["--likelihood", "gaussian", "--latent", "2", "--epochs", "1", "--eval-particles", "2", "--compile", "off"]
BESIDE = {
    "a.csv": (
        "x,y\n" + "0.5,3\n0.25,-1\n" * 20,
        "a.csv, 2 columns with a header, labels of column y (",
        "1, with labels -1 to 3",
    ),
    "b.csv": ("2,0\n3,1\n" * 20, "b.csv, 2 columns without a header (", "2, without labels"),
    "c.npz": ({"x": np.ones((40, 3, 4))}, "c.npz (", "3 x 4, without labels"),
    "d.npz": (
        {"x": np.ones((40, 3)), "y": np.random.default_rng(0).random((40, 2))},
        "d.npz (",
        "3, with 2 numbers beside it",
    ),
    "e.npz": ({"pictures": np.ones((40, 3))}, "e.npz, its array pictures (", "3, without labels"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_the_first_line_says_what_was_read(name, tmp_path, capsys, monkeypatch):
    content, begins, datum = BESIDE[name]
    (tmp_path / name).write_text(content) if isinstance(content, str) else np.savez(tmp_path / name, **content)
    monkeypatch.setattr(fit, "_train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit.main([*QUICK, "--validation", "0", "--data", f"{tmp_path}/{name}", "--out", f"{tmp_path}/run"])
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"{tmp_path}/{begins}")
    assert line.endswith(f" test; a datum: {datum}; binarization: none)")


def test_the_summary_holds_the_final_numbers_and_their_protocol(run):
    summary = json.loads((run / "summary.json").read_text())
    test, protocol = summary["test"], summary["protocol"]
    assert set(test["iw"]) == {"1", "5", "20"}
    assert test["elbo"].keys() == test["iw"]["20"].keys() == {"mean", "se"}
    assert test["iw"]["1"]["mean"] == pytest.approx(test["elbo"]["mean"])
    assert test["iw"]["1"]["mean"] < test["iw"]["5"]["mean"] < test["iw"]["20"]["mean"]
    assert test["rate"]["mean"] + test["distortion"]["mean"] == pytest.approx(-test["elbo"]["mean"])
    assert protocol["sizes"] == {"train": 1294, "validation": 144, "test": 359}
    assert (protocol["data"], protocol["binarization"], protocol["seed"]) == ("digits", "dynamic", 0)
    assert protocol["K"] == [1, 5, 20]


def test_the_results_open_with_arviz(run):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arviz 0.23 announces arviz 1
        import arviz
    found = arviz.from_netcdf(run / "results.nc")
    assert found["posterior"]["z"].sizes == {"chain": 1, "draw": 200, "shown": 100, "latent": 2}
    stats, constant = found["sample_stats"], found["constant_data"]
    total = found["log_likelihood"]["x"] + stats["log_prior"] - stats["log_posterior"]
    np.testing.assert_allclose(total, stats["log_weight"], rtol=1e-4, atol=1e-4)
    summary = json.loads((run / "summary.json").read_text())["test"]
    assert float(constant["iw_20"].mean()) == pytest.approx(summary["iw"]["20"]["mean"])
    assert constant["reconstruction"].sizes == {"shown": 100, "x_0": 8, "x_1": 8}
    assert found["observed_data"]["label"].sizes == {"shown": 100}


def test_the_results_draws_are_the_guides(run):
    """Their log-weights are what the program gives for the same latents."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    found = arviz.from_netcdf(run / "results.nc")
    vae, _, _ = load(run)
    z = torch.tensor(found["posterior"]["z"].values[0])
    x = torch.tensor(found["observed_data"]["x"].values)
    with torch.no_grad():
        expected = vae.likelihood(z).log_prob(x) + vae.prior().log_prob(z) - vae.encode(x).log_prob(z)
        again = log_weights(vae.model, vae.guide, x, particles=200, max_plate_nesting=1).log_w
    log_w = torch.tensor(found["sample_stats"]["log_weight"].values[0])
    torch.testing.assert_close(log_w, expected, rtol=1e-4, atol=1e-4)
    assert abs(again.mean() - log_w.mean()) < 0.05


def test_the_figures_are_drawn(run):
    names = {path.stem for path in (run / "figures").iterdir()}
    assert names == {"active_units", "latent_plane", "latent_space", "learning_curves", "reconstructions", "samples"}


def test_a_curve_has_the_name_of_an_objective_of_ones_own_without_its_module():
    config = SimpleNamespace(objective="mylab.bounds:Mine", particles=5)
    _, found = figures.curves(SimpleNamespace(config=config, metrics=lambda: [{"epoch": 1, "train": -9.0}]))
    assert next(iter(found)) == "training MINE (K=5)"


@pytest.mark.parametrize("shape", [(4, 4), (3,)])
def test_every_figure_has_a_title(shape, tmp_path, monkeypatch):
    def note(figure, path):
        path.touch()
        found.add(figure.get_suptitle() or figure.axes[0].get_title() or figure.texts[0].get_text())

    found = set()
    monkeypatch.setattr(plots, "save", note)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((40, *shape), np.float32))
    assert fit.main([*QUICK, "--data", f"{tmp_path}/x.npy", "--out", f"{tmp_path}/$5 日"]) == 0
    assert {title for title in found if "units active" not in title} == {
        "Learning curves of the run \\$5\n\\u65e5",
        "Posterior means of test data",
        "Reconstructions of test data",
        *(
            ["Means of p(x|z) over the latent plane", "Samples: means of p(x|z)"]
            if len(shape) > 1
            else [figures.BESIDE]
        ),
    }


def test_vectors_with_a_plane_of_latents_have_no_mosaic(tmp_path, capsys):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(60, 7)).astype(np.float32))
    command = f"--data {tmp_path}/rows.npy --likelihood gaussian --latent 2 --epochs 1 --out {tmp_path}/run"
    assert fit.main(command.split()) == 0
    assert "\nno figure of latent plane: data of shape (7,) are rows, expected images\n" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "figures" / "latent_plane.png").exists()
    assert (tmp_path / "run" / "figures" / "samples.png").exists()
    assert main_of_sample([str(tmp_path / "run"), "-n", "9", "-o", str(tmp_path / "rows.png")]) == 0


@pytest.mark.parametrize("shape", [(5, 4, 3), (2, 4, 4), (4, 4, 4), (3, 2, 4, 4)])
def test_data_of_any_shape_are_fitted_and_drawn_where_they_can_be(shape, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((40, *shape), np.float32))
    assert fit.main([*QUICK, "--data", f"{tmp_path}/x.npy", "--out", f"{tmp_path}/run"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "neither rows, grey images nor colour" in line]
    pictures = {"latent_plane", "reconstructions", "samples"} if shape == (5, 4, 3) else set()
    assert len(said) == (not pictures)
    found = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert found == {"active_units", "latent_space", "learning_curves"} | pictures
    assert (tmp_path / "run" / "summary.json").exists()
    assert main_of_sample([f"{tmp_path}/run", "-n", "3", "-o", f"{tmp_path}/s.npy"]) == 0
    if not pictures:
        with refused("which is no picture: write numbers, with -o samples.npy"):
            main_of_sample([f"{tmp_path}/run", "-o", f"{tmp_path}/s.png"])


def test_images_with_their_channels_last_are_drawn_as_those_with_them_first():
    x = np.random.default_rng(0).random((6, 9, 8, 3))
    first, last = (plots.image_grid(images).axes[0].images[0].get_array() for images in (np.moveaxis(x, 3, 1), x))
    np.testing.assert_array_equal(first, last)
    for encoder in (ConvEncoder, ResNetEncoder):
        with refused("store x.transpose(0, 3, 1, 2)"):
            encoder((9, 8, 3), 2)


def test_one_test_datum_has_no_standard_error(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((3, 2), np.float32))
    assert fit.main([*QUICK, "--data", f"{tmp_path}/x.npy", "--out", f"{tmp_path}/run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"  ELBO +-?\d+\.\d{3} \+- -\n", said)
    assert "of one test datum there is no standard error" in said

    def refuse(word):
        raise ValueError(word)

    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=refuse)
    assert summary["test"]["elbo"]["se"] is None
    assert "nan" not in said.partition("\ntest, 1 data")[2]


def test_a_figure_that_cannot_be_written_costs_no_numbers(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((40, 3), np.float32))
    monkeypatch.setattr(plots, "save", full)
    with refused("the disk is full: free some space, then resume"):
        fit.main([*QUICK, "--data", f"{tmp_path}/x.npy", "--out", f"{tmp_path}/run"])
    assert (tmp_path / "run" / "summary.json").exists()
    assert not list((tmp_path / "run" / "figures").iterdir())


def test_results_beyond_the_limit_of_a_file_leave_nothing_half_written(tmp_path):
    groups = {"posterior": {"z": (("chain", "draw"), np.zeros((1, 50_000)))}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with refused("the limit on a file's size is too low: raise it (ulimit -f), then resume"):
            write_results(tmp_path / "results.nc", groups, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("active", [0, 3, None])
def test_a_latent_that_is_not_used_is_told_of(run, active):
    found = Run.open(run)
    summary = found.read_json("summary.json")
    summary["test"]["active_units"] = active
    text = table(found.config, summary)
    assert text.count("no latent unit is active") == (active == 0)
    assert ("active units           - of " in text) == (active is None)


def test_active_units_are_drawn_as_they_are_counted():
    figure = figures._units(torch.tensor([-1e-4, 0.5, 0.03]), torch.tensor([0.0, 0.1, 0.02]))
    assert figure.axes[0].get_title() == "1 of 3 latent units active"
    with refused("one draw says nothing of posterior means: expected a larger K of --eval-particles"):
        figures._units(torch.tensor([math.nan]), torch.zeros(1))


class Told(torch.nn.Linear):
    """A model whose samples are what it was told beside them."""

    def sample(self, n, y, mean):
        assert n == len(y)
        return y


def test_samples_go_through_classes_in_turn_and_through_covariates_as_they_are():
    told, x = Told(1, 1), torch.zeros(4, 2)
    labels = Split(x, torch.tensor([2, 0, 2, 5]))
    assert sample(told, 6, 0, labels).tolist() == [0, 0, 2, 2, 5, 5]
    assert sample(told, 3, 0, labels, label=5).tolist() == [5, 5, 5]
    numbers = Split(x, torch.tensor([[4.0], [1.0], [3.0], [2.0]]))
    assert sample(told, 6, 0, numbers).flatten().tolist() == [4, 1, 3, 2, 4, 1]


def test_pictures_are_cut_to_the_range_of_the_data():
    split = Split(torch.tensor([[0.0, 1.0]]), None)
    found = picture(torch.tensor([[-3.0, 0.5], [0.2, 7.0]]), split)
    np.testing.assert_allclose(found, [[0.0, 0.5], [0.2, 1.0]])


def test_a_plane_is_drawn_of_real_latents_alone(tmp_path, capsys):
    command = f"--prior sphere --guide power_spherical --latent 2 --epochs 1 --eval-particles 2 --out {tmp_path}/run"
    assert fit.main(command.split()) == 0
    said = "no figure of latent plane: prior 'sphere' draws from the unit sphere, expected the real numbers"
    assert capsys.readouterr().out.count(f"\n{said}\n") == 1
    figures = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert "latent_space" in figures
    assert "latent_plane" not in figures


@pytest.mark.parametrize(("parts", "label"), [("prior,likelihood,guide", ", label 3"), ("guide", "")])
def test_a_plane_of_a_model_that_takes_labels_is_of_one(parts, label, tmp_path, plain):
    x, y = np.random.default_rng(0).random((60, 4, 4), np.float32), np.arange(60) % 2 + 3
    np.savez(tmp_path / "x.npz", x=x, y=y)
    labels = ["--condition", "label", "--conditioned", parts]
    assert fit.main([*QUICK, *labels, "--data", f"{tmp_path}/x.npz", "--out", f"{tmp_path}/run"]) == 0
    vae, dataset, run = load(tmp_path / "run")
    figure = figures._latent_plane(run, vae, dataset.test)
    assert [text.get_text() for text in figure.texts] == [f"Means of p(x|z) over the latent plane{label}"]
    if label:
        drawn = [figures.plane(vae, dataset.test.x.device, torch.tensor(y))[0] for y in (3, 4)]
        assert not np.array_equal(*drawn)


def test_a_plane_under_covariates_is_not_drawn(tmp_path, capsys):
    values = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=values.random((60, 4, 4), np.float32), y=values.random((60, 2)))
    given = ["--condition", "covariates", "--data", f"{tmp_path}/x.npz"]
    assert fit.main([*QUICK, *given, "--out", f"{tmp_path}/run"]) == 0
    said = "no figure of latent plane: p(x|z) takes what --condition covariates gives, expected z alone or a label"
    assert capsys.readouterr().out.count(f"\n{said}\n") == 1
    assert not (tmp_path / "run" / "figures" / "latent_plane.png").exists()
