"""A part in a small model, with inputs of its own sizes: what the clauses of the contract look at."""

from __future__ import annotations

import copy
import itertools
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..base import Member, Part, members, path_of
from ..conditions import Condition, ConditionedDecoder, ConditionedEncoder, Covariates, Label
from ..config import defaults, member_options
from ..errors import InputError
from ..likelihoods import decoded_shape
from ..networks import MLPDecoder, MLPEncoder
from ..vae import VAE

SHAPE = (5,)
"""Of one datum, where the part under test says nothing of it."""
HIDDEN = (8,)
BATCH = 5
MOVES = (0.3, 0.1, 0.03)
"""How far parameters are moved: the first that leaves the distribution valid."""


class ContractError(AssertionError):
    """A part that does not keep the contract: the part, the clause, what was found, what is expected, what to do."""


class Broken(Exception):
    """Raised by a clause: what was found, expected, and what to do."""


def expect(holds: bool, found: str, expected: str, do: str) -> None:
    """Refuse what does not hold."""
    if not holds:
        raise Broken(f"found {found}, expected {expected}: {do}")


@dataclass
class Subject:
    """A part under test and the model it is in."""

    part: Part
    vae: VAE
    latent: int
    shape: tuple[int, ...]
    y: Tensor | None = None
    """Labels to choose from, where none fit by themselves."""
    memo: dict[str, Any] = field(default_factory=dict)
    """What one clause has found and another needs too."""

    @property
    def event(self) -> tuple[int, ...]:
        """Of the part's distribution."""
        return self.shape if self.part.family == "likelihood" else (self.latent,)

    @property
    def condition(self) -> Condition | None:
        """What the part is conditioned on."""
        return condition_of(self.part)

    def labels(self, *lead: int) -> Tensor | None:
        """Labels that the model takes; None where no part of it needs them."""
        if self.y is not None:
            return self.y[torch.randint(len(self.y), lead)]
        found = condition_of(self.vae)
        if isinstance(found, Label):
            return torch.randint(found.size, lead)
        if isinstance(found, Covariates):
            return torch.randn(*lead, found.size)
        if found is not None:
            examples = found.examples(prod(lead))[torch.randperm(prod(lead))]
            return examples.reshape((*lead, *examples.shape[1:]))
        return None

    def inputs(self, *lead: int) -> tuple[Any, ...]:
        """What the part is called with: labels; latents or data, and labels."""
        y = self.labels(*lead)
        if self.part.family == "prior":
            return (y,)
        return (self.latents(*lead) if self.part.family == "likelihood" else self.data(*lead), y)

    def latents(self, *lead: int) -> Tensor:
        """Latents where the guide draws them."""
        flat = self.data(prod(lead)) if lead else self.data(1)
        y = self.labels(len(flat))
        with torch.no_grad():
            return values(self.vae.posterior(flat, y)).reshape(*lead, self.latent)

    def data(self, *lead: int) -> Tensor:
        """Data that the likelihood scores: its own draws, for latents of all sizes."""
        y = self.labels(*lead)
        z = torch.randn(*lead, self.latent)
        with torch.no_grad():
            return self.vae.likelihood(z, y).sample()

    def batch(self) -> tuple[Tensor, Tensor | None]:
        """Data and labels to train on."""
        return self.data(BATCH), self.labels(BATCH)

    def copy(self) -> Subject:
        """The same, apart: what is trained or changed is this one."""
        vae = copy.deepcopy(self.vae)
        return self.within(vae)

    def within(self, vae: VAE) -> Subject:
        """The part of another model that is in the place of this one."""
        part = {"prior": vae.prior, "likelihood": vae.likelihood, "guide": vae.posterior}[self.part.family]
        return Subject(part, vae, self.latent, self.shape, self.y, self.memo)

    def moved(self) -> Subject | None:
        """The same with every parameter moved a little, up; None where there is none, or it may not be moved.

        As far as leaves it valid: what starts where a mistake cannot be seen, at a mean of 0 or a scale of 1, is seen.
        """
        if not any(parameter.requires_grad for parameter in self.part.parameters()):
            return None
        for size in MOVES:
            found = self.copy()
            found.memo = self.memo.setdefault("moved", {})
            _move(found.part, size)
            if found.valid():
                return found
        return None

    def valid(self) -> bool:
        """Whether the part's distribution has parameters that it may have, and scores its draws."""
        with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled():
            try:
                p = self.part(*self.inputs())
                return bool(p.log_prob(p.sample()).isfinite().all())
            except NotImplementedError:
                return True
            except ValueError:
                return False

    def drawable(self) -> bool:
        """Whether the part can be drawn from."""
        with torch.no_grad():
            try:
                self.part(*self.inputs(2)).sample()
            except NotImplementedError:
                return False
        return True


def _move(part: nn.Module, size: float) -> None:
    generator = torch.Generator().manual_seed(torch.initial_seed())
    with torch.no_grad():
        for parameter in part.parameters():
            if parameter.requires_grad:
                inputs = max(1, prod(parameter.shape[1:]))
                parameter += size / inputs**0.5 * (0.5 + torch.rand(parameter.shape, generator=generator))


def values(p: dist.Distribution) -> Tensor:
    """A draw without a gradient."""
    with torch.no_grad():
        return p.sample()


def condition_of(module: nn.Module) -> Condition | None:
    """What a module is conditioned on, wherever in it that is said."""
    return next((m for m in module.modules() if isinstance(m, Condition) and m.size), None)


# The model round a part.


