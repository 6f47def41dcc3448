"""What is advised for data that a likelihood does not score works when it is followed."""

import re

import numpy as np
import pytest
import torch

from pvae import build, config
from pvae.base import members
from pvae.errors import InputError
from pvae.load import read_data

RNG = np.random.default_rng(0)
UNIT, LEVELS = RNG.random((40, 4)).astype(np.float32), RNG.integers(0, 256, (40, 4)).astype(np.uint8)
DATA = {
    "uint8": LEVELS,
    "bool": UNIT > 0.5,
    "binary": (UNIT > 0.5).astype(np.float32),
    "inside": 0.9 * UNIT + 0.05,
    "edges": UNIT.round(1),
    "levels": LEVELS.astype(np.float32) / 255,
    "16ths": (16 * UNIT).round() / 16,
    "counts": RNG.poisson(3, (40, 4)).astype(np.int32),
    "large counts": LEVELS.astype(np.float32),
    "signed": 2 * UNIT - 1,
    "huge": 1e30 * UNIT,
}
ASKED = [{}, {"binarize": "dynamic"}, {"binarize": "none"}, {"dequantize": "uniform"}, {"dequantize": "none"}]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, x in DATA.items():
        np.savez(folder / f"{name}.npz", x=x)
    return {name: str(folder / f"{name}.npz") for name in DATA}


def made(given):
    """What a fit makes before its first step, or the error in its stead."""
    try:
        settings = config.from_flat({"latent": 2, "encoder.hidden": 4, "decoder.hidden": 4, **given})
        torch.manual_seed(0)
        return build.model(settings, read_data(settings))
    except InputError as error:
        return str(error)


def advice(message):
    """The options in each piece of advice: a word alone is another value of the option before it."""
    message, _, also = message.partition("; for numbers as they are pass ")
    options = re.findall(r"--([\w.]+) (\w+)", also)
    family = None
    for words in re.findall(r"`([^`]+)`", message):
        pairs = re.findall(r"--([\w.]+) (\w+)", words)
        family = pairs[0][0] if pairs else family
        yield {**dict(pairs or [(family, words)]), **dict(options)}


@pytest.mark.parametrize("likelihood", members("likelihood"))
@pytest.mark.parametrize("kind", DATA)
def test_advice_works(likelihood, kind, paths):
    for asked in ASKED:
        given = {"data": paths[kind], "likelihood": likelihood, **asked}
        message = made(given)
        if not isinstance(message, str):
            continue
        assert "\n" not in message
        found = list(advice(message))
        assert found or "leave it out" in message or message.startswith("--") or "rescale the data" in message
        for options in found:
            result = made({**given, **options})
            assert not isinstance(result, str), (given, message, options, result)


def test_what_is_advised_fits_the_data(paths):
    def said(likelihood, kind, **asked):
        return made({"data": paths[kind], "likelihood": likelihood, **asked}).partition(".npz: ")[2]

    assert said("beta", "inside").endswith("store them so, or pass `--dequantize none` for numbers as they are")
    assert re.search(
        r"inside \(0, 1\), as beta scores: pass `--likelihood continuous_bernoulli`, or", said("beta", "edges")
    )
    assert said("beta", "uint8", dequantize="none").endswith(
        "`--dequantize uniform`, or `--likelihood continuous_bernoulli`"
    )
    assert said("categorical", "16ths").endswith("all data are of 17 levels: pass `--likelihood.levels 17`")
    assert "`--likelihood binomial --likelihood.total 255`" in said("beta", "large counts")
    dynamic = said("gaussian", "signed", binarize="dynamic")
    assert dynamic.endswith("rescale the data to [0, 1]; for numbers as they are pass `--binarize none` too")
    assert "as gaussian scores" not in dynamic
    assert re.search(
        r"expected a finite number, less than 1e\+09 in size: .* rescale the data$", said("gaussian", "huge")
    )


def test_levels_that_need_dequantizing_are_not_binarized(paths):
    given = {"data": paths["uint8"], "binarize": "dynamic"}
    assert made({**given, "likelihood": "beta"}).endswith("expected one of the two: pass --binarize none")
    both = made({**given, "likelihood": "gaussian", "dequantize": "uniform"})
    assert both.endswith("pass --binarize none or --dequantize none")
