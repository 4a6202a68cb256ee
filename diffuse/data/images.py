"""Images as data: their kind, their splits, and the conversion of their values for the network and back."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.data.arrays import Split
from diffuse.system.errors import check, check_choice

EIGHT_BIT, RANGE, STD, NONE = VALUES = ("8bit", "range", "std", "none")
SEEN = {
    RANGE: " (seen as [-1, 1])",
    STD: " (seen with mean 0 and standard deviation 1 in each channel)",
    NONE: " (seen as they are)",
}


@dataclass(frozen=True)
class ImageKind:
    """What sampling and scoring must know about the training data; every checkpoint holds it.

    name, classes  of the data set, and of its classes if there are any
    channels, height, width  of an image
    values         what the network sees of a value: 8bit (integers from 0 to 255 as [-1, 1]), range (numbers from
                   [low, high] as [-1, 1]), std (mean 0 and standard deviation 1 in each channel) or none (as it is)
    shift, scale   of each channel: value = shift + scale x, where the network sees x; empty for 8bit and none
    black, white   of each channel: the values that pictures show so; empty for those of x = -1 and 1
    pad            the width of the border that is added for the network

    Raises Refused where they do not fit together: a checkpoint may hold anything.
    """

    name: str
    channels: int
    height: int
    width: int
    classes: list[str]
    values: str = EIGHT_BIT
    shift: list[float] = field(default_factory=list)
    scale: list[float] = field(default_factory=list)
    black: list[float] = field(default_factory=list)
    white: list[float] = field(default_factory=list)
    pad: int = 0

    def __post_init__(self) -> None:
        check_choice("values", self.values, VALUES)
        for one, other in (("shift", "scale"), ("black", "white")):
            counts = {len(getattr(self, one)), len(getattr(self, other))}
            check(counts <= {0} or counts == {self.channels}, one, f"as long as {other}, a value a channel", counts)
        check(all(scale > 0 for scale in self.scale), "scale", "positive", self.scale)

    @property
    def eight_bit(self) -> bool:
        """Whether the images are 8-bit integers, as pictures are."""
        return self.values == EIGHT_BIT

    @property
    def bounded(self) -> bool:
        """Whether the network's images lie in [-1, 1]."""
        return self.values in (EIGHT_BIT, RANGE)

    @property
    def in_words(self) -> str:
        """The form of an image, and what the network sees of its values unless they are 8-bit pixels."""
        form = f"{self.channels} x {self.height} x {self.width}"
        return form + {EIGHT_BIT: "", **SEEN}[self.values]

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

    @property
    def log_volume(self) -> float:
        """log |d values / d x| of an image: -log p(values) = -log p(x) + log_volume. 0 for 8-bit images."""
        return self.height * self.width * sum(map(math.log, self.scale))

    def to_network(self, images: Tensor) -> Tensor:
        """Images of a split, [n, C, H, W] -> input of the network, with a border: black, or 0 where nothing is."""
        x = to_float(images)
        if self.scale:
            x = (x - by_channel(self.shift, x)) / by_channel(self.scale, x)
        return F.pad(x, [self.pad] * 4, value=-1.0 if self.bounded else 0.0) if self.pad else x

    def crop(self, x: Tensor) -> Tensor:
        """Images of the network, [n, C, H + 2 pad, W + 2 pad], without their border: [n, C, H, W]."""
        return x[..., self.pad : self.pad + self.height, self.pad : self.pad + self.width]

    def to_values(self, x: Tensor) -> Tensor:
        """Images of the network without their border -> images as the data set has them, uint8 or float32.

        What has a range is clipped to it. The inverse of `to_network`.
        """
        if self.eight_bit:
            return to_uint8(x)
        if not self.scale:
            return x
        x = x.clamp(-1, 1) if self.bounded else x
        return by_channel(self.shift, x) + by_channel(self.scale, x) * x

    def to_pixels(self, values: Tensor) -> Tensor:
        """Images as the data set has them -> 8-bit pixels for a picture."""
        if self.eight_bit:
            return values
        if not self.black:
            return to_uint8(values)
        black, white = by_channel(self.black, values), by_channel(self.white, values)
        return to_uint8(2 * (values - black) / (white - black) - 1)


def by_channel(numbers: Sequence[float], images: Tensor) -> Tensor:
    """A number for each channel, as [C, 1, 1] beside images [n, C, H, W]."""
    return _on_device(tuple(numbers), images.device, images.dtype)


@lru_cache(maxsize=64)
def _on_device(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Made once: a copy to the device cannot be part of a CUDA graph."""
    return torch.tensor(numbers, device=device, dtype=dtype).reshape(-1, 1, 1)


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
