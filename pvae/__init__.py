"""Variational autoencoders as probabilistic programs.

The rooms, those that need no other first (a folder's own docstring says what its files are):

- For all: `errors` (one-line refusals), `base` (families of parts, found by name), `noise` (random numbers for each
  datum), `means` (with standard errors), `frozen` (a cache while parameters stay), `unset` (memory that is none of a
  part's numbers), `files`, `start` (Ctrl-C during imports).
- A fast step for any Pyro program: `svi`, on the graphs of `replay`.
- Any Pyro program, run and scored: `programs`, from its sites to log-weights.
- Parts of a model: `networks`, `flows`, `conditions`, `priors`, `likelihoods`, `guides`, which return `distributions`
  (with `kernels` for Hopper GPUs); joined by `vae` and, in several layers, by `hierarchy`.
- What is climbed: `bounds` (of log-weights), `estimators` (of their gradients), `objectives` (both, for an SVI); by
  `optimizers`.
- What is measured: `evaluate` (in `cells`), `diagnostics`, `ais`, `gap`, `snr`, `exact` (closed forms), `comparison` of
  models; written by `tables` and `plots`.
- A run: its `data` and `config`, `build`, `train`, `report`, `figures`, in a folder of `runs`; `load` reads it back.
- Commands: `fit`, `compare`, `gradients`, `sample`, `parts`, by `__main__`; they share `cli`, `progress` and `pace`.
- Checks of a part of one's own: `testing`.
"""

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
from .optimizers import Optimizer
from .priors import Normal, Prior
from .programs import LogWeights, log_weights
from .svi import SVI, NonFiniteError
from .vae import VAE

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
    "Optimizer",
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
