"""Draws that a mask leaves out of log q are refused where log-weights depend on them: the gradient would be wrong."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pvae
from pvae.errors import InputError

SCORED = ["dreg", "gdreg", "score", "vimco", "ovis", "rws"]
MASK = torch.tensor([True, False, True, False])
X = torch.tensor([0.3, -0.2, 1.0, 0.6])


def chain(x, masks, later):
    """A latent that the guide's own depend on, masked; and what is made of it, masked where `later` says."""
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=masks):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            w = pyro.sample("w", dist.Normal(z, 1.0))
        with poutine.mask(mask=later):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def guide(x, masks, later, inside=False):
    mean = pyro.param("mean", torch.tensor(0.2))
    with pyro.plate("data", len(x)), poutine.mask(mask=True if inside else masks):
        z = pyro.sample("z", dist.Normal(mean, 0.8).mask(masks if inside else True))
        pyro.sample("w", dist.Normal(0.5 * z + x / 2, 0.7).mask(masks if inside else True))


def loss(gradient, masks, later, model=chain, guide=guide, **options):
    pyro.clear_param_store()
    return pvae.IWAE(4, gradient=gradient, **options).differentiable_loss(model, guide, X, masks, later)


@pytest.mark.parametrize("options", [{}, {"chunk": 2}, {"plate": None}])
@pytest.mark.parametrize("masks", [MASK, False, torch.tensor(False)])
@pytest.mark.parametrize("gradient", SCORED)
def test_masked_draws_that_others_see_are_refused(gradient, masks, options):
    for _ in range(2):  # the second time too
        expected = rf"^site 'w': the guide's mask leaves out draws .*, and iwae with gradient {gradient} has no score"
        with pytest.raises(InputError, match=expected):
            loss(gradient, masks, True, **options)


@pytest.mark.parametrize("gradient", ["reparam", "stl"])
def test_estimators_without_a_score_take_them(gradient):
    assert loss(gradient, MASK, True).isfinite()


@pytest.mark.parametrize("gradient", SCORED)
def test_masked_draws_that_nothing_sees_are_taken(gradient):
    assert loss(gradient, MASK, MASK).isfinite()
    assert loss(gradient, MASK, MASK, guide=lambda *args: guide(*args, inside=True)).isfinite()


def test_a_mask_of_the_distribution_is_one_too():
    with pytest.raises(InputError, match=r"^site 'w': "):
        loss("dreg", MASK, True, guide=lambda *args: guide(*args, inside=True))


@pytest.mark.parametrize("gradient", ["score", "vimco"])
def test_discrete_draws_are_refused_and_partly_observed_sites_taken(gradient):
    """Those of `obs_mask` that are observed are drawn too, and seen by nobody."""

    def model(x, *_):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.4), obs=(x > 0).float(), obs_mask=MASK)
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def partly(x, *_):
        with pyro.plate("data", len(x)), poutine.mask(mask=~MASK):
            pyro.sample("y_unobserved", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))

    def seen(x, *_):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=MASK):
                y = pyro.sample("y_unobserved", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide_of_seen(x, *_):
        with pyro.plate("data", len(x)), poutine.mask(mask=MASK):
            pyro.sample("y_unobserved", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))

    assert loss(gradient, None, None, model, partly).isfinite()
    with pytest.raises(InputError, match=r"'y_unobserved': .* of discrete draws pyro.infer.Trace_ELBO$"):
        loss(gradient, None, None, seen, guide_of_seen)


def test_a_random_program_is_run_again_with_the_same_noise():
    """Dropout and running statistics are no sign that the draws matter."""
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Dropout(0.5))

    def model(x, masks, later):
        chain(x + 0 * network(x.unsqueeze(-1)).squeeze(-1), masks, later)
        pyro.factor("noise", network(x.unsqueeze(-1)).sum())

    def random_guide(x, masks, later):
        guide(x + network(x.unsqueeze(-1)).squeeze(-1), masks, later)

    assert loss("dreg", MASK, MASK, model, random_guide, plate=None).isfinite()


def test_a_program_that_is_never_the_same_is_taken():
    """Of random numbers that are not torch's nothing is known."""
    noise = itertools.count()

    def model(x, masks, later):
        chain(x, masks, later)
        pyro.factor("noise", torch.tensor(float(next(noise))))

    assert loss("dreg", MASK, True, model, plate=None).isfinite()


def test_nothing_is_drawn_of_what_others_draw():
    """A look leaves the generator where the step does."""
    states = []
    for _ in range(2):
        objective = pvae.IWAE(4, gradient="score", max_plate_nesting=1)
        pyro.set_rng_seed(3)
        pyro.clear_param_store()
        objective.differentiable_loss(chain, guide, X, MASK, MASK)
        states.append(torch.get_rng_state())
        pyro.set_rng_seed(3)
        objective.differentiable_loss(chain, guide, X, MASK, MASK)  # without a look
        states.append(torch.get_rng_state())
    assert all(bool((state == states[0]).all()) for state in states)
