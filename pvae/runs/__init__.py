"""A run's folder: `run` makes and opens it; its `checkpoints`, `metrics`, `environment` and `results`; `locks` keep it
to one process.
"""

from .environment import protocol, versions
from .results import write_results
from .run import Run, check_free, load_weights

__all__ = [
    "Run",
    "check_free",
    "load_weights",
    "protocol",
    "versions",
    "write_results",
]
