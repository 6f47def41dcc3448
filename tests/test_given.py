"""What is asked of all that measures programs: data, labels, whole numbers; under any mode of torch's."""

from dataclasses import is_dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch

import pvae
from pvae.ais import Annealing, ais, bdmc
from pvae.comparison import Data, Plan, compare
from pvae.diagnostics import mutual_information
from pvae.evaluate import evaluate
from pvae.exact import LinearGaussian, LinearVAE, gaussian_kl_full
from pvae.gap import gap
from pvae.snr import Toy, measure

FEW = Annealing(temperatures=5, chains=2)


def model(x, y=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x, y=None):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7))


ASKED = {
    "evaluate": lambda x, y=None, **more: evaluate(model, guide, x, y, **{"particles": [2], **more}),
    "ais": lambda x, y=None, **more: ais(model, x, y, annealing=FEW, **more),
    "bdmc": lambda x, y=None, **more: bdmc(model, x, y, annealing=FEW, **more),
    "gap": lambda x, y=None, **more: gap(
        model, guide, x, y, **{"log_p": torch.zeros(128), "steps": 2, "draws": 16, **more}
    ),
    "mutual_information": lambda x, y=None, **more: mutual_information(guide, x, y, **{"samples": 5, **more}),
}


@pytest.fixture(params=ASKED)
def asked(request):
    return ASKED[request.param]


@pytest.mark.parametrize("chunk", [1, None])
def test_labels_of_another_number_are_refused(asked, chunk):
    given = {} if chunk is None else {"chunk": chunk}
    for number in (96, 100, 200):
        with pytest.raises(pvae.InputError, match=f"y: found {number} labels for 128 data, expected one for each"):
            asked(torch.randn(128), torch.zeros(number), **given)
    asked(torch.randn(128), torch.zeros(128), **given)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0, 2.0], None, r"x: found list, expected a tensor \(N, ...\)"),
        (torch.randn(4).numpy(), None, "x: found ndarray, expected a tensor"),
        (torch.tensor(1.0), None, "x: found a single number, expected a tensor"),
        (torch.randn(0), None, "found no data, expected at least one datum"),
        (torch.randn(3), [0, 1, 2], "y: found list, expected a tensor"),
        (torch.randn(3), torch.tensor(1), "y: found a single number"),
        (torch.randn(3).to_sparse(), None, r"x: found a tensor of layout torch.sparse_coo, .*: pass x\.to_dense\(\)"),
    ],
)
def test_what_is_no_data_is_refused(asked, x, y, message):
    with pytest.raises(pvae.InputError, match=message):
        asked(x, y)


@pytest.mark.parametrize("option", [{"seed": -1}, {"seed": None}, {"chunk": 1.5}, {"chunk": 0}])
def test_numbers_that_are_not_whole_are_refused(asked, option):
    (name,) = option
    with pytest.raises(pvae.InputError, match=f"{name}: found .*, expected (a whole number of )?at least"):
        asked(torch.randn(128), **option)


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        (lambda: pvae.IWAE(2.0), "particles"),
        (lambda: pvae.IWAE(4, chunk=1.5), "chunk"),
        (lambda: Annealing(chains=1.5), "chains"),
        (lambda: pvae.priors.Mixture(2, components=2.5), "components"),
        (lambda: Plan(draws=200.0), "draws"),
        (lambda: ASKED["gap"](torch.randn(128), steps=1.5), "steps"),
        (lambda: ASKED["evaluate"](torch.randn(4), draws=50.0), "draws"),
        (lambda: measure(pvae.ELBO(), *(getattr(Toy(2, 3), n) for n in ("model", "guide")), {}, coordinates=0), "coor"),
    ],
)
def test_so_are_those_of_options(ask, name):
    with pytest.raises(pvae.InputError, match=rf"{name}\w*: found .*, expected (a whole number of )?at least"):
        ask()


