"""The run folder: one process at a time, known by what is in it, and never emptied by mistake."""

import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import SMALL, go

from pvae import InputError, fit, load, report, runs
from pvae.runs import checkpoints, environment, locks

pytestmark = pytest.mark.usefixtures("here", "plain")
HOLD = (
    "import fcntl, time; f = open('{}', 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(99)"
)


@pytest.fixture
def holder(here):
    """Holds a folder from another process."""
    processes = []

    def hold(folder):
        code = HOLD.format(Path(folder) / locks.LOCK)
        processes.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield hold
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def content(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in Path(folder).rglob("*")}


def test_a_folder_that_another_process_trains_in_is_refused(here, run, holder, capsys, monkeypatch):
    (here / "new").mkdir()
    monkeypatch.setattr(fit, "read_data", None)  # before any work
    for argv, folder, then in (
        (["--out", "new"], "new", "choose another folder"),
        (["--resume", run], run, "wait until it ends, or stop it"),
        (["--resume", run / "checkpoints" / "step-000000022"], run, "wait until it ends, or stop it"),
    ):
        process = holder(folder)
        before = content(folder)
        assert go(*argv) == 2
        assert capsys.readouterr().err.endswith(f"{folder}: another process trains in it: {then}\n")
        assert content(folder) == before
        process.kill()
        process.wait()


def test_a_folder_that_is_taken_while_data_are_read_is_refused(here, holder, capsys, monkeypatch):
    real = fit.read_data

    def slow(settings):
        Path("new").mkdir()
        holder("new")
        return real(settings)

    monkeypatch.setattr(fit, "read_data", slow)
    assert go(*SMALL, "--out", "new") == 2
    assert "another process trains in it" in capsys.readouterr().err
    assert [path.name for path in Path("new").iterdir()] == [locks.LOCK]


def test_a_folder_that_is_filled_while_data_are_read_is_refused(here, run, capsys, monkeypatch):
    real = fit.read_data
    monkeypatch.setattr(fit, "read_data", lambda settings: (shutil.copytree(run, "new"), real(settings))[1])
    assert go(*SMALL, "--out", "new") == 2
    assert "continue it with --resume new" in capsys.readouterr().err
    assert content("new") == content(run)


def test_a_folder_that_is_filled_before_it_is_held_is_refused(here, run, capsys, monkeypatch):
    monkeypatch.setattr(runs.run, "_made", lambda *_: shutil.copytree(run, here / "new"))
    assert go(*SMALL, "--out", "new") == 2
    assert "choose another folder" in capsys.readouterr().err
    assert content("new") == content(run)


def test_a_run_holds_its_folder_until_it_ends(here, run, capsys, monkeypatch):
    tried = []

    def again(*_):
        who = f"process {os.getpid()} on .* trains in it: later"
        with pytest.raises(InputError, match=who), locks.locked(Path(tried[-1]), "later"):
            pass

    monkeypatch.setattr(report.figures, "draw", again)
    for argv, folder in (([*SMALL, "--out", "new"], "new"), (["--resume", run], run)):
        tried.append(folder)
        assert go(*argv) == 0
        assert not (Path(folder) / locks.LOCK).exists()
    assert len(tried) == 2


def test_a_killed_run_leaves_no_lock(run, holder):
    process = holder(run)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (run / locks.LOCK).exists()
    assert go("--resume", run) == 0
    (run / "new").mkdir()
    (run / "new" / locks.LOCK).write_text("process 7, killed before its first checkpoint")
    assert go(*SMALL, "--epochs", "1", "--out", run / "new") == 0


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_checkpoint_that_was_not_deleted_when_a_run_was_killed(finished, when, monkeypatch):
    """None is there in part, and a resume deletes what is left."""
    where, name = (shutil, "rmtree") if when == "while" else (checkpoints, "keep")
    real = getattr(where, name)

    def killed(path, *wanted, **how):
        if runs.Run.open("new").names()[-1:] != ["step-000000033"] or not path.is_dir():
            return real(path, *wanted, **how)
        if when == "while":
            (path / checkpoints.MANIFEST).unlink()
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, killed)
        assert go(*SMALL, "--out", "new") == 9
    for name in runs.Run.open("new").names():
        checkpoints.verify(Path("new/checkpoints", name))
    assert go("--resume", "new") == 0
    assert content("new/checkpoints").keys() == content(finished / "checkpoints").keys()


