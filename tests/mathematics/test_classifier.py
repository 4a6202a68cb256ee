"""The classifier of noisy images: what its network is shown, its log-probabilities, their gradient, and its loss."""

import math

import numpy as np
import pytest
import torch

from diffuse.mathematics import losses, predictions
from diffuse.mathematics.classifier import NoisyClassifier
from tests.support.paths import PATHS
from tests.support.predictions import Constant, alpha_sigma

X = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([2, 0, 1, 2])


class Bent(torch.nn.Module):
    """A classifier of three classes in general position, by the pixels and the time."""

    def forward(self, x, time, y=None):
        means = x.flatten(2).square().mean(2)
        return torch.stack(
            [means.sum(1) * 0.7, torch.sin(x.flatten(1)).sum(1) + time / 300, means[:, 0] * time / 90], 1
        )


@pytest.mark.parametrize("path", PATHS)
def test_the_network_is_shown_what_a_denoisers_is(path):
    """The input keeps a variance of at most about 1, and the time is the 0-based level."""
    t = torch.tensor([1.0, 7.0, 420.0, 999.0], dtype=torch.float64)
    net = Constant(torch.zeros(4, 3, dtype=torch.float64))
    NoisyClassifier(net, PATHS[path].schedule, PATHS[path].prediction)(X, t)
    alpha, sigma = alpha_sigma(path, t)
    x, time, y = net.shown
    torch.testing.assert_close(x, X / (alpha**2 + sigma**2).sqrt().clamp(min=1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(time, t - 1)
    assert y is None


def test_edms_scaling_is_edms():
    t, d = torch.tensor(300.0, dtype=torch.float64), 0.5
    net = Constant(torch.zeros(4, 3, dtype=torch.float64))
    NoisyClassifier(net, PATHS["ve"].schedule, predictions.edm)(X, t)
    _, sigma = PATHS["ve"].alpha_sigma(300)
    torch.testing.assert_close(net.shown[0], X / math.sqrt(sigma**2 + d**2), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(net.shown[1], torch.full([4], math.log(sigma) / 4, dtype=torch.float64))


@pytest.mark.parametrize("path", ["linear", "ve"])
def test_the_gradient_is_that_of_the_log_probability(path):
    """By differences of what the classifier itself says; on `ve` the input is scaled, and the gradient with it."""
    classifier = NoisyClassifier(Bent(), PATHS[path].schedule, predictions.eps)
    t, h = torch.tensor([3.0, 120.0, 600.0, 950.0], dtype=torch.float64), 1e-5
    found = classifier.gradient(X, t, Y)
    assert not found.requires_grad
    for place in np.ndindex(3, 2, 2):
        step = torch.zeros_like(X)
        step[(slice(None), *place)] = h
        above, below = (classifier(x, t)[torch.arange(4), Y] for x in (X + step, X - step))
        torch.testing.assert_close(found[(slice(None), *place)], (above - below) / (2 * h), rtol=1e-5, atol=1e-8)


def test_the_loss_is_the_cross_entropy_of_the_noisy_image():
    schedule = PATHS["linear"].schedule
    t, noise = torch.tensor([3, 120, 600, 950]), X.flip(0)
    classifier = NoisyClassifier(Bent(), schedule)
    found = losses.cross_entropy(classifier, X, t, noise, Y).numpy()
    for i in range(4):
        alpha, sigma = PATHS["linear"].alpha_sigma(float(t[i]))
        x_t = alpha * X[i : i + 1] + sigma * noise[i : i + 1]
        logits = Bent()(x_t, t[i : i + 1].double() - 1)[0].numpy()
        assert found[i] == pytest.approx(np.log(np.exp(logits).sum()) - logits[Y[i]], rel=1e-9)
