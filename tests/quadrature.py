"""Programs small enough for the exact gradient of their bound by quadrature, and the test of an estimate against it."""

import math
from functools import cache
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pvae import bounds
from pvae.base import members
from pvae.objectives import CIWAE, ELBO, IWAE, MIWAE, TVO, Renyi

X = (1.3, -0.4)


PARTITIONS = (0.0, 0.3, 1.0)


GRADIENTS = list(members("gradient"))


UNBIASED = ["reparam", "dreg", "gdreg", "score", "vimco"]


class Programs:
    """A pair of programs and their parameters, in float64."""

    start: ClassVar = {}

    def __init__(self):
        self.p = {n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in self.start.items()}

    def gradient(self, value):
        found = torch.autograd.grad(value, list(self.p.values()), allow_unused=True)
        return torch.stack(
            [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.p.values(), strict=True)]
        )


class Simple(Programs):
    """One latent number; what `prior` and `posterior` are, and the log-weight as a function of the noise, is open."""

    start: ClassVar = {"mu": 0.3, "ls0": 0.2, "t": 0.8, "a": 0.5, "b": 0.1, "ls": -0.6}
    noises = 1

    def prior(self):
        return dist.Normal(self.p["mu"], self.p["ls0"].exp())

    def posterior(self, x):
        return dist.Normal(self.p["a"] * x + self.p["b"], self.p["ls"].exp())

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.p["t"] * z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    def draw(self, x, noise):
        q = self.posterior(x)
        return (q.loc + q.scale * noise[0],)

    def terms(self, x, z):
        """Log p(x|z), log p(z), log q(z|x)."""
        (z,) = z
        likelihood = dist.Normal(self.p["t"] * z, 1.0).log_prob(x)
        return likelihood, self.prior().log_prob(z), self.posterior(x).log_prob(z)


class Shared(Simple):
    """The prior is the guide at a learned datum: the two share all parameters."""

    start: ClassVar = {"u": 0.7, "t": 0.8, "a": 0.5, "b": 0.1, "ls": -0.3}

    def prior(self):
        return self.posterior(self.p["u"])


class Vamp(Simple):
    """The prior is a mixture of the guide at two learned data."""

    start: ClassVar = {"u": 1.0, "v": -1.5, "t": 0.8, "a": 0.5, "b": 0.1, "ls": -0.3}

    def prior(self):
        parts = self.posterior(torch.stack([self.p["u"], self.p["v"]]))
        parts = dist.Normal(parts.loc, parts.scale.expand(2))
        return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(2, dtype=torch.float64)), parts)


