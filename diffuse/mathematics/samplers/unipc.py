"""UniPC: a multistep exponential integrator in x0 whose predictor is corrected by the next step's evaluation."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Noise
from diffuse.mathematics.samplers.exponential import Evaluation, Form, Step
from diffuse.mathematics.samplers.sampler import sampler
from diffuse.system.errors import check, check_choice

IN_X0 = Form(in_x0=True)
B = ("bh1", "bh2")


def _order(order: int, corrector: bool, **options: Any) -> int:
    return order + 1 if corrector else order


@sampler(_order)
def unipc(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    order: int = 2,
    b: str = "bh2",
    corrector: bool = True,
    lower_order_final: bool = True,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """UniPC, predictor and corrector in x0: Zhao et al. 2023, algorithms 5 to 8.

    The predictor takes the polynomial through the last `order` evaluations, the corrector the one through these and the
    prediction at the time where the predictor arrived, which is needed there anyway: one evaluation a step, and one
    order more. The paper's system of equations has the integrals of these polynomials as its solution, whatever B is,
    but for two evaluations, where it sets the weight of their slope to B(h) / 2. What is yielded is the predictor's x,
    since its correction comes with the next step. There is none of the last step and of one from alpha = 0; the steps
    before `order` evaluations are known have a lower order. Shapes as in `ddim`.

    order              of the predictor: 1, 2 or 3; with the corrector it is one more
    b                  B(h): bh1 is h, bh2 is 1 - e^-h
    corrector          whether the predictor is corrected
    lower_order_final  a lower order for the last steps, for stability with few steps
    """
    check(order in (1, 2, 3), "order", "1, 2 or 3", order)
    check_choice("b", b, B)
    schedule = denoiser.schedule
    known: list[Evaluation] = []
    last: tuple[Step, Tensor, int] | None = None
    for left, (t, s) in zip(range(len(times) - 1, 0, -1), pairwise(times), strict=True):
        x0, step = denoiser(x, t, y).x0, Step(schedule, IN_X0, t, s)
        known = [Evaluation(step.start, x0), *known]
        if corrector and last:
            before, start, used = last
            x = _by(before, start, [*known[1 : used + 1], known[0]], b)
        used = min(order, left, len(known)) if lower_order_final else min(order, len(known))
        last = (step, x, used) if step.finite else None
        if step.finite:
            x = _by(step, x, known[:used], b)
        else:
            x, known = step.constant_x0(x, x0), []
        known = known[:order]
        yield x


def _by(step: Step, x: Tensor, known: Sequence[Evaluation], b: str) -> Tensor:
    """x_s by the polynomial through these evaluations; where there are two, by the weight of the slope that b says."""
    if len(known) != 2:
        return step.polynomial(x, known)
    of_slope = (step.length if b == "bh1" else IN_X0.total(step.length)) / 2
    return step.weighted(x, IN_X0.straight(step.places(known), step.length, of_slope), known)
