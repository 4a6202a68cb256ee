"""Grids of times against their formulas, on tables of levels and on the paths in continuous time."""

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from diffuse.mathematics.continuous import VE, VP, Flow
from diffuse.mathematics.schedules import Schedule, TableSchedule
from diffuse.mathematics.spacings import (
    SPACINGS,
    consistency,
    ddim_quadratic,
    karras,
    leading,
    log_snr,
    own_grid,
    quadratic,
    time_grid,
    to_zero,
    uniform,
)
from diffuse.mathematics.tables import cosine, linear, sigmoid
from diffuse.system.errors import Refused

ENDS = {"beta_start": 1e-4, "beta_end": 0.02}  # however few levels there are
TABLES: dict[str, Callable[[int], TableSchedule]] = {
    "linear": partial(linear, **ENDS),
    "cosine": cosine,
    "sigmoid": partial(sigmoid, **ENDS),
    "linear to pure noise": partial(linear, **ENDS, zero_terminal_snr=True),
    "cosine to pure noise": partial(cosine, zero_terminal_snr=True),
}
PATHS: dict[str, Callable[[], Schedule]] = {"vp": VP, "ve": VE, "flow": Flow}
BELOW_T = (leading, ddim_quadratic)  # the grids of DDIM's code do not begin at T


def are_possible(spacing: Callable[[Schedule, int], Tensor], steps: int, levels: int) -> bool:
    """Whether DDIM's grids have so many steps."""
    return spacing not in BELOW_T or levels == 1 or (steps > 1 and (spacing is ddim_quadratic or levels % steps == 0))


def rho(schedule: Schedule, t: Tensor) -> np.ndarray:
    """sigma / alpha, the sigma of Karras et al. 2022."""
    alpha, sigma = schedule.alpha_sigma(t)
    return (sigma / alpha).numpy()


