"""Where images come from: folders, npz files, and torchvision's sets, made small by hand in torchvision's layout."""

import hashlib
import itertools
import os
import pickle
import struct
import sys
import tarfile
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as theirs
from PIL import Image

from diffuse import datasets, imagefiles, sources, userdata
from diffuse.datasets import folder, npz
from diffuse.errors import UserError
from diffuse.images import Dataset
from diffuse.prepare import Split

REAL_DATA = os.environ.get("DIFFUSE_TEST_DATA")


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def photo(number: int) -> np.ndarray:
    """4 x 4 pixels that no other number has, [H, W, C]."""
    return random(4, 4, 3, seed=number)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_all(root: Path, *names: str) -> None:
    """photo(0), photo(1), ... under these names."""
    for number, name in enumerate(names):
        save(root / name, photo(number))


def opened(root: Path, **options) -> Dataset:
    return folder(root.parent / "data", str(root), **{"size": 4, **options})


def numbers(split: Split) -> list[int]:
    """Which photos a split has, in its order."""
    known = {photo(number).transpose(2, 0, 1).tobytes(): number for number in range(130)}
    return [known[image.tobytes()] for image in split.images]


def everything(data: Dataset) -> list[int]:
    return sorted(numbers(data.train) + numbers(data.test))


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "My photos"


# Folders.


def test_a_folder_without_subfolders_has_no_classes(root):
    save_all(root, *(f"{number}.png" for number in range(10)))
    data = opened(root)
    assert everything(data) == list(range(10))
    assert data.kind.name == "My-photos"
    assert data.kind.classes == []
    assert data.train.labels is None
    assert data.test.labels is None


def test_subfolders_are_classes(root):
    save_all(root, "dog/0.png", "cat/1.png", "dog/2.png", "an ant/3.png", "dog/old/deep/4.png")
    data = opened(root, holdout=0.4)
    assert data.kind.classes == ["an ant", "cat", "dog"]
    right = {0: 2, 1: 1, 2: 2, 3: 0, 4: 2}
    assert everything(data) == sorted(right)
    for split in (data.train, data.test):
        assert [right[number] for number in numbers(split)] == split.labels.tolist()


def test_images_beside_the_subfolders_have_no_class_so_none_has(root):
    save_all(root, "dog/0.png", "cat/1.png", "2.png")
    data = opened(root)
    assert everything(data) == [0, 1, 2]
    assert data.kind.classes == []
    assert data.train.labels is None


def test_only_images_that_are_not_hidden_are_taken(root):
    save_all(root, "0.png", "1.PNG", "2.Jpeg", "3.webp", "4.bmp", "a/b/5.JPG", ".6.png", ".thumbs/7.png", "a/.b/8.png")
    for name in ("notes.txt", "png", "list.png.txt"):
        (root / name).write_text("no image")
    names = userdata.image_files(root)
    assert names == ["0.png", "1.PNG", "2.Jpeg", "3.webp", "4.bmp", "a/b/5.JPG"]
    assert len(opened(root).train.images) + len(opened(root).test.images) == 6


def test_links_are_followed_but_not_in_a_circle(root):
    save_all(root, "a/0.png", "a/1.png")
    save_all(root.parent / "elsewhere", "2.png", "3.png", "4.png")
    (root / "a" / "up").symlink_to(root)
    (root / "b").symlink_to(root.parent / "elsewhere")
    (root / "b" / "b").symlink_to(root / "b")
    assert userdata.image_files(root) == ["a/0.png", "a/1.png", "b/2.png", "b/3.png", "b/4.png"]


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(root):
    save_all(root, "0.png", "1.png", "2.png")
    (root / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png \(is not there\)"):
        opened(root).train.images  # noqa: B018
    assert everything(opened(root, skip_bad=True)) == [0, 1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_may_be_in_any_encoding(root):
    save_all(root, "0.png", "1.png", "größe 2.png")
    bad = os.fsencode(root) + b"/gr\xf6\xdfe.png"
    with open(bad, "wb") as file:
        file.write(b"no image")
    with pytest.raises(UserError, match="e.png") as caught:
        opened(root).train.images  # noqa: B018
    str(caught.value).encode()
    assert everything(opened(root, skip_bad=True, holdout=0.5)) == [0, 1, 2]


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_a_folder_may_be_split_already(test, root):
    save_all(root, "train/dog/0.png", "train/cat/1.png", f"{test}/cat/2.png", "train/dog/3.png", "other/4.png")
    data = opened(root)
    assert numbers(data.train) == [1, 0, 3]
    assert numbers(data.test) == [2]
    assert data.kind.classes == ["cat", "dog"]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1, 1], [0])


