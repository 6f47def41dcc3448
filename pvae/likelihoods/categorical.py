"""The categorical likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..errors import whole_number
from .levels import OfLevels, support_of
from .likelihood import Likelihood


class Categorical(Likelihood, name="categorical"):
    """Each level has a probability of its own: log p(x|z) = sum_d l_d[x_d] - log sum_v exp l_d[v], l = decoder(z).

    A softmax over all levels of each pixel, that knows no order among them (van den Oord, Kalchbrenner and Kavukcuoglu
    2016). A log-probability, in nats.

    Args:
        decoder: from latents to logits, `levels` for each pixel.
        shape: of one datum.
        levels: how many there are, from 0 to 1.

    Raises:
        InputError: fewer than two levels.

    >>> Categorical(nn.Linear(2, 12), (3,), levels=4)(torch.zeros(5, 2)).log_prob(torch.ones(3)).shape
    torch.Size([5])
    """

    support = "levels"

    def __init__(self, decoder: nn.Module, shape: Sequence[int], levels: int = 256) -> None:
        super().__init__(decoder, shape)
        whole_number(2, levels=levels)
        self.levels = self.outputs = levels
        self.support = support_of(levels)

    @classmethod
    def outputs_for(cls, **options: Any) -> int:  # noqa: D102
        return options["levels"]

    @classmethod
    def support_for(cls, **options: Any) -> str:  # noqa: D102
        return support_of(options["levels"])

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """p(x|z): batch shape (...), event shape `shape`."""
        return _Softmax(self.decode(z, y), event_dim=len(self.shape), top=self.levels - 1)

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start the decoder's last bias at the logs of how often each level comes, in all pixels and half in each."""
        top = self.levels - 1
        level = (top * x).round().clamp(0, top).long()
        each = torch.zeros(self.levels, *self.shape, device=x.device)
        each.scatter_add_(0, level, torch.ones_like(x))
        share = (each + 1 / self.levels) / (len(x) + 1)
        overall = share.mean(tuple(range(1, share.dim())), keepdim=True)
        self.center((0.5 * (share + overall)).log())


class _Softmax(OfLevels):
    """Categorical pixels: logits, with the levels first."""

    numbers = 1

    @property
    def mean(self) -> Tensor:
        probabilities = self.parameters[0].detach().softmax(self._dim).movedim(self._dim, -1)
        return probabilities @ torch.linspace(
            0, 1, self.top + 1, dtype=probabilities.dtype, device=probabilities.device
        )

    def sample_levels(self, sample_shape: torch.Size) -> Tensor:
        logits = self.parameters[0].movedim(self._dim, -1)
        return dist.Categorical(logits=logits).sample(sample_shape).to(logits.dtype)

    def log_prob_of_levels(self, level: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(self.batch_shape + self.event_shape, level.shape)
        logits = self.parameters[0]
        batch = shape[: len(shape) - len(self.event_shape)]
        logits = logits.expand(*batch, *logits.shape[self._dim :])
        return _LogSoftmaxAt.apply(logits, level.expand(shape).long().unsqueeze(self._dim), self._dim).squeeze(
            self._dim
        )


class _LogSoftmaxAt(torch.autograd.Function):
    """Log-softmax at one index: only logits and their log-sum are kept, and one array as large is made backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, index: Tensor, dim: int) -> Tensor:
        return logits.gather(dim, index) - logits.logsumexp(dim, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        logits, index, ctx.dim = inputs
        ctx.save_for_backward(logits, index, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, index, output = ctx.saved_tensors
        total = logits.gather(ctx.dim, index) - output
        softmax = (logits - total).exp_()
        return softmax.mul_(-grad).scatter_add_(ctx.dim, index, grad), None, None
