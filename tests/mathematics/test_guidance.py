"""Guidance against scores that are known: a mixture of Gaussians, one for each label, and pairs of Gaussians."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from diffuse.mathematics import predictions
from diffuse.mathematics.guidance import Autoguided, ClassifierFree
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.samplers.ddim import ddim
from diffuse.mathematics.spacings import SPACINGS, time_grid
from diffuse.system.errors import Refused
from tests.support import mixture
from tests.support.gaussian import MEAN, STD, column
from tests.support.mixture import NULL, MixtureDenoiser, null, score
from tests.support.paths import PATHS

PREDICTIONS = [predictions.eps, predictions.v, predictions.x0, predictions.flow, predictions.edm]


def images(schedule, t: float, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images and labels in general position."""
    generator = torch.Generator().manual_seed(4)
    x0 = torch.randn(n, 3, 1, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 3, 1, 1, generator=generator, dtype=torch.float64)
    return schedule.diffuse(x0, torch.tensor(t), noise), torch.arange(n) % 3


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [-0.5, 0, 0.3, 1, 4])
def test_the_guided_score_is_that_of_the_two_densities(path, prediction, scale):
    schedule = PATHS[path].schedule
    for share in (0.1, 0.5, 0.9):
        t = torch.tensor(share * schedule.T, dtype=torch.float64)
        x, y = images(schedule, float(t))
        guided = ClassifierFree(MixtureDenoiser(schedule, prediction), scale, null=null)
        expected = scale * score(schedule, x, t, y) + (1 - scale) * score(schedule, x, t, null(y))
        for times in (t, t.expand(len(x))):
            torch.testing.assert_close(guided(x, times, y).score, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("scale", "asked"), [(0, [6]), (1, [6]), (2, [12]), (0.5, [12])])
def test_a_branch_that_does_not_count_is_not_evaluated(scale, asked):
    schedule = PATHS["linear"].schedule
    denoiser = MixtureDenoiser(schedule)
    x, y = images(schedule, 500)
    guided = ClassifierFree(denoiser, scale, null=null)
    guess = guided(x, torch.tensor(500.0), y)
    assert denoiser.asked == asked
    assert guided.calls(guess) == asked[0] // 6


def test_outside_of_the_interval_nothing_is_guided_or_paid_for():
    schedule = PATHS["linear"].schedule
    denoiser = MixtureDenoiser(schedule)
    guided = ClassifierFree(denoiser, 3, interval=(0.5, 5), null=null)
    for t in (10, 300, 900):  # sigma / alpha is 0.06, 1.4 and 88
        denoiser.asked.clear()
        x, y = images(schedule, t)
        guess, plain = guided(x, torch.tensor(float(t)), y), MixtureDenoiser(schedule)(x, torch.tensor(float(t)), y)
        assert denoiser.asked == ([12] if t == 300 else [6])
        assert guided.calls(guess) == (2 if t == 300 else 1)
        assert torch.equal(guess.x0, plain.x0) == (t != 300)


def test_images_with_times_of_their_own_are_guided_one_by_one():
    schedule = PATHS["linear"].schedule
    denoiser = MixtureDenoiser(schedule)
    guided = ClassifierFree(denoiser, 3, interval=(0.5, 5), rescale=0.4, null=null)
    t = torch.tensor([10.0, 300.0, 900.0], dtype=torch.float64)
    x = torch.cat([images(schedule, float(each))[0][:1] for each in t])
    y = torch.tensor([0, 1, 2])
    together = guided(x, t, y).x0
    assert denoiser.asked == [3, 1]
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], guided(x[i : i + 1], t[i], y[i : i + 1]).x0)


@pytest.mark.parametrize("scale", [0, 1, 3])
@pytest.mark.parametrize("options", [{}, {"parallel": 0.0}, {"norm_limit": 0.1}, {"rescale": 0.7}])
def test_no_image_is_guided_otherwise_beside_others(scale, options):
    schedule = PATHS["linear"].schedule
    guided = ClassifierFree(MixtureDenoiser(schedule), scale, interval=(0.5, 5), null=null, **options)
    t = torch.tensor([10.0, 300.0, 350.0, 900.0], dtype=torch.float64)
    x = torch.cat([images(schedule, float(each))[0][:1] for each in t])
    y = torch.tensor([0, 1, 2, 0])
    together = guided(x, t, y).x0
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], guided(x[i : i + 1], t[i], y[i : i + 1]).x0)


def test_levels_at_the_ends_of_the_interval_are_inside():
    schedule = PATHS["linear"].schedule
    alpha, sigma = schedule.alpha_sigma(torch.tensor(300.0, dtype=torch.float64))
    rho = float(sigma / alpha)
    for interval, inside in [
        ((rho * 0.999, rho * 1.001), True),
        ((0.0, rho * 0.999), False),
        ((rho * 1.001, 9.0), False),
    ]:
        guided = ClassifierFree(MixtureDenoiser(schedule), 2, interval=interval, null=null)
        assert bool(guided.active(torch.tensor(300.0))) == inside


