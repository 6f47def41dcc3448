"""Builds what a configuration describes: the model, its sizes from the data, the objective and the optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from . import unset
from .base import Member, Part, blame, check_call, lookup, path_of
from .conditions import Condition, ConditionedDecoder, ConditionedEncoder
from .config import FAMILIES, PARTS, Config, all_options, defaults, fields
from .data import Dataset, Split, pixels
from .errors import LIBRARIES, InputError, fails
from .hierarchy import Hierarchy
from .hierarchy.inference import Bricks
from .likelihoods import decoded_shape
from .networks import Encoder, Log1pEncoder, MLPEncoder
from .objectives import Objective
from .optimizers import Optimizer
from .vae import VAE, Autoencoder

SEEN, NUMBERS, LEAST = 2**16, 2**26, 1024
"""Training data that parts start from at most, and numbers in them, with no fewer data than the last."""


def model(config: Config, dataset: Dataset) -> Autoencoder:
    """The model that a configuration describes, its sizes and starting values from the data.

    Where the data are counts, which may be of any size, the encoder takes log(1 + x).

    Draws from torch's generator: seed it before.
    """
    shape, options = dataset.shape, config.options
    part = {family: lookup(family, getattr(config, family)) for family in FAMILIES}
    given = {name: condition(config, dataset) if name in config.conditioned else None for name in PARTS}
    first, top = config.layers[0], config.layers[-1]

    size = given["likelihood"].size if given["likelihood"] else 0
    outputs = part["likelihood"].outputs_for(**all_options(config, "likelihood"))
    decoder = _make(part, "decoder", options, first + size, decoded_shape(shape, outputs))
    if given["likelihood"]:
        decoder = ConditionedDecoder(decoder, given["likelihood"])

    if given["guide"] and "context" not in inspect.signature(part["encoder"]).parameters:
        raise InputError(f"--encoder {config.encoder}: it takes no context, expected __init__(..., context=0): add it")

    def encoder(outputs: int) -> Encoder:
        make = partial(_make, part, "encoder", options, shape, outputs)
        return _conditioned(make, given["guide"], counts=config.support == "counts")

    outputs = part["guide"].outputs_for(first, **all_options(config, "guide"))
    guide = partial(_make, part, "guide", options)
    only = guide(encoder(outputs * first), first) if len(config.layers) == 1 else None
    prior = _make(
        part, "prior", options, top, **_condition_of_prior(part["prior"], given["prior"], any(given.values()))
    )
    likelihood = _make(part, "likelihood", options, decoder, shape)
    if only is not None:
        made: Autoencoder = VAE(prior, likelihood, only)
    else:
        made = _hierarchy(config, part, given, prior, likelihood, encoder)
    try:
        parts = [getattr(dataset, name).x for name in dataset.sizes]
        likelihood.check_largest(max(pixels(x.max()).item() for x in parts if len(x)))
        made.initialize(*_few(dataset.train))
    except InputError as error:
        option = str(error).partition(".")[0] in FAMILIES
        raise InputError(f"--{error}" if option else str(error)) from error
    if isinstance(made, VAE):
        _tried(made, config, pixels(dataset.train.x[:1]), None if dataset.train.y is None else dataset.train.y[:1])
    return made


def check_drawn(made: Autoencoder, config: Config, dataset: Dataset) -> None:
    """Refuse random numbers in buffers that no checkpoint would have: each time a run is read they would be others.

    What a call fills is not meant: it is the same of the same weights and data; nor is memory that nothing has set.

    Raises:
        InputError: naming the module and its buffer.
    """
    if not _unsaved(made):
        return
    with torch.random.fork_rng(devices=[]):
        with unset.marked():
            other = model(config, dataset)
        other.load_state_dict(made.state_dict())
        for one in (made, other):
            torch.manual_seed(0)
            with torch.no_grad(), suppress(Exception):  # of which the first step says more
                one.eval().log_weights(
                    pixels(dataset.train.x[:2]), dataset.train.y if dataset.train.y is None else dataset.train.y[:2]
                )
            one.train()
    found, again = _unsaved(made), _unsaved(other)
    for where, (own, buffer) in found.items():
        if where in again and not unset.same(buffer, again[where][1]):
            raise InputError(
                f"{path_of(own)}: found random numbers in the buffer '{where}', which no checkpoint would have,"
                " expected it to be saved: leave persistent=False out"
            )


def _unsaved(made: Autoencoder) -> dict[str, tuple[type[nn.Module], Tensor]]:
    """Buffers that are not saved, of classes that are not a library's and of what these hold."""
    return {
        f"{where}.{name}": (type(own), buffer)
        for prefix, own in made.named_modules()
        if type(own).__module__.partition(".")[0] not in LIBRARIES
        for where, module in own.named_modules(prefix=prefix)
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    }


