"""The U-Net of the DDPM paper and its descendants: (x, time, label) -> tensor. It knows nothing of diffusion.

One class covers the family. The defaults are the conventions of Ho et al. 2020 (after PixelCNN++ and Wide ResNet); the
other values are those of improved DDPM (Nichol and Dhariwal 2021) and ADM (Dhariwal and Nichol 2021):

| option         | DDPM         | ADM         | what it changes                                                  |
|----------------|--------------|-------------|------------------------------------------------------------------|
| embedding      | sin_cos      | cos_sin     | order and spacing of the time features; `fourier` is random      |
| norm_eps       | 1e-6         | 1e-5        | epsilon of the group norm                                        |
| padding        | asymmetric   | symmetric   | zeros around the input of the strided convolution                |
| scale_shift    | false        | true        | time scales and shifts the second norm instead of being added    |
| resample       | strided      | residual    | how the resolution is halved and doubled                         |
| heads          | one          | 64 wide     | attention heads, by number or by width                           |
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.networks.blocks import initialise
from diffuse.networks.encoder import Encoder
from diffuse.system.errors import Refused
from diffuse.system.sizes import AnySize


class UNet(Encoder):
    """A U-Net over images [b, image_channels, H, W]; returns the same shape.

    image_size, image_channels  of input and output, [H, W] or one number for a square; learned_variance doubles the
                   channels of the output
    channels       width of the first level; level i has channels * channel_mult[i], at [H / 2^i, W / 2^i]
    channel_mult   one factor for each level, of which fractions make whole numbers of channels
    blocks         residual blocks for each level on the way down (one more on the way up)
    attention      resolutions, by their shorter side, with self-attention after each block; the middle always has it
    heads          number of attention heads
    head_channels  width of an attention head, instead of the number of heads
    dropout        probability, inside the residual blocks
    groups         of the group norm
    norm_eps       epsilon of the group norm
    embedding      of the time: sin_cos, cos_sin or fourier
    time_scale     the time input is multiplied by this before it is embedded
    padding        of the strided convolution: asymmetric or symmetric
    scale_shift    the time scales and shifts the second norm instead of being added
    resample       how the resolution is halved and doubled: strided (convolutions) or residual (blocks)
    stem_mult      width of the first convolution, as a factor of channels
    num_classes    number of labels for a class-conditional network, or None
    augmentation_labels  numbers that say how the images of a training were changed, or 0

    Raises Refused if the sizes do not fit each other.
    """

    def __init__(
        self,
        image_size: AnySize,
        image_channels: int,
        *,
        channels: int,
        channel_mult: list[int | float],
        blocks: int,
        attention: list[int],
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
        num_classes: int | None = None,
        learned_variance: bool = False,
        augmentation_labels: int = 0,
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
            labels=num_classes,
            augmentation_labels=augmentation_labels,
        )
        self.up = nn.ModuleList()  # before the middle: checkpoints number the parameters in this order
        self.middle = self.make.middle(self.width)
        width, skips = self.width, list(self.skips)
        for level, level_width in reversed(list(enumerate(self.widths))):
            for i in range(blocks + 1):
                stage = self.make.stage(width + skips.pop(), level_width, self.resolution(level))
                width = level_width
                if level != 0 and i == blocks:
                    stage.append(self.make.double(width))
                self.up.append(stage)
        self.norm = self.make.norm(width)
        self.head = nn.Conv2d(width, image_channels * (2 if learned_variance else 1), 3, padding=1)
        initialise(self)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        """x [b, C, H, W], time [b] (any real numbers), y [b] class labels or None -> [b, C or 2C, H, W]."""
        if (y is None) != (self.embed_label is None):
            raise Refused("y", "must be given exactly where the network was built with num_classes")
        embedded = self.embed(time, y)
        skips = self.encode(x, embedded)
        h = self.middle(skips[-1], embedded)
        for stage in self.up:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedded)
        return self.head(F.silu(self.norm(h)))
