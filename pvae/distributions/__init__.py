"""Distributions that Pyro lacks, or that are faster here: what priors, likelihoods and guides return.

`independent` normals and Bernoullis of many dimensions, `student_t`, `mixtures`, `discrete` latents and their
relaxations, `sphere` (von Mises-Fisher and others), `pixels` (the base of likelihoods of images), `unexpanded` (the
base of those that score by products); `drawn` knows a draw again; `recompute` trades time for memory.
"""

from .drawn import LastDraw
from .independent import BernoulliOfLinear, DiagonalNormal, IndependentBernoulli, StandardNormal
from .pixels import OfPixels, OpenUnitInterval
from .student_t import StudentT
from .unexpanded import Unexpanded

__all__ = [
    "BernoulliOfLinear",
    "DiagonalNormal",
    "IndependentBernoulli",
    "LastDraw",
    "OfPixels",
    "OpenUnitInterval",
    "StandardNormal",
    "StudentT",
    "Unexpanded",
]
