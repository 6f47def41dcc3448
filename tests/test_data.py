import gzip
import os
import pickle
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from pictures import floats, grey, labels, refused, same
from PIL import Image

from pvae import data
from pvae.data import batches, fix_binarization, load, order, pixels

SHARED = Path(os.environ.get("PVAE_DATA") or Path(__file__).parents[2] / "shared" / "data")
DIGITS_SHA256 = "b818888a5106e524533f4efbe3284fbfc6a190d036680e36ec2a1f13a88fa325"
MNIST_SHA256 = "e196c835b1e00872372085abc6ca9b0f48f28f67f5b38d2c04bf2d7d4a9db0cb"


def needs(name):
    where = SHARED / name
    return pytest.mark.skipif(not where.exists(), reason=f"{where} is not there (it is found through PVAE_DATA)")


def everything(dataset, field="x"):
    return torch.cat([getattr(getattr(dataset, part), field) for part in data.PARTS])


# ---- named sets -----------------------------------------------------------------------------------------------


def test_digits():
    digits = load()
    assert digits.name == "digits"
    assert digits.shape == (8, 8)
    assert digits.sizes == {"train": 1294, "validation": 144, "test": 359}
    assert digits.train.x.dtype == torch.float32
    assert digits.train.y.dtype == torch.int64
    assert sorted(digits.train.y.unique().tolist()) == list(range(10))
    assert everything(digits).min() == 0
    assert everything(digits).max() == 1
    assert digits.sha256 == DIGITS_SHA256


def test_named():
    assert data.NAMED == ("digits", "mnist", "fashion-mnist", "kmnist", "emnist", "omniglot", "cifar10", "svhn")


@needs("MNIST")
def test_mnist_is_read_in_place():
    mnist = load("mnist", SHARED)
    assert mnist.sizes == {"train": 54000, "validation": 6000, "test": 10000}
    assert mnist.shape == (28, 28)
    assert mnist.train.x.dtype == torch.uint8
    assert mnist.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.sha256 == MNIST_SHA256
    assert load("mnist", SHARED, validation=0, seed=3).train.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert pixels(mnist.test.x).mean().item() == pytest.approx(0.1325, abs=1e-3)


@needs("MNIST")
def test_mnist_is_what_torchvision_reads(tmp_path):
    from torchvision.datasets import MNIST

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (SHARED / "MNIST" / "raw").glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    theirs = MNIST(tmp_path, train=False, download=False)
    ours = load("mnist", tmp_path)
    assert torch.equal(ours.test.x, theirs.data)
    assert torch.equal(ours.test.y, theirs.targets)
    assert ours.sha256 == MNIST_SHA256


@needs("freyfaces.npz")
def test_frey_faces():
    faces = load(str(SHARED / "freyfaces.npz"))
    assert faces.shape == (28, 20)
    assert sum(faces.sizes.values()) == 1965
    assert faces.train.x.dtype == torch.uint8
    assert faces.train.y is None


def write_idx(path, array, packed=False):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = head + array.astype(np.uint8).tobytes()
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


