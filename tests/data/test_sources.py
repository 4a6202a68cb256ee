"""torchvision's sets and CIFAR-10's binary files: images and labels exactly as they were put in, splits apart."""

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

from diffuse.data import datasets, sources
from diffuse.data.datasets import folder
from diffuse.data.images import Dataset
from diffuse.system.errors import UserError
from tests.support.making import random

REAL_DATA = os.environ.get("DIFFUSE_TEST_DATA")

# Torchvision's sets: 6 images to train on and 4 to test on, labels that tell the splits apart.

TRAIN, TEST = random(6, 32, 32, 3, seed=1), random(4, 32, 32, 3, seed=2)
TRAIN_LABELS, TEST_LABELS = [5, 0, 9, 3, 3, 1], [8, 2, 0, 7]


def check(data: Dataset, train: np.ndarray = TRAIN, test: np.ndarray = TEST) -> None:
    """Images [N, H, W, C] and labels are what was put in."""
    np.testing.assert_array_equal(data.train.images, train.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test.images, test.transpose(0, 3, 1, 2))
    assert data.train.labels.tolist() == TRAIN_LABELS
    assert data.test.labels.tolist() == TEST_LABELS
    assert data.kind.shape == (train.shape[3], *(side + 2 * data.kind.pad for side in data.kind.size))


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
    assert (data.kind.name, data.kind.size, data.kind.padded_size, len(data.kind.classes)) == (
        name,
        (28, 28),
        (32, 32),
        10,
    )


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
    assert (data.train.labels, data.kind.classes, data.kind.size) == (None, [], (140, 140))


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
