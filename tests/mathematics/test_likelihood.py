"""The bound: term by term against closed forms, and the decoder of 8-bit data against its definition."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.stats import norm
from torch.distributions import MultivariateNormal, kl_divergence

from diffuse.mathematics.continuous import VE
from diffuse.mathematics.denoiser import Denoiser, Prediction
from diffuse.mathematics.likelihood import (
    Bound,
    bits_per_dim,
    discretised_gaussian,
    gaussian_density,
    gaussian_kl,
    prior_term,
    reverse_term,
    reverse_terms,
    variational_bound,
)
from diffuse.mathematics.oracles import ExactDenoiser, Gaussian
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.tables import linear
from diffuse.mathematics.variances import (
    Analytic,
    Variance,
    fixed_large,
    fixed_small,
    learned,
    reverse_step,
    reverse_steps,
)
from diffuse.mathematics.wrappers import Clipped
from tests.support.gaussian import MEAN, STD
from tests.support.paths import PATHS, Path, of_a_table, on_every_path

BETWEEN = (0.2, 0.5, 0.9)
VARIANCES = ["fixed_small", "fixed_large", "analytic", "learned"]
SHORT = [1000, 870, 533, 210, 60, 9, 1]


class KnowsTheVariance(ExactDenoiser):
    """A network that has learned the Gaussian, and says the same place for the variance of a channel always."""

    def __init__(self, data: Gaussian, path: Path):
        super().__init__(data, path.schedule, path.prediction)
        self.learned_variance = True

    def output(self, x_t, t, y, coefficients):
        place = 2 * torch.tensor(BETWEEN, dtype=torch.float64).reshape(3, 1, 1) - 1
        return torch.cat([super().output(x_t, t, y, coefficients), place.expand_as(x_t)], 1)


def on(schedule: Schedule) -> Path:
    """A path with a table of its own."""
    return PATHS["linear"]._replace(schedule=schedule, alpha_sigma=of_a_table(schedule))


def best(path: Path, levels: list[int]) -> Analytic:
    """The analytic variance, from E ||eps||^2 / d in closed form: sigma^2 over the variance of x_t."""
    found = {}
    for t in levels:
        alpha, sigma = path.alpha_sigma(t)
        found[float(t)] = float(np.mean([sigma**2 / (alpha**2 * std**2 + sigma**2) for std in STD]))
    return Analytic(path.schedule, found, largest=None)


def variance_called(name: str, path: Path, levels: list[int]) -> Variance:
    fixed = {"fixed_small": fixed_small, "fixed_large": fixed_large, "learned": learned}
    return fixed[name] if name in fixed else best(path, levels)


def exact_expectation(gaussian: Gaussian, path: Path, levels: list[int], variance: Variance) -> Bound:
    """Bounds whose mean is that over data and noise, without chance.

    With Gaussian data and decoder every term is quadratic in x0 and in the noise, so the points mean +- std with noise
    +-1, all four equally likely, have the same expectation as the distributions: their moments up to the second agree.
    """
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    x0 = gaussian.mean + gaussian.std * signs[:, 0].reshape(-1, 1, 1, 1)
    noise = signs[:, 1].reshape(-1, 1, 1, 1).expand_as(x0)
    times = torch.tensor([*levels, 0], dtype=torch.float64)
    denoiser = KnowsTheVariance(gaussian, path)
    return variational_bound(denoiser, x0, times, noise=lambda _: noise, variance=variance, decoder=gaussian_density)


def closed_form(path: Path, levels: list[int], variance: str) -> list[float]:
    """E of L_T, L_{t-1} ..., L_0 for the Gaussian in nats, from alpha and sigma alone and in plain Python."""
    alpha_T, sigma_T = path.alpha_sigma(path.schedule.T)
    terms = [0.0]
    for m, std in zip(MEAN, STD, strict=True):
        ratio = sigma_T**2 / path.prior_std**2
        terms[0] += 0.5 * (ratio - 1 - math.log(ratio) + alpha_T**2 * (m**2 + std**2) / path.prior_std**2)
    before = None
    for t, s in zip(levels, [*levels[1:], 0], strict=True):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = path.alpha_sigma(t), path.alpha_sigma(s)
        beta = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        tilde = beta * sigma_s**2 / sigma_t**2
        small = tilde if s else (before or beta)
        of_x0 = alpha_s * beta / sigma_t**2
        errors = [of_x0**2 * (std * sigma_t) ** 2 / ((alpha_t * std) ** 2 + sigma_t**2) for std in STD]
        reverses = {
            "fixed_small": [small] * 3,
            "fixed_large": [beta if s else small] * 3,
            "analytic": [tilde + sum(errors) / 3] * 3,
            "learned": [small * (beta / small) ** between for between in BETWEEN],
        }[variance]
        term = 0.0
        for error, reverse in zip(errors, reverses, strict=True):
            if s == 0:
                term += 0.5 * math.log(2 * math.pi * reverse) + 0.5 * error / reverse
            else:
                term += 0.5 * (math.log(reverse / tilde) + (tilde + error) / reverse - 1)
        terms.append(term)
        before = tilde
    return terms


def as_list(bound: Bound) -> list[float]:
    return [term.item() for term in (bound.prior.mean(), *bound.terms.mean(0), bound.reconstruction.mean())]


@on_every_path
@pytest.mark.parametrize("levels", [SHORT, [1000, 1], [1000]], ids=len)
@pytest.mark.parametrize("variance", VARIANCES)
def test_the_bound_of_the_gaussian_is_its_closed_form(gaussian: Gaussian, path: Path, levels, variance: str):
    if variance == "analytic" and path.forgets:
        levels = [990, *levels[1:]]  # eps says nothing of x0 at pure noise, where the analytic variance is refused
    found = exact_expectation(gaussian, path, levels, variance_called(variance, path, levels))
    expected = closed_form(path, levels, variance)
    np.testing.assert_allclose(as_list(found), expected, rtol=1e-6, atol=1e-12)
    assert found.total.mean().item() == pytest.approx(sum(expected), rel=1e-6)


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_bound_over_every_level_is_its_closed_form(gaussian: Gaussian, variance: str):
    path = on(linear(30))
    levels = list(range(30, 0, -1))
    found = exact_expectation(gaussian, path, levels, variance_called(variance, path, levels))
    np.testing.assert_allclose(as_list(found), closed_form(path, levels, variance), rtol=1e-6)


@on_every_path
@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
def test_the_oracles_bound_is_the_closed_form(gaussian: Gaussian, path: Path, variance: Variance):
    """What `eval` of a Gaussian is compared with."""
    steps = reverse_steps(path.schedule, torch.tensor([*SHORT, 0]).double())
    nothing = ExactDenoiser(gaussian, path.schedule, path.prediction)(gaussian.mean[None], torch.tensor(500.0))
    terms = gaussian.bound_terms(path.schedule, steps, [variance(step, nothing) for step in steps])
    assert terms.shape == (len(SHORT) + 1, 3, 1, 1)
    expected = closed_form(path, SHORT, variance.__name__)
    np.testing.assert_allclose(terms.sum((1, 2, 3)), expected, rtol=1e-6, atol=1e-12)


@on_every_path
def test_no_variance_beats_the_analytic_one(gaussian: Gaussian, path: Path):
    """Of all that are the same for every pixel, in any term: neither the papers' two nor its own neighbours."""
    levels = [990, *SHORT[1:]]
    analytic = best(path, levels)
    optimum = np.array(as_list(exact_expectation(gaussian, path, levels, analytic)))[1:]
    others = [fixed_small, fixed_large, *(lambda step, guess, c=c: c * analytic(step, guess) for c in (0.99, 1.01))]
    for other in others:
        found = np.array(as_list(exact_expectation(gaussian, path, levels, other)))[1:]
        assert (optimum < found - 1e-12).all()


