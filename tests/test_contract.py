"""The contract of parts: every member keeps it, and parts that break it are told how, in a line."""

import copy
import inspect
import random
import typing

import pyro
import pyro.distributions as dist
import pyro.nn
import pytest
import torch
from registry import variants
from torch import nn

import pvae
from pvae.testing import joint
from pvae.testing.contract import CLAUSES
from pvae.testing.setting import make

SHAPE = (3, 2)
CHECKS = {
    "prior": pvae.testing.check_prior,
    "likelihood": pvae.testing.check_likelihood,
    "guide": pvae.testing.check_guide,
}


MEMBERS = [variant for family in CHECKS for variant in variants(family)]


def checked(member, options, latent, skip=()):
    conditioned = {"condition": pvae.Label(3)} if "condition" in inspect.signature(member).parameters else {}
    return CHECKS[member.family](make(member, latent, SHAPE, {**options, **conditioned}), skip=skip)


@pytest.mark.parametrize(("member", "options"), MEMBERS)
def test_every_member_keeps_the_contract(member, options):
    assert set(checked(member, options, 4).clauses) == {"model", *CLAUSES}


@pytest.mark.parametrize(("member", "options"), [v for f in ("prior", "guide") for v in variants(f)])
def test_every_member_of_two_numbers_is_the_density_that_it_says(member, options):
    """By quadrature, which is exact; of more numbers it is by importance sampling."""
    checked(member, options, 2, skip=set(CLAUSES) - {"shapes", "integrates", "samples", "mean"})


@pytest.mark.parametrize("condition", [pvae.Label(3), pvae.Covariates(2)], ids=["label", "covariates"])
def test_conditioned_networks_keep_the_contract(condition):
    encoder = pvae.ConditionedEncoder(pvae.MLPEncoder(SHAPE, 4, [8], context=condition.size), condition)
    assert pvae.testing.check_guide(pvae.MeanField(encoder, 2)).skipped == {}
    decoder = pvae.ConditionedDecoder(pvae.MLPDecoder(2 + condition.size, SHAPE, [8]), condition)
    assert pvae.testing.check_likelihood(pvae.Bernoulli(decoder, SHAPE)).skipped == {}


# Parts that break it --------------------------------------------------------------------------------------------------


class Wide(pvae.Prior):
    """Right: what the others are made from."""

    def __init__(self, latent, **more):
        super().__init__(latent, **more)
        self.log_scale = nn.Parameter(torch.zeros(latent))

    def normal(self):
        return dist.Normal(torch.zeros_like(self.log_scale), self.log_scale.exp())

    def forward(self, y=None):
        return self.normal().to_event(1)


class ReturnsATensor(Wide):
    def forward(self, y=None):
        return 2 * self.log_scale


class MissesToEvent(Wide):
    def forward(self, y=None):
        return self.normal()


class OtherEvent(Wide):
    def forward(self, y=None):
        return dist.Normal(torch.zeros(self.latent + 1), 1.0).to_event(1)


class TorchsOwn(Wide):
    def forward(self, y=None):
        return torch.distributions.Independent(torch.distributions.Normal(self.log_scale, 1.0), 1)


