"""Optimizer steps as a compiler gets them: what torch's fused kernels do; arrays of draws made at once."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters
from torch.optim import SGD, Adagrad, Adam, AdamW

from pvae.replay import compiling
from pvae.replay.overlap import overlapped
from pvae.replay.tracing import record
from pvae.replay.unfused import UNFUSED

CASES = {
    "Adam": (Adam, {}),
    "Adam, all options": (Adam, {"weight_decay": 0.1, "amsgrad": True, "maximize": True, "betas": (0.5, 0.9)}),
    "Adam without momentum": (Adam, {"betas": (0.0, 0.99)}),
    "AdamW": (AdamW, {"weight_decay": 0.2, "eps": 1e-2}),
    "AdamW, amsgrad": (AdamW, {"weight_decay": 0.2, "amsgrad": True, "maximize": True}),
    "SGD": (SGD, {"weight_decay": 0.1, "maximize": True}),
    "SGD, momentum": (SGD, {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    "SGD, Nesterov": (SGD, {"momentum": 0.9, "nesterov": True}),
    "Adagrad": (Adagrad, {"lr_decay": 0.3, "weight_decay": 0.1, "maximize": True, "eps": 0.1}),
}
SHAPES = [(3, 2), (), (5,)]


def fit(case, unfused, compile=False):
    """Parameters and state after five steps, the last three by a graph."""
    make, options = CASES[case]
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    optimizer = make(
        [torch.nn.Parameter(p) for p in parameters], **options, lr=torch.tensor(0.1, dtype=torch.float64), fused=True
    )
    having = optimizer.param_groups[0]["params"]

    def update(*gradients):
        for parameter, gradient in zip(having, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    graph = None
    for step in range(5):
        gradients = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        if step == 2:
            before = [value.clone() for value in tensors(optimizer)]
            graph = record(lambda *g: update(*g) or (), *gradients, replaced=UNFUSED if unfused else None)
            fused = [node for node in graph.graph.nodes if "_fused_" in str(node.target)]
            assert bool(fused) != unfused
            graph = compiling.compiled(graph, gradients) if compile else graph
            with torch.no_grad():
                for value, old in zip(tensors(optimizer), before, strict=True):
                    value.copy_(old)
        with torch.no_grad():
            (graph or update)(*gradients)
    return tensors(optimizer)


def tensors(optimizer):
    held = [value for state in optimizer.state.values() for value in state.values() if value is not None]
    return [*optimizer.param_groups[0]["params"], *held]


@pytest.mark.parametrize("case", CASES)
def test_a_step_as_a_compiler_gets_it_is_the_fused_step(case):
    torch.testing.assert_close(fit(case, unfused=True), fit(case, unfused=False), rtol=3e-7, atol=1e-9)


@pytest.mark.parametrize("case", ["Adam", "SGD, momentum"])
def test_a_compiled_step_is_the_fused_step(case):
    torch.testing.assert_close(fit(case, True, compile=True), fit(case, unfused=False), rtol=3e-7, atol=1e-9)


def test_every_fused_optimizer_is_known():
    from pvae.svi.optimizers import FUSED

    assert {f"aten._fused_{kind.__name__.lower()}_.tensor_lr" for kind in FUSED} == {str(op) for op in UNFUSED}


def test_an_array_that_is_made_and_filled_with_draws_is_one_operation():
    def draws(x):
        made = [
            torch.empty(3, 2).normal_(),
            torch.empty(4, dtype=torch.float64).uniform_(),
            torch.empty(5, dtype=torch.uint8).random_(255),
        ]
        others = [torch.empty(4).normal_(1.0, 2.0), x.clone().normal_(), torch.empty(4).uniform_(0.5, 1.0)]
        seen = torch.empty(4)
        part = seen[:2]
        seen.normal_()
        return *made, *others, part.clone()

    graph = record(draws, torch.ones(3))
    names = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    aten = torch.ops.aten
    assert names[:3] == [aten.randn.default, aten.rand.default, aten.randint.default]
    assert names.count(aten.normal_.default) == 3  # with other moments, into a copy, into what is seen before
    results = []
    for function in (draws, graph):
        torch.manual_seed(3)
        results.append(function(torch.ones(3)))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)


def test_a_layers_two_gradient_products_are_one_operation():
    """With the same numbers; not those of other layers, nor where one is used before the other is made."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4), torch.nn.Linear(4, 2))
    weights = [layer.weight for layer in net if isinstance(layer, torch.nn.Linear)]

    def gradients(x):
        return torch.autograd.grad(net(x).square().sum(), weights)

    x = torch.randn(7, 3)
    graph = record(gradients, x)
    joined = overlapped(copy.deepcopy(graph))
    count = [str(node.target) for node in joined.graph.nodes]
    assert count.count("pvae.linear_gradients.default") == 2
    assert count.count("aten.mm.default") == 1  # the first layer's input has no gradient
    torch.testing.assert_close(joined(x), gradients(x), rtol=0, atol=0)


def test_what_is_compiled_is_kept_for_another_process():
    """Operations of our own are no reason for inductor to leave its cache alone."""
    weight = torch.randn(4, 3, requires_grad=True)

    def gradients(x):
        return torch.autograd.grad((x.tanh() @ weight.t()).square().sum(), (x, weight))

    x = torch.randn(7, 3, requires_grad=True)
    graph = overlapped(record(gradients, x))
    assert any("pvae" in str(node.target) for node in graph.graph.nodes)
    counters.clear()
    torch.testing.assert_close(compiling.compiled(graph, [x])(x), gradients(x))
    known = counters["inductor"]
    assert known["fxgraph_cache_miss"] + known["fxgraph_cache_hit"] == 1
    assert not known["fxgraph_cache_bypass"]


@pytest.mark.parametrize("case", ["other matrix", "ordered", "not transposed"])
def test_products_that_are_not_a_layers_gradients_stay_apart(case):
    def products(g, w, x):
        first = g @ w
        if case == "other matrix":
            return first, (2 * g).T @ x
        if case == "ordered":
            return first, g.T @ (x + first)
        return first, g @ x.T

    inputs = torch.ones(4, 3), torch.ones(3, 4), torch.ones(4, 4) if case != "not transposed" else torch.ones(5, 3)
    graph = overlapped(record(products, *inputs))
    assert not any("pvae" in str(node.target) for node in graph.graph.nodes)
    torch.testing.assert_close(graph(*inputs), products(*inputs), rtol=0, atol=0)
