"""Distributions whose best denoiser, likelihood and bound are known exactly: what every formula is tested against."""

import torch
from torch import Tensor, nn

from diffuse.denoiser import Denoiser, eps, per_image
from diffuse.schedules import Schedule


class Gaussian:
    """Independent Gaussian pixels with the given mean and standard deviation, both broadcastable to [C, H, W]."""

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean, std

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """The best denoiser there is: its x0 is E[x0 given x_t]."""
        return Denoiser(GaussianNet(self, schedule), schedule, eps)

    def posterior_variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Var[x0 given x_t] = std^2 sigma^2 / (alpha^2 std^2 + sigma^2)."""
        return (self.std * sigma) ** 2 / ((alpha * self.std) ** 2 + sigma**2)

    def bound_terms(self, schedule: Schedule, times: Tensor, variances: Tensor) -> Tensor:
        """Expected nats of the bound with the best denoiser: [steps + 1, C, H, W], L_T first, L_0 last.

        The posterior and the reverse step differ in their means only by of_x0 (x0 - E[x0 given x_t]), whose expected
        square is of_x0^2 Var[x0 given x_t]; the variances are those of the reverse steps, one a step.
        """
        alpha, sigma = schedule.alpha_sigma(times[0])
        second_moment = alpha**2 * (self.mean**2 + self.std**2)
        terms = [0.5 * (second_moment + sigma**2 - 1 - torch.log(sigma**2))]
        for t, s, variance in zip(times[:-1], times[1:], variances, strict=True):
            posterior = schedule.posterior(t, s)
            error = posterior.of_x0**2 * self.posterior_variance(*schedule.alpha_sigma(t))
            if s > 0:
                ratio = posterior.variance / variance
                terms.append(0.5 * (ratio - 1 - torch.log(ratio) + error / variance))
            else:
                terms.append(0.5 * (torch.log(2 * torch.pi * variance) + error / variance))
        return torch.stack([term.expand(torch.broadcast_shapes(self.mean.shape, self.std.shape)) for term in terms])


class GaussianNet(nn.Module):
    """The network that Gaussian data would train: eps = sigma (x_t - alpha mean) / (alpha^2 std^2 + sigma^2)."""

    def __init__(self, data: Gaussian, schedule: Schedule):
        super().__init__()
        self.data, self.schedule = data, schedule

    def forward(self, x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        alpha, sigma = (per_image(value, x) for value in self.schedule.alpha_sigma(time + 1))
        mean, std = self.data.mean, self.data.std
        return sigma * (x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)
