"""A long graph that repeats itself is compiled in pieces, with the numbers of the whole."""

import copy
import warnings
from unittest.mock import patch

import pytest
import torch
from programs import PROGRAMS, kinds, start, train
from torch import nn

from pvae.replay import compiling, pieces
from pvae.replay.pieces import arranged, cut
from pvae.replay.settle import settled
from pvae.replay.simplify import is_view
from pvae.replay.tracing import record

torch.manual_seed(0)
CELL, HEAD = nn.GRUCell(3, 4), nn.Linear(4, 2)
STATE = torch.zeros(4)
PARAMETERS = [*CELL.parameters(), *HEAD.parameters()]
TIMES = 12


def unrolled(x):
    """Gradients through a loop that reads slices, draws, and sums over its turns."""
    inputs = x.clone().requires_grad_()
    read, h, loss = torch.tanh(inputs), torch.zeros(len(x), 4), 0.0
    for t in range(TIMES):
        h = CELL(read[:, t], h)
        where, scale = HEAD(h).chunk(2, -1)
        z = where + nn.functional.softplus(scale) * torch.randn(len(x), 1)
        loss = loss + (z - x[:, t, :1]).square().sum()
    return (loss.detach(), *torch.autograd.grad(loss, [*PARAMETERS, inputs]))


def changing(x):
    """What is changed in place within a turn, and read in later ones; and across turns."""
    STATE.add_(x[0])
    total, kept = x.clone(), []
    for _ in range(TIMES):
        both = torch.mm(x, x.t().mm(x)).repeat(1, 2)
        left, right = both.chunk(2, 1)
        left.sigmoid_().mul_(total)
        right.add_(left).tanh_()
        kept.append(right)
        total = (right.exp() + left).sin() + total.cos()
    for value in kept:
        total = (total * value.neg()).sin() + value.t().sum(0)
    STATE.mul_(2)
    return total, STATE * total


def changing_each_turn(x):
    """Memory that was there before, in every turn."""
    total = x.clone()
    for _ in range(TIMES):
        STATE.add_(0.5)
        total = ((total + STATE).cos() * x.exp()).tanh() - STATE
    return (total, STATE + 0)


def kept_in_order(x):
    """Draws of two kinds, whose use is not in their order."""
    first, second = [], []
    for _ in range(TIMES):
        first.append(torch.randn(3, 4) * x[:1, :1])
        second.append(torch.rand(3, 4) + x[:1, :1])
    total = x.clone()
    for one, other in zip(reversed(first), second, strict=True):
        total = ((total + other).sin() * one).tanh().cos().sin() + total / 2
    return (total,)


@torch.library.custom_op("pvae_tests::noisy", mutates_args=())
def noisy(x: torch.Tensor) -> torch.Tensor:
    """It says to nobody that it draws."""
    return x + torch.rand_like(x)


def kept_in_order_with_others(x):
    """Draws of torch and of an operation of which nothing is known."""
    first, second = [], []
    for _ in range(TIMES):
        first.append(torch.randn(3, 4) * x[:1, :1])
        second.append(noisy(x[:1, :1].expand(3, 4).clone()))
    total = x.clone()
    for one, other in zip(reversed(first), second, strict=True):
        total = ((total + other).sin() * one).tanh().cos().sin() + total / 2
    return (total,)


def summed(x):
    """Sums of terms of several kinds, some of them alone."""
    total = x.sin()
    for t in range(TIMES):
        total = total + torch.mm((x + t).tanh(), x.cos() * t)
    return (total + x.cos(),)


def summed_twice_each(x):
    total = x.sin()
    for t in range(TIMES):
        total = torch.add(total, torch.mm((x + t).tanh(), x.cos()), alpha=2)
    return (total.tanh(),)


def summed_over_columns(x):
    """Sums that look as those over rows do."""
    total = x[0]
    for t in range(TIMES):
        total = total + (x * t).sin().sum(1, keepdim=True).view(4)
    return (total.tanh(),)


