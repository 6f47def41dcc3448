"""Programs made by chance: the mean of every estimated gradient is that of every bound, found without any of our code.

A program runs as many times as there are replicas, side by side in a plate, or on so many copies of the data. What it
should be comes from Pyro's traces: through the draws where all have a path, else of the score function.
"""

import random
import re
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from random_programs import DISCRETE, LATENTS, Choices, Program, load

from pvae import base
from pvae.base import members
from pvae.errors import InputError

PARTICLES, REPLICAS, RUNS = 4, 600, 24
TOO_FAR = 5.5  # standard errors of a difference of two means of as many runs
OPTIONS = {
    "renyi": {"alpha": 0.4},
    "ciwae": {"share": 0.3},
    "miwae": {"groups": 2},
    "piwae": {"groups": 2},
    "tvo": {"partitions": (0.0, 0.3, 1.0)},
}
MADE = {  # of a number u and a positive one: what a latent is made by, and the log of its slope
    "normal": ("u + c * u.tanh()", "(1 + c * (1 - u.tanh() ** 2)).log()"),
    "vector": ("u + c * u.tanh()", "(1 + c * (1 - u.tanh() ** 2)).log().sum(-1)"),
    "lognormal": ("(c * u).exp()", "c * u + c.log()"),
    "sigmoid": ("u.sigmoid()", "(u.sigmoid() * (-u).sigmoid()).log()"),
}
ROWS = "torch.arange(len(x)) % 3"
SHARED = '\n    shared = pyro.param("shared", torch.tensor(0.3))'


class Chained(Program):
    """Its guide's latents may depend on one another, be made of auxiliary draws or masked, and share a parameter."""

    def _text(self):
        self.path = not any(family in DISCRETE for *_, family in self.latents)
        self.shared = self.choose("shared", 0, 1)
        text = super()._text().replace("[:len(x)]", f"[{ROWS}]")
        return re.sub(r"(def (model|guide)\(.*:)", r"\1" + SHARED, text) if self.shared else text

    def _model(self):
        text = super()._model()
        if self.shared:
            text = text.replace("(0.3 * torch.zeros(()))", "(0.7 * shared)").replace("0.3 * ", "shared * ")
        return text

    def _site(self, name, place, distribution):
        line = super()._site(name, place, distribution)
        guide, family = re.search(r"\b[ab]\b", distribution), next(f for n, _, f in self.latents if n == name)
        if guide and family in MADE and self.path and self.choose(f"{name} made", 0, 1, plain=0.5):
            line = self._made(line, family)
        masks = self.choose(f"{name} masked by", "neither", "both", "the model", plain=0.6)
        if masks == "both" or (masks == "the model" and not guide):
            mask = self._mask(name, place) if masks == "both" else "False"
            line = f"with poutine.mask(mask={mask}): {line}".replace("): with ", "), ")
        return line

    def _mask(self, name, place):
        if place == "group":
            return "x.new_tensor([1.0, 0.0, 1.0]) > 0"
        if place == "local" and self.frame in ("flat", "nested"):
            return f"({ROWS} != 1)" + ".unsqueeze(-1)" * (self.frame == "nested")
        return self.choose(f"{name} mask", "torch.tensor(True)", "torch.tensor(False)", plain=0.5)

    def _made(self, line, family):
        around, name, site = re.match(r'(.*?)(\w+) = pyro.sample\((f?".*?"), ', line).groups()
        (value, slope), size = MADE[family], int(family == "vector")
        return "; ".join(
            [
                f'{around}c = pyro.param("{name}_c", torch.tensor(0.4), constraints.positive)',
                f'u = pyro.sample({site[:-1]}_u", dist.Normal(a, b).to_event({size}), infer={{"is_auxiliary": True}})',
                f"{name} = pyro.sample({site}, dist.Delta({value}, log_density=-({slope}), event_dim={size}))",
            ]
        )

    def _parameters(self, name, place, family):
        lines, number = super()._parameters(name, place, family), int(name[1:])
        if self.shared and self.choose(f"{name} shares", 0, 1):
            lines.append("a = a + 0.5 * shared")
        if number and self.choose(f"{name} chained", 0, 1, plain=0.3):
            before, where, kind = self.latents[number - 1]
            ends = (".sum(-1)" * bool(LATENTS[kind][0]), ".mean(-1, keepdim=True)" * (where == "group"))
            term = f"({before}.to(x.dtype){''.join(ends)}){'.unsqueeze(-1)' * bool(LATENTS[family][0])}"
            lines.append(f"a = a + 0.4 * {term}")
            if self.choose(f"{name} scaled", 0, 1):
                lines.append(f"b = 2 * b * (0.3 * {term}).sigmoid()")
        return lines


