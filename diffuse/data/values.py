"""What numbers that are not 8-bit pixels are for the network: their range or their mean and deviation, stated or found.

    value = shift + scale x

where the network sees x. What is found, is found in the training images, and is kept in the kind of images.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffuse.data.arrays import Split
from diffuse.data.images import EIGHT_BIT, NONE, RANGE, STD
from diffuse.system.errors import Refused, check, check_choice

BLOCK_IMAGES = 256
SHOWN_STD = 3  # pictures show the mean and so many standard deviations on either side
# The smallest deviation beside the largest number: float32 has 24 bits, and a deviation should have ten of them.
LEAST_DEVIATION = 2.0**-14
NORMALISED = (RANGE, STD, NONE)


@dataclass(frozen=True)
class Measured:
    """Of each channel of some images the lowest and the highest value, the mean and the standard deviation, float64."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def measured(images: np.ndarray) -> Measured:
    """`Measured` of images [N, C, H, W], which are read in blocks, twice: the deviation is about the exact mean."""

    def blocks() -> Iterator[np.ndarray]:
        return (images[at : at + BLOCK_IMAGES].astype(np.float64) for at in range(0, len(images), BLOCK_IMAGES))

    axes, count = (0, 2, 3), images.size / images.shape[1]
    mean = sum(block.sum(axes) for block in blocks()) / count
    squares = sum(np.square(block - mean[:, None, None]).sum(axes) for block in blocks())
    return Measured(images.min(axes).astype(float), images.max(axes).astype(float), mean, np.sqrt(squares / count))


@dataclass(frozen=True)
class Normalisation:
    """How a user wants numbers to be normalised: the options of a data set; None: not said.

    normalise  range, std or none
    range      [low, high] of normalise=range
    mean, std  of normalise=std, for each channel or one for all
    """

    normalise: str | None
    range: list[float] | None
    mean: list[float] | None
    std: list[float] | None

    def __post_init__(self) -> None:
        if self.normalise is not None:
            check_choice("normalise", self.normalise, NORMALISED)
        if (self.range is not None) > (self.normalise == RANGE):
            raise Refused("range", "is for normalise=range: set that, or leave it out")
        if (self.mean is not None or self.std is not None) > (self.normalise == STD):
            raise Refused("mean", "and std are for normalise=std: set that, or leave them out")
        if (self.mean is None) != (self.std is None):
            raise Refused("mean", "and std are given together, or found together in the training images")
        if self.range is not None:
            check(len(self.range) == 2 and self.range[0] < self.range[-1], "range", "[low,high]", self.range)
        check(self.std is None or min(self.std, default=0) > 0, "std", "positive", self.std)

    def of(self, splits: Mapping[str, Split]) -> dict[str, Any]:
        """The fields of `ImageKind` that say it, for these splits of float images."""
        found = {name: measured(split.images) for name, split in splits.items()}
        train = found["train"]
        shift, scale = self.shift_scale(found)
        black = np.maximum(train.low, train.mean - SHOWN_STD * train.std)
        white = np.minimum(train.high, train.mean + SHOWN_STD * train.std)
        if self.normalise == RANGE:
            black, white = shift - scale, shift + scale
        white = np.where(white > black, white, black + 1)  # a constant channel
        parts = {"shift": shift, "scale": scale, "black": black, "white": white}
        return {"values": self.normalise or EIGHT_BIT, **{name: part.tolist() for name, part in parts.items()}}

    def shift_scale(self, found: Mapping[str, Measured]) -> tuple[np.ndarray, np.ndarray]:
        """Shift and scale of each channel; empty for none. Raises Refused where the images do not fit."""
        train = found["train"]
        if self.normalise == RANGE:
            low = min(float(each.low.min()) for each in found.values())
            high = max(float(each.high.max()) for each in found.values())
            if self.range is None:
                raise Refused("range", f"is needed for normalise=range: [low,high]. The values go from {low} to {high}")
            if low < self.range[0] or high > self.range[1]:
                raise Refused("range", f"is {self.range}, and the values go from {low} to {high}")
            ends = np.array(self.range).reshape(2, 1).repeat(len(train.mean), 1)
            return ends.mean(0), (ends[1] - ends[0]) / 2
        flat = train.std <= LEAST_DEVIATION * np.maximum(np.abs(train.low), np.abs(train.high))
        if self.normalise == STD and self.std is None and flat.any():
            channel = int(flat.argmax())
            raise Refused(
                "normalise",
                f"is std, and channel {channel} (from 0) has the mean {train.mean[channel]:g} and the deviation "
                f"{train.std[channel]:g}: too little for float32. Leave the channel out, or subtract its mean",
            )
        if self.normalise == STD and self.mean is not None and self.std is not None:
            return self.by_channel("mean", train), self.by_channel("std", train)
        return (train.mean, train.std) if self.normalise == STD else (np.empty(0), np.empty(0))

    def by_channel(self, name: str, train: Measured) -> np.ndarray:
        """The numbers of an option, one for each channel."""
        given, channels = np.array(getattr(self, name)), len(train.mean)
        check(len(given) in (1, channels), name, f"a list of one number, or of {channels}, one a channel", list(given))
        return np.broadcast_to(given, (channels,))