def equation_5(largest: float, smallest: float, N: int) -> np.ndarray:
    """sigma_i for i < N of Karras et al. 2022, equation 5, with their rho = 7."""
    return np.array(
        [(largest ** (1 / 7) + i / (N - 1) * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7 for i in range(N)]
    )


def nearest_levels(schedule: TableSchedule, wanted: np.ndarray) -> list[float]:
    """The levels whose rho comes nearest to what is wanted, by interpolating log alpha_bar = -log(1 + rho^2)."""
    alpha_bar = schedule.alpha_bar[schedule.alpha_bar > 0].numpy()
    return np.round(np.interp(np.log1p(wanted**2), -np.log(alpha_bar), np.arange(len(alpha_bar)))).tolist()


# Rescaling a table of one level has no meaning: there, levels to pure noise begin with two.
@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize(
    ("name", "levels"), [(name, T) for name, T in product(TABLES, (1, 2, 4, 1000)) if T > 1 or "pure" not in name]
)
def test_grids_fall_from_T_to_zero_over_whole_levels(spacing, name, levels):
    schedule = TABLES[name](levels)
    for steps in {1, 2, 3, 10, 50, 300, levels - 1, levels} & set(range(1, levels + 1)):
        if not are_possible(spacing, steps, levels):
            with pytest.raises(Refused, match="^steps must be "):
                time_grid(schedule, steps, spacing)
            continue
        times = time_grid(schedule, steps, spacing)
        assert times.dtype == torch.float64
        assert len(times) == steps + 1
        assert times[0] == levels or spacing in BELOW_T
        assert times[-1] == 0
        assert (times.diff() < 0).all()
        assert (times == times.round()).all()


@pytest.mark.parametrize(
    ("spacing", "name"),
    [(spacing, name) for spacing, name in product(SPACINGS.values(), PATHS) if spacing not in BELOW_T or name == "vp"],
)
def test_grids_of_paths_fall_from_T_to_zero_where_networks_are_trained(spacing, name):
    schedule = PATHS[name]()
    for steps in (1, 2, 3, 10, 50, 999, 1000):
        if not are_possible(spacing, steps, 1000):
            continue
        times = time_grid(schedule, steps, spacing)
        assert times.dtype == torch.float64
        assert len(times) == steps + 1
        assert times[0] == 1000 or spacing in BELOW_T
        assert times[-1] == 0
        assert (times.diff() < 0).all()
        assert times[-2] >= schedule.t_min * (1 - 1e-12)


@pytest.mark.parametrize("name", [*TABLES, *PATHS])
def test_all_levels_are_every_level(name):
    schedule = TABLES[name](1000) if name in TABLES else PATHS[name]()
    np.testing.assert_allclose(time_grid(schedule, None), np.arange(1000, -1, -1), rtol=1e-14)
    for spacing in SPACINGS.values() if name in TABLES else ():
        assert time_grid(schedule, None, spacing).tolist() == list(range(1000, -1, -1))


def test_consistency_has_the_noise_levels_of_its_paper():
    """80 and 0.821 (Geng et al. 2024), then halves; with many steps it ends at the noise of the time 1."""
    schedule = VE(sigma_min=0.002, sigma_max=80.0)
    np.testing.assert_allclose(rho(schedule, time_grid(schedule, 2, consistency)[:-1]), [80, 0.821], rtol=1e-10)
    four = rho(schedule, time_grid(schedule, 4, consistency)[:-1])
    np.testing.assert_allclose(four, [80, 0.821, 0.4105, 0.20525], rtol=1e-10)
    many = rho(schedule, time_grid(schedule, 40, consistency)[:-1])
    np.testing.assert_allclose(many[1] / many[2:], (many[1] / many[2]) ** np.arange(1, 39), rtol=1e-9)
    assert many[-1] == pytest.approx(float(rho(schedule, torch.ones((), dtype=torch.float64))))


def test_spacings_in_time_are_what_they_are_called():
    """1 + 999 u and 1 + 999 u^2 for u in quarters, and fifths of 1000; levels are the nearest whole ones."""
    for schedule in (VP(), VE(), Flow()):
        np.testing.assert_allclose(time_grid(schedule, 5, uniform), [1000, 750.25, 500.5, 250.75, 1, 0], rtol=1e-14)
        np.testing.assert_allclose(
            time_grid(schedule, 5, quadratic), [1000, 562.9375, 250.75, 63.4375, 1, 0], rtol=1e-14
        )
        np.testing.assert_allclose(time_grid(schedule, 3, to_zero), [1000, 2000 / 3, 1000 / 3, 0], rtol=1e-14)
    for schedule in (linear(), cosine(zero_terminal_snr=True)):
        assert time_grid(schedule, 5, uniform).tolist() == [1000, 750, 501, 251, 1, 0]
        assert time_grid(schedule, 5, quadratic).tolist() == [1000, 563, 251, 63, 1, 0]
        assert time_grid(schedule, 5, to_zero).tolist() == [1000, 800, 600, 400, 200, 0]
        assert time_grid(schedule, 3, to_zero).tolist() == [1000, 667, 333, 0]


@pytest.mark.parametrize("steps", [5, 10, 20, 50, 100, 1000])
def test_the_grids_of_ddims_code(steps: int):
    """`seq` of its runners/diffusion.py, whose indices count levels from 0."""
    T = 1000
    strided = list(range(0, T, T // steps))
    squares = [int(s) for s in list(np.linspace(0, np.sqrt(T * 0.8), steps) ** 2)]
    for schedule in (linear(), cosine(zero_terminal_snr=True)):
        assert time_grid(schedule, steps, leading).tolist() == [*(1 + level for level in reversed(strided)), 0]
        if len(set(squares)) == steps:  # with 100 steps its first ones are 0, 0, 0, 0, 1: they stay at one level
            found = time_grid(schedule, steps, ddim_quadratic).tolist()
            assert found == [*(1 + level for level in reversed(squares)), 0]


@pytest.mark.parametrize("spacing", BELOW_T)
@pytest.mark.parametrize("schedule", [VE(), Flow()], ids=["ve", "flow"])
def test_grids_that_begin_below_T_are_refused_where_variance_is_not_preserved(spacing, schedule):
    with pytest.raises(Refused, match=f"^spacing must not be {spacing.__name__} on this schedule"):
        time_grid(schedule, 10, spacing)


@pytest.mark.parametrize("T", [1000, 4000])
def test_uniform_levels_are_those_of_improved_diffusion(T):
    """space_timesteps of its respace.py, line by line: a sum of strides, whose halves fall to even numbers."""
    schedule = cosine(T)
    for steps in [*range(2, 1001), T]:
        stride, position, taken = (T - 1) / (steps - 1), 0.0, []
        for _ in range(steps):
            taken.append(round(position))
            position += stride
        assert time_grid(schedule, steps, uniform).tolist() == [*(1 + level for level in reversed(taken)), 0]


def test_spacings_are_called_by_their_functions_names():
    assert {name: spacing.__name__ for name, spacing in SPACINGS.items()} == {name: name for name in SPACINGS}


def test_uniform_is_the_default():
    assert time_grid(linear(), 7).tolist() == time_grid(linear(), 7, uniform).tolist()


@pytest.mark.parametrize("make", [VP, VE])
def test_karras_on_paths_is_equation_5(make):
    schedule = make()
    highest, lowest = rho(schedule, torch.tensor([1000.0, 1.0]).double())
    for N in (2, 5, 18):
        times = time_grid(schedule, N, karras)
        np.testing.assert_allclose(rho(schedule, times[:-1]), equation_5(highest, lowest, N), rtol=1e-9)


@pytest.mark.parametrize("make", [VP, VE])
def test_log_snr_on_paths_has_even_steps(make):
    schedule = make()
    last, first = -2 * np.log(rho(schedule, torch.tensor([1000.0, 1.0]).double()))
    for N in (2, 5, 18):
        times = time_grid(schedule, N, log_snr)
        np.testing.assert_allclose(-2 * np.log(rho(schedule, times[:-1])), np.linspace(last, first, N), rtol=1e-9)


def test_grids_of_noise_levels_begin_beside_pure_noise():
    """rho is infinite at T: T comes first, and the formula holds from T - 1 on with one step less."""
    schedule = Flow()
    smallest, largest = 1 / 999, 999.0
    for N in (2, 5, 18):
        by_karras, by_log_snr = (time_grid(schedule, N + 1, spacing) for spacing in (karras, log_snr))
        assert by_karras[0] == by_log_snr[0] == 1000
        np.testing.assert_allclose(rho(schedule, by_karras[1:-1]), equation_5(largest, smallest, N), rtol=1e-9)
        np.testing.assert_allclose(rho(schedule, by_log_snr[1:-1]), np.geomspace(largest, smallest, N), rtol=1e-9)
    for spacing in (karras, log_snr):
        assert time_grid(schedule, 1, spacing).tolist() == [1000, 0]
        np.testing.assert_allclose(time_grid(schedule, 2, spacing), [1000, 999, 0], rtol=1e-12)


@pytest.mark.parametrize("name", TABLES)
def test_grids_of_noise_levels_on_tables_are_the_nearest_levels(name):
    schedule, N = TABLES[name](1000), 5
    first = [1000.0] if "pure noise" in name else []
    highest, lowest = rho(schedule, torch.tensor([1000.0 - len(first), 1.0]).double())
    for spacing, wanted in ((karras, equation_5(highest, lowest, N)), (log_snr, np.geomspace(highest, lowest, N))):
        levels = nearest_levels(schedule, wanted)
        assert len(set(levels)) == N
        assert time_grid(schedule, N + len(first), spacing).tolist() == [*first, *levels, 0]


def test_levels_that_rounding_made_equal_are_spread_apart_and_no_others():
    """1 + 9 u^2 for u in fifths is 1, 1.36, 2.44, 4.24, 6.76, 10: the second 1 becomes 2, and the 2 becomes 3."""
    assert time_grid(cosine(10), 6, quadratic).tolist() == [10, 7, 4, 3, 2, 1, 0]


def test_levels_are_spread_apart_in_the_middle_too():
    """Nearly all of this table's fall in log-SNR is from level 5 to 6, where several of six even steps land."""
    schedule = TableSchedule(torch.tensor([0.01] * 5 + [0.999999] + [0.01] * 5, dtype=torch.float64))
    log_snr_of = schedule.log_snr(torch.tensor([11.0, 6.0, 5.0, 1.0]).double())
    crowded = torch.linspace(log_snr_of[0], log_snr_of[-1], 6, dtype=torch.float64)[1:-1]
    assert ((crowded > log_snr_of[1]) & (crowded < log_snr_of[2])).sum() >= 3
    times = time_grid(schedule, 6, log_snr)
    assert (times.diff() < 0).all()
    assert (times == times.round()).all()
    assert times[[0, -2, -1]].tolist() == [11, 1, 0]


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize(("schedule", "most"), [(linear(), "the schedule's 1000 levels"), (VP(), "1000")])
def test_impossible_numbers_of_steps_are_refused(steps, schedule, most):
    with pytest.raises(ValueError, match=f"^steps must be between 1 and {most}, not {steps}$"):
        time_grid(schedule, steps)


@pytest.mark.parametrize("given", [[1000, 700, 333.5, 1], [1000, 700, 333.5, 1, 0], [501.0, 0]])
def test_a_grid_of_ones_own_ends_at_0(given: list[float]):
    found = own_grid(linear(), given)
    assert found.dtype == torch.float64
    assert found.tolist() == [*(time for time in given if time), 0]


@pytest.mark.parametrize(
    ("schedule", "given", "message"),
    [
        (linear(), [1000, 700, 701], "times must fall from noise to data, and do not from 700 to 701"),
        (linear(), [1000, 700, 700], "times must fall from noise to data, and do not from 700 to 700"),
        (linear(), [1000, 3, -1], "times must fall from noise to data, and do not from -1 to 0"),
        (linear(), [], "times must be numbers above 0 and at most 1000, not []"),
        (linear(), [1001, 7], "times must be numbers above 0 and at most 1000, not [1001, 7]"),
        (linear(), [500, 7], "times must begin at T = 1000 on this schedule, where x is pure noise, not at 500"),
        (VE(), [999, 7], "times must begin at T = 1000 on this schedule, where x is pure noise, not at 999"),
    ],
)
def test_a_grid_of_ones_own_falls_from_noise(schedule: Schedule, given: list[float], message: str):
    with pytest.raises(ValueError) as caught:
        own_grid(schedule, given)
    assert str(caught.value) == message
