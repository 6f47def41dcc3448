"""The fused Bernoulli likelihood on a GPU: right, the same at every call, captured, and in whole fits."""

from functools import partial

import pyro
import pytest
import torch
from torch.nn.functional import softplus

import pvae
from pvae import kernels
from pvae.distributions import BernoulliOfLinear
from pvae.evaluate import evaluate
from pvae.kernels import bernoulli, launch
from pvae.replay.precision import TOLERANCE, of

pytestmark = [
    pytest.mark.cuda(emulated=False),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() != bernoulli.HOPPER,
        reason="the programs are for another GPU",
    ),
]
PRECISIONS = ["tf32", "bf16"]
MODES = ["graph", pytest.param("full", marks=pytest.mark.slow)]
SIZES = {  # rows, data, hidden, outputs
    "C": (16384, 256, 200, 784),
    "a cell of an evaluation": (4096, 128, 200, 784),
    "odd": (1333, 31, 77, 131),
    "one hidden unit": (300, 3, 1, 5),
    "one datum": (999, 1, 64, 16),
    "256 hidden units": (2000, 20, 256, 784),
    "300 hidden units": (2000, 20, 300, 1000),
    "512 hidden units": (2000, 20, 512, 784),
}


def numbers(rows, data, hidden, outputs, scale=1.0):
    random = torch.Generator().manual_seed(1)
    shapes = (rows,), (rows, hidden), (outputs, hidden), (outputs,), (data, outputs)
    g, h, w, b, x = (torch.randn(shape, generator=random).cuda() for shape in shapes)
    return g, h, w * scale / hidden**0.5, b * scale, (x + 0.5).clamp(0, 1)


def right(g, h, w, b, x):
    """In float64: scores, and gradients of h, w and b."""
    h, w, b = (value.double().requires_grad_() for value in (h, w, b))
    logits, value = h @ w.T + b, x.double().repeat(len(h) // len(x), 1)
    score = (value * logits - softplus(logits)).sum(-1)
    return [score.detach(), *torch.autograd.grad((score * g).sum(), (h, w, b))]


def fused(g, h, w, b, x, precision):
    h, w, b = (value.detach().requires_grad_() for value in (h, w, b))
    score = kernels.log_prob(h, w, b, x, precision)
    return [score.detach(), *torch.autograd.grad((score * g).sum(), (h, w, b))]


def close(found, wanted, most):
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]
    assert max(errors) < most, errors


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SIZES)
def test_scores_and_gradients_are_right(name, precision):
    given = numbers(*SIZES[name])
    most = bernoulli.TOLERANCE[precision]
    with torch.no_grad():
        alone = kernels.log_prob(*given[1:], precision)
    wanted = right(*given)
    close([alone], wanted[:1], most)
    if launch.blocks(precision, SIZES[name][2], True):
        close(fused(*given, precision), wanted, most)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_large_logits_are_right(precision):
    g, h, w, b, x = numbers(2000, 20, 200, 784, scale=100.0)
    kept = [value.to(launch.DTYPES[precision]).float() for value in (h, w)]
    close(fused(g, *kept, b, x, precision)[:1], right(g, *kept, b, x)[:1], 1e-3)
    ends = torch.tensor([100.0, -100.0]).cuda()
    found = kernels.log_prob(torch.zeros(3, 16).cuda(), torch.ones(2, 16).cuda(), ends, ends.sigmoid()[None], precision)
    assert found.tolist() == pytest.approx([0, 0, 0], abs=1e-30)


def test_rounding_is_to_the_nearest():
    """Truncation would make every product smaller: logits would shrink by 7e-4."""
    _, h, w, b, x = numbers(4096, 64, 200, 784)
    h, w, b = h.abs(), w.abs(), b * 0
    with torch.no_grad():
        found = kernels.log_prob(h, w, b, 0 * x, "tf32")
    wanted = -softplus(h.double() @ w.double().T).sum(-1)
    assert abs((found / wanted).mean() - 1) < 1e-4


