"""Pictures: data and what a model makes of them, as mosaics with square, sharp pixels; tables by column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from .columns import against, histograms, is_table
from .style import DPI, formatted, numbers, styled, vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _TILE = 1300, 200  # the widest mosaic and tile, in dots
_CHANNELS = (1, 3)


@styled()
def reconstructions(
    x: ArrayLike,
    reconstruction: ArrayLike,
    *,
    titles: Sequence[str] = ("data", "reconstruction"),
    columns: int = 10,
    title: str = "",
) -> Figure:
    """Data and their reconstructions: a named row of each, in pairs; of a table's columns, one against the other.

    Both are of data that `is_drawn`; (N, D) is a table unless `is_table` says otherwise. Where the data lie in [0, 1]
    the reconstruction is clipped to it. Raises `InputError` where the shapes differ or aren't one of these.

    >>> figure = reconstructions([[[0, 1], [1, 0]]] * 12, [[[0.1, 0.8], [0.9, 0.2]]] * 12)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['data', 'reconstruction', 'data', 'reconstruction']
    """
    data, model = numbers(x, "x"), numbers(reconstruction, "reconstruction")
    if data.shape != model.shape:
        raise InputError(f"reconstruction: found shape {model.shape}, expected {data.shape}, that of x")
    if is_table(data):
        return against(data, model, (titles[0], titles[1]), title)
    data, model = _pictures(data, "x"), _pictures(model, "reconstruction")
    above, limits = _cells(len(data), columns), _range(data, np.stack([data, model]))
    below = np.where(above < 0, -1, above + len(data))
    cells = np.stack([above, below], axis=1).reshape(-1, above.shape[1])
    image, _, rows = _mosaic(np.concatenate([data, model]), cells, limits, group=2)
    figure, axes = _canvas(image, title, limits, left=0.068 * max(map(len, titles)) + 0.12)
    axes.set_yticks(rows, list(titles) * len(above))
    axes.tick_params(length=0)
    return figure


@styled()
def image_grid(images: ArrayLike, *, columns: int | None = None, title: str = "") -> Figure:
    """Images in a grid, such as samples from the prior; of a table a histogram of each column.

    `images` are of data that `is_drawn`; (N, D) is a table unless `is_table` says otherwise. Values outside [0, 1] are
    scaled by one range, which a colour bar gives. Raises `InputError` for another shape.

    >>> len(image_grid([[[0, 1], [1, 0]]] * 9, title="samples").axes)
    1
    """
    array = numbers(images, "images")
    if is_table(array):
        return histograms({"": array}, title)
    pictures = _pictures(array, "images")
    cells = _cells(len(pictures), columns)
    limits = _range(pictures, pictures)
    return _canvas(_mosaic(pictures, cells, limits)[0], title, limits)[0]


@styled()
def latent_plane(images: ArrayLike, grid_x: ArrayLike, grid_y: ArrayLike, *, title: str = "") -> Figure:
    """The decoder's mean over a grid of a 2-D latent space, as one mosaic: z₁ to the right, z₂ upwards.

    `grid_x` (X,) and `grid_y` (Y,) increase, evenly or not (normal quantiles, say); `images` is (Y·X, ...) or
    (Y, X, ...), x running fastest: the order of `np.meshgrid(grid_x, grid_y)`. Ticks stand at their true
    coordinates. Raises `InputError` for other shapes or a grid that doesn't increase.

    >>> figure = latent_plane(np.zeros((6, 8, 8)), [-1, 0, 1], [-1, 1])
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['−1', '−0.5', '0', '0.5', '1']
    """
    grids = [vector(grid_x, "grid_x"), vector(grid_y, "grid_y")]
    for name, grid in zip(("grid_x", "grid_y"), grids, strict=True):
        if (np.diff(grid) <= 0).any():
            raise InputError(f"{name}: found values that do not increase, expected each above the one before")
    shape, array = (len(grids[1]), len(grids[0])), numbers(images, "images")
    if array.shape[:2] == shape and len(array) != math.prod(shape):
        array = array.reshape(-1, *array.shape[2:])
    pictures = _pictures(array, "images")
    if len(pictures) != math.prod(shape):
        want = f"{math.prod(shape)} images, one for each point of the grid ({shape[0]}, {shape[1]})"
        raise InputError(f"images: found shape {np.shape(images)}, expected {want}")
    limits, cells = _range(pictures, pictures), np.arange(len(pictures)).reshape(shape)[::-1]
    image, across, down = _mosaic(pictures, cells, limits, gap=0)
    ticks = [_nice_ticks(grid) for grid in grids]
    names = [[formatted(tick, ".4g") for tick in along] for along in ticks]
    figure, axes = _canvas(image, title, limits, left=0.34 + 0.068 * max(map(len, names[1])), bottom=0.4)
    axes.spines[:].set_visible(True)
    axes.set_xticks(np.interp(ticks[0], grids[0], across), names[0])
    axes.set_yticks(np.interp(ticks[1], grids[1], down[::-1]), names[1])
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    return figure


@styled()
def samples(x: ArrayLike, drawn: ArrayLike, *, names: Sequence[str] = ("data", "samples"), title: str = "") -> Figure:
    """Rows of a table, (N, D) each: how each column is distributed in the data and in what a model draws.

    Raises `InputError` where they are none, or differ in D.

    >>> len(samples([[0, 1, 2]] * 9, [[0.5, 1, 2]] * 5).axes)
    3
    """
    tables = [numbers(x, "x"), numbers(drawn, "drawn")]
    if tables[0].ndim != 2 or tables[1].shape[1:] != tables[0].shape[1:]:
        raise InputError(f"drawn: found shapes {tables[0].shape} and {tables[1].shape}, expected (N, D) and (M, D)")
    return histograms(dict(zip(names, tables, strict=True)), title)


def is_drawn(shape: Sequence[int]) -> bool:
    """Whether data of a shape can be drawn: (D,), (H, W), or an image of one or three channels, first or last.

    >>> [is_drawn(shape) for shape in [(8, 8), (3, 8, 8), (8, 8, 3), (2, 8, 8), (5, 3, 8, 8)]]
    [True, True, True, False, False]
    """
    return len(shape) in (1, 2) or (len(shape) == 3 and not {shape[0], shape[-1]}.isdisjoint(_CHANNELS))


def _pictures(values: ArrayLike, name: str) -> np.ndarray:
    """Images as (N, H, W, channels); of vectors, those of a square size."""
    array = numbers(values, name)
    if array.ndim == 2:
        side = math.isqrt(array.shape[1])
        if side * side == array.shape[1]:
            array = array.reshape(-1, side, side)
    array = array[:, None] if array.ndim == 3 else array
    if array.ndim != 4 or not is_drawn(array.shape[1:]):
        known = "(N, H, W), (N, 1, H, W), (N, 3, H, W), (N, H, W, 1), (N, H, W, 3) or (N, D)"
        raise InputError(f"{name}: found shape {np.shape(values)}, expected {known}")
    return np.moveaxis(array, 1, -1) if array.shape[1] in _CHANNELS else array


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

    height, width = np.array(image.shape[:2]) / (DPI * max(1.0, image.shape[1] / _WIDTH))
    bar, top = limits != (0.0, 1.0), 0.3 if title else 0.05
    right = 0.95 if bar else 0.05
    size = np.array([max(left + width + right, 0.075 * len(title) + 0.1), bottom + height + top])
    left += (size[0] - left - width - right) / 2  # centred where the title is wider
    figure = Figure(figsize=tuple(size))
    axes = figure.add_axes((left / size[0], bottom / size[1], *((width, height) / size)), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.imshow(image, aspect="auto")
    centre = min(left + width / 2, size[0] - 0.0375 * len(title) - 0.05)
    figure.text(centre / size[0], 1 - 0.09 / size[1], title, ha="center", va="top", size=9)
    if bar:
        length = min(0.8 * height, 2.0)
        corner = np.array([left + width + 0.1, bottom + (height - length) / 2]) / size
        bar_axes = figure.add_axes((*corner, *((0.1, length) / size)))
        ramp = ScalarMappable(Normalize(*limits), "gray")
        figure.colorbar(ramp, cax=bar_axes, ticks=limits, format=lambda v, _: formatted(v, ".3g"))
    return figure, axes


def _nice_ticks(grid: np.ndarray) -> np.ndarray:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(grid[0], grid[-1]).round(12)
    inside = ticks[(ticks >= grid[0]) & (ticks <= grid[-1])]
    return inside if len(inside) > 1 else np.unique(grid[[0, -1]])
