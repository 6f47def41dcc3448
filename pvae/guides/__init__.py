"""Guides q(z|x): an encoder and the distribution its numbers parametrize."""

from .bernoulli import Bernoulli, RelaxedBernoulli
from .categorical import Categorical, RelaxedCategorical
from .guide import Guide
from .mean_field import MeanField
from .sphere import PowerSpherical, VonMisesFisher

__all__ = [
    "Bernoulli",
    "Categorical",
    "Guide",
    "MeanField",
    "PowerSpherical",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "VonMisesFisher",
]
