"""Mistakes that do not show at a fresh start, or in one draw: the contract of parts finds each under its own name."""

import math

import pyro.distributions as dist
import pytest
import torch
from registry import variants
from torch import nn

import pvae
from pvae.testing.contract import CLAUSES
from pvae.testing.setting import make


class Normals(dist.Normal):
    """Right: what the wrong ones are made from."""

    def drawn(self, shape):
        return self.loc + self.scale * torch.randn(shape)

    def rsample(self, sample_shape=()):
        return self.drawn(self._extended_shape(torch.Size(sample_shape)))

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.rsample(sample_shape)


class Right(pvae.Prior):
    """A normal of learned means and scales, which start at 0 and 1."""

    kind = Normals

    def __init__(self, latent):
        super().__init__(latent)
        self.mean = nn.Parameter(torch.zeros(latent))
        self.log_scale = nn.Parameter(torch.zeros(latent))

    def forward(self, y=None):
        return self.kind(self.mean, self.log_scale.exp()).to_event(1)


class Stretch(torch.distributions.Transform):
    domain = codomain = torch.distributions.constraints.real_vector
    bijective = True

    def __init__(self, mean, log_scale):
        super().__init__()
        self.mean, self.log_scale = mean, log_scale

    def _call(self, x):
        return x * self.log_scale.exp() + self.mean

    def _inverse(self, y):
        return (y - self.mean) / self.log_scale.exp()

    def log_abs_det_jacobian(self, x, y):
        return torch.zeros(x.shape[:-1])  # and not log_scale.sum()


class ForgetsItsJacobian(Right):
    def forward(self, y=None):
        base = dist.Normal(torch.zeros(self.latent), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [Stretch(self.mean, self.log_scale)])


class ForgetsItsScale(Right):
    class kind(Normals):
        def log_prob(self, value):
            return -0.5 * ((value - self.loc) / self.scale).square() - 0.5 * math.log(2 * math.pi)


class ForgetsItsScaleBesideAShare(ForgetsItsScale):
    """Its other parameter is a probability, which may not be moved far."""

    def __init__(self, latent):
        super().__init__(latent)
        self.share = nn.Parameter(torch.tensor(0.95))

    def forward(self, y=None):
        each = self.kind(self.mean.expand(2, -1), self.log_scale.exp().expand(2, -1)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(probs=torch.stack([self.share, 1 - self.share])), each)


class DrawsAboutZero(Right):
    class kind(Normals):
        def drawn(self, shape):
            return 0 * self.loc + self.scale * torch.randn(shape)


class DrawsOfScaleOne(Right):
    class kind(Normals):
        def drawn(self, shape):
            return self.loc + 0 * self.scale + torch.randn(shape)


class MeanIsZero(Right):
    class kind(Normals):
        @property
        def mean(self):
            return torch.zeros_like(self.loc)


class KeepsAList(Right):
    def __init__(self, latent):
        super().__init__(latent)
        self.more = [nn.Parameter(torch.zeros(latent))]


class KeepsATuple(Right):
    def __init__(self, latent):
        super().__init__(latent)
        self.tables = (1.0, [torch.zeros(latent)])


class KeepsADict(Right):
    def __init__(self, latent):
        super().__init__(latent)
        self.by_name = {"a": nn.Linear(2, 2)}


class KeepsThemDeep(Right):
    def __init__(self, latent):
        super().__init__(latent)
        self.inner = nn.Module()
        self.inner.layers = [nn.Linear(2, 2)]


class OneDraw(Right):
    class kind(Normals):
        @property
        def mean(self):
            raise NotImplementedError

        def drawn(self, shape):
            return super().drawn(shape[-1:]).expand(shape)


class OneDrawForAllData(Right):
    class kind(Normals):
        def drawn(self, shape):
            return super().drawn((*shape[:-2], *[1] * (len(shape) > 1), shape[-1])).expand(shape)


class OneDrawForAllParticles(Right):
    class kind(Normals):
        def drawn(self, shape):
            return super().drawn((*shape[:-3], *[1] * (len(shape) > 2), *shape[-2:])).expand(shape)


class OneDrawForAllSamples(Right):
    class kind(Normals):
        def rsample(self, sample_shape=()):
            return self.drawn(self._extended_shape()).expand(self._extended_shape(torch.Size(sample_shape)))


