"""Priors p(z): parameters in `__init__`, a distribution over the latent from `forward`."""

from .normal import Normal
from .prior import Prior

__all__ = ["Normal", "Prior"]
