"""The few-step samplers against their formulas written out a second time: weights, noise, starts.

Orders are in `test_sampler_orders.py`, other implementations in `test_fast_samplers_diffusers.py`.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from scipy.integrate import quad
from torch import Tensor

from diffuse.mathematics.continuous import Flow
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.predictions import x0 as x0_prediction
from diffuse.mathematics.samplers.adaptive import dormand_prince
from diffuse.mathematics.samplers.dpm_solver import dpm_solver, dpm_solver_singlestep
from diffuse.mathematics.samplers.exponential import Form
from diffuse.mathematics.samplers.heun import heun
from diffuse.mathematics.samplers.linear_multistep import deis, integrated, ipndm, lms, pndm
from diffuse.mathematics.samplers.unipc import unipc
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.tables import linear
from diffuse.mathematics.wrappers import Clipped, DynamicallyClipped, EpsScaled, Observed
from tests.support.gaussian import MEAN, STD
from tests.support.paths import PATHS, Path, on_every_path
from tests.support.samplers import COARSE, LEVELS, Wavy, last, moments_of, normal64

FINITE = pytest.mark.parametrize("path", [path for path in PATHS.values() if not path.forgets])


@pytest.mark.parametrize("form", [Form(True), Form(False), Form(True, 0.7), Form(False, 0.7)])
@pytest.mark.parametrize("h", [1e-3, 0.4, 6.0])
def test_weights_are_the_exact_integrals_of_polynomials(form: Form, h: float):
    """Of any parabola through its values at three places: against scipy's quadrature."""
    parabola, length = Polynomial([0.3, -1.1, 0.8]), form.distance(h)
    places = [0.0, *(form.distance(-h) * np.array([0.7, 2.0]))]
    rate = 1.7 if form.in_x0 and form.eta else 1.0
    exact, _ = quad(lambda u: rate * math.exp(rate * (u - length)) * parabola(u), 0, length, epsabs=0, epsrel=1e-12)
    found = np.dot(form.exact(places, length), parabola(np.array(places)))
    assert found == pytest.approx(exact, rel=1e-9)
    assert sum(form.exact(places[:1], length)) == pytest.approx(form.total(length), rel=1e-12)


@FINITE
@pytest.mark.parametrize("space", ["rho", "log_rho", "t"])
def test_adams_coefficients_are_means_of_lagranges_polynomials(path: Path, space: str):
    """sum c_j f(t_j) (rho_s - rho_t) = integral f drho for every parabola f in rho, log rho or t."""
    parabola, times = Polynomial([0.5, -0.2, 0.1]), [533, 700, 870]
    where = {"rho": lambda rho: rho, "log_rho": math.log, "t": lambda rho: inverse(path, rho)}[space]
    rho = {t: path.alpha_sigma(t)[1] / path.alpha_sigma(t)[0] for t in (*times, 400)}
    scale = abs(where(rho[533]))
    exact, _ = quad(lambda r: parabola(where(r) / scale), rho[533], rho[400], epsabs=0, epsrel=1e-10)
    grid = [torch.tensor(float(t), dtype=torch.float64) for t in (*times, 400)]
    coefficients = integrated(path.schedule, space, grid[:3], grid[3])
    found = np.dot(coefficients, [parabola(where(rho[t]) / scale) for t in times]) * (rho[400] - rho[533])
    assert found == pytest.approx(exact, rel=1e-5 if space == "t" and path.schedule.discrete else 1e-9)
    assert sum(coefficients) == pytest.approx(1, rel=1e-12)


def inverse(path: Path, rho: float) -> float:
    return float(path.schedule.time(torch.tensor(-2 * math.log(rho), dtype=torch.float64)))


def affine(path: Path, t: float, m: float, std: float) -> tuple[float, float]:
    """E[x0 given x_t] = offset + gain x_t."""
    alpha, sigma = path.alpha_sigma(t)
    gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
    return m - gain * alpha * m, gain


