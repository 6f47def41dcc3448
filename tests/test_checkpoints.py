"""Checkpoints: whole or absent, and what is not whole is said so."""

import contextlib
import errno
import os
import random
import re
import shutil

import pytest
import torch

from pvae import InputError
from pvae.runs import checkpoints

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3)}
STATE = {"steps": 7, "best": None, "random": torch.get_rng_state(), "nested": [{"lr": 0.1}]}


@pytest.fixture
def saved(tmp_path):
    return checkpoints.save(tmp_path, "step-000000007", WEIGHTS, STATE)


def refused(*texts):
    return pytest.raises(InputError, match="(?s)" + ".*".join(map(re.escape, texts)))


def test_round_trip(saved):
    found = checkpoints.load(saved)
    assert found.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.weights[key], value) for key, value in WEIGHTS.items())
    assert found.state["nested"] == STATE["nested"]
    assert torch.equal(found.state["random"], STATE["random"])


def test_the_state_loads_without_running_code(saved):
    assert torch.load(saved / "state.pt", weights_only=True)["steps"] == 7


@pytest.mark.parametrize("part", [checkpoints.WEIGHTS, checkpoints.STATE, checkpoints.MANIFEST])
def test_every_flipped_bit_is_caught(saved, part):
    draw = random.Random(0)
    whole = (saved / part).read_bytes()
    for _ in range(100):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        (saved / part).write_bytes(flipped)
        with pytest.raises(InputError):
            checkpoints.load(saved)
    (saved / part).write_bytes(whole)
    checkpoints.load(saved)


@pytest.mark.parametrize("part", [checkpoints.WEIGHTS, checkpoints.STATE, checkpoints.MANIFEST])
@pytest.mark.parametrize("left", [None, 0, 100])
def test_missing_and_truncated_parts(saved, part, left):
    content = (saved / part).read_bytes()
    (saved / part).unlink() if left is None else (saved / part).write_bytes(content[:left])
    with refused(str(saved)):
        checkpoints.load(saved)


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"format": "other", "sha256": {}}', '{"format": 1, "sha256": 3}'])
def test_foreign_manifests(saved, manifest):
    (saved / checkpoints.MANIFEST).write_text(manifest)
    with refused(str(saved)):
        checkpoints.load(saved)


def test_a_crafted_state_runs_no_code(saved, tmp_path, monkeypatch):
    class Crafted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    content = checkpoints._contents(WEIGHTS, {"x": Crafted()})
    for part, value in content.items():
        (saved / part).write_bytes(value)
    with refused("foreign"):
        checkpoints.load(saved)
    assert not (tmp_path / "ran").exists()


def test_the_newest_whole_one_is_offered(saved):
    for i in (8, 9, 10):
        checkpoints.save(saved.parent, f"step-{i:09d}", WEIGHTS, STATE)
    for i in (9, 10):
        (saved.parent / f"step-{i:09d}" / checkpoints.STATE).write_bytes(b"")
    with refused("step-000000010: damaged: ", f"the newest whole one is {saved.parent / 'step-000000008'}"):
        checkpoints.load(saved.parent / "step-000000010")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with refused("'a' is not finite"):
        checkpoints.save(tmp_path, "step-1", {"a": torch.tensor([1.0, float("nan")])}, STATE)
    assert not checkpoints.names(tmp_path)


@pytest.mark.parametrize("call", range(12))
@pytest.mark.parametrize("function", ["open", "fsync", "rename", "mkdir"])
def test_a_full_disk_at_each_write(saved, monkeypatch, function, call):
    """Whichever write fails, what was there stays, and nothing half-written is taken for whole."""
    real, calls = getattr(os, function), []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, function, full)
    with contextlib.suppress(InputError):  # there are fewer writes than calls tried
        checkpoints.save(saved.parent, "step-000000008", WEIGHTS, STATE)
        assert len(calls) <= call
    monkeypatch.undo()
    assert "step-000000007" in checkpoints.names(saved.parent)
    assert checkpoints.names(saved.parent) == sorted(os.listdir(saved.parent)), "what is half written takes no space"
    for name in checkpoints.names(saved.parent):
        checkpoints.load(saved.parent / name)
    checkpoints.save(saved.parent, "step-000000008", WEIGHTS, STATE)
    assert sorted(os.listdir(saved.parent)) == ["step-000000007", "step-000000008"]


def test_saving_again_changes_nothing(saved):
    before = os.stat(saved).st_ino
    assert checkpoints.save(saved.parent, saved.name, WEIGHTS, STATE) == saved
    assert os.stat(saved).st_ino == before


def test_a_damaged_one_is_written_anew(saved):
    (saved / checkpoints.STATE).write_bytes(b"")
    checkpoints.load(checkpoints.save(saved.parent, saved.name, WEIGHTS, STATE))


def test_what_else_lies_there_is_left_alone(saved):
    shutil.copytree(saved, saved.parent / "my-copy")
    shutil.copytree(saved, saved.parent / "step-000000007-mine")
    checkpoints.keep(saved.parent, set())
    assert checkpoints.names(saved.parent) == []
    assert sorted(os.listdir(saved.parent)) == ["my-copy", "step-000000007-mine"]


def test_names_sort_by_steps(tmp_path):
    for i in (10**9, 999_999_999, 10**10):
        checkpoints.save(tmp_path, f"step-{i:09d}", WEIGHTS, STATE)
    assert checkpoints.names(tmp_path) == ["step-999999999", "step-1000000000", "step-10000000000"]
