"""The axes of a sweep's picture."""

import pytest

from diffuse.sweeps.picture import COSTS_LOGARITHMIC_FROM, axis_scale, ticks


@pytest.mark.parametrize(
    ("places", "scale", "expected"),
    [
        ([5, 6, 10, 11, 20, 21, 50, 51], "log", [5, 10, 20, 50]),
        ([1, 2, 3], "linear", [1, 2, 3]),
        ([1, 2, 100], "linear", []),
        (list(range(1, 10)), "linear", []),
        ([1e-4, 1e-3, 1e-2], "log", [1e-4, 1e-3, 1e-2]),
        ([7], "linear", [7]),
        ([], "linear", []),
    ],
)
def test_ticks_stand_where_jobs_are_and_apart_from_each_other(places, scale, expected):
    assert ticks(places, scale) == expected


def test_doubled_costs_are_evenly_spaced():
    assert axis_scale([5, 10, 20], COSTS_LOGARITHMIC_FROM) == "log"
    assert axis_scale([5, 10, 20]) == axis_scale([5, 10], COSTS_LOGARITHMIC_FROM) == "linear"
    assert axis_scale([1e-4, 1e-2]) == "log"
    assert axis_scale([-1, 100]) == axis_scale([]) == "linear"
