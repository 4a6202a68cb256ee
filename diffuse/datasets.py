"""Data sets: each is one array of images [N, C, H, W] a split, and batches are rows of it.

Images are uint8 and become floats in [-1, 1] on the device. The exception is `gaussian`, whose floats have no range.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffuse.randomness import generator


@dataclass(frozen=True)
class Split:
    """images [N, C, H, W], uint8 or float32; labels [N] int64, or None where the data set has none."""

    images: np.ndarray
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class ImageKind:
    """What sampling and scoring must know about the data a network was trained on; every checkpoint holds it.

    name; channels and size (images are square); the names of the classes, if any; bounded: whether pixels lie in
    [-1, 1] and came from 8-bit integers.
    """

    name: str
    channels: int
    size: int
    classes: list[str]
    bounded: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.size, self.size)


@dataclass(frozen=True)
class Dataset:
    """A training and a test split; flip says whether a mirrored image is as good as the image."""

    kind: ImageKind
    train: Split
    test: Split
    flip: bool = False


def digits(flip: bool = False) -> Dataset:
    """1,797 handwritten digits, 8 x 8, grey, in 10 classes (1,438 to train on, 359 to test on).

    Alpaydin and Kaynak 1998, UCI, CC BY 4.0; ships with the package, made by scripts/prepare_digits.py.
    """
    with np.load(Path(__file__).parent / "data" / "digits.npz") as arrays:
        train = Split(arrays["train_images"], arrays["train_labels"])
        test = Split(arrays["test_images"], arrays["test_labels"])
    kind = ImageKind("digits", 1, 8, [str(digit) for digit in range(10)], bounded=True)
    return Dataset(kind, train, test, flip)


def gaussian(
    mean: list[float], std: list[float], size: int, train_count: int, test_count: int, flip: bool = False
) -> Dataset:
    """Independent Gaussian pixels, channel c with mean[c] and std[c]: data whose every answer is known in closed form.

    size is the side of the images, in pixels. Floats, not 8-bit: nothing is clipped, and the likelihood is a density.
    """
    if len(mean) != len(std) or not mean:
        raise ValueError(f"mean and std must have one value a channel, they have {len(mean)} and {len(std)}")
    if min(std) <= 0:
        raise ValueError(f"std must be positive, not {min(std)}")
    for name, value in {"size": size, "train_count": train_count, "test_count": test_count}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")

    def draw(split: str, count: int) -> Split:
        normal = generator("gaussian", split).standard_normal((count, len(mean), size, size), dtype=np.float32)
        columns = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
        shift, scale = columns
        return Split(shift + scale * normal)

    kind = ImageKind("gaussian", len(mean), size, [], bounded=False)
    return Dataset(kind, draw("train", train_count), draw("test", test_count), flip)


def to_float(images: Tensor) -> Tensor:
    """uint8 [0, 255] -> float32 [-1, 1]; floats are left as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def to_uint8(images: Tensor) -> Tensor:
    """Float [-1, 1] -> the nearest uint8 [0, 255]; what lies outside is clipped. The inverse of `to_float`."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
