"""What is large is worked on in parts; what is done with is let go."""

import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from commands import go

import pvae
from pvae import build, cells, config, data
from pvae.comparison import Data, Plan, compare
from pvae.diagnostics import mutual_information
from pvae.evaluate import evaluate
from pvae.replay import known


@pytest.mark.parametrize("mode", ["graph", "full"])
def test_what_a_trace_was_made_with_is_let_go(mode, monkeypatch):
    """Tensors that a program makes of Python's numbers are kept while a step is traced, and no longer."""
    traces = []
    real = known.Known.__init__

    def noted(self, *args, **kwargs):
        real(self, *args, **kwargs)
        traces.append(weakref.ref(self))

    monkeypatch.setattr(known.Known, "__init__", noted)
    x = torch.randn(1000)

    def model(x):
        mean = pyro.param("mean", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean * torch.ones(len(x)), torch.full((len(x),), 2.0)), obs=x)

    svi = pvae.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO(), compile=mode)
    for _ in range(3):
        svi.step(x)
    assert traces
    del svi
    gc.collect()
    assert not [ref for ref in traces if ref() is not None]


def test_evaluations_let_their_traces_go(monkeypatch):
    traces = []
    real = known.Known.__init__
    monkeypatch.setattr(
        known.Known,
        "__init__",
        lambda self, *args, **more: (real(self, *args, **more), traces.append(weakref.ref(self)))[0],
    )
    vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    evaluate(vae.model, vae.guide, torch.ones(1500, 6), particles=[10])
    assert traces
    gc.collect()
    assert not [ref for ref in traces if ref() is not None]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4,), 4096), ((28, 28), 4096), ((3, 32, 32), 1365), ((3, 64, 64), 341), ((3, 256, 256), 128)],
)
def test_fewer_pairs_of_large_data_are_scored_at_once(shape, expected):
    assert cells.chunk_of(torch.empty(2, *shape)) == expected


def test_large_data_are_evaluated_with_the_same_numbers(monkeypatch):
    torch.manual_seed(0)
    d = 4096
    vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], d), (d,)), pvae.MeanField(pvae.mlp(d, [], 4), 2))
    x, most = torch.rand(150, d).round(), []
    real = vae.likelihood.forward
    monkeypatch.setattr(vae.likelihood, "forward", lambda z, y=None: (most.append(z.numel() // 2), real(z, y))[1])
    found = evaluate(vae.model, vae.guide, x, particles=[20], compile="off")
    assert max(most) <= 1024
    expected = evaluate(vae.model, vae.guide, x, particles=[20], compile="off", chunk=4096)
    assert max(most) > 1024
    torch.testing.assert_close(found.elbo, expected.elbo, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("limits", "most"), [((100, 2**26, 10), 100), ((2**16, 6400, 10), 100), ((2**16, 64, 10), 10)])
def test_parts_start_from_some_of_many_data(limits, most, monkeypatch):
    settings = config.from_flat({"data": "digits", "epochs": 1})
    dataset = data.load("digits")
    for name, value in zip(("SEEN", "NUMBERS", "LEAST"), limits, strict=True):
        monkeypatch.setattr(build, name, value)
    seen = []
    monkeypatch.setattr(pvae.VAE, "initialize", lambda self, x, y=None: seen.append((x, y)))
    build.model(settings, dataset)
    ((x, y),) = seen
    step = -(-len(dataset.train.x) // most)
    torch.testing.assert_close(x, data.pixels(dataset.train.x[::step]))
    assert torch.equal(y, dataset.train.y[::step])
    assert len(x) <= most


@pytest.mark.parametrize(("latent", "expected"), [(2, 13107), (1000, 838)])
def test_fewer_pairs_of_large_draws_are_scored_at_once(latent, expected):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.expand(-1, latent), 1.0).to_event(1))

    done = []
    mutual_information(guide, torch.zeros(30000, 1), samples=10, progress=lambda data, of: done.append(data))
    assert done[0] == expected


def test_the_search_for_the_datum_of_a_draw_says_how_far_it_is():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    said, x = [], torch.randn(100)
    mutual_information(guide, x, samples=10, chunk=300, progress=lambda *args: said.append(args))
    assert said == [(30, 100), (60, 100), (90, 100), (100, 100)]
    parts = []
    compare({"a": (model, guide)}, Data(x), plan=Plan((1, 2)), progress=lambda what, *_: parts.append(what))
    assert "a, mutual information" in parts


def test_draws_of_the_results_file_are_told_of(tmp_path, monkeypatch, capsys):
    from pvae import report

    paced = []
    real = report.pace
    monkeypatch.setattr(report, "pace", lambda say, what, *more: (paced.append(what), real(say, what, *more))[1])
    monkeypatch.chdir(tmp_path)
    assert go("--epochs", "1", "--eval-particles", "2", "--decoder.hidden", "8", "--encoder.hidden", "8") == 0
    assert paced == ["evaluated", "draws of results.nc:"]
