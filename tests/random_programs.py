"""Pyro programs and training loops made by chance: a seed gives the text of a model and guide, and what is done around.

Each choice is drawn by its own name, so that the choices of a seed can be set to the plainest one by one until what
fails is small: `Choices(seed, {"frame": "flat"})`.
"""

import copy
import itertools
import linecache
import random
import re
import types

import pyro
import torch
from pyro import optim, poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule

HEAD = """import pyro, torch
import pyro.distributions as dist
import pyro.poutine as poutine
from pyro.distributions import constraints, transforms
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from torch import nn
from torch.nn.functional import softplus

RATE = 0.7
TABLE = {"rate": 0.4}
SHIFT = torch.tensor(0.2)


def rate():
    return 2 * RATE

"""
LATENTS = {  # the event's size; the prior, of a location L; the guide, of a number a and a positive number b
    "normal": (0, "dist.Normal(L, 1.0)", "dist.Normal(a, b)"),
    "lognormal": (0, "dist.LogNormal(0.5 * L, 0.7)", "dist.LogNormal(a, b)"),
    "gamma": (0, "dist.Gamma(2.0, softplus(L) + 0.5)", "dist.Gamma(b + 0.5, softplus(a) + 0.5)"),
    "beta": (0, "dist.Beta(2.0, softplus(L) + 1.0)", "dist.Beta(b + 0.5, softplus(a) + 0.5)"),
    "studentt": (0, "dist.StudentT(5.0, L, 1.0)", "dist.Normal(a, b)"),
    "sigmoid": (
        0,
        "dist.TransformedDistribution(dist.Normal(L, 1.0), [transforms.SigmoidTransform()])",
        "dist.TransformedDistribution(dist.Normal(a, b), [transforms.SigmoidTransform()])",
    ),
    "vector": (2, "dist.Normal(L.unsqueeze(-1) * torch.ones(2), 1.0).to_event(1)", "dist.Normal(a, b).to_event(1)"),
    "dirichlet": (
        3,
        "dist.Dirichlet((softplus(L) + 0.5).unsqueeze(-1) * torch.ones(3))",
        "dist.Dirichlet(softplus(a) + 0.5)",
    ),
    "low rank": (
        2,
        "dist.MultivariateNormal(L.unsqueeze(-1) * torch.ones(2), torch.eye(2))",
        "dist.LowRankMultivariateNormal(a, 0.3 * b.unsqueeze(-1), b)",
    ),
    "bernoulli": (0, "dist.Bernoulli(logits=L)", "dist.Bernoulli(logits=a)"),
    "poisson": (0, "dist.Poisson(softplus(L) + 0.5)", "dist.Poisson(b)"),
}
DISCRETE = ("bernoulli", "poisson")
FRAMES = {  # of the data: the plate, how rows are taken, the shape of a table of local parameters, plates deep
    "flat": ('with pyro.plate("data", len(x)) as i:', "", "16,", "[:len(x)]", 1),
    "sub": ('with pyro.plate("data", len(x), subsample_size=3) as i:', "[i]", "16,", "[i]", 1),
    "loop": ('for i in pyro.plate("data", len(x)):', "[i]", "16,", "[i]", 0),
    "part": ('with pyro.plate("data", 50, subsample_size=len(x)):', "", "", "", 1),
    "nested": ('with pyro.plate("two", 2, dim=-1), pyro.plate("data", len(x), dim=-2):', "", "16, 2,", "[:len(x)]", 2),
}
OBSERVED = {
    "normal": ("dist.Normal(m, noise)", "{}"),
    "laplace": ("dist.Laplace(m, noise)", "{}"),
    "poisson": ("dist.Poisson(softplus(m) + 0.1)", "{}.abs().round()"),
    "bernoulli": ("dist.Bernoulli(logits=m)", "({} > 0).to(x.dtype)"),
    "gamma": ("dist.Gamma(softplus(m) + 0.5, noise)", "{}.exp()"),
}
NETWORKS = {
    "linear": "nn.Linear(2, 1)",
    "batch norm": "nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))",
    "dropout": "nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.3), nn.Tanh(), nn.Linear(3, 1))",
    "PyroModule": "PyroModule[nn.Linear](2, 1)",
}
AUTOMATIC = ("AutoNormal(M)", "AutoMultivariateNormal(M)", "AutoLowRankMultivariateNormal(M, rank=1)", "AutoDelta(M)")
CONSTRAINTS = ("positive", "interval(0.05, 3.0)", "softplus_positive")
OPTIMIZERS = {
    "Adam": lambda: optim.Adam({"lr": 0.02}),
    "ClippedAdam": lambda: optim.ClippedAdam({"lr": 0.02, "clip_norm": 0.5, "lrd": 0.9}),
    "SGD": lambda: optim.SGD({"lr": 0.001, "momentum": 0.9, "weight_decay": 0.01}),
    "RMSprop": lambda: optim.RMSprop({"lr": 0.01}),
    "Adagrad": lambda: optim.Adagrad({"lr": 0.05}),
    "by name": lambda: optim.Adam(lambda name: {"lr": 0.05 if name.endswith("a") else 0.01}),
    "clipped": lambda: optim.Adam({"lr": 0.02}, {"clip_norm": 0.3}),
    "scheduled": lambda: optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.03}, "gamma": 0.8}),
}


