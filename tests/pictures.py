"""Small data sets, and what is said of those that are wrong."""

import re

import numpy as np
import pytest
import torch

from pvae import data
from pvae.data import Dataset, Split
from pvae.errors import InputError


def refused(text):
    """The error is an InputError of one line that contains `text`."""
    return pytest.raises(InputError, match=rf"\A(?=.*{re.escape(text)})[^\n]+\Z")


def grey(n=20, shape=(4, 3)):
    return np.random.default_rng(0).integers(0, 256, (n, *shape)).astype(np.uint8)


def labels(n=20):
    return np.arange(n) % 3


def same(a: Dataset, b: Dataset) -> bool:
    pairs = [(getattr(a, part), getattr(b, part)) for part in data.PARTS]
    return all(torch.equal(p.x, q.x) and (p.y is q.y or torch.equal(p.y, q.y)) for p, q in pairs)


def floats(x) -> Dataset:
    x = torch.as_tensor(x, dtype=torch.float32)
    return Dataset("mine", Split(x, None), Split(x[:0], None), Split(x[:1].clone(), None), "")
