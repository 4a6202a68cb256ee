"""The learning rate of a step."""

import math


def learning_rate(step: int, *, peak: float, warmup: int = 0, decay: str = "none", steps: int = 1) -> float:
    """The learning rate at a step, counted from 0: linear warm-up, times the decay over all `steps`.

    decay is none, linear (to 0) or cosine.
    """
    warm_up_factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    done = step / steps
    left = {"none": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[decay]
    return float(peak * warm_up_factor * left)
