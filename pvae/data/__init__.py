"""Data: `dataset` has the tensors, binarization and batches; `sources` and `csvs` read them, `supports` checks them."""

from .dataset import (
    BINARIZATIONS,
    DEQUANTIZATIONS,
    Dataset,
    Split,
    batch_rows,
    batches,
    binarize,
    check,
    dequantize,
    fix_binarization,
    fix_dequantization,
    load,
    order,
)
from .sources import NAMED, PARTS
from .supports import pixels

__all__ = [
    "BINARIZATIONS",
    "DEQUANTIZATIONS",
    "NAMED",
    "PARTS",
    "Dataset",
    "Split",
    "batch_rows",
    "batches",
    "binarize",
    "check",
    "dequantize",
    "fix_binarization",
    "fix_dequantization",
    "load",
    "order",
    "pixels",
]
