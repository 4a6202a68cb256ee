"""Copies of training images are found, and fresh images are not taken for copies."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffuse.data.datasets import digits
from diffuse.scoring.memorisation import Nearest, memorisation, nearest_strips
from diffuse.system.errors import UsageError
from tests.support.scoring import as_folder, as_npz, report, score, smooth, tiles

FAST = ["metrics=[memorisation]", "reference=digits:train", "name=found"]
FOUND = Path("outputs/eval/found")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scored(here: Path, images: np.ndarray, *words: str) -> dict[str, float]:
    return score(f"samples={as_npz(here / 'a.npz', images)}", *FAST, *tiles(here), f"data_dir={here}", *words)


def table() -> list[dict[str, str]]:
    with open(FOUND / "memorisation.csv") as file:
        return list(csv.DictReader(file))


def test_copies_of_training_images_are_all_nearer_than_test_images(here):
    places = np.arange(70) * 20
    found = scored(here, digits().train.images[places])
    assert found == {"memorisation_tiles": 1.0, "memorisation_pixels": 1.0}
    facts = report(FOUND)["sample_scores"]["memorisation_pixels"]
    assert (facts["n"], facts["n_train"], facts["n_test"], facts["fresh_images"]) == (70, 1438, 359, 0.5)
    lines = table()
    assert [int(line["image"]) for line in lines] == list(range(70))
    assert [int(line["nearest_by_pixels"]) for line in lines] == places.tolist()
    for space in ("features", "pixels"):
        assert {float(line[f"distance_in_{space}"]) for line in lines} == {0.0}


def test_test_images_are_as_near_as_test_images(here):
    test, train = digits().test.images, digits().train.images
    assert scored(here, test) == {"memorisation_tiles": 0.5, "memorisation_pixels": 0.5}
    with Image.open(FOUND / "memorisation.png") as picture:
        assert picture.size == (1500, 850)
    line = table()[7]
    apart = np.sqrt(((train.astype(float) - test[7]) ** 2).sum((1, 2, 3)))
    assert int(line["nearest_by_pixels"]) == apart.argmin()
    assert float(line["distance_in_pixels"]) == pytest.approx(apart.min(), rel=1e-5)


def test_images_of_noise_are_farther_than_test_images(here):
    found = scored(here, np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8)).astype(np.uint8))
    assert found["memorisation_pixels"] < 0.05


def test_the_share_is_that_of_pairs():
    nearest = Nearest(np.array([1.0, 4.0]), np.array([0, 1]), np.array([2.0, 4.0, 0.5]))
    assert nearest.share == pytest.approx((2 + 0.5) / 6)


def test_the_page_shows_the_nearest_64_beside_their_neighbours():
    """By features the one after is nearest, by pixels the same; image 79 is the nearest of all, image 0 the last."""
    train, numbers = digits().train.images[:100].reshape(100, -1), np.arange(80)
    by_features = Nearest(numbers[::-1].astype(float), numbers + 1, np.zeros(3))
    by_pixels = Nearest(np.zeros(80), numbers, np.zeros(3))
    found = {"features": by_features, "pixels": by_pixels}
    strips = nearest_strips(found, train[:80].astype(np.float32), train, digits().kind)
    assert (strips.shape, strips.dtype) == ((64, 1, 8, 24), np.uint8)
    shown, order = np.split(strips, 3, axis=3), np.arange(79, 15, -1)
    for images, expected in zip(shown, (order, order + 1, order), strict=True):
        np.testing.assert_array_equal(images.reshape(64, -1), train[expected])


def test_images_of_another_size_or_kind_are_refused(here):
    with pytest.raises(UsageError, match=r"metrics=\[memorisation\] compares pixels: .*a.npz has images of 4 x 4, and"):
        scored(here, smooth(5)[:, :1, :4, :4])
    colour = as_folder(here / "colour", smooth(5))
    with pytest.raises(UsageError, match="colour has other channels than digits"):
        score(f"samples={colour}", *FAST[:2], "name=colour", *tiles(here), f"data_dir={here}")


def test_grey_images_from_files_are_compared_as_grey_ones(here):
    images = digits().test.images[:70]
    folder = here / "grey"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{number:03d}.png")
    words = [*FAST[:2], *tiles(here), f"data_dir={here}"]
    from_files = score(f"samples={folder}", *words, "name=files")
    assert from_files == score(f"samples={as_npz(here / 'a.npz', images)}", *words, "name=array")


def test_it_needs_the_data_set(here):
    place = as_folder(here / "a", smooth(5))
    with pytest.raises(UsageError, match=r"metrics=\[memorisation\] needs the data set: give ckpt= or reference="):
        score(f"samples={place}", f"reference={place}", FAST[0], *tiles(here))
    assert not (here / "outputs").exists()


def test_fewer_than_64_are_all_shown(tmp_path):
    images = digits().train.images[:100].reshape(100, -1)
    vectors = {"features": images[:, ::4].astype(np.float32), "pixels": images}
    sides = [{space: rows[:count] for space, rows in vectors.items()} for count in (3, 100, 50)]
    found = memorisation(*sides, kind=digits().kind, folder=tmp_path, name="memorisation")
    assert found["memorisation"]["value"] == found["memorisation_pixels"]["value"] == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memorisation.csv", "memorisation.png"]