@FINITE
@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("form", ["x0", "eps"])
def test_sde_dpm_solver_has_the_exact_moments(gaussian: Gaussian, path: Path, form: str, eta: float):
    """Order 2 with eta, the recursion written out from Lu et al.'s SDE; in k-diffusion's form for x0."""
    denoiser = gaussian.denoiser(path.schedule, path.prediction)
    options = {"form": form, "eta": eta}
    mean, variance = moments_of(lambda x, noise: dpm_solver(denoiser, x, COARSE, noise=noise, **options), 6)
    for channel, (m, std) in enumerate(zip(MEAN, STD, strict=True)):
        # x as coefficients of (1, x_T, z_1, ..., z_6), which are independent
        x, previous, step_before, draws = np.eye(8)[1], None, None, iter(np.eye(8)[2:])
        for t, s in pairwise([*LEVELS, 0]):
            offset, gain = affine(path, t, m, std)
            x0 = offset * np.eye(8)[0] + gain * x
            (alpha_t, sigma_t), (alpha_s, sigma_s) = path.alpha_sigma(t), path.alpha_sigma(s)
            if s == 0:
                x = x0
                continue
            h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
            value = x0 if form == "x0" else (x - alpha_t * x0) / sigma_t
            slope = 0 if previous is None else (value - previous) / step_before * h / 2
            if form == "x0":
                kept = sigma_s / sigma_t * math.exp(-eta * h)
                x = kept * x + alpha_s * (1 - math.exp(-(1 + eta) * h)) * (value + slope)
                added = sigma_s * math.sqrt(1 - math.exp(-2 * eta * h))
            else:
                x = alpha_s / alpha_t * x - (1 + eta) * sigma_s * math.expm1(h) * (value + slope)
                added = sigma_s * math.sqrt(eta * math.expm1(2 * h))
            x = x + added * next(draws)
            previous, step_before = value, h
        np.testing.assert_allclose([mean[channel], variance[channel]], [x[0], (x[1:] ** 2).sum()], rtol=1e-8)


@FINITE
@pytest.mark.parametrize("churn", [0.5, 100.0])
def test_heun_with_churn_has_the_exact_moments(gaussian: Gaussian, path: Path, churn: float):
    """Karras et al. 2022, algorithm 2, in y = x / alpha, with S_min, S_max and S_noise; T is not exceeded."""
    rho = {t: path.alpha_sigma(t)[1] / path.alpha_sigma(t)[0] if t else 0.0 for t in [*LEVELS, 0]}
    low, high, size = rho[9] * 0.9, rho[870] * 1.1, 1.01
    gamma = min(churn / 7, math.sqrt(2) - 1)
    raised = [t for t in LEVELS[1:] if low <= rho[t] <= high]
    denoiser = gaussian.denoiser(path.schedule, path.prediction)
    options = {"churn": churn, "churn_min": low, "churn_max": high, "churn_noise": size}
    mean, variance = moments_of(lambda x, noise: heun(denoiser, x, COARSE, noise=noise, **options), len(raised))
    for channel, (m, std) in enumerate(zip(MEAN, STD, strict=True)):
        basis = np.eye(2 + len(raised))
        y, draws = basis[1] / path.alpha_sigma(1000)[0], iter(basis[2:])

        def d(y: np.ndarray, rho: float, m: float = m, std: float = std, basis: np.ndarray = basis) -> np.ndarray:
            gain = std**2 / (std**2 + rho**2)
            return (y - (m * (1 - gain) * basis[0] + gain * y)) / rho

        for t, s in pairwise([*LEVELS, 0]):
            now = rho[t]
            if t in raised:
                now = min(rho[t] * (1 + gamma), rho[1000])
                y = y + math.sqrt(now**2 - rho[t] ** 2) * size * next(draws)
            euler = y + (rho[s] - now) * d(y, now)
            y = y + (rho[s] - now) / 2 * (d(y, now) + d(euler, rho[s])) if s else euler
        np.testing.assert_allclose([mean[channel], variance[channel]], [y[0], (y[1:] ** 2).sum()], rtol=1e-7)


