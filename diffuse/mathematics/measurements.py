"""Measurements of an image, and guidance towards images that would give a measurement: diffusion posterior sampling.

A measurement is a differentiable function A of images in [-1, 1], which is linear where its `gain` is positive:

    y = A(x0) + noise z,   z ~ N(0, I)

Inpainting, super-resolution, deblurring and colouring are the search for images with a given y.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from diffuse.mathematics.denoiser import Prediction
from diffuse.mathematics.guidance import Guided
from diffuse.system.errors import check

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, by which Pillow makes grey images


@dataclass(frozen=True)
class Measurement:
    """A measurement: its function A of images [b, C, H, W], and what it does to noise.

    gain  the variance of a value of A(x) where the pixels of x are independent and of variance 1: the diagonal of
          A A^T. 0 for a function that is not linear
    """

    function: Callable[[Tensor], Tensor]
    gain: float = 1.0

    def __call__(self, x0: Tensor) -> Tensor:
        return self.function(x0)


def pixels() -> Measurement:
    """The image itself."""
    return Measurement(lambda x0: x0)


def masked(known: Tensor) -> Measurement:
    """The pixels where known, [H, W] or [C, H, W], is 1; the others become 0 whatever they are."""
    return Measurement(lambda x0: x0 * known.to(x0))


def downsampled(factor: int) -> Measurement:
    """The means of squares of factor x factor pixels."""
    check(factor >= 1, "factor", "at least 1", factor)
    return Measurement(lambda x0: F.avg_pool2d(x0, factor), 1 / factor**2)


def blurred(std: float) -> Measurement:
    """A Gaussian blur with this standard deviation in pixels; the border is repeated outwards."""
    check(std > 0, "std", "positive", std)
    reach = max(1, round(3 * std))
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (places / std) ** 2)
    weights = weights / weights.sum()

    def blur(x0: Tensor) -> Tensor:
        channels, kernel = x0.shape[1], weights.to(x0).expand(x0.shape[1], 1, 1, -1)
        padded = F.pad(x0, [reach] * 4, mode="replicate")
        return F.conv2d(F.conv2d(padded, kernel, groups=channels), kernel.transpose(2, 3), groups=channels)

    return Measurement(blur, float(weights.square().sum() ** 2))


def grey() -> Measurement:
    """The luma of a colour image, [b, 1, H, W]."""
    weights = torch.tensor(LUMA, dtype=torch.float64)
    return Measurement(lambda x0: (x0 * weights.to(x0).reshape(3, 1, 1)).sum(1, keepdim=True), float(weights @ weights))


def directions(features: Callable[[Tensor], Tensor]) -> Measurement:
    """The direction of an image's feature vector: the vector [b, d] that `features` gives, divided by its norm."""
    return Measurement(lambda x0: F.normalize(features(x0).flatten(1), dim=1), 0.0)


@dataclass(frozen=True, kw_only=True)
class MeasurementGuided(Guided):
    """Diffusion posterior sampling: the score of p(x_t given y) for a measurement y. Chung et al. 2023, theorem 1.

        p(y given x_t) ~ N(y; A(x0), S),    S = noise^2 + gain v sigma^2 / (alpha^2 v + sigma^2),    v = covariance
        x0 <- x0 + scale sigma^2 / alpha grad log p(y given x_t)

    with x0 the prediction from x_t; the gradient goes through the network. With v = 0 this is Chung et al.'s
    approximation, for which x0 is sure, and the posterior is too narrow and off its mean. The second term of S is what
    is uncertain about x0 where pixels are independent with variance v: Song et al. 2023 (pseudoinverse guidance),
    section 3.2, with v = 1. On Gaussian data of variance v and a linear measurement with A A^T = gain I it is exact.

    y           the measurement, of the shape of A(x0) for one image
    noise       the standard deviation of its noise
    covariance  v: a number, or one for each value of y; 0 for none
    """

    measurement: Measurement
    y: Tensor
    noise: float
    covariance: float | Tensor = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.noise >= 0, "noise", "at least 0", self.noise)
        uncertain = self.noise > 0 or bool(torch.as_tensor(self.covariance > 0).all() and self.measurement.gain > 0)
        check(uncertain, "noise", "positive without a covariance", self.noise)

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        if self.scale == 0 or not self.active(t).any():
            return self.inner(x_t, t, y)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            guess = self.inner(x, t, y)
            (slope,) = torch.autograd.grad(self.log_likelihood(guess).sum(), x)
        between = None if guess.between is None else guess.between.detach()
        guess = replace(guess, x_t=x_t, x0=guess.x0.detach(), between=between)
        return replace(guess, x0=self.pushed(guess, slope))

    def log_likelihood(self, guess: Prediction) -> Tensor:
        """log p(y given x_t) up to a constant, [b]."""
        error = self.y.to(guess.x0) - self.measurement(guess.x0)
        return -(error.square() / (2 * self.variance(guess))).flatten(1).sum(1)

    def variance(self, guess: Prediction) -> Tensor | float:
        """The diagonal of S."""
        if not self.measurement.gain:
            return self.noise**2
        v = torch.as_tensor(self.covariance).to(guess.x0)
        alpha, sigma = guess.alpha.to(guess.x0), guess.sigma.to(guess.x0)
        return self.noise**2 + self.measurement.gain * v * sigma**2 / (alpha**2 * v + sigma**2)
