"""Every registered part, by existing, in models of every kind; then closed forms, part by part.

What a part has to keep by itself is in `test_contract`.
"""

import copy
import functools
import inspect
import math

import pyro
import pytest
import scipy.stats
import torch
from pyro.infer import Trace_ELBO
from registry import EACH, FITTING, variants
from torch import nn
from torch.func import grad, vmap

import pvae
from pvae import config
from pvae.base import members, root
from pvae.estimators import surrogates
from pvae.likelihoods import decoded_shape

LATENT, SHAPE = 3, (6, 5)
FAMILIES = ("prior", "likelihood", "guide", "encoder", "decoder")
LEADS = [(), (4,), (2, 4), (3, 2, 4)]


def every(family):
    return pytest.mark.parametrize(("member", "options"), list(variants(family)))


def outputs_of(member, options):
    """`outputs` of a member with these options, as before it is made."""
    own = {name: p.default for name, p in config.member_options(member.family, member).items()} | (options or {})
    return member.outputs_for(LATENT, **own) if member.family == "guide" else member.outputs_for(**own)


def make(member, options=None, seed=0):
    """A part with plain networks, or a network: its family's arguments first."""
    torch.manual_seed(seed)
    arguments = {
        "prior": lambda: (LATENT,),
        "likelihood": lambda: (
            pvae.MLPDecoder(LATENT, decoded_shape(SHAPE, outputs_of(member, options)), [8], "tanh"),
            SHAPE,
        ),
        "guide": lambda: (pvae.MLPEncoder(SHAPE, outputs_of(member, options) * LATENT, [8], "tanh"), LATENT),
        "encoder": lambda: (SHAPE, 7),
        "decoder": lambda: (LATENT, SHAPE),
    }
    needed = {"condition": pvae.Label(3)} if needs_labels(member) else {}
    part = member(*arguments[member.family](), **(options or {}), **needed)
    if member.family == "prior":
        part.connect(part, *partners())
    if member.family == "guide":
        torch.manual_seed(0)  # the same others for every guide
        part.connect(pvae.Normal(LATENT), pvae.Bernoulli(pvae.MLPDecoder(LATENT, SHAPE, [8], "tanh"), SHAPE), part)
    return part


def needs_labels(member):
    condition = inspect.signature(member).parameters.get("condition")
    return condition is not None and condition.default is condition.empty


@functools.cache
def partners():
    """A likelihood and a guide for what is made of them."""
    return make(pvae.Bernoulli), make(pvae.MeanField)


def inputs(family, *lead):
    return {
        "prior": lambda: torch.randint(3, lead),
        "likelihood": lambda: torch.randn(*lead, LATENT),
        "guide": lambda: torch.rand(*lead, *SHAPE).round(),
        "encoder": lambda: torch.rand(*lead, *SHAPE),
        "decoder": lambda: torch.randn(*lead, LATENT),
    }[family]()


def event(family):
    return {"likelihood": SHAPE, "decoder": SHAPE, "encoder": (7,)}.get(family, (LATENT,))


PARTS = [variant for family in ("prior", "likelihood", "guide") for variant in variants(family)]
NETWORKS = [variant for family in ("encoder", "decoder") for variant in variants(family)]
WHOLES = PARTS + [pytest.param(m, {}, id=f"{f}-{n}") for f in ("encoder", "decoder") for n, m in members(f).items()]
part_variants = pytest.mark.parametrize(("member", "options"), PARTS)
network_variants = pytest.mark.parametrize(("member", "options"), NETWORKS)
leads = pytest.mark.parametrize("lead", LEADS, ids=str)


# Every part -----------------------------------------------------------------------------------------------------------


@part_variants
def test_initialize_takes_any_data_and_leaves_finite_parameters(member, options):
    for x in (torch.rand(10, *SHAPE), torch.zeros(10, *SHAPE), torch.ones(1, *SHAPE)):
        part = make(member, options)
        part.initialize(x)
        assert all(value.isfinite().all() for value in part.state_dict().values())


