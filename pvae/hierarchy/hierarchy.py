"""The variational autoencoder of several stochastic layers."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..base import Part, mean_of
from ..errors import InputError
from ..vae import Autoencoder, check_data, check_start, check_support, drawn, point_of
from .inference import Inference

SEEN = 5000
"""Training data that the layers start from."""


class Hierarchy(Autoencoder):
    """A variational autoencoder of L stochastic layers: p(x, z) = p(zL) p(z(L-1)|zL) ... p(z1|z2) p(x|z1).

    Args:
        prior: its call returns p(zL).
        layers: p(z1|z2), ..., p(z(L-1)|zL): guides' own parts, whose data are the layer above; z1 is next to the data.
        likelihood: its call on z1 returns p(x|z1).
        posterior: q(z|x): `BottomUp`, `TopDown` or `Ladder`, of one guide for each layer.

    Raises:
        InputError: something that is not a part; numbers or sizes of layers that do not fit.

    The data plate is named "data", the sites "z1" to "zL" and "x". One layer is a `VAE`, but for the site's name.
    Source: Burda, Grosse and Salakhutdinov 2015; Sønderby et al. 2016 for guides from the top.

    >>> import pvae
    >>> from pvae.hierarchy import BottomUp
    >>> gaussian = lambda inputs, latent: pvae.MeanField(pvae.mlp(inputs, [16], 2 * latent), latent)
    >>> model = Hierarchy(
    ...     pvae.Normal(2),
    ...     [gaussian(2, 4)],
    ...     pvae.Bernoulli(pvae.mlp(4, [16], 6), (6,)),
    ...     BottomUp([gaussian(6, 4), gaussian(4, 2)]),
    ... )
    >>> model.log_weights(torch.ones(5, 6), particles=3).log_w.shape
    torch.Size([3, 5])
    """

    def __init__(self, prior: Part, layers: Sequence[Part], likelihood: Part, posterior: Inference) -> None:
        super().__init__()
        if not isinstance(posterior, Inference):
            raise InputError(
                f"posterior: found {type(posterior).__name__}, expected a pvae.hierarchy.Inference, such as BottomUp"
            )
        _check(prior, layers, likelihood, posterior)
        self.prior, self.layers, self.likelihood, self.posterior = prior, nn.ModuleList(layers), likelihood, posterior
        below, guide = posterior.top(likelihood, layers)
        prior.connect(prior, below, guide)
        likelihood.connect(prior, likelihood, guide)
        posterior.guides[-1].connect(prior, below, guide)  # type: ignore[operator]
        for number, (inferred, made) in enumerate(zip(posterior.guides, [*layers, prior], strict=True), 1):
            check_support(made, inferred, f" of z{number}")

    def initialize(self, x: Tensor, y: Tensor | None = None) -> Hierarchy:
        """Let every part take what it starts from out of the training data; once, before a fit. Returns self.

        The prior of zL is given what q(zL|.) takes: data, or draws of the layer below.
        """
        check_start(x, y, self.likelihood)
        self.likelihood.initialize(x, y)
        few = torch.arange(0, len(x), -(-len(x) // SEEN), device=x.device)
        seen, labels = x[few], None if y is None else y[few]
        below, top = self.posterior.top(self.likelihood, self.layers)
        given = {}

        def begin(part: Part, args: tuple) -> None:
            if part not in given:
                given[part] = args
                part.initialize(*args)

        hooks = [part.register_forward_pre_hook(begin) for part in (*self.posterior.guides, *self.layers)]
        with torch.no_grad():
            z = {}
            self.posterior(seen, labels, self.layers, lambda name, q: z.setdefault(name, q.sample()))
            for number, layer in enumerate(self.layers, 2):
                layer(z[f"z{number}"], labels)
        for hook in hooks:
            hook.remove()
        self.prior.initialize(*((x, y) if below is self.likelihood else given[top]))
        return self

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """p(x, z) for each datum, from the top."""
        check_data(x, y, self.likelihood)
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z{len(self.layers) + 1}", self.prior(y))
            for number in range(len(self.layers), 0, -1):
                z = pyro.sample(f"z{number}", self.layers[number - 1](z, y))
            pyro.sample("x", self.likelihood(z, y), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """q(z|x) for each datum."""
        check_data(x, y, self.likelihood)
        with pyro.plate("data", len(x)):
            self.posterior(x, y, self.layers)

    def encode(self, x: Tensor, y: Tensor | None = None) -> dict[str, dist.Distribution]:
        """Each layer's q, from "z1" on, at what stands for the layers that were drawn before it, as in `code`."""
        found: dict[str, dist.Distribution] = {}

        def point(name: str, q: dist.Distribution) -> Tensor:
            found[name] = q
            return point_of(self._guides[name], q)

        self.posterior(x, y, self.layers, point)
        return {name: found[name] for name in self.sites}

    @property
    def _guides(self) -> dict[str, nn.Module]:
        return dict(zip(self.sites, self.posterior.guides, strict=True))

    def means(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:  # noqa: D102
        return {name: mean_of(q) for name, q in self.encode(x, y).items()}

    def code(self, x: Tensor, y: Tensor | None = None) -> Tensor:  # noqa: D102
        return point_of(self._guides["z1"], self.encode(x, y)["z1"])

    @property
    def sites(self) -> list[str]:  # noqa: D102
        return [f"z{number}" for number in range(1, len(self.layers) + 2)]

    def latents(self, n: int, y: Tensor | None = None) -> Tensor:
        """z1 ~ p(z1), through all layers above it: (n, latent)."""
        z = drawn(self.prior, n, y)
        for layer in reversed(self.layers):
            z = layer(z, y).sample()
        return z


def _check(prior: Part, layers: Sequence[Part], likelihood: Part, posterior: Inference) -> None:
    """Refuse parts that are none, and layers whose numbers or sizes differ."""
    named = {"prior": prior, "likelihood": likelihood, **{f"layers[{n}]": layer for n, layer in enumerate(layers)}}
    for name, part in named.items():
        if not isinstance(part, Part):
            raise InputError(f"{name}: found {type(part).__name__}, expected a pvae.Part")
    for number, layer in enumerate(layers, 1):
        refined = type(layer).connect is not Part.connect
        if refined or not getattr(layer, "bound", True):
            found = "is made of a prior and a likelihood" if refined else "has no density but at a point of its own"
            raise InputError(
                f"layer: {type(layer).__name__} {found}: it cannot be p(z{number}|z{number + 1}): expected one with a"
                " density at every point, made of a network alone, such as mean_field"
            )
    if len(posterior.guides) != len(layers) + 1:
        raise InputError(
            f"layers: found {len(layers)} and a guide of {len(posterior.guides)}, expected one less: p(z_l|z_(l+1)) of"
            " every layer but the top, whose is the prior"
        )
    for number, (made, inferred) in enumerate(zip([*layers, prior], posterior.guides, strict=True), 1):
        have = getattr(made, "latent", None), getattr(inferred, "latent", None)
        if None not in have and have[0] != have[1]:
            raise InputError(
                f"z{number}: found size {have[0]} in the model, {have[1]} in the guide, expected the same of both"
            )
