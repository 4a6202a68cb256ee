"""The digits that ship, the Gaussian, options that are refused, and the way from bytes to floats and back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from diffuse.data.datasets import digits, gaussian
from diffuse.data.images import ImageKind, to_float, to_uint8
from diffuse.options.dataset import build_dataset
from diffuse.system.errors import UserError
from tests.support.commands import config
from tests.support.gaussian import MEAN, STD


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


def test_the_network_sees_a_black_border_that_is_cut_off_again():
    kind = ImageKind("some", 3, 4, 4, [], pad=2)
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = kind.to_network(images)
    assert (kind.padded_size, kind.shape, tuple(x.shape)) == ((8, 8), (3, 8, 8), (5, 3, 8, 8))
    border = torch.ones(8, 8, dtype=torch.bool)
    border[2:6, 2:6] = False
    assert (x[..., border] == -1).all()
    assert torch.equal(x[..., 2:6, 2:6], to_float(images))
    assert torch.equal(to_uint8(kind.crop(x)), images)


def test_bits_are_counted_without_the_border():
    assert ImageKind("some", 3, 4, 4, [], pad=2).dimensions == 3 * 4 * 4


def test_without_a_border_nothing_is_added_or_cut_off():
    kind = ImageKind("some", 1, 4, 4, [], "none")
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(kind.to_network(x), x)
    assert torch.equal(kind.crop(x), x)
    assert kind.shape == (1, 4, 4)


@pytest.fixture
def places(tmp_path) -> Path:
    """A folder of three images, an empty one, one with one image, and an npz file of grey images."""
    for name in ("three/a.png", "three/b.png", "three/c.png", "one/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "three.npz", np.zeros((3, 4, 4), np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("folder", {"path": "gone"}, "dataset.path=gone must be a folder, and there is none"),
        ("folder", {"path": "three/a.png"}, "dataset.path=three/a.png must be a folder, and something else is there"),
        (
            "folder",
            {"path": "empty"},
            "or more, and at least one in each split; found 0 in it",
        ),
        (
            "folder",
            {"path": "one"},
            "or more, and at least one in each split; found 1 in it",
        ),
        ("folder", {"fit": "crpo"}, "dataset.fit must be one of crop, resize, not 'crpo'. Did you mean 'crop'?"),
        ("folder", {"channels": 2}, "dataset.channels must be 1 (grey) or 3 (colour), not 2"),
        ("folder", {"size": 3}, "dataset.size must be between 4 and 4096 pixels, not 3"),
        ("folder", {"size": 5000}, "dataset.size must be between 4 and 4096 pixels, not 5000"),
        ("folder", {"holdout": 0}, "dataset.holdout must be a share between 0 and 1, not 0.0"),
        ("folder", {"holdout": 1}, "dataset.holdout must be a share between 0 and 1, not 1.0"),
        ("folder", {"pad": -1}, "dataset.pad must be a number of pixels, 0 or a few, not -1"),
        ("folder", {"size": "big"}, "dataset.size: Value 'big' of type 'str' could not be converted to Integer"),
        ("npz", {"path": "gone.npz"}, "dataset.path=gone.npz must be an npz file, and there is none"),
        ("npz", {"path": "three"}, "dataset.path=three must be an npz file, and something else is there"),
        ("npz", {"test_path": "gone.npz"}, "dataset.test_path=gone.npz must be an npz file, and there is none"),
        ("npz", {"holdout": -0.5}, "dataset.holdout must be a share between 0 and 1, not -0.5"),
        ("npz", {"pad": 2000}, "dataset.pad must be a number of pixels, 0 or a few, not 2000"),
        ("celeba", {"size": 0}, "dataset.size must be between 4 and 4096 pixels, not 0"),
        ("flowers102", {"size": 10**9}, "dataset.size must be between 4 and 4096 pixels, not 1000000000"),
        ("mnist", {"pad": -2}, "dataset.pad must be a number of pixels, 0 or a few, not -2"),
        ("digits", {"pad": -2}, "dataset.pad must be a number of pixels, 0 or a few, not -2"),
    ],
)
def test_an_impossible_option_is_refused_with_its_key(dataset, options, message, places, monkeypatch):
    monkeypatch.chdir(places)
    if dataset in ("folder", "npz"):
        options = {"path": {"folder": "three", "npz": "three.npz"}[dataset], **options}
    words = [f"dataset.{key}={value}" for key, value in options.items()]
    with pytest.raises(UserError) as caught:
        build_dataset(config("train", f"dataset={dataset}", *words).dataset, Path("data"))
    assert message in str(caught.value)
    assert not (places / "data").exists()


@pytest.mark.parametrize(("dataset", "path"), [("folder", "three"), ("npz", "three.npz")])
def test_paths_may_be_relative_and_data_dir_is_where_arrays_go(dataset, path, places, monkeypatch):
    monkeypatch.chdir(places)
    data = build_dataset(config("train", f"dataset={dataset}", f"dataset.path={path}").dataset, Path("data"))
    assert not (places / "data").exists()
    assert len(data.train.images) == 2
    assert len(list((places / "data" / "prepared").glob("three-*"))) == 1