def test_heun_raises_no_noise_above_that_of_training():
    """At T itself none is added, and a level just below it goes up to T."""
    asked: list[float] = []

    def net(x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
        asked.append(float(time[0]) + 1)
        return 0.2 * x

    times = torch.tensor([1000, 995, 300, 0], dtype=torch.float64)
    last(heun(Denoiser(net, linear()), normal64(1, 1, 1, 2, 2), times, order=1, churn=1.2))
    assert asked[:2] == [1000, pytest.approx(1000)]
    assert 300 < asked[2] < 400


@pytest.mark.parametrize("order", [2, 3])
def test_singlestep_methods_ask_between_the_times_of_the_grid_alone(order: int):
    """At thirds, or the middle, of each step in lambda; nothing below the grid's last time above 0."""
    asked: list[float] = []

    def net(x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
        asked.append(float(time[0]) + 1)
        return 0.2 * x

    schedule = linear()
    last(dpm_solver_singlestep(Denoiser(net, schedule), normal64(1, 1, 1, 2, 2), COARSE, order=order))
    lambdas = (schedule.log_snr(torch.tensor(asked, dtype=torch.float64)) / 2).tolist()
    ends = (schedule.log_snr(COARSE[:-1]) / 2).tolist()
    for place, (start, end) in enumerate(pairwise(ends)):
        expected = [start + part * (end - start) / order for part in range(order)]
        assert lambdas[place * order : (place + 1) * order] == pytest.approx(expected, rel=1e-6)
    assert len(asked) == 6 * order + 1
    assert min(asked) == pytest.approx(1)


@on_every_path
@pytest.mark.parametrize("sampler", [dpm_solver, unipc, lms, deis, ipndm])
def test_all_begin_like_ddim(path: Path, sampler):
    """The first step has a single evaluation behind it, and so is DDIM's."""
    denoiser, x = Denoiser(Wavy(), path.schedule, path.prediction), path.prior_std * normal64(3, 2, 1, 2, 2)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = path.alpha_sigma(1000), path.alpha_sigma(870)
    x0 = denoiser(x, COARSE[0]).x0
    expected = alpha_s * x0 + sigma_s * (x - alpha_t * x0) / sigma_t
    torch.testing.assert_close(next(sampler(denoiser, x, COARSE)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", [dpm_solver, unipc, lms, deis, ipndm, pndm])
def test_what_was_predicted_at_pure_noise_is_not_used_again(sampler):
    """From the second time on, it is as if the sampler had begun there."""
    denoiser, grid = Denoiser(Wavy(), Flow(), PATHS["flow"].prediction), time_grid(Flow(), 6)
    first, *rest = sampler(denoiser, normal64(3, 2, 1, 2, 2), grid)
    for ours, begun in zip(rest, sampler(denoiser, first, grid[1:]), strict=True):
        torch.testing.assert_close(ours, begun, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "sampler", [heun, dpm_solver, dpm_solver_singlestep, unipc, lms, deis, ipndm, pndm, dormand_prince]
)
def test_every_evaluation_is_told_the_labels(sampler):
    """Those of its images, by every sampler and through every wrapper."""
    asked: list[Tensor] = []

    def net(x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
        asked.append(y)
        return 0.2 * x

    labels = torch.tensor([3, 7])
    inner = Denoiser(net, linear())
    wrapped = Observed(Clipped(DynamicallyClipped(EpsScaled(inner, 1.01, 1.02))), lambda guess: None)
    starts = [{"start": start} for start in ("plms", "runge_kutta")] if sampler is pndm else [{}]
    orders = [{"order": order} for order in (2, 3)] if sampler is dpm_solver_singlestep else starts
    for options in orders:
        last(sampler(wrapped, normal64(1, 2, 1, 2, 2), COARSE, labels, **options))
    assert len(asked) >= 7
    assert all(y is not None and set(y.tolist()) <= {3, 7} for y in asked)
    assert any(y.tolist() == [3, 7] for y in asked)


def test_churn_alone_raises_every_level_by_what_is_right():
    """By default churn_min is 0, churn_max infinite, churn_noise 1: the first two steps written out."""
    denoiser, x, z = Denoiser(Wavy(), linear()), normal64(1, 1, 1, 2, 2), normal64(2, 1, 1, 2, 2)
    times = torch.tensor([900, 300, 0], dtype=torch.float64)
    found = next(heun(denoiser, x, times, order=1, churn=0.4, noise=lambda _: z))
    schedule = linear()
    rho = math.exp(-float(schedule.log_snr(times[0])) / 2)
    raised = schedule.time(torch.tensor(-2 * math.log(1.2 * rho), dtype=torch.float64))
    (alpha, _), (alpha_up, _) = schedule.alpha_sigma(times[0]), schedule.alpha_sigma(raised)
    y = x / alpha + rho * math.sqrt(1.2**2 - 1) * z
    guess = denoiser(alpha_up * y, raised)
    (alpha_s, sigma_s) = schedule.alpha_sigma(times[1])
    torch.testing.assert_close(found, alpha_s * guess.x0 + sigma_s * guess.eps, rtol=1e-7, atol=1e-7)


def test_a_lower_final_order_uses_fewer_evaluations_before_the_last_step():
    """With order 3, the step before the one to 0 is that of order 2; the others are as they were."""
    x, denoiser = normal64(4, 2, 1, 2, 2), Denoiser(Wavy(), linear())
    for sampler in (dpm_solver, unipc):
        lower, full = (list(sampler(denoiser, x, COARSE, order=3, lower_order_final=final)) for final in (True, False))
        same = [torch.equal(a, b) for a, b in zip(lower, full, strict=True)]
        assert same == [True] * 5 + [False] * 2
        by_default = list(sampler(denoiser, x, COARSE, order=3))
        assert torch.equal(by_default[-1], lower[-1])


@pytest.mark.parametrize("form", ["x0", "eps"])
def test_a_step_of_the_sde_from_pure_noise_keeps_nothing_of_x(form: str):
    """e^-h is 0: x_s = alpha_s x0 + sigma_s z, in either form."""
    schedule, z = Flow(), normal64(1, 2, 1, 2, 2)
    times = torch.tensor([1000.0, 600.0], dtype=torch.float64)
    denoiser = Denoiser(lambda x, time, y: torch.full_like(x, 0.25), schedule, x0_prediction)
    x_s = last(dpm_solver(denoiser, normal64(2, 2, 1, 2, 2), times, form=form, eta=1.0, noise=lambda x: z))
    alpha_s, sigma_s = schedule.alpha_sigma(times[1])
    torch.testing.assert_close(x_s, 0.25 * alpha_s + sigma_s * z, rtol=1e-12, atol=1e-12)
