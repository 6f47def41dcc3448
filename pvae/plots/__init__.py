"""Figures for a paper, from plain arrays: each function takes arrays and returns a matplotlib `Figure`.

Nothing here touches pyplot: no backend starts, no figure outlives its last reference, no screen is needed. The
look is one (`style`) and owes nothing to the settings of whoever runs it.
"""

from .charts import (
    active_units,
    bound_against_k,
    khat_quantiles,
    latent_scatter,
    learning_curves,
    signal_against_k,
)
from .columns import is_table
from .pictures import image_grid, is_drawn, latent_plane, reconstructions, samples
from .style import save

__all__ = [
    "active_units",
    "bound_against_k",
    "image_grid",
    "is_drawn",
    "is_table",
    "khat_quantiles",
    "latent_plane",
    "latent_scatter",
    "learning_curves",
    "reconstructions",
    "samples",
    "save",
    "signal_against_k",
]
