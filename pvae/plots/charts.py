"""Charts: lines, points and histograms of what was measured, against epoch, particles, unit or code."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from .style import CLASSES, FAINT, INK, LINES, formatted, numbers, page, settled, styled, vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

HANDLE = 2.6
"""Length of the lines in a legend, in its letters: as long as it takes to see that one is dashed."""


@styled()
def learning_curves(epochs: ArrayLike, curves: Mapping[str, ArrayLike], *, title: str = "") -> Figure:
    """Bounds against epoch, zoomed so that the late part can be read; what the zoom leaves out is counted.

    `epochs` is (E,); each curve is (E,), in nats per datum, NaN where it was not measured (the line joins the
    neighbours). Raises `InputError` for other shapes, and where no curve has a value.

    >>> figure = learning_curves([1, 2, 3], {"train ELBO": [-210, -120, -104], "IWAE": [None, None, -99]})
    >>> figure.axes[0].get_ylabel()
    'bound (nats / datum)'
    """
    at = vector(epochs, "epochs")
    order = np.argsort(at, kind="stable")
    rows = {n: vector(v, f"curve {n!r}", length=len(at), gaps=True)[order] for n, v in curves.items()}
    shown = {n: (at[order][np.isfinite(y)], y[np.isfinite(y)]) for n, y in rows.items() if np.isfinite(y).any()}
    if not shown:
        raise InputError("curves: found no finite value, expected at least one")
    figure, axes = page(5.6, 2.9, title)
    last = []
    for i, (name, (x, y)) in enumerate(shown.items()):
        (line,) = axes.plot(x, y, label=name, **_look(i, "" if len(x) > 25 else None))
        last.append((line, name, y[-1]))
    low, high = _zoom([y for _, y in shown.values()])
    axes.set(xlabel="epoch", ylabel="bound (nats / datum)", ylim=(low, high))
    axes.set_xlim((at[0] - 0.5, at[0] + 0.5) if at.min() == at.max() else None)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if outside := sum(((y < low) | (y > high)).sum() for _, y in shown.values()):
        note = {"transform": axes.transAxes, "ha": "right", "color": "#6a6a6a", "size": 7}
        axes.text(0.985, 0.03, f"early values outside the axes: {outside}", **note)
    _legend(figure, last)
    return settled(figure)


@styled()
def bound_against_k(
    ks: ArrayLike,
    means: Mapping[str, ArrayLike],
    errors: Mapping[str, ArrayLike],
    *,
    exact: float | Mapping[str, float] | None = None,
    title: str = "Importance-weighted bounds",
    of: str = "bound",
) -> Figure:
    """The bound of each run against the number of particles K, and the exact value where it is known.

    `ks` (M,) is at least 1; `means[run]` and their standard errors `errors[run]` are (M,), in nats per datum,
    NaN where not measured. `exact` is that of all runs, or those of some by name; `of` says what the means are, where
    they are no bounds. Raises `InputError` for other shapes, and for runs that only one of them names.

    >>> bound_against_k([1, 10], {"vae": [-90, -88]}, {"vae": [0.1, 0.1]}, exact=-87).axes[0].get_xscale()
    'log'
    """
    at = _particles(ks)
    if set(means) != set(errors) or not means:
        raise InputError(f"errors: found runs {sorted(errors)}, expected those of means, {sorted(means)}")
    known = exact if isinstance(exact, Mapping) else {}
    if not set(known) <= set(means):
        raise InputError(f"exact: found runs {sorted(known)}, expected some of means, {sorted(means)}")
    figure, axes = page(5.6, 2.9, title)
    dashes = {"ls": "--", "lw": 0.9}
    last, order = [], np.argsort(at, kind="stable")
    for i, run in enumerate(means):
        y = vector(means[run], f"means[{run!r}]", length=len(at), gaps=True)[order]
        error = np.nan_to_num(vector(errors[run], f"errors[{run!r}]", length=len(at), gaps=True)[order])
        keep = np.isfinite(y)
        if not keep.any() or (error < 0).any():
            raise InputError(f"means[{run!r}], errors[{run!r}]: expected a finite mean and no negative error")
        bars = {"elinewidth": 0.8, "capsize": 2}
        line = axes.errorbar(at[order][keep], y[keep], error[keep], label=run, **bars, **_look(i))
        last.append((line, run, y[keep][-1]))
        if run in known:
            name = f"{run}, exact"
            last.append((axes.axhline(known[run], color=LINES[i % 7], label=name, **dashes), name, known[run]))
    if exact is not None and not isinstance(exact, Mapping):
        last.append((axes.axhline(exact, color=INK, label="exact", **dashes), "exact", exact))
    edge = max((at.max() / at.min()) ** 0.04, 1.1)
    axes.set(xscale="log", xlim=(at.min() / edge, at.max() * edge))
    axes.set(xlabel="number of particles K", ylabel=f"{of} ± standard error (nats / datum)")
    _mark(axes, at)
    _legend(figure, last)
    return settled(figure)


@styled()
def khat_quantiles(values: Mapping[str, ArrayLike], threshold: float) -> Figure:
    """Pareto k-hat of each datum in ascending order, a line for each run, and the share above the threshold.

    `values[run]` is (N,); -inf (no tail) is drawn at the lower edge, data of inf (not fitted) are counted alone. Raises
    `InputError` for other shapes, and for NaN.

    >>> khat_quantiles({"vae": [0.2, 0.9, 0.5]}, 0.7).axes[0].get_ylabel()
    'Pareto k-hat'
    """
    rows = {name: np.sort(np.asarray(value, dtype=float)) for name, value in values.items()}
    for name, row in rows.items():
        if row.ndim != 1 or not row.size or np.isnan(row).any():
            raise InputError(f"values[{name!r}]: found shape {row.shape}, expected (N,), N above 0, without NaN")
    finite = np.concatenate([row[np.isfinite(row)] for row in rows.values()] + [[0.0, threshold]])
    low, high = finite.min() - 0.1, finite.max() + 0.1
    figure, axes = page(5.6, 2.9, "Pareto k-hat of each datum")
    gap = "\n" if len(rows) < 7 else "  "
    for i, (name, row) in enumerate(rows.items()):
        fitted, label = row[row < np.inf], name + gap + "\n".join(_shares(row, threshold))
        share = 100 * (np.arange(len(fitted)) + 0.5) / len(fitted)
        mark = None if len(fitted) == 1 else "None"  # of one point there is no line
        axes.plot(share, fitted.clip(low), label=label, **_look(i, mark))
    axes.axhline(threshold, color=INK, ls="--", lw=0.9, label=f"threshold{gap}{threshold:.2f}")
    axes.set(xlabel="data, in order of k-hat (%)", ylabel="Pareto k-hat", xlim=(0, 100), ylim=(low, high))
    lines = sum(1 + str(line.get_label()).count("\n") for line in axes.get_lines())
    figure.set_figheight(max(figure.get_figheight(), 0.18 * lines + 0.2))
    figure.legend(loc="outside right upper", handlelength=HANDLE)
    return settled(figure)


@styled()
def signal_against_k(
    ks: ArrayLike,
    signals: Mapping[str, ArrayLike],
    *,
    floor: float | None = None,
    dashed: Collection[str] = (),
    title: str = "",
) -> Figure:
    """The signal-to-noise ratio of gradients against the number of particles K, a line for each estimator.

    `ks` (M,) is at least 1; `signals[estimator]` (M,) is above 0, NaN where not measured; below `floor` nothing can be
    told from no signal. Those named in `dashed` are so. Raises `InputError` for other shapes.

    >>> signal_against_k([1, 16], {"iwae": [0.8, 0.2]}, floor=0.02).axes[0].get_yscale()
    'log'
    """
    at = _particles(ks)
    figure, axes = page(5.6, 2.9)
    last, order = [], np.argsort(at, kind="stable")
    for i, (name, values) in enumerate(signals.items()):
        y = vector(values, f"signals[{name!r}]", length=len(at), gaps=True)[order]
        keep = np.isfinite(y) & (y > 0)
        if not keep.any():
            raise InputError(f"signals[{name!r}]: found none above 0, expected a signal for one K at least")
        look = _look(i) | ({"ls": "--"} if name in dashed else {})
        label = textwrap.fill(name, 24)
        (line,) = axes.plot(at[order][keep], y[keep], label=label, **look)
        last.append((line, label, y[keep][-1]))
    if floor is not None:
        last.append((axes.axhline(floor, color=INK, ls="--", lw=0.9, label="no signal"), "no signal", floor))
    axes.set(xscale="log", yscale="log", xlabel="number of particles K", ylabel="|mean| / std of the gradient")
    axes.set_title(title)
    _mark(axes, at)
    _legend(figure, last)
    return settled(figure)


@styled()
def active_units(variance: ArrayLike, errors: ArrayLike = 0.0, *, threshold: float = 0.01) -> Figure:
    """How far the posterior mean of each latent unit moves with the data, largest first.

    `variance` is (L,): the variance over the data of the mean of q(z|x). A unit is active above the threshold
    (Burda, Grosse and Salakhutdinov, 2016, section 5.2), by two standard errors where they are given, `errors` (L,).
    Raises `InputError` for other shapes or negative values.

    >>> active_units([1.2, 0.7, 1e-5, 0.0]).axes[0].get_title()
    '2 of 4 latent units active'
    """
    values, off = vector(variance, "variance"), numbers(errors, "errors")
    if off.shape not in ((), values.shape) or off.min() < 0:
        raise InputError(f"errors: found shape {off.shape}, expected {values.shape}, each at least 0")
    above = values - 2 * off > threshold
    order = np.argsort(-values, kind="stable")
    values, active = values[order], above[order]
    if values[-1] < 0 or threshold <= 0:
        found = f"the smallest {values[-1]:g} and {threshold:g}"
        raise InputError(f"variance, threshold: found {found}, expected at least 0 and more than 0")
    rank = np.arange(1, len(values) + 1)
    floor = max(min(values[values > 0].min(initial=threshold), threshold / 10) / 3, threshold * 1e-6)
    figure, axes = page(3.6, 2.6, f"{active.sum()} of {len(values)} latent units active")
    size = np.clip(160 / len(values), 1.5, 5)
    for keep, colour in ((active, LINES[0]), (~active, FAINT)):
        if not keep.any():
            continue  # an empty line would still take up room in the layout
        heights = np.maximum(values[keep], floor)
        axes.vlines(rank[keep], floor, heights, color=colour, lw=size / 4)
        axes.plot(rank[keep], heights, "o", ms=size, color=colour, clip_on=False)
    axes.axhline(threshold, color=LINES[1], ls="--", lw=0.9)
    at = {"xycoords": ("axes fraction", "data"), "va": "center", "color": LINES[1]}
    axes.annotate(f"{threshold:g}", (1.01, threshold), **at)
    axes.set(yscale="log", xlabel="latent unit, by rank", ylabel="variance of the posterior mean")
    axes.set(xlim=(0.3, len(values) + 0.7), ylim=(floor, 2 * max(values[0], threshold)))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return settled(figure)


@styled()
def latent_scatter(z: ArrayLike, labels: ArrayLike | None = None, *, title: str = "", of: str = "label") -> Figure:
    """Latent codes (N, L) by label: a histogram for L = 1, a plane for 2, two principal components above.

    `labels` (N,) are classes with a legend while at most 20 differ, else numbers with a colour bar (for L = 1,
    against z), which says what they are `of`. Raises `InputError` for other shapes, and for more than 20 labels that
    are no numbers.

    >>> figure = latent_scatter([[0, 1], [2, 3], [4, 5]], ["cat", "dog", "cat"])
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['cat', 'dog']
    """
    from matplotlib.lines import Line2D

    z = numbers(z, "z")
    if z.ndim != 2:
        raise InputError(f"z: found shape {z.shape}, expected (N, L)")
    tags = np.zeros(len(z)) if labels is None else np.asarray(labels)
    if tags.shape != (len(z),):
        raise InputError(f"labels: found shape {tags.shape}, expected ({len(z)},), one for each row of z")
    tags = tags.astype(str) if tags.dtype == object else tags
    names, codes = np.unique(tags, return_inverse=True)
    classes = len(names) <= len(CLASSES)
    figure, axes = page(4.4, 3.4, title)
    if z.shape[1] == 1 and classes:
        _histogram(axes, z[:, 0], codes)
    elif classes:
        _scatter(axes, z, codes, np.array(CLASSES)[codes])
    else:
        values = vector(tags, f"labels ({len(names)} differ, too many for a legend)")
        figure.colorbar(_scatter(axes, z, values, values), label=of, pad=0.02).solids.set_alpha(1)
    if classes and labels is not None:
        dot = {"xdata": [], "ydata": [], "ls": "", "marker": "o", "ms": 5}
        handles = [Line2D(color=CLASSES[i], label=str(name), **dot) for i, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside right upper", handletextpad=0.1, labelspacing=0.3)
    return settled(figure)


def _histogram(axes: Axes, z: np.ndarray, codes: np.ndarray) -> None:
    """Of one latent unit, a step line for each class, all on the same bins."""
    bins = np.histogram_bin_edges(z, bins=min(60, 10 + len(z) // 20))
    for code in range(codes.max() + 1):
        heights = np.histogram(z[codes == code], bins)[0]
        axes.stairs(heights, bins, fill=True, alpha=0.15, color=CLASSES[code])
        axes.stairs(heights, bins, color=CLASSES[code], lw=1.1)
    axes.set(xlabel="$z_1$", ylabel="number of data")


def _scatter(axes: Axes, z: np.ndarray, values: np.ndarray, colours: np.ndarray) -> PathCollection:
    """A dot for each datum; one latent unit stands against the values."""
    points, names = z, ["$z_1$", "$z_2$"]
    if z.shape[1] == 1:
        points, names = np.column_stack([z, values]), ["$z_1$", "label"]
    elif z.shape[1] > 2:
        points, names = _principal(z)
    order = np.random.default_rng(0).permutation(len(z))  # so that no class hides another
    look = {"s": np.clip(8000 / len(z), 3, 18), "alpha": np.clip(40 / len(z) ** 0.5, 0.2, 0.8), "lw": 0}
    dots = axes.scatter(*points[order].T, c=colours[order], rasterized=True, **look)
    axes.set(xlabel=names[0], ylabel=names[1])
    if z.shape[1] > 1:
        axes.set_aspect("equal", adjustable="datalim")
    return dots


def _look(i: int, marker: str | None = None) -> dict[str, str]:
    """Of the i-th line: seven colours, then the same ones dashed, then dotted; with a marker for each unless given."""
    return {
        "color": LINES[i % 7],
        "ls": ["-", "--", ":"][i // 7 % 3],
        "marker": "os^"[i // 7 % 3] if marker is None else marker,
    }


def _mark(axes: Axes, ks: np.ndarray) -> None:
    """Mark those K, from the largest down, whose labels have room on a logarithmic axis."""
    ticks, span = [ks.max()], np.log(ks.max() / ks.min())
    for k in np.unique(ks)[-2::-1]:
        room = 0.012 * len(f"{k:g}{ticks[-1]:g}") + 0.01
        ticks += [k] if np.log(ticks[-1] / k) > room * span else []
    axes.set_xticks(ticks, [f"{k:g}" for k in ticks])
    axes.minorticks_off()


def _legend(figure: Figure, last: Sequence[tuple[Any, str, float]]) -> None:
    """Beside the axes, each line's name and last value, in the order in which the lines end."""
    ordered = sorted(last, key=lambda each: each[2], reverse=True)
    gap = "  " if len(last) > 7 else "\n"
    labels = [f"{name}{gap}{formatted(value)}" for _, name, value in ordered]
    lines = sum(1 + label.count("\n") for label in labels)
    figure.set_figheight(max(figure.get_figheight(), 0.18 * lines + 0.2))
    figure.legend([line for line, *_ in ordered], labels, loc="outside right upper", handlelength=HANDLE)


