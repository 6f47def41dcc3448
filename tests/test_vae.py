"""The VAE as Pyro programs under stock Pyro, two in one process, and parts written outside the package."""

import copy
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import pvae
from pvae.base import announce
from pvae.evaluate import evaluate

SHAPE, LATENT = (4, 5), 3

STOCK = {
    "Trace_ELBO": lambda: Trace_ELBO(),
    "Trace_ELBO, 3": lambda: Trace_ELBO(num_particles=3),
    "Trace_ELBO, 3, vectorized": lambda: Trace_ELBO(num_particles=3, max_plate_nesting=1, vectorize_particles=True),
    "TraceGraph_ELBO": lambda: TraceGraph_ELBO(),
    "TraceMeanField_ELBO": lambda: TraceMeanField_ELBO(),
    "TraceMeanField_ELBO, 3, vectorized": lambda: TraceMeanField_ELBO(
        num_particles=3, max_plate_nesting=1, vectorize_particles=True
    ),
    "RenyiELBO": lambda: RenyiELBO(alpha=0.5, num_particles=3),
    "RenyiELBO, vectorized": lambda: RenyiELBO(num_particles=3, max_plate_nesting=1, vectorize_particles=True),
}
stock_objectives = pytest.mark.parametrize("objective", list(STOCK.values()), ids=list(STOCK))
both_svi = pytest.mark.parametrize("svi", [pyro.infer.SVI, pvae.SVI], ids=["pyro", "pvae"])


def conv_vae(shape=SHAPE):
    return pvae.VAE(
        pvae.Normal(LATENT),
        pvae.Bernoulli(pvae.ConvDecoder(LATENT, shape, (8, 4)), shape),
        pvae.MeanField(pvae.ConvEncoder(shape, 2 * LATENT, (4, 8)), LATENT),
    )


def adam(lr=1e-2):
    return pyro.optim.Adam({"lr": lr})


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module, before):
    """The names of values that are bitwise what they were."""
    return {name for name, value in module.state_dict().items() if torch.equal(value, before[name])}


