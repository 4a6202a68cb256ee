"""What an error weighs, against each paper's own words for it: as a multiple of the squared error of eps."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from diffuse.mathematics import loss_weights as weights
from diffuse.mathematics import losses, predictions
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.schedules import TableSchedule
from diffuse.mathematics.tables import linear
from tests.support.paths import PATHS
from tests.support.predictions import DEFINED, Constant, alpha_sigma, answer, close, images, times

# What L_simple of a network that predicts eps is multiplied by, for each level's signal-to-noise ratio.
OF_THE_LOSS_OF_EPS = {
    "snr": (weights.snr, lambda snr: 1),
    "min_snr": (weights.min_snr, lambda snr: min(snr, 5) / snr),  # Hang et al. 2023, section 3.4
    "min_snr_of_2": (partial(weights.min_snr, gamma=2.0), lambda snr: min(snr, 2) / snr),
    "min_snr_of_a_half": (partial(weights.min_snr, gamma=0.5), lambda snr: min(snr, 0.5) / snr),
    "p2": (weights.p2, lambda snr: 1 / (1 + snr)),  # Choi et al. 2022, equation 8
}


def of_pixels(error: Tensor) -> Tensor:
    return error.square().mean((1, 2, 3))


@pytest.mark.parametrize(("path", "kind"), DEFINED)
def test_simple_counts_each_error_of_the_output_alike(path: str, kind: str):
    """Whatever is predicted: ||target - net||^2, with the target by its definition. Ho et al. 2020, equation 14."""
    x0, noise, output = images(1, 2, 3)
    t = times(path, kind)
    denoiser = Denoiser(Constant(output), PATHS[path].schedule, getattr(predictions, kind))
    close(losses.simple(denoiser, x0, t, noise), of_pixels(answer(path, kind, t, x0, noise) - output))


@pytest.mark.parametrize(("path", "kind"), DEFINED)
def test_the_same_guess_of_x0_costs_the_same_whatever_was_predicted(path: str, kind: str):
    """Every weight but `simple`. The network guesses wrongly, and what it says is its own word for that guess."""
    x0, noise, guess = images(1, 2, 3)
    t = times(path, "eps")
    alpha, sigma = alpha_sigma(path, t)
    guessed_noise = (alpha * x0 + sigma * noise - alpha * guess) / sigma
    said = answer(path, kind, t, guess, guessed_noise)
    denoiser = Denoiser(Constant(said), PATHS[path].schedule, getattr(predictions, kind))
    ratios = (alpha / sigma).square().flatten().tolist()
    for weight, multiple in OF_THE_LOSS_OF_EPS.values():
        multiples = torch.tensor([multiple(snr) for snr in ratios], dtype=torch.float64)
        close(losses.simple(denoiser, x0, t, noise, weight=weight), multiples * of_pixels(noise - guessed_noise))


@pytest.mark.parametrize("path", ["linear", "cosine", "vp"])
def test_min_snr_of_v_is_the_papers(path: str):
    """min(snr, gamma) / (snr + 1) times the loss of v: Hang et al. 2023, section 3.4."""
    x0, noise, output = images(1, 2, 3)
    t = times(path, "v")
    alpha, sigma = alpha_sigma(path, t)
    snr = (alpha / sigma).square().flatten()
    expected = snr.clamp(max=5) / (snr + 1) * of_pixels(alpha * noise - sigma * x0 - output)
    denoiser = Denoiser(Constant(output), PATHS[path].schedule, predictions.v)
    close(losses.simple(denoiser, x0, t, noise, weight=weights.min_snr), expected)


@pytest.mark.parametrize("name", OF_THE_LOSS_OF_EPS)
@pytest.mark.parametrize("kind", ["x0", "v", "flow", "mean"])
def test_pure_noise_weighs_as_in_the_simple_loss(kind: str, name: str):
    """Hang et al.'s code: loss_weights[snr == 0] = 1. Every image is sampled from there, so it must be trained."""
    x0, noise, output = images(1, 2, 3)
    denoiser = Denoiser(Constant(output), PATHS["zero_terminal"].schedule, getattr(predictions, kind))
    t = torch.tensor([1000] * 4)
    found = losses.simple(denoiser, x0, t, noise, weight=OF_THE_LOSS_OF_EPS[name][0])
    assert (found > 0).all()
    close(found, losses.simple(denoiser, x0, t, noise))


@pytest.mark.parametrize("name", ["simple", *OF_THE_LOSS_OF_EPS])
def test_float32_is_enough_where_almost_nothing_is_left_of_the_image(name: str):
    """alpha_bar = 1e-39: c_out = 3e19, and its square is no float32 any more."""
    x0, noise, output = images(1, 2, 3)
    schedule = TableSchedule(1 - torch.tensor([1e-10, 1e-10, 1e-10, 1e-9], dtype=torch.float64))
    denoiser = Denoiser(Constant(output.float()), schedule)
    weight = weights.simple if name == "simple" else OF_THE_LOSS_OF_EPS[name][0]
    found = losses.simple(denoiser, x0.float(), torch.tensor([4] * 4), noise.float(), weight=weight)
    torch.testing.assert_close(found.double(), of_pixels(noise - output), rtol=1e-2, atol=0)


@pytest.mark.parametrize("gamma", [0.0, -5.0, math.nan])
def test_gamma_must_be_positive(gamma: float):
    x0, noise = images(1, 2)
    with pytest.raises(ValueError, match="^gamma must be positive"):
        losses.simple(
            Denoiser(Constant(x0), linear()),
            x0,
            torch.tensor(1.0),
            noise,
            weight=partial(weights.min_snr, gamma=gamma),
        )
