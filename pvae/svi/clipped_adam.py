"""Pyro's `ClippedAdam` as one optimizer over all parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ClippedAdam(Optimizer):
    """Pyro's `ClippedAdam` over all parameters at once; its arguments, its numbers.

    Adam on gradients cut elementwise to [-clip_norm, clip_norm], with a learning rate that is multiplied by `lrd` at
    every step.

    >>> parameter = torch.nn.Parameter(torch.ones(2))
    >>> parameter.grad = torch.tensor([100.0, -100.0])
    >>> ClippedAdam([parameter], lr=0.5).step()
    >>> parameter.data
    tensor([0.5000, 1.5000])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float = 10.0,
        lrd: float = 1.0,
        centered_variance: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "clip_norm": clip_norm}
        super().__init__(params, {**defaults, "lrd": lrd, "centered_variance": centered_variance})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step."""
        result = None if closure is None else closure()
        for group in self.param_groups:
            group["lr"] = (
                group["lr"].mul_(group["lrd"]) if isinstance(group["lr"], Tensor) else group["lr"] * group["lrd"]
            )
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                if not self.state[p]:
                    zero = torch.zeros((), dtype=torch.float32, device=p.device)
                    self.state[p] = {"step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            if parameters:
                self._advance(group, parameters)
        return result

    def _advance(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        steps, means, squares = (
            [self.state[p][name] for p in parameters] for name in ("step", "exp_avg", "exp_avg_sq")
        )
        (beta1, beta2), clip = group["betas"], group["clip_norm"]
        grads = torch._foreach_clamp_max(torch._foreach_clamp_min([p.grad for p in parameters], -clip), clip)
        torch._foreach_add_(steps, 1)
        if group["weight_decay"] != 0:
            grads = torch._foreach_add(grads, parameters, alpha=group["weight_decay"])
        torch._foreach_lerp_(means, grads, 1 - beta1)
        spread = torch._foreach_sub(grads, means) if group["centered_variance"] else grads
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, spread, spread, value=1 - beta2)
        denominators = torch._foreach_add(torch._foreach_sqrt(squares), group["eps"])
        for p, step, mean, denominator in zip(parameters, steps, means, denominators, strict=True):
            count = step.double()  # in float32 1 - beta2**1 has 4 digits
            size = group["lr"] * (1 - beta2**count).sqrt() / (1 - beta1**count)
            p.sub_(size.to(p) * mean / denominator)
