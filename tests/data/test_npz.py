"""dataset=npz: arrays of one's own, read in blocks; what is something else is refused, and nothing in it runs."""

import os
from pathlib import Path

import numpy as np
import pytest

from diffuse.data import npz as npz_files
from diffuse.data.datasets import npz
from diffuse.data.images import Dataset
from diffuse.system.errors import UserError
from tests.support.making import random

STACK = random(50, 6, 6, 3)
KINDS = np.arange(50) * 7 % 5


def npz_of(path: Path, *arrays: np.ndarray, compressed: bool = False) -> str:
    (np.savez_compressed if compressed else np.savez)(path, *arrays)
    return str(path)


def held(data: Dataset, count: int = 50) -> np.ndarray:
    """Which images of STACK are tested on, where each is there once, in order, with its label."""
    known = {image.transpose(2, 0, 1).tobytes(): number for number, image in enumerate(STACK)}
    rows = [[known[image.tobytes()] for image in split.images] for split in (data.train, data.test)]
    assert rows == [sorted(rows[0]), sorted(rows[1])]
    assert sorted(rows[0] + rows[1]) == list(range(count))
    for split, places in zip((data.train, data.test), rows, strict=True):
        assert split.labels.tolist() == KINDS[places].tolist()
    return np.isin(np.arange(count), rows[1])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("block", [7, 50, 256])
def test_npz_files_are_read_in_blocks(compressed, block, tmp_path, monkeypatch):
    monkeypatch.setattr(npz_files, "BLOCK_IMAGES", block)
    data = npz(tmp_path, npz_of(tmp_path / "some.npz", STACK, KINDS, compressed=compressed), holdout=0.2)
    assert held(data).sum() == 10
    assert data.kind.classes == ["0", "1", "2", "3", "4"]
    assert (data.kind.name, data.kind.channels, data.kind.size) == ("some", 3, (6, 6))


def test_what_an_npz_holds_out_is_fixed_by_the_seed(tmp_path):
    path = npz_of(tmp_path / "some.npz", STACK, KINDS)
    first = held(npz(tmp_path, path))
    assert (held(npz(tmp_path / "other", path)) == first).all()
    assert (held(npz(tmp_path, path, split_seed=1)) != first).any()


@pytest.mark.parametrize("axis", [None, -1])
def test_grey_npz_files_need_no_axis_for_it(axis, tmp_path):
    grey = STACK[..., 0] if axis is None else STACK[..., :1]
    path = npz_of(tmp_path / "grey.npz", grey)
    data = npz(tmp_path, path, test_path=path)
    assert (data.kind.channels, data.kind.classes, data.train.labels) == (1, [], None)
    np.testing.assert_array_equal(data.train.images, STACK[:, None, :, :, 0])


@pytest.mark.parametrize("labels", [[], [KINDS.astype(np.uint8)]])
def test_a_second_npz_to_test_on(labels, tmp_path):
    first = npz_of(tmp_path / "train.npz", STACK, *labels)
    second = npz_of(tmp_path / "test.npz", STACK[::-1][:20], *(part[::-1][:20] + 3 for part in labels), compressed=True)
    data = npz(tmp_path, first, test_path=second)
    np.testing.assert_array_equal(data.train.images, STACK.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test.images, STACK[::-1][:20].transpose(0, 3, 1, 2))
    if labels:
        assert data.kind.classes == [str(number) for number in range(8)]
        np.testing.assert_array_equal(data.train.labels, KINDS)
        np.testing.assert_array_equal(data.test.labels, KINDS[::-1][:20] + 3)
    else:
        assert (data.kind.classes, data.train.labels, data.test.labels) == ([], None, None)


def test_two_npz_files_of_different_shape_do_not_go_together(tmp_path):
    first, second = npz_of(tmp_path / "a.npz", STACK), npz_of(tmp_path / "b.npz", STACK[:, :5, :5])
    with pytest.raises(UserError, match="dataset.test_path=.*b.npz has images of another shape than dataset.path="):
        npz(tmp_path, first, test_path=second)


def test_classes_need_labels_in_both_npz_files(tmp_path):
    """Otherwise a network could be asked to learn from labels that are not there."""
    labelled, plain = npz_of(tmp_path / "a.npz", STACK, KINDS), npz_of(tmp_path / "b.npz", STACK)
    assert npz(tmp_path, plain, test_path=labelled).kind.classes == []
    assert npz(tmp_path, labelled, test_path=plain).kind.classes == []


