"""Likelihoods p(x|z): a decoder and what its numbers mean."""

from .bernoulli import Bernoulli
from .gaussian import Gaussian
from .likelihood import Likelihood, decoded_shape

__all__ = ["Bernoulli", "Gaussian", "Likelihood", "decoded_shape"]