def test_the_bound_never_beats_the_entropy(gaussian: Gaussian):
    """E of -log p(x0) is at least the entropy of the data, and more levels come closer to it."""
    entropy = sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in STD)
    for name in ("linear", "cosine"):
        grids = [[int(t) for t in time_grid(PATHS[name].schedule, n)[:-1]] for n in (20, 100)]
        coarse, fine = (exact_expectation(gaussian, PATHS[name], grid, fixed_small).total.mean() for grid in grids)
        assert entropy < fine < coarse


def test_a_batch_of_times_takes_each_images_own_term(gaussian: Gaussian):
    """As a loss draws them: L_0 for the image at level 1, the KL divergence for the others."""
    schedule, levels = linear(20, 1e-4, 0.02), [20, 1, 7, 2]
    denoiser = KnowsTheVariance(gaussian, on(schedule))
    x0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3, 1, 1)
    x_t = 0.9 * x0 + 0.1
    t = torch.tensor(levels, dtype=torch.float64)
    for variance in (fixed_small, fixed_large, learned):
        for decoder in (None, gaussian_density):
            column = t.reshape(4, 1, 1, 1)
            step = reverse_step(schedule, column, column - 1, torch.clamp(column + 1, max=20))
            together = reverse_term(step, denoiser(x_t, t), x0, variance, decoder)
            for row, level in enumerate(t):
                alone = reverse_step(schedule, level, level - 1, torch.clamp(level + 1, max=20))
                one = slice(row, row + 1)
                expected = reverse_term(alone, denoiser(x_t[one], level), x0[one], variance, decoder)
                assert together[row].item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_bound_costs_one_evaluation_a_step_and_passes_labels_on():
    """And its L_T stands apart from the terms, whose last is the decoder's."""
    asked, y = [], torch.tensor([1, 2])

    def net(x, time, label):
        asked.append((time[0].item(), label))
        return x

    found = variational_bound(
        Denoiser(net, linear()), torch.zeros(2, 1, 2, 2, dtype=torch.float64), torch.tensor([9.0, 4, 1, 0]), y=y
    )
    assert [time for time, _ in asked] == [8, 3, 0]
    assert all(label is y for _, label in asked)
    assert (found.prior.shape, found.terms.shape, found.reconstruction.shape) == ((2,), (2, 2), (2,))


