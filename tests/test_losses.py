"""The loss and its levels."""

import torch

from diffuse.denoiser import Denoiser
from diffuse.losses import denoising_loss, uniform_levels
from diffuse.schedules import linear


class Linear(torch.nn.Module):
    """net(x, time) = a x + b time: simple enough to write its loss out."""

    def forward(self, x, time, y=None):
        return 0.5 * x + 0.01 * time.reshape(-1, 1, 1, 1)


def test_l_simple_is_the_papers():
    """mean || eps - net(sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps, t) ||^2: Ho et al. 2020, equation 14."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64, generator=generator)
    t = torch.tensor([1, 2, 400, 999, 1000])
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t - 1].reshape(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    expected = (noise - 0.5 * x_t - 0.01 * (t - 1).double().reshape(-1, 1, 1, 1)).pow(2).mean((1, 2, 3))
    torch.testing.assert_close(denoising_loss(Denoiser(Linear(), linear()), x0, t, noise), expected, rtol=1e-9, atol=0)


def test_levels_are_uniform_over_all_of_one_to_T():
    """{1 ... T-1} and {0 ... T-1} are slips found in popular notes."""
    torch.manual_seed(0)
    T, count = 10, 100_000
    drawn = torch.bincount(uniform_levels(count, T), minlength=T + 2)
    assert drawn[0] == 0
    assert drawn[T + 1] == 0
    chi_squared = ((drawn[1 : T + 1] - count / T) ** 2 / (count / T)).sum()
    assert chi_squared < 27.9  # the 0.999 quantile with 9 degrees of freedom
