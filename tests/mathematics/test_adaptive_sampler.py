"""The adaptive Runge-Kutta sampler: its tolerance, each image's own steps, and networks whose output overflows."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffuse.mathematics.continuous import VE, Flow
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.oracles import Gaussian
from diffuse.mathematics.samplers.adaptive import dormand_prince
from diffuse.mathematics.tables import linear
from diffuse.mathematics.wrappers import Observed
from tests.support.paths import PATHS, Path, on_every_path
from tests.support.samplers import COARSE, last, normal64


@on_every_path
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_the_adaptive_method_keeps_its_tolerance(gaussian: Gaussian, path: Path, tolerance: float):
    """Against the Gaussian's own flow from T to a time above 0: the error is a multiple of what a step may have."""
    count = 0

    class Counted(torch.nn.Module):
        def forward(self, *arguments):
            nonlocal count
            count += len(arguments[0])
            return denoiser(*arguments)

        schedule = path.schedule

    denoiser = gaussian.denoiser(path.schedule, path.prediction)
    x = path.prior_std * normal64(5, 4, 3, 1, 1)
    found = last(dormand_prince(Counted(), x, torch.tensor([1000.0, 20.0]).double(), tolerance=tolerance))
    (alpha_T, sigma_T), (alpha_s, sigma_s) = path.alpha_sigma(1000), path.alpha_sigma(20)
    grown = ((alpha_s * gaussian.std) ** 2 + sigma_s**2).sqrt() / ((alpha_T * gaussian.std) ** 2 + sigma_T**2).sqrt()
    exact = alpha_s * gaussian.mean + grown * (x - alpha_T * gaussian.mean)
    size = math.hypot(alpha_s, sigma_s)
    assert (found - exact).abs().max() / size < 150 * tolerance
    assert count / len(x) < {1e-2: 120, 1e-4: 220, 1e-6: 450}[tolerance]


@pytest.mark.parametrize("schedule", [linear(), VE(), Flow()])
def test_the_steps_of_an_image_are_its_own(schedule):
    """Image i alone, bit for bit, beside images that need more steps; with its own label."""

    def net(x: Tensor, time: Tensor, y: Tensor) -> Tensor:
        return torch.sin((2 + 3 * y.reshape(-1, 1, 1, 1)) * x) + torch.cos(time / 200).reshape(-1, 1, 1, 1)

    prediction = PATHS["flow"].prediction
    x, y = schedule.prior_std * normal64(8, 5, 2, 3, 3), torch.arange(5)
    together = last(dormand_prince(Denoiser(net, schedule, prediction), x, COARSE, y))
    for i in range(5):
        alone = last(dormand_prince(Denoiser(net, schedule, prediction), x[i : i + 1], COARSE, y[i : i + 1]))
        assert torch.equal(alone[0], together[i])


def test_the_adaptive_steps_are_those_of_scipy():
    """The same tableau, error norm and rules for steps: as many evaluations from the same first step."""
    data = Gaussian(*torch.tensor([0.3, 0.05], dtype=torch.float64).reshape(2, 1, 1, 1))
    denoiser, x = data.denoiser(VE()), 100 * normal64(3, 1, 1, 2, 2)
    start, end = (math.atan(VE().alpha_sigma(t)[1]) for t in torch.tensor([1000.0, 20.0]).double())
    seen: list[float] = []

    def field(phi: float, z: np.ndarray) -> np.ndarray:
        rho = math.tan(phi)
        x0 = 0.3 + 0.05**2 / (0.05**2 + rho**2) * (z / math.cos(phi) - 0.3)
        return (z - math.cos(phi) * x0) / math.sin(phi) * math.cos(phi) - math.sin(phi) * x0

    z = (x * math.cos(start)).flatten().numpy()
    first = 0.01 * np.sqrt(np.mean(z**2) / np.mean(field(start, z) ** 2))
    observed = Observed(denoiser, lambda guess: seen.append(1))
    for tolerance in (1e-2, 1e-5):
        seen.clear()
        theirs = solve_ivp(field, (start, end), z, rtol=tolerance, atol=tolerance, first_step=first)
        ours = last(dormand_prince(observed, x, torch.tensor([1000.0, 20.0]).double(), tolerance=tolerance))
        np.testing.assert_allclose(ours.flatten() * math.cos(end), theirs.y[:, -1], rtol=1e-9)
        assert len(seen) == theirs.nfev


def test_nan_ends_the_adaptive_method():
    """A step whose error is NaN is taken, not tried for ever."""
    denoiser = Denoiser(lambda x, time, y: x * float("nan"), linear())
    assert last(dormand_prince(denoiser, normal64(1, 2, 1, 2, 2), COARSE)).isnan().all()


@pytest.mark.parametrize("factor", [1e30, math.inf])
def test_a_network_that_overflows_ends_the_adaptive_method(factor: float):
    denoiser = Denoiser(lambda x, time, y: x * factor, linear())
    assert last(dormand_prince(denoiser, normal64(1, 2, 1, 2, 2).float(), COARSE)).isnan().all()


@pytest.mark.parametrize("between", [[], [800.0, 700.0, 650.0]])
def test_the_last_step_lands_on_the_x0_predicted_at_the_time_before(gaussian: Gaussian, between: list[float]):
    """On a path whose x grows, from a time with much noise; the times between do not count."""
    schedule, x = VE(), 100 * normal64(3, 2, 3, 2, 2)
    denoiser = gaussian.denoiser(schedule)
    ends = [torch.tensor([1000.0, *between, 600.0, *rest], dtype=torch.float64) for rest in ([], [0.0])]
    before, landed = (last(dormand_prince(denoiser, x, times, tolerance=1e-6)) for times in ends)
    torch.testing.assert_close(landed, denoiser(before, ends[0][-1]).x0, rtol=1e-9, atol=1e-9)
