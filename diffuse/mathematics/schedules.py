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
| `rho(t)`       |                            | sigma / alpha, the sigma of Karras et al. 2022                    |
| `log_snr(t)`   | log(alpha-bar / (1 - alpha-bar)) | strictly decreasing, infinite at t = 0                      |
| posterior      | mu-tilde_t, beta-tilde_t   | of q(x_s given x_t, x0), for any s < t                            |

This module has what all schedules share; `tables` has those of the papers that are tables of betas, `continuous` those
given by a formula in continuous time. Tables are float64 on the CPU; `log_snr` and `alpha_sigma` return tensors of the
type and on the device of t.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from diffuse.system.errors import Refused


class Posterior(NamedTuple):
    """q(x_s given x_t, x0) = N(of_x_t x_t + of_x0 x0, variance): the reverse step for known x0."""

    of_x_t: Tensor
    of_x0: Tensor
    variance: Tensor


class Schedule(ABC):
    """A path from data to noise; variance preserving (alpha^2 + sigma^2 = 1) unless a subclass differs. Immutable.

    T          the last time
    prior_std  the standard deviation of the prior, from which sampling starts at T
    t_min      the smallest time at which networks are trained
    discrete   whether they are trained only at the levels 1 ... T
    """

    T: int
    prior_std: float = 1.0
    t_min: float = 1.0
    discrete: bool = False

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at any times t in [0, T], in the type of t; for integers in float64."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`, clamped to [0, T]."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t, in t's type.

        Both are computed from log_snr: alpha = sqrt(sigmoid(log_snr)), sigma = sqrt(sigmoid(-log_snr)). Near t = 0, in
        float32, sigma then has a relative error of 3e-7, where that of sqrt(1 - alpha_bar) is 1e-3. Where float32 has
        no sigmoid any more, below exp(-87), alpha is exp(log_snr / 2).
        """
        log_snr = self.log_snr(t)
        alpha = torch.where(log_snr < -80, torch.exp(log_snr / 2), torch.sigmoid(log_snr).sqrt())
        return alpha, torch.sigmoid(-log_snr).sqrt()

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma noise, a sample of q(x_t given x0): Ho et al. 2020, equation 4.

        t is one time for all images, or one for each, [b].
        """
        alpha, sigma = self.alpha_sigma(per_image(t, x0))
        return alpha * x0 + sigma * noise

    def transition_variance(self, t: Tensor, s: Tensor) -> Tensor:
        """v, the variance of q(x_t given x_s) for s < t: sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2.

        On a variance-preserving path that is 1 - alpha_bar_t / alpha_bar_s, and beta_t for s = t - 1. Computed as
        sigma_t^2 (1 - snr_t / snr_s), which holds on every path and keeps the digits that 1 - alpha_bar_t / alpha_bar_s
        loses near t = 0.
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
    """A schedule given by its betas, as in the paper; between integers log alpha_bar is interpolated linearly.

    betas: beta_1 ... beta_T, each in (0, 1); the last may be 1, so that x_T contains nothing of the image (zero
    terminal signal-to-noise ratio). In that last interval, where log alpha_bar falls to minus infinity, alpha is
    interpolated linearly instead. Raises Refused for other values.
    """

    discrete = True

    def __init__(self, betas: Tensor):
        betas = betas.to(torch.float64)
        inside = (betas > 0) & (betas < 1)
        inside[-1:] |= betas[-1:] == 1
        if betas.ndim != 1 or len(betas) == 0 or not bool(inside.all()):
            raise Refused("betas", "must be a list of numbers between 0 and 1, both excluded (the last may be 1)")
        self.T = len(betas)
        self.beta = torch.cat([betas.new_zeros(1), betas])
        self.log_alpha_bar = torch.log1p(-self.beta).cumsum(0)
        self.alpha_bar = self.log_alpha_bar.exp()
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def log_snr(self, t: Tensor) -> Tensor:
        t = (t if t.is_floating_point() else t.double()).clamp(0, self.T)
        table = self._table(t)
        below = t.floor().clamp(0, self.T - 1).long()
        start, end, fraction = table[below], table[below + 1], t - below
        to_nothing = start + 2 * torch.log1p(-fraction)
        log_alpha_bar = torch.where(end.isneginf(), to_nothing, torch.lerp(start, end, fraction))
        return log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))

    def time(self, log_snr: Tensor) -> Tensor:
        table = self._table(log_snr)
        wanted = torch.nn.functional.logsigmoid(log_snr)
        below = (torch.searchsorted(-table, -wanted) - 1).clamp(0, self.T - 1)
        start, end = table[below], table[below + 1]
        to_nothing = -torch.expm1((wanted - start) / 2)
        fraction = torch.where(end.isneginf(), to_nothing, (wanted - start) / (end - start))
        return below + fraction.clamp(0, 1)

    def _table(self, like: Tensor) -> Tensor:
        """log alpha_bar on the device of `like` and in its type, copied there once: no step waits for the CPU."""
        key = (like.device, like.dtype)
        if key not in self._copies:
            self._copies[key] = self.log_alpha_bar.to(like)
        return self._copies[key]


def per_image(t: Tensor, x: Tensor) -> Tensor:
    """Times, shaped so that a schedule's numbers at them multiply images like x.

    One time for all images becomes a float64 number on the CPU; one for each, [b], becomes [b, 1, 1, 1] in the images'
    type and on their device.
    """
    return t.cpu().double() if t.ndim == 0 else t.to(x).reshape(-1, *[1] * (x.ndim - 1))


def radius(schedule: Schedule, t: Tensor) -> Tensor:
    """sqrt(alpha^2 + sigma^2), by which x_t is divided to lie on the circle of `ode`; 1 where variance is preserved."""
    return torch.hypot(*schedule.alpha_sigma(t))
