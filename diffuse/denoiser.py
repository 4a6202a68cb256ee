"""A denoiser: a network, the schedule it was trained on, and what its output means.

Whatever a network predicts, one affine formula turns it into a guess of the clean image:

    x0 = c_skip x_t + c_out net(c_in x_t, time input, y)

A prediction type is a function (schedule, t) -> Coefficients, and nothing else in the package knows which one is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffuse.schedules import Schedule


class Coefficients(NamedTuple):
    """The four numbers that define a prediction type at time t (after Karras et al. 2022, equation 7)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    time: Tensor


PredictionType = Callable[[Schedule, Tensor], Coefficients]


def eps(schedule: Schedule, t: Tensor) -> Coefficients:
    """The network predicts the noise: x0 = (x_t - sigma eps) / alpha. Ho et al. 2020, section 3.2.

    The time input is t - 1, the 0-based index of the level that published checkpoints use.
    """
    alpha, sigma = schedule.alpha_sigma(t)
    return Coefficients(1 / alpha, -sigma / alpha, torch.ones_like(alpha), t - 1)


@dataclass(frozen=True)
class Prediction:
    """What is believed about x0 given x_t: four views of one guess, each exact when the others are.

    eps = (x_t - alpha x0) / sigma,   v = alpha eps - sigma x0,   score = -eps / sigma.
    Where x0 was clipped, the other three follow the clipped one. Shapes are those of x_t.
    """

    x_t: Tensor
    alpha: Tensor
    sigma: Tensor
    x0: Tensor

    @property
    def eps(self) -> Tensor:
        return (self.x_t - self.alpha * self.x0) / self.sigma

    @property
    def v(self) -> Tensor:
        return self.alpha * self.eps - self.sigma * self.x0

    @property
    def score(self) -> Tensor:
        return -self.eps / self.sigma


class Denoiser(nn.Module):
    """net + schedule + prediction type -> Prediction(x0, eps, v, score).

    net(x [b, C, H, W], time [b], y [b] or None) -> [b, C, H, W]; clip limits the guess of x0 to [-1, 1].
    Times are one number for the whole batch or one for each image, in (0, T]. Broadcasting over the pixels happens
    here and only here.
    """

    def __init__(
        self, net: Callable[..., Tensor], schedule: Schedule, prediction: PredictionType = eps, clip: bool = False
    ):
        super().__init__()
        self.net, self.schedule, self.prediction, self.clip = net, schedule, prediction, clip

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        """The guess of x0 from x_t at time t, and with it eps, v and the score."""
        c_skip, c_out, _, _ = self.coefficients(x_t, t)
        x0 = c_skip * x_t + c_out * self.output(x_t, t, y)
        alpha, sigma = (per_image(value, x_t) for value in self.schedule.alpha_sigma(times_like(t, x_t)))
        return Prediction(x_t, alpha, sigma, x0.clamp(-1, 1) if self.clip else x0)

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma noise, a draw from q(x_t given x0): Ho et al. 2020, equation 4."""
        alpha, sigma = (per_image(value, x0) for value in self.schedule.alpha_sigma(times_like(t, x0)))
        return alpha * x0 + sigma * noise

    def output(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """What the network itself says, net(c_in x_t, time input, y)."""
        _, _, c_in, time = self.coefficients(x_t, t)
        if time.ndim == 0:
            time = torch.full((len(x_t),), time.item(), device=x_t.device)
        return self.net(c_in * x_t, time.flatten().to(x_t), y)

    def target(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """What the network would have to say to be right: (x0 - c_skip x_t) / c_out."""
        c_skip, c_out, _, _ = self.coefficients(x_t, t)
        return (x0 - c_skip * x_t) / c_out

    def coefficients(self, x_t: Tensor, t: Tensor) -> Coefficients:
        """The prediction type's coefficients, ready to multiply images like x_t."""
        return Coefficients(*(per_image(c, x_t) for c in self.prediction(self.schedule, times_like(t, x_t))))


def times_like(t: Tensor, x: Tensor) -> Tensor:
    """One time for all images is a float64 number on the CPU; one for each follows the images' type and device."""
    return t.cpu().double() if t.ndim == 0 else t.to(x)


def per_image(value: Tensor, x: Tensor) -> Tensor:
    """[b] becomes [b, 1, 1, 1], so that it multiplies images; a single number multiplies them as it is."""
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (x.ndim - 1))
