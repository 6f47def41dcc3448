"""Guides of several layers: which layer's draw depends on which, made of one guide part for each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..base import Member, Part, announce, leading
from ..conditions import ConditionedEncoder
from ..distributions import DiagonalNormal
from ..errors import InputError
from ..guides import Guide
from ..likelihoods import Likelihood

Sample = Callable[[str, dist.Distribution], Tensor]


class Bricks(NamedTuple):
    """What the parts of an inference are made with."""

    encoder: Callable[[int], nn.Module]
    """the network at the data, with so many outputs"""
    network: Callable[[int, int], nn.Module]
    """a network between layers, with so many inputs and outputs"""
    outputs: Callable[[int], int]
    """how many numbers the guide of a layer of this size takes of its network"""
    guide: Callable[[nn.Module, int], Part]
    """the guide of a layer of this size, on a network"""
    width: int
    """of what a deterministic pass hands on"""


class Inference(Member, nn.Module, family="hierarchy"):
    """The family of guides of several layers: q(z1, ..., zL | x), a product of one guide part for each layer.

    Its call draws the layers, in an order of its own: `inference(x, y, layers)` within a Pyro program, with `layers`
    the model's p(z1|z2), ..., p(z(L-1)|zL).

    Args:
        guides: of z1, which is next to the data, to zL.
        networks: of a deterministic pass over the data, for members that have one.

    Raises:
        InputError: no layer; numbers of guides and networks that differ; a guide that is no part, or that is refined by
            looking at a prior and a likelihood which this layer has not.
    """

    def __init__(self, guides: Sequence[Part], networks: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        for number, guide in enumerate(guides, 1):
            if not isinstance(guide, Part):
                raise InputError(
                    f"guide: found {type(guide).__name__} of z{number}, expected a pvae.Part: a pvae.Guide"
                )
        if not guides or len(networks) not in (0, len(guides)) or (not networks and isinstance(self, TopDown)):
            raise InputError(
                f"{type(self).__name__}: found {len(guides)} guides and {len(networks)} networks, expected one of each"
                " for each layer"
            )
        self.guides, self.networks = nn.ModuleList(guides), nn.ModuleList(networks)
        lone = guides if networks else guides[:-1]
        for number, guide in enumerate(lone, 1):
            if type(guide).connect is not Part.connect:
                raise InputError(
                    f"guide: {type(guide).__name__} of z{number} is made of a prior and a likelihood, which only"
                    " the top has here: expected a guide that is made of a network alone, such as mean_field"
                )

    @classmethod
    def of(cls, latents: Sequence[int], bricks: Bricks) -> Inference:
        """The member for layers of these sizes, z1 first."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor | None, layers: Sequence[Part], sample: Sample = pyro.sample) -> None:
        """Draw every layer for data x (B, *shape), by `sample(name, distribution)`."""
        raise NotImplementedError

    def top(self, likelihood: Part, layers: Sequence[Part]) -> tuple[Part, Part]:
        """What the prior of zL meets: the likelihood of what q(zL|.) takes, and q(zL|.) itself."""
        raise NotImplementedError


