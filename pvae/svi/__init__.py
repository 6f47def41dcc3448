"""Stochastic variational inference with a step that is traced once and replayed. Generic: any Pyro model and guide."""

from .engine import SVI
from .faults import NonFiniteError
from .loss import Loss
from .optimizers import ClippedAdam

__all__ = ["SVI", "ClippedAdam", "Loss", "NonFiniteError"]
