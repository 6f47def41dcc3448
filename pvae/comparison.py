"""Models measured on the same data: bounds at every K, how far they can be trusted, and differences datum by datum.

From programs and data to numbers, each with its standard error; `pvae.tables` writes them down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .ais import Annealed, Annealing, ais
from .diagnostics import FEWEST, NoInverse, Paired, khat_threshold, mutual_information, paired
from .errors import InputError, nearest, whole_number
from .evaluate import Evaluation, check_numbers, evaluate
from .gap import Gap, check_families, gap
from .means import Estimate, estimate, quantile, share
from .programs import Density, Program, check_named

QUANTILES = (10, 50, 90)
"""Of k-hat over the data, in percent."""


class Data(NamedTuple):
    """Data (N, *shape), as the likelihood scores them, and their labels (N,) or None."""

    x: Tensor
    y: Tensor | None = None

    @property
    def first(self) -> tuple[Tensor, ...]:
        """The first of them, as programs take it."""
        return tuple(part[:1] for part in self if part is not None)

    def chosen(self, rows: Tensor) -> Data:
        """Those of some rows."""
        rows = rows.to(self.x.device)
        return Data(self.x[rows], None if self.y is None else self.y[rows])


@dataclass(frozen=True)
class Plan:
    """What to measure, and how; the same for every model.

    Args:
        particles: every K of the importance-weighted bounds.
        draws: for each datum, shared by all K: at least the largest K, the default.
        train_particles: every K of the bounds of training data; by default those up to a tenth of the draws, or else
            the smallest, so that as many training data as test data cost little.
        information: data whose draws the mutual information is from, at random; 0 leaves it out.
        annealing: how annealed importance sampling estimates log p(x), if it is to.
        start: where that begins.
        families: of guides fitted to each datum alone, which split the gap; needs `annealing`, or the exact values.
        subset: how many test data these two are for, chosen by the seed.
        steps: of the fit of each such guide.
        plate: the plate of data, needed only where several hold every site.
        seed: of draws and choices.
        chunk: how many pairs of a particle and a datum are scored at once; as `evaluate`'s.

    Raises:
        InputError: no K, or one below 1 or named twice; fewer draws than the largest K; an unknown family; other
            numbers out of range.

    >>> Plan(particles=(1, 5, 50, 500)).of_training
    (1, 5, 50)
    """

    particles: Sequence[int] = (1, 10, 100)
    draws: int | None = None
    train_particles: Sequence[int] | None = None
    information: int = 1000
    annealing: Annealing | None = None
    start: Literal["prior", "guide"] = "prior"
    families: Sequence[str] = ()
    subset: int = 100
    steps: int = 1000
    plate: str = ""
    seed: int = 0
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name in ("particles", "train_particles"):
            ks = getattr(self, name)
            if (ks is not None or name == "particles") and len(check_numbers(name, ks)) < len(ks):
                raise InputError(f"{name}: found {list(ks)}, expected different numbers of draws")
        if self.total < max(self.particles):
            raise InputError(f"draws: found {self.total}, expected at least the largest K, {max(self.particles)}")
        check_named(self.plate)
        check_families(self.families)
        if self.start not in ("prior", "guide"):
            raise InputError(f"start: found '{self.start}', expected prior or guide")
        whole_number(0, information=self.information, seed=self.seed)
        whole_number(1, subset=self.subset, steps=self.steps, draws=self.total)

    @property
    def total(self) -> int:
        """Draws for each datum."""
        return max(self.particles) if self.draws is None else self.draws

    @property
    def of_training(self) -> tuple[int, ...]:
        """Every K of the training data's bounds."""
        if self.train_particles is not None:
            return tuple(self.train_particles)
        return tuple(k for k in self.particles if 10 * k <= self.total) or (min(self.particles),)


@dataclass(frozen=True)
class Measured:
    """What was found of one model."""

    test: Evaluation
    train: Evaluation | None = None
    information: Tensor | None = None
    """(M,): by draw, the mutual information of z and which datum; at most log N"""
    left_out: str = ""
    """why there is none, where it was asked for"""
    exact: Tensor | None = None
    """(N,): log p(x), where it is known"""
    annealed: Annealed | None = None
    """of the data that were chosen"""
    gap: Gap | None = None
    """of these too"""


