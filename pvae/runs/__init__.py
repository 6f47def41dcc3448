"""A run's folder: `run` makes and opens it; its `checkpoints`, `metrics`, `environment` and `results`; `locks` keep it
to one process.
"""

from .checkpoints import Checkpoint
from .environment import protocol, versions
from .results import write_results
from .run import Run, check_free, load_weights

__all__ = [
    "Checkpoint",
    "Run",
    "check_free",
    "load_weights",
    "protocol",
    "versions",
    "write_results",
]
