"""Images of one's own, a folder of files or an npz file: what is there, and what of it is held out for testing."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from diffuse.data.arrays import Block, Source
from diffuse.data.decoding import BLOCK, SUFFIXES, Shape
from diffuse.data.sources import from_files
from diffuse.system.errors import UserError
from diffuse.system.randomness import hashed

TEST_FOLDERS = ("test", "val", "valid", "validation")
# What zipfile, zlib and numpy raise where an npz file is damaged, encrypted or something else.
DAMAGED = (OSError, EOFError, LookupError, RuntimeError, ValueError, TokenError, zipfile.BadZipFile, zlib.error)
MOST_CLASSES = 100_000


class FolderImages:
    """All images in a folder and below. Subfolders are classes where every image lies in one.

    names, relative to the folder; classes, the names of the subfolders; labels [N], or None without classes; tested, a
    mask of the images to test on where the folder has `train` and `test` (or `val`, `valid`, `validation`), or None.
    """

    def __init__(self, root: Path):
        self.root = root
        inside = split_folders(root)
        found = {split: image_files(root / place) for split, place in inside.items()}
        self.names = [str(Path(inside[split], name)) for split, names in found.items() for name in names]
        if len(self.names) < 2 or not all(found.values()):
            counts = ", ".join(f"{len(names)} in {inside[split] or 'it'}" for split, names in found.items())
            needed = "2 images (jpg, png, webp, bmp) or more, and at least one in each split"
            raise UserError(f"dataset.path={root} must hold {needed}; found {counts}")
        folders = [name.partition("/")[0] if "/" in name else "" for names in found.values() for name in names]
        self.classes = sorted(set(folders)) if all(folders) else []
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = np.array([numbers[name] for name in folders]) if self.classes else None
        self.tested = np.arange(len(self.names)) >= len(found["train"]) if "test" in found else None

    def fingerprint(self) -> str:
        """What changes when one of the files does."""
        return fingerprint(self.root, self.names)

    def source(self, rows: np.ndarray, shape: Shape) -> Source:
        """The images whose place in the mask `rows` is true."""
        names = [name for name, chosen in zip(self.names, rows, strict=True) if chosen]
        return from_files(self.root, names, None if self.labels is None else self.labels[rows].tolist(), shape)


def fingerprint(root: Path, names: Sequence[str]) -> str:
    """What changes when a file is added, removed, renamed or rewritten; contents are not read."""
    digest = hashlib.sha256(os.fsencode(root))
    for name in names:
        try:
            status = os.stat(f"{root}/{name}")
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:  # a link to nothing, say: whoever reads it will be told
            state = "unreadable"
        digest.update(os.fsencode(f"{name}\0{state}\n"))
    return digest.hexdigest()


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
    """Where each split lies in a folder that has `train`, with a folder to test on or alone; else all of it is one."""
    if not (folder / "train").is_dir():
        return {"train": ""}
    if tests := [name for name in TEST_FOLDERS if (folder / name).is_dir()]:
        return {"train": "train", "test": tests[0]}
    alone = not any(path.is_dir() and path.name != "train" for path in folder.iterdir())
    return {"train": "train" if alone else ""}


def held_out(names: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Which of these names are kept for testing: a mask with `share` of them, at least one and never all.

    Names are put in the order of a hash of (seed, name), so which images are held out hardly changes when others are
    added or removed.
    """
    order = sorted(range(len(names)), key=lambda number: hashed("held out", seed, names[number]))
    mask = np.zeros(len(names), bool)
    mask[order[: min(max(1, round(share * len(names))), len(names) - 1)]] = True
    return mask


class NpzImages:
    """An npz file with arr_0, uint8 images [N, H, W, C] or [N, H, W], and perhaps arr_1, labels [N].

    Images are read in blocks, never as a whole, whether they are compressed or not. Raises UserError where the file
    is something else.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                if "arr_0.npy" not in archive.namelist():
                    raise UserError(f"{path} has no arr_0 with images; it has {', '.join(archive.namelist()[:9])}")
                with archive.open("arr_0.npy") as file:
                    shape, dtype = _header(file)
            self.labels = self._labels() if "arr_1.npy" in archive.namelist() else None
        except DAMAGED as error:
            raise UserError(f"{path} is no npz file with images as arr_0: {error}") from error
        self.count, self.size, width, self.channels = (*shape, 1)[:4] if len(shape) in (3, 4) else (0, 0, 0, 0)
        if dtype != np.uint8 or self.size != width or self.channels not in (1, 3) or self.count < 1:
            raise UserError(
                f"{path}: arr_0 must hold uint8 images [N, H, W, C], square, with 1 or 3 channels, not {dtype} {shape}"
            )
        labels = np.zeros(self.count) if self.labels is None else self.labels
        if len(labels) != self.count or labels.min() < 0 or labels.max() >= MOST_CLASSES:
            raise UserError(
                f"{path}: arr_1 must hold a label from 0 to {MOST_CLASSES - 1} for each of {self.count:,} images"
            )

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
