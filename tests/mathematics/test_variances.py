"""Reverse variances against the papers' formulas, written out a second time, and the best one against the optimum."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from diffuse.mathematics.denoiser import Prediction
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.tables import cosine, linear
from diffuse.mathematics.variances import (
    FIXED,
    Analytic,
    fixed_large,
    fixed_small,
    learned,
    reverse_step,
    reverse_steps,
)
from tests.support.gaussian import STD
from tests.support.paths import Path, on_every_path

# From 990, not T: what eps is at pure noise says nothing of x0, and the analytic variance is refused there.
LEVELS = [990, 870, 533, 210, 60, 9, 1]
TIMES = torch.tensor([*LEVELS, 0], dtype=torch.float64)
WHOLE = torch.tensor([1000.0, *LEVELS[1:], 0], dtype=torch.float64)


def guess(between: torch.Tensor | None = None) -> Prediction:
    """A guess of which only the variance's place counts."""
    nothing = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    return Prediction(nothing, nothing, nothing, nothing, nothing, nothing, between)


def exact_eps_squared(path: Path, levels: list[int]) -> dict[float, float]:
    """E ||eps||^2 / d of the best denoiser: eps is sigma (x_t - alpha mean) / V, and V the variance of x_t."""
    found = {}
    for t in levels:
        alpha, sigma = path.alpha_sigma(t)
        found[float(t)] = float(np.mean([sigma**2 / (alpha**2 * std**2 + sigma**2) for std in STD]))
    return found


def test_fixed_variances_are_called_by_their_functions_names():
    assert {name: variance.__name__ for name, variance in FIXED.items()} == {name: name for name in FIXED}