class BottomUp(Inference, name="bottom_up"):
    """Each layer is inferred from the one below: q(z|x) = q(z1|x) q(z2|z1) ... q(zL|z(L-1)).

    Source: Burda, Grosse and Salakhutdinov 2015. The top two layers are themselves a VAE, whose data are z(L-1): that
    is what a prior made of the guide, as a VampPrior, sees, with pseudo-inputs in the space of z(L-1).

    >>> from pvae import MeanField
    >>> q = BottomUp([MeanField(nn.Linear(6, 8), 4), MeanField(nn.Linear(4, 4), 2)])
    >>> q(torch.zeros(5, 6), None, [], lambda name, q: print(name, tuple(q.batch_shape + q.event_shape)) or q.mean)
    z1 (5, 4)
    z2 (5, 2)
    """

    @classmethod
    def of(cls, latents: Sequence[int], bricks: Bricks) -> BottomUp:  # noqa: D102
        networks = [bricks.encoder(bricks.outputs(latents[0]) * latents[0])]
        networks += [bricks.network(below, bricks.outputs(latent) * latent) for below, latent in pairwise(latents)]
        return cls([bricks.guide(network, latent) for network, latent in zip(networks, latents, strict=True)])

    def forward(self, x: Tensor, y: Tensor | None, layers: Sequence[Part], sample: Sample = pyro.sample) -> None:
        """From z1 to zL."""
        below = x
        for number, guide in enumerate(self.guides, 1):
            below = sample(f"z{number}", guide(below, y))

    def top(self, likelihood: Part, layers: Sequence[Part]) -> tuple[Part, Part]:
        """A likelihood of z(L-1), and q(zL|z(L-1))."""
        return _LayerLikelihood(layers[-1]) if layers else likelihood, self.guides[-1]


class TopDown(Inference, name="top_down"):
    """From the top, each layer knowing the data and the one above: q(z|x) = q(zL|d_L) prod_l q(z_l|d_l, z_(l+1)).

    A deterministic pass d_1 = f(W_1(x)), d_l = f(W_l(d_(l-1))), with networks W_l and f a silu of numbers that are
    brought to mean 0 and variance 1 for each datum, tells every layer of the data; the guide of z_l takes d_l with
    z_(l+1) after it. Any guide will do. As in that paper, layers may collapse onto their priors for good in the first
    steps of a fit unless the objective warms up.

    Source: Sønderby, Raiko, Maaløe, Sønderby and Winther 2016, without their weighting by precision.

    >>> from pvae import MLPEncoder, MeanField
    >>> networks = [MLPEncoder((6,), 8), MLPEncoder((8,), 8)]
    >>> q = TopDown([MeanField(nn.Linear(8 + 2, 8), 4), MeanField(nn.Linear(8, 4), 2)], networks)
    >>> q(torch.zeros(5, 6), None, [], lambda name, q: print(name, tuple(q.batch_shape + q.event_shape)) or q.mean)
    z2 (5, 2)
    z1 (5, 4)
    """

    @classmethod
    def of(cls, latents: Sequence[int], bricks: Bricks) -> TopDown:  # noqa: D102
        above, guides = [*latents[1:], 0], []
        for latent, given in zip(latents, above, strict=True):
            network = bricks.network(bricks.width + given, bricks.outputs(latent) * latent)
            guides.append(bricks.guide(network, latent))
        return cls(guides, _upward(len(latents), bricks))

    def forward(self, x: Tensor, y: Tensor | None, layers: Sequence[Part], sample: Sample = pyro.sample) -> None:
        """From zL to z1."""
        *ups, last = self.up(x, y)
        z = sample(f"z{len(self.guides)}", self.guides[-1](last, y))
        for number in range(len(ups), 0, -1):
            z = sample(f"z{number}", self.given_above(number, ups[number - 1], z, y, layers))

    def given_above(self, number: int, d: Tensor, z: Tensor, y: Tensor | None, layers: Sequence[Part]) -> Any:
        """q(z_l|d_l, z_(l+1)) for d (B, width) and z (..., B, latent)."""
        return self.guides[number - 1](torch.cat([d.expand(*z.shape[:-1], -1), z], -1), y)

    def up(self, x: Tensor, y: Tensor | None) -> list[Tensor]:
        """The deterministic pass over data x (..., *shape): d_1 to d_L, (..., width) each."""
        announce(self.networks, "networks")
        found = [_through(self.networks[0], x, y)]
        for network in self.networks[1:]:
            found.append(_through(network, found[-1], y))
        return found

    def top(self, likelihood: Part, layers: Sequence[Part]) -> tuple[Part, Part]:
        """The likelihood of the data, and q(zL|x)."""
        return likelihood, _TopGuide(self)