class Choices:
    """What a seed chooses, by name; the first of the options is the plainest."""

    def __init__(self, seed, fixed=()):
        self.seed, self.fixed, self.taken = seed, dict(fixed), {}

    def __call__(self, name, *options, plain=0.4):
        chance = random.Random(f"{self.seed} {name}")
        value = options[0] if chance.random() < plain else chance.choice(options)
        self.taken[name] = value = self.fixed.get(name, value)
        return value


class Program:
    """The text of a model and guide of (x, y, k), and how deep its plates go."""

    def __init__(self, choose, automatic=True, frames=tuple(FRAMES)):
        self.choose = choose
        self.frame = choose("frame", *frames, plain=0.2)
        self.plate, self.rows, self.table, self.at, deep = FRAMES[self.frame]
        self.automatic = automatic and self.frame in ("flat", "nested") and choose("guide", "", *AUTOMATIC, plain=0.7)
        families = [name for name in LATENTS if not (self.automatic and name in DISCRETE)]
        count = choose("latents", 1, 2, 3, plain=0.2)
        places = [choose(f"z{n}.place", "global", "group", "local", plain=0.2) for n in range(count)]
        order = sorted(places, key=["global", "group", "local"].index)
        self.latents = [(f"z{n}", p, choose(f"z{n}.family", *families, plain=0.1)) for n, p in enumerate(order)]
        self.deep = max(deep, int("group" in places))
        self.modules = []
        self.text = self._text()

    def _text(self):
        model, guide = self._model(), self._guide()
        made = f"guide = {self.automatic.replace('(M', '(model')}" if self.automatic else guide
        return "\n".join([HEAD + "\n".join(self.modules), model, made, ""])

    def _site(self, name, place, distribution):
        named = f'f"{name}_{{i}}"' if place == "local" and self.frame == "loop" else f'"{name}"'
        line = f"{name} = pyro.sample({named}, {distribution})"
        around = [f'pyro.plate("groups of {name}", 3, dim=-1)'] if place == "group" else []
        if self.choose(f"{name}.scale", 0, 1, plain=0.85):
            around.append("poutine.scale(scale=0.5)")
        return f"with {', '.join(around)}: {line}" if around else line

    def _model(self):
        outer, inner, terms, before = [], [], [], "torch.zeros(())"
        for name, place, family in self.latents:
            size, prior, _ = LATENTS[family]
            line = self._site(name, place, re.sub(r"\bL\b", f"(0.3 * {before})", prior))
            (inner if place == "local" else outer).append(line)
            before = f"{name}.to(x.dtype){'.sum(-1)' if size else ''}{'.mean(-1, keepdim=True)' * (place == 'group')}"
            terms.append(before)
        noise = self.choose(
            "noise", "torch.tensor(1.0)", 'pyro.param("noise", torch.tensor(0.8), constraints.positive)'
        )
        outer.append(f"noise = {noise}")
        if network := self.choose("network", "", *NETWORKS):
            self.modules.append(f"network = {NETWORKS[network]}")
            outer += [] if network == "PyroModule" else ['pyro.module("network", network)']
            outer.append("shift = network(x).squeeze(-1)")
            terms.append(f"shift{self.rows}{'.unsqueeze(-1)' * (self.frame == 'nested')}")
        if outside := self.choose("outside", "", "RATE", 'TABLE["rate"]', "SHIFT", "rate()"):
            terms.append(f"0.5 * {outside}")
        if self.choose("factor", 0, 1, plain=0.8) and self.latents[0][1] == "global":
            outer.append(f'pyro.factor("factor", -0.1 * ({terms[0]}) ** 2)')
        distribution, data = OBSERVED[self.choose("observed", *OBSERVED)]
        value = data.format("x" if self.frame == "nested" else f"y{self.rows}")
        named = 'f"y_{i}"' if self.frame == "loop" else '"y"'
        observed = f"pyro.sample({named}, {distribution}, obs={value})"
        if self.choose("mask", 0, 1, plain=0.8):
            mask = {"nested": "x > -0.5", "loop": "torch.tensor(True)"}.get(self.frame, f"x{self.rows}[..., 1] > -0.3")
            observed = f"with poutine.mask(mask={mask}): {observed}"
        inner += [f"m = {' + '.join(terms)} + 0.2 * k", observed]
        return _function("model", [*outer, self.plate, *(f"    {line}" for line in inner)])

    def _guide(self):
        outer, inner = [], []
        for name, place, family in self.latents:
            lines = [*self._parameters(name, place, family), self._site(name, place, LATENTS[family][2])]
            (inner if place == "local" else outer).extend(lines)
        return _function(
            "guide", [*outer, *([self.plate] if inner else []), *(f"    {line}" for line in inner), "pass"]
        )

    def _parameters(self, name, place, family):
        """The lines that make a and b."""
        size = LATENTS[family][0]
        plates, at = {"global": ("", ""), "group": ("3,", ""), "local": (self.table, self.at)}[place]
        shape, style = (
            f"({plates}{f'{size},' if size else ''})",
            self.choose(f"{name}.style", "zero", "drawn", "network"),
        )
        if style == "network" and place != "group":
            width = size or 1
            self.modules.append(f"{name}_network = nn.Linear(2, {2 * width})")
            given = f"x{self.rows}" if place == "local" else "x.mean(0)"
            first, second = (f"[..., :{width}]", f"[..., {width}:]") if size else ("[..., 0]", "[..., 1]")
            deeper = f".unsqueeze(-{2 if size else 1})" if place == "local" and self.frame == "nested" else ""
            return [
                f'pyro.module("{name}_network", {name}_network)',
                f"h = {name}_network({given})",
                f"a, b = h{first}{deeper}, softplus(h{second}{deeper}) + 0.1",
            ]
        start = f"torch.zeros({shape})" if style == "zero" else f"lambda: 0.1 * torch.randn({shape})"
        kind = self.choose(f"{name}.constraint", *CONSTRAINTS)
        return [
            f'a = pyro.param("{name}_a", {start}){at}',
            f'b = pyro.param("{name}_b", torch.full({shape}, 0.5), constraints.{kind}){at}',
        ]


