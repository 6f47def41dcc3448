"""The check of an objective: every member passes, as do those of the page; mistakes are told of, each in a line."""

import math

import pytest
import torch
from registry import EACH
from test_own_objectives import Classified, Constrained, Counted, Penalized
from test_pages import BLOCK, FOLDER

import pvae
from pvae import programs
from pvae.testing import ContractError, check_objective
from pvae.testing.objective import CLAUSES

UNSAID = {"below": "it is not said to be a lower bound: lower=True"}
OTHERS = {
    "analytic_kl": lambda: pvae.ELBO(3, analytic_kl=True),
    "warmup": lambda: pvae.ELBO(3, warmup=10, free_bits=0.1, beta=0.5),
    "one particle": lambda: pvae.IWAE(),
    "many": lambda: pvae.IWAE(100, gradient="vimco"),
    "renyi": lambda: pvae.Renyi(4, alpha=2.0),
    "miwae": lambda: pvae.MIWAE(6, groups=2),
    "piwae": lambda: pvae.PIWAE(6, groups=3, gradient="dreg"),
    "chi": lambda: pvae.Chi(4, sandwich=False),
}


@pytest.mark.parametrize(("objective", "gradient"), EACH)
def test_every_member_is_a_lower_bound(objective, gradient):
    report = check_objective(objective(3, gradient=gradient), lower=True)
    assert report.skipped == {}
    assert set(report.clauses) == {"model", *CLAUSES}


@pytest.mark.parametrize("name", OTHERS)
def test_so_is_every_choice(name):
    assert check_objective(OTHERS[name](), lower=True).skipped == {}


def test_those_of_the_page_keep_it():
    (code,) = [code for _, file, code in BLOCK.findall((FOLDER / "your-own-objective.md").read_text()) if file]
    exec(code, page := {"__name__": "page"})
    for objective in (page["Jackknife"](2), page["Jackknife"](5, gradient="vimco"), page["Uncorrelated"](3)):
        assert check_objective(objective).skipped == UNSAID


def test_right_ones_that_look_odd(new_vae, x):
    """With state, with a gradient of its own, on labels, in parts, or with no bound of log-weights."""
    assert check_objective(Penalized(3)).skipped == UNSAID
    kept = Constrained(3)
    assert check_objective(kept).skipped == UNSAID
    assert float(kept.multiplier) == 1.0
    vae = new_vae(latent=4)
    classified = check_objective(Classified(), vae=vae, data=(x, torch.arange(7)), skip=["fast"], lower=True)
    assert classified.skipped == {"below": "log p(x) of this model is not known", "fast": "left out"}
    assert all(parameter.grad is None for parameter in vae.parameters())
    parts = check_objective(pvae.IWAE(5, chunk=2), lower=True)
    assert parts.skipped == {"fast": "its particles are taken in parts: no step is replayed"}
    without = {"differentiable": lambda self, traces: programs.split(traces).log_w.mean(0)}
    assert set(check_objective(type("Without", (pvae.Objective,), without)(3), lower=True).skipped) == {
        *("shape", "alone", "tight")
    }


MISTAKES = {
    "keeps particles": (lambda w: w, "shape", r"bound: found shape \(4, 1\), expected \(1,\)"),
    "sums data": (lambda w: w.mean(), "shape", r"bound: found shape \(\), expected \(1,\)"),
    "over data": (lambda w: w.mean(1), "shape", r"bound: found shape \(4,\), expected \(1,\)"),
    "less their mean": (lambda w: w.mean(0) - w.mean(), "alone", "a bound of .* of a datum in a batch of 4, 0 of it a"),
    "sign": (lambda w: -w.mean(0), "tight", "found a bound of .* where all log-weights of a datum are .*: look at its"),
    "sums particles": (
        lambda w: w.sum(0),
        "tight",
        "found a bound of .*, expected .*: look at its sign, and at what a",
    ),
    "no log K": (lambda w: w.logsumexp(0), "tight", "what a sum over particles is divided by"),
    "detached": (lambda w: w.detach().mean(0), "gradient", r"a bound without a gradient, expected one: use no .detach"),
    "overflows": (lambda w: w.exp().mean(0).log(), "gradient", "log-weights 300 nats apart that is not finite, expect"),
    "the largest": (lambda w: w.amax(0), "below", r"a mean bound .* nats above log p\(x\), with a standard error of 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_by_the_clause_of_its_own(name):
    wrong, clause, text = MISTAKES[name]
    objective = type("Wrong", (pvae.Objective,), {"bound": lambda self, log_w: wrong(log_w)})(4)
    with pytest.raises(ContractError, match=text) as found:
        check_objective(objective, lower=True)
    assert "\n" not in str(found.value)
    assert str(found.value).startswith(f"objective {pvae.base.path_of(type(objective))}: {clause}: ")


def test_mistakes_of_what_is_no_bound_of_log_weights():
    def wrong(**given):
        return type("Wrong", (pvae.ELBO,), given)(4)

    for objective, text in (
        (wrong(guide_bound=lambda self, log_w: log_w.mean(0) - log_w.mean()), "alone: found a guide_bound of"),
        (
            wrong(differentiable=lambda self, traces: programs.split(traces).log_w),
            r"shape: differentiable: found shape",
        ),
        (
            wrong(differentiable=lambda self, traces: traces.model["z"]["value"].sum().detach()),
            "gradient: found a step",
        ),
        (Counted(4), "fast: found 'the program runs eagerly: .*count .* changes within a step"),
    ):
        with pytest.raises(ContractError, match=text):
            check_objective(objective)


class Subset(pvae.Objective):
    """Right: the bound of some of the particles, drawn at each call."""

    def bound(self, log_w):
        return log_w[torch.randperm(len(log_w))[:3]].logsumexp(0) - math.log(3)


class SubsetLessTheirMean(Subset):
    def bound(self, log_w):
        return super().bound(log_w) + 0.5 * (log_w.mean() - log_w.mean(0))


def test_a_bound_that_is_random_is_looked_at_in_the_mean():
    skip = set(CLAUSES) - {"alone"}
    for seed in range(15):
        assert check_objective(Subset(7), skip=skip, seed=seed).clauses["alone"] == "ok"
    with pytest.raises(ContractError, match=r"alone: found a bound of .* of a datum in a batch of 4"):
        check_objective(SubsetLessTheirMean(7), skip=skip)


def test_what_is_asked_of_the_check():
    with pytest.raises(ContractError, match=r"expected a pvae\.Objective, made: as pvae\.IWAE"):
        check_objective(pvae.IWAE)
    with pytest.raises(pvae.InputError, match="skip: unknown clause 'shapes': did you mean 'shape'"):
        check_objective(pvae.IWAE(), skip=["shapes"])
    before = torch.get_rng_state()
    check_objective(pvae.IWAE(2))
    assert torch.equal(torch.get_rng_state(), before)
