"""What a user is told of a schedule that leaves much of the image at its last level; older runs continue."""

import math
import re
from pathlib import Path

import pytest

from diffuse.runs.record import read_record
from tests.support.running import trained


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


ONE = ["steps=1"]


def said(*words: str) -> str:
    return (trained("r", *ONE, *words) / "train.log").read_text()


def test_a_table_that_keeps_its_ends_for_fewer_levels_leaves_an_image():
    """As a run of before would: alpha_bar_T = prod (1 - beta) = 0.364; L_T for a white pixel, by hand."""
    log = said("schedule.levels=100", "schedule.beta_start=1e-4", "schedule.beta_end=0.02")
    alpha_bar = math.prod(1 - (1e-4 + (0.02 - 1e-4) * t / 99) for t in range(100))
    bits = 0.5 * (alpha_bar + (1 - alpha_bar) - 1 - math.log(1 - alpha_bar)) / math.log(2)
    found = re.search(r"(\d+)% of the image is left beside noise of standard deviation ([\d.]+),", log)
    assert found, log
    assert float(found[1]) == pytest.approx(100 * math.sqrt(alpha_bar), abs=0.5)
    assert float(found[2]) == pytest.approx(math.sqrt(1 - alpha_bar), abs=0.01)
    assert f"L_T costs up to {bits:.2g} bits/dim" in log


@pytest.mark.parametrize(
    "words",
    [["schedule.levels=100"], ["schedule=quadratic"], ["schedule=scaled_linear"], ["schedule=cosine"], ["schedule=vp"],
     ["schedule=sigmoid", "schedule.levels=50"], ["method=ncsn"], ["method=edm"], ["method=flow"]],
    ids=" ".join,
)  # fmt: skip
def test_nothing_is_said_of_schedules_as_they_are(words):
    assert "schedule:" not in said(*words)


def test_a_sigma_that_does_not_drown_the_image_is_said():
    assert "100% of the image is left beside noise of standard deviation 2," in said(
        "method=ncsn", "schedule.sigma_max=2"
    )


def test_betas_that_fall_are_said():
    log = said("schedule.beta_start=0.02", "schedule.beta_end=1e-4")
    assert "beta falls with t (from 0.02 to 0.0001)" in log


def test_a_run_from_before_continues_under_its_name():
    """Its config.yaml has the numbers that are null by default today."""
    assert trained("r", *ONE) == Path("outputs/r")
    assert read_record(Path("outputs/r")).schedule["beta_end"] == 0.02
    trained("r", *ONE, "schedule.beta_start=1e-4", "schedule.beta_end=0.02")
