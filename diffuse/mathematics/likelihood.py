"""The variational bound on the likelihood of the data, term by term, in nats; conversion to bits per dimension."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser, Noise, Prediction
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.variances import ReverseStep, Variance, fixed_large, reverse_steps

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


def variational_bound(
    denoiser: AnyDenoiser,
    x0: Tensor,
    times: Tensor,
    y: Tensor | None = None,
    *,
    variance: Variance = fixed_large,
    decoder: Decoder | None = None,
    noise: Noise = torch.randn_like,
) -> Bound:
    """The bound of each image over a time grid, with one sample of x_t for every t.

    x0 [b, C, H, W]; times as for samplers; variance and decoder as in `reverse_term`. Costs one network evaluation per
    step and image.
    """
    steps = reverse_steps(denoiser.schedule, times)
    terms = torch.stack(list(reverse_terms(denoiser, x0, steps, y, variance, decoder, noise)), dim=1)
    return Bound(prior_term(denoiser.schedule, x0), terms[:, :-1], terms[:, -1])


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
    denoiser: AnyDenoiser,
    x0: Tensor,
    steps: Sequence[ReverseStep],
    y: Tensor | None,
    variance: Variance,
    decoder: Decoder | None,
    noise: Noise,
) -> Iterator[Tensor]:
    """The terms of the bound after L_T, [b] nats each, one by one: L_{t-1} for every step, then L_0."""
    for step in steps:
        guess = denoiser(denoiser.schedule.diffuse(x0, step.t, noise(x0)), step.t, y)
        yield reverse_term(step, guess, x0, variance, decoder)


def reverse_term(
    step: ReverseStep,
    guess: Prediction,
    x0: Tensor,
    variance: Variance = fixed_large,
    decoder: Decoder | None = None,
) -> Tensor:
    """The term of one step in the bound of each image, [b] nats: L_{t-1}, or L_0 if s = 0. Ho et al. 2020, equation 5.

    L_{t-1} is the KL divergence of q(x_s given x_t, x0) from the reverse step, whose mean is the posterior's with the
    predicted x0. `decoder` is -log p(x0 given the predicted x0 and the variance), by default that of 8-bit images.
    """
    decoder = decoder or discretised_gaussian
    reverse_variance = variance(step, guess)
    if step.s.ndim == 0 and step.s == 0:
        return decoder(x0, guess.x0, reverse_variance)
    kl = gaussian_kl(step.posterior.of_x0 * (x0 - guess.x0), step.small, reverse_variance).flatten(1).sum(1)
    if step.s.ndim == 0:
        return kl
    # The other images give the decoder a perfect prediction: a factor of 0 would not mask a gradient that overflows.
    last = step.s == 0
    nats = decoder(x0, torch.where(last, guess.x0, x0), torch.where(last, reverse_variance, 1))
    return torch.where(last.flatten(), nats, kl)


def gaussian_kl(between_means: Tensor, variance: Tensor, other_variance: Tensor) -> Tensor:
    """KL(N(m, variance) from N(m', other_variance)) in nats for each number, where m - m' = between_means.

    1/2 (log(other / variance) + (variance + (m - m')^2) / other - 1).
    """
    ratio = variance / other_variance
    return 0.5 * (ratio - 1 - torch.log(ratio) + between_means.square() / other_variance)


def discretised_gaussian(x0: Tensor, mean: Tensor, variance: Tensor, *, least: float = 0.0) -> Tensor:
    """-log of the probability that N(mean, variance) falls into the bin of x0, [b] nats: Ho et al. 2020, equation 13.

    Bins are 2/255 wide around the 256 values from -1 to 1; the first and the last extend to infinity. In float64, and
    computed from the tail in which both edges lie, so that no probability is rounded to zero.

    least: a pixel's probability is at least this, without a gradient below; 1e-12 in Ho et al.'s code.
    """
    value, mean, std = to_float64(x0), to_float64(mean), to_float64(variance).sqrt()
    lower = torch.where(value < -0.999, -torch.inf, (value - 1 / 255 - mean) / std)
    upper = torch.where(value > 0.999, torch.inf, (value + 1 / 255 - mean) / std)
    mirrored = value > mean
    near = torch.special.log_ndtr(torch.where(mirrored, -lower, upper))
    far = torch.special.log_ndtr(torch.where(mirrored, -upper, lower))
    log_probability = near + torch.log(-torch.expm1(far - near))
    return -log_probability.clamp(min=math.log(least) if least else -math.inf).flatten(1).sum(1).to(x0)


def gaussian_density(x0: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """-log N(x0; mean, variance), [b] nats: the decoder for data that is not 8-bit."""
    return (0.5 * (torch.log(2 * torch.pi * variance) + (x0 - mean).square() / variance)).flatten(1).sum(1)


def to_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64: on its device, or on the CPU if that is Apple's MPS, which has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
