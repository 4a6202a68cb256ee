"""Sets of 8-bit images wherever they are: a split of a data set, a folder, an npz file, what a network draws.

All are read in order and in parts, so that scoring needs no more memory for many images than for few.
"""

import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from diffuse.data.arrays import Split
from diffuse.data.decoding import Box, Shape, whole
from diffuse.data.images import ImageKind
from diffuse.data.own_images import DAMAGED, NpzImages, fingerprint, image_files
from diffuse.data.sources import from_files
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import sha256
from diffuse.system.progress import Progress
from diffuse.system.signals import raise_pending

ROWS, NAMED = 256, 5


@dataclass(frozen=True)
class ImageSet:
    """Images that are read one after the other.

    name, for people; count; size of an image, which is square; fingerprint: what changes when an image does; batches:
    from image number `first` on, the images in order as uint8 [b, C, H, W], with 1 or 3 channels.
    """

    name: str
    count: int
    size: int
    fingerprint: str
    batches: Callable[[int], Iterator[np.ndarray]]

    def limited(self, count: int | None) -> "ImageSet":
        """The first `count` of the images in their order, or all. Raises UsageError where there are not so many."""
        if count is None or count == self.count:
            return self
        if count > self.count:
            raise UsageError(f"n must be at most {self.count}, the number of images in {self.name}, not {count}")

        def batches(first: int) -> Iterator[np.ndarray]:
            left = count - first
            for batch in self.batches(first):
                yield batch[:left]
                left -= len(batch)
                if left <= 0:
                    return

        return replace(self, name=f"the first {count} of {self.name}", count=count, batches=batches)


def telling(images: ImageSet) -> ImageSet:
    """The same images; whoever reads them is told how far it is."""

    def batches(first: int) -> Iterator[np.ndarray]:
        with Progress(f"features of {images.name}", images.count, "image", first) as progress:
            for batch in images.batches(first):
                yield batch
                raise_pending()
                progress.advance(len(batch))

    return replace(images, batches=batches)


def of_split(kind: ImageKind, name: str, split: Split) -> ImageSet:
    """A split of a data set. Raises UserError where its images are no pictures."""
    refuse_no_pictures(kind)

    def batches(first: int) -> Iterator[np.ndarray]:
        for start in range(first, len(split.images), ROWS):
            yield split.images[start : start + ROWS]

    return telling(ImageSet(f"{kind.name}:{name}", len(split.images), kind.size, split.sha256, batches))


def refuse_no_pictures(kind: ImageKind) -> None:
    """Raise UserError where images have no 8-bit pixels, or channels that are no colours."""
    if not kind.bounded or kind.channels not in (1, 3):
        what = f"{kind.channels} channels" if kind.bounded else "pixels without a range"
        raise UserError(
            f"the images of {kind.name} have {what}: scores of samples are for 8-bit images, grey or colour. "
            "metrics=[bound,ode] score by likelihood"
        )


def of_place(place: str, key: str) -> ImageSet:
    """The images in a folder (and below), in an npz file, or in a folder that `diffuse sample` wrote."""
    path = Path(os.path.abspath(Path(place).expanduser()))  # noqa: PTH100  (links stay as they are)
    if (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if path.is_dir():
        return of_folder(path, key)
    if path.is_file():
        return of_npz(path)
    raise UserError(
        f"{key}={place} is neither a folder nor a file; give a folder of images, an npz file with arr_0, or "
        "DATASET:SPLIT, such as cifar10:train"
    )


def of_npz(path: Path) -> ImageSet:
    """arr_0 of an npz file: uint8 [N, H, W, C]."""
    images = NpzImages(path)

    def batches(first: int) -> Iterator[np.ndarray]:
        wanted = np.arange(images.count) >= first
        for block, _ in images.source(wanted).blocks:
            if len(block):
                yield block

    return telling(ImageSet(shown_place(path), images.count, images.size, sha256(path), batches))


def holds_statistics(path: Path) -> bool:
    """Whether an npz file has a mean and a covariance in place of images."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except DAMAGED:
        return False


def of_folder(path: Path, key: str) -> ImageSet:
    """All image files in a folder and below, ordered by name; square, and of the size of the first."""
    names = image_files(path)
    if not names:
        raise UserError(f"{key}={path} holds no images (jpg, png, webp, bmp)")
    try:
        with Image.open(path / names[0]) as image:
            side = image.width
    except OSError as error:
        raise UserError(f"{path / names[0]} cannot be read: {error}") from error
    shape = Shape(channels=3, size=side, fit=partial(exactly, side))

    def batches(first: int) -> Iterator[np.ndarray]:
        source = from_files(path, names[first:], None, shape)
        for images, _ in source.blocks:
            if source.unreadable:
                raise UserError(f"images in {path} cannot be scored: {'; '.join(source.unreadable[:NAMED])}")
            yield images

    return telling(ImageSet(shown_place(path), len(names), side, fingerprint(path, names), batches))


def shown_place(path: Path) -> str:
    """The end of a path: with its folder, since many a file is called samples.npz."""
    return "/".join(path.parts[-2:])


def exactly(side: int, width: int, height: int) -> Box:
    """The whole image, if it has this size: nothing is scaled in secret."""
    if (width, height) != (side, side):
        raise ValueError(f"is {width} x {height}, where the first is {side} wide and scores need squares of one size")
    return whole(width, height)
