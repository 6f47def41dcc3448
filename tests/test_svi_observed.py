"""Observed values outside a support are refused at every step, replayed ones too; where Pyro looks, and only there."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

import pvae

LOSSES = {
    "Pyro's": Trace_ELBO,
    "particles": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    "elbo": pvae.ELBO,
    "nesting": lambda: pvae.ELBO(max_plate_nesting=1),
    "iwae": lambda: pvae.IWAE(4, gradient="dreg"),
}
SITES = {
    "bernoulli": (lambda z: dist.Bernoulli(logits=z[..., None].expand(*z.shape, 3)).to_event(1), [0.0, 1.0, 1.0], 2.0),
    "expanded": (lambda z: dist.Bernoulli(logits=z[..., None]).expand([*z.shape, 3]).to_event(1), [0.0, 1.0, 1.0], 0.5),
    "masked": (
        lambda z: dist.Poisson(z.exp()[..., None].expand(*z.shape, 3)).mask(True).to_event(1),
        [0.0, 1.0, 4.0],
        -1.0,
    ),
    "binomial": (lambda z: dist.Binomial(3, logits=z), 3.0, 4.0),
    "beta": (lambda z: dist.Beta(z.exp(), 1.0), 0.5, 1.5),
    "gamma": (lambda z: dist.Gamma(z.exp(), 1.0), 0.5, -0.5),
    "one-hot": (lambda z: dist.OneHotCategorical(logits=torch.stack([z, -z, z], -1)), [0.0, 1.0, 0.0], 1.0),
    "dirichlet": (lambda z: dist.Dirichlet(z.exp()[..., None].expand(*z.shape, 3)), [0.25, 0.25, 0.5], 0.9),
}


def program(likelihood):
    """A model of one latent for each datum whose data are distributed as `likelihood` says of it; and a guide."""

    def model(x, mask=True):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=mask):
                pyro.sample("x", likelihood(z), obs=x)

    def guide(x, mask=True):
        mean = pyro.param("mean", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, 1.0))

    return model, guide


def fitted(likelihood, good, loss=Trace_ELBO, steps=4, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = pvae.SVI(*program(likelihood), pyro.optim.Adam({"lr": 0.01}), loss(), **options)
    data = torch.tensor(good).expand(5, *torch.tensor(good).shape).clone()
    for _ in range(steps):
        svi.step(data)
    return svi, data


def spoiled(data, value):
    bad = data.clone()
    bad.view(len(data), -1)[3, -1] = value
    return bad


@pytest.mark.parametrize("check_every", [1, 5])
@pytest.mark.parametrize("mode", ["off", "graph"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_value_outside_is_refused_at_its_step(loss, mode, check_every):
    likelihood, good, value = SITES["bernoulli"]
    svi, data = fitted(likelihood, good, LOSSES[loss], compile=mode, check_every=check_every)
    before = pyro.param("mean").item()
    # at eager steps Pyro's own objectives say it in Pyro's words
    with pytest.raises((pvae.svi.NonFiniteError, ValueError), match="site 'x'"):  # noqa: PT012
        svi.step(spoiled(data, value))
        svi.check()
    assert svi.steps == 4
    assert pyro.param("mean").item() == before
    svi.step(data)
    assert svi.steps == 5


@pytest.mark.parametrize("site", SITES)
def test_every_kind_of_support_is_replayed(site):
    likelihood, good, value = SITES[site]
    svi, data = fitted(likelihood, good, compile="graph")
    assert svi._graphs._graphs
    where = r"found .* at \[3(, 2)?\], of shape .*, expected .*, as \w+ scores"
    with pytest.raises(pvae.svi.NonFiniteError, match=f"step 5: the loss is inf: in the model, site 'x': {where}"):
        svi.step(spoiled(data, value))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", ["off", "graph"])
def test_what_is_not_validated_is_not_looked_at(mode, loss):
    likelihood, good, value = SITES["bernoulli"]

    def loose(z):
        return dist.Bernoulli(logits=z[..., None].expand(*z.shape, 3), validate_args=False).to_event(1)

    with pyro.validation_enabled(False):
        svi, data = fitted(likelihood, good, LOSSES[loss], compile=mode)
        losses = [float(svi.step(spoiled(data, value)))]
    wrapped = (
        loose,
        lambda z: loose(z).mask(True),
        lambda z: dist.ExpandedDistribution(loose(z), loose(z).batch_shape),
    )
    for other in wrapped:
        svi, data = fitted(other, good, LOSSES[loss], compile=mode)
        losses.append(float(svi.step(spoiled(data, value))))
        assert bool(svi._graphs._graphs) == (mode == "graph")
    assert losses == losses[:1] * 4


@pytest.mark.parametrize("check_every", [1, 5])
def test_an_index_that_is_none_is_said_by_the_program(check_every):
    def labels(z):
        return dist.Categorical(logits=torch.stack([z, -z], -1))

    after = []
    for mode in ("off", "graph"):
        svi, data = fitted(labels, 1.0, compile=mode, check_every=check_every)
        with pytest.raises(ValueError, match="site 'x'"):
            svi.step(spoiled(data, 2.0))
        assert svi.steps == 4
        after.append(float(svi.step(data)))
    assert after[0] == pytest.approx(after[1], rel=1e-6)
    assert svi._graphs._graphs


def test_one_site_of_two_is_enough():
    def model(x, y):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Gamma(scale, 1.0), obs=x)
            pyro.sample("y", dist.Poisson(scale), obs=y)

    def guide(x, y):
        pyro.sample("scale", dist.LogNormal(pyro.param("mean", torch.tensor(0.1)), 1.0))

    pyro.clear_param_store()
    svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), compile="graph")
    good = torch.ones(3)
    for _ in range(4):
        svi.step(good, good)
    assert svi._observed.names == {"x", "y"}
    with pytest.raises(pvae.svi.NonFiniteError, match=r"site 'y': found 0.5 at \[2\]"):
        svi.step(good, torch.tensor([1.0, 1.0, 0.5]))
    with pytest.raises(pvae.svi.NonFiniteError, match=r"site 'x': found -1 at \[0\]"):
        svi.step(-good, good)


def test_pyros_eager_steps_are_left_to_pyro():
    svi, _ = fitted(*SITES["bernoulli"][:2], compile="off")
    assert svi._observed.names is None


def test_values_that_are_masked_are_validated_as_pyro_does():
    likelihood, good, value = SITES["bernoulli"]
    mask = torch.tensor([True, True, True, False, True])
    svi, data = fitted(likelihood, good, compile="graph", steps=0)
    for _ in range(4):
        svi.step(data, mask)
    with pytest.raises(pvae.svi.NonFiniteError, match="as Bernoulli scores"):
        svi.step(spoiled(data, value), mask)
    with pytest.raises(ValueError, match="within the support"):
        Trace_ELBO().loss(svi.model, svi.guide, spoiled(data, value), mask)


@pytest.mark.parametrize("mode", ["off", "graph"])
def test_looking_changes_no_number(mode):
    likelihood, good, _ = SITES["bernoulli"]
    svi, data = fitted(likelihood, good, pvae.ELBO, compile=mode)
    looked = [float(svi.step(data)) for _ in range(3)]
    with pyro.validation_enabled(False):
        svi, data = fitted(likelihood, good, pvae.ELBO, compile=mode)
        assert [float(svi.step(data)) for _ in range(3)] == looked


def test_what_stays_on_the_device_is_not_looked_at():
    likelihood, good, _ = SITES["bernoulli"]
    svi, data = fitted(likelihood, good, compile="graph", steps=0)
    rows = torch.arange(5).expand(4, 5)
    assert len(list(svi.run(rows, data))) == 4
    assert svi._observed.names is None


def test_what_resumes_looks_from_its_first_step():
    likelihood, good, value = SITES["bernoulli"]
    svi, data = fitted(likelihood, good, pvae.ELBO, compile="graph")
    other = pvae.SVI(svi.model, svi.guide, svi.optim, pvae.ELBO(), compile="graph")
    other.load_state_dict(svi.state_dict())
    with pytest.raises(pvae.svi.NonFiniteError, match=r"step 5: .* as Bernoulli scores"):
        other.step(spoiled(data, value))


def test_a_loss_that_runs_programs_in_its_own_way_is_left_alone():
    def model(x):
        pyro.sample("x", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))), obs=x[0])

    def loss(model, guide, x):
        return -poutine.trace(model).get_trace((x,)).log_prob_sum()

    pyro.clear_param_store()
    svi = pvae.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.01}), loss, compile="graph")
    for _ in range(4):
        svi.step(torch.tensor(1.0))
    assert svi._observed.names == frozenset()


@pytest.mark.cuda
@pytest.mark.parametrize("loss", [Trace_ELBO, pvae.ELBO])
def test_on_cuda_it_is_found_at_the_next_look(loss):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    def guide(x):
        mean = pyro.param("mean", lambda: torch.tensor(0.1, device=x.device))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean.expand(len(x)), 1.0))

    pyro.clear_param_store()
    svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss(), compile="graph")
    data = torch.ones(5, device="cuda")
    for _ in range(4):
        svi.step(data)
    svi.step(data * 2)
    svi.step(data)
    with pytest.raises((pvae.svi.NonFiniteError, ValueError), match="'x'"):
        svi.check()
    assert svi.steps == 4