@pytest.mark.parametrize("member", [m for f in (*FAMILIES, "objective", "gradient") for m in members(f).values()])
def test_constructors_conform(member):
    """The family's arguments first and of the same kind; an option has a default, a type and a line of help."""
    ours, familys = (inspect.signature(c).parameters for c in (member, root(member.family)))
    positional = [n for n, p in familys.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(positional)] == positional
    assert all(ours[name].kind == familys[name].kind for name in positional)
    for name, option in config.member_options(member.family, member).items():
        assert option.default is not option.empty, name
        assert option.annotation is not option.empty, name
        assert config.member_help(member, name), f"the docstring does not say what {name} is"


# Whole VAEs -----------------------------------------------------------------------------------------------------------


def partner(member):
    """The plainest prior for a guide, or guide for a prior, whose draws lie where this one's do."""
    family, plain = {"prior": ("guide", pvae.MeanField), "guide": ("prior", pvae.Normal)}[member.family]
    return family, next(m for m in (plain, *members(family).values()) if m.support == member.support)


def whole(member, options):
    family = member.family
    chosen = {"prior": pvae.Normal, "likelihood": pvae.Bernoulli, "guide": pvae.MeanField} | {family: member}
    chosen |= [partner(member)] if family in ("prior", "guide") else []
    prior, likelihood, guide = (
        make(chosen[f], options if f == family else {}) for f in ("prior", "likelihood", "guide")
    )
    if family == "decoder":
        likelihood = pvae.Bernoulli(make(member, options), SHAPE)
    if family == "encoder":
        guide = pvae.MeanField(member(SHAPE, 2 * LATENT, **options), LATENT)
    return pvae.VAE(prior, likelihood, guide)


def has_transport(prior):
    """Whether a prior's draws are a map from noise that gradients can be taken of; without parameters none are."""
    p = prior(labels())
    try:
        surrogates.transported({"name": "z", "fn": p, "value": p.sample(), "mask": None})
    except pvae.InputError:
        return not p.log_prob(p.sample()).requires_grad
    return True


def data(n=5, likelihood=None):
    """Zeros and ones, which most likelihoods score; where 0 and 1 are outside its support, numbers between them."""
    x = torch.bernoulli(torch.rand(n, *SHAPE))
    return 0.25 + x / 2 if likelihood is not None and likelihood.support == "open_unit_interval" else x


def labels(n=5):
    return torch.arange(n) % 3


@pytest.mark.parametrize(
    ("member", "options", "objective", "gradient"),
    [
        pytest.param(*part.values, objective, gradient, id=f"{part.id}-{objective.name}-{gradient}")
        for part in WHOLES
        for objective, gradient in (FITTING if part.id == "likelihood-bernoulli" else EACH)
    ],
)
def test_every_part_trains_under_every_objective_and_every_gradient(member, options, objective, gradient):
    vae = whole(member, options)
    x = data(5, vae.likelihood)
    chosen = members("gradient")[gradient]
    if chosen.reparameterized and not vae.encode(x).has_rsample:
        with pytest.raises(pvae.InputError, match="pass as the gradient one of those that need none: score, vimco"):
            objective(3, gradient=gradient).loss_and_grads(vae.model, vae.guide, x)
        return
    step = functools.partial(objective(3, gradient=gradient).loss_and_grads, vae.model, vae.guide, x, labels())
    if chosen.scores and not vae.posterior.bound:
        with pytest.raises(pvae.InputError, match="is a point mass"):
            step()
        return
    if gradient == "gdreg" and not has_transport(vae.prior):
        with pytest.raises(pvae.InputError, match="for gradient gdreg: use dreg"):
            step()
        return
    loss = step()
    assert loss.isfinite()
    still = objective is pvae.Chi and not vae.posterior.bound  # the gap that the guide is to narrow is 0 at a point
    assert all(p.grad is not None and p.grad.norm() > 0 for p in (vae.likelihood if still else vae).parameters())


