"""What a network is trained to do: the loss of one batch, and how its noise levels are drawn."""

import torch
from torch import Tensor

from diffuse.denoiser import Denoiser


def uniform_levels(count: int, T: int, device: torch.device | str = "cpu") -> Tensor:
    """`count` levels from 1 ... T, both included, each equally likely: Ho et al. 2020, algorithm 1."""
    return torch.randint(1, T + 1, (count,), device=device)


def denoising_loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Tensor:
    """L_simple of each image, the mean over its pixels: Ho et al. 2020, equation 14.

        mean of (net(x_t, t) - target)^2   with   x_t = alpha x0 + sigma noise

    The target is what the network should have said; for prediction of eps it is the noise. x0 and noise
    [b, C, H, W], t [b] in (0, T], y [b] labels or None -> [b].
    """
    x_t = denoiser.diffuse(x0, t, noise)
    error = denoiser.output(x_t, t, y) - denoiser.target(x_t, x0, t)
    return error.square().flatten(1).mean(1)