class Scaled(dist.Normal):
    def expand(self, batch_shape, _instance=None):
        return type(self)(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class DoubledDensity(Scaled):
    def log_prob(self, value):
        return super().log_prob(value) + 0.1


class NotNormalized(Wide):
    def forward(self, y=None):
        return DoubledDensity(torch.zeros_like(self.log_scale), self.log_scale.exp()).to_event(1)


class WiderDraws(Scaled):
    def rsample(self, sample_shape=()):
        return 1.15 * super().rsample(sample_shape)

    def sample(self, sample_shape=()):
        return self.rsample(sample_shape).detach()


class DrawsFromAnotherScale(Wide):
    def forward(self, y=None):
        return WiderDraws(torch.zeros_like(self.log_scale), self.log_scale.exp()).to_event(1)


class Shifted(Scaled):
    @property
    def mean(self):
        return self.loc + 0.2


class OtherMean(Wide):
    def forward(self, y=None):
        return Shifted(torch.zeros_like(self.log_scale), self.log_scale.exp()).to_event(1)


class UnusedParameter(Wide):
    def __init__(self, latent):
        super().__init__(latent)
        self.unused = nn.Parameter(torch.zeros(3))


class ReadsOnTheHost(Wide):
    def forward(self, y=None):
        one = self.log_scale.mean().exp().item()
        return dist.Normal(torch.zeros_like(self.log_scale), self.log_scale.exp() + one).to_event(1)


class Branches(Wide):
    def forward(self, y=None):
        scale = self.log_scale.exp() if self.log_scale.sum() > 100 else 2 * self.log_scale.exp()
        return dist.Normal(torch.zeros_like(scale), scale).to_event(1)


class StateOutsideState(Wide):
    def __init__(self, latent):
        super().__init__(latent)
        self.seen = torch.zeros(latent)

    def forward(self, y=None):
        if self.training:
            with torch.no_grad():
                self.seen += 0.3
        return dist.Normal(self.seen.clone(), self.log_scale.exp()).to_event(1)


class CountsItsCalls(Wide):
    calls = 0

    def forward(self, y=None):
        self.calls += self.training
        return dist.Normal(0.1 * self.calls + torch.zeros_like(self.log_scale), self.log_scale.exp()).to_event(1)


class AnotherWhenMadeAnew(Wide):
    def __init__(self, latent):
        super().__init__(latent)
        self.register_buffer("mean", torch.randn(latent), persistent=False)

    def forward(self, y=None):
        return dist.Normal(self.mean, self.log_scale.exp()).to_event(1)


class DrawsAListWhenMade(Wide):
    """What it draws is in no state, and neither a tensor."""

    def __init__(self, latent):
        super().__init__(latent)
        self.order = torch.randperm(latent).tolist()
        self.shift = random.random()

    def forward(self, y=None):
        return dist.Normal(self.shift + self.log_scale[self.order], 1.0).to_event(1)


class DrawsTheSameListWhenMade(Wide):
    """Right: by a generator of its own, from a number that is known."""

    def __init__(self, latent):
        super().__init__(latent)
        self.order = random.Random(latent).sample(range(latent), latent)

    def forward(self, y=None):
        return dist.Normal(self.log_scale[self.order], 1.0).to_event(1)


class StartsOutsideState(Wide):
    def __init__(self, latent):
        super().__init__(latent)
        self.register_buffer("mean", torch.zeros(latent), persistent=False)

    def initialize(self, x, y=None):
        self.mean += x.mean()

    def forward(self, y=None):
        return dist.Normal(self.mean, self.log_scale.exp()).to_event(1)


class AsksPyroForAParameter(Wide):
    def forward(self, y=None):
        return dist.Normal(pyro.param("mean", torch.zeros(self.latent)), self.log_scale.exp()).to_event(1)


class AsksWhileTraining(Wide):
    def forward(self, y=None):
        mean = pyro.param("mean", torch.zeros(self.latent)) if self.training else torch.zeros(self.latent)
        return dist.Normal(mean, self.log_scale.exp()).to_event(1)


class MakesAParameter(Wide):
    def forward(self, y=None):
        self.mean = nn.Parameter(torch.zeros(self.latent))
        return dist.Normal(self.mean, self.log_scale.exp()).to_event(1)


class HasAModuleOfPyro(Wide):
    """Right: what it tells Pyro of is in its state."""

    def __init__(self, latent):
        super().__init__(latent)
        self.mean = pyro.nn.PyroModule[nn.Linear](1, latent)

    def forward(self, y=None):
        return dist.Normal(self.mean(torch.ones(1)), self.log_scale.exp()).to_event(1)


class HasAModuleOfPyroOfOtherStrides(HasAModuleOfPyro):
    """Right: what Pyro's store has of its weight is a copy, which nothing depends on."""

    class Scaled(pyro.nn.PyroModule):
        def __init__(self, latent):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(latent, 3).t())
            self.scale = pyro.nn.PyroParam(torch.ones(latent), constraint=dist.constraints.positive)

        def forward(self, x):
            return self.weight.sum(0) * self.scale + self.scale.log()

    def __init__(self, latent):
        super().__init__(latent)
        self.mean = self.Scaled(latent)


