"""Whole trajectories of the few-step samplers against diffusers' schedulers, on our grid, in float64.

Where the last step differs, since ours lands on the predicted x0, grids end above 0. Not compared: order 3 of
DPM-Solver multistep, of second order there (`samplers.dpm_solver`); eta between 0 and 1 and iPNDM, which it has not.
"""

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.samplers.dpm_solver import dpm_solver, dpm_solver_singlestep
from diffuse.mathematics.samplers.heun import heun
from diffuse.mathematics.samplers.linear_multistep import deis, lms, pndm
from diffuse.mathematics.samplers.unipc import unipc
from diffuse.mathematics.schedules import Schedule
from tests.support.samplers import Wavy, normal64

# They announce the end of the first DPM-Solver, in eps.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
LEVELS = [1000, 840, 700, 523, 400, 210, 90, 30, 8, 1]
UNEVEN = torch.tensor([*LEVELS, 0], dtype=torch.float64)
ABOVE_0 = UNEVEN[:-1]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Their steps are computed in torch.float32, whatever the images are."""
    monkeypatch.setattr(torch, "float32", torch.float64)


def rho_of(schedule: Schedule, times: Tensor) -> Tensor:
    return torch.where(times > 0, torch.exp(-schedule.log_snr(times.clamp(min=1e-9)) / 2), 0)


def prepared(kind, schedule: Schedule, times: Tensor, **options):
    """A scheduler with our tables, on our grid (their timesteps count from 0)."""
    scheduler = kind(num_train_timesteps=1000, **options)
    scheduler.alphas_cumprod = schedule.alpha_bar[1:]
    scheduler.sigmas = rho_of(schedule, times)
    scheduler.timesteps = (times if times[-1] > 0 else times[:-1]) - 1
    scheduler.num_inference_steps = len(scheduler.timesteps)
    return scheduler


def denoiser_of(schedule: Schedule) -> Denoiser:
    return Denoiser(Wavy(), schedule)


def compare(ours, scheduler, schedule: Schedule, times: Tensor, start: Tensor, in_rho: bool = False, noises=None):
    """Each x of ours against theirs, whose sample is x, or x / alpha."""
    x = start / schedule.alpha_sigma(times[0])[0] if in_rho else start
    for place, found in enumerate(ours):
        t, s = times[place], times[place + 1]
        alpha_t, alpha_s = (schedule.alpha_sigma(each)[0] if in_rho else 1 for each in (t, s))
        eps = Wavy()(x * alpha_t, torch.full((len(x),), float(t) - 1, dtype=torch.float64))
        words = {} if noises is None else {"variance_noise": noises[place]}
        x = scheduler.step(eps, t - 1, x, **words).prev_sample
        torch.testing.assert_close(found, x * alpha_s, rtol=1e-9, atol=1e-9)


@pytest.fixture
def start() -> Tensor:
    return normal64(5, 2, 3, 4, 4)


@pytest.mark.parametrize("times", [UNEVEN, ABOVE_0], ids=["to 0", "above 0"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("slope", "solver_type"), [("midpoint", "midpoint"), ("exact", "heun")])
@pytest.mark.parametrize(("form", "algorithm"), [("x0", "dpmsolver++"), ("eps", "dpmsolver")])
def test_dpm_solver_multistep(schedule, start, times, order, slope, solver_type, form, algorithm):
    if form == "eps" and times is UNEVEN:
        times = ABOVE_0  # refused there
    theirs = prepared(
        DPMSolverMultistepScheduler, schedule, times, solver_order=order, solver_type=solver_type,
        algorithm_type=algorithm, lower_order_final=False, final_sigmas_type="zero" if form == "x0" else "sigma_min",
    )  # fmt: skip
    options = {"order": order, "slope": slope, "form": form, "lower_order_final": False}
    compare(dpm_solver(denoiser_of(schedule), start, times, **options), theirs, schedule, times, start)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("form", "algorithm"), [("x0", "sde-dpmsolver++"), ("eps", "sde-dpmsolver")])
@pytest.mark.parametrize("slope", ["midpoint", "exact"])
def test_sde_dpm_solver(schedule, start, order, form, algorithm, slope):
    theirs = prepared(
        DPMSolverMultistepScheduler, schedule, ABOVE_0, solver_order=order, algorithm_type=algorithm,
        solver_type={"midpoint": "midpoint", "exact": "heun"}[slope], lower_order_final=False,
        final_sigmas_type="sigma_min",
    )  # fmt: skip
    noises = list(normal64(7, len(ABOVE_0), *start.shape))
    draws = iter(noises)
    options = {"order": order, "form": form, "slope": slope, "eta": 1.0, "lower_order_final": False}
    ours = dpm_solver(denoiser_of(schedule), start, ABOVE_0, noise=lambda _: next(draws), **options)
    compare(ours, theirs, schedule, ABOVE_0, start, noises=noises)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("slope", "solver_type"), [("midpoint", "midpoint"), ("exact", "heun")])
@pytest.mark.parametrize(("form", "algorithm"), [("x0", "dpmsolver++"), ("eps", "dpmsolver")])
def test_dpm_solver_singlestep(schedule, start, order, slope, solver_type, form, algorithm):
    """Their steps go through times of the grid; so theirs is ours with the middles in lambda put between."""
    lambdas = torch.linspace(-2, 3, 9, dtype=torch.float64)
    times = schedule.time(2 * lambdas)
    theirs = prepared(
        DPMSolverSinglestepScheduler, schedule, times, solver_order=order, solver_type=solver_type,
        algorithm_type=algorithm, final_sigmas_type="zero" if form == "x0" else "sigma_min",
    )  # fmt: skip
    theirs.order_list = [1, 2] * 4 if order == 2 else [1] * 8
    x = start
    for t in times[:-1]:
        eps = Wavy()(x, torch.full((2,), float(t) - 1, dtype=torch.float64))
        x = theirs.step(eps, t - 1, x).prev_sample
    *_, found = dpm_solver_singlestep(denoiser_of(schedule), start, times[::order], order=order, slope=slope, form=form)
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("times", "b", "lower_order_final"),
    [  # theirs is NaN, or a singular system, for a step to 0 with bh1 or of order 2
        (UNEVEN, "bh2", True),
        *[(ABOVE_0, b, lower_order_final) for b in ("bh1", "bh2") for lower_order_final in (False, True)],
    ],
)
@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(schedule, start, order, b, corrector, times, lower_order_final):
    theirs = prepared(
        UniPCMultistepScheduler, schedule, times, solver_order=order, solver_type=b,
        lower_order_final=lower_order_final, disable_corrector=[] if corrector else list(range(len(times))),
    )  # fmt: skip
    if times is ABOVE_0:
        theirs.timesteps = theirs.timesteps[:-1]
    options = {"order": order, "b": b, "corrector": corrector, "lower_order_final": lower_order_final}
    compare(unipc(denoiser_of(schedule), start, times, **options), theirs, schedule, times, start)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_log_rho(schedule, start, order):
    theirs = prepared(DEISMultistepScheduler, schedule, ABOVE_0, solver_order=order, lower_order_final=False)
    ours = deis(denoiser_of(schedule), start, ABOVE_0, order=order, space="log_rho")
    compare(ours, theirs, schedule, ABOVE_0, start)


def test_heun(schedule, start):
    theirs = prepared(HeunDiscreteScheduler, schedule, UNEVEN)
    rho, t = theirs.sigmas, theirs.timesteps
    theirs.sigmas = torch.cat([rho[:1], rho[1:-1].repeat_interleave(2), rho[-1:]])
    theirs.timesteps = torch.cat([t[:1], t[1:].repeat_interleave(2)])
    x, found = start / schedule.alpha_sigma(UNEVEN[0])[0], iter(heun(denoiser_of(schedule), start, UNEVEN))
    for place, t in enumerate(theirs.timesteps):
        alpha = schedule.alpha_sigma(t + 1)[0]
        eps = Wavy()(x * alpha, torch.full((2,), float(t), dtype=torch.float64))
        x = theirs.step(eps, t, x).prev_sample
        if place % 2 or place == len(theirs.timesteps) - 1:
            alpha = schedule.alpha_sigma(UNEVEN[place // 2 + 1])[0]
            torch.testing.assert_close(next(found), x * alpha, rtol=1e-9, atol=1e-9)


def test_euler(schedule, start):
    theirs = prepared(EulerDiscreteScheduler, schedule, UNEVEN)
    compare(heun(denoiser_of(schedule), start, UNEVEN, order=1), theirs, schedule, UNEVEN, start, in_rho=True)


def test_lms(schedule, start):
    theirs = prepared(LMSDiscreteScheduler, schedule, ABOVE_0)
    theirs.is_scale_input_called = True
    compare(lms(denoiser_of(schedule), start, ABOVE_0), theirs, schedule, ABOVE_0, start, in_rho=True)


@pytest.mark.parametrize("first", ["plms", "runge_kutta"])
def test_pndm(schedule, start, first):
    """On their grid of 20 levels, 50 apart."""
    theirs = PNDMScheduler(num_train_timesteps=1000, skip_prk_steps=first == "plms")
    theirs.alphas_cumprod = schedule.alpha_bar[1:]
    theirs.set_timesteps(20)
    times = torch.arange(951, 0, -50, dtype=torch.float64)
    x = start
    for t in theirs.timesteps[:-1]:
        eps = Wavy()(x, torch.full((2,), float(t), dtype=torch.float64))
        x = theirs.step(eps, int(t), x).prev_sample
    *_, found = pndm(denoiser_of(schedule), start, times, start=first)
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)