def test_a_level_without_any_image_left_is_above_every_finite_level():
    zero = torch.zeros((), dtype=torch.float64)
    denoiser = MixtureDenoiser(PATHS["linear"].schedule)
    assert not ClassifierFree(denoiser, 2, interval=(0.0, 100.0), null=null).inside(zero, zero + 1)
    assert ClassifierFree(denoiser, 2, interval=(0.5, math.inf), null=null).inside(zero, zero + 1)


def test_the_ends_of_the_interval_belong_to_it():
    """On the straight path alpha = sigma = 1/2, both exact, is the level 1."""
    middle = torch.tensor(500.0, dtype=torch.float64)
    for interval, inside in [((1.0, 2.0), True), ((0.5, 1.0), True), ((0.5, 0.999), False), ((1.001, 2.0), False)]:
        guided = ClassifierFree(MixtureDenoiser(PATHS["flow"].schedule), 2, interval=interval, null=null)
        assert bool(guided.active(middle)) == inside


@pytest.mark.parametrize("prediction", [predictions.eps, predictions.v])
def test_rescaling_gives_the_output_the_deviation_of_the_conditional_one(prediction):
    schedule = PATHS["linear"].schedule
    t = torch.tensor(400.0)
    x, y = images(schedule, 400)
    main = MixtureDenoiser(schedule, prediction)(x, t, y)
    plain = ClassifierFree(MixtureDenoiser(schedule, prediction), 5, null=null)(x, t, y)
    whole = ClassifierFree(MixtureDenoiser(schedule, prediction), 5, rescale=1.0, null=null)(x, t, y)
    third = ClassifierFree(MixtureDenoiser(schedule, prediction), 5, rescale=0.3, null=null)(x, t, y)
    expected = main.eps if prediction is predictions.eps else main.v
    output = whole.eps if prediction is predictions.eps else whole.v
    torch.testing.assert_close(output.flatten(1).std(1), expected.flatten(1).std(1))
    torch.testing.assert_close(third.x0, 0.3 * whole.x0 + 0.7 * plain.x0)  # x0 is affine in the output


def test_projected_guidance_moves_at_right_angles_and_not_too_far():
    schedule = PATHS["linear"].schedule
    t = torch.tensor(400.0)
    x, y = images(schedule, 400)
    main, other = (MixtureDenoiser(schedule)(x, t, labels).x0.flatten(1).numpy() for labels in (y, null(y)))
    norms = np.linalg.norm(main - other, axis=1)
    limit = float(np.median(norms))  # some are longer, some are not
    found = ClassifierFree(MixtureDenoiser(schedule), 4, parallel=0.25, norm_limit=limit, null=null)(x, t, y)
    assert (norms > limit).any() and (limit / 2 < norms[norms < limit]).any()
    for i in range(len(x)):  # Sadat et al. 2025, algorithm 1, image by image
        delta = main[i] - other[i]
        delta *= min(1, limit / np.linalg.norm(delta))
        unit = main[i] / np.linalg.norm(main[i])
        along = (delta @ unit) * unit
        expected = main[i] + 3 * ((delta - along) + 0.25 * along)
        np.testing.assert_allclose(found.x0[i].flatten().numpy(), expected, rtol=1e-12)


def test_a_learned_variance_is_that_of_the_label():
    schedule = PATHS["linear"].schedule

    class Learned(MixtureDenoiser):
        def output(self, x_t, t, y, coefficients):
            return torch.cat([super().output(x_t, t, y, coefficients), y.reshape(-1, 1, 1, 1).expand(x_t.shape)], 1)

    x, y = images(schedule, 400)
    denoiser = Learned(schedule)
    denoiser.learned_variance = True
    guess = ClassifierFree(denoiser, 2, null=null)(x, torch.tensor(400.0), y)
    torch.testing.assert_close(guess.between[:, 0, 0, 0] * 2 - 1, y.double())
    # At scale 0 it is that of the null label, of the images that are guided alone.
    t = torch.tensor([10.0, 300.0, 900.0, 300.0, 300.0, 10.0])
    some = ClassifierFree(denoiser, 0, interval=(0.5, 5), null=null)(x, t, y)
    torch.testing.assert_close(some.between[:, 0, 0, 0] * 2 - 1, torch.where(t == 300, NULL, y).double())


