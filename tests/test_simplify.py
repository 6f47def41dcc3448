"""A graph in which what is computed twice is computed once: the same numbers, and nothing shared that is changed."""

import pytest
import torch

from pvae.replay.tracing import record

STATE = torch.ones(3)


def twice(x):
    return (x.exp() * 2 + x.exp() * 2, x.t().exp())


def changed_between(x):
    first = STATE.exp()
    STATE.add_(1)
    return (first + STATE.exp() * x,)


def changed_through_a_view(x):
    first, row = x.exp(), x.exp()[0]
    row.add_(1)
    return (first, row)


def one_of_two_changed(x):
    one, other = torch.zeros(3), torch.zeros(3)
    one.add_(x)
    return (one, other)


def drawn(x):
    return (torch.randn(3), torch.randn(3) * 1.0)


def views(x):
    return (x.t().t().reshape(-1).view(3, 3).exp() + x.expand(3, 3).exp(), x.view(1, 9).exp())


def with_words(x):
    return (
        x.scatter_reduce(0, torch.tensor([0, 0, 2]), x, "sum"),
        x.scatter_reduce(0, torch.tensor([0, 0, 2]), x, "prod"),
    )


def by_one(x):
    return ((x * 1.0).exp() + (x.pow(1.0) / 1).exp(), x * 1.0, torch.arange(3) * 1.0, (x * 1).add_(1))


def kinds_of_one(x):
    return tuple(torch.full((2,), number).neg() for number in (1.0, 1, -0.0, 0.0))


def alike(x):
    gradient = x.exp()
    return (gradient * 2, gradient * 2, gradient, x.exp())


def reshaped_in_place(x):
    """A product of a vector and a matrix is that of a row, which is squeezed where it is."""
    product = x[0] @ x
    return (product.unsqueeze(0).exp().sum(0), product.unsqueeze(0) @ x, product.unsqueeze(1).view(1, 3).sum(0))


def reshaped_beside(x):
    twice = 2 * x
    row = twice.detach().unsqueeze_(0)
    return (row.sum(0), twice.sum(0), twice.unsqueeze(0).sum(0))


SQUARE, ROW = torch.arange(9.0).reshape(3, 3), torch.arange(3.0)


def parts_changed(x):
    """As a gated recurrent cell does: parts of a new tensor, that are not said to be views of it, are changed."""
    ways = (lambda y: y.unsafe_chunk(2), lambda y: y.unsafe_split(2), lambda y: y.unsafe_split_with_sizes([1, 2]))
    return tuple(way(x.exp())[0].add_(1) * 3 for way in ways for _ in range(2))


RNN = torch.nn.GRU(3, 2)


def recurrent_twice(x):
    return (RNN(x)[0], RNN(x)[0])


FUNCTIONS = [
    (twice, SQUARE),
    (changed_between, ROW),
    (changed_through_a_view, SQUARE),
    (one_of_two_changed, ROW),
    (drawn, ROW),
    (views, SQUARE),
    (with_words, ROW),
    (by_one, SQUARE),
    (kinds_of_one, ROW),
    (alike, ROW),
    (reshaped_in_place, SQUARE),
    (reshaped_beside, SQUARE),
    (parts_changed, SQUARE),
    (recurrent_twice, SQUARE),
]


@pytest.mark.parametrize(("function", "x"), FUNCTIONS, ids=[function.__name__ for function, _ in FUNCTIONS])
def test_the_numbers_are_the_same_bit_for_bit(function, x):
    STATE.fill_(1)
    graph = record(function, x)
    for run in range(3):
        results = []
        for take in (function, graph):
            STATE.fill_(1 + run)
            torch.manual_seed(run)
            results.append((*take(x + run), STATE.clone()))
        for one, other in zip(*results, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert torch.equal(one, other)
            assert torch.equal(one.signbit(), other.signbit())


@pytest.mark.parametrize(("function", "x"), FUNCTIONS, ids=[function.__name__ for function, _ in FUNCTIONS])
def test_no_two_results_share_what_one_may_change(function, x):
    apart = [value.untyped_storage().data_ptr() for value in function(x)]
    found = [value.untyped_storage().data_ptr() for value in record(function, x)(x)]
    assert len(set(found)) == len(set(apart))
    assert x.untyped_storage().data_ptr() not in found


def count(function, x, name):
    return sum(name in str(node.target) for node in record(function, x).graph.nodes)


def test_what_is_computed_twice_is_computed_once():
    assert count(twice, SQUARE, "exp.") == 2
    assert count(twice, SQUARE, "mul") == 1
    assert count(views, SQUARE, "exp.") == 2
    assert count(views, SQUARE, "aten.t.") == 0
    assert count(by_one, SQUARE, "exp.") == 1
    assert count(drawn, ROW, "randn") == 2
