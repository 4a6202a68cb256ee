"""How likely the data is: the variational bound, term by term, in nats; bits per dimension at the edge."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffuse.denoiser import Denoiser
from diffuse.samplers import Noise, Variance, fixed_large, fixed_small
from diffuse.schedules import Schedule

Decoder = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Bound:
    """The negative variational bound of each image, in nats: Ho et al. 2020, equation 5.

    prior [b]           L_T, the KL divergence of q(x_T given x0) from the prior
    terms [b, steps-1]  the L_{t-1}, in the order of the time grid, the noisiest first
    reconstruction [b]  L_0, minus the log probability of x0 given x at the last time
    """

    prior: Tensor
    terms: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        return self.prior + self.terms.sum(1) + self.reconstruction


@torch.no_grad()
def vlb(
    denoiser: Denoiser,
    x0: Tensor,
    times: Tensor,
    noise: Noise = torch.randn_like,
    y: Tensor | None = None,
    *,
    variance: Variance = fixed_large,
    decoder: Decoder | None = None,
) -> Bound:
    """The bound of each image over a time grid, with one draw of x_t for every t.

    x0 [b, C, H, W]; times as samplers take them; `decoder` is -log p(x0 given x at the last time), by default that of
    8-bit images. Costs one network evaluation a step and image.
    """
    steps = torch.stack(list(reverse_terms(denoiser, x0, times, noise, y, variance=variance, decoder=decoder)), dim=1)
    return Bound(prior_term(denoiser.schedule, x0), steps[:, :-1], steps[:, -1])


def bits_per_dim(nats: Tensor, dims: int) -> Tensor:
    """Nats for a whole image -> bits for each of its dims = C H W numbers."""
    return nats / (dims * math.log(2))


def prior_term(schedule: Schedule, x0: Tensor) -> Tensor:
    """L_T of each image: KL(N(alpha_T x0, sigma_T^2) from N(0, prior_std^2))."""
    alpha, sigma = schedule.alpha_sigma(torch.tensor(schedule.T, dtype=torch.float64))
    prior_variance = torch.tensor(schedule.prior_std**2, dtype=torch.float64)
    return gaussian_kl(alpha * x0, sigma**2, prior_variance).flatten(1).sum(1)


@torch.no_grad()
def reverse_terms(
    denoiser: Denoiser,
    x0: Tensor,
    times: Tensor,
    noise: Noise = torch.randn_like,
    y: Tensor | None = None,
    *,
    variance: Variance = fixed_large,
    decoder: Decoder | None = None,
) -> Iterator[Tensor]:
    """The terms of `vlb` after the prior's, [b] nats each, as they are computed: L_{t-1} for every step, then L_0."""
    decoder = decoder or discretised_gaussian
    schedule = denoiser.schedule
    variances = step_variances(schedule, times, variance)
    for t, s, reverse_variance in zip(times[:-1], times[1:], variances, strict=True):
        guess = denoiser(denoiser.diffuse(x0, t, noise(x0)), t, y).x0
        if s > 0:
            posterior = schedule.posterior(t, s)
            between_means = posterior.of_x0 * (x0 - guess)
            yield gaussian_kl(between_means, posterior.variance, reverse_variance).flatten(1).sum(1)
        else:
            yield decoder(x0, guess, reverse_variance)


def step_variances(schedule: Schedule, times: Tensor, variance: Variance) -> Tensor:
    """The reverse variance of every step [steps]; the step to 0 takes the posterior variance of the step before it.

    fixed_small is 0 on the last step and fixed_large far too wide for 8-bit data, so both use the posterior
    variance of the step before, as Ho et al. and Nichol and Dhariwal do. Where there is none, fixed_large stays.
    """
    pairs = list(pairwise(times))
    last = fixed_small(schedule, *pairs[-2]) if len(pairs) > 1 else fixed_large(schedule, *pairs[-1])
    return torch.stack([variance(schedule, t, s) for t, s in pairs[:-1]] + [last])


def gaussian_kl(between_means: Tensor, variance: Tensor, other_variance: Tensor) -> Tensor:
    """KL(N(m, variance) from N(m', other_variance)) in nats for each number, where m - m' = between_means.

    1/2 (log(other / variance) + (variance + (m - m')^2) / other - 1).
    """
    ratio = variance / other_variance
    return 0.5 * (ratio - 1 - torch.log(ratio) + between_means.square() / other_variance)


def discretised_gaussian(x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """-log of the probability that N(mean, variance) falls into the bin of x0, [b] nats: Ho et al. 2020, equation 13.

    Bins are 2/255 wide around the 256 values from -1 to 1; the two at the ends reach to infinity. In float64, and from
    the tail in which both edges lie, so that no probability is rounded to zero.
    """
    x0_, mean_ = x0.cpu().double(), mean.cpu().double()
    std = variance.cpu().double().sqrt()
    lower = torch.where(x0_ < -0.999, -torch.inf, (x0_ - 1 / 255 - mean_) / std)
    upper = torch.where(x0_ > 0.999, torch.inf, (x0_ + 1 / 255 - mean_) / std)
    mirrored = x0_ > mean_
    near = torch.special.log_ndtr(torch.where(mirrored, -lower, upper))
    far = torch.special.log_ndtr(torch.where(mirrored, -upper, lower))
    log_probability = near + torch.log(-torch.expm1(far - near))
    return -log_probability.flatten(1).sum(1).to(x0)


def gaussian_density(x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """-log N(x0; mean, variance), [b] nats: the decoder of data that is not 8-bit."""
    density = 0.5 * (torch.log(2 * torch.pi * variance) + (x0 - mean).square() / variance)
    return density.flatten(1).sum(1)
