"""The weight of the squared error at each noise level, from the signal-to-noise ratio and the prediction type.

A weight is a function (snr, c_out) -> the weight of the squared error of the network's output. The papers give most of
them as w in w ||x0 - predicted x0||^2; the error of x0 is c_out times that of the output, so that it is w c_out^2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffuse.system.errors import check

Weight = Callable[[Tensor, Tensor], Tensor]


def simple(snr: Tensor, c_out: Tensor) -> Tensor:
    """1. For eps-prediction, L_simple of Ho et al. 2020, equation 14."""
    return torch.ones_like(c_out)


def snr(snr: Tensor, c_out: Tensor) -> Tensor:
    """w = snr: L_simple of eps-prediction, for every prediction type. Salimans and Ho 2022, section 4."""
    return of_output(snr, snr, c_out)


def min_snr(snr: Tensor, c_out: Tensor, *, gamma: float = 5.0) -> Tensor:
    """w = min(snr, gamma), so that nearly clean images do not dominate the loss: Hang et al. 2023, section 3.4.

    gamma  the largest weight
    """
    check(gamma > 0, "gamma", "positive", gamma)
    return of_output(snr.clamp(max=gamma), snr, c_out)


def p2(snr: Tensor, c_out: Tensor) -> Tensor:
    """w = snr / (1 + snr), which favours noisy images: Choi et al. 2022, equation 8 with k = gamma = 1."""
    return of_output(snr / (1 + snr), snr, c_out)


def of_output(w: Tensor, snr: Tensor, c_out: Tensor) -> Tensor:
    """w c_out^2; 1 where x_t is pure noise, as in Hang et al.'s code.

    There w is 0, and the level that sampling begins with would never be trained. The root is taken first, because
    c_out^2 is too large for float32 where hardly anything is left of the image.
    """
    return torch.where(snr == 0, 1, (w.sqrt() * c_out).square())
