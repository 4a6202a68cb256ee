"""Samplers against exact maps and moments, a measured order, and diffusers' schedulers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from diffuse.denoiser import Denoiser
from diffuse.oracles import Gaussian
from diffuse.samplers import SPACINGS, ancestral, ddim, fixed_large, fixed_small, time_grid
from diffuse.schedules import Schedule, cosine, linear
from tests.conftest import MEAN, STD

LEVELS = [1000, 870, 533, 210, 60, 9, 1]
COARSE = torch.tensor([*LEVELS, 0], dtype=torch.float64)


def last(steps) -> Tensor:
    *_, x = steps
    return x


def alpha_bars(schedule: Schedule) -> list[float]:
    return [1.0, *np.cumprod(1 - schedule.beta[1:].numpy()).tolist()]


def scale_of_ddim(alpha_bar_t: float, alpha_bar_s: float, std: float) -> float:
    """By what a DDIM step of the exact denoiser multiplies x - alpha mean, when eta is 0."""
    signal = math.sqrt(alpha_bar_s * alpha_bar_t) * std**2
    return (signal + math.sqrt((1 - alpha_bar_s) * (1 - alpha_bar_t))) / (alpha_bar_t * std**2 + 1 - alpha_bar_t)


def test_ddim_of_the_gaussian_is_its_exact_product(gaussian: Gaussian, schedule: Schedule):
    """Each step is affine, so seven coarse steps are a product of seven factors."""
    x = torch.randn(16, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = last(ddim(gaussian.denoiser(schedule), x, COARSE))
    table = alpha_bars(schedule)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        factor = math.prod(scale_of_ddim(table[t], table[s], std) for t, s in pairwise([*LEVELS, 0]))
        expected = mean + factor * (x[:, channel] - math.sqrt(table[1000]) * mean)
        torch.testing.assert_close(found[:, channel], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (ancestral, {"variance": fixed_small}),
        (ancestral, {"variance": fixed_large}),
        (ddim, {"eta": 0.7}),
        (ddim, {"eta": 1.0}),
    ],
)
def test_stochastic_samplers_have_the_exact_moments(gaussian: Gaussian, schedule: Schedule, sampler, options):
    """Mean and variance of the result, read from the coefficients of x_T and of every step's noise.

    With the exact denoiser the result is affine in them: feeding 0 gives the mean, feeding 1 in one place its
    coefficient. The expected ones follow the papers' steps for a Gaussian, written out below.
    """
    denoiser, places = gaussian.denoiser(schedule), len(LEVELS)

    def result(one_at: int | None) -> Tensor:
        count = 0

        def noise(x: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return torch.full_like(x, float(count == one_at))

        start = torch.full((1, 3, 1, 1), float(one_at == 0), dtype=torch.float64)
        return last(sampler(denoiser, start, COARSE, noise=noise, **options)).flatten()

    mean = result(None)
    variance = sum((result(place) - mean) ** 2 for place in range(places))
    for channel, (m, std) in enumerate(zip(MEAN, STD, strict=True)):
        expected = moments(alpha_bars(schedule), m, std, sampler, options)
        np.testing.assert_allclose([mean[channel], variance[channel]], expected, rtol=1e-9)


def moments(table: list[float], m: float, std: float, sampler, options: dict) -> tuple[float, float]:
    """Mean and variance of x_0 when x_T is N(0, 1), carried through the papers' steps one after the other."""
    mean, variance = 0.0, 1.0
    for t, s in pairwise([*LEVELS, 0]):
        ab_t, ab_s = table[t], table[s]
        beta = 1 - ab_t / ab_s
        tilde = (1 - ab_s) / (1 - ab_t) * beta
        gain = math.sqrt(ab_t) * std**2 / (ab_t * std**2 + 1 - ab_t)  # E[x0 given x_t] = offset + gain x_t
        offset = m - gain * math.sqrt(ab_t) * m
        if sampler is ancestral:  # Ho et al. 2020, equation 7
            of_x0 = math.sqrt(ab_s) * beta / (1 - ab_t)
            of_x_t = math.sqrt(1 - beta) * (1 - ab_s) / (1 - ab_t)
            added = beta if options["variance"] is fixed_large else tilde
        else:  # Song et al. 2021, equation 12
            added = options["eta"] ** 2 * tilde
            direction = math.sqrt(1 - ab_s - added) / math.sqrt(1 - ab_t)
            of_x0 = math.sqrt(ab_s) - direction * math.sqrt(ab_t)
            of_x_t = direction
        scale = of_x_t + of_x0 * gain
        mean = scale * mean + of_x0 * offset
        variance = scale**2 * variance + (added if s else 0)
    return mean, variance


