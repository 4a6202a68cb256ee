"""Classifier guidance against a mixture of Gaussians, whose score and whose log p(y given x_t) are known."""

import math
from dataclasses import replace

import pytest
import torch

from diffuse.mathematics import predictions
from diffuse.mathematics.classifier import gradient_of
from diffuse.mathematics.guidance import ClassifierGuided
from diffuse.mathematics.samplers.ancestral import ancestral
from diffuse.mathematics.samplers.ddim import ddim
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.variances import fixed_large, learned
from tests.mathematics.test_guidance import images
from tests.support import mixture
from tests.support.mixture import MixtureDenoiser, classifier_of, null, score
from tests.support.paths import PATHS
from tests.support.samplers import normal64

PREDICTIONS = [predictions.eps, predictions.v, predictions.x0, predictions.flow, predictions.edm]


class Unconditional(MixtureDenoiser):
    """The optimal denoiser of all classes together, which is not given a label."""

    def output(self, x_t, t, y, coefficients):
        assert y is None
        return super().output(x_t, t, null(torch.zeros(len(x_t), dtype=torch.long)), coefficients)


def guided(schedule, scale: float, prediction=predictions.eps, **options) -> ClassifierGuided:
    gradient = gradient_of(classifier_of(schedule))
    return ClassifierGuided(Unconditional(schedule, prediction), scale, gradient=gradient, **options)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [-0.5, 0, 1, 4])
def test_the_guided_score_is_that_of_all_images_and_the_classifiers_gradient(path, prediction, scale):
    """The gradient is score(x_t given y) - score(x_t), so that at scale 1 the sum is exactly score(x_t given y)."""
    schedule = PATHS[path].schedule
    for share in (0.1, 0.5, 0.9):
        t = torch.tensor(share * schedule.T, dtype=torch.float64)
        x, y = images(schedule, float(t))
        of_class, of_all = score(schedule, x, t, y), score(schedule, x, t, null(y))
        for times in (t, t.expand(len(x))):
            found = guided(schedule, scale, prediction)(x, times, y).score
            torch.testing.assert_close(found, of_all + scale * (of_class - of_all), rtol=1e-6, atol=1e-6)


def test_a_denoiser_with_labels_is_given_them_too():
    schedule, t = PATHS["linear"].schedule, torch.tensor(400.0, dtype=torch.float64)
    x, y = images(schedule, 400)
    gradient = gradient_of(classifier_of(schedule))
    found = ClassifierGuided(MixtureDenoiser(schedule), 2.0, gradient=gradient, labels=True)(x, t, y).score
    of_class, of_all = score(schedule, x, t, y), score(schedule, x, t, null(y))
    torch.testing.assert_close(found, of_class + 2 * (of_class - of_all), rtol=1e-6, atol=1e-6)


def test_outside_of_the_interval_and_at_scale_0_no_classifier_is_asked():
    schedule, asked = PATHS["linear"].schedule, []

    def gradient(x_t, t, y):
        asked.append(float(t))
        return torch.ones_like(x_t)

    for t in (10.0, 300.0, 900.0):  # sigma / alpha is 0.06, 1.4 and 88
        x, y = images(schedule, t)
        plain = Unconditional(schedule)(x, torch.tensor(t))
        for scale in (0.0, 3.0):
            wrapped = ClassifierGuided(Unconditional(schedule), scale, (0.5, 5), gradient=gradient)
            guess = wrapped(x, torch.tensor(t), y)
            assert torch.equal(guess.x0, plain.x0) == (t != 300 or scale == 0)
            assert wrapped.calls(guess) == 1
    assert asked == [300.0]


def test_images_with_times_of_their_own_are_guided_one_by_one():
    schedule = PATHS["linear"].schedule
    wrapped = guided(schedule, 3.0, interval=(0.5, 5))
    t = torch.tensor([10.0, 300.0, 900.0], dtype=torch.float64)
    x = torch.cat([images(schedule, float(each))[0][:1] for each in t])
    y = torch.tensor([0, 1, 2])
    together = wrapped(x, t, y).x0
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], wrapped(x[i : i + 1], t[i], y[i : i + 1]).x0)
    assert torch.equal(together[[0, 2]], Unconditional(schedule)(x, t).x0[[0, 2]])