@pytest.mark.parametrize(("member", "options"), WHOLES)
def test_a_vae_is_copied_after_use(member, options):
    vae = whole(member, options)
    x = (data(5, vae.likelihood), labels())
    objective = pvae.ELBO() if vae.encode(*x).has_rsample else pvae.ELBO(2, gradient="score")
    pvae.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective).step(*x)
    pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(*x)
    other = copy.deepcopy(vae).eval()
    found = []
    for one in (vae.eval(), other):
        torch.manual_seed(1)
        found.append(one.log_weights(*x, particles=2).log_w)
    assert torch.equal(*found)
    before = [p.clone() for p in vae.parameters()]
    pyro.infer.SVI(other.model, other.guide, pyro.optim.Adam({"lr": 1e-1}), Trace_ELBO()).step(*x)
    assert all(torch.equal(p, b) for p, b in zip(vae.parameters(), before, strict=True))
    assert not any(torch.equal(p, b) for p, b in zip(other.parameters(), before, strict=True))


# Bernoulli ------------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([-50.0, -49.9, -20.0, -3.0, -1e-3, 0.0, 1e-9, 0.5, 4.0, 20.0, 49.9, 50.0], dtype=torch.float64)


def bernoulli(shape):
    """Logits (..., *shape) to its distribution."""
    return pvae.Bernoulli(nn.Identity(), shape)


@pytest.mark.parametrize("shape", [(12,), (3, 4), (1, 3, 4)], ids=str)
def test_bernoulli_is_torchs_in_value_and_gradient(shape):
    x = torch.stack([torch.zeros(12), torch.ones(12), torch.arange(12) % 2]).double()
    found, expected = (LOGITS.repeat(3, 1).requires_grad_() for _ in range(2))
    x_found, x_expected = (x.clone().requires_grad_() for _ in range(2))
    ours = bernoulli(shape)(found).log_prob(x_found.reshape(3, *shape))
    theirs = torch.distributions.Bernoulli(logits=expected).log_prob(x_expected).sum(-1)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(x_found.grad, x_expected.grad, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(
        lambda a, b: bernoulli((12,))(a).log_prob(b), (torch.randn(2, 12).double().requires_grad_(), x[:2])
    )


def test_bernoulli_broadcasts_data_against_particles():
    logits = torch.randn(5, 3, 4, 2).double().requires_grad_()
    x = torch.bernoulli(torch.rand(3, 4, 2)).double()
    p = bernoulli((4, 2))(logits.flatten(2))
    log_prob = p.log_prob(x)
    assert log_prob.shape == (5, 3)
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum((-2, -1))
    torch.testing.assert_close(log_prob, expected)
    found, right = (torch.autograd.grad(v.sum(), logits)[0] for v in (log_prob, expected))
    torch.testing.assert_close(found, right)
    # the other way round: several data against one latent's logits
    one = bernoulli((4, 2))(logits[0, 0].flatten())
    torch.testing.assert_close(
        one.log_prob(x), torch.distributions.Bernoulli(logits=logits[0, 0]).log_prob(x).sum((-2, -1))
    )


def test_bernoulli_expands():
    logits = torch.randn(3, 4).double().requires_grad_()
    x = torch.bernoulli(torch.rand(5, 3, 4)).double()
    p = bernoulli((4,))(logits).expand([5, 3])
    assert (p.batch_shape, p.event_shape) == ((5, 3), (4,))
    assert p.sample().shape == (5, 3, 4)
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(p.log_prob(x), expected)
    (found,) = torch.autograd.grad(p.log_prob(x).sum(), logits)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), logits)[0])


def test_bernoulli_of_one_number_keeps_the_batch():
    x = torch.tensor([0.0, 1.0, 1.0])
    p = pvae.Bernoulli(nn.Linear(2, 1), ())(torch.randn(3, 2))
    assert p.event_shape == ()
    torch.testing.assert_close(p.log_prob(x), torch.distributions.Bernoulli(p.mean).log_prob(x))