def test_the_bound_keeps_nothing_for_derivatives():
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    denoiser, x0 = Denoiser(lambda x, time, label: scale * x, linear()), torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    times = torch.tensor([9.0, 4, 1, 0], dtype=torch.float64)
    assert not variational_bound(denoiser, x0, times).total.requires_grad
    for term in reverse_terms(denoiser, x0, reverse_steps(linear(), times), None, fixed_large, None, torch.randn_like):
        assert not term.requires_grad
        assert torch.is_grad_enabled()


def test_the_bound_takes_the_large_variance_and_8_bit_images_unless_it_is_said_otherwise(gaussian: Gaussian):
    x0 = torch.tensor([-1.0, 0.2, 3 / 255], dtype=torch.float64).reshape(1, 3, 1, 1)
    denoiser, times = gaussian.denoiser(linear()), torch.tensor([9.0, 4, 1, 0], dtype=torch.float64)
    options = {"variance": fixed_large, "decoder": discretised_gaussian}
    ours, theirs = (
        variational_bound(denoiser, x0, times, noise=lambda x: 0.3 + 0 * x, **how).total for how in ({}, options)
    )
    assert torch.equal(ours, theirs)


def test_kl_of_two_gaussians_by_integration():
    """The log inverted, or a missing -1, are slips found in popular notes."""
    mean, variance, other_mean, other = 0.3, 0.5, -0.2, 2.0
    x = np.linspace(-15, 15, 200_001)
    p, q = norm.logpdf(x, mean, variance**0.5), norm.logpdf(x, other_mean, other**0.5)
    expected = trapezoid(np.exp(p) * (p - q), x)
    found = gaussian_kl(torch.tensor(mean - other_mean), torch.tensor(variance), torch.tensor(other))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_kl_of_images_counts_every_dimension():
    """Against torch's for d dimensions at once: a -1 in place of -d is a slip found in popular notes."""
    d, generator = 12, torch.Generator().manual_seed(0)
    x0, guess = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64, generator=generator).reshape(2, 2, 3, 2, 2)
    step = reverse_steps(linear(), torch.tensor([700.0, 500.0, 0.0], dtype=torch.float64))[0]
    nothing = torch.zeros(())
    found = reverse_term(step, Prediction(x0, nothing, nothing, guess, nothing, nothing), x0, fixed_large)
    for image in range(2):
        means = [step.posterior.of_x0 * x[image].flatten() for x in (x0, guess)]
        p, q = (
            MultivariateNormal(mean, variance * torch.eye(d, dtype=torch.float64))
            for mean, variance in zip(means, (step.small, step.large), strict=True)
        )
        assert found[image].item() == pytest.approx(kl_divergence(p, q).item(), rel=1e-9)


