"""RePaint: its jumps against the paper's code, and what it draws against an exact conditional distribution."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffuse.mathematics.denoiser import Denoiser, Noise
from diffuse.mathematics.editing import KnownPixels
from diffuse.mathematics.oracles import ExactDenoiser
from diffuse.mathematics.samplers.ancestral import ancestral
from diffuse.mathematics.samplers.repaint import repaint, walked
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.spacings import log_snr, time_grid
from diffuse.mathematics.tables import linear
from diffuse.mathematics.variances import fixed_large, fixed_small, learned, reverse_steps
from diffuse.mathematics.wrappers import Observed
from tests.support.paths import on_every_path
from tests.support.samplers import COARSE, Wavy, last, normal64

MEAN = torch.tensor([0.4, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.42], [0.42, 0.6]], dtype=torch.float64)
KNOWN = 1.1  # the first pixel
EXPECTED_MEAN = float(MEAN[1] + COVARIANCE[1, 0] / COVARIANCE[0, 0] * (KNOWN - MEAN[0]))
EXPECTED_VARIANCE = float(COVARIANCE[1, 1] - COVARIANCE[1, 0] ** 2 / COVARIANCE[0, 0])


class TwoPixels:
    """A Gaussian of two correlated pixels."""

    def posterior_mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        noisy = alpha**2 * COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64)
        gain = alpha * COVARIANCE @ torch.linalg.inv(noisy)
        return (MEAN + (x_t.flatten(1) - alpha * MEAN) @ gain.T).reshape(x_t.shape)


def moments(schedule: Schedule, times: Tensor, **options) -> tuple[float, float]:
    """Mean and variance of the second pixel, exactly: all is affine in x_T and each noise, one row for each of them."""
    image = torch.tensor([KNOWN, 0], dtype=torch.float64).reshape(1, 1, 1, 2)
    known = torch.tensor([True, False]).reshape(1, 1, 1, 2)
    denoiser = KnownPixels(ExactDenoiser(TwoPixels(), schedule), image, known)
    sampler = repaint if options else ancestral

    def run(rows: int, noise: Noise) -> Tensor:
        x = torch.zeros(rows, 1, 1, 2, dtype=torch.float64)
        x[1:3].reshape(2, 2).copy_(torch.eye(2))
        return last(sampler(denoiser, x, times, variance=fixed_small, noise=noise, **options))

    count = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return torch.zeros_like(x)

    run(3, counted)
    place = 1

    def one_at_a_time(x: Tensor) -> Tensor:
        nonlocal place
        z = torch.zeros_like(x)
        z[2 * place + 1, 0, 0, 0] = z[2 * place + 2, 0, 0, 1] = 1
        place += 1
        return z

    found = run(2 * count + 3, one_at_a_time)
    assert (found[:, 0, 0, 0] == KNOWN).all()
    free = found[:, 0, 0, 1]
    return float(free[0]), float(((free[1:] - free[0]) ** 2).sum())


def test_resampling_draws_from_the_conditional_distribution():
    """Replacement alone draws the unknown pixel far from it, and each further resampling brings it nearer."""
    schedule = linear()
    times = time_grid(schedule, 60, log_snr)
    errors = []
    for options in ({}, {"resamplings": 2, "jump_length": 3}, {"resamplings": 10, "jump_length": 3}):
        mean, variance = moments(schedule, times, **options)
        errors.append((abs(mean - EXPECTED_MEAN), abs(variance / EXPECTED_VARIANCE - 1)))
    (none, none_of_variance), (some, _), (many, many_of_variance) = errors
    assert none > 0.25
    assert some < 0.7 * none
    assert many < 0.2 * none
    assert none_of_variance > 0.25
    assert many_of_variance < 0.12  # what the steps of 60 leave


def test_one_walk_without_jumps_is_replacement_with_new_noise():
    """Algorithm 1 with U = 1, written out."""
    schedule, image, known = linear(), normal64(4, 3, 1, 2, 2), torch.tensor([[True, False], [False, True]])[None, None]
    denoiser = KnownPixels(Denoiser(Wavy(), schedule), image, known)
    noises = [normal64(seed, 3, 1, 2, 2) for seed in range(30)]
    draws = iter(noises)
    x = normal64(2, 3, 1, 2, 2)
    found = list(repaint(denoiser, x, COARSE, resamplings=1, noise=lambda _: next(draws)))
    again = iter(noises)
    for place, (t, s) in enumerate(pairwise(COARSE)):
        x = next(ancestral(denoiser, x, torch.stack([t, s]), noise=torch.zeros_like))
        if s > 0:
            (alpha_t, _), (alpha, sigma) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
            unknown = x + (1 - (alpha_t / alpha) ** 2).sqrt() * next(again)
            x = torch.where(known, alpha * image + sigma * next(again), unknown)
        torch.testing.assert_close(found[place], x)


@on_every_path
def test_a_jump_back_is_the_forward_process(path):
    """x_t after a jump has the mean alpha_t / alpha_s x_s and the variance of q(x_t given x_s), on every path."""
    states: list[Tensor] = []
    ones: list[Tensor] = []

    def noise(x: Tensor) -> Tensor:
        ones.append(torch.full_like(x, 0.3))
        return ones[-1]

    x = path.prior_std * normal64(2, 2, 1, 2, 2)
    denoiser = Denoiser(Wavy(), path.schedule, path.prediction)
    states = [x, *repaint(denoiser, x, COARSE, resamplings=2, jump_length=2, noise=noise)]
    places = walked(7, 2, 2)
    jumps = 0
    for (before, after), (start, end) in zip(pairwise(places), pairwise(states), strict=True):
        if after < before:
            (alpha_t, sigma_t), (alpha_s, sigma_s) = (path.alpha_sigma(float(COARSE[at])) for at in (after, before))
            variance = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
            torch.testing.assert_close(end, alpha_t / alpha_s * start + 0.3 * variance**0.5, rtol=1e-6, atol=1e-9)
            jumps += 1
    assert jumps == 3


def papers_times(steps: int, resamplings: int, jump_length: int) -> list[int]:
    """`get_schedule_jump` of the paper's code, in which -1 is data and steps - 1 the first time."""
    jumps = dict.fromkeys(range(0, steps - jump_length, jump_length), resamplings - 1)
    t, times = steps, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    return [*times, -1]


