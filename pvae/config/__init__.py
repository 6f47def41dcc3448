"""The configuration of a run: `config` has its options, `values` reads one from text, `document` a file of them."""

from .config import (
    FAMILIES,
    PARTS,
    Config,
    all_options,
    changed,
    defaults,
    fields,
    flag,
    from_flat,
    lasting,
    member_help,
    member_options,
    to_flat,
    to_yaml,
)
from .document import read

__all__ = [
    "FAMILIES",
    "PARTS",
    "Config",
    "all_options",
    "changed",
    "defaults",
    "fields",
    "flag",
    "from_flat",
    "lasting",
    "member_help",
    "member_options",
    "read",
    "to_flat",
    "to_yaml",
]
