"""DDIM, and DDIM with the additional noise of Analytic-DPM."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Noise
from diffuse.mathematics.samplers.sampler import sampler
from diffuse.mathematics.variances import Analytic
from diffuse.system.errors import Refused, check


def _order(eta: float, **options: Any) -> int | None:
    return None if eta else 1


@sampler(_order)
def ddim(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    eta: float = 0.0,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """DDIM: Song, Meng and Ermon 2021, equation 12, with v = eta^2 times the posterior's variance.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z

    x [b, C, H, W] at times[0], y [b] labels or None; yields x at times[1], times[2], ... 0.

    eta  0 is deterministic, Euler's method for the probability flow in rho = sigma / alpha; 1 is `ddpm` with
         variance=fixed_small
    """
    _check_eta(eta)
    schedule = denoiser.schedule
    for t, s in pairwise(times):
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        v = eta**2 * schedule.posterior(t, s).variance
        guess = denoiser(x, t, y)
        x = alpha_s * guess.x0 + (sigma_s**2 - v).sqrt() * guess.eps
        if v > 0:
            x = x + v.sqrt() * noise(x)
        yield x


@sampler(order=None)
def analytic_ddim(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    variance: Analytic,
    eta: float = 0.0,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """`ddim` with additional noise for the uncertainty of x0: Bao et al. 2022 (Analytic-DPM), theorem 1.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v + c^2 E Var[x0 given x_t]) z,   v = eta^2 posterior variance

    with c = alpha_s - sqrt(sigma_s^2 - v) alpha_t / sigma_t, which is d x_s / d x0. Shapes as in `ddim`.

    variance  must be analytic, which estimates E Var[x0 given x_t]
    eta       as in ddim
    """
    _check_eta(eta)
    if not isinstance(variance, Analytic):
        raise Refused("variance", "must be analytic for analytic_ddim; for a fixed variance use ddim or ddpm")
    schedule = denoiser.schedule
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        v = eta**2 * schedule.posterior(t, s).variance
        guess = denoiser(x, t, y)
        x = alpha_s * guess.x0 + (sigma_s**2 - v).sqrt() * guess.eps
        if s > 0:
            c = alpha_s - (sigma_s**2 - v).sqrt() * alpha_t / sigma_t
            x = x + (v + c**2 * variance.uncertainty(t)).sqrt() * noise(x)
        yield x


def _check_eta(eta: float) -> None:
    check(0 <= eta <= 1, "eta", "between 0 and 1", eta)