class Chain(Programs):
    """Two latent numbers, one of which depends on the other, in the guide the other way round than in the model."""

    start: ClassVar = {
        "m": 0.2,
        "s": -0.1,
        "t": 0.7,
        "st": 0.1,
        "c": 0.9,
        "a": 0.4,
        "b": 0.5,
        "la": -0.5,
        "lb": -0.4,
        "d": 0.3,
    }
    noises = 2

    def first(self, x):
        return dist.Normal(self.p["a"] * x + self.p["m"], self.p["la"].exp())  # m is the prior's too

    def second(self, x, b):
        return dist.Normal(self.p["b"] * b + 0.1 * x, (self.p["lb"] + self.p["d"] * torch.tanh(b)).exp())

    def model(self, x):
        p = self.p
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(p["m"], p["s"].exp()))
            b = pyro.sample("b", dist.Normal(p["t"] * a, (p["st"] + 0.2 * torch.tanh(a)).exp()))
            pyro.sample("x", dist.Normal(p["c"] * b, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", self.first(x))
            pyro.sample("a", self.second(x, b))

    def draw(self, x, noise):
        q = self.first(x)
        b = q.loc + q.scale * noise[0]
        q = self.second(x, b)
        return b, q.loc + q.scale * noise[1]

    def terms(self, x, z):
        p, (b, a) = self.p, z
        prior = dist.Normal(p["m"], p["s"].exp()).log_prob(a)
        prior = prior + dist.Normal(p["t"] * a, (p["st"] + 0.2 * torch.tanh(a)).exp()).log_prob(b)
        posterior = self.first(x).log_prob(b) + self.second(x, b).log_prob(a)
        return dist.Normal(p["c"] * b, 1.0).log_prob(x), prior, posterior


def grid(dims, nodes):
    """Gauss-Hermite noise (dims, nodes^dims) and its weights."""
    z, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(nodes))
    w = w / w.sum()
    noise = torch.stack([v.flatten() for v in torch.meshgrid(*[z] * dims, indexing="ij")])
    weight = torch.stack([v.flatten() for v in torch.meshgrid(*[w] * dims, indexing="ij")]).prod(0)
    return noise, weight


def exact(programs, k, surrogate, beta=1.0, nodes=None):
    """The gradient, summed over the data, of a function of log w (K, N) and, optionally, the terms, by quadrature."""
    dims = k * programs.noises
    noise, weight = grid(dims, nodes or {1: 80, 2: 60, 3: 40, 4: 20}[dims])
    total = 0.0
    for x in X:
        drawn = [programs.draw(torch.tensor(x, dtype=torch.float64), e) for e in noise.reshape(k, programs.noises, -1)]
        value = surrogate(programs, torch.tensor(x, dtype=torch.float64), drawn, beta)
        total = total + (value * weight).sum()
    return total.detach(), programs.gradient(total)


def log_weights(programs, x, drawn, beta):
    terms = [programs.terms(x, z) for z in drawn]
    return torch.stack([like + beta * (prior - posterior) for like, prior, posterior in terms])


def of(bound):
    """The bound as the surrogate whose gradient is taken."""
    return lambda programs, x, drawn, beta: bound(log_weights(programs, x, drawn, beta))


def estimated(programs, objective, n=2500, repetitions=20):
    """The values and gradients of repetitions, each the mean over n copies of each datum, summed over the data."""
    x = torch.tensor(X, dtype=torch.float64).repeat(n)
    values, found = [], []
    torch.manual_seed(0)
    for _ in range(repetitions):
        value = objective.bounds(programs.model, programs.guide, x).reshape(n, len(X)).mean(0).sum()
        found.append(programs.gradient(value))
        values.append(value.detach())
    return torch.stack(values), torch.stack(found)


def t_statistics(samples, expected):
    error = samples.std(0) / math.sqrt(len(samples))
    # nothing random: equal
    return torch.where(error > 1e-12, (samples.mean(0) - expected) / error, (samples.mean(0) - expected) * 1e9)


def assert_unbiased(programs, objective, expected, **sizes):
    value, gradient = expected
    values, found = estimated(programs, objective, **sizes)
    if value is not None:
        assert abs(t_statistics(values, value)) < 4
    t = t_statistics(found, gradient)
    assert t.abs().max() < 4, dict(zip(programs.p, t.tolist(), strict=True))


OBJECTIVES = {
    "elbo": (lambda **k: ELBO(2, **k), bounds.elbo),
    "iwae": (lambda **k: IWAE(2, **k), bounds.iwae),
    "renyi": (lambda **k: Renyi(2, 0.4, **k), lambda w: bounds.renyi(w, 0.4)),
    "renyi-negative": (lambda **k: Renyi(2, -1.0, **k), lambda w: bounds.renyi(w, -1.0)),
    "ciwae": (lambda **k: CIWAE(2, 0.3, **k), lambda w: bounds.ciwae(w, 0.3)),
    "tvo": (lambda **k: TVO(2, PARTITIONS, **k), lambda w: bounds.tvo(w, PARTITIONS)),
    # the mean of two groups of two: in expectation L_2
    "miwae": (lambda **k: MIWAE(4, 2, **k), bounds.iwae),
}


@cache
def exact_of(kind, name, k=2, beta=1.0):
    return exact(kind(), k, of(OBJECTIVES[name][1]), beta)
