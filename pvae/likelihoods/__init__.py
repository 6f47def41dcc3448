"""Likelihoods p(x|z): a decoder and what its numbers mean."""

from .bernoulli import Bernoulli
from .binomial import Binomial
from .gaussian import Gaussian
from .likelihood import Likelihood, decoded_shape
from .negative_binomial import NegativeBinomial, ZeroInflatedNegativeBinomial
from .poisson import Poisson

__all__ = [
    "Bernoulli",
    "Binomial",
    "Gaussian",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "decoded_shape",
]
