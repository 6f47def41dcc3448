"""Guides q(z|x): an encoder and the distribution its numbers parametrize."""

from .guide import Guide
from .mean_field import MeanField

__all__ = ["Guide", "MeanField"]
