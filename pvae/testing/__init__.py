"""The contract that every part keeps: checks to call in a test of a part of one's own.

`pvae.testing.check_prior(Horseshoe(latent=8))`, and likewise `check_likelihood`, `check_guide` and `check_objective`.
"""

from .contract import Report, check_guide, check_likelihood, check_prior
from .objective import check_objective
from .setting import ContractError

__all__ = ["ContractError", "Report", "check_guide", "check_likelihood", "check_objective", "check_prior"]
