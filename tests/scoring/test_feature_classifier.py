"""The classifier that replaces Inception: trained once for each data set, and named in every score."""

import numpy as np
import pytest
import torch

from diffuse.data.datasets import digits, npz
from diffuse.data.images import Dataset
from diffuse.scoring import feature_classifier as module
from diffuse.scoring.feature_classifier import classifier
from diffuse.system.device import Device
from diffuse.system.errors import UsageError
from tests.support.making import random

CPU = Device("cpu", "float32")


@pytest.fixture
def short(monkeypatch):
    """Twenty steps are enough to see that there was a training."""
    monkeypatch.setattr(module, "STEPS", 20)


def own_images(folder, seed: int, labels: bool = True) -> Dataset:
    """Forty images of noise, in two classes; the data set is called the same whatever they are."""
    arrays = [random(40, 8, 8, seed=seed)] + ([np.arange(40) % 2] if labels else [])
    path = folder / str(seed) / "own.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, *arrays)
    return npz(folder / "data", str(path), holdout=0.2)


def test_it_is_trained_once_for_the_data_it_is_of(tmp_path, short):
    first = classifier(CPU, lambda: own_images(tmp_path, 1), tmp_path)
    (path,) = (tmp_path / "features").glob("*.pt")
    time = path.stat().st_mtime_ns
    again = classifier(CPU, lambda: own_images(tmp_path, 1), tmp_path)
    assert path.stat().st_mtime_ns == time
    assert again.sha256 == first.sha256
    images = random(5, 1, 8, 8)
    np.testing.assert_array_equal(first(images)["features"], again(images)["features"])
    other = classifier(CPU, lambda: own_images(tmp_path, 2), tmp_path)
    assert len(list((tmp_path / "features").glob("*.pt"))) == 2
    assert other.sha256 != first.sha256
    assert other.facts["trained_on"] != first.facts["trained_on"]
    assert path.stat().st_mtime_ns == time


def test_it_is_the_same_wherever_it_is_trained(tmp_path, short):
    """Its weights follow from the data alone: scores of two machines can be compared."""
    data, images = own_images(tmp_path, 1), random(5, 1, 8, 8)
    found = []
    for place, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        found.append(classifier(CPU, lambda: data, tmp_path / place)(images)["logits"])
    np.testing.assert_array_equal(*found)


def test_it_sees_and_tells_what_it_is(tmp_path, short):
    features = classifier(CPU, lambda: own_images(tmp_path, 1), tmp_path)
    grey = random(70, 1, 8, 8)
    found, thrice = features(grey), features(grey.repeat(3, axis=1))
    assert {name: part.shape for name, part in found.items()} == {"features": (70, 128), "logits": (70, 2)}
    for name, part in found.items():
        np.testing.assert_array_equal(part, thrice[name])
        np.testing.assert_array_equal(part[31:33], features(grey[31:33])[name])
    assert features.score_name("fid") == "fid_classifier"
    assert features.protocol["resize"] == "none, grey as three equal channels"
    assert 0 <= features.protocol["test_accuracy"] <= 1
    assert len(np.unique(found["features"], axis=0)) == 70


def test_it_learns_to_tell_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 60)
    features, test = classifier(CPU, digits, tmp_path), digits().test
    right = features(test.images[:200])["logits"].argmax(1) == test.labels[:200]
    assert right.mean() > 0.8
    assert features.facts["test_accuracy"] == pytest.approx(right.mean(), abs=0.1)


def test_its_weights_can_be_taken_elsewhere(tmp_path, short):
    made = classifier(CPU, lambda: own_images(tmp_path, 1), tmp_path)
    (path,) = (tmp_path / "features").glob("*.pt")
    taken = classifier(CPU, lambda: None, tmp_path / "elsewhere", weights=str(path))
    assert taken.protocol == made.protocol
    assert not (tmp_path / "elsewhere").exists()


def test_a_damaged_file_is_made_again(tmp_path, short):
    data, images = own_images(tmp_path, 1), random(5, 1, 8, 8)
    whole = classifier(CPU, lambda: data, tmp_path)(images)["features"]
    (path,) = (tmp_path / "features").glob("*.pt")
    path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_array_equal(classifier(CPU, lambda: data, tmp_path)(images)["features"], whole)


def test_it_needs_labels_and_a_data_set(tmp_path):
    with pytest.raises(UsageError, match="features=classifier needs labels, and .* has none: choose features="):
        classifier(CPU, lambda: own_images(tmp_path, 1, labels=False), tmp_path)
    with pytest.raises(UsageError, match="is trained on a data set, and there is none here: give ckpt="):
        classifier(CPU, lambda: None, tmp_path)
    assert not (tmp_path / "features").exists()
