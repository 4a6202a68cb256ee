"""Samplers: generators that walk from noise to an image over a decreasing grid of times ending at 0.

A sampler takes a denoiser, x at times[0] and the grid, and yields x at each following time. The grid is made outside
and the noise is passed in, so that progress bars, trajectories and early stopping need no callbacks, and a test can
read every coefficient. No noise is added on the step to s = 0, which lands on the predicted x0.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffuse.denoiser import Denoiser
from diffuse.schedules import Schedule

Noise = Callable[[Tensor], Tensor]
Spacing = Callable[[Schedule, int], Tensor]
Variance = Callable[[Schedule, Tensor, Tensor], Tensor]

# ---------------------------------------------------------------------------------------------------- time grids


def uniform(schedule: Schedule, steps: int) -> Tensor:
    """Levels evenly spaced from T to 1, then 0: Nichol and Dhariwal 2021, section 4."""
    return _grid(schedule, 1 + (schedule.T - 1) * _even(steps))


def quadratic(schedule: Schedule, steps: int) -> Tensor:
    """Levels denser near the data, 1 + (T - 1) u^2 for evenly spaced u: after Song et al. 2021 (DDIM), appendix D.2."""
    return _grid(schedule, 1 + (schedule.T - 1) * _even(steps) ** 2)


def log_snr(schedule: Schedule, steps: int) -> Tensor:
    """Levels evenly spaced in log-SNR, as DPM-Solver does: Lu et al. 2022, section 3.3."""
    ends = schedule.log_snr(torch.tensor([1.0, schedule.T], dtype=torch.float64))
    return _grid(schedule, schedule.time(ends[0] + (ends[1] - ends[0]) * _even(steps)))


SPACINGS: dict[str, Spacing] = {"uniform": uniform, "quadratic": quadratic, "log_snr": log_snr}


def time_grid(schedule: Schedule, steps: int | None, spacing: Spacing = uniform) -> Tensor:
    """T = t_1 > t_2 > ... > t_steps > 0, as float64; every level where steps is None.

    Raises ValueError where steps is not in 1 ... T.
    """
    steps = schedule.T if steps is None else steps
    if not 1 <= steps <= schedule.T:
        raise ValueError(f"steps must be between 1 and the schedule's {schedule.T} levels, not {steps}")
    return spacing(schedule, steps)


def _even(steps: int) -> Tensor:
    """Evenly spaced from 0 to 1; a single step is 1, since every grid begins at T."""
    return torch.linspace(1, 0, steps, dtype=torch.float64).flip(0)


def _grid(schedule: Schedule, rising: Tensor) -> Tensor:
    """Whole levels, no two alike, falling, with 0 at the end.

    Rounding can make neighbours equal. What a level exceeds its rank by may only grow along the grid, and by T - steps
    at the most; that spreads equal ones apart and leaves a grid without them as it is.
    """
    steps = len(rising)
    rank = torch.arange(1, steps + 1, dtype=torch.float64)
    excess = (rising.round() - rank).cummax(0).values.clamp(0, schedule.T - steps)
    return torch.cat([(rank + excess).flip(0), rank.new_zeros(1)])


# ------------------------------------------------------------------------------------------- reverse variances


def fixed_small(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """The posterior's variance, beta-tilde: right where x0 is a single point. Ho et al. 2020, section 3.2."""
    return schedule.posterior(t, s).variance


def fixed_large(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """1 - alpha_bar_t / alpha_bar_s, which is beta_t for s = t - 1: right where x0 is N(0, I). Ho et al. 2020, 3.2."""
    return schedule.transition_variance(t, s)


VARIANCES: dict[str, Variance] = {"fixed_small": fixed_small, "fixed_large": fixed_large}

# ---------------------------------------------------------------------------------------------------- samplers


@torch.no_grad()
def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    variance: Variance = fixed_large,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """DDPM: draw x_s from N(posterior mean with the predicted x0, variance). Ho et al. 2020, algorithm 2.

    x [b, C, H, W] at times[0], y [b] labels or None; yields x at times[1], times[2], ... 0.
    """
    schedule = denoiser.schedule
    for t, s in pairwise(times):
        posterior = schedule.posterior(t, s)
        x = posterior.of_x_t * x + posterior.of_x0 * denoiser(x, t, y).x0
        if s > 0:
            x = x + variance(schedule, t, s).sqrt() * noise(x)
        yield x


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    eta: float = 0.0,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """DDIM: Song, Meng and Ermon 2021, equation 12, with sigma^2 = eta^2 times the posterior's variance.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - sigma^2) eps + sigma z

    eta = 0 is deterministic, eta = 1 is `ancestral` with fixed_small. Shapes as there.
    """
    schedule = denoiser.schedule
    for t, s in pairwise(times):
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        variance = eta**2 * schedule.posterior(t, s).variance
        guess = denoiser(x, t, y)
        x = alpha_s * guess.x0 + (sigma_s**2 - variance).sqrt() * guess.eps
        if eta > 0 and s > 0:
            x = x + variance.sqrt() * noise(x)
        yield x
