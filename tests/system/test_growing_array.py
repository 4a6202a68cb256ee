"""Arrays on disk that grow, as numpy reads them and as a kill leaves them."""

import numpy as np
import pytest

from diffuse.system.errors import UserError
from diffuse.system.growing_array import GrowingArray, whole_rows

ROWS = np.random.default_rng(0).integers(0, 256, (40, 3, 4), np.uint8)
SHAPE = ROWS.shape[1:]


def written(path, *parts):
    for part in parts:
        with GrowingArray(path, ROWS.dtype, SHAPE) as array:
            array.append(part)
    return path


def test_it_ends_as_an_ordinary_npy_file(tmp_path):
    path = written(tmp_path / "rows.npy", ROWS[:1], ROWS[1:30], ROWS[30:])
    np.testing.assert_array_equal(np.load(path), ROWS)
    np.testing.assert_array_equal(whole_rows(path), ROWS)


def test_no_rows_are_an_empty_array(tmp_path):
    path = written(tmp_path / "rows.npy", ROWS[:0])
    assert np.load(path).shape == whole_rows(path).shape == (0, *SHAPE)


@pytest.mark.parametrize(("lost", "left"), [(0, 40), (1, 39), (12, 39), (13, 38), (480, 0)])
def test_after_a_kill_the_whole_rows_are_kept_and_the_rest_is_written_again(tmp_path, lost, left):
    path = written(tmp_path / "rows.npy", ROWS)
    path.write_bytes(path.read_bytes()[: -lost or None])
    assert len(whole_rows(path)) == left
    with GrowingArray(path, ROWS.dtype, SHAPE) as array:
        assert array.count == left
        array.append(ROWS[left:])
    np.testing.assert_array_equal(np.load(path), ROWS)


def test_rows_count_by_the_size_of_the_file_while_it_is_open(tmp_path):
    with GrowingArray(tmp_path / "rows.npy", ROWS.dtype, SHAPE) as array:
        array.append(ROWS[:7])
        array.file.flush()
        np.testing.assert_array_equal(whole_rows(tmp_path / "rows.npy"), ROWS[:7])


@pytest.mark.parametrize("content", [b"", b"\x93NUM", b"something else altogether, longer than a header" * 9])
def test_a_file_without_a_header_is_begun_again(tmp_path, content):
    path = tmp_path / "rows.npy"
    path.write_bytes(content)
    np.testing.assert_array_equal(np.load(written(path, ROWS)), ROWS)


def test_rows_of_another_kind_are_begun_again(tmp_path):
    path = written(tmp_path / "rows.npy", ROWS)
    with GrowingArray(path, np.dtype(np.float32), (2,)) as array:
        array.append(np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(np.load(path), np.ones((3, 2)))


def test_a_row_of_another_shape_is_refused(tmp_path):
    reason = r"rows.npy has images of shape \(4, 4\), not \(3, 4\)"
    with GrowingArray(tmp_path / "rows.npy", ROWS.dtype, SHAPE) as array, pytest.raises(UserError, match=reason):
        array.append(np.zeros((1, 4, 4), np.uint8))
