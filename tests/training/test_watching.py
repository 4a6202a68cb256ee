"""Scores of samples while training: their values, what they leave alone, and the best checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffuse.commands import eval as evaluation
from diffuse.commands import train
from diffuse.system.errors import UsageError, UserError
from tests.support.commands import TINY, config, diffuse, output
from tests.support.comparing import (
    assert_same,
    assert_tensorboard_has_every_step_once,
    metrics,
    newest,
    read,
    without_clock,
)
from tests.support.running import forget_from

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning"
)  # what it would rather have is no TorchScript
WATCHED = ["eval.every=2", "eval.n=20", "features=torchscript", "steps=8", "checkpoint.every=4", "log.every=3"]


class Corners(torch.nn.Module):
    """Features that a test can do without training: the means of four parts of an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2)


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Corners()).save(str(tmp_path / "corners.pt"))


def trained(name: str, *overrides: str) -> Path:
    words = [f"name={name}", "features.path=corners.pt", "data_dir=data", *overrides]
    train.run(config("train", *TINY, *WATCHED, *words), output())
    return Path("outputs") / name


def scores(run: Path, name: str) -> dict[int, float]:
    return {line["step"]: line[f"eval/{name}"] for line in metrics(run) if f"eval/{name}" in line}


def test_scores_come_every_so_often_and_at_the_end_in_both_logs():
    run = trained("a", "steps=7")
    assert list(scores(run, "fid_corners")) == [2, 4, 6, 7]
    assert_tensorboard_has_every_step_once(run)


def test_they_change_no_weight():
    watched, alone = trained("a"), trained("b", "eval.every=null")
    for part in ("model", "ema", "optimizer", "sums"):
        assert_same(newest(watched)[part], newest(alone)[part])


def test_a_value_is_that_of_eval_on_the_same_checkpoint():
    run = trained("a", "eval.metrics=[fid,kid,precision_recall]")
    typed = ["n=20", "metrics=[fid,kid,precision_recall]", "features=torchscript", "features.path=corners.pt"]
    same = ["sampler.steps=3", "device=cpu", "data_dir=data", "name=e"]
    found = evaluation.run(config("eval", f"ckpt={run}", *typed, *same), output())
    last = {name: values[8] for name in found if (values := scores(run, name))}
    assert set(last) == {"fid_corners", "kid_corners", "precision_corners", "recall_corners"}
    assert found == pytest.approx({**last, "evaluations": 3}, rel=1e-9)


@pytest.mark.parametrize(
    ("metric", "name", "best"), [("fid", "fid_corners", min), ("precision_recall", "precision_corners", max)]
)
def test_the_best_checkpoint_is_kept_by_the_first_metric(metric, name, best):
    run = trained("a", f"eval.metrics=[{metric},kid]", "eval.every=1", "optim.lr=3e-2", "seed=3")
    values = scores(run, name)
    kept = read(run / "checkpoints" / "best.pt")
    assert values[kept["step"]] == best(values.values())
    assert len(set(values.values())) > 1
    assert kept["step"] == max(step for step, value in values.items() if value == best(values.values()))


def test_the_best_one_can_be_sampled_from():
    run = trained("a")
    done = diffuse("sample", f"ckpt={run}/checkpoints/best.pt", "n=2", "sampler.steps=2", "device=cpu", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr


def test_the_last_values_are_reported_the_chosen_one_first():
    words = ["name=a", "features.path=corners.pt", "data_dir=data"]
    reported = train.run(config("train", *TINY, *WATCHED, *words), output())
    assert list(reported) == ["fid_corners", "loss"]
    assert reported["fid_corners"] == scores(Path("outputs/a"), "fid_corners")[8]


def test_after_a_kill_everything_is_as_without_one():
    whole, killed = trained("whole"), trained("killed")
    forget_from(killed, 5)
    trained("killed")
    assert without_clock(metrics(killed)) == without_clock(metrics(whole))
    steps = [scores(run, "fid_corners") for run in (whole, killed)]
    assert steps[0] == steps[1]
    assert_tensorboard_has_every_step_once(killed)
    best = [read(run / "checkpoints" / "best.pt") for run in (whole, killed)]
    assert_same(best[0]["step"], best[1]["step"])
    assert_same(best[0]["ema"], best[1]["ema"])


def test_scores_that_a_signal_left_no_time_for_are_made_up_for():
    whole, stopped = trained("whole"), trained("stopped")
    forget_from(stopped, 5)
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not (json.loads(line)["step"] == 4 and "eval/fid_corners" in line)]
    (stopped / "metrics.jsonl").write_text("".join(kept))
    trained("stopped")
    assert scores(stopped, "fid_corners") == scores(whole, "fid_corners")


