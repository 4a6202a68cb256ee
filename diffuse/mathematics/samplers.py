"""Samplers: generators that walk from noise to an image over a decreasing grid of times ending at 0.

A sampler takes a denoiser, x at times[0] and the grid, and yields x at each following time. The grid is made outside
and the noise is passed in, so that progress bars, trajectories and early stopping need no callbacks, and a test can
read every coefficient. No noise is added on the step to s = 0, which lands on the predicted x0.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import Denoiser, Noise, Prediction
from diffuse.mathematics.variances import Analytic, Step, Variance, fixed_large, reverse_steps


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
    for step in reverse_steps(denoiser.schedule, times):
        x = _ancestral_step(step, denoiser(x, step.t, y), variance, noise)
        yield x


def _ancestral_step(step: Step, guess: Prediction, variance: Variance, noise: Noise) -> Tensor:
    """x_s from N(posterior mean with the guess for x0, variance); without noise where s = 0."""
    x_s = step.posterior.of_x_t * guess.x_t + step.posterior.of_x0 * guess.x0
    return x_s + variance(step, guess).sqrt() * noise(x_s) if step.s > 0 else x_s


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
    for t, s in pairwise(times):
        x, variance, _ = _ddim_step(denoiser, x, t, s, y, eta)
        if eta > 0 and s > 0:
            x = x + variance.sqrt() * noise(x)
        yield x


def _ddim_step(
    denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None, eta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x_s without its noise, that noise's variance, and by what an error of x0 reaches x_s."""
    schedule = denoiser.schedule
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    variance = eta**2 * schedule.posterior(t, s).variance
    kept = (sigma_s**2 - variance).sqrt()
    guess = denoiser(x, t, y)
    return alpha_s * guess.x0 + kept * guess.eps, variance, alpha_s - kept * alpha_t / sigma_t


@torch.no_grad()
def predictor_corrector(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    variance: Variance = fixed_large,
    corrector_steps: int = 1,
    snr: float = 0.16,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Langevin steps at each level, then the step of `ancestral`: Song et al. 2021 (SDE), algorithms 2 to 5.

        corrector   x <- x + e score + sqrt(2 e) z,   e = 2 (alpha_t / alpha_s)^2 (snr ||z|| / ||score||)^2

    The norms are those of each image (the paper's code takes their mean over the batch). Shapes as in `ancestral`.
    """
    _check_langevin("corrector_steps", corrector_steps, "snr", snr)
    for step in reverse_steps(denoiser.schedule, times):
        kept = (denoiser.schedule.alpha_sigma(step.t)[0] / denoiser.schedule.alpha_sigma(step.s)[0]) ** 2
        for _ in range(corrector_steps):
            score, z = denoiser(x, step.t, y).score, noise(x)
            size = 2 * kept * (snr * _norm(z) / _norm(score)) ** 2
            x = x + size * score + (2 * size).sqrt() * z
        x = _ancestral_step(step, denoiser(x, step.t, y), variance, noise)
        yield x


@torch.no_grad()
def annealed_langevin(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    langevin_steps: int = 5,
    step_size: float = 0.062,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Langevin dynamics at one noise level after the other: Song and Ermon 2019, algorithm 1; 2020 (NCSNv2).

        x <- x + step_size sigma_t^2 score / 2 + sqrt(step_size) sigma_t z

    step_size is the papers' epsilon / sigma_L^2 (0.062 is NCSNv2's for CIFAR-10; 0.2 with 100 steps NCSN's). Between
    levels x / alpha stays, and the last thing is a step to the predicted x0. Shapes as in `ancestral`.
    """
    _check_langevin("langevin_steps", langevin_steps, "step_size", step_size)
    schedule = denoiser.schedule
    if schedule.alpha_sigma(times[0])[0] == 0:
        raise ValueError("=annealed_langevin divides by alpha, which is 0 at this schedule's last level")
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, _) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        for _ in range(langevin_steps):
            x = x - step_size / 2 * sigma_t * denoiser(x, t, y).eps + step_size**0.5 * sigma_t * noise(x)
        x = alpha_s / alpha_t * x if s > 0 else denoiser(x, t, y).x0
        yield x


@torch.no_grad()
def analytic_ddim(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    variance: Analytic,
    eta: float = 0.0,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """`ddim`, with the noise that makes up for what is not known of x0: Bao et al. 2022 (Analytic-DPM), theorem 1.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v + c^2 E Var[x0 given x_t]) z,   v = eta^2 posterior variance

    with c = alpha_s - sqrt(sigma_s^2 - v) alpha_t / sigma_t, by which an error of x0 reaches x_s. Shapes as there.
    """
    if not isinstance(variance, Analytic):
        raise ValueError("variance must be analytic for analytic_ddim; for a fixed one take ddim or ddpm")
    for t, s in pairwise(times):
        x, chosen, of_error = _ddim_step(denoiser, x, t, s, y, eta)
        if s > 0:
            x = x + (chosen + of_error**2 * variance.uncertainty(t)).sqrt() * noise(x)
        yield x


def _norm(x: Tensor) -> Tensor:
    """The length of each image as a vector, [b, 1, 1, 1]."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


def _check_langevin(steps_name: str, steps: int, size_name: str, size: float) -> None:
    if steps < 1:
        raise ValueError(f"{steps_name} must be at least 1, not {steps}")
    if not size > 0:
        raise ValueError(f"{size_name} must be positive, not {size}")
