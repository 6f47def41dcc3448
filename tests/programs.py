"""Programs of every kind, for tests of `pvae.SVI`: a name, and what makes (model, guide, loss, arguments)."""

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import pvae
from pvae import base

N, T = 12, 5


def linear_data():
    return torch.randn(N, 2), torch.randn(N)


# Bayesian regression --------------------------------------------------------------------------------------------------


class BayesianRegression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)
        return mean


def bayesian(guide_of, loss=Trace_ELBO):
    def make():
        model = BayesianRegression()
        return model, guide_of(model), loss(), linear_data()

    return make


def guide_list(model):
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["sigma"])))
    guide.append(AutoMultivariateNormal(poutine.block(model, hide=["sigma"])))
    return guide


# Plates ---------------------------------------------------------------------------------------------------------------


def hierarchical(x, y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 3):
        offset = pyro.sample("offset", dist.Normal(mean, 1.0))
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        pyro.sample("y", dist.Normal(offset[rows % 3] + x[rows, 0], 0.5), obs=y[rows])


def hierarchical_guide(x, y):
    pyro.sample("mean", dist.Normal(pyro.param("m", torch.tensor(0.0)), 0.3))
    with pyro.plate("groups", 3):
        where = pyro.param("o", torch.zeros(3))
        pyro.sample("offset", dist.Normal(where, pyro.param("s", torch.ones(3), constraint=constraints.positive)))


def local_latents(x, y):
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y[rows])


def local_guide(x, y):
    mean, spread = pyro.param("mean", torch.zeros(N)), pyro.param("spread", torch.ones(N), constraints.positive)
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        pyro.sample("z", dist.Normal(mean[rows], spread[rows]))


def nested(x, y):
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.interval(0.1, 2.0))
    with pyro.plate("columns", 2, dim=-1):
        column = pyro.sample("column", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(column, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)


def nested_guide(x, y):
    with pyro.plate("columns", 2, dim=-1):
        pyro.sample("column", dist.Normal(pyro.param("c", torch.zeros(2)), 0.5))
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("z", dist.Normal(pyro.param("z_mean", torch.zeros(N, 2)), 0.5))


# Score-function sites -------------------------------------------------------------------------------------------------


def mixture(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("y", dist.Normal(torch.tensor([-1.0, 0.0, 1.0])[z], 1.0), obs=y)


def mixture_guide(infer):
    def guide(x, y):
        logits = pyro.param("logits", torch.zeros(N, 3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits), infer=infer)

    return guide


def impossible_guide(x, y):
    """One of the values has no probability, and an infinite cost."""
    logits = pyro.param("logits", torch.zeros(N, 3)) + torch.tensor([-torch.inf, 0.0, 0.0])
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


# Scales, masks --------------------------------------------------------------------------------------------------------


def scaled(factor):
    def model(x, y):
        with poutine.scale(scale=factor):
            local_latents_all(x, y)

    return model


def local_latents_all(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def local_guide_all(x, y):
    with pyro.plate("data", len(x)):
        scale = pyro.param("scale", torch.ones(N), constraints.positive)
        pyro.sample("z", dist.Normal(pyro.param("mean", torch.zeros(N)), scale))


def masked(x, y):
    with poutine.mask(mask=y > 0):
        local_latents_all(x, y)


# Networks -------------------------------------------------------------------------------------------------------------


class DeepMarkov(nn.Module):
    """z_t from z_(t-1), x_t from z_t; the guide reads the sequence backwards with a recurrent network."""

    def __init__(self, recurrent):
        super().__init__()
        self.transition, self.emission = nn.Linear(2, 4), nn.Linear(2, 3)
        self.recurrent = recurrent(3, 4, batch_first=True)
        self.combine, self.heads = nn.Linear(2, 4), nn.Linear(4, 4)
        self.start = nn.Parameter(torch.zeros(2))
        self.hidden = nn.Parameter(torch.zeros(1, 1, 4))

    def model(self, x, mask, annealing=1.0):
        pyro.module("deep_markov", self)
        z = self.start.expand(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                mean, scale = self.transition(z).chunk(2, -1)
                with poutine.scale(scale=annealing):
                    step = dist.Normal(mean, scale.exp()).mask(mask[:, t : t + 1]).to_event(1)
                    z = pyro.sample(f"z_{t}", step)
                p = dist.Bernoulli(logits=self.emission(z)).mask(mask[:, t : t + 1]).to_event(1)
                pyro.sample(f"x_{t}", p, obs=x[:, t])

    def guide(self, x, mask, annealing=1.0):
        pyro.module("deep_markov", self)
        output, _ = self.recurrent(x.flip(1), self.hidden.expand(1, len(x), 4).contiguous())
        output = output.flip(1)
        z = self.start.expand(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                mean, scale = self.heads(0.5 * (torch.tanh(self.combine(z)) + output[:, t])).chunk(2, -1)
                with poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", dist.Normal(mean, scale.exp()).mask(mask[:, t : t + 1]).to_event(1))


def deep_markov(recurrent):
    def make():
        programs = DeepMarkov(recurrent)
        mask = torch.arange(T) < torch.randint(1, T + 1, (6, 1))
        return programs.model, programs.guide, Trace_ELBO(), (torch.rand(6, T, 3).round(), mask)

    return make


class SemiSupervised(nn.Module):
    def __init__(self):
        super().__init__()
        self.classify, self.encode = nn.Linear(6, 3), nn.Linear(9, 4)
        self.decode = nn.Linear(5, 6)

    def model(self, x, y=None):
        pyro.module("ss", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), 3) / 3), obs=y)
            shape = torch.broadcast_shapes(y.shape[:-1], z.shape[:-1])
            both = torch.cat([z.expand(*shape, 2), y.expand(*shape, 3)], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decode(both)).to_event(1), obs=x)

    def guide(self, x, y=None):
        pyro.module("ss", self)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classify(x)))
            both = torch.cat([x.expand(*y.shape[:-1], 6), y], -1)
            mean, scale = self.encode(both).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