def test_how_often_samples_are_scored_may_change_and_how_may_not():
    """One curve, and one choice of the best, hold values that can be compared."""
    run = trained("a", "optim.decay=none")
    trained("a", "optim.decay=none", "steps=10", "eval.every=5")
    assert list(scores(run, "fid_corners")) == [2, 4, 6, 8, 10]
    for change in ("eval.n=21", "eval.metrics=[kid]", "features.high=1"):
        with pytest.raises(UsageError, match=change.partition("=")[0]):
            trained("a", "optim.decay=none", "steps=10", "eval.every=5", change)


def test_a_run_whose_last_samples_a_signal_left_unscored_is_not_finished():
    whole, stopped = trained("whole"), trained("stopped")
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not (json.loads(line)["step"] == 8 and "eval/fid_corners" in line)]
    (stopped / "metrics.jsonl").write_text("".join(kept))
    trained("stopped")
    assert scores(stopped, "fid_corners") == scores(whole, "fid_corners")


def test_only_scores_of_the_last_step_are_reported():
    words = ["name=a", "features.path=corners.pt", "data_dir=data", "optim.decay=none"]
    train.run(config("train", *TINY, *WATCHED, *words), output())
    further = [*WATCHED, "steps=10", "eval.every=null"]
    assert list(train.run(config("train", *TINY, *further, *words), output())) == ["loss"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.metrics=[bound]", "eval.metrics must be one of fid, kid"),
        ("eval.metrics=[memorisation]", "eval.metrics must be one of fid, kid"),
        ("eval.metrics=[]", "eval.metrics must be a list of fid"),
        ("eval.metrics=[is]", "does not work with features=corners"),
        ("eval.n=1", "eval.n must be at least 2"),
        ("eval.n=3 eval.metrics=[precision_recall]", "needs at least 4 images on either side, and has 3 against 1438"),
        ("features.size=0", "features.size must be a number of pixels or null, not 0"),
        ("features.low=255", "features.low must be another number than high"),
        ("eval.every=0", "eval.every must be at least 1 or null"),
        ("features.path=nowhere.pt", "features.path=.*nowhere.pt must be a file"),
    ],
)
def test_what_cannot_be_scored_is_said_before_anything_is_written(override, message):
    with pytest.raises(UserError, match=message):
        trained("a", *override.split())
    assert not Path("outputs").exists()


def test_data_without_pixels_has_no_such_scores():
    with pytest.raises(UserError, match="values that are not 8-bit pixels"):
        trained("a", "dataset=gaussian", "dataset.train_count=64")
    assert not Path("outputs").exists()


def test_the_hyperparameters_are_shown_with_the_final_values():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained("a")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    final = events.Scalars("scores/fid_corners")[-1]
    assert final.value == pytest.approx(scores(run, "fid_corners")[8], rel=1e-6)
    chosen = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"optim.lr" in chosen
    assert b"schedule._target_" in chosen


def test_a_network_named_from_here_is_found_from_elsewhere(monkeypatch, tmp_path):
    run = trained("a", "optim.decay=none").absolute()
    monkeypatch.chdir(tmp_path.parent)
    typed = config("train", *TINY, *WATCHED, f"resume={run}", "name=a", f"features.path={tmp_path}/corners.pt")
    assert Path(read(run / "checkpoints" / "best.pt")["config"]["features"]["path"]) == tmp_path / "corners.pt"
    typed.optim.decay = "none"
    assert list(train.run(replace(typed, data_dir=str(tmp_path / "data")), output()))
