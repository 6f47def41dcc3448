"""Vectors that are no image, as rows of a table: a panel for each of their columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from .style import FAINT, INK, LINES, formatted, settled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 12
"""Columns that have a panel: those that vary most."""


def is_table(array: np.ndarray) -> bool:
    """Whether an array is (N, D) and its rows are no flattened square images, of 8 by 8 pixels or more, in [0, 1]."""
    if array.ndim != 2:
        return False
    side = math.isqrt(array.shape[1])
    return side**2 != array.shape[1] or side < 8 or array.min() < -1e-6 or array.max() > 1 + 1e-6


def against(x: np.ndarray, model: np.ndarray, names: tuple[str, str], title: str) -> Figure:
    """Reconstructions against data, (N, D) each, and the share R² of a column's variance that they explain."""
    figure, panels = _panels(x)
    for column, panel in panels:
        a, b = x[:, column], model[:, column]
        ends = [min(a.min(), b.min()), max(a.max(), b.max())]
        panel.plot(ends, ends, color=FAINT, lw=0.8)
        panel.plot(a, b, "o", ms=np.clip(60 / math.sqrt(len(a)), 1.5, 4), mew=0, alpha=0.4, color=LINES[0])
        rest, whole = ((a - b) ** 2).sum(), ((a - a.mean()) ** 2).sum()
        share = f",  R² {formatted(1 - rest / whole)}" if whole > 0 else ""
        panel.set_title(f"column {column + 1}{share}", size=8)
    _entitle(figure, title)
    figure.supxlabel(names[0])
    figure.supylabel(names[1])
    return settled(figure)


def histograms(sets: Mapping[str, np.ndarray], title: str) -> Figure:
    """Each column's values in one or two sets (N, D), the first filled; of two columns alone a dot for each row."""
    first, *_ = sets.values()
    if first.shape[1] == 2:
        return _plane(sets, title)
    figure, panels = _panels(first)
    for column, panel in panels:
        values = np.concatenate([each[:, column] for each in sets.values()])
        bins = _bins(values)
        for i, (name, each) in enumerate(sets.items()):
            counts = np.histogram(each[:, column], bins)[0]
            heights = counts / max(counts.sum(), 1) / np.diff(bins)  # of one datum, which is far out, there may be none
            look = {"fill": True, "color": FAINT, "alpha": 0.5} if not i else {"color": LINES[1], "lw": 1.1}
            panel.stairs(heights, bins, label=name, **look)
        far = int((abs(values - (bins[0] + bins[-1]) / 2) > bins[-1] - bins[0]).sum())  # half the axis beyond its ends
        panel.set_title(f"column {column + 1}" + (f", {far} far out" if far else ""), size=8)
        panel.set_yticks([])
    _name(figure, sets, title)
    figure.supylabel("density")
    return settled(figure)


def _plane(sets: Mapping[str, np.ndarray], title: str) -> Figure:
    figure, panels = _panels(next(iter(sets.values()))[:, :1], size=3.0)
    (_, panel), *_ = panels
    for i, (name, each) in enumerate(sets.items()):
        look = {"color": LINES[i], "alpha": 0.5, "zorder": -i}  # a model's draws, which are many, below the data
        panel.plot(*each.T, "o", ms=np.clip(60 / math.sqrt(len(each)), 1.5, 4), mew=0, label=name, **look)
    panel.set(xlabel="column 1", ylabel="column 2", title="")
    _name(figure, sets, title)
    return settled(figure)


def _name(figure: Figure, sets: Mapping[str, np.ndarray], title: str) -> None:
    _entitle(figure, title)
    if len(sets) > 1:
        handles, _ = figure.axes[0].get_legend_handles_labels()
        beside = len(sets) if figure.get_figwidth() > 3 else 1  # below one panel there is room for one
        figure.legend(handles=handles, loc="outside lower center", ncols=beside)


def _entitle(figure: Figure, title: str) -> None:
    """Above the panels, in as many lines as it takes there, for which the page grows."""
    lines = textwrap.wrap(title, int(figure.get_figwidth() / 0.075))
    figure.set_figheight(figure.get_figheight() + 0.15 * len(lines))
    figure.suptitle("\n".join(lines) or None)


def _panels(x: np.ndarray, size: float = 1.35) -> tuple[Figure, Iterator[tuple[int, Axes]]]:
    """A figure with a panel for each column that is shown, and those columns with their panels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = np.sort(np.argsort(-x.var(0), kind="stable")[:SHOWN])
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(0.6 + (size + 0.2) * columns, 0.7 + (size + 0.1) * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.xaxis.set_major_locator(MaxNLocator(3))
        panel.yaxis.set_major_locator(MaxNLocator(3))
    for panel in panels[len(shown) :]:
        panel.remove()
    if len(shown) < x.shape[1]:
        note = f"the {len(shown)} of {x.shape[1]} columns that vary most"
        figure.text(0.995, 0.004, note, ha="right", va="bottom", size=7, color=INK)
    return figure, zip(shown.tolist(), panels, strict=False)


def _bins(values: np.ndarray) -> np.ndarray:
    """Of whole numbers, few of which differ, one each; else 24 over all but what is far out."""
    low, high = np.quantile(values, [0.005, 0.995])
    if (values == values.round()).all() and high - low < 40:
        return np.arange(math.floor(low), math.ceil(high) + 2) - 0.5
    return np.linspace(low, high if high > low else low + 1, 25)
