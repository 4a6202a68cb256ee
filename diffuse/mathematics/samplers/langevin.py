"""Samplers with Langevin dynamics: steps along the score, plus noise, at one noise level after the other."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Noise, Prediction
from diffuse.mathematics.samplers.sampler import sampler
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.variances import ReverseStep, Variance, fixed_large, reverse_steps
from diffuse.system.errors import Refused, check, check_choice

# Of a step, and x and the prediction at t: the mean and the variance of x_s.
Predictor = Callable[[Schedule, ReverseStep, Tensor, Prediction, Variance], tuple[Tensor, Tensor]]


def posterior_step(
    schedule: Schedule, step: ReverseStep, x: Tensor, guess: Prediction, variance: Variance
) -> tuple[Tensor, Tensor]:
    """The step of `ancestral`: Song et al. 2021 (SDE), equation 4."""
    return step.posterior.of_x_t * x + step.posterior.of_x0 * guess.x0, variance(step, guess)


def reverse_diffusion_step(
    schedule: Schedule, step: ReverseStep, x: Tensor, guess: Prediction, variance: Variance
) -> tuple[Tensor, Tensor]:
    """(2 - a) x + v score with noise of variance v: Song et al. 2021 (SDE), algorithms 2 and 3, appendix E.

    a = alpha_t / alpha_s, and v is the variance of q(x_t given x_s): sqrt(1 - beta_t) and beta_t between neighbours.
    """
    kept = schedule.alpha_sigma(step.t)[0] / schedule.alpha_sigma(step.s)[0]
    return (2 - kept) * x + step.large * guess.score, step.large


REVERSE_DIFFUSION = "reverse_diffusion"
PREDICTORS: dict[str, Predictor] = {"ancestral": posterior_step, REVERSE_DIFFUSION: reverse_diffusion_step}


def _predictor_corrector_evaluations(steps: int, corrector_steps: int, **options: Any) -> int:
    return steps * (corrector_steps + 1)


@sampler(None, _predictor_corrector_evaluations)
def predictor_corrector(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    variance: Variance = fixed_large,
    predictor: str = "ancestral",
    corrector_steps: int = 1,
    snr: float = 0.16,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Langevin steps at each level, then the predictor's step: Song et al. 2021 (SDE), algorithms 2 to 5.

        corrector   x <- x + e score + sqrt(2 e) z,   e = 2 (alpha_t / alpha_s)^2 (snr ||z|| / ||score||)^2

    The norms are those of each image (the paper's code takes their mean over the batch). The step to 0 lands on the
    predicted x0, whatever the predictor. Shapes as in `ancestral`.

    variance         of predictor=ancestral, as in ddpm; null: the variance of the run
    predictor        ancestral, or reverse_diffusion, that of the paper's algorithms 2 and 3
    corrector_steps  Langevin steps at each level
    snr              size of a Langevin step: the ratio of the norms of its score part and its noise part
    """
    check_choice("predictor", predictor, PREDICTORS)
    check(corrector_steps >= 1, "corrector_steps", "at least 1", corrector_steps)
    check(snr > 0, "snr", "positive", snr)
    schedule = denoiser.schedule
    for step in reverse_steps(schedule, times):
        for _ in range(corrector_steps):
            score, z = denoiser(x, step.t, y).score, noise(x)
            kept = (schedule.alpha_sigma(step.t)[0] / schedule.alpha_sigma(step.s)[0]) ** 2
            e = 2 * kept * (snr * _norm(z) / _norm(score)) ** 2
            x = x + e * score + (2 * e).sqrt() * z
        guess = denoiser(x, step.t, y)
        mean, added = PREDICTORS[predictor](schedule, step, x, guess, variance)
        x = mean + added.sqrt() * noise(x) if step.s > 0 else guess.x0
        yield x


def _annealed_langevin_evaluations(steps: int, langevin_steps: int, **options: Any) -> int:
    return steps * langevin_steps + 1


@sampler(None, _annealed_langevin_evaluations)
def annealed_langevin(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    langevin_steps: int = 5,
    step_size: float = 0.124,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Langevin dynamics at each noise level in turn: Song and Ermon 2019, algorithm 1; 2020 (NCSNv2).

        x <- x + step_size sigma_t^2 score / 2 + sqrt(step_size) sigma_t z

    Moving to the next level keeps x / alpha, and the last step is to the predicted x0. Shapes as in `ancestral`.

    langevin_steps  Langevin steps at each level
    step_size       epsilon / sigma_L^2, for a step with the 1/2 above: 0.2 in NCSN's algorithm, with 100 steps; twice
                    that of the papers' code, which leaves out the 1/2: 0.4 for NCSN, 0.124 for NCSNv2 on CIFAR-10
    """
    check(langevin_steps >= 1, "langevin_steps", "at least 1", langevin_steps)
    check(step_size > 0, "step_size", "positive", step_size)
    schedule = denoiser.schedule
    if schedule.alpha_sigma(times[0])[0] == 0:
        raise Refused("schedule", "must have alpha > 0 at its last level for annealed_langevin, which divides by it")
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, _) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        for _ in range(langevin_steps):
            x = x - step_size / 2 * sigma_t * denoiser(x, t, y).eps + step_size**0.5 * sigma_t * noise(x)
        x = alpha_s / alpha_t * x if s > 0 else denoiser(x, t, y).x0
        yield x


def _norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each image, [b, 1, 1, 1]."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
