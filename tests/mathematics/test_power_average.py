"""Power averages: profiles by quadrature, the recursion by the profile, combinations by what they stand for."""

import numpy as np
import pytest
from scipy.integrate import quad

from diffuse.mathematics.power_average import (
    LONGEST,
    Profile,
    combination,
    gamma_of,
    inner_product,
    length_of,
    rate,
)
from diffuse.system.errors import Refused


def density(tau: float, profile: Profile) -> float:
    """p(tau), written out."""
    t, gamma = profile
    return (gamma + 1) * tau**gamma / t ** (gamma + 1) if tau <= t else 0.0


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.15, 0.28])
def test_the_length_is_the_profiles_standard_deviation(length):
    profile = Profile(7, gamma_of(length))
    total, mean, square = (quad(lambda tau, k=k: tau**k * density(tau, profile), 0, 7)[0] for k in range(3))
    assert total == pytest.approx(1, rel=1e-9)
    assert (square - mean**2) ** 0.5 / 7 == pytest.approx(length, rel=1e-7)
    assert length_of(gamma_of(length)) == pytest.approx(length, rel=1e-12)


def test_the_exponents_are_those_of_the_paper():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("length", [0.0, -0.1, LONGEST, 0.5])
def test_a_length_that_no_average_has_is_refused(length):
    with pytest.raises(Refused, match="length must be above 0 and below 0.2887"):
        gamma_of(length)


@pytest.mark.parametrize("gamma", [0.0, 6.94, 16.97])
def test_the_recursion_is_the_integral_over_constant_pieces(gamma):
    weights = np.random.default_rng(0).standard_normal(60)
    average, steps = 5.0, 60  # what was there before the first step is forgotten
    for step in range(1, steps + 1):
        average += rate(step, gamma) * (weights[step - 1] - average)
    profile = Profile(steps, gamma)
    pieces = [quad(density, step, step + 1, args=(profile,), epsabs=1e-13)[0] for step in range(steps)]
    assert average == pytest.approx(float(np.dot(pieces, weights)), rel=1e-10)


@pytest.mark.parametrize("other", [Profile(90, 4.0), Profile(200, 16.97), Profile(120, 6.94), Profile(120, 3.0)])
def test_the_inner_product_is_the_integral_of_the_product(other):
    one = Profile(120, 6.94)
    found = quad(lambda tau: density(tau, one) * density(tau, other), 0, min(one.step, other.step), epsabs=1e-14)[0]
    assert inner_product(one, other) == pytest.approx(found, rel=1e-9)
    assert inner_product(other, one) == inner_product(one, other)


def stored(steps: int, count: int = 20) -> list[Profile]:
    return [Profile(round(steps * k / count), gamma_of(length)) for k in range(1, count + 1) for length in (0.05, 0.1)]


@pytest.mark.parametrize("length", [0.05, 0.06, 0.08, 0.1, 0.12, 0.15])
def test_a_combination_has_the_wanted_profile(length):
    """Against the profile itself on a fine grid; without the part before the first snapshot, a 20th to the 7th."""
    profiles, wanted = stored(1000), Profile(1000, gamma_of(length))
    factors = combination(profiles, wanted)
    grid = np.arange(0.5, 1000)
    found = sum(
        factor * np.array([density(tau, p) for tau in grid]) for factor, p in zip(factors, profiles, strict=True)
    )
    expected = np.array([density(tau, wanted) for tau in grid])
    assert factors.sum() == pytest.approx(1, abs=1e-12)
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


def test_a_stored_average_is_itself():
    profiles = stored(400)
    for place in (3, 38, 39):
        expected = np.zeros(40)
        expected[place] = 1
        np.testing.assert_allclose(combination(profiles, profiles[place]), expected, atol=1e-7)


@pytest.mark.parametrize("length", [0.05, 0.07, 0.1, 0.13, 0.15])
def test_twenty_snapshots_in_half_precision_give_the_average_to_a_thousandth(length):
    """Weights that drift, jitter, and come to rest, as in a training whose rate falls."""
    steps, random = 2000, np.random.default_rng(0)
    moves = random.standard_normal((steps, 300)) * np.linspace(1, 0.1, steps)[:, None] * 0.003
    weights = 0.1 * random.standard_normal(300) + moves.cumsum(0) + 0.02 * random.standard_normal((steps, 300))

    def average(profile: Profile) -> np.ndarray:
        ends = (np.arange(profile.step + 1) / profile.step) ** (profile.gamma + 1)
        return np.diff(ends) @ weights[: profile.step]

    profiles, wanted = stored(steps), Profile(steps, gamma_of(length))
    kept = [average(profile).astype(np.float16).astype(float) for profile in profiles]
    found = sum(factor * each for factor, each in zip(combination(profiles, wanted), kept, strict=True))
    expected = average(wanted)
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
    other = average(Profile(steps, gamma_of(0.8 * length)))
    assert np.linalg.norm(other - expected) > 2e-3 * np.linalg.norm(expected)
