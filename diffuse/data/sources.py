"""Where the images of a data set come from: torchvision's sets, CIFAR-10's binary files, any image files."""

import hashlib
import inspect
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffuse.data.arrays import Block, Source
from diffuse.data.decoding import BLOCK, Shape, decode
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
SPLITS = ("train", "test")


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
            why = " ".join(str(error).split())[:120] or type(error).__name__
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
