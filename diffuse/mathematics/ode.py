"""The exact likelihood of a network's model of the data, by the probability-flow ODE from data to noise.

The deterministic process with the marginals of the diffusion (Song et al. 2021, section 4.3), written in the angle phi
with tan(phi) = rho = sigma / alpha, from 0 for data to pi / 2 for pure noise:

    z = x_t / sqrt(alpha^2 + sigma^2) = cos(phi) x0 + sin(phi) eps
    dz / dphi = cos(phi) eps - sin(phi) x0 = v / sqrt(alpha^2 + sigma^2),   d log p(z) / dphi = -div_z (dz / dphi)

with eps, x0 and v as the network predicts them (Salimans and Ho 2022, appendix D). No derivative of the schedule
appears, every path is the same ODE, and nothing is infinite if x_T is pure noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse.mathematics.denoiser import AnyDenoiser
from diffuse.mathematics.schedules import Schedule, radius

# (phi, z) -> dz / dphi and its divergence; a solver integrates both over a grid of angles, from z at the first one.
Field = Callable[[float, Tensor], tuple[Tensor, Tensor]]
Solver = Callable[[Field, Tensor, Tensor], tuple[Tensor, Tensor, int]]
Divergence = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OdeLikelihood:
    """log_density [b] of each image, in nats and float64 on the CPU; the noise x_T that the ODE takes it to; the number
    of network evaluations, each with its derivative.
    """

    log_density: Tensor
    noise: Tensor
    evaluations: int


def log_likelihood(
    denoiser: AnyDenoiser,
    x0: Tensor,
    y: Tensor | None = None,
    *,
    solver: Solver,
    divergence: Divergence,
    t_min: float | None = None,
    steps: int = 64,
) -> OdeLikelihood:
    """log p(x0) by the change of variables along the ODE from t_min, where x / alpha is set to x0, to T.

        log p(x0) = log N(x_T; 0, prior_std^2) + log |det dx_T / dx0|

    x0 [b, C, H, W]. t_min: by default the schedule's, the smallest time that the network was trained at: the density
    is that of images with noise of standard deviation rho(t_min). steps: for solvers with fixed steps, which are evenly
    spaced in log-SNR. The denoiser must not clip.
    """
    schedule = denoiser.schedule
    times = torch.tensor([schedule.t_min if t_min is None else t_min, schedule.T], dtype=torch.float64)
    phi = angles(schedule, times, steps)
    start, end = (1 / radius(schedule, t) for t in times)
    alpha, _ = schedule.alpha_sigma(times[0])
    z, change, evaluations = solver(probability_flow(denoiser, y, divergence), x0 * (alpha * start), phi)
    x_T = z / end
    prior = -0.5 * ((x_T / schedule.prior_std).square() + math.log(2 * math.pi * schedule.prior_std**2))
    # log |det| of three maps: from x0 to z at t_min, from there to z at T, from there to x_T
    log_det = change + x0[0].numel() * (torch.log(alpha * start) - torch.log(end))
    return OdeLikelihood(prior.flatten(1).sum(1).cpu().double() + log_det, x_T, evaluations)


def angles(schedule: Schedule, ends: Tensor, steps: int) -> Tensor:
    """Angles of a grid of times from ends[0] to ends[1], [steps + 1], increasing, evenly spaced in log-SNR.

    If x_T is pure noise, the last step is from log-SNR -16 to phi = pi / 2.
    """
    last = schedule.log_snr(ends[1])
    inner = torch.linspace(float(schedule.log_snr(ends[0])), max(float(last), -16.0), steps + 1, dtype=torch.float64)
    phi = torch.atan(torch.exp(-inner / 2))
    phi[-1] = torch.atan(torch.exp(-last / 2))
    return phi


def probability_flow(denoiser: AnyDenoiser, y: Tensor | None, divergence: Divergence | None) -> Field:
    """dz / dphi as the denoiser predicts it, and its divergence in float64 on the CPU; None: 0, and no derivatives."""
    schedule = denoiser.schedule

    def field(phi: float, z: Tensor) -> tuple[Tensor, Tensor]:
        t = schedule.time(-2 * torch.log(torch.tan(torch.tensor(phi, dtype=torch.float64))))
        r = radius(schedule, t)
        if divergence is None:
            return denoiser(z * r, t, y).v / r, torch.zeros(len(z), dtype=torch.float64)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            velocity = denoiser(z * r, t, y).v / r
            return velocity.detach(), divergence(velocity, z).detach().cpu().double()

    return field


# ------------------------------------------------------------------------------------------------------ divergences


def exact_divergence(velocity: Tensor, z: Tensor) -> Tensor:
    """The trace of the Jacobian, [b], by one backward pass for each dimension of an image: for small images."""
    total = velocity.new_zeros(len(z))
    for i, component in enumerate(velocity.flatten(1).unbind(1)):
        (gradient,) = torch.autograd.grad(component.sum(), z, retain_graph=True)
        total = total + gradient.flatten(1)[:, i]
    return total


def hutchinson(probe: Tensor) -> Divergence:
    """probe^T J probe, [b], by a single backward pass: unbiased for probes of mean 0 and covariance I.

    Hutchinson 1989; Grathwohl et al. 2019, equation 7. The probe is the same along the whole path, as there. Random
    signs (Rademacher) have the smallest variance.
    """

    def divergence(velocity: Tensor, z: Tensor) -> Tensor:
        (product,) = torch.autograd.grad((velocity * probe).sum(), z)
        return (product * probe).flatten(1).sum(1)

    return divergence


# ---------------------------------------------------------------------------------------------------------- solvers


def heun(field: Field, z: Tensor, phi: Tensor) -> tuple[Tensor, Tensor, int]:
    """Heun's method, order 2: two evaluations per step."""
    total = torch.zeros(len(z), dtype=torch.float64)
    for start, end in pairwise(phi.tolist()):
        h = end - start
        k1, d1 = field(start, z)
        k2, d2 = field(end, z + h * k1)
        z, total = z + h / 2 * (k1 + k2), total + h / 2 * (d1 + d2)
    return z, total, 2 * (len(phi) - 1)