def test_a_test_folder_goes_before_a_validation_folder(root):
    save_all(root, "train/0.png", "val/1.png", "test/2.png")
    assert (numbers(opened(root).train), numbers(opened(root).test)) == ([0], [2])


@pytest.mark.parametrize(("share", "count"), [(0.1, 12), (0.25, 30), (0.001, 1), (0.9999, 119)])
def test_the_share_asked_for_is_held_out(share, count, root):
    save_all(root, *(f"{number}.png" for number in range(120)))
    data = opened(root, holdout=share)
    assert len(data.test.images) == count
    assert everything(data) == list(range(120))


def test_what_is_held_out_is_fixed_by_names_and_seed(root):
    save_all(root, *(f"{number}.png" for number in range(60)))
    root.with_name("copy").mkdir()
    for path in root.iterdir():
        root.with_name("copy").joinpath(path.name).write_bytes(path.read_bytes())
    held = numbers(opened(root).test)
    assert numbers(opened(root.with_name("copy")).test) == held
    assert numbers(opened(root, split_seed=1).test) != held


def test_what_is_held_out_hardly_moves_when_a_file_is_added(root):
    save_all(root, *(f"{number}.png" for number in range(100)))
    before = set(numbers(opened(root).test))
    for added in range(100, 104):
        save(root / f"{added}.png", photo(added))
        after = set(numbers(opened(root).test))
        assert len(before - after) <= 1
        assert len(after - before) <= 1
        before = after


def test_editing_an_image_prepares_anew(root):
    save_all(root, "0.png", "1.png", "2.png")
    assert everything(opened(root)) == [0, 1, 2]
    save(root / "1.png", photo(7))
    os.utime(root / "1.png", ns=(1, 1))  # the clock of files may tick too slowly for a test
    assert everything(opened(root)) == [0, 2, 7]
    (root / "0.png").rename(root / "a.png")
    assert everything(opened(root)) == [0, 2, 7]
    assert len(list(root.parent.glob("data/prepared/My-photos-*"))) == 3


def test_moving_an_image_to_another_class_prepares_anew(root):
    """Though the files and their order stay as they are."""
    save_all(root, "cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png")
    before = opened(root)
    assert sorted([*before.train.labels, *before.test.labels]) == [0, 0, 1, 1]
    (root / "cat" / "1.png").rename(root / "dog" / "1.png")
    after = opened(root)
    assert sorted([*after.train.labels, *after.test.labels]) == [0, 1, 1, 1]


def test_size_channels_and_fit_prepare_anew(root):
    save_all(root, "0.png", "1.png", "2.png")
    save(root / "1.png", random(4, 8, 3))
    kinds = [{}, {"size": 5}, {"channels": 1}, {"fit": "resize"}]
    seen = {opened(root, **options).train.images.tobytes() for options in kinds}
    assert len(seen) == len(kinds)
    assert [opened(root, **options).train.images.shape[1:] for options in kinds] == [
        (3, 4, 4),
        (3, 5, 5),
        (1, 4, 4),
        (3, 4, 4),
    ]


def test_pad_and_flip_change_no_array(root):
    save_all(root, "0.png", "1.png")
    data = opened(root, pad=2, flip=True)
    assert everything(data) == [0, 1]
    assert everything(opened(root)) == [0, 1]
    assert (data.flip, data.kind.side) == (True, 8)
    assert len(list(root.parent.glob("data/prepared/My-photos-*"))) == 1