@pytest.mark.parametrize("batched", [(0, 0), (0, None), (None, 0)], ids=str)
def test_bernoulli_under_vmap(batched):
    logits, x = torch.randn(3, 4).double(), torch.bernoulli(torch.rand(3, 4)).double()
    arguments = [value if dim == 0 else value[0] for value, dim in zip((logits, x), batched, strict=True)]

    def ours(logits, x):
        return bernoulli((4,))(logits).log_prob(x)

    def theirs(logits, x):
        return torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(-1)

    with pyro.validation_enabled(False):
        rows = [[a[i] if dim == 0 else a for a, dim in zip(arguments, batched, strict=True)] for i in range(3)]
        expected = torch.stack([theirs(*row) for row in rows])
        torch.testing.assert_close(vmap(ours, batched)(*arguments), expected)
        for number in (0, 1):
            expected = torch.stack([grad(theirs, argnums=number)(*row) for row in rows])
            torch.testing.assert_close(vmap(grad(ours, argnums=number), batched)(*arguments), expected)
        jacobian = torch.autograd.functional.jacobian(lambda a: ours(a, x), logits, vectorize=True)
        torch.testing.assert_close(jacobian.sum(1), x - logits.sigmoid())


def test_bernoulli_takes_no_grey_pixels():
    with pytest.raises(ValueError, match="support"):
        bernoulli((2,))(torch.zeros(2)).log_prob(torch.tensor([0.5, 1.0]))


def test_bernoullis_mean_and_draws():
    logits = torch.tensor([-1e3, -1.0, 0.0, 2.0, 1e3])
    p = bernoulli((5,))(logits)
    assert torch.equal(p.mean, logits.sigmoid())
    x = p.expand([40_000]).sample()
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert (x.mean(0) - logits.sigmoid()).abs().max() < 4 * 0.5 / 200


# Gaussian -------------------------------------------------------------------------------------------------------------


def gaussian(scale, **options):
    """Means (..., 6) to its distribution over (2, 3), float64."""
    return pvae.Gaussian(nn.Identity(), (2, 3), scale=scale, **options).double()


@pytest.mark.parametrize("scale", [0.3, "shared", "pixel", "optimal"])
def test_gaussian_is_a_density_with_all_its_constants(scale):
    part = gaussian(scale).eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter += torch.randn_like(parameter)
    mean, x = torch.randn(5, 4, 2, 3).double(), torch.randn(4, 2, 3).double()
    p = part(mean.flatten(-2))
    s = part.scale.detach()
    assert s.shape == ((2, 3) if scale == "pixel" else ())
    expected = scipy.stats.norm.logpdf(x, mean, s).sum((-2, -1))
    torch.testing.assert_close(p.log_prob(x).detach(), torch.from_numpy(expected), rtol=1e-12, atol=0)
    torch.testing.assert_close(p.log_prob(x), torch.distributions.Normal(mean, s).log_prob(x).sum((-2, -1)))
    assert torch.equal(p.mean, mean)
    if isinstance(scale, float):
        assert s.item() == pytest.approx(scale, rel=1e-6)


def test_a_learned_scale_starts_at_one_and_stays_above_its_bound():
    for scale in ("shared", "pixel"):
        part = gaussian(scale, min_scale=0.05)
        torch.testing.assert_close(part.scale, torch.ones_like(part.scale), rtol=0, atol=1e-6)
        part.raw_scale.data.fill_(-1e3)
        assert (part.scale == 0.05).all()


@pytest.mark.parametrize("scale", ["shared", "pixel"])
def test_a_bound_above_the_start_leaves_a_scale_that_trains(scale):
    """Pixels in units of 0 to 255, for one."""
    for bound in (1.0, 2.0):
        part = gaussian(scale, min_scale=bound)
        assert (part.scale >= bound).all()
        part.scale.sum().backward()
        assert (part.raw_scale.grad > 0).all()


