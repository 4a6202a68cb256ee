"""What a sampler is: a generator that walks from noise to an image over a decreasing grid of times ending at 0.

A sampler takes a denoiser, x at times[0], the grid and what the images are conditioned on, and yields x at each
following time. The grid is made outside and the noise is passed in, so that progress bars, trajectories and early
stopping need no callbacks, and a test can read every coefficient. No noise is added on the step to s = 0, which lands
on the predicted x0.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

SamplerFunction = TypeVar("SamplerFunction", bound=Callable[..., Iterator[Tensor]])


def sampler(order: int | None) -> Callable[[SamplerFunction], SamplerFunction]:
    """Declare a function to be a sampler, which runs without gradients, and its order of convergence.

    A deterministic sampler of order p ends at a distance of O(h^p) from the exact probability flow where its steps have
    length h; None is for samplers that add noise.
    """

    def declare(function: SamplerFunction) -> SamplerFunction:
        declared = torch.no_grad()(function)
        declared.order = order  # type: ignore[attr-defined]
        return declared

    return declare
