"""The learning rate of a step."""

import math
from collections.abc import Callable
from functools import partial

from diffuse.options.nested import Optim


def learning_rate(
    step: int, *, peak: float, warmup: int = 0, decay: str = "none", steps: int = 1, constant: int = 1
) -> float:
    """The learning rate at a step, counted from 0: linear warm-up, times the decay over all `steps`.

    decay is none, linear (to 0), cosine, or inverse_sqrt, which is sqrt(constant / step) after `constant` steps and so
    asks for no end: Karras et al. 2024 (EDM2), equation 67.
    """
    warm_up_factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    done = step / steps
    left = {
        "none": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "inverse_sqrt": math.sqrt(constant / max(constant, step)),
    }[decay]
    return float(peak * warm_up_factor * left)


def rate_of(optim: Optim, steps: int) -> Callable[[int], float]:
    """The learning rate of a training as a function of the step."""
    peak, warmup, decay, constant = optim.lr, optim.warmup, optim.decay, optim.constant
    return partial(learning_rate, peak=peak, warmup=warmup, decay=decay, steps=steps, constant=constant)