@dataclass(frozen=True)
class Comparison:
    """What was found of every model, by name; the first is what the others are held against."""

    models: dict[str, Measured]
    plan: Plan
    size: int
    """N: how many test data"""
    chosen: Tensor = field(default_factory=lambda: torch.arange(0))
    """(C,): the test data that were annealed"""

    def estimates(self, name: str) -> dict[str, dict[str, Estimate]]:
        """The numbers of a model by part and quantity: {"test": {"elbo": ...}, "train": ..., "ais": ...}.

        Parts are test, train, difference (train less test), exact, ais and gap, those that were measured.
        """
        found = self.models[name]
        parts = {"test": _evaluation(found.test), "train": {}, "difference": {}, "exact": {}, "ais": {}, "gap": {}}
        parts["test"] |= {f"rate.{site}": estimate(layer.rate) for site, layer in found.test.layers.items()}
        if found.information is not None:
            parts["test"]["information"] = estimate(found.information)
        if found.test.khat is not None:
            parts["test"] |= _khat(found.test.khat, found.test.draws)
        if found.train is not None:
            parts["train"] = _evaluation(found.train)
            del parts["train"]["ess"]  # of fewer draws: not to be put beside the test data's
            parts["difference"] = _independent(parts["train"], parts["test"])
        if found.exact is not None:
            parts["exact"] = _log_p(found.exact, found.test)
        if found.annealed is not None:
            parts["ais"] = _log_p(found.annealed.log_p, found.test, self.chosen)
            parts["ais"]["ess"] = estimate(found.annealed.ess)
            if not found.annealed.acceptance.isnan().all():  # of one temperature there are no transitions
                parts["ais"]["acceptance"] = estimate(found.annealed.acceptance)
        if found.gap is not None:
            parts["gap"] = {key: estimate(value) for key, (value, _) in found.gap.columns().items()}
        return {part: values for part, values in parts.items() if values}

    def differences(self) -> dict[tuple[str, str], dict[str, Paired]]:
        """Of each two models (a, b), the later less the earlier, on the same data: by quantity, elbo and iw.K.

        A quantity that is infinite for some datum is left out.
        """
        values = {name: found.test.columns() for name, found in self.models.items()}
        pairs = [(a, b) for b, a in combinations(values, 2)]
        return {
            (a, b): {
                key: paired(values[a][key], values[b][key])
                for key in values[a]
                if is_bound(key) and bool((values[a][key].isfinite() & values[b][key].isfinite()).all())
            }
            for a, b in pairs
        }


