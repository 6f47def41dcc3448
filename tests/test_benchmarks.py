"""The driver of the benchmarks that take a GPU, and the benchmark of the importance-weighted autoencoder, run small."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from benchmarks import common, figures, gpu, iwae, plan
from benchmarks.step import main as step


class Script:
    """A part that is a program's text; it is given the file to write to."""

    def __init__(self, text, least=0.0, most=30.0):
        self.text, self.least, self.most = text, least, most

    def lacks(self, device):
        return "" if self.text is not None else "a GPU"

    def command(self, device, quick, out):
        out.with_suffix(".py").write_text(f"out = {str(out)!r}\n{self.text}")
        return ["runpy", out.stem]


WRITES = "import json; open(out, 'w').write(json.dumps({'found': 1}))\n"


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Runs parts; returns the exit status, the results and the log."""

    def run(parts, minutes="0.3", also=""):
        monkeypatch.setattr(gpu, "PARTS", parts)
        monkeypatch.setattr(gpu, "POLL", 0.2)
        monkeypatch.setattr(gpu, "_table", lambda results: "")
        monkeypatch.setattr(gpu, "_environment", lambda folder, commit: {**os.environ, "PYTHONPATH": str(folder)})
        monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
        given = ["--also", also] if also else []
        monkeypatch.setattr(
            sys, "argv", ["gpu", "--minutes", minutes, "--out", str(tmp_path), "--device", "cpu", *given]
        )
        status = gpu.main()
        return status, json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "log.txt").read_text()

    return run


def test_a_part_that_fails_or_hangs_does_not_stop_those_after_it(drive):
    status, found, log = drive(
        {
            "fails": Script("raise ValueError('of this one')"),
            "hangs": Script(WRITES + "import time; time.sleep(60)", most=1.5),
            "long": Script(WRITES, least=1000.0),
            "absent": Script(None),
            "last": Script(WRITES + "print('the last')"),
        }
    )
    assert status == 1
    assert {name: each["outcome"] for name, each in found.items()} == {
        "fails": "ended with 1",
        "hangs": "cut off after 2 s",
        "long": found["long"]["outcome"],
        "absent": "left out: there is not a GPU",
        "last": "done",
    }
    assert "left out: it takes 1000 s" in found["long"]["outcome"]
    assert "of this one" in log
    assert "the last" in log
    assert found["hangs"]["record"] == found["last"]["record"] == {"found": 1}, "what it had written is lost"
    assert found["long"]["record"] is None


def test_what_a_part_has_started_ends_with_it(drive, tmp_path):
    grandchild = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(grandchild)!r}).touch(); time.sleep(0.05)"
    text = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    drive({"hangs": Script(text, most=1.5)})
    grandchild.unlink()
    time.sleep(0.3)
    assert not grandchild.exists()


def test_options_more_for_a_part(drive):
    script = Script("import sys; print(sys.argv[1:])")
    _, _, log = drive({"one": script}, also="one=--rate 3e-3")
    assert "['--rate', '3e-3']" in log


def test_no_time_no_parts(drive):
    status, found, _ = drive({"one": Script(WRITES, least=1.0)}, minutes="0")
    assert status == 1
    assert found["one"]["outcome"] == "left out: it takes 1 s, 0 s are left"


@pytest.mark.parametrize("name", plan.PARTS)
def test_every_part_has_a_module_and_figures(name):
    part = plan.PARTS[name]
    assert part.module in figures.FIGURES
    assert find_spec(f"benchmarks.{part.module}")
    assert part.least < part.most


@pytest.mark.parametrize("parts", ["precision,memory,build", "ais,evaluate,programs"])
def test_parts_that_no_other_test_runs_end_well(parts, tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--quick",
        "--parts",
        parts,
        "--out",
        tmp_path,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_figures_are_read_from_the_records():
    fast = {who: {"microseconds": value} for who, value in {"pvae-full": 80, "numpyro-scan": 100, "pyro": 8000}.items()}
    record = {"precision": "tf32", "networks": {"A": {"contestants": fast, "skipped": {"numpyro-jit": "no JAX"}}}}
    assert [row[2] for row in figures.step(record)] == ["0.80 (80 us)", "100", "no JAX"]
    for name in ("programs", "precision", "ais", "parts"):
        newest = max(common.RESULTS.glob(f"{name}-cpu-20*.json"))
        assert figures.FIGURES[name](json.loads(newest.read_text()))


def test_the_importance_weighted_autoencoder_trains(tmp_path, monkeypatch):
    out = tmp_path / "iwae.json"
    options = ["--check", "--threads", "1", "--device", "cpu", "--data-dir", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["iwae", *options, "--average", "0.5"])
    assert iwae.main() == 0
    record = json.loads(out.read_text())
    assert [point["steps"] for point in record["curve"]] == [200, 300]
    assert record["nll"] == record["curve"][-1]["nll"] < 200
    assert record["seconds"] > record["curve"][0]["seconds"] > record["first_steps_seconds"] > 0
    assert record["seconds_to_goal"] is None
    assert record["graphs"] == ["graph"]
    assert record["data"].startswith("synthetic")
    assert figures.iwae(record)[0][2] == "not reached"


def test_the_average_is_evaluated_and_then_put_aside():
    options = SimpleNamespace(
        batch=4,
        seed=0,
        flat=0.5,
        average=0.5,
        rate=1e-3,
        eps=1e-4,
        gradient="reparam",
        compile="off",
        precision="float32",
    )
    training = iwae.Training(torch.from_numpy(common.images(40)), options)
    start = [p.clone() for p in training.parameters]
    training.to(iwae.TOGETHER)
    last = [p.clone() for p in training.parameters]
    weight = 1 - torch.tensor(-2.0).exp()
    with training.averaged():
        for p, a, b in zip(training.vae.parameters(), start, last, strict=True):
            torch.testing.assert_close(p.detach(), torch.lerp(a, b, weight))
    assert all(torch.equal(p, q) for p, q in zip(training.vae.parameters(), last, strict=True))


def test_the_rate_is_flat_and_then_falls_to_nothing():
    schedule = iwae.Schedule(0.5)
    assert schedule(10) == 1
    schedule.steps = 200
    assert [schedule(step) for step in (0, 100, 150, 200, 300)] == [1, 1, 0.5, 0, 0]


def test_each_pass_has_every_image_once():
    rows = iwae.batches(150, 4, seed=0, device=torch.device("cpu"))
    taken = torch.cat([next(rows).flatten() for _ in range(3)])
    for start in range(0, 1200, 150):
        assert taken[start : start + 150].unique().numel() == 150


def test_contestants_do_the_same_and_who_is_missing_is_left_out(tmp_path, monkeypatch, capsys):
    out = tmp_path / "step.json"
    monkeypatch.setitem(sys.modules, "jax", None)
    options = ["--device", "cpu", "--threads", "1", "--networks", "A", "--only", "pvae-graph,torch,numpyro-jit"]
    quick = ["--check-steps", "6", "--seconds", "0.01", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["step", *options, *quick])
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    assert step() == 0
    found = json.loads(out.read_text())["networks"]["A"]
    assert set(found["contestants"]) == {"pvae-graph", "torch"}
    assert "numpyro-jit" in found["skipped"]
    assert found["contestants"]["pvae-graph"]["note"] == ""
    assert "skipped numpyro-jit" in capsys.readouterr().out


def test_a_compiled_step_has_few_kernels_on_cuda(tmp_path):
    """Network B's, counted in the code that would run on an H100; in a process where inductor has met no device yet."""
    command = [sys.executable, "-m", "benchmarks.launches", "--networks", "B", "--out", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=common.ROOT, check=True, capture_output=True)
    found = json.loads((tmp_path / "found.json").read_text())["kernels"]["B"]
    assert 30 < len(found) <= 43
    assert sum(name.startswith("product") for name in found) == 10, "each layer's two gradient products are a pair"
    assert sum(name.startswith("triton_for") for name in found) == 2, "Adam is its steps' count and one kernel"
