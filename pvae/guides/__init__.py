"""Guides q(z|x): an encoder and the distribution its numbers parametrize."""

from .flows import IAF, MAFGuide, PlanarGuide, SplineGuide
from .guide import Guide
from .mean_field import MeanField

__all__ = ["IAF", "Guide", "MAFGuide", "MeanField", "PlanarGuide", "SplineGuide"]
