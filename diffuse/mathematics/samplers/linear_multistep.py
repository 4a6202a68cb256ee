"""Linear multistep (Adams and Bashforth's) methods for dy = eps drho: lms, deis, ipndm, pndm.

One evaluation a step; eps along the step is a combination of the last ones, e = sum c_j eps_j with sum c_j = 1, and the
step itself is DDIM's with that e (`step_by_eps`). The methods differ in the combination: of a polynomial in rho, t or
log rho, integrated over the actual grid, or the coefficients of an even grid.

In all of them the step to 0 lands on the predicted x0, and a step from alpha = 0, where rho is infinite, goes by x0;
what was predicted there is not used again. The first steps have lower orders.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Noise
from diffuse.mathematics.samplers.exponential import NODES, WEIGHTS, lagrange
from diffuse.mathematics.samplers.sampler import sampler, step_by_eps, step_by_x0
from diffuse.mathematics.schedules import Schedule
from diffuse.system.errors import check, check_choice

# Of the newest value first: the integral over one step of the polynomial through the last ones, on an even grid.
EVEN = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
# The times of the last evaluations, the newest first, and s -> the coefficient of each.
Coefficients = Callable[[list[Tensor], Tensor], Sequence[float]]


def _order(order: int, **options: Any) -> int:
    return order


def _order_on_graded_grids(order: int, **options: Any) -> int:
    return min(order, 2)


@sampler(_order)
def lms(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    order: int = 4,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Linear multistep: eps is a polynomial in rho, integrated exactly on the actual grid. After Karras et al. 2022.

        y_s = y_t + sum_j eps_j integral L_j(rho) drho

    with L_j of Lagrange, through the last `order` evaluations. Shapes as in `ddim`.

    order  1 (DDIM) to 4
    """
    check(order in EVEN, "order", "1, 2, 3 or 4", order)
    yield from _multistep(denoiser, x, times, y, order, partial(integrated, denoiser.schedule, "rho"))


