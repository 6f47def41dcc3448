"""Priors p(z): parameters in `__init__`, a distribution over the latent from `forward`."""

from .class_normal import ClassNormal
from .heavy_tailed import Laplace, StudentT
from .learned_normal import LearnedNormal
from .mixture import Mixture
from .normal import Normal
from .prior import Prior
from .tilted import Energy, Resampled
from .vamp import Vamp

__all__ = [
    "ClassNormal",
    "Energy",
    "Laplace",
    "LearnedNormal",
    "Mixture",
    "Normal",
    "Prior",
    "Resampled",
    "StudentT",
    "Vamp",
]
