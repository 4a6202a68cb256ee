"""Where the images of a data set come from: torchvision's sets, CIFAR-10's binary files, folders, npz files."""

import hashlib
import inspect
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from diffuse.errors import UserError
from diffuse.imagefiles import BLOCK, SUFFIXES, Shape, decode
from diffuse.prepare import Block, Source
from diffuse.randomness import hashed

# The official files, https://www.cs.toronto.edu/~kriz/cifar.html, and their SHA-1.
CIFAR10_BINARY = {
    "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
}
SPLITS = ("train", "test")
TEST_FOLDERS = ("test", "val", "valid", "validation")
# What zipfile, zlib and numpy raise where an npz file is damaged, encrypted or something else.
DAMAGED = (OSError, EOFError, LookupError, RuntimeError, ValueError, TokenError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class TorchvisionSet:
    """One of torchvision's data sets, downloaded into data_dir when it is first opened and not there.

    class_name: in torchvision.datasets; layout: in words, what torchvision looks for in data_dir.
    """

    class_name: str
    data_dir: Path
    layout: str

    def open(self, split: str) -> Any:
        """torchvision's own object for a split, or a UserError that says what to put where."""
        from torchvision import datasets  # as slow to import as torch itself, and needed only once for each data set

        opener = getattr(datasets, self.class_name)
        by_train = "train" in inspect.signature(opener).parameters
        which: dict[str, Any] = {"train": split == "train"} if by_train else {"split": split}
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            return opener(str(self.data_dir), download=True, **which)
        except Exception as error:  # no network, half a download, a damaged file: each has its own type
            why = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{self.class_name} is not in {self.data_dir} as torchvision keeps it, and downloading failed: {why}\n"
                f"Put {self.layout} there (remove what is damaged), or name the folder that has it with data_dir="
            ) from error

    def arrays(self) -> dict[str, Source]:
        """The splits of a set of small images, which torchvision reads into memory."""
        opened = {split: self.open(split) for split in SPLITS}
        labels = {split: getattr(data, "targets", getattr(data, "labels", None)) for split, data in opened.items()}
        return {split: from_array(np.asarray(data.data), labels[split]) for split, data in opened.items()}

    def celeba(self, shape: Shape) -> dict[str, Source]:
        """CelebA's files."""
        folder = self.data_dir / "celeba" / "img_align_celeba"
        names = {split: self.open(split).filename for split in SPLITS}
        return {split: from_files(folder, names[split], None, shape) for split in SPLITS}

    def flowers102(self, shape: Shape) -> dict[str, Source]:
        """Flowers102's files, the validation split among the training images."""
        train, val, test = (self.open(split) for split in ("train", "val", "test"))
        # torchvision gives no other way to the files than to decode them all in this process
        files = {"train": train._image_files + val._image_files, "test": test._image_files}
        labels = {"train": train._labels + val._labels, "test": test._labels}
        folder = self.data_dir / "flowers-102" / "jpg"
        names = {split: [path.name for path in files[split]] for split in SPLITS}
        return {split: from_files(folder, names[split], labels[split], shape) for split in SPLITS}


def from_array(images: np.ndarray, labels: Any) -> Source:
    """Images in memory, uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], and their labels."""
    classes = np.asarray(labels, np.int64)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    blocks = ((images[at : at + BLOCK], classes[at : at + BLOCK]) for at in range(0, len(images), BLOCK))
    return Source(len(images), blocks)


def from_files(root: Path, names: Sequence[str], labels: Sequence[int] | None, shape: Shape) -> Source:
    """Image files, named relative to root, decoded in parallel."""
    unreadable: list[str] = []

    def blocks() -> Iterator[Block]:
        at = 0
        for images, wrong in decode([f"{root}/{name}" for name in names], shape):
            good = np.array([number not in wrong for number in range(len(images))])
            for number, why in wrong.items():
                name = names[at + number].encode(errors="backslashreplace").decode()  # it may be in any encoding
                unreadable.append(f"{name} ({why})")
            classes = None if labels is None else np.asarray(labels[at : at + len(images)], np.int64)[good]
            yield images[good], classes
            at += len(images)

    def blocks_or_reason() -> Iterator[Block]:
        try:
            yield from blocks()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that decoded images was ended by the system, probably for want of memory; "
                "try again with more memory free"
            ) from error

    return Source(len(names), blocks_or_reason(), unreadable)


def cifar10_binary(data_dir: Path) -> Callable[[str], bytes] | None:
    """How to read a file of CIFAR-10's binary distribution in data_dir, unpacked or not; None where it is not there."""
    folder, archive = data_dir / "cifar-10-batches-bin", data_dir / "cifar-10-binary.tar.gz"
    if folder.is_dir():
        return lambda name: (folder / name).read_bytes()
    if not archive.is_file():
        return None

    def from_archive(name: str) -> bytes:
        with tarfile.open(archive) as members:
            file = members.extractfile(f"{folder.name}/{name}")
            return file.read() if file else b""

    return from_archive


