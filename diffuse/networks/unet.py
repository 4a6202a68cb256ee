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

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.system.errors import Refused, check, check_choice

Norm = Callable[[int], nn.Module]  # the number of channels -> a group norm of them


class UNet(nn.Module):
    """A U-Net over images [b, image_channels, image_size, image_size]; returns the same shape.

    image_size, image_channels  of input and output; learned_variance doubles the channels of the output
    channels       width of the first level; level i has channels * channel_mult[i], at image_size / 2^i
    channel_mult   one factor for each level
    blocks         residual blocks for each level on the way down (one more on the way up)
    attention      resolutions, in pixels, with self-attention after each block; the middle always has it
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
    num_classes    number of labels for a class-conditional network, or None

    Raises Refused if the sizes do not fit each other.
    """

    def __init__(
        self,
        image_size: int,
        image_channels: int,
        *,
        channels: int,
        channel_mult: list[int],
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
        num_classes: int | None = None,
        learned_variance: bool = False,
    ):
        super().__init__()
        _check_sizes(image_size, channels, channel_mult, blocks, dropout)
        _check_norm(channels, groups, norm_eps, scale_shift)
        check(math.isfinite(time_scale), "time_scale", "a finite number", time_scale)
        check_choice("embedding", embedding, EMBEDDINGS)
        check_choice("padding", padding, PADDINGS)
        check_choice("resample", resample, ("strided", "residual"))

        embedded = 4 * channels
        norm = partial(nn.GroupNorm, groups, eps=norm_eps)
        self.features = EMBEDDINGS[embedding](channels)
        self.time_scale = time_scale
        self.embed_time = nn.Sequential(nn.Linear(channels, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.embed_label = nn.Embedding(num_classes, embedded) if num_classes else None

        def residual(width_in: int, width_out: int, change: nn.Module | None = None) -> ResidualBlock:
            return ResidualBlock(width_in, width_out, embedded, norm, dropout, scale_shift, change)

        def attend(width: int) -> Attention:
            return Attention(width, _heads(width, heads, head_channels), norm)

        def block(width_in: int, width_out: int, resolution: int) -> Stage:
            stage = Stage([residual(width_in, width_out)])
            return stage.append(attend(width_out)) if resolution in attention else stage

        def halve(width: int) -> nn.Module:
            return residual(width, width, nn.AvgPool2d(2)) if resample == "residual" else StridedConv(width, padding)

        def double(width: int) -> nn.Module:
            nearest = nn.Upsample(scale_factor=2)
            return residual(width, width, nearest) if resample == "residual" else UpsampledConv(width)

        self.stem = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        widths = [channels * factor for factor in channel_mult]
        width, skips, last = channels, [channels], len(widths) - 1
        for level, level_width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(width, level_width, image_size >> level))
                width = level_width
                skips.append(width)
            if level != last:
                self.down.append(Stage([halve(width)]))
                skips.append(width)
        self.middle = Stage([residual(width, width), attend(width), residual(width, width)])
        for level, level_width in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                stage = block(width + skips.pop(), level_width, image_size >> level)
                width = level_width
                if level != 0 and i == blocks:
                    stage.append(double(width))
                self.up.append(stage)
        self.norm = norm(width)
        self.head = nn.Conv2d(width, image_channels * (2 if learned_variance else 1), 3, padding=1)
        self._initialise()

    def forward(self, x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        """x [b, C, H, W], time [b] (any real numbers), y [b] class labels or None -> [b, C or 2C, H, W]."""
        if (y is None) != (self.embed_label is None):
            raise Refused("y", "must be given exactly where the network was built with num_classes")
        embedded = self.embed_time(self.features(time * self.time_scale))
        if self.embed_label is not None:
            embedded = embedded + self.embed_label(y)
        embedded = F.silu(embedded)
        h = self.stem(x)
        skips = [h]
        for stage in self.down:
            h = stage(h, embedded)
            skips.append(h)
        h = self.middle(h, embedded)
        for stage in self.up:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedded)
        return self.head(F.silu(self.norm(h)))

    def _initialise(self) -> None:
        """Glorot-uniform weights, zero biases; the last convolution of each residual branch and of the net is zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
            if isinstance(module, Attention):
                for projection in module.qkv.weight.chunk(3):  # three matrices, kept as one
                    nn.init.xavier_uniform_(projection)
                nn.init.zeros_(module.out.weight)
        nn.init.zeros_(self.head.weight)


class Stage(nn.ModuleList):
    """Modules in a row, each called with (x, embedded time)."""

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        for module in self:
            x = module(x, embedded)
        return x


class ResidualBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + time)))).

    change, if any, halves or doubles the resolution of x and of the input of the first convolution.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        embedded: int,
        norm: Norm,
        dropout: float,
        scale_shift: bool,
        change: nn.Module | None,
    ):
        super().__init__()
        self.norm1 = norm(width_in)
        self.change = change or nn.Identity()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.time = nn.Linear(embedded, width_out * (2 if scale_shift else 1))
        self.norm2 = norm(width_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.skip = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)
        self.scale_shift = scale_shift

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = self.conv1(self.change(F.silu(self.norm1(x))))
        time = self.time(embedded)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        return self.skip(self.change(x)) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input."""

    def __init__(self, width: int, heads: int, norm: Norm):
        super().__init__()
        self.heads = heads
        self.norm = norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        b, width, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, width // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.out(attended.reshape(b, width, h, w))


class StridedConv(nn.Module):
    """Halves the resolution by a convolution of stride 2."""

    def __init__(self, width: int, padding: str):
        super().__init__()
        self.padding = PADDINGS[padding]
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class UpsampledConv(nn.Module):
    """Doubles the resolution by nearest-neighbour upsampling and a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


class TimeFeatures(nn.Module):
    """[b] -> [b, dim]: [sin, cos] of time at dim / 2 fixed frequencies."""

    frequencies: Tensor

    def __init__(self, frequencies: Tensor, saved: bool = False):
        super().__init__()
        self.register_buffer("frequencies", frequencies, persistent=saved)

    def forward(self, time: Tensor) -> Tensor:
        angles = time[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class SinCos(TimeFeatures):
    """[sin, cos] at 10000^(-i / (half - 1)), i < half: Ho et al. 2020, after Vaswani et al. 2017."""

    def __init__(self, dim: int):
        half = dim // 2
        super().__init__(torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1))))


class CosSin(TimeFeatures):
    """[cos, sin] at 10000^(-i / half), i < half: Nichol and Dhariwal 2021."""

    def __init__(self, dim: int):
        half = dim // 2
        super().__init__(torch.exp(torch.arange(half) * (-math.log(10000) / half)))

    def forward(self, time: Tensor) -> Tensor:
        sin, cos = super().forward(time).chunk(2, dim=1)
        return torch.cat([cos, sin], dim=1)


class Fourier(TimeFeatures):
    """[sin, cos] at 2 pi w with w from N(0, 1), drawn once and saved: Song et al. 2021, after Tancik et al. 2020.

    The scale of w is `time_scale`, since only the product of w and time matters: 16 for the log(sigma) / 4 that
    prediction=edm gives the network, as in Karras et al.'s code; 0.016 for the levels 0 ... 999 of the others.
    """

    def __init__(self, dim: int):
        super().__init__(2 * math.pi * torch.randn(dim // 2), saved=True)


EMBEDDINGS: dict[str, Callable[[int], TimeFeatures]] = {"sin_cos": SinCos, "cos_sin": CosSin, "fourier": Fourier}
# left, right, top, bottom, as torch.nn.functional.pad takes them
PADDINGS = {"asymmetric": (0, 1, 0, 1), "symmetric": (1, 1, 1, 1)}


def _check_sizes(image_size: int, channels: int, channel_mult: Sequence[int], blocks: int, dropout: float) -> None:
    """Refuse what would fail deep inside a convolution, with the name of the option to change."""
    smallest = min(channel_mult, default=0)
    check(smallest >= 1, "channel_mult", "a list with one positive factor per level", list(channel_mult))
    factor = 2 ** (len(channel_mult) - 1)
    if image_size % factor:
        levels = f"has {len(channel_mult)} levels, so the image size must be divisible by {factor}"
        raise Refused("channel_mult", f"{levels}; it is {image_size}. Use fewer levels")
    check(channels >= 4 and channels % 2 == 0, "channels", "even and at least 4", channels)
    check(blocks >= 1, "blocks", "at least 1", blocks)
    check(0 <= dropout < 1, "dropout", "at least 0 and below 1", dropout)


def _check_norm(channels: int, groups: int, norm_eps: float, scale_shift: bool) -> None:
    check(groups >= 1 and channels % groups == 0, "groups", f"a divisor of channels={channels}", groups)
    # The norm of a single channel removes any constant that was added to all of its pixels: the time would be lost.
    check(groups < channels or scale_shift, "groups", f"below channels={channels} unless scale_shift=true", groups)
    check(norm_eps > 0, "norm_eps", "positive", norm_eps)


def _heads(width: int, heads: int, head_channels: int | None) -> int:
    """The number of heads of attention over `width` channels."""
    key, divisor = ("heads", heads) if head_channels is None else ("head_channels", head_channels)
    check(divisor >= 1 and width % divisor == 0, key, f"a divisor of the {width} channels with attention", divisor)
    return heads if head_channels is None else width // head_channels
