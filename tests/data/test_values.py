"""Arrays of numbers: their layouts and types, what the network sees of them, and the way back."""

import json

import numpy as np
import pytest
import torch

from diffuse.data.datasets import npz
from diffuse.data.images import Dataset, ImageKind
from diffuse.options.dataset import stored_kind
from diffuse.system.errors import Refused, UsageError, UserError
from tests.support.making import random

N, H, W, C = 300, 4, 6, 3
MEAN, STD = np.array([280.0, 1e5, -0.02]), np.array([8.0, 600.0, 0.003])
FIELDS = MEAN + STD * np.random.default_rng(0).standard_normal((N, H, W, C))
LOW, HIGH = float(FIELDS.min()), float(FIELDS.max())


def opened(tmp_path, array: np.ndarray = FIELDS, **options) -> Dataset:
    np.savez(tmp_path / "fields.npz", array)
    return npz(tmp_path / "data", str(tmp_path / "fields.npz"), **options)


def rows_of(split, array: np.ndarray) -> np.ndarray:
    """The rows of the array [N, H, W, C] that are the split's images."""
    known = {row.transpose(2, 0, 1).astype(np.float32).tobytes(): number for number, row in enumerate(array)}
    return np.array([known[image.tobytes()] for image in split.images])


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4", "i4"])
@pytest.mark.parametrize("layout", [None, "NHWC", "NCHW"])
def test_numbers_of_any_type_and_layout_become_float32(tmp_path, dtype, layout):
    array = FIELDS.astype(dtype)
    given = array.transpose(0, 3, 1, 2) if layout == "NCHW" else array
    data = opened(tmp_path, given, normalise="none", layout=layout)
    assert data.kind.shape == (C, H, W) and (data.kind.values, data.kind.bounded) == ("none", False)
    assert len(data.train.images) == 270 and len(data.test.images) == 30
    for split in (data.train, data.test):
        assert split.images.dtype == np.float32
        expected = array[rows_of(split, array)].transpose(0, 3, 1, 2).astype(np.float32)
        np.testing.assert_array_equal(split.images, expected)
        np.testing.assert_array_equal(data.kind.to_network(torch.from_numpy(split.images)), expected)


def test_without_an_axis_for_channels_there_is_one(tmp_path):
    assert opened(tmp_path, FIELDS[..., 0], normalise="none").kind.shape == (1, H, W)
    assert opened(tmp_path, FIELDS[:, 0], normalise="none").kind.shape == (1, W, C)


def test_std_is_that_of_each_channel_of_the_training_images(tmp_path):
    data = opened(tmp_path, normalise="std", holdout=0.5)
    mine = FIELDS[rows_of(data.train, FIELDS)]
    np.testing.assert_allclose(data.kind.shift, mine.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.kind.scale, mine.std((0, 1, 2)), rtol=1e-4)  # of float32 beside a mean of 1e5
    x = data.kind.to_network(torch.from_numpy(data.train.images)).double()
    np.testing.assert_allclose(x.mean((0, 2, 3)), np.zeros(3), atol=1e-4)
    np.testing.assert_allclose(x.std((0, 2, 3), correction=0), np.ones(3), atol=1e-4)
    assert not data.kind.bounded


def test_the_mean_and_the_deviation_can_be_stated(tmp_path):
    data = opened(tmp_path, normalise="std", mean=MEAN.tolist(), std=[2.0])
    assert (data.kind.shift, data.kind.scale) == (MEAN.tolist(), [2.0, 2.0, 2.0])
    x = data.kind.to_network(torch.from_numpy(data.test.images))
    expected = (data.test.images - MEAN.reshape(3, 1, 1).astype(np.float32)) / np.float32(2)
    np.testing.assert_array_equal(x, expected)


def test_a_range_becomes_that_of_pictures(tmp_path):
    data = opened(tmp_path, normalise="range", range=[-200.0, 200_000.0], pad=1)
    x = data.kind.to_network(torch.from_numpy(data.train.images))
    np.testing.assert_allclose(data.kind.crop(x), (data.train.images + 200) / 100_100 - 1, atol=1e-6)
    assert data.kind.bounded and (x[..., 0, :] == -1).all() and (x[..., -1] == -1).all()
    values = data.kind.to_values(torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5]).reshape(1, 1, 1, 5).expand(1, 3, 4, 5))
    np.testing.assert_allclose(values[0, 0, 0], [-200, -200, 99_900, 200_000, 200_000], rtol=1e-6)
    assert data.kind.to_pixels(values)[0, 0, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    "options", [{"normalise": "std"}, {"normalise": "range", "range": [-1.0, 2e5]}, {"normalise": "none"}]
)
def test_what_the_network_sees_is_undone(tmp_path, options):
    data = opened(tmp_path, **options, pad=2)
    images = torch.from_numpy(data.test.images)
    x = data.kind.to_network(images)
    assert x.shape == (30, C, H + 4, W + 4)
    border = x.clone()
    data.kind.crop(border).fill_(torch.nan)
    assert (border[~border.isnan()] == (-1 if data.kind.bounded else 0)).all()
    back = data.kind.to_values(data.kind.crop(x))
    tolerance = 0.02 if data.kind.bounded else 1e-6 * 1e5  # float32 of a range of 2e5
    np.testing.assert_allclose(back, images, rtol=1e-6, atol=tolerance)
    assert data.kind.log_volume == pytest.approx(
        0.0 if options["normalise"] == "none" else H * W * np.log(data.kind.scale).sum(), rel=1e-12
    )