class HasRoomForWhatItComputes(Wide):
    """Right: nothing reads what was there before."""

    def __init__(self, latent):
        super().__init__(latent)
        self.register_buffer("scratch", torch.empty(1000 * latent), persistent=False)


class WaitsForData(pvae.Prior):
    """Right: what it is set to is saved."""

    def __init__(self, latent):
        super().__init__(latent)
        self.loc = nn.Parameter(torch.empty(latent))
        self.register_buffer("shift", torch.full((latent,), torch.nan))

    def initialize(self, x, y=None):
        with torch.no_grad():
            self.loc.fill_(x.mean())
            self.shift.fill_(x.std())

    def forward(self, y=None):
        return dist.Normal(self.loc + self.shift, 1.0).to_event(1)


class TakesACondition(Wide):
    def __init__(self, latent, condition=None):
        super().__init__(latent, condition=condition)


class InheritsACondition(pvae.Prior):
    """As its family does, which has `condition`; made without one it is a standard normal."""

    def forward(self, y=None):
        return dist.Normal(torch.zeros(self.latent), 1.0).to_event(1)


class MisusesWhatItInherits(InheritsACondition):
    def forward(self, y=None):
        mean = torch.zeros(self.latent) if self.condition is None else 0 * self.condition(y)[..., :1]
        return dist.Normal(mean.expand(*mean.shape[:-1], self.latent), 1.0).to_event(1)


class UsesWhatItInherits(InheritsACondition):
    """Right: it depends on labels where it is made so."""

    def forward(self, y=None):
        mean = (
            torch.zeros(self.latent) if self.condition is None else self.condition(y)[..., :1].expand(-1, self.latent)
        )
        return dist.Normal(mean, 1.0).to_event(1)


class IgnoresItsLabels(TakesACondition):
    def forward(self, y=None):
        lead = () if y is None else y.shape
        return self.normal().expand([*lead, self.latent]).to_event(1)


class DropsItsLabels(TakesACondition):
    """It takes a condition, and draws the same whatever the labels are, in one batch shape."""

    def forward(self, y=None):
        return self.normal().to_event(1)


class KeepsNoCondition(Wide):
    def __init__(self, latent, condition):
        super().__init__(latent)


class ScoresNonsense(pvae.Likelihood):
    support = "nonsense"

    def forward(self, z, y=None):
        return dist.Normal(self.decode(z, y), 1.0).to_event(len(self.shape))


class DrawsFromNonsense(Wide):
    support = "the unit sfere"


class FlattensItsLabels(TakesACondition):
    def __init__(self, latent, condition=None):
        super().__init__(latent, condition)
        self.means = nn.Linear(condition.size, latent)

    def forward(self, y=None):
        means = self.means(self.condition(y.flatten()))
        return dist.Normal(means, self.log_scale.exp().expand_as(means)).to_event(1)


class OneBatchAlone(Wide):
    def forward(self, y=None):
        return dist.Normal(torch.zeros(4, self.latent), self.log_scale.exp()).to_event(1)


