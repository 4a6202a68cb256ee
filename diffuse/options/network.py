"""The untrained network of a config, for one kind of images."""

from collections.abc import Sequence

from diffuse.data.augmentation import LABELS
from diffuse.data.conditions import Condition
from diffuse.data.images import ImageKind
from diffuse.networks.encoder import Encoder
from diffuse.options.build import build, locate
from diffuse.options.schema import TrainConfig
from diffuse.system.errors import UsageError
from diffuse.system.sizes import in_words


def build_network(config: TrainConfig, kind: ImageKind, trust: Sequence[str] = ()) -> Encoder:
    """The network that a training config describes, for images of this kind: a U-Net, or a classifier."""
    refuse_network_for_another_loss(config, trust)
    refuse_sizes_that_do_not_halve(config, kind)
    given = {
        "image_size": kind.padded_size,
        "image_channels": kind.channels,
        **condition_of(config, kind).network_options,
    }
    if config.classifies and config.augment.probability:
        raise UsageError("augment.probability is of denoisers, and this training is of a classifier: leave it out")
    if not config.classifies:
        given["learned_variance"] = config.variance == "learned"
    if config.augment.probability:
        given["augmentation_labels"] = LABELS
    found: Encoder = build(config.unet, "unet", trust, **given)
    return found


def refuse_network_for_another_loss(config: TrainConfig, trust: Sequence[str]) -> None:
    """Raise UsageError where the loss trains a classifier and the network is none, or the other way round."""
    if getattr(locate(config.unet, "unet", trust), "classifies", False) == config.classifies:
        return
    name, loss = config.unet["_target_"], config.loss["_target_"]
    if config.classifies:
        raise UsageError(
            f"loss=cross_entropy trains a classifier, and unet._target_={name} returns images: choose method=classifier"
        )
    raise UsageError(
        f"unet._target_={name} is a classifier, and loss={loss} trains a denoiser: set unet._target_=UNet, or choose "
        "method=classifier"
    )


def condition_of(config: TrainConfig, kind: ImageKind) -> Condition:
    """What the network is conditioned on; of a classifier, the classes that it tells apart.

    Raises UsageError if that is a class and the data set has no labels.
    """
    if config.classifies:
        refuse_without_every_label(config, kind)
    if config.class_conditional and not kind.classes:
        raise UsageError(f"class_conditional=true needs labels, and the data set {kind.name} has none")
    return Condition(kind.classes, config.label_dropout) if config.class_conditional else Condition()


def refuse_without_every_label(config: TrainConfig, kind: ImageKind) -> None:
    """Raise UsageError where a classifier would not be shown the class of each image."""
    if not kind.classes:
        raise UsageError(f"loss=cross_entropy trains a classifier, and the data set {kind.name} has no classes")
    if not config.class_conditional or config.label_dropout:
        given = f"class_conditional={str(config.class_conditional).lower()} label_dropout={config.label_dropout:g}"
        raise UsageError(
            f"loss=cross_entropy trains a classifier, which needs the class of every image, and this is with {given}: "
            "set class_conditional=true label_dropout=0, or choose method=classifier"
        )


def refuse_sizes_that_do_not_halve(config: TrainConfig, kind: ImageKind) -> None:
    """Raise UsageError, with the key to change, if the images cannot be halved once per level of the network."""
    levels = config.unet.get("channel_mult")
    factor = 2 ** (len(levels) - 1) if isinstance(levels, list) and levels else 1
    if not any(side % factor for side in kind.padded_size):
        return
    advice = "use fewer levels"
    pads = [pad for pad in range(factor) if not any((side + 2 * pad) % factor for side in kind.size)]
    if "size" in config.dataset:
        height, width = (max(1, round(side / factor)) * factor - 2 * kind.pad for side in kind.size)
        advice += f" or set dataset.size={height if height == width else f'[{height},{width}]'}"
    elif "pad" in config.dataset and pads:
        advice += f" or set dataset.pad={pads[0]}"
    raise UsageError(
        f"unet.channel_mult has {len(levels or [])} levels, so height and width of images must be divisible by "
        f"{factor}; those of {kind.name} are {in_words(*kind.padded_size)}: {advice}"
    )
