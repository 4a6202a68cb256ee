"""Posterior sampling against posteriors that are known: Gaussian data under linear measurements."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from diffuse.mathematics import predictions
from diffuse.mathematics.measurements import (
    LUMA,
    Measurement,
    MeasurementGuided,
    blurred,
    directions,
    downsampled,
    grey,
    masked,
    pixels,
)
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.samplers.ancestral import ancestral
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.spacings import SPACINGS, time_grid
from diffuse.mathematics.variances import fixed_small
from diffuse.system.errors import Refused
from tests.support.gaussian import MEAN, STD, column
from tests.support.paths import PATHS

NOISE, V = 0.3, 0.4


def posterior_mean(operator: np.ndarray, y: np.ndarray, x_t: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x0 given x_t, y] for x0 ~ N(0.2, V I), by linear algebra."""
    prior = np.full(x_t.shape, 0.2)
    seen = np.concatenate([alpha * np.eye(len(x_t)), operator])
    noise = np.diag([sigma**2] * len(x_t) + [NOISE**2] * len(y))
    gain = V * seen.T @ np.linalg.inv(V * seen @ seen.T + noise)
    return prior + gain @ (np.concatenate([x_t, y]) - seen @ prior)


def matrix(measurement: Measurement, shape: tuple[int, ...]) -> np.ndarray:
    """A, a column for each pixel."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return measurement(basis).flatten(1).T.numpy()


def guided_by(
    measurement: Measurement, schedule: Schedule, y: Tensor, shape=(3, 4, 4), prediction=predictions.flow, **options
) -> MeasurementGuided:
    data = Gaussian(torch.full(shape, 0.2, dtype=torch.float64), torch.full(shape, V**0.5, dtype=torch.float64))
    options = {"noise": NOISE, "covariance": V, **options}
    return MeasurementGuided(data.denoiser(schedule, prediction), measurement=measurement, y=y, **options)


HALF = torch.tensor([[1.0, 0.0] * 2, [0.0, 1.0] * 2] * 2)
# Made inside of each test: what is made beforehand, no change of the code by `make mutants` reaches.
LINEAR = {
    "pixels": pixels,
    "masked": partial(masked, HALF),
    "downsampled": partial(downsampled, 2),
    "not_downsampled": partial(downsampled, 1),
    "grey": grey,
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("path", PATHS)
def test_with_the_covariance_the_prediction_is_the_posterior_mean(name, path):
    schedule, measurement = PATHS[path].schedule, LINEAR[name]()
    operator = matrix(measurement, (3, 4, 4))
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    y = measurement(x0[:1])[0]
    for share in (0.1, 0.6, 0.95):
        t = torch.tensor(share * schedule.T, dtype=torch.float64)
        x_t = schedule.diffuse(x0, t, torch.randn(x0.shape, generator=generator, dtype=torch.float64))
        alpha, sigma = map(float, schedule.alpha_sigma(t))
        for times in (t, t.expand(2)):
            found = guided_by(measurement, schedule, y)(x_t, times)
            for i in range(2):
                expected = posterior_mean(operator, y.flatten().numpy(), x_t[i].flatten().numpy(), alpha, sigma)
                np.testing.assert_allclose(found.x0[i].flatten().numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", [predictions.eps, predictions.v, predictions.edm])
def test_a_variance_for_each_pixel_is_exact_under_a_mask(prediction):
    """The posterior of independent pixels is independent Gaussians: its own denoiser gives the score."""
    schedule = PATHS["linear"].schedule
    prior, y = Gaussian(column(MEAN), column(STD)), column((0.5, 0.0, -1.0))
    known = torch.tensor([1.0, 0.0, 1.0]).reshape(3, 1, 1)
    variance = 1 / (1 / prior.std**2 + known.double() / NOISE**2)
    posterior = Gaussian(variance * (prior.mean / prior.std**2 + known * y / NOISE**2), variance.sqrt())
    guided = MeasurementGuided(
        prior.denoiser(schedule, prediction), measurement=masked(known), y=y, noise=NOISE, covariance=prior.std**2
    )
    x_t = torch.randn(4, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (20.0, 300.0, 800.0):
        at = torch.tensor(t)
        torch.testing.assert_close(
            guided(x_t, at).score, posterior.denoiser(schedule)(x_t, at).score, rtol=1e-6, atol=1e-6
        )


def moments(guided: MeasurementGuided, steps: int = 200, n: int = 6000) -> tuple[float, float]:
    """Mean and standard deviation of samples by ancestral sampling; the images are single pixels."""
    generator = torch.Generator().manual_seed(2)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)

    times = time_grid(guided.schedule, steps, SPACINGS["uniform"])
    *_, x = ancestral(guided, noise(torch.empty(n, 1, 1, 1)), times, variance=fixed_small, noise=noise)
    return float(x.mean()), float(x.std())


def test_samples_have_the_posteriors_moments_with_the_covariance_and_a_measured_bias_without():
    """x0 ~ N(0.2, 0.4) and y = 1 with noise of 0.3: the posterior is N(0.853, 0.271^2). Without the covariance the
    measurement counts too much at high noise: the samples are N(0.99, 0.19^2)."""
    schedule, y = PATHS["linear"].schedule, torch.ones(1, 1, 1, dtype=torch.float64)
    variance = 1 / (1 / V + 1 / NOISE**2)
    mean = variance * (0.2 / V + 1 / NOISE**2)
    found = moments(guided_by(pixels(), schedule, y, (1, 1, 1)))
    assert found == pytest.approx((mean, variance**0.5), abs=0.015)
    biased = moments(guided_by(pixels(), schedule, y, (1, 1, 1), covariance=0.0))
    assert biased == pytest.approx((0.99, 0.193), abs=0.02)


@pytest.mark.parametrize(
    ("make", "gain"),
    [
        (pixels, 1),
        (lambda: masked(torch.ones(9, 9)), 1),
        (lambda: downsampled(3), 1 / 9),
        (lambda: blurred(0.8), None),
        (grey, None),
    ],
)
def test_the_gain_is_the_variance_of_a_measured_value(make, gain):
    measurement = make()
    operator = matrix(measurement, (3, 9, 9))
    inside = (operator @ operator.T).diagonal()[len(operator) // 2]  # of the pixel in the middle, far from the border
    assert measurement.gain == pytest.approx(inside, rel=1e-6)
    assert gain is None or measurement.gain == pytest.approx(gain)


@pytest.mark.parametrize("std", [0.2, 0.8, 1.5])
def test_a_blur_is_scipys_with_its_border(std):
    """Cut off at three standard deviations, and at the next pixel at the least."""
    image = np.random.default_rng(2).standard_normal((1, 1, 13, 9))
    radius = max(1, round(3 * std))
    expected = gaussian_filter(image[0, 0], std, mode="nearest", radius=radius)
    np.testing.assert_allclose(blurred(std)(torch.from_numpy(image))[0, 0].numpy(), expected, rtol=1e-12, atol=1e-15)


def test_a_blur_is_a_gaussian_and_keeps_grey_images():
    spot = torch.zeros(1, 2, 21, 21, dtype=torch.float64)
    spot[0, 1, 10, 10] = 1
    seen = blurred(1.5)(spot)
    assert float(seen[0, 0].abs().max()) == 0
    ratio = float(seen[0, 1, 10, 12] / seen[0, 1, 10, 10])
    assert ratio == pytest.approx(math.exp(-0.5 * (2 / 1.5) ** 2))
    torch.testing.assert_close(seen, seen.transpose(2, 3))
    torch.testing.assert_close(seen, seen.flip(2))
    flat = torch.full((1, 1, 5, 5), 0.7, dtype=torch.float64)
    torch.testing.assert_close(blurred(2.0)(flat), flat)


def test_grey_is_pillows_grey():
    from PIL import Image

    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(colours).convert("L")).astype(float)
    found = grey()(torch.from_numpy(colours).permute(2, 0, 1)[None].double())[0, 0].numpy()
    assert np.abs(found - expected).max() <= 0.51
    assert sum(LUMA) == pytest.approx(1)


def test_a_feature_vector_is_compared_by_its_direction():
    schedule = PATHS["linear"].schedule
    weights = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    measurement = directions(lambda x: 7 * x.flatten(1) @ weights.T)
    target = torch.nn.functional.normalize(
        torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), dim=0
    )
    guided = guided_by(measurement, schedule, target, (3, 2, 2))
    x_t, t = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.tensor(500.0)
    before, after = guided.inner(x_t, t).x0, guided(x_t, t)
    closer = torch.nn.functional.cosine_similarity(measurement(after.x0), target[None])
    assert (closer > torch.nn.functional.cosine_similarity(measurement(before), target[None])).all()

    # The slope by differences: x0 + scale sigma^2 / alpha d/dx_t of -|A(x0) - y|^2 / (2 noise^2)
    def log_likelihood(x: Tensor) -> Tensor:
        return -((measurement(guided.inner(x, t).x0) - target) ** 2).sum(1) / (2 * NOISE**2)

    alpha, sigma = schedule.alpha_sigma(t.double())
    step = torch.zeros_like(x_t)
    step[:, 1, 0, 1] = 1e-5
    slope = (log_likelihood(x_t + step) - log_likelihood(x_t - step)) / 2e-5
    torch.testing.assert_close((after.x0 - before)[:, 1, 0, 1], sigma**2 / alpha * slope, rtol=1e-5, atol=1e-8)


def test_scale_interval_and_the_end_of_the_image():
    y = torch.ones(3, 4, 4, dtype=torch.float64)
    x_t = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    plain, half, whole = (
        guided_by(pixels(), PATHS["linear"].schedule, y, scale=scale)(x_t, torch.tensor(300.0)).x0
        for scale in (0, 0.5, 1)
    )
    torch.testing.assert_close(half, (plain + whole) / 2)
    outside = guided_by(pixels(), PATHS["linear"].schedule, y, interval=(2.0, 9.0))(x_t, torch.tensor(300.0))
    assert torch.equal(outside.x0, plain)
    mixed = guided_by(pixels(), PATHS["linear"].schedule, y, interval=(0.5, 9.0))
    both = mixed(x_t, torch.tensor([10.0, 300.0])).x0
    torch.testing.assert_close(both[1], whole[1])
    torch.testing.assert_close(both[0], mixed.inner(x_t, torch.tensor(10.0)).x0[0])
    ends = PATHS["flow"].schedule
    at_noise = guided_by(pixels(), ends, y)(x_t, torch.tensor(float(ends.T)))
    assert torch.isfinite(at_noise.x0).all()


def test_labels_and_a_learned_variance_go_through():
    """On both sides of the interval: the data of label k has the mean k."""
    schedule, asked = PATHS["linear"].schedule, []

    class Labelled:
        def __init__(self):
            self.schedule = schedule

        def __call__(self, x_t, t, y=None):
            asked.append(y)
            data = Gaussian(y.double().reshape(-1, 1, 1, 1), torch.ones(1, 1, 1, dtype=torch.float64))
            return replace(data.denoiser(schedule)(x_t, t), between=torch.sigmoid(x_t))

    x_t, y = torch.randn(2, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 3])
    target = torch.zeros(1, 2, 2, dtype=torch.float64)
    guided = MeasurementGuided(Labelled(), 1.0, (0.5, 9.0), measurement=pixels(), y=target, noise=NOISE)
    for t in (10.0, 300.0):
        guess = guided(x_t, torch.tensor(t), y)
        assert torch.equal(guess.between, torch.sigmoid(x_t))
        assert not guess.between.requires_grad
    assert all(each is y for each in asked)
    assert len(asked) == 2


@pytest.mark.parametrize("make", [partial(downsampled, 2), grey])
@pytest.mark.parametrize("covariance", [0.5, torch.tensor([0.5, 0.2])])
def test_a_measurement_without_noise_needs_a_covariance_alone(make, covariance):
    guided_by(make(), PATHS["linear"].schedule, HALF, noise=0.0, covariance=covariance)


def test_gradients_are_recorded_inside_alone():
    x_t = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    guess = guided_by(pixels(), PATHS["linear"].schedule, x_t[0])(x_t, torch.tensor(300.0))
    assert not (guess.x_t.requires_grad or guess.x0.requires_grad or x_t.requires_grad)
    with torch.no_grad():
        again = guided_by(pixels(), PATHS["linear"].schedule, x_t[0])(x_t, torch.tensor(300.0))
        assert not torch.is_grad_enabled()
    assert torch.equal(guess.x0, again.x0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: downsampled(0), "factor must be at least 1, not 0"),
        (lambda: blurred(0), "std must be positive, not 0"),
        (lambda: guided_by(pixels(), PATHS["linear"].schedule, HALF, noise=-1), "noise must be at least 0, not -1"),
        (
            lambda: guided_by(pixels(), PATHS["linear"].schedule, HALF, noise=0.0, covariance=0.0),
            "noise must be positive without a covariance",
        ),
        (
            lambda: guided_by(directions(torch.neg), PATHS["linear"].schedule, HALF, noise=0.0),
            "noise must be positive without a covariance",
        ),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(Refused, match=message):
        make()
