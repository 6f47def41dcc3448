"""Numbers that should agree: exactly, or within their standard error."""

import math

import torch


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def matches(draws, expected):
    """The mean of draws over the first dimension, within 4.5 standard errors."""
    error = draws.std(0) / math.sqrt(len(draws)) + 1e-12
    assert ((draws.mean(0) - expected) / error).abs().max() < 4.5


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def positive(*shape):
    return (torch.rand(*shape, dtype=torch.float64) + 0.3).requires_grad_()
