"""Priors p(z): parameters in `__init__`, a distribution over the latent from `forward`."""

from .autoregressive import Autoregressive
from .flows import MAFPrior, RealNVP, SplinePrior
from .normal import Normal
from .prior import Prior

__all__ = ["Autoregressive", "MAFPrior", "Normal", "Prior", "RealNVP", "SplinePrior"]
