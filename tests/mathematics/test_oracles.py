"""The oracle itself, against numerical integration that knows nothing of Gaussians' algebra.

Here too stand the paths from data to noise that exact answers are asked for on, each with its alpha and sigma written
out a second time.
"""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from diffuse.mathematics import predictions
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.tables import linear
from tests.support.gaussian import MEAN, STD, X0
from tests.support.paths import Path, on_every_path


def on_a_grid(mean: float, std: float, alpha: float, sigma: float, x_t: float) -> tuple[float, float]:
    """E and Var of x0 given x_t by summing prior times likelihood over a fine grid of x0."""
    x0 = np.linspace(mean - 12 * std, mean + 12 * std, 20_001)
    log_weight = -0.5 * ((x0 - mean) / std) ** 2 - 0.5 * ((x_t - alpha * x0) / sigma) ** 2
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    expected = float((weight * x0).sum())
    return expected, float((weight * (x0 - expected) ** 2).sum())


@on_every_path
@pytest.mark.parametrize("t", [30, 400, 1000])
def test_the_best_denoiser_is_the_posterior_mean(gaussian: Gaussian, path: Path, t: int):
    """Whatever the network is asked to predict."""
    alpha, sigma = path.alpha_sigma(t)
    x_t = torch.tensor([0.4, -1.3, 2.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    pixels = zip(MEAN, STD, x_t.flatten().tolist(), strict=True)
    expected = np.array([on_a_grid(mean, std, alpha, sigma, pixel) for mean, std, pixel in pixels])
    variance = gaussian.posterior_variance(*(torch.tensor(number).double() for number in (alpha, sigma)))
    np.testing.assert_allclose(variance.flatten(), expected[:, 1], rtol=1e-6)
    defined = [predictions.x0, predictions.v, predictions.flow, predictions.edm]
    for prediction in defined if alpha == 0 else [predictions.eps, *defined]:
        guess = gaussian.denoiser(path.schedule, prediction)(x_t, torch.tensor(float(t)))
        np.testing.assert_allclose(guess.x0.flatten(), expected[:, 0], rtol=1e-6)


def integrated(x0: np.ndarray, std: np.ndarray, path: Path, t_min: float) -> tuple[np.ndarray, np.ndarray]:
    """x_T and log |det dx_T / dx0| of each pixel, by integrating d(x / alpha) / d rho = eps.

    eps is -rho times the score of N(mean, std^2 + rho^2). Where rho has no end, it is followed up to 10^8.
    """
    (alpha, sigma), (alpha_T, sigma_T) = path.alpha_sigma(t_min), path.alpha_sigma(1000)
    rho_T = sigma_T / alpha_T if alpha_T else 1e8
    mean = np.array(MEAN)

    def derivative(log_rho: float, state: np.ndarray) -> np.ndarray:
        y, _ = np.split(state, 2)
        rho = math.exp(log_rho)
        score = -(y - mean) / (std**2 + rho**2)
        its_derivative = -1 / (std**2 + rho**2)
        return np.concatenate([-rho * score * rho, -rho * its_derivative * rho])

    start = np.concatenate([x0, np.zeros_like(x0)])
    ends = (math.log(sigma / alpha), math.log(rho_T))
    found = solve_ivp(derivative, ends, start, method="DOP853", rtol=1e-11, atol=1e-11)
    y, log_det = np.split(found.y[:, -1], 2)
    return y * sigma_T / rho_T, log_det + math.log(sigma_T / rho_T)


@on_every_path
@pytest.mark.parametrize("t_min", [None, 50])
def test_the_flow_is_the_integral_of_eps(gaussian: Gaussian, path: Path, t_min: int | None):
    t_min = path.schedule.t_min if t_min is None else t_min
    x_T, log_det = gaussian.flow(X0, path.schedule, t_min)
    expected_log_det = []
    for image, found in zip(X0, x_T, strict=True):
        expected, log_dets = integrated(image.flatten().numpy(), np.array(STD), path, t_min)
        np.testing.assert_allclose(found.flatten(), expected, rtol=1e-7, atol=1e-7)
        expected_log_det.append(log_dets.sum())
    np.testing.assert_allclose(log_det, expected_log_det, rtol=1e-7, atol=1e-7)


def test_the_flows_determinant_counts_every_pixel(gaussian: Gaussian):
    """Also of images larger than what mean and std were given as."""
    (_, one), (_, six) = (gaussian.flow(x0, linear(), 1.0) for x0 in (X0, X0.expand(2, 3, 2, 3)))
    np.testing.assert_allclose(six, 6 * one, rtol=1e-12)
