"""Guides q(z|x): an encoder and the distribution its numbers parametrize."""

from .delta import Delta
from .full_covariance import FullCovariance
from .guide import Guide
from .low_rank import LowRank
from .mean_field import MeanField
from .mixture import Mixture
from .semi_amortized import SemiAmortized

__all__ = ["Delta", "FullCovariance", "Guide", "LowRank", "MeanField", "Mixture", "SemiAmortized"]