def test_ancestral_sampling_draws_the_data(gaussian: Gaussian, schedule: Schedule):
    """With every level, the samples have the mean and spread of the data themselves."""
    torch.manual_seed(0)
    x = torch.randn(4000, 3, 1, 1, dtype=torch.float64)
    found = last(ancestral(gaussian.denoiser(schedule), x, time_grid(schedule, None), variance=fixed_small))
    np.testing.assert_allclose(found.mean(0).flatten(), MEAN, atol=0.08)
    np.testing.assert_allclose(found.std(0).flatten(), STD, rtol=0.05)


def test_ddim_converges_with_order_one(gaussian: Gaussian, schedule: Schedule):
    """Halving the steps in log-SNR halves the distance to the probability-flow map, which scales x - alpha mean."""
    alpha_T, sigma_T = schedule.alpha_sigma(torch.tensor(1000.0).double())
    end = schedule.log_snr(torch.tensor([1000.0, 1.0]).double())
    x = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    alpha_1, sigma_1 = schedule.alpha_sigma(torch.tensor(1.0).double())
    spread_T = ((alpha_T * gaussian.std) ** 2 + sigma_T**2).sqrt()
    spread_1 = ((alpha_1 * gaussian.std) ** 2 + sigma_1**2).sqrt()
    exact = alpha_1 * gaussian.mean + spread_1 / spread_T * (x - alpha_T * gaussian.mean)
    errors = []
    for steps in (40, 80, 160):
        times = schedule.time(torch.linspace(end[0], end[1], steps + 1, dtype=torch.float64))
        times[0], times[-1] = 1000, 1
        errors.append((last(ddim(gaussian.denoiser(schedule), x, times)) - exact).abs().max().item())
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(0.9 < order < 1.1 for order in orders), orders


def test_eta_one_is_ancestral_with_the_small_variance(gaussian: Gaussian, schedule: Schedule):
    x, z = torch.randn(2, 8, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    by_ddim = ddim(gaussian.denoiser(schedule), x, COARSE, eta=1.0, noise=lambda _: z)
    by_ddpm = ancestral(gaussian.denoiser(schedule), x, COARSE, variance=fixed_small, noise=lambda _: z)
    for ours, theirs in zip(by_ddim, by_ddpm, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


class Wavy(torch.nn.Module):
    """A smooth network in general position, whose guesses of x0 leave [-1, 1] now and then."""

    def forward(self, x, time, y=None):
        return 0.8 * torch.sin(1.7 * x + 0.3) + 0.1 * torch.cos(time / 100).reshape(-1, 1, 1, 1) + 0.2 * x


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
    denoiser = Denoiser(Wavy(), schedule, clip=True)
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
    denoiser = Denoiser(Wavy(), schedule, clip=True)
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


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("make", [linear, cosine])
@pytest.mark.parametrize("levels", [1, 4, 1000])
def test_grids_fall_from_T_to_zero_over_whole_levels(spacing, make, levels):
    schedule = make(levels)
    for steps in {1, 2, 3, 10, 50, 300, levels - 1, levels} & set(range(1, levels + 1)):
        times = time_grid(schedule, steps, spacing)
        assert len(times) == steps + 1
        assert times[0] == levels
        assert times[-1] == 0
        assert (times.diff() < 0).all()
        assert (times == times.round()).all()


def test_all_levels_are_every_level():
    assert time_grid(linear(), None).tolist() == list(range(1000, -1, -1))


def test_spacings_are_what_they_are_called():
    """Five levels from 1000 to 1: 1 + 999 u and 1 + 999 u^2 for u in quarters, rounded, and even steps in log-SNR."""
    grids = {name: time_grid(linear(), 5, spacing).tolist() for name, spacing in SPACINGS.items()}
    assert grids["uniform"] == [1000, 750, 500, 251, 1, 0]
    assert grids["quadratic"] == [1000, 563, 251, 63, 1, 0]
    steps = linear().log_snr(torch.tensor(grids["log_snr"][:-1], dtype=torch.float64)).diff()
    assert steps.max() / steps.min() < 1.05


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="^steps must be between 1 and the schedule's 1000 levels"):
        time_grid(linear(), steps)