class NoSample(dist.TorchDistribution):
    arg_constraints: typing.ClassVar = {}
    support = dist.constraints.real_vector

    def __init__(self, log_scale, batch_shape=(), constant=True):
        self.log_scale, self.constant = log_scale, constant
        super().__init__(torch.Size(batch_shape), log_scale.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return NoSample(self.log_scale, batch_shape, self.constant)

    def log_prob(self, value):
        base = dist.Normal(0.0, self.log_scale.exp()).log_prob(value).sum(-1) - (0.0 if self.constant else 0.2)
        return base.expand(torch.broadcast_shapes(base.shape, self.batch_shape))


class CannotBeSampled(Wide):
    """Right, too."""

    def forward(self, y=None):
        return NoSample(self.log_scale)


class CannotBeSampledNorIntegrated(Wide):
    def forward(self, y=None):
        return NoSample(self.log_scale, constant=False)


class FailsInside(Wide):
    def forward(self, y=None):
        return self.normal().to_event(1) + {}["scale"]


class NotFinite(Wide):
    def forward(self, y=None):
        return dist.Normal(torch.zeros_like(self.log_scale), (self.log_scale - 1e4).exp()).to_event(1)


class GradientNotFinite(Wide):
    def forward(self, y=None):
        scale = 1 + (0 * self.log_scale).abs().sqrt()
        return dist.Normal(torch.zeros_like(scale), scale).to_event(1)


class ShapeByValues(Wide):
    def forward(self, y=None):
        large = self.log_scale[(self.log_scale > -10).nonzero().squeeze(-1)].exp().mean()
        return dist.Normal(torch.zeros(self.latent), large.expand(self.latent)).to_event(1)


class HoldsALambda(Wide):
    def __init__(self, latent):
        super().__init__(latent)
        self.link = lambda value: value.exp()


class NotOnceExpanded(dist.Normal):
    def expand(self, batch_shape, _instance=None):
        made = Scaled(self.loc.expand(batch_shape), self.scale.expand(batch_shape))
        made.sample = self.refuse
        return made

    def refuse(self, sample_shape=()):
        raise NotImplementedError


class SampledAloneOnly(Wide):
    def forward(self, y=None):
        return NotOnceExpanded(torch.zeros_like(self.log_scale), self.log_scale.exp()).to_event(1)


class MixesItsBatch(pvae.MeanField):
    def forward(self, x, y=None):
        q = super().forward(x, y)
        return dist.Normal(q.mean + q.mean.reshape(-1, self.latent).mean(0), q.stddev).to_event(1)


class NormalizesItsBatch(pvae.MeanField):
    """It mixes data while it is trained only."""

    def __init__(self, encoder, latent):
        super().__init__(encoder, latent)
        self.between = nn.BatchNorm1d(latent)

    def forward(self, x, y=None):
        q = super().forward(x, y)
        mean = self.between(q.mean.reshape(-1, self.latent)).reshape(q.mean.shape)
        return dist.Normal(mean, q.stddev).to_event(1)


class DropsOut(pvae.MeanField):
    """Right: it draws at random while it is trained, for each datum by itself."""

    def forward(self, x, y=None):
        return super().forward(nn.functional.dropout(x, 0.3, self.training), y)


class NoMean(Scaled):
    @property
    def mean(self):
        raise NotImplementedError


class LikelihoodWithoutMean(pvae.Likelihood):
    def forward(self, z, y=None):
        mean = self.decode(z, y)
        return NoMean(mean, torch.ones_like(mean)).to_event(len(self.shape))


class HalvedPixel(Scaled):
    def log_prob(self, value):
        return 0.5 * super().log_prob(value)


class LikelihoodNotNormalized(pvae.Likelihood):
    def forward(self, z, y=None):
        mean = self.decode(z, y)
        return HalvedPixel(mean, torch.ones_like(mean)).to_event(len(self.shape))


class BernoulliOfHalves(dist.Bernoulli):
    def sample(self, sample_shape=()):
        return torch.bernoulli(torch.full(self._extended_shape(torch.Size(sample_shape)), 0.5))

    def expand(self, batch_shape, _instance=None):
        return BernoulliOfHalves(logits=self.logits.expand(batch_shape))


class AnotherAtEachCall(Wide):
    def forward(self, y=None):
        return dist.Normal(torch.randn(self.latent), self.log_scale.exp()).to_event(1)


class PlainTensor(Wide):
    def __init__(self, latent):
        super().__init__(latent)
        self.shift = torch.randn(latent)


class BitsNotAsScored(pvae.Likelihood):
    support = "binary"

    def forward(self, z, y=None):
        return BernoulliOfHalves(logits=self.decode(z, y) + 1).to_event(len(self.shape))


BROKEN = [
    (ReturnsATensor, "shapes", "forward returned Tensor, expected a distribution of pyro.distributions"),
    (MissesToEvent, "shapes", r"batch shape \(4,\) and event shape \(\), expected .*: add .to_event\(1\)"),
    (OtherEvent, "shapes", r"event shape \(5,\), expected batch shape \(\) and event shape \(4,\)"),
    (TorchsOwn, "shapes", "found one of torch.distributions, which cannot be a Pyro site"),
    (OneBatchAlone, "shapes", r"batch shape \(4,\) and event shape \(4,\), expected batch shape \(\)"),
    (NotNormalized, "integrates", "found exp.log_prob. with an integral of 1.49.*, expected 1: look at its constants"),
    (DrawsFromAnotherScale, "samples", "draws whose mean of a test function is .*: let sample and log_prob use the"),
    (OtherMean, "mean", "found .mean .* standard errors from the mean of the draws"),
    (UnusedParameter, "gradients", "found no gradient at 'unused', expected one at every parameter: use it in forward"),
    (ReadsOnTheHost, "reads", r"found .item\(\) of a tensor at .*test_contract.py:\d+, expected tensors only"),
    (Branches, "reads", r"found .__bool__\(\) of a tensor at .*test_contract.py:\d+"),
    (StateOutsideState, "model", "found a tensor at 'seen' that no checkpoint would have, expected a Parameter"),
    (AnotherAtEachCall, "repeats", "another log_prob of the same value at a second call.*draw nothing at random"),
    (PlainTensor, "model", "found a tensor at 'shift' that no checkpoint would have, expected a Parameter"),
    (
        CountsItsCalls,
        "state",
        "other draws or another log_prob after a trained part's state_dict was loaded.*parameters and buff",
    ),
    (AnotherWhenMadeAnew, "state", "a buffer 'mean' of persistent=False, which no run saves, .*: leave out persistent"),
    (
        DrawsAListWhenMade,
        "state",
        "of one that is made anew and loads the state_dict, .*: keep what __init__ draws, or",
    ),
    (StartsOutsideState, "state", "other draws .*: keep what training, or `initialize`, changes in param"),
    (
        AsksPyroForAParameter,
        "state",
        "found the pyro.param 'mean' which is not in the model's state, expected a Parameter that is made once",
    ),
    (AsksWhileTraining, "state", "found the pyro.param 'mean' which is not in the model's state, expected a Parameter"),
    (MakesAParameter, "state", "found the Parameter 'mean', made by forward, which is not in the model's state, expec"),
    (IgnoresItsLabels, "labels", "found the same log_prob under other labels, expected a density that depends on"),
    (DropsItsLabels, "labels", "found the same log_prob under other labels, expected a density that depends on"),
    (
        MisusesWhatItInherits,
        "labels",
        r"made with condition=Label\(3\), .* write an __init__\(self, latent\) that does not",
    ),
    (KeepsNoCondition, "labels", "found a condition that it takes and does not keep, expected it in use"),
    (ScoresNonsense, "support", "unknown name 'nonsense': known: binary, counts"),
    (DrawsFromNonsense, "model", "a support of its own, 'the unit sfere': members draw from 0 and 1, .*: pass guide="),
    (FlattensItsLabels, "shapes", r"batch shape \(1,\) and .*, expected batch shape \(\) and"),
    (CannotBeSampledNorIntegrated, "integrates", "an integral of 0.8"),
    (FailsInside, "shapes", r"test_contract.py:\d+: KeyError: 'scale'"),
    (NotFinite, "shapes", "Expected parameter scale .* to satisfy the constraint GreaterThan"),
    (GradientNotFinite, "gradients", "found a gradient at 'log_scale' that is not finite"),
    (ShapeByValues, "fast", "the shape of what torch's 'nonzero' returns depends on values.*torch's operations on"),
    (HoldsALambda, "copies", "PicklingError|AttributeError"),
    (SampledAloneOnly, "words", "has no sample.*when it is asked for a sample, expected draws: write `sample`"),
    (MixesItsBatch, "alone", "of a datum in a batch of 4, .* of it alone, expected the same: let nothing in the part"),
    (
        NormalizesItsBatch,
        "alone",
        "of a datum in training mode, .* of it beside other data, expected the same: let noth",
    ),
    (LikelihoodWithoutMean, "mean", "found no .mean, expected the mean of"),
    (LikelihoodNotNormalized, "integrates", "an integral of"),
    (BitsNotAsScored, "samples", "draws whose mean of a test function"),
]


def check(member):
    if issubclass(member, pvae.Prior):
        takes = member in (IgnoresItsLabels, DropsItsLabels, KeepsNoCondition, FlattensItsLabels)
        return pvae.testing.check_prior(member(4, pvae.Label(3)) if takes else member(4))
    return CHECKS[member.family](make(member, 4, SHAPE))


@pytest.mark.parametrize(("member", "clause", "text"), BROKEN, ids=[b[0].__name__ for b in BROKEN])
def test_what_breaks_the_contract_is_told_in_a_line(member, clause, text):
    with pytest.raises(pvae.testing.ContractError, match=text) as found:
        check(member)
    message = str(found.value)
    assert "\n" not in message
    assert message.startswith(f"{member.family} {member.__module__}:{member.__name__}: {clause}")


class Parity(pvae.conditions.Condition):
    """A condition of one's own: whether a whole number is odd."""

    def __init__(self):
        super().__init__(1)

    def examples(self, n):
        return torch.arange(n)

    def forward(self, y):
        return (y % 2).unsqueeze(-1).float()


class AllEven(Parity):
    def examples(self, n):
        return torch.zeros(n, dtype=torch.int64)


def test_a_prior_that_was_made_without_its_condition_is_looked_at_with_one_too():
    skip = [name for name in pvae.testing.contract.CLAUSES if name != "labels"]
    for prior in (UsesWhatItInherits(2), pvae.priors.RealNVP(2), pvae.Normal(2)):
        assert pvae.testing.check_prior(prior, skip=skip).clauses["labels"] == "ok"


def test_labels_of_a_kind_of_ones_own():
    decoder = pvae.ConditionedDecoder(pvae.MLPDecoder(2 + 1, SHAPE, [8]), Parity())
    assert pvae.testing.check_likelihood(pvae.Gaussian(decoder, SHAPE)).skipped == {}
    with pytest.raises(pvae.testing.ContractError, match="the same log_prob under other labels"):
        pvae.testing.check_prior(DropsItsLabels(2, Parity()))
    found = pvae.testing.check_prior(DropsItsLabels(2, AllEven())).skipped
    assert found == {"labels": "the examples of its condition are all alike: pass y="}


def test_a_support_that_no_member_has_is_said():
    class Guide(pvae.MeanField):
        support = "the unit sfere"

    guide = Guide(pvae.MLPEncoder(SHAPE, 8, [8]), 4)
    found = pvae.testing.check_prior(DrawsFromNonsense(4), guide=guide, skip=("copies",)).skipped
    assert "members draw from 0 and 1, numbers" in found["support"]


def test_right_ones_pass():
    for part in (Wide, HasAModuleOfPyro, HasAModuleOfPyroOfOtherStrides, HasRoomForWhatItComputes, DropsOut):
        assert check(part).skipped == {}
    assert check(DrawsTheSameListWhenMade).skipped == {}
    assert check(InheritsACondition).skipped["labels"] == "it depends on no labels"
    waits = WaitsForData(4)
    waits.initialize(torch.randn(100, 8), None)
    assert pvae.testing.check_prior(waits).skipped == {}
    found = check(CannotBeSampled)
    assert found.skipped == {
        "independent": "it cannot be sampled",
        "samples": "it cannot be sampled",
        "mean": "it has no mean",
        "words": "it cannot be sampled, and says so",
    }
    assert "integrates  ok" in str(found)
    assert isinstance(pvae.testing.ContractError("x"), AssertionError)


class OneWay(pvae.Guide):
    """Right, but for what wants an inverse: Pyro's planar flow scores only what it has just drawn."""

    outputs = 2

    def __init__(self, encoder, latent):
        super().__init__(encoder, latent)
        self.flow = dist.transforms.Planar(latent)

    def forward(self, x, y=None):
        mean, raw = self.encode(x, y).chunk(2, -1)
        normal = dist.Normal(mean, raw.clamp(-3, 2).exp()).to_event(1)
        return dist.TransformedDistribution(normal, [self.flow])


class Shrunk(dist.transforms.Planar):
    def log_abs_det_jacobian(self, x, y):
        return super().log_abs_det_jacobian(x, y) + 0.7


class WrongOneWay(OneWay):
    """Wrong: its log_prob is too low."""

    def __init__(self, encoder, latent):
        super().__init__(encoder, latent)
        self.flow = Shrunk(latent)


def test_a_guide_that_scores_only_its_own_draws_is_held_against_them():
    def check(kind, *skip):
        return pvae.testing.check_guide(kind(pvae.MLPEncoder((6,), 4, [8]), 2), skip=skip)

    found = check(OneWay, "objectives")
    assert found.clauses["samples"] == "ok"
    assert found.skipped["integrates"] == "it scores only what it has just drawn: see 'samples'"
    with pytest.raises(pvae.testing.ContractError, match="samples: found draws whose mean of a test function is"):
        check(WrongOneWay, "objectives")
    with pytest.raises(pvae.testing.ContractError, match="expected a flow with an inverse, or, for training, the"):
        check(OneWay)


class OwnEncoder(pvae.networks.Encoder):
    """Right, but for what the others keep."""

    def __init__(self, shape, outputs, *, context=0):
        super().__init__(shape, outputs, context=context)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, outputs)
        self.keep()

    def keep(self):
        self.order = list(range(8))

    def forward(self, x, context=None):
        return self.last(self.first(x.flatten(1)).tanh()[:, self.order])


