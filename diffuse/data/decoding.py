"""Image files of any kind, decoded in parallel into uint8 arrays of one shape.

This module does not import torch, so that a worker process starts at once.
"""

import math
import os
import signal
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from diffuse.system.threads import cores

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
BLOCK_IMAGES, BLOCK_BYTES, BLOCKS_AHEAD = 256, 1 << 21, 8
# With fewer files than this a second process costs more time than it saves.
ENOUGH_FOR_WORKERS = 2000
Box = tuple[int, int, int, int]
# Images [k, C, H, W], and why some of them could not be read, by their index.
Decoded = tuple[np.ndarray, dict[int, str]]


def centre(width: int, height: int, size: tuple[int, int]) -> Box:
    """The largest part in the middle of the image with the aspect ratio of `size`, as (left, top, right, bottom)."""
    wanted_height, wanted_width = size
    part_width = min(width, max(1, round(height * wanted_width / wanted_height)))
    part_height = min(height, max(1, round(width * wanted_height / wanted_width)))
    left, top = (width - part_width) // 2, (height - part_height) // 2
    return (left, top, left + part_width, top + part_height)


def whole(width: int, height: int, size: tuple[int, int] | None = None) -> Box:
    """The whole image, which loses its aspect ratio when it is scaled to another one."""
    return (0, 0, width, height)


def centre_140(width: int, height: int, size: tuple[int, int]) -> Box:
    """The middle 140 x 140 pixels: the usual crop of CelebA's aligned 178 x 218 images (Song and Ermon 2020)."""
    if min(width, height) < 140:
        raise ValueError(f"is {width} x {height}, smaller than 140 x 140")
    left, top = (width - 140) // 2, (height - 140) // 2
    return (left, top, left + 140, top + 140)


# The part of an image of this width and height that is scaled to a size (height, width).
Fit = Callable[[int, int, tuple[int, int]], Box]
FITS: dict[str, Fit] = {"crop": centre, "resize": whole}


@dataclass(frozen=True)
class Shape:
    """The shape of decoded images: channels (1 grey, 3 colour), height and width; fit gives the part that is scaled."""

    channels: int
    size: tuple[int, int]
    fit: Fit

    def read(self, path: str) -> np.ndarray:
        """The image in a file, uint8 [C, H, W]. Raises what Pillow raises if the file is not a complete image.

        Rotated as its EXIF orientation says; transparent parts become white; 16 bits are scaled to 8; resized by
        antialiased bicubic interpolation, unless the size is right already.
        """
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            raise OSError("is not a regular file")
        with Image.open(path) as file:
            file.load()
            image = as_8_bit(rotate_upright(file), "L" if self.channels == 1 else "RGB")
        if (box := self.fit(*image.size, self.size)) != whole(*image.size):
            image = image.crop(box)  # not by the box argument of resize, which also reads pixels outside the box
        if image.size != self.size[::-1]:
            image = image.resize(self.size[::-1], Image.Resampling.BICUBIC)
        return np.asarray(image).reshape(*self.size, self.channels).transpose(2, 0, 1)

    def read_block(self, paths: Sequence[str]) -> Decoded:
        """The images of these files, [k, C, H, W], and why some could not be read (those are all zero)."""
        images = np.zeros((len(paths), self.channels, *self.size), np.uint8)
        wrong = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about odd but readable files
            for number, path in enumerate(paths):
                try:
                    images[number] = self.read(path)
                except Exception as error:  # decoders raise anything from OSError to struct.error
                    wrong[number] = describe_failure(error)
        return images, wrong


def rotate_upright(image: Image.Image) -> Image.Image:
    """The loaded image, rotated and mirrored as its EXIF orientation says; damaged EXIF data is ignored."""
    try:
        return ImageOps.exif_transpose(image) if ExifTags.Base.Orientation in image.getexif() else image
    except Exception:
        return image


def as_8_bit(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would cut off everything above 255
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def describe_failure(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image"
    return (str(error).splitlines() or [type(error).__name__])[0][:80]


def decode(paths: Sequence[str], shape: Shape, workers: int | None = None) -> Iterator[Decoded]:
    """`shape.read_block` for one block of files after the other, in order, on all CPU cores if there are many files.

    At most BLOCKS_AHEAD blocks per worker wait to be yielded, so memory does not grow with the number of files.
    """
    rows = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // (shape.channels * math.prod(shape.size))))
    blocks = [paths[start : start + rows] for start in range(0, len(paths), rows)]
    workers = workers or min(cores(), math.ceil(len(paths) / ENOUGH_FOR_WORKERS))
    if workers < 2:
        yield from map(shape.read_block, blocks)
        return
    # Spawned, not forked: a forked worker would keep our locks if we are killed.
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent) as pool:
        for start in range(0, len(blocks), BLOCKS_AHEAD * workers):
            yield from pool.map(shape.read_block, blocks[start : start + BLOCKS_AHEAD * workers])


def end_with_parent() -> None:
    """In a worker: leave Ctrl-C to the parent process, and exit as soon as the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    if parent := parent_process():
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
