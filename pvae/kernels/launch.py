"""How the Triton programs are launched: pieces, blocks and parts, all of them functions of sizes alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {"tf32": torch.float32, "bf16": torch.bfloat16}
"""What is multiplied, by precision; sums are float32."""
DOTS = {"tf32": "tf32", "bf16": "ieee"}
"""What Triton calls such products."""


class Blocks(NamedTuple):
    """How much one program takes at once."""

    rows: int
    """That it keeps."""
    tile: int
    """That it goes through at a time."""
    warps: int
    stages: int
    """Tiles that are underway from memory, and the one in use."""

    @property
    def programs(self) -> int:
        """How many are to run at once: of 4 warps two fit on each of about 128 multiprocessors, of 8 warps one."""
        return 1024 // self.warps


BLOCKS: dict[tuple[str, bool], dict[int, Blocks]] = {
    ("tf32", False): {208: Blocks(64, 64, 4, 1), 512: Blocks(64, 32, 4, 1)},
    ("bf16", False): {512: Blocks(64, 64, 4, 2)},
    ("tf32", True): {208: Blocks(64, 16, 4, 2), 256: Blocks(64, 16, 8, 2)},
    ("bf16", True): {208: Blocks(64, 64, 4, 2), 256: Blocks(64, 32, 4, 2), 512: Blocks(64, 32, 8, 2)},
}
"""By precision, and whether a program sums slopes, up to how many hidden units. Compiled for an H100 a thread's
255 registers and a multiprocessor's 227 KB of shared memory suffice, for two programs up to 208 units."""


@cache
def blocks(precision: str, hidden: int, gradient: bool) -> Blocks | None:
    """Those for so many hidden units; None where there are none."""
    width = sum(pieces(hidden))
    return next((found for most, found in BLOCKS[precision, gradient].items() if 0 < width <= most), None)


@cache
def pieces(hidden: int) -> tuple[int, ...]:
    """Up to three powers of two that hold so many units, as few too many as can be; zeros where there are too many.

    >>> pieces(200), pieces(256), pieces(1)
    ((128, 64, 16), (256, 0, 0), (16, 0, 0))
    """
    sizes = (256, 128, 64, 32, 16, 0)
    enough = (p for p in product(sizes, repeat=3) if sum(p) >= hidden and p[0] >= p[1] >= p[2])
    return min(enough, key=lambda p: (sum(p), sum(map(bool, p))), default=(0, 0, 0))


def scores(
    h: Tensor, w: Tensor, b: Tensor, x: Tensor, gradient: bool, precision: str, block: Blocks | None = None
) -> tuple[Tensor, Tensor]:
    """What the program of that name makes: s (N,), and u (N, H), which is empty where no gradient is wanted."""
    (n, hidden), outputs = h.shape, len(w)
    block = block or blocks(precision, hidden, gradient)
    count = -(-n // block.rows)
    parts, tiles = _shares(outputs, block, count)
    s = h.new_empty((parts, n), dtype=torch.float32)
    u = h.new_empty((parts, n, hidden) if gradient else 0)
    arrays = (h, w, b, x, s, u)
    _start("scores", (count, parts), arrays, (n, len(x), tiles), block, (hidden, outputs), precision, GRADIENT=gradient)
    return _sum(s), _sum(u) if gradient else u


def slopes(
    g: Tensor, h: Tensor, w: Tensor, b: Tensor, x: Tensor, precision: str, block: Blocks | None = None
) -> tuple[Tensor, Tensor]:
    """What the program of that name makes: the gradients of w (D, H) and b (D,), float32."""
    (n, hidden), outputs = h.shape, len(w)
    block = block or blocks(precision, hidden, True)
    count = -(-outputs // block.rows)
    parts, tiles = _shares(n, block, count)
    dw, db = g.new_empty(parts, outputs, hidden), g.new_empty(parts, outputs)
    _start("slopes", (count, parts), (g, h, w, b, x, dw, db), (n, len(x), tiles), block, (hidden, outputs), precision)
    return _sum(dw), _sum(db)


def _shares(length: int, block: Blocks, count: int) -> tuple[int, int]:
    """In how many parts a length is gone through, each by `count` programs, and in how many tiles each."""
    tiles = -(-length // block.tile)
    each = -(-tiles // max(1, min(tiles, block.programs // count)))
    return -(-tiles // each), each


def _sum(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _start(
    name: str,
    grid: tuple[int, int],
    arrays: tuple[Tensor, ...],
    numbers: tuple[int, int, int],
    block: Blocks,
    sizes: tuple[int, int],
    precision: str,
    **flags: Any,
) -> None:
    from . import programs

    with torch.cuda.device_of(arrays[0]):
        getattr(programs, name)[grid](
            *arrays,
            *numbers,
            **constants(sizes, block, precision),
            **flags,
            num_warps=block.warps,
            num_stages=block.stages,
            enable_fp_fusion=True,
        )


def constants(sizes: tuple[int, int], block: Blocks, precision: str) -> Mapping[str, Any]:
    """What a program is compiled for: (hidden, outputs), blocks and precision."""
    hidden, outputs = sizes
    named = dict(zip("ABC", pieces(hidden), strict=True))
    return {"H": hidden, "D": outputs, **named, "ROWS": block.rows, "TILE": block.tile, "DOTS": DOTS[precision]}
