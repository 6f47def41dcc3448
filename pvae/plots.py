"""Figures for a paper, from plain arrays: each function takes arrays and returns a matplotlib `Figure`.

Nothing here touches pyplot, so no backend starts, no figure outlives its last reference, and a machine without
a screen will do. The look is one (`_style`) and owes nothing to the settings of whoever runs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pvae.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI, _WIDTH, _TILE = 200, 1300, 300  # an image figure's dots an inch, widest mosaic and widest tile in dots
_INK, _FAINT = "#262626", "#9a9a9a"
# Okabe and Ito's palette, without the yellow that white paper swallows, then its black; more follow for classes
_LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_CLASSES = [*_LINES, "#F0E442", "#882255", "#8C6D3F", "#332288", "#A6D854", "#FF9DA7", "#7F7F7F"]
_CLASSES += ["#117733", "#B79AE8", "#B10026", "#66C2A5", "#7A0177", "#C9B38C"]


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's defaults and our changes to them, for as long as a figure is made or written."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        size = {f"{k}.labelsize": 8 for k in ("axes", "xtick", "ytick")} | {
            "axes.titlesize": 9,
            "font.size": 8,
        }
        size |= {"figure.titlesize": 9, "figure.labelsize": 8, "legend.fontsize": 8, "lines.markersize": 3.5}
        width = {
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "lines.linewidth": 1.3,
        }
        ink = {f"{k}.color": _INK for k in ("text", "xtick", "ytick")}
        ink |= {"axes.edgecolor": _INK, "axes.labelcolor": _INK, "axes.axisbelow": True}
        open_box = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
        files = {"savefig.dpi": _DPI, "svg.hashsalt": "pvae", "pdf.fonttype": 42}  # 42: text stays text
        matplotlib.rcParams.update(size | width | ink | open_box | files)
        yield


def _array(values: ArrayLike, name: str, *, gaps: bool = False) -> np.ndarray:
    """A non-empty array of floats; where `gaps`, a value that is not finite is a gap (NaN), elsewhere an error."""
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


def _vector(values: ArrayLike, name: str, *, length: int | None = None, gaps: bool = False) -> np.ndarray:
    array, want = _array(values, name, gaps=gaps), "(N,)" if length is None else f"({length},)"
    if array.ndim != 1 or length not in (None, len(array)):
        raise InputError(f"{name}: found shape {array.shape}, expected {want}")
    return array


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot(title=title)
    return figure, axes


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name each line beside its end (x, y, text, colour), spread so that no two names of two rows overlap."""
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    gap = min(0.135, 1 / len(ends))
    place = [(y - low) / (high - low) for _, y, _, _ in ends]
    for i in range(1, len(place)):
        place[i] = max(place[i], place[i - 1] + gap)
    place[-1] = min(place[-1], 1.0)
    for i in reversed(range(len(place) - 1)):
        place[i] = min(place[i], place[i + 1] - gap)
    for (x, y, text, colour), at in zip(ends, place, strict=True):
        leader = {"arrowstyle": "-", "color": colour, "lw": 0.7, "shrinkA": 1, "shrinkB": 2}
        style = {"va": "center", "textcoords": "axes fraction", "arrowprops": leader, "linespacing": 1.1}
        axes.annotate(text, (x, y), (1.05, at), **style)