# Stock Pyro -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "conv"])
@stock_objectives
def test_stock_pyro_trains_it(new_vae, x, objective, network):
    vae = new_vae() if network == "mlp" else conv_vae()
    before = snapshot(vae)
    svi = pyro.infer.SVI(vae.model, vae.guide, adam(), objective())
    losses = [svi.step(x) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert not same(vae, before), "not every parameter moved"
    assert len(pyro.get_param_store()) == 0


@stock_objectives
def test_stock_objectives_agree_on_the_same_elbo(new_vae, x, objective):
    """Gaussian parts of fixed scale, so that the noise is small: every one of them is a lower bound close by."""
    vae = new_vae(likelihood=lambda decoder, shape: pvae.Gaussian(decoder, shape, scale=3.0))
    with torch.no_grad():
        for parameter in vae.posterior.parameters():
            parameter.mul_(0.1)
    with torch.no_grad():
        exact = evaluate(vae.model, vae.guide, x, particles=[2000]).elbo.sum().item()
        found = -sum(objective().loss(vae.model, vae.guide, x) for _ in range(20)) / 20
    assert found == pytest.approx(exact, abs=1.0)


def test_the_programs_sites_are_in_the_plate_of_data(vae, x):
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    model.compute_log_prob()
    # the plate is itself a site to Pyro
    assert (guide.stochastic_nodes, guide.observation_nodes) == (["data", "z"], [])
    assert (model.stochastic_nodes, model.observation_nodes) == (["data", "z"], ["x"])
    for site, event in ((guide.nodes["z"], (LATENT,)), (model.nodes["z"], (LATENT,)), (model.nodes["x"], SHAPE)):
        assert [frame.name for frame in site["cond_indep_stack"]] == ["data"]
        assert [frame.size for frame in site["cond_indep_stack"]] == [len(x)]
        assert (site["fn"].batch_shape, site["fn"].event_shape) == ((len(x),), event)
    assert model.nodes["x"]["is_observed"]
    assert not model.nodes["z"]["is_observed"]
    assert torch.equal(model.nodes["x"]["value"], x)
    assert torch.equal(model.nodes["z"]["value"], guide.nodes["z"]["value"])
    assert model.nodes["x"]["log_prob"].shape == (len(x),)


def test_the_programs_announce_each_parameter_once(vae, x):
    told = {}
    for program, parts in ((vae.model, (vae.prior, vae.likelihood)), (vae.guide, (vae.posterior,))):
        nodes = poutine.trace(program).get_trace(x).nodes
        params = {n: site["value"].unconstrained() for n, site in nodes.items() if site["type"] == "param"}
        assert {id(p) for p in params.values()} == {id(p) for part in parts for p in part.parameters()}
        told |= params
    assert len(told) == len(list(vae.parameters()))


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(vae, x, parallel):
    unseen = poutine.uncondition(vae.model)
    prior = Predictive(unseen, num_samples=6, parallel=parallel, return_sites=["z", "x"])(x)
    assert prior["z"].shape == (6, 7, LATENT)
    assert prior["x"].shape == (6, 7, *SHAPE)
    posterior = Predictive(unseen, guide=vae.guide, num_samples=6, parallel=parallel, return_sites=["z", "x"])(x)
    assert posterior["z"].shape == (6, 7, LATENT)
    assert posterior["x"].shape == (6, 7, *SHAPE)
    assert set(posterior["x"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("objective", [Trace_ELBO, pvae.ELBO, TraceMeanField_ELBO])
def test_our_svi_takes_pyros_steps(new_vae, x, objective):
    found = []
    for svi in (pyro.infer.SVI, pvae.SVI):
        vae = new_vae()
        loop = svi(vae.model, vae.guide, adam(1e-3), objective())
        torch.manual_seed(4)
        losses = [loop.step(x) for _ in range(5)]
        found.append((losses, [p.detach() for p in vae.parameters()]))
    (losses, parameters), (our_losses, our_parameters) = found
    assert our_losses == pytest.approx([float(loss) for loss in losses], rel=1e-5)
    torch.testing.assert_close(our_parameters, parameters, rtol=1e-5, atol=1e-7)


# Two in one process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [Trace_ELBO, pvae.ELBO])
@both_svi
def test_two_in_one_process_both_train_and_neither_moves_the_other(new_vae, x, svi, objective):
    first, second = new_vae(seed=1), new_vae(seed=1)
    for trained, other in ((first, second), (second, first)):
        before, others = snapshot(trained), snapshot(other)
        loop = svi(trained.model, trained.guide, adam(), objective())
        for _ in range(5):
            loop.step(x)
        assert not same(trained, before), "not every parameter moved"
        assert same(other, others) == set(others)
        assert len(pyro.get_param_store()) == 0


@both_svi
def test_two_trained_in_turns_are_two_trained_apart(new_vae, x, svi):
    def loops():
        vaes = [new_vae(seed=seed) for seed in (1, 2)]
        return vaes, [svi(vae.model, vae.guide, adam(), Trace_ELBO()) for vae in vaes]

    def step(loop, seed):
        torch.manual_seed(seed)
        loop.step(x)

    (in_turns, turns), (apart, one_by_one) = loops(), loops()
    for seed in range(4):
        for loop in turns:
            step(loop, seed)
    for loop, seed in itertools.product(one_by_one, range(4)):
        step(loop, seed)
    for left, right in zip(in_turns, apart, strict=True):
        assert same(left, right.state_dict()) == set(right.state_dict())


@pytest.mark.parametrize("objective", [Trace_ELBO, pvae.ELBO])
@both_svi
def test_two_in_one_program(new_vae, x, svi, objective):
    a, b = new_vae(seed=1), new_vae(seed=2)

    def model(x):
        for part in (a.prior, a.likelihood, b.prior, b.likelihood):
            announce(part)
        with pyro.plate("data", len(x)):
            pyro.sample("xa", a.likelihood(pyro.sample("za", a.prior())), obs=x)
            pyro.sample("xb", b.likelihood(pyro.sample("zb", b.prior())), obs=1 - x)

    def guide(x):
        announce(a.posterior)
        announce(b.posterior)
        with pyro.plate("data", len(x)):
            pyro.sample("za", a.posterior(x))
            pyro.sample("zb", b.posterior(1 - x))

    before = snapshot(a), snapshot(b)
    loop = svi(model, guide, adam(), objective())
    losses = [loop.step(x) for _ in range(60)]
    assert not same(a, before[0]) | same(b, before[1]), "not every parameter moved"
    assert sum(losses[-10:]) < sum(losses[:10])
    assert len(pyro.get_param_store()) == 0
    # each has learned its own data: x is unlike 1 - x
    for vae, own, other in ((a, x, 1 - x), (b, 1 - x, x)):
        found = [evaluate(vae.model, vae.guide, data, particles=[50]).elbo.mean() for data in (own, other)]
        assert found[0] > found[1]


@both_svi
def test_the_same_programs_side_by_side(new_vae, x, svi):
    """`model` and `guide` of two VAEs as they are, their sites renamed by Pyro's scope."""
    from pyro.contrib.autoname import scope

    a, b = new_vae(seed=1), new_vae(seed=2)
    before = snapshot(a), snapshot(b)

    def model(x):
        for name, vae in (("a", a), ("b", b)):
            with scope(prefix=name):
                vae.model(x)

    def guide(x):
        for name, vae in (("a", a), ("b", b)):
            with scope(prefix=name):
                vae.guide(x)

    loop = svi(model, guide, adam(), Trace_ELBO())
    for _ in range(3):
        loop.step(x)
    assert not same(a, before[0]) | same(b, before[1]), "not every parameter moved"


# Parts from research code ---------------------------------------------------------------------------------------------


class ClassNormal(pvae.Prior):
    """p(z|y) = N(m_y, I)."""

    def __init__(self, latent, classes=4):
        super().__init__(latent)
        self.mean = nn.Embedding(classes, latent)

    def forward(self, y=None):
        return dist.Normal(self.mean(y), 1.0).to_event(1)


class ConditionalBernoulli(pvae.Likelihood):
    """p(x|z, y): the decoder sees the label beside the latent."""

    support = "binary"

    def __init__(self, decoder, shape, classes=4):
        super().__init__(decoder, shape)
        self.classes = classes

    def forward(self, z, y=None):
        label = nn.functional.one_hot(y, self.classes).to(z).expand(*z.shape[:-1], self.classes)
        return dist.Bernoulli(logits=self.decode(torch.cat([z, label], -1))).to_event(len(self.shape))


class Vamp(pvae.Prior):
    """p(z) = 1/C sum_c q(z|u_c), with pseudo-inputs u_c (Tomczak and Welling 2018)."""

    def __init__(self, latent, guide, shape, components=4):
        super().__init__(latent)
        self.guide, self.pseudo = guide, nn.Parameter(torch.rand(components, *shape))

    def forward(self, y=None):
        weights = dist.Categorical(logits=self.pseudo.new_zeros(len(self.pseudo)))
        return dist.MixtureSameFamily(weights, self.guide(self.pseudo))


def conditional_vae(prior=ClassNormal, likelihood=ConditionalBernoulli):
    decoder = pvae.MLPDecoder(LATENT + 4 * (likelihood is ConditionalBernoulli), SHAPE, [16])
    encoder = pvae.MLPEncoder(SHAPE, 2 * LATENT, [16])
    return pvae.VAE(prior(LATENT), likelihood(decoder, SHAPE), pvae.MeanField(encoder, LATENT))


def labelled(n=40):
    """Four patterns of pixels, each with a little noise, and which one it is."""
    torch.manual_seed(3)
    y = torch.arange(n) % 4
    patterns = torch.rand(4, *SHAPE).round()
    return (patterns[y] + (torch.rand(n, *SHAPE) < 0.02)) % 2, y, patterns


CONDITIONAL = [(ClassNormal, pvae.Bernoulli), (pvae.Normal, ConditionalBernoulli), (ClassNormal, ConditionalBernoulli)]
OBJECTIVES = [
    lambda: pvae.ELBO(2),
    lambda: pvae.ELBO(analytic_kl=True),
    lambda: pvae.IWAE(3),
    lambda: Trace_ELBO(),
    lambda: RenyiELBO(num_particles=3, max_plate_nesting=1, vectorize_particles=True),
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("prior", "likelihood"), CONDITIONAL)
def test_labels_reach_the_parts_under_every_bound(prior, likelihood, objective):
    vae, (x, y, _) = conditional_vae(prior, likelihood), labelled()
    before = snapshot(vae)
    loop = pvae.SVI(vae.model, vae.guide, adam(), objective())
    losses = [loop.step(x, y) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert not same(vae, before), "not every parameter moved"
    assert vae.log_weights(x, y, particles=4).log_w.shape == (4, len(x))
    assert vae.sample(3, y[:3]).shape == (3, *SHAPE)
    assert vae.sample(3, y[:3], mean=True).shape == (3, *SHAPE)
    assert vae.reconstruct(x, y).shape == x.shape


def test_log_weights_of_a_labelled_datum_are_those_of_its_label():
    vae, (x, y, _) = conditional_vae(), labelled(6)
    torch.manual_seed(1)
    found = vae.log_weights(x, y, particles=4)
    torch.manual_seed(1)
    q = vae.posterior(x, y).expand([4, 6])
    z = q.rsample()
    torch.testing.assert_close(found.posterior, q.log_prob(z))
    for datum in range(6):
        prior = torch.distributions.Normal(vae.prior.mean.weight[y[datum]], 1.0)
        torch.testing.assert_close(found.prior[:, datum], prior.log_prob(z[:, datum]).sum(-1))
        label = torch.eye(4)[y[datum]].expand(4, 4)
        logits = vae.likelihood.decoder(torch.cat([z[:, datum], label], -1))
        right = torch.distributions.Bernoulli(logits=logits).log_prob(x[datum].expand_as(logits)).sum((-2, -1))
        torch.testing.assert_close(found.likelihood[:, datum], right)
    torch.testing.assert_close(found.log_w, found.likelihood + found.prior - found.posterior)


def test_samples_of_a_label_look_like_it():
    vae, (x, y, patterns) = conditional_vae(), labelled(200)
    loop = pvae.SVI(vae.model, vae.guide, adam(), pvae.ELBO())
    for _ in range(300):
        loop.step(x, y)
    wanted = torch.arange(4).repeat(25)
    samples = vae.sample(100, wanted)
    likest = (samples[:, None] - patterns).abs().sum((-2, -1)).argmin(1)
    assert (likest == wanted).float().mean() > 0.9


@pytest.mark.parametrize("objective", OBJECTIVES)
@both_svi
def test_a_prior_that_holds_the_guide_trains(x, svi, objective):
    guide = pvae.MeanField(pvae.MLPEncoder(SHAPE, 2 * LATENT, [16]), LATENT)
    vae = pvae.VAE(Vamp(LATENT, guide, SHAPE), pvae.Bernoulli(pvae.MLPDecoder(LATENT, SHAPE, [16]), SHAPE), guide)
    assert len(list(vae.parameters())) == 4 + 4 + 1
    before = snapshot(vae)
    loop = svi(vae.model, vae.guide, adam(), objective())
    losses = [loop.step(x) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert not same(vae, before), "not every parameter moved"
    assert vae.prior.guide is vae.posterior
    other = copy.deepcopy(vae)
    assert other.prior.guide is other.posterior
    assert vae.sample(6).shape == (6, *SHAPE)


def test_a_vamp_priors_log_weights_follow_the_guide(x):
    guide = pvae.MeanField(pvae.MLPEncoder(SHAPE, 2 * LATENT, [16]), LATENT)
    vae = pvae.VAE(Vamp(LATENT, guide, SHAPE), pvae.Bernoulli(pvae.MLPDecoder(LATENT, SHAPE, [16]), SHAPE), guide)
    torch.manual_seed(1)
    found = vae.log_weights(x, particles=2).prior
    torch.manual_seed(1)
    z = guide(x).expand([2, 7]).rsample()
    by_component = torch.stack([guide(u).log_prob(z) for u in vae.prior.pseudo])
    torch.testing.assert_close(found, by_component.exp().mean(0).log())


# Its own methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [pvae.Bernoulli, pvae.Gaussian])
@pytest.mark.parametrize("shape", [SHAPE, (3, 4, 5), (6,)], ids=str)
def test_methods_give_the_shapes_they_say(new_vae, shape, likelihood):
    vae, x = new_vae(shape=shape, likelihood=likelihood), torch.rand(7, *shape).round()
    q = vae.encode(x)
    assert (q.batch_shape, q.event_shape) == ((7,), (LATENT,))
    assert vae.reconstruct(x).shape == x.shape
    for mean in (False, True):
        assert vae.sample(mean=mean).shape == (1, *shape)
        assert vae.sample(5, mean=mean).shape == (5, *shape)
    for k in (1, 4):
        assert all(term.shape == (k, 7) for term in vae.log_weights(x, particles=k))


def test_reconstruct_is_the_mean_at_the_mean(vae, x):
    torch.testing.assert_close(vae.reconstruct(x), vae.likelihood.decoder(vae.encode(x).mean).sigmoid())


def test_samples_are_draws_of_prior_and_likelihood(vae):
    assert set(vae.sample(50).unique().tolist()) == {0.0, 1.0}
    torch.manual_seed(1)
    mean = vae.sample(5, mean=True)
    torch.manual_seed(1)
    torch.testing.assert_close(mean, vae.likelihood.decoder(torch.randn(5, LATENT)).sigmoid())
    assert (mean[0] - mean[1]).abs().max() > 1e-3
    draws, means = vae.sample(20_000), vae.sample(20_000, mean=True)
    assert (draws.mean(0) - means.mean(0)).abs().max() < 4.5 * 0.5 * (2 / 20_000) ** 0.5


def test_log_weights_are_the_terms_by_hand(vae, x):
    torch.manual_seed(1)
    found = vae.log_weights(x, particles=4)
    torch.manual_seed(1)
    q = vae.encode(x)
    z = q.base_dist.mean + q.base_dist.scale * torch.randn(4, 7, LATENT)
    torch.testing.assert_close(found.posterior, q.log_prob(z))
    torch.testing.assert_close(found.prior, torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1))
    logits = vae.likelihood.decoder(z)
    right = torch.distributions.Bernoulli(logits=logits).log_prob(x.expand_as(logits)).sum((-2, -1))
    torch.testing.assert_close(found.likelihood, right)


def test_it_moves_to_another_dtype(vae, x):
    vae.double()
    found = vae.log_weights(x.double(), particles=2)
    assert found.log_w.dtype == torch.float64
    assert vae.sample(2).dtype == torch.float64


def test_parts_of_different_sizes_are_refused():
    encoder, decoder = pvae.mlp(6, [], 8), pvae.mlp(4, [], 6)
    with pytest.raises(pvae.InputError, match="latent: found size 3 of the prior, 4 of the guide"):
        pvae.VAE(pvae.Normal(3), pvae.Bernoulli(decoder, (6,)), pvae.MeanField(encoder, 4))
    with pytest.raises(pvae.InputError, match=r"prior: found Linear, expected a pvae.Part"):
        pvae.VAE(torch.nn.Linear(1, 1), pvae.Bernoulli(decoder, (6,)), pvae.MeanField(encoder, 4))


STORED = r"^x: found uint8, expected float32, .*: pixels are stored as uint8: pass pvae\.data\.pixels\(x\)$"


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_pixels_as_they_are_stored_are_refused_in_a_line(network, vae):
    vae, x = vae if network == "mlp" else conv_vae(), torch.full((3, *SHAPE), 255, dtype=torch.uint8)
    calls = [vae.initialize, vae.model, vae.guide, vae.encode, vae.reconstruct, vae.log_weights]
    calls += [pvae.SVI(vae.model, vae.guide, adam(), pvae.ELBO()).step, lambda x: evaluate(vae.model, vae.guide, x)]
    for call in calls:
        with pytest.raises(pvae.InputError, match=STORED):
            call(x)


def test_pixels_as_they_are_stored_are_refused_beside_labels_too():
    labels, y = pvae.Label(2), torch.tensor([0, 1])
    encoder = pvae.ConditionedEncoder(pvae.MLPEncoder(SHAPE, 2 * LATENT, context=2), labels)  # would take any numbers
    vae = pvae.VAE(pvae.Normal(LATENT), pvae.Gaussian(pvae.mlp(LATENT, [], 20), SHAPE), pvae.MeanField(encoder, LATENT))
    with pytest.raises(pvae.InputError, match=STORED):
        vae.guide(torch.ones(2, *SHAPE, dtype=torch.uint8), y)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (SHAPE, r"x: found shape \(4, 5\), expected \(data, 4, 5\): a single datum is x\[None\]"),
        ((3, 20), r"x: found shape \(3, 20\), expected \(data, 4, 5\)$"),
        ((3, 1, *SHAPE), r"x: found shape \(3, 1, 4, 5\), expected \(data, 4, 5\)$"),
        ((0, *SHAPE), r"x: found shape \(0, 4, 5\), expected \(data, 4, 5\), one or more$"),
        ((), r"x: found shape \(\), expected \(data, 4, 5\)$"),
    ],
)
def test_data_of_another_shape_are_refused_in_a_line(shape, message, vae):
    """One flat datum would be taken for as many as it has numbers, each scored against all."""
    for program in (
        vae.model,
        vae.guide,
        lambda x: pvae.SVI(vae.model, vae.guide, torch.optim.Adam, pvae.ELBO()).step(x),
    ):
        with pytest.raises(pvae.InputError, match=message):
            program(torch.ones(shape))


def test_data_that_are_no_tensor_are_refused_in_a_line(vae):
    for x in (torch.ones(3, *SHAPE).numpy(), [[1.0]], None):
        with pytest.raises(
            pvae.InputError, match=rf"x: found {type(x).__name__}, expected a tensor: pass torch.as_tensor"
        ):
            vae.guide(x)


def test_sparse_data_are_refused_in_a_line(vae, x):
    for program in (
        vae.guide,
        vae.log_weights,
        lambda x: pvae.evaluate.evaluate(vae.model, vae.guide, x, particles=[1]),
        lambda x: pvae.SVI(vae.model, vae.guide, torch.optim.Adam(vae.parameters()), pvae.ELBO()).step(x),
    ):
        with pytest.raises(
            pvae.InputError, match=r"x: found a tensor of layout torch.sparse_coo, .*: pass x\.to_dense\(\)"
        ):
            program(x.to_sparse())


def test_data_of_another_type_than_the_parameters_are_refused_in_a_line(vae, x):
    with pytest.raises(
        pvae.InputError, match=r"^x: found float64, expected float32, .*: pass x\.to\(torch\.float32\)$"
    ):
        evaluate(vae.model, vae.guide, x.double())
    with pytest.raises(pvae.InputError, match=r"^x: found float32, expected float64"):
        evaluate(vae.double().model, vae.guide, x)
