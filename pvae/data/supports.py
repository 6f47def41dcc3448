"""What data a likelihood scores: the supports by name, and the check that data lie in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, nearest


def pixels(x: Tensor) -> Tensor:
    """Stored data as floats: uint8 is divided by 255, floats pass through; same shape and device.

    What `data.load` returns it reads rightly: zeros and ones of a file are 0 and 255 there. Of a tensor of one's own it
    cannot know: pass zeros and ones as floats.

    >>> pixels(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    return x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x


def is_discrete(support: str) -> bool:
    """Whether a likelihood of that support gives probabilities, and not densities.

    >>> is_discrete("binary"), is_discrete("unit_interval")
    (True, False)
    """
    return _support(support).discrete


def has_levels(support: str) -> bool:
    """Whether it is one of levels: `levels` or `17 levels`, say."""
    return support.rpartition(" ")[2] == "levels"


class _Support(NamedTuple):
    """What stored data may lie in, and the message where they do not."""

    within: str | None
    """The next wider support, checked before, so that the advice fits what was found."""
    holds: Callable[[Tensor], Tensor]
    expected: str
    advice: str | Callable[[Tensor], str]
    """What to do, which may depend on the data."""
    discrete: bool = False
    """Whether what is scored on it is a probability."""
    stored: bool = False
    """Whether all that is stored as uint8 lies in it: spares a pass over the data."""
    unstored: str = ""
    """The message where nothing that is stored as uint8 does."""


LARGEST = 1e9
"""A first step on larger numbers overflows in float32: their squares, and the norm of those squares' gradients."""


def _are_counts(x: Tensor) -> Tensor:
    return (x >= 0) & (x == x.floor())


def _levels(count: int) -> _Support:
    def holds(x: Tensor) -> Tensor:
        level = pixels(x) * (count - 1)
        return (level - level.round()).abs() < 1e-3

    grey = f"{count} grey levels, multiples of 1/{count - 1}"
    return _Support("unit_interval", holds, grey, _of_levels, discrete=True, stored=count == 256)


def _of_levels(x: Tensor) -> str:
    """What to do with data in [0, 1] that are not of some number of levels."""
    many = x.flatten()[:100_000].unique()
    values = x.unique() if len(many) < 10_000 else many
    for count in range(2, 257):
        if _levels(count).holds(values).all():
            return f"all data are of {count} levels: pass `--likelihood.levels {count}`"
    return "pass `--likelihood continuous_bernoulli`, which scores any number in [0, 1], or round the data to levels"


def _outside_unit_interval(x: Tensor) -> str:
    """What to do with data of which some are not in [0, 1]."""
    if not _are_counts(x).all():
        return "pass `--likelihood gaussian`, or rescale the data to [0, 1]"
    of_total = f"`--likelihood binomial --likelihood.total {x.max().item():.0f}`"
    images = "; images: store them as uint8" if x.max() <= 255 else ""
    return (
        f"all data are counts: pass `--likelihood poisson`, `negative_binomial` or `zinb`, or {of_total}, else"
        f" `--likelihood gaussian`{images}"
    )


_SUPPORTS: dict[str, _Support] = {
    "real": _Support(
        None,
        lambda x: x.abs() < LARGEST,
        f"a finite number, less than {LARGEST:g} in size",
        "mend or leave out that datum, or rescale the data",
        stored=True,
    ),
    "unit_interval": _Support(
        "real",
        lambda x: (x >= 0) & (x <= 1),
        "a pixel in [0, 1]",
        _outside_unit_interval,
        stored=True,
    ),
    "open_unit_interval": _Support(
        "unit_interval",
        lambda x: (x > 0) & (x < (255 if x.dtype == torch.uint8 else 1)),
        "a pixel inside (0, 1)",
        lambda x: (
            "pass `--dequantize uniform`, or `--likelihood continuous_bernoulli`"
            if x.dtype == torch.uint8
            else "pass `--likelihood continuous_bernoulli`, or store pixels as uint8, to be dequantized"
        ),
    ),
    "levels": _levels(256),
    "binary": _Support(
        "unit_interval",
        lambda x: (x == 0) | (x == (255 if x.dtype == torch.uint8 else 1)),
        "0 or 1",
        "pass `--binarize dynamic`, `static` or `threshold`, or a likelihood of grey pixels, such as"
        " `--likelihood gaussian`",
        discrete=True,
    ),
    "counts": _Support(
        "real",
        _are_counts,
        "whole numbers of at least 0",
        "pass `--likelihood gaussian`",
        discrete=True,
        unstored="found uint8, which is read as pixels in [0, 1], expected counts: store counts as int32, or pass"
        " `--likelihood gaussian`",
    ),
}


def _support(name: str) -> _Support:
    if name in _SUPPORTS:
        return _SUPPORTS[name]
    count, _, kind = name.partition(" ")
    if kind == "levels" and count.isdecimal():
        return _levels(int(count))
    raise InputError(f"support: unknown name {name!r}: {nearest(name, list(_SUPPORTS))}")


def supports_to(name: str | None) -> list[_Support]:
    """From the widest support to the one of that name, so that the advice fits what is found."""
    found = []
    while name is not None:
        found.append(_support(name))
        name = found[-1].within
    return found[::-1]


def check_part(data: str, part: str, x: Tensor, support: _Support, likelihood: str) -> None:
    """Refuse stored data of which any is not in a support, naming the first."""
    if x.dtype == torch.uint8 and support.stored:
        return
    if x.dtype == torch.uint8 and support.unstored:
        raise InputError(f"{data}: {support.unstored}")
    inside = support.holds(x)
    if not inside.all():
        at = tuple(int(i) for i in np.unravel_index(int(inside.flatten().byte().argmin()), x.shape))
        of = "" if part == "all" else f" of the {part} part"
        where = f"{data}: datum {at[0]}{of}, position ({', '.join(map(str, at[1:]))})"
        scores = f", as {likelihood} scores" if likelihood and support.within else ""
        found = f"{pixels(x[at]).item():.7g}"
        advice = support.advice if isinstance(support.advice, str) else support.advice(x)
        raise InputError(f"{where}: found {found}, expected {support.expected}{scores}: {advice}")