def laid_otherwise(x):
    """What lies by columns, is changed in place, and is looked at in other ways afterwards."""
    total = x.clone()
    for _ in range(TIMES):
        made = (x + total.sum()).t().clone()
        made.mul_(0.5).add_(1)
        total = (made.t()[0] + made.sin() * made.t().exp().cos()).tanh()
    return (total,)


def split_otherwise(x):
    """What lies by columns, is changed in place, and is then split."""
    total = x.clone()
    for _ in range(TIMES):
        made = (x + total.sum()).t().clone()
        made.mul_(0.5).add_(1)
        left, right = made.chunk(2, 1)
        total = (torch.cat([right, left], 1).sin() + torch.stack(made.unbind(1)).cos()).tanh()
    return (total,)


def joined_otherwise(x):
    """What lies by columns, is filled, and whose dimensions are then joined in the order in which they lie."""
    total = x.clone()
    for _ in range(TIMES):
        made = torch.empty_like(x.t()).copy_((x + total.sum()).t())
        total = (made.t().view(-1).sin().cumsum(0).view(4, 4) * made.t().view(2, 8).exp().view(4, 4)).tanh()
    return (total,)


def set_by_slices(x):
    """Slices of what lies by columns are set: autograd reads its gradient by strides."""
    inputs = x.clone().requires_grad_()
    total = inputs.sin()
    for _ in range(TIMES):
        made = torch.zeros_like(x.t())
        for row in range(len(x)):
            made[row, :3] = total[row, :3].flip(0)
        total = made.tanh() + total.cos()
    return torch.autograd.grad((total * x).sum(), inputs)


def changed_where_it_is_narrow(x):
    """The fewest values wait between where memory is made and where it is changed."""
    one, other = x.sin(), x.cos()
    for _ in range(TIMES):
        made = one * other
        made.add_(1)
        one = made.sin().tanh().exp()
        other = made.cos().tanh() + one
    return (one - other,)


def several_where_it_is_narrow(x):
    """No value waits, but several results of one operation."""
    one, other = x.sin(), x.cos()
    for _ in range(TIMES):
        spread, mean = torch.var_mean(one * other, 0, keepdim=True)
        one = (mean + x).tanh().exp()
        other = (spread - x).tanh() + one
    return (one - other,)


def several_used_later(x):
    """Operations of several results, one of which only the gradient wants."""
    inputs = x.clone().requires_grad_()
    total = inputs
    for _ in range(TIMES):
        total = nn.functional.layer_norm(torch.mm(total, inputs), (4,)).tanh() + total.sin()
    return torch.autograd.grad(total.sum(), inputs)


