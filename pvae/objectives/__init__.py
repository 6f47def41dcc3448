"""Objectives: each is a `pyro.infer.ELBO`, a bound with an estimator of its gradient."""

from .elbo import ELBO
from .grouped import MIWAE, PIWAE
from .objective import Objective
from .weighted import CIWAE, IWAE, TVO, Chi, Renyi

__all__ = ["CIWAE", "ELBO", "IWAE", "MIWAE", "PIWAE", "TVO", "Chi", "Objective", "Renyi"]
