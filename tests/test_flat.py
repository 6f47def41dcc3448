"""Configuration files: plain values as YAML 1.2 has them, and every name once."""

import pytest
import yaml
from pictures import refused

from pvae import config, flat

VALUES = {
    "010": 10,
    "-3": -3,
    "1e-3": 0.001,
    "+.5E2": 50.0,
    "3.": 3.0,
    ".inf": float("inf"),
    "true": True,
    "FALSE": False,
    "~": None,
    "null": None,
    "": None,
    "off": "off",
    "on": "on",
    "yes": "yes",
    "No": "No",
    "1:30": "1:30",
    "0x10": "0x10",
    "1.2.3": "1.2.3",
    "2020-01-01": "2020-01-01",
    "'5'": "5",
    "[1, 0010, off]": [1, 10, "off"],
}


@pytest.mark.parametrize("text", VALUES)
def test_plain_values(text, tmp_path):
    (tmp_path / "a.yaml").write_text(f"x: {text}\n")
    found = flat.read(tmp_path / "a.yaml")["x"]
    assert found == VALUES[text]
    assert type(found) is type(VALUES[text])


@pytest.mark.parametrize("value", [*VALUES, 0.1, 1e-5, 7, True, None, "a b", "0o17", ["off", 2, 1e-7]])
def test_what_is_written_is_read_by_either_version(value, tmp_path):
    written = flat.dump({"x": value})
    (tmp_path / "a.yaml").write_text(written)
    found = flat.read(tmp_path / "a.yaml")["x"]
    assert found == value == yaml.safe_load(written)["x"]
    assert type(found) is type(value)


def test_choices_that_yaml_1_1_takes_for_no(tmp_path):
    (tmp_path / "a.yaml").write_text("compile: off\nlr: 1e-3\nepochs: 010\nbatch_size: 7\n")
    found = config.from_flat(config.read(tmp_path / "a.yaml"))
    assert (found.compile, found.lr, found.epochs, found.batch_size) == ("off", 0.001, 10, 7)
    assert yaml.safe_load(config.to_yaml(found))["compile"] == "off"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 1\nseed: 2\nlr: 1\n", "found `lr` in line 1 and `lr` in line 3, expected one of them"),
        ("eval-particles: 1\neval_particles: 2\n", "found `eval-particles` in line 1 and `eval_particles` in line 2"),
        ("prior.scale: 1\nprior.scale: 2\n", "found `prior.scale` in line 1 and `prior.scale` in line 2"),
        ("x: !!python/name:os.system\n", "could not determine a constructor"),
        ("x: !!int five\n", "not YAML: invalid literal"),
    ],
)
def test_what_is_refused(text, said, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with refused(f"--config {tmp_path}/a.yaml: {said}"):
        flat.read(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("prior.a_b: 1\nprior.a-b: 2\n")
    assert flat.read(tmp_path / "a.yaml") == {"prior.a_b": 1, "prior.a-b": 2}