@sampler(_order)
def deis(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    order: int = 3,
    space: str = "t",
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """DEIS: eps is a polynomial in t (tAB) or in log rho (as DPM-Solver in eps). Zhang and Chen 2023, equation 15.

        y_s = y_t + sum_j eps_j integral L_j(t) drho(t)

    with L_j of Lagrange, through the last `order` evaluations, one more than the paper's r. Shapes as in `ddim`.

    order  1 (DDIM) to 4; the paper's tAB3 is 4
    space  t, or log_rho
    """
    check(order in EVEN, "order", "1, 2, 3 or 4", order)
    check_choice("space", space, ("t", "log_rho"))
    yield from _multistep(denoiser, x, times, y, order, partial(integrated, denoiser.schedule, space))


@sampler(_order_on_graded_grids)
def ipndm(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    order: int = 4,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """iPNDM: the coefficients of an even grid, whatever the grid is. Zhang and Chen 2023, section 3; Liu et al. 2022.

        y_s = y_t + (rho_s - rho_t) (55 eps_0 - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24

    Of second order where steps change smoothly along the grid, of first where they jump, and of its full order where
    rho is even. It is often the best with ten steps, where orders say little. Shapes as in `ddim`.

    order  1 (DDIM) to 4
    """
    check(order in EVEN, "order", "1, 2, 3 or 4", order)
    yield from _multistep(denoiser, x, times, y, order, lambda known, s: EVEN[len(known)])


def _pndm_evaluations(steps: int, order: int, start: str, **options: Any) -> int:
    if order == 1:
        return steps
    return steps + (steps > 1) if start == "plms" else steps + 3 * min(3, steps - 1)


@sampler(_order_on_graded_grids, _pndm_evaluations)
def pndm(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    order: int = 4,
    start: str = "plms",
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """PNDM, pseudo numerical methods: `ipndm` with other first steps. Liu et al. 2022, equations 10 to 12.

    plms: the first step is taken again with the mean of eps at both of its ends. runge_kutta: the first three steps are
    those of the classical Runge-Kutta method, four evaluations each, of which two are between the times of the grid.
    Shapes as in `ddim`.

    order  1 (DDIM) to 4; 2 is the paper's S-PNDM, 4 its F-PNDM
    start  plms, or runge_kutta, of order 4
    """
    check(order in EVEN, "order", "1, 2, 3 or 4", order)
    check_choice("start", start, ("plms", "runge_kutta"))
    check(order == 4 or start == "plms", "start", "plms for orders other than 4", start)
    schedule, known = denoiser.schedule, list[Tensor]()
    for t, s in pairwise(times):
        guess = denoiser(x, t, y)
        if not finite(schedule, t, s):
            known = []
            x = step_by_x0(schedule, t, s, x, guess.x0)
            yield x
            continue
        known = [guess.eps, *known][:order]
        if start == "runge_kutta" and len(known) < 4:
            middle = (t + s) / 2
            second = denoiser(step_by_eps(schedule, t, middle, x, guess.eps), middle, y).eps
            third = denoiser(step_by_eps(schedule, t, middle, x, second), middle, y).eps
            fourth = denoiser(step_by_eps(schedule, t, s, x, third), s, y).eps
            eps = (guess.eps + 2 * second + 2 * third + fourth) / 6
        elif len(known) == 1 < order:
            eps = (guess.eps + denoiser(step_by_eps(schedule, t, s, x, guess.eps), s, y).eps) / 2
        else:
            eps = combination(EVEN[len(known)], known)
        x = step_by_eps(schedule, t, s, x, eps)
        yield x


def _multistep(
    denoiser: AnyDenoiser, x: Tensor, times: Tensor, y: Tensor | None, order: int, coefficients: Coefficients
) -> Iterator[Tensor]:
    """The steps of a method with these coefficients."""
    schedule, known = denoiser.schedule, list[tuple[Tensor, Tensor]]()
    for t, s in pairwise(times):
        guess = denoiser(x, t, y)
        if finite(schedule, t, s):
            known = [(t, guess.eps), *known][:order]
            taken = coefficients([time for time, _ in known], s)
            x = step_by_eps(schedule, t, s, x, combination(taken, [eps for _, eps in known]))
        else:
            known = []
            x = step_by_x0(schedule, t, s, x, guess.x0)
        yield x


def finite(schedule: Schedule, t: Tensor, s: Tensor) -> bool:
    """Whether a step goes neither from rho = infinity nor to 0."""
    return bool(schedule.alpha_sigma(t)[0] > 0) and bool(s > 0)


def combination(coefficients: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """sum c_j values_j."""
    total = coefficients[0] * values[0]
    for coefficient, value in zip(coefficients[1:], values[1:], strict=True):
        total = total + coefficient * value
    return total


def integrated(schedule: Schedule, space: str, known: list[Tensor], s: Tensor) -> list[float]:
    """Of each known time, the mean of L_j along the step, integral L_j drho / (rho_s - rho_t): their sum is 1.

    The polynomials are in the space rho, log_rho or t; the integral is taken in log rho.
    """
    log_rho = [-float(schedule.log_snr(time)) / 2 for time in [*known, s]]
    start, end = log_rho[0], log_rho[-1]
    places = {"rho": [math.exp(v - start) for v in log_rho], "log_rho": log_rho, "t": [float(t) for t in known]}[space]
    v = start + (end - start) / 2 * (NODES + 1)
    at = {
        "rho": np.exp(v - start),
        "log_rho": v,
        "t": schedule.time(torch.from_numpy(-2 * v)).numpy(),
    }[space]
    weights = (end - start) / 2 * WEIGHTS * np.exp(v - start) / math.expm1(end - start)
    return [float(weights @ lagrange(places[: len(known)], j, at)) for j in range(len(known))]