def test_prior_term_is_the_kl_to_the_standard_normal():
    x0 = torch.tensor([0.5, -1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    alpha_bar = linear().alpha_bar[1000].item()
    expected = [0.5 * (1 - alpha_bar + alpha_bar * x**2 - 1 - math.log(1 - alpha_bar)) for x in (0.5, -1.0)]
    np.testing.assert_allclose(prior_term(linear(), x0), expected, rtol=1e-6)


def test_prior_term_where_the_prior_is_wide():
    """On the variance-exploding path the prior has x_T's own spread, and the term what is left of the mean."""
    x0 = torch.tensor([0.5, -1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    for widest in (100, 33.3):
        expected = [0.5 * (x / widest) ** 2 for x in (0.5, -1.0)]
        np.testing.assert_allclose(prior_term(VE(0.02, widest), x0), expected, rtol=1e-9)


@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3, 3.0])
@pytest.mark.parametrize("mean", [-1.2, -1.0, 0.013, 0.99])
def test_bins_of_the_decoder_hold_all_probability(mean: float, std: float):
    """Over the 256 values of a pixel the probabilities sum to 1, and each is the Gaussian's mass over its bin."""
    values = torch.arange(256, dtype=torch.float64).reshape(256, 1, 1, 1) / 127.5 - 1
    nats = discretised_gaussian(values, torch.full_like(values, mean), torch.tensor(std**2))
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-9)
    edges = np.concatenate([[-np.inf], values.flatten().numpy()[:-1] + 1 / 255, [np.inf]])
    mass = np.diff(norm.cdf(edges, mean, std))
    seen = mass > 1e-10
    np.testing.assert_allclose((-nats).exp()[seen], mass[seen], rtol=1e-4)


def test_far_tails_of_the_decoder_are_finite_and_right():
    """40 standard deviations out the probability is below the smallest float64; its logarithm is not."""
    x0, mean, std = torch.tensor([[[[0.5]]]]), torch.tensor([[[[0.1]]]]), 0.01
    nearest = 0.5 - 1 / 255 - 0.1
    expected = -(
        norm.logsf(nearest / std)
        + math.log(-math.expm1(norm.logsf((nearest + 2 / 255) / std) - norm.logsf(nearest / std)))
    )
    assert discretised_gaussian(x0.double(), mean.double(), torch.tensor(std**2).double()).item() == pytest.approx(
        expected, rel=1e-6
    )
    assert discretised_gaussian(x0, -mean, torch.tensor(std**2)).isfinite()


def test_a_floor_caps_what_a_pixel_costs_and_its_gradient():
    """-log 1e-12 = 27.6 nats, 39.9 bits, as in the published code; above the floor nothing changes."""
    mean = torch.tensor([0.0, 0.01, 0.9], dtype=torch.float64).reshape(3, 1, 1, 1).requires_grad_()
    x0, variance = torch.zeros_like(mean), torch.tensor(1e-4, dtype=torch.float64)
    exact, floored = (discretised_gaussian(x0, mean, variance, least=least) for least in (0.0, 1e-12))
    assert exact[2] > 1000
    assert floored[2].item() == pytest.approx(12 * math.log(10), rel=1e-12)
    assert torch.equal(floored[:2], exact[:2])
    (gradient,) = torch.autograd.grad(floored.sum(), mean)
    assert gradient[2] == 0
    assert gradient[1] != 0


@pytest.mark.parametrize("decoder", [discretised_gaussian, gaussian_density])
def test_an_image_costs_the_sum_of_its_pixels(decoder):
    """Each with a mean, and if need be a variance, of its own; images apart."""
    x0 = torch.tensor([[-1.0, 3 / 255, 0.2], [1.0, -0.4, 1 / 255]], dtype=torch.float64).reshape(2, 3, 1, 1)
    mean, variance = 0.9 * x0.flip(1), torch.tensor([0.01, 0.2, 3.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    for image, found in enumerate(decoder(x0, mean, variance)):
        pixels = [(slice(image, image + 1), slice(c, c + 1)) for c in range(3)]
        alone = [decoder(x0[at], mean[at], variance[:, at[1]]).item() for at in pixels]
        assert found.item() == pytest.approx(sum(alone), rel=1e-12)


def test_bits_per_dim_counts_dimensions_and_twos():
    """A uniform guess over 256 values costs 8 bits a dimension."""
    dims = 3 * 4 * 4
    assert bits_per_dim(torch.tensor(dims * math.log(256), dtype=torch.float64), dims).item() == pytest.approx(8)


def test_the_bound_uses_the_denoisers_clipping():
    """With x0 known to lie in [-1, 1], a clipped guess cannot be worse."""

    class Blind(torch.nn.Module):
        def forward(self, x, time, y=None):
            return torch.zeros_like(x)

    x0 = torch.full((2, 1, 2, 2), 0.9, dtype=torch.float64)
    torch.manual_seed(0)
    noise = torch.randn_like(x0)
    times = time_grid(linear(), 10)
    clipped, loose = (
        variational_bound(denoiser, x0, times, noise=lambda _: noise)
        for denoiser in (Clipped(Denoiser(Blind(), linear())), Denoiser(Blind(), linear()))
    )
    assert (clipped.total < loose.total).all()
