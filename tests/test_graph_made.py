"""Tensors that are made within a step where no trace sees it: a graph has them, or the step is eager."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import kinds
from pyro.infer import Trace_ELBO
from test_graph_fallbacks import both, plain, plain_guide
from torch import nn

import pvae
from pvae.replay.known import Known
from pvae.replay.tracing import record
from pvae.replay.values import Untraceable

WHOLE, DOUBLE = torch.tensor(3), torch.tensor(0.5, dtype=torch.float64)

MADE = {
    "list": lambda x: torch.tensor([x[0, 0], x[1, 1]]),
    "numbers read": lambda x: torch.tensor([x[0, 0].item(), 2 * x[1, 1].item()]),
    "nested": lambda x: torch.tensor([[x[0, 0], 1.5], (x[1, 1].reshape(1, 1), 2)]),
    "whole numbers": lambda x: torch.tensor([x.argmax(), 2]),
    "whole numbers and others": lambda x: torch.tensor([x.argmax(), 1.5]),
    "another dtype": lambda x: torch.tensor([x[0, 0], DOUBLE]),
    "a dtype asked for": lambda x: torch.tensor([x[0, 0], WHOLE], dtype=torch.float16),
    "as_tensor": lambda x: torch.as_tensor([x[0, 0], True]),
    "asarray": lambda x: torch.asarray(obj=[x[0, 0], x[1, 1]]),
    "by name": lambda x: torch.tensor(data=[x[0, 0], x[1, 1]]),
    "new_tensor": lambda x: x.double().new_tensor([x[0, 0], x[1, 1]]),
    "with a gradient": lambda x: torch.tensor([x[0, 0], x[1, 1]], requires_grad=True).square(),
    "known": lambda x: x[0, :2] * torch.tensor([WHOLE, DOUBLE]),
    "parameter of numbers": lambda x: x * nn.Parameter(torch.linspace(0.0, 1.0, 4)),
    "parameter of what is there": lambda x: x * nn.Parameter(WHOLE * torch.ones(4)).detach(),
    "flags of what is there": lambda x: x * nn.functional.one_hot(WHOLE),
    "array of what is there": lambda x: x * torch.from_numpy(np.asarray(WHOLE)),
}


@pytest.mark.parametrize("kind", MADE)
def test_what_is_made_of_tensors_in_a_list_is_replayed(kind):
    x = torch.randn(4, 4)
    graph = record(MADE[kind], x, known=Known([x], outside=True))
    for _ in range(3):
        x = torch.randn(4, 4)
        found, expected = graph(x), MADE[kind](x)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def layer(x):
    network = nn.Linear(4, 4)
    return network(x)


REFUSED = {
    "parameter": lambda x: nn.Parameter(x * 2) + 1,
    "detached parameter": lambda x: nn.Parameter((x * 2).detach()) @ x,
    "embedding": lambda x: nn.Embedding.from_pretrained(x * 2)(torch.tensor([0, 1])),
    "list of parameters": lambda x: nn.ParameterList([x * 2])[0] + 1,
    "changed parameter": lambda x: x * nn.Parameter(torch.ones(4)).data.add_(1),
    "changed flags": lambda x: x * nn.functional.one_hot(torch.tensor(3)).add_(1),
    "layer": layer,
    "subclass": lambda x: torch.Tensor._make_subclass(torch.Tensor, x * 2) + 1,
    "array": lambda x: torch.as_tensor(np.asarray((x * 2).detach())) + 1,
    "function of numpy": lambda x: torch.as_tensor(np.exp(x.detach())),
    "dlpack": lambda x: torch.from_dlpack((x * 2).detach()) + 1,
    "apply_": lambda x: (x * 2).apply_(lambda v: v + 1),
    "map_": lambda x: (x * 2).map_(x, lambda one, other: one + other),
    "new": lambda x: x.new([x[0, 0], x[1, 1]]) + 1,
    "sparse": lambda x: torch.sparse_coo_tensor([[0, 1]], [x[0, 0], x[1, 1]]).to_dense(),
    "another device": lambda x: torch.tensor([x[0, 0], x[1, 1]], device="meta"),
    "lists of other lengths": lambda x: torch.tensor([[x[0, 0]], [x[0, 0], x[1, 1]]]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_trace_can_see_is_refused(kind):
    with pytest.raises(Untraceable, match=r"made within the step|read in Python|equal size"):
        record(REFUSED[kind], torch.randn(4, 4))


def test_what_is_made_in_another_way_runs_eagerly_and_says_of_what_shape():
    def model(x):
        plain(nn.Parameter(2 * x).detach())

    svi, (said,) = both(lambda: (model, plain_guide), call=lambda step, x: (x + step,))
    assert "a tensor of shape (6,) is made within the step as a graph cannot follow" in said
    assert kinds(svi) == []


@pytest.mark.parametrize("first", [-1.0, 1.0])
@pytest.mark.parametrize("caught", [torch.linalg.LinAlgError, RuntimeError])
def test_a_matrix_that_has_no_factor_in_some_steps(caught, first):
    """What the program then does is done where it would be done."""

    def model(x):
        matrix = torch.eye(3) * x.mean()
        try:
            factor = torch.linalg.cholesky(matrix)
        except caught:
            factor = 7 * torch.eye(3)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + factor.sum(), 1.0), obs=x)

    svi, said = both(lambda: (model, plain_guide), call=lambda step, x: (x * first * (-1) ** (step // 4),))
    assert len(said) == (first < 0)
    assert kinds(svi) == ["graph"] * (first > 0)
    assert all("test_graph_made.py:" in line and "linalg.cholesky" in line for line in said)


def test_what_is_made_of_parameters_in_a_list_passes_no_gradient_on():
    def model(x):
        mean = pyro.param("mean", torch.tensor(0.0))
        first, second = torch.tensor([mean, 2 * mean.item()])
        plain(x + mean + first * second)

    svi, said = both(lambda: (model, plain_guide))
    assert (kinds(svi), said) == (["graph"], [])


@pytest.mark.parametrize(
    "part", [lambda x: x, lambda x: x.view(-1), lambda x: x[:], lambda x: x.detach(), lambda x: x.unbind()[0].expand(6)]
)
@pytest.mark.parametrize("change", ["in place", "another"])
def test_an_argument_whose_views_are_read_is_read_anew_where_it_changes(part, change):
    labels = torch.arange(6) % 3

    def model(x, labels):
        plain(x + nn.functional.one_hot(part(labels)).float()[:, 0])

    def call(step, x):
        nonlocal labels
        if step == 0:
            labels = torch.arange(6) % 3
        if step == 7 and change == "in place":
            labels.sub_(2).abs_()
        if step == 7 and change == "another":
            labels = 2 - labels
        return x, labels

    both(lambda: (model, lambda x, labels: plain_guide(x)), call=call)


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_a_class_that_is_none_is_refused_where_it_is_met(mode):
    def model(x, labels):
        plain(x + nn.functional.one_hot(labels, 3).float() @ pyro.param("weight", torch.zeros(3)))

    pyro.clear_param_store()
    svi = pvae.SVI(model, lambda x, labels: plain_guide(x), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(), compile=mode)
    x, labels = torch.randn(6), torch.arange(6) % 3
    for _ in range(3):
        svi.step(x, labels)
    with pytest.raises(RuntimeError, match="Class values must be smaller than num_classes"):
        svi.step(x, labels + 1)
    assert svi.steps == 3
    svi.step(x, labels)
