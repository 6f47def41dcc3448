"""A step trains what its programs show, and no more: what a handler hides stays, what others train has its gradient."""

import copy
import warnings
from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from test_svi_loops import (
    MODES,
    X,
    adam,
    assert_alike,
    assert_replayed,
    fit,
    guide_of_store,
    images,
    model_of_one,
    parts,
    sgd,
)
from torch import nn

import pvae
from pvae import base


def hidden(program):
    return poutine.block(program, hide_types=["param"])


def svi_of(kind, *programs, **options):
    return pyro.infer.SVI(*programs) if kind == "pyro" else pvae.SVI(*programs, compile=kind, **options)


# What handlers hide ---------------------------------------------------------------------------------------------------


def in_turns(kind, make, loss, optims):
    """All parameters for three steps, the guide's alone for three, and so on: losses, weights and the second SVI."""
    pyro.clear_param_store()
    base._scopes.clear()
    torch.manual_seed(3)
    module, (first, second) = make(), optims()
    both = svi_of(kind, module.model, module.guide, first, loss())
    guides = svi_of(kind, hidden(module.model), module.guide, second, loss())
    losses = [float((guides if step // 3 % 2 else both).step(X)) for step in range(22)]
    return losses, [value.clone() for value in module.state_dict().values()], guides


def one():
    return (pyro.optim.Adam({"lr": 0.02}),) * 2


def two():
    return pyro.optim.Adam({"lr": 0.02}), pyro.optim.Adam({"lr": 0.02})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", [Trace_ELBO, pvae.ELBO, lambda: pvae.IWAE(3)], ids=["Pyro's", "ELBO", "IWAE"])
@pytest.mark.parametrize("make", [images, parts])
@pytest.mark.parametrize("optims", [one, two])
def test_two_that_take_turns_train_what_each_shows(optims, make, loss, mode):
    """One optimizer of both took its step on all that had a gradient, and a VAE's parts were not hidden at all."""
    found = in_turns(mode, make, loss, optims)
    assert_alike(found, in_turns("pyro", make, loss, optims))
    assert_replayed(found[2])


@pytest.mark.parametrize("mode", MODES)
def test_phases_of_one_optimizer_share_its_state_whatever_each_brings(mode):
    """The first two have no parameter in common; one that is frozen at first is brought by the last."""

    def run(kind):
        pyro.clear_param_store()
        torch.manual_seed(3)
        module, optim = images(), pyro.optim.Adam({"lr": 0.02})
        pairs = (hidden(module.model), module.guide), (module.model, hidden(module.guide)), (module.model, module.guide)
        phases = [svi_of(kind, *pair, optim, Trace_ELBO()) for pair in pairs]
        losses = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*not registered in the param store because requires_grad=False")
            for step in range(24):
                module.decoder[2].requires_grad_(step != 1)
                losses.append(float(phases[step % 3].step(X)))
        return losses, [value.clone() for value in module.state_dict().values()]

    assert_alike(run(mode), run("pyro"))


@pytest.mark.parametrize("mode", MODES)
def test_a_schedule_of_two_counts_for_what_the_second_brings_too(mode):
    def run(kind):
        pyro.clear_param_store()
        torch.manual_seed(3)
        module, adam = images(), {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.9}
        optim, losses = pyro.optim.ExponentialLR(adam), []
        first = svi_of(kind, hidden(module.model), module.guide, optim, Trace_ELBO())
        second = svi_of(kind, module.model, hidden(module.guide), optim, Trace_ELBO())
        for svi in (first, second, first):
            for _ in range(5):
                losses.append(float(svi.step(X)))
                optim.step()
        return losses, [value.clone() for value in module.state_dict().values()]

    assert_alike(run(mode), run("pyro"))


def swapped(step, module, svi):
    if step == 4:
        svi.model = hidden(module.model)
    if step == 9:
        svi.model = module.model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [images, parts])
@pytest.mark.parametrize("optim", [sgd, adam()])
def test_what_is_hidden_for_a_while_stays_and_its_gradients_add_up(optim, make, mode):
    found, expected = (fit(kind, make, optim, before=swapped) for kind in (mode, "pyro"))
    assert_alike(found, expected)
    assert_replayed(found[2])
    names = list(make().state_dict())
    still = [name for name in names if name.startswith(("decoder", "likelihood"))]
    at = [fit(mode, make, optim, before=swapped, steps=steps)[1] for steps in (4, 9)]
    assert all(torch.equal(at[0][names.index(name)], at[1][names.index(name)]) for name in still)


@pytest.mark.parametrize("mode", MODES)
def test_a_handler_around_the_step_hides_nothing_of_it(mode):
    def run(kind):
        pyro.clear_param_store()
        torch.manual_seed(3)
        module = images()
        svi = svi_of(kind, module.model, module.guide, adam()(module), Trace_ELBO())
        losses, handler = [], poutine.block()
        for step in range(12):
            with handler if step > 6 else nullcontext():
                losses.append(float(svi.step(X)))
        return losses, [value.clone() for value in module.state_dict().values()]

    assert_alike(run(mode), run("pyro"))


# What others train ----------------------------------------------------------------------------------------------------


class Outer(nn.Module):
    """A program whose decoder is trained by the user, every other step."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
        self.free = torch.zeros(3, requires_grad=True)
        self.start = torch.zeros(2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.start, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + self.free).to_event(1), obs=x)

    def guide(self, x):
        mean = pyro.param("mean", self.start.clone())
        spread = pyro.param("spread", torch.ones_like(self.start), dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, spread).expand([len(x), 2]).to_event(1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("check_every", [1, 100])
def test_a_network_of_ones_own_has_its_gradient_of_each_step(check_every, mode):
    """A replayed step gave it none, and each trial of a step added one."""
    gradients = []

    def run(kind):
        own = None

        def before(step, module, svi):
            nonlocal own
            own = own or torch.optim.SGD([*module.decoder.parameters(), module.free], lr=0.1)
            if step % 2:
                gradients[-1].append([p.grad.clone() for group in own.param_groups for p in group["params"]])
                own.step()
                own.zero_grad(set_to_none=step % 4 == 1)

        gradients.append([])
        options = {} if kind == "pyro" else {"check_every": check_every}
        return fit(kind, Outer, adam(0.05), before=before, **options)

    found, expected = run(mode), run("pyro")
    assert_alike(found, expected)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert_replayed(found[2])


def test_a_step_that_is_not_finite_adds_to_no_gradient_of_others():
    module = Outer()
    pyro.clear_param_store()
    svi = pvae.SVI(module.model, module.guide, adam()(module), Trace_ELBO(), compile="graph")
    for _ in range(4):
        svi.step(X)
    module.free.grad = None
    with pytest.raises(pvae.NonFiniteError):
        svi.step(X * float("nan"))
    assert module.free.grad is None


@pytest.mark.cuda
@pytest.mark.parametrize("taken", ["step", "run"])
def test_on_a_device_each_step_of_a_block_gives_its_gradient(taken, cuda):
    def run(mode):
        pyro.clear_param_store()
        torch.manual_seed(3)
        module, x = Outer().cuda(), X.cuda()
        module.free = module.free.detach().cuda().requires_grad_()
        module.start = torch.zeros(2, device="cuda")
        svi = pvae.SVI(module.model, module.guide, adam(0.05)(module), Trace_ELBO(), compile=mode)
        own = torch.optim.SGD([*module.decoder.parameters(), module.free], lr=0.1)
        steps = svi.run(torch.arange(4, device="cuda").expand(40, 4), x) if taken == "run" else None
        losses = []
        for _ in range(30):
            losses += [float(svi.step(x))] if steps is None else next(steps).tolist()
            own.step()
            own.zero_grad()
        return losses[:30], [value.cpu() for value in module.state_dict().values()], svi

    found = run("graph")
    assert_alike(found, run("off"))
    assert_replayed(found[2])


@pytest.mark.cuda
@pytest.mark.parametrize("clip_norm", [None, 1e6])
def test_on_a_device_a_block_ends_where_others_begin_to_have_a_gradient(clip_norm, cuda):
    def run(mode):
        pyro.clear_param_store()
        torch.manual_seed(3)
        module, x = Outer().cuda(), X.cuda()
        module.free, module.start = torch.zeros(3, device="cuda"), torch.zeros(2, device="cuda")
        module.decoder.requires_grad_(False)
        svi = pvae.SVI(module.model, module.guide, adam(0.05)(module), Trace_ELBO(), compile=mode, clip_norm=clip_norm)
        given = None
        for number, losses in enumerate(svi.run(torch.arange(4, device="cuda").expand(45, 4), x)):
            after_a_block = len(losses) == 10 and given is None
            if number == since or (since is None and after_a_block):
                given = module.decoder.requires_grad_(True)[0].bias
                taken.append(svi.steps)
        return given.grad.cpu()

    taken, since = [], None
    found = run("graph")
    since = taken[0] - 1
    torch.testing.assert_close(found, run("off"), rtol=1e-4, atol=1e-4)


def in_tuple(weight):
    held = (weight,)
    return lambda: held[0]


def in_partial(weight):
    return partial(lambda weight: weight, weight)


def in_default(weight):
    def read(weight=weight):
        return weight

    return read


def thawed(weight):
    return lambda: weight


@pytest.mark.parametrize("held", [in_tuple, in_partial, in_default, thawed])
def test_a_tensor_of_ones_own_has_its_gradient_wherever_it_lies(held):
    def run(kind):
        pyro.clear_param_store()
        torch.manual_seed(3)
        weight = torch.zeros(3, requires_grad=held is not thawed)
        read = held(weight)

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z * read(), 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("mean", torch.ones(3)), 1.0).expand([len(x), 3]).to_event(1))

        svi = svi_of(kind, model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses = []
        for step in range(14):
            losses.append(float(svi.step(X)))
            if step == 6:
                weight.requires_grad_()
        return losses, [weight.grad], svi

    found = run("graph")
    assert_alike(found, run("pyro"))
    assert_replayed(found[2])


def test_networks_and_functions_given_to_a_step_have_its_gradient_alone():
    def model(x, network, shift):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(network(z) + shift(), 1.0).to_event(1), obs=x)

    def guide(x, network, shift):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("mean", torch.ones(2)), 1.0).expand([len(x), 2]).to_event(1))

    def run(kind):
        pyro.clear_param_store()
        torch.manual_seed(3)
        network, weight = nn.Linear(2, 3), torch.zeros(3, requires_grad=True)
        shift = in_default(weight)
        svi = svi_of(kind, model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        losses = [float(svi.step(X, network, shift)) for _ in range(14)]
        return losses, [network.weight.grad, weight.grad]

    assert_alike(run("graph"), run("pyro"))


@pytest.mark.parametrize("mode", MODES)
def test_what_a_model_changes_of_a_network_of_ones_own_is_changed_once_a_step(mode):
    def run(kind):
        def before(step, module, svi):
            module.decoder[0].register_forward_pre_hook(follow) if step == 0 else None

        def follow(layer, given):
            with torch.no_grad():
                layer.bias.mul_(0.9).add_(0.1)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where it is not replayed
            return fit(kind, Outer, adam(0.05), before=before)

    assert_alike(run(mode), run("pyro"))


# What is put in Pyro's store ------------------------------------------------------------------------------------------


def loop(kind, change):
    """Losses and parameters of 18 steps; `change` may give a context for a step."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    svi = svi_of(kind, model_of_one, guide_of_store, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(18):
            with change(step, svi) or nullcontext():
                losses.append(float(svi.step(X)))
    return losses, [value.detach().clone() for _, value in pyro.get_param_store().items()], svi


def of(svi, name):
    store = pyro.get_param_store()
    return svi.optim.optim_objs[store._params[name]].param_groups[0]


def set_with_a_gradient(step, svi):
    if step == 8:
        pyro.get_param_store()["mean"] = torch.tensor(0.2)
        (3 * pyro.param("mean").square()).backward()


def begun_with_other_arguments(step, svi):
    if step == 6:
        of(svi, "mean").update(betas=(0.5, 0.6))
    if step == 8:
        pyro.get_param_store()["mean"] = torch.tensor(0.2)


def set_while_it_was_away(step, svi):
    if step == 7:
        return pyro.get_param_store().scope()
    if step == 8:
        of(svi, "mean")["lr"] = 0.001
    return None


def another_optimizer_since(step, svi):
    if step == 5:
        return pyro.get_param_store().scope()
    if step == 6:
        svi.optim = pyro.optim.RMSprop({"lr": 0.01})
    return None


def a_state_that_waits(step, svi):
    if step == 3:
        svi.optim.set_state(copy.deepcopy(svi.optim.get_state()))
    if step == 8:
        second = type(svi)(model_of_one, guide_of_store, svi.optim, Trace_ELBO())
        for _ in range(3):
            second.step(X)


def brought_by_another(step, svi):
    if step == 8:
        del pyro.get_param_store()["mean"]
        second = type(svi)(model_of_one, guide_of_store, svi.optim, Trace_ELBO())
        for _ in range(3):
            second.step(X)


CHANGES = [
    set_with_a_gradient,
    begun_with_other_arguments,
    set_while_it_was_away,
    another_optimizer_since,
    a_state_that_waits,
    brought_by_another,
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_put_in_pyros_store_trains_as_under_pyro(change, mode):
    found, expected = loop(mode, change), loop("pyro", change)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    assert_replayed(found[2])
