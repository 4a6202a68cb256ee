"""A denoiser: a network, the schedule it was trained on, and what its output means -> everything believed about x0."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from diffuse.mathematics.predictions import Coefficients, PredictionType, eps
from diffuse.mathematics.schedules import Schedule, per_image

Noise = Callable[[Tensor], Tensor]  # standard normal noise like a tensor: torch.randn_like, or one with a key


@dataclass(frozen=True)
class Prediction:
    """What is believed about x0 given x_t: four views of one guess, each exact when the others are.

    eps = (x_t - alpha x0) / sigma,   v = alpha eps - sigma x0,   score = -eps / sigma.
    Where x0 was clipped, the other three follow the clipped one. Shapes are those of x_t.

    c_out      how far x0 moves when the network's output moves by 1
    unclipped  x0 before it was clipped, which is what training is about
    between    where the reverse variance lies between the smallest (0) and the largest (1) on a logarithmic scale, for
               each pixel; None where the network does not learn it
    """

    x_t: Tensor
    alpha: Tensor
    sigma: Tensor
    x0: Tensor
    c_out: Tensor
    unclipped: Tensor
    between: Tensor | None = None

    @property
    def eps(self) -> Tensor:
        return (self.x_t - self.alpha * self.x0) / self.sigma

    @property
    def v(self) -> Tensor:
        return self.alpha * self.eps - self.sigma * self.x0

    @property
    def score(self) -> Tensor:
        return -self.eps / self.sigma

    def with_x0_detached(self) -> "Prediction":
        """The same, but training on it reaches the variance alone."""
        return replace(self, x0=self.x0.detach())


class Denoiser(nn.Module):
    """net + schedule + prediction type -> Prediction(x0, eps, v, score, variance).

    net(x [b, C, H, W], time [b], y [b] or None) -> [b, C, H, W], or [b, 2C, H, W] with learned_variance; clip limits
    the guess of x0 to [-1, 1]. Times are one number for the whole batch or one for each image, in (0, T]. Broadcasting
    over the pixels happens here and only here.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        schedule: Schedule,
        prediction: PredictionType = eps,
        clip: bool = False,
        learned_variance: bool = False,
    ):
        super().__init__()
        self.net, self.schedule, self.prediction = net, schedule, prediction
        self.clip, self.learned_variance = clip, learned_variance

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        """The guess of x0 from x_t at time t, and with it eps, v and the score."""
        coefficients = self.coefficients(x_t, t)
        alpha, sigma = self.alpha_sigma(x_t, t)
        output = self.output(x_t, t, y, coefficients)
        output, between = self.split(output) if self.learned_variance else (output, None)
        unclipped = coefficients.c_skip * x_t + coefficients.c_out * output
        x0 = unclipped.clamp(-1, 1) if self.clip else unclipped
        return Prediction(x_t, alpha, sigma, x0, coefficients.c_out, unclipped, between)

    def output(self, x_t: Tensor, t: Tensor, y: Tensor | None, coefficients: Coefficients) -> Tensor:
        """What the network itself says, net(c_in x_t, time, y)."""
        return self.net(coefficients.c_in * x_t, coefficients.time.flatten().to(x_t).expand(len(x_t)), y)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of the channels: the prediction, and the variance's place, which comes in [-1, 1].

        Nichol and Dhariwal 2021, section 3.1, with the scale of their code.
        """
        prediction, variance = output.chunk(2, dim=1)
        return prediction, (variance + 1) / 2

    def alpha_sigma(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The schedule's alpha and sigma, ready to multiply images like x."""
        return self.schedule.alpha_sigma(per_image(t, x))

    def coefficients(self, x: Tensor, t: Tensor) -> Coefficients:
        """The prediction type's coefficients, ready to multiply images like x."""
        return self.prediction(self.schedule, per_image(t, x))