def compare(
    programs: Mapping[str, tuple[Program, Program]],
    test: Data | Mapping[str, Data],
    train: Data | Mapping[str, Data] | None = None,
    plan: Plan | None = None,
    *,
    exact: Mapping[str, Tensor] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Measure models and their guides on the same data.

    Everything but annealing is from one set of draws for each model, a block of data at a time: no array is as large
    as draws times data.

    Args:
        programs: (model, guide) by name: p(x, z) and q(z|x), Pyro programs of x, or of (x, y) if there are labels.
        test: the data; by name of the model where models are conditioned on different labels of the same x.
        train: those that the models were fitted on, or some of them, or None; as `test`.
        plan: what to measure; `Plan()` if not given.
        exact: log p(x) (N,) of the models where it is known, by name.
        progress: called with what is being done, how many are done, and of how many.

    Raises:
        InputError: no model; data that are not there for each model, or differ in more than labels; as `evaluate`,
            `mutual_information`, `ais` and `gap` do, with the model's name.

    >>> from pvae.exact import LinearVAE
    >>> vae, x = LinearVAE(4, 2), torch.randn(50, 4)
    >>> known = {"linear": vae.exact().log_prob(x)}
    >>> found = compare({"linear": (vae.model, vae.guide)}, Data(x), plan=Plan(particles=(1, 100)), exact=known)
    >>> found.estimates("linear")["exact"]["log_p - elbo"].mean > 0
    True
    """
    plan, exact = plan or Plan(), exact or {}
    if not programs:
        raise InputError("compare: found no model, expected one at least")
    if unknown := [name for name in exact if name not in programs]:
        raise InputError(f"exact: unknown '{unknown[0]}': {nearest(unknown[0], list(programs))}")
    if plan.families and not plan.annealing and (lacking := [name for name in programs if name not in exact]):
        raise InputError(
            f"{lacking[0]}: families: found neither annealing nor exact values, expected one: they give log p(x)"
        )
    tests = _of_each("test", test, list(programs))
    trains = {} if train is None else _of_each("train", train, list(programs))
    size = len(next(iter(tests.values())).x)
    chosen = choose(size, plan.subset, plan.seed) if plan.annealing or plan.families else torch.arange(0)
    found = {}
    for name, (model, guide) in programs.items():  # before the work begins
        with _of(name):
            if chosen.numel():
                started = plan.families or plan.start == "guide"
                Density(model, tests[name].first, guide=guide if started else None, plate=plan.plate)
    for name, pair in programs.items():
        with _of(name):
            data = tests[name], trains.get(name)
            found[name] = _measure(pair, *data, chosen, plan, exact.get(name), _named(name, progress))
    return Comparison(found, plan, size, chosen)


def _of_each(what: str, data: Data | Mapping[str, Data], names: Sequence[str]) -> dict[str, Data]:
    """The data of each model, checked to be the same but for their labels."""
    if isinstance(data, Data):
        return dict.fromkeys(names, data)
    if not isinstance(data, Mapping):
        raise InputError(f"{what}: found {type(data).__name__}, expected pvae.comparison.Data(x), or some by model")
    if lacking := [name for name in names if name not in data]:
        raise InputError(f"{what}: found no data of '{lacking[0]}', expected those of each model, or one Data for all")
    first, *rest = names
    for name in rest:
        x, other = data[first].x, data[name].x
        if x is not other and not (x.shape == other.shape and torch.equal(x, other)):
            raise InputError(
                f"{what}: found other x of '{name}' than of '{first}', expected the same: y alone may differ"
            )
    return {name: data[name] for name in names}


@contextmanager
def _of(name: str) -> Iterator[None]:
    """Say of which model an error is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def choose(n: int, count: int, seed: int) -> Tensor:
    """Rows of n, in order, at most `count`, chosen at random: (min(n, count),).

    >>> choose(5, 2, seed=0), choose(3, 9, seed=0)
    (tensor([0, 4]), tensor([0, 1, 2]))
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def is_bound(quantity: str) -> bool:
    """Whether a quantity is a bound on log p(x)."""
    return quantity == "elbo" or quantity.startswith("iw.")


def _named(name: str, progress: Callable[[str, int, int], None] | None) -> Callable[[str], Callable[[int, int], None]]:
    def start(what: str) -> Callable[[int, int], None]:
        return lambda done, total: None if progress is None else progress(f"{name}, {what}", done, total)

    return start


def _measure(
    programs: tuple[Program, Program],
    test: Data,
    train: Data | None,
    chosen: Tensor,
    plan: Plan,
    exact: Tensor | None,
    progress: Callable[[str], Callable[[int, int], None]],
) -> Measured:
    known = _checked(exact, len(test.x))
    common = {"seed": plan.seed, "plate": plan.plate}
    bounds = {**common, "chunk": plan.chunk}
    own = {"particles": plan.particles, "draws": plan.draws, "khat": plan.total >= FEWEST}
    of_test = evaluate(*programs, *test, progress=progress("test data"), **own, **bounds)
    of_train = None
    if train is not None:
        of_train = evaluate(*programs, *train, particles=plan.of_training, progress=progress("training data"), **bounds)
    information, left_out = (None, "")
    if plan.information:
        given = {"progress": progress("mutual information"), **common}
        information, left_out = _information(programs, test, plan, given)
    model, guide = programs
    few, annealed = test.chosen(chosen), None
    if plan.annealing is not None:
        start = guide if plan.start == "guide" else None
        given = {"annealing": plan.annealing, "progress": progress("annealing, steps"), **common}
        annealed = ais(model, *few, guide=start, **given)
    found = Measured(of_test, of_train, information, left_out, known, annealed)
    if not plan.families:
        return found
    log_p = annealed if exact is None else exact[chosen.to(exact.device)]
    given = {"families": plan.families, "steps": plan.steps, "progress": progress("guides, steps"), **common}
    split, rows = gap(*programs, *few, log_p=log_p, **given), chosen.cpu()
    # the ELBO that is reported, not one of other draws beside it
    split = replace(split, elbo=of_test.elbo[rows], se={**split.se, "elbo": of_test.se["elbo"][rows]})
    return replace(found, gap=split)


def _information(
    programs: tuple[Program, Program], test: Data, plan: Plan, given: dict[str, Any]
) -> tuple[Tensor | None, str]:
    """The mutual information by draw, or why there is none."""
    model, guide = programs
    try:
        return mutual_information(guide, *test, model=model, samples=plan.information, **given), ""
    except NoInverse as error:
        return None, str(error)


def _checked(exact: Tensor | None, n: int) -> Tensor | None:
    if exact is None:
        return None
    if exact.shape != (n,):
        raise InputError(f"exact: found shape {tuple(exact.shape)}, expected a value for each datum, ({n},)")
    return exact.detach().double().cpu()


def _evaluation(found: Evaluation) -> dict[str, Estimate]:
    return {key: estimate(value) for key, value in found.columns().items()}


def _khat(value: Tensor, draws: int) -> dict[str, Estimate]:
    """Its quantiles, and the share above the threshold, of the data where it could be fitted; NaN of none."""
    fitted, none = value[value < math.inf], Estimate(math.nan, math.nan, 0)
    found = {f"khat.{percent}": quantile(fitted, percent / 100) if len(fitted) else none for percent in QUANTILES}
    return {**found, "khat.above": share(fitted > khat_threshold(draws)) if len(fitted) else none}


def _independent(a: dict[str, Estimate], b: dict[str, Estimate]) -> dict[str, Estimate]:
    """Differences a - b of bounds on different data; `n` counts the fewer."""
    return {
        key: Estimate(a[key].mean - b[key].mean, math.hypot(a[key].se, b[key].se), min(a[key].n, b[key].n))
        for key in a
        if is_bound(key) and key in b
    }


def _log_p(value: Tensor, test: Evaluation, rows: Tensor | None = None) -> dict[str, Estimate]:
    """The value, and what each bound lacks of it on the same data; of some of the data their bounds too."""
    bounds = {key: column if rows is None else column[rows] for key, column in test.columns().items() if is_bound(key)}
    there = {} if rows is None else {key: estimate(bound) for key, bound in bounds.items()}
    lacking = {f"log_p - {key}": estimate(value - bound) for key, bound in bounds.items()}
    return {"log_p": estimate(value), **there, **lacking}