def _function(name, lines):
    return "\n".join([f"\n\ndef {name}(x, y, k=1.0):", *(f"    {line}" for line in lines)])


_numbers = itertools.count()


def load(text):
    """A module of a program's text, which shows in tracebacks."""
    name = f"<program {next(_numbers)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    module = types.ModuleType("program")
    exec(compile(text, name, "exec"), vars(module))
    return module


# What is done around it -----------------------------------------------------------------------------------------------

EVENTS = {}


def event(function):
    """One of the things that may happen before a step, of the SVI, the program's module and the step's arguments.

    What it returns is a context that the step is taken in.
    """
    EVENTS[function.__name__] = function
    return function


def _networks(module):
    return [value for value in vars(module).values() if isinstance(value, torch.nn.Module)]


def _groups(svi):
    """What the optimizer has of each parameter of the store, by name."""
    parts = {} if hasattr(svi.optim, "pt_scheduler_constructor") else svi.optim.optim_objs
    store = pyro.get_param_store()
    names = {
        store.param_name(parameter): part for parameter, part in parts.items() if parameter in store._param_to_name
    }
    return [names[name].param_groups[0] for name in sorted(names)]


@event
def evaluate(svi, module, args):
    svi.evaluate_loss(*args)


@event
def modes(svi, module, args):
    for network in _networks(module):
        network.train(not network.training)


@event
def slower(svi, module, args):
    for group in _groups(svi):
        group["lr"] = group["lr"] * 0.3


@event
def one_slower(svi, module, args):
    for group in _groups(svi)[:1]:
        group["lr"] = 0.001


@event
def scheduled(svi, module, args):
    if hasattr(svi.optim, "pt_scheduler_constructor"):
        svi.optim.step()


@event
def another_rate(svi, module, args):
    module.RATE, module.TABLE["rate"] = -0.4, -0.7


@event
def another_shift(svi, module, args):
    module.SHIFT = module.SHIFT + 1


@event
def shift_in_place(svi, module, args):
    module.SHIFT.fill_(-0.3)


@event
def another_function(svi, module, args):
    module.rate = lambda: -0.3


