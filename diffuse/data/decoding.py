"""Image files of any kind, decoded in parallel into uint8 arrays of one shape.

This module does not import torch, so that a worker process starts at once.
"""

import math
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process

import numpy as np
from PIL import Image, ImageOps

from diffuse.system.threads import cores

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
BLOCK, BLOCK_BYTES = 256, 1 << 21
# Below this many files a second process costs more than it saves.
ENOUGH_FOR_WORKERS = 2000
ORIENTATION = 0x0112  # the EXIF tag
Box = tuple[int, int, int, int]
# Images [k, C, H, W], and what is wrong with those that could not be read, by number.
Decoded = tuple[np.ndarray, dict[int, str]]


def centre_square(width: int, height: int) -> Box:
    """The largest square in the middle of the image, as (left, top, right, bottom)."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return (left, top, left + side, top + side)


def whole(width: int, height: int) -> Box:
    """The whole image; scaled to a square it is squeezed."""
    return (0, 0, width, height)


def centre_140(width: int, height: int) -> Box:
    """The middle 140 x 140 pixels: what the field takes of CelebA's aligned 178 x 218 images (Song and Ermon 2020)."""
    if min(width, height) < 140:
        raise ValueError(f"is {width} x {height}, smaller than 140 x 140")
    left, top = (width - 140) // 2, (height - 140) // 2
    return (left, top, left + 140, top + 140)


FITS: dict[str, Callable[[int, int], Box]] = {"crop": centre_square, "resize": whole}


@dataclass(frozen=True)
class Shape:
    """What every image becomes: channels (1 grey, 3 colour) and size; fit picks the part that is scaled to it."""

    channels: int
    size: int
    fit: Callable[[int, int], Box]

    def read(self, path: str) -> np.ndarray:
        """The image in a file, uint8 [C, H, W]. Raises what Pillow raises where the file is no whole image.

        Turned the way its EXIF says; transparent parts lie on white; 16 bits are scaled to 8; scaled by antialiased
        bicubic interpolation, and untouched where the size is right already.
        """
        with Image.open(path) as file:
            file.load()
            image = as_8_bit(turned(file), "L" if self.channels == 1 else "RGB")
        if (box := self.fit(*image.size)) != whole(*image.size):
            image = image.crop(box)  # not resize's own box, beyond which it looks at what is cut off
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)

    def read_block(self, paths: Sequence[str]) -> Decoded:
        """The images of these files, [k, C, H, W], and what is wrong with those that could not be read (left zero)."""
        images = np.zeros((len(paths), self.channels, self.size, self.size), np.uint8)
        wrong = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow thinks of odd but readable files
            for number, path in enumerate(paths):
                try:
                    images[number] = self.read(path)
                except Exception as error:  # decoders raise anything from OSError to struct.error
                    wrong[number] = reason(error)
        return images, wrong


def turned(image: Image.Image) -> Image.Image:
    """The image, already loaded, turned the way its EXIF says; one that cannot be read says nothing."""
    try:
        return ImageOps.exif_transpose(image) if ORIENTATION in image.getexif() else image
    except Exception:
        return image


def as_8_bit(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would cut off everything above 255
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def reason(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "is not there"
    if type(error).__name__ == "UnidentifiedImageError":
        return "is no image"
    return (str(error).splitlines() or [type(error).__name__])[0][:80]


def decode(paths: Sequence[str], shape: Shape, workers: int | None = None) -> Iterator[Decoded]:
    """`shape.read_block` for one block of files after the other, in order, on all processors where that pays.

    A few blocks a worker are in flight, so memory does not grow with the number of files.
    """
    rows = max(1, min(BLOCK, BLOCK_BYTES // (shape.channels * shape.size**2)))
    blocks = [paths[start : start + rows] for start in range(0, len(paths), rows)]
    workers = workers or min(cores(), math.ceil(len(paths) / ENOUGH_FOR_WORKERS))
    if workers < 2:
        yield from map(shape.read_block, blocks)
        return
    # Spawned, not forked: a forked worker would keep our locks if we are killed.
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent) as pool:
        waiting: deque[Future[Decoded]] = deque()
        try:
            for block in blocks:
                waiting.append(pool.submit(shape.read_block, block))
                if len(waiting) > 3 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def end_with_parent() -> None:
    """In a worker: leave Ctrl-C to the process that started it, and end as soon as that one is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    if parent := parent_process():
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
