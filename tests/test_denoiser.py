"""A guess of x0 and its other views, from networks whose output is known."""

import pytest
import torch

from diffuse.denoiser import Denoiser
from diffuse.schedules import linear


class Constant(torch.nn.Module):
    """A network that answers the same whatever it is shown, and remembers what that was."""

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = output

    def forward(self, x, time, y=None):
        self.shown = (x, time, y)
        return self.output


@pytest.fixture
def x0():
    return torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise():
    return torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("t", [torch.tensor(1.0), torch.tensor(999.0), torch.tensor([1, 2, 500, 1000])])
def test_a_network_that_knows_the_noise_recovers_x0(x0, noise, t):
    denoiser = Denoiser(Constant(noise), linear())
    alpha_bar = linear().alpha_bar[t.long()].reshape(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(denoiser.diffuse(x0, t, noise), x_t, rtol=1e-12, atol=1e-12)
    guess = denoiser(x_t, t)
    torch.testing.assert_close(guess.x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(guess.eps, noise, rtol=1e-9, atol=1e-9)
    v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0  # Salimans and Ho 2022, section 4
    torch.testing.assert_close(guess.v, v, rtol=1e-9, atol=1e-9)
    score = -(x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar)  # gradient of log N(x_t; alpha x0, sigma^2)
    torch.testing.assert_close(guess.score, score, rtol=1e-9, atol=1e-7)


def test_the_time_input_is_the_zero_based_index(x0):
    net = Constant(x0)
    Denoiser(net, linear())(x0, torch.tensor([1, 2, 500, 1000]))
    assert net.shown[1].tolist() == [0, 1, 499, 999]
    Denoiser(net, linear())(x0, torch.tensor(7.0))
    assert net.shown[1].tolist() == [6, 6, 6, 6]


def test_labels_reach_the_network(x0):
    net = Constant(x0)
    labels = torch.tensor([3, 1, 4, 1])
    Denoiser(net, linear())(x0, torch.tensor(7.0), labels)
    assert net.shown[2] is labels


def test_after_clipping_the_other_views_follow(x0, noise):
    t = torch.tensor(300.0)
    alpha_bar = linear().alpha_bar[300]
    x_t = alpha_bar.sqrt() * 3 * x0 + (1 - alpha_bar).sqrt() * noise
    guess = Denoiser(Constant(noise), linear(), clip=True)(x_t, t)
    clipped = (3 * x0).clamp(-1, 1)
    assert (clipped != 3 * x0).any()
    torch.testing.assert_close(guess.x0, clipped, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(guess.eps, (x_t - alpha_bar.sqrt() * clipped) / (1 - alpha_bar).sqrt())


def test_the_networks_target_for_eps_is_the_noise(x0, noise):
    t = torch.tensor([1, 10, 500, 1000])
    denoiser = Denoiser(Constant(noise), linear())
    torch.testing.assert_close(denoiser.target(denoiser.diffuse(x0, t, noise), x0, t), noise, rtol=1e-9, atol=1e-9)


def test_one_time_for_all_equals_that_time_for_each(x0, noise):
    denoiser = Denoiser(Constant(noise), linear(), clip=True)
    together, each = denoiser(x0, torch.tensor(42.0)), denoiser(x0, torch.full((4,), 42))
    torch.testing.assert_close(together.x0, each.x0, rtol=1e-12, atol=1e-12)
