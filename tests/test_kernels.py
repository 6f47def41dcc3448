"""The fused Bernoulli likelihood: its programs, its operations, and who uses it."""

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pyro
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import pvae
from pvae import kernels, networks
from pvae.distributions import BernoulliOfLinear, IndependentBernoulli
from pvae.kernels import bernoulli, launch
from pvae.networks import split
from pvae.replay.tracing import record

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="torch came without Triton")


# The programs.


@needs_triton
def test_the_programs_are_right():
    """In Triton's interpreter, against float64: see `interpreted`."""
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found.pop("not a number") == [1] * 6
    extremes = [[-100, 0, -50], [-1, 0, -0.5], [0, -100, -50], [0, 1, 0.5]]
    assert [pytest.approx(values, abs=1e-40) for values in extremes] == found.pop("extremes")
    most = {"float32": 5e-7, "half": 5e-4, "tf32": 5e-4}
    wrong = {
        (name, key): error
        for name, errors in found.items()
        for key, error in errors.items()
        if not error <= most[name.split(", ")[1]]
    }
    assert not wrong
    assert len(found) == 11


HOPPER = [("scores", 200), ("slopes", 200)]
MORE = [(name, width) for width in (16, 256, 300, 512) for name in ("scores", "slopes")]


@needs_triton
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize(("name", "width"), [*HOPPER, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)])
def test_the_programs_compile_for_an_h100(name, width, precision, tmp_path, monkeypatch):
    """They fit its shared memory and use its tensor cores; hardly a register is spilled."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from hopper import SHARED, compiled

    found = compiled(name, precision, width, gradient=True)
    if found is None:
        assert precision == "tf32"
        assert width > 256
        return
    assert found["shared"] <= SHARED
    assert found["wgmma"] == found["tensor cores"] > 0
    if width <= 208:
        assert found["spilled"] <= 8
        assert 2 * found["shared"] <= SHARED  # two programs are to fit


@pytest.mark.parametrize("hidden", [1, 16, 17, 200, 256, 300, 400, 500, 512, 768, 769])
def test_hidden_units_are_held_in_few_powers_of_two(hidden):
    found = launch.pieces(hidden)
    if hidden > 768:
        assert found == (0, 0, 0)
        return
    assert hidden <= sum(found) <= max(32, 1.13 * hidden)
    assert all(size in (0, 16, 32, 64, 128, 256) for size in found)


def test_blocks_are_known_up_to_a_width():
    widths = {
        (precision, gradient): max(h for h in range(1, 800) if launch.blocks(precision, h, gradient))
        for precision in ("tf32", "bf16")
        for gradient in (False, True)
    }
    assert widths == {("tf32", False): 512, ("tf32", True): 256, ("bf16", False): 512, ("bf16", True): 512}


@pytest.mark.parametrize("length", [1, 31, 784, 16384])
@pytest.mark.parametrize("count", [1, 13, 256, 5000])
@pytest.mark.parametrize("block", [launch.Blocks(64, 32, 4, 2), launch.Blocks(64, 16, 8, 2)])
def test_parts_cover_a_length_once(length, count, block):
    parts, each = launch._shares(length, block, count)
    tiles = -(-length // block.tile)
    assert (parts - 1) * each < tiles <= parts * each
    assert parts == 1 or parts * count <= block.programs


# The operations.


def arrays(rows=30, data=10, hidden=7, outputs=9, dtype=torch.float64):
    shapes = (rows, hidden), (outputs, hidden), (outputs,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes], torch.rand(
        data, outputs, dtype=dtype
    )


def by_hand(h, w, b, x):
    logits, value = h @ w.T + b, x.repeat(len(h) // len(x), 1)
    return (value * logits - nn.functional.softplus(logits)).sum(-1)


@pytest.fixture
def in_float64(monkeypatch):
    monkeypatch.setitem(launch.DTYPES, "tf32", torch.float64)


def test_first_and_second_derivatives(in_float64):
    factors, x = arrays()
    assert torch.autograd.gradcheck(lambda *a: kernels.log_prob(*a, x, "tf32"), factors)
    assert torch.autograd.gradgradcheck(lambda *a: kernels.log_prob(*a, x, "tf32"), factors)
    torch.testing.assert_close(kernels.log_prob(*factors, x, "tf32"), by_hand(*factors, x))


def test_torchs_own_check_of_operations():
    (h, w, b), x = arrays(dtype=torch.float32)
    h, w, b = h.detach(), w.detach(), b.detach()
    for gradient in (False, True):
        torch.library.opcheck(bernoulli.scores, (h, w, b, x, gradient, "tf32"))
    torch.library.opcheck(bernoulli.slopes, (torch.randn(30), h, w, b, x, "tf32"))


@pytest.fixture
def calls(monkeypatch):
    """The operations that were called, and whether for a gradient."""
    seen = []
    own = bernoulli.scores, bernoulli.slopes
    monkeypatch.setattr(bernoulli, "scores", lambda *a: seen.append(("scores", a[4])) or own[0](*a))
    monkeypatch.setattr(bernoulli, "slopes", lambda *a: seen.append(("slopes", True)) or own[1](*a))
    return seen


def test_only_what_is_asked_for_is_computed(calls):
    (h, w, b), x = arrays(dtype=torch.float32)
    with torch.no_grad():
        kernels.log_prob(h, w, b, x, "tf32")
    assert calls == [("scores", False)]
    score = kernels.log_prob(h, w, b, x, "tf32")
    torch.autograd.grad(score.sum(), h, retain_graph=True)
    assert calls[1:] == [("scores", True)]
    for leaf in (w, b):
        torch.autograd.grad(score.sum(), leaf, retain_graph=True)
    score.sum().backward()
    assert calls[2:] == [("slopes", True)] * 3
    kernels.log_prob(h.detach(), w, b, x, "tf32").sum().backward()
    assert calls[5:] == [("scores", True), ("slopes", True)]


def test_bfloat16_factors_have_gradients_of_their_own_kind():
    (h, w, b), x = arrays(dtype=torch.float32)
    score = kernels.log_prob(h.bfloat16(), w, b, x, "bf16")
    assert score.dtype == torch.float32
    found = torch.autograd.grad(score.sum(), (h, w, b))
    wanted = torch.autograd.grad(by_hand(h, w, b, x).sum(), (h, w, b))
    for a, c in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - c).norm() < 0.02 * c.norm()


def test_a_graph_has_one_node_for_each_operation():
    (h, w, b), x = arrays(dtype=torch.float32)

    def slopes(h):
        score = kernels.log_prob(h, w, b, x, "tf32")
        return score, *torch.autograd.grad(score.sum(), (h, w, b))

    graph = make_fx(slopes)(h)
    names = [str(node.target) for node in graph.graph.nodes if "pvae" in str(node.target)]
    assert names == ["pvae.bernoulli_scores.default", "pvae.bernoulli_slopes.default"]
    other = torch.randn_like(h, requires_grad=True)
    for a, c in zip(graph(other), slopes(other), strict=True):
        assert torch.equal(a, c)


# When it is used.


@pytest.fixture
def on_cuda(monkeypatch):
    """As if there were a device on which the programs are right."""
    monkeypatch.setattr(bernoulli, "_trust", lambda *a: True)
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    torch.set_float32_matmul_precision("high")
    yield torch.device("cuda", 0)
    torch.set_float32_matmul_precision("highest")


def test_it_is_used_for_products_on_cuda_that_are_large(on_cuda):
    layer, rows = nn.Linear(200, 784), 16384
    assert kernels.choose(rows, layer, on_cuda) == "tf32"
    assert kernels.choose(rows, layer, torch.device("cpu")) is None
    assert kernels.choose(4096, layer, on_cuda) is None
    with torch.no_grad():
        assert kernels.choose(4096, layer, on_cuda) == "tf32"
        assert kernels.choose(1000, layer, on_cuda) is None
    for other in (nn.Linear(200, 784, bias=False), nn.Linear(257, 784), layer.double()):
        assert kernels.choose(rows, other, on_cuda) is None


def test_it_is_used_under_bfloat16_autocast(on_cuda, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    for dtype, expected in ((torch.bfloat16, "bf16"), (torch.float16, None)):
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind, dtype=dtype: dtype)
        for hidden in (200, 512):
            assert kernels.choose(16384, nn.Linear(hidden, 784), on_cuda) == expected
        assert kernels.choose(16384, nn.Linear(513, 784), on_cuda) is None


def test_it_is_not_used_where_products_are_exact_or_values_are_validated(on_cuda, monkeypatch):
    layer = nn.Linear(200, 784)
    torch.set_float32_matmul_precision("highest")
    assert kernels.choose(16384, layer, on_cuda) is None
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # torch's new way to say so
    assert kernels.choose(16384, layer, on_cuda) == "tf32"
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    assert kernels.choose(16384, layer, on_cuda) is None


@pytest.fixture
def untried(monkeypatch):
    """Nothing is known of any device; the programs are stood for by the plain computation, which can be replaced."""
    monkeypatch.setattr(bernoulli, "_trusted", {})
    monkeypatch.setattr(launch, "scores", lambda *a: bernoulli._plain_scores(*a[:5]))
    monkeypatch.setattr(launch, "slopes", lambda *a: bernoulli._plain_slopes(*a[:5]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return monkeypatch


def tried(precision="tf32", gradient=True):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "User provided device_type of 'cuda'")
        return bernoulli._trust(torch.device("cpu"), 20, 30, precision, gradient)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("gradient", [False, True])
def test_a_first_use_compares_and_draws_nothing(untried, precision, gradient):
    before = torch.get_rng_state()
    assert tried(precision, gradient)
    assert torch.equal(torch.get_rng_state(), before)
    untried.setattr(bernoulli, "_right", lambda *a: pytest.fail("compared again"))
    assert tried(precision, gradient)


@needs_triton
def test_a_first_use_while_a_graph_is_recorded(untried):
    found = []
    graph = record(lambda x: found.append(tried()) or x + 1, torch.ones(2))
    assert found == [True]
    assert len(graph.graph.nodes) == 3


@pytest.mark.parametrize("what", ["scores", "slopes"])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("wrong", [lambda value: -value, lambda value: value * torch.nan, lambda value: value * 1.01])
def test_programs_that_are_wrong_are_not_used(untried, what, at, wrong):
    own = getattr(launch, what)

    def spoiled(*args):
        found = list(own(*args))
        found[at] = wrong(found[at])
        return tuple(found)

    untried.setattr(launch, what, spoiled)
    with pytest.warns(UserWarning, match=r"kernel is wrong here: .* the plain computation is used"):
        assert not tried()
    assert not tried()


def test_programs_that_do_not_run_are_not_used(untried):
    untried.setattr(launch, "slopes", lambda *a: [][1])
    with pytest.warns(UserWarning, match=r"does not run here: IndexError: list index out of range: the plain"):
        assert not tried()
    assert tried(gradient=False)


def test_no_other_device_is_tried(untried):
    untried.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert not tried()


def test_a_graph_that_is_captured_is_not_held_up(untried):
    untried.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not tried()
    untried.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tried()


def test_a_program_that_fails_later_is_replaced(untried):
    (h, w, _), _ = arrays()
    with pytest.warns(UserWarning, match="kernel failed: ValueError: too much: the plain computation is used"):
        bernoulli._fall_back(h, w, "tf32", ValueError("too much\nof it"))
    assert set(bernoulli._trusted.values()) == {False}
    with pytest.raises(torch.OutOfMemoryError):
        bernoulli._fall_back(h, w, "tf32", torch.OutOfMemoryError("none left"))


# Decoders that it is for.

SHAPE = (2, 3)
DECODERS = {
    "mlp": lambda: pvae.MLPDecoder(4, SHAPE, [8], "tanh"),
    "gated": lambda: networks.GatedDecoder(4, SHAPE, [8, 5]),
    "sequential": lambda: pvae.mlp(4, [8], 6),
    "conditioned": lambda: pvae.ConditionedDecoder(pvae.MLPDecoder(4 + 3, SHAPE), pvae.Label(3)),
}
LABELS = {"conditioned": torch.tensor([0, 2, 1])}


@pytest.fixture
def used(monkeypatch):
    """As if every layer were on such a device and large."""
    monkeypatch.setattr(kernels, "run_on", lambda device: True)
    monkeypatch.setattr(kernels, "choose", lambda rows, layer, device: "tf32")


@pytest.fixture(params=DECODERS)
def both(request, used):
    """The distribution as it is used, and the plain one; and z and the parameters."""
    request.getfixturevalue("monkeypatch").setattr(torch.distributions.Distribution, "_validate_args", False)
    likelihood = pvae.Bernoulli(DECODERS[request.param](), SHAPE)
    z, y = torch.randn(5, 3, 4, requires_grad=True), LABELS.get(request.param)
    plain = IndependentBernoulli(likelihood.decode(z, y), 2)
    return likelihood(z, y), plain, [z, *likelihood.parameters()]


def binary(*shape):
    return torch.bernoulli(torch.full(shape, 0.5))


def test_scores_and_gradients_are_the_plain_ones(both):
    fused, plain, leaves = both
    assert type(fused) is BernoulliOfLinear
    x, weights = binary(3, *SHAPE), torch.randn(5, 3)
    found, wanted = fused.log_prob(x), plain.log_prob(x)
    assert "base_dist" not in vars(fused)
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad((score * weights).sum(), leaves, create_graph=True) for score in (found, wanted)]
    torch.testing.assert_close(*slopes)
    second = [torch.autograd.grad(first[0].square().sum(), leaves) for first in slopes]
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (5, 3), (1, 1, 3), (5, 1), (2, 5, 3), (1, 1)])
def test_values_of_any_shape_are_scored(both, shape):
    fused, plain, _ = both
    x = binary(*shape, *SHAPE)
    torch.testing.assert_close(fused.log_prob(x), plain.log_prob(x))


def test_values_between_0_and_1_and_of_other_kinds(both):
    fused, plain, _ = both
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(fused.log_prob(x), plain.log_prob(x))
    torch.testing.assert_close(fused.log_prob(x.double()), plain.log_prob(x.double()))
    x.requires_grad_()
    slopes = [torch.autograd.grad(p.log_prob(x).sum(), x)[0] for p in (fused, plain)]
    torch.testing.assert_close(*slopes)


def test_it_is_a_bernoulli_in_every_other_respect(both):
    fused, plain, _ = both
    for name in ("batch_shape", "event_shape", "event_dim", "has_rsample", "has_enumerate_support"):
        assert getattr(fused, name) == getattr(plain, name)
    assert "base_dist" not in vars(fused)
    assert str(fused.support) == str(plain.support)
    for name in ("mean", "variance"):
        assert torch.equal(getattr(fused, name), getattr(plain, name))
    assert torch.equal(fused.entropy(), plain.entropy())
    assert repr(fused).partition("(")[2] == repr(plain).partition("(")[2]
    draws = []
    for p in (fused, plain, fused.expand((2, 5, 3)), plain.expand((2, 5, 3))):
        torch.manual_seed(1)
        draws.append(p.sample((4,)))
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[2], draws[3])
    assert fused.expand((5, 3)) is fused
    x = binary(3, *SHAPE)
    torch.testing.assert_close(fused.expand((2, 5, 3)).log_prob(x), plain.expand((2, 5, 3)).log_prob(x))
    torch.testing.assert_close(fused.mask(False).log_prob(x), torch.zeros(5, 3))
    assert fused.to_event(1).log_prob(x).shape == (5,)
    fused._validate_args = True
    with pytest.raises(ValueError, match="support"):
        fused.log_prob(x + 0.5)


def test_draws_can_be_enumerated(used):
    likelihood = pvae.Bernoulli(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)), ())
    p = likelihood(torch.randn(5, 4))
    assert torch.equal(p.enumerate_support(), torch.tensor([0.0, 1.0])[:, None].expand(2, 5))
    assert p.log_prob(p.enumerate_support()).logsumexp(0).abs().max() < 1e-6


def test_within_vmap_it_is_plain(used):
    likelihood = pvae.Bernoulli(DECODERS["mlp"](), SHAPE)
    z, x = torch.randn(5, 4), binary(*SHAPE)
    found = torch.vmap(lambda z: likelihood(z[None]).log_prob(x)[0])(z)
    torch.testing.assert_close(found, likelihood(z).log_prob(x))


class Sharpened(pvae.MLPDecoder):
    def forward(self, z):
        return 2 * super().forward(z)


class Inherited(pvae.MLPDecoder):
    """Changes nothing."""


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def watched(decoder, where):
    where(decoder).register_forward_hook(lambda module, args, out: 2 * out)
    return decoder


def swapped(decoder, last):
    decoder.layers[-1] = last
    return decoder


def patched(decoder):
    decoder.forward = lambda z: torch.zeros(*z.shape[:-1], *SHAPE)
    return decoder


NOT_KNOWN = {
    "hook on the decoder": lambda: watched(DECODERS["mlp"](), lambda d: d),
    "hook on its layers": lambda: watched(DECODERS["mlp"](), lambda d: d.layers),
    "hook on the last": lambda: watched(DECODERS["mlp"](), lambda d: d.layers[-1]),
    "hook within": lambda: watched(DECODERS["conditioned"](), lambda d: d.network),
    "hook before": lambda: watched(DECODERS["sequential"](), lambda d: d),
    "forward of its own": lambda: Sharpened(4, SHAPE),
    "forward of its own within": lambda: pvae.ConditionedDecoder(Sharpened(4 + 3, SHAPE), pvae.Label(3)),
    "patched forward": lambda: patched(DECODERS["mlp"]()),
    "another layer": lambda: swapped(DECODERS["mlp"](), Doubled(8, 6)),
    "weight norm": lambda: swapped(DECODERS["mlp"](), nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))),
    "spectral norm": lambda: swapped(DECODERS["mlp"](), nn.utils.spectral_norm(nn.Linear(8, 6))),
    "not linear": lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh()),
    "one layer": lambda: nn.Linear(4, 6),
    "convolutional": lambda: pvae.ConvDecoder(4, (1, 8, 8)),
    "residual": lambda: networks.ResNetDecoder(4, (1, 8, 8)),
}


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_a_decoder_that_is_more_than_its_layers_is_called(name, used):
    decoder = NOT_KNOWN[name]()
    assert split(decoder) is None
    likelihood = pvae.Bernoulli(decoder, getattr(decoder, "shape", SHAPE))
    found = likelihood(torch.randn(3, 4), torch.tensor([0, 2, 1]))
    assert type(found) is IndependentBernoulli


def test_hooks_within_are_called_and_a_subclass_that_changes_nothing_is_known(used):
    decoder = Inherited(4, SHAPE, [8])
    calls = []
    decoder.layers[0].register_forward_hook(lambda *a: calls.append(a[2].shape))
    p = pvae.Bernoulli(decoder, SHAPE)(torch.randn(5, 3, 4))
    assert type(p) is BernoulliOfLinear
    assert calls == [(15, 8)]


def test_a_decoder_of_another_size_is_refused_as_before(used):
    with pytest.raises(pvae.InputError, match="found an output of shape"):
        pvae.Bernoulli(pvae.mlp(4, [3], 5), SHAPE)(torch.randn(3, 4))


def test_dropout_is_drawn_once(used):
    decoder = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 6))
    p = pvae.Bernoulli(decoder, SHAPE)(torch.randn(3, 4))
    x = binary(3, *SHAPE)
    torch.testing.assert_close(p.log_prob(x), IndependentBernoulli(p.base_dist.logits, 2).log_prob(x))


def test_on_a_cpu_nothing_is_changed():
    likelihood, z = pvae.Bernoulli(DECODERS["mlp"](), SHAPE), torch.zeros(1, 4).expand(2**20, 4)
    with pyro.validation_enabled(False):
        assert type(likelihood(z)) is IndependentBernoulli


# Whole steps.


def losses(new_vae, objective, mode, steps=12, **options):
    vae = new_vae()
    torch.manual_seed(1)
    x = binary(20, 4, 5)
    svi = pvae.SVI(vae.model, vae.guide, torch.optim.Adam, objective, compile=mode, **options)
    return [float(svi.step(x)) for _ in range(steps)]


OBJECTIVES = {
    "elbo": lambda: pvae.ELBO(),
    "iwae": lambda: pvae.IWAE(5),
    "dreg": lambda: pvae.IWAE(5, gradient="dreg"),
}


@pytest.mark.parametrize("mode", ["off", "graph", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_fit_is_the_same_with_it_and_without(objective, mode, new_vae, monkeypatch):
    wanted = losses(new_vae, OBJECTIVES[objective](), "off")
    seen = []
    monkeypatch.setattr(kernels, "run_on", lambda device: True)
    monkeypatch.setattr(kernels, "choose", lambda *a: seen.append(a) or "tf32")
    found = losses(new_vae, OBJECTIVES[objective](), mode)
    assert seen
    assert found == pytest.approx(wanted, rel=1e-4)
