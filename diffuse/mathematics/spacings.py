"""Time grids: the noise levels that a sampler, or the bound, goes through from noise to data.

A grid is float64 and decreases to 0, from T but for `leading` and `ddim_quadratic`; the network is called at all of its
times but the 0. For schedules with levels these are distinct integers; for paths in continuous time they are what the
formula gives.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffuse.mathematics.schedules import Schedule
from diffuse.system.errors import Refused, check

Spacing = Callable[[Schedule, int], Tensor]


def uniform(schedule: Schedule, steps: int) -> Tensor:
    """Evenly spaced from T to 1, then 0: Nichol and Dhariwal 2021, section 4; Song et al. 2021 (SDE), appendix C.

    Levels are rounded as in the code of Nichol and Dhariwal: a sum of equal strides, counted from 0.
    """
    if schedule.discrete and steps > 1:
        stride = torch.tensor((schedule.T - 1) / (steps - 1), dtype=torch.float64)
        return _grid(schedule, 1 + torch.cat([torch.zeros(1), stride.repeat(steps - 1)]).cumsum(0).round())
    return _grid(schedule, 1 + (schedule.T - 1) * _even(steps))


def to_zero(schedule: Schedule, steps: int) -> Tensor:
    """Evenly spaced from T to 0: the grid of flow matching."""
    return _grid(schedule, schedule.T * torch.arange(1, steps + 1, dtype=torch.float64) / steps)


def quadratic(schedule: Schedule, steps: int) -> Tensor:
    """Levels denser near the data, 1 + (T - 1) u^2 for evenly spaced u: after Song et al. 2021 (DDIM), appendix D.2."""
    return _grid(schedule, 1 + (schedule.T - 1) * _even(steps) ** 2)


def leading(schedule: Schedule, steps: int) -> Tensor:
    """DDIM's own stride: 1, 1 + c, 1 + 2 c, ... with c = T / steps: Song et al. 2021, appendix D.2, in their code.

    The first time is T - c + 1, and pure noise is taken for x at that time. steps must divide T: where it does not,
    their code takes more steps, and its followers begin far below T.
    """
    check(schedule.T % steps == 0, "steps", f"a divisor of {schedule.T} for spacing=leading", steps)
    return _grid(schedule, 1 + schedule.T // steps * torch.arange(steps, dtype=torch.float64))


def ddim_quadratic(schedule: Schedule, steps: int) -> Tensor:
    """DDIM's quadratic grid: 1 + (sqrt(0.8 T) u)^2, rounded down, for evenly spaced u: their code for CIFAR-10.

    The first time is 1 + 0.8 T, and pure noise is taken for x at that time. Where rounding makes levels equal, as it
    does from 50 steps on, they are moved apart; their code stays at one level for several steps.
    """
    squares = torch.linspace(0, (0.8 * schedule.T) ** 0.5, steps, dtype=torch.float64) ** 2
    return _grid(schedule, 1 + (squares.floor() if schedule.discrete else squares))


def log_snr(schedule: Schedule, steps: int) -> Tensor:
    """Evenly spaced in log-SNR, as DPM-Solver does: Lu et al. 2022, section 3.3."""
    return _even_in(schedule, steps, lambda log_snr: log_snr, lambda even: even)


def karras(schedule: Schedule, steps: int) -> Tensor:
    """Evenly spaced in rho^(1/7), rho = sigma / alpha: Karras et al. 2022, equation 5, between the times T and 1."""
    return _even_in(schedule, steps, lambda log_snr: torch.exp(-log_snr / 14), lambda even: -14 * torch.log(even))


def consistency(schedule: Schedule, steps: int) -> Tensor:
    """T, then rho = 0.821, the second step of Geng et al. 2024 (ECT); each further one has half as much noise.

    Or more than half, where the last one would be below that of the time 1. Where T has less than twice 0.821, the
    second step begins with half of it.
    """
    last, first = (-schedule.log_snr(torch.tensor([1.0, schedule.T], dtype=torch.float64)) / 2).exp()
    second = (first / 2).clamp(max=0.821).maximum(last)
    factor = max(0.5, float(last / second) ** (1 / max(1, steps - 2)))
    rho = second * factor ** torch.arange(steps - 1, dtype=torch.float64)
    return _grid(schedule, torch.cat([schedule.time(-2 * rho.log()).flip(0), first.new_full((1,), schedule.T)]))


SPACINGS: dict[str, Spacing] = {
    spacing.__name__: spacing
    for spacing in (uniform, to_zero, leading, quadratic, ddim_quadratic, log_snr, karras, consistency)
}


def time_grid(schedule: Schedule, steps: int | None, spacing: Spacing = uniform) -> Tensor:
    """t_1 > t_2 > ... > t_steps > 0, as float64; as many steps as levels if steps is None.

    Raises Refused if steps is not in 1 ... T, or if the grid begins below T on a path that does not preserve variance,
    where pure noise is far from x at t_1.
    """
    steps = schedule.T if steps is None else steps
    most = f"the schedule's {schedule.T} levels" if schedule.discrete else str(schedule.T)
    check(1 <= steps <= schedule.T, "steps", f"between 1 and {most}", steps)
    times = spacing(schedule, steps)
    check(float(times[0]) > schedule.T / 2, "steps", f"more than {steps} for spacing={spacing.__name__}", steps)
    if times[0] < schedule.T and not _preserves_variance(schedule, times[0]):
        raise Refused("spacing", f"must not be {spacing.__name__} on this schedule: it begins below T, with x as at T")
    return times


def own_grid(schedule: Schedule, times: Sequence[float]) -> Tensor:
    """The user's own grid as `time_grid` would return it: these times, and 0 at the end if it is not there.

    Times need not be whole levels. Raises Refused if they do not fall, or lie outside (0, T], or begin far below T.
    """
    grid = torch.tensor([*times, *([] if times and times[-1] == 0 else [0])], dtype=torch.float64)
    rising = [(float(t), float(s)) for t, s in pairwise(grid) if not t > s]
    if rising:
        raise Refused("times", f"must fall from noise to data, and do not from {rising[0][0]:g} to {rising[0][1]:g}")
    first, last = float(grid[0]), schedule.T
    check(first > 0 and first <= last, "times", f"numbers above 0 and at most {last}", list(times))
    if first < last and (first <= last / 2 or not _preserves_variance(schedule, grid[0])):
        raise Refused("times", f"must begin at T = {last} on this schedule, where x is pure noise, not at {first:g}")
    return grid


def _preserves_variance(schedule: Schedule, t: Tensor) -> bool:
    """Whether alpha^2 + sigma^2 = 1."""
    alpha, sigma = schedule.alpha_sigma(t)
    return bool(torch.isclose(alpha**2 + sigma**2, torch.ones_like(alpha)))


def _even(steps: int) -> Tensor:
    """Evenly spaced from 0 to 1; a single step is 1, since every grid begins at T."""
    return torch.linspace(1, 0, steps, dtype=torch.float64).flip(0)


def _even_in(
    schedule: Schedule, steps: int, of_log_snr: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
) -> Tensor:
    """Evenly spaced in a function of log-SNR. If x_T is pure noise, evenly from T - 1 on, with T before it."""
    first, last = torch.tensor([1.0, schedule.T], dtype=torch.float64)
    noise = schedule.log_snr(last).isneginf()
    ends = of_log_snr(schedule.log_snr(torch.stack([first, last - 1 if noise else last])))
    even = ends[0] + (ends[1] - ends[0]) * _even(steps - 1 if noise else steps)
    return _grid(schedule, torch.cat([schedule.time(back(even))[: steps - 1], last[None]]))


def _grid(schedule: Schedule, rising: Tensor) -> Tensor:
    """The grid in decreasing order, with 0 at the end; in distinct integers if the schedule has levels.

    Rounding can make neighbours equal. The difference between a level and its rank 1, 2, 3 ... must not decrease along
    the grid, nor exceed T - steps; that separates equal levels and changes no grid without them.
    """
    if schedule.discrete:
        rank = torch.arange(1, len(rising) + 1, dtype=torch.float64)
        rising = rank + (rising.round() - rank).cummax(0).values.clamp(0, schedule.T - len(rising))
    return torch.cat([rising.flip(0), rising.new_zeros(1)])
