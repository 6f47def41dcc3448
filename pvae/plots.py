"""Figures for a paper, from plain arrays: each function takes arrays and returns a matplotlib `Figure`.

Nothing here touches pyplot: no backend starts, no figure outlives its last reference, no screen is needed. The
look is one (`_style`) and owes nothing to the settings of whoever runs it.
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

_DPI, _WIDTH, _TILE = 200, 1300, 200  # image figures: dots an inch, the widest mosaic and tile in dots
_INK, _FAINT = "#262626", "#9a9a9a"
# Okabe and Ito's palette, without the yellow that white paper swallows; for classes, more colours follow
_LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_CLASSES = [*_LINES, "#882255", "#8C6D3F", "#7F7F7F", "#332288", "#A6D854", "#FF9DA7", "#117733"]
_CLASSES += ["#B79AE8", "#B10026", "#66C2A5", "#7A0177", "#C9B38C", "#F0E442"]


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's defaults and our changes to them, for as long as a figure is made or written."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        ticks = ("xtick", "ytick")
        size = {"font.size": 8, "figure.labelsize": 8, "legend.fontsize": 8, "lines.markersize": 3.5}
        size |= {f"{name}.labelsize": 8 for name in ("axes", *ticks)}
        size |= {f"{name}.titlesize": 9 for name in ("axes", "figure")}
        thin = {"axes.linewidth": 0.6, "lines.linewidth": 1.3} | {f"{name}.major.width": 0.6 for name in ticks}
        ink = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
        bare = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
        files = {"savefig.dpi": _DPI, "svg.hashsalt": "pvae", "pdf.fonttype": 42}  # 42: text stays text
        matplotlib.rcParams.update(size | thin | ink | bare | files)
        yield


def _array(values: ArrayLike, name: str, *, gaps: bool = False) -> np.ndarray:
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


def _vector(values: ArrayLike, name: str, *, length: int | None = None, gaps: bool = False) -> np.ndarray:
    array, want = _array(values, name, gaps=gaps), "(N,)" if length is None else f"({length},)"
    if array.ndim != 1 or length not in (None, len(array)):
        raise InputError(f"{name}: found shape {array.shape}, expected {want}")
    return array


def _number(value: float, form: str = ".2f") -> str:
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def _axes(width: float, height: float, title: str = "") -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot(title=title)


def _settled(figure: Figure) -> Figure:
    """The figure with its layout found and fixed: left to itself, each drawing would move it a little."""
    for _ in range(2):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _legend(figure: Figure, axes: Axes, last: Mapping[str, float]) -> None:
    """Beside the axes, each line's name and last value, in the order in which the lines end."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = sorted(last, key=last.__getitem__, reverse=True)
    labels = [f"{name}{'  ' if len(last) > 7 else chr(10)}{_number(last[name])}" for name in names]
    figure.set_figheight(max(figure.get_figheight(), 0.18 * len(last) + 0.2))
    figure.legend([handles[n] for n in names], labels, loc="outside right upper", handlelength=1.4)


