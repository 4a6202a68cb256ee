"""Feature vectors on disk: whole rows only, of what they were made from, and added to what is there."""

import numpy as np
import pytest

from diffuse.scoring.feature_rows import Rows, read_statistics, write_statistics
from diffuse.system.errors import UserError
from tests.support.scoring import normal

ROWS = {"features": normal(20, 5), "logits": normal(20, 3, seed=1)}
FROM = {"images": "abc", "sha256": "1"}


class Counted:
    """The rows in batches of four; records the first row of each request."""

    def __init__(self, last: int = 20):
        self.asked: list[int] = []
        self.last = last

    def __call__(self, first: int):
        self.asked.append(first)
        for start in range(first, self.last, 4):
            yield {name: rows[start : min(start + 4, self.last)] for name, rows in ROWS.items()}


def assert_whole(rows: Rows, *names: str) -> None:
    for name in names:
        np.testing.assert_array_equal(rows[name], ROWS[name])


def test_rows_are_added_once_and_read_as_they_were(tmp_path):
    first, second = Counted(), Counted()
    Rows(tmp_path / "rows", FROM).extend(20, ["features", "logits"], first)
    rows = Rows(tmp_path / "rows", FROM)
    assert_whole(rows, "features", "logits")
    rows.extend(20, ["features", "logits"], second)
    assert (first.asked, second.asked) == ([0], [])
    assert rows["features"].dtype == np.float32


def test_an_output_is_added_to_those_that_are_there(tmp_path):
    rows, counted = Rows(tmp_path / "rows", FROM), Counted()
    rows.extend(20, ["features"], Counted())
    before = rows._path("features").stat().st_mtime_ns
    rows.extend(20, ["features", "logits"], counted)
    assert counted.asked == [0]
    assert_whole(Rows(tmp_path / "rows", FROM), "features", "logits")
    assert rows._path("features").stat().st_size == 128 + 20 * 5 * 4
    rows.extend(20, ["features"], counted)
    assert counted.asked == [0]
    assert rows._path("features").stat().st_mtime_ns >= before


@pytest.mark.parametrize(("cut", "left"), [(1, 19), (20, 19), (21, 18), (400, 0)])
def test_what_was_cut_off_in_the_middle_of_a_row_is_written_again(tmp_path, cut, left):
    Rows(tmp_path / "rows", FROM).extend(40, ["features", "logits"], Counted())  # of which 20 come
    path = tmp_path / "rows" / "features.npy"
    path.write_bytes(path.read_bytes()[:-cut])
    rows, counted = Rows(tmp_path / "rows", FROM), Counted()
    assert rows.count("features") == left
    rows.extend(20, ["features", "logits"], counted)
    assert counted.asked == [left]
    assert_whole(rows, "features", "logits")


def test_an_interrupted_writer_is_continued_after_its_last_row(tmp_path):
    Rows(tmp_path / "rows", FROM).extend(20, ["features", "logits"], Counted(last=10))
    rows, counted = Rows(tmp_path / "rows", FROM), Counted()
    assert rows.count("logits") == 10
    rows.extend(20, ["features", "logits"], counted)
    assert counted.asked == [10]
    assert_whole(rows, "features", "logits")


def test_complete_rows_that_are_not_what_was_written_are_made_again(tmp_path):
    Rows(tmp_path / "rows", FROM).extend(20, ["features", "logits"], Counted())
    path = tmp_path / "rows" / "features.npy"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    rows, counted = Rows(tmp_path / "rows", FROM), Counted()
    assert (rows.count("features"), rows.count("logits")) == (0, 20)
    rows.extend(20, ["features", "logits"], counted)
    assert counted.asked == [0]
    assert_whole(rows, "features", "logits")


@pytest.mark.parametrize("about", ['{"outputs": {"fea', "[]", '{"outputs": {"features": 5}}', "", None])
def test_rows_of_which_nobody_knows_what_they_are_of_are_made_again(tmp_path, about):
    Rows(tmp_path / "rows", FROM).extend(20, ["features"], Counted(last=10))
    place = tmp_path / "rows" / "rows.json"
    place.unlink() if about is None else place.write_text(about)
    rows = Rows(tmp_path / "rows", FROM)
    assert rows.count("features") == 0
    assert not (tmp_path / "rows").exists()


