"""Samplers against exact maps and moments, a measured order, and the papers' algorithms written out a second time.

`test_samplers_diffusers.py` holds whole trajectories against another implementation, `test_samplers_moments.py` what
needs many steps or many samples.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from diffuse.mathematics import predictions
from diffuse.mathematics.continuous import Flow
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.samplers.ancestral import ancestral
from diffuse.mathematics.samplers.ddim import analytic_ddim, ddim
from diffuse.mathematics.samplers.dpm_solver import dpm_solver_singlestep
from diffuse.mathematics.samplers.heun import heun
from diffuse.mathematics.samplers.langevin import annealed_langevin, predictor_corrector
from diffuse.mathematics.samplers.linear_multistep import pndm
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.tables import linear
from diffuse.mathematics.variances import Analytic, fixed_large, fixed_small, learned
from diffuse.mathematics.wrappers import Clipped, Observed
from diffuse.system.files import CONFIGS
from tests.support.gaussian import MEAN, STD
from tests.support.paths import PATHS, Path, on_every_path
from tests.support.samplers import COARSE, LEVELS, SAMPLERS, Wavy, last, moments_of, normal64


class Twice(Wavy):
    """The same with a second half of channels, the learned variance."""

    def forward(self, x, time, y=None):
        return super().forward(torch.cat([x, 3 * x], 1), time)


def scale_of_ddim(t: tuple[float, float], s: tuple[float, float], std: float) -> float:
    """By what a DDIM step of the exact denoiser multiplies x - alpha mean, when eta is 0."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = t, s
    return (alpha_s * alpha_t * std**2 + sigma_s * sigma_t) / ((alpha_t * std) ** 2 + sigma_t**2)


@on_every_path
def test_ddim_of_the_gaussian_is_its_exact_product(gaussian: Gaussian, path: Path):
    """Each step is affine, so seven coarse steps are a product of seven factors."""
    x = normal64(0, 16, 3, 2, 2)

    def noise(x: Tensor) -> Tensor:
        raise AssertionError("a deterministic sampler draws nothing")

    found = last(ddim(gaussian.denoiser(path.schedule, path.prediction), x, COARSE, noise=noise))
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        levels = pairwise(path.alpha_sigma(t) for t in [*LEVELS, 0])
        factor = math.prod(scale_of_ddim(t, s, std) for t, s in levels)
        expected = mean + factor * (x[:, channel] - path.alpha_sigma(1000)[0] * mean)
        torch.testing.assert_close(found[:, channel], expected, rtol=1e-10, atol=1e-10)


@on_every_path
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (ancestral, {"variance": fixed_small}),
        (ancestral, {"variance": fixed_large}),
        (ancestral, {}),
        (ddim, {"eta": 0.7}),
        (ddim, {"eta": 1.0}),
    ],
)
def test_stochastic_samplers_have_the_exact_moments(gaussian: Gaussian, path: Path, sampler, options):
    """Those of the papers' steps, written out below; no noise is drawn on the step to 0."""
    denoiser = gaussian.denoiser(path.schedule, path.prediction)
    mean, variance = moments_of(lambda x, noise: sampler(denoiser, x, COARSE, noise=noise, **options), len(LEVELS) - 1)
    for channel, (m, std) in enumerate(zip(MEAN, STD, strict=True)):
        expected = moments(path, m, std, sampler, options)
        np.testing.assert_allclose([mean[channel], variance[channel]], expected, rtol=1e-9)


def moments(path: Path, m: float, std: float, sampler, options: dict) -> tuple[float, float]:
    """Mean and variance of x_0 when x_T is N(0, 1), carried through the papers' steps one after the other."""
    mean, variance = 0.0, 1.0
    for t, s in pairwise([*LEVELS, 0]):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = path.alpha_sigma(t), path.alpha_sigma(s)
        kept = alpha_t / alpha_s
        beta = sigma_t**2 - kept**2 * sigma_s**2
        tilde = sigma_s**2 / sigma_t**2 * beta
        gain = alpha_t * std**2 / ((alpha_t * std) ** 2 + sigma_t**2)  # E[x0 given x_t] = offset + gain x_t
        offset = m - gain * alpha_t * m
        if sampler is ancestral:  # Ho et al. 2020, equation 7
            of_x0 = alpha_s * beta / sigma_t**2
            of_x_t = kept * sigma_s**2 / sigma_t**2
            added = tilde if options.get("variance") is fixed_small else beta
        else:  # Song et al. 2021, equation 12
            added = options["eta"] ** 2 * tilde
            direction = math.sqrt(sigma_s**2 - added) / sigma_t
            of_x0 = alpha_s - direction * alpha_t
            of_x_t = direction
        scale = of_x_t + of_x0 * gain
        mean = scale * mean + of_x0 * offset
        variance = scale**2 * variance + (added if s else 0)
    return mean, variance


