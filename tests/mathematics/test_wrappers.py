"""What is done to a prediction before a sampler sees it, against its definition on single pixels."""

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuse.mathematics import predictions
from diffuse.mathematics.continuous import Flow
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.tables import linear
from diffuse.mathematics.wrappers import Clipped, DynamicallyClipped, EpsScaled, Observed
from tests.support.samplers import Wavy, normal64


class Says(torch.nn.Module):
    """Predicts the same image whatever it is asked."""

    def __init__(self, x0: Tensor):
        super().__init__()
        self.x0 = x0

    def forward(self, x, time, y=None):
        return self.x0


def knowing(x0: Tensor) -> Denoiser:
    return Denoiser(Says(x0), linear(), predictions.x0)


T = torch.tensor(600.0)


def test_dynamic_clipping_scales_each_image_by_its_own_quantile():
    x0 = normal64(1, 3, 2, 5, 5) * torch.tensor([0.2, 1.0, 4.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    found = DynamicallyClipped(knowing(x0), percentile=0.9)(normal64(2, *x0.shape), T).x0
    for image, ours in zip(x0.numpy(), found.numpy(), strict=True):
        s = max(np.quantile(np.abs(image), 0.9), 1)
        np.testing.assert_allclose(ours, np.clip(image, -s, s) / s, rtol=1e-12)
    assert torch.equal(found[0], x0[0])  # inside [-1, 1]: as it was
    assert (x0[2].abs() > 1).sum() > (found[2].abs() == 1).sum() > 1


@pytest.mark.parametrize("wrapper", [Clipped, DynamicallyClipped, lambda inner: EpsScaled(inner, 1.02, 1.05)])
def test_the_other_views_follow_from_the_changed_x0(wrapper):
    x, schedule = 3 * normal64(3, 2, 1, 4, 4), linear()
    guess = wrapper(Denoiser(Wavy(), schedule))(x, T)
    alpha, sigma = schedule.alpha_sigma(T.double())
    torch.testing.assert_close(alpha * guess.x0 + sigma * guess.eps, x, rtol=1e-12, atol=1e-12)
    assert not torch.equal(guess.x0, Denoiser(Wavy(), schedule)(x, T).x0)


@pytest.mark.parametrize("t", [T, torch.tensor([1, 1000])])
def test_eps_is_divided_by_a_number_between_data_and_noise(t: Tensor):
    x, inner = normal64(4, 2, 1, 4, 4), Denoiser(Wavy(), linear())
    b = (1.01 + 0.04 * t.double() / 1000).reshape(-1, 1, 1, 1)
    found = EpsScaled(inner, 1.01, 1.05)(x, t).eps
    torch.testing.assert_close(found, inner(x, t).eps / b, rtol=1e-10, atol=1e-10)


def test_pure_noise_has_no_eps_to_scale():
    x = normal64(5, 1, 1, 4, 4)
    inner = Denoiser(Wavy(), Flow(), predictions.flow)
    for t in (torch.tensor(1000.0), torch.tensor([1000.0])):
        assert torch.equal(EpsScaled(inner, 1.1, 1.1)(x, t).x0, inner(x, t).x0)


def test_clipping_comes_after_scaling_and_is_what_is_observed():
    x, seen = 5 * normal64(6, 2, 1, 4, 4), []
    inner = Denoiser(Wavy(), linear())
    guess = Observed(Clipped(EpsScaled(inner, 1.1, 1.1)), seen.append)(x, T)
    assert seen == [guess]
    assert torch.equal(guess.x0, EpsScaled(inner, 1.1, 1.1)(x, T).x0.clamp(-1, 1))
    assert guess.x0.abs().max() == 1


@pytest.mark.parametrize("percentile", [0.0, 1.01, float("nan")])
def test_a_percentile_is_between_0_and_1(percentile: float):
    with pytest.raises(ValueError, match="^percentile must be above 0 and at most 1"):
        DynamicallyClipped(knowing(torch.zeros(1)), percentile)


def test_the_largest_percentile_is_the_largest_pixel():
    x0 = torch.tensor([0.5, -4.0, 2.0, 1.0]).double().reshape(1, 1, 2, 2)
    torch.testing.assert_close(DynamicallyClipped(knowing(x0), 1.0)(normal64(2, *x0.shape), T).x0, x0 / 4)