def test_labels_stay_with_their_images_when_some_are_skipped(root, monkeypatch):
    monkeypatch.setattr(imagefiles, "BLOCK", 8)
    save_all(root, *(f"{number % 10}/{number:03}.png" for number in range(40)))
    bad = {0, 1, 5, 17, 20, 38}
    for number in bad:
        (root / f"{number % 10}/{number:03}.png").write_text("no image")
    with pytest.raises(UserError, match=r"^6 of 40 images of My-photos cannot be read: .*7/017\.png \(is no image\)"):
        opened(root).train.images  # noqa: B018
    data = opened(root, skip_bad=True)
    assert everything(data) == sorted(set(range(40)) - bad)
    for split in (data.train, data.test):
        assert split.labels.tolist() == [number % 10 for number in numbers(split)]


# Npz files.

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
    monkeypatch.setattr(sources, "BLOCK", block)
    data = npz(tmp_path, npz_of(tmp_path / "some.npz", STACK, KINDS, compressed=compressed), holdout=0.2)
    assert held(data).sum() == 10
    assert data.kind.classes == ["0", "1", "2", "3", "4"]
    assert (data.kind.name, data.kind.channels, data.kind.size) == ("some", 3, 6)


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
        ([STACK.astype(np.float32)], r"uint8 images \[N, H, W, C\], .* not float32 \(50, 6, 6, 3\)"),
        ([STACK.astype(np.int16)], "uint8"),
        ([STACK[:, :5]], r"square, .* not uint8 \(50, 5, 6, 3\)"),
        ([STACK.transpose(0, 3, 1, 2)], r"square, .* not uint8 \(50, 3, 6, 6\)"),
        ([np.zeros((9, 6, 6, 4), np.uint8)], "1 or 3 channels"),
        ([np.zeros((9, 6), np.uint8)], "uint8"),
        ([np.zeros((0, 6, 6, 3), np.uint8)], "uint8"),
        ([np.asfortranarray(STACK)], "column-major"),
        ([STACK, KINDS[:-1]], "arr_1 must hold a label from 0 to 99999 for each of 50 images"),
        ([STACK, KINDS - 1], "arr_1 must hold a label from 0"),
        ([STACK, KINDS.astype(np.float32)], "arr_1 must hold whole numbers"),
        ([STACK, KINDS[:, None]], "arr_1 must hold whole numbers"),
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
    with pytest.raises(UserError, match="some.npz is no npz file with images as arr_0: .* encrypted"):
        npz(tmp_path, str(path))


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no zip file")
    np.save(tmp_path / "one.npy", STACK)
    np.savez(tmp_path / "named.npz", images=STACK)
    for name in ("text.npz", "one.npy"):
        with pytest.raises(UserError, match=f"{name} is no npz file with images as arr_0"):
            npz(tmp_path, str(tmp_path / name))
    with pytest.raises(UserError, match=r"named.npz has no arr_0 with images; it has images\.npy"):
        npz(tmp_path, str(tmp_path / "named.npz"))


def test_an_npz_of_one_image_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="has 1 image; at least 2 are needed"):
        npz(tmp_path, npz_of(tmp_path / "one.npz", STACK[:1]))


# Torchvision's sets: 6 images to train on and 4 to test on, labels that tell the splits apart.

TRAIN, TEST = random(6, 32, 32, 3, seed=1), random(4, 32, 32, 3, seed=2)
TRAIN_LABELS, TEST_LABELS = [5, 0, 9, 3, 3, 1], [8, 2, 0, 7]


def check(data: Dataset, train: np.ndarray = TRAIN, test: np.ndarray = TEST) -> None:
    """Images [N, H, W, C] and labels are what was put in."""
    np.testing.assert_array_equal(data.train.images, train.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test.images, test.transpose(0, 3, 1, 2))
    assert data.train.labels.tolist() == TRAIN_LABELS
    assert data.test.labels.tolist() == TEST_LABELS
    assert data.kind.shape == (train.shape[3], data.kind.size + 2 * data.kind.pad, data.kind.size + 2 * data.kind.pad)


