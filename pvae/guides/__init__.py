"""Guides q(z|x): an encoder and the distribution its numbers parametrize."""

from .bernoulli import Bernoulli, RelaxedBernoulli
from .categorical import Categorical, RelaxedCategorical
from .delta import Delta
from .flows import IAF, MAF, Planar, Spline
from .full_covariance import FullCovariance
from .guide import Guide
from .low_rank import LowRank
from .mean_field import MeanField
from .mixture import Mixture
from .semi_amortized import SemiAmortized
from .sphere import PowerSpherical, VonMisesFisher

__all__ = [
    "IAF",
    "MAF",
    "Bernoulli",
    "Categorical",
    "Delta",
    "FullCovariance",
    "Guide",
    "LowRank",
    "MeanField",
    "Mixture",
    "Planar",
    "PowerSpherical",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "SemiAmortized",
    "Spline",
    "VonMisesFisher",
]
