"""Reverse variances: the variance of the noise that a step from t to s adds, in sampling and in the bound.

A reverse variance is a function (step, guess) -> variance; `ReverseStep` holds what depends only on the schedule, the
guess is the network's prediction. The posterior of a step, q(x_s given x_t, x0), is for known x0; the uncertainty of x0
adds to its variance.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import Prediction
from diffuse.mathematics.schedules import Posterior, Schedule


class ReverseStep(NamedTuple):
    """A reverse step from t to s, or one for each image of a batch.

    small and large are the two variances of Ho et al. 2020, section 3.2, and the limits of a learned one. On the step
    to s = 0, where the posterior's variance is 0, small is that of the step before, as in the code of Ho et al. and of
    Nichol and Dhariwal; without a step before, it is large.
    """

    t: Tensor
    s: Tensor
    posterior: Posterior
    small: Tensor
    large: Tensor


Variance = Callable[[ReverseStep, Prediction], Tensor]


def reverse_step(schedule: Schedule, t: Tensor, s: Tensor, above: Tensor) -> ReverseStep:
    """The step from t to s; above is the time at which the step before began (t itself if there was none)."""
    posterior, large = schedule.posterior(t, s), schedule.transition_variance(t, s)
    before = torch.where(above > t, schedule.posterior(above, t).variance, large)
    return ReverseStep(t, s, posterior, torch.where(s > 0, posterior.variance, before), large)


def reverse_steps(schedule: Schedule, times: Tensor) -> list[ReverseStep]:
    """The steps of a time grid, in the order of sampling."""
    aboves = [times[0], *times[:-2]]
    return [reverse_step(schedule, t, s, above) for (t, s), above in zip(pairwise(times), aboves, strict=True)]


def fixed_small(step: ReverseStep, guess: Prediction) -> Tensor:
    """The posterior's variance, beta-tilde: right if x0 is a single point. Ho et al. 2020, section 3.2."""
    return step.small


def fixed_large(step: ReverseStep, guess: Prediction) -> Tensor:
    """The variance of q(x_t given x_s), beta_t for s = t - 1: right if x0 is N(0, I). Ho et al. 2020, section 3.2.

    On the step to 0 as `fixed_small`, since it would be far too large for 8-bit data there.
    """
    return torch.where(step.s > 0, step.large, step.small)


def learned(step: ReverseStep, guess: Prediction) -> Tensor:
    """exp(v log large + (1 - v) log small), v per pixel from the network: Nichol and Dhariwal 2021, equation 15."""
    assert guess.between is not None, "this network does not learn the variance"
    return torch.exp(guess.between * torch.log(step.large) + (1 - guess.between) * torch.log(step.small))


@dataclass(frozen=True)
class Analytic:
    """The optimal variance for a perfect network, in closed form: Bao et al. 2022 (Analytic-DPM), theorem 1.

        posterior variance + of_x0^2 E Var[x0 given x_t],   E Var[x0 given x_t] = rho^2 (1 - E ||eps||^2 / d)

    with rho = sigma / alpha and eps the network's prediction at t, over the data and the noise. One number per level.

    eps_squared  t -> E ||eps||^2 / d, for every t of the grid
    largest      clips E Var to the bounds of the paper's theorem 2: at least 0, at most rho^2, and at most `largest`,
                 the square of half the range of a pixel: 1 for [-1, 1], inf without a range. The step to 0, where the
                 posterior's variance is 0 and a clipped E Var may be too, then has at least `small`. None: no clipping
    """

    schedule: Schedule
    eps_squared: Mapping[float, float]
    largest: float | None = 1.0

    def __call__(self, step: ReverseStep, guess: Prediction) -> Tensor:
        found = step.posterior.variance + step.posterior.of_x0**2 * self.uncertainty(step.t)
        return found if self.largest is None else torch.maximum(found, step.small)

    def uncertainty(self, t: Tensor) -> Tensor:
        """E Var[x0 given x_t], the mean over pixels."""
        rho_squared = torch.exp(-self.schedule.log_snr(t))
        estimate = rho_squared * (1 - self.eps_squared[float(t)])
        if self.largest is None:
            return estimate
        return estimate.clamp(min=0).minimum(rho_squared.clamp(max=self.largest))


FIXED: dict[str, Variance] = {"fixed_small": fixed_small, "fixed_large": fixed_large}
