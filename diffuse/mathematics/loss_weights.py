"""The weight of the squared error of x0 at each noise level, from the signal-to-noise ratio and the prediction type.

A weight is a function (snr, c_out) -> w of the loss w ||x0 - predicted x0||^2. The error of the network's output is the
error of x0 divided by c_out, so the weight of the squared error of the output is w c_out^2.
"""

from collections.abc import Callable

from torch import Tensor

from diffuse.system.errors import check

Weight = Callable[[Tensor, Tensor], Tensor]


def simple(snr: Tensor, c_out: Tensor) -> Tensor:
    """1 / c_out^2: weight 1 for the network's output. For eps-prediction, L_simple of Ho et al. 2020, equation 14."""
    return 1 / c_out**2


def snr(snr: Tensor, c_out: Tensor) -> Tensor:
    """snr: L_simple of eps-prediction, for every prediction type. Salimans and Ho 2022, section 4."""
    return snr


def min_snr(snr: Tensor, c_out: Tensor, *, gamma: float = 5.0) -> Tensor:
    """min(snr, gamma), so that nearly clean images do not dominate the loss: Hang et al. 2023, section 3.4.

    gamma  the largest weight
    """
    check(gamma > 0, "gamma", "positive", gamma)
    return snr.clamp(max=gamma)


def p2(snr: Tensor, c_out: Tensor) -> Tensor:
    """snr / (1 + snr), which favours noisy images: Choi et al. 2022, equation 8 with k = gamma = 1."""
    return snr / (1 + snr)