def semi_supervised(loss, enumerated, supervised):
    def make():
        programs = SemiSupervised()
        guide = config_enumerate(programs.guide, expand=True) if enumerated else programs.guide
        y = torch.eye(3)[torch.randint(3, (N,))] if supervised else None
        return programs.model, guide, loss, (torch.rand(N, 6).round(), y)

    return make


class Convolutional(nn.Module):
    """Batch normalization and dropout in train mode: buffers that change, random numbers of a network."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(64, 4),
        )
        self.decoder = nn.Sequential(
            nn.Linear(2, 64, bias=False), nn.BatchNorm1d(64), nn.Unflatten(-1, (4, 4, 4)), nn.ReLU()
        )
        self.last = nn.ConvTranspose2d(4, 1, 4, 2, 1)

    def model(self, x):
        pyro.module("conv", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            logits = self.last(self.decoder(z))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x):
        pyro.module("conv", self)
        with pyro.plate("data", len(x)):
            mean, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


def convolutional():
    programs = Convolutional()
    return programs.model, programs.guide, Trace_ELBO(), (torch.rand(N, 1, 8, 8).round(),)


def pyro_flow():
    flow = dist.transforms.affine_coupling(2, hidden_dims=[8])
    planar = dist.transforms.planar(2)

    def model(x, y):
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            flow.clear_cache()
            pyro.sample("x", dist.TransformedDistribution(base, [flow]), obs=x)

    def guide(x, y):
        pass

    def two_d(x, y):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def two_d_guide(x, y):
        pyro.module("planar", planar)
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [planar]))

    return {"density": (model, guide), "guide": (two_d, two_d_guide)}


def flow(which):
    return lambda: (*pyro_flow()[which], Trace_ELBO(), linear_data())


def zuko_flow():
    zuko = pytest.importorskip("zuko")
    from pyro.contrib.zuko import ZukoToPyro

    network = zuko.flows.NSF(2, context=2, transforms=1, hidden_features=(8,))

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x, y):
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            pyro.sample("z", ZukoToPyro(network(x)))

    return model, guide, Trace_ELBO(), linear_data()


class Module(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.linear = nn.Linear(2, 1)

    def forward(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.linear(x).squeeze(-1), self.scale), obs=y)


def constrained(x, y):
    """A constraint of each kind that has a transform of its own."""
    simplex = pyro.param("simplex", torch.ones(3) / 3, constraint=constraints.simplex)
    factor = pyro.param("factor", torch.eye(2), constraint=constraints.lower_cholesky)
    ordered = pyro.param("ordered", torch.tensor([-1.0, 0.0, 1.0]), constraint=constraints.ordered_vector)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(ordered[:2], scale_tril=factor), obs=x)
        components = dist.Normal(ordered, 1.0)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(simplex), components), obs=y)


def by_hand(model, guide, *args):
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args)
    return guide_trace.log_prob_sum() - model_trace.log_prob_sum()


def ours(loss):
    def make():
        decoder, encoder = pvae.MLPDecoder(3, (4, 5), [16]), pvae.MLPEncoder((4, 5), 6, [16])
        vae = pvae.VAE(pvae.Normal(3), pvae.Bernoulli(decoder, (4, 5)), pvae.MeanField(encoder, 3))
        return vae.model, vae.guide, loss(), (torch.rand(N, 4, 5).round(),)

    return make


def simple(model, guide, loss):
    return lambda: (model, guide, loss() if isinstance(loss, type) else loss, linear_data())


def nothing(*args):
    pass


PROGRAMS = {
    "AutoNormal": bayesian(AutoNormal),
    "AutoMultivariateNormal": bayesian(AutoMultivariateNormal),
    "AutoLowRank": bayesian(lambda model: AutoLowRankMultivariateNormal(model, rank=2)),
    "AutoDelta": bayesian(AutoDelta),
    "AutoGuideList": bayesian(guide_list),
    "mean field": bayesian(AutoNormal, TraceMeanField_ELBO),
    "subsampling, global": simple(hierarchical, hierarchical_guide, Trace_ELBO),
    "subsampling, local": simple(local_latents, local_guide, Trace_ELBO),
    "nested plates": simple(nested, nested_guide, Trace_ELBO),
    "score function": simple(mixture, mixture_guide({}), Trace_ELBO),
    "score function, graph": simple(mixture, mixture_guide({}), TraceGraph_ELBO),
    "enumeration": simple(mixture, mixture_guide({"enumerate": "parallel"}), TraceEnum_ELBO(max_plate_nesting=1)),
    "enumeration, zeros": simple(mixture, impossible_guide, TraceEnum_ELBO(max_plate_nesting=1)),
    "scale, number": simple(scaled(0.5), local_guide_all, Trace_ELBO),
    "scale, tensor": lambda: (scaled(torch.tensor(0.5)), local_guide_all, Trace_ELBO(), linear_data()),
    "mask": simple(masked, poutine.mask(local_guide_all, mask=torch.tensor(True)), Trace_ELBO),
    "deep Markov, GRU": deep_markov(nn.GRU),
    "deep Markov, RNN": deep_markov(nn.RNN),
    "semi-supervised, labelled": semi_supervised(Trace_ELBO(), False, True),
    "semi-supervised": semi_supervised(Trace_ELBO(), False, False),
    "semi-supervised, enumerated": semi_supervised(TraceEnum_ELBO(max_plate_nesting=1), True, False),
    "convolutional": convolutional,
    "flow as density": flow("density"),
    "flow as guide": flow("guide"),
    "zuko": zuko_flow,
    "PyroModule": lambda: (Module(), nothing, Trace_ELBO(), linear_data()),
    "constraints": simple(constrained, nothing, Trace_ELBO),
    "3 particles": simple(hierarchical, hierarchical_guide, Trace_ELBO(num_particles=3)),
    "3 particles, vectorized": lambda: (
        nested,
        nested_guide,
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=2),
        linear_data(),
    ),
    "Renyi 0": lambda: (local_latents_all, local_guide_all, RenyiELBO(0, num_particles=3), linear_data()),
    "Renyi 0.5": lambda: (
        local_latents_all,
        local_guide_all,
        RenyiELBO(0.5, num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        linear_data(),
    ),
    "function": simple(local_latents_all, local_guide_all, by_hand),
    "our ELBO": ours(pvae.ELBO),
    "our ELBO, closed KL": ours(lambda: pvae.ELBO(analytic_kl=True)),
    "our IWAE": ours(lambda: pvae.IWAE(4)),
}


def start(make, mode, optim=None, **options):
    """A fresh SVI of a program, and the arguments of its steps; the same at each call."""
    pyro.clear_param_store()
    base._scopes.clear()
    torch.manual_seed(1)
    model, guide, loss, args = make()
    return pvae.SVI(model, guide, optim or pyro.optim.Adam({"lr": 0.02}), loss, compile=mode, **options), args


def train(make, mode, steps=10, optim=None, **options):
    """Losses, parameters and the generator's state after these steps; and the SVI."""
    svi, args = start(make, mode, optim, **options)
    losses = [float(svi.step(*args)) for _ in range(steps)]
    svi.check()
    return losses, parameters(svi), torch.get_rng_state(), svi


def parameters(svi):
    return {name: p.detach().clone() for p, name in svi._names.items()}


def kinds(svi):
    """Of the graphs in use."""
    return [graph.kind for graph in svi._graphs._graphs.values()]


def assert_replayed(make):
    """A program's steps are replayed, and are those that it takes eagerly."""
    replayed = train(make, "graph")
    in_parts = getattr(replayed[-1].objective, "in_parts", False)
    assert kinds(replayed[-1]) == ([] if in_parts else ["graph"]), "it was not replayed"
    assert_same(replayed, train(make, "off"))


def assert_same(one, other):
    """Two results of `train`: the losses up to rounding (Pyro adds them up in Python), the rest bit for bit."""
    assert one[0] == pytest.approx(other[0], rel=1e-6, abs=1e-6)
    assert one[1].keys() == other[1].keys()
    assert [name for name in one[1] if not torch.equal(one[1][name], other[1][name])] == []
    assert torch.equal(one[2], other[2]), "random numbers"
