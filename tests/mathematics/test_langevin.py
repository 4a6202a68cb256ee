"""Predictor-corrector and annealed Langevin sampling: the papers' algorithms written out a second time."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffuse.mathematics import predictions
from diffuse.mathematics.continuous import VE, Flow
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.samplers.ancestral import ancestral
from diffuse.mathematics.samplers.ddim import analytic_ddim, ddim
from diffuse.mathematics.samplers.langevin import annealed_langevin, predictor_corrector
from diffuse.mathematics.tables import linear
from diffuse.mathematics.variances import Analytic
from diffuse.mathematics.wrappers import Clipped
from tests.support.samplers import COARSE, LEVELS, last, normal64


def says(x: Tensor) -> Tensor:
    """The eps of a network in general position that no distribution stands behind."""
    return torch.tanh(0.7 * x + 0.2) + 0.3 * x


class Says(torch.nn.Module):
    """`says`, counting how often it was asked, and told every label."""

    def __init__(self):
        super().__init__()
        self.asked, self.labels = 0, []

    def forward(self, x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        self.asked += 1
        self.labels.append(y)
        return says(x)


def replayed(seed: int) -> Callable[[Tensor], Tensor]:
    """The same noise for whoever draws in the same order."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


def corrected(x: Tensor, score: Callable[[Tensor], Tensor], z: Tensor, r: float, alpha: float) -> Tensor:
    """Lines "corrector" of Song et al. 2021 (SDE), algorithms 4 (alpha = 1) and 5, one image after the other."""
    images = []
    for image, g, noise in zip(x, score(x), z, strict=True):
        size = 2 * alpha * (r * noise.square().sum().sqrt() / g.square().sum().sqrt()) ** 2
        images.append(image + size * g + torch.sqrt(2 * size) * noise)
    return torch.stack(images)


