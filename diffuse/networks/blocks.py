"""The blocks of the networks, and how they begin: Ho et al. 2020, and the options of ADM (Dhariwal and Nichol 2021)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffuse.networks.dropout import Dropout, dropouts_of, number_dropouts
from diffuse.system.errors import check

Norm = Callable[[int], nn.Module]  # the number of channels -> a group norm of them
# left, right, top, bottom, as torch.nn.functional.pad takes them
PADDINGS = {"asymmetric": (0, 1, 0, 1), "symmetric": (1, 1, 1, 1)}
RESAMPLINGS = ("strided", "residual")


class Stage(nn.ModuleList):
    """Modules in a row, each called with (x, embedded time).

    recompute: while training, keep only what goes into a module, and compute the module again for its gradient.
    """

    recompute = False

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        for module in self:
            if self.recompute and self.training:
                random = any(dropout.keys is None for dropout in dropouts_of(module))  # keys make the same mask again
                x = checkpoint(module, x, embedded, use_reentrant=False, preserve_rng_state=random)
            else:
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
        self.dropout = Dropout(dropout)
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


class AttentionPool(nn.Module):
    """Features [b, width, h, w] -> [b, outputs]: the mean over the pixels attends to itself and to the pixels.

    The tokens are the mean and the h w pixels, in this order, each with a learned vector of its place added. CLIP's
    pooling (Radford et al. 2021, section 2.4), as ADM has it.
    """

    def __init__(self, pixels: int, width: int, outputs: int, heads: int):
        super().__init__()
        self.heads = heads
        self.place = nn.Parameter(torch.randn(pixels + 1, width) / width**0.5)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], dim=1) + self.place
        b, count, width = tokens.shape
        qkv = self.qkv(tokens).reshape(b, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # of the mean alone
        return self.out(attended.reshape(b, width))


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
        return self.conv(doubled(x))


class Doubled(nn.Module):
    """`doubled`, as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return doubled(x)


def doubled(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by 2, in the memory layout of x.

    In channels-last by repeating pixels, whose gradient is a plain sum over them, which a compiler joins with what is
    beside it.
    """
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return F.interpolate(x, scale_factor=2)
    b, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(b, h, 2, w, 2, c)
    return pixels.reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Blocks:
    """Makes the blocks of one network, which share its options: those of `UNet`, and the width of the embedded time."""

    embedded: int
    norm: Norm
    attention: Sequence[int]
    heads: int
    head_channels: int | None
    dropout: float
    padding: str
    scale_shift: bool
    resample: str

    def residual(self, width_in: int, width_out: int, change: nn.Module | None = None) -> ResidualBlock:
        return ResidualBlock(width_in, width_out, self.embedded, self.norm, self.dropout, self.scale_shift, change)

    def attend(self, width: int) -> Attention:
        return Attention(width, self.heads_of(width), self.norm)

    def stage(self, width_in: int, width_out: int, resolution: int) -> Stage:
        """A residual block, and attention if images of this resolution have it."""
        stage = Stage([self.residual(width_in, width_out)])
        return stage.append(self.attend(width_out)) if resolution in self.attention else stage

    def middle(self, width: int) -> Stage:
        """The blocks at the lowest resolution, which always have attention."""
        return Stage([self.residual(width, width), self.attend(width), self.residual(width, width)])

    def halve(self, width: int) -> nn.Module:
        if self.resample == "residual":
            return self.residual(width, width, nn.AvgPool2d(2))
        return StridedConv(width, self.padding)

    def double(self, width: int) -> nn.Module:
        if self.resample == "residual":
            return self.residual(width, width, Doubled())
        return UpsampledConv(width)

    def heads_of(self, width: int) -> int:
        """The number of heads of attention over `width` channels."""
        by_width = self.head_channels is not None
        key, divisor = ("head_channels", self.head_channels) if by_width else ("heads", self.heads)
        assert divisor is not None
        check(divisor >= 1 and width % divisor == 0, key, f"a divisor of the {width} channels with attention", divisor)
        return width // divisor if by_width else divisor


def use_recomputation(net: nn.Module) -> None:
    """Compute activations again for the gradient instead of keeping them: less memory, about a third more time."""
    for module in net.modules():
        if isinstance(module, Stage):
            module.recompute = True


def initialise(net: nn.Module) -> None:
    """Glorot-uniform weights, zero biases; the last layer of each residual branch is zero. Dropouts are numbered."""
    number_dropouts(net)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in net.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.weight)
        if isinstance(module, Attention | AttentionPool):
            for projection in module.qkv.weight.chunk(3):  # three matrices, kept as one
                nn.init.xavier_uniform_(projection)
        if isinstance(module, Attention):
            nn.init.zeros_(module.out.weight)
