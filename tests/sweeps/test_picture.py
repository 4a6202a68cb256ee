"""The axes of a sweep's picture."""

import pytest
from matplotlib.figure import Figure

from diffuse.options.score_names import EVALUATIONS
from diffuse.sweeps.picture import COSTS_LOGARITHMIC_FROM, axis_scale, draw_scores, ticks
from diffuse.sweeps.record import DONE, Record


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


def drawn(values: list[tuple[str, int, float]], key: str) -> tuple[Figure, list[str]]:
    """The figure of scores (sampler, evaluations, FID), and the labels of its lines."""
    jobs = [
        Record(
            place,
            f"{place}",
            "eval",
            "",
            [],
            {"sampler": name, key: str(cost)},
            "",
            DONE,
            {"fid": fid, EVALUATIONS: cost},
        )
        for place, (name, cost, fid) in enumerate(values)
    ]
    figure = Figure()
    part = figure.subfigures()
    draw_scores(part, ["fid"], jobs, 1)
    figure.draw_without_rendering()
    return figure, [text.get_text() for legend in part.legends for text in legend.get_texts()]


@pytest.mark.parametrize("key", ["sampler.steps", "sampler.evaluations"])
def test_scores_of_a_sampler_are_one_line_over_its_evaluations(key):
    figure, lines = drawn([("a", 5, 4.0), ("a", 10, 0.5), ("a", 20, 0.2), ("b", 5, 90.0)], key)
    (panel,) = figure.subfigs[0].axes
    assert lines == ["a", "b"]
    assert [list(line.lines[0].get_xdata()) for line in panel.containers] == [[5, 10, 20], [5]]
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in panel.get_xticklabels()] == ["5", "10", "20"]
    assert {"0.2", "0.5", "1", "50"} <= {text.get_text() for text in panel.get_yticklabels()}


def test_a_score_over_many_decades_has_ticks_at_powers_of_ten_alone():
    figure, _ = drawn([("a", 5, 1e6), ("a", 10, 0.5)], "sampler.steps")
    labels = {text.get_text() for text in figure.subfigs[0].axes[0].get_yticklabels()}
    assert not {"0.2", "0.5", "2", "5"} & labels
    assert len(labels) >= 3