def _shares(row: np.ndarray, threshold: float) -> Iterator[str]:
    """Of k-hat (N,), the shares above the threshold and of no tail, where it could be fitted; how many could not be."""
    fitted = row[row < np.inf]
    if fitted.size:
        yield f"{(fitted > threshold).mean():.0%} above"
    if (tailless := np.isneginf(fitted)).any():
        yield f"{tailless.mean():.0%} no tail"
    if fitted.size < row.size:
        yield f"{row.size - fitted.size:,} not fitted"


def _zoom(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Limits that leave the first fifth of the curves out, unless they can be had for little."""
    late, whole = np.concatenate([curve[len(curve) // 5 :] for curve in curves]), np.concatenate(curves)
    low, high, slack = late.min(), late.max(), 0.5 * np.ptp(late)
    low = whole.min() if whole.min() >= low - slack else low
    high = whole.max() if whole.max() <= high + slack else high
    pad = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return low - pad, high + pad


def _principal(z: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The first two principal components (N, 2) and their names with the share of variance each explains."""
    centred = z - z.mean(0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[: len(spread)] * np.sign(directions.sum(1, keepdims=True) + 1e-300)  # settles the sign
    share = spread**2 / max((spread**2).sum(), 1e-300)
    scores, share = np.pad(centred @ directions.T, ((0, 0), (0, 1)))[:, :2], np.pad(share, (0, 1))
    return scores, [f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in (0, 1)]


def _particles(ks: ArrayLike) -> np.ndarray:
    at = vector(ks, "ks")
    if at.min() < 1:
        raise InputError(f"ks: found {at.min():g}, expected at least 1 particle")
    return at
