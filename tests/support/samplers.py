"""Every sampler, a coarse grid of levels for them, and the exact moments of what they make."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffuse.mathematics import samplers

MODULES = [module.name for module in pkgutil.iter_modules(samplers.__path__, f"{samplers.__name__}.")]
DEFINED = {name: value for module in MODULES for name, value in vars(importlib.import_module(module)).items()}
SAMPLERS = {name: value for name, value in DEFINED.items() if hasattr(value, "order")}

LEVELS = [1000, 870, 533, 210, 60, 9, 1]


COARSE = torch.tensor([*LEVELS, 0], dtype=torch.float64)


class Wavy(torch.nn.Module):
    """A smooth network in general position, whose guesses of x0 leave [-1, 1] now and then."""

    def forward(self, x, time, y=None):
        return 0.8 * torch.sin(1.7 * x + 0.3) + 0.1 * torch.cos(time / 100).reshape(-1, 1, 1, 1) + 0.2 * x


def last(steps) -> Tensor:
    *_, x = steps
    return x


def normal64(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments_of(sample: Callable[..., Iterator[Tensor]], draws: int) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] of what a sampler makes of x_T from N(0, 1), without chance.

    With the exact denoiser the result is affine in x_T and in every step's noise: a row of zeros gives the mean, and a
    row with 1 in a single place, one row for each, that place's coefficient.
    """
    rows, count = draws + 2, 0

    def noise(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        z = torch.zeros_like(x)
        z[count + 1] = 1
        return z

    start = torch.zeros(rows, 3, 1, 1, dtype=torch.float64)
    start[1] = 1
    found = last(sample(start, noise=noise)).flatten(1)
    assert count == draws
    return found[0], ((found[1:] - found[0]) ** 2).sum(0)