FUNCTIONS = [
    (unrolled, torch.randn(5, TIMES, 3)),
    (changing, torch.randn(4, 4)),
    (changing_each_turn, torch.randn(4, 4)),
    (kept_in_order, torch.randn(3, 4)),
    (kept_in_order_with_others, torch.randn(3, 4)),
    (summed, torch.randn(4, 4)),
    (summed_twice_each, torch.randn(4, 4)),
    (summed_over_columns, torch.randn(4, 4)),
    (laid_otherwise, torch.randn(4, 4)),
    (split_otherwise, torch.randn(4, 4)),
    (joined_otherwise, torch.randn(4, 4)),
    (set_by_slices, torch.randn(4, 4)),
    (changed_where_it_is_narrow, torch.randn(4, 4)),
    (several_where_it_is_narrow, torch.randn(4, 4)),
    (several_used_later, torch.randn(4, 4)),
]
each = pytest.mark.parametrize(("function", "x"), FUNCTIONS, ids=[function.__name__ for function, _ in FUNCTIONS])


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Cut graphs that are not long."""
    monkeypatch.setattr(pieces, "LONG", 30)
    monkeypatch.setattr(pieces, "ENOUGH", 1)


def check(function, run, x, runs=3):
    for seed in range(runs):
        found = []
        for take in (function, run):
            STATE.fill_(seed)
            torch.manual_seed(seed)
            found.append([*take(x + seed), STATE.clone(), torch.rand(2)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(other.detach(), one.detach(), rtol=2e-5, atol=2e-5)


@each
def test_what_is_arranged_has_the_same_numbers(function, x):
    check(function, settled(record(function, x)), x)


def test_what_lies_by_columns_is_copied_where_it_was_changed():
    for function, made in ((laid_otherwise, TIMES), (summed, 0), (kept_in_order, 0)):
        graph = record(function, torch.randn(3, 4) if function is kept_in_order else torch.randn(4, 4))
        assert count(settled(graph), "clone") - count(graph, "clone") == made, function.__name__


class Noted(torch.fx.Interpreter):
    """Runs a graph and holds copies, and views of them, against what is noted of how they lie."""

    def run_node(self, node):
        value, base = super().run_node(node), node
        while is_view(base):
            base = base.args[0]
        if base.target is torch.ops.aten.clone.default and isinstance(value, torch.Tensor):
            shape, strides, _, *kind = node.meta["layout"]
            assert (value.shape, value.stride(), [value.dtype, value.device]) == (shape, strides, kind), node
        return value


@each
def test_what_is_arranged_lies_as_is_noted(function, x):
    STATE.fill_(1)
    Noted(settled(record(function, x))).run(x)


@each
def test_pieces_have_the_same_numbers(function, x):
    graph, found = cut(record(function, x))
    assert (len(found) == 0) is ("changing_each" in function.__name__ or "summed" in function.__name__)
    assert len(found) <= 6
    check(function, graph, x)
    given = [value for piece in found for value in piece.example]
    assert all(isinstance(value, torch.Tensor) for value in given), "none of several results of one operation"


@pytest.mark.parametrize(("function", "x"), [case for case in FUNCTIONS if case[0] is not changing])
def test_pieces_that_change_nothing_in_place_have_the_same_numbers(function, x):
    """As compilers write them first, but for what is there before: a change is not seen of what hides its memory."""
    graph, found = cut(record(function, x))
    for piece in found:
        piece.run = torch.func.functionalize(piece.graph, remove="mutations_and_views")
    check(function, graph, x)


@each
def test_no_cut_lies_between_where_memory_is_made_and_where_it_is_changed(function, x):
    whole = pieces._Whole(settled(record(function, x)))
    cuts = whole.bounds()[0]
    for node, place in whole.place.items():
        for root in whole.roots.changed_by(node):
            assert not [cut for cut in cuts if whole.place.get(root, place) < cut <= place], node


COMPILED = [
    pytest.param(*case, marks=[] if case[0] is kept_in_order else pytest.mark.slow, id=case[0].__name__)
    for case in FUNCTIONS
    if case[0] in (unrolled, changing, kept_in_order, set_by_slices)
]


@pytest.mark.parametrize(("function", "x"), COMPILED)
def test_compiled_pieces_have_the_same_numbers(function, x):
    graph, made = record(function, x), []
    with (
        patch.object(compiling, "_whole", side_effect=RuntimeError("compiled whole")),
        patch.object(compiling, "cut", lambda graph: made.append(cut(graph)) or made[-1]),
    ):
        run = compiling.compiled(graph, [x])
    check(function, run, x)
    assert all(piece.run and not piece.example for piece in made[0][1]), "pieces are compiled, and keep no tensors"


def test_pieces_that_do_not_fit_are_compiled_as_one():
    """As where a compiler lays a result otherwise than the next piece was built for."""

    def refuse(*_):
        raise AssertionError("expected size 4==4, stride 1==4 at dim=0")

    graph = record(kept_in_order, FUNCTIONS[3][1])
    before = list(warnings.filters)
    with (
        patch.object(compiling, "_inductor", lambda *_: refuse),
        patch.object(compiling, "_whole", lambda *_: "compiled whole"),
    ):
        assert compiling.compiled(graph, [FUNCTIONS[3][1]]) == "compiled whole"
    assert warnings.filters == before


def count(graph, name):
    return sum(name in str(node.target) for node in graph.graph.nodes)


def test_sums_over_turns_are_taken_at_once():
    graph = record(unrolled, FUNCTIONS[0][1])
    assert count(graph, "select_backward") == TIMES
    new = settled(graph)
    assert count(new, "select_backward") == 0
    assert count(graph, "aten.mm") - count(new, "aten.mm") == 3 * (TIMES - 1)


@pytest.mark.parametrize(("rows", "left"), [(8, 1), (2**14, 6)])
def test_large_products_stay_apart(rows, left):
    """What they are made of would have to be kept until all of them are taken."""

    def function(*x):
        return sum((part.t() @ part.square() for part in x[1:]), x[0].t() @ x[0].square())

    x = [torch.randn(rows, 20) for _ in range(6)]
    new = settled(record(function, *x))
    assert sum(node.target is torch.ops.aten.mm.default for node in new.graph.nodes) == left
    torch.testing.assert_close(new(*x), function(*x))


def test_a_parameter_may_be_a_factor():
    weight, x = nn.Parameter(torch.randn(8, 5)), [torch.randn(8, 20) for _ in range(6)]

    def function(*x):
        return sum(part.t() @ weight for part in x)

    torch.testing.assert_close(settled(record(function, *x))(*x), function(*x))


def test_a_graph_that_is_short_or_does_not_repeat_itself_stays_as_it_is(monkeypatch):
    graph = record(changing_each_turn, FUNCTIONS[2][1])
    assert arranged(graph) is graph
    monkeypatch.setattr(pieces, "LONG", 1000)
    graph = record(unrolled, FUNCTIONS[0][1])
    assert arranged(graph) is graph
    assert cut(graph) == (graph, [])


def test_short_turns_share_a_piece(monkeypatch):
    graph = record(kept_in_order, FUNCTIONS[3][1])
    monkeypatch.setattr(pieces, "ENOUGH", 40)
    sizes = [len(piece.graph.graph.nodes) for piece in cut(graph)[1]]
    assert max(sizes) > 40


# Programs ------------------------------------------------------------------------------------------------------------


def check_steps(found, expected):
    assert kinds(found[-1]) == ["full"]
    assert found[0] == pytest.approx(expected[0], rel=1e-4, abs=1e-4)
    for name, value in found[1].items():
        torch.testing.assert_close(value, expected[1][name], rtol=2e-3, atol=2e-4)
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize("program", ["deep Markov, GRU", "deep Markov, RNN", "Renyi 0", "zuko", "3 particles"])
def test_steps_in_pieces_are_the_eager_ones(program, monkeypatch):
    """Whatever is cut, with nothing compiled."""
    monkeypatch.setattr(compiling, "compiled", lambda graph, inputs: cut(graph)[0])
    monkeypatch.setattr(pieces, "LONG", 1)
    check_steps(train(PROGRAMS[program], "full"), train(PROGRAMS[program], "off"))


@pytest.mark.slow
@pytest.mark.parametrize("program", ["deep Markov, GRU", "deep Markov, RNN"])
def test_compiled_steps_in_pieces_are_the_eager_ones(program):
    with patch.object(compiling, "_whole", side_effect=RuntimeError("compiled whole")):
        found = train(PROGRAMS[program], "full")
    check_steps(found, train(PROGRAMS[program], "off"))


@pytest.mark.slow
def test_a_resumed_fit_in_pieces_is_the_whole_one_bit_for_bit():
    def fit(steps, state=None):
        svi, args = start(PROGRAMS["deep Markov, GRU"], "full")
        if state is not None:
            svi.model.__self__.load_state_dict(state[0])
            svi.load_state_dict(state[1])
            torch.set_rng_state(state[2])
        losses = [float(svi.step(*args)) for _ in range(steps)]
        return losses, copy.deepcopy((svi.model.__self__.state_dict(), svi.state_dict(), torch.get_rng_state()))

    with patch.object(compiling, "_whole", side_effect=RuntimeError("compiled whole")):
        whole, (weights, _, _) = fit(6)
        first, state = fit(3)
        second, (resumed, _, _) = fit(3, state)
    assert first + second == whole
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
