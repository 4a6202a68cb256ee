"""The sampler of networks that were trained for consistency: from noise to an image in one call or a few."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Noise
from diffuse.mathematics.samplers.sampler import sampler


@sampler(order=None)
def consistency(
    denoiser: AnyDenoiser, x: Tensor, times: Tensor, y: Tensor | None = None, *, noise: Noise = torch.randn_like
) -> Iterator[Tensor]:
    """Multistep consistency sampling: Song et al. 2023, algorithm 1.

        x_s = alpha_s x0 + sigma_s z

    Each call predicts the image, to which new noise is added for the next one. That is right where the network predicts
    an image of the data from any noise, as after method=ect; an ordinary denoiser predicts their blurred mean.

    x [b, C, H, W] at times[0], y [b] labels or None; yields x at times[1], times[2], ... 0.
    """
    for t, s in pairwise(times):
        x0 = denoiser(x, t, y).x0
        alpha, sigma = denoiser.schedule.alpha_sigma(s)
        x = alpha * x0 + sigma * noise(x0) if s > 0 else x0
        yield x