@pytest.mark.parametrize(("name", "place"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_and_its_twin(name, place, tmp_path):
    raw = tmp_path / place / "raw"
    raw.mkdir(parents=True)
    train, test = TRAIN[:, :28, :28, :1], TEST[:, :28, :28, :1]
    for split, images, labels in (("train", train, TRAIN_LABELS), ("t10k", test, TEST_LABELS)):
        header = struct.pack(">IIII", 2051, len(images), 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(labels)) + bytes(labels))
    data = getattr(datasets, name)(tmp_path)
    check(data, train, test)
    assert (data.kind.name, data.kind.size, data.kind.side, len(data.kind.classes)) == (name, 28, 32, 10)


def parts(images: np.ndarray, labels: list[int]) -> list[tuple[np.ndarray, list[int]]]:
    """CIFAR-10's five training batches: rows of bytes, colours first, and their labels."""
    flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    cuts = [round(len(images) * part / 5) for part in range(6)]
    return [(flat[a:b], labels[a:b]) for a, b in itertools.pairwise(cuts)]


def python_cifar10(data_dir: Path, train: np.ndarray, labels: list[int], test: np.ndarray, tested: list[int]) -> None:
    place = data_dir / "cifar-10-batches-py"
    place.mkdir(parents=True)
    batches = {f"data_batch_{number}": part for number, part in enumerate(parts(train, labels), 1)}
    batches["test_batch"] = (test.transpose(0, 3, 1, 2).reshape(len(test), -1), tested)
    for name, (rows, classes) in batches.items():
        (place / name).write_bytes(pickle.dumps({"data": rows, "labels": classes}))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def binary_cifar10(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images as records of 1 + 3072 bytes, and their hashes in place of the official ones."""
    place.mkdir(parents=True)
    batches = {f"data_batch_{number}.bin": part for number, part in enumerate(parts(TRAIN, TRAIN_LABELS), 1)}
    batches["test_batch.bin"] = (TEST.transpose(0, 3, 1, 2).reshape(len(TEST), -1), TEST_LABELS)
    hashes = {}
    for name, (rows, classes) in batches.items():
        content = b"".join(bytes([label]) + row.tobytes() for row, label in zip(rows, classes, strict=True))
        (place / name).write_bytes(content)
        hashes[name] = hashlib.sha1(content).hexdigest()
    monkeypatch.setattr(sources, "CIFAR10_BINARY", hashes)


@pytest.fixture
def any_cifar10(monkeypatch):
    """Without the hashes by which torchvision knows the official files."""
    monkeypatch.setattr(theirs.CIFAR10, "train_list", [[f"data_batch_{number}", None] for number in range(1, 6)])
    monkeypatch.setattr(theirs.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(theirs.CIFAR10, "meta", theirs.CIFAR10.meta | {"md5": None})


def test_cifar10_in_python(tmp_path, any_cifar10):
    python_cifar10(tmp_path, TRAIN, TRAIN_LABELS, TEST, TEST_LABELS)
    data = datasets.cifar10(tmp_path)
    check(data)
    assert data.kind.classes[:2] == ["airplane", "automobile"]
    assert len(data.kind.classes) == 10


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_in_binary_is_the_same(packed, tmp_path, monkeypatch):
    place = tmp_path / "cifar-10-batches-bin"
    binary_cifar10(place, monkeypatch)
    if packed:
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
            archive.add(place, place.name)
        place.rename(tmp_path / "elsewhere")
    check(datasets.cifar10(tmp_path))


def test_either_distribution_of_cifar10_is_prepared_once(tmp_path, any_cifar10, monkeypatch):
    python_cifar10(tmp_path, TRAIN, TRAIN_LABELS, TEST, TEST_LABELS)
    first = datasets.cifar10(tmp_path)
    check(first)
    (tmp_path / "cifar-10-batches-py").rename(tmp_path / "elsewhere")
    binary_cifar10(tmp_path / "cifar-10-batches-bin", monkeypatch)
    second = datasets.cifar10(tmp_path)
    assert (second.train.sha256, second.test.sha256) == (first.train.sha256, first.test.sha256)
    assert len(list((tmp_path / "prepared").glob("cifar10-*"))) == 1


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_binary_files_that_are_not_the_official_ones_are_refused(damage, tmp_path, monkeypatch):
    place = tmp_path / "cifar-10-batches-bin"
    binary_cifar10(place, monkeypatch)
    path = place / "data_batch_3.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?" if damage == "changed" else content[:-1])
    if damage == "gone":
        path.unlink()
    with pytest.raises(UserError, match="data_batch_3.bin .* download the archive again"):
        datasets.cifar10(tmp_path).train.images  # noqa: B018


def test_half_an_archive_is_refused(tmp_path, monkeypatch):
    binary_cifar10(tmp_path / "elsewhere" / "cifar-10-batches-bin", monkeypatch)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as members:
        members.add(tmp_path / "elsewhere" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(UserError, match="CIFAR-10's .* download the archive again"):
        datasets.cifar10(tmp_path).train.images  # noqa: B018


def test_cifar100_by_its_fine_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(theirs.CIFAR100, "train_list", [["train", None]])
    monkeypatch.setattr(theirs.CIFAR100, "test_list", [["test", None]])
    monkeypatch.setattr(theirs.CIFAR100, "meta", theirs.CIFAR100.meta | {"md5": None})
    place = tmp_path / "cifar-100-python"
    place.mkdir()
    for name, images, labels in (("train", TRAIN, TRAIN_LABELS), ("test", TEST, TEST_LABELS)):
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        batch = {"data": rows, "coarse_labels": [17] * len(rows), "fine_labels": labels}
        (place / name).write_bytes(pickle.dumps(batch))
    (place / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(number) for number in range(100)]}))
    data = datasets.cifar100(tmp_path)
    check(data)
    assert len(data.kind.classes) == 100


def test_svhn_calls_a_zero_ten(tmp_path, monkeypatch):
    monkeypatch.setattr(
        theirs.SVHN, "split_list", {name: ["", f"{name}_32x32.mat", None] for name in ("train", "test")}
    )
    for name, images, labels in (("train", TRAIN, TRAIN_LABELS), ("test", TEST, TEST_LABELS)):
        y = np.array([[label or 10] for label in labels], np.uint8)
        scipy.io.savemat(tmp_path / f"{name}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": y})
    check(datasets.svhn(tmp_path))


def save_as(path: Path, pixels: np.ndarray) -> None:
    """Under a name that ends in .jpg, but without loss: what a file is called does not matter to Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="png")


def test_flowers_train_on_two_of_the_official_splits(tmp_path, monkeypatch):
    files = {key: (name, None) for key, (name, _) in theirs.Flowers102._file_dict.items()}
    monkeypatch.setattr(theirs.Flowers102, "_file_dict", files)
    place = tmp_path / "flowers-102"
    # image 1 is the first of the test images, 2 of the training images, 3 of the validation images, and so on
    splits = {"tstid": [1, 4, 7, 10], "trnid": [2, 5, 8], "valid": [3, 6, 9]}
    order = dict(zip(splits["trnid"] + splits["valid"], range(6), strict=True))
    labels = np.zeros(10, int)
    for number, at in order.items():
        save_as(place / "jpg" / f"image_{number:05}.jpg", TRAIN[at])
        labels[number - 1] = TRAIN_LABELS[at] + 1
    for at, number in enumerate(splits["tstid"]):
        save_as(place / "jpg" / f"image_{number:05}.jpg", TEST[at])
        labels[number - 1] = TEST_LABELS[at] + 1
    scipy.io.savemat(place / "imagelabels.mat", {"labels": labels[None]})
    scipy.io.savemat(place / "setid.mat", {name: np.array([ids]) for name, ids in splits.items()})
    data = datasets.flowers102(tmp_path, size=32)
    check(data)
    assert (len(data.kind.classes), data.kind.classes[0]) == (102, "pink primrose")


def test_celeba_is_cropped_and_split_by_its_list(tmp_path, monkeypatch):
    """Parts 0, 1 and 2 are for training, validation and testing; the second is left out."""
    monkeypatch.setattr(theirs.CelebA, "file_list", [(i, None, name) for i, _, name in theirs.CelebA.file_list])
    place = tmp_path / "celeba"
    faces, part = random(7, 218, 178, 3), [0, 2, 1, 0, 0, 1, 2]
    names = [f"{number:06}.jpg" for number in range(1, 8)]
    for name, face in zip(names, faces, strict=True):
        save_as(place / "img_align_celeba" / name, face)

    def write(file: str, rows: list[str], *header: str) -> None:
        lines = [*header, *(f"{name} {row}" for name, row in zip(names, rows, strict=True))]
        (place / file).write_text("\n".join(lines) + "\n")

    write("list_eval_partition.txt", [str(number) for number in part])
    write("identity_CelebA.txt", [str(number) for number in range(7)])
    write("list_attr_celeba.txt", ["-1  1"] * 7, "7", "Bald Smiling")
    write("list_bbox_celeba.txt", ["95 71 226 313"] * 7, "7", "image_id x_1 y_1 width height")
    write("list_landmarks_align_celeba.txt", ["69 109 106 113 77 142 73 152 108 154"] * 7, "7", "lefteye_x")
    data = datasets.celeba(tmp_path, size=140)
    middle = faces.transpose(0, 3, 1, 2)[:, :, 39:179, 19:159]
    np.testing.assert_array_equal(data.train.images, middle[[0, 3, 4]])
    np.testing.assert_array_equal(data.test.images, middle[[1, 6]])
    assert (data.train.labels, data.kind.classes, data.kind.size) == (None, [], 140)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "celeba", "flowers102"])
