"""Data that a program holds, and that are set before each step: replayed from copies, which each step fills."""

import warnings
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import assert_same, kinds, parameters
from pyro.infer import Trace_ELBO
from torch import nn

import pvae

X = None


class Holder(nn.Module):
    """Its parameters are in Pyro's store."""

    def __init__(self):
        super().__init__()
        self.x, self.more, self.options = (
            torch.zeros(6),
            {"scale": torch.ones(6)},
            SimpleNamespace(shift=torch.zeros(6)),
        )
        self.most = 0


def attribute(holder, x):
    holder.x = x


def item(holder, x):
    holder.more["scale"] = x.exp()


def another(holder, x):
    holder.options.shift = x


def a_global(holder, x):
    global X
    X = x


def several(holder, x):
    attribute(holder, x)
    item(holder, x)
    another(holder, x)
    a_global(holder, x)


def a_view(holder, x):
    holder.x = x[:1].expand(6) if x[0] < -1 else x.repeat(2)[::2]


def in_place_too(holder, x):
    holder.x.add_(1.0)
    attribute(holder, x)
    holder.x.mul_(2.0)


def fit(mode, change, data, steps=30, read=lambda x: 1.0, cuda=False, **options):
    global X
    pyro.clear_param_store()
    torch.manual_seed(0)
    X, holder = torch.zeros(6), Holder()
    if cuda:
        X = X.cuda()
        several(holder, X)

    def model():
        y = holder.x + holder.options.shift + X
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z * read(holder.x), holder.more["scale"]), obs=y)

    def guide():
        mean = pyro.param("mean", holder.x.new_full((), 0.5))
        with pyro.plate("data", len(holder.x)):
            pyro.sample("z", dist.Delta(mean) if cuda else dist.Normal(mean, 1.0))

    svi, losses = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(), compile=mode, **options), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            before = data(step).cuda() if cuda else data(step)
            change(holder, before)
            losses.append(svi.step())
            assert change is not attribute or holder.x is before, "what it holds is what was set"
        svi.check()
    losses = [float(loss) for loss in losses]
    return (losses, parameters(svi), torch.get_rng_state(), svi), [str(w.message) for w in caught]


def batches(step):
    return torch.linspace(-1.0, 2.0, 6) * (1 + step % 7) / 4


@pytest.mark.parametrize("change", [attribute, item, another, a_global, several, a_view, in_place_too])
def test_data_that_are_set_before_each_step_are_replayed(change):
    expected, _ = fit("off", change, batches)
    found, said = fit("graph", change, batches)
    assert_same(found, expected)
    assert (said, kinds(found[-1])) == ([], ["graph"])
    (graph,) = found[-1]._graphs._graphs.values()
    assert graph.played > 20


def test_a_smaller_last_batch_is_taken_eagerly():
    def data(step):
        return batches(step)[: 3 if step % 5 == 4 else 6]

    def change(holder, x):
        attribute(holder, x)
        holder.options.shift, holder.more["scale"] = torch.tensor(0.0), torch.tensor(1.0)

    def at_last(holder, x):
        global X
        X = torch.zeros(())
        change(holder, x)

    expected, _ = fit("off", at_last, data, steps=40)
    found, said = fit("graph", at_last, data, steps=40)
    assert_same(found, expected)
    assert (said, kinds(found[-1])) == ([], ["graph"])


def test_what_python_reads_of_such_data_is_read_in_each_step():
    def read(x):
        return 2.0 if x.sum() > 4 else 1.0

    def data(step):
        return batches(6) if step in (3, 20) else batches(step % 2)

    expected, _ = fit("off", attribute, data, steps=60, read=read)
    found, said = fit("graph", attribute, data, steps=60, read=read)
    assert_same(found, expected)
    assert (said, kinds(found[-1])) == ([], ["graph"])


def test_data_that_the_program_changes_too_are_its_own():
    """Who sets them may read them after the step."""
    kept = {}
    for mode in ("off", "graph"):
        seen = []

        def change(holder, x, seen=seen):
            seen.append(holder.x.tolist())
            holder.x = x.clone()

        def read(x):
            x.add_(1.0)
            return 1.0

        (losses, *_, svi), said = fit(mode, change, batches, read=read)
        kept[mode] = losses, seen
    assert kept["graph"][1] == kept["off"][1]
    assert kept["graph"][0] == pytest.approx(kept["off"][0])
    assert kinds(svi) == []
    assert len(said) == 1
    assert "x is set before each step, and changed in place within it" in said[0]


@pytest.mark.cuda
def test_on_a_device_each_step_has_the_data_of_its_own_also_where_it_is_taken_again(cuda):
    def data(step):
        return batches(6) if step in (3, 20) else batches(step % 2)

    for read in (lambda x: 1.0, lambda x: 2.0 if x.sum() > 4 else 1.0):
        expected, _ = fit("off", attribute, data, steps=60, read=read, cuda=True)
        found, said = fit("graph", attribute, data, steps=60, read=read, cuda=True)
        assert found[0] == pytest.approx(expected[0])
        torch.testing.assert_close(found[1], expected[1])
        assert (said, kinds(found[-1])) == ([], ["graph"])


@pytest.mark.cuda
def test_on_a_device_the_first_step_that_is_not_finite_is_found_among_others_data(cuda):
    def data(step):
        return batches(step) * (1e30 if step == 25 else 1.0)

    kept = {}
    for mode in ("off", "graph"):
        with pytest.raises(pvae.NonFiniteError) as refused:
            fit(mode, attribute, data, cuda=True)
        kept[mode] = refused.value.step, pyro.param("mean").item()
    assert kept["graph"] == pytest.approx(kept["off"])
    assert kept["off"][0] == 26
