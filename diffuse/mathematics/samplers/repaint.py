"""RePaint: ancestral sampling around known pixels that goes back to noise again and again."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Noise
from diffuse.mathematics.samplers.sampler import sampler
from diffuse.mathematics.variances import Variance, fixed_large, reverse_steps
from diffuse.system.errors import check


def _evaluations(steps: int, resamplings: int, jump_length: int, **options: Any) -> int:
    return steps + (resamplings - 1) * jump_length * ((steps - 1) // jump_length)


@sampler(None, _evaluations)
def repaint(
    denoiser: AnyDenoiser,
    x: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    variance: Variance = fixed_large,
    resamplings: int = 10,
    jump_length: int = 1,
    noise: Noise = torch.randn_like,
) -> Iterator[Tensor]:
    """RePaint: Lugmayr et al. 2022, algorithm 1, with the jumps of their section 4.2. For `editing.KnownPixels`.

        x_s = alpha_s image + sigma_s z      where pixels are known
        x_s as `ancestral` draws it          elsewhere
        back to a time t > s: x_t = alpha_t / alpha_s x_s + sqrt(v) z,   v the variance of q(x_t given x_s)

    (Algorithm 1 prints 1 - alpha_bar_t for the deviation of the first line; equation 8a has it as the variance.) Going
    back adds noise to both parts together, and the steps after it fit the unknown pixels to the known ones. At every
    jump_length-th time, counted from the last one before 0, the walk goes back by as many steps, so that each of these
    pieces is walked `resamplings` times. Where nothing is known, it is `ancestral` with jumps. Shapes as in
    `ancestral`; yields x after each step and each jump.

    variance     of each step, as in ddpm; null: the variance of the run
    resamplings  how often each piece of the way is walked: r, the U of algorithm 1; 1 is without going back
    jump_length  steps of a piece: j, 1 in algorithm 1; below the number of steps
    """
    steps, schedule = reverse_steps(denoiser.schedule, times), denoiser.schedule
    check(resamplings >= 1, "resamplings", "at least 1", resamplings)
    most = max(len(steps), 2)
    check(1 <= jump_length < most, "jump_length", f"at least 1 and below {most}, the number of steps", jump_length)
    for place, following in pairwise(walked(len(steps), resamplings, jump_length)):
        if following < place:
            s, t = times[place], times[following]
            kept = schedule.alpha_sigma(t)[0] / schedule.alpha_sigma(s)[0]
            x = kept * x + schedule.transition_variance(t, s).sqrt() * noise(x)
        else:
            step = steps[place]
            guess = denoiser(x, step.t, y)
            x = step.posterior.of_x_t * x + step.posterior.of_x0 * guess.x0
            if step.s > 0:
                x = x + variance(step, guess).sqrt() * noise(x)
                if guess.known is not None:
                    x = torch.where(guess.known, schedule.diffuse(guess.x0, step.s, noise(x)), x)
        yield x


def walked(steps: int, resamplings: int, jump_length: int) -> list[int]:
    """The places on a grid of so many steps in the order in which RePaint comes to them, from 0, noise, to `steps`.

    At the places steps - 1, steps - 1 - jump_length, ... it jumps back by jump_length, resamplings - 1 times each.
    """
    jumps = dict.fromkeys(range(steps - 1, jump_length - 1, -jump_length), resamplings - 1)
    places = [0]
    while places[-1] < steps:
        places.append(places[-1] + 1)
        if jumps.get(places[-1], 0):
            jumps[places[-1]] -= 1
            places.append(places[-1] - jump_length)
    return places
