"""Scoring a checkpoint: the numbers, their protocol, and the files."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffuse.commands import eval as evaluation
from diffuse.data.datasets import digits
from diffuse.data.images import to_float
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.likelihood import variational_bound
from diffuse.mathematics.spacings import time_grid
from diffuse.mathematics.variances import fixed_small
from diffuse.mathematics.wrappers import Clipped
from diffuse.runs.trained import load, load_for
from diffuse.scoring.likelihood_part import LikelihoodPart
from diffuse.system.errors import UsageError
from diffuse.system.randomness import ImageNoise, generator
from tests.support.commands import config, output

FAST = ["device=cpu", "device.precision=float32"]


def scored(run: Path, name: str, *overrides: str) -> dict:
    """eval.json of the bound, unless other metrics are asked for."""
    typed = config("eval", f"ckpt={run}", f"name={name}", "metrics=[bound]", *FAST, *overrides)
    totals = evaluation.run(typed, output())
    result = json.loads((run / "eval" / name / "eval.json").read_text())
    assert result["bits_per_dim"][typed.metrics[0]]["total"] == totals[typed.metrics[0]]
    return result


def test_a_score_carries_its_protocol_and_its_parts(tiny_run):
    result = scored(tiny_run, "parts", "n=8", "levels=10", "variance=fixed_small")
    bits, protocol = result["bits_per_dim"]["bound"], result["protocol"]
    assert bits["total"] == pytest.approx(bits["L_T"] + bits["L_t_minus_1"] + bits["L_0"])
    assert (protocol["dataset"], protocol["split"]) == ("digits", "test")
    assert (protocol["n"], protocol["bound"]["levels"], protocol["bound"]["variance"]) == (8, 10, "fixed_small")
    assert (protocol["weights"], protocol["bound"]["clip"], protocol["n_chosen_by"]) == ("ema", True, "n=")
    assert len(result["checkpoint_sha256"]) == 64


def test_the_table_adds_up_to_the_total(tiny_run):
    result = scored(tiny_run, "table", "n=8", "levels=10")
    with open(tiny_run / "eval" / "table" / "terms.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["term"] for line in lines] == ["L_T", *["L_t_minus_1"] * 9, "L_0"]
    assert [float(line["t"]) for line in lines[1:]] == time_grid(load(str(tiny_run)).schedule, 10)[:-1].tolist()
    assert [float(line["bits_per_dim"]) for line in lines] == result["terms"]["bits_per_dim"]
    assert sum(float(line["bits_per_dim"]) for line in lines) == pytest.approx(
        result["bits_per_dim"]["bound"]["total"], rel=1e-6
    )
    assert (tiny_run / "eval" / "table" / "terms.png").read_bytes().startswith(b"\x89PNG")


def test_the_number_is_that_of_the_core(tiny_run):
    """The same bound computed in a few lines from the library: the command adds batches, files and nothing else."""
    result = scored(tiny_run, "core", "n=20", "levels=25", "variance=fixed_small", "batch_size=7", "seed=4")
    trained = load(str(tiny_run))
    rows = generator(4, "test order").permutation(359)[:20]
    x0 = to_float(torch.from_numpy(digits().test.images[rows]))
    denoiser = Clipped(Denoiser(trained.net, trained.schedule))
    noise = ImageNoise(4, "eval", rows.tolist())
    bound = variational_bound(denoiser, x0, time_grid(trained.schedule, 25), noise=noise, variance=fixed_small)
    bits = bound.total.double().numpy() / (64 * math.log(2))
    assert result["bits_per_dim"]["bound"]["total"] == pytest.approx(bits.mean(), rel=1e-5)
    assert result["bits_per_dim"]["bound"]["standard_error"] == pytest.approx(
        bits.std(ddof=1) / math.sqrt(20), rel=1e-3
    )


def test_the_score_does_not_depend_on_the_batch_size(tiny_run):
    totals = [
        scored(tiny_run, f"b{size}", "n=70", "levels=5", f"batch_size={size}")["bits_per_dim"] for size in (1, 512)
    ]
    assert totals[0] == totals[1]


def test_without_n_it_takes_what_three_minutes_afford(tiny_run):
    """5 levels of a tiny network are cheap: all 359 test images."""
    protocol = scored(tiny_run, "all", "levels=5")["protocol"]
    assert (protocol["n"], protocol["n_chosen_by"]) == (359, "what takes about three minutes")


def test_data_without_a_range_is_scored_by_its_density(gaussian_run):
    protocol = scored(gaussian_run, "density", "n=4", "levels=5")["protocol"]["bound"]
    assert (protocol["decoder"], protocol["clip"]) == ("gaussian_density", False)


def test_a_conditional_network_is_told_the_labels(conditional_run):
    result = scored(conditional_run, "labels", "n=20", "levels=5", "variance=fixed_small")
    trained = load(str(conditional_run))
    rows = generator(0, "test order").permutation(359)[:20]
    x0, labels = to_float(torch.from_numpy(digits().test.images[rows])), torch.from_numpy(digits().test.labels[rows])
    denoiser, noise = Clipped(Denoiser(trained.net, trained.schedule)), ImageNoise(0, "eval", rows.tolist())
    bound = variational_bound(denoiser, x0, time_grid(trained.schedule, 5), labels, noise=noise, variance=fixed_small)
    assert result["bits_per_dim"]["bound"]["total"] == pytest.approx(
        bound.total.mean().item() / (64 * math.log(2)), rel=1e-5
    )


def test_three_minutes_are_spread_over_the_evaluations_of_an_image(tiny_run):
    """100 images a second at 50 evaluations an image: 360 images in 180 seconds, in whole network calls of 64."""
    typed = config("eval", f"ckpt={tiny_run}", "levels=50", "metrics=[bound]", *FAST)
    network = load_for(typed)
    assert LikelihoodPart(typed, network).choose_n(100.0) == 320
    assert LikelihoodPart(typed, network).choose_n(0.001) == 64
    assert LikelihoodPart(replace(typed, n=17), network).choose_n(100.0) == 17


def test_scores_are_float32_unless_asked(tiny_run):
    assert config("eval", "ckpt=x").device["precision"] == "float32"
    assert (
        scored(tiny_run, "half", "n=4", "levels=3", "device.precision=bfloat16")["protocol"]["precision"] == "bfloat16"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("levels=1001", "levels must be between 1 and the schedule's 1000 levels, not 1001"),
        ("n=360", "n must be at most 359, the size of the test split"),
        ("n=1", "n must be at least 2"),
        ("variance=fixed", "variance must be one of fixed_small, fixed_large"),
    ],
)
def test_impossible_values_are_named_and_leave_nothing(tiny_run, override, message):
    before = set(tiny_run.rglob("*"))
    with pytest.raises(UsageError, match=message):
        scored(tiny_run, "bad", override)
    assert set(tiny_run.rglob("*")) == before
