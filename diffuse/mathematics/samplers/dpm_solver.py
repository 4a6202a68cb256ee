"""DPM-Solver and DPM-Solver++, multistep and singlestep, for the probability flow and for the reverse SDE."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Noise
from diffuse.mathematics.samplers.exponential import Evaluation, Form, Step
from diffuse.mathematics.samplers.sampler import sampler
from diffuse.system.errors import check, check_choice

FORMS, SLOPES = ("x0", "eps"), ("midpoint", "exact")


def _order(order: int, eta: float, **options: Any) -> int | None:
    return None if eta else order


@sampler(_order)
def dpm_solver(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    order: int = 2,
    form: str = "x0",
    slope: str = "midpoint",
    eta: float = 0.0,
    lower_order_final: bool = True,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Multistep exponential integrators in lambda = log(alpha / sigma): Lu et al. 2022 (DPM-Solver++), algorithm 2.

    The integral of `exponential` with the constant, straight line or parabola through the last evaluations, one a step.
    Order 3 is the integral of that parabola; the published codes have half of its second difference, which leaves the
    method at second order. The first step, the one to 0 and one from alpha = 0, where lambda is infinite, are of first
    order and in x0; what was predicted at alpha = 0 is not used again. Shapes as in `ddim`.

    order              1 (DDIM), 2 ("2M") or 3 ("3M")
    form               what is integrated: x0 ("++"), or eps, as in the first DPM-Solver
    slope              of order 2: midpoint, as published, or exact, the integral of the straight line
    eta                0 for the probability flow, 1 for the reverse SDE (SDE-DPM-Solver++)
    lower_order_final  order 2 for the last step but one where it would be 3, for stability with few steps
    """
    check(order in (1, 2, 3), "order", "1, 2 or 3", order)
    check_choice("form", form, FORMS)
    check_choice("slope", slope, SLOPES)
    check(0 <= eta <= 1, "eta", "between 0 and 1", eta)
    schedule, flow = denoiser.schedule, Form(form == "x0", eta)
    known: list[Evaluation] = []
    for left, (t, s) in zip(range(len(times) - 1, 0, -1), pairwise(times), strict=True):
        guess, step = denoiser(x, t, y), Step(schedule, flow, t, s)
        if step.finite:
            most = min(order, left) if lower_order_final else order
            known = [Evaluation(step.start, flow.value(guess)), *known][:most]
            x = step.polynomial(x, known, slope)
        else:
            known = []
            x = step.constant_x0(x, guess.x0)
        x = step.add_noise(x, noise)
        yield x


def _singlestep_order(order: int, **options: Any) -> int:
    return order


def _singlestep_evaluations(steps: int, order: int, **options: Any) -> int:
    return order * (steps - 1) + 1


@sampler(_singlestep_order, _singlestep_evaluations)
def dpm_solver_singlestep(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    order: int = 2,
    form: str = "x0",
    slope: str = "midpoint",
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """Singlestep exponential integrators: Lu et al. 2022 (DPM-Solver, algorithms 1, 2; DPM-Solver++, algorithm 1).

    Each step evaluates at `order` times: its beginning, and the middle in lambda (order 2), or a third and two thirds
    of the way (order 3), so between the times of the grid. The step to 0 and one from alpha = 0 are of first order and
    in x0. Shapes as in `ddim`.

    order  1 (DDIM), 2 ("2S") or 3 ("3S")
    form   what is integrated: x0 ("++"), or eps, as in the first DPM-Solver
    slope  of order 2: midpoint, as published, or exact, the integral of the straight line
    """
    check(order in (1, 2, 3), "order", "1, 2 or 3", order)
    check_choice("form", form, FORMS)
    check_choice("slope", slope, SLOPES)
    schedule, flow = denoiser.schedule, Form(form == "x0")
    for t, s in pairwise(times):
        guess, step = denoiser(x, t, y), Step(schedule, flow, t, s)
        if step.finite:
            known = [Evaluation(step.start, flow.value(guess))]
            for part in {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}[order]:
                u = schedule.time(torch.tensor(2 * (step.start + part * step.h), dtype=torch.float64))
                to_u = Step(schedule, flow, t, u)
                x_u = to_u.polynomial(x, known)
                known = [known[0], Evaluation(to_u.end, flow.value(denoiser(x_u, u, y)))]
            x = step.polynomial(x, known, slope if order == 2 else "exact")
        else:
            x = step.constant_x0(x, guess.x0)
        yield x