@pytest.mark.parametrize(
    ("steps", "resamplings", "jump_length"), [(7, 1, 1), (7, 2, 1), (9, 3, 2), (12, 4, 5), (250, 10, 10), (6, 2, 5)]
)
def test_the_jumps_are_those_of_the_papers_code(steps, resamplings, jump_length):
    """There a jump is taken level by level; here at once, which is the same distribution."""
    level_by_level = []
    for before, after in pairwise(walked(steps, resamplings, jump_length)):
        level_by_level += [after] if after > before else range(before - 1, after - 1, -1)
    assert [steps - 1 - place for place in [0, *level_by_level]] == papers_times(steps, resamplings, jump_length)


@pytest.mark.parametrize(
    ("steps", "resamplings", "jump_length"), [(7, 1, 1), (7, 3, 1), (9, 3, 2), (9, 2, 8), (8, 3, 3), (1, 5, 1)]
)
def test_evaluations_are_counted(steps, resamplings, jump_length):
    seen: list[object] = []
    denoiser = Observed(Denoiser(Wavy(), linear()), seen.append)
    options = {"resamplings": resamplings, "jump_length": jump_length}
    last(repaint(denoiser, normal64(1, 1, 1, 2, 2), time_grid(linear(), steps), **options))
    counted = repaint.evaluations(steps, **options)
    assert (len(seen), type(counted)) == (counted, int)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamplings": 0}, "resamplings must be at least 1, not 0"),
        ({"jump_length": 0}, "jump_length must be at least 1 and below 7, the number of steps, not 0"),
        ({"jump_length": 7}, "jump_length must be at least 1 and below 7, the number of steps, not 7"),
    ],
)
def test_jumps_that_no_grid_has_are_refused(options, message):
    with pytest.raises(ValueError) as caught:
        next(repaint(Denoiser(Wavy(), linear()), normal64(1, 1, 1, 2, 2), COARSE, **options))
    assert str(caught.value) == message


def test_a_learned_variance_and_labels_are_of_use():
    """The variance between the smallest and the largest that the network predicts for each pixel."""
    asked: list[Tensor | None] = []

    def net(x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
        asked.append(y)
        return torch.cat([0.3 * x, torch.linspace(-1, 1, 4).reshape(1, 1, 2, 2).expand(x.shape).to(x)], dim=1)

    denoiser, y = Denoiser(net, linear(), learned_variance=True), torch.tensor([5])
    x = normal64(1, 1, 1, 2, 2)
    first = next(repaint(denoiser, x, COARSE, y, variance=learned, noise=torch.ones_like))
    bare = next(repaint(denoiser, x, COARSE, y, variance=learned, noise=torch.zeros_like))
    step = reverse_steps(linear(), COARSE)[0]
    torch.testing.assert_close(first - bare, learned(step, denoiser(x, COARSE[0], y)).sqrt())
    assert all(each is y for each in asked)


def test_it_is_of_use_with_any_variance():
    found = [
        last(repaint(Denoiser(Wavy(), linear()), normal64(1, 1, 1, 2, 2), COARSE, variance=each, noise=torch.ones_like))
        for each in (fixed_small, fixed_large)
    ]
    assert not torch.equal(*found)