class Antithetic(Right):
    """Its second half is its first, mirrored."""

    class kind(Normals):
        def drawn(self, shape):
            noise = torch.randn((shape[0] + 1) // 2, *shape[1:])
            return self.loc + self.scale * torch.cat([noise, -noise])[: shape[0]]


class EachDrawTwice(Right):
    class kind(Normals):
        def drawn(self, shape):
            z = super().drawn(shape)
            return z if len(shape) < 2 else z[[i - i % 2 for i in range(len(z))]]


class AlwaysTheSameDraws(Right):
    class kind(Normals):
        def drawn(self, shape):
            return self.loc + self.scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


class KeepsOneNumber(Right):
    """Its first number has the same noise at every call."""

    class kind(Normals):
        def drawn(self, shape):
            noise = torch.randn(shape)
            noise[..., 0] = torch.randn(shape[:-1], generator=torch.Generator().manual_seed(0))
            return self.loc + self.scale * noise


class OneDrawOfANumber(Right):
    """Its first number is drawn once a call."""

    class kind(Normals):
        def drawn(self, shape):
            noise = torch.randn(shape)
            noise[..., 0] = torch.randn(())
            return self.loc + self.scale * noise


class SharesSizes(Right):
    """Data share the sizes of their noise, and have signs of their own."""

    class kind(Normals):
        def drawn(self, shape):
            noise = torch.randn(shape)
            return self.loc + self.scale * (noise if len(shape) < 3 else noise.sign() * noise[..., :1, :].abs())


class CopiesTheThirdNext(Right):
    """Of each six draws the fourth is the first."""

    class kind(Normals):
        def drawn(self, shape):
            noise = torch.randn(shape)
            noise[3::6] = noise[0::6][: len(noise[3::6])]
            return self.loc + self.scale * noise


class CopiesTheThirdDatum(Right):
    class kind(Normals):
        def drawn(self, shape):
            noise = torch.randn(shape)
            if len(shape) > 1:
                noise[..., 3::6, :] = noise[..., 0::6, :][..., : noise[..., 3::6, :].shape[-2], :]
            return self.loc + self.scale * noise


class MirrorsItsCalls(Right):
    """Each second call gives the one before, mirrored."""

    class kind(Normals):
        last = None

        def drawn(self, shape):
            here = type(self)
            again = here.last is not None and here.last.shape == shape
            noise = -here.last if again else torch.randn(shape)
            here.last = None if again else noise
            return self.loc + self.scale * noise


class CentersItsBatch(Right):
    class kind(Normals):
        def log_prob(self, value):
            return super().log_prob(value - 0.01 * value.reshape(-1, value.shape[-1]).mean(0))


class MixesParticles(Right):
    class kind(Normals):
        def log_prob(self, value):
            square = value.dim() > 2 and value.shape[0] == value.shape[1]
            return super().log_prob(value.transpose(0, 1) if square else value)


class DrawsDetached(Right):
    class kind(Normals):
        def drawn(self, shape):
            return self.loc + self.scale.detach() * torch.randn(shape)


class DrawsBentAwayFromZero(Right):
    """Its gradient is right where the mean is 0."""

    class kind(Normals):
        def drawn(self, shape):
            return super().drawn(shape) + 5 * (self.loc - self.loc.detach()) * self.loc.detach()


class HalfAGradient(Right):
    class kind(Normals):
        def log_prob(self, value):
            still = dist.Normal(self.loc, self.scale.detach()).log_prob(value)
            return 0.5 * super().log_prob(value) + 0.5 * still


class ScoresItsDrawDetached(Right):
    """The gradient that reaches the guide by way of z is cut off."""

    class kind(Normals):
        def log_prob(self, value):
            return super().log_prob(value.detach())


class HeavyTailsDetached(dist.StudentT):
    """Its draws are by rejection: they jump as the degrees of freedom move."""

    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape).detach() + self.loc - self.loc.detach()


class DrawsByRejectionDetached(Right):
    def forward(self, y=None):
        return HeavyTailsDetached(4 + self.mean, self.mean, self.log_scale.exp()).to_event(1)


class Doubles(Right):
    def forward(self, y=None):
        return dist.Normal(self.mean.double(), self.log_scale.exp().double()).to_event(1)


