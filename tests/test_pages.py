"""The pages on writing a part, or an objective, run as they are written, from top to bottom."""

import ast
import re
import shlex
from pathlib import Path

import pyro
import pytest
from commands import go

import pvae

FOLDER = Path(__file__).parents[1] / "notebooks"
PAGES = sorted(FOLDER.glob("your-own-*.md"))
BLOCK = re.compile(r"^```(python|sh)(?: (\S+))?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run(line):
    """A line of a shell, in this process."""
    python, flag, module, *argv = shlex.split(line)
    assert (python, flag, module.partition(".")[0]) == ("python", "-m", "pvae")
    assert go(*argv, command=module.partition(".")[2]) == 0, line


@pytest.fixture
def here(here, plain, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    return here


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
    if page.stem == "your-own-objective":
        iwae, jackknife = re.findall(r": -(\S+) nats off", text)
        assert float(jackknife) < 0.3 * float(iwae)
        return
    assert "  integrates  ok\n  samples     ok\n" in text
    if page.stem == "your-own-prior":  # one file, no registration beyond naming it
        assert "mylab.priors:Horseshoe (default: 1.0): s, where it starts; it is learned." in " ".join(text.split())
        assert pvae.load.load("runs/elbo")[0].prior.log_scale.exp() < 0.5
        assert "mylab.priors:Horseshoe" in (here / "runs/elbo/config.yaml").read_text()


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
    assert eager.startswith(f"the program runs eagerly: {page}:")
    assert evidence.startswith("log evidence at least -10")
    assert mean.startswith("mean loss 1")
    assert "(notebooks/any-pyro-program.md)" in (FOLDER.parent / "README.md").read_text()


def test_there_is_a_page_for_each_part():
    assert [page.stem for page in PAGES] == [
        "your-own-" + part for part in ("guide", "likelihood", "objective", "prior")
    ]
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
