"""What networks of each prediction type have to say, by the papers' definitions."""

from functools import partial

import torch
from torch import Tensor

from tests.support.paths import PATHS

TABLES, PURE_NOISE_AT_T = ("linear", "cosine", "zero_terminal"), ("zero_terminal", "flow")


TYPES = ("eps", "x0", "v", "flow", "mean", "edm")


DEFINED = [(path, kind) for path in PATHS for kind in TYPES if kind != "mean" or path in TABLES]


SIGMA_DATA = 0.5


close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


class Constant(torch.nn.Module):
    """A network that answers the same whatever it is shown, and remembers what that was."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, x, time, y=None):
        self.shown = (x, time, y)
        return self.output


def images(*seeds: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """For each seed four images of noise, [4, 3, 2, 2]."""
    return [torch.randn(4, 3, 2, 2, dtype=dtype, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


def times(path: str, kind: str) -> Tensor:
    """From the first time of training to the last at which there is a definition to solve: x0 is not in pure noise."""
    pure = path in PURE_NOISE_AT_T and kind in ("eps", "edm")
    last = 999 if pure else 1000
    t_min = PATHS[path].schedule.t_min
    return torch.tensor([1, 2, 500, last] if path in TABLES else [t_min, 3.7, 500.25, last]).double()


def alpha_sigma(path: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """How much image and how much noise there is, from the papers' formulas, ready to multiply images."""
    pairs = torch.tensor([PATHS[path].alpha_sigma(float(time)) for time in t.flatten()], dtype=torch.float64)
    alpha, sigma = pairs.reshape(-1, 2, 1, 1, 1).unbind(1)
    return alpha, sigma


def answer(path: str, kind: str, t: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """What is predicted, by its definition, where the image is x0 and the noise is `noise`."""
    alpha, sigma = alpha_sigma(path, t)
    x_t = alpha * x0 + sigma * noise
    if kind == "mean":  # mu-tilde, Ho et al. 2020, equation 7
        beta = PATHS[path].schedule.beta[t.long()].reshape(-1, 1, 1, 1)
        alpha_before, sigma_before = alpha_sigma(path, t - 1)
        return alpha_before * beta / sigma**2 * x0 + (1 - beta).sqrt() * sigma_before**2 / sigma**2 * x_t
    if kind == "edm":  # Karras et al. 2022, equation 8 and table 1
        rho, d = sigma / alpha, SIGMA_DATA
        c_skip, c_out = d**2 / (rho**2 + d**2), rho * d / (rho**2 + d**2).sqrt()
        return (x0 - c_skip * (x0 + rho * noise)) / c_out
    return {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0, "flow": noise - x0}[kind]
