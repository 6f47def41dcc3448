"""Plates: those that subsample, those that hold every site, and log-probabilities that are not of their shape."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

import pvae
from pvae import ais, comparison, diagnostics, evaluate, gap
from pvae.errors import InputError
from pvae.estimators import chunks

LOG_P = dist.Normal(0.0, 2**0.5)
"""log p(x) of z ~ N(0, 1), x ~ N(z, 1)"""


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):  # the exact posterior: every weight is p(x)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.reshape(len(x)) / 2, 0.5**0.5))


def subsampling(size):
    def model(x):
        with pyro.plate("data", len(x), subsample_size=min(size, len(x))) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=min(size, len(x))) as index:
            loc = x[index] / 2 + pyro.param("shift", torch.tensor(0.0))
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    return model, guide


# Parts of the particles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["reparam", "dreg", "vimco"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_parts_of_the_particles_see_the_same_data(chunk, gradient):
    x = torch.arange(50.0) ** 2 / 100  # no two log p(x) alike
    objective = pvae.IWAE(10, chunk=chunk, gradient=gradient)
    for _ in range(5):
        found = objective.bounds(*subsampling(3), x)
        rows = (found.unsqueeze(1) - LOG_P.log_prob(x)).abs().amin(1)
        assert rows.max() < 1e-4


def test_the_second_run_of_a_part_sees_the_data_of_its_first():
    x = torch.arange(50.0)
    seen = []

    def noting(program):
        def run(x):
            with pyro.poutine.trace() as trace:
                program(x)
            seen.append(tuple(trace.trace.nodes["data"]["value"].tolist()))

        return run

    objective = pvae.IWAE(6, chunk=2)
    programs = list(map(noting, subsampling(3)))
    objective.loss(*programs, x)
    seen.clear()
    objective.differentiable_loss(*programs, x).backward()
    assert len(seen) == 2 * 2 * 3
    drawn, rows = set(seen), LOG_P.log_prob(x)
    assert drawn
    found = objective.bounds(*subsampling(3), x)
    assert (found.unsqueeze(1) - rows).abs().amin(1).max() < 1e-4


def test_parts_that_nobody_asked_for(monkeypatch):
    monkeypatch.setattr(chunks, "_free", lambda args: 2**12)
    x = torch.arange(50.0) ** 2 / 100
    objective = pvae.IWAE(100)
    found = objective.bounds(*subsampling(3), x)
    assert objective.in_parts
    assert (found.unsqueeze(1) - LOG_P.log_prob(x)).abs().amin(1).max() < 1e-4


def test_the_gradient_in_parts_of_a_plate_that_subsamples():
    x = torch.arange(20.0)

    def loss(**options):
        pyro.clear_param_store()
        torch.manual_seed(0)
        objective = pvae.ELBO(4000, **options)
        programs = subsampling(19)
        return objective.differentiable_loss(*programs, x), pyro.param("shift").unconstrained()

    for options in ({}, {"chunk": 1500}):
        value, shift = loss(**options)
        (grad,) = torch.autograd.grad(value, shift)
        # the ELBO at the exact posterior has no slope: what is left is noise, of scale sqrt(20 / 4000) or so
        assert grad.abs() < 1.0


# Inner plates that subsample ------------------------------------------------------------------------------------------

D = 12


def pixels(size):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", D, subsample_size=size, dim=-2) as index:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T[index])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("scale", torch.tensor(0.5)) * x.mean(1), 0.3))

    return model, guide


@pytest.mark.parametrize("gradient", ["reparam", "stl"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_an_inner_plate_that_subsamples_is_scaled_in_the_elbo(gradient, chunk):
    x = torch.randn(6, D)

    def of(size, times):
        pyro.clear_param_store()
        objective, found = pvae.ELBO(8, gradient=gradient, chunk=chunk), []
        for _ in range(times):
            loss = objective.differentiable_loss(*pixels(size), x)
            (grad,) = torch.autograd.grad(loss, pyro.param("scale").unconstrained())
            found.append(torch.stack([loss.detach(), grad]))
        return torch.stack(found)

    some, every = of(4, 150), of(None, 50)
    error = (some.var(0) / len(some) + every.var(0) / len(every)).sqrt()
    assert ((some.mean(0) - every.mean(0)).abs() < 4 * error).all()
    assert (some.mean(0)[0] - every.mean(0)[0] / 3).abs() > 6 * error[0]  # what it was


def test_the_elbo_of_an_inner_plate_is_pyros():
    x = torch.randn(6, D)
    programs = pixels(4)
    torch.manual_seed(0)
    ours = pvae.ELBO().loss(*programs, x)
    torch.manual_seed(0)
    assert ours == pytest.approx(Trace_ELBO().loss(*programs, x), rel=1e-5)


def test_the_elbo_of_data_that_are_subsampled_too_is_pyros():
    """Each plate scales once: the data's the sum, the inner one its own sites."""
    x = torch.randn(100, 30)

    def model(x):
        with pyro.plate("data", 100, subsample_size=10, dim=-2) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(10, 1), 1.0))
            with pyro.plate("columns", 30, subsample_size=5, dim=-1) as columns:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows][:, columns])

    def guide(x):
        with pyro.plate("data", 100, subsample_size=10, dim=-2):
            pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.3)) * torch.ones(10, 1), 0.7))

    found = []
    for objective in (
        pvae.ELBO(2, plate="data"),
        Trace_ELBO(2, vectorize_particles=True, max_plate_nesting=2),
    ):
        pyro.clear_param_store()
        torch.manual_seed(0)
        pyro.param("mean", torch.tensor(0.3))
        loss = objective.differentiable_loss(model, guide, x)
        found += [loss, *torch.autograd.grad(loss, pyro.param("mean").unconstrained())]
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])


