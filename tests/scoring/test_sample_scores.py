"""Two sides and their scores: what is kept of real images, and the warnings beside a value."""

from contextlib import nullcontext as does
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffuse.scoring.distances import Statistics, density_coverage, frechet_distance, kernel_distance, statistics
from diffuse.scoring.feature_rows import Rows
from diffuse.scoring.features import Features, torchscript
from diffuse.scoring.imagesets import ImageSet, open_place
from diffuse.scoring.report import values_only
from diffuse.scoring.sample_scores import (
    Side,
    cached_features,
    compute_score,
    extract_features,
    needed_outputs,
    size_warnings,
)
from diffuse.scoring.samples_part import refuse_other_features
from diffuse.system.device import Device
from diffuse.system.errors import UsageError
from tests.support.scoring import as_npz, save_network, smooth


@pytest.fixture
def network(tmp_path) -> Features:
    save_network(tmp_path / "tiles.pt")
    return torchscript(Device("cpu"), str(tmp_path / "tiles.pt"))


def counted(features: Features, calls: list[int]) -> Features:
    """The same network, which counts the images that it sees."""

    def net(images):
        calls.append(len(images))
        return features.net(images)

    return replace(features, net=net)


def images_in(path: Path, count: int, seed: int = 0) -> ImageSet:
    return open_place(str(as_npz(path, smooth(count, seed))), "samples")


def entries(data_dir: Path) -> list[str]:
    return sorted(path.name for path in (data_dir / "features").iterdir() if path.is_dir())


def test_features_of_real_images_are_computed_once(tmp_path, network):
    images, calls = images_in(tmp_path / "a.npz", 20), []
    first = cached_features(images, counted(network, calls), ["features"], tmp_path)
    mu, seen = first.statistics("features").mu, len(calls)
    again = cached_features(images, counted(network, calls), ["features"], tmp_path)
    assert len(calls) == seen > 0
    np.testing.assert_array_equal(again.vectors["features"], network(smooth(20))["features"])
    np.testing.assert_array_equal(again.statistics("features").mu, mu)
    assert len(entries(tmp_path)) == 1


def test_other_images_networks_and_ways_of_resizing_have_features_of_their_own(tmp_path, network):
    images = images_in(tmp_path / "a.npz", 6)
    cached_features(images, network, ["features"], tmp_path)
    others = [
        (images_in(tmp_path / "b.npz", 6, seed=1), network),
        (replace(images, fingerprint="another"), network),
        (images, replace(network, sha256="another")),
        (images, replace(network, resize="another")),
        (images, replace(network, facts={"trained_on": "another"})),
    ]
    for number, (some, features) in enumerate(others, start=2):
        cached_features(some, features, ["features"], tmp_path)
        assert len(entries(tmp_path)) == number


@pytest.mark.parametrize("damage", ["half", "no rows", "no description"])
def test_features_that_are_not_whole_are_completed(tmp_path, network, damage):
    images, calls = images_in(tmp_path / "a.npz", 20), []
    side = cached_features(images, network, ["features"], tmp_path)
    folder, whole = side.rows.folder, np.array(side.vectors["features"])
    if damage == "half":
        path = folder / "features.npy"
        path.write_bytes(path.read_bytes()[: 128 + 13 * 48 * 4 + 7])  # a header, 13 rows and a piece
    else:
        (folder / ("features.npy" if damage == "no rows" else "rows.json")).unlink()
    again = cached_features(images, counted(network, calls), ["features"], tmp_path)
    assert calls
    np.testing.assert_array_equal(again.vectors["features"], whole)


def test_pixels_are_kept_as_they_are(tmp_path, network):
    rows = Rows(tmp_path / "rows", {})
    side = extract_features(images_in(tmp_path / "a.npz", 9), network, ["features", "pixels"], rows)
    np.testing.assert_array_equal(side.vectors["pixels"], smooth(9).reshape(9, -1))
    assert side.count == 9


def side_of(tmp_path: Path, name: str, rows: np.ndarray, output: str = "features") -> Side:
    """A side with these vectors."""
    kept = Rows(tmp_path / name, {})
    kept.extend(len(rows), [output], lambda first: iter([{output: rows[first:]}]))
    return Side(name, len(rows), kept)


