"""Noise levels: how much of the image and how much noise there is at time t.

Notation, used everywhere in this package:

    x_t = alpha(t) x0 + sigma(t) eps,    t real in [0, T]

t = 0 is data (alpha 1, sigma 0), t = T is noise, and the integers are the paper's noise levels. A reverse step goes
from t to s < t. Images are NCHW; those with a range lie in [-1, 1].

| here           | DDPM paper                 | note                                                              |
|----------------|----------------------------|-------------------------------------------------------------------|
| `beta[t]`      | beta_t                     | table of T + 1 entries, beta[0] = 0                               |
| `alpha_bar[t]` | alpha-bar_t                | table of T + 1 entries, alpha_bar[0] = 1                          |
| `alpha(t)`     | sqrt(alpha-bar_t)          | beware: the paper's own alpha_t is 1 - beta_t                     |
| `sigma(t)`     | sqrt(1 - alpha-bar_t)      | not the paper's sigma_t, which is a reverse step's standard deviation |
| `log_snr(t)`   | log(alpha-bar / (1 - alpha-bar)) | strictly decreasing, infinite at t = 0                      |
| posterior      | mu-tilde_t, beta-tilde_t   | of q(x_s given x_t, x0), for any s < t                            |

Everything is float64 on the CPU; `log_snr` and `alpha_sigma` also answer in the type and on the device of the t they
are asked about, from copies made once.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


class Posterior(NamedTuple):
    """q(x_s given x_t, x0) = N(of_x_t x_t + of_x0 x0, variance): what a reverse step would do if it knew x0."""

    of_x_t: Tensor
    of_x0: Tensor
    variance: Tensor


class Schedule(ABC):
    """A variance-preserving path from data to noise. Immutable.

    T is the last time; prior_std the standard deviation of x_T, from which sampling starts.
    """

    T: int
    prior_std: float = 1.0

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at any times t in [0, T], in the type of t; for integers in float64."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`; values beyond the ends give the ends."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t, in t's type, with alpha^2 + sigma^2 = 1.

        Both come from log_snr: alpha = sqrt(sigmoid(log_snr)), sigma = sqrt(sigmoid(-log_snr)). In float32 that keeps
        sigma right to 3e-7 near t = 0, where sqrt(1 - alpha_bar) is wrong by 1e-3.
        """
        log_snr = self.log_snr(t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def transition_variance(self, t: Tensor, s: Tensor) -> Tensor:
        """v, the variance of q(x_t given x_s) for s < t: sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2.

        That is 1 - alpha_bar_t / alpha_bar_s, and beta_t for s = t - 1. Written as sigma_t^2 (1 - snr_t / snr_s), which
        loses no digits when t and s are neighbours.
        """
        return -torch.expm1(self.log_snr(t) - self.log_snr(s)) * self.alpha_sigma(t)[1] ** 2

    def posterior(self, t: Tensor, s: Tensor) -> Posterior:
        """Coefficients and variance of q(x_s given x_t, x0) for any s < t.

        With a = alpha_t / alpha_s and v the transition variance:

            mean      a sigma_s^2 / sigma_t^2  x_t  +  alpha_s v / sigma_t^2  x0
            variance  v sigma_s^2 / sigma_t^2

        For s = t - 1 these are mu-tilde and beta-tilde of Ho et al. 2020, equations 6 and 7. At s = 0 the mean is x0
        and the variance 0.
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.alpha_sigma(t), self.alpha_sigma(s)
        v = self.transition_variance(t, s)
        kept = (sigma_s / sigma_t) ** 2
        return Posterior(alpha_t / alpha_s * kept, alpha_s * v / sigma_t**2, v * kept)


class TableSchedule(Schedule):
    """A schedule given by its betas, the paper's way; between integers log alpha_bar is interpolated linearly.

    betas: beta_1 ... beta_T, each in (0, 1). Raises ValueError otherwise.
    """

    def __init__(self, betas: Tensor):
        betas = betas.to(torch.float64)
        if betas.ndim != 1 or len(betas) == 0 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must be a list of numbers between 0 and 1, both excluded")
        self.T = len(betas)
        self.beta = torch.cat([betas.new_zeros(1), betas])
        self.log_alpha_bar = torch.log1p(-self.beta).cumsum(0)
        self.alpha_bar = self.log_alpha_bar.exp()
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def log_snr(self, t: Tensor) -> Tensor:
        t = t if t.is_floating_point() else t.double()
        table = self._table(t)
        below = t.floor().clamp(0, self.T - 1).long()
        log_alpha_bar = torch.lerp(table[below], table[below + 1], t - below)
        return log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))

    def time(self, log_snr: Tensor) -> Tensor:
        table = self._table(log_snr)
        wanted = torch.nn.functional.logsigmoid(log_snr)
        below = (torch.searchsorted(-table, -wanted) - 1).clamp(0, self.T - 1)
        fraction = (wanted - table[below]) / (table[below + 1] - table[below])
        return below + fraction.clamp(0, 1)

    def _table(self, like: Tensor) -> Tensor:
        """log alpha_bar where `like` is and in its type, copied there once: no step waits for the host."""
        key = (like.device, like.dtype)
        if key not in self._copies:
            self._copies[key] = self.log_alpha_bar.to(like)
        return self._copies[key]


def linear(levels: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> TableSchedule:
    """beta_t evenly spaced from beta_start (t = 1) to beta_end (t = T): Ho et al. 2020, section 4."""
    _check_levels(levels)
    for name, beta in {"beta_start": beta_start, "beta_end": beta_end}.items():
        if not 0 < beta < 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {beta}")
    return TableSchedule(torch.linspace(beta_start, beta_end, levels, dtype=torch.float64))


def cosine(levels: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> TableSchedule:
    """alpha_bar(t) = f(t) / f(0) with f(t) = cos^2((t / T + s) / (1 + s) pi / 2), and beta_t at most max_beta.

    Nichol and Dhariwal 2021, equation 17. The cap on beta keeps the last level from being pure noise.
    """
    _check_levels(levels)
    if not 0 <= s < math.inf:
        raise ValueError(f"s must be 0 or more, not {s}")
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta must lie between 0 and 1, not {max_beta}")
    t = torch.arange(levels + 1, dtype=torch.float64)
    f = torch.cos((t / levels + s) / (1 + s) * (math.pi / 2)) ** 2
    return TableSchedule((1 - f[1:] / f[:-1]).clamp(max=max_beta))


def _check_levels(levels: int) -> None:
    if levels < 1:
        raise ValueError(f"levels must be at least 1, not {levels}")
