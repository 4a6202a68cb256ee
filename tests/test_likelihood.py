"""The bound: term by term against closed forms, and the decoder of 8-bit data against its definition."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.stats import norm

from diffuse.denoiser import Denoiser
from diffuse.likelihood import (
    bits_per_dim,
    discretised_gaussian,
    gaussian_density,
    gaussian_kl,
    prior_term,
    step_variances,
    vlb,
)
from diffuse.oracles import Gaussian
from diffuse.samplers import fixed_large, fixed_small, time_grid
from diffuse.schedules import Schedule, linear
from tests.conftest import MEAN, STD


def exact_expectation(gaussian: Gaussian, schedule: Schedule, times, variance):
    """The mean of the bound over data and noise, without chance.

    With Gaussian data and decoder every term is quadratic in x0 and in the noise, so the points mean +- std with noise
    +-1, all four equally likely, have the same expectation as the distributions: their moments up to the second agree.
    """
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    x0 = gaussian.mean + gaussian.std * signs[:, 0].reshape(-1, 1, 1, 1)
    noise = signs[:, 1].reshape(-1, 1, 1, 1).expand_as(x0)
    return vlb(
        gaussian.denoiser(schedule), x0, times, lambda _: noise, variance=variance, decoder=gaussian_density
    )  # fmt: skip


def closed_form(schedule, levels: list[int], variance: str) -> list[float]:
    """E of L_T, L_{t-1} ..., L_0 for the Gaussian in nats, from alpha_bar alone and in plain Python."""
    alpha_bar = schedule.alpha_bar.tolist()
    first, *_ = levels
    terms = [sum(0.5 * (alpha_bar[first] * (m**2 + s**2) - alpha_bar[first] - math.log(1 - alpha_bar[first]))
                 for m, s in zip(MEAN, STD, strict=True))]  # fmt: skip
    tilde = {}
    for t, s in zip(levels, [*levels[1:], 0], strict=True):
        beta = 1 - alpha_bar[t] / alpha_bar[s]
        tilde[t] = beta * (1 - alpha_bar[s]) / (1 - alpha_bar[t])
        if s == 0:
            reverse = tilde[levels[-2]]
        else:
            reverse = tilde[t] if variance == "fixed_small" else beta
        term = 0.0
        for std in STD:
            uncertainty = std**2 * (1 - alpha_bar[t]) / (alpha_bar[t] * std**2 + 1 - alpha_bar[t])
            error = alpha_bar[s] * beta**2 / (1 - alpha_bar[t]) ** 2 * uncertainty
            if s == 0:
                term += 0.5 * math.log(2 * math.pi * reverse) + 0.5 * error / reverse
            else:
                term += 0.5 * (math.log(reverse / tilde[t]) + (tilde[t] + error) / reverse - 1)
        terms.append(term)
    return terms


@pytest.mark.parametrize("variance", [fixed_small, fixed_large])
@pytest.mark.parametrize("steps", [None, 10, 2])
def test_the_bound_of_the_gaussian_is_its_closed_form(gaussian, schedule, variance, steps):
    times = time_grid(schedule, steps)
    found = exact_expectation(gaussian, schedule, times, variance)
    terms = [found.prior.mean(), *found.terms.mean(0), found.reconstruction.mean()]
    expected = closed_form(schedule, [int(t) for t in times[:-1]], variance.__name__)
    np.testing.assert_allclose(terms, expected, rtol=1e-6)
    assert found.total.mean().item() == pytest.approx(sum(expected), rel=1e-6)
    library = gaussian.bound_terms(schedule, times, step_variances(schedule, times, variance)).sum((1, 2, 3))
    np.testing.assert_allclose(library, expected, rtol=1e-6)


def test_the_bound_never_beats_the_entropy(gaussian: Gaussian, schedule: Schedule):
    """E of -log p(x0) is at least the entropy of the data, and more levels come closer to it."""
    entropy = sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in STD)
    totals = [
        exact_expectation(gaussian, schedule, time_grid(schedule, n), fixed_small).total.mean() for n in (50, 1000)
    ]
    assert entropy < totals[1] < totals[0]


def test_kl_of_two_gaussians_by_integration():
    """The log inverted, or a missing -1, are slips found in popular notes."""
    mean, variance, other_mean, other = 0.3, 0.5, -0.2, 2.0
    x = np.linspace(-15, 15, 200_001)
    p, q = norm.logpdf(x, mean, variance**0.5), norm.logpdf(x, other_mean, other**0.5)
    expected = trapezoid(np.exp(p) * (p - q), x)
    found = gaussian_kl(torch.tensor(mean - other_mean), torch.tensor(variance), torch.tensor(other))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_prior_term_is_the_kl_to_the_standard_normal():
    x0 = torch.tensor([0.5, -1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    alpha_bar = linear().alpha_bar[1000].item()
    expected = [0.5 * (1 - alpha_bar + alpha_bar * x**2 - 1 - math.log(1 - alpha_bar)) for x in (0.5, -1.0)]
    np.testing.assert_allclose(prior_term(linear(), x0), expected, rtol=1e-6)


def test_the_last_step_takes_the_variance_of_the_step_before(schedule: Schedule):
    times = torch.tensor([1000.0, 400.0, 7.0, 0.0], dtype=torch.float64)
    for variance in (fixed_small, fixed_large):
        found = step_variances(schedule, times, variance)
        assert found[-1] == schedule.posterior(times[1], times[2]).variance
        assert found[0] == variance(schedule, times[0], times[1])
    assert step_variances(schedule, torch.tensor([1000.0, 0.0]).double(), fixed_small)[0] > 0


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
    clipped, loose = (vlb(Denoiser(Blind(), linear(), clip=clip), x0, times, lambda _: noise) for clip in (True, False))
    assert (clipped.total < loose.total).all()
