"""The code in the README runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import torch

from pvae import base

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(text):
    (found,) = [code for code in BLOCKS if text in code]
    return found


def test_the_program_is_the_one_that_is_shown():
    source = (Path(base.__file__).parent / "vae.py").read_text()
    for line in block("class VAE").splitlines()[1:]:
        code = line.strip()
        assert code.startswith("def ") or code in source, code


def test_the_program_in_research_code():
    space = {"x": torch.bernoulli(torch.rand(8, 784))}
    exec(block("pvae.VAE("), space)
    assert space["log_w"].shape == (1000, 8)
    assert space["found"].iw[1000].shape == (8,)


def test_a_part_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mylab.py").write_text(block("class Laplace"))
    monkeypatch.chdir(tmp_path)
    prior = base.lookup("prior", "mylab:Laplace")(4, scale=0.7)
    assert prior().log_prob(torch.zeros(3, 4)).shape == (3,)


def test_members_that_are_listed_are_those_there_are():
    table = README.partition("## Members")[2].partition("Data:")[0]
    for family in ("prior", "likelihood", "guide", "encoder", "decoder", "objective", "gradient"):
        for name in base.members(family):
            assert f"`{name}`" in table, f"{family} {name}"


def test_measured_figures_are_the_newest_results():
    command = [sys.executable, "-c", "from benchmarks.readme import measured; print(measured())"]
    found = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert found.stdout.strip() in README, "run python -m benchmarks.readme"
