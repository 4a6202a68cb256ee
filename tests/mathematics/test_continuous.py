"""The paths in continuous time against the papers' formulas, written out here a second time."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuse.mathematics.continuous import VE, VP, Flow
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.tables import linear

PATHS = {"vp": VP, "ve": VE, "flow": Flow}


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Schedule:
    return PATHS[request.param]()


def real(*t: float) -> Tensor:
    return torch.tensor(t[0] if len(t) == 1 else t, dtype=torch.float64)


def times(path: Schedule) -> Tensor:
    """From the smallest time of training to the last."""
    start = real(path.t_min, path.t_min * 3, 0.5, 1.0, 1.5)
    return torch.cat([start[start >= path.t_min], torch.linspace(2, 1000, 500, dtype=torch.float64)])


@pytest.mark.parametrize(("low", "high"), [(0.1, 20.0), (0.5, 3.0), (2.0, 2.0)])
def test_vp_is_the_integral_of_its_noise_rate(low, high):
    """The solution of dx = -beta(u)/2 x du + sqrt(beta(u)) dw: Song et al. 2021, equation 32.

    Its moments m' = -beta/2 m, v' = beta (1 - v) are solved with the integral of beta, by Gauss and Legendre's rule.
    """
    nodes, weights = np.polynomial.legendre.leggauss(4)
    for t in [0.01, 1.0, 250.0, 1000.0]:
        u = t / 1000
        integral = sum(
            w * u / 2 * (low + (high - low) * (u / 2 * (1 + x))) for x, w in zip(nodes, weights, strict=True)
        )
        alpha, sigma = VP(low, high).alpha_sigma(real(t))
        np.testing.assert_allclose(alpha, np.exp(-integral / 2), rtol=1e-12)
        np.testing.assert_allclose(sigma**2, -np.expm1(-integral), rtol=1e-12)


def test_vp_is_the_papers_perturbation_kernel():
    """Equation 33, with beta from 0.1 to 20."""
    u = np.linspace(0.001, 1, 100)
    exponent = u**2 * (20 - 0.1) / 4 + u * 0.1 / 2
    alpha, sigma = VP().alpha_sigma(torch.from_numpy(1000 * u))
    np.testing.assert_allclose(alpha, np.exp(-exponent), rtol=1e-12)
    np.testing.assert_allclose(sigma, np.sqrt(1 - np.exp(-2 * exponent)), rtol=1e-10)


def test_vp_is_the_limit_of_ddpms_betas():
    """beta_i = beta(i / N) / N: the difference of log alpha at the end falls as 1 / N."""
    end = VP().alpha_sigma(real(1000))[0].log()
    coarse, fine = (linear(N, 0.1 / N, 20 / N).alpha_sigma(real(N))[0].log() - end for N in (10_000, 20_000))
    assert abs(fine) < 0.01
    assert coarse / fine == pytest.approx(2, rel=0.01)


def test_vp_preserves_variance():
    alpha, sigma = VP().alpha_sigma(torch.linspace(0, 1000, 777, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("low", "high"), [(0.02, 100.0), (0.5, 3.0)])
def test_ve_is_a_geometric_sequence_of_levels(low, high):
    """sigma_1 ... sigma_T of Song and Ermon 2019; the image itself is neither scaled nor faded."""
    alpha, sigma = VE(low, high).alpha_sigma(torch.arange(1, 1001))
    np.testing.assert_allclose(sigma, np.geomspace(low, high, 1000), rtol=1e-12)
    assert (alpha == 1).all()


def test_ve_solves_its_sde():
    """d sigma^2 / du = g(u)^2 with g = sigma(u) sqrt(2 log(sigma_max / sigma_min)): Song et al. 2021, equation 30.

    u runs from 0 at t = 1 to 1 at t = T, in central differences.
    """
    u, h = np.linspace(0.1, 0.9, 9), 1e-5
    after, before, here = (VE().alpha_sigma(torch.from_numpy(1 + 999 * (u + shift)))[1].numpy() for shift in (h, -h, 0))
    np.testing.assert_allclose(
        (after**2 - before**2) / (2 * h), (here * np.sqrt(2 * np.log(100 / 0.02))) ** 2, rtol=1e-7
    )


def test_ve_falls_linearly_to_the_data_below_the_first_level():
    _, sigma = VE(0.02, 100.0).alpha_sigma(real(0, 0.25, 0.5, 1))
    torch.testing.assert_close(sigma, 0.02 * real(0, 0.25, 0.5, 1), rtol=1e-12, atol=0)


def test_flow_is_a_straight_line():
    """x_u = (1 - u) x0 + u eps: Liu, Gong and Liu 2023, equation 1, with noise at u = 1."""
    u = np.linspace(0, 1, 101)
    alpha, sigma = Flow().alpha_sigma(torch.from_numpy(1000 * u))
    np.testing.assert_allclose(alpha, 1 - u, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(sigma, u, rtol=1e-12)
    np.testing.assert_allclose(
        Flow().log_snr(torch.from_numpy(1000 * u[1:-1])), 2 * np.log((1 - u[1:-1]) / u[1:-1]), rtol=1e-12, atol=1e-12
    )


def test_flow_ends_in_pure_noise():
    assert tuple(Flow().alpha_sigma(real(1000))) == (0, 1)
    assert Flow().log_snr(real(1000)) == -torch.inf


def test_log_snr_is_that_of_alpha_and_sigma(path: Schedule):
    t = times(path)
    alpha, sigma = path.alpha_sigma(t)
    torch.testing.assert_close(path.log_snr(t), 2 * (alpha.log() - sigma.log()), rtol=1e-10, atol=1e-10)


def test_paths_begin_at_the_data(path: Schedule):
    assert tuple(path.alpha_sigma(real(0))) == (1, 0)
    assert path.log_snr(real(0)) == torch.inf


def test_log_snr_falls(path: Schedule):
    assert (path.log_snr(torch.linspace(0, 1000, 4001, dtype=torch.float64)).diff() < 0).all()


@pytest.mark.parametrize("path", [VP(), VP(2.0, 2.0), VE(), VE(0.5, 3.0), Flow()])
def test_time_inverts_log_snr(path: Schedule):
    """Below the times of training too; beyond the ends are the ends."""
    t = torch.cat([real(0, 1e-6, 1e-3), torch.linspace(0.01, 1000, 777, dtype=torch.float64)])
    torch.testing.assert_close(path.time(path.log_snr(t)), t, rtol=1e-12, atol=0)
    beyond = path.time(real(torch.inf, 1e9, -1e9, -torch.inf))
    torch.testing.assert_close(beyond, real(0, 0, 1000, 1000), rtol=1e-12, atol=1e-12)


def test_float32_is_right_to_its_digits(path: Schedule):
    """Down to the smallest time of training, where 1 - alpha_bar would have lost them all."""
    t = times(path).float()
    for found, exact in zip(path.alpha_sigma(t), path.alpha_sigma(t.double()), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=0)
    torch.testing.assert_close(path.log_snr(t).double(), path.log_snr(t.double()), rtol=1e-6, atol=1e-6)


def test_integer_times_are_answered_in_float64(path: Schedule):
    for whole in (torch.tensor([1, 500, 1000]), torch.tensor(7)):
        found = (path.log_snr(whole), *path.alpha_sigma(whole))
        exact = (path.log_snr(whole.double()), *path.alpha_sigma(whole.double()))
        torch.testing.assert_close(found, exact, rtol=0, atol=0)


def test_posterior_is_bayes_rule_for_any_pair(path: Schedule):
    """q(x_s given x_t, x0) from the product of the two Gaussians q(x_s given x0) and q(x_t given x_s)."""
    for t, s in [(1000, 999.5), (700, 123), (50, 1), (1000, 1), (0.75, 0.25), (2, 0.5)]:
        alpha_t, sigma_t = (value.item() for value in path.alpha_sigma(real(t)))
        alpha_s, sigma_s = (value.item() for value in path.alpha_sigma(real(s)))
        a = alpha_t / alpha_s
        v = sigma_t**2 - a**2 * sigma_s**2
        precision = 1 / sigma_s**2 + a**2 / v
        np.testing.assert_allclose(path.transition_variance(real(t), real(s)), v, rtol=1e-9)
        expected = [a / v / precision, alpha_s / sigma_s**2 / precision, 1 / precision]
        np.testing.assert_allclose(path.posterior(real(t), real(s)), expected, rtol=1e-9)


def test_posterior_at_zero_is_x0(path: Schedule):
    assert tuple(path.posterior(real(5), real(0))) == (0, 1, 0)
    assert tuple(path.posterior(real(1000), real(0))) == (0, 1, 0)


@pytest.mark.parametrize(
    ("path", "prior_std", "t_min"),
    [(VP(), 1.0, 0.01), (VE(), 100.0, 1.0), (VE(1.0, 50.0), 50.0, 1.0), (Flow(), 1.0, 1.0)],
)
def test_what_samplers_and_training_ask_of_a_path(path: Schedule, prior_std, t_min):
    """Sampling begins with what x_T is where the data are nothing beside the noise."""
    assert (path.T, path.discrete, path.prior_std, path.t_min) == (1000, False, prior_std, t_min)
    torch.testing.assert_close(path.alpha_sigma(real(path.T))[1], real(prior_std), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("make", "options"),
    [(VP, {"beta_min": 0.0}), (VP, {"beta_min": math.inf}), (VP, {"beta_min": math.nan}), (VP, {"beta_max": 0.09}),
     (VP, {"beta_max": math.inf}), (VP, {"beta_max": math.nan}), (VE, {"sigma_min": 0.0}),
     (VE, {"sigma_min": math.inf}), (VE, {"sigma_min": math.nan}), (VE, {"sigma_max": 0.02}),
     (VE, {"sigma_max": math.inf}), (VE, {"sigma_max": math.nan})],
)  # fmt: skip
def test_options_out_of_range_are_named(make, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} must "):
        make(**options)
