"""Invertible maps of a latent, and the distribution of a base's draws through them.

What is here starts near the identity, has no parameter that nothing depends on, can be traced (no value is read on the
host), and goes both ways in one pass.
"""

from .autoregressive import AutoregressiveMap
from .conditioner import Conditioner
from .coupling import CouplingMap
from .distribution import FlowDistribution
from .planar import PlanarMap
from .transform import compose
from .univariate import AFFINE, SLOPE, affine, spline, splines

__all__ = [
    "AFFINE",
    "SLOPE",
    "AutoregressiveMap",
    "Conditioner",
    "CouplingMap",
    "FlowDistribution",
    "PlanarMap",
    "affine",
    "compose",
    "spline",
    "splines",
]
