"""Distributions whose best denoiser, likelihood and bound are known exactly: what every formula is tested against."""

from typing import Protocol

import torch
from torch import Tensor, nn

from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.predictions import Coefficients, PredictionType, eps
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.variances import ReverseStep


class Data(Protocol):
    """A distribution of images with a known E[x0 given x_t]."""

    def posterior_mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor: ...


class Gaussian:
    """Independent Gaussian pixels with the given mean and standard deviation, both broadcastable to [C, H, W]."""

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean, std

    def denoiser(self, schedule: Schedule, prediction: PredictionType = eps) -> "ExactDenoiser":
        """The optimal denoiser: its x0 is E[x0 given x_t]."""
        return ExactDenoiser(self, schedule, prediction)

    def posterior_mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 given x_t] = mean + alpha std^2 (x_t - alpha mean) / (alpha^2 std^2 + sigma^2)."""
        gain = alpha * self.std**2 / ((alpha * self.std) ** 2 + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)

    def posterior_variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Var[x0 given x_t] = std^2 sigma^2 / (alpha^2 std^2 + sigma^2)."""
        return (self.std * sigma) ** 2 / ((alpha * self.std) ** 2 + sigma**2)

    def flow(self, x0: Tensor, schedule: Schedule, t_min: float) -> tuple[Tensor, Tensor]:
        """x_T, to which the probability-flow ODE takes x0 from t_min, and log |det dx_T / dx0|, [b] nats.

        y = x / alpha is N(mean, std^2 + rho^2) at every time, and the flow keeps its distance from the mean constant in
        units of its standard deviation.
        """
        alpha, sigma = schedule.alpha_sigma(torch.tensor([t_min, schedule.T], dtype=torch.float64))
        started = (self.std**2 + (sigma[0] / alpha[0]) ** 2).sqrt()
        grown = ((alpha[1] * self.std) ** 2 + sigma[1] ** 2).sqrt() / started
        x_T = alpha[1] * self.mean + grown * (x0 - self.mean)
        return x_T, torch.log(grown).expand(x0.shape[1:]).sum().expand(len(x0))

    def bound_terms(self, schedule: Schedule, steps: list[ReverseStep], variances: list[Tensor]) -> Tensor:
        """Expected nats of the bound with the optimal denoiser: [steps + 1, C, H, W], L_T first, L_0 last.

        The means of the posterior and of the reverse step differ by of_x0 (x0 - E[x0 given x_t]), whose expected square
        is of_x0^2 Var[x0 given x_t]; variances: that of each reverse step.
        """
        alpha, sigma = schedule.alpha_sigma(steps[0].t)
        second_moment = (alpha**2 * (self.mean**2 + self.std**2) + sigma**2) / schedule.prior_std**2
        terms = [0.5 * (second_moment - 1 - torch.log((sigma / schedule.prior_std) ** 2))]
        for step, variance in zip(steps, variances, strict=True):
            error = step.posterior.of_x0**2 * self.posterior_variance(*schedule.alpha_sigma(step.t))
            if step.s > 0:
                ratio = step.posterior.variance / variance
                terms.append(0.5 * (ratio - 1 - torch.log(ratio) + error / variance))
            else:
                terms.append(0.5 * (torch.log(2 * torch.pi * variance) + error / variance))
        return torch.stack([term.expand(torch.broadcast_shapes(self.mean.shape, self.std.shape)) for term in terms])


class ExactDenoiser(Denoiser):
    """A denoiser whose network predicts the data perfectly, for any prediction type."""

    def __init__(self, data: Data, schedule: Schedule, prediction: PredictionType = eps):
        super().__init__(nn.Identity(), schedule, prediction)
        self.data = data

    def output(self, x_t: Tensor, t: Tensor, y: Tensor | None, coefficients: Coefficients) -> Tensor:
        """The output of a perfect network: (E[x0 given x_t] - c_skip x_t) / c_out."""
        x0 = self.data.posterior_mean(x_t, *self.schedule.alpha_sigma(t))
        return (x0 - coefficients.c_skip * x_t) / coefficients.c_out
