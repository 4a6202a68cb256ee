"""The user's own arrays, an npz file or two, read in blocks: what is there, and which are held out for testing."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from diffuse.data.arrays import Block, Source
from diffuse.data.decoding import BLOCK_IMAGES
from diffuse.data.own_images import held_out
from diffuse.system.errors import UserError
from diffuse.system.files import sha256

# What zipfile, zlib and numpy raise where an npz file is damaged, encrypted or something else.
DAMAGED = (OSError, EOFError, LookupError, RuntimeError, ValueError, TokenError, zipfile.BadZipFile, zlib.error)
MOST_CLASSES = 100_000
# The names of the arrays of images and labels in an npz file: those that numpy gives them, or their own.
IMAGES_KEYS, LABELS_KEYS = ("arr_0", "images"), ("arr_1", "labels")
LAST, FIRST = LAYOUTS = ("NHWC", "NCHW")  # where the channels are


class NpzImages:
    """An npz file with images [N, H, W, C] or [N, H, W], of any number of channels, and optionally labels [N].

    They are called arr_0 and arr_1, or images and labels. dtype: of the images, integers or floats.
    layout: NHWC, NCHW, or None, where the file must leave no doubt that the channels are last.

    Images are read in blocks, never as a whole, whether they are compressed or not. Raises UserError if the file holds
    anything else.
    """

    def __init__(self, path: Path, layout: str | None = None):
        self.path, self.layout = path, layout
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                self.key = next((key for key in IMAGES_KEYS if f"{key}.npy" in names), "")
                if not self.key:
                    raise UserError(f"{path} has no {' or '.join(IMAGES_KEYS)}; it has {', '.join(names[:9])}")
                with archive.open(f"{self.key}.npy") as file:
                    shape, dtype = _header(file)
                    held = archive.getinfo(f"{self.key}.npy").file_size - file.tell()
            called = next((key for key in LABELS_KEYS if f"{key}.npy" in names), "")
            with np.load(path, allow_pickle=False) as arrays:
                labels = arrays[called] if called else None
        except DAMAGED as error:
            raise UserError(f"{path} is not an npz file with images: {error}") from error
        if dtype.kind not in "uif" or len(shape) not in (3, 4) or min(shape) < 1:
            raise UserError(f"{path}: {self.key} must hold images [N, H, W, C] of numbers, not {dtype} {shape}")
        if layout is None and len(shape) == 4 and shape[3] > min(shape[1:3]):
            read = "{3} channels of {1} x {2} pixels".format(*shape)
            raise UserError(
                f"{path}: {self.key} is {shape}, which would be {read}: say where the channels are, "
                "dataset.layout=NHWC or NCHW"
            )
        self.dtype, self.count, self.stored = dtype, shape[0], shape[1:]
        self.shape = self._as_images(np.empty((0, *self.stored), np.uint8)).shape[1:]
        if held < math.prod(shape) * dtype.itemsize:
            raise UserError(
                f"{path} is damaged: {self.key} says that it has {self.count:,} images, and {held:,} bytes follow"
            )
        if labels is not None and (labels.shape != (self.count,) or labels.dtype.kind not in "iu"):
            expected = f"a label, a whole number, for each of {self.count:,} images"
            raise UserError(f"{path}: {called} must hold {expected}, not {labels.dtype} {labels.shape}")
        if labels is not None and not 0 <= labels.min() <= labels.max() < MOST_CLASSES:
            found = f"from {labels.min()} to {labels.max()}"
            raise UserError(f"{path}: {called} must hold labels from 0 to {MOST_CLASSES - 1}, and they are {found}")
        self.labels = None if labels is None else labels.astype(np.int64)

    def source(self, rows: np.ndarray, floats: bool = False) -> Source:
        """The images at which the mask `rows` is true; floats: as float32. Raises UserError for NaN and infinity."""
        blocks = self._blocks(rows)
        return Source(int(rows.sum()), self._finite(blocks, np.flatnonzero(rows)) if floats else blocks)

    def _as_images(self, stored: np.ndarray) -> np.ndarray:
        """Images as they are stored -> [n, C, H, W]."""
        if stored.ndim == 3:
            return stored[:, None]
        return stored if self.layout == FIRST else stored.transpose(0, 3, 1, 2)

    def _finite(self, blocks: Iterator[Block], numbers: np.ndarray) -> Iterator[Block]:
        for images, labels in blocks:
            with np.errstate(over="ignore"):
                floats = images.astype(np.float32)
            here, numbers = numbers[: len(images)], numbers[len(images) :]
            if wrong := here[~np.isfinite(floats).all((1, 2, 3))].tolist():
                raise UserError(f"{self.path}: image {wrong[0]} (from 0) has values that are NaN, or no float32")
            yield floats, labels

    def _blocks(self, rows: np.ndarray) -> Iterator[Block]:
        image_bytes = math.prod(self.stored) * self.dtype.itemsize
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.key}.npy") as file:
                _header(file)
                for at in range(0, self.count, BLOCK_IMAGES):
                    here = rows[at : at + BLOCK_IMAGES]
                    content = file.read(len(here) * image_bytes)
                    images = np.frombuffer(content, self.dtype).reshape(-1, *self.stored)
                    classes = None if self.labels is None else self.labels[at : at + BLOCK_IMAGES][here]
                    yield self._as_images(images)[here], classes
        except DAMAGED as error:
            raise UserError(f"{self.path} is damaged: {error}") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a .npy file in row-major order, leaving the file where its numbers begin."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, dtype = read(file)
    if column_major:
        raise ValueError("its numbers are in column-major order")
    return shape, dtype


class NpzSplits:
    """The images to train and to test on: two npz files, or one of which a share is held out.

    Raises UserError where they do not go together.
    """

    def __init__(self, train: NpzImages, test: NpzImages | None, holdout: float, split_seed: int):
        if train.count < 2:
            raise UserError(f"dataset.path={train.path} has {train.count} image; at least 2 are needed")
        if test and test.shape != train.shape:
            raise UserError(f"dataset.test_path={test.path} has images of another shape than dataset.path={train.path}")
        self.train, self.test, self.files = train, test, [train, test] if test else [train]
        names = [str(number) for number in range(train.count)]
        self.tested = np.zeros(train.count, bool) if test else held_out(names, holdout, split_seed)
        self.held = None if test else [holdout, split_seed]

    @property
    def classes(self) -> list[str]:
        """The names of the classes, numbers from 0 on; none unless all images have labels."""
        labels = [file.labels for file in self.files if file.labels is not None]
        return (
            [str(number) for number in range(np.concatenate(labels).max() + 1)]
            if len(labels) == len(self.files)
            else []
        )

    def refuse_numbers(self) -> None:
        """Raise UserError where the values are not 8-bit: what the network is to see of others has to be said."""
        for file in self.files:
            if file.dtype != np.uint8:
                raise UserError(
                    f"{file.path} holds {file.dtype} values, and no 8-bit pixels: set dataset.normalise=std, none, or "
                    "range with dataset.range=[low,high], for what the network sees of them"
                )

    def sources(self, floats: bool) -> dict[str, Source]:
        """The images of each split, as they are or as float32."""
        train, test, tested = self.train, self.test, self.tested
        all_of_test = test.source(np.ones(test.count, bool), floats) if test else train.source(tested, floats)
        return {"train": train.source(~tested, floats), "test": all_of_test}

    @property
    def depends_on(self) -> dict[str, Any]:
        """What the splits depend on."""
        layout = {"layout": FIRST} if self.train.layout == FIRST else {}
        return {"holdout": self.held, "files": [sha256(file.path) for file in self.files], **layout}
