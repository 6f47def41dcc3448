"""The pages on writing a part run as they are written, from top to bottom."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pyro
import pytest

import pvae
from pvae import cli, report

FOLDER = Path(__file__).parents[1] / "notebooks"
PAGES = sorted(FOLDER.glob("your-own-*.md"))
BLOCK = re.compile(r"^```(python|sh)(?: (\S+))?\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(report, "figures", lambda *_: None)  # they take most of a small run's time
    return tmp_path


def run(command):
    """A line of a shell, in this process."""
    python, flag, module, *argv = shlex.split(command)
    assert (python, flag) == ("python", "-m")
    with pytest.raises(SystemExit) as found:
        cli.run(importlib.import_module(module).main, module.partition(".")[2], argv)
    assert found.value.code == 0, command


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_runs(page, here, capsys):
    space = {}
    for kind, file, code in BLOCK.findall(page.read_text()):
        if file:
            Path(file).parent.mkdir(exist_ok=True)
            Path(file).write_text(code)
        elif kind == "python":
            exec(code, space)
        else:
            for line in code.splitlines():
                run(line)
    text = capsys.readouterr().out
    assert "  integrates  ok\n  samples     ok\n" in text
    assert "--prior.scale" in text or page.stem != "your-own-prior"


def test_the_page_on_programs_runs(here, capsys):
    """It says itself that what resumes is the same."""
    page, space = FOLDER / "any-pyro-program.md", {"__name__": "page"}
    pyro.clear_param_store()
    for _, _, code in BLOCK.findall(page.read_text()):
        lines = "\n" * page.read_text().partition(code)[0].count("\n")
        exec(compile(lines + code, str(page), "exec"), space)
    graph, fitted, refused, eager, evidence, mean = capsys.readouterr().out.splitlines()
    assert graph.startswith("graph: built in")
    assert fitted.startswith("loss 1")
    assert "site 'y': found 2" in refused
    assert "expected Boolean()" in refused
    assert eager.startswith(f"the program runs eagerly: it cannot be traced: {page}:")
    assert evidence.startswith("log evidence at least -10")
    assert mean.startswith("mean loss 1")
    assert "(notebooks/any-pyro-program.md)" in (FOLDER.parent / "README.md").read_text()


def test_there_is_a_page_for_each_part():
    assert [page.stem for page in PAGES] == ["your-own-guide", "your-own-likelihood", "your-own-prior"]
    readme = (FOLDER.parent / "README.md").read_text()
    assert all(f"(notebooks/{page.name})" in readme for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_part_takes_under_20_lines(page):
    ((_, _, code),) = [block for block in BLOCK.findall(page.read_text()) if block[1]]
    for node in ast.walk(tree := ast.parse(code)):
        if isinstance(node, ast.ClassDef):
            node.body = node.body[1:]  # its docstring
    assert len(ast.unparse(tree).replace("\n\n", "\n").splitlines()) < 20
    assert max(map(len, code.splitlines())) <= 120


def test_what_a_user_does_from_nothing(here, capsys):
    """One file, under 20 lines, no registration beyond naming it."""
    source = '''\
import pvae, torch
import pyro.distributions as dist

class Horseshoe(pvae.Prior):
    """Heavy tails: p(z) = prod_d t(z_d; 2, 0, s).

    Args:
        latent: size of the latent.
        scale: s, where it starts.
    """

    def __init__(self, latent: int, scale: float = 1.0) -> None:
        super().__init__(latent)
        self.log_scale = torch.nn.Parameter(torch.full((latent,), scale).log())

    def forward(self, y=None):
        return dist.StudentT(2.0, torch.zeros_like(self.log_scale), self.log_scale.exp()).to_event(1)
'''
    assert len(source.splitlines()) < 20
    Path("mylab").mkdir()
    Path("mylab/priors.py").write_text(source)
    run("python -m pvae.fit --help --prior mylab.priors:Horseshoe")
    text = capsys.readouterr().out
    assert "mylab.priors:Horseshoe (default: 1.0): s, where it starts." in " ".join(text.split())
    run("python -m pvae.fit --epochs 1 --prior mylab.priors:Horseshoe --prior.scale 0.1 --out run")
    assert pvae.load.load("run")[0].prior.log_scale.exp().mean() < 0.5
    assert "mylab.priors:Horseshoe" in Path("run/config.yaml").read_text()
    prior = importlib.import_module("mylab.priors").Horseshoe(8)
    assert pvae.testing.check_prior(prior).skipped == {}