def test_going_back_deletes_later_checkpoints_that_a_longer_run_would_have_too(run):
    opened, first = runs.Run.at(run / "checkpoints" / "step-000000022")
    first.state["steady"] = 33
    opened.rewind(first)
    assert opened.names() == ["step-000000022"]


def test_a_lock_says_who_holds_it(here):
    (here / locks.LOCK).write_text("process 123 on a machine with a name " * 9)
    with locks.locked(here, "later"):
        assert (here / locks.LOCK).read_text() == f"process {os.getpid()} on {platform.node()}"


def test_a_lock_that_was_deleted_as_it_was_given_up_holds_nothing(here, monkeypatch):
    """Who waited at the old file takes the new one."""
    real, opened = fcntl.flock, []

    def flock(descriptor, how):
        opened.append(descriptor)
        if len(opened) == 1:
            (here / locks.LOCK).unlink()
        return real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.locked(here, "later"):
        monkeypatch.undo()
        assert len(opened) == 2
        with pytest.raises(InputError), locks.locked(here, "later"):
            pass


def test_without_locks_a_run_goes_on(monkeypatch):
    """On a file system that has none, and on a system that has none."""

    def flock(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        assert go(*SMALL, "--epochs", "1", "--out", "new") == 0
    monkeypatch.setattr(locks, "fcntl", None)
    assert go(*SMALL, "--epochs", "1", "--out", "other") == 0
    assert not Path("other", locks.LOCK).exists()


@pytest.mark.parametrize("name", ["step-000000022", "best"])
def test_a_checkpoint_is_resumed_from_within(run, finished, name, monkeypatch):
    """By its steps, whatever its name: earlier ones stay."""
    at = run / "checkpoints" / name
    if name == "best":
        shutil.copytree(run / "checkpoints" / "step-000000022", at)
    before = checkpoints.load(at).weights
    monkeypatch.chdir(at)
    found = load.load(".")[0].state_dict()
    assert all(torch.equal(found[key], before[key]) for key in before)
    assert not all(torch.equal(found[key], value) for key, value in runs.Run.open(run).best().weights.items())
    assert go("--resume", ".") == 0
    assert runs.Run.open(run).names() == ["step-000000022", "step-000000033"]
    for part in ("metrics.jsonl", "summary.json"):
        assert (run / part).read_text() == (finished / part).read_text()


def test_a_linked_checkpoint_is_one(run, here):
    (here / "chosen").symlink_to(run / "checkpoints" / "step-000000022")
    assert runs.Run.at("chosen")[1].state["steps"] == 22


@pytest.mark.parametrize("folder", ["checkpoints/exp1", "checkpoints/step-5"])
def test_a_run_in_a_folder_of_that_name_is_read(run, here, folder):
    Path("checkpoints").mkdir()
    run.rename(folder)
    assert runs.Run.at(folder)[1].state["steps"] == 33
    assert go(folder, "-n", "3", "-o", "x.npy", command="sample") == 0
    assert go("--resume", folder) == 0
    with pytest.raises(InputError, match="checkpoints/nosuch: no such run folder"):
        runs.Run.at("checkpoints/nosuch")
    assert runs.Run.at(Path(folder, "checkpoints", "step-000000022"))[1].state["steps"] == 22


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "ipu", torch.device("vulkan")])
def test_a_device_that_is_not_there_is_a_line(run, device):
    with pytest.raises(
        InputError, match=f"^device: found '{device}', which is not there: pass 'cpu', or leave it out$"
    ):
        load.load(run, device)