@pytest.mark.parametrize("make", [linear, cosine])
def test_small_and_large_are_the_papers(make):
    """beta-tilde and 1 - alpha_bar_t / alpha_bar_s: Ho et al. 2020, section 3.2, on a subset of levels."""
    schedule = make()
    alpha_bar = [1.0, *np.cumprod(1 - schedule.beta[1:].numpy()).tolist()]
    for step, (t, s) in zip(reverse_steps(schedule, WHOLE)[:-1], pairwise(WHOLE.int().tolist()), strict=False):
        beta = 1 - alpha_bar[t] / alpha_bar[s]
        assert fixed_large(step, guess()).item() == pytest.approx(beta, rel=1e-9)
        tilde = (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * beta
        assert fixed_small(step, guess()).item() == pytest.approx(tilde, rel=1e-9)


@on_every_path
def test_small_and_large_are_bayes_rule(path: Path):
    """Large is the variance x_t has beyond what it took over from x_s; small has the precisions of both added up."""
    for step, (t, s) in zip(reverse_steps(path.schedule, WHOLE)[:-1], pairwise(WHOLE.int().tolist()), strict=False):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = path.alpha_sigma(t), path.alpha_sigma(s)
        added = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        assert fixed_large(step, guess()).item() == pytest.approx(added, rel=1e-9)
        precision = 1 / sigma_s**2 + (alpha_t / alpha_s) ** 2 / added
        assert fixed_small(step, guess()).item() == pytest.approx(1 / precision, rel=1e-9)


@on_every_path
@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_the_last_step_takes_the_small_variance_of_the_step_before(path: Path, variance):
    """Its own posterior has none; beta_1 is far too wide for 8-bit data when levels are skipped."""
    *_, before, last = reverse_steps(path.schedule, WHOLE)
    (alpha_9, sigma_9), (alpha_1, sigma_1) = path.alpha_sigma(9), path.alpha_sigma(1)
    added = sigma_9**2 - (alpha_9 / alpha_1 * sigma_1) ** 2
    assert variance(last, guess()).item() == pytest.approx(added * sigma_1**2 / sigma_9**2, rel=1e-9)
    assert variance(last, guess()) == fixed_small(before, guess())


@on_every_path
@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_a_single_step_takes_the_large_variance(path: Path, variance):
    """There is no step before; sigma_T^2 is all that is left to take."""
    (step,) = reverse_steps(path.schedule, torch.tensor([700.0, 0.0]).double())
    assert variance(step, guess()).item() == pytest.approx(path.alpha_sigma(700)[1] ** 2, rel=1e-9)


def test_steps_of_a_batch_are_those_of_the_grid():
    """Each image at a level of its own, as losses take them, the first and the last level among them."""
    schedule = linear(20, 1e-4, 0.02)
    every = reverse_steps(schedule, torch.arange(20, -1, -1).double())
    t = torch.tensor([20.0, 1.0, 7.0, 2.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    batch = reverse_step(schedule, t, t - 1, torch.clamp(t + 1, max=20))
    assert [step.t.item() for step in every] == list(range(20, 0, -1))
    for row, level in enumerate(t.flatten().int().tolist()):
        one = every[20 - level]
        assert one.s == level - 1
        for many, single in zip(batch.posterior, one.posterior, strict=True):
            assert many[row].item() == pytest.approx(single.item(), rel=1e-12)
        for variance in (fixed_small, fixed_large, learned):
            there = guess(torch.full((4, 1, 1, 1), 0.3, dtype=torch.float64))
            found = variance(batch, there)[row].item()
            assert found == pytest.approx(variance(one, there).flatten()[0].item(), rel=1e-12)
            assert found > 0


@on_every_path
def test_a_learned_variance_lies_between_the_two_for_each_pixel(path: Path):
    """0 is small, 1 is large, and half of the way is their geometric mean: Nichol and Dhariwal 2021, equation 15."""
    between = torch.tensor([0.0, 1.0, 0.5, 0.25], dtype=torch.float64).reshape(1, 1, 2, 2)
    for step in reverse_steps(path.schedule, WHOLE):
        small, large = step.small.item(), step.large.item()
        expected = [small, large, math.sqrt(small * large), math.sqrt(small * math.sqrt(small * large))]
        np.testing.assert_allclose(learned(step, guess(between)).flatten(), expected, rtol=1e-12)
    *_, last = reverse_steps(path.schedule, WHOLE)
    assert last.large.item() == pytest.approx(path.alpha_sigma(1)[1] ** 2, rel=1e-9)


def test_a_network_without_a_variance_has_none():
    step, *_ = reverse_steps(linear(), WHOLE)
    with pytest.raises(AssertionError, match="does not learn the variance"):
        learned(step, guess())


@on_every_path
def test_what_eps_squared_of_the_gaussian_is(gaussian: Gaussian, path: Path):
    """The oracle's own eps, squared and averaged: a square's mean over mean +- std and noise +-1 is the expectation."""
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64).reshape(4, 2, 1, 1, 1)
    x0, noise = gaussian.mean + gaussian.std * signs[:, 0], signs[:, 1].expand(4, 3, 1, 1)
    denoiser = gaussian.denoiser(path.schedule, path.prediction)
    for t, expected in exact_eps_squared(path, LEVELS).items():
        time = torch.tensor(t, dtype=torch.float64)
        found = denoiser(denoiser.schedule.diffuse(x0, time, noise), time).eps.square().mean()
        assert found.item() == pytest.approx(expected, rel=1e-9)


@on_every_path
def test_the_analytic_variance_adds_what_is_not_known_of_x0(path: Path):
    """The mean over pixels of posterior variance + of_x0^2 Var[x0 given x_t], the variance of x_s given x_t alone."""
    variance = Analytic(path.schedule, exact_eps_squared(path, LEVELS), largest=None)
    for step, (t, s) in zip(reverse_steps(path.schedule, TIMES), pairwise([*LEVELS, 0]), strict=True):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = path.alpha_sigma(t), path.alpha_sigma(s)
        added = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        # Without any x0: x_s is N(., alpha_s^2 std^2 + sigma_s^2), and x_t tells of it what it tells of anything.
        ratio = (alpha_t / alpha_s) ** 2
        expected = [1 / (1 / ((alpha_s * std) ** 2 + sigma_s**2) + ratio / added) for std in STD]
        assert variance(step, guess()).item() == pytest.approx(np.mean(expected), rel=1e-7)


def test_the_analytic_variance_of_the_last_step_is_not_nothing():
    """An eps that is too large leaves nothing of E Var[x0 given x_t], and there is no posterior variance there."""
    steps = reverse_steps(linear(), torch.tensor([900.0, 40.0, 7.0, 0.0], dtype=torch.float64))
    nothing, everything = (Analytic(linear(), {900.0: square, 40.0: square, 7.0: square}) for square in (2.0, 0.0))
    assert [nothing(step, guess()).item() for step in steps] == [step.small.item() for step in steps]
    rho_squared = (1 / linear().alpha_bar[7] - 1).item()
    assert everything(steps[-1], guess()).item() == pytest.approx(rho_squared, rel=1e-9)
    assert rho_squared > steps[-1].small


def test_the_analytic_estimate_is_clipped_to_what_is_possible():
    """An estimate from few images can say anything; Var[x0 given x_t] is at least 0, at most rho^2 and at most 1."""
    schedule = linear()
    rho_squared = (1 / schedule.alpha_bar[200] - 1).item()
    assert 0.3 < rho_squared < 0.9

    def clipped(eps_squared: float, largest: float | None) -> float:
        return Analytic(schedule, {200.0: eps_squared}, largest).uncertainty(torch.tensor(200.0).double()).item()

    inside = pytest.approx(0.4 * rho_squared)
    assert [clipped(0.6, largest) for largest in (None, math.inf, 1.0)] == [inside] * 3
    assert clipped(0.6, 0.2 * rho_squared) == pytest.approx(0.2 * rho_squared)
    assert clipped(1.1, 1.0) == 0
    assert clipped(1.1, None) == pytest.approx(-0.1 * rho_squared)
    assert clipped(-0.1, math.inf) == pytest.approx(rho_squared)
    assert clipped(-0.1, None) == pytest.approx(1.1 * rho_squared)
    noisy = Analytic(schedule, {900.0: 0.5}).uncertainty(torch.tensor(900.0).double())
    assert noisy == 1, "half the range of a pixel, squared, unless it is said otherwise"
