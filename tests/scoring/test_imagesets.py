"""Sets of images wherever they are: in order, in parts, from any image on; and what is no set of images."""

import os
from pathlib import Path

import numpy as np
import pytest

from diffuse.data.datasets import digits
from diffuse.data.images import ImageKind
from diffuse.options.dataset import build_named_dataset
from diffuse.scoring.imagesets import ImageSet, holds_statistics, open_place, open_split, require_pictures
from diffuse.scoring.samples_part import open_images
from diffuse.system.errors import UsageError, UserError
from tests.support.making import random, save
from tests.support.scoring import as_folder, as_npz, smooth

IMAGES = random(600, 3, 4, 4)


def read(images: ImageSet, first: int = 0) -> np.ndarray:
    return np.concatenate(list(images.batches(first)))


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("places")
    drawn = root / "drawn"
    (drawn / "images").mkdir(parents=True)
    as_npz(drawn / "samples.npz", IMAGES)
    save(drawn / "grid.png", random(9, 5, 3))
    np.savez_compressed(root / "small.npz", IMAGES.transpose(0, 2, 3, 1))
    return {
        "folder": str(as_folder(root / "folder" / "below", IMAGES).parent),
        "npz": str(as_npz(root / "a.npz", IMAGES)),
        "compressed": str(root / "small.npz"),
        "drawn": str(drawn),
    }


@pytest.mark.parametrize("kind", ["folder", "npz", "compressed", "drawn"])
def test_images_come_in_order_from_any_image_on(places, kind):
    images = open_place(places[kind], "samples")
    assert images.count == 600
    for first in (0, 1, 256, 257, 511, 599):
        np.testing.assert_array_equal(read(images, first), IMAGES[first:])


@pytest.mark.parametrize("count", [1, 255, 256, 257, 512, 599, 600])
def test_the_first_of_them_are_as_many_as_asked(places, count):
    images = open_place(places["npz"], "samples").limited(count)
    assert images.count == count
    for first in sorted({0, count // 2, count - 1}):
        np.testing.assert_array_equal(read(images, first), IMAGES[first:count])


def test_more_than_there_are_is_refused(places):
    with pytest.raises(UsageError, match="n must be at most 600, the number of images in .*/a.npz, not 601"):
        open_place(places["npz"], "samples").limited(601)


def test_a_split_of_a_data_set_is_a_set_of_images():
    images, data = open_images("digits:test", "samples", Path("data")), digits()
    assert (images.name, images.count, images.fingerprint) == ("digits:test", 359, data.test.sha256)
    np.testing.assert_array_equal(read(images, 300), data.test.images[300:])
    np.testing.assert_array_equal(read(open_images("digits:train", "samples", Path("data"))), data.train.images)


def test_a_path_with_a_colon_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    as_folder(tmp_path / "digits:test", smooth(3))
    assert open_images("digits:test", "samples", Path("data")).count == 3


def test_fingerprints_follow_the_images(tmp_path):
    folder, file = as_folder(tmp_path / "a", smooth(3)), as_npz(tmp_path / "a.npz", smooth(3))
    before = open_place(str(folder), "samples").fingerprint, open_place(str(file), "samples").fingerprint
    assert before == (open_place(str(folder), "samples").fingerprint, open_place(str(file), "samples").fingerprint)
    as_npz(file, smooth(3, seed=1))
    assert open_place(str(file), "samples").fingerprint != before[1]
    changed = []
    os.utime(folder / "00001.png", (1, 1))
    changed.append(open_place(str(folder), "samples").fingerprint)
    (folder / "00002.png").rename(folder / "00009.png")
    changed.append(open_place(str(folder), "samples").fingerprint)
    (folder / "00009.png").unlink()
    changed.append(open_place(str(folder), "samples").fingerprint)
    assert len({before[0], *changed}) == 4


def test_images_of_two_sizes_and_unreadable_ones_are_named(tmp_path):
    folder = as_folder(tmp_path / "a", smooth(3))
    save(folder / "00005.png", random(9, 9, 3))
    with pytest.raises(UserError, match="cannot be scored: 00005.png.*is 9 x 9, but the first is 8 x 8"):
        read(open_place(str(folder), "samples"))
    (folder / "00005.png").write_bytes((folder / "00001.png").read_bytes()[:70])
    with pytest.raises(UserError, match="cannot be scored: 00005.png"):
        read(open_place(str(folder), "samples"))
    (folder / "00005.png").write_text("no image")
    with pytest.raises(UserError, match=r"cannot be scored: 00005.png \(is not an image\)"):
        read(open_place(str(folder), "samples"))


def test_images_that_are_no_squares_keep_their_form(tmp_path):
    pixels = random(8, 6, 3)
    save(tmp_path / "a" / "1.png", pixels)
    images = open_place(str(tmp_path / "a"), "samples")
    assert images.size == (8, 6)
    np.testing.assert_array_equal(read(images)[0], pixels.transpose(2, 0, 1))
    save(tmp_path / "a" / "2.png", random(6, 8, 3))
    with pytest.raises(UserError, match=r"2.png \(is 6 x 8, but the first is 8 x 6 and scores need one size\)"):
        read(open_place(str(tmp_path / "a"), "samples"))


def test_places_without_images_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_text("no image")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "floats.npz", np.zeros((3, 4, 4, 3)))
    for name, why in {
        "empty": "samples=.*empty holds no images",
        "bad": "1.png cannot be read",
        "text.npz": "text.npz is not an npz file with images",
        "floats.npz": "has float64 images of 3 channels, and scores of samples are for uint8 images",
        "nothing": "samples=.*nothing is neither a folder nor a file",
    }.items():
        with pytest.raises(UserError, match=why):
            open_place(str(tmp_path / name), "samples")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("digits:val", "samples=digits:val: a data set has the splits train and test, as in digits:train"),
        ("digit:test", "the data set must be one of .*Did you mean 'digits'"),
        ("folder:test", "folder needs a path: give the path of your images"),
    ],
)
def test_unknown_data_sets_and_splits_are_refused(place, message):
    with pytest.raises(UsageError, match=message):
        open_images(place, "samples", Path("data"))


def test_what_has_no_pixels_or_no_colours_is_no_picture():
    data = build_named_dataset("gaussian", None)
    with pytest.raises(UserError, match="the images of gaussian have values that are not 8-bit pixels"):
        open_split(data.kind, "test", data.test)
    with pytest.raises(UserError, match="the images of x have 2 channels"):
        require_pictures(ImageKind("x", 2, 8, 8, []))
    for channels in (1, 3):
        require_pictures(ImageKind("x", channels, 8, 8, []))


def test_statistics_are_told_from_images(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(2), sigma=np.eye(2))
    np.savez(tmp_path / "mu.npz", mu=np.zeros(2))
    (tmp_path / "text").write_text("no archive")
    assert holds_statistics(tmp_path / "s.npz")
    assert not any(holds_statistics(tmp_path / name) for name in ("mu.npz", "text", "none"))
