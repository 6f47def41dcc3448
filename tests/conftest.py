import os
import shutil
import sys
from pathlib import Path

import pyro
import pytest
import torch
from commands import SMALL, quick
from emulated_cuda import emulated

import pvae
from pvae import base, fit

torch.set_num_threads(1)  # networks this small gain nothing from more, and workers would fight


def pytest_generate_tests(metafunc):
    """Tests of a CUDA device run on one; where there is none, on one that is emulated, if that can do it."""
    marks = [mark for mark in metafunc.definition.iter_markers() if mark.name == "cuda"]
    if marks:
        there = torch.cuda.is_available()
        real = pytest.param(False, id="real", marks=pytest.mark.skipif(not there, reason="no CUDA device"))
        other = pytest.param(True, id="emulated", marks=pytest.mark.skipif(there, reason="there is a CUDA device"))
        every = [real, other] if marks[0].kwargs.get("emulated", True) else [real]
        metafunc.parametrize("cuda", every, indirect=True)


@pytest.fixture(autouse=True)
def cuda(request):
    """The emulated device; None on a real one, and in a test that asks for none."""
    if not getattr(request, "param", False):
        yield None
        return
    with emulated() as device:
        yield device


@pytest.fixture(autouse=True)
def _forgotten(tmp_path_factory):
    """What a test imports from its own folder is forgotten: the next one's has the same name."""
    before, folder = set(sys.modules), tmp_path_factory.getbasetemp()
    yield
    for name in set(sys.modules) - before:
        own = vars(sys.modules[name])  # asked for what it has not, a lazy module may import it
        places = [own.get("__file__"), *own.get("__path__", ())]
        if any(place and Path(place).is_relative_to(folder) for place in places):
            del sys.modules[name]
    base._imported.clear()


@pytest.fixture(autouse=True)
def _seeded():
    pyro.clear_param_store()
    base._scopes.clear()  # a module of another test that is still alive would make this one's names "guide2"
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()  # examples in docstrings know no fixtures, and may come next


@pytest.fixture(autouse=True)
def _validated():
    """Distributions are validated after a test as before it: `torch.compile` turns that off, and importing zuko."""
    before = torch.distributions.Distribution._validate_args
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


@pytest.fixture
def real_data():
    """The folder of real data: MNIST and Frey Faces."""
    for path in (os.environ.get("PVAE_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if path and Path(path).is_dir():
            return Path(path)
    pytest.skip("no real data: neither $PVAE_DATA nor ../shared/data is a folder")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of the user's, to be in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow where others write to the same disk
    return tmp_path


@pytest.fixture
def plain(monkeypatch):
    """Fits that draw no figures."""
    quick(monkeypatch)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small run on the digits that was not interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        assert fit.main([*SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run(finished, here):
    """A copy of it, to harm."""
    return Path(shutil.copytree(finished, here / "run"))


@pytest.fixture
def x():
    return torch.bernoulli(torch.rand(7, 4, 5))


@pytest.fixture
def vae():
    return make_vae()


@pytest.fixture
def new_vae():
    """Makes VAEs: (seed, latent, shape, likelihood)."""
    return make_vae


def make_vae(seed=0, latent=3, shape=(4, 5), likelihood=pvae.Bernoulli):
    torch.manual_seed(seed)
    decoder = pvae.MLPDecoder(latent, shape, [16])
    encoder = pvae.MLPEncoder(shape, 2 * latent, [16])
    return pvae.VAE(pvae.Normal(latent), likelihood(decoder, shape), pvae.MeanField(encoder, latent))
