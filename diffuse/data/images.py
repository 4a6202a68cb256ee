"""Images as data: their kind, their splits, and the conversion from 8-bit integers to floats and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.data.arrays import Split


@dataclass(frozen=True)
class ImageKind:
    """What sampling and scoring must know about the training data; every checkpoint holds it.

    name; channels, height and width of an image; the names of the classes, if any; bounded: whether pixels lie in
    [-1, 1] and came from 8-bit integers; pad: the width of the border that is added for the network.
    """

    name: str
    channels: int
    height: int
    width: int
    classes: list[str]
    bounded: bool
    pad: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """The height and the width of an image."""
        return self.height, self.width

    @property
    def padded_size(self) -> tuple[int, int]:
        """The height and the width of the network's images, with the border."""
        return self.height + 2 * self.pad, self.width + 2 * self.pad

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the network's images, [C, H, W]."""
        return (self.channels, *self.padded_size)

    @property
    def dimensions(self) -> int:
        """The number of values of an image without its border, by which bits per dimension are computed."""
        return self.channels * self.height * self.width

    def to_network(self, images: Tensor) -> Tensor:
        """Images of a split, [n, C, H, W] -> input of the network: floats in [-1, 1], with a black border."""
        return F.pad(to_float(images), [self.pad] * 4, value=-1.0) if self.pad else to_float(images)

    def crop(self, x: Tensor) -> Tensor:
        """Images of the network, [n, C, H + 2 pad, W + 2 pad], without their border: [n, C, H, W]."""
        return x[..., self.pad : self.pad + self.height, self.pad : self.pad + self.width]


@dataclass(frozen=True)
class Dataset:
    """A training and a test split; flip: whether training mirrors half of the images.

    load makes both splits when one is first used, which may need a download; the kind is known before.
    log_density, if the data have a known one: images [n, C, H, W] -> [n] nats.
    """

    kind: ImageKind
    flip: bool
    load: Callable[[], Mapping[str, Split]]
    log_density: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def splits(self) -> Mapping[str, Split]:
        return self.load()

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def test(self) -> Split:
        return self.splits["test"]

    @property
    def sha256(self) -> dict[str, str]:
        """A hash of each split."""
        return {name: split.sha256 for name, split in self.splits.items()}


def to_float(images: Tensor) -> Tensor:
    """uint8 [0, 255] -> float32 [-1, 1]; floats are left as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def to_uint8(images: Tensor) -> Tensor:
    """Float [-1, 1] -> the nearest uint8 [0, 255]; values outside are clipped. The inverse of `to_float`."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
