"""The digits that ship, the Gaussian, and the way from bytes to floats and back."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from diffuse.datasets import digits, gaussian
from diffuse.images import to_float, to_uint8
from tests.conftest import MEAN, STD


def rows(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_digits_are_scikit_learns_split_once():
    """Every image is there once, with its label, in one of the two splits."""
    data = digits()
    values, labels = load_digits(return_X_y=True)
    theirs = sorted(zip(rows(np.rint(values * 255 / 16).astype(np.uint8)), labels.tolist(), strict=True))
    ours = [
        pair
        for split in (data.train, data.test)
        for pair in zip(rows(split.images), split.labels.tolist(), strict=True)
    ]
    assert sorted(ours) == theirs
    assert data.train.images.shape == (1438, 1, 8, 8)
    assert data.test.images.shape == (359, 1, 8, 8)
    assert not data.flip


def test_both_splits_have_every_digit_in_equal_shares():
    data = digits()
    shares = [np.bincount(split.labels, minlength=10) / len(split.labels) for split in (data.train, data.test)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.003)


def test_the_gaussian_has_the_moments_asked_for():
    data = gaussian(list(MEAN), list(STD), size=4, train_count=4000, test_count=10)
    assert data.train.images.shape == (4000, 3, 4, 4)
    assert data.train.images.dtype == np.float32
    np.testing.assert_allclose(data.train.images.mean((0, 2, 3)), MEAN, atol=0.02)
    np.testing.assert_allclose(data.train.images.std((0, 2, 3)), STD, rtol=0.02)
    assert not data.kind.bounded
    assert not set(rows(data.test.images)) & set(rows(data.train.images))


@pytest.mark.parametrize(
    ("option", "value"), [("mean", [0.0]), ("std", [1.0, 0.0, 1.0]), ("size", 0), ("test_count", 0)]
)
def test_an_impossible_gaussian_is_refused_by_name(option, value):
    options = {"mean": list(MEAN), "std": list(STD), "size": 4, "train_count": 10, "test_count": 10, option: value}
    with pytest.raises(ValueError, match=f"^{option} "):
        gaussian(**options)


def test_bytes_become_floats_and_come_back():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = to_float(every)
    assert floats.min() == -1
    assert floats.max() == 1
    assert torch.equal(to_uint8(floats), every)
    assert to_uint8(torch.tensor([-7.0, 7.0, 0.0])).tolist() == [0, 255, 128]
    assert to_float(torch.tensor([0.25])).item() == 0.25
