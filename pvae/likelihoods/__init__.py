"""Likelihoods p(x|z): a decoder and what its numbers mean."""

from .bernoulli import Bernoulli
from .beta import Beta
from .binomial import Binomial
from .categorical import Categorical
from .continuous_bernoulli import ContinuousBernoulli
from .discretized_logistic import DiscretizedLogistic, DiscretizedLogisticMixture
from .gaussian import Gaussian
from .laplace import Laplace
from .likelihood import Likelihood, decoded_shape
from .logit_normal import LogitNormal
from .negative_binomial import NegativeBinomial, ZeroInflatedNegativeBinomial
from .poisson import Poisson
from .student_t import StudentT

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "LogitNormal",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "decoded_shape",
]