def from_cifar10_binary(read: Callable[[str], bytes]) -> dict[str, Source]:
    """Both splits of CIFAR-10 from files of 10,000 records: a label, then 3 x 32 x 32 bytes."""

    def blocks(names: Sequence[str]) -> Iterator[Block]:
        for name in names:
            try:
                content = read(name)
            except (OSError, KeyError, EOFError, tarfile.TarError) as error:
                raise UserError(f"CIFAR-10's {name} cannot be read: {error}; download the archive again") from error
            if hashlib.sha1(content).hexdigest() != CIFAR10_BINARY[name]:
                raise UserError(f"CIFAR-10's {name} is not the official file; download the archive again")
            records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            yield records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)

    *train, test = CIFAR10_BINARY
    return {"train": Source(50_000, blocks(train)), "test": Source(10_000, blocks([test]))}


def image_files(folder: Path) -> list[str]:
    """All images in a folder and below, as sorted paths relative to it; hidden files and folders are passed over."""
    found, seen = [], set()
    for inside, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(inside)
        if (status.st_dev, status.st_ino) in seen:  # links that lead in a circle
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = "" if inside == str(folder) else Path(inside).relative_to(folder).as_posix() + "/"
        found += [below + name for name in files if is_image(name)]
    return sorted(found)


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def split_folders(folder: Path) -> dict[str, str]:
    """Where each split lies: in folders `train` and `test` (or `val`, `valid`, `validation`), or all of it is one."""
    tests = [name for name in TEST_FOLDERS if (folder / name).is_dir()]
    return {"train": "train", "test": tests[0]} if (folder / "train").is_dir() and tests else {"train": ""}


def class_of(name: str) -> str | None:
    """The subfolder that an image lies in, or None for an image in the folder itself."""
    folder, slash, _ = name.partition("/")
    return folder if slash else None


def held_out(names: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Which of these names are kept for testing: a mask with `share` of them, at least one and never all.

    Names are put in the order of a hash of (seed, name), so which images are held out hardly changes when others are
    added or removed.
    """
    order = sorted(range(len(names)), key=lambda number: hashed("held out", seed, names[number]))
    mask = np.zeros(len(names), bool)
    mask[order[: min(max(1, round(share * len(names))), len(names) - 1)]] = True
    return mask


def fingerprint(root: Path, names: Sequence[str]) -> str:
    """What changes when a file is added, removed, renamed or rewritten; contents are not read."""
    digest = hashlib.sha256()
    for name in names:
        try:
            status = os.stat(f"{root}/{name}")
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:  # a link to nothing, say: whoever reads it will be told
            state = "unreadable"
        digest.update(os.fsencode(f"{name}\0{state}\n"))
    return digest.hexdigest()


class NpzImages:
    """An npz file with arr_0, uint8 images [N, H, W, C] or [N, H, W], and perhaps arr_1, labels [N].

    Images are read in blocks, never as a whole, whether they are compressed or not. Raises UserError where the file
    is something else.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
                shape, dtype = _header(file)
            self.labels = self._labels() if "arr_1.npy" in archive.namelist() else None
        except DAMAGED as error:
            raise UserError(f"{path} is no npz file with images as arr_0: {error}") from error
        self.count, self.size, width, self.channels = (*shape, 1)[:4] if len(shape) in (3, 4) else (0, 0, 0, 0)
        if dtype != np.uint8 or self.size != width or self.channels not in (1, 3) or self.count < 1:
            raise UserError(
                f"{path}: arr_0 must hold uint8 images [N, H, W, C], square, with 1 or 3 channels, not {dtype} {shape}"
            )
        if self.labels is not None and (len(self.labels) != self.count or self.labels.min() < 0):
            raise UserError(f"{path}: arr_1 must hold a label of 0 or more for each of {self.count:,} images")

    def _labels(self) -> np.ndarray:
        with np.load(self.path, allow_pickle=False) as arrays:
            labels = arrays["arr_1"]
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
            raise UserError(f"{self.path}: arr_1 must hold whole numbers [N], not {labels.dtype} {labels.shape}")
        return np.asarray(labels.astype(np.int64))

    def source(self, rows: np.ndarray) -> Source:
        """The images whose place in the mask `rows` is true."""

        def blocks() -> Iterator[Block]:
            image_bytes = self.size**2 * self.channels
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
                _header(file)
                for at in range(0, self.count, BLOCK):
                    here = rows[at : at + BLOCK]
                    content = file.read(len(here) * image_bytes)
                    images = np.frombuffer(content, np.uint8).reshape(-1, self.size, self.size, self.channels)
                    classes = None if self.labels is None else self.labels[at : at + BLOCK][here]
                    yield images.transpose(0, 3, 1, 2)[here], classes

        def blocks_or_reason() -> Iterator[Block]:
            try:
                yield from blocks()
            except DAMAGED as error:
                raise UserError(f"{self.path} is damaged: {error}") from error

        return Source(int(rows.sum()), blocks_or_reason())


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a .npy file in row-major order, leaving the file where its numbers begin."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, dtype = read(file)
    if column_major:
        raise ValueError("its numbers are in column-major order")
    return shape, dtype
