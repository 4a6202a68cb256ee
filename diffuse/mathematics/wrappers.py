"""Denoisers that wrap a denoiser: what is done to a prediction before a sampler sees it.

Each takes a denoiser and is one, so that every sampler works with it unchanged. The order of wrapping is part of what
is computed, from the inside out: the network, guidance (`guidance.Guided`), `EpsScaled`, `Clipped` or
`DynamicallyClipped`, `editing.KnownPixels`. Losses take the network's denoiser alone: what was clipped has no gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Prediction
from diffuse.mathematics.schedules import Schedule
from diffuse.system.errors import check

Seen = Callable[[Prediction], object]  # is shown every prediction by `Observed`
PERCENTILE = 0.995  # of dynamic clipping, where none is given: that of diffusers


@dataclass(frozen=True)
class Wrapper:
    """A denoiser that asks another one, `inner`, and has its schedule; by itself it changes nothing."""

    inner: AnyDenoiser

    @property
    def schedule(self) -> Schedule:
        return self.inner.schedule

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        return self.inner(x_t, t, y)

    def of(self, rows: Tensor) -> "Wrapper":
        """The same for some images of the batch: a wrapper that holds something for each image has theirs alone."""
        return replace(self, inner=of_images(self.inner, rows))


def of_images(denoiser: AnyDenoiser, rows: Tensor) -> AnyDenoiser:
    """The denoiser of the images with these numbers of a batch, for a sampler that asks for a part of them."""
    return denoiser.of(rows) if isinstance(denoiser, Wrapper) else denoiser


class Clipped(Wrapper):
    """The predicted x0 limited to [-1, 1], the range of images; eps, v and score follow from it. Ho et al.'s code."""

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        guess = self.inner(x_t, t, y)
        return replace(guess, x0=guess.x0.clamp(-1, 1))


@dataclass(frozen=True)
class DynamicallyClipped(Wrapper):
    """Dynamic thresholding: x0 limited to [-s, s] and divided by s. Saharia et al. 2022 (Imagen), section 2.3.

        s = max(the quantile of |x0| over the pixels of the image, 1)

    so that pixels are pushed away from saturation where many of them leave [-1, 1], and an image inside is as it was.

    percentile  which quantile, in (0, 1]
    """

    percentile: float = PERCENTILE

    def __post_init__(self) -> None:
        check(0 < self.percentile <= 1, "percentile", "above 0 and at most 1", self.percentile)

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        guess = self.inner(x_t, t, y)
        s = torch.quantile(guess.x0.abs().flatten(1), self.percentile, dim=1).clamp(min=1)
        s = s.reshape(-1, *[1] * (x_t.ndim - 1))
        return replace(guess, x0=guess.x0.clamp(-s, s) / s)


@dataclass(frozen=True)
class Observed(Wrapper):
    """The same denoiser, which shows each prediction to a function: for progress, pictures of the way, and counting."""

    seen: Seen

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        guess = self.inner(x_t, t, y)
        self.seen(guess)
        return guess


@dataclass(frozen=True)
class EpsScaled(Wrapper):
    """The predicted noise divided by b, a little above 1: Ning et al. 2024 (ADM-ES), section 4.

        eps <- eps / b(t),   b(t) = at_data + (at_noise - at_data) t / T

    While sampling, a network sees what was drawn before instead of noisy data, and predicts too much noise there. b is
    constant where at_noise = at_data; their k i + b, linear in the step i, is at_data = b and at_noise = b + k (steps -
    1) on an evenly spaced grid. Where alpha is 0, x0 does not follow from eps, and stays as it is.
    """

    at_data: float = 1.0
    at_noise: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        guess = self.inner(x_t, t, y)
        part = t.reshape(guess.alpha.shape).to(guess.alpha) / self.schedule.T
        b = self.at_data + (self.at_noise - self.at_data) * part
        # alpha x0 = x_t - sigma eps / b, written without eps, of which nothing is left where alpha is 0.
        scaled = x_t * ((1 - 1 / b) / guess.alpha) + guess.x0 / b
        return replace(guess, x0=torch.where(guess.alpha > 0, scaled, guess.x0))