def vectors(count: int, seed: int, width: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def test_each_score_is_that_of_its_formula_with_the_numbers_of_images(tmp_path, network):
    a, b = vectors(30, 1), vectors(40, 2) + np.float32(0.5)
    drawn, real = side_of(tmp_path, "a", a), side_of(tmp_path, "b", b)
    found = compute_score("fid", network, drawn, real)["fid_tiles"]
    assert found["value"] == pytest.approx(frechet_distance(statistics(a), statistics(b)), rel=1e-12)
    assert (found["n"], found["n_real"]) == (30, 40)
    found = compute_score("kid", network, drawn, real)["kid_tiles"]
    assert (found["value"], found["standard_deviation"], found["subset_size"]) == kernel_distance(a, b)
    assert found["subsets"] == 100
    found = compute_score("density_coverage", network, drawn, real)
    assert values_only(found) == dict(
        zip(("density_tiles", "coverage_tiles"), density_coverage(a, b, k=5), strict=True)
    )
    assert found["density_tiles"]["k"] == 5
    found = compute_score("precision_recall", network, drawn, real)
    assert list(found) == ["precision_tiles", "recall_tiles"]
    assert found["recall_tiles"]["k"] == 3


def test_sfid_is_the_frechet_distance_of_maps(tmp_path, network):
    a, b = vectors(30, 1), vectors(40, 2)
    drawn, real = side_of(tmp_path, "a", a, "spatial"), side_of(tmp_path, "b", b, "spatial")
    value = compute_score("sfid", network, drawn, real)["sfid_tiles"]["value"]
    assert value == pytest.approx(frechet_distance(statistics(a), statistics(b)), rel=1e-12)


def test_the_inception_score_is_of_the_drawn_side_alone(tmp_path, network):
    drawn, real = side_of(tmp_path, "a", vectors(30, 1), "logits"), side_of(tmp_path, "b", vectors(3, 2), "logits")
    found = compute_score("is", network, drawn, real)["is_tiles"]
    assert found["n"] == 30
    assert "n_real" not in found
    assert found == compute_score("is", network, drawn, Side("real", None))["is_tiles"]


def test_scores_of_too_few_images_are_refused(network):
    network = replace(network, outputs=("features", "logits", "spatial"))
    for name, least in {"fid": 2, "kid": 2, "is": 10, "precision_recall": 4, "density_coverage": 6, "sfid": 2}.items():
        needed_outputs([name], network, least, least)
        needed_outputs([name], network, least, None)
        message = rf"metrics=\[{name}\] needs at least {least} images on either side, and has "
        with pytest.raises(UsageError, match=f"{message}{least - 1} against {least}"):
            needed_outputs([name], network, least - 1, least)
        if name == "is":
            needed_outputs([name], network, least, 0)
        else:
            with pytest.raises(UsageError, match=f"{message}{least} against {least - 1}"):
                needed_outputs([name], network, least, least - 1)


@pytest.mark.parametrize(
    ("width", "of", "refused"), [(7, None, True), (48, "0" * 64, True), (48, None, False), (48, "its own", False)]
)
def test_statistics_of_another_network_are_refused_in_words(network, width, of, refused):
    known = Statistics(np.zeros(width), np.eye(width), network.sha256 if of == "its own" else of)
    message = f"theirs.npz are of {width} features of another network"
    with pytest.raises(UsageError, match=message) if refused else does():
        refuse_other_features("theirs.npz", known, network, network.width((8, 8)))


def warnings(tmp_path: Path, name: str, drawn: int, real: int | None, width: int = 4) -> str:
    """What is said beside a score of so many images."""
    rows = np.zeros((1, width), np.float32)
    some = side_of(tmp_path, f"{name}-{drawn}-{real}-{width}", rows, "spatial" if name == "sfid" else "features")
    return " / ".join(size_warnings(name, replace(some, count=drawn), Side("real", real)))


@pytest.mark.parametrize("name", ["fid", "sfid"])
def test_a_covariance_needs_more_images_than_features_and_a_distance_ten_thousand(tmp_path, name):
    assert "100 images do not determine a covariance of 100 features" in warnings(tmp_path, name, 100, 20_000, 100)
    assert "100 images do not determine" in warnings(tmp_path, name, 20_000, 100, 100)
    assert "determine" not in warnings(tmp_path, name, 101, 20_000, 100)
    assert "biased upwards" in warnings(tmp_path, name, 9999, 20_000)
    assert "biased upwards" in warnings(tmp_path, name, 20_000, 9999)
    assert "biased upwards" in warnings(tmp_path, name, 9999, None)
    assert not warnings(tmp_path, name, 10_000, 10_000)
    assert not warnings(tmp_path, name, 10_000, None)


def test_other_scores_say_what_they_depend_on(tmp_path):
    assert "subsets of 999 where 1000 are usual" in warnings(tmp_path, "kid", 999, 5000)
    assert "subsets of 999" in warnings(tmp_path, "kid", 5000, 999)
    assert "whole of both sets, 999 images" in warnings(tmp_path, "kid", 999, 999)
    assert "the deviation means nothing" in warnings(tmp_path, "kid", 1000, 1000)
    assert not warnings(tmp_path, "kid", 1000, 1001)
    assert "biased downwards" in warnings(tmp_path, "is", 9999, 20_000)
    assert not warnings(tmp_path, "is", 10_000, 50)
    for name in ("precision", "recall", "density", "coverage"):
        assert "compare it only at 50 and 60" in warnings(tmp_path, name, 50, 60)
        assert "compare it only at 60 and 60" in warnings(tmp_path, name, 60, 60)
        assert not warnings(tmp_path, name, 10_000, 10_000)


def test_warnings_lie_with_the_value(tmp_path, network):
    side = side_of(tmp_path, "a", vectors(30, 1))
    (warning,) = compute_score("fid", network, side, side)["fid_tiles"]["warnings"]
    assert "biased upwards" in warning