def test_rows_of_anything_else_are_thrown_away_with_their_statistics(tmp_path):
    rows = Rows(tmp_path / "rows", FROM)
    rows.extend(20, ["features"], Counted())
    rows.statistics("features")
    assert Rows(tmp_path / "rows", FROM).count("features") == 20
    assert Rows(tmp_path / "rows", {**FROM, "sha256": "2"}).count("features") == 0
    assert not list(tmp_path.rglob("*.npz"))


def test_statistics_are_kept_and_made_again_where_they_are_damaged(tmp_path):
    rows = Rows(tmp_path / "rows", FROM)
    rows.extend(20, ["features"], Counted())
    first = rows.statistics("features")
    np.testing.assert_allclose(first.sigma, np.cov(ROWS["features"].astype(float), rowvar=False), rtol=1e-12)
    (kept,) = (tmp_path / "rows").glob("*.npz")
    time = kept.stat().st_mtime_ns
    again = rows.statistics("features")
    assert kept.stat().st_mtime_ns == time
    np.testing.assert_array_equal(again.sigma, first.sigma)
    kept.write_bytes(kept.read_bytes()[:200])
    np.testing.assert_array_equal(rows.statistics("features").mu, first.mu)
    np.testing.assert_array_equal(read_statistics(kept).mu, first.mu)


def test_statistics_of_fewer_rows_are_not_those_of_more(tmp_path):
    rows = Rows(tmp_path / "rows", FROM)
    rows.extend(10, ["features"], Counted(last=10))
    ten = rows.statistics("features")
    rows.extend(20, ["features"], Counted())
    np.testing.assert_allclose(rows.statistics("features").mu, ROWS["features"].mean(0, np.float64), rtol=1e-12)
    assert not np.allclose(rows.statistics("features").mu, ten.mu)


def test_statistics_files_hold_mu_and_sigma_for_everybody(tmp_path):
    rows = Rows(tmp_path / "rows", FROM)
    rows.extend(20, ["features"], Counted())
    write_statistics(tmp_path / "s.npz", rows.statistics("features"))
    with np.load(tmp_path / "s.npz") as arrays:
        assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
            "mu": ((5,), np.float64),
            "sigma": ((5, 5), np.float64),
        }
    np.savez(tmp_path / "theirs.npz", mu=np.float32([1, 2]), sigma=np.eye(2, dtype=np.float32))
    assert read_statistics(tmp_path / "theirs.npz").sigma.dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "is not an npz file with mu and sigma"),
        (
            {"mu": np.zeros(3), "sigma": np.zeros((3, 2))},
            r"mu must be \[D\] and sigma \[D, D\], not \(3,\) and \(3, 2\)",
        ),
        ({"mu": np.zeros((3, 3)), "sigma": np.zeros((3, 3))}, r"mu must be \[D\] and sigma \[D, D\]"),
        ({"mu": np.array([object()]), "sigma": np.zeros((1, 1))}, "is not an npz file with mu and sigma"),
    ],
)
def test_statistics_of_another_form_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_statistics(tmp_path / "s.npz")


def test_radii_are_kept_and_made_again_where_they_are_damaged(tmp_path):
    """The distance to the third nearest other row, by a loop."""
    rows = Rows(tmp_path / "rows", FROM)
    rows.extend(20, ["features"], Counted())
    x = ROWS["features"].astype(float)
    expected = [sorted(float(np.linalg.norm(a - b)) for b in x)[3] for a in x]
    np.testing.assert_allclose(rows.radii("features", 3), expected, rtol=1e-5)
    (kept,) = (tmp_path / "rows").glob("*radii*")
    before = kept.stat().st_mtime_ns
    rows.radii("features", 3)
    assert kept.stat().st_mtime_ns == before
    kept.write_bytes(b"damaged")
    np.testing.assert_allclose(rows.radii("features", 3), expected, rtol=1e-5)
    assert not np.allclose(rows.radii("features", 5), expected)
