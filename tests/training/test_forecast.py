"""What a run costs: said before it begins and true, refused where there is no room, stopped when time is up."""

import logging
import math
import shlex
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from diffuse.commands import train
from diffuse.runs import checkpoint
from diffuse.runs.checkpoint_files import all_in
from diffuse.system.errors import UserError
from diffuse.system.progress import Progress
from diffuse.training import forecast
from diffuse.training.disk_space import checkpoint_bytes, most_checkpoints
from tests.support.commands import TINY, config, output
from tests.support.comparing import assert_runs_are_the_same, newest
from tests.support.running import trained, trainer_of


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_time_budget_stops_with_a_checkpoint_and_loses_nothing(caplog):
    """As often as it takes: each turn has time for a few steps."""
    options = ["steps=12", "checkpoint.every=100", "unet.dropout=0.2", "log.every=5", "images.every=4"]
    whole = trained("whole", *options)
    for turn in range(13):
        before = newest(Path("outputs/parts"))["step"] if turn else 0
        trained("parts", *options, "max_hours=0.00002")
        if newest(Path("outputs/parts"))["step"] == 12:
            break
        assert newest(Path("outputs/parts"))["step"] > before
    assert turn >= 1
    assert "stopped after max_hours=2e-05, step" in caplog.text
    assert_runs_are_the_same(whole, Path("outputs/parts"))


def test_what_it_costs_is_said_and_true(caplog, monkeypatch):
    monkeypatch.setattr(forecast, "MEASURED_SECONDS", math.inf)  # whatever else this machine does
    monkeypatch.setattr(forecast, "WARMUP_SECONDS", math.inf)
    caplog.set_level(logging.INFO, logger="diffuse")
    folder = trained("exp", "steps=40", "checkpoint.every=10", "images.every=100")
    said = (folder / "train.log").read_text()
    trainer = trainer_of(config("train", *TINY))
    assert f"{sum(weight.numel() for weight in trainer.net.parameters()):,} parameters" in said
    assert "images/s: " in said
    assert "15 more steps will take about" in said
    assert "peak memory" in said
    size = next(iter(all_in(folder / "checkpoints"))).stat().st_size
    assert checkpoint_bytes(trainer) == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(
    ("steps", "every", "keep", "milestone_every"), [(7, 1, 2, 3), (7, 3, 9, None), (4, 9, 1, None)]
)
def test_no_more_checkpoints_than_foretold_are_ever_there(tmp_path, steps, every, keep, milestone_every):
    options = [f"checkpoint.every={every}", f"checkpoint.keep={keep}"]
    options += [f"steps={steps}", f"checkpoint.milestone_every={milestone_every or 'null'}"]
    most = 0
    for step in range(1, steps + 1):
        if step % every == 0 or step == steps or (milestone_every and step % milestone_every == 0):
            most = max(most, len(all_in(tmp_path)) + 1)
            checkpoint.save(tmp_path, step, {"config": {}}, keep, milestone_every)
    assert most <= most_checkpoints(train.build_training(config("train", *TINY, *options))) <= most + 1


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1_000_000, 400_000, 600_000))
    with pytest.raises(
        UserError, match=r"the checkpoints need 1\.\d MB more \(3 of \d+ kB\), and the disk of .* has 600 kB"
    ):
        trained("exp", "steps=30")
    assert not Path("outputs").exists()
    trained("exp", "checkpoint.every=100")


def test_a_warm_up_longer_than_the_run_is_noticed(caplog):
    trained("exp", "optim.warmup=7")
    assert "optim.warmup=7 is longer than steps=6: the learning rate never reaches optim.lr" in caplog.text


def test_milestones_are_saved_between_other_checkpoints():
    folder = trained("exp", "checkpoint.every=4", "checkpoint.milestone_every=5", "checkpoint.keep=1")
    kept = [path.name for path in all_in(folder / "checkpoints")]
    assert kept == ["step_00000005.milestone.pt", "step_00000006.pt"]


def test_the_disk_is_asked_for_what_is_still_to_come_where_the_run_is(monkeypatch):
    usage, asked = namedtuple("usage", "total used free"), []

    def disk_usage(path):
        asked.append(Path(path))
        return usage(10**9, 0, free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    free, flat = 10**8, ["optim.decay=none", "checkpoint.every=2"]
    folder = trained("exp", *flat)
    free = 2 * 484_000  # two are there already, and three are the most
    trained("exp", *flat, "steps=8")
    assert Path.cwd() / folder in asked
    free = 100_000
    with pytest.raises(UserError, match="the checkpoints need .* more"):
        trained("exp", *flat, "steps=10")


def test_steps_that_warm_up_are_left_out_of_the_speed(monkeypatch):
    counted, count_from_here = [], Progress.count_from_here

    def note(progress: Progress) -> None:
        counted.append(progress.done)
        count_from_here(progress)

    monkeypatch.setattr(Progress, "count_from_here", note)
    trained("exp", "steps=40")
    assert counted[-1] == 5


@pytest.mark.parametrize(("long", "offered"), [(0.0, True), (1e9, False)])
def test_where_a_cpu_takes_hours_a_smaller_training_is_offered(caplog, monkeypatch, long, offered):
    """Hours being what is longer than `long` seconds here."""
    monkeypatch.setattr(forecast, "LONG_ON_CPU", long)
    caplog.set_level(logging.INFO, logger="diffuse")
    trainer = trainer_of(config("train", *TINY))
    with Progress("train", 1000, "step") as progress:
        foretold = forecast.Forecast(trainer, 1000, progress, "diffuse train unet=tiny")
        for _ in range(40):
            trainer.advance()
            progress.advance()
            foretold.after_step()
    assert ("a smaller network gives a first answer sooner: diffuse train unet=tiny" in caplog.text) == offered


def test_the_smaller_training_is_the_typed_one_with_a_network_for_cpus():
    """And composes: only a run's name and what is replaced are left out."""
    line = "diffuse train -cd own dataset=mnist name=a schedule=cosine steps=5 unet=base"
    words = shlex.split(forecast.smaller_training(replace(output(), command=line)))
    assert words[:6] == ["diffuse", "train", "-cd", "own", "dataset=mnist", "schedule=cosine"]
    composed = config("train", *words[4:])
    assert (composed.unet["channels"], composed.steps, composed.name) == (32, 4000, None)
    assert forecast.smaller_training(replace(output(), overrides=["resume=outputs/a"])) == ""