@pytest.mark.parametrize("particles", [1000, 2.5, [2.0], torch.tensor(3), "12", None])
def test_particles_are_several(particles):
    for ask in (lambda: ASKED["evaluate"](torch.randn(4), particles=particles), lambda: Plan(particles=particles)):
        with pytest.raises(pvae.InputError, match=r"particles: found .*, expected a list of whole numbers of draws"):
            ask()


def test_particles_may_be_in_a_tensor():
    x = torch.randn(4)
    found = (ASKED["evaluate"](x, particles=ks).iw for ks in (torch.tensor([1, 5]), [1, 5]))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def tensors(found):
    """All that was found."""
    if isinstance(found, torch.Tensor):
        return [found]
    each = found.values() if isinstance(found, dict) else vars(found).values() if is_dataclass(found) else ()
    return [tensor for value in each for tensor in tensors(value)]


@pytest.mark.parametrize("within", [torch.no_grad, torch.inference_mode])
def test_each_measures_alike_where_gradients_are_off(asked, within):
    torch.manual_seed(0)
    x = torch.randn(128)
    expected = asked(x)
    with within():
        found = asked(x + 0.0)
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert pairs
    for pair in pairs:
        torch.testing.assert_close(*pair, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("within", [torch.no_grad, torch.inference_mode])
def test_gradients_are_measured_and_losses_found_where_they_are_off(within):
    toy, vae = Toy(dimensions=2, n=8), LinearVAE(4, 2)
    x = torch.randn(3, 4)
    expected = measure(pvae.IWAE(4), toy.model, toy.guide, toy.groups(), toy.x, samples=10)["guide"]
    torch.manual_seed(1)
    loss = pvae.IWAE(10, chunk=3).loss(vae.model, vae.guide, x)
    with within():
        found = measure(pvae.IWAE(4), toy.model, toy.guide, toy.groups(), toy.x + 0.0, samples=10)["guide"]
        torch.manual_seed(1)
        assert pvae.IWAE(10, chunk=3).loss(vae.model, vae.guide, x) == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=0)


def test_groups_without_a_gradient_are_refused():
    toy = Toy(dimensions=2, n=8)
    expected = measure(pvae.IWAE(4), toy.model, toy.guide, {"all": list(toy.parameters())}, toy.x, samples=4)
    found = measure(pvae.IWAE(4), toy.model, toy.guide, {"all": toy.parameters()}, toy.x, samples=4)
    torch.testing.assert_close(found["all"].mean, expected["all"].mean, rtol=0, atol=0)
    toy.mu.requires_grad_(False)
    assert measure(pvae.IWAE(4), toy.model, toy.guide, {"all": toy.parameters()}, toy.x, samples=4)[
        "all"
    ].mean.shape == (6,)
    for groups in ({}, {"model": [toy.mu]}):
        with pytest.raises(pvae.InputError, match="found no parameters that have a gradient"):
            measure(pvae.IWAE(4), toy.model, toy.guide, groups, toy.x, samples=4)


def test_data_that_x_cannot_hold_are_not_simulated():
    """Else draws of z would not be of the posterior of what they are rounded to."""
    truth = LinearGaussian(torch.tensor([[0.2], [0.3]]), torch.zeros(2), torch.tensor(0.01))
    vae = LinearVAE(2, 1).set_(truth)
    for dtype in (torch.int64, torch.uint8):
        with pytest.raises(pvae.InputError, match=f"site 'x': simulates numbers that {dtype} does not hold.*pass x"):
            bdmc(vae.model, torch.zeros(4, 2, dtype=dtype), annealing=FEW)

    def counts(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Poisson(z.exp()), obs=x)

    assert bdmc(counts, torch.zeros(4, dtype=torch.int64), annealing=FEW).x.dtype == torch.int64