def test_a_closed_kl_in_an_inner_plate_that_subsamples_is_scaled():
    x = torch.randn(5, D)

    def model(x):
        with pyro.plate("data", 5, dim=-1), pyro.plate("pixels", D, subsample_size=3, dim=-2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).mask(False), obs=x.T[index])

    def guide(x):
        with pyro.plate("data", 5, dim=-1), pyro.plate("pixels", D, subsample_size=3, dim=-2):
            pyro.sample("z", dist.Normal(0.0, 2.0))

    kl = 1.5 - math.log(2)
    found = pvae.ELBO(analytic_kl=True, plate="data").bounds(model, guide, x)
    torch.testing.assert_close(found, torch.full((5,), -D * kl))


@pytest.mark.parametrize(
    "objective",
    [
        pvae.IWAE(5),
        pvae.IWAE(5, max_plate_nesting=2),
        pvae.TVO(5),
        pvae.Renyi(5, alpha=0.5),
        pvae.ELBO(5, gradient="score"),
        pvae.ELBO(5, gradient="dreg"),
    ],
)
def test_what_an_inner_plate_that_subsamples_makes_wrong_is_refused(objective):
    with pytest.raises(InputError, match=r"^plate 'pixels': it subsamples within the data, and then .* is wrong: exp"):
        objective.loss(*pixels(4), torch.randn(6, D))


def test_a_plate_that_takes_all_its_elements_does_not_subsample():
    x = torch.randn(6, D)
    found = pvae.IWAE(5).bounds(*pixels(D), x)
    assert found.shape == (6,)


USERS = {
    "evaluate": lambda programs, x: evaluate.evaluate(*programs, x),
    "ais": lambda programs, x: ais.ais(programs[0], x, annealing=ais.Annealing(10, 2)),
    "ais from the guide": lambda programs, x: ais.ais(
        programs[0], x, guide=programs[1], annealing=ais.Annealing(10, 2)
    ),
    "gap": lambda programs, x: gap.gap(*programs, x, log_p=torch.zeros(len(x)), steps=2),
    "compare": lambda programs, x: comparison.compare({"a": programs}, comparison.Data(x)),
}


@pytest.mark.parametrize("user", USERS)
def test_users_of_all_data_refuse_what_subsamples(user):
    for programs, x, name in ((subsampling(20), torch.randn(100), "data"), (pixels(4), torch.randn(6, D), "pixels")):
        with pytest.raises(
            InputError, match=rf"plate '{name}': it subsamples, where all .* expected .* subsample_size"
        ):
            USERS[user](programs, x)


