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

This module has the schedules given by a table of betas; `continuous` has those given by a formula in continuous time.
Tables are float64 on the CPU; `log_snr` and `alpha_sigma` return tensors of the type and on the device of t.
"""

import json
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffuse.system.errors import Refused, check


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


DDPM = (1e-4, 0.02)  # beta_1 and beta_T of Ho et al. 2020, for 1,000 levels
MOST_LEVELS = 1_000_000
END_KEYS = ("beta_start", "beta_end")
ENDS = {"linear": DDPM, "quad": DDPM, "scaled_linear": (0.00085, 0.012), "sigmoid": DDPM}


def linear(
    levels: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
    zero_terminal_snr: bool = False,
) -> TableSchedule:
    """beta_t evenly spaced from beta_start (t = 1) to beta_end (t = T): Ho et al. 2020, section 4.

    levels             number of noise levels, T
    beta_start         beta_1; null: 1e-4 times 1000 / levels (Nichol and Dhariwal 2021, in their code)
    beta_end           beta_T; null: 0.02 times 1000 / levels
    zero_terminal_snr  rescale the table so that its last level is pure noise (`rescale_to_zero_snr`)
    """
    ends = ends_for("linear", levels, beta_start, beta_end)
    return _table(torch.linspace(*ends, levels, dtype=torch.float64), zero_terminal_snr)


def scaled_linear(
    levels: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
    zero_terminal_snr: bool = False,
) -> TableSchedule:
    """sqrt(beta_t) evenly spaced from sqrt(beta_start) to sqrt(beta_end), so that beta_t is a quadratic function of t.

    Rombach et al. 2022, in their code.

    levels             number of noise levels, T
    beta_start         beta_1; null: 0.00085 times 1000 / levels
    beta_end           beta_T; null: 0.012 times 1000 / levels
    zero_terminal_snr  rescale the table so that its last level is pure noise
    """
    start, end = ends_for("scaled_linear", levels, beta_start, beta_end)
    return _table(torch.linspace(start**0.5, end**0.5, levels, dtype=torch.float64) ** 2, zero_terminal_snr)


def quad(
    levels: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
    zero_terminal_snr: bool = False,
) -> TableSchedule:
    """`scaled_linear` between the ends of `linear`: Ho et al. 2020, in their code.

    levels             number of noise levels, T
    beta_start         beta_1; null: 1e-4 times 1000 / levels
    beta_end           beta_T; null: 0.02 times 1000 / levels
    zero_terminal_snr  rescale the table so that its last level is pure noise
    """
    return scaled_linear(levels, *ends_for("quad", levels, beta_start, beta_end), zero_terminal_snr)


def sigmoid(
    levels: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
    width: float = 6.0,
    zero_terminal_snr: bool = False,
) -> TableSchedule:
    """beta_t = beta_start + (beta_end - beta_start) sigmoid(z), with z evenly spaced from -width to width.

    The code of Song, Meng and Ermon 2021. (In Jabri et al. 2022 the sigmoid schedule is another one, of alpha_bar.)

    levels             number of noise levels, T
    beta_start         beta_1, nearly; null: 1e-4 times 1000 / levels
    beta_end           beta_T, nearly; null: 0.02 times 1000 / levels
    width              half the width of the interval of the sigmoid that is used
    zero_terminal_snr  rescale the table so that its last level is pure noise
    """
    start, end = ends_for("sigmoid", levels, beta_start, beta_end)
    check(0 < width < math.inf, "width", "positive", width)
    z = torch.linspace(-width, width, levels, dtype=torch.float64)
    return _table(start + (end - start) * torch.sigmoid(z), zero_terminal_snr)


def ends_for(schedule: str, levels: int, start: float | None, end: float | None) -> tuple[float, float]:
    """beta_1 and beta_T of the schedule of this name: as given, or else as `usual_ends` has them.

    Raises Refused where one is not in (0, 1).
    """
    check(1 <= levels <= MOST_LEVELS, "levels", f"between 1 and {MOST_LEVELS}", levels)
    for name, given, usual in zip(END_KEYS, (start, end), usual_ends(schedule, levels), strict=True):
        if given is None and usual >= 1:
            raise Refused("levels", f"must be above {usual * levels:g} where {name} is null, not {levels}")
        check(given is None or 0 < given < 1, name, "between 0 and 1", given)
    start, end = (given or usual for given, usual in zip((start, end), usual_ends(schedule, levels), strict=True))
    return start, end


def usual_ends(schedule: str, levels: int) -> tuple[float, float]:
    """beta_1 and beta_T for 1,000 levels times 1000 / levels: as little of the image is left at T for any number."""
    start, end = ENDS[schedule]
    return start * 1000 / levels, end * 1000 / levels


def cosine(
    levels: int = 1000, s: float = 0.008, max_beta: float = 0.999, zero_terminal_snr: bool = False
) -> TableSchedule:
    """alpha_bar(t) = f(t) / f(0) with f(t) = cos^2((t / T + s) / (1 + s) pi / 2), and beta_t at most max_beta.

    Nichol and Dhariwal 2021, equation 17. Because of max_beta the last level is not pure noise.

    levels             number of noise levels, T
    s                  offset that keeps beta from being too small near t = 0
    max_beta           the largest beta
    zero_terminal_snr  rescale the table so that its last level is pure noise
    """
    check(1 <= levels <= MOST_LEVELS, "levels", f"between 1 and {MOST_LEVELS}", levels)
    check(0 <= s < math.inf, "s", "0 or more", s)
    check(0 < max_beta < 1, "max_beta", "between 0 and 1", max_beta)
    t = torch.arange(levels + 1, dtype=torch.float64)
    f = torch.cos((t / levels + s) / (1 + s) * (math.pi / 2)) ** 2
    return _table((1 - f[1:] / f[:-1]).clamp(max=max_beta), zero_terminal_snr)


def betas(path: str | None = None, values: list[float] | None = None, zero_terminal_snr: bool = False) -> TableSchedule:
    """beta_1 ... beta_T from a file or a list.

    path               a file with one beta for each level: .npy, a list in .json, or text
    values             the betas themselves; a run records here what it reads from the file
    zero_terminal_snr  rescale the table so that its last level is pure noise
    """
    if values is None:
        if path is None:
            raise Refused("path", "must be a file with one beta for each level, and is not set")
        values = read_betas(path)
    try:
        return _table(torch.tensor(values, dtype=torch.float64), zero_terminal_snr)
    except Refused as error:
        argument, given = ("path", path) if path is not None else ("values", f"a list of {len(values)} numbers")
        raise Refused(argument, f"is {given}: {error}") from error


def read_betas(path: str | Path) -> list[float]:
    """The numbers in a file: .npy, a list in .json, or text with numbers separated by newlines, spaces or commas.

    Raises Refused if they cannot be read.
    """
    file = Path(path).expanduser()
    try:
        if file.suffix == ".npy":
            with file.open("rb") as opened:
                listed = np.lib.format.read_array(opened, allow_pickle=False).reshape(-1).tolist()
        elif file.suffix == ".json":
            listed = json.loads(file.read_text())
        else:
            listed = file.read_text().replace(",", " ").split()
        return [float(beta) for beta in listed]
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Refused("path", f"is {path}, which is not a list of numbers: {error}") from error


def rescale_to_zero_snr(betas: Tensor) -> Tensor:
    """Betas whose last level is pure noise: sqrt(alpha_bar) shifted and scaled to keep its first value and end at 0.

    sqrt(alpha_bar_t)' = (sqrt(alpha_bar_t) - sqrt(alpha_bar_T)) sqrt(alpha_bar_1) / (sqrt(alpha_bar_1) -
    sqrt(alpha_bar_T)): Lin et al. 2024, algorithm 1.
    """
    if len(betas) < 2:
        raise Refused("zero_terminal_snr", "needs at least 2 levels")
    alpha = torch.log1p(-betas).cumsum(0).div(2).exp()
    first, last = alpha[0], alpha[-1]
    alpha_bar = ((alpha - last) * first / (first - last)) ** 2
    return torch.cat([betas[:1], 1 - alpha_bar[1:] / alpha_bar[:-1]])


def _table(betas: Tensor, zero_terminal_snr: bool) -> TableSchedule:
    schedule = TableSchedule(betas)  # checks the betas first: rescaling would hide a value that is not allowed
    return TableSchedule(rescale_to_zero_snr(betas)) if zero_terminal_snr else schedule


def per_image(t: Tensor, x: Tensor) -> Tensor:
    """Times, shaped so that a schedule's numbers at them multiply images like x.

    One time for all images becomes a float64 number on the CPU; one for each, [b], becomes [b, 1, 1, 1] in the images'
    type and on their device.
    """
    return t.cpu().double() if t.ndim == 0 else t.to(x).reshape(-1, *[1] * (x.ndim - 1))
