"""A denoiser: a network, the schedule it was trained with, and its prediction type, which give x0 and eps from x_t."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from diffuse.mathematics.predictions import Coefficients, PredictionType, eps
from diffuse.mathematics.schedules import Schedule, per_image

Noise = Callable[[Tensor], Tensor]  # standard normal noise shaped like a tensor: torch.randn_like, or ImageNoise


@dataclass(frozen=True)
class Prediction:
    """The prediction from x_t in four equivalent forms: x0, eps, v and the score.

    eps = (x_t - alpha x0) / sigma,   v = alpha eps - sigma x0,   score = -eps / sigma.
    If x0 was changed, as clipping does (`wrappers`), the other three are computed from the changed x0. Shapes are those
    of x_t.

    c_out    the derivative of the network's x0 with respect to its output
    c_skip   the share of x_t in x0: output = (x0 - c_skip x_t) / c_out
    between  the reverse variance of each pixel: 0 is the smallest, 1 the largest, on a logarithmic scale; None if the
             network does not learn it
    known    which pixels of x0 are known and not predicted, [b, 1, H, W]; None if there are none (`editing`)
    """

    x_t: Tensor
    alpha: Tensor
    sigma: Tensor
    x0: Tensor
    c_out: Tensor
    c_skip: Tensor
    between: Tensor | None = None
    known: Tensor | None = None

    @property
    def eps(self) -> Tensor:
        return (self.x_t - self.alpha * self.x0) / self.sigma

    @property
    def v(self) -> Tensor:
        return self.alpha * self.eps - self.sigma * self.x0

    @property
    def score(self) -> Tensor:
        return -self.eps / self.sigma

    @property
    def output(self) -> Tensor:
        """What the network would have to return for this x0."""
        return (self.x0 - self.c_skip * self.x_t) / self.c_out

    def of(self, rows: slice | Tensor) -> "Prediction":
        """The prediction of some images of the batch."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        batched = {name: value for name, value in values.items() if value is not None and value.ndim}
        return replace(self, **{name: value[rows] for name, value in batched.items()})


class AnyDenoiser(Protocol):
    """What samplers, losses and likelihoods ask: a `Denoiser`, or one of `wrappers` around it.

    t is one time for the whole batch or one for each image, [b], in (0, T]; y is what the images are conditioned on.
    """

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction: ...


class Denoiser(nn.Module):
    """net + schedule + prediction type -> Prediction(x0, eps, v, score, variance's place).

    net(x [b, C, H, W], time [b], y [b] or None) -> [b, C, H, W], or [b, 2C, H, W] with learned_variance. t is one time
    for the whole batch or one for each image, [b], in (0, T].
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        schedule: Schedule,
        prediction: PredictionType = eps,
        learned_variance: bool = False,
    ):
        super().__init__()
        self.net, self.schedule, self.prediction = net, schedule, prediction
        self.learned_variance = learned_variance

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        """The prediction of x0 from x_t at time t, and with it eps, v and the score."""
        alpha, sigma, coefficients = numbers(self.schedule, self.prediction, t, x_t)
        output, between = self.output(x_t, per_image(t, x_t), y, coefficients), None
        if self.learned_variance:  # Nichol and Dhariwal 2021, section 3.1; the network outputs it in [-1, 1]
            output, variance = output.chunk(2, dim=1)
            between = (variance + 1) / 2
        x0 = coefficients.c_skip * x_t + coefficients.c_out * output
        return Prediction(x_t, alpha, sigma, x0, coefficients.c_out, coefficients.c_skip, between)

    def output(self, x_t: Tensor, t: Tensor, y: Tensor | None, coefficients: Coefficients) -> Tensor:
        """The network's output, net(c_in x_t, time, y)."""
        return self.net(coefficients.c_in * x_t, coefficients.time.flatten().to(x_t).expand(len(x_t)), y)


def numbers(
    schedule: Schedule, prediction: PredictionType, t: Tensor, x_t: Tensor
) -> tuple[Tensor, Tensor, Coefficients]:
    """alpha, sigma and the prediction type's coefficients, shaped so that they multiply images like x_t.

    Times of single images in float64, as an adaptive sampler has them, are taken one by one: vectorised functions
    differ in the last bits with the place in a batch, and an image must not depend on its batch.
    """
    if t.ndim == 0 or t.dtype != torch.float64 or x_t.dtype == torch.float64:
        t = per_image(t, x_t)
        return *schedule.alpha_sigma(t), prediction(schedule, t)
    rows = [(*schedule.alpha_sigma(each), *prediction(schedule, each)) for each in t.cpu()]
    alpha, sigma, *coefficients = (per_image(torch.stack(column), x_t) for column in zip(*rows, strict=True))
    return alpha, sigma, Coefficients(*coefficients)