@pytest.mark.parametrize("path", [path for path in PATHS.values() if not path.forgets])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_analytic_ddim_keeps_the_marginals_at_any_number_of_steps(path: Path, eta: float):
    """Bao et al. 2022: with one standard deviation for all pixels, x_s is N(alpha_s m, alpha_s^2 std^2 + sigma_s^2)."""
    m, std = 0.3, 0.7
    data = Gaussian(*torch.tensor([m, std], dtype=torch.float64).reshape(2, 1, 1, 1))
    spread = {t: (path.alpha_sigma(t)[0] * std) ** 2 + path.alpha_sigma(t)[1] ** 2 for t in [*LEVELS, 0]}
    eps_squared = {float(t): path.alpha_sigma(t)[1] ** 2 / spread[t] for t in LEVELS}
    variance = Analytic(path.schedule, eps_squared, largest=None)
    count = 0

    def noise(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        z = torch.zeros_like(x)
        z[count + 1] = 1
        return z

    start = torch.full((len(LEVELS) + 1, 1, 1, 1), path.alpha_sigma(1000)[0] * m, dtype=torch.float64)
    start[1] += math.sqrt(spread[1000])
    denoiser = data.denoiser(path.schedule, path.prediction)
    *steps, _ = analytic_ddim(denoiser, start, COARSE, variance=variance, eta=eta, noise=noise)
    for s, x in zip(LEVELS[1:], steps, strict=True):
        row = x.flatten()
        assert row[0].item() == pytest.approx(path.alpha_sigma(s)[0] * m, rel=1e-8)
        assert ((row[1:] - row[0]) ** 2).sum().item() == pytest.approx(spread[s], rel=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_analytic_ddim_is_the_papers_step(eta: float):
    """Bao et al. 2022, equation 4 and theorem 1, with a network that no distribution stands behind."""
    schedule, times = linear(), [1000, 533, 9, 0]
    eps_squared = {1000.0: 0.99, 533.0: 0.6, 9.0: 0.3}
    x, *noises = normal64(3, 4, 2, 3, 2, 2)
    y, labels, draws = torch.tensor([1, 2]), [], iter(noises)

    def net(x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
        labels.append(y)
        return torch.tanh(0.7 * x + 0.2) + 0.3 * x

    options = {"eta": eta} if eta else {}
    found = analytic_ddim(
        Denoiser(net, schedule),
        x,
        torch.tensor(times).double(),
        y,
        variance=Analytic(schedule, eps_squared, largest=None),
        noise=lambda x: next(draws),
        **options,
    )
    for (t, s), z, ours in zip(pairwise(times), noises, found, strict=True):
        now, following = schedule.alpha_bar[t].item(), schedule.alpha_bar[s].item()
        lambda_squared = eta**2 * (1 - following) / (1 - now) * (1 - now / following)
        eps = torch.tanh(0.7 * x + 0.2) + 0.3 * x
        x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        direction = math.sqrt(1 - following - lambda_squared)
        of_error = math.sqrt(following) - direction * math.sqrt(now / (1 - now))
        added = lambda_squared + of_error**2 * (1 - now) / now * (1 - eps_squared[t])
        x = math.sqrt(following) * x0 + direction * eps + (math.sqrt(added) * z if s else 0)
        torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)
    assert len(labels) == 3
    assert all(label is y for label in labels)


def test_analytic_ddim_needs_the_analytic_variance(gaussian: Gaussian):
    with pytest.raises(ValueError, match="^variance must be analytic"):
        last(analytic_ddim(gaussian.denoiser(linear()), normal64(0, 2, 3, 1, 1), COARSE, variance=fixed_small))


@pytest.mark.parametrize("sampler", [ancestral, predictor_corrector])
def test_a_learned_variance_is_each_pixels_own(sampler):
    """The noise of one step is added with the geometric mean of small and large where the network says so."""
    place = torch.tensor([-1.0, 1.0, 0.0], dtype=torch.float64).reshape(1, 3, 1, 1)

    def net(x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
        return torch.cat([0.3 * x, place.expand_as(x)], 1)

    denoiser, x = Denoiser(net, linear(), learned_variance=True), normal64(1, 2, 3, 2, 2)
    z = normal64(2, 2, 3, 2, 2)

    def first(last_draw: Tensor) -> Tensor:
        draws = iter([z, last_draw] if sampler is predictor_corrector else [last_draw])
        return next(sampler(denoiser, x, COARSE, variance=learned, noise=lambda _: next(draws)))

    alpha_bar = linear().alpha_bar
    beta = 1 - alpha_bar[1000] / alpha_bar[870]
    tilde = beta * (1 - alpha_bar[870]) / (1 - alpha_bar[1000])
    added = torch.stack([tilde, beta, (tilde * beta).sqrt()]).sqrt().reshape(3, 1, 1)
    torch.testing.assert_close(first(z) - first(0 * z), added * z, rtol=1e-9, atol=1e-9)


def test_every_sampler_declares_its_order():
    """None for those that add noise."""
    orders = {name: sampler.order() for name, sampler in SAMPLERS.items()}
    files = [yaml.safe_load(path.read_text()) for path in (CONFIGS / "sampler").glob("*.yaml")]
    assert set(orders) == {file["_target_"] for file in files} - {"auto", "method", "training"}  # which choose one
    assert (orders["ddim"], orders["ancestral"], ddim.order(eta=0.5), heun.order(churn=1.0)) == (1, None, None, None)


COSTS = [
    *[(SAMPLERS[name], {}) for name in SAMPLERS if name not in ("dormand_prince", "analytic_ddim")],
    (predictor_corrector, {"corrector_steps": 3}),
    (annealed_langevin, {"langevin_steps": 2}),
    (heun, {"order": 1}),
    *[(dpm_solver_singlestep, {"order": order}) for order in (1, 3)],
    *[(pndm, {"order": order}) for order in (1, 2, 3)],
    (pndm, {"start": "runge_kutta"}),
]


@pytest.mark.parametrize(("sampler", "options"), COSTS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_sampler_declares_its_evaluations(sampler, options: dict, steps: int):
    count = 0

    def net(x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
        nonlocal count
        count += 1
        return 0.3 * x

    last(sampler(Denoiser(net, linear()), normal64(0, 1, 1, 2, 2), time_grid(linear(), steps), **options))
    assert count == sampler.evaluations(steps, **options)


@on_every_path
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("annealed_langevin", "analytic_ddim")])
def test_the_last_step_lands_on_the_predicted_x0(path: Path, name: str):
    """Also where alpha(T) = 0 and log-SNR is infinite at both ends: everything stays finite."""
    seen: list[Tensor] = []
    denoiser = Observed(Clipped(Denoiser(Wavy(), path.schedule, path.prediction)), lambda guess: seen.append(guess.x0))
    x = path.prior_std * normal64(2, 3, 1, 2, 2)
    found = last(SAMPLERS[name](denoiser, x, COARSE))
    assert torch.equal(found, seen[-1])
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "analytic_ddim"])
def test_a_sampler_has_no_use_for_the_variance_of_others(name: str):
    """A network that learns it draws the same as one that does not, but for the samplers that take it."""
    half, whole = Denoiser(Wavy(), linear()), Denoiser(Twice(), linear(), learned_variance=True)
    x, noises = normal64(2, 2, 1, 2, 2), [normal64(seed, 2, 1, 2, 2) for seed in range(200)]

    def sampled(denoiser: Denoiser) -> Tensor:
        draws = iter(noises)
        return last(SAMPLERS[name](denoiser, x, COARSE, noise=lambda x: next(draws)))

    assert torch.equal(sampled(half), sampled(whole))


@on_every_path
def test_eta_one_is_ancestral_with_the_small_variance(gaussian: Gaussian, path: Path):
    x, z = normal64(3, 2, 8, 3, 1, 1)
    denoiser = gaussian.denoiser(path.schedule, path.prediction)
    by_ddim = ddim(denoiser, x, COARSE, eta=1.0, noise=lambda _: z)
    by_ddpm = ancestral(denoiser, x, COARSE, variance=fixed_small, noise=lambda _: z)
    for ours, theirs in zip(by_ddim, by_ddpm, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", [predictions.flow, predictions.v])
def test_ddim_on_the_straight_path_is_eulers_method(prediction):
    """dx / du = eps - x0, from u = 1 to 0, with the velocity that the network says or that its v means."""

    def net(x: Tensor, time: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.sin(1.7 * x + 0.3) + torch.cos(time / 300).reshape(-1, 1, 1, 1)

    start, times = normal64(4, 2, 3, 2, 2), [1000, 930, 700.5, 350, 100, 0.7, 0]
    x = start
    grid = torch.tensor(times, dtype=torch.float64)
    for found, (t, s) in zip(ddim(Denoiser(net, Flow(), prediction), start, grid), pairwise(times), strict=True):
        u, output = t / 1000, net(x, torch.tensor([t - 1, t - 1]).double())
        if prediction is predictions.v:  # x = (1 - u) x0 + u eps and v = (1 - u) eps - u x0, solved for eps - x0
            output = ((2 * u - 1) * x + output) / ((1 - u) ** 2 + u**2)
        x = x + (s - t) / 1000 * output
        torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)
