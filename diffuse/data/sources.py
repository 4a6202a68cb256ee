"""Where the images of a data set come from: torchvision's data sets, CIFAR-10's binary files, any image files."""

import hashlib
import inspect
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.data.arrays import Block, Source
from diffuse.data.decoding import BLOCK_IMAGES, Shape, decode
from diffuse.system.errors import UserError

# The official files, https://www.cs.toronto.edu/~kriz/cifar.html, and their SHA-1.
CIFAR10_BINARY = {
    "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
}
CIFAR10_FOLDER, CIFAR10_ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class TorchvisionSet:
    """One of torchvision's data sets, downloaded into data_dir if it is not there when it is opened.

    class_name: in torchvision.datasets; layout: the files that torchvision looks for in data_dir, for messages.
    """

    class_name: str
    data_dir: Path
    layout: str

    def open(self, split: str) -> Any:
        """torchvision's own object for a split; raises a UserError that says which files to put where."""
        from torchvision import datasets  # as slow to import as torch itself, and needed only once for each data set

        opener = getattr(datasets, self.class_name)
        takes_train = "train" in inspect.signature(opener).parameters
        which: dict[str, Any] = {"train": split == "train"} if takes_train else {"split": split}
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            return opener(str(self.data_dir), download=True, **which)
        except Exception as error:  # no network, half a download, a damaged file: each has its own type
            why = " ".join(str(error).split())[:120] or type(error).__name__
            raise UserError(
                f"{self.class_name} is not in {self.data_dir} as torchvision keeps it, and downloading failed: {why}\n"
                f"Put {self.layout} there (remove what is damaged), or name the folder that has it with data_dir="
            ) from error

    def arrays(self) -> dict[str, Source]:
        """The splits of a data set of small images, which torchvision reads into memory."""
        opened = {split: self.open(split) for split in SPLITS}
        labels = "labels" if self.class_name == "SVHN" else "targets"
        return {split: from_array(np.asarray(data.data), getattr(data, labels)) for split, data in opened.items()}

    def celeba(self, shape: Shape) -> dict[str, Source]:
        """The splits of CelebA, without labels."""
        folder = self.data_dir / "celeba" / "img_align_celeba"
        return {split: from_files(folder, self.open(split).filename, None, shape) for split in SPLITS}

    def flowers102(self, shape: Shape) -> dict[str, Source]:
        """The splits of Flowers102, with the validation images among the training images."""
        train, val, test = (self.open(split) for split in ("train", "val", "test"))
        # Private attributes: torchvision's public ones give images that are decoded already, in this process.
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
    starts = range(0, len(images), BLOCK_IMAGES)
    return Source(len(images), ((images[at : at + BLOCK_IMAGES], classes[at : at + BLOCK_IMAGES]) for at in starts))


def from_files(root: Path, names: Sequence[str], labels: Sequence[int] | None, shape: Shape) -> Source:
    """Image files, whose names are relative to root, decoded in parallel."""
    unreadable: list[str] = []

    def blocks() -> Iterator[Block]:
        at = 0
        try:
            for images, wrong in decode([f"{root}/{name}" for name in names], shape):
                for number, why in wrong.items():
                    name = names[at + number].encode(errors="backslashreplace").decode()  # it may be in any encoding
                    unreadable.append(f"{name} ({why})")
                good = np.delete(np.arange(len(images)), list(wrong))
                yield (
                    images[good],
                    None if labels is None else np.asarray(labels[at : at + len(images)], np.int64)[good],
                )
                at += len(images)
        except BrokenProcessPool as error:
            raise UserError(
                "image decoding was killed, perhaps for lack of memory; free some memory and retry"
            ) from error

    return Source(len(names), blocks(), unreadable)


def has_cifar10_binary(data_dir: Path) -> bool:
    """Whether data_dir holds CIFAR-10's binary distribution, unpacked or as an archive."""
    return (data_dir / CIFAR10_FOLDER).is_dir() or (data_dir / CIFAR10_ARCHIVE).is_file()


def from_cifar10_binary(data_dir: Path) -> dict[str, Source]:
    """Both splits of CIFAR-10 from its binary distribution: records of a label, then 3 x 32 x 32 bytes."""

    def read(name: str) -> bytes:
        if (data_dir / CIFAR10_FOLDER).is_dir():
            return (data_dir / CIFAR10_FOLDER / name).read_bytes()
        with tarfile.open(data_dir / CIFAR10_ARCHIVE) as archive:
            file = archive.extractfile(f"{CIFAR10_FOLDER}/{name}")
            return file.read() if file else b""

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