class ShufflesItsUnits(OwnEncoder):
    def keep(self):
        self.order = torch.randperm(8).tolist()


class ScalesItsUnits(OwnEncoder):
    def keep(self):
        self.register_buffer("scale", torch.randn(8), persistent=False)

    def forward(self, x, context=None):
        return self.last(self.first(x.flatten(1)).tanh() * self.scale)


def test_a_network_of_ones_own_is_made_anew_too():
    def check(network):
        return pvae.testing.check_guide(pvae.MeanField(network(SHAPE, 4), 2))

    assert check(OwnEncoder).skipped == {}
    with pytest.raises(pvae.testing.ContractError, match=r"state: found other draws .* of one that is made anew"):
        check(ShufflesItsUnits)
    with pytest.raises(pvae.testing.ContractError, match=r"state: found a buffer 'encoder\.scale' of persistent=False"):
        check(ScalesItsUnits)


def test_networks_of_plain_layers_say_what_they_take():
    guide, likelihood = pvae.MeanField(pvae.mlp(6, [8], 4), 2), pvae.Bernoulli(pvae.mlp(3, [8], 6), (6,))
    assert pvae.testing.check_guide(guide).skipped == pvae.testing.check_likelihood(likelihood).skipped == {}
    with pytest.raises(pvae.testing.ContractError, match="found an encoder that does not say what it takes"):
        pvae.testing.check_guide(pvae.MeanField(nn.Identity(), 2))


