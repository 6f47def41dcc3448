"""Hierarchies: several stochastic layers z1, ..., zL as another model and guide."""

from .hierarchy import Hierarchy
from .inference import BottomUp, Inference, Ladder, TopDown

__all__ = ["BottomUp", "Hierarchy", "Inference", "Ladder", "TopDown"]
