"""The sampler of EDM: Heun's method in rho, with added noise."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Noise
from diffuse.mathematics.samplers.sampler import sampler, step_by_eps, step_by_x0
from diffuse.mathematics.schedules import Schedule
from diffuse.system.errors import check


def _order(order: int, churn: float, **options: Any) -> int | None:
    return None if churn else order


def _evaluations(steps: int, order: int, **options: Any) -> int:
    return order * (steps - 1) + 1


@sampler(_order, _evaluations)
def heun(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    order: int = 2,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float | None = None,
    churn_noise: float = 1.0,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Heun's method for dy = eps drho, from a noise level raised by churn: Karras et al. 2022, algorithm 2.

        rho^ = rho (1 + gamma),   y^ = y + sqrt(rho^^2 - rho^2) churn_noise z,   gamma = min(churn / steps, sqrt(2) - 1)
        y_s = y^ + (rho_s - rho^) eps^,   then   y_s = y^ + (rho_s - rho^) (eps^ + eps_s) / 2

    with y = x / alpha and rho = sigma / alpha. rho^ does not exceed rho(T), the largest noise in training. The step to
    0 is Euler's, and so is one from rho = infinity, where alpha(T) = 0. Shapes as in `ddim`.

    order                 2, or 1 for Euler's method: a single evaluation a step
    churn                 noise added over the whole grid (S_churn); 0 is the deterministic method
    churn_min, churn_max  noise is added where rho is between them (S_min, S_max; null: no limit)
    churn_noise           the standard deviation of what is added, as a multiple of what is right (S_noise)
    """
    check(order in (1, 2), "order", "1 or 2", order)
    check(0 <= churn < math.inf, "churn", "at least 0", churn)
    largest = math.inf if churn_max is None else churn_max
    check(0 <= churn_min <= largest, "churn_min", f"between 0 and churn_max={churn_max}", churn_min)
    check(0 < churn_noise < math.inf, "churn_noise", "positive", churn_noise)
    schedule = denoiser.schedule
    gamma = min(churn / (len(times) - 1), math.sqrt(2) - 1)
    for t, s in pairwise(times):
        if gamma and churn_min <= _rho(schedule, t) <= largest:
            raised = _raised(schedule, t, gamma)
            x = _add_noise(schedule, t, raised, x, churn_noise, noise)
            t = raised
        guess = denoiser(x, t, y)
        x_s = step_by_x0(schedule, t, s, x, guess.x0)
        if order == 2 and s > 0 and math.isfinite(_rho(schedule, t)):
            x_s = step_by_eps(schedule, t, s, x, (guess.eps + denoiser(x_s, s, y).eps) / 2)
        x = x_s
        yield x


def _rho(schedule: Schedule, t: Tensor) -> float:
    return math.exp(-float(schedule.log_snr(t)) / 2)


def _raised(schedule: Schedule, t: Tensor, gamma: float) -> Tensor:
    """The time at which rho is (1 + gamma) rho(t), T at most."""
    return schedule.time(schedule.log_snr(t) - 2 * math.log1p(gamma)).clamp(max=schedule.T)


def _add_noise(schedule: Schedule, t: Tensor, raised: Tensor, x: Tensor, size: float, noise: Noise) -> Tensor:
    """x at the raised time, from x at t."""
    if not raised > t:
        return x
    kept = schedule.alpha_sigma(raised)[0] / schedule.alpha_sigma(t)[0]
    return kept * x + schedule.transition_variance(raised, t).sqrt() * size * noise(x)