def test_what_is_neither_there_nor_to_be_downloaded_is_asked_for(name, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setitem(sys.modules, "gdown", None)  # CelebA comes from Google, by way of this package
    data = getattr(datasets, name)(tmp_path / "here")
    with pytest.raises(UserError) as caught:
        data.train.images  # noqa: B018
    message = str(caught.value)
    assert f"is not in {tmp_path / 'here'} as torchvision keeps it, and downloading failed" in message
    assert "data_dir=" in message
    assert len(message.splitlines()) <= 4
    assert [path.suffix for path in (tmp_path / "here" / "prepared").iterdir()] == [".lock"]


def synthetic(data_dir: Path) -> None:
    python_cifar10(
        data_dir, random(250, 32, 32, 3), (np.arange(250) % 10).tolist(), random(50, 32, 32, 3, seed=9), [3] * 50
    )


def real(data_dir: Path) -> None:
    """Links to the files of a data_dir that has CIFAR-10, to prepare it again here."""
    data_dir.mkdir()
    for path in Path(REAL_DATA).glob("cifar-10-*"):
        (data_dir / path.name).symlink_to(path)


@pytest.mark.parametrize(
    ("put_cifar10_into", "counts"),
    [
        (synthetic, (250, 50)),
        pytest.param(
            real,
            (4500, 500),
            marks=pytest.mark.skipif(REAL_DATA is None, reason="DIFFUSE_TEST_DATA names no folder with CIFAR-10"),
        ),
    ],
)
def test_a_folder_of_cifar10_as_png_files_is_cifar10(put_cifar10_into, counts, tmp_path, request):
    if put_cifar10_into is synthetic:
        request.getfixturevalue("any_cifar10")
    put_cifar10_into(tmp_path / "data")
    cifar = datasets.cifar10(tmp_path / "data")
    rows = {}
    for split, count, images, labels in (
        ("train", counts[0], cifar.train.images, cifar.train.labels),
        ("test", counts[1], cifar.test.images, cifar.test.labels),
    ):
        for number in range(count):
            path = (
                tmp_path / "png" / split / f"{labels[number]} {cifar.kind.classes[labels[number]]}" / f"{number:05}.png"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number].transpose(1, 2, 0)).save(path, compress_level=1)
        rows[split] = np.argsort(labels[:count], kind="stable")
    data = folder(tmp_path / "data", str(tmp_path / "png"), size=32)
    np.testing.assert_array_equal(data.train.images, cifar.train.images[rows["train"]])
    np.testing.assert_array_equal(data.test.images, cifar.test.images[rows["test"]])
    np.testing.assert_array_equal(np.unique(cifar.train.labels[rows["train"]]), np.unique(data.train.labels))
    assert [data.kind.classes[label][2:] for label in data.train.labels] == [
        cifar.kind.classes[label] for label in cifar.train.labels[rows["train"]]
    ]