def test_a_plate_of_fixed_size_that_subsamples_is_named_before_its_index_fails():
    def of_fifty(x):
        with pyro.plate("data", 50, subsample_size=20) as index:
            pyro.sample("z", dist.Normal(x[index] / 2, 0.5**0.5))

    with pytest.raises(InputError, match="plate 'data': it subsamples"):
        evaluate.evaluate(model, of_fifty, torch.randn(50))
    with pytest.raises(InputError, match="plate 'data': it subsamples"):
        diagnostics.mutual_information(of_fifty, torch.randn(50))


def test_mutual_information_refuses_what_subsamples():
    for size in (20, 40):  # of 40 the first few data tell nothing
        with pytest.raises(InputError, match="plate 'data': it subsamples"):
            diagnostics.mutual_information(subsampling(size)[1], torch.randn(100))


def test_log_weights_refuse_an_inner_plate_that_subsamples():
    with pytest.raises(InputError, match="plate 'pixels': it subsamples, where weights of draws are wanted"):
        pvae.log_weights(*pixels(4), torch.randn(6, D), particles=3)
    assert pvae.log_weights(*subsampling(20), torch.randn(100), particles=3).log_w.shape == (3, 20)


# Shapes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 16])
@pytest.mark.parametrize("user", [*USERS, "elbo", "iwae", "svi", "mask"])
def test_a_column_of_data_is_refused_where_as_many_particles_would_hide_it(user, n):
    x = torch.randn(n, 1)
    every = USERS | {
        "elbo": lambda programs, x: pvae.ELBO().loss(*programs, x),
        "iwae": lambda programs, x: pvae.IWAE(16).loss(*programs, x),
        "svi": lambda programs, x: pvae.SVI(*programs, pyro.optim.Adam({}), pvae.IWAE(16)).step(x),
        "mask": lambda programs, x: pvae.IWAE(16).loss(poutine.mask(model, mask=x > 0), guide, x[:, 0]),
    }
    with pytest.raises(InputError, match=rf"site '.': found a log-probability of shape \({n}, {n}\), from a value of"):
        every[user]((model, guide), x)


def test_a_column_is_seen_after_other_data():
    objective, x = pvae.IWAE(16), torch.randn(16)
    for _ in range(2):
        torch.testing.assert_close(objective.bounds(model, guide, x), LOG_P.log_prob(x))
    with pytest.raises(InputError, match="found a log-probability of shape"):
        objective.bounds(model, guide, x.unsqueeze(1))


@pytest.mark.parametrize(("k", "message"), [(1, r"a log-probability of shape \(5, 5\)"), (4, r"\(4, 5\), \(5, 1\)")])
def test_log_weights_of_a_known_nesting_are_held_against_the_plates(k, message):
    with pytest.raises(InputError, match=rf"^site 'x': .*{message}"):
        pvae.log_weights(model, guide, torch.randn(5, 1), particles=k, max_plate_nesting=1)


def test_data_and_distributions_that_do_not_broadcast():
    with pytest.raises(InputError, match=r"^site 'x': .*\(5, 2\)"):
        pvae.ELBO().loss(model, lambda x: guide(x[:, 0]), torch.randn(5, 2))


# Depths ---------------------------------------------------------------------------------------------------------------


def deep(explicit):
    def model(x):
        with pyro.plate("data", len(x), dim=-1 if explicit else None):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("t", 3, dim=-2 if explicit else None):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1 if explicit else None):
            pyro.sample("z", dist.Normal(x.sum(1) / 4, 0.5))

    return model, guide


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_an_objective_looks_again_at_other_programs(k, explicit):
    flat, x = torch.randn(4), torch.randn(4, 3)
    truth = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(x)
    objective = pvae.IWAE(k)
    for _ in range(2):
        torch.testing.assert_close(objective.bounds(model, guide, flat), LOG_P.log_prob(flat))
        torch.testing.assert_close(objective.bounds(*deep(explicit), x), truth)
    pickle.loads(pickle.dumps(objective))


