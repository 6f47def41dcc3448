"""`check_prior`, `check_likelihood`, `check_guide`: the whole contract, clause by clause."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from ..base import Part, loose_tensor, path_of, root
from ..errors import InputError, nearest, written_at
from . import clauses, densities, draws
from .setting import Broken, ContractError, Subject, around_guide, around_likelihood, around_prior, expect

Clause = Callable[[Subject], str | None]
"""Raises what is broken; returns why it could not be looked at, or None."""

CLAUSES: dict[str, Clause] = {
    "shapes": clauses.shapes,
    "labels": clauses.labels,
    "support": clauses.support,
    "repeats": clauses.repeats,
    "alone": draws.alone,
    "independent": draws.independent,
    "integrates": densities.integrates,
    "samples": densities.samples,
    "mean": densities.mean,
    "gradients": clauses.gradients,
    "state": clauses.state,
    "copies": clauses.copies,
    "reads": clauses.reads,
    "fast": clauses.fast,
    "derivatives": draws.derivatives,
    "objectives": clauses.objectives,
    "words": clauses.words,
}
"""Every clause by its name; its docstring says what it asks."""


@dataclass
class Report:
    """What was checked of a part: each clause, with why it was not looked at where it was not."""

    part: str
    clauses: dict[str, str] = field(default_factory=dict)
    """"ok", or why not."""

    @property
    def skipped(self) -> dict[str, str]:
        """The clauses that were not looked at, and why."""
        return {name: found for name, found in self.clauses.items() if found != "ok"}

    def __str__(self) -> str:
        return "\n".join([self.part, *(f"  {name:<12}{found}" for name, found in self.clauses.items())])


def check_prior(
    prior: Part,
    *,
    guide: Part | None = None,
    likelihood: Part | None = None,
    y: Tensor | None = None,
    skip: Collection[str] = (),
    seed: int = 0,
) -> Report:
    """Check that a prior keeps the contract of its family, in a small model; the prior itself is left as it is.

    Args:
        prior: made, of the sizes that it is to be checked at; a latent of 1 or 2 is integrated exactly.
        guide: what it meets; by default one of the registry whose draws lie in the same place.
        likelihood: what it meets; by default Bernoulli.
        y: labels (N,) to choose from, where its `condition` is of a kind of its own.
        skip: names of clauses to leave out; `CLAUSES` lists them.
        seed: of all draws; the generator is put back.

    Raises:
        ContractError: one line: the prior, the clause, what was found, what is expected, what to do.

    >>> import pvae
    >>> print(check_prior(pvae.Normal(2), skip=("fast",)).skipped)
    {'fast': 'left out'}
    """
    made = copy.deepcopy(prior)
    return _check("prior", made, y, skip, seed, lambda: around_prior(made, *copy.deepcopy((guide, likelihood))))


def check_likelihood(
    likelihood: Part,
    *,
    latent: int | None = None,
    y: Tensor | None = None,
    skip: Collection[str] = (),
    seed: int = 0,
) -> Report:
    """Check that a likelihood keeps the contract of its family, in a small model; it is left as it is.

    Args:
        likelihood: made, of the sizes that it is to be checked at; small ones take less time.
        latent: size of the latent; by default what its decoder takes.
        y: labels (N,) to choose from, where its decoder's condition is of a kind of its own.
        skip: names of clauses to leave out; `CLAUSES` lists them.
        seed: of all draws; the generator is put back.

    Raises:
        ContractError: one line: the likelihood, the clause, what was found, what is expected, what to do.

    >>> import pvae
    >>> found = check_likelihood(pvae.Bernoulli(pvae.MLPDecoder(2, (3,), [8]), (3,)), skip=("fast",))
    """
    made = copy.deepcopy(likelihood)
    return _check("likelihood", made, y, skip, seed, lambda: around_likelihood(made, latent))


def check_guide(
    guide: Part,
    *,
    prior: Part | None = None,
    likelihood: Part | None = None,
    y: Tensor | None = None,
    skip: Collection[str] = (),
    seed: int = 0,
) -> Report:
    """Check that a guide keeps the contract of its family, in a small model; it is left as it is.

    Args:
        guide: made, of the sizes that it is to be checked at; a latent of 1 or 2 is integrated exactly.
        prior: what it meets; by default one of the registry whose draws lie in the same place.
        likelihood: what it meets; by default Bernoulli.
        y: labels (N,) to choose from, where its encoder's condition is of a kind of its own.
        skip: names of clauses to leave out; `CLAUSES` lists them.
        seed: of all draws; the generator is put back.

    Raises:
        ContractError: one line: the guide, the clause, what was found, what is expected, what to do.

    >>> import pvae
    >>> found = check_guide(pvae.MeanField(pvae.MLPEncoder((3,), 4, [8]), 2), skip=("fast",))
    """
    made = copy.deepcopy(guide)
    return _check("guide", made, y, skip, seed, lambda: around_guide(made, *copy.deepcopy((prior, likelihood))))


def _check(
    family: str, part: Part, y: Tensor | None, skip: Collection[str], seed: int, around: Callable[[], Any]
) -> Report:
    return looked(f"{family} {path_of(type(part))}", lambda: _subject(family, part, y, around), CLAUSES, skip, seed)


def looked(
    what: str, made: Callable[[], Any], every: Mapping[str, Callable[..., str | None]], skip: Collection[str], seed: int
) -> Report:
    """Every clause but those to skip, each of a copy of what is made."""
    if isinstance(skip, str):
        raise InputError(f"skip: found '{skip}', expected several names, as ['{skip}']")
    for name in set(skip) - set(every):
        raise InputError(f"skip: unknown clause '{name}': {nearest(name, list(every))}")
    report = Report(what)
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = _clause(report, "model", seed, made)
        report.clauses["model"] = "ok"
        for name, clause in every.items():
            if name in skip:
                report.clauses[name] = "left out"
            else:
                report.clauses[name] = _clause(report, name, seed, lambda clause=clause: clause(subject.copy())) or "ok"
    return report


def _subject(family: str, part: Part, y: Tensor | None, around: Callable[[], Any]) -> Subject:
    expect(isinstance(part, root(family)), f"{type(part).__name__}", f"a pvae.{family.title()}", "subclass it")
    if loose := loose_tensor(part):
        raise Broken(loose)
    vae, shape = around()
    latent = vae.prior.latent
    return Subject(part, vae.eval(), latent, shape, y)


def _clause(report: Report, name: str, seed: int, look: Callable[[], Any]) -> Any:
    torch.manual_seed(seed)
    try:
        return look()
    except Broken as error:
        raise ContractError(f"{report.part}: {name}: {error}") from error
    except InputError as error:
        raise ContractError(f"{report.part}: {name}: {str(error).removeprefix(report.part + ': ')}") from error
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ContractError(f"{report.part}: {name}{written_at(error)}: {type(error).__name__}: {text}") from error
