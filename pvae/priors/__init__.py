"""Priors p(z): parameters in `__init__`, a distribution over the latent from `forward`."""

from .bernoulli import Bernoulli, RelaxedBernoulli
from .categorical import Categorical, RelaxedCategorical
from .normal import Normal
from .prior import Prior
from .sphere import Sphere

__all__ = ["Bernoulli", "Categorical", "Normal", "Prior", "RelaxedBernoulli", "RelaxedCategorical", "Sphere"]
