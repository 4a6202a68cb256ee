"""An adaptive Runge-Kutta method as a sampler: each image takes the steps that its own error asks for."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Noise
from diffuse.mathematics.samplers.linear_multistep import combination
from diffuse.mathematics.samplers.sampler import sampler
from diffuse.mathematics.schedules import Schedule, radius
from diffuse.mathematics.wrappers import of_images
from diffuse.system.errors import check

# Dormand and Prince 1980: where the stages are, what they are made of, and the difference of orders 5 and 4. The last
# row of A is the step of order 5, so that the last stage of a step is the first one of the next.
C = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
E = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
SMALLEST = 1e-9  # step, in radians


def _unknown(steps: int, **options: Any) -> None:
    """The number of evaluations depends on the images."""


@sampler(5, _unknown)
def dormand_prince(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    tolerance: float = 1e-3,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """The probability flow by Dormand and Prince's pair of orders 5 and 4: Song et al. 2021 (SDE), appendix D.4.

    Runs in the angle of `mathematics.ode`, from the grid's first time to its last one before 0, and lands on the x0
    predicted there; of the grid nothing else counts. Step sizes and error test are each image's own, so the network is
    asked at a different time for each image, and what an image becomes does not depend on its batch. What is yielded
    are the images at their own times after each attempted step. Shapes as in `ddim`.

    tolerance  absolute and relative, of the root mean square error of an image's step
    """
    check(1e-7 <= tolerance < 1, "tolerance", "at least 1e-7 and below 1", tolerance)
    schedule = denoiser.schedule
    closing = float(times[-1]) == 0
    ends = torch.stack([times[0], times[-2] if closing else times[-1]])
    start, end = torch.atan(torch.exp(-schedule.log_snr(ends) / 2))

    def velocity(phi: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        t = _time(schedule, phi)
        r = _shaped(_each(partial(radius, schedule), t), z)
        return of_images(denoiser, rows)(z * r, t, None if y is None else y[rows.to(y.device)]).v / r

    z, phi = x / radius(schedule, times[0]), start.repeat(len(x))
    slope = velocity(phi, z, torch.arange(len(x)))
    h = 0.01 * _norm(z) / _norm(slope)  # Hairer, Norsett and Wanner 1993, section II.4: z changes by a hundredth
    most = torch.full_like(h, GROW)  # by which the next step may grow: not at all after one that was refused
    while len(rows := (phi > end).nonzero().flatten()):
        at, step = phi[rows], torch.fmin(h[rows], phi[rows] - end)
        hopeless = h[rows] < SMALLEST  # the network overflows: the image becomes NaN, which is refused where it is used
        step = torch.where(hopeless, phi[rows] - end, step)
        here = rows.to(z.device)
        z_t, stages = z[here], [slope[here]]
        for c, row in zip(C[1:], A[1:], strict=True):
            z_s = z_t - _shaped(step, z) * combination(row, stages)
            stages.append(velocity((at - c * step).clamp(min=end), z_s, rows))
        allowed = tolerance * (1 + torch.maximum(z_t.abs(), z_s.abs()))
        error = _norm(_shaped(step, z) * combination(E, stages) / allowed)
        z_s = torch.where(_shaped(hopeless, z).bool(), torch.nan, z_s)
        taken = ~(error > 1) | hopeless  # NaN too: its step would be tried for ever
        there = taken.to(z.device)
        z = z.index_copy(0, here[there], z_s[there])
        slope = slope.index_copy(0, here[there], stages[-1][there])
        phi[rows[taken]] = torch.where(step < at - end, at - step, end)[taken]
        growth = _each(lambda one: SAFETY * one**-0.2, error).nan_to_num(GROW, posinf=GROW).clamp(min=SHRINK)
        most[rows[~taken]] = 1.0
        h[rows] = step * torch.minimum(growth, most[rows])
        most[rows[taken]] = GROW
        yield z * _shaped(_each(partial(radius, schedule), _time(schedule, phi)), z)
    if closing:
        yield denoiser(z * radius(schedule, ends[1]), ends[1], y).x0


def _time(schedule: Schedule, phi: Tensor) -> Tensor:
    """The times of the images' angles."""
    return _each(lambda angle: schedule.time(-2 * torch.log(torch.tan(angle))), phi)


def _each(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """The function of each value by itself: vectorised ones differ in the last bits with the place in a batch."""
    return torch.stack([function(value) for value in values])


def _norm(x: Tensor) -> Tensor:
    """The root mean square of each image, [b], float64 on the CPU.

    One image at a time: a sum over many rows at once adds in an order that depends on their number.
    """
    return torch.stack([image.square().mean() for image in x]).sqrt().cpu().double()


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    """One value for each image, shaped so that it multiplies images, in their type and on their device."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))
