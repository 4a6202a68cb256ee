"""What a network's output means: its exact answer, written out from the papers, gives back x0, eps, v and the score."""

import math

import pytest
import torch
from torch import Tensor

from diffuse.mathematics import losses, predictions
from diffuse.mathematics.continuous import VE
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.tables import linear
from tests.support.paths import PATHS
from tests.support.predictions import DEFINED, SIGMA_DATA, TABLES, Constant, alpha_sigma, answer, close, images, times


def in_one_batch_and_alone(t: Tensor) -> list[Tensor]:
    """A time for each image, and each time as that of all images."""
    return [t, *t]


@pytest.mark.parametrize(("path", "kind"), DEFINED)
def test_a_network_that_answers_the_definition_is_understood(path: str, kind: str):
    x0, noise = images(1, 2)
    for t in in_one_batch_and_alone(times(path, kind)):
        alpha, sigma = alpha_sigma(path, t)
        denoiser = Denoiser(
            Constant(answer(path, kind, t, x0, noise)), PATHS[path].schedule, getattr(predictions, kind)
        )
        guess = denoiser(alpha * x0 + sigma * noise, t)
        close(guess.x0, x0)
        close(guess.eps, noise)
        close(guess.v, alpha * noise - sigma * x0)  # Salimans and Ho 2022, section 4
        close(guess.score, -noise / sigma)  # the gradient of log N(x_t; alpha x0, sigma^2)


@pytest.mark.parametrize(("path", "kind"), DEFINED)
def test_what_the_network_is_shown(path: str, kind: str):
    """x_t, but scaled down where its variance explodes, and the level's 0-based index; EDM has rules of its own."""
    x_t, output = images(1, 2)
    for t in in_one_batch_and_alone(times(path, kind)):
        alpha, sigma = alpha_sigma(path, t)
        net = Constant(output)
        Denoiser(net, PATHS[path].schedule, getattr(predictions, kind))(x_t, t)
        if kind == "edm":
            rho = sigma / alpha
            shown, time = x_t / alpha / (rho**2 + SIGMA_DATA**2).sqrt(), rho.log() / 4
        else:
            shown, time = x_t / (1 + sigma**2).sqrt() if path == "ve" else x_t, t - 1
        close(net.shown[0], shown)
        close(net.shown[1], time.flatten().expand(4))


class Halved(VE):
    """A path on which the noise explodes and the image fades too, as on none of ours."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = super().alpha_sigma(t)
        return alpha / 2, sigma


def test_inputs_that_explode_are_scaled_by_both_alpha_and_sigma():
    t = torch.tensor([1.0, 600.0, 1000.0], dtype=torch.float64)
    sigma = 0.02 * 5000 ** ((t - 1) / 999)
    close(predictions.eps(Halved(), t).c_in, (1 / 4 + sigma**2).rsqrt().clamp(max=1))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edms_input_and_target_have_variance_one(path: str, sigma_data: float):
    """For data of that standard deviation: the two demands of Karras et al. 2022 that c_in and c_out come from."""
    t = times(path, "edm")
    alpha, sigma = (number.flatten() for number in alpha_sigma(path, t))
    c_skip, c_out, c_in, _ = predictions.edm(PATHS[path].schedule, t, sigma_data=sigma_data)
    ones = torch.ones_like(t)
    close(c_in**2 * ((alpha * sigma_data) ** 2 + sigma**2), ones)
    of_x0, of_noise = (1 - c_skip * alpha) / c_out, -c_skip * sigma / c_out  # the target is (x0 - c_skip x_t) / c_out
    close((of_x0 * sigma_data) ** 2 + of_noise**2, ones)


@pytest.mark.parametrize("path", TABLES)
def test_prediction_of_the_mean_is_prediction_of_x0_or_eps_but_for_the_weight(path: str):
    """Ho et al. 2020: the difference of two means is of_x0 times that of x0 (equation 7), and equation 12 for eps."""
    x0, noise, wrong = images(1, 2, 3)
    t = times(path, "eps")
    alpha, sigma = alpha_sigma(path, t)
    wrong_noise = (alpha * x0 + sigma * noise - alpha * wrong) / sigma
    denoiser = Denoiser(Constant(answer(path, "mean", t, wrong, wrong_noise)), PATHS[path].schedule, predictions.mean)
    found = losses.simple(denoiser, x0, t, noise)
    beta, before = PATHS[path].schedule.beta[t.long()], PATHS[path].schedule.alpha_bar[t.long() - 1]
    alpha_bar = alpha.flatten() ** 2
    of_x0 = before.sqrt() * beta / (1 - alpha_bar)
    close(found, of_x0**2 * (x0 - wrong).square().mean((1, 2, 3)))
    of_eps = beta**2 / ((1 - beta) * (1 - alpha_bar))
    close(found, of_eps * (noise - wrong_noise).square().mean((1, 2, 3)))


@pytest.mark.parametrize("sigma_data", [0.0, -0.5, math.nan])
def test_sigma_data_must_be_positive(sigma_data: float):
    with pytest.raises(ValueError, match="^sigma_data must be positive"):
        predictions.edm(linear(), torch.tensor(1.0), sigma_data=sigma_data)
