"""Every prior with every guide, and each with every likelihood: two steps with finite values, or a clear refusal."""

import inspect
import math
import re

import pyro
import pytest
import torch
from registry import small

import pvae
from pvae.base import members
from pvae.testing.setting import make

LATENT, SHAPE, BATCH, CLASSES = 4, (4,), 6, 3
PAIRS = [
    pytest.param(prior, guide, id=f"{prior.name}-{guide.name}")
    for prior in members("prior").values()
    for guide in members("guide").values()
]
REFUSALS = re.compile(
    ".*expected the same of (prior and guide|both).*"  # they draw from different places
    "|.*(no density|has no log_prob).*"  # a prior made of a guide that scores nothing
)


def joined(prior, guide, likelihood):
    """A small model, or why there is none; labels reach the prior where it takes them."""
    torch.manual_seed(0)
    condition = {"condition": pvae.Label(CLASSES)} if "condition" in inspect.signature(prior).parameters else {}
    parts = (
        make(prior, LATENT, SHAPE, {**small(prior), **condition}),
        make(likelihood, LATENT, SHAPE),
        make(guide, LATENT, SHAPE, small(guide)),
    )
    try:
        return pvae.VAE(*parts)
    except pvae.InputError as error:
        return str(error)


def data(likelihood):
    """What the likelihood draws: data of the right kind."""
    with torch.no_grad():
        return likelihood(torch.randn(BATCH, LATENT)).sample()


@pytest.mark.parametrize(("prior", "guide"), PAIRS)
def test_two_steps_of_every_pair(prior, guide):
    likelihoods = list(members("likelihood").values())
    if prior.support == pvae.Prior.support:  # which go with so many guides that, in turn, each meets every likelihood
        turn = sum(list(members(part.family).values()).index(part) for part in (prior, guide))
        likelihoods = likelihoods[turn % 5 :: 5]
    for likelihood in likelihoods:
        vae = joined(prior, guide, likelihood)
        if isinstance(vae, str):
            assert REFUSALS.fullmatch(vae), vae
            continue
        x, y = data(vae.likelihood), torch.randint(CLASSES, (BATCH,))
        vae.initialize(x, y)
        reparameterized = vae.posterior(x, y).has_rsample
        objective = pvae.ELBO() if reparameterized else pvae.IWAE(3, gradient="vimco")
        svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective, compile="off")
        losses = [svi.step(x, y) for _ in range(2)]
        assert all(math.isfinite(loss) for loss in losses), likelihood
        assert all(value.isfinite().all() for value in vae.state_dict().values()), likelihood


def test_every_prior_and_every_guide_has_a_partner():
    likelihood = members("likelihood")["bernoulli"]
    fitting = [pair.values for pair in PAIRS if not isinstance(joined(*pair.values, likelihood), str)]
    assert {prior for prior, _ in fitting} == set(members("prior").values())
    assert {guide for _, guide in fitting} == set(members("guide").values())


def test_a_prior_that_needs_labels_and_gets_none_is_refused_in_a_line():
    for prior in members("prior").values():
        if "condition" not in inspect.signature(prior).parameters:
            continue
        made = make(prior, LATENT, SHAPE, {"condition": pvae.Label(CLASSES)})
        with pytest.raises(pvae.InputError, match="y: found none, expected whole numbers"):
            made(None)
