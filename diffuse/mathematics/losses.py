"""Training losses: the loss of each image of a batch, at the time that was drawn for it.

x0 and noise [b, C, H, W], t [b] in (0, T], y [b] labels or None -> [b].
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from diffuse.mathematics import loss_weights
from diffuse.mathematics.classifier import NoisyClassifier
from diffuse.mathematics.denoiser import AnyDenoiser, Prediction
from diffuse.mathematics.likelihood import Decoder, bits_per_dim, reverse_term
from diffuse.mathematics.schedules import per_image
from diffuse.mathematics.variances import Variance, learned, reverse_step
from diffuse.system.errors import check


def simple(
    denoiser: AnyDenoiser,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    y: Tensor | None = None,
    *,
    weight: loss_weights.Weight = loss_weights.simple,
) -> Tensor:
    """The weighted squared error, the mean over pixels; by default L_simple of Ho et al. 2020, equation 14.

        weight ||target - net(x_t, t)||^2   with   x_t = alpha x0 + sigma noise

    where target - net = (x0 - predicted x0) / c_out; for eps-prediction, the target is the noise.
    """
    return squared_error(denoiser(denoiser.schedule.diffuse(x0, t, noise), t, y), x0, weight)


def vlb(
    denoiser: AnyDenoiser,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    y: Tensor | None = None,
    *,
    variance: Variance = learned,
    decoder: Decoder | None = None,
) -> Tensor:
    """L_vlb: T times the bound's term of t, in bits per dimension. Nichol and Dhariwal 2021, section 3.1.

    With uniform t its expectation is the bound without L_T, which has no parameters. t must be whole levels.
    """
    guess = denoiser(denoiser.schedule.diffuse(x0, t, noise), t, y)
    return bound_term(denoiser, guess, x0, t, variance, decoder)


def hybrid(
    denoiser: AnyDenoiser,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    y: Tensor | None = None,
    *,
    weight: loss_weights.Weight = loss_weights.simple,
    decoder: Decoder | None = None,
    vlb_weight: float = 0.001,
) -> Tensor:
    """L_simple + vlb_weight L_vlb, where L_vlb trains only the variance: Nichol and Dhariwal 2021, equation 16.

    vlb_weight  the weight of L_vlb
    """
    check(vlb_weight > 0, "vlb_weight", "positive", vlb_weight)
    guess = denoiser(denoiser.schedule.diffuse(x0, t, noise), t, y)
    # Without a gradient for x0, so that L_vlb does not train the mean.
    l_vlb = bound_term(denoiser, replace(guess, x0=guess.x0.detach()), x0, t, learned, decoder)
    return squared_error(guess, x0, weight) + vlb_weight * l_vlb


def consistency(
    denoiser: AnyDenoiser,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    y: Tensor | None = None,
    *,
    progress: Tensor,
    closeness: float = 256.0,
    stages: int = 1,
    smoothing: float = 0.0,
) -> Tensor:
    """Easy consistency tuning: the same image from two noise levels. Geng et al. 2024 (ECT), equations 13 to 15.

        ||x0(x_t, t) - x0(x_r, r)|| / (rho_t - rho_r),   rho_r = rho_t (1 - (1 + 8 sigmoid(-rho_t)) / closeness^k)

    in stage k = 1 ... stages, with rho = sigma / alpha, one noise for both, no gradient through the second prediction,
    and x0 itself in its place where rho_r is below the smallest noise of the schedule. The dropout of both has the same
    mask, because masks are a function of the step.

    progress   how much of the training is done, 0 to 1: the stages follow each other at equal distances
    closeness  q of the paper: 256 begins near, after a training of x0; 2 with eight stages begins as that training
    stages     how often the distance is divided by closeness
    smoothing  c of the distance sqrt(||.||^2 + c^2) - c; 0 for the norm
    """
    check(closeness > 1, "closeness", "above 1", closeness)
    check(stages >= 1, "stages", "at least 1", stages)
    check(smoothing >= 0, "smoothing", "0 or more", smoothing)
    schedule = denoiser.schedule
    stage = (progress * stages).floor().clamp(max=stages - 1) + 1
    rho = (-schedule.log_snr(t) / 2).exp()
    earlier = rho * (1 - (1 + 8 * torch.sigmoid(-rho)) / closeness**stage)
    least = math.exp(-float(schedule.log_snr(torch.tensor(schedule.t_min, dtype=torch.float64))) / 2)
    is_noisy = earlier > least
    earlier = earlier.clamp(min=least)
    found = denoiser(schedule.diffuse(x0, t, noise), t, y).x0
    with torch.no_grad():
        r = schedule.time(-2 * earlier.log())
        target = denoiser(schedule.diffuse(x0, r, noise), r, y).x0
        target = torch.where(is_noisy.reshape(-1, 1, 1, 1), target, x0)
    distance = torch.linalg.vector_norm((found - target).flatten(1), dim=1)
    if smoothing:
        distance = (distance**2 + smoothing**2).sqrt() - smoothing
    return distance / (rho - torch.where(is_noisy, earlier, 0))


def cross_entropy(classifier: NoisyClassifier, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Tensor:
    """-log p(y given x_t) of the class y of x0, in nats: trains a classifier of noisy images, not a denoiser.

    With x_t = alpha x0 + sigma noise, as for a denoiser. Dhariwal and Nichol 2021, section 4.3.
    """
    assert y is not None, "a classifier is trained on classes"
    return -classifier(classifier.schedule.diffuse(x0, t, noise), t).gather(1, y[:, None])[:, 0]


def squared_error(guess: Prediction, x0: Tensor, weight: loss_weights.Weight) -> Tensor:
    """The weighted squared error of the network's output, the mean over pixels: that of x0 divided by c_out."""
    error = (guess.x0 - x0) / guess.c_out
    return (weight((guess.alpha / guess.sigma) ** 2, guess.c_out) * error.square()).flatten(1).mean(1)


def bound_term(
    denoiser: AnyDenoiser, guess: Prediction, x0: Tensor, t: Tensor, variance: Variance, decoder: Decoder | None
) -> Tensor:
    """T times the term of the step from t to t - 1 in the bound, in bits per dimension."""
    schedule, t = denoiser.schedule, per_image(t, x0)
    above = torch.clamp(t + 1, max=schedule.T)
    nats = reverse_term(reverse_step(schedule, t, t - 1, above), guess, x0, variance, decoder)
    return schedule.T * bits_per_dim(nats, x0[0].numel())