IDX = {
    "mnist": ("MNIST", "train", "t10k"),
    "fashion-mnist": ("FashionMNIST", "train", "t10k"),
    "kmnist": ("KMNIST", "train", "t10k"),
    "emnist": ("EMNIST", "emnist-balanced-train", "emnist-balanced-test"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
@pytest.mark.parametrize("name", IDX)
def test_idx_sets(tmp_path, name, packed):
    folder, *prefixes = IDX[name]
    x, y = grey(30, (28, 28)), labels(30)
    for prefix, rows in zip(prefixes, (slice(0, 20), slice(20, 30)), strict=True):
        write_idx(tmp_path / folder / "raw" / f"{prefix}-images-idx3-ubyte", x[rows], packed)
        write_idx(tmp_path / folder / "raw" / f"{prefix}-labels-idx1-ubyte", y[rows], packed)
    loaded = load(name, tmp_path, validation=0)
    upright = x.transpose(0, 2, 1) if name == "emnist" else x
    assert np.array_equal(loaded.train.x, upright[:20])
    assert np.array_equal(loaded.test.x, upright[20:])
    assert np.array_equal(loaded.test.y, y[20:])


def test_data_dir_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PVAE_DATA", str(tmp_path))
    with refused(str(tmp_path / "MNIST" / "raw")):
        monkeypatch.setattr(urllib.request, "urlopen", no_network)
        load("mnist")


def test_cifar10(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = grey(5, (3, 32, 32))
    for file, _ in CIFAR10.train_list + CIFAR10.test_list:
        with (folder / file).open("wb") as f:
            pickle.dump({"data": images.reshape(5, -1), "labels": [0, 1, 2, 0, 1]}, f)
    with (folder / "batches.meta").open("wb") as f:
        pickle.dump({"label_names": ["a", "b", "c"]}, f)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    cifar = load("cifar10", tmp_path, validation=0.2)
    assert cifar.sizes == {"train": 20, "validation": 5, "test": 5}
    assert np.array_equal(cifar.test.x, images)
    assert cifar.test.y.tolist() == [0, 1, 2, 0, 1]


def test_svhn(tmp_path, monkeypatch):
    import scipy.io

    images = grey(6, (32, 32, 3))
    for part in ("train", "test"):
        content = {"X": images.transpose(1, 2, 3, 0), "y": np.array([[10], [1], [2], [3], [4], [5]])}
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", content)
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *args: True)
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", lambda *args: True)
    svhn = load("svhn", tmp_path)
    assert svhn.shape == (3, 32, 32)
    assert np.array_equal(svhn.test.x, images.transpose(0, 3, 1, 2))
    assert svhn.test.y.tolist() == [0, 1, 2, 3, 4, 5]


def test_omniglot(tmp_path, monkeypatch):
    for part in ("images_background", "images_evaluation"):
        for character in ("character01", "character02"):
            folder = tmp_path / "omniglot-py" / part / "Latin" / character
            folder.mkdir(parents=True)
            for i in range(3):
                image = Image.new("1", (105, 105), 1)
                image.paste(0, (40, 10, 60, 90))
                image.save(folder / f"{i}.png")
    monkeypatch.setattr("torchvision.datasets.omniglot.check_integrity", lambda *args: True)
    omniglot = load("omniglot", tmp_path, validation=0)
    assert omniglot.shape == (28, 28)
    assert omniglot.train.x.dtype == torch.uint8
    assert omniglot.train.x[0, 0, 0] == 0
    assert omniglot.train.x[0, 14, 13] == 255
    assert sorted(omniglot.train.y.unique().tolist()) == [0, 1]
    assert sorted(omniglot.test.y.unique().tolist()) == [2, 3]


def no_network(*args, **options):
    raise URLError("no network here")


@pytest.mark.parametrize("name", [name for name in data.NAMED if name != "digits"])
def test_download_fails(tmp_path, monkeypatch, name):
    expected = {"omniglot": "images_background.zip", "cifar10": "cifar-10-batches-py", "svhn": "train_32x32.mat"}
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with refused("no network here") as error:
        load(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "could not be downloaded" in str(error.value)
    assert "place there by hand" in str(error.value)
    assert expected.get(name, "images-idx3-ubyte") in str(error.value)


@pytest.mark.parametrize("name", [name for name in data.NAMED if name != "digits"])
def test_a_download_that_fails_leaves_no_folder_and_takes_none(tmp_path, monkeypatch, name):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    (tmp_path / "before" / "EMNIST" / "raw").mkdir(parents=True)
    (tmp_path / "before" / "omniglot-py").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for folder in ("before", "new/folder"):
        with refused("could not be downloaded"):
            load(name, tmp_path / folder)
        assert sorted(tmp_path.rglob("*")) == before


def test_what_a_download_that_fails_has_fetched_stays(tmp_path, monkeypatch):
    def fetch(self):
        (tmp_path / "new" / "MNIST" / "raw").mkdir(parents=True)
        (tmp_path / "new" / "MNIST" / "part").touch()
        no_network()

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fetch)
    with refused("could not be downloaded"):
        load("mnist", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["MNIST", "new", "part"]


@pytest.mark.parametrize("content", [b"", b"no idx", b"\0\0\x08\x03\0\0\0\x05", bytes([0, 0, 8, 1, 0, 0, 0, 5, 1])])
@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
def test_damaged_idx(tmp_path, content, packed):
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-images-idx3-ubyte", grey(5), packed)
        write_idx(tmp_path / "MNIST" / "raw" / f"{prefix}-labels-idx1-ubyte", labels(5), packed)
    bad = tmp_path / "MNIST" / "raw" / ("t10k-images-idx3-ubyte" + ".gz" * packed)
    bad.write_bytes(content)
    with refused(f"{bad}: cannot be read"):
        load("mnist", tmp_path)


# ---- files ----------------------------------------------------------------------------------------------------

DTYPES = {
    "uint8": (np.uint8, torch.uint8),
    "bool": (bool, torch.uint8),
    "int64": (np.int64, torch.float32),
    "float16": (np.float16, torch.float32),
    "float64": (np.float64, torch.float32),
    "big-endian": (np.dtype(">f4"), torch.float32),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(tmp_path, dtype):
    before, after = DTYPES[dtype]
    array = (grey() > 100).astype(before)
    np.save(tmp_path / "mine.npy", array)
    mine = load(str(tmp_path / "mine.npy"))
    assert everything(mine).dtype == after
    assert pixels(everything(mine)).sum() == array.sum()
    assert (mine.note == "uint8 of 0 and 1, taken as such") == (dtype == "uint8")


def test_zeros_and_ones_are_told_from_dark_pixels_by_all_parts(tmp_path):
    x, folder = (grey() > 100).astype(np.uint8), tmp_path / "masks"
    folder.mkdir()
    for i, image in enumerate(x):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    assert everything(load(folder)).unique().tolist() == [0, 255]
    np.savez(tmp_path / "mine.npz", x_train=x, x_test=np.zeros_like(x))
    mine = load(tmp_path / "mine.npz")
    assert mine.train.x.unique().tolist() == [0, 255]
    assert not mine.test.x.any()
    np.savez(tmp_path / "mine.npz", x_train=x, x_test=2 * x)
    mine = load(tmp_path / "mine.npz")
    assert mine.train.x.unique().tolist() == [0, 1]
    assert mine.note == "uint8 up to 2, read as x / 255"
    np.savez(tmp_path / "mine.npz", x_train=x, x_test=255 * x)
    assert load(tmp_path / "mine.npz").note == ""
    np.savez(tmp_path / "mine.npz", x_train=0 * x, x_test=0 * x)
    assert load(tmp_path / "mine.npz").note == ""


def test_numbers_that_are_large_are_told_of_and_larger_ones_refused(tmp_path):
    x = np.random.default_rng(0).random((20, 3))
    for scale, note in ((900, ""), (1e6, "up to 1e+06 in size: standardize the data lest training diverge")):
        np.save(tmp_path / "mine.npy", -scale * x / x.max())
        assert load(tmp_path / "mine.npy").note == note
    np.save(tmp_path / "mine.npy", 1e6 * x.round())
    assert load(tmp_path / "mine.npy", support="counts").note == ""
    np.save(tmp_path / "mine.npy", 1e30 * x)
    with refused("expected a finite number, less than 1e+09 in size: mend or leave out that datum, or rescale"):
        load(tmp_path / "mine.npy")


def test_npz_with_labels(tmp_path):
    np.savez_compressed(tmp_path / "mine.npz", x=grey(), y=labels().astype(np.float32), other=np.zeros(3))
    mine = load(str(tmp_path / "mine.npz"), validation=0)
    assert mine.sizes == {"train": 16, "validation": 0, "test": 4}
    assert mine.shape == (4, 3)
    assert mine.train.y.dtype == torch.int64
    rows = {image.tobytes(): int(label) for image, label in zip(grey(), labels(), strict=True)}
    assert [rows[x.numpy().tobytes()] for x in mine.train.x] == mine.train.y.tolist()


def test_npz_of_one_array(tmp_path):
    np.savez(tmp_path / "mine.npz", images=grey())
    assert load(tmp_path / "mine.npz").source == "its array images"  # which a fit says
    assert load(tmp_path / "mine.npz").shape == (4, 3)
    np.savez(tmp_path / "mine.npz", x=grey(), images=grey())
    assert load(tmp_path / "mine.npz").source == "arrays left out: images"
    np.savez(tmp_path / "mine.npz", x=grey(), y=labels(), labels=labels())
    assert load(tmp_path / "mine.npz").source == "arrays left out: labels"
    np.savez(tmp_path / "mine.npz", x=grey(), y=labels())
    assert load(tmp_path / "mine.npz").source == load("digits").source == ""


def test_npz_in_parts(tmp_path):
    x, y = grey(30), labels(30)
    np.savez(tmp_path / "a.npz", x_train=x[:20], x_test=x[20:], y_train=y[:20], y_test=y[20:])
    mine = load(str(tmp_path / "a.npz"), test=0)
    assert mine.sizes == {"train": 18, "validation": 2, "test": 10}
    assert np.array_equal(mine.test.x, x[20:])
    np.savez(tmp_path / "b.npz", x_train=x[:20], x_validation=x[20:25], x_test=x[25:])
    mine = load(str(tmp_path / "b.npz"), validation=0.5)
    assert mine.sizes == {"train": 20, "validation": 5, "test": 5}
    assert np.array_equal(mine.validation.x, x[20:25])


def test_csv(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("1,2.5\n3,4\n5,6\n")
    mine = load(str(path), validation=0)
    assert sorted(everything(mine).tolist()) == [[1, 2.5], [3, 4], [5, 6]]
    assert mine.train.y is None
    path.write_text('\ufeff"a","Label",b\r\n1,0,2.5\r\n3,1,4\r\n5,2,6\r\n', encoding="utf-8")
    mine = load(str(path), validation=0)
    assert sorted(everything(mine).tolist()) == [[1, 2.5], [3, 4], [5, 6]]
    assert sorted(everything(mine, "y").tolist()) == [0, 1, 2]
    assert mine.source == "3 columns with a header, labels of column label"


# What a file begins with, above these rows; what is said of it; how many data and which columns are read.
ROWS = {
    "decimals": "{}0.5,1.5\n1,2.25\n0.75,2\n",
    "one": "{}0.5\n1.25\n0.75\n",
    "counts": "{}4,2\n3,0\n4,1\n",
    "five": "{}4,2,0,7,1\n3,0,1,0,1\n4,1,4,5,6\n",
    "rows": "{}0,0.5,1\n1,1,2\n2,3,4.5\n",
    "from one": "{}1,5,1\n2,1,2\n3,3,4\n",
}
TOPS = [
    ("decimals", "", "2 columns without a header", 3, 2),
    ("decimals", "a,b\n", "2 columns with a header", 3, 2),
    ("decimals", '"a,b",c\n', "2 columns with a header", 3, 2),
    ("decimals", "# made by R\n\na,b\n", "2 columns with a header", 3, 2),
    ("decimals", "# made by R\n", "2 columns without a header", 3, 2),
    ("decimals", "# a,b\n", "2 columns with a comment as a header", 3, 2),
    ("decimals", "# 1,2\n", "2 columns without a header", 3, 2),
    ("decimals", "0,1\n", "2 columns with its first row, 0 to 1, as a header", 3, 2),
    ("decimals", "2001,2002\n", "2 columns with its first row, 2001 to 2002, as a header", 3, 2),
    ("decimals", "2001.0,2002\n", "2 columns without a header", 4, 2),
    ("decimals", "7,7\n", "2 columns without a header", 4, 2),
    ("decimals", "-1,7\n", "2 columns without a header", 4, 2),
    ("decimals", "3,4\n8,9\n", "2 columns without a header", 5, 2),
    ("one", "5\n", "1 column without a header", 4, 1),
    ("one", "0\n", "1 column with its first row, 0, as a header", 3, 1),
    ("counts", "0,1\n", "2 columns without a header", 4, 2),
    ("counts", "2001,2002\n", "2 columns without a header", 4, 2),
    ("five", "0,1,2,3,4\n", "5 columns with its first row, 0 to 4, as a header", 3, 5),
    ("five", "1,2,3,4,5\n", "5 columns without a header", 4, 5),
    ("rows", ",a,b\n", "3 columns with a header, row numbers left out", 3, 2),
    ("rows", "Unnamed: 0,a,b\n", "3 columns with a header, row numbers left out", 3, 2),
    ("rows", ",0,1\n", "3 columns with its first row, 0 to 1, as a header, row numbers left out", 3, 2),
    ("rows", ",2001,2002\n", "3 columns with its first row, 2001 to 2002, as a header, row numbers left out", 3, 2),
    ("rows", "i,a,b\n", "3 columns with a header", 3, 3),
    ("rows", "", "3 columns without a header", 3, 3),
    ("from one", '"","a","b"\n', "3 columns with a header, row numbers left out", 3, 2),
    ("from one", ",0,1\n", "3 columns with its first row, 0 to 1, as a header, row numbers left out", 3, 2),
    ("from one", ",a,Y\n", "3 columns with a header, row numbers left out, labels of column y", 3, 1),
    ("five", ",a,b,c,d\n", "5 columns with a header", 3, 5),
    ("counts", "# label,a\n", "2 columns with a comment as a header, labels of column label", 3, 1),
]


@pytest.mark.parametrize(("rows", "top", "said", "count", "columns"), TOPS)
def test_what_a_csv_begins_with(tmp_path, rows, top, said, count, columns):
    (tmp_path / "mine.csv").write_text(ROWS[rows].format(top))
    mine = load(str(tmp_path / "mine.csv"), validation=0)
    assert mine.source == said
    assert (sum(mine.sizes.values()), mine.shape) == (count, (columns,))
    assert (mine.train.y is not None) == ("labels" in said)
    last = [float(cell) for cell in ROWS[rows].split()[-1].split(",")]
    kept = last[len(last) - columns :] if mine.train.y is None else last[1:][:columns]
    assert kept in everything(mine).tolist()


def write_images(folder, mode, names, size=(3, 4), suffix="png"):
    for i, name in enumerate(names):
        path = folder / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, color=i if mode in "LP" else (i, 0, 0, 9)[: len(mode)]).save(path)


def test_grey_images(tmp_path):
    write_images(tmp_path, "L", ["b", "a", ".hidden", "c"])
    (tmp_path / "notes.txt").write_text("not an image")
    mine = load(str(tmp_path), validation=0, test=0.1)
    assert mine.shape == (4, 3)
    assert sorted(everything(mine)[:, 0, 0].tolist()) == [0, 1, 3]
    assert mine.train.y is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_images_in_folders(tmp_path, mode):
    write_images(tmp_path, mode, ["dog/2", "cat/1", "cat/deep/3"])
    mine = load(str(tmp_path), validation=0, test=0.1)
    assert mine.shape == (3, 4, 3)
    found = zip(everything(mine)[:, 0, 0, 0].tolist(), everything(mine, "y").tolist(), strict=True)
    assert sorted(found) == [(0, 1), (1, 0), (2, 0)]
    assert mine.source == "labels: 0 = cat, 1 = dog"


FOLDERS = {
    "numbers": (range(12), range(12), ""),
    "some": (["3", "08"], [3, 8], ""),
    "dates": (["20260101", "9991231"], [1, 0], "labels: 0 = 9991231, 1 = 20260101"),
    "alike": (["1", "01"], [1, 0], "labels: 0 = 01, 1 = 1"),
    "signs": (["-1", "1"], [0, 1], "labels: 0 = -1, 1 = 1"),
    "beside": ([".", "b"], [0, 1], "labels: 0 = ., 1 = b"),
    "many": ([f"c{i:02}" for i in range(12)], range(12), "labels: 0 = c00, 1 = c01, 2 = c02, ..., 11 = c11"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_labels_are_the_numbers_that_folders_are_named_by_or_are_said(tmp_path, kind):
    names, expected, said = FOLDERS[kind]
    write_images(tmp_path, "L", [f"{name}/a" for name in names])
    mine = load(str(tmp_path), validation=0, test=0.1)
    found = zip(everything(mine)[:, 0, 0].tolist(), everything(mine, "y").tolist(), strict=True)
    assert [label for _, label in sorted(found)] == list(expected)
    assert mine.source == said


# ---- what is refused ------------------------------------------------------------------------------------------


def test_unknown_name():
    with refused("data: unknown name 'minst': did you mean 'mnist'? known: cifar10, digits, ") as error:
        load("minst")
    assert "or give a path to a .npz, .npy or .csv file or to a folder of images" in str(error.value)


def test_empty_name():
    with refused("data: unknown name '': known: cifar10, digits, "):
        load("")


@pytest.mark.parametrize(
    ("names", "wrong", "expected"),
    [
        ("x labels", "labels", "y"),
        ("x LABEL other", "LABEL", "y"),
        ("x x_test", "x_test", "x_train and x_test in place of x"),
        ("x_train x_test x_val", "x_val", "x_validation"),
        ("x_train x_test val_x", "val_x", "x_validation"),
        ("x_train x_test x_validation y_train y_test y_dev", "y_dev", "y_validation"),
        ("x_train x_test train_labels", "train_labels", "y_train"),
        ("x_train x_test y", "y", "y_train and y_test"),
        ("x_train x_test y_train y_test y_validation", "y_validation", "x_validation beside it"),
    ],
)
def test_an_array_whose_name_is_nearly_right(tmp_path, names, wrong, expected):
    np.savez(tmp_path / "mine.npz", **{name: grey() if "x" in name else labels() for name in names.split()})
    with refused(f"mine.npz: found an array {wrong}, expected {expected}: name them so, or save without {wrong}"):
        load(tmp_path / "mine.npz")


@pytest.mark.parametrize("path", ["missing.npz", "folder/missing"])
def test_missing_file(path):
    with refused(f"{path}: no such file or folder (looked for {Path(path).absolute()})"):
        load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "mine.csv")  # whoever opened it would wait
    with refused("mine.csv: found neither a file nor a folder, expected"):
        load(str(tmp_path / "mine.csv"))


def test_unknown_kind_of_file(tmp_path):
    (tmp_path / "mine.h5").write_bytes(b"")
    with refused("cannot read files of kind '.h5', expected a path to a .npz, .npy or .csv"):
        load(str(tmp_path / "mine.h5"))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("suffix", ["npz", "npy", "png"])
def test_truncated(tmp_path, suffix, kept):
    path = tmp_path / f"mine.{suffix}"
    if suffix == "png":
        Image.fromarray(grey(1, (40, 40))[0]).save(path)
    else:
        (np.save if suffix == "npy" else np.savez)(path, grey(200))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with refused(f"{path}: cannot be read"):
        load(str(tmp_path if suffix == "png" else path))


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_corrupt(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    (np.save if suffix == "npy" else np.savez_compressed)(path, grey(200))
    whole = path.read_bytes()
    path.write_bytes(b"\0" * 40 + whole[40:])
    with refused(f"{path}: cannot be read"):
        load(str(path))


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_pickled_arrays(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, np.array([grey(), None], dtype=object))
    with refused(f"{path}: cannot be read: found pickled objects or no array at all"):
        load(str(path))


CSVS = {
    "words": ("1,2\n3,four\n", "line 2, column 2: found 'four', expected a number: write it as one"),
    "ragged": ("1,2\n3,4\n5\n", "line 3: found 1 values, expected 2 as in the first row"),
    "ragged first": ("1,2,3\n3,4\n5,6\n", "line 2: found 2 values, expected 3 as in the first row"),
    "missing": ("1,\n3,4\n", "line 1, column 2: found '', a missing value, expected a number: fill it in"),
    "missing first": (",2\n3,4.5\n4,1.5\n", "line 1, column 1: found '', a missing value"),
    "missing whole": (",2\n3,4\n4,1\n", "line 1, column 1: found '', a missing value"),
    "missing, a header": ("\n# by R\na,b\n\n1,2\n3, NA\n", "line 6, column 2 (b): found ' NA', a missing value"),
    "semicolons": ("a;b\n1,5;2,5\n", "line 2: found ';' between the numbers, expected commas: export it with them"),
    "tabs": ("1\t2\n3\t4\n", "line 2: found a tab between the numbers, expected commas"),
    "spaces": ("1 2\n3 4\n", "line 2: found spaces between the numbers, expected commas"),
    "NUL": ("1,2\n\0,4\n", r"line 2, column 1: found '\x00', expected a number"),
    "an open quote": ('"a,b\n1,2\n3,4\n', "line 1: found nothing but one row, in which a quote holds several lines"),
    "label out of range": ("a,y\n1,1e30\n2,0\n", "y: found 1e+30 at 0, expected whole numbers as labels"),
    "word labels": ("a,label\n1,cat\n", "line 2, column 2 (label): found 'cat', expected whole numbers as labels"),
    "thousands": ('a,b\n1,"1,000"\n', "line 2, column 2 (b): found '1,000', expected a number"),
    "underscores": ("1,1_000\n2,3\n", "line 1, column 2: found '1_000', expected a number"),
    "missing, row numbers": (",0,1\n0,2.5,\n1,3.5,2\n", "line 2, column 3 (1): found '', a missing value"),
    "two lines of a header": ('"a\nb",c\n1,2\n3,x\n', "line 4, column 2 (c): found 'x'"),
    "comment of words": ("# a,b\n1,2\n3,x\n", "line 3, column 2: found 'x'"),
    "names": ("a,b,c\n1,2\n3,4\n", "found 3 names over 2 columns"),
    "empty": ("", "found 0 data, expected at least 2"),
    "header": ("a,b\n", "found 0 data, expected at least 2"),
    "one": ("a,b\n1,2\n", "found 1 data, expected at least 2"),
    "labels": ("x,y\n1,0\n2,0.5\n", "y: found 0.5 at 1, expected whole numbers as labels"),
    "only-labels": ("y\n1\n2\n", "x has shape (2, 0), expected (N, ...)"),
    "bytes": ("\udcff\udcfe,1\n", "found text that is not UTF-8"),
    "bytes below": ("1,2\n" * 9999 + "\udcff\udcfe,1\n", "found text that is not UTF-8"),
}


@pytest.mark.parametrize("case", CSVS)
def test_bad_csv(tmp_path, case):
    content, text = CSVS[case]
    path = tmp_path / "mine.csv"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with refused(text) as error:
        load(str(path))
    assert str(path) in str(error.value)


ARRAYS = {
    "complex": ({"x": np.ones((5, 2), complex)}, "x has dtype complex128, expected bool, integers or floats"),
    "strings": ({"x": np.full((5, 2), "a")}, "x has dtype <U1, expected bool, integers or floats"),
    "0-d": ({"x": np.array(1.0)}, "x has shape (), expected (N, ...)"),
    "1-d": ({"x": np.ones(5)}, "x has shape (5,), expected (N, ...)"),
    "no pixels": ({"x": np.ones((5, 0))}, "x has shape (5, 0), expected (N, ...)"),
    "empty": ({"x": np.ones((0, 2))}, "found 0 data, expected at least 2"),
    "one": ({"x": np.ones((1, 2))}, "found 1 data, expected at least 2"),
    "y length": ({"x": grey(), "y": labels(19)}, "y has shape (19,), expected (20,)"),
    "y 3-d": ({"x": grey(), "y": np.ones((20, 2, 2))}, "y has shape (20, 2, 2), expected (20,)"),
    "covariate NaN": (
        {"x": grey(), "y": np.full((20, 2), np.nan)},
        "y: found nan at [0, 0], expected finite",
    ),
    "covariate beyond": (
        {"x": grey(), "y": np.full((20, 2), -1e39)},
        "y: found -1e+39 at [0, 0], expected numbers within",
    ),
    "x beyond": (
        {"x": np.arange(40.0).reshape(20, 2) * 1e37},
        "x: found 3.5e+38 at [17, 1], expected numbers within float32's range, 3.4e38: rescale them to a size near 1",
    ),
    "y one-hot": ({"x": grey(), "y": np.eye(20, dtype=int)}, "y has shape (20, 20), expected (20,)"),
    "y strings": ({"x": grey(), "y": np.full(20, "a")}, "y has dtype <U1, expected whole numbers"),
    "y fractions": ({"x": grey(), "y": labels() / 2}, "y: found 0.5 at 1, expected whole numbers"),
    "y nan": ({"x": grey(), "y": np.full(20, np.inf)}, "y: found inf at 0, expected whole numbers"),
    "y huge": ({"x": grey(), "y": np.full(20, 2**63, np.uint64)}, "y: found 9.22337e+18 at 0, expected whole numbers"),
    "names": ({"a": grey(), "b": grey()}, "found arrays a, b; expected x (and y), or x_train and x_test"),
    "sparse": ({key: labels() for key in ("indices", "indptr", "data")}, "a sparse matrix of SciPy, expected a dense"),
    "labels alone": ({"y": np.ones((20, 2))}, "found arrays y; expected x (and y)"),
    "no arrays": ({}, "found arrays none; expected x"),
    "no test": ({"x_train": grey(), "x_validation": grey()}, "found arrays x_train, x_validation; expected x"),
    "empty test": ({"x_train": grey(), "x_test": grey(0)}, "test part: found 0 data, expected at least 1"),
    "shapes": ({"x_train": grey(), "x_test": grey(5, (4, 4))}, "the test part is uint8 of shape (4, 4)"),
    "labels": ({"x_train": grey(), "y_train": labels(), "x_test": grey()}, "without labels, expected uint8"),
    "1-d part": ({"x_train": grey(), "x_test": np.ones(5)}, "x_test has shape (5,)"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_bad_arrays(tmp_path, case):
    arrays, text = ARRAYS[case]
    np.savez(tmp_path / "mine.npz", **arrays)
    with refused(text) as error:
        load(str(tmp_path / "mine.npz"))
    assert str(tmp_path / "mine.npz") in str(error.value)


def test_images_of_differing_size(tmp_path):
    write_images(tmp_path, "L", ["a", "b"])
    write_images(tmp_path, "L", ["c", "d"], size=(5, 5))
    with refused(f"{tmp_path / 'c.png'}: found an image of shape (5, 5), expected (4, 3) like a.png"):
        load(str(tmp_path))


def test_folder_without_images(tmp_path):
    with refused(f"{tmp_path}: found no image"):
        load(str(tmp_path))


def test_one_image(tmp_path):
    write_images(tmp_path, "L", ["a"])
    with refused(f"{tmp_path}: found 1 data, expected at least 2"):
        load(str(tmp_path))


def test_images_of_16_bits(tmp_path):
    Image.fromarray(grey().astype(np.uint16)[0]).save(tmp_path / "deep.png")
    with refused("deep.png: found I;16 pixels, expected 8 bits a channel"):
        load(str(tmp_path))


@pytest.mark.parametrize("largest", [255, 256])
def test_images_of_other_types_than_uint8(tmp_path, largest):
    np.save(tmp_path / "mine.npy", np.array([[3, 0], [largest, 1]]))
    with refused("all data are counts: pass") as error:
        load(str(tmp_path / "mine.npy"), support="unit_interval")
    assert str(error.value).endswith("; images: store them as uint8") == (largest == 255)


@pytest.mark.parametrize("name", ["validation", "test"])
@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0, float("nan")])
def test_fractions(name, fraction):
    with refused(f"{name}: found {fraction}, expected a fraction in [0, 1)"):
        load(**{name: fraction})


def test_no_test_part():
    with refused("test: found 0, but digits has no test part of its own"):
        load(test=0)


def test_negative_seed():
    with refused("seed: found -1, expected a whole number of at least 0"):
        load(seed=-1)


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.99, 0.01), (0.5, 0.99)])
def test_two_data_suffice(tmp_path, validation, test):
    np.save(tmp_path / "two.npy", grey(2))
    sizes = load(str(tmp_path / "two.npy"), validation=validation, test=test).sizes
    assert sizes == {"train": 1, "validation": 0, "test": 1}


# ---- the parts ------------------------------------------------------------------------------------------------


def test_parts_depend_on_the_seed_alone():
    a = load(seed=1)
    torch.manual_seed(7)
    np.random.seed(7)
    assert same(a, load(seed=1))
    assert not same(a, load(seed=2))
    assert a.sha256 == load(seed=2, test=0.5, validation=0).sha256


def test_parts_are_disjoint_and_whole(tmp_path):
    np.save(tmp_path / "mine.npy", np.arange(200.0).reshape(100, 2))
    mine = load(str(tmp_path / "mine.npy"))
    assert mine.sizes == {"train": 72, "validation": 8, "test": 20}
    assert everything(mine)[:, 0].sort().values.tolist() == list(range(0, 200, 2))
    assert mine.train.x[:, 0].tolist() == sorted(mine.train.x[:, 0].tolist())


def test_sha256_sees_values_labels_shape_and_dtype(tmp_path):
    def digest(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return load(str(tmp_path / "mine.npz")).sha256

    x, y = grey(), labels()
    other = x.copy()
    other[3, 2, 1] ^= 1
    cases = [{"x": x}, {"x": other}, {"x": x, "y": y}, {"x": x, "y": y[::-1]}, {"x": x.reshape(20, 12)}]
    cases.append({"x": x.astype(np.float32)})
    assert len({digest(**case) for case in cases}) == len(cases)
    assert digest(x=x.astype("<f4")) == digest(x=np.asfortranarray(x.astype(">f4")))


def test_nothing_reads_or_moves_the_global_generators():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    digits = fix_binarization(load(), "static", seed=0)
    list(batches(digits.train, 100, seed=0, epoch=0))
    order(10, 0, 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_to():
    moved = load().to("meta")
    assert moved.test.x.device.type == moved.test.y.device.type == "meta"
    assert moved.sizes == load().sizes
    unlabelled = floats(torch.rand(3, 2)).to("meta")
    assert unlabelled.test.y is None
