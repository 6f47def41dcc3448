"""Pixels, binarization, the batch order, and the checks of what comes in."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from pictures import floats, refused, same
from watching import never_waiting

from pvae import data
from pvae.data import Dataset, Split, batches, binarize, check, fix_binarization, load, order, pixels


def test_pixels():
    x = torch.arange(256, dtype=torch.uint8)
    assert pixels(x).dtype == torch.float32
    assert pixels(x)[[0, 255]].tolist() == [0, 1]
    assert torch.equal((pixels(x) * 255).round().byte(), x)
    y = torch.rand(3)
    assert pixels(y) is y


def test_pixels_and_binarize_are_traceable():
    x = torch.arange(256, dtype=torch.uint8)
    traced = torch.compile(lambda x: binarize(pixels(x), "dynamic"), backend="eager", fullgraph=True)
    assert set(traced(x).unique().tolist()) == {0, 1}


def test_binarize_draws_with_the_right_mean():
    grey = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).expand(100_000, 5)
    drawn = binarize(grey, "dynamic", torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {0, 1}
    assert drawn.mean(0).tolist() == pytest.approx(grey[0].tolist(), abs=5 * 0.5 / 100_000**0.5)
    assert drawn.mean(0)[[0, 4]].tolist() == [0, 1]
    assert torch.equal(drawn, binarize(grey, "static", torch.Generator().manual_seed(0)))


def test_binarize_otherwise():
    x = torch.tensor([0.0, 0.5, 0.51, 1.0])
    assert binarize(x, "threshold").tolist() == [0, 0, 1, 1]
    assert binarize(x, "none") is x


@pytest.mark.parametrize("call", [lambda m: binarize(torch.ones(2), m), lambda m: fix_binarization(load(), m, 0)])
def test_unknown_mode(call):
    with refused("binarize: unknown mode 'dynamik': did you mean 'dynamic'? known: dynamic, none, static, threshold"):
        call("dynamik")


BINARY = {"dynamic": {"validation", "test"}, "static": set(data.PARTS), "threshold": set(data.PARTS), "none": set()}


@pytest.mark.parametrize("mode", data.BINARIZATIONS)
def test_fix_binarization(mode):
    digits = load()
    torch.manual_seed(1)
    fixed = fix_binarization(digits, mode, seed=5)
    torch.manual_seed(2)
    assert same(fixed, fix_binarization(digits, mode, seed=5))
    for part in data.PARTS:
        before, after = getattr(digits, part), getattr(fixed, part)
        assert after.y is before.y
        if part in BINARY[mode]:
            assert after.x.dtype == torch.uint8
            assert after.x.unique().tolist() == [0, 255]
            assert pixels(after.x).unique().tolist() == [0, 1]
            assert torch.equal(binarize(pixels(after.x), "dynamic"), pixels(after.x))
        else:
            assert after.x is before.x
    assert fixed.sha256 == digits.sha256
    assert mode in ("threshold", "none") or not same(fixed, fix_binarization(digits, mode, seed=6))


def test_fixed_draws_have_the_right_mean_in_every_block():
    shades = torch.tensor([0, 51, 102, 255], dtype=torch.uint8)
    x = shades.expand(10_000, 4)
    fixed = fix_binarization(Dataset("mine", Split(x, None), Split(x[:0], None), Split(x, None), ""), "static", 0)
    assert pixels(fixed.train.x).mean(0).tolist() == pytest.approx([0, 0.2, 0.4, 1], abs=5 * 0.5 / 100)
    assert len(fixed.validation.x) == 0
    assert not torch.equal(fixed.train.x, fixed.test.x)
    assert not torch.equal(fixed.train.x[:4096], fixed.train.x[4096:8192])


def test_threshold_agrees_with_binarize():
    digits = load()
    fixed = fix_binarization(digits, "threshold", seed=0)
    assert torch.equal(pixels(fixed.test.x), binarize(digits.test.x, "threshold"))


# ---- the batch order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_order_is_a_permutation(n):
    drawn = order(n, seed=3, epoch=2)
    assert drawn.dtype == torch.int64
    assert drawn.sort().values.tolist() == list(range(n))


def test_order_is_a_function_of_its_arguments():
    torch.manual_seed(1)
    a = order(100, 0, 0)
    torch.manual_seed(2)
    assert torch.equal(a, order(100, 0, 0))
    others = {tuple(order(100, seed, epoch).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(others) == 100
    assert order(10, 0, 0).tolist() == [9, 6, 0, 2, 1, 4, 7, 5, 3, 8]


def test_order_is_uniform():
    places = torch.stack([order(4, seed, epoch) for seed in range(60) for epoch in range(100)])
    counts = torch.stack([(places == i).sum(0) for i in range(4)]) / len(places)
    assert counts.flatten().tolist() == pytest.approx([0.25] * 16, abs=5 * (0.25 * 0.75 / 6000) ** 0.5)


def test_batches_cover_the_epoch_once():
    x = torch.arange(23).reshape(23, 1)
    found = list(batches(Split(x, x[:, 0]), 5, seed=1, epoch=2))
    assert [len(b) for b, _ in found] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat([b for b, _ in found])[:, 0], order(23, 1, 2))
    assert all(torch.equal(b[:, 0], y) for b, y in found)


@pytest.mark.parametrize("start", [0, 2, 4, 5, 9])
def test_batches_resume(start):
    split = Split(torch.rand(23, 4), None)
    whole, rest = (list(batches(split, 5, 1, 2, start=s)) for s in (0, start))
    assert len(rest) == max(5 - start, 0)
    assert all(torch.equal(a, b) and y is None for (a, y), (b, _) in zip(rest, whole[start:], strict=True))


def test_batches_keep_the_stored_dtype():
    x, _ = next(batches(Split(torch.zeros(5, 2, 2, dtype=torch.uint8), None), 9, 0, 0))
    assert x.dtype == torch.uint8
    assert x.shape == (5, 2, 2)
    assert not list(batches(Split(torch.zeros(0, 2), None), 9, 0, 0))


def test_batches_refuse_at_the_call():
    with refused("batch size: found 0, expected at least 1"):
        batches(load().test, 0, 0, 0)
    with refused("start: found -1, expected at least 0"):
        batches(load().test, 10, 0, 0, start=-1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_device():
    digits = load()
    there = digits.to("cuda")
    assert same(fix_binarization(there, "static", 0).to("cpu"), fix_binarization(digits, "static", 0))
    wanted = list(batches(digits.train, 100, 0, 0))
    with never_waiting():
        found = [(pixels(x), y) for x, y in batches(there.train, 100, 0, 0)]
    assert all(torch.equal(a.cpu(), b) for (a, _), (b, _) in zip(found, wanted, strict=True))


# ---- the checks at the door -----------------------------------------------------------------------------------


SUPPORTS = ("real", "unit_interval", "binary")


@pytest.mark.parametrize(
    ("x", "narrowest"),
    [
        (torch.tensor([[-3.0, 16.0]]), 0),
        (torch.tensor([[0.0, 0.5, 1.0]]), 1),
        (torch.tensor([[0.0, 1.0]]), 2),
        (torch.arange(256, dtype=torch.uint8).reshape(1, 256), 1),
        (torch.tensor([[0, 255]], dtype=torch.uint8), 2),
        (torch.zeros(0, 2), 2),
    ],
    ids=["real", "unit interval", "binary", "grey uint8", "binary uint8", "empty"],
)
def test_check_holds_up_to_the_narrowest_support(x, narrowest):
    dataset = Dataset("mine", Split(x, None), Split(x[:0], None), Split(x, None), "")
    for i, support in enumerate(SUPPORTS):
        if i <= narrowest:
            check(dataset, support=support)
        else:
            with refused("mine: datum 0 of the train part"):
                check(dataset, support=support)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("support", SUPPORTS)
def test_check_finite(value, support):
    x = torch.zeros(9, 4, 3)
    x[7, 2, 1] = value
    with refused(f"mine: datum 7 of the train part, position (2, 1): found {value:g}, expected a finite number"):
        check(floats(x), support=support)


@pytest.mark.parametrize("value", [16.0, -0.5])
@pytest.mark.parametrize("support", SUPPORTS[1:])
def test_check_unit_interval(value, support):
    x = torch.rand(9, 4).round()
    x[5, 3] = x[6, 0] = value
    text = f"mine: datum 5 of the train part, position (3): found {value:g}, expected a pixel in [0, 1]"
    with refused(text) as error:
        check(floats(x), support=support)
    assert "--likelihood gaussian" in str(error.value)
    with refused(text):
        fix_binarization(floats(x), "dynamic", 0)


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (torch.tensor([[0, 255], [51, 128]], dtype=torch.uint8), "0.2"),
        (torch.tensor([[0.0, 1], [0.9999999, 0]]), "0.9999999"),
    ],
    ids=["uint8", "float"],
)
def test_check_binary(x, found):
    dataset = Dataset("mine", Split(x[:1], None), Split(x[:0], None), Split(x, None), "")
    with refused(f"mine: datum 1 of the test part, position (0): found {found}, expected 0 or 1") as error:
        check(dataset, support="binary")
    for advice in ("--binarize dynamic", "static", "threshold", "--likelihood gaussian"):
        assert advice in str(error.value)
    check(fix_binarization(dataset, "static", 0), support="binary")


def test_check_unknown_support():
    with refused("support: unknown name 'binari': did you mean 'binary'? known: binary, counts, levels, open_unit"):
        check(load(), support="binari")


def test_overflow_is_found(tmp_path):
    np.save(tmp_path / "mine.npy", np.full((5, 2), 1e300))
    with refused("x: found 1e+300 at [0, 0], expected numbers within float32's range"):
        load(str(tmp_path / "mine.npy"))


def test_a_bad_pixel_is_named_by_its_place_in_the_file(tmp_path):
    x = np.zeros((30, 4))
    x[17, 2] = 3
    np.save(tmp_path / "mine.npy", x)
    load(str(tmp_path / "mine.npy"))
    with refused("mine.npy: datum 17, position (2): found 3, expected a pixel in [0, 1]"):
        load(str(tmp_path / "mine.npy"), support="unit_interval")


def test_import_is_lean():
    code = "import sys, pvae.data; print([m for m in ('torchvision', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stored_pixels_are_drawn_with_their_own_probability():
    x = torch.tensor([0, 1, 51, 254, 255], dtype=torch.uint8).expand(100_000, 5)
    drawn = data.binarize(x, "dynamic")
    assert drawn.dtype == torch.float32
    p = data.pixels(x[0])
    se = (p * (1 - p) / len(x)).sqrt()
    assert ((drawn.mean(0) - p).abs() <= 4 * se).all()  # 0 and 255 exactly
    assert torch.equal(data.binarize(x, "threshold")[0], torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]))
    assert torch.equal(data.binarize(x, "none"), data.pixels(x))
