"""Power averages of the weights of a training, and an average of any length from stored ones.

Karras et al. 2024 (EDM2, "Analyzing and improving the training dynamics of diffusion models"), section 3, appendix C:

    average(t) = integral from 0 to t of p(tau) weights(tau),     p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)

Its length is the standard deviation of p, as a share of t. With weights that are constant in a step it is exactly what
`rate` computes step by step: the profile falls to 0 at the beginning, so that there is nothing to warm up.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffuse.system.errors import check

LONGEST = 12**-0.5  # the length of the mean of all weights, gamma = 0


class Profile(NamedTuple):
    """The profile p of a power average: the step t at which it was taken, and its exponent gamma."""

    step: int
    gamma: float


def length_of(gamma: float) -> float:
    """The length of the average with this exponent: length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
    return float(((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5)


def gamma_of(length: float) -> float:
    """The exponent of the average with this length, the inverse of `length_of`: the root of a cubic above 0."""
    check(0 < length < LONGEST, "length", f"above 0 and below {LONGEST:.4f}", length)
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return float(max(roots.real[np.abs(roots.imag) < 1e-6 * np.abs(roots)]))


def rate(step: int, gamma: float) -> float:
    """How far the average moves towards the weights after `step` steps: 1 - (1 - 1 / step)^(gamma + 1)."""
    return float(-np.expm1((gamma + 1) * np.log1p(-1 / step))) if step > 1 else 1.0


def inner_product(one: Profile, other: Profile) -> float:
    """The integral of the product of two profiles: how much alike they are."""
    early, late = sorted((one, other))
    total = one.gamma + other.gamma + 1
    return float((one.gamma + 1) * (other.gamma + 1) / (total * late.step) * (early.step / late.step) ** late.gamma)


def combination(stored: Sequence[Profile], wanted: Profile) -> np.ndarray:
    """Factors of stored averages whose sum is nearest to the wanted one: least squares of the profiles. Their sum is 1.

    EDM2, appendix C. In float64.
    """
    products = np.array([[inner_product(one, other) for other in stored] for one in stored])
    found = np.linalg.lstsq(products, np.array([inner_product(each, wanted) for each in stored]), rcond=None)[0]
    return np.asarray(found / found.sum(), np.float64)