def around_prior(prior: Part, guide: Part | None, likelihood: Part | None) -> tuple[VAE, tuple[int, ...]]:
    """A small model round a prior: a guide from the registry that draws from the same place."""
    shape = tuple(likelihood.shape) if likelihood is not None else data_shape(guide) if guide is not None else SHAPE
    likelihood = likelihood if likelihood is not None else _bernoulli(prior.latent, shape)
    if guide is not None:
        return VAE(prior, likelihood, guide), shape
    return _first("guide", prior, lambda made: VAE(prior, likelihood, made), shape), shape


def around_guide(guide: Part, prior: Part | None, likelihood: Part | None) -> tuple[VAE, tuple[int, ...]]:
    """A small model round a guide: a prior from the registry that draws from the same place."""
    shape = data_shape(guide)
    likelihood = likelihood if likelihood is not None else _bernoulli(guide.latent, shape)
    if prior is not None:
        return VAE(prior, likelihood, guide), shape
    return _first("prior", guide, lambda made: VAE(made, likelihood, guide), shape), shape


def around_likelihood(likelihood: Part, latent: int | None) -> tuple[VAE, tuple[int, ...]]:
    """A small model round a likelihood: a standard normal prior and a mean-field guide."""
    latent = latent or latent_of(likelihood.decoder)
    shape = tuple(likelihood.shape)
    made = members("guide")["mean_field"]
    guide = made(MLPEncoder(shape, made.outputs * latent, HIDDEN, "tanh"), latent)  # type: ignore[attr-defined]
    return VAE(members("prior")["normal"](latent), likelihood, guide), shape


def _bernoulli(latent: int, shape: Sequence[int]) -> Part:
    return members("likelihood")["bernoulli"](MLPDecoder(latent, shape, HIDDEN, "tanh"), shape)


def _first(family: str, part: Any, join: Any, shape: Sequence[int]) -> VAE:
    """The first member of a family that fits a part; those whose draws carry a gradient before others."""
    refusals, later = [], []
    for member, options in candidates(family, part):
        try:
            made = make(member, part.latent, shape, options)
            if made.support != part.support:
                continue
            vae = join(made)
            if family == "prior" or _reparameterized(vae, shape):
                return vae
            later.append((member, options))
        except (InputError, NotImplementedError, TypeError) as error:  # as of one that needs labels
            refusals.append(str(error))
    for member, options in later:
        return join(make(member, part.latent, shape, options))
    own = f"{part.family} {path_of(type(part))}: "
    if refusals and all(text.startswith(own) for text in refusals):
        raise Broken(refusals[0].removeprefix(own))
    why = foreign_support(part) or (refusals[-1] if refusals else part.support)
    raise Broken(
        f"found no {family} that goes with it in the registry ({why}), expected one whose draws lie in {part.support}:"
        f" pass {family}="
    )


def foreign_support(part: Part) -> str:
    """What is to be said of where a prior or guide draws from, if no member of the registry does."""
    known = sorted({member.support for family in ("prior", "guide") for member in members(family).values()})
    if any(str(part.support).startswith(name) for name in known):
        return ""
    return f"a support of its own, '{part.support}': members draw from {', '.join(known)}"


def _reparameterized(vae: VAE, shape: Sequence[int]) -> bool:
    vae = copy.deepcopy(vae)
    return bool(vae.posterior(torch.zeros(2, *shape), None).has_rsample)


def candidates(family: str, part: Any) -> Iterator[tuple[type[Member], dict[str, Any]]]:
    """Members with options that agree with what the part has under the same names; plain ones first."""
    known = members(family)
    first = [name for name in ("mean_field", "normal") if name in known]
    for name in [*first, *(name for name in known if name not in first)]:
        own = member_options(family, known[name])
        held = {option: getattr(part, option, None) for option in own}
        same = {option: value for option, value in held.items() if isinstance(value, int | float | str | tuple)}
        for options in itertools.chain([same], _choices(own, same), [{}] if same else []):
            yield known[name], options


def _choices(own: dict[str, Any], same: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for option, parameter in own.items():
        for kind in (parameter.annotation, *typing.get_args(parameter.annotation)):
            for choice in typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ():
                yield {**same, option: choice}


def make(member: type[Member], latent: int, shape: Sequence[int], options: dict[str, Any] | None = None) -> Any:
    """A member of a family of parts with small networks.

    >>> make(members("guide")["mean_field"], 2, (6,))(torch.zeros(3, 6)).batch_shape
    torch.Size([3])
    """
    options = options or {}
    every = defaults(member) | options
    if member.family == "prior":
        return member(latent, **options)
    if member.family == "likelihood":
        outputs = member.outputs_for(**every)  # type: ignore[attr-defined]
        return member(MLPDecoder(latent, decoded_shape(shape, outputs), HIDDEN, "tanh"), tuple(shape), **options)
    outputs = member.outputs_for(latent, **every)  # type: ignore[attr-defined]
    return member(MLPEncoder(shape, outputs * latent, HIDDEN, "tanh"), latent, **options)


def data_shape(guide: Part) -> tuple[int, ...]:
    """Of one datum, by a guide's encoder."""
    encoder = guide.encoder
    if isinstance(encoder, ConditionedEncoder):
        encoder = encoder.network
    shape = getattr(encoder, "shape", None)
    if shape is None:
        shape = _width(encoder, "an encoder", "an Encoder, with the shape that it takes")
    return tuple(shape)


def latent_of(decoder: nn.Module) -> int:
    """The size of the latent, by a likelihood's decoder."""
    if isinstance(decoder, ConditionedDecoder) or hasattr(decoder, "inputs"):
        return decoder.inputs  # type: ignore[return-value]
    return _width(decoder, "a decoder", "a Decoder, or latent= beside it")[0]


def _width(network: nn.Module, what: str, expected: str) -> tuple[int]:
    for layer in network.modules():
        if hasattr(layer, "in_features"):
            return (layer.in_features,)
    raise Broken(f"found {what} that does not say what it takes, expected {expected}: pass one")
