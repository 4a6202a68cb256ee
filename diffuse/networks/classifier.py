"""A classifier of images at any time: the way down of a U-Net, and attention pooling. It knows nothing of diffusion.

With scale_shift, resample=residual, embedding=cos_sin, norm_eps=1e-5 and head_channels=64 it is ADM's classifier:
Dhariwal and Nichol 2021, section 4.3.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from diffuse.networks.blocks import AttentionPool, initialise
from diffuse.networks.encoder import Encoder
from diffuse.system.errors import Refused
from diffuse.system.sizes import AnySize


class Classifier(Encoder):
    """A classifier over images [b, image_channels, H, W]; returns logits [b, num_classes].

    image_size, image_channels  of the input, [H, W] or one number for a square
    num_classes                 number of classes

    The other options are those of `UNet`: the network is the half of a U-Net on the way down with its middle, a group
    norm, silu, and attention pooling. Raises Refused if the sizes do not fit each other.
    """

    classifies = True

    def __init__(
        self,
        image_size: AnySize,
        image_channels: int,
        *,
        channels: int,
        channel_mult: list[int | float],
        blocks: int,
        attention: list[int],
        num_classes: int,
        heads: int = 1,
        head_channels: int | None = None,
        dropout: float = 0.0,
        groups: int = 32,
        norm_eps: float = 1e-6,
        embedding: str = "sin_cos",
        time_scale: float = 1.0,
        padding: str = "asymmetric",
        scale_shift: bool = False,
        resample: str = "strided",
        stem_mult: float = 1.0,
    ):
        super().__init__(
            image_size,
            image_channels,
            channels=channels,
            channel_mult=channel_mult,
            blocks=blocks,
            attention=attention,
            heads=heads,
            head_channels=head_channels,
            dropout=dropout,
            groups=groups,
            norm_eps=norm_eps,
            embedding=embedding,
            time_scale=time_scale,
            padding=padding,
            scale_shift=scale_shift,
            resample=resample,
            stem_mult=stem_mult,
            labels=None,
        )
        self.middle = self.make.middle(self.width)
        self.norm = self.make.norm(self.width)
        lowest = math.prod(side >> (len(self.widths) - 1) for side in self.size)
        self.pool = AttentionPool(lowest, self.width, num_classes, self.make.heads_of(self.width))
        initialise(self)

    def forward(self, x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        """x [b, C, H, W], time [b] (any real numbers) -> logits [b, num_classes]. It is not told the label."""
        if y is not None:
            raise Refused("y", "must be None: a classifier is not told the label")
        embedded = self.embed(time)
        h = self.middle(self.encode(x, embedded)[-1], embedded)
        return self.pool(F.silu(self.norm(h)))
