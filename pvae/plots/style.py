"""What every figure goes through: the one look, its arrays checked, its layout settled, its file written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200  # of image figures: dots an inch
INK, FAINT = "#262626", "#9a9a9a"
# Okabe and Ito's palette, without the yellow that white paper swallows; for classes, more colours follow
LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
CLASSES = [*LINES, "#882255", "#8C6D3F", "#7F7F7F", "#332288", "#A6D854", "#FF9DA7", "#117733"]
CLASSES += ["#B79AE8", "#B10026", "#66C2A5", "#7A0177", "#C9B38C", "#F0E442"]


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's defaults and our changes to them, for as long as a figure is made or written."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        ticks = ("xtick", "ytick")
        size = {"font.size": 8, "figure.labelsize": 8, "legend.fontsize": 8, "lines.markersize": 3.5}
        size |= {f"{name}.labelsize": 8 for name in ("axes", *ticks)}
        size |= {f"{name}.titlesize": 9 for name in ("axes", "figure")}
        thin = {"axes.linewidth": 0.6, "lines.linewidth": 1.3} | {f"{name}.major.width": 0.6 for name in ticks}
        ink = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
        bare = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
        files = {"savefig.dpi": DPI, "svg.hashsalt": "pvae", "pdf.fonttype": 42}  # 42: text stays text
        matplotlib.rcParams.update(size | thin | ink | bare | files)
        yield


def numbers(values: ArrayLike, name: str, *, gaps: bool = False) -> np.ndarray:
    """A non-empty array of finite floats; with `gaps`, what is not finite becomes NaN instead of an error."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: found no array of numbers ({error}), expected one") from None
    if not array.size:
        raise InputError(f"{name}: found the empty shape {array.shape}, expected at least one value")
    bad = ~np.isfinite(array)
    if bad.any() and not gaps:
        raise InputError(f"{name}: found {bad.sum()} values that are NaN or infinite, expected finite values")
    return np.where(bad, np.nan, array)


def vector(values: ArrayLike, name: str, *, length: int | None = None, gaps: bool = False) -> np.ndarray:
    """The same, of shape (N,) and, where it is given, of that length."""
    array, want = numbers(values, name, gaps=gaps), "(N,)" if length is None else f"({length},)"
    if array.ndim != 1 or length not in (None, len(array)):
        raise InputError(f"{name}: found shape {array.shape}, expected {want}")
    return array


def formatted(value: float, form: str = ".2f") -> str:
    """The number as text, with a true minus sign."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def page(width: float, height: float, title: str = "") -> tuple[Figure, Axes]:
    """A figure of that size in inches, and the axes that fill it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot(title=title)


def settled(figure: Figure) -> Figure:
    """The figure with its layout found and fixed: left to itself, each drawing would move it a little."""
    for _ in range(2):
        figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    return figure


@styled()
def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG at 200 dpi, PDF or SVG, by the ending; the same figure gives the same bytes.

    Raises `InputError` for another ending. Makes the folder where there is none, and returns the path.

    >>> from tempfile import TemporaryDirectory
    >>> from matplotlib.figure import Figure
    >>> with TemporaryDirectory() as folder:
    ...     save(Figure(), folder + "/empty.png").name
    'empty.png'
    """
    path = Path(path)
    undated = {".png": ["Software"], ".svg": ["Creator", "Date"], ".pdf": ["Creator", "Producer", "CreationDate"]}
    if path.suffix.lower() not in undated:
        raise InputError(f"path: found the ending {path.suffix!r}, expected one of {', '.join(undated)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata=dict.fromkeys(undated[path.suffix.lower()]))
    return path