def test_autoguidance_is_its_formula_and_its_sampler_has_the_moments_of_its_ode():
    """Of two Gaussians the guided prediction is affine in x, so the mean and the deviation follow a linear ODE."""
    schedule, scale = PATHS["linear"].schedule, 1.7
    worse = Gaussian(column([0.0, -0.4, 0.2]), column([0.5, 1.0, 1.2]))
    data = Gaussian(column(MEAN), column(STD))
    guided = Autoguided(data.denoiser(schedule), scale, worse=worse.denoiser(schedule))
    x = torch.randn(5, 3, 1, 1, dtype=torch.float64)
    t = torch.tensor(321.0)
    alpha, sigma = schedule.alpha_sigma(t.double())
    expected = worse.posterior_mean(x, alpha, sigma) * (1 - scale) + scale * data.posterior_mean(x, alpha, sigma)
    torch.testing.assert_close(guided(x, t).x0, expected)

    times = time_grid(schedule, 1000, SPACINGS["uniform"])[:-1]  # to t = 1
    *_, ends = ddim(guided, torch.stack([x[0], x[1]]), times)
    (alphas, sigmas) = schedule.alpha_sigma(times)
    rho = (sigmas / alphas).numpy()

    def slope(r, y):  # dy/d rho = (y - D) / rho in y = x / alpha; Karras et al. 2022, equation 4
        def mean(g):
            m, s = g.mean.flatten().numpy(), g.std.flatten().numpy()
            return m + s**2 / (s**2 + r**2) * (y - m)

        return (y - scale * mean(data) - (1 - scale) * mean(worse)) / r

    for i in range(2):
        start = x[i].flatten().numpy() / float(alphas[0])
        solved = solve_ivp(slope, (rho[0], rho[-1]), start, rtol=1e-10, atol=1e-12, method="LSODA").y[:, -1]
        np.testing.assert_allclose(ends[i].flatten().numpy() / float(alphas[-1]), solved, rtol=2e-2, atol=5e-3)


def test_a_worse_network_with_labels_is_given_them():
    schedule, t = PATHS["linear"].schedule, torch.tensor(400.0)
    x, y = images(schedule, 400)
    other = torch.roll(y, 1)
    guided = Autoguided(
        MixtureDenoiser(schedule), 2, worse=lambda x_t, t, y: MixtureDenoiser(schedule)(x_t, t, torch.roll(y, 1))
    )
    main, worse = (MixtureDenoiser(schedule)(x, t, labels).x0 for labels in (y, other))
    torch.testing.assert_close(guided(x, t, y).x0, 2 * main - worse)


def test_without_labels_images_with_times_of_their_own_are_guided_one_by_one_too():
    schedule, t = PATHS["linear"].schedule, torch.tensor([10.0, 300.0])
    better, worse = (Gaussian(column(MEAN), column(STD) * factor).denoiser(schedule) for factor in (1, 2))
    x, _ = images(schedule, 300, 2)
    found = Autoguided(better, 3, interval=(0.5, 5), worse=worse)(x, t).x0
    expected = torch.stack([better(x, t).x0[0], 3 * better(x, t).x0[1] - 2 * worse(x, t).x0[1]])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{"parallel": 0.25}, {"rescale": 0.7}, {"norm_limit": 0.5}])
def test_what_is_of_an_image_is_taken_over_all_of_its_values(options):
    """The same values as three channels of a pixel and as three pixels of a channel."""
    schedule, t = PATHS["linear"].schedule, torch.tensor(400.0)
    x, y = images(schedule, 400)

    def as_a_row(x_t, t, y):
        guess = MixtureDenoiser(schedule)(x_t.reshape(-1, 3, 1, 1), t, y)
        return replace(guess, x_t=x_t, x0=guess.x0.reshape(x_t.shape))

    as_a_row.schedule = schedule
    of_channels = ClassifierFree(MixtureDenoiser(schedule), 4, null=null, **options)(x, t, y).x0
    of_pixels = ClassifierFree(as_a_row, 4, null=null, **options)(x.reshape(-1, 1, 1, 3), t, y).x0
    torch.testing.assert_close(of_pixels.flatten(1), of_channels.flatten(1))


def test_an_unconditional_worse_network_is_not_given_labels():
    schedule = PATHS["linear"].schedule
    asked = []

    def worse(x_t, t, y=None):
        asked.append(y)
        return MixtureDenoiser(schedule)(x_t, t, null(labels))

    x, labels = images(schedule, 400)
    guided = Autoguided(MixtureDenoiser(schedule), 2, worse=worse, labels=False)
    free = ClassifierFree(MixtureDenoiser(schedule), 2, null=null)
    torch.testing.assert_close(guided(x, torch.tensor(400.0), labels).x0, free(x, torch.tensor(400.0), labels).x0)
    assert asked == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": math.inf}, "scale must be a finite number, not inf"),
        ({"interval": (2.0, 1.0)}, "interval must be .low, high., two noise levels"),
        ({"interval": (-1.0, 1.0)}, "interval must be"),
        ({"rescale": 1.1}, "rescale must be between 0 and 1, not 1.1"),
        ({"interval": (2.0, 2.0)}, r"with 0 <= low < high, not \[2.0, 2.0\]"),
        ({"parallel": -0.1}, "parallel must be between 0 and 1, not -0.1"),
        ({"parallel": 1.5}, "parallel must be between 0 and 1, not 1.5"),
        ({"norm_limit": 0.0}, "norm_limit must be positive, not 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(Refused, match=message):
        ClassifierFree(MixtureDenoiser(PATHS["linear"].schedule), null=mixture.null, **options)
