"""One flat, frozen configuration, and its YAML.

A configuration file is the command line written down: the same names, without the dashes in front.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, Literal

from ..base import Member, lookup, members, root
from ..data.supports import has_levels, is_discrete
from ..errors import InputError, more_than, nearest
from ..networks import Activation
from .document import dump
from .values import convert

PARTS = ("prior", "likelihood", "guide")
FAMILIES = (
    *("likelihood", "prior", "guide", "encoder", "decoder", "hierarchy", "condition", "objective", "gradient"),
    "optimizer",
)


def _option(default: Any, text: str, low: float | None = None) -> Any:
    return field(default=default, metadata={"help": text, "low": low})


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on, but for where it is written.

    >>> Config(latent=2).latent
    2
    """

    data: str = _option(
        "digits",
        "a named set, a .npz, .npy or .csv file (in which a column label or y is the labels), or a folder of images",
    )
    data_dir: str | None = _option(
        None, "where named sets are read from and downloaded to (default: $PVAE_DATA or data)"
    )
    validation: float = _option(0.1, "share of the training data kept for choosing the best checkpoint", 0)
    test: float = _option(
        0.2, "share of all data kept for the final numbers, where a set has no test part of its own", 0
    )
    data_seed: int = _option(0, "of the split into parts and of the fixed binarization; apart from --seed", 0)
    binarize: Literal["auto", "dynamic", "static", "threshold", "none"] = _option(
        "auto", "how pixels become 0 or 1; auto: dynamic where the likelihood is binary, else none"
    )
    dequantize: Literal["auto", "uniform", "none"] = _option(
        "auto",
        "how stored levels 0 to 255 become numbers; uniform: (level + a draw from [0, 1)) / 256;"
        " auto: uniform where the likelihood has no density at 0 and 1, else none",
    )
    likelihood: str = _option("bernoulli", "p(x|z)")
    prior: str = _option("normal", "p(z)")
    guide: str = _option("mean_field", "q(z|x)")
    encoder: str = _option("mlp", "the guide's network")
    decoder: str = _option("mlp", "the likelihood's network")
    condition: str = _option("none", "what of the data's y the model is conditioned on")
    conditioned: Sequence[Literal["prior", "likelihood", "guide"]] = _option(
        PARTS, "which parts are conditioned; a prior that takes no labels stays as it is"
    )
    latent: int | Sequence[int] = _option(
        20, "size of the latent z; of each layer of a hierarchy, the one next to the data first", 1
    )
    hierarchy: str = _option(
        "bottom_up", "q(z|x) of several layers; from the top it wants --objective.warmup, lest layers collapse"
    )
    layer: str = _option(
        "mean_field", "p(z_l|z_(l+1)) of several layers: a name of --guide's, with its options at their defaults"
    )
    layer_hidden: Sequence[int] = _option((100,), "hidden layers of each network between stochastic layers", 1)
    layer_activation: Activation = _option("relu", "after each of them")  # noqa: RUF009
    objective: str = _option("elbo", "what is maximized")
    gradient: str = _option("reparam", "how the objective's gradient is estimated")
    particles: int = _option(1, "draws of z for each datum in training", 1)
    epochs: int | None = _option(None, "passes over the training data (default: as many as make 12,000 steps)", 1)
    batch_size: int = _option(128, "data in a step", 1)
    optimizer: str = _option("adam", "what makes steps of gradients")
    lr: float = _option(2e-3, "the learning rate")
    schedule: Literal["cooldown", "cosine", "constant"] = _option(
        "cooldown",
        "of the learning rate: straight to zero in the last fifth of the steps, a cosine to zero, or as it is",
    )
    clip_norm: float | None = _option(None, "clip the gradient, summed over the batch, to this global norm")
    seed: int = _option(0, "of the parameters, the batches and the draws in training", 0)
    start_from: str | None = _option(
        None,
        "a run, or one of its checkpoints, whose weights to begin with: those of each part (prior, likelihood, guide)"
        " that has weights of the same names and shapes; the others begin anew",
    )
    device: Literal["auto", "cpu", "cuda"] = _option("auto", "where it runs; auto: cuda where there is one")
    compile: Literal["auto", "off", "graph", "full"] = _option(
        "auto", "how steps run: eagerly, as a replayed graph, that compiled as well; auto: what is worth building"
    )
    precision: Literal["float32", "tf32", "bf16"] = _option(
        "float32", "of the networks' products in training; bounds and their sums are float32"
    )
    save_every: int | None = _option(
        None,
        "validate and write a checkpoint every so many epochs (default: a hundred times a run, or nearly twice that)",
        1,
    )
    eval_particles: Sequence[int] = _option((1, 10, 200), "every K of the final importance-weighted bounds", 1)
    eval_chunk: int | None = _option(
        None,
        "pairs of particle and datum scored at once: it bounds evaluation's memory (default: 4,096 on a CPU, 32,768 on"
        " CUDA)",
        128,
    )
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of members of their own: {"likelihood": {"scale": "shared"}}."""

    def __post_init__(self) -> None:
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None:
                more_than(0, **{flag(name): value})
        for option in fields():
            value = getattr(self, option.name)
            low = option.metadata["low"]
            values = value if isinstance(value, tuple | list) else [value]
            if low is not None and any(v is not None and not v >= low for v in values):
                raise InputError(f"{flag(option.name)}: found {value}, expected at least {low}")
        if not self.layers:
            raise InputError("--latent: found none, expected a size, or several with commas for a hierarchy")
        if len(self.layers) == 1:
            for name in ("hierarchy", "layer", "layer_hidden", "layer_activation"):
                default = type(self).__dataclass_fields__[name].default
                if getattr(self, name) != default:
                    raise InputError(
                        f"{flag(name)}: found it with one latent, expected several, as in --latent 100,50: add sizes,"
                        " or leave it out"
                    )
        self._check_condition()
        if not self.eval_particles:
            raise InputError("--eval-particles: found none, expected numbers of draws, such as 1,10,200")
        if self.dequantize == "uniform" or self.binarize not in ("auto", "none"):
            self._check_draws()

    def _check_condition(self) -> None:
        """Refuse parts to be conditioned on nothing, a condition that no part takes, and totals that are none."""
        if self.condition == "none" and tuple(self.conditioned) != PARTS:
            raise InputError("--conditioned: found it with --condition none: pass --condition label, or leave it out")
        if self.condition != "none" and not self.given:
            raise InputError(
                f"--conditioned {','.join(self.conditioned)}: found no part that takes --condition {self.condition},"
                f" as the prior '{self.prior}' does not: add likelihood or guide, or leave both options out"
            )
        if self._shares and not lookup("condition", self.condition).totals:  # type: ignore[attr-defined]
            giving = [name for name, member in members("condition").items() if member.totals]  # type: ignore[attr-defined]
            raise InputError(
                f"--likelihood.library: found it with --condition {self.condition}, expected --condition"
                f" {' or '.join(giving)}, which takes the total count of each datum: pass that, or leave"
                " --likelihood.library out"
            )

    def _check_draws(self) -> None:
        """Refuse dequantization of what is binarized, or is scored as it is stored."""
        if self.dequantization == "none":
            return
        if self.measure == "probability":
            raise InputError(
                f"--dequantize {self.dequantize}: found likelihood '{self.likelihood}', which scores the stored levels"
                " themselves, expected one with a density, such as gaussian: leave it out"
            )
        if self.binarization != "none":
            raise InputError(
                f"--binarize {self.binarize}: found it with --dequantize {self.dequantize} under likelihood"
                f" '{self.likelihood}', expected one of the two: pass --binarize none"
                + ("" if self._dequantized else " or --dequantize none")
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The size of each stochastic layer, the one next to the data first."""
        return tuple(self.latent) if isinstance(self.latent, Sequence) else (self.latent,)

    @property
    def given(self) -> tuple[str, ...]:
        """The parts that are conditioned: of those asked for, the prior only where it takes what that is."""
        if self.condition == "none":
            return ()
        takes = "condition" in inspect.signature(lookup("prior", self.prior)).parameters
        return tuple(name for name in self.conditioned if name != "prior" or takes)

    @property
    def of_model(self) -> bool:
        """Whether bounds are on log p(x|y): the prior or the likelihood takes y, not the guide alone."""
        return self._shares or bool(set(self.given) - {"guide"})

    @property
    def _shares(self) -> bool:
        """Whether the likelihood's means are shares of totals."""
        return self.options.get("likelihood", {}).get("library", False) is True

    @property
    def bounded(self) -> bool:
        """Whether what is measured is a bound on log p(x): with a guide that has a density it is."""
        return lookup("guide", self.guide).bound  # type: ignore[attr-defined]

    @property
    def support(self) -> str:
        """What the likelihood scores, as `data.check` names it."""
        return lookup("likelihood", self.likelihood).support_for(**all_options(self, "likelihood"))  # type: ignore[attr-defined]

    @property
    def measure(self) -> Literal["probability", "density"]:
        """What the likelihood's numbers are."""
        return "probability" if is_discrete(self.support) else "density"

    @property
    def level_volume(self) -> float | None:
        """The log of the volume of a level, nats a dimension: what makes of the bound one on the levels' probability.

        0 where levels themselves are scored; None where levels are neither scored nor dequantized.
        """
        if self.dequantization == "uniform":
            return -log(256)
        return 0.0 if has_levels(self.support) else None

    @property
    def binarization(self) -> str:
        """The binarization that `auto` stands for."""
        if self.binarize != "auto":
            return self.binarize
        return "dynamic" if self.support == "binary" else "none"

    @property
    def dequantization(self) -> str:
        """The dequantization that `auto` stands for."""
        return self.dequantize if self.dequantize != "auto" else "uniform" if self._dequantized else "none"

    @property
    def _dequantized(self) -> bool:
        """Whether stored levels have no density under the likelihood."""
        return lookup("likelihood", self.likelihood).dequantization != "none"  # type: ignore[attr-defined]

    def epochs_for(self, n: int) -> int:
        """How many passes over n data: what was asked for, or enough for 12,000 steps."""
        return self.epochs or -(-12_000 // -(-n // self.batch_size))

    def steps_for(self, n: int) -> int:
        """How many steps those passes over n data take."""
        return self.epochs_for(n) * -(-n // self.batch_size)

    def save_every_for(self, epochs: int) -> int:
        """After how many epochs a checkpoint is written: what was asked for, or a hundredth of all, rounded down."""
        return self.save_every or max(1, epochs // 100)


def fields() -> list[dataclasses.Field]:
    """The configuration's own fields, without the members' options."""
    return [f for f in dataclasses.fields(Config) if f.name != "options"]


def flag(name: str) -> str:
    """How a field is written on the command line."""
    return "--" + name.replace("_", "-")


def member_options(family: str, member: type[Member]) -> dict[str, inspect.Parameter]:
    """The options that a member has: its constructor's arguments, but for those that a program gives all its family.

    >>> from pvae import Gaussian
    >>> list(member_options("likelihood", Gaussian))
    ['scale', 'min_scale']
    """
    shared = inspect.signature(root(family)).parameters.keys() - set(getattr(root(family), "options", ()))
    own = inspect.signature(member, eval_str=True).parameters
    return {
        name: p for name, p in own.items() if name not in shared and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def member_help(member: type[Member], option: str) -> str:
    """What a member's docstring says of one of its arguments, or else that of what it is made from."""
    for described in member.__mro__:
        found = re.search(rf"^    {option}: (.*(?:\n        .*)*)", inspect.getdoc(described) or "", re.MULTILINE)
        if found:
            return " ".join(found[1].split())
    return ""


def from_flat(values: Mapping[str, Any]) -> Config:
    """A configuration from flat names ("batch-size", "likelihood.scale") to values, which may be text.

    Raises:
        InputError: an unknown name (with the nearest known one), or a value that does not fit its type.
    """
    known = {f.name.replace("_", "-"): f for f in fields()}
    types_of = typing.get_type_hints(Config)
    own: dict[str, Any] = {}
    for name, value in values.items():
        if "." not in name:
            if name not in known:
                raise InputError(f"--{name}: unknown option: {nearest(name, list(known))}")
            own[known[name].name] = convert(value, types_of[known[name].name], f"--{name}")
    options: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        family, _, option = name.partition(".")
        if "." in name:
            if family not in FAMILIES:
                raise InputError(f"--{name}: unknown option: {nearest(family, list(FAMILIES))}")
            chosen = own.get(family, known[family].default)
            options.setdefault(family, {})[option] = _own_option(family, chosen, option, value)
    for family in FAMILIES:
        name = own.get(family, known[family].default)
        for option, p in member_options(family, lookup(family, name)).items():
            if p.default is p.empty and option not in options.get(family, {}):
                raise InputError(f"--{family}.{option}: found none, but {family} '{name}' needs it: give it a value")
    return Config(**own, options=options)


def to_flat(config: Config) -> dict[str, Any]:
    """The inverse of `from_flat`."""
    flat: dict[str, Any] = {}
    for option in fields():
        value = getattr(config, option.name)
        flat[option.name.replace("_", "-")] = list(value) if isinstance(value, tuple) else value
        for own, given in config.options.get(option.name, {}).items():
            flat[f"{option.name}.{own}"] = list(given) if isinstance(given, tuple) else given
    return flat


def lasting(config: Config) -> dict[str, Any]:
    """What of a configuration, flat, stays as it is from the first step of a run to its last number.

    The rest may change: where a run and its data lie.
    """
    free = {"data", "data-dir", "start-from", "device", "eval-chunk", "eval-particles"}
    return {name: value for name, value in to_flat(config).items() if name not in free}


def changed(config: Config, before: Mapping[str, Any] | None) -> str:
    """The first thing that `lasting` says otherwise than before, and what that was; nothing where all is as it was.

    A field that was not there before, as it is new in the program, has not changed.
    """
    now = lasting(config)
    for name in {**now, **before} if before else ():
        known = name in before or "." in name
        if known and now.get(name) != before.get(name):
            return f"{name} {now.get(name, 'not set')}, which was {before.get(name, 'not set')}"
    return ""


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `read` reads."""
    return dump(to_flat(config))


def _own_option(family: str, name: str, option: str, value: Any) -> Any:
    known = member_options(family, lookup(family, name))
    if option not in known:
        hint = _whose(family, option, list(known))
        raise InputError(f"--{family}.{option}: {family} '{name}' has no such option{hint}")
    kind = known[option].annotation
    if kind is inspect.Parameter.empty:  # what it looks like
        kind = int | float | bool | None | str
    return convert(value, kind, f"--{family}.{option}")


def _whose(family: str, option: str, known: list[str]) -> str:
    """What to say of an option that a member does not have: whose it is, or which is like it."""
    owners: dict[str, list[str]] = {}
    for name, member in members(family).items():
        for own in member_options(family, member):
            owners.setdefault(own, []).append(name)
    if option in owners:
        one = "it" if len(owners[option]) == 1 else "one of them"
        return f"; it belongs to {', '.join(owners[option])}: choose {one} with --{family}, or leave the option out"
    mine = nearest(option, known) if known else "it has no options of its own"
    close = difflib.get_close_matches(option, owners, n=1)
    if not close or close[0] in known:
        return f": {mine}"
    return f"; did you mean --{family}.{close[0]}, of {', '.join(owners[close[0]])}? {mine}"


def all_options(config: Config, family: str) -> dict[str, Any]:
    """A member's options, those that were not given at their defaults."""
    return defaults(lookup(family, getattr(config, family))) | dict(config.options.get(family, {}))


def defaults(member: type[Member]) -> dict[str, Any]:
    """A member's options at their defaults."""
    return {name: p.default for name, p in member_options(member.family, member).items()}
