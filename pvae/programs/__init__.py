"""Any Pyro program, run and scored: what is known of a pair (model, guide) is known here.

`collect` runs a program and keeps its sites, and looks for what is wrong before work begins; `plates` knows which
numbers belong to which datum, `masks` which of them count. `weights` are the log-weights of draws, from which every
bound follows; `kl` is KL(q || p) in closed form where there is one, `density` the program's density as a function of
numbers without constraints.
"""

from .collect import (
    Collect,
    Enough,
    Look,
    Program,
    check_supports,
    densities,
    drawn_of,
    is_known,
    is_point,
    look,
    sites_of,
    unvalidated,
    vectorized,
    whole,
)
from .density import Density, State, simulate
from .finite import check_weights
from .given import given
from .masks import counted
from .plates import PARTICLES, Site, check_factors, check_named, data_plate, is_subsample
from .weights import (
    Averaged,
    Drawn,
    LogWeights,
    NoInverse,
    Traces,
    check_whole,
    draw,
    log_prob,
    log_q,
    log_weights,
    look_at,
    made_of,
    outside_support,
    rates,
    score,
    scored,
    split,
    total,
    trace,
    unreparameterized,
    unscored,
)

__all__ = [
    "PARTICLES",
    "Averaged",
    "Collect",
    "Density",
    "Drawn",
    "Enough",
    "LogWeights",
    "Look",
    "NoInverse",
    "Program",
    "Site",
    "State",
    "Traces",
    "check_factors",
    "check_named",
    "check_supports",
    "check_weights",
    "check_whole",
    "counted",
    "data_plate",
    "densities",
    "draw",
    "drawn_of",
    "given",
    "is_known",
    "is_point",
    "is_subsample",
    "log_prob",
    "log_q",
    "log_weights",
    "look",
    "look_at",
    "made_of",
    "outside_support",
    "rates",
    "score",
    "scored",
    "simulate",
    "sites_of",
    "split",
    "total",
    "trace",
    "unreparameterized",
    "unscored",
    "unvalidated",
    "vectorized",
    "whole",
]
