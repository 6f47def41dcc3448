"""Priors p(z): parameters in `__init__`, a distribution over the latent from `forward`."""

from .autoregressive import Autoregressive
from .bernoulli import Bernoulli, RelaxedBernoulli
from .categorical import Categorical, RelaxedCategorical
from .class_normal import ClassNormal
from .flows import MAF, RealNVP, Spline
from .heavy_tailed import Laplace, StudentT
from .learned_normal import LearnedNormal
from .mixture import Mixture
from .normal import Normal
from .prior import Prior
from .sphere import Sphere
from .tilted import Energy, Resampled
from .vamp import Vamp

__all__ = [
    "MAF",
    "Autoregressive",
    "Bernoulli",
    "Categorical",
    "ClassNormal",
    "Energy",
    "Laplace",
    "LearnedNormal",
    "Mixture",
    "Normal",
    "Prior",
    "RealNVP",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "Resampled",
    "Sphere",
    "Spline",
    "StudentT",
    "Vamp",
]