MOVED = "once its parameters are moved a little, found "
MISTAKES = [
    (ForgetsItsJacobian, "integrates", MOVED + r"exp\(log_prob\) with an integral of"),
    (ForgetsItsScale, "integrates", MOVED + r"exp\(log_prob\) with an integral of"),
    (ForgetsItsScaleBesideAShare, "integrates", MOVED + r"exp\(log_prob\) with an integral of"),
    (DrawsAboutZero, "samples", MOVED + "draws whose mean of a test function is .* from what log_prob says"),
    (DrawsOfScaleOne, "samples", MOVED + "draws whose mean of a test function is .* from what log_prob says"),
    (MeanIsZero, "mean", MOVED + ".mean .* standard errors from the mean of the draws"),
    (KeepsAList, "model", r"a Parameter at 'more\[0\]' that is not trained, saved or moved, .* an nn.ParameterList$"),
    (KeepsATuple, "model", r"a tensor at 'tables\[1\]\[0\]' that no checkpoint would have, .* self.register_buffer"),
    (KeepsADict, "model", r"a module at 'by_name\['a'\]' that is not trained, saved or moved, .* an nn.ModuleDict$"),
    (KeepsThemDeep, "model", r"a module at 'inner.layers\[0\]' that is not trained, .* an nn.ModuleList$"),
    (OneDraw, "independent", "the same draw for every datum and particle, expected independent ones: draw noise of"),
    (OneDrawForAllData, "independent", r"draws for different data that go together \(a correlation of 1.00\)"),
    (OneDrawForAllParticles, "independent", r"draws for different particles that go together \(a correlation of 1.00"),
    (
        OneDrawForAllSamples,
        "independent",
        r"the same draw 501 times by .sample\(\(501,\)\), expected independent ones: dr",
    ),
    (Antithetic, "independent", r"draws for different particles that go together \(a correlation of -0"),
    (EachDrawTwice, "independent", r"draws for different particles that go together \(a correlation of 0"),
    (AlwaysTheSameDraws, "independent", "the same draws at a second call, expected others: draw from torch's own gen"),
    (KeepsOneNumber, "independent", "the same draws( of number 0)? at a second call, expected others: draw from torch"),
    (
        OneDrawOfANumber,
        "independent",
        "the same draw( of number 0)? for every datum and particle, expected independent",
    ),
    (SharesSizes, "independent", "draws for different data that go together"),
    (CopiesTheThirdNext, "independent", "draws for different particles that go together"),
    (CopiesTheThirdDatum, "independent", "draws for different data that go together"),
    (MirrorsItsCalls, "independent", "draws for different calls that go together"),
    (CentersItsBatch, "alone", "of a datum in a batch of 4, with 4 particles, .* of it alone, expected the same"),
    (MixesParticles, "alone", "of a datum in a batch of 4, with 4 particles, .* of it alone, expected the same"),
    (DrawsDetached, "derivatives", r"a gradient of rsample of .*, as it changes: use no .detach\(\)"),
    (DrawsBentAwayFromZero, "derivatives", "a gradient of rsample of"),
    (DrawsByRejectionDetached, "derivatives", "a gradient of rsample of"),
    (HalfAGradient, "derivatives", "a gradient of log_prob of"),
    (
        ScoresItsDrawDetached,
        "derivatives",
        r"a gradient of log_prob of 0 along a direction of z, expected .*, as it cha",
    ),
    (Doubles, "shapes", "found a draw of float64, expected float32, as the model's"),
]


@pytest.mark.parametrize("latent", [1, 2, 5])
@pytest.mark.parametrize(("prior", "clause", "text"), MISTAKES, ids=[m[0].__name__ for m in MISTAKES])
def test_a_mistake_is_found_by_the_clause_of_its_own(prior, clause, text, latent):
    with pytest.raises(pvae.testing.ContractError, match=text) as found:
        pvae.testing.check_prior(prior(latent))
    assert "\n" not in str(found.value)
    assert str(found.value).startswith(f"prior {prior.__module__}:{prior.__qualname__}: {clause}: ")


def test_what_they_are_made_from_is_right():
    assert pvae.testing.check_prior(Right(2)).skipped == {}


class OneNoiseForAllData(pvae.MeanField):
    """Draws of different data differ, and go together."""

    def forward(self, x, y=None):
        q = super().forward(x, y)
        return OneDrawForAllData.kind(q.mean, q.stddev).to_event(1)


def test_a_guide_whose_data_share_their_noise():
    with pytest.raises(pvae.testing.ContractError, match="independent: found draws for different data that go togeth"):
        pvae.testing.check_guide(make(OneNoiseForAllData, 4, (3, 2)))


class GuideThatScoresItsDrawDetached(pvae.MeanField):
    def forward(self, x, y=None):
        q = super().forward(x, y)
        return ScoresItsDrawDetached.kind(q.mean, q.stddev).to_event(1)