def test_pictures_show_three_deviations_and_no_more_than_there_is(tmp_path):
    steps = np.where(np.arange(N).reshape(N, 1, 1, 1) % 2, 1.0, 3.0) * np.ones((N, H, W, 1))
    tail = np.random.default_rng(1).standard_normal((N, H, W, 1))
    tail[0, 0, 0] = 1000
    data = opened(tmp_path, np.concatenate([steps, tail], 3), normalise="none")
    assert (data.kind.black[0], data.kind.white[0]) == (1, 3)
    assert data.kind.white[1] < 30 and data.kind.black[1] == pytest.approx(tail.min(), abs=1)
    pixels = data.kind.to_pixels(torch.from_numpy(data.train.images[:40, :1].repeat(2, 1)))
    assert set(pixels[:, 0].unique().tolist()) == {0, 255}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalise": "sdt"}, "normalise must be one of range, std, none, not 'sdt'. Did you mean 'std'"),
        ({"normalise": "range"}, f"range is needed for normalise=range: [low,high]. The values go from {LOW:.3f}"[:-1]),
        ({"normalise": "range", "range": [0.0, 1.0]}, "range is [0.0, 1.0], and the values go from "),
        ({"normalise": "range", "range": [1.0, 0.0]}, "range must be [low,high], not [1.0, 0.0]"),
        ({"normalise": "range", "range": [1.0]}, "range must be [low,high], not [1.0]"),
        ({"normalise": "std", "range": [0.0, 1.0]}, "range is for normalise=range"),
        ({"normalise": "range", "mean": [0.0], "std": [1.0]}, "mean and std are for normalise=std"),
        ({"range": [0.0, 1.0]}, "range is for normalise=range"),
        ({"normalise": "std", "mean": [0.0]}, "mean and std are given together"),
        ({"normalise": "std", "mean": [0.0], "std": [0.0]}, "std must be positive"),
        ({"normalise": "std", "mean": [0.0], "std": [1.0, 2.0]}, "std must be a list of one number, or of 3"),
        ({"normalise": "none", "layout": "CHW"}, "layout must be one of NHWC, NCHW, not 'CHW'"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key(tmp_path, options, message):
    with pytest.raises(Refused) as caught:
        opened(tmp_path, **options)
    assert message in str(caught.value)


def test_a_range_holds_for_the_test_images_too(tmp_path):
    np.savez(tmp_path / "test.npz", FIELDS + 1)
    with pytest.raises(Refused, match="and the values go from"):
        opened(tmp_path, test_path=str(tmp_path / "test.npz"), normalise="range", range=[LOW - 0.01, HIGH + 0.01])


@pytest.mark.parametrize("std", [0.0, 1e-4])
def test_what_float32_cannot_tell_apart_is_refused(tmp_path, std):
    flat = np.concatenate([FIELDS, 1e4 + std * FIELDS[..., :1] / 280], 3)
    with pytest.raises(Refused, match=r"normalise is std, and channel 3 \(from 0\) has the mean 10000 and"):
        opened(tmp_path, flat, normalise="std")
    assert (
        opened(tmp_path, flat, normalise="none").kind.white[3] > opened(tmp_path, flat, normalise="none").kind.black[3]
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_not_finite_are_named(tmp_path, wrong):
    array = FIELDS.copy()
    array[271, 2, 3, 1] = wrong
    with pytest.raises(UserError, match=r"fields.npz: image 271 \(from 0\) has values that are NaN, or no float32"):
        opened(tmp_path, array, normalise="none")


def test_arrays_are_prepared_once_whatever_the_network_sees(tmp_path):
    seen = []
    for options in ({"normalise": "std"}, {"normalise": "none"}, {"normalise": "range", "range": [-1.0, 2e5]}):
        opened(tmp_path, **options)
        seen.append([path.stat().st_ino for path in sorted((tmp_path / "data/prepared").glob("*/*.npy"))])
    assert len(seen[0]) == 2 and seen == [seen[0]] * 3


def test_eight_bit_pixels_stay_so_unless_they_are_numbers(tmp_path):
    pixels = random(40, 6, 7, 5)
    data = opened(tmp_path, pixels)
    assert data.train.images.dtype == np.uint8 and data.kind.eight_bit and data.kind.shape == (5, 6, 7)
    numbers = opened(tmp_path, pixels, normalise="none")
    assert numbers.train.images.dtype == np.float32 and not numbers.kind.eight_bit


def test_kinds_of_earlier_checkpoints_are_read():
    before = {"name": "digits", "channels": 1, "size": 8, "classes": ["0"], "bounded": True, "pad": 2}
    assert stored_kind(before) == ImageKind("digits", 1, 8, 8, ["0"], "8bit", pad=2)
    assert stored_kind({**before, "bounded": False}).values == "none"
    kind = ImageKind("x", 2, 3, 4, [], "std", [1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [1.0, 1.0])
    assert stored_kind(json.loads(json.dumps(vars(kind)))) == kind


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scale", [1.0], "kind.shift must be as long as scale"),
        ("scale", [0.0, 1.0], "kind.scale must be positive"),
        ("values", "odd", "kind.values must be one of"),
        ("black", [0.0, 0.0, 0.0], "kind.black must be as long as white"),
        ("height", "four", "kind.height"),
    ],
)
def test_a_kind_that_is_damaged_is_refused(field, value, message):
    kind = ImageKind("x", 2, 3, 4, [], "std", [1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [1.0, 1.0])
    with pytest.raises(UsageError, match=message):
        stored_kind({**vars(kind), field: value})