def test_the_optimal_scale_is_the_root_of_the_mean_squared_error():
    part = gaussian("optimal")
    mean, x = torch.randn(7, 6).double().requires_grad_(), torch.randn(7, 2, 3).double()
    log_prob = part(mean).log_prob(x)
    mse = (x.flatten(1) - mean).square().mean()
    closed_form = -6 / 2 * ((2 * math.pi * mse).log() + 1)
    torch.testing.assert_close(log_prob.mean(), closed_form, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        log_prob, torch.distributions.Normal(mean, mse.sqrt()).log_prob(x.flatten(1)).sum(-1), rtol=1e-12, atol=0
    )
    # the scale is at its optimum, so its own gradient does not matter
    found, expected = (torch.autograd.grad(v, mean)[0] for v in (log_prob.mean(), closed_form))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    # a grid of other scales is worse
    for factor in (0.8, 0.99, 1.01, 1.2):
        other = torch.distributions.Normal(mean, mse.sqrt() * factor).log_prob(x.flatten(1)).sum(-1).mean()
        assert other < log_prob.mean()


def test_evaluation_uses_the_running_optimal_scale_and_leaves_it():
    part = gaussian("optimal")
    mean, x = torch.zeros(7, 6).double(), 3 * torch.randn(7, 2, 3).double()
    for _ in range(1000):
        part(mean).log_prob(x)
    torch.testing.assert_close(part.scale, x.square().mean().sqrt(), rtol=1e-3, atol=0)
    part.eval()
    before = part.scale.clone()
    one, all_ = part(mean[:1]).log_prob(x[:1]), part(mean).log_prob(x)
    assert torch.equal(part.scale, before)
    assert torch.equal(one, all_[:1])
    torch.testing.assert_close(all_, torch.distributions.Normal(0.0, before).log_prob(x).sum((-2, -1)))


def test_the_running_scale_moves_by_a_hundredth():
    part = gaussian("optimal")
    part(torch.zeros(1, 6).double()).log_prob(torch.full((1, 2, 3), 2.0).double())
    assert part.scale.item() == pytest.approx(math.sqrt(0.99 * 1 + 0.01 * 4), rel=1e-6)


def test_a_constant_pixel_has_a_bounded_density():
    part, x = gaussian("optimal", min_scale=0.01), torch.ones(4, 2, 3).double()
    expected = torch.distributions.Normal(1.0, 0.01).log_prob(x).sum((-2, -1))
    torch.testing.assert_close(part(x.flatten(1)).log_prob(x), expected)
    for _ in range(3000):
        part(x.flatten(1)).log_prob(x)
    assert part.scale >= 0.01
    for scale in ("shared", "pixel", "optimal"):
        learned = gaussian(scale, min_scale=0.01)
        learned.initialize(x)
        assert (learned.scale >= 0.01 * (1 - 1e-6)).all()
        assert learned.eval()(x.flatten(1)).log_prob(x).isfinite().all()


def test_a_batch_that_is_not_finite_leaves_the_running_scale():
    part = gaussian("optimal")
    part(torch.zeros(1, 6).double()).log_prob(torch.zeros(1, 2, 3).double())
    before = part.scale.clone()
    with pyro.validation_enabled(False):
        assert part(torch.full((1, 6), math.nan).double()).log_prob(torch.zeros(1, 2, 3).double()).isnan()
    assert torch.equal(part.scale, before)


def test_the_optimal_scale_is_no_parameter():
    assert not list(gaussian("optimal").parameters())


def test_the_optimal_scale_expands():
    part = gaussian("optimal")
    x = torch.randn(5, 4, 2, 3).double()
    mean = torch.randn(4, 6).double()
    found = part(mean).expand([5, 4]).log_prob(x)
    torch.testing.assert_close(found, part(mean.expand(5, 4, 6)).log_prob(x))


# Mean field -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [{}, {"min_scale": 0.3, "max_scale": 1.5}], ids=str)
def test_the_guides_scale_is_one_at_zero_bounded_and_monotone(bounds):
    guide = pvae.MeanField(nn.Identity(), 1, **bounds)

    def scale(raw):
        q = guide(torch.stack([torch.zeros_like(raw), raw], -1))
        return q.base_dist.scale.squeeze(-1)

    low, high = bounds.get("min_scale", 1e-4), bounds.get("max_scale", 10.0)
    assert scale(torch.zeros(1).double()).item() == pytest.approx(1, abs=1e-14)
    found = scale(torch.linspace(-25, 25, 301).double())
    assert (found.diff() > 0).all()
    ends = scale(torch.tensor([-1e4, 1e4]).double()).tolist()
    assert ends == pytest.approx([low, high], rel=1e-12)
    assert low <= found[0] < 1 < found[-1] <= high
    if not bounds:
        raw = torch.linspace(-4, 0, 9).double()
        torch.testing.assert_close(scale(raw), raw.exp(), rtol=0.15, atol=0)