def _zoom(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Limits that leave the first fifth of the curves out, unless they can be had for little."""
    late, whole = np.concatenate([curve[len(curve) // 5 :] for curve in curves]), np.concatenate(curves)
    low, high, slack = late.min(), late.max(), 0.5 * np.ptp(late)
    low = whole.min() if whole.min() >= low - slack else low
    high = whole.max() if whole.max() <= high + slack else high
    pad = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return low - pad, high + pad


@_style()
def learning_curves(epochs: ArrayLike, curves: Mapping[str, ArrayLike], *, title: str = "") -> Figure:
    """Bounds against epoch, zoomed so that the late part can be read; what the zoom leaves out is counted.

    `epochs` is (E,); each curve is (E,), in nats per datum, NaN where it was not measured (the line joins the
    neighbours). Raises `InputError` for other shapes, and where no curve has a value.

    >>> figure = learning_curves([1, 2, 3], {"train ELBO": [-210, -120, -104], "IWAE": [None, None, -99]})
    >>> figure.axes[0].get_ylabel()
    'bound (nats / datum)'
    """
    at = _vector(epochs, "epochs")
    order = np.argsort(at, kind="stable")
    rows = {n: _vector(v, f"curve {n!r}", length=len(at), gaps=True)[order] for n, v in curves.items()}
    shown = {n: (at[order][np.isfinite(y)], y[np.isfinite(y)]) for n, y in rows.items() if np.isfinite(y).any()}
    if not shown:
        raise InputError("curves: found no finite value, expected at least one")
    figure, axes = _axes(5.6, 2.9, title)
    for i, (name, (x, y)) in enumerate(shown.items()):
        style = {"color": _LINES[i % 7], "ls": ["-", "--", ":"][i // 7 % 3], "marker": "o" if len(x) <= 25 else ""}
        axes.plot(x, y, label=name, **style)
    low, high = _zoom([y for _, y in shown.values()])
    axes.set(xlabel="epoch", ylabel="bound (nats / datum)", ylim=(low, high))
    axes.set_xlim((at[0] - 0.5, at[0] + 0.5) if at.min() == at.max() else None)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if outside := sum(((y < low) | (y > high)).sum() for _, y in shown.values()):
        note = {"transform": axes.transAxes, "ha": "right", "color": "#6a6a6a", "size": 7}
        axes.text(0.985, 0.03, f"early values outside the axes: {outside}", **note)
    _legend(figure, axes, {name: y[-1] for name, (_, y) in shown.items()})
    return _settled(figure)


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


def _cells(count: int, columns: int | None) -> np.ndarray:
    """Which picture stands where: indices (rows, columns), row by row, -1 where there is none."""
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    if columns < 1:
        raise InputError(f"columns: found {columns}, expected at least 1")
    columns = min(columns, count)
    return np.pad(np.arange(count), (0, -count % columns), constant_values=-1).reshape(-1, columns)


def _mosaic(
    pictures: np.ndarray, cells: np.ndarray, limits: tuple[float, float], *, group: int = 1, gap: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One RGB image of all, one dot a pixel, and the centres of its columns and rows.

    Pixels are magnified by a whole number, so that all are square and sharp; a wide gap follows `group` rows.
    """
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
    image: np.ndarray, title: str, limits: tuple[float, float], *, left: float = 0.05, bottom: float = 0.05
) -> tuple[Figure, Axes]:
    """A figure of `image`, dot for dot, within margins in inches; a colour bar unless the limits are [0, 1]."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    height, width = np.array(image.shape[:2]) / (_DPI * max(1.0, image.shape[1] / _WIDTH))
    bar, top = limits != (0.0, 1.0), 0.3 if title else 0.05
    right = 0.75 if bar else 0.05
    size = np.array([max(left + width + right, 0.075 * len(title) + 0.1), bottom + height + top])
    left += (size[0] - left - width - right) / 2  # centred where the title is wider
    figure = Figure(figsize=tuple(size))
    axes = figure.add_axes((left / size[0], bottom / size[1], *((width, height) / size)), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.imshow(image, aspect="auto")
    figure.text((left + width / 2) / size[0], 1 - 0.09 / size[1], title, ha="center", va="top", size=9)
    if bar:
        length = min(0.8 * height, 2.0)
        corner = np.array([left + width + 0.1, bottom + (height - length) / 2]) / size
        bar_axes = figure.add_axes((*corner, *((0.1, length) / size)))
        ramp = ScalarMappable(Normalize(*limits), "gray")
        figure.colorbar(ramp, cax=bar_axes, ticks=limits, format=lambda v, _: _number(v, ".3g"))
    return figure, axes


def _profiles(series: Mapping[str, np.ndarray], cells: np.ndarray, title: str = "") -> Figure:
    """Small multiples of (N, D) vectors on common axes, the series laid over one another."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, columns = cells.shape
    figure = Figure(figsize=(min(6.5, 1.6 + 1.3 * columns), 0.9 + 0.85 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for (row, column), index in np.ndenumerate(cells):
        panel = panels[row, column]
        if index < 0:
            panel.remove()
            panels[row - 1, column].tick_params(labelbottom=True)
            continue
        for (name, values), colour in zip(series.items(), _LINES, strict=False):
            marker = "o-" if values.shape[1] < 4 else "-"
            panel.plot(range(1, values.shape[1] + 1), values[index], marker, color=colour, lw=1, label=name)
    panels[0, 0].xaxis.set_major_locator(MaxNLocator(2, integer=True))
    panels[0, 0].yaxis.set_major_locator(MaxNLocator(2))
    figure.supxlabel("dimension")
    figure.supylabel("value")
    figure.suptitle(title or None)
    if len(series) > 1:
        figure.legend(handles=panels[0, 0].get_lines(), loc="outside upper center", ncols=len(series))
    return _settled(figure)


@_style()
def reconstructions(
    x: ArrayLike, reconstruction: ArrayLike, *, titles: Sequence[str] = ("data", "reconstruction"), columns: int = 10
) -> Figure:
    """Data and their reconstructions: a named row of each, in pairs; vectors that are no image are overlaid.

    Both are (N, H, W), (N, 1, H, W), (N, 3, H, W) or (N, D). Where the data lie in [0, 1] the reconstruction
    is clipped to it. Raises `InputError` where the shapes differ or aren't one of these.

    >>> figure = reconstructions([[0, 1, 1, 0]] * 12, [[0.1, 0.8, 0.9, 0.2]] * 12)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['data', 'reconstruction', 'data', 'reconstruction']
    """
    data, model = _pictures(x, "x"), _pictures(reconstruction, "reconstruction")
    if data.shape != model.shape:
        raise InputError(f"reconstruction: found shape {np.shape(reconstruction)}, expected {np.shape(x)}, that of x")
    if data.ndim == 2:
        return _profiles(dict(zip(titles, (data, model), strict=True)), _cells(len(data), min(columns, 5)))
    above, limits = _cells(len(data), columns), _range(data, np.stack([data, model]))
    below = np.where(above < 0, -1, above + len(data))
    cells = np.stack([above, below], axis=1).reshape(-1, above.shape[1])
    image, _, rows = _mosaic(np.concatenate([data, model]), cells, limits, group=2)
    figure, axes = _canvas(image, "", limits, left=0.068 * max(map(len, titles)) + 0.12)
    axes.set_yticks(rows, list(titles) * len(above))
    axes.tick_params(length=0)
    return figure


@_style()
def image_grid(images: ArrayLike, *, columns: int | None = None, title: str = "") -> Figure:
    """Images in a grid, such as samples from the prior; vectors that are no image as small line plots.

    `images` is (N, H, W), (N, 1, H, W), (N, 3, H, W) or (N, D), a square D being a square image. Values
    outside [0, 1] are scaled by one range, which a colour bar gives. Raises `InputError` for another shape.

    >>> len(image_grid([[0, 1, 1, 0]] * 9, title="samples").axes)
    1
    """
    pictures = _pictures(images, "images")
    cells = _cells(len(pictures), columns)
    if pictures.ndim == 2:
        return _profiles({"": pictures}, cells, title)
    limits = _range(pictures, pictures)
    return _canvas(_mosaic(pictures, cells, limits)[0], title, limits)[0]


@_style()
def latent_plane(images: ArrayLike, grid_x: ArrayLike, grid_y: ArrayLike, *, title: str = "") -> Figure:
    """The decoder's mean over a grid of a 2-D latent space, as one mosaic: z₁ to the right, z₂ upwards.

    `grid_x` (X,) and `grid_y` (Y,) increase, evenly or not (normal quantiles, say); `images` is (Y·X, ...) or
    (Y, X, ...), x running fastest: the order of `np.meshgrid(grid_x, grid_y)`. Ticks stand at their true
    coordinates. Raises `InputError` for other shapes or a grid that doesn't increase.

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
        want = f"{math.prod(shape)} images, one for each point of the grid ({shape[0]}, {shape[1]})"
        raise InputError(f"images: found shape {np.shape(images)}, expected {want}")
    limits, cells = _range(pictures, pictures), np.arange(len(pictures)).reshape(shape)[::-1]
    image, across, down = _mosaic(pictures, cells, limits, gap=0)
    ticks = [_nice_ticks(grid) for grid in grids]
    names = [[_number(tick, ".4g") for tick in along] for along in ticks]
    figure, axes = _canvas(image, title, limits, left=0.34 + 0.068 * max(map(len, names[1])), bottom=0.4)
    axes.spines[:].set_visible(True)
    axes.set_xticks(np.interp(ticks[0], grids[0], across), names[0])
    axes.set_yticks(np.interp(ticks[1], grids[1], down[::-1]), names[1])
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
    """Latent codes (N, L) by label: a histogram for L = 1, a plane for 2, two principal components above.

    `labels` (N,) are classes with a legend while at most 20 differ, else numbers with a colour bar (for L = 1,
    against z). Raises `InputError` for other shapes, and for more than 20 labels that are no numbers.

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
    tags = tags.astype(str) if tags.dtype == object else tags
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
        points, axis_names = z, ["$z_1$", "$z_2$"]
        if z.shape[1] == 1:
            points, axis_names = np.column_stack([z, values]), ["$z_1$", "label"]
        elif z.shape[1] > 2:
            points, axis_names = _principal(z)
        order = np.random.default_rng(0).permutation(len(z))  # so that no class hides another
        colours = np.array(_CLASSES)[codes] if classes else values
        look = {"s": np.clip(8000 / len(z), 3, 18), "alpha": np.clip(40 / len(z) ** 0.5, 0.2, 0.8), "lw": 0}
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
    return _settled(figure)


@_style()
def active_units(variance: ArrayLike, *, threshold: float = 0.01) -> Figure:
    """How far the posterior mean of each latent unit moves with the data, largest first.

    `variance` is (L,): the variance over the data of the mean of q(z|x). A unit is active above the threshold
    (Burda, Grosse and Salakhutdinov, 2016, section 5.2). Raises `InputError` for other shapes or negative values.

    >>> active_units([1.2, 0.7, 1e-5, 0.0]).axes[0].get_title()
    '2 of 4 latent units active'
    """
    values = np.sort(_vector(variance, "variance"))[::-1]
    if values[-1] < 0 or threshold <= 0:
        found = f"the smallest {values[-1]:g} and {threshold:g}"
        raise InputError(f"variance, threshold: found {found}, expected at least 0 and more than 0")
    active, rank = values > threshold, np.arange(1, len(values) + 1)
    floor = max(min(values[values > 0].min(initial=threshold), threshold / 10) / 3, threshold * 1e-6)
    figure, axes = _axes(3.6, 2.6, f"{active.sum()} of {len(values)} latent units active")
    size = np.clip(160 / len(values), 1.5, 5)
    for keep, colour in ((active, _LINES[0]), (~active, _FAINT)):
        if not keep.any():
            continue  # an empty line would still take up room in the layout
        heights = np.maximum(values[keep], floor)
        axes.vlines(rank[keep], floor, heights, color=colour, lw=size / 4)
        axes.plot(rank[keep], heights, "o", ms=size, color=colour, clip_on=False)
    axes.axhline(threshold, color=_LINES[1], ls="--", lw=0.9)
    at = {"xycoords": ("axes fraction", "data"), "va": "center", "color": _LINES[1]}
    axes.annotate(f"{threshold:g}", (1.01, threshold), **at)
    axes.set(yscale="log", xlabel="latent unit, by rank", ylabel="variance of the posterior mean")
    axes.set(xlim=(0.3, len(values) + 0.7), ylim=(floor, 2 * max(values[0], threshold)))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return _settled(figure)


@_style()
def bound_against_k(
    ks: ArrayLike, means: Mapping[str, ArrayLike], errors: Mapping[str, ArrayLike], *, exact: float | None = None
) -> Figure:
    """The bound of each run against the number of particles K, and the exact value where it is known.

    `ks` (M,) is at least 1; `means[run]` and their standard errors `errors[run]` are (M,), in nats per datum,
    NaN where not measured. Raises `InputError` for other shapes, and for runs that only one of them names.

    >>> bound_against_k([1, 10], {"vae": [-90, -88]}, {"vae": [0.1, 0.1]}, exact=-87).axes[0].get_xscale()
    'log'
    """
    at = _vector(ks, "ks")
    if set(means) != set(errors) or not means:
        raise InputError(f"errors: found runs {sorted(errors)}, expected those of means, {sorted(means)}")
    if at.min() < 1:
        raise InputError(f"ks: found {at.min():g}, expected at least 1 particle")
    figure, axes = _axes(5.6, 2.9)
    last, order = {}, np.argsort(at, kind="stable")
    for i, run in enumerate(means):
        y = _vector(means[run], f"means[{run!r}]", length=len(at), gaps=True)[order]
        error = np.nan_to_num(_vector(errors[run], f"errors[{run!r}]", length=len(at), gaps=True)[order])
        keep = np.isfinite(y)
        if not keep.any() or (error < 0).any():
            raise InputError(f"means[{run!r}], errors[{run!r}]: expected a finite mean and no negative error")
        style = {"color": _LINES[i % 7], "ls": ["-", "--", ":"][i // 7 % 3], "elinewidth": 0.8, "capsize": 2}
        axes.errorbar(at[order][keep], y[keep], error[keep], label=run, marker="o", **style)
        last[run] = y[keep][-1]
    if exact is not None:
        axes.axhline(exact, color=_INK, ls="--", lw=0.9, label="exact")
        last["exact"] = exact
    edge = max((at.max() / at.min()) ** 0.04, 1.1)
    axes.set(xscale="log", xlim=(at.min() / edge, at.max() * edge))
    axes.set(xlabel="number of particles K", ylabel="bound ± standard error (nats / datum)")
    ticks, span = [at.max()], np.log(at.max() / at.min())
    for k in np.unique(at)[-2::-1]:  # from the largest down, those whose labels have room
        room = 0.012 * len(f"{k:g}{ticks[-1]:g}") + 0.01
        ticks += [k] if np.log(ticks[-1] / k) > room * span else []
    axes.set_xticks(ticks, [f"{k:g}" for k in ticks])
    axes.minorticks_off()
    _legend(figure, axes, last)
    return _settled(figure)


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
    undated = {".png": ["Software"], ".svg": ["Creator", "Date"], ".pdf": ["Creator", "Producer", "CreationDate"]}
    if path.suffix.lower() not in undated:
        raise InputError(f"path: found the ending {path.suffix!r}, expected one of {', '.join(undated)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata=dict.fromkeys(undated[path.suffix.lower()]))
    return path
