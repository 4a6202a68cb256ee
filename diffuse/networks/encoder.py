"""The half of a U-Net on the way down, which a classifier has too."""

import math
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.networks.augmentation_labels import AugmentationLabels
from diffuse.networks.blocks import PADDINGS, RESAMPLINGS, Blocks, Stage
from diffuse.networks.norm import GroupNorm
from diffuse.networks.time_features import EMBEDDINGS
from diffuse.system.errors import Refused, check, check_choice
from diffuse.system.sizes import AnySize, height_width, in_words


class Encoder(nn.Module):
    """The stem and the levels on the way down, with the embedding of the time. The options are those of `UNet`.

    make    makes blocks with these options, for what follows the way down
    widths  the width of each level
    width   the width at the end of the way down
    skips   the widths of all outputs on the way, the stem's first
    size    the height and width of the images

    Raises Refused if the sizes do not fit each other.
    """

    def __init__(
        self,
        image_size: AnySize,
        image_channels: int,
        channels: int,
        channel_mult: Sequence[float],
        blocks: int,
        attention: Sequence[int],
        heads: int,
        head_channels: int | None,
        dropout: float,
        groups: int,
        norm_eps: float,
        embedding: str,
        time_scale: float,
        padding: str,
        scale_shift: bool,
        resample: str,
        stem_mult: float,
        labels: int | None,
        augmentation_labels: int = 0,
    ):
        super().__init__()
        self.size = height_width(image_size, "image_size")
        _check_sizes(self.size, channels, channel_mult, blocks, dropout)
        _check_norm(channels, groups, norm_eps, scale_shift)
        check(math.isfinite(time_scale), "time_scale", "a finite number", time_scale)
        check_choice("embedding", embedding, EMBEDDINGS)
        check_choice("padding", padding, PADDINGS)
        check_choice("resample", resample, RESAMPLINGS)

        embedded, norm = 4 * channels, partial(GroupNorm, groups, eps=norm_eps)
        self.make = Blocks(embedded, norm, attention, heads, head_channels, dropout, padding, scale_shift, resample)
        self.features = EMBEDDINGS[embedding](channels)
        self.time_scale = time_scale
        self.embed_time = nn.Sequential(nn.Linear(channels, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.embed_label = nn.Embedding(labels, embedded) if labels else None

        self.embed_augmentation = AugmentationLabels(augmentation_labels, embedded) if augmentation_labels else None

        self.width, *self.widths = [_width(channels, factor, groups) for factor in (stem_mult, *channel_mult)]
        self.stem = nn.Conv2d(image_channels, self.width, 3, padding=1)
        self.down = nn.ModuleList()
        self.skips = [self.width]
        for level, level_width in enumerate(self.widths):
            for _ in range(blocks):
                self.down.append(self.make.stage(self.width, level_width, self.resolution(level)))
                self.width = level_width
                self.skips.append(self.width)
            if level != len(self.widths) - 1:
                self.down.append(Stage([self.make.halve(self.width)]))
                self.skips.append(self.width)

    def resolution(self, level: int) -> int:
        """The shorter side of the images on a level, by which `attention` names it."""
        return min(self.size) >> level

    def embed(self, time: Tensor, y: Tensor | None = None) -> Tensor:
        """The embedding of the time [b], and of the label [b] where the network has labels: an input of every block."""
        embedded = self.embed_time(self.features(time * self.time_scale))
        if self.embed_label is not None:
            embedded = embedded + self.embed_label(y)
        if self.embed_augmentation is not None:
            embedded = self.embed_augmentation(embedded)
        return F.silu(embedded)

    def encode(self, x: Tensor, embedded: Tensor) -> list[Tensor]:
        """All outputs on the way down, the stem's first and that of the lowest resolution last."""
        found = [self.stem(x)]
        for stage in self.down:
            found.append(stage(found[-1], embedded))
        return found


def _check_sizes(
    size: tuple[int, int], channels: int, channel_mult: Sequence[float], blocks: int, dropout: float
) -> None:
    """Refuse what would fail deep inside a convolution, with the name of the option to change."""
    smallest = min(channel_mult, default=0)
    check(smallest > 0, "channel_mult", "a list with one positive factor per level", list(channel_mult))
    factor = 2 ** (len(channel_mult) - 1)
    if any(side % factor for side in size):
        levels = f"has {len(channel_mult)} levels, so height and width of images must be divisible by {factor}"
        raise Refused("channel_mult", f"{levels}; they are {in_words(*size)}. Use fewer levels")
    check(channels >= 4 and channels % 2 == 0, "channels", "even and at least 4", channels)
    check(blocks >= 1, "blocks", "at least 1", blocks)
    check(0 <= dropout < 1, "dropout", "at least 0 and below 1", dropout)


def _width(channels: int, factor: float, groups: int) -> int:
    """The width of a level. Raises Refused where it is no number of channels that the group norm can divide."""
    width = round(channels * factor)
    if abs(channels * factor - width) > 1e-6 * channels or width % groups:
        raise Refused("channel_mult", f"has {factor:g} times channels={channels}, which groups={groups} do not divide")
    return width


def _check_norm(channels: int, groups: int, norm_eps: float, scale_shift: bool) -> None:
    check(groups >= 1 and channels % groups == 0, "groups", f"a divisor of channels={channels}", groups)
    # The norm of a single channel removes any constant that was added to all of its pixels: the time would be lost.
    check(groups < channels or scale_shift, "groups", f"below channels={channels} unless scale_shift=true", groups)
    check(norm_eps > 0, "norm_eps", "positive", norm_eps)