def _zoom(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """The y-limits in which the late part of every curve can be read; all of it where that costs little."""
    late = [curve[len(curve) // 2 :] for curve in curves]
    low = min(min(c[-1], np.quantile(c, 0.15), np.quantile(t, 0.02)) for c, t in zip(curves, late, strict=True))
    high = max(max(c[-1], np.quantile(c, 0.85), np.quantile(t, 0.98)) for c, t in zip(curves, late, strict=True))
    least, most, slack = min(c.min() for c in curves), max(c.max() for c in curves), 0.5 * (high - low)
    low, high = (least if low - least <= slack else low), (most if most - high <= slack else high)
    pad = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return low - pad, high + pad


@_style()
def learning_curves(epochs: ArrayLike, curves: Mapping[str, ArrayLike], *, title: str = "") -> Figure:
    """Bounds against epoch, zoomed so that the late part can be read; what the zoom cuts off is said.

    `epochs` is (E,); each curve is (E,), in nats per datum. A NaN is a value that was not measured that epoch;
    the line joins its neighbours. Raises `InputError` for a shape that differs or a dictionary without a value.

    >>> figure = learning_curves([1, 2, 3], {"train ELBO": [-210, -120, -104], "validation": [None, None, -107]})
    >>> figure.axes[0].get_ylabel()
    'bound (nats / datum)'
    """
    at = _vector(epochs, "epochs")
    order = np.argsort(at, kind="stable")
    rows = {n: _vector(v, f"curve {n!r}", length=len(at), gaps=True)[order] for n, v in curves.items()}
    seen = {name: np.isfinite(values) for name, values in rows.items() if np.isfinite(values).any()}
    if not seen:
        raise InputError("curves: found no finite value in any curve, expected at least one")
    figure, axes = _axes(5.6, 3.0, title)
    ends, at = [], at[order]
    for i, (name, keep) in enumerate(seen.items()):
        x, y, colour = at[keep], rows[name][keep], _LINES[i % 7]
        style = "-" if i < 7 else "--"
        axes.plot(x, y, style, color=colour, marker="o" if len(x) <= 25 else "", label=name)
        ends.append((x[-1], y[-1], f"{name}\n{_number(y[-1])}", colour))
    axes.set_xlabel("epoch")
    axes.set_ylabel("bound (nats / datum)")
    axes.set_ylim(_zoom([rows[name][keep] for name, keep in seen.items()]))
    axes.set_xlim((at[0] - 0.5, at[0] + 0.5) if at[0] == at[-1] else None)
    axes.xaxis.get_major_locator().set_params(integer=True)
    lowest = min(rows[name][keep].min() for name, keep in seen.items())
    if lowest < axes.get_ylim()[0]:
        note = f"cut off below: lowest value {_number(lowest)}"
        axes.text(0.985, 0.03, note, transform=axes.transAxes, ha="right", color="#6a6a6a", size=7)
    _label_ends(axes, ends)
    return figure


def _pictures(values: ArrayLike, name: str) -> np.ndarray:
    """Images as (N, H, W, channels); vectors that are no square image stay (N, D)."""
    array = _array(values, name)
    if array.ndim == 2:
        side = math.isqrt(array.shape[1])
        if side * side != array.shape[1]:
            return array
        array = array.reshape(-1, side, side)
    array = array[:, None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        known = "(N, H, W), (N, 1, H, W), (N, 3, H, W) or (N, D)"
        raise InputError(f"{name}: found shape {np.shape(values)}, expected {known}")
    return np.moveaxis(array, 1, -1)


def _range(reference: np.ndarray, everything: np.ndarray) -> tuple[float, float]:
    """[0, 1] where the reference lies in it (but for rounding), else the common range of everything."""
    if reference.min() >= -1e-6 and reference.max() <= 1 + 1e-6:
        return 0.0, 1.0
    low, high = float(everything.min()), float(everything.max())
    return low, high if high > low else low + 1.0


def _columns(columns: int | None, count: int) -> int:
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    if columns < 1:
        raise InputError(f"columns: found {columns}, expected at least 1")
    return min(columns, count)


def _cells(count: int, columns: int) -> np.ndarray:
    """Which image stands where: indices (rows, columns), row by row, -1 where there is none."""
    cells = np.full((-(-count // columns), columns), -1)
    cells.flat[:count] = np.arange(count)
    return cells


def _mosaic(
    pictures: np.ndarray, cells: np.ndarray, limits: tuple[float, float], *, group: int = 1, gap: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One white-gapped RGB image, a dot a pixel, and the centres of its columns and rows; after each `group` rows
    the gap is wide. Whole-number magnification keeps every pixel square and sharp."""
    (rows, columns), (h, w) = cells.shape, pictures.shape[1:3]
    zoom = max(1, min((_WIDTH - gap * columns) // (columns * w), 1700 // (rows * h), _TILE // max(h, w)))
    shade = np.clip((pictures - limits[0]) / (limits[1] - limits[0]), 0, 1)
    shade = np.broadcast_to(shade, (*shade.shape[:3], 3)).repeat(zoom, 1).repeat(zoom, 2)
    h, w, wide = h * zoom, w * zoom, (4 * gap if group > 1 else 0)
    left = np.arange(columns) * (w + gap)
    top = np.arange(rows) * (h + gap) + np.arange(rows) // group * wide
    canvas = np.ones((top[-1] + h, left[-1] + w, 3))
    for (row, column), index in np.ndenumerate(cells):
        if index >= 0:
            canvas[top[row] : top[row] + h, left[column] : left[column] + w] = shade[index]
    return canvas, left + (w - 1) / 2, top + (h - 1) / 2


def _canvas(
    image: np.ndarray,
    title: str,
    limits: tuple[float, float],
    *,
    grey: bool,
    left: float = 0.05,
    bottom: float = 0.05,
) -> tuple[Figure, Axes]:
    """A figure that shows `image` dot for dot, within margins in inches; a colour bar where limits aren't [0, 1]."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    scaled = limits != (0.0, 1.0)
    shrink = _DPI * max(1.0, image.shape[1] / _WIDTH)
    height, width = image.shape[0] / shrink, image.shape[1] / shrink
    right, top = (0.75 if scaled and grey else 0.05), (0.3 if title else 0.05)
    note = "" if grey or not scaled else f"black to full colour: {limits[0]:.3g} to {limits[1]:.3g}"
    bottom += 0.25 if note else 0
    total = (max(left + width + right, 0.075 * max(len(title), len(note)) + 0.1), bottom + height + top)
    left = left + (total[0] - left - width - right) / 2
    figure = Figure(figsize=total)
    box = (left / total[0], bottom / total[1], width / total[0], height / total[1])
    axes = figure.add_axes(box, frameon=False, xticks=[], yticks=[])
    axes.imshow(image, aspect="auto")
    figure.text(box[0] + box[2] / 2, 1 - 0.09 / total[1], title, ha="center", va="top", size=9)
    figure.text(box[0] + box[2] / 2, 0.09 / total[1], note, ha="center", va="bottom", size=7)
    if scaled and grey:
        long = min(height, 2.0)
        bar = ((left + width + 0.1) / total[0], (bottom + (height - long) / 2) / total[1], 0.1 / total[0])
        bar_axes = figure.add_axes((*bar, long / total[1]), label="colour bar")
        mappable = ScalarMappable(Normalize(*limits), "gray")
        figure.colorbar(mappable, cax=bar_axes, ticks=limits, format=lambda v, _: f"{v:.3g}")
    return figure, axes


def _profiles(series: Mapping[str, np.ndarray], columns: int, title: str) -> Figure:
    """Small multiples of (N, D) vectors on common axes, the series laid over one another."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    cells = _cells(len(next(iter(series.values()))), columns)
    rows = len(cells)
    figure = Figure(figsize=(min(6.5, 1.6 + 1.3 * columns), 0.9 + 0.85 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for (row, column), index in np.ndenumerate(cells):
        panel = panels[row, column]
        if index < 0:
            panel.remove()
            panels[row - 1, column].tick_params(labelbottom=True)
            continue
        for (name, values), colour in zip(series.items(), [_FAINT, _LINES[0]][-len(series) :], strict=True):
            marker = "o-" if values.shape[1] < 4 else "-"
            panel.plot(
                np.arange(1, values.shape[1] + 1),
                values[index],
                marker,
                color=colour,
                lw=1,
                label=name,
            )
    panels[0, 0].xaxis.set_major_locator(MaxNLocator(2, integer=True))
    panels[0, 0].yaxis.set_major_locator(MaxNLocator(2))
    figure.supxlabel("dimension")
    figure.supylabel("value")
    figure.suptitle(title or None)
    if len(series) > 1:
        figure.legend(handles=panels[0, 0].get_lines(), loc="outside upper center", ncols=len(series))
    return figure


@_style()
def reconstructions(
    x: ArrayLike,
    reconstruction: ArrayLike,
    *,
    titles: tuple[str, str] = ("data", "reconstruction"),
    columns: int = 10,
) -> Figure:
    """Data and their reconstructions: a named row of each, in pairs; vectors that are no image are overlaid.

    Both are (N, H, W), (N, 1, H, W), (N, 3, H, W) or (N, D). Where the data lie in [0, 1] the reconstruction is
    clipped to it. Raises `InputError` where the shapes differ or aren't one of these.

    >>> figure = reconstructions([[0, 1, 1, 0]] * 12, [[0.1, 0.8, 0.9, 0.2]] * 12)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['data', 'reconstruction', 'data', 'reconstruction']
    """
    data, model = _pictures(x, "x"), _pictures(reconstruction, "reconstruction")
    if data.shape != model.shape:
        raise InputError(f"reconstruction: found shape {np.shape(reconstruction)}, expected that of x, {np.shape(x)}")
    columns, limits = _columns(columns, len(data)), _range(data, np.stack([data, model]))
    if data.ndim == 2:
        return _profiles(dict(zip(titles, (data, model), strict=True)), min(columns, 5), "")
    above = _cells(len(data), columns)
    below = np.where(above < 0, -1, above + len(data))
    cells = np.stack([above, below], axis=1).reshape(-1, columns)
    image, _, rows = _mosaic(np.concatenate([data, model]), cells, limits, group=2)
    margin = 0.068 * max(map(len, titles)) + 0.12
    figure, axes = _canvas(image, "", limits, grey=data.shape[-1] == 1, left=margin)
    axes.set_yticks(rows, list(titles) * len(above))
    axes.tick_params(length=0)
    return figure


@_style()
def image_grid(images: ArrayLike, *, columns: int | None = None, title: str = "") -> Figure:
    """Images in a grid, such as samples from the prior; vectors that are no image as small line plots.

    `images` is (N, H, W), (N, 1, H, W), (N, 3, H, W) or (N, D), a square D being a square image. Values outside
    [0, 1] are scaled by one range, which a colour bar gives. Raises `InputError` for another shape.

    >>> len(image_grid([[0, 1, 1, 0]] * 9, title="samples").axes)
    1
    """
    pictures = _pictures(images, "images")
    columns = _columns(columns, len(pictures))
    if pictures.ndim == 2:
        return _profiles({"": pictures}, columns, title)
    limits = _range(pictures, pictures)
    image, _, _ = _mosaic(pictures, _cells(len(pictures), columns), limits)
    return _canvas(image, title, limits, grey=pictures.shape[-1] == 1)[0]


@_style()
def latent_plane(images: ArrayLike, grid_x: ArrayLike, grid_y: ArrayLike, *, title: str = "") -> Figure:
    """The decoder's mean over a grid of a 2-D latent space, as one mosaic with z₁ to the right and z₂ upwards.

    `grid_x` (X,) and `grid_y` (Y,) increase, evenly or not (normal quantiles, say); `images` is (Y·X, ...) as
    `image_grid` takes it, or (Y, X, ...), x running fastest: `np.meshgrid(grid_x, grid_y)` in its own order.
    Ticks stand at their true coordinates. Raises `InputError` for other shapes or a grid that doesn't increase.

    >>> figure = latent_plane(np.zeros((6, 8, 8)), [-1, 0, 1], [-1, 1])
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['−1', '−0.5', '0', '0.5', '1']
    """
    grids = [_vector(grid_x, "grid_x"), _vector(grid_y, "grid_y")]
    for name, grid in zip(("grid_x", "grid_y"), grids, strict=True):
        if (np.diff(grid) <= 0).any():
            raise InputError(f"{name}: found values that do not increase, expected each above the one before")
    shape, array = (len(grids[1]), len(grids[0])), _array(images, "images")
    if array.shape[:2] == shape and len(array) != math.prod(shape):
        array = array.reshape(-1, *array.shape[2:])
    pictures = _pictures(array, "images")
    if pictures.ndim == 2 or len(pictures) != math.prod(shape):
        want = f"{shape[1]} x {shape[0]} = {math.prod(shape)} images, one for each point of the grid"
        raise InputError(f"images: found shape {np.shape(images)}, expected {want}")
    limits, cells = _range(pictures, pictures), np.arange(len(pictures)).reshape(shape)[::-1]
    image, across, down = _mosaic(pictures, cells, limits, gap=0)
    figure, axes = _canvas(image, title, limits, grey=pictures.shape[-1] == 1, left=0.5, bottom=0.4)
    for axis, grid, place in zip((axes.xaxis, axes.yaxis), grids, (across, down[::-1]), strict=True):
        ticks = _nice_ticks(grid)
        axis.set_ticks(np.interp(ticks, grid, place), [f"{t:g}".replace("-", "\N{MINUS SIGN}") for t in ticks])
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    return figure


def _nice_ticks(grid: np.ndarray) -> np.ndarray:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(grid[0], grid[-1]).round(12)
    inside = ticks[(ticks >= grid[0]) & (ticks <= grid[-1])]
    return inside if len(inside) > 1 else np.unique(grid[[0, -1]])


def _principal(z: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The first two principal components (N, 2) and their names with the share of variance each explains."""
    centred = z - z.mean(0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[: len(spread)] * np.sign(directions.sum(1, keepdims=True) + 1e-300)  # settles the sign
    share = spread**2 / max((spread**2).sum(), 1e-300)
    scores, share = np.pad(centred @ directions.T, ((0, 0), (0, 1)))[:, :2], np.pad(share, (0, 1))
    return scores, [f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in (0, 1)]


@_style()
def latent_scatter(z: ArrayLike, labels: ArrayLike | None = None, *, title: str = "") -> Figure:
    """Latent codes (N, L), coloured by label: a histogram for L = 1, the plane for 2, principal components above.

    `labels` (N,) are classes with a legend while at most 20 differ, else numbers with a colour bar (for L = 1,
    numbers against z). Raises `InputError` for other shapes, and for more than 20 labels that are no numbers.

    >>> figure = latent_scatter([[0, 1], [2, 3], [4, 5]], ["cat", "dog", "cat"])
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['cat', 'dog']
    """
    from matplotlib.lines import Line2D

    z = _array(z, "z")
    if z.ndim != 2:
        raise InputError(f"z: found shape {z.shape}, expected (N, L)")
    tags = np.zeros(len(z)) if labels is None else np.asarray(labels)
    if tags.shape != (len(z),):
        raise InputError(f"labels: found shape {tags.shape}, expected ({len(z)},), one for each row of z")
    names, codes = np.unique(tags, return_inverse=True)
    classes = len(names) <= len(_CLASSES)
    values = codes if classes else _vector(tags, f"labels ({len(names)} differ, too many for a legend)")
    figure, axes = _axes(4.4, 3.4, title)
    if z.shape[1] == 1 and classes:
        bins = np.histogram_bin_edges(z, bins=min(60, 10 + len(z) // 20))
        for code in range(len(names)):
            heights = np.histogram(z[codes == code, 0], bins)[0]
            axes.stairs(heights, bins, fill=True, alpha=0.15, color=_CLASSES[code])
            axes.stairs(heights, bins, color=_CLASSES[code], lw=1.1)
        axes.set(xlabel="$z_1$", ylabel="number of data")
    else:
        points, axis_names = (z, ["$z_1$", "$z_2$"]) if z.shape[1] == 2 else _principal(z)
        if z.shape[1] == 1:
            points, axis_names = np.column_stack([z, values]), ["$z_1$", "label"]
        order = np.random.default_rng(0).permutation(len(z))  # so that no class hides another
        colours = np.array(_CLASSES)[codes] if classes else values
        look = {"s": np.clip(8000 / len(z), 3, 18), "alpha": np.clip(60 / len(z) ** 0.5, 0.35, 0.8), "lw": 0}
        dots = axes.scatter(*points[order].T, c=colours[order], rasterized=True, **look)
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
        if z.shape[1] > 1:
            axes.set_aspect("equal", adjustable="datalim")
        if not classes:
            figure.colorbar(dots, label="label", pad=0.02).solids.set_alpha(1)
    if classes and labels is not None:
        dot = {"xdata": [], "ydata": [], "ls": "", "marker": "o", "ms": 5}
        handles = [Line2D(color=_CLASSES[i], label=str(name), **dot) for i, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside right upper", handletextpad=0.1, labelspacing=0.3)
    return figure


@_style()
def active_units(variance: ArrayLike, *, threshold: float = 0.01) -> Figure:
    """How far the posterior mean of each latent unit moves with the data, largest first; the active above the line.

    `variance` is (L,): the variance over the data of the mean of q(z|x). Burda, Grosse and Salakhutdinov (2016),
    section 5.2, call a unit active above 0.01. Raises `InputError` for another shape or a negative value.

    >>> active_units([1.2, 0.7, 1e-5, 0.0]).axes[0].get_title()
    '2 of 4 latent units active'
    """
    values = np.sort(_vector(variance, "variance"))[::-1]
    if values[-1] < 0 or threshold <= 0:
        raise InputError(f"variance, threshold: found {values[-1]:g}, {threshold:g}, expected at least 0, above 0")
    active, rank = values > threshold, np.arange(1, len(values) + 1)
    floor = max(min(values[values > 0].min(initial=threshold), threshold) / 3, threshold * 1e-6)
    figure, axes = _axes(3.6, 2.6, f"{active.sum()} of {len(values)} latent units active")
    size = np.clip(160 / len(values), 1.5, 5)
    for keep, colour, name in ((active, _LINES[0], "active"), (~active, _FAINT, "inactive")):
        heights = np.maximum(values[keep], floor)
        axes.vlines(rank[keep], floor, heights, color=colour, lw=size / 4)
        axes.plot(rank[keep], heights, "o", ms=size, color=colour, label=name, clip_on=False)
    axes.axhline(threshold, color=_LINES[1], ls="--", lw=0.9)
    axes.annotate(f"{threshold:g}", (1.01, threshold), xycoords=("axes fraction", "data"), va="center", color=_LINES[1])
    axes.set(yscale="log", xlabel="latent unit, by rank", ylabel="variance of the posterior mean")
    axes.set(xlim=(0.3, len(values) + 0.7), ylim=(floor, 2 * max(values[0], threshold)))
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


@_style()
def bound_against_k(
    ks: ArrayLike,
    means: Mapping[str, ArrayLike],
    errors: Mapping[str, ArrayLike],
    *,
    exact: float | None = None,
) -> Figure:
    """The bound of each run against the number of particles K, with standard errors and, if known, the exact value.

    `ks` is (M,) and at least 1; `means[run]` and `errors[run]` are (M,), in nats per datum, NaN where a K was not
    measured. Raises `InputError` for other shapes, and for runs without errors.

    >>> bound_against_k([1, 10], {"vae": [-90, -88]}, {"vae": [0.1, 0.1]}, exact=-87).axes[0].get_xscale()
    'log'
    """
    at = _vector(ks, "ks")
    if set(means) != set(errors) or not means:
        raise InputError(f"errors: found runs {sorted(errors)}, expected those of means, {sorted(means)}, at least one")
    if at.min() < 1:
        raise InputError(f"ks: found {at.min():g}, expected at least 1 particle")
    figure, axes = _axes(5.0, 3.0, "")
    order, ends = np.argsort(at, kind="stable"), []
    for i, run in enumerate(means):
        y = _vector(means[run], f"means[{run!r}]", length=len(at), gaps=True)
        keep = order[np.isfinite(y[order])]
        error = _vector(errors[run], f"errors[{run!r}]", length=len(at), gaps=True)[keep]
        if not len(keep) or (error < 0).any():
            raise InputError(f"means, errors[{run!r}]: expected a finite mean and errors of at least 0")
        style = {
            "color": _LINES[i % 7],
            "ls": "-" if i < 7 else "--",
            "marker": "o",
            "elinewidth": 0.8,
            "capsize": 2,
        }
        axes.errorbar(at[keep], y[keep], np.nan_to_num(error), label=run, **style)
        ends.append((at[keep[-1]], y[keep[-1]], f"{run}\n{_number(y[keep[-1]])}", style["color"]))
    pad = (at.max() / at.min()) ** 0.04 if at.max() > at.min() else 2.0
    axes.set(xscale="log", xlabel="number of particles K", ylabel="bound ± standard error (nats / datum)")
    axes.set_xlim(at.min() / pad, at.max() * pad)
    if exact is not None:
        axes.axhline(exact, color=_INK, ls="--", lw=0.9)
        ends.append((at.max() * pad, exact, f"exact\n{_number(exact)}", _INK))
    ticks = [k for k in np.unique(at) if not k < at.max() / pad**2 or k == at.max()]
    axes.set_xticks(ticks, [f"{k:g}" for k in ticks])
    axes.minorticks_off()
    _label_ends(axes, ends)
    return figure


@_style()
def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG at 200 dpi, PDF or SVG, by the ending; the same figure gives the same bytes.

    Raises `InputError` for another ending. Makes the folder where there is none, and returns the path.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save(active_units([1.2, 0.7, 1e-5]), folder + "/units.png").name
    'units.png'
    """
    path = Path(path)
    undated = {
        ".png": ["Software"],
        ".pdf": ["Creator", "Producer", "CreationDate"],
        ".svg": ["Creator", "Date"],
    }
    if path.suffix.lower() not in undated:
        raise InputError(f"path: found the ending {path.suffix!r}, expected one of {', '.join(undated)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata=dict.fromkeys(undated[path.suffix.lower()]))
    return path
