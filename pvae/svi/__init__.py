"""Stochastic variational inference with a step that is traced once and replayed. Generic: any Pyro model and guide.

`engine` takes steps and `trained` holds what they change, with `parameters`, `optimizers`, `shares`, `rates`,
`own` (an objective's), `unsaved` (what no state has) and `clipped_adam`.
Graphs: `calls` says which arguments are alike, `graphs` when one is built and when trusted, `building` makes a step
into a `graph`.
Checks: `arguments` of what is given, `observed` of data against supports, `faults` and `pending` of losses that are
not finite. `loss` is a number that is read late.
"""

from .clipped_adam import ClippedAdam
from .engine import SVI
from .faults import NonFiniteError
from .loss import Loss

__all__ = ["SVI", "ClippedAdam", "Loss", "NonFiniteError"]
