"""Variational autoencoders as probabilistic programs."""

from . import ais, bounds, comparison, data, diagnostics, evaluate, exact, gap, load
from .base import Part
from .errors import InputError
from .guides import Guide, MeanField
from .likelihoods import Bernoulli, Gaussian, Likelihood
from .networks import ConvDecoder, ConvEncoder, Decoder, Encoder, MLPDecoder, MLPEncoder, mlp
from .objectives import ELBO, IWAE, Objective
from .priors import Normal, Prior
from .svi import SVI, NonFiniteError
from .vae import VAE
from .weights import LogWeights, log_weights

__all__ = [
    "ELBO",
    "IWAE",
    "SVI",
    "VAE",
    "Bernoulli",
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "Encoder",
    "Gaussian",
    "Guide",
    "InputError",
    "Likelihood",
    "LogWeights",
    "MLPDecoder",
    "MLPEncoder",
    "MeanField",
    "NonFiniteError",
    "Normal",
    "Objective",
    "Part",
    "Prior",
    "ais",
    "bounds",
    "comparison",
    "data",
    "diagnostics",
    "evaluate",
    "exact",
    "gap",
    "load",
    "log_weights",
    "mlp",
]