def test_rewriting_an_npz_prepares_anew(tmp_path):
    path = npz_of(tmp_path / "some.npz", STACK[::-1], KINDS)
    npz(tmp_path, path).train.images  # noqa: B018
    npz_of(tmp_path / "some.npz", STACK, KINDS)
    os.utime(path, ns=(1, 1))
    held(npz(tmp_path, path))


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ([STACK.astype(np.float32)], "holds float32 values, and no 8-bit pixels: set dataset.normalise="),
        ([STACK.astype(np.int16)], "holds int16 values, and no 8-bit pixels"),
        ([STACK.astype(complex)], r"arr_0 must hold images \[N, H, W, C\] of numbers, not complex128 \(50, 6, 6, 3\)"),
        ([STACK > 9], "of numbers, not bool"),
        (
            [STACK.transpose(0, 3, 1, 2)],
            r"\(50, 3, 6, 6\), which would be 6 channels of 3 x 6 pixels: .*layout=N",
        ),
        ([np.zeros((9, 6), np.uint8)], "uint8"),
        ([np.zeros((0, 6, 6, 3), np.uint8)], "uint8"),
        ([np.asfortranarray(STACK)], "column-major"),
        ([STACK, KINDS[:-1]], r"arr_1 must hold a label, a whole number, for each of 50 images, not int64 \(49,\)"),
        ([STACK, KINDS - 1], "arr_1 must hold labels from 0 to 99999, and they are from -1 to 3"),
        ([STACK, KINDS.astype(np.float32)], "arr_1 must hold a label, .* not float32"),
        ([STACK, KINDS[:, None]], r"arr_1 must hold a label, .* not int64 \(50, 1\)"),
    ],
)
def test_an_npz_with_something_else_is_refused(arrays, why, tmp_path):
    path = npz_of(tmp_path / "odd.npz", *arrays)
    with pytest.raises(UserError, match=rf"(?s)odd\.npz.*{why}"):
        npz(tmp_path, path)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_npz_that_would_run_code_is_refused(tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    for number, arrays in enumerate([(trap,), (STACK, trap)]):
        path = npz_of(tmp_path / f"{number}.npz", *arrays)
        with pytest.raises(UserError, match=f"{number}.npz"):
            npz(tmp_path, path)
    assert not (tmp_path / "sprung").exists()
    np.load(path, allow_pickle=True)["arr_1"]
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_npz_is_refused_or_read_rightly(compressed, tmp_path):
    """Cut short, or with a byte of its files changed: no other error, and never other images."""
    path = tmp_path / "some.npz"
    content = Path(npz_of(path, STACK[:6], KINDS[:6], compressed=compressed)).read_bytes()
    refused = 0
    for at in range(0, content.index(b"PK\1\2"), 5):  # the directory at the end has no checksum
        changed = bytearray(content)
        changed[at] ^= 0xFF
        path.write_bytes(content[:at] if at % 4 == 0 else changed)
        try:
            held(npz(tmp_path / str(at), str(path)), 6)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 100


def test_an_encrypted_npz_is_refused(tmp_path):
    path = tmp_path / "some.npz"
    content = bytearray(Path(npz_of(path, STACK)).read_bytes())
    for entry, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(entry) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="some.npz is not an npz file with images: .* encrypted"):
        npz(tmp_path, str(path))


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no zip file")
    np.save(tmp_path / "one.npy", STACK)
    for name in ("text.npz", "one.npy"):
        with pytest.raises(UserError, match=f"{name} is not an npz file with images"):
            npz(tmp_path, str(tmp_path / name))


def test_an_npz_of_one_image_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="has 1 image; at least 2 are needed"):
        npz(tmp_path, npz_of(tmp_path / "one.npz", STACK[:1]))


def test_arrays_may_be_called_images_and_labels(tmp_path):
    np.savez(tmp_path / "named.npz", images=STACK, labels=KINDS)
    assert held(npz(tmp_path, str(tmp_path / "named.npz"), holdout=0.2)).sum() == 10


def test_other_names_are_listed(tmp_path):
    np.savez(tmp_path / "strange.npz", pixels=STACK)
    with pytest.raises(UserError, match=r"strange.npz has no arr_0 or images; it has pixels.npy"):
        npz(tmp_path, str(tmp_path / "strange.npz"))