@pytest.mark.parametrize("corrector_steps", [1, 2])
def test_predictor_corrector_on_levels_is_algorithm_5(corrector_steps: int):
    """alpha_i = 1 - beta_i from the table; the predictor is the ancestral step of equation 4."""
    schedule, r = linear(5, 0.05, 0.4), 0.3
    x = x_T = normal64(5, 3, 2, 2, 2) * torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    beta = schedule.beta.tolist()
    noise = replayed(7)
    found = predictor_corrector(
        Denoiser(Says(), schedule),
        x_T,
        torch.arange(5, -1, -1).double(),
        corrector_steps=corrector_steps,
        snr=r,
        noise=replayed(7),
    )
    for i, ours in zip(range(5, 0, -1), found, strict=True):
        left = math.prod(1 - b for b in beta[1 : i + 1])

        def score(x: Tensor, left=left) -> Tensor:
            return -says(x) / math.sqrt(1 - left)

        for _ in range(corrector_steps):
            x = corrected(x, score, noise(x), r, 1 - beta[i])
        x = (x + beta[i] * score(x)) / math.sqrt(1 - beta[i])
        if i > 1:
            x = x + math.sqrt(beta[i]) * noise(x)
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_reverse_diffusion_on_levels_is_algorithm_3():
    """x_i from (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z, as in their ReverseDiffusionPredictor."""
    schedule, r = linear(5, 0.05, 0.4), 0.3
    x = x_T = normal64(5, 3, 2, 2, 2)
    beta, noise = schedule.beta.tolist(), replayed(7)
    options = {"predictor": "reverse_diffusion", "snr": r, "noise": replayed(7)}
    found = predictor_corrector(Denoiser(Says(), schedule), x_T, torch.arange(5, -1, -1).double(), **options)
    for i, ours in zip(range(5, 0, -1), found, strict=True):
        left = math.prod(1 - b for b in beta[1 : i + 1])

        def score(x: Tensor, left=left) -> Tensor:
            return -says(x) / math.sqrt(1 - left)

        x = corrected(x, score, noise(x), r, 1 - beta[i])
        drift = math.sqrt(1 - beta[i]) * x - x
        if i > 1:
            x = x - (drift - beta[i] * score(x)) + math.sqrt(beta[i]) * noise(x)
        else:  # the last step is to the predicted x0, whatever the predictor
            x = (x + beta[i] * score(x)) / math.sqrt(1 - beta[i])
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_reverse_diffusion_is_the_ancestral_step_where_variance_explodes():
    """There a = 1, and the mean is x + v score for both."""
    x, grid = 100 * normal64(6, 3, 2, 2, 2), torch.tensor([1000, 700, 300, 20, 1, 0]).double()
    both = [
        list(predictor_corrector(Denoiser(Says(), VE()), x, grid, predictor=predictor, noise=replayed(8)))
        for predictor in ("ancestral", "reverse_diffusion")
    ]
    torch.testing.assert_close(both[0], both[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("corrector_steps", [1, 3])
def test_predictor_corrector_where_variance_explodes_is_algorithm_4(corrector_steps: int):
    """By default with its own predictor, which adds all of sigma_t^2 - sigma_s^2, and signal-to-noise 0.16."""
    times = [1000, 700, 300, 20, 1, 0]
    sigmas = [0.02 * 5000 ** ((t - 1) / 999) if t else 0.0 for t in times]
    x = x_T = 100 * normal64(6, 3, 2, 2, 2) * torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    denoiser, noise = Denoiser(Says(), VE()), replayed(8)
    options = {} if corrector_steps == 1 else {"corrector_steps": corrector_steps}
    found = predictor_corrector(denoiser, x_T, torch.tensor(times).double(), noise=replayed(8), **options)
    for (sigma, following), ours in zip(pairwise(sigmas), found, strict=True):

        def score(x: Tensor, sigma=sigma) -> Tensor:
            return -says(x / math.sqrt(1 + sigma**2)) / sigma

        for _ in range(corrector_steps):
            x = corrected(x, score, noise(x), 0.16, 1.0)
        x = x + (sigma**2 - following**2) * score(x)
        if following > 0:
            x = x + math.sqrt(sigma**2 - following**2) * noise(x)
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", [ancestral, ddim, predictor_corrector, annealed_langevin, analytic_ddim])
def test_sampling_keeps_nothing_for_derivatives(sampler):
    """Of a network in training, at any step: a graph over all steps would fill the memory."""
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    options = (
        {"variance": Analytic(linear(), dict.fromkeys(map(float, LEVELS), 0.5))} if sampler is analytic_ddim else {}
    )
    denoiser = Denoiser(lambda x, time, label: scale * x, linear())
    for x in sampler(denoiser, normal64(1, 2, 1, 2, 2), COARSE, **options):
        assert not x.requires_grad
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("sampler", [ancestral, ddim])
def test_every_level_costs_one_evaluation(sampler):
    net, y = Says(), torch.tensor([1, 2])
    last(sampler(Denoiser(net, linear()), normal64(1, 2, 1, 2, 2), COARSE, y))
    assert net.asked == len(LEVELS)
    assert all(label is y for label in net.labels)


def test_every_level_costs_the_correctors_evaluations_and_one():
    net, y = Says(), torch.tensor([1, 2])
    last(predictor_corrector(Denoiser(net, linear()), normal64(1, 2, 1, 2, 2), COARSE, y, corrector_steps=3))
    assert net.asked == len(LEVELS) * (3 + 1)
    assert all(label is y for label in net.labels)


def test_annealed_langevin_is_algorithm_1():
    """Song and Ermon 2019, where alpha_i = epsilon sigma_i^2 / sigma_L^2; then their later step to the predicted x0."""
    times, epsilon = [1000, 700, 300, 20, 1, 0], 3e-5
    sigmas = [0.02 * 5000 ** ((t - 1) / 999) for t in times[:-1]]
    x = x_T = 100 * normal64(9, 3, 2, 2, 2)
    noise, options = replayed(3), {"langevin_steps": 3, "step_size": epsilon / sigmas[-1] ** 2}
    denoiser, grid = Denoiser(Says(), VE()), torch.tensor(times).double()
    found = annealed_langevin(denoiser, x_T, grid, noise=replayed(3), **options)
    for sigma, ours in zip(sigmas, found, strict=True):

        def score(x: Tensor, sigma=sigma) -> Tensor:
            return -says(x / math.sqrt(1 + sigma**2)) / sigma

        alpha_i = epsilon * sigma**2 / sigmas[-1] ** 2
        for _ in range(3):
            x = x + alpha_i / 2 * score(x) + math.sqrt(alpha_i) * noise(x)
        if sigma == sigmas[-1]:
            x = x + sigma**2 * score(x)
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_annealed_langevin_keeps_x_over_alpha_between_levels():
    """On any path NCSNv2 algorithm 1, with its epsilon / sigma_L^2 of 0.062, for y = x / alpha and noise rho."""
    times = [1000, 533, 9, 0]
    alpha = [linear().alpha_bar[t].sqrt() for t in times]
    rho = [(1 / a**2 - 1).sqrt() for a in alpha]
    y = normal64(2, 2, 1, 2, 2)
    noise = replayed(4)
    denoiser = Denoiser(lambda x, time, label: 0.3 + 0 * x, linear())
    found = annealed_langevin(denoiser, alpha[0] * y, torch.tensor(times).double(), noise=replayed(4))
    for level, ours in enumerate(found):
        for _ in range(5):
            score = -0.3 / rho[level]
            y = y + 0.062 * rho[level] ** 2 * score + math.sqrt(2 * 0.062) * rho[level] * noise(y)
        if level == 2:
            y = y - rho[level] * 0.3
        torch.testing.assert_close(ours, alpha[level + 1] * y, rtol=1e-9, atol=1e-9)


def test_annealed_langevin_lands_on_what_is_predicted_and_counts_its_calls():
    """With clipping it shows: x0 has left [-1, 1] and come back."""
    net, y = Says(), torch.tensor([1, 2])
    denoiser = Clipped(Denoiser(net, linear()))
    found = last(annealed_langevin(denoiser, 9 * normal64(1, 2, 1, 2, 2), COARSE, y, langevin_steps=4))
    assert net.asked == len(LEVELS) * 4 + 1
    assert all(label is y for label in net.labels)
    assert found.abs().max() == 1


def test_annealed_langevin_refuses_paths_that_end_in_pure_noise():
    for schedule, prediction in ((Flow(), predictions.flow), (linear(zero_terminal_snr=True), predictions.v)):
        with pytest.raises(ValueError, match="must have alpha > 0 at its last level"):
            next(annealed_langevin(Denoiser(Says(), schedule, prediction), normal64(1, 2, 1, 2, 2), COARSE))


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (predictor_corrector, {"corrector_steps": 0}, "^corrector_steps must be at least 1, not 0"),
        (predictor_corrector, {"snr": 0.0}, "^snr must be positive"),
        (predictor_corrector, {"predictor": "euler"}, "^predictor must be one of ancestral, reverse_diffusion"),
        (predictor_corrector, {"snr": math.nan}, "^snr must be positive"),
        (annealed_langevin, {"langevin_steps": 0}, "^langevin_steps must be at least 1, not 0"),
        (annealed_langevin, {"step_size": -0.1}, "^step_size must be positive, not -0.1"),
        (annealed_langevin, {"step_size": 0.0}, "^step_size must be positive, not 0.0"),
        (ddim, {"eta": 1.1}, "^eta must be between 0 and 1, not 1.1"),
        (ddim, {"eta": -0.1}, "^eta must be between 0 and 1, not -0.1"),
    ],
)
def test_impossible_settings_are_refused(sampler, options, message: str):
    with pytest.raises(ValueError, match=message):
        next(sampler(Denoiser(Says(), linear()), normal64(1, 2, 1, 2, 2), COARSE, **options))


def test_a_single_step_at_each_level_is_allowed():
    found = last(annealed_langevin(Denoiser(Says(), linear()), normal64(1, 2, 1, 2, 2), COARSE, langevin_steps=1))
    assert found.shape == (2, 1, 2, 2)
