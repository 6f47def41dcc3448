"""The VampPrior."""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..base import Part
from ..conditions import ConditionedEncoder
from ..distributions.mixtures import FiniteMixture
from ..errors import InputError, nearest, whole_number
from .prior import Prior

Inputs = Literal["learned", "data"]


class Vamp(Prior, name="vamp"):
    """The mixture of the guide's own posteriors at pseudo-inputs: p(z) = 1/C sum_c q(z|u_c).

    Source: Tomczak and Welling 2018. With data as the inputs these are the exemplars of Norouzi et al. 2020.

    The guide is the model's: a `VAE` hands it over, and keeps its parameters. A guide that is conditioned sees a label
    of its own beside each input, that of the training datum it started from; the prior itself does not depend on y.
    A guide that is refined after its encoder is taken as it is before. Every draw is scored under every component, some
    draws at a time: of 500 a flow makes a step some hundred times slower than mean_field does.

    Args:
        latent: size of the latent.
        components: C, how many inputs.
        inputs: learned, from training data on, or data: training data, that stay.

    Raises:
        InputError: fewer than one component; by `connect`, a guide whose density is not known at every point; when it
            is called before `connect`.

    >>> import pvae
    >>> prior = Vamp(2, components=5)
    >>> likelihood, guide = pvae.Bernoulli(pvae.mlp(2, [8], 6), (6,)), pvae.MeanField(pvae.mlp(6, [8], 4), 2)
    >>> vae = pvae.VAE(prior, likelihood, guide).initialize(torch.rand(20, 6))
    >>> prior().log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    anywhere = True
    guide: Any
    uniform: Tensor
    pseudo_inputs: Tensor | None
    labels: Tensor | None

    def __init__(self, latent: int, components: int = 500, inputs: Inputs = "learned") -> None:
        super().__init__(latent)
        whole_number(1, components=components)
        if inputs not in ("learned", "data"):
            raise InputError(
                f"inputs: found '{inputs}', expected learned or data: {nearest(inputs, ['learned', 'data'])}"
            )
        self.learned = inputs == "learned"
        self.register_buffer("uniform", torch.zeros(components), persistent=False)
        self._hold(None)
        self.register_buffer("labels", None)
        self.guide = None

    def connect(self, prior: Part, likelihood: Part, guide: Part) -> None:
        """Take the guide, and make room for inputs of the likelihood's shape: random ones until `initialize`."""
        object.__setattr__(self, "guide", guide)  # or its parameters would be this part's as well
        shape = (len(self.uniform), *likelihood.shape)  # type: ignore[misc]
        if self.pseudo_inputs is None or self.pseudo_inputs.shape != shape:
            self._hold(torch.rand(shape, dtype=self.uniform.dtype, device=self.uniform.device))
        encoder = getattr(guide, "encoder", None)
        if isinstance(encoder, ConditionedEncoder):
            labels = encoder.condition.examples(len(self.uniform))
            if self.labels is None or self.labels.shape != labels.shape:
                self.register_buffer("labels", labels.to(self.uniform.device))
        self.support = guide.support  # type: ignore[assignment]
        _check_guide(guide, self.pseudo_inputs, self.labels)

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Start at training data drawn at random, with their labels.

        So the components are apart from the first step on. Learned inputs get a little noise, or those that start at
        the same datum, where there are fewer data than inputs, would never part. They may leave the range of the data.
        """
        chosen = torch.randperm(len(x), device=x.device)[torch.arange(len(self.uniform), device=x.device) % len(x)]
        with torch.no_grad():
            self.pseudo_inputs.copy_(x[chosen])
            if self.learned:
                self.pseudo_inputs.add_(0.01 * torch.randn_like(self.pseudo_inputs))
            if self.labels is not None and y is not None:
                drawn, floats = y[chosen].to(self.labels.device), self.labels.is_floating_point()
                # of their own type and shape, which those of a condition of one's own may have had to be guessed
                self.labels = drawn.to(self.labels.dtype) if floats and drawn.is_floating_point() else drawn

    def forward(self, y: Tensor | None = None) -> dist.Distribution:
        """p(z): batch shape (), event shape (latent,)."""
        if self.guide is None:
            raise InputError("prior vamp: it is made of a guide and has none: join it to one by VAE(prior, ...)")
        return FiniteMixture(self.uniform, self.guide.amortized(self.pseudo_inputs, self.labels))

    def _hold(self, value: Tensor | None) -> None:
        if self.learned:
            self.register_parameter("pseudo_inputs", None if value is None else nn.Parameter(value))
        else:
            self.register_buffer("pseudo_inputs", value)


def _check_guide(guide: Part, x: Tensor, y: Tensor | None) -> None:
    """Refuse a guide whose density is not known away from its own draws."""
    with torch.no_grad():
        q = guide.amortized(x[:1], None if y is None else y[:1])  # type: ignore[operator]
        try:
            q.log_prob(q.sample().clone())  # a copy, that no transform remembers
            known = not isinstance(_root(q), dist.Delta)
        except (NotImplementedError, KeyError):  # Pyro's transforms raise either
            known = False
    if not known:
        raise InputError(
            f"prior vamp: guide {type(guide).__name__} has no density away from its own draws, and the prior is"
            " made of it: expected one that has, such as mean_field, or another prior"
        )


def _root(q: Any) -> Any:
    """The distribution within all that is wrapped round it."""
    while hasattr(q, "base_dist"):
        q = q.base_dist
    return q