def test_other_programs_of_the_same_arguments_are_looked_at():
    x, objective = torch.randn(4, 3), pvae.IWAE(3)
    flat = [lambda x, run=run: run(x[:, 0]) for run in (model, guide)]
    torch.testing.assert_close(objective.bounds(*flat, x), LOG_P.log_prob(x[:, 0]))
    truth = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(x)
    torch.testing.assert_close(objective.bounds(*deep(False), x), truth)


def test_a_program_whose_depth_depends_on_its_argument():
    flat, x = torch.randn(4), torch.randn(4, 3)
    either = [lambda x, at=at: (deep(True) if x.dim() > 1 else (model, guide))[at](x) for at in (0, 1)]
    truth = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(x)
    objective = pvae.IWAE(3)
    torch.testing.assert_close(objective.bounds(*either, flat), LOG_P.log_prob(flat))
    torch.testing.assert_close(objective.bounds(*either, x), truth)


def test_a_look_is_one_for_batches_of_any_size():
    looks = []

    def counted(x):
        looks.append(len(x))
        model(x)

    objective = pvae.ELBO(2)
    for size in (8, 8, 5, 7):
        objective.loss(counted, guide, torch.randn(size))
    assert len(looks) == 1 + 4


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_plates_deeper_than_was_said_are_refused(k, explicit):
    with pytest.raises(InputError, match=r"plate 't'.* give the objective max_plate_nesting=\d"):
        pvae.IWAE(k, max_plate_nesting=1).loss(*deep(explicit), torch.randn(4, 3))


def test_a_plate_of_any_name():
    def named(program):
        return lambda x: poutine.trace(program)(x)

    def model(x):
        with pyro.plate("particles", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("particles", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = torch.randn(4)
    torch.testing.assert_close(pvae.IWAE(3).bounds(named(model), named(guide), x), LOG_P.log_prob(x))
    assert diagnostics.mutual_information(guide, x).shape == (4,)


# Two plates -----------------------------------------------------------------------------------------------------------


def grid_model(x):
    with pyro.plate("data", x.shape[0], dim=-2), pyro.plate("pixels", x.shape[1], dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def grid_guide(x):
    with pyro.plate("data", x.shape[0], dim=-2), pyro.plate("pixels", x.shape[1], dim=-1):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def test_either_plate_can_be_the_datas_wherever_data_are_looked_at():
    x = torch.randn(7, 3)
    truth = LOG_P.log_prob(x).sum(1).double()
    found = evaluate.evaluate(grid_model, grid_guide, x, particles=[1, 10], plate="data")
    torch.testing.assert_close(found.iw[10], truth, rtol=1e-5, atol=1e-5)
    annealed = ais.ais(grid_model, x, guide=grid_guide, annealing=ais.Annealing(10, 4), plate="data")
    torch.testing.assert_close(annealed.log_p, truth, rtol=0, atol=0.2)
    split = gap.gap(grid_model, grid_guide, x, log_p=truth, plate="data", families=["mean_field"], steps=2, draws=16)
    torch.testing.assert_close(split.elbo, truth, rtol=1e-5, atol=1e-5)
    plan = comparison.Plan(particles=(1, 5), plate="data", information=7)
    table = comparison.compare({"a": (grid_model, grid_guide)}, comparison.Data(x), plan=plan).estimates("a")
    assert table["test"]["iw.5"].mean == pytest.approx(truth.mean().item(), abs=1e-5)


def test_mutual_information_of_a_plate_that_is_not_the_first():
    def guide(x):  # far apart along the data, all alike along the other plate
        with pyro.plate("pixels", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.T, 0.01))

    x = torch.arange(5.0).unsqueeze(1).expand(5, 3) * 10
    found = diagnostics.mutual_information(guide, x, plate="data")
    torch.testing.assert_close(found, torch.full((5,), math.log(5)).double())
    with pytest.raises(InputError, match="no plate 'other' in the programs: found pixels, data"):
        diagnostics.mutual_information(guide, x, plate="other")


def test_a_plate_that_the_data_are_not_in_is_refused():
    with pytest.raises(InputError, match="pass plate="):
        evaluate.evaluate(grid_model, grid_guide, torch.randn(7, 3))
    with pytest.raises(InputError, match="plate 'pixels': found 3 elements for 7 data, expected one for each"):
        evaluate.evaluate(grid_model, grid_guide, torch.randn(7, 3), plate="pixels")


# Factors of the guide -------------------------------------------------------------------------------------------------


def factored(x, has_rsample=True, width=0.5**0.5):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x / 2 + pyro.param("shift", torch.tensor(0.3)), width))
        pyro.factor("f", 3.0 + z * pyro.param("slope", torch.tensor(2.0)), has_rsample=has_rsample)


