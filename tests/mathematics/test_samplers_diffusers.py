"""Whole trajectories of the samplers against diffusers' schedulers, clipping and respacing included."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.samplers.ancestral import ancestral
from diffuse.mathematics.samplers.ddim import ddim
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.variances import fixed_large, fixed_small
from diffuse.mathematics.wrappers import Clipped
from tests.support.samplers import Wavy


def their_scheduler(kind, schedule: Schedule, levels: list[int], **options):
    """A diffusers scheduler in float64, with our tables, on our grid (their timesteps count from 0)."""
    scheduler = kind(num_train_timesteps=1000, clip_sample=True, clip_sample_range=1.0, **options)
    scheduler.alphas_cumprod = torch.cumprod(1 - schedule.beta[1:], 0)
    scheduler.alphas = 1 - schedule.beta[1:]
    scheduler.betas = schedule.beta[1:]
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    scheduler.num_inference_steps = len(levels)
    scheduler.timesteps = torch.tensor([level - 1 for level in levels])
    return scheduler


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_ddpm_trajectory_equals_diffusers(schedule: Schedule, variance):
    levels = list(range(1000, 0, -1))
    theirs = their_scheduler(DDPMScheduler, schedule, levels, variance_type=variance.__name__)
    denoiser = Clipped(Denoiser(Wavy(), schedule))
    start = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ours_noise, their_noise = (torch.Generator().manual_seed(6) for _ in range(2))

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=ours_noise)

    x = start
    for level, ours in zip(
        levels, ancestral(denoiser, start, time_grid(schedule, None), variance=variance, noise=noise), strict=True
    ):
        output = Wavy()(x, torch.full((2,), level - 1.0, dtype=torch.float64))
        x = theirs.step(output, level - 1, x, generator=their_noise).prev_sample
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_trajectory_equals_diffusers(schedule: Schedule, eta: float):
    """On their grid of 50 levels, 20 apart, which ends at level 1."""
    levels = list(range(981, 0, -20))
    theirs = their_scheduler(DDIMScheduler, schedule, levels)
    denoiser = Clipped(Denoiser(Wavy(), schedule))
    start = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ours_noise, their_noise = (torch.Generator().manual_seed(6) for _ in range(2))

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=ours_noise)

    grid = torch.tensor([*levels, 0], dtype=torch.float64)
    x = start
    for level, ours in zip(levels, ddim(denoiser, start, grid, eta=eta, noise=noise), strict=True):
        output = Wavy()(x, torch.full((2,), level - 1.0, dtype=torch.float64))
        z = torch.randn(x.shape, dtype=x.dtype, generator=their_noise) if eta and level > 1 else torch.zeros_like(x)
        x = theirs.step(output, level - 1, x, eta=eta, use_clipped_model_output=True, variance_noise=z).prev_sample
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)