class Case:
    """A program, as many times as there are replicas."""

    def __init__(self, seed, by_datum):
        choose = Choices(seed, {f"z{n}.place": "local" for n in range(3)} if by_datum else ())
        self.program = Chained(choose, False, ("flat", "nested") if by_datum else ("flat", "loop", "nested", "part"))
        draw = torch.Generator().manual_seed(seed)
        x, y = torch.randn(3, 2, generator=draw), torch.randn(3, generator=draw)
        self.args = (x.repeat(REPLICAS, 1), y.repeat(REPLICAS)) if by_datum else (x, y)
        pyro.clear_param_store()
        base._scopes.clear()
        pyro.set_rng_seed(seed)
        module = load(self.program.text)
        used = []
        for program in (module.guide, module.model):
            with poutine.trace(param_only=True) as seen:
                program(*self.args)
            used.append(set(seen.trace.nodes))
        self.guides, self.shares = used[0], bool(used[0] & used[1])
        self.parameters = pyro.get_param_store()._params
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
        deep = self.program.deep
        self.deep = deep - by_datum  # on the right of the plate whose elements have a bound each
        self.plate, self.size = ("data", 3 * REPLICAS) if by_datum else ("replicas", REPLICAS)
        self.model, self.guide = (
            (module.model, module.guide) if by_datum else map(self._repeated, (module.model, module.guide))
        )

    def _repeated(self, program):
        def repeated(*args):
            with pyro.plate("replicas", REPLICAS, dim=-1 - self.deep):
                program(*args)

        return repeated

    def gradient(self, loss):
        """Of one replica, by parameter."""
        found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        pairs = zip(self.parameters.items(), found, strict=True)
        return {name: torch.zeros_like(p) if g is None else g / REPLICAS for (name, p), g in pairs}

    def estimated(self, objective):
        return self.gradient(-objective.differentiable_loss(self.model, self.guide, *self.args))

    def expected(self, objective):
        found = [self._naive(bound, objective.beta) for bound in (objective.bound, objective.guide_bound)]
        guides = {name: any(name == g or name.startswith(f"{g}$$$") for g in self.guides) for name in self.parameters}
        return {name: found[objective.apart and its][name] for name, its in guides.items()}

    def _naive(self, bound, beta):
        with pyro.plate("particles", PARTICLES, dim=-2 - self.deep), _Fixed(not self.program.path):
            guide = poutine.trace(self.guide).get_trace(*self.args)
            model = poutine.trace(poutine.replay(self.model, trace=guide)).get_trace(*self.args)
        value = bound(self._log_prob(model, beta) - self._log_prob(guide, beta))
        if self.program.path:
            return self.gradient(value.sum())
        held = ((value.sum() - value) / (self.size - 1)).detach()  # the others'
        score = self._log_prob(guide, masked=False).sum(0)
        return self.gradient((value + (value.detach() - held) * score).sum())

    def _log_prob(self, trace, beta=1.0, masked=True):
        """Of all sites, for each particle and replica, with that of latents weighed."""
        total = 0.0
        for site in trace.nodes.values():
            if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
                log_prob = site["fn"].log_prob(site["value"]) * (1.0 if site["is_observed"] else beta)
                if masked and site["mask"] is not None:
                    log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, 0.0)
                scale = site["scale"] if self.plate == "replicas" else 1.0
                full = torch.broadcast_shapes(log_prob.shape, (PARTICLES, self.size, *[1] * self.deep))
                total = total + (scale * log_prob).expand(full).reshape(PARTICLES, self.size, -1).sum(-1)
        return total


class _Fixed(poutine.messenger.Messenger):
    """Draws have no gradient."""

    def __init__(self, fixed):
        super().__init__()
        self.fixed = fixed

    def _pyro_post_sample(self, msg):
        if self.fixed and not msg["is_observed"]:
            msg["value"] = msg["value"].detach()


def means(estimate, times=1):
    """Mean and squared error of a gradient, by parameter."""
    runs = times * RUNS
    found = [estimate() for _ in range(runs)]
    rows = {name: torch.stack([each[name] for each in found]) for name in found[0]}
    return {name: (row.mean(0), row.var(0) / runs) for name, row in rows.items()}


def farthest(one, other):
    """The largest difference of two means, in standard errors, and where."""
    found = {}
    for name, (mean, square) in one.items():
        least = 1e-9 * (1 + mean.abs())
        found[name] = float(((mean - other[name][0]).abs() / ((square + other[name][1]).sqrt() + least)).max())
    return max((value, name) for name, value in found.items())


def unbiased(bound, gradient):
    return gradient != "rws" and (gradient != "stl" or bound == "elbo")


FEW = [(1, True), (2, False), (5, False), (6, True), (7, False), (11, False)]
SOME = [pytest.param(seed, seed % 3 == 0, marks=pytest.mark.slow) for seed in range(100, 200)]


@pytest.mark.parametrize(("seed", "by_datum"), [*FEW, *SOME])
@pytest.mark.filterwarnings("ignore")
def test_the_mean_of_the_estimates_is_the_gradient_of_the_bound(seed, by_datum):
    torch.set_default_dtype(torch.float64)
    try:
        case, chance, compared, wrong = Case(seed, by_datum), random.Random(seed), 0, []
        beta = chance.choice([1.0, 0.6, 1.3])
        for name in ("elbo", "iwae", *chance.sample([*OPTIONS, "chi"], 2)):
            kind, expected = members("objective")[name], None
            for gradient in filter(lambda gradient: unbiased(name, gradient), members("gradient")):
                chunk = chance.choice([None, 3]) if "Dropout" not in case.program.text else None
                options = {"gradient": gradient, "chunk": chunk, "beta": beta, **OPTIONS.get(name, {})}
                try:
                    objective = kind(PARTICLES, plate=case.plate, **options)
                    case.estimated(objective)
                except InputError:
                    continue
                if objective.apart and case.shares:
                    continue
                expected = expected or means(partial(case.expected, objective))
                far, where = farthest(means(partial(case.estimated, objective)), expected)
                if far > TOO_FAR:  # it may be chance
                    found = (means(partial(estimate, objective), 6) for estimate in (case.estimated, case.expected))
                    far, where = farthest(*found)
                compared += 1
                if far > TOO_FAR:
                    wrong.append((name, gradient, chunk, where, far))
        assert not wrong, f"{wrong}\n{case.program.text}"
        if not compared:
            pytest.skip("refused by all")
    finally:
        torch.set_default_dtype(torch.float32)
