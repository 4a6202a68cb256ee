"""Exponential integrators in half the log-SNR, lambda = log(alpha / sigma): what DPM-Solver and UniPC share.

The flow is linear in x but for the network's part, and that linear part is solved exactly. From t to s, with
h = lambda_s - lambda_t (Lu et al. 2022 (DPM-Solver++), proposition 4.1; DPM-Solver, proposition 3.1):

    x_s = sigma_s / sigma_t x + alpha_s integral_0^h e^(u - h) x0(lambda_t + u) du           in x0
    x_s = alpha_s / alpha_t x - sigma_s integral_0^h e^(h - u) eps(lambda_t + u) du          in eps

The second is the first with alpha and sigma exchanged, eps for x0, and mu = -lambda for lambda. So a method is: in
which form, and by which polynomial through which evaluations the integrand is replaced.

With eta times the noise of the reverse SDE (eta = 1), the linear part and the noise are exact as well:

    x_s = sigma_s / sigma_t e^(-eta h) x + alpha_s (1 + eta) integral_0^h e^((1 + eta)(u - h)) x0 du
          + sigma_s sqrt(1 - e^(-2 eta h)) z                                                 in x0
    x_s = alpha_s / alpha_t x - sigma_s (1 + eta) integral_0^h e^(h - u) eps du
          + sigma_s sqrt(eta (e^(2 h) - 1)) z                                                in eps
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from diffuse.mathematics.denoiser import Noise, Prediction
from diffuse.mathematics.schedules import Schedule

# Gauss and Legendre's rule: exact to rounding for these integrals where |h| is below 20, and no grid has such a step.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)


class Evaluation(NamedTuple):
    """A prediction of x0 or eps, as the form has it, and half the log-SNR at its time."""

    half_log_snr: float
    value: Tensor


@dataclass(frozen=True)
class Form:
    """The flow in x0 or in eps, with eta times the noise of the reverse SDE.

    Lengths and places are distances in mu from the beginning of a step: an earlier evaluation's place lies beyond it,
    on the other side than the end of the step.
    """

    in_x0: bool
    eta: float = 0.0

    def value(self, guess: Prediction) -> Tensor:
        """What is integrated."""
        return guess.x0 if self.in_x0 else guess.eps

    def distance(self, change: float) -> float:
        """The change of mu for a change of half the log-SNR."""
        return change if self.in_x0 else -change

    @property
    def decay(self) -> float:
        """The rate of the exponential below the integral."""
        return 1 + self.eta if self.in_x0 else 1.0

    def total(self, length: float) -> float:
        """The weight of a value that is constant along the step."""
        return -math.expm1(-self.decay * length)

    def exact(self, places: Sequence[float], length: float) -> list[float]:
        """The weight of each evaluation: decay times the integral of e^(decay (u - length)) L_j(u) du.

        L_j is Lagrange's polynomial, 1 at the place j and 0 at the others.
        """
        u = length / 2 * (NODES + 1)
        factor = self.decay * length / 2 * WEIGHTS * np.exp(self.decay * (u - length))
        return [float(factor @ lagrange(places, j, u)) for j in range(len(places))]

    def straight(self, places: Sequence[float], length: float, slope: float) -> list[float]:
        """The weights of two evaluations, the first at 0, where their slope times `length` has the weight `slope`."""
        other = slope * length / places[1]
        return [self.total(length) - other, other]

    def midpoint(self, places: Sequence[float], length: float) -> list[float]:
        """The weights of two evaluations, of whose straight line the middle is taken for the whole step."""
        return self.straight(places, length, self.total(length) / 2)


def lagrange(places: Sequence[float], j: int, u: np.ndarray) -> np.ndarray:
    """L_j at u: the polynomial of lowest degree that is 1 at the place j and 0 at the others."""
    found = np.ones_like(u)
    for i, place in enumerate(places):
        if i != j:
            found = found * (u - place) / (places[j] - place)
    return found


class Step:
    """A step of the flow from t to s. `finite` says whether half the log-SNR is so at both ends."""

    def __init__(self, schedule: Schedule, flow: Form, t: Tensor, s: Tensor):
        self.flow = flow
        self.alpha_t, self.sigma_t = schedule.alpha_sigma(t)
        self.alpha_s, self.sigma_s = schedule.alpha_sigma(s)
        self.start, self.end = float(schedule.log_snr(t)) / 2, float(schedule.log_snr(s)) / 2
        self.h = self.end - self.start
        self.finite = math.isfinite(self.h)
        self.kept = math.exp(-self.h)  # (alpha_t / sigma_t) / (alpha_s / sigma_s)
        self.length = flow.distance(self.h)

    def places(self, known: Sequence[Evaluation]) -> list[float]:
        """The places of evaluations."""
        return [self.flow.distance(each.half_log_snr - self.start) for each in known]

    def polynomial(self, x: Tensor, known: Sequence[Evaluation], slope: str = "exact") -> Tensor:
        """x_s by the polynomial through all of these evaluations, without noise.

        slope=midpoint takes the middle of a straight line for all of it; everything else is integrated exactly.
        """
        by = self.flow.midpoint if slope == "midpoint" and len(known) == 2 else self.flow.exact
        return self.weighted(x, by(self.places(known), self.length), known)

    def weighted(self, x: Tensor, weights: Sequence[float], known: Sequence[Evaluation]) -> Tensor:
        """x_s with these weights of the evaluations, without noise."""
        if self.flow.in_x0:
            of_x, of_integral = self.sigma_s / self.sigma_t * self.kept**self.flow.eta, self.alpha_s
        else:
            of_x, of_integral = self.alpha_s / self.alpha_t, (1 + self.flow.eta) * self.sigma_s
        x = of_x * x
        for weight, each in zip(weights, known, strict=True):
            x = x + of_integral * weight * each.value
        return x

    def constant_x0(self, x: Tensor, x0: Tensor) -> Tensor:
        """x_s, without noise, for a step that is not finite: the limit of both forms, with x0 constant along it.

        Nothing of eps is kept where there is noise (e^-h is 0), and all of it without.
        """
        return self.alpha_s * x0 if self.flow.eta else self.sigma_s / self.sigma_t * x + self.alpha_s * x0

    def add_noise(self, x: Tensor, noise: Noise) -> Tensor:
        """x_s with the noise of the step, of which there is none at s = 0."""
        eta = self.flow.eta
        if eta == 0 or self.sigma_s == 0:
            return x
        in_x0 = self.flow.in_x0 or not self.finite
        variance = 1 - self.kept ** (2 * eta) if in_x0 else eta * (self.kept**-2 - 1)
        return x + self.sigma_s * math.sqrt(variance) * noise(x)
