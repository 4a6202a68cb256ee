"""Group normalisation (Wu and He 2018), computed in one of two ways that give the same numbers."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.system.errors import check_choice

# (x [b, C, ...], groups, weight [C], bias [C], eps) -> x normalised over each group of channels and all pixels
Formula = Callable[[Tensor, int, Tensor, Tensor, float], Tensor]


def from_moments(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group norm from the moments of each channel: x [b, C, H, W] in any memory layout, which the result has too.

        mean of the group = mean of m_c,    variance of the group = mean of v_c + (m_c - mean)^2

    with m_c, v_c the mean and variance of channel c over its pixels, in float32 or better. On CUDA torch's own group
    norm returns NCHW whatever it was given, so that each one costs copies between layouts; this one is sums over pixels
    and one scale and shift, which torch.compile fuses with what stands around them.

    Both moments are taken in one pass, as sums of d = x - k and of d^2, where k is the channel's pixel in the middle (a
    corner feels the zeros around the image):

        m_c = k + mean(d),    v_c = mean(d^2) - mean(d)^2

    The difference loses a factor of (k - mean)^2 / variance in precision: with k = 0 float32 has no digit left where
    the mean is 1,000 times the deviation; a pixel 3 deviations from the mean costs one digit, one 10 deviations away
    two. The result does not depend on k, so its gradient is not needed.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    b, channels = x.shape[:2]
    row, column = wide.shape[2] // 2, wide.shape[3] // 2
    k = wide[:, :, row : row + 1, column : column + 1].detach()
    d = wide - k
    mean_d, mean_d2 = d.mean((2, 3)), d.square().mean((2, 3))
    means = (k[:, :, 0, 0] + mean_d).reshape(b, groups, -1)
    variances = (mean_d2 - mean_d.square()).reshape(b, groups, -1)
    mean = means.mean(2, keepdim=True)
    variance = (variances + (means - mean).square()).mean(2, keepdim=True)

    def of_channels(value: Tensor) -> Tensor:
        return value.expand(-1, -1, channels // groups).reshape(b, channels, 1, 1)

    scale = of_channels(torch.rsqrt(variance + eps)) * weight.reshape(1, -1, 1, 1)
    return (wide - of_channels(mean)) * scale + bias.reshape(1, -1, 1, 1)


NORMS: dict[str, Formula] = {"torch": F.group_norm, "moments": from_moments}


class GroupNorm(nn.GroupNorm):
    """The group norm of all blocks, with the parameters of `nn.GroupNorm`."""

    formula: Formula = staticmethod(F.group_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x, self.num_groups, self.weight, self.bias, self.eps)


def use_norm(net: nn.Module, name: str) -> None:
    """Compute the group norms of a network in one of the ways of `NORMS`, torch's own by default."""
    check_choice("norm", name, NORMS)
    for module in net.modules():
        if isinstance(module, GroupNorm):
            module.formula = NORMS[name]


def norm_of(net: nn.Module) -> str:
    """How the group norms of a network are computed."""
    formulas = {module.formula for module in net.modules() if isinstance(module, GroupNorm)}
    return next(name for name, formula in NORMS.items() if formulas <= {formula})
