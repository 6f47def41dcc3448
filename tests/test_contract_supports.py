"""The contract of parts whose supports are bounded, move, or are of mixed kind."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import biject_to, constraints

import pvae
from pvae.testing import ContractError, check_guide, check_likelihood, check_prior
from pvae.testing.contract import CLAUSES
from pvae.testing.separable import separate
from pvae.testing.setting import make

SKIP = ("fast", "state", "copies")


# Priors between bounds, and guides whose support moves.


class Between(pvae.Prior):
    """Uniform on [-1, 1]^d, by hand."""

    support = "numbers between -1 and 1"

    def __init__(self, latent):
        super().__init__(latent)

    class kind(dist.Normal):
        support = constraints.real

        def log_prob(self, value):
            return torch.where(value.abs() <= 1, -math.log(2), -math.inf).to(value.dtype)

        def rsample(self, sample_shape=()):
            return 2 * torch.rand(self._extended_shape(torch.Size(sample_shape))) - 1

        sample = rsample

    def forward(self, y=None):
        return self.kind(torch.zeros(self.latent), 1.0).to_event(1)


class Anywhere(Between):
    """The same, that says nothing of where it is."""

    support = pvae.Prior.support


class Squashed(pvae.Guide):
    support = Between.support
    outputs = 2

    def forward(self, x, y=None):
        mean, log_scale = self.encode(x, y).chunk(2, -1)
        normal = dist.Normal(mean, (0.1 * log_scale).exp())
        return dist.TransformedDistribution(normal, biject_to(constraints.interval(-1.0, 1.0))).to_event(1)


class Moving(pvae.Guide):
    outputs = 2

    def forward(self, x, y=None):
        mean, log_width = self.encode(x, y).chunk(2, -1)
        return dist.Uniform(mean - log_width.exp(), mean + log_width.exp()).to_event(1)


def made(guide):
    return guide(pvae.MLPEncoder((3,), 4, [8]), 2)


def test_a_prior_between_bounds_is_told_to_bring_its_guide_and_passes_with_it():
    with pytest.raises(ContractError) as refused:
        check_prior(Anywhere(2), skip=SKIP)
    assert "the guide draws where this prior has no density: pass guide= one whose draws stay within" in str(
        refused.value
    )
    with pytest.raises(ContractError, match=r"found no guide that goes with it.*: pass guide="):
        check_prior(Between(2), skip=SKIP)
    report = check_prior(Between(2), guide=made(Squashed), skip=SKIP)
    assert report.clauses["integrates"] == report.clauses["objectives"] == "ok"


def test_a_guide_whose_support_moves_is_refused_but_where_reparam_is_all_there_is():
    with pytest.raises(
        ContractError, match=r"objectives: site 'z': the guide's support, .*, moves with its parameters"
    ):
        check_guide(made(Moving), skip=SKIP)
    check_guide(made(Moving), skip=(*SKIP, "objectives"))


class Positive(pvae.Prior):
    def __init__(self, latent):
        super().__init__(latent)
        self.mean = nn.Parameter(torch.zeros(latent))

    def forward(self, y=None):
        return dist.LogNormal(self.mean, 1.0).to_event(1)


class PositiveGuide(pvae.Guide):
    outputs = 2

    def forward(self, x, y=None):
        mean, log_scale = self.encode(x, y).chunk(2, -1)
        return dist.LogNormal(mean, (0.1 * log_scale).exp()).to_event(1)


@pytest.mark.parametrize("skip", [SKIP, (*SKIP, "gradients")])
def test_a_prior_on_positive_numbers_is_told_to_bring_its_guide_and_passes_with_it(skip):
    advice = r"expected GreaterThan\(lower_bound=0.0\), as LogNormal scores: the guide draws where .*: pass guide= one "
    with pytest.raises(ContractError, match=advice):
        check_prior(Positive(2), skip=skip)
    assert check_prior(Positive(2), guide=made(PositiveGuide), skip=skip).skipped.keys() == set(skip)


class NearZero(Positive):
    """Most of it is at numbers smaller than any step."""

    def forward(self, y=None):
        return dist.Gamma(0.3 * self.mean.exp(), torch.ones_like(self.mean)).to_event(1)


class FarOut(Positive):
    """Draws by rejection that have no mean."""

    def forward(self, y=None):
        return dist.InverseGamma(0.5 * self.mean.exp(), torch.ones_like(self.mean)).to_event(1)


class NearZeroDetached(NearZero):
    class kind(dist.Gamma):
        def log_prob(self, value):
            return super().log_prob(value.detach())

    def forward(self, y=None):
        return self.kind(0.3 * self.mean.exp(), torch.ones_like(self.mean)).to_event(1)


def derived(prior, seed):
    """Its gradients, looked at."""
    torch.manual_seed(seed)
    skip = [name for name in CLAUSES if name != "derivatives"]
    return check_prior(prior(8), guide=PositiveGuide(pvae.MLPEncoder((3,), 16, [8]), 8), skip=skip, seed=seed)


@pytest.mark.parametrize("seed", [0, 6, 9])
@pytest.mark.parametrize("prior", [Positive, NearZero, FarOut])
def test_gradients_of_positive_numbers_that_are_small_or_large(prior, seed):
    assert derived(prior, seed).clauses["derivatives"] == "ok"


def test_a_gradient_that_does_not_pass_through_small_numbers():
    with pytest.raises(ContractError, match="derivatives: found a gradient of log_prob of 0 along a direction of z"):
        derived(NearZeroDetached, 0)


# Columns of different kinds.


class Columns(pvae.Likelihood):
    """One column of zeros and ones, the others normal."""

    support = "real"
    scale = 1.0

    def forward(self, z, y=None):
        return Joined(self.decode(z, y), self.scale)


class Joined(dist.TorchDistribution):
    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, logits, scale):
        self.logits, self.scale = logits, scale
        super().__init__(logits.shape[:-1], logits.shape[-1:])

    def expand(self, shape, _instance=None):
        return type(self)(self.logits.expand(*shape, -1), self.scale)

    def log_prob(self, x):
        first = dist.Bernoulli(logits=self.logits[..., 0]).log_prob(x[..., 0])
        return first + dist.Normal(self.logits[..., 1:], self.scale).log_prob(x[..., 1:]).sum(-1)

    @torch.no_grad()
    def sample(self, shape=()):
        logits = self.logits.expand(self._extended_shape(torch.Size(shape)))
        others = logits[..., 1:] + torch.randn(logits[..., 1:].shape)
        return torch.cat([torch.bernoulli(logits[..., :1].sigmoid()), others], -1)

    @property
    def mean(self):
        return torch.cat([self.logits[..., :1].sigmoid(), self.logits[..., 1:]], -1)


class WideColumns(Columns):
    """Its draws are narrower than its density says."""

    scale = 1.5


class Hurdle(pvae.Likelihood):
    """Zero, or else lognormal."""

    support = "real"

    def forward(self, z, y=None):
        return ZeroOr(self.decode(z, y))


class ZeroOr(dist.TorchDistribution):
    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector
    forgets = 0.0

    def __init__(self, logits):
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:])

    def expand(self, shape, _instance=None):
        return type(self)(self.logits.expand(*shape, -1))

    def log_prob(self, x):
        above = dist.LogNormal(self.logits, 1.0).log_prob(x.clamp(min=1e-9)) + self.forgets
        zero, other = nn.functional.logsigmoid(self.logits), nn.functional.logsigmoid(-self.logits)
        return torch.where(x == 0, zero, other + above).sum(-1)

    @torch.no_grad()
    def sample(self, shape=()):
        shape = self._extended_shape(torch.Size(shape))
        drawn = (self.logits + torch.randn(shape)).exp()
        return drawn.where(torch.rand(shape) > self.logits.sigmoid(), 0.0)

    @property
    def mean(self):
        return (-self.logits).sigmoid() * (self.logits + 0.5).exp()


class FarHurdle(Hurdle):
    """Mostly zero, else far from it."""

    def forward(self, z, y=None):
        return FarZeroOr(self.decode(z, y))


class FarZeroOr(ZeroOr):
    other = dist.Normal(500.0, 0.1)
    share = torch.tensor(0.9)
    mean = property(lambda self: torch.full_like(self.logits, 50.0))

    def log_prob(self, x):
        zero, other = self.share.log(), (1 - self.share).log()
        return torch.where(x == 0, zero, other + self.other.log_prob(x)).sum(-1) + 0 * self.logits.sum(-1)

    def sample(self, shape=()):
        shape = self._extended_shape(torch.Size(shape))
        return self.other.sample(shape).where(torch.rand(shape) > self.share, 0.0)


class RareOr(ZeroOr):
    """Zero in all but a few draws."""

    share = 0.995

    def __init__(self, logits):
        super().__init__(logits)
        self.zero = 0.1 * logits + math.log(self.share / (1 - self.share))

    def log_prob(self, x):
        above = dist.LogNormal(self.logits, 1.0).log_prob(x.clamp(min=1e-9)) + self.forgets
        zero, other = nn.functional.logsigmoid(self.zero), nn.functional.logsigmoid(-self.zero)
        return torch.where(x == 0, zero, other + above).sum(-1)

    @torch.no_grad()
    def sample(self, shape=()):
        shape = self._extended_shape(torch.Size(shape))
        drawn = (self.logits + torch.randn(shape)).exp()
        return drawn.where(torch.rand(shape) > self.zero.sigmoid(), 0.0)

    @property
    def mean(self):
        return (-self.zero).sigmoid() * (self.logits + 0.5).exp()


class RareTwiceOr(RareOr):
    """Its density forgets that its draws are few."""

    forgets = 5.0


class Forgets(Hurdle):
    def forward(self, z, y=None):
        return RareTwiceOr(self.decode(z, y))


@pytest.mark.parametrize("share", [0.98, 0.995, 0.9997])
@pytest.mark.parametrize("seed", range(3))
def test_a_density_of_few_draws_beside_a_point_mass(share, seed):
    class Kind(RareOr):
        pass

    class Mostly(Hurdle):
        def forward(self, z, y=None):
            return Kind(self.decode(z, y))

    Kind.share = share
    report = check_likelihood(Mostly(pvae.MLPDecoder(2, (4,), [8]), (4,)), skip=SKIP, seed=seed)
    assert report.clauses["support"] == report.clauses["integrates"] == report.clauses["samples"] == "ok"


class HalfHurdle(Hurdle):
    """Its density is a tenth too large."""

    def forward(self, z, y=None):
        found = ZeroOr(self.decode(z, y))
        found.forgets = 0.1
        return found


class Clamped(Columns):
    """Its density knows nothing of the edge at which its draws are cut off."""

    def forward(self, z, y=None):
        return Cut(self.decode(z, y), 1.0)


class Cut(Joined):
    def log_prob(self, x):
        return dist.Normal(self.logits, 1.0).log_prob(x).sum(-1)

    @torch.no_grad()
    def sample(self, shape=()):
        logits = self.logits.expand(self._extended_shape(torch.Size(shape)))
        return (logits + torch.randn(logits.shape)).clamp(min=0)

    @property
    def mean(self):
        normal = dist.Normal(torch.zeros(()), 1.0)
        return self.logits * normal.cdf(self.logits) + normal.log_prob(self.logits).exp()


def likelihood(kind):
    return kind(pvae.MLPDecoder(2, (3,), [8]), (3,))


@pytest.mark.parametrize("kind", [Columns, Hurdle])
@pytest.mark.parametrize("seed", [0, 1])
def test_columns_of_different_kinds_and_point_masses_beside_a_density_are_integrated(kind, seed):
    report = check_likelihood(likelihood(kind), skip=SKIP, seed=seed)
    assert report.clauses["integrates"] == report.clauses["samples"] == "ok"


def test_a_point_mass_far_from_the_density_beside_it():
    p = likelihood(FarHurdle)(torch.zeros(2))
    with torch.no_grad(), pyro.validation_enabled(False):
        found = separate(p, p.expand((8000,)).sample(), "real")
    assert found.total.exp().item() == pytest.approx(1, abs=1e-3)
    assert found.mass[0].tolist() == pytest.approx([0.9] * 3, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "clause"),
    [(WideColumns, "samples"), (HalfHurdle, "integrates"), (Forgets, "integrates"), (Clamped, "integrates")],
)
def test_mistakes_in_them_are_found(kind, clause):
    with pytest.raises(ContractError, match=f": {clause}: ") as refused:
        check_likelihood(likelihood(kind), skip=SKIP)
    piled = "at 0, where draws pile up, log_prob is to be of a probability, elsewhere of a density"
    assert (piled in str(refused.value)) == (clause == "integrates")


class GreyBernoulli(pvae.Bernoulli):
    """Cross-entropy of grey pixels, which integrates to more than 1."""

    support = "unit_interval"

    def forward(self, z, y=None):
        return dist.Bernoulli(logits=self.decode(z, y), validate_args=False).to_event(1)


def test_probabilities_of_few_values_do_not_pass_for_a_density():
    with pytest.raises(
        ContractError, match="support: found draws of few values, expected a density, as support = 'unit"
    ):
        check_likelihood(likelihood(GreyBernoulli), skip=SKIP)


@pytest.mark.parametrize("seed", [2, 4, 7])
def test_numbers_as_near_to_an_edge_as_single_precision_tells_apart(seed):
    torch.manual_seed(seed)
    skip = set(CLAUSES) - {"integrates", "samples"}
    part = make(pvae.likelihoods.Beta, 4, (3, 2), {"precision": "decoder"})
    assert check_likelihood(part, skip=skip, seed=seed).skipped.keys() == skip


class CountsForLevels(pvae.Bernoulli):
    """It scores 0 to 16 where levels are 0, 1/16, ..., 1."""

    support = "17 levels"

    def forward(self, z, y=None):
        return dist.Binomial(16, logits=self.decode(z, y)).to_event(1)


def test_levels_lie_between_0_and_1():
    with pytest.raises(ContractError, match="integrates: found"):
        check_likelihood(likelihood(CountsForLevels), skip=set(CLAUSES) - {"integrates"})


class Close(pvae.Prior):
    """Draws near 0, and a density that is too high."""

    def forward(self, y=None):
        return TooHigh(torch.zeros(self.latent), 1e-6).to_event(1)


class TooHigh(dist.Normal):
    def log_prob(self, value):
        return super().log_prob(value) + 0.1

    def expand(self, batch_shape, _instance=None):
        return TooHigh(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


def test_numbers_near_0_are_at_no_edge_where_there_are_some_below():
    with pytest.raises(ContractError, match=r"integral of 1\.[345]"):
        check_prior(Close(3), skip=set(CLAUSES) - {"integrates"})


# Batch normalization.


def test_evaluating_a_network_in_training_mode_says_what_to_do():
    encoder = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(encoder, 2))
    x = torch.bernoulli(torch.full((5, 6), 0.5))
    with pytest.raises(pvae.errors.InputError, match=r"batch normalization in training mode.*: call \.eval\(\) on the"):
        pvae.evaluate.evaluate(vae.model, vae.guide, x, particles=[1])
    svi = pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pvae.ELBO(), compile="off")
    with pytest.raises(pvae.errors.InputError, match="to train, give it 2 data or more"):
        svi.step(x[:1])
    assert svi.step(x) > 0
    assert pvae.evaluate.evaluate(vae.eval().model, vae.guide, x, particles=[1]).elbo.isfinite().all()
