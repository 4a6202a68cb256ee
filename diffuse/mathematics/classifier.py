"""A classifier of noisy images: a network, the schedule it was trained with, and how its input is scaled."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffuse.mathematics.denoiser import numbers
from diffuse.mathematics.predictions import PredictionType, eps
from diffuse.mathematics.schedules import Schedule

# (x, time, y) -> a tensor with a row for each image: log p(y given x) [b], or its gradient with respect to x.
OfClass = Callable[[Tensor, Tensor, Tensor], Tensor]


class NoisyClassifier(nn.Module):
    """net + schedule + prediction type -> log p(y given x_t), and its gradient with respect to x_t.

    net         (x [b, C, H, W], time [b]) -> logits [b, classes]
    prediction  only scales the input and the time, as it does for a denoiser: net(c_in x_t, time)
    gradient    (x, time, y) -> the gradient of the net's log-probability of y with respect to its input x; by default
                `gradient_of` the net, computed for the whole batch at once

    t is one time for the whole batch or one for each image, [b], in (0, T].
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        schedule: Schedule,
        prediction: PredictionType = eps,
        gradient: OfClass | None = None,
    ):
        super().__init__()
        self.net, self.schedule, self.prediction = net, schedule, prediction
        self.input_gradient = gradient or gradient_of(log_class(net))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(y given x_t) for every class y, [b, classes]."""
        c_in, time = self.scaling(x_t, t)
        return self.net(c_in * x_t, time).log_softmax(1)

    def gradient(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The gradient of log p(y given x_t) with respect to x_t, for the class y [b] of each image."""
        c_in, time = self.scaling(x_t, t)
        return c_in * self.input_gradient(c_in * x_t, time, y)

    def scaling(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_in, which multiplies the images, and the network's time [b]."""
        _, _, coefficients = numbers(self.schedule, self.prediction, t, x_t)
        return coefficients.c_in, coefficients.time.flatten().to(x_t).expand(len(x_t))


def log_class(net: Callable[..., Tensor]) -> OfClass:
    """(x, time, y) -> log p(y given x), [b], in the type of x, of a network that returns logits."""
    return lambda x, time, y: net(x, time).to(x.dtype).log_softmax(1).gather(1, y[:, None])[:, 0]


def gradient_of(log_p: OfClass) -> OfClass:
    """(x, time, y) -> the gradient with respect to x of log_p, by differentiation.

    It works where gradients are switched off, as they are in samplers: they are enabled for this alone.
    """

    @torch.enable_grad()
    def gradient(x: Tensor, time: Tensor, y: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(log_p(x, time, y).sum(), x)
        return found

    return gradient