def test_data_of_another_precision_than_the_model_are_annealed():
    truth = LinearGaussian(torch.tensor([[0.2], [0.3]]), torch.zeros(2), torch.tensor(0.1))
    vae, (_, x) = LinearVAE(2, 1).set_(truth), truth.sample(64)
    hard = Annealing(temperatures=50, chains=4)
    found, expected = ais(vae.model, x.double(), annealing=hard), ais(vae.model, x, annealing=hard)
    torch.testing.assert_close(found.log_p.mean(), expected.log_p.mean(), rtol=0, atol=0.05)
    assert bdmc(vae.model, x.double(), annealing=FEW).x.dtype == torch.float64


@pytest.mark.parametrize("log_p", [[0.0] * 3, 1.0, None, torch.full((3,), torch.nan), torch.zeros(4)])
def test_log_p_that_is_none_is_refused(log_p):
    with pytest.raises(pvae.InputError, match=r"log_p: found .*, expected what ais found, or a tensor \(3,\)"):
        gap(model, guide, torch.randn(3), log_p=log_p)


def test_log_p_is_kept_without_its_gradient():
    found = gap(model, guide, torch.randn(3), log_p=torch.zeros(3, requires_grad=True), steps=2, draws=16)
    assert not found.log_p.requires_grad


def test_what_is_compared_is_named():
    x, programs = torch.randn(4), {"a": (model, guide)}
    with pytest.raises(pvae.InputError, match=r"test: found Tensor, expected pvae\.comparison\.Data\(x\)"):
        compare(programs, x)
    with pytest.raises(pvae.InputError, match="exact: unknown 'A': did you mean 'a'"):
        compare(programs, Data(x), exact={"A": torch.zeros(4)})
    said = []
    with pytest.raises(pvae.InputError, match="a: families: found neither annealing nor exact values"):
        compare(programs, Data(x), plan=Plan(families=("flow",)), progress=lambda *args: said.append(args))
    assert not said


@pytest.mark.parametrize(
    "matrix",
    [torch.full((2, 2), torch.nan), torch.zeros(2, 3), torch.zeros(2), torch.tensor([[1.0, torch.inf], [0.0, 1.0]])],
)
def test_what_is_no_covariance_is_refused(matrix):
    with pytest.raises(pvae.InputError, match="cov_q: found"):
        gaussian_kl_full(torch.zeros(2), matrix, torch.zeros(2), torch.eye(2))


def test_no_covariances_have_no_divergences():
    none = torch.zeros(0, 2, 2)
    assert gaussian_kl_full(torch.zeros(0, 2), none, torch.zeros(2), torch.eye(2)).shape == (0,)


@pytest.mark.parametrize("upper", [False, True])
def test_the_thermodynamic_bound_of_no_weight_is_that_of_the_others(upper):
    log_w = torch.tensor([[-torch.inf, 1.0], [-torch.inf, 3.0]])
    found = pvae.bounds.tvo(log_w, [0, 0.5, 1], upper=upper)
    assert found[0] == -torch.inf
    assert found[1] == pvae.bounds.tvo(log_w[:, 1:], [0, 0.5, 1], upper=upper)


def test_partitions_that_are_text_are_refused():
    with pytest.raises(pvae.InputError, match="partitions: found 0,,,1, expected numbers that rise"):
        pvae.TVO(partitions="0,1")


@pytest.mark.parametrize(("order", "least"), [(1.1, 12), (1.05, 22), (1.01, 102), (2.0, 3), (1.5, 4)])
def test_the_chi_bound_alone_needs_more_draws_than_weigh_nothing(order, least):
    with pytest.raises(pvae.InputError, match=f"expected at least {least} for"):
        pvae.Chi(least - 1, order=order, sandwich=False)
    pvae.Chi(least, order=order, sandwich=False)


@pytest.mark.parametrize("rows", [[[0, 1], [1, 2]], [torch.tensor([0.0, 1.0])], [torch.tensor([[0, 1]])]])
def test_rows_that_come_one_by_one_are_looked_at(rows):
    svi = pvae.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pvae.ELBO())
    with pytest.raises(pvae.InputError, match=r"run: rows: found a .*, expected whole numbers"):
        list(svi.run(rows, torch.randn(3)))