def _few(train: Split) -> tuple[Tensor, Tensor | None]:
    """Data that parts take what they start from out of: as floats they need much more memory than what is stored."""
    most = min(SEEN, max(LEAST, NUMBERS // train.x[0].numel()))
    few = slice(None, None, -(-len(train.x) // most))
    return pixels(train.x[few]), None if train.y is None else train.y[few]


def _tried(made: VAE, config: Config, x: Tensor, y: Tensor | None) -> None:
    """Let parts of somebody's own draw and score once: an error within a distribution has no line of their file.

    What is refused with a `ValueError` is told of at the first step, by its site.
    """
    part: dict[str, Callable[[], Any]] = {
        "guide": lambda: made.posterior(x, y),
        "prior": lambda: made.prior(y),
        "likelihood": lambda: made.likelihood(made.posterior(x, y).sample(), y),
    }
    training = [module for module in made.modules() if module.training]
    made.eval()
    if config.condition == "none" and y is not None:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            _check_unlabelled(made, config, x, y)
    for family in (family for family in part if ":" in getattr(config, family)):
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                p = part[family]()
                p.log_prob(p.sample())
        except (ValueError, NotImplementedError):
            continue
        except Exception as error:
            given = _noted(error, family, config.options)
            if blame(error):
                raise
            name = getattr(config, family)
            code = lookup(family, name).forward.__code__  # type: ignore[attr-defined]
            raise InputError(
                f"--{family} {name}: what forward at {code.co_filename}:{code.co_firstlineno} returns cannot be drawn"
                f" and scored: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}{given}"
            ) from error
    for module in training:
        module.training = True


def _check_unlabelled(made: VAE, config: Config, x: Tensor, y: Tensor) -> None:
    """Refuse a prior or a likelihood of somebody's own that takes labels which the configuration knows nothing of."""
    takes: dict[str, Callable[[Any], Any]] = {
        "prior": lambda labels: made.prior.forward(labels),
        "likelihood": lambda labels: made.likelihood.forward(made.posterior(x, y).sample(), labels),
    }
    for family, forward in takes.items():
        own = ":" in getattr(config, family)
        if not own or fails(partial(forward, y)) or not fails(partial(forward, _Labels())):
            continue
        kind = "covariates" if y.is_floating_point() else "label"
        raise InputError(
            f"--{family} {getattr(config, family)}: found that it takes labels, and then bounds are on log p(x given"
            f" y): pass --condition {kind}, which says so, or leave y alone"
        )


class _Labels:
    """With which nothing can be done: who does not look at them does not miss them."""


def _hierarchy(
    config: Config,
    part: dict[str, Any],
    given: dict[str, Any],
    prior: Part,
    likelihood: Part,
    encoder: Callable[[int], nn.Module],
) -> Hierarchy:
    """The model of several layers, on the network at the data."""

    def network(condition: Condition | None, inputs: int, outputs: int) -> Encoder:
        make = partial(MLPEncoder, (inputs,), outputs, config.layer_hidden, config.layer_activation)
        return _conditioned(make, condition)

    def layer(size: int, above: int) -> Part:
        outputs = made.outputs_for(size, **defaults(made)) * size
        try:
            return made(network(given["prior"], above, outputs), size)
        except InputError as error:
            raise InputError(f"--layer {config.layer}: {error}") from error

    made: Any = lookup("guide", config.layer)
    layers = [layer(size, above) for size, above in pairwise(config.layers)]
    bricks = Bricks(
        encoder=encoder,
        network=partial(network, given["guide"]),
        outputs=lambda size: part["guide"].outputs_for(size, **all_options(config, "guide")),
        guide=partial(_make, part, "guide", config.options),
        width=(*config.layers, *config.layer_hidden)[-1],
    )
    return Hierarchy(prior, layers, likelihood, part["hierarchy"].of(config.layers, bricks))


def _conditioned(make: Callable[..., Encoder], given: Condition | None, counts: bool = False) -> Encoder:
    """An encoder that sees what the model is conditioned on, if it is; of counts it sees the logarithm."""
    made = make(context=given.size) if given else make()
    made = Log1pEncoder(made) if counts else made
    return ConditionedEncoder(made, given) if given else made


def condition(config: Config, dataset: Dataset) -> Condition | None:
    """What the model is conditioned on, sized by the labels of all parts of the data; None where it is not.

    Raises:
        InputError: the data have no labels, or not of that kind.
    """
    parts = [getattr(dataset, name).y for name in dataset.sizes]
    y = None if any(part is None for part in parts) else torch.cat(parts)
    with told_of_condition(config, dataset):
        made = lookup("condition", config.condition).of(y, **config.options.get("condition", {}))  # type: ignore[attr-defined]
    return made if made.size else None


@contextmanager
def told_of_condition(config: Config, dataset: Dataset) -> Iterator[None]:
    """In what a condition refuses of data, name the option and the data in place of its class."""
    try:
        yield
    except InputError as error:
        raise InputError(f"--condition {config.condition}: {dataset.name}: {str(error).partition(': ')[2]}") from error


def _condition_of_prior(prior: type[Member], given: Condition | None, conditioned: bool) -> dict[str, Condition]:
    taken = inspect.signature(prior).parameters.get("condition")
    if taken is None or (given is None and taken.default is not taken.empty):
        return {}
    if given is None:
        do = "name prior in --conditioned" if conditioned else "pass --condition label"
        raise InputError(f"--prior {prior.name}: found no labels to depend on: {do}")
    return {"condition": given}


def objective(config: Config) -> Objective:
    """The objective that a configuration describes."""
    part = {family: lookup(family, getattr(config, family)) for family in ("objective", "gradient")}
    gradient = _make(part, "gradient", config.options)
    return _make(part, "objective", config.options, config.particles, gradient=gradient)


def optimizer(config: Config) -> Optimizer:
    """The optimizer that a configuration describes, tried on one parameter."""
    made = _make({"optimizer": lookup("optimizer", config.optimizer)}, "optimizer", config.options)
    try:
        found = made([torch.zeros(1, requires_grad=True)], lr=config.lr)
    except (TypeError, ValueError, NotImplementedError) as error:
        found = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if not isinstance(found, torch.optim.Optimizer):
        raise InputError(f"--optimizer {config.optimizer}: found {found!s:.200}, expected one of torch's optimizers")
    return made


def _make(part: dict[str, Any], family: str, options: Mapping[str, Mapping[str, Any]], *args: Any, **more: Any) -> Any:
    given = {**options.get(family, {}), **more}
    try:
        return part[family](*args, **given)
    except InputError as error:
        about = str(error).partition(":")[0]
        named = str(error).startswith((f"{part[family].name}: ", f"{path_of(part[family])}: "))
        where = f"--{family} " if named else f"--{family}."
        where = "--" if about in (f.name for f in fields()) else where
        raise InputError(f"{where}{error}") from error
    except Exception as error:
        if isinstance(error, TypeError):
            check_call(f"--{family} {path_of(part[family])}: __init__", part[family], args, given, error)
        _noted(error, family, options)
        raise


def _noted(error: Exception, family: str, options: Mapping[str, Mapping[str, Any]]) -> str:
    """Add to an error the options that a part was made with, if any were given; and return that."""
    given = ", ".join(f"--{family}.{name} {value}" for name, value in options.get(family, {}).items())
    if not given:
        return ""
    error.add_note(f": look at {given}")
    return error.__notes__[-1]
