"""Hooks: functions that a step calls, too, kept where no program names them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as of_all
from torch.optim import Optimizer
from torch.optim import optimizer as of_every

MODULE = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
OPTIMIZER = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
TENSOR = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Attributes of a tensor: None, or a dict of its hooks."""

Hooks = dict[Any, Any]


def of_module(module: nn.Module) -> list[Hooks]:
    """A module's own."""
    return [vars(module)[name] for name in MODULE]


def of_tensor(tensor: Tensor) -> list[Hooks]:
    """A tensor's, where it has had any."""
    return [held for name in TENSOR if (held := getattr(tensor, name)) is not None]


def of_all_modules() -> list[Hooks]:
    """Those that every module calls."""
    return [getattr(of_all, f"_global{name}") for name in MODULE]


def of_optimizer(optimizer: Optimizer) -> list[Hooks]:
    """An optimizer's own, and those that every optimizer calls."""
    own = [vars(optimizer).get(name, {}) for name in OPTIMIZER]
    return [*own, of_every._global_optimizer_pre_hooks, of_every._global_optimizer_post_hooks]
