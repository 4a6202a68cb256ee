"""A guess of x0 and its other views, from networks whose output is known."""

import pytest
import torch

from diffuse.mathematics import losses, predictions
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.tables import linear
from diffuse.mathematics.wrappers import Clipped
from tests.support.paths import PATHS
from tests.support.predictions import DEFINED, Constant, close, images, times


@pytest.fixture
def x0():
    return images(1)[0]


@pytest.fixture
def noise():
    return images(2)[0]


@pytest.fixture
def both_halves():
    """What a network says that learns the variance too: twice the channels."""
    return torch.cat(images(3, 4), dim=1).requires_grad_()


@pytest.mark.parametrize("t", [torch.tensor(1.0), torch.tensor(999.0), torch.tensor([1, 2, 500, 1000])])
def test_x_t_is_the_papers(x0, noise, t):
    """Ho et al. 2020, equation 4, for one time or one for each image."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t.long() - 1]
    alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)
    close(linear().diffuse(x0, t, noise), alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise)


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


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_after_clipping_the_other_views_follow(x0, noise, kind):
    t = torch.tensor([1, 300, 700, 1000])
    alpha_bar = linear().alpha_bar[t].reshape(-1, 1, 1, 1)
    prediction = getattr(predictions, kind)
    loose = Denoiser(Constant(noise), linear(), prediction)(x0, t).x0
    guess = Clipped(Denoiser(Constant(noise), linear(), prediction))(x0, t)
    clipped = loose.clamp(-1, 1)
    assert (loose < -1).any()
    assert (loose > 1).any()
    close(guess.x0, clipped)
    eps = (x0 - alpha_bar.sqrt() * clipped) / (1 - alpha_bar).sqrt()
    close(guess.eps, eps)
    close(guess.v, alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * clipped)
    close(guess.score, -eps / (1 - alpha_bar).sqrt())


def test_the_networks_target_for_eps_is_the_noise(x0, noise):
    """Not x_t - x_{t-1}: the loss is zero where the network says the noise, and the square of what it is off by."""
    t = torch.tensor([1, 10, 500, 1000])
    off = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    denoiser = Denoiser(Constant(noise + off.reshape(-1, 1, 1, 1)), linear())
    close(losses.simple(denoiser, x0, t, noise), off**2)


@pytest.mark.parametrize(("path", "kind"), DEFINED)
def test_one_time_for_all_equals_that_time_for_each(x0, noise, path, kind):
    denoiser = Clipped(Denoiser(Constant(noise), PATHS[path].schedule, getattr(predictions, kind)))
    for t in times(path, kind):
        together, each = denoiser(x0, t), denoiser(x0, t.expand(4))
        for view in ("x0", "eps", "v", "score"):
            torch.testing.assert_close(getattr(together, view), getattr(each, view), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [torch.tensor(42, dtype=torch.float64), torch.tensor([1, 2, 500, 1000])])
def test_images_in_float32_stay_so(t):
    """A time in float64, or as an integer, must not make the network's input or the guess as wide."""
    x_t, output = images(1, 2, dtype=torch.float32)
    net = Constant(output)
    guess = Denoiser(net, linear(), predictions.v)(x_t, t)
    assert net.shown[0].dtype == net.shown[1].dtype == torch.float32
    assert guess.x0.dtype == guess.eps.dtype == guess.v.dtype == guess.score.dtype == torch.float32


def test_one_time_for_all_images_has_its_coefficients_in_float64():
    """The images' own float32 would round them first; times of single images have to live with that."""
    (x,) = images(1, dtype=torch.float32)
    denoiser, t = Denoiser(Constant(x), linear()), torch.tensor(3.0)
    exact = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[:3]).prod()
    guess, each = denoiser(x, t), denoiser(x, t.expand(4))
    torch.testing.assert_close((guess.alpha, guess.sigma), (exact.sqrt(), (1 - exact).sqrt()), rtol=1e-11, atol=0)
    assert guess.c_out.shape == ()
    assert (each.alpha.dtype, each.sigma.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(("path", "kind"), DEFINED)
def test_c_out_is_what_x0_moves_by_when_the_output_moves_by_one(x0, noise, path, kind):
    t = times(path, kind)
    prediction = getattr(predictions, kind)
    guess, moved = (
        Denoiser(Constant(output), PATHS[path].schedule, prediction)(x0, t) for output in (noise, noise + 1)
    )
    close((moved.x0 - guess.x0) / guess.c_out, torch.ones_like(x0))


def test_the_second_half_of_the_channels_is_where_the_variance_lies(x0, both_halves):
    """From -1, the smallest, to 1, the largest; the first half is the prediction as if there were no other."""
    t = torch.tensor([1, 2, 500, 1000])
    guess = Denoiser(Constant(both_halves), linear(), learned_variance=True)(x0, t)
    assert torch.equal(guess.between, (both_halves[:, 3:] + 1) / 2)
    alone = Denoiser(Constant(both_halves[:, :3]), linear())(x0, t)
    assert torch.equal(guess.x0, alone.x0)
    assert alone.between is None


def test_clipping_leaves_the_variance_alone(x0, both_halves):
    t = torch.tensor(500.0)
    denoiser = Denoiser(Constant(3 * both_halves), linear(), learned_variance=True)
    loose, clipped = denoiser(x0, t), Clipped(denoiser)(x0, t)
    assert torch.equal(clipped.x0, loose.x0.clamp(-1, 1))
    assert torch.equal(clipped.between, loose.between)
    assert (clipped.between > 1).any()