def test_not_a_number_stays_one():
    _, h, w, b, x = numbers(500, 20, 200, 784)
    h[3, 4], h[77, 199] = torch.nan, torch.nan
    for precision in PRECISIONS:
        with torch.no_grad():
            assert kernels.log_prob(h, w, b, x, precision).isnan().nonzero()[:, 0].tolist() == [3, 77]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_call_gives_the_same_bits(precision):
    given = numbers(*SIZES["C"])
    first = fused(*given, precision)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(fused(*given, precision), first, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_arrays_that_are_not_aligned(precision):
    g, h, w, b, x = numbers(601, 1, 199, 783)
    wanted = right(g[1:], h[1:], w[1:], b[1:], x[:, 1:])
    close(fused(g[1:], h[1:], w[1:], b[1:], x[:, 1:], precision), wanted, bernoulli.TOLERANCE[precision])


def test_second_derivatives():
    g, h, w, b, x = numbers(64, 8, 20, 30)
    found = []
    for function in (partial(kernels.log_prob, precision="tf32"), None):
        leaves = [value.detach().requires_grad_() for value in (h, w, b)]
        logits = leaves[0] @ leaves[1].T + leaves[2]
        plain = x.repeat(8, 1) * logits - softplus(logits)
        score = function(*leaves, x) if function else plain.sum(-1)
        first = torch.autograd.grad((score * g).sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(value.square().sum() for value in first), leaves))
    close(*found, 5e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_captured_replays(precision):
    given = numbers(*SIZES["C"])
    _, h, w, b, x = given
    h = h.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        fused(*given, precision)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = fused(given[0], h, w, b, x, precision)
    for factor in (1.0, -2.0):
        h.copy_(given[1] * factor)
        graph.replay()
        wanted = fused(given[0], given[1] * factor, w, b, x, precision)
        assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True))


# In whole fits: a network for which the size rule asks for it.


@pytest.fixture
def seen(monkeypatch):
    """What the size rule said, in each call."""
    found = []
    own = kernels.choose
    monkeypatch.setattr(kernels, "choose", lambda *args: found.append(own(*args)) or found[-1])
    return found


def new_vae(activation="tanh"):
    torch.manual_seed(0)
    decoder = pvae.MLPDecoder(10, (28, 28), [200], activation)
    encoder = pvae.MLPEncoder((28, 28), 20, [200], activation)
    return pvae.VAE(pvae.Normal(10), pvae.Bernoulli(decoder, (28, 28)), pvae.MeanField(encoder, 10)).cuda()


def images(n=256):
    random = torch.Generator().manual_seed(1)
    return torch.bernoulli(torch.rand(n, 28, 28, generator=random)).cuda()


def test_the_distribution_is_the_fused_one():
    vae = new_vae()
    z = torch.randn(64, 256, 10).cuda()
    with of("tf32", "cuda"), pyro.validation_enabled(False):
        assert type(vae.likelihood(z)) is BernoulliOfLinear
    with pyro.validation_enabled(False):
        assert type(vae.likelihood(z)) is not BernoulliOfLinear
    with of("bf16", "cuda"), pyro.validation_enabled(False):
        p = vae.likelihood(z)
        assert p.hidden.dtype == torch.bfloat16
        assert p.log_prob(images()).dtype == torch.float32


def fit(mode, precision, objective, steps=30):
    vae = new_vae()
    torch.manual_seed(1)
    svi = pvae.SVI(vae.model, vae.guide, torch.optim.Adam, objective(), compile=mode, precision=precision)
    rows = torch.arange(256, device="cuda").repeat(steps, 1)
    losses = torch.cat([block.clone() for block in svi.run(rows, images())])
    svi.check()
    return losses, torch.cat([p.detach().flatten() for p in vae.parameters()])


OBJECTIVES = {
    "iwae": lambda: pvae.IWAE(64),
    "dreg": lambda: pvae.IWAE(64, gradient="dreg"),
    "in parts": lambda: pvae.IWAE(128, chunk=64),
}


@pytest.mark.parametrize("mode", ["off", *MODES])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_fit_with_it_is_the_fit_without(objective, precision, mode, seen, monkeypatch):
    found, values = fit(mode, precision, OBJECTIVES[objective])
    assert precision in seen
    monkeypatch.setattr(kernels, "choose", lambda *args: None)
    wanted, others = fit(mode, precision, OBJECTIVES[objective])
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[precision], atol=0)
    assert (values - others).norm() < 0.05 * others.norm()


@pytest.mark.parametrize("mode", MODES)
def test_a_fit_is_the_same_at_every_run(mode):
    first, second = (fit(mode, "tf32", OBJECTIVES["iwae"]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_products_in_float32_are_left_alone(seen):
    fit("graph", "float32", OBJECTIVES["iwae"])
    assert set(seen) == {None}


def test_an_evaluation_with_it_is_the_evaluation_without(seen, monkeypatch):
    vae, x = new_vae(), images()
    call = partial(evaluate, vae.model, vae.guide, x, particles=[1000])
    with of("tf32", "cuda"):
        found = call()
        assert "tf32" in seen
        monkeypatch.setattr(kernels, "choose", lambda *args: None)
        torch.testing.assert_close(found.iw[1000], call().iw[1000], rtol=1e-3, atol=0)
