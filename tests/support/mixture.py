"""Classes whose scores are known: a mixture of Gaussians, one for each class, as a denoiser with labels."""

from functools import partial

import torch
from torch import Tensor, nn

from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.predictions import Coefficients, PredictionType, eps
from diffuse.mathematics.schedules import Schedule
from tests.support.gaussian import column

MEANS = torch.tensor([[0.3, -1.0, 0.5], [-0.6, 0.2, 0.9], [0.1, 0.7, -0.4]], dtype=torch.float64)
STDS = torch.tensor([[0.1, 0.7, 1.5], [0.4, 0.3, 0.6], [0.9, 0.2, 0.5]], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
NULL = len(SHARES)


def null(y: Tensor) -> Tensor:
    return torch.full_like(y, NULL)


def log_densities(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """log p(x_t, y) for each class y, [b, classes]."""
    alpha, sigma = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
    found = []
    for mean, std, share in zip(MEANS, STDS, SHARES, strict=True):
        noisy = torch.distributions.Normal(alpha * mean, ((alpha * std) ** 2 + sigma**2).sqrt())
        found.append(noisy.log_prob(x_t.flatten(1)).sum(1) + share.log())
    return torch.stack(found, 1)


def log_class(schedule: Schedule, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """log p(y given x_t), [b]: what a perfect classifier of noisy images says."""
    return log_densities(x_t, *schedule.alpha_sigma(t)).log_softmax(1).gather(1, y[:, None])[:, 0]


def score(schedule: Schedule, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """grad log p(x_t given y) by differentiation; of all classes together where y is the null label."""
    x = x_t.detach().requires_grad_()
    of_class = log_densities(x, *schedule.alpha_sigma(t))
    chosen = of_class.gather(1, y.clamp(max=NULL - 1)[:, None])[:, 0]
    log_p = torch.where(y == NULL, of_class.logsumexp(1), chosen)
    return torch.autograd.grad(log_p.sum(), x)[0]


class MixtureDenoiser(Denoiser):
    """The optimal denoiser of the class of each image, or of all classes for the null label."""

    def __init__(self, schedule: Schedule, prediction: PredictionType = eps):
        super().__init__(nn.Identity(), schedule, prediction)
        self.asked: list[int] = []  # images of each call

    def output(self, x_t: Tensor, t: Tensor, y: Tensor | None, coefficients: Coefficients) -> Tensor:
        assert y is not None
        self.asked.append(len(x_t))
        alpha, sigma = self.schedule.alpha_sigma(t)
        of_class = torch.stack([self.mean_of(k, x_t, alpha, sigma) for k in range(NULL)])
        weights = log_densities(x_t, alpha, sigma).softmax(1)
        both = torch.cat([of_class, torch.einsum("bk,kb...->b...", weights, of_class)[None]])
        x0 = both[y, torch.arange(len(x_t))]
        return (x0 - coefficients.c_skip * x_t) / coefficients.c_out

    @staticmethod
    def mean_of(k: int, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        mean, std = column(MEANS[k].tolist()), column(STDS[k].tolist())
        gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)


def classifier_of(schedule: Schedule) -> partial[Tensor]:
    """The perfect classifier: (x_t, t, y) -> log p(y given x_t)."""
    return partial(log_class, schedule)
