"""Sets of 8-bit images from any place: a split of a data set, a folder, an npz file, or drawn by a network.

All are read in order and in batches, so that memory does not grow with the number of images.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffuse.data.arrays import Split
from diffuse.data.decoding import Box, Shape, whole
from diffuse.data.images import ImageKind
from diffuse.data.npz import DAMAGED, NpzImages
from diffuse.data.own_images import MOST_NAMED, fingerprint, image_files
from diffuse.data.sources import from_files
from diffuse.system.errors import UsageError, UserError
from diffuse.system.files import absolute, sha256, sha256_of_folder
from diffuse.system.progress import Progress
from diffuse.system.signals import raise_pending
from diffuse.system.sizes import in_words

BATCH_IMAGES = 256


@dataclass(frozen=True)
class ImageSet:
    """Images that are read one after the other.

    name         for messages and records
    count        the number of images
    size         the height and the width of every image
    fingerprint  changes whenever an image does
    batches      batches(k) yields the images in order from number k on, uint8 [b, C, H, W] with 1 or 3 channels
    sources      what the images come from, a path or DATASET:SPLIT, with the SHA-256 of its content
    facts        further entries of the protocol
    labels       the number of the class that each image should be of, [count]; None where that is not known
    """

    name: str
    count: int
    size: tuple[int, int]
    fingerprint: str
    batches: Callable[[int], Iterator[np.ndarray]]
    sources: Callable[[], dict[str, str]] = dict
    facts: Mapping[str, Any] = field(default_factory=dict)
    labels: np.ndarray | None = None

    def limited(self, count: int | None) -> "ImageSet":
        """The first `count` of the images, or all. Raises UsageError where there are fewer."""
        if count is None or count == self.count:
            return self
        if count > self.count:
            raise UsageError(f"n must be at most {self.count}, the number of images in {self.name}, not {count}")

        def batches(first: int) -> Iterator[np.ndarray]:
            for batch in self.batches(first):
                yield batch[: count - first]
                first += len(batch)
                if first >= count:
                    return

        labels = None if self.labels is None else self.labels[:count]
        return replace(self, name=f"the first {count} of {self.name}", count=count, batches=batches, labels=labels)


def with_progress(images: ImageSet) -> ImageSet:
    """The same images; reading them shows its progress."""

    def batches(first: int) -> Iterator[np.ndarray]:
        with Progress(f"features of {images.name}", images.count, "image", first) as progress:
            for batch in images.batches(first):
                yield batch
                raise_pending()
                progress.advance(len(batch))

    return replace(images, batches=batches)


def require_pictures(kind: ImageKind) -> None:
    """Raise UserError where images do not have 8-bit pixels, or are neither grey nor RGB."""
    if not kind.eight_bit or kind.channels not in (1, 3):
        what = f"{kind.channels} channels" if kind.eight_bit else "values that are not 8-bit pixels"
        raise UserError(
            f"the images of {kind.name} have {what}: scores of samples are for 8-bit images, grey or RGB. "
            "metrics=[bound,ode] score by likelihood"
        )


def open_split(kind: ImageKind, name: str, split: Split) -> ImageSet:
    """A split of a data set. Raises UserError where its images are not 8-bit pictures."""
    require_pictures(kind)

    def batches(first: int) -> Iterator[np.ndarray]:
        return (split.images[at : at + BATCH_IMAGES] for at in range(first, len(split.images), BATCH_IMAGES))

    called = f"{kind.name}:{name}"
    images = ImageSet(called, len(split.images), kind.size, split.sha256, batches, lambda: {called: split.sha256})
    return with_progress(images)


def open_place(place: str, key: str) -> ImageSet:
    """The images in a folder and below it, in an npz file, or in a folder written by `diffuse sample`."""
    path = absolute(place)
    if (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if path.is_dir():
        return open_folder(path, key)
    if path.is_file():
        return open_npz(path)
    raise UserError(
        f"{key}={place} is neither a folder nor a file; give a folder of images, an npz file of images, or "
        "DATASET:SPLIT, such as cifar10:train"
    )


def open_npz(path: Path) -> ImageSet:
    """The images of an npz file: uint8 [N, H, W, C]."""
    images, content = NpzImages(path, "NHWC"), sha256(path)
    if images.dtype != np.uint8 or images.shape[0] not in (1, 3):
        found = f"{images.dtype} images of {images.shape[0]} channels"
        raise UserError(f"{path} has {found}, and scores of samples are for uint8 images [N, H, W, C], grey or RGB")

    def batches(first: int) -> Iterator[np.ndarray]:
        return (block for block, _ in images.source(np.arange(images.count) >= first).blocks if len(block))

    sources = {str(path): content}
    name, labels = short_name(path), images.labels
    return with_progress(
        ImageSet(name, images.count, images.shape[1:], content, batches, lambda: sources, labels=labels)
    )


def open_folder(path: Path, key: str) -> ImageSet:
    """All image files in a folder and below it, sorted by name; all of the size of the first."""
    names = image_files(path)
    if not names:
        raise UserError(f"{key}={path} holds no images (jpg, png, webp, bmp)")
    try:
        if not (path / names[0]).is_file():
            raise OSError("is not a regular file")
        with Image.open(path / names[0]) as image:
            width, height = image.size
    except OSError as error:
        raise UserError(f"{path / names[0]} cannot be read: {error}") from error
    shape = Shape(channels=3, size=(height, width), fit=require_size)

    def batches(first: int) -> Iterator[np.ndarray]:
        source = from_files(path, names[first:], None, shape)
        for images, _ in source.blocks:
            if source.unreadable:
                raise UserError(f"images in {path} cannot be scored: {'; '.join(source.unreadable[:MOST_NAMED])}")
            yield images

    def sources() -> dict[str, str]:
        return {str(path): sha256_of_folder(path, names)}

    return with_progress(ImageSet(short_name(path), len(names), shape.size, fingerprint(path, names), batches, sources))


def require_size(width: int, height: int, size: tuple[int, int]) -> Box:
    """The whole image as a box; ValueError where it has another size, since nothing is rescaled silently."""
    if (height, width) != size:
        raise ValueError(f"is {in_words(height, width)}, but the first is {in_words(*size)} and scores need one size")
    return whole(width, height)


def short_name(path: Path) -> str:
    """The last two parts of a path: many files are called samples.npz."""
    return "/".join(path.parts[-2:])


def holds_statistics(path: Path) -> bool:
    """Whether an npz file has the mean and covariance of features instead of images."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except DAMAGED:
        return False
