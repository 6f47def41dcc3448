"""Graphs kept from one evaluation to the next: the numbers of fresh ones, bit for bit, whatever has changed between."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from commands import quick
from torch import nn

import pvae
from pvae import fit
from pvae.cells import CELL, TRACED_AFTER, Kept
from pvae.evaluate import evaluate
from pvae.priors import Energy, Resampled, Vamp
from pvae.replay import captured

N = (TRACED_AFTER + 1) * CELL + 50
DATA = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))


class Program(nn.Module):
    """A linear VAE that reaches numbers in many ways."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 6), nn.Linear(3, 4)
        self.register_buffer("shift", torch.zeros(4))
        self.factor, self.on_the_cpu = 1.0, torch.tensor(1.0)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[:, :3]), 1.0).to_event(1))
            mean = (
                self.factor * self.on_the_cpu * self.decoder(z)
                + self.shift
                + float(os.environ.get("PVAE_TEST_MEAN", "0"))
            )
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        mean, scale = self.encoder(nn.functional.dropout(x, 0.5, self.training)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


@pytest.fixture
def traced(monkeypatch):
    """One entry for every trace."""
    traces, own = [], captured.record
    monkeypatch.setattr(captured, "record", lambda *args, **kwargs: traces.append(1) or own(*args, **kwargs))
    return traces


def assert_same(found, expected):
    for name, value in expected.columns().items():
        assert torch.equal(found.columns()[name], value), name
    assert torch.equal(found.latent_variance, expected.latent_variance)


def train(module):
    """As an optimizer does."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter.device))


PRIORS = {
    "normal": lambda: pvae.Normal(3),
    "vamp": lambda: Vamp(3, 500),
    "resampled": lambda: Resampled(3, [8]),
    "energy": lambda: Energy(3, [8]),
}


def over_epochs(name, device, traced):
    guide, likelihood = pvae.MeanField(pvae.mlp(4, [8], 6), 3), pvae.Gaussian(pvae.mlp(3, [8], 4), (4,))
    vae, kept, seen = pvae.VAE(PRIORS[name](), likelihood, guide).to(device), Kept(), set()
    x = DATA.to(device)
    for epoch in range(3):
        vae.eval()
        found = evaluate(vae.model, vae.guide, x, particles=[1, 10], kept=kept)
        assert len(traced) == epoch + 1, "a kept graph was traced anew"
        assert None not in kept.graphs.values()
        assert_same(found, evaluate(vae.model, vae.guide, x, particles=[1, 10]))
        off = evaluate(vae.model, vae.guide, x, particles=[1, 10], compile="off")
        torch.testing.assert_close(found.iw[10], off.iw[10])
        seen.add(found.iw[10].mean().item())
        vae.train()
        train(vae)
    assert len(seen) == 3


@pytest.mark.parametrize("name", PRIORS)
def test_over_epochs_they_give_what_fresh_ones_give(name, traced):
    over_epochs(name, "cpu", traced)


@pytest.mark.cuda
@pytest.mark.parametrize("name", PRIORS)
def test_over_epochs_they_give_what_fresh_ones_give_on_a_device(name, traced):
    over_epochs(name, "cuda", traced)


def replaced(program):
    program.decoder.bias = nn.Parameter(program.decoder.bias.detach() + 1)


def moved(program):
    program.decoder.bias.data = program.decoder.bias.detach() + 1


def other_buffer(program):
    program.shift = program.shift + 1


def moved_buffer(program):
    program.shift.data = program.shift + 1


def changed_buffer(program):
    program.shift.add_(1)


def other_layer(program):
    program.encoder = nn.Linear(4, 6).to(program.shift.device)


def assigned(program):
    program.load_state_dict({name: value + 0.5 for name, value in program.state_dict().items()}, assign=True)


def loaded(program):
    program.load_state_dict({name: value + 0.5 for name, value in program.state_dict().items()})


def other_number(program):
    program.factor = 1.0001


def number_on_the_cpu(program):
    program.on_the_cpu.fill_(1.00001)


def unseen(program):
    os.environ["PVAE_TEST_MEAN"] = "0.3"


CHANGES = {
    "in place": (train, 1),
    "loaded": (loaded, 1),
    "a buffer in place": (changed_buffer, 1),
    "a number": (other_number, 2),
    "a number on the CPU": (number_on_the_cpu, {"cpu": 1, "cuda": 2}),
    "a parameter replaced": (replaced, 2),
    "a parameter's memory": (moved, 2),
    "a buffer replaced": (other_buffer, 2),
    "a buffer's memory": (moved_buffer, 2),
    "parameters assigned": (assigned, 2),
    "a layer": (other_layer, 2),
    "dropout": (nn.Module.train, 2),
    "the numbers' kind": (nn.Module.double, 2),
    "what nobody looks at": (unseen, 2),
}
"""What happens between two evaluations, and how many graphs these make."""


def after_change(name, device, traced, monkeypatch):
    monkeypatch.setenv("PVAE_TEST_MEAN", "0")
    program, kept, (change, graphs) = Program().to(device).eval(), Kept(), CHANGES[name]
    before = evaluate(program.model, program.guide, DATA.to(device), particles=[10], kept=kept)
    change(program)
    x = DATA.to(device, program.shift.dtype)
    found = evaluate(program.model, program.guide, x, particles=[10], kept=kept)
    assert len(traced) == (graphs if isinstance(graphs, int) else graphs[device])
    assert_same(found, evaluate(program.model, program.guide, x, particles=[10]))
    assert not torch.equal(found.elbo, before.elbo)


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_evaluations_is_in_their_numbers(name, traced, monkeypatch):
    after_change(name, "cpu", traced, monkeypatch)


@pytest.mark.cuda
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_evaluations_is_in_their_numbers_on_a_device(name, traced, monkeypatch, cuda):
    if cuda is not None and name.endswith("memory"):
        pytest.skip("other memory for the same tensor is not emulated")
    after_change(name, "cuda", traced, monkeypatch)


def test_other_programs_data_and_draws_have_graphs_of_their_own(traced):
    first, kept, made = Program().eval(), Kept(), []
    second = copy.deepcopy(first)
    second.factor = 1.00001
    for program, options in [
        (first, {"particles": [10]}),
        (first, {"particles": [11]}),
        (first, {"particles": [10], "chunk": 640}),
        (first, {"particles": [11]}),
        (second, {"particles": [11]}),
        (first, {"particles": [11]}),
    ]:
        traced.clear()
        found = evaluate(program.model, program.guide, DATA, kept=kept, **options)
        made.append(len(traced))
        assert_same(found, evaluate(program.model, program.guide, DATA, **options))
    assert made == [1, 1, 1, 0, 1, 1]


def test_what_is_to_be_compiled_has_a_graph_of_its_own(monkeypatch):
    asked, own = [], captured.replayed

    def noted(*args, compile, guards):
        asked.append(compile)
        return own(*args, guards=guards)

    monkeypatch.setattr("pvae.cells.replayed", noted)
    program, kept = Program().eval(), Kept()
    for mode in ("graph", "full", "off", "graph", "full"):
        evaluate(program.model, program.guide, DATA, particles=[2], compile=mode, kept=kept)
    assert asked == [False, True]


def test_draws_that_are_not_torchs_are_made_anew_in_every_cell():
    """A graph would have those of the run that it was written down from."""
    program = Program().eval()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[:, :3]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(program.decoder(z) + np.random.rand(), 1.0).to_event(1), obs=x)

    found = evaluate(model, program.guide, DATA[:1].expand(N, 4), particles=[200])
    cells = found.distortion[: CELL * TRACED_AFTER].view(TRACED_AFTER, CELL).mean(1)
    assert cells.std() > 0.1


def test_after_an_evaluation_that_failed_what_is_found_once_is_found_anew():
    prior, guide = Resampled(3, [8]), pvae.MeanField(pvae.mlp(4, [8], 6), 3)
    vae, kept = pvae.VAE(prior, pvae.Gaussian(pvae.mlp(3, [8], 4), (4,)), guide).eval(), Kept()
    evaluate(vae.model, vae.guide, DATA, particles=[10], kept=kept)
    with torch.no_grad():
        prior.network[0].bias.add_(1e-4)
    with pytest.raises(pvae.InputError, match=r"expected \(data, 4\)"):
        evaluate(vae.model, vae.guide, DATA[:, :3], particles=[10], kept=kept)
    found = evaluate(vae.model, vae.guide, DATA, particles=[10], kept=kept)
    assert_same(found, evaluate(vae.model, vae.guide, DATA, particles=[10]))


def fails(values):
    raise RuntimeError("shape '[3]' is invalid for input of size 2")


WRONG = {
    "numbers": lambda values: tuple(1.001 * value for value in values),
    "shapes": lambda values: tuple(value[:1] for value in values),
    "an error": fails,
}


@pytest.mark.parametrize("how", WRONG)
def test_a_graph_that_is_wrong_is_not_used_nor_made_again(how, monkeypatch):
    program, made, own = Program().eval(), [], captured.replayed
    x, expected = DATA, evaluate(program.model, program.guide, DATA, particles=[10], compile="off")

    def wrong(*args, **options):
        graph = own(*args, **options)
        made.append(graph)
        return lambda *inputs: WRONG[how](graph(*inputs))

    monkeypatch.setattr("pvae.cells.replayed", wrong)
    kept = Kept()
    for _ in range(2):
        assert_same(evaluate(program.model, program.guide, x, particles=[10], kept=kept), expected)
    assert list(kept.graphs.values()) == [None]
    assert len(made) == 1


@pytest.mark.cuda
def test_memory_on_a_device_is_that_of_one_cell(cuda):
    if cuda is None:
        pytest.skip("what is counted here is emulated")
    program, x, kept = Program().cuda().eval(), DATA.cuda(), Kept()
    evaluate(program.model, program.guide, x, particles=[10], kept=kept)
    before = cuda.allocated()
    kept.graphs.clear()
    assert before - cuda.allocated() < 30 * 4 * 10 * CELL * 4


# A fit ----------------------------------------------------------------------------------------------------------------

FIT = ["--data", "some.npz", "--epochs", "3", "--validation", "0.85", "--test", "0.01", "--batch-size", "50"]
FIT += [
    "--encoder.hidden",
    "4",
    "--decoder.hidden",
    "4",
    "--latent",
    "3",
    "--eval-particles",
    "2",
    "--compile",
    "graph",
]


@pytest.mark.cuda
@pytest.mark.parametrize("prior", ["vamp", pytest.param("resampled", marks=pytest.mark.slow)])
def test_a_fit_validates_alike_with_kept_graphs_without_and_resumed(prior, traced, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)
    np.savez("some.npz", x=np.random.default_rng(0).integers(0, 2, (1000, 4)).astype(np.uint8))
    made = [*FIT, "--prior", prior, "--device", "cuda"]

    def validated(name, *options):
        assert fit.main([*options, *([] if "--resume" in options else ["--out", name])]) == 0
        return [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]

    whole = validated("kept", *made)
    kept = len(traced)
    assert len({record["validation.elbo"] for record in whole}) == 3
    assert validated("kept", "--resume", sorted(map(str, Path("kept/checkpoints").iterdir()))[0]) == whole
    traced.clear()
    monkeypatch.setattr(Kept, "look", lambda self, programs: self.__init__())
    assert validated("fresh", *made) == whole
    assert len(traced) == kept + 2
