"""Bounds on log p(x): pure functions from log-weights (K, B) to a value for each datum (B,), nats."""

from __future__ import annotations

import math

from torch import Tensor


def elbo(log_w: Tensor) -> Tensor:
    """The evidence lower bound: the mean of log w over the K particles.

    ELBO = 1/K sum_k log w_k, log w = log p(x, z) - log q(z|x).

    Args:
        log_w: (K, B), nats.

    Kingma and Welling 2014, eq. 2.

    >>> import torch
    >>> elbo(torch.tensor([[0.0], [-2.0]]))
    tensor([-1.])
    """
    return log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    """The importance-weighted bound: the log of the mean of the K weights.

    L_K = log 1/K sum_k w_k. L_1 is the ELBO; in expectation L_K rises with K, to log p(x).

    Args:
        log_w: (K, B), nats.

    Burda, Grosse and Salakhutdinov 2015, eq. 8.

    >>> import torch
    >>> iwae(torch.tensor([[1.0], [1.0]]))
    tensor([1.])
    """
    # Weights this far below the largest add nothing to the sum, in float64 either. But their gradients are denormal
    # numbers, which a CPU multiplies at a quarter of its speed.
    log_w = log_w.masked_fill(log_w < log_w.detach().amax(0) - 60, -math.inf)
    return log_w.logsumexp(0) - math.log(log_w.shape[0])