@pytest.mark.parametrize("path", [name for name, path in PATHS.items() if path.forgets])
def test_where_nothing_is_left_of_the_image_nothing_is_added(path):
    schedule = PATHS[path].schedule
    x, y = images(schedule, schedule.T)
    last = torch.tensor(float(schedule.T))
    for t in (last, last.expand(len(x))):
        found = guided(schedule, 5.0, PATHS[path].prediction)(x, t, y)
        assert torch.equal(found.x0, Unconditional(schedule, PATHS[path].prediction)(x, t).x0)
        assert found.x0.isfinite().all()


def test_a_learned_variance_stays():
    schedule, t = PATHS["linear"].schedule, torch.tensor(400.0)
    x, y = images(schedule, 400)

    class Learned(Unconditional):
        def output(self, x_t, t, y, coefficients):
            found = super().output(x_t, t, y, coefficients)
            return torch.cat([found, found.tanh()], 1)

    denoiser = Learned(schedule)
    denoiser.learned_variance = True
    guess = ClassifierGuided(denoiser, 3.0, gradient=gradient_of(classifier_of(schedule)))(x, t, y)
    assert torch.equal(guess.between, denoiser(x, t).between)
    assert not torch.equal(guess.x0, denoiser(x, t).x0)


def test_gradients_are_enabled_inside_alone():
    schedule, t = PATHS["linear"].schedule, torch.tensor(400.0)
    x, y = images(schedule, 400)
    with torch.no_grad():
        found = guided(schedule, 2.0)(x, t, y)
        assert not torch.is_grad_enabled()
    assert not found.x0.requires_grad
    assert not x.requires_grad
    torch.testing.assert_close(found.x0, guided(schedule, 2.0)(x, t, y).x0)


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("level", [2, 40, 500, 990])
def test_the_mean_of_an_ancestral_step_moves_as_adms_does_but_for_a_factor(path, level):
    """Dhariwal and Nichol 2021, algorithm 1: by scale * variance * gradient; here 1 / sqrt(1 - beta_t) times as far."""
    schedule, scale = PATHS[path].schedule, 2.5
    times = torch.tensor([level, level - 1, 0.0], dtype=torch.float64)
    x, y = images(schedule, level)
    options = {"variance": fixed_large, "noise": torch.zeros_like}
    plain = next(iter(ancestral(Unconditional(schedule), x, times, **options)))
    found = next(iter(ancestral(guided(schedule, scale), x, times, y, **options)))
    t, beta = times[0], float(schedule.beta[level])
    of_adm = scale * beta * (score(schedule, x, t, y) - score(schedule, x, t, null(y)))
    torch.testing.assert_close(found - plain, of_adm / math.sqrt(1 - beta), rtol=1e-7, atol=1e-9)


def test_samples_at_scale_1_have_the_moments_of_their_class():
    """From a denoiser that knows no classes: 12,000 images by ddim, whose mean and deviation have a standard error."""
    schedule, n = PATHS["linear"].schedule, 4000
    grid = time_grid(schedule, 100)
    x = normal64(3, 3 * n, 3, 1, 1)
    y = torch.arange(3).repeat_interleave(n)
    *_, drawn = ddim(guided(schedule, 1.0), x, grid, y)
    for k in range(3):
        of_class = drawn[y == k].flatten(1)
        error = 5 * mixture.STDS[k] / math.sqrt(n)
        assert ((of_class.mean(0) - mixture.MEANS[k]).abs() < error + 0.01).all()
        assert ((of_class.std(0) - mixture.STDS[k]).abs() < error + 0.02).all()
    *_, unguided = ddim(guided(schedule, 0.0), x, grid, y)
    assert ((unguided[y == 1].flatten(1).mean(0) - mixture.MEANS[1]).abs() > 0.2).any()


def test_with_a_learned_variance_the_sampler_adds_the_same_noise():
    """Guidance moves the mean of a step, not its variance: two streams of noise differ by the same with and without."""
    schedule = PATHS["linear"].schedule
    times = torch.tensor([500.0, 499.0, 0.0], dtype=torch.float64)
    x, y = images(schedule, 500)

    class Learned(Unconditional):
        def forward(self, x_t, t, y=None):
            guess = super().forward(x_t, t, y)
            return replace(guess, between=torch.full_like(x_t, 0.3))

    steps = []
    for wrapped in (Learned(schedule), replace(guided(schedule, 4.0), inner=Learned(schedule))):
        label = y if isinstance(wrapped, ClassifierGuided) else None
        one, other = (
            next(iter(ancestral(wrapped, x, times, label, variance=learned, noise=noise)))
            for noise in (torch.zeros_like, torch.ones_like)
        )
        steps.append(other - one)
    torch.testing.assert_close(*steps)
