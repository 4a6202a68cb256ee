"""Samplers are generators that go from noise to images over a decreasing time grid ending at 0.

A sampler takes a denoiser, x at times[0], the grid and the labels y, and yields x at each following time. The grid and
the noise are arguments, so that progress bars, trajectories and early stopping need no callbacks, and a test can read
every coefficient. No noise is added on the step to s = 0, which ends at the predicted x0.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

SamplerFunction = TypeVar("SamplerFunction", bound=Callable[..., Iterator[Tensor]])


def sampler(order: int | None) -> Callable[[SamplerFunction], SamplerFunction]:
    """Mark a function as a sampler, which runs without gradients, and state its order of convergence.

    A deterministic sampler of order p ends at a distance of O(h^p) from the exact probability flow with steps of length
    h; None is for samplers that add noise.
    """

    def declare(function: SamplerFunction) -> SamplerFunction:
        declared = torch.no_grad()(function)
        declared.order = order  # type: ignore[attr-defined]
        return declared

    return declare
