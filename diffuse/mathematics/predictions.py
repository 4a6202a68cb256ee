"""Prediction types: what a network's output means.

Whatever a network predicts, one affine formula turns it into a guess of the clean image:

    x0 = c_skip x_t + c_out net(c_in x_t, time)

A prediction type is a function (schedule, t) -> those four numbers, and nothing else in the package depends on the
type. Each follows from x_t = alpha x0 + sigma eps by solving the definition of what is predicted for x0. The time input
of most networks is t - 1, the 0-based index of the level, as in published checkpoints.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffuse.mathematics.schedules import Schedule
from diffuse.system.errors import check


class Coefficients(NamedTuple):
    """The four numbers that define a prediction type at time t (after Karras et al. 2022, equation 7)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    time: Tensor


PredictionType = Callable[[Schedule, Tensor], Coefficients]


def eps(schedule: Schedule, t: Tensor) -> Coefficients:
    """The noise: x0 = (x_t - sigma eps) / alpha. Ho et al. 2020, section 3.2."""
    alpha, sigma = schedule.alpha_sigma(t)
    return Coefficients(1 / alpha, -sigma / alpha, _c_in(alpha, sigma), t - 1)


def x0(schedule: Schedule, t: Tensor) -> Coefficients:
    """The clean image. Ho et al. 2020, section 3.2; Salimans and Ho 2022, section 4."""
    alpha, sigma = schedule.alpha_sigma(t)
    return Coefficients(torch.zeros_like(alpha), torch.ones_like(alpha), _c_in(alpha, sigma), t - 1)


def v(schedule: Schedule, t: Tensor) -> Coefficients:
    """v = alpha eps - sigma x0: x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2). Salimans and Ho 2022, appendix D."""
    alpha, sigma = schedule.alpha_sigma(t)
    n = alpha**2 + sigma**2
    return Coefficients(alpha / n, -sigma / n, _c_in(alpha, sigma), t - 1)


def flow(schedule: Schedule, t: Tensor) -> Coefficients:
    """The velocity u = eps - x0 of the straight path: x0 = (x_t - sigma u) / (alpha + sigma). Liu et al. 2023."""
    alpha, sigma = schedule.alpha_sigma(t)
    return Coefficients(1 / (alpha + sigma), -sigma / (alpha + sigma), _c_in(alpha, sigma), t - 1)


def mean(schedule: Schedule, t: Tensor) -> Coefficients:
    """mu, the mean of the step from t to t - 1: x0 = (mu - of_x_t x_t) / of_x0. Ho et al. 2020, equations 7 and 8.

    For schedules with levels. An error of mu is an error of x0 multiplied by up to 1 / of_x0, some thousands at t = T.
    """
    of_x_t, of_x0, _ = schedule.posterior(t, t - 1)
    return Coefficients(-of_x_t / of_x0, 1 / of_x0, torch.ones_like(of_x0), t - 1)


def edm(schedule: Schedule, t: Tensor, *, sigma_data: float = 0.5) -> Coefficients:
    """EDM's mixture of image and noise; the network's input and target have variance 1. Karras et al. 2022, table 1.

    With y = x_t / alpha, rho = sigma / alpha and d = sigma_data, the standard deviation of the data's pixels:

        x0 = d^2 / (rho^2 + d^2) y + rho d / sqrt(rho^2 + d^2) net(y / sqrt(rho^2 + d^2), ln(rho) / 4)

    sigma_data  the standard deviation of the data's pixels
    """
    check(sigma_data > 0, "sigma_data", "positive", sigma_data)
    alpha, sigma = schedule.alpha_sigma(t)
    variance = sigma**2 + (sigma_data * alpha) ** 2
    return Coefficients(
        c_skip=sigma_data**2 * alpha / variance,
        c_out=sigma_data * sigma / variance.sqrt(),
        c_in=1 / variance.sqrt(),
        time=-schedule.log_snr(t) / 8,
    )


NEED_FLOAT32 = (mean,)


def _c_in(alpha: Tensor, sigma: Tensor) -> Tensor:
    """1, or 1 / sqrt(alpha^2 + sigma^2) where that is smaller: on variance-exploding paths the input stays bounded."""
    return 1 / torch.sqrt(alpha**2 + sigma**2).clamp(min=1)
