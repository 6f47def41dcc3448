"""A comparison written down: as text for a terminal, CSV, JSON, LaTeX, and labelled arrays."""

from .files import arrays, as_csv, data_csv, summary
from .rows import bounds_on, label, plus_minus
from .terminal import text
from .tex import latex

__all__ = ["arrays", "as_csv", "bounds_on", "data_csv", "label", "latex", "plus_minus", "summary", "text"]
