"""Variational autoencoders as probabilistic programs."""

from __future__ import annotations

from . import start  # noqa: F401  before all that takes long

# isort: split
import importlib
from typing import Any

from . import (
    ais,
    bounds,
    comparison,
    data,
    diagnostics,
    estimators,
    evaluate,
    exact,
    gap,
    guides,
    likelihoods,
    load,
    networks,
    priors,
    snr,
)
from .base import Part
from .conditions import Condition, ConditionedDecoder, ConditionedEncoder, Covariates, Label, Library
from .errors import InputError
from .estimators import Gradient
from .guides import Guide, MeanField
from .hierarchy import BottomUp, Hierarchy, Inference, Ladder, TopDown
from .likelihoods import Bernoulli, Gaussian, Likelihood
from .networks import ConvDecoder, ConvEncoder, Decoder, Encoder, MLPDecoder, MLPEncoder, mlp
from .objectives import CIWAE, ELBO, IWAE, MIWAE, PIWAE, TVO, Chi, Objective, Renyi
from .priors import Normal, Prior
from .svi import SVI, NonFiniteError
from .vae import VAE
from .weights import LogWeights, log_weights

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "SVI",
    "TVO",
    "VAE",
    "Bernoulli",
    "BottomUp",
    "Chi",
    "Condition",
    "ConditionedDecoder",
    "ConditionedEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "Covariates",
    "Decoder",
    "Encoder",
    "Gaussian",
    "Gradient",
    "Guide",
    "Hierarchy",
    "Inference",
    "InputError",
    "Label",
    "Ladder",
    "Library",
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
    "Renyi",
    "TopDown",
    "ais",
    "bounds",
    "comparison",
    "data",
    "diagnostics",
    "estimators",
    "evaluate",
    "exact",
    "gap",
    "guides",
    "likelihoods",
    "load",
    "log_weights",
    "mlp",
    "networks",
    "priors",
    "snr",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name == "testing":  # not loaded before it is asked for
        return importlib.import_module(".testing", __name__)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
