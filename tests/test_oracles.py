"""The oracle itself, against numerical integration that knows nothing of Gaussians' algebra."""

import numpy as np
import pytest
import torch

from diffuse.oracles import Gaussian
from diffuse.schedules import Schedule
from tests.conftest import MEAN, STD


def on_a_grid(mean: float, std: float, alpha: float, sigma: float, x_t: float) -> tuple[float, float]:
    """E and Var of x0 given x_t by summing prior times likelihood over a fine grid of x0."""
    x0 = np.linspace(mean - 12 * std, mean + 12 * std, 400_001)
    log_weight = -0.5 * ((x0 - mean) / std) ** 2 - 0.5 * ((x_t - alpha * x0) / sigma) ** 2
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    expected = float((weight * x0).sum())
    return expected, float((weight * (x0 - expected) ** 2).sum())


@pytest.mark.parametrize("t", [30, 400, 1000])
def test_the_best_denoiser_is_the_posterior_mean(gaussian: Gaussian, schedule: Schedule, t: int):
    time = torch.tensor(float(t)).double()
    alpha, sigma = (value.item() for value in schedule.alpha_sigma(time))
    x_t = torch.tensor([0.4, -1.3, 2.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    guess = gaussian.denoiser(schedule)(x_t, time).x0.flatten()
    variance = gaussian.posterior_variance(torch.tensor(alpha), torch.tensor(sigma)).flatten()
    for channel in range(3):
        expected = on_a_grid(MEAN[channel], STD[channel], alpha, sigma, x_t.flatten()[channel].item())
        np.testing.assert_allclose([guess[channel], variance[channel]], expected, rtol=1e-6)
