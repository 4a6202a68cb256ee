"""Every table and posterior against the papers' formulas, written out here a second time in numpy."""

import numpy as np
import pytest
import torch

from diffuse.schedules import Schedule, TableSchedule, cosine, linear


def betas_of_the_paper(name: str, T: int) -> np.ndarray:
    if name == "linear":  # Ho et al. 2020, section 4
        return np.array([1e-4 + (0.02 - 1e-4) * (t - 1) / (T - 1) for t in range(1, T + 1)])

    def f(t: int) -> float:  # Nichol and Dhariwal 2021, equation 17
        return np.cos((t / T + 0.008) / 1.008 * np.pi / 2) ** 2

    return np.array([min(1 - f(t) / f(t - 1), 0.999) for t in range(1, T + 1)])


@pytest.mark.parametrize(("name", "make"), [("linear", linear), ("cosine", cosine)])
def test_beta_and_alpha_bar_are_the_papers(name, make):
    schedule, betas = make(1000), betas_of_the_paper(name, 1000)
    np.testing.assert_allclose(schedule.beta[1:], betas, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha_bar[1:], np.cumprod(1 - betas), rtol=1e-12)
    assert schedule.beta[0] == 0
    assert schedule.alpha_bar[0] == 1


def test_linear_ends_at_the_papers_betas():
    """0.002 for 0.02 is a slip found in popular notes."""
    schedule = linear()
    assert schedule.T == 1000
    assert schedule.beta[1] == 1e-4
    assert schedule.beta[1000] == 0.02


@pytest.mark.parametrize(("name", "make"), [("linear", linear), ("cosine", cosine)])
def test_posterior_of_neighbours_is_the_papers(name, make):
    """mu-tilde and beta-tilde of Ho et al. 2020, equation 7, with the paper's alpha_t = 1 - beta_t."""
    schedule, T = make(1000), 1000
    beta = np.concatenate([[0], betas_of_the_paper(name, T)])
    alpha_bar = np.cumprod(1 - beta)
    for t in [1, 2, 3, 10, 500, 999, 1000]:
        found = schedule.posterior(torch.tensor(float(t)).double(), torch.tensor(float(t - 1)).double())
        of_x0 = np.sqrt(alpha_bar[t - 1]) * beta[t] / (1 - alpha_bar[t])
        of_x_t = np.sqrt(1 - beta[t]) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
        variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t]
        np.testing.assert_allclose([found.of_x0, found.of_x_t, found.variance], [of_x0, of_x_t, variance], rtol=1e-12)
        transition = schedule.transition_variance(torch.tensor(float(t)).double(), torch.tensor(t - 1.0).double())
        np.testing.assert_allclose(transition, beta[t], rtol=1e-12)


def test_posterior_is_bayes_rule_for_any_pair(schedule: Schedule):
    """q(x_s given x_t, x0) from the product of the two Gaussians q(x_s given x0) and q(x_t given x_s)."""
    for t, s in [(1000, 999), (700, 123), (50, 1), (1000, 1), (0.75, 0.25)]:
        alpha_t, sigma_t = (value.item() for value in schedule.alpha_sigma(torch.tensor(t).double()))
        alpha_s, sigma_s = (value.item() for value in schedule.alpha_sigma(torch.tensor(s).double()))
        a = alpha_t / alpha_s
        v = sigma_t**2 - a**2 * sigma_s**2
        precision = 1 / sigma_s**2 + a**2 / v
        found = schedule.posterior(torch.tensor(t).double(), torch.tensor(s).double())
        expected = [a / v / precision, alpha_s / sigma_s**2 / precision, 1 / precision]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_posterior_at_zero_is_x0(schedule: Schedule):
    found = schedule.posterior(torch.tensor(5.0).double(), torch.tensor(0.0).double())
    assert tuple(found) == (0, 1, 0)


def test_alpha_and_sigma_are_the_square_roots(schedule: Schedule):
    t = torch.arange(1001, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(alpha, schedule.alpha_bar.sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma, (1 - schedule.alpha_bar).sqrt(), rtol=1e-12, atol=0)


def test_sigma_near_the_data_keeps_its_digits_in_float32(schedule: Schedule):
    """sqrt(1 - alpha_bar) in float32 is wrong by 1e-3 there."""
    t = torch.arange(1, 1001)
    for found, exact in zip(schedule.alpha_sigma(t.float()), schedule.alpha_sigma(t.double()), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=5e-7, atol=0)


def test_time_inverts_log_snr(schedule: Schedule):
    t = torch.linspace(0, 1000, 777, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-12, atol=1e-10)
    beyond = torch.tensor([1e9, -1e9], dtype=torch.float64)
    torch.testing.assert_close(
        schedule.time(beyond), torch.tensor([0.0, 1000.0], dtype=torch.float64), rtol=0, atol=1e-6
    )


def test_integer_times_are_the_papers_levels(schedule: Schedule):
    alpha, _ = schedule.alpha_sigma(torch.tensor([1, 500, 1000]))
    torch.testing.assert_close(alpha, schedule.alpha_bar[[1, 500, 1000]].sqrt(), rtol=1e-12, atol=0)


def test_log_snr_falls(schedule: Schedule):
    t = torch.linspace(0, 1000, 4001, dtype=torch.float64)
    assert (schedule.log_snr(t).diff() < 0).all()
    assert schedule.log_snr(t[0]) == torch.inf


def test_between_levels_log_alpha_bar_is_linear(schedule: Schedule):
    alpha, _ = schedule.alpha_sigma(torch.tensor([10.0, 10.25, 11.0]).double())
    torch.testing.assert_close(alpha[1].log(), 0.75 * alpha[0].log() + 0.25 * alpha[2].log(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.1, 1.0], [float("nan")]])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(ValueError, match="^betas"):
        TableSchedule(torch.tensor(betas))


@pytest.mark.parametrize(
    ("make", "options"),
    [(linear, {"levels": 0}), (linear, {"beta_end": 1.0}), (linear, {"beta_start": 0.0}), (cosine, {"levels": -1}),
     (cosine, {"s": -1.0}), (cosine, {"max_beta": 1.0})],
)  # fmt: skip
def test_options_out_of_range_are_named(make, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} "):
        make(**options)
