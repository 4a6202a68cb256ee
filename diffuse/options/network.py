"""The untrained network of a config, for one kind of images."""

import typing
from collections.abc import Sequence

from diffuse.data.conditions import Condition
from diffuse.data.images import ImageKind
from diffuse.networks.unet import UNet
from diffuse.options.build import build
from diffuse.options.schema import TrainConfig
from diffuse.system.errors import UsageError


def build_network(config: TrainConfig, kind: ImageKind, trust: Sequence[str] = ()) -> UNet:
    """The network that a training config describes, for images of this kind."""
    sizes = {"image_size": kind.side, "image_channels": kind.channels, "learned_variance": config.variance == "learned"}
    refuse_sizes_that_do_not_halve(config, kind)
    classes = condition_of(config, kind).network_options
    return typing.cast(UNet, build(config.unet, "unet", trust, **sizes, **classes))


def condition_of(config: TrainConfig, kind: ImageKind) -> Condition:
    """What the network is conditioned on. Raises UsageError if that is a class and the data set has no labels."""
    if config.class_conditional and not kind.classes:
        raise UsageError(f"class_conditional=true needs labels, and the data set {kind.name} has none")
    return Condition(kind.classes, config.label_dropout) if config.class_conditional else Condition()


def refuse_sizes_that_do_not_halve(config: TrainConfig, kind: ImageKind) -> None:
    """Raise UsageError, with the key to change, if the images cannot be halved once per level of the network."""
    levels = config.unet.get("channel_mult")
    factor = 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else 1
    if kind.side % factor == 0:
        return
    advice = "use fewer levels"
    if "size" in config.dataset:
        advice += f" or set dataset.size={max(1, round(kind.size / factor)) * factor - 2 * kind.pad}"
    elif "pad" in config.dataset and kind.size % 2 == 0:
        advice += f" or set dataset.pad={next(pad for pad in range(factor) if (kind.size + 2 * pad) % factor == 0)}"
    raise UsageError(
        f"unet.channel_mult has {len(levels or [])} levels, so images must be divisible by {factor}; "
        f"{kind.name} is {kind.side}: {advice}"
    )