class Ladder(TopDown, name="ladder"):
    """The model's own p(z_l|z_(l+1)) corrected by the data: two Gaussians, weighed by their precisions.

    q(z_l|z_(l+1), x) = N((m s^-2 + n t^-2) v, v),  v = 1 / (s^-2 + t^-2), where N(m, s^2) is the guide's estimate from
    d_l, as in `TopDown`, and N(n, t^2) the model's p(z_l|z_(l+1)). It needs an objective that warms up: see there.

    Source: Sønderby, Raiko, Maaløe, Sønderby and Winther 2016.

    >>> from pvae import MLPEncoder, MeanField
    >>> networks = [MLPEncoder((6,), 8), MLPEncoder((8,), 8)]
    >>> q = Ladder([MeanField(nn.Linear(8, 8), 4), MeanField(nn.Linear(8, 4), 2)], networks)
    >>> layers = [MeanField(nn.Linear(2, 8), 4)]
    >>> q(torch.zeros(5, 6), None, layers, lambda name, q: print(name, tuple(q.batch_shape + q.event_shape)) or q.mean)
    z2 (5, 2)
    z1 (5, 4)
    """

    @classmethod
    def of(cls, latents: Sequence[int], bricks: Bricks) -> Ladder:  # noqa: D102
        heads = [nn.Linear(bricks.width, bricks.outputs(latent) * latent) for latent in latents]
        guides = [bricks.guide(head, latent) for head, latent in zip(heads, latents, strict=True)]
        return cls(guides, _upward(len(latents), bricks))

    def given_above(self, number: int, d: Tensor, z: Tensor, y: Tensor | None, layers: Sequence[Part]) -> Any:
        """q(z_l|z_(l+1), x) for d (B, width) and z (..., B, latent).

        Raises:
            InputError: one of the two is not a Gaussian of independent dimensions.
        """
        guide, layer = self.guides[number - 1], layers[number - 1]
        (m, s), (n, t) = _gaussian(guide, guide(d, y), number), _gaussian(layer, layer(z, y), number)
        total = s.square() + t.square()
        return DiagonalNormal((m * t.square() + n * s.square()) / total, s * t * total.rsqrt())


def _upward(count: int, bricks: Bricks) -> list[nn.Module]:
    return [bricks.encoder(bricks.width), *(bricks.network(bricks.width, bricks.width) for _ in range(count - 1))]


def _through(network: nn.Module, x: Tensor, y: Tensor | None) -> Tensor:
    """A network of the deterministic pass, normalized, and the activation after it."""
    takes_labels = isinstance(network, ConditionedEncoder)
    out = network(x, y) if takes_labels else leading(network, x, len(getattr(network, "shape", (0,))))
    return nn.functional.silu(nn.functional.layer_norm(out, out.shape[-1:]))


def _gaussian(part: Part, found: Any, number: int) -> tuple[Tensor, Tensor]:
    """Mean and scale of what a part gave."""
    base = found
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if not isinstance(base, torch.distributions.Normal):
        raise InputError(
            f"ladder: found {type(found).__name__} for z{number}, of {type(part).__name__}, expected Gaussians with"
            " independent dimensions, such as mean_field gives, to weigh by precision: choose the hierarchy top_down"
        )
    return base.loc, base.scale


class _LayerLikelihood(Likelihood):
    """The model's p(z_l|z_(l+1)) as the likelihood of data z_l."""

    def __init__(self, layer: Part) -> None:
        super().__init__(layer.encoder, (layer.latent,))  # type: ignore[arg-type]
        self.layer = layer

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        return self.layer(z, y)


class _TopGuide(Guide):
    """q(zL|x), the first that a guide from the top draws."""

    def __init__(self, inference: TopDown) -> None:
        guide: Any = inference.guides[-1]
        super().__init__(inference.networks[0], guide.latent)
        self.inference, self.support = inference, guide.support

    def amortized(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        return self.inference.guides[-1].amortized(self.inference.up(x, y)[-1], y)  # type: ignore[operator]

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        return self.inference.guides[-1](self.inference.up(x, y)[-1], y)
