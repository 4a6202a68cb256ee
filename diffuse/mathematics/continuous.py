"""Paths from data to noise in continuous time: those of the score SDEs and of flow matching.

Networks are trained at real times in [t_min, T]. T is 1000 as for most tables, so that a number of steps, a time grid
and the network's time input mean the same for all schedules; the papers' time is t / T.
"""

import math

import torch
from torch import Tensor

from diffuse.mathematics.schedules import Schedule
from diffuse.system.errors import check

T = 1000


class VP(Schedule):
    """The variance-preserving SDE: Song et al. 2021, appendix C, the limit of `linear` for many levels.

    log alpha(u)^2 = -(beta_min u + (beta_max - beta_min) u^2 / 2) with u = t / T. Trained at u from 1e-5, as there.

    beta_min  the rate of noise at u = 0
    beta_max  the rate of noise at u = 1
    """

    T = T
    t_min = 1e-5 * T

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        check(0 < beta_min < math.inf, "beta_min", "positive", beta_min)
        check(beta_min <= beta_max < math.inf, "beta_max", f"at least beta_min={beta_min}", beta_max)
        self.beta_min, self.growth = beta_min, beta_max - beta_min

    def log_snr(self, t: Tensor) -> Tensor:
        u = _real(t) / self.T
        log_alpha_bar = -(self.beta_min * u + self.growth * u**2 / 2)
        return log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))

    def time(self, log_snr: Tensor) -> Tensor:
        # The root of growth u^2 / 2 + beta_min u = -log alpha_bar, in the form without a difference of near numbers.
        wanted = (-torch.nn.functional.logsigmoid(log_snr)).clamp(max=self.beta_min + self.growth / 2)
        u = 2 * wanted / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * self.growth * wanted))
        return (self.T * u).clamp(0, self.T)


class VE(Schedule):
    """The variance-exploding path of score matching with Langevin dynamics (NCSN): alpha = 1, sigma grows.

    sigma(t) = sigma_min (sigma_max / sigma_min)^((t - 1) / (T - 1)), a geometric sequence from t = 1 to T: Song and
    Ermon 2019; Song et al. 2021, appendix C with levels instead of a time from 0. Below t = 1, where no network is
    trained, sigma falls linearly to 0. sigma is for images in [-1, 1], so twice the papers' for images in [0, 1].

    sigma_min  the standard deviation of the noise at t = 1
    sigma_max  the standard deviation of the noise at t = T
    """

    T = T

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0):
        check(0 < sigma_min < math.inf, "sigma_min", "positive", sigma_min)
        check(sigma_min < sigma_max < math.inf, "sigma_max", f"above sigma_min={sigma_min}", sigma_max)
        self.sigma_min, self.log_ratio = sigma_min, math.log(sigma_max / sigma_min)
        self.prior_std = sigma_max

    def log_snr(self, t: Tensor) -> Tensor:
        t = _real(t)
        above = self.log_ratio * (t - 1) / (self.T - 1)
        return -2 * (math.log(self.sigma_min) + torch.where(t < 1, torch.log(t), above))

    def time(self, log_snr: Tensor) -> Tensor:
        ratio = -log_snr / 2 - math.log(self.sigma_min)
        above = 1 + (self.T - 1) * ratio / self.log_ratio
        return torch.where(ratio < 0, ratio.exp(), above).clamp(0, self.T)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.exp(-self.log_snr(t) / 2)
        return torch.ones_like(sigma), sigma


class Flow(Schedule):
    """The straight path of flow matching and rectified flow: alpha = 1 - u, sigma = u with u = t / T.

    Liu, Gong and Liu 2023; Lipman et al. 2023 (whose time runs from noise to data). x_T is pure noise.
    """

    T = T
    t_min = 1e-3 * T

    def log_snr(self, t: Tensor) -> Tensor:
        t = _real(t)
        return 2 * (torch.log(self.T - t) - torch.log(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return self.T * torch.sigmoid(-log_snr / 2)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = _real(t)
        return (self.T - t) / self.T, t / self.T


def _real(t: Tensor) -> Tensor:
    return t if t.is_floating_point() else t.double()