class DecodesDetached(pvae.Bernoulli):
    def decode(self, z, y=None):
        return super().decode(z.detach(), y)


@pytest.mark.parametrize("part", [GuideThatScoresItsDrawDetached, DecodesDetached])
def test_a_gradient_that_does_not_pass_through_z(part):
    check = {"guide": pvae.testing.check_guide, "likelihood": pvae.testing.check_likelihood}[part.family]
    with pytest.raises(
        pvae.testing.ContractError, match="derivatives: found a gradient of log_prob of 0 along a direct"
    ):
        check(make(part, 4, (3, 2)))


class Rare(pvae.Likelihood):
    """Right: what seldom is one."""

    support = "binary"

    def forward(self, z, y=None):
        return dist.Bernoulli(3e-4 * (0.1 * self.decode(z, y)).exp()).to_event(1)


@pytest.mark.parametrize("seed", range(4))
def test_values_that_are_rare_do_not_go_together(seed):
    skip = [name for name in CLAUSES if name != "independent"]
    likelihood = make(pvae.Bernoulli, 2, (60,))
    found = pvae.testing.check_likelihood(Rare(likelihood.decoder, (60,)), skip=skip, seed=seed)
    assert found.clauses["independent"] == "ok"


class Bounds(Right):
    """Right: where its density ends depends on its parameters."""

    def forward(self, y=None):
        return dist.Uniform(self.mean - 1, self.mean + self.log_scale.exp()).to_event(1)


class ByRejection(Right):
    """Right: its draws jump as its parameters move."""

    def forward(self, y=None):
        return dist.StudentT(4 + self.mean, self.mean, self.log_scale.exp()).to_event(1)


class Kinked(Right):
    """Right: its density has a kink in every number."""

    def forward(self, y=None):
        return dist.Laplace(self.mean, self.log_scale.exp()).to_event(1)


class Shares(Right):
    """Right: a probability as it is, which may not be moved far."""

    def __init__(self, latent):
        super().__init__(latent)
        self.share = nn.Parameter(torch.tensor(0.95))

    def forward(self, y=None):
        probs = torch.stack([self.share, 1 - self.share])
        each = dist.Normal(torch.stack([self.mean, self.mean + 1]), self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(probs=probs), each)


class Recurrent(Right):
    """Right: torch's own module keeps its parameters in a list, too."""

    def __init__(self, latent):
        super().__init__(latent)
        self.network = nn.GRU(1, latent, batch_first=True)

    def forward(self, y=None):
        return self.kind(self.mean + self.network(torch.ones(1, 2, 1))[1].flatten(), self.log_scale.exp()).to_event(1)


class HoldsItself(Right):
    """Right: a list of settings that is in itself."""

    def __init__(self, latent):
        super().__init__(latent)
        self.settings = [1.0]
        self.settings.append(self.settings)


LOOKED = ("alone", "independent", "integrates", "samples", "mean", "derivatives")


@pytest.mark.parametrize("prior", [Bounds, ByRejection, Kinked, Shares, Recurrent, HoldsItself])
def test_right_ones_that_look_odd(prior):
    skip = [name for name in CLAUSES if name not in LOOKED]
    assert set(pvae.testing.check_prior(prior(2), skip=skip).skipped) == set(skip)


@pytest.mark.parametrize(("latent", "seed"), [(2, 0), (2, 5), (2, 25), (3, 0), (3, 11)])
def test_a_right_density_that_bends_much_passes(latent, seed):
    """Its integral, and its finite differences, are as close as a lattice and a step of theirs can be."""
    torch.manual_seed(seed)
    part = pvae.priors.Spline(latent)
    pvae.testing.check_prior(part, seed=seed, skip=[name for name in CLAUSES if name not in LOOKED])


@pytest.mark.slow
@pytest.mark.parametrize(("member", "options"), [v for f in ("prior", "guide") for v in variants(f)])
def test_members_pass_whatever_the_seed(member, options):
    check = {"prior": pvae.testing.check_prior, "guide": pvae.testing.check_guide}[member.family]
    takes = "condition" in member.__init__.__annotations__
    for seed in range(10, 15):
        torch.manual_seed(seed)
        part = make(member, 4, (3, 2), {**options, **({"condition": pvae.Label(3)} if takes else {})})
        check(part, seed=seed, skip=[name for name in CLAUSES if name not in LOOKED])
