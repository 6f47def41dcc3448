"""What torch has beside plain layers, within Pyro programs: replayed and compiled steps are the eager ones."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from programs import assert_same, kinds, parameters
from pyro.infer import Trace_ELBO
from torch import nn

import pvae
from pvae.replay import compiling, placement, tracing
from pvae.replay.tracing import first_draws, record

aten = torch.ops.aten
DATA = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
ADAM = pyro.optim.Adam, {"lr": 0.01}
DRAWS = {
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli in place": lambda x: torch.empty(4, 6).bernoulli_(x[:4].sigmoid()),
    "binomial": lambda x: torch.binomial(x.abs().ceil() + 3, x.sigmoid()),
    "poisson": lambda x: torch.poisson(x.exp()),
    "normal": lambda x: torch.normal(x[:, :1], x.exp()),
    "normal of one mean": lambda x: torch.normal(0.5, x.exp()),
    "normal of one scale": lambda x: torch.normal(x, 0.5),
    "one of several": lambda x: torch.multinomial(x.exp(), 1),
    "two of several": lambda x: torch.multinomial(x.exp(), 2),
}
"""Which torch looks at, whether what they are made of is sound."""


@pytest.mark.parametrize("name", DRAWS)
def test_draws_that_are_not_looked_at_are_torchs(name):
    graph = record(lambda x: (DRAWS[name](x), torch.rand(2)), DATA)
    placement._draws_unchecked(graph)
    graph.recompile()
    refused = aten.bernoulli.default, aten.multinomial.default, aten.normal.Tensor_Tensor, aten.normal.float_Tensor
    assert not {node.target for node in graph.graph.nodes} & {*refused}  # the first is other numbers, compiled
    found = []
    for run in (lambda x: (DRAWS[name](x), torch.rand(2)), graph):
        torch.manual_seed(3)
        found.append(run(DATA + 0.1))
    for expected, value in zip(*found, strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("name", ["bernoulli", "bernoulli in place", "binomial", "poisson", "normal"])
def test_draws_of_what_is_not_a_number_do_not_end_the_process(name):
    graph = record(lambda x: (DRAWS[name](x),), DATA)
    placement._draws_unchecked(graph)
    graph.recompile()
    graph(DATA.where(DATA > 0, torch.nan))


def test_torchs_switches_can_be_read_in_a_step_that_is_compared():
    module = Program(nn.Linear(6, 3))

    def model(x):
        with torch.backends.cudnn.flags(enabled=False):
            module.model(x)

    pyro.clear_param_store()
    svi = pvae.SVI(model, module.guide, ADAM[0](ADAM[1]), Trace_ELBO(), compile="graph")
    for _ in range(4):
        svi.step(DATA)
    assert kinds(svi) == ["graph"]


class Program(nn.Module):
    """A latent variable for each datum, its mean by a network (12, 6) to (12, 3)."""

    def __init__(self, net):
        super().__init__()
        self.net, self.decoder = net, nn.Linear(3, 6)

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), 0.5).to_event(1))


class Net(nn.Module):
    """A linear layer, and a function of it and of the input."""

    def __init__(self, function, inputs=6):
        super().__init__()
        self.layer, self.function = nn.Linear(inputs, 3), function
        self.register_buffer("sparse", torch.eye(12).to_sparse())

    def forward(self, x):
        return self.function(self, x)


class Sequences(nn.Module):
    """Of three lengths, packed."""

    def __init__(self, recurrent, lengths, **options):
        super().__init__()
        self.recurrent, self.layer = recurrent(1, 5, **options), nn.Linear(5, 3)
        self.lengths, self.sorted = lengths, isinstance(lengths, list)

    def forward(self, x):
        steps = x.unsqueeze(-1) if self.recurrent.batch_first else x.t().unsqueeze(-1)
        options = {"batch_first": self.recurrent.batch_first, "enforce_sorted": self.sorted}
        packed = nn.utils.rnn.pack_padded_sequence(steps, self.lengths, **options)
        result = self.recurrent(packed)[0]
        padded, sizes = nn.utils.rnn.pad_packed_sequence(result, self.recurrent.batch_first, 1.0, total_length=8)
        return self.layer(padded.sum(int(self.recurrent.batch_first)) / sizes.unsqueeze(-1))


class Attention(nn.Module):
    """Dropout in it draws into arrays that are laid otherwise than in order."""

    def __init__(self):
        super().__init__()
        self.layers = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.1, batch_first=True)
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(self.layers(x.unsqueeze(1).repeat(1, 4, 1)).mean(1))


class Table(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 3, sparse=True)

    def forward(self, x):
        return self.table((2 * x.abs().sum(1)).long() % 10)


def conjugated(net, x):
    f = torch.fft.fft(x)
    return net.layer((f * f.conj()).real) + net.layer((f.conj().imag * f).real)


def checkpointed(net, x):
    return torch.utils.checkpoint.checkpoint(lambda v: net.layer(v.tanh()), x, use_reentrant=False)


def called(net, x):
    return torch.func.functional_call(net.layer, {k: 1.1 * v for k, v in net.layer.named_parameters()}, (x,))


def derivative(net, x):
    return net.layer(x) + torch.func.vmap(torch.func.jacrev(lambda v: net.layer(v).tanh()))(x).sum(-1)


def compiled():
    return torch.compile(nn.Linear(6, 3), backend="eager")


def correlated(net, x):
    """What torch itself reads of what is known: a covariance its divisor, counts and repeats their numbers."""
    z, counts = net.layer(x), torch.bincount(torch.tensor([0, 1, 1, 2]))
    return z @ torch.cov(z.T) + torch.corrcoef(z).sum() + (z / counts).repeat_interleave(torch.tensor([1, 0, 2]), 1)


NETS = {
    "a covariance": lambda: Net(correlated),
    "a conjugate": lambda: Net(conjugated),
    "a checkpoint": lambda: Net(checkpointed),
    "a functional call": lambda: Net(called),
    "vmap of a Jacobian": lambda: Net(derivative),
    "a sparse buffer": lambda: Net(lambda net, x: net.layer(torch.sparse.mm(net.sparse, x))),
    "attention with dropout": Attention,
    "a network compiled by torch": compiled,
    "sequences in order": lambda: Sequences(nn.GRU, [6] * 6 + [4] * 3 + [2] * 3, batch_first=True),
    "sequences, times first": lambda: Sequences(nn.LSTM, [6] * 6 + [4] * 3 + [2] * 3),
    "sequences in any order": lambda: Sequences(nn.GRU, torch.tensor([4] * 6 + [6] * 3 + [2] * 3), batch_first=True),
}


def fit(make, mode, optim=ADAM, steps=12, **options):
    pyro.clear_param_store()
    torch.manual_seed(1)
    program, (optimizer, *args) = Program(make()), optim
    svi = pvae.SVI(program.model, program.guide, optimizer(*args), Trace_ELBO(), compile=mode, **options)
    torch.manual_seed(2)
    losses = [float(svi.step(DATA + 0.01 * step)) for step in range(steps)]
    return losses, parameters(svi), torch.get_rng_state(), svi


@pytest.mark.parametrize("net", NETS)
def test_a_replayed_step_is_the_eager_step(net):
    found = fit(NETS[net], "graph")
    assert kinds(found[-1]) == ["graph"]
    assert_same(found, fit(NETS[net], "off"))


@pytest.mark.slow
@pytest.mark.parametrize("net", [net for net in NETS if net != "a sparse buffer"])  # which inductor does not take
def test_a_compiled_step_is_the_eager_step(net):
    losses, *_, svi = fit(NETS[net], "full")
    assert kinds(svi) == ["full"]
    assert losses == pytest.approx(fit(NETS[net], "off")[0], rel=1e-5)


SPARSE = {
    "SparseAdam": (pyro.optim.SparseAdam, {"lr": 0.01}),
    "Adagrad": (pyro.optim.Adagrad, {"lr": 0.01}),
    "SGD": (pyro.optim.SGD, {"lr": 0.001}),
}


def bare(make):
    """The program without a decoder, whose gradients would not be sparse."""
    program = Program(make())
    program.decoder = None
    program.model = lambda x: observed(x)
    return program


def observed(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.repeat(1, 2), 1.0).to_event(1), obs=x)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("optimizer", SPARSE)
def test_sparse_gradients_are_taken_as_pyro_takes_them(optimizer, mode):
    found = []
    for svi_of, options in ((pyro.infer.SVI, {}), (pvae.SVI, {"compile": mode})):
        pyro.clear_param_store()
        torch.manual_seed(1)
        program, (optim, args) = bare(Table), SPARSE[optimizer]
        svi = svi_of(program.model, program.guide, optim(args), Trace_ELBO(), **options)
        torch.manual_seed(2)
        found.append([float(svi.step(DATA + 0.01 * step)) for step in range(12)])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert kinds(svi) == ([] if mode == "off" else ["graph"])


def test_arrays_that_are_filled_are_drawn_as_they_lie():
    """An array is filled in the order of its memory, which a compiler may choose otherwise."""

    def step(x):
        mask = torch.empty_like(x.t()).bernoulli_(0.5)
        return mask.div_(0.5) + x.t(), torch.empty(4, 6).exponential_(2.0), F.dropout(x, 0.3)

    x = torch.randn(6, 4)
    rest, draw = first_draws(record(step, x))
    assert not any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in rest.graph.nodes)
    torch.manual_seed(1)
    expected = step(x)
    torch.manual_seed(1)
    drawn = draw()
    assert drawn[0].stride() == x.t().stride()
    for one, other in zip(rest(*drawn, x), expected, strict=True):
        assert torch.equal(one, other)


def test_an_array_that_is_read_before_it_is_filled_is_the_programs():
    def step(x):
        made = torch.empty_like(x)
        double = 2 * made.copy_(x)
        return double, made.bernoulli_(0.5)

    x = torch.randn(6, 4)
    rest, draw = first_draws(record(step, x))
    assert draw() == []
    assert torch.equal(rest(x)[0], 2 * x)


def test_a_graph_that_does_not_run_is_not_used(monkeypatch):
    def broken(graph):
        product = next(node for node in graph.graph.nodes if "mm" in str(node.target))
        product.args = (*product.args[:-1], product.args[0])

    monkeypatch.setattr(tracing, "merge_alike", broken)
    with pytest.warns(UserWarning, match="runs eagerly: it cannot be traced: its graph does not run: "):
        found = fit(lambda: nn.Linear(6, 3), "graph")
    assert_same(found, fit(lambda: nn.Linear(6, 3), "off"))


def test_what_changes_in_python_is_not_taken_for_a_compilers_mistake(monkeypatch):
    monkeypatch.setattr(compiling, "compiled", lambda graph, inputs: graph)
    values = iter([1.0] * 5 + [2.0] * 100)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = fit(lambda: Net(lambda net, x: next(values) * net.layer(x)), "full", steps=15)
    (warned,) = said
    assert "the program runs eagerly: the loss of the traced step" in str(warned.message)
    assert kinds(found[-1]) == []


def test_a_step_that_is_compiled_wrong_is_replayed_as_it_is(monkeypatch):
    monkeypatch.setattr(compiling, "compiled", lambda graph, inputs: lambda *given: [2 * r for r in graph(*given)])
    expected = fit(lambda: nn.Linear(6, 3), "off")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = fit(lambda: nn.Linear(6, 3), "full")
    (warned,) = said
    assert "the step is not compiled, its graph is replayed as it is: the loss of step 2 is" in str(warned.message)
    assert kinds(found[-1]) == ["graph"]
    assert_same(found, expected)


def turned(head, *gradients):
    """Another gradient of the same norm, of the one that is smallest."""
    least = min(range(len(gradients)), key=lambda place: gradients[place].norm())
    return [head, *(-gradient if place == least else gradient for place, gradient in enumerate(gradients))]


@pytest.mark.parametrize("check_every", [1, 3])
def test_a_gradient_that_is_compiled_wrong_is_seen_where_losses_and_norm_are_right(monkeypatch, check_every):
    monkeypatch.setattr(compiling, "compiled", lambda graph, inputs: lambda *given: turned(*graph(*given)))
    expected = fit(lambda: nn.Linear(6, 3), "off")
    with pytest.warns(
        UserWarning, match="the gradient of '.*decoder.weight' in step 2 is off by 2 times its norm .* when compiled"
    ):
        found = fit(lambda: nn.Linear(6, 3), "full", check_every=check_every)
    assert kinds(found[-1]) == ["graph"]
    assert_same(found, expected)


def blurred(head, *gradients):
    """A gradient that is mostly rounding is another: those of a bias before batch normalization are."""
    whole = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))
    least = min(gradients, key=torch.Tensor.norm)
    return [head, *(g + 0.01 * whole * (g is least) / g.numel() ** 0.5 for g in gradients)]


@pytest.mark.parametrize(("precision", "kind"), [("bf16", "full"), ("float32", "graph")])
@pytest.mark.filterwarnings("ignore:the step is not compiled")
def test_a_small_gradient_may_be_rounding_where_products_are_rough(monkeypatch, precision, kind):
    monkeypatch.setattr(compiling, "compiled", lambda graph, inputs: lambda *given: blurred(*graph(*given)))
    found = fit(lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, affine=False)), "full", precision=precision)
    assert kinds(found[-1]) == [kind]


@pytest.mark.parametrize(("factor", "name", "why"), [(0.5, "graph", ""), (1.5, "graph", "twice"), (2.5, "full", "")])
def test_a_step_is_compiled_where_that_saves_twice_what_it_takes(monkeypatch, factor, name, why):
    monkeypatch.setattr(compiling, "saved_by_fusion", lambda graph: (100, 0))
    steps = factor * compiling.building(100, "cpu") / (100 * compiling.LAUNCH["cpu"])
    found, said = compiling.choose(None, "cpu", round(steps))
    assert found == name
    assert ("; it is done where it saves twice as much as it takes" in said) == bool(why)


def parts(x, m):
    """Of it, as it is, inductor makes another number: a result lies in a part of what has been given to others."""
    several = [torch.mm(x, m + i).tanh() for i in range(10)]
    first = torch.mm(torch.cat(several), m)
    kept = (several[0] + first.sum()).sin()
    third = torch.mm(torch.mm(first, m), m)
    return torch.mm(kept, torch.mm(third.tanh(), m)[:8]), first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_result_is_put_in_the_place_of_a_part():
    x, m = torch.randn(4, 8), torch.randn(8, 8) / 3
    with compiling.parts_kept(), inductor.patch(force_disable_caches=True), torch.no_grad():
        torch._dynamo.reset()
        found = torch.compile(parts)(x, m)
    torch.testing.assert_close(found, parts(x, m), rtol=0, atol=1e-4)
