"""Features of the time, which two linear layers then embed."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class TimeFeatures(nn.Module):
    """[b] -> [b, dim]: [sin, cos] of time at dim / 2 fixed frequencies."""

    frequencies: Tensor

    def __init__(self, frequencies: Tensor, saved: bool = False):
        super().__init__()
        self.register_buffer("frequencies", frequencies, persistent=saved)

    def forward(self, time: Tensor) -> Tensor:
        angles = time[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class SinCos(TimeFeatures):
    """[sin, cos] at 10000^(-i / (half - 1)), i < half: Ho et al. 2020, after Vaswani et al. 2017."""

    def __init__(self, dim: int):
        half = dim // 2
        super().__init__(torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1))))


class CosSin(TimeFeatures):
    """[cos, sin] at 10000^(-i / half), i < half: Nichol and Dhariwal 2021."""

    def __init__(self, dim: int):
        half = dim // 2
        super().__init__(torch.exp(torch.arange(half) * (-math.log(10000) / half)))

    def forward(self, time: Tensor) -> Tensor:
        sin, cos = super().forward(time).chunk(2, dim=1)
        return torch.cat([cos, sin], dim=1)


class Fourier(TimeFeatures):
    """[sin, cos] at 2 pi w with w from N(0, 1), drawn once and saved: Song et al. 2021, after Tancik et al. 2020.

    The scale of w is `time_scale`, since only the product of w and time matters: 16 for the log(sigma) / 4 that
    prediction=edm gives the network, as in Karras et al.'s code; 0.016 for the levels 0 ... 999 of the others.
    """

    def __init__(self, dim: int):
        super().__init__(2 * math.pi * torch.randn(dim // 2), saved=True)


EMBEDDINGS: dict[str, Callable[[int], TimeFeatures]] = {"sin_cos": SinCos, "cos_sin": CosSin, "fourier": Fourier}
