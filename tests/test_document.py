"""Configuration files: values as text, whatever YAML would make of it, and every name once."""

import pytest
import yaml
from pictures import refused

from pvae import config
from pvae.config import document
from pvae.config.values import convert

VALUES = {
    "010": (int, 10),
    "-3": (int, -3),
    "1e-3": (float, 0.001),
    "+.5E2": (float, 50.0),
    "3.": (float, 3.0),
    "true": (bool, True),
    "FALSE": (bool, False),
    "~": (str | None, None),
    "null": (int | None, None),
    "": (str | None, None),
    "off": (str, "off"),
    "No": (str, "No"),
    "1:30": (str, "1:30"),
    "0x10": (str, "0x10"),
    "2020-01-01": (str, "2020-01-01"),
    "'5'": (str, "5"),
    "''": (str, ""),
    "[1, 0010]": (list[int], (1, 10)),
    "[off, no]": (list[str], ("off", "no")),
}


@pytest.mark.parametrize("text", VALUES)
def test_plain_values(text, tmp_path):
    (tmp_path / "a.yaml").write_text(f"x: {text}\n")
    kind, expected = VALUES[text]
    found = convert(document.read(tmp_path / "a.yaml")["x"], kind, "x")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("value", ["010", "1e-3", "~", "", "a b", "0o17", 0.1, 1e-5, 7, True, None, ["off", "2"]])
def test_what_is_written_is_read(value, tmp_path):
    written = document.dump({"x": value})
    (tmp_path / "a.yaml").write_text(written)
    found = document.read(tmp_path / "a.yaml")["x"]
    assert yaml.safe_load(written)["x"] == value
    assert found == value if isinstance(value, str | list) else convert(found, type(value), "x") == value


def test_choices_that_yaml_1_1_takes_for_no(tmp_path):
    (tmp_path / "a.yaml").write_text("compile: off\nlr: 1e-3\nepochs: 010\nbatch_size: 7\ndata_dir: ~\n")
    found = config.from_flat(config.read(tmp_path / "a.yaml"))
    assert (found.compile, found.lr, found.epochs, found.batch_size, found.data_dir) == ("off", 0.001, 10, 7, None)
    assert yaml.safe_load(config.to_yaml(found))["compile"] == "off"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 1\nseed: 2\nlr: 1\n", "found `lr` in line 1 and `lr` in line 3, expected one of them"),
        ("eval-particles: 1\neval_particles: 2\n", "found `eval-particles` in line 1 and `eval_particles` in line 2"),
        ("prior.scale: 1\nprior.scale: 2\n", "found `prior.scale` in line 1 and `prior.scale` in line 2"),
        ("{[1]: 2}\n", "found unhashable key"),
    ],
)
def test_what_is_refused(text, said, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with refused(f"--config {tmp_path}/a.yaml: {said}"):
        document.read(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("prior.a_b: 1\nprior.a-b: 2\nx: !!python/name:os.system\n")
    assert document.read(tmp_path / "a.yaml") == {"prior.a_b": "1", "prior.a-b": "2", "x": "none"}  # no code
