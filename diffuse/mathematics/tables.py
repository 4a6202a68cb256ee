"""The papers' tables of betas: linear, scaled_linear, quad, sigmoid, cosine, and betas from a file."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffuse.mathematics.beta_ends import END_KEYS, usual_ends
from diffuse.mathematics.schedules import TableSchedule
from diffuse.system.errors import Refused, check

MOST_LEVELS = 1_000_000


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
    zero_terminal_snr  rescale the table so that its last level is pure noise: Lin et al. 2024
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
