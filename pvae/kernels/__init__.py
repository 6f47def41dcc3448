"""Kernels of our own for CUDA, each beside the plain computation that it stands for."""

from .bernoulli import choose, log_prob, run_on

__all__ = ["choose", "log_prob", "run_on"]