def rk4(field: Field, z: Tensor, phi: Tensor) -> tuple[Tensor, Tensor, int]:
    """The classical Runge-Kutta method, order 4: four evaluations per step."""
    total = torch.zeros(len(z), dtype=torch.float64)
    for start, end in pairwise(phi.tolist()):
        h, middle = end - start, (start + end) / 2
        k1, d1 = field(start, z)
        k2, d2 = field(middle, z + h / 2 * k1)
        k3, d3 = field(middle, z + h / 2 * k2)
        k4, d4 = field(end, z + h * k3)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        total = total + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return z, total, 4 * (len(phi) - 1)


def rk45(tolerance: float = 1e-5) -> Solver:
    """Dormand and Prince's adaptive pair of orders 5 and 4, from scipy: Song et al. 2021, appendix D.2.

    tolerance: relative and absolute, for z and the log-density together. All images of a batch take the same steps.
    """

    from scipy import integrate  # slow to import, and few commands need it

    def solve(field: Field, z: Tensor, phi: Tensor) -> tuple[Tensor, Tensor, int]:
        count = z.numel()

        def derivative(angle: float, state: np.ndarray) -> np.ndarray:
            here = torch.from_numpy(state[:count]).to(z).reshape(z.shape)
            found = np.concatenate([part.flatten().cpu().double().numpy() for part in field(float(angle), here)])
            if not np.isfinite(found).all():  # scipy would reduce its step size for ever
                raise ArithmeticError("the network returns NaN or infinite values along the ODE")
            return found

        start = np.concatenate([z.flatten().cpu().double().numpy(), np.zeros(len(z))])
        ends = (float(phi[0]), float(phi[-1]))
        found: Any = integrate.solve_ivp(
            derivative, ends, start, method="RK45", rtol=tolerance, atol=tolerance, t_eval=ends[1:]
        )
        if not found.success:
            raise ArithmeticError(f"the ODE could not be solved to the tolerance: {found.message}")
        end = torch.from_numpy(found.y[:, -1])
        return end[:count].to(z).reshape(z.shape), end[count:], int(found.nfev)

    return solve
