"""The sampler of consistency models, and a training for it from the command line."""

import torch
from torch import Tensor

from diffuse.mathematics import predictions
from diffuse.mathematics.continuous import VE
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.samplers.consistency import consistency
from diffuse.mathematics.spacings import consistency as spacing
from diffuse.mathematics.spacings import time_grid


def test_each_step_adds_new_noise_to_the_predicted_image():
    """Song et al. 2023, algorithm 1, on a path that keeps the image: alpha = 1."""
    path = VE(sigma_min=0.002, sigma_max=80.0)
    seen: list[Tensor] = []

    def net(x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        seen.append(x)
        return torch.tanh(x)

    times = time_grid(path, 3, spacing)
    x, z = (
        torch.randn(2, 2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    )
    draws = iter(z)
    denoiser = Denoiser(net, path, predictions.x0)
    first, second, found = consistency(denoiser, 80 * x, times, noise=lambda x: next(draws))
    one = torch.tanh(80 * x / (1 + 80**2) ** 0.5)
    torch.testing.assert_close(first, one + 0.821 * z[0], rtol=1e-9, atol=1e-9)
    two = torch.tanh(first / (1 + 0.821**2) ** 0.5)
    torch.testing.assert_close(second, two + 0.4105 * z[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, torch.tanh(second / (1 + 0.4105**2) ** 0.5), rtol=1e-9, atol=1e-9)
    assert len(seen) == 3