def test_a_clause_is_left_out():
    assert pvae.testing.check_prior(UnusedParameter(2), skip=("gradients",)).skipped == {"gradients": "left out"}
    with pytest.raises(pvae.InputError, match="skip: unknown clause 'gradient': did you mean 'gradients'"):
        pvae.testing.check_prior(Wide(2), skip=("gradient",))


def test_the_part_and_the_generator_are_left_as_they_were():
    prior, state, pythons = Wide(2), torch.get_rng_state(), random.getstate()
    before = copy.deepcopy(prior.state_dict())
    pvae.testing.check_prior(prior)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == pythons
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())


def test_what_is_no_part_of_the_family():
    with pytest.raises(pvae.testing.ContractError, match=r"model: found MeanField, expected a pvae\.Prior"):
        pvae.testing.check_prior(make(pvae.MeanField, 4, SHAPE))


class Correlated(pvae.Prior):
    """Right, and not of independent numbers."""

    def __init__(self, latent):
        super().__init__(latent)
        self.loc = nn.Parameter(torch.arange(latent).float())
        self.root = nn.Parameter(3 * torch.eye(latent) + torch.ones(latent, latent))

    def forward(self, y=None):
        return dist.MultivariateNormal(self.loc, scale_tril=self.root.tril())


@pytest.mark.parametrize("latent", [1, 2, 4])
def test_numbers_that_depend_on_one_another(latent):
    clauses = ("integrates", "samples", "mean")
    skip = [name for name in CLAUSES if name not in clauses]
    assert pvae.testing.check_prior(Correlated(latent), skip=skip).skipped.keys() == set(skip)


def test_values_that_are_few_are_counted_with_those_not_seen():
    p = dist.Bernoulli(torch.full((12,), 0.5)).to_event(1)
    total, error, _ = joint.mass(p, p.expand([8000]).sample())
    assert abs(total - 1) < 4 * error < 0.05
    assert joint.mass(dist.Bernoulli(torch.full((40,), 0.5)).to_event(1), torch.rand(100, 40).round()).startswith("too")