@pytest.mark.parametrize("options", [{}, {"chunk": 3}, {"chunk": 3, "beta": 0.5}])
@pytest.mark.parametrize("k", [1, 7])
def test_a_factor_of_the_guide_counts_in_log_q_as_pyros(k, options):
    x = torch.randn(4)
    found = {}
    for name, objective in {
        "pyro": Trace_ELBO(num_particles=k, vectorize_particles=True, max_plate_nesting=1),
        "pvae": pvae.ELBO(k, **options),
    }.items():
        pyro.clear_param_store()
        objective.loss(model, factored, x)
        torch.manual_seed(0)
        loss = objective.differentiable_loss(model, factored, x)
        parameters = [pyro.param(each).unconstrained() for each in ("shift", "slope")]
        found[name] = (loss.detach(), *torch.autograd.grad(loss, parameters))
    if "chunk" not in options or k == 1:  # the same random numbers
        torch.testing.assert_close(found["pvae"][0], found["pyro"][0])
        if "beta" not in options:
            torch.testing.assert_close(found["pvae"], found["pyro"])


def test_a_factor_of_the_guide_counts_where_programs_are_evaluated():
    x = torch.randn(5)

    def constant(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            pyro.factor("f", torch.full((len(x),), 3.0), has_rsample=True)

    truth = (LOG_P.log_prob(x) - 3).double()
    for chunk in (None, 128):
        found = evaluate.evaluate(model, constant, x, particles=[1, 100], chunk=chunk)
        torch.testing.assert_close(found.elbo, truth, rtol=1e-5, atol=1e-5)
    weighed = pvae.log_weights(model, constant, x, particles=3).log_w
    torch.testing.assert_close(weighed, truth.float().expand(3, 5))
    analytic = pvae.ELBO(20_000, analytic_kl=True).bounds(model, constant, x)
    torch.testing.assert_close(analytic, truth.float(), rtol=0, atol=0.1)


def test_evaluation_slices_a_factor_that_differs_by_draw():
    x = torch.randn(5)
    found = evaluate.evaluate(model, factored, x, particles=[1], draws=300, chunk=128)
    z = x / 2 + 0.3
    shifted = (LOG_P.log_prob(x) - 0.3**2 - 3 - 2 * z).double()  # log p less KL, less the mean factor
    torch.testing.assert_close(found.elbo, shifted, rtol=0, atol=5 * found.se["elbo"].max().item())


@pytest.mark.parametrize(
    ("objective", "has_rsample"),
    [
        (pvae.IWAE(5, gradient="dreg"), True),
        (pvae.ELBO(5, gradient="stl"), True),
        (pvae.ELBO(5, gradient="score"), True),
        (pvae.PIWAE(4, 2), True),
        (pvae.ELBO(5), False),
        (pvae.ELBO(5, gradient="stl", max_plate_nesting=1), True),
    ],
)
def test_a_factor_that_a_gradient_does_not_see_is_refused(objective, has_rsample):
    with pytest.raises(InputError, match=r"site 'f': found a factor .*in the guide, for which .* is wrong: expected"):
        objective.loss(model, lambda x: factored(x, has_rsample), torch.randn(4))


# Supports -------------------------------------------------------------------------------------------------------------


def exponential(mask=None, by=poutine.mask):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("each", 2, dim=-2):
                rate = dist.Exponential(z.exp())
                if mask is None:
                    pyro.sample("x", rate, obs=x.T)
                elif by is None:
                    pyro.sample("x", rate.mask(mask(x).T), obs=x.T)
                else:
                    with by(mask=mask(x).T):
                        pyro.sample("x", rate, obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return model, guide


@pytest.mark.parametrize("datum", [0, 3, 150])
@pytest.mark.parametrize("user", ["evaluate", "ais", "gap"])
def test_a_datum_outside_its_support_is_named(user, datum):
    x = torch.rand(160, 2)
    x[datum, 1] = -1.0
    where = f"datum {datum}: " if datum else ""
    with pytest.raises(InputError, match=rf"{where}site 'x': found -1 at \[1, 0\], .* as Exponential scores"):
        USERS[user](exponential(), x)


def test_a_datum_of_a_later_block_is_named():
    x = torch.rand(160, 2)
    x[150, 1] = -1.0
    with pytest.raises(InputError, match="datum 150: site 'x': found -1"):
        evaluate.evaluate(*exponential(), x, particles=[600])


def test_vae_log_weights_name_the_datum():
    vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    x = torch.ones(10, 6)
    assert vae.log_weights(x, particles=3).log_w.shape == (3, 10)
    x[3, 2] = -1.0
    with pytest.raises(InputError, match=r"datum 3: site 'x': found -1 at \[0, 2\]"):
        vae.log_weights(x, particles=3)
    with pyro.validation_enabled(False):
        assert vae.log_weights(x, particles=3).log_w.shape == (3, 10)


@pytest.mark.parametrize("by", [poutine.mask, None])
@pytest.mark.parametrize("user", ["evaluate", "ais"])
def test_what_a_mask_leaves_out_may_be_anything(user, by):
    x = torch.rand(6, 2)
    x[0, 1] = x[4, 0] = -1.0
    programs = exponential(lambda x: x >= 0, by)
    found = USERS[user](programs, x)
    assert (found.elbo if user == "evaluate" else found.log_p).isfinite().all()
    x[2, 0] = -3.0
    seen = exponential(lambda x: (x >= 0) | (x == -3), by)
    with pytest.raises(InputError, match=r"datum 2: site 'x': found -3"):
        USERS[user](seen, x)


def test_a_masked_value_that_is_not_finite_has_no_gradient():
    x = torch.rand(6, 2)
    x[4, 0] = math.nan
    programs = exponential(lambda x: ~x.isnan())
    assert evaluate.evaluate(*programs, x).elbo.isfinite().all()
    with pytest.raises(InputError, match=r"datum 4: site 'x': found a value that is not finite, which has no gradient"):
        USERS["ais"](programs, x)


def test_a_support_that_moves_with_the_draws_is_left_to_the_weights():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(1.0))
            pyro.sample("x", dist.Uniform(0.0, z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Exponential(1.0))

    x = torch.tensor([1e-6, 0.5, 0.7])
    found = evaluate.evaluate(model, guide, x, particles=[100])
    assert found.iw[100].isfinite().all()


def test_a_graph_holds_data_against_supports():
    x = torch.rand(128 * 8, 2)
    x[700, 0] = -1.0
    with pytest.raises(InputError, match="datum 700: site 'x': found -1"):
        evaluate.evaluate(*exponential(), x, particles=[1])


# Masks ----------------------------------------------------------------------------------------------------------------


def spike(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.4))
        with poutine.mask(mask=c.bool()):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(c * z, 0.5), obs=x)


def parts_of(x):
    return dist.Normal(0.0, 1.25**0.5).log_prob(x) + math.log(0.4), dist.Normal(0.0, 0.5).log_prob(x) + math.log(0.6)


def spike_guide(x):
    slab, point = parts_of(x)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(logits=slab - point))
        with poutine.mask(mask=c.bool()):
            pyro.sample("z", dist.Normal(x * 0.8, 0.2**0.5))


@pytest.mark.parametrize(("n", "draws", "chunk"), [(128, 33, None), (5, 100, 128), (200, 100, None)])
def test_a_mask_that_depends_on_a_latent_is_evaluated_in_parts(n, draws, chunk):
    x = torch.randn(n)
    found = evaluate.evaluate(spike, spike_guide, x, particles=[1], draws=draws, chunk=chunk)
    torch.testing.assert_close(found.elbo, torch.logaddexp(*parts_of(x)).double(), rtol=1e-5, atol=1e-5)
