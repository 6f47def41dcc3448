"""Torch's fused optimizer steps as operations that a compiler makes one kernel of.

Torch's own kernel gives each of a GPU's multiprocessors 65,536 numbers: of a network of half a million parameters nine
in ten multiprocessors are idle. A compiled one gives each a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Tensors = Sequence[Tensor]


def _gradients(grads: Tensors, parameters: Tensors, weight_decay: float, maximize: bool) -> Tensors:
    grads = torch._foreach_neg(grads) if maximize else grads
    return torch._foreach_add(grads, parameters, alpha=weight_decay) if weight_decay else grads


def _one_less_power(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step to all digits of a float32, where beta^step itself is next to 1."""
    return -torch.expm1(step * (math.log(beta) if beta else -math.inf))


def _adam(
    parameters: Tensors,
    grads: Tensors,
    means: Tensors,
    squares: Tensors,
    largest: Tensors,
    steps: Tensors,
    *,
    lr: Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
    **_: Any,
) -> None:
    """Adam (Kingma and Ba 2015, algorithm 1); the steps have been counted."""
    grads = _gradients(grads, parameters, weight_decay, maximize)
    torch._foreach_mul_(means, beta1)
    torch._foreach_add_(means, grads, alpha=1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
    if amsgrad:
        torch._foreach_maximum_(largest, squares)
    sizes = [(lr / _one_less_power(beta1, step)).to(p) for p, step in zip(parameters, steps, strict=True)]
    roots = [_one_less_power(beta2, step).sqrt().to(p) for p, step in zip(parameters, steps, strict=True)]
    denominators = torch._foreach_div(torch._foreach_sqrt(largest if amsgrad else squares), roots)
    denominators = torch._foreach_add(denominators, eps)
    torch._foreach_sub_(parameters, torch._foreach_mul(torch._foreach_div(means, denominators), sizes))


def _adamw(parameters: Tensors, *args: Tensors, lr: Tensor, weight_decay: float, **options: Any) -> None:
    """Adam with weights that decay by themselves (Loshchilov and Hutter 2019)."""
    torch._foreach_mul_(parameters, 1 - lr * weight_decay)
    _adam(parameters, *args, lr=lr, weight_decay=0.0, **options)


def _sgd(
    parameters: Tensors,
    grads: Tensors,
    momenta: Tensors,
    *,
    weight_decay: float,
    momentum: float,
    lr: Tensor,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    **_: Any,
) -> None:
    """Stochastic gradient descent; not its first step, whose momentum is the gradient: that makes the state."""
    grads = _gradients(grads, parameters, weight_decay, maximize)
    if momenta:
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, grads, alpha=1 - dampening)
        grads = torch._foreach_add(grads, momenta, alpha=momentum) if nesterov else momenta
    torch._foreach_sub_(parameters, torch._foreach_mul(grads, lr))


def _adagrad(
    parameters: Tensors,
    grads: Tensors,
    sums: Tensors,
    steps: Tensors,
    *,
    lr: Tensor,
    lr_decay: float,
    weight_decay: float,
    eps: float,
    maximize: bool,
    **_: Any,
) -> None:
    """Adagrad (Duchi, Hazan and Singer 2011); the steps have been counted."""
    grads = _gradients(grads, parameters, weight_decay, maximize)
    torch._foreach_addcmul_(sums, grads, grads)
    sizes = [(lr / (1 + (step - 1) * lr_decay)).to(p) for p, step in zip(parameters, steps, strict=True)]
    denominators = torch._foreach_add(torch._foreach_sqrt(sums), eps)
    torch._foreach_sub_(parameters, torch._foreach_mul(torch._foreach_div(grads, denominators), sizes))


UNFUSED = {
    aten._fused_adam_.tensor_lr: _adam,
    aten._fused_adamw_.tensor_lr: _adamw,
    aten._fused_sgd_.tensor_lr: _sgd,
    aten._fused_adagrad_.tensor_lr: _adagrad,
}
"""By the operation; what it is replaced by, for learning rates that are tensors."""
