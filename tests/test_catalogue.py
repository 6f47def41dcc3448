"""The catalogue says all that the registry knows; the README's table is what it writes."""

import re
import sys
from pathlib import Path

import pytest

import pvae
from pvae import cli, config, parts
from pvae.base import members
from pvae.config import FAMILIES

README = Path(__file__).parents[1] / "README.md"
ENTRIES = list(parts.catalogue())


def go(capsys, *argv):
    with pytest.raises(SystemExit) as found:
        cli.run(parts.main, "parts", list(argv))
    out, err = capsys.readouterr()
    return found.value.code, out, err


def test_the_readmes_table_is_that_of_the_registry():
    assert parts.section() in README.read_text(), "run python -m pvae.parts --write README.md"


@pytest.mark.parametrize("found", ENTRIES, ids=[f"{e.family}-{e.name}" for e in ENTRIES])
def test_every_member_says_what_it_is(found):
    assert found.sentence.endswith("."), "a docstring begins with a sentence"
    if found.family in ("prior", "likelihood", "guide"):
        assert ":" in found.sentence, "the first sentence has the formula after a colon"
    for option in found.options:
        assert option.kind, option.name
        assert option.text, option.name


def test_an_objective_says_its_formula_and_an_estimator_its_bias():
    for found in parts.catalogue(["objective"]):
        assert re.search(r"log|E_q\[", found.sentence), found.name
    (sentence,) = [found.sentence for found in parts.catalogue(["gradient"]) if found.name == "stl"]
    assert "biased for a bound that weighs its K > 1 draws" in sentence


def test_everything_is_listed(capsys):
    code, text, _ = go(capsys)
    assert code == 0
    assert max(map(len, text.splitlines())) <= 110
    assert {(e.family, e.name) for e in ENTRIES} == {(f, n) for f in FAMILIES for n in members(f)}
    for found in ENTRIES:
        assert f"{found.family} {found.name}\n" in text
        for option in config.member_options(found.family, members(found.family)[found.name]):
            assert f"--{found.family}.{option}" in text


def test_one_member_and_one_family(capsys):
    code, text, _ = go(capsys, "gaussian")
    assert code == 0
    assert text.startswith("likelihood gaussian\n  Each pixel is Gaussian about")
    assert "--likelihood.scale (default: shared): s: a number" in text
    assert "  Paper: Rybkin, Daniilidis and Levine 2021" in text
    assert text.count("\n\n") == 0
    code, text, _ = go(capsys, "--family", "guide")
    assert go(capsys, "guide")[1] == text
    assert {line.split()[0] for line in text.splitlines() if not line.startswith(" ") and line} == {"guide"}
    assert {line.split()[0] for line in go(capsys, "mlp")[1].splitlines() if line[:1].strip()} == {"encoder", "decoder"}


OWN = """
import pvae

class Mine(pvae.Normal):
    '''A prior of my own: p(z) = N(0, s I).

    Args:
        scale: s.

    Me 2026.
    '''

    def __init__(self, latent: int, scale: float = 2.0) -> None:
        super().__init__(latent)

class Other:
    pass
"""


def test_a_class_of_ones_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab_of_parts.py").write_text(OWN)
    expected = (
        "prior lab_of_parts:Mine\n  A prior of my own: p(z) = N(0, s I).\n"
        "    --prior.scale (default: 2): s. [a number]\n  Paper: Me 2026\n"
    )
    assert go(capsys, "lab_of_parts:Mine") == (0, expected, "")
    assert go(capsys, "lab_of_parts:Mine", "--family", "prior") == (0, expected, "")
    for argv, text in {
        ("lab_of_parts:Mine", "--family", "guide"): "--guide lab_of_parts:Mine: found <class 'lab_of_parts.Mine'>",
        ("lab_of_parts:Mne",): "lab_of_parts:Mne: 'lab_of_parts' has no class 'Mne': did you mean 'Mine'?",
        ("lab_of_parts:Other",): "lab_of_parts:Other: found <class 'lab_of_parts.Other'>, expected a class of a family",
        ("pvae:Prior",): "pvae:Prior: found <class 'pvae.priors.prior.Prior'>, expected a class of a family: ",
        ("nosuch_lab:Mine",): "nosuch_lab:Mine: no module named 'nosuch_lab': expected module:Class",
    }.items():
        code, _, err = go(capsys, *argv)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"pvae parts: error: {text}")


def test_a_table(capsys):
    text = go(capsys, "--markdown")[1]
    assert text.startswith("| family | members |\n|---|---|\n")
    assert len(text.splitlines()) == 2 + len(FAMILIES)
    assert "| hierarchy | `bottom_up`, `top_down`, `ladder` |" in text
    assert len(go(capsys, "--markdown", "--family", "prior")[1].splitlines()) == 3


def test_it_is_written_between_marks(capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{parts.BEGIN}\nstale\n{parts.END}\nafter\n")
    assert go(capsys, "--write", str(page))[0] == 0
    assert page.read_text() == f"before\n{parts.section()}\nafter\n"
    page.write_text("nothing")
    assert "found no lines" in go(capsys, "--write", str(page))[2]
    assert page.read_text() == "nothing"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["gausian"], "unknown member 'gausian': did you mean 'gaussian'? known: "),
        (["--family", "priors"], "--family: unknown family 'priors': did you mean 'prior'? known: "),
        (["normal", "--family", "guide"], "unknown member 'normal': "),
        (["normal", "--markdown"], "normal: the table is of all members: leave it out"),
        (["--write", "nosuch.md"], "--write nosuch.md: cannot be read: No such file"),
        (["--famly", "prior"], "--famly: unknown option: did you mean --family?"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(capsys, argv, text):
    code, _, err = go(capsys, *argv)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"pvae parts: error: {text}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Kingma and Welling 2014; Rezende et al. 2014", ["Kingma and Welling 2014", "Rezende et al. 2014"]),
        ("as in\nBurda, Grosse and\nSalakhutdinov (2015), eq. 8", ["Burda, Grosse and Salakhutdinov 2015"]),
        ("Source: van den Berg et al. 2018.", ["van den Berg et al. 2018"]),
        ("pixels of 1 to 2015", []),
    ],
)
def test_papers(text, expected):
    assert parts.papers(text) == expected


def test_a_member_without_a_docstring():
    class Bare(pvae.Normal):
        def __init__(self, latent: int, wide=False) -> None:
            super().__init__(latent)

    found = parts.entry(Bare)
    assert (found.sentence, found.paper) == ("", "")
    assert found.options == (parts.Option("wide", "", "False", ""),)
    assert "--prior.wide (default: False)" in parts.text_of(found)


def test_it_is_a_command(capsys, monkeypatch):
    from pvae import __main__

    monkeypatch.setattr(sys, "argv", ["pvae", "parts", "normal"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert "p(z) = N(0, I)" in capsys.readouterr().out