@event
def cleared(svi, module, args):
    if not _networks(module):  # theirs stay: with a schedule of torch's for all, this is said
        pyro.clear_param_store()


@event
def seeded(svi, module, args):
    pyro.set_rng_seed(11)


@event
def set_in_place(svi, module, args):
    with torch.no_grad():
        for _, value in pyro.get_param_store().named_parameters():
            value.add_(0.05)


@event
def other_memory(svi, module, args):
    for _, value in pyro.get_param_store().named_parameters():
        value.data = value.data * 0.9


@event
def frozen(svi, module, args):
    plain = [network for network in _networks(module) if not isinstance(network, PyroModule)]
    for network in plain[:1]:  # Pyro moves those of a frozen PyroModule on by their momentum
        next(network.parameters()).requires_grad_(False)


@event
def drawn(svi, module, args):
    torch.randn(3)


@event
def stored(svi, module, args):
    store = pyro.get_param_store()
    state = store.get_state()
    copies = {name: value.detach().clone().requires_grad_() for name, value in state["params"].items()}
    store.set_state({**state, "params": copies})


def _first_of_store():
    return next((name for name in sorted(pyro.get_param_store().keys()) if "." not in name and "$" not in name), None)


@event
def set_in_store(svi, module, args):
    if name := _first_of_store():
        pyro.get_param_store()[name] = pyro.get_param_store()[name].detach() * 0.95


@event
def taken_out_of_store(svi, module, args):
    if name := _first_of_store():
        del pyro.get_param_store()[name]


@event
def graded(svi, module, args):
    for _, parameter in list(pyro.get_param_store().named_parameters())[:2]:
        parameter.grad = torch.full_like(parameter, 0.1)


@event
def graded_by_hand(svi, module, args):
    Trace_ELBO().differentiable_loss(svi.model, svi.guide, *args).backward()


@event
def other_arguments(svi, module, args):
    others = {"clip_norm": 0.1, "betas": (0.8, 0.99), "momentum": 0.5, "eps": 1e-6, "weight_decay": 0.02}
    for group in _groups(svi):
        for key in others.keys() & group.keys():
            if key != "momentum" or group[key]:  # torch's RMSprop cannot begin with it later
                group[key] = others[key]


@event
def states_of_optimizer(svi, module, args):
    svi.optim.set_state(copy.deepcopy(svi.optim.get_state()))


@event
def optimizer_cleared(svi, module, args):
    svi.optim.optim_objs.clear()


@event
def another_optimizer(svi, module, args):
    svi.optim = optim.Adam({"lr": 0.03})


@event
def hooked(svi, module, args):
    for network in _networks(module)[:1]:
        network.register_forward_hook(lambda layer, given, found: 0.9 * found)


@event
def another_layer(svi, module, args):
    for network in _networks(module):
        if isinstance(network, torch.nn.Sequential) and isinstance(network[-2], torch.nn.Tanh):
            network[-2] = torch.nn.Sigmoid()


@event
def hidden_guide(svi, module, args):
    svi.guide = poutine.block(svi.guide, hide_types=["param"])


@event
def hidden_model(svi, module, args):
    svi.model = poutine.block(svi.model, hide_types=["param"])


@event
def hidden_some(svi, module, args):
    svi.guide = poutine.block(svi.guide, hide_fn=lambda site: site["type"] == "param" and site["name"].endswith("a"))


@event
def shown(svi, module, args):
    svi.model, svi.guide = module.model, module.guide


@event
def within_scale(svi, module, args):
    return poutine.scale(scale=0.3)


@event
def within_mask(svi, module, args):
    return poutine.mask(mask=False)


@event
def within_block(svi, module, args):
    return poutine.block(hide_types=["param"])


@event
def within_scope(svi, module, args):
    return pyro.get_param_store().scope()


@event
def shared(svi, module, args):
    own = {"compile": svi.compile} if hasattr(svi, "compile") else {}
    second = type(svi)(svi.model, svi.guide, svi.optim, Trace_ELBO(), **own)
    for _ in range(3):
        second.step(*args)


def elbo(choose, deep):
    """One of Pyro's objectives."""
    count = choose("particles", 1, 2, 3)
    aside = {"vectorize_particles": True, "max_plate_nesting": deep} if count > 1 and choose("at once", 0, 1) else {}
    kinds = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, RenyiELBO)
    kind = choose("objective", *kinds)
    return kind(alpha=0.5, num_particles=count, **aside) if kind is RenyiELBO else kind(num_particles=count, **aside)
