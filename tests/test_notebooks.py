"""The notebooks run from top to bottom, and what is committed of them holds their figures and no machine's paths."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parents[1] / "notebooks"
FIGURES = {"01-model-and-guide.ipynb": 6, "02-bounds.ipynb": 3, "03-a-prior-of-your-own.ipynb": 2}
ABSOLUTE = re.compile(r"(?<![\w./])/(?:home|Users|root|tmp|usr|opt|var|private|mnt|work|data)/|\b[A-Za-z]:\\\\?\w")


def _outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def _images(notebook):
    return [output.data["image/png"] for output in _outputs(notebook) if "image/png" in output.get("data", {})]


def _texts(notebook):
    """Everything that execution wrote and a reader or a tool may see, but for the pictures."""
    yield str(notebook.metadata)
    for cell in notebook.cells:
        yield str(cell.metadata)
    for output in _outputs(notebook):
        data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
        yield str({**output, "data": data})


@pytest.fixture(params=sorted(FIGURES))
def path(request):
    return FOLDER / request.param


@pytest.fixture
def hermetic(tmp_path, monkeypatch):
    """A working folder, and no settings, start-up files or kernels of the user's: python3 is this interpreter."""
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("JUPYTER_PATH", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_every_notebook_is_listed():
    assert {path.name for path in FOLDER.glob("*.ipynb")} == set(FIGURES)


def test_committed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "not run from top to bottom"
    assert len(_images(notebook)) >= FIGURES[path.name]
    assert not [output for output in _outputs(notebook) if output.get("name") == "stderr"]
    assert not [text for text in _texts(notebook) if ABSOLUTE.search(text)]


def test_absolute_paths_are_seen():
    for text in ("File /home/me/x.py", "'/tmp/a'", "C:\\Users\\me", "at /usr/lib/python3"):
        assert ABSOLUTE.search(text)
    for text in ("nats / datum", "p(z|x)/q", "./tmp/a", "https://example.org/home/"):
        assert not ABSOLUTE.search(text)


def test_runs(path, hermetic):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(hermetic)}}
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=600, resources=resources).execute()
    assert len(_images(notebook)) >= FIGURES[path.name]
    assert not list(hermetic.iterdir()), "a notebook leaves no files"