def test_the_guide_splits_its_encoders_numbers_into_means_and_scales():
    q = pvae.MeanField(nn.Identity(), 2)(torch.tensor([[0.5, -3.0, 0.0, 0.0]]))
    assert q.mean.tolist() == [[0.5, -3.0]]
    x = torch.randn(1, 2)
    expected = torch.distributions.Normal(torch.tensor([0.5, -3.0]), 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(q.log_prob(x), expected)


def test_the_standard_normal_prior():
    z = torch.randn(7, 4)
    expected = torch.from_numpy(scipy.stats.norm.logpdf(z).sum(-1)).float()
    torch.testing.assert_close(pvae.Normal(4)().log_prob(z), expected)


# Starting values ------------------------------------------------------------------------------------------------------


@every("decoder")
def test_a_centred_decoders_output_is_the_value_and_what_z_adds(member, options):
    decoder, z, value = make(member, options), torch.randn(4, LATENT), torch.randn(SHAPE)
    decoder.center(torch.zeros(()))
    zero = decoder(z)
    decoder.center(value)
    torch.testing.assert_close(decoder(z) - zero, value.expand(4, *SHAPE), rtol=1e-5, atol=1e-5)


def bias(decoder):
    return decoder.bias if isinstance(decoder, pvae.ConvDecoder) else decoder.layers[-1].bias.reshape(SHAPE)


@pytest.mark.parametrize("decoder", [pvae.MLPDecoder, pvae.ConvDecoder])
def test_bernoulli_starts_at_the_training_means_logit(decoder):
    x = torch.bernoulli(torch.rand(SHAPE).expand(50, *SHAPE))
    x[:, 0, 0], x[:, 1, 1] = 0, 1
    part = pvae.Bernoulli(decoder(LATENT, SHAPE), SHAPE)
    part.initialize(x)
    mean = x.mean(0).clamp(0.001, 0.999)
    torch.testing.assert_close(bias(part.decoder), (mean / (1 - mean)).log())
    assert bias(part.decoder)[0, 0].item() == pytest.approx(math.log(0.001 / 0.999), rel=1e-5)
    assert bias(part.decoder)[1, 1].item() == pytest.approx(math.log(0.999 / 0.001), rel=1e-4)


@pytest.mark.parametrize("decoder", [pvae.MLPDecoder, pvae.ConvDecoder])
@pytest.mark.parametrize("scale", ["shared", "pixel", "optimal", 0.5])
def test_gaussian_starts_at_the_training_mean_and_deviation(scale, decoder):
    x = 3 + torch.linspace(0.5, 4, 30).reshape(SHAPE) * torch.randn(200, *SHAPE)
    part = pvae.Gaussian(decoder(LATENT, SHAPE), SHAPE, scale=scale)
    part.initialize(x)
    torch.testing.assert_close(bias(part.decoder), x.mean(0))
    by_pixel = x.std(0, correction=0)
    expected = {"pixel": by_pixel, 0.5: torch.tensor(0.5)}.get(scale, by_pixel.square().mean().sqrt())
    torch.testing.assert_close(part.scale.detach(), expected, rtol=1e-4, atol=0)


def test_a_plain_decoder_is_not_initialized():
    decoder = nn.Linear(LATENT, 30)
    before = decoder.bias.clone()
    for part in (pvae.Bernoulli(decoder, SHAPE), pvae.Gaussian(decoder, SHAPE)):
        part.initialize(torch.rand(10, *SHAPE))
        assert torch.equal(decoder.bias, before)


# Networks -------------------------------------------------------------------------------------------------------------


@leads
@network_variants
def test_a_network_takes_any_leading_dimensions(member, options, lead):
    network, x = make(member, options).eval(), inputs(member.family, *lead)
    out = network(x)
    assert out.shape == lead + event(member.family)
    last = (-1,) * len(lead)
    torch.testing.assert_close(out[last], network(x[last]), rtol=1e-4, atol=1e-5)


def test_mlp_has_the_layers_it_was_asked_for():
    network = pvae.mlp(4, [8, 6], 2, "tanh")
    assert [type(layer).__name__ for layer in network] == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
    assert [tuple(layer.weight.shape) for layer in network[::2]] == [(8, 4), (6, 8), (2, 6)]
    assert len(pvae.mlp(4, [], 2)) == 1


def test_plain_torch_modules_are_networks():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, 8), nn.ReLU(), nn.Linear(8, 30))
    vae = pvae.VAE(
        pvae.Normal(LATENT), pvae.Bernoulli(decoder, SHAPE), pvae.MeanField(encoder, LATENT, event_dim=len(SHAPE))
    )
    x = data()
    assert vae.reconstruct(x).shape == x.shape
    assert vae.log_weights(x, particles=4).log_w.shape == (4, 5)
    pvae.IWAE(4).loss_and_grads(vae.model, vae.guide, x)
    assert all(p.grad.norm() > 0 for p in vae.parameters())
    # one that knows exactly one batch dimension
    conv = nn.Sequential(nn.Unflatten(1, (1, 6, 5)), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(24, 2 * LATENT))
    flat = pvae.MeanField(nn.Sequential(nn.Flatten(), conv), LATENT, event_dim=2)
    assert flat(data(24).reshape(3, 2, 4, *SHAPE)).batch_shape == (3, 2, 4)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: pvae.Bernoulli(nn.Linear(2, 29), SHAPE)(torch.zeros(4, 2)),
            r"decoder: found an output of shape \(29,\) for each latent, expected \(6, 5\) for Bernoulli data of shape",
        ),
        (
            lambda: pvae.Gaussian(pvae.MLPDecoder(2, (3, 4)), SHAPE)(torch.zeros(3, 4, 2)),
            r"decoder: found an output of shape \(3, 4\) for each latent, expected \(6, 5\) for Gaussian",
        ),
        (
            lambda: pvae.MeanField(nn.Linear(6, 5), 3)(torch.zeros(4, 6)),
            "encoder: found 5 outputs, expected 2 for each of 3 latent dimensions of MeanField",
        ),
        (lambda: pvae.mlp(2, [3], 2, "rleu"), "activation: unknown name 'rleu': did you mean 'relu'[?] known: elu, "),
        (lambda: pvae.ConvEncoder((8, 8), 2, activation="Tanhh"), "unknown name 'Tanhh': did you mean 'tanh'"),
        (lambda: pvae.ConvEncoder((8,), 2), r"conv: found data of shape \(8,\), expected images .*: use mlp"),
        (lambda: pvae.ConvDecoder(2, ()), r"conv: found data of shape \(\), expected images .*: use mlp"),
        (lambda: gaussian(1e-4), "scale: found 0.0001, expected at least min_scale = 0.001"),
        (lambda: gaussian(-1.0), "scale: found -1.0, expected at least min_scale"),
        (lambda: gaussian(math.nan), "scale: found nan, expected at least min_scale"),
        (lambda: gaussian("pixels"), "scale: found 'pixels', expected a number or a known word: did you mean 'pixel'"),
        (lambda: gaussian(1.0, min_scale=0.0), "min_scale: found 0.0, expected more than 0"),
        (lambda: gaussian("shared", min_scale=math.nan), "min_scale: found nan, expected more than 0"),
        (lambda: pvae.MeanField(nn.Identity(), 1, min_scale=0), "found 0, 10.0, expected 0 < min_scale < 1 < max"),
        (lambda: pvae.MeanField(nn.Identity(), 1, max_scale=1.0), "found 0.0001, 1.0, expected 0 < min_scale < 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(wrong, message):
    with pytest.raises(pvae.InputError, match=message) as found:
        wrong()
    assert "\n" not in str(found.value)
