"""Samplers are generators that go from noise to images over a decreasing time grid ending at 0.

A sampler takes a denoiser, x at times[0], the grid and the labels y, and yields x at each following time. The grid and
the noise are arguments, so that progress bars, trajectories and early stopping need no callbacks, and a test can read
every coefficient. No noise is added on the step to s = 0, which ends at the predicted x0.

The samplers for the probability flow share two ways to take a step from t to s. With y = x / alpha, rho = sigma / alpha
and lambda = log(alpha / sigma), the flow is

    dy = eps drho,    d(x / sigma) = x0 d(alpha / sigma)

(Song et al. 2021 (DDIM), equation 14; Lu et al. 2022 (DPM-Solver++), equation 7), and a step with eps or x0 held
constant is DDIM's in both. The second stays finite where alpha(t) = 0, at pure noise, and where sigma(s) = 0.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffuse.mathematics.schedules import Schedule

SamplerFunction = TypeVar("SamplerFunction", bound=Callable[..., Iterator[Tensor]])
Order = int | None | Callable[..., int | None]


def one_each(steps: int, **options: Any) -> int:
    """One evaluation a step."""
    return steps


def sampler(
    order: Order, evaluations: Callable[..., int | None] = one_each
) -> Callable[[SamplerFunction], SamplerFunction]:
    """Mark a function as a sampler, which runs without gradients, and state its order and its cost.

    order        a deterministic sampler of order p ends at a distance of O(h^p) from the exact probability flow with
                 steps of length h, if the first steps, which have lower orders, are small enough not to show; None is
                 for samplers that add noise. A number, or a function of the options
    evaluations  calls of the denoiser for a number of steps, a function of that number and the options; None where it
                 depends on the images. On a path whose rho(T) is infinite, methods that call it more than once a step
                 may call it less often on the first one

    Both become functions of the sampler: `ddim.order(eta=0.5)` is None, `heun.evaluations(18)` is 35.
    """

    def declare(function: SamplerFunction) -> SamplerFunction:
        declared = torch.no_grad()(function)
        parameters = inspect.signature(function).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.default is not each.empty}

        def order_of(**options: Any) -> int | None:
            return order(**{**defaults, **options}) if callable(order) else order

        def evaluations_of(steps: int, **options: Any) -> int | None:
            return evaluations(steps, **{**defaults, **options})

        declared.order, declared.evaluations = order_of, evaluations_of  # type: ignore[attr-defined]
        return declared

    return declare


def order_of(walk: "partial[Iterator[Tensor]]") -> int | None:
    """The order of a sampler with its options bound, None if it adds noise or declares none."""
    declared = getattr(walk.func, "order", None)
    order: int | None = declared(**walk.keywords) if declared else None
    return order


def step_by_x0(schedule: Schedule, t: Tensor, s: Tensor, x: Tensor, x0: Tensor) -> Tensor:
    """x_s for an x0 that is constant from t to s: sigma_s / sigma_t x + (alpha_s - alpha_t sigma_s / sigma_t) x0."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    return sigma_s / sigma_t * x + (alpha_s - alpha_t * sigma_s / sigma_t) * x0


def step_by_eps(schedule: Schedule, t: Tensor, s: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    """x_s for an eps that is constant from t to s: alpha_s / alpha_t x + (sigma_s - sigma_t alpha_s / alpha_t) eps.

    Euler's method in rho. alpha_t must not be 0.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    return alpha_s / alpha_t * x + (sigma_s - sigma_t * alpha_s / alpha_t) * eps
