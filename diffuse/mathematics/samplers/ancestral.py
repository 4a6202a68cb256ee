"""Ancestral sampling: each step draws from the reverse process."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Noise
from diffuse.mathematics.samplers.sampler import sampler
from diffuse.mathematics.variances import Variance, fixed_large, reverse_steps


@sampler(order=None)
def ancestral(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    variance: Variance = fixed_large,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """DDPM: x_s from N(posterior mean with the predicted x0, variance). Ho et al. 2020, algorithm 2.

        x_s = of_x_t x_t + of_x0 x0 + sqrt(variance) z

    x [b, C, H, W] at times[0], y [b] labels or None; yields x at times[1], times[2], ... 0.

    variance  of each step: fixed_small, fixed_large, learned or analytic; null: the variance of the run
    """
    for step in reverse_steps(denoiser.schedule, times):
        guess = denoiser(x, step.t, y)
        x = step.posterior.of_x_t * x + step.posterior.of_x0 * guess.x0
        if step.s > 0:
            x = x + variance(step, guess).sqrt() * noise(x)
        yield x
