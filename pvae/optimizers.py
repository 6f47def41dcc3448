"""The family of optimizers: what makes steps of gradients. Where torch has one fused, it is part of the traced step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Member
from .errors import InputError, more_than


class Optimizer(Member, family="optimizer"):
    """The family of optimizers. A member takes options of its own; called with parameters, it makes one of torch's.

    >>> class NAdam(Optimizer):
    ...     def __call__(self, parameters, lr):
    ...         return torch.optim.NAdam(parameters, lr=lr)
    >>> NAdam()([torch.zeros(2, requires_grad=True)], lr=1e-3).defaults["lr"]
    0.001
    """

    def __call__(self, parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        """The optimizer over parameters. Their gradient will be that of a sum over the batch.

        Args:
            parameters: all that are trained.
            lr: the learning rate, above 0, that a schedule may multiply.
        """
        raise NotImplementedError


class _Adaptive(Optimizer):
    """The options that Adam and its kin share."""

    def __init__(self, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        if len(betas) != 2:
            raise InputError(f"betas: found {len(betas)}, expected two numbers: give them as 0.9,0.999")
        for beta in betas:
            _share(betas=beta)
        more_than(0, eps=eps)
        self.betas, self.eps = tuple(betas), eps


class Adam(_Adaptive, name="adam"):
    """Steps along the gradient's running mean over the root of its running mean square. Kingma and Ba 2015.

    Args:
        betas: what is kept of mean and mean square at each step, from 0 to below 1.
        eps: added to the root, above 0.

    Raises:
        InputError: an option is out of its range.

    >>> Adam(eps=1e-4)([torch.zeros(2, requires_grad=True)], lr=1e-3).defaults["eps"]
    0.0001
    """

    def __call__(self, parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        """Torch's, over all parameters."""
        return torch.optim.Adam(parameters, lr, self.betas, self.eps, fused=True)


class AdamW(_Adaptive, name="adamw"):
    """Adam with parameters that decay by themselves. Loshchilov and Hutter 2019.

    Args:
        betas: what is kept of mean and mean square at each step, from 0 to below 1.
        eps: added to the root, above 0.
        weight_decay: of every parameter in each step, times the learning rate, 0 or more.

    Raises:
        InputError: an option is out of its range.

    >>> AdamW(weight_decay=0.1)([torch.zeros(2, requires_grad=True)], lr=1e-3).defaults["weight_decay"]
    0.1
    """

    def __init__(self, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01) -> None:
        super().__init__(betas, eps)
        _not_negative(weight_decay=weight_decay)
        self.weight_decay = weight_decay

    def __call__(self, parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        """Torch's, over all parameters."""
        return torch.optim.AdamW(parameters, lr, self.betas, self.eps, self.weight_decay, fused=True)


class Adamax(_Adaptive, name="adamax"):
    """Adam over the gradient's decaying maximum; no part of the traced step. Kingma and Ba 2015, algorithm 2.

    Args:
        betas: what is kept of mean and maximum at each step, from 0 to below 1.
        eps: added to a gradient's size, above 0.

    Raises:
        InputError: an option is out of its range.

    >>> type(Adamax()([torch.zeros(2, requires_grad=True)], lr=1e-3)).__name__
    'Adamax'
    """

    def __call__(self, parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        """Torch's, over all parameters."""
        return torch.optim.Adamax(parameters, lr, self.betas, self.eps)


class SGD(Optimizer, name="sgd"):
    """Steps along the gradient, which is a sum over the batch: divide a rate for its mean by the batch's size.

    Args:
        momentum: what is kept of the last step's direction, from 0 to below 1. Polyak 1964.
        nesterov: whether the gradient is that ahead. Nesterov 1983.
        weight_decay: of the gradient of half the parameters' squares, 0 or more.

    Raises:
        InputError: an option is out of its range; nesterov without momentum.

    >>> SGD(momentum=0.9)([torch.zeros(2, requires_grad=True)], lr=1e-5).defaults["momentum"]
    0.9
    """

    def __init__(self, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> None:
        _share(momentum=momentum)
        _not_negative(weight_decay=weight_decay)
        if nesterov and not momentum:
            raise InputError("nesterov: found it without momentum: give momentum, as 0.9, or leave nesterov out")
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay

    def __call__(self, parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        """Torch's, over all parameters."""
        return torch.optim.SGD(
            parameters, lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov, fused=True
        )


class RMSprop(Optimizer, name="rmsprop"):
    """Steps along the gradient over the root of its running mean square. Tieleman and Hinton 2012.

    Args:
        alpha: what is kept of the mean square at each step, from 0 to below 1.
        eps: added to the root, above 0.
        momentum: what is kept of the last step, from 0 to below 1.

    Raises:
        InputError: an option is out of its range.

    >>> RMSprop(alpha=0.9)([torch.zeros(2, requires_grad=True)], lr=1e-3).defaults["alpha"]
    0.9
    """

    def __init__(self, alpha: float = 0.99, eps: float = 1e-8, momentum: float = 0.0) -> None:
        _share(alpha=alpha, momentum=momentum)
        more_than(0, eps=eps)
        self.alpha, self.eps, self.momentum = alpha, eps, momentum

    def __call__(self, parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        """Torch's, over all parameters."""
        return torch.optim.RMSprop(parameters, lr, self.alpha, self.eps, momentum=self.momentum)


class Adagrad(Optimizer, name="adagrad"):
    """Steps along the gradient over the root of the sum of all its squares so far. Duchi, Hazan and Singer 2011.

    Args:
        eps: added to the root, above 0.

    Raises:
        InputError: it is out of its range.

    >>> Adagrad()([torch.zeros(2, requires_grad=True)], lr=0.02).defaults["eps"]
    1e-10
    """

    def __init__(self, eps: float = 1e-10) -> None:
        more_than(0, eps=eps)
        self.eps = eps

    def __call__(self, parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
        """Torch's, over all parameters."""
        fused = all(parameter.device.type == "cpu" for parameter in parameters)  # torch 2.11 has none on CUDA
        return torch.optim.Adagrad(parameters, lr, eps=self.eps, fused=fused or None)


def _share(**options: float) -> None:
    for name, value in options.items():
        if not 0 <= value < 1:
            raise InputError(f"{name}: found {value}, expected a number from 0 to below 1")


def _not_negative(**options: float) -> None:
    for name, value in options.items():
        if not value >= 0:
            raise InputError(f"{name}: found {value}, expected 0 or more")
