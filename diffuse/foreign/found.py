"""What a reader of a format found: the network, the weights by our names, and what the file says of the diffusion."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from diffuse.foreign.files import Tensors
from diffuse.foreign.naming import Naming
from diffuse.options.keys import Node
from diffuse.system.errors import UsageError, UserError
from diffuse.system.sizes import AnySize


@dataclass
class Found:
    """Foreign weights as a format describes them. None: the file does not say it.

    naming      the names of its tensors
    tensors     the averaged weights, or the only ones; raw: the others, where the file holds both
    unet        the options of the network, without those that follow from the images and the classes
    image_size, image_channels, outputs    of the network: outputs are the channels that it returns
    classes     the rows of its table of labels, 0 without labels
    schedule, prediction, variance, clip, percentile   options of these groups, and keys
    levels      of the schedule
    step        the step of the training
    """

    naming: Naming
    tensors: Tensors
    unet: Node
    image_channels: int
    outputs: int
    classes: int = 0
    image_size: AnySize | None = None
    raw: Tensors | None = None
    schedule: Node | None = None
    prediction: Node | None = None
    variance: str | None = None
    clip: bool | str | None = None
    percentile: float | None = None
    levels: int | None = None
    step: int = 0

    @property
    def learned_variance(self) -> bool:
        return self.outputs == 2 * self.image_channels


def unet_options(
    channels: int, widths: Iterable[int], blocks: int, attention: Iterable[int], **others: Any
) -> dict[str, Any]:
    """The options of a U-Net with these widths, each a multiple of channels or a fraction."""
    mult = [width / channels for width in widths]
    whole = [int(factor) if factor == int(factor) else factor for factor in mult]
    return {
        "_target_": "UNet",
        "channels": channels,
        "channel_mult": whole,
        "blocks": blocks,
        "attention": sorted(attention, reverse=True),
        **{"heads": 1, "head_channels": None, "dropout": 0.0, "groups": 32, "time_scale": 1.0},
        **others,
    }


def asked(key: str, value: Any, why: str) -> Any:
    """A value that the user gave. Raises UsageError where it is None: the file does not say it."""
    if value is None:
        raise UsageError(f"foreign.{key} is needed: {why}")
    return value


def width(tensors: Tensors, name: str, dim: int = 0) -> int:
    """A size of a tensor. Raises UserError where there is no such tensor, or not in so many dimensions."""
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim <= dim or not tensor.shape[dim]:
        raise UserError(f"the weights have no {name} as this format has it")
    return int(tensor.shape[dim])


def count(tensors: Iterable[str], pattern: str) -> int:
    """How many numbers from 0 on come up in names at the group of a pattern, without a gap."""
    numbers = {int(match[1]) for name in tensors if (match := re.match(pattern, name))}
    return next(number for number in range(len(numbers) + 1) if number not in numbers)