def test_final_numbers_are_said_and_written_before_what_fails(run, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (run / "summary.json").unlink()
    monkeypatch.setattr(Path, "write_bytes", full)
    assert go("--resume", run) == 2
    out, err = capsys.readouterr()
    assert "IW bound, K=2" in out
    assert "free some space, then resume; what was saved stays" in err
    assert json.loads((run / "summary.json").read_text())["test"]
    assert not (run / "results.nc").exists()


@pytest.mark.parametrize("where", ["log", "save", "describe"])
def test_without_a_checkpoint_a_full_disk_is_no_reason_to_resume(where, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    if where == "save":
        monkeypatch.setattr(checkpoints, "_contents", full)
    else:
        monkeypatch.setattr(json, "dumps", full)
        monkeypatch.setattr(runs.Run, "describe", runs.Run.describe if where == "describe" else lambda *_: None)
    assert go(*SMALL, "--out", "new") == 2
    assert capsys.readouterr().err.endswith("raise it (ulimit -f), then run it again\n")
    assert not Path("new").exists()


DAMAGED = ["{}", "[]", '{"data": 3}', '{"data": {"name": "digits", "sizes": {}}}']
DAMAGED += ['{"data": {"name": "digits", "sha256": 5, "sizes": 3}}']
DAMAGED += ['{"data": {"name": "digits", "sha256": "", "sizes": {"test": 1}}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_environment_is_a_line(run, text, capsys):
    (run / "environment.json").write_text(text)
    assert go(run, "--particles", 1, command="compare") == 2
    assert "environment.json: damaged: found no 'data'" in capsys.readouterr().err
    for argv in (["--resume", run], [*SMALL, "--start-from", run]):
        assert go(*argv) == 2
        assert "environment.json: damaged: found no 'data' with name, sha256 and sizes" in capsys.readouterr().err


METRICS = {
    "empty": lambda text: b"",
    "cut": lambda text: text[: len(text) // 2],
    "a lost line": lambda text: b"".join(text.splitlines(keepends=True)[::2]),
    "bytes": lambda text: text.replace(b"steps", b"st\xffps").replace(b"epoch", b"ep\0ch"),
    "no records": lambda text: b"3\n" * 3,
}


@pytest.mark.parametrize("how", METRICS)
def test_damaged_metrics_are_a_line(how, run, capsys):
    (run / "metrics.jsonl").write_bytes(METRICS[how]((run / "metrics.jsonl").read_bytes()))
    before = content(run)
    assert go("--resume", run) == 2
    message = "metrics.jsonl: damaged: expected a line of JSON for each epoch to 3: restore it, or delete it to go on"
    assert message in capsys.readouterr().err
    assert content(run) == before


def test_metrics_that_were_being_written_or_were_deleted(run, finished):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"epoch": 4, "tr\xff\0')  # as of a run that was killed, or lost power
    assert go("--resume", run) == 0
    assert (run / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").unlink()
    assert go("--resume", run / "checkpoints" / checkpoints.names(run / "checkpoints")[0]) == 0
    last = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)[-1]
    assert (run / "metrics.jsonl").read_text() == last
    assert go("--resume", run) == 0  # the file began anew
    assert (run / "metrics.jsonl").read_text() == last


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no names of open files")
def test_metrics_are_durable_before_the_checkpoint_after_them(monkeypatch, here):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    assert go(*SMALL, "--epochs", "1", "--out", "run") == 0
    assert [Path(path).name for path in synced[:2]] == ["metrics.jsonl", checkpoints.WEIGHTS]


@pytest.mark.parametrize(("text", "message"), [("laten: 2", "--laten: unknown option"), ("a: [", "not YAML")])
def test_a_damaged_configuration_names_its_file(text, message, run, capsys):
    (run / "config.yaml").write_text(text)
    assert go("--resume", run) == 2
    assert f"error: {run}/config.yaml: {message}" in capsys.readouterr().err


def test_a_tree_of_sources_that_is_not_installed(monkeypatch):
    def version(name):
        if name == "pvae":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(environment, "version", version)
    assert environment.versions()["packages"]["pvae"] == "not installed"


def test_a_missing_environment_is_not_to_be_resumed_from(run, capsys):
    (run / "environment.json").unlink()
    assert go("--resume", run) == 2
    assert "environment.json: missing: restore it, or fit again" in capsys.readouterr().err
