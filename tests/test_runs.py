"""A run folder: given again it continues, it belongs to one process at a time, and it says what it will cost."""

import copy
import logging
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffuse import checkpoint, train
from diffuse.device import Device
from diffuse.errors import Terminated, UsageError, UserError
from diffuse.forecast import most_checkpoints
from diffuse.job import Job
from diffuse.progress import Progress
from diffuse.replay import replay
from diffuse.run import Run, held, read_record, write_record
from diffuse.trainer import NotFinite, Trainer
from tests.commands import TINY, config, job
from tests.comparing import assert_runs_are_the_same, assert_same, metrics, newest

# The first step makes weights of 1e30, on which the second cannot be computed.
EXPLODES = ["optim.lr=1e30", "optim.clip=1e30", "optim.warmup=0"]


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(name: str, *overrides: str) -> Path:
    """`diffuse train name=... OVERRIDES`; the run folder."""
    train.run(config("train", *TINY, f"name={name}", *overrides), job())
    return Path("outputs") / name


def as_it_is(folder: Path) -> dict[Path, int]:
    """Every file and folder, and when it was changed last."""
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def forget_from(folder: Path, step: int) -> None:
    """Leave the run as a crash would that came before this step was saved."""
    for path in checkpoint.all_in(folder / "checkpoints"):
        if checkpoint.step_of(path) >= step:
            path.unlink()
    (folder / "checkpoints" / "last.pt").unlink()


def test_given_again_an_unfinished_run_continues():
    options = ["checkpoint.every=2", "checkpoint.keep=9", "dataset.flip=true", "unet.dropout=0.2"]
    whole, parts = trained("whole", *options), trained("parts", *options)
    forget_from(parts, 4)
    trained("parts", *options)
    assert_runs_are_the_same(whole, parts)
    assert "resumed from step 2 (step_00000002.pt)" in (parts / "train.log").read_text()


def test_given_again_a_finished_run_says_so_and_changes_nothing(caplog):
    folder = trained("done")
    before = as_it_is(folder)
    caplog.clear()
    loss = train.run(config("train", *TINY, "name=done"), job())
    assert loss == metrics(folder)[-1]["loss"]
    assert "outputs/done is finished: 6 of 6 steps are done" in caplog.text
    assert as_it_is(folder) == before


def test_with_another_config_it_is_refused_with_the_keys_that_differ():
    folder = trained("exp")
    before = as_it_is(folder)
    with pytest.raises(UsageError) as caught:
        trained("exp", "optim.lr=0.5", "unet.dropout=0.25", "seed=3")
    message = str(caught.value)
    for change in ("optim.lr (was 0.003, now 0.5)", "unet.dropout (was 0.0, now 0.25)", "seed (was 0, now 3)"):
        assert change in message
    assert "choose another name=" in message
    assert as_it_is(folder) == before


def test_what_changes_no_weight_may_differ():
    folder = trained("exp")
    changes = ["log.every=3", "images.every=4", "images.count=2", "checkpoint.every=1", "checkpoint.keep=1"]
    changes += ["checkpoint.milestone_every=5", "max_hours=2", "device.precision=bfloat16", "data_dir=elsewhere"]
    assert trained("exp", *changes) == folder
    assert read_record(folder)["log"]["every"] == 2


def test_given_again_with_more_steps_it_goes_on():
    flat = trained("flat", "optim.decay=none")
    trained("flat", "optim.decay=none", "steps=9", "max_hours=5")
    assert newest(flat)["step"] == 9
    assert (read_record(flat)["steps"], read_record(flat)["max_hours"]) == (9, None)
    decaying = trained("decaying")
    before = as_it_is(decaying)
    with pytest.raises(UsageError, match="steps cannot change from 6 to 9"):
        trained("decaying", "steps=9")
    assert as_it_is(decaying) == before


def test_a_folder_that_is_no_run_is_not_written_to():
    Path("outputs/photos").mkdir(parents=True)
    Path("outputs/photos/a.txt").write_text("mine")
    with pytest.raises(UserError, match=r"outputs/photos exists already and is no run .*: choose another name="):
        trained("photos")
    Path("outputs/swept/0").mkdir(parents=True)
    Path("outputs/swept/multirun.yaml").touch()
    with pytest.raises(UserError, match="outputs/swept exists already and holds a sweep"):
        trained("swept")
    assert sorted(path.name for path in Path("outputs/photos").iterdir()) == ["a.txt"]


def test_a_run_that_was_killed_before_it_had_a_record_begins():
    folder = Path("outputs/exp")
    (folder / ".hydra").mkdir(parents=True)
    for name in (".lock", ".config.yaml.4711.tmp"):
        (folder / name).touch()
    trained("exp")
    assert newest(folder)["step"] == 6
    assert not list(folder.rglob("*.tmp"))


def test_what_a_killed_process_was_writing_is_removed():
    folder = trained("exp")
    forget_from(folder, 6)
    half = folder / "checkpoints" / ".step_00000006.pt.4711.tmp"
    half.write_bytes(b"half a checkpoint")
    trained("exp")
    assert not half.exists()


def test_a_run_folder_that_is_in_use_is_refused_at_once():
    folder = trained("exp", "optim.decay=none")
    with held(folder):
        before = as_it_is(folder)
        with pytest.raises(UserError, match="outputs/exp is in use: another process is training there"):
            trained("exp", "optim.decay=none", "steps=9")
        assert as_it_is(folder) == before
    trained("exp", "optim.decay=none", "steps=9")


def test_a_time_budget_stops_with_a_checkpoint_and_loses_nothing(caplog):
    """As often as it takes: each turn has time for a few steps."""
    options = ["steps=40", "checkpoint.every=100", "unet.dropout=0.2", "log.every=7", "images.every=16"]
    whole = trained("whole", *options)
    for turn in range(41):
        before = newest(Path("outputs/parts"))["step"] if turn else 0
        trained("parts", *options, "max_hours=0.00002")
        if newest(Path("outputs/parts"))["step"] == 40:
            break
        assert newest(Path("outputs/parts"))["step"] > before
    assert turn >= 1
    assert "stopped after max_hours=2e-05, step" in caplog.text
    assert_runs_are_the_same(whole, Path("outputs/parts"))


def test_a_damaged_checkpoint_is_passed_over_and_set_aside(caplog):
    options = ["checkpoint.every=2", "checkpoint.keep=9", "unet.dropout=0.2"]
    whole, parts = trained("whole", *options), trained("parts", *options)
    for step in (4, 6):
        (parts / "checkpoints" / f"step_0000000{step}.pt").write_bytes(b"PK\x03\x04 and what the disk made of it")
    trained("parts", *options)
    assert "taking step_00000002.pt" in caplog.text
    assert "resumed from step 2" in (parts / "train.log").read_text()
    assert sorted(path.stem for path in (parts / "checkpoints").glob("*.damaged")) == ["step_00000004", "step_00000006"]
    assert_runs_are_the_same(whole, parts)


def test_where_every_checkpoint_is_damaged_it_does_not_begin_again():
    folder = trained("exp")
    for path in checkpoint.all_in(folder / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-1])
    before = as_it_is(folder)
    with pytest.raises(UserError, match="none of the 2 checkpoints in outputs/exp/checkpoints can be read"):
        trained("exp")
    assert as_it_is(folder) == before


def test_a_checkpoint_of_a_newer_version_is_named():
    folder = trained("exp")
    path = checkpoint.all_in(folder / "checkpoints")[-1]
    checkpoint.write(path, 6, {**checkpoint.read(path), "format": 3, "program": "diffuse 9.9"})
    with pytest.raises(UserError, match=r"has format 3, and diffuse .* reads format 2; it was written by diffuse 9\.9"):
        trained("exp")


def test_a_metrics_file_torn_by_a_crash_is_mended():
    whole, parts = trained("whole"), trained("parts")
    forget_from(parts, 6)
    lines = (parts / "metrics.jsonl").read_text().splitlines(keepends=True)
    (parts / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20] + "\0" * 30 + "\n" + lines[2][:5])
    trained("parts")
    assert_runs_are_the_same(whole, parts)


def test_other_images_under_the_same_path_are_noticed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    data = ["dataset=npz", f"dataset.path={tmp_path}/images.npz", f"data_dir={tmp_path}/data", "optim.decay=none"]
    np.savez(tmp_path / "images.npz", images)
    folder = trained("exp", *data)
    images[:20, 0, 0] ^= 1
    np.savez(tmp_path / "images.npz", images)
    with pytest.raises(UserError, match="the training images of images are not those that the run began with"):
        trained("exp", *data, "steps=9")
    images[:20, 0, 0] ^= 1
    np.savez(tmp_path / "moved.npz", images)
    moved = [word.replace("images.npz", "moved.npz") for word in data]
    trained("exp", *moved, "steps=9")
    assert newest(folder)["step"] == 9


def test_what_it_costs_is_said_and_true(caplog):
    caplog.set_level(logging.INFO, logger="diffuse")
    folder = trained("exp", "steps=40", "checkpoint.every=10", "images.every=100")
    said = (folder / "train.log").read_text()
    trainer = Trainer(config("train", *TINY))
    assert f"{trainer.parameters:,} parameters" in said
    assert "images/s: " in said
    assert "15 steps will take about" in said
    assert "peak memory" in said
    size = next(iter(checkpoint.all_in(folder / "checkpoints"))).stat().st_size
    assert trainer.checkpoint_bytes == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(
    ("steps", "every", "keep", "milestone_every"), [(7, 1, 2, 3), (7, 3, 9, None), (4, 9, 1, None)]
)
def test_no_more_checkpoints_than_foretold_are_ever_there(tmp_path, steps, every, keep, milestone_every):
    options = {"every": every, "keep": keep, "milestone_every": milestone_every}
    most = 0
    for step in range(1, steps + 1):
        if step % every == 0 or step == steps or (milestone_every and step % milestone_every == 0):
            most = max(most, len(checkpoint.all_in(tmp_path)) + 1)
            checkpoint.save(tmp_path, step, {"config": {}}, keep, milestone_every)
    assert most <= most_checkpoints({"steps": steps, "checkpoint": options}) <= most + 1


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1_000_000, 400_000, 600_000))
    with pytest.raises(
        UserError, match=r"the checkpoints need 1\.\d MB more \(3 of \d+ kB\), and the disk of .* has 600 kB"
    ):
        trained("exp", "steps=30")
    assert not Path("outputs").exists()
    trained("exp", "checkpoint.every=100")


def test_a_step_without_a_finite_loss_is_kept_and_can_be_done_again():
    with pytest.raises(UserError, match=r"the loss or gradient of step 1 is not a finite number") as caught:
        trained("exp", *EXPLODES, "steps=50", "unet.dropout=0.2")
    assert "outputs/exp/failure.pt" in str(caught.value)
    step = replay("outputs/exp/failure.pt")
    assert (step.step, len(step.losses)) == (1, 16)
    assert not (torch.isfinite(step.losses).all() and np.isfinite(step.norm))
    assert all(torch.isfinite(weight).all() for weight in step.net.parameters())
    with pytest.raises(UserError, match="step 1 is not a finite number"):
        trained("exp", *EXPLODES, "steps=50", "unet.dropout=0.2")


def test_a_replayed_step_is_the_step(tmp_path):
    """To the last bit, dropout included, on an ordinary step."""
    options = ["unet.dropout=0.3", "dataset.flip=true", "class_conditional=true", "optim.lr=0.02"]
    trainer = Trainer(config("train", *TINY, *options))
    for _ in range(3):
        trainer.advance()
    trainer.report()
    checkpoint.write(tmp_path / "failure.pt", 3, trainer.failure(3))
    trainer.advance()
    reported = trainer.report()
    step = replay(tmp_path / "failure.pt")
    assert step.losses.mean().item() == pytest.approx(reported["loss"], rel=1e-6)
    assert step.norm == reported["grad_norm"]


def test_a_device_that_runs_ahead_keeps_the_weights_of_before(monkeypatch):
    """There a failure is noticed some steps later; until then nothing is learned from it."""
    monkeypatch.setattr(Device, "runs_ahead", True)
    trainer = Trainer(config("train", *TINY, *EXPLODES))
    trainer.advance()
    before = {name: weight.clone() for name, weight in trainer.net.state_dict().items()}
    moments = trainer.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    for _ in range(3):
        trainer.advance()
    with pytest.raises(NotFinite) as caught:
        trainer.refuse_failure()
    assert caught.value.step == 1
    assert_same(dict(trainer.net.state_dict()), before)
    assert torch.equal(trainer.optimizer.state_dict()["state"][0]["exp_avg"], moments)
    assert trainer.optimizer.state_dict()["state"][0]["step"] == 1


def test_the_jobs_of_a_sweep_are_runs_too(tmp_path):
    """Given again, a job that is finished is passed over."""
    sweep = Job("test", [], {}, tmp_path / "sweep" / "0_seed-0")
    sweep.sweep_folder.mkdir(parents=True)
    loss = train.run(config("train", *TINY), sweep)
    before = as_it_is(sweep.sweep_folder)
    assert train.run(config("train", *TINY), sweep) == loss
    assert as_it_is(sweep.sweep_folder) == before
    with pytest.raises(UsageError, match="seed"):
        train.run(config("train", *TINY, "seed=1"), sweep)


def test_a_run_that_was_moved_goes_on_where_it_is():
    whole, parts = trained("whole"), trained("parts")
    forget_from(parts, 6)
    parts.rename("outputs/moved")
    trained("moved")
    assert_runs_are_the_same(whole, Path("outputs/moved"))
    with pytest.raises(
        UsageError, match="resume=outputs/moved continues that run under its own name; leave name=other out"
    ):
        train.run(config("train", *TINY, "name=other", "resume=outputs/moved"), job())


def test_a_beginning_that_came_to_nothing_leaves_nothing_in_tensorboard():
    whole, parts = trained("whole"), trained("parts")
    forget_from(parts, 1)
    (parts / "metrics.jsonl").unlink()
    trained("parts")
    assert_runs_are_the_same(whole, parts)


def test_moments_saved_in_another_memory_layout_are_the_same_moments(tmp_path):
    """As CUDA saves them, channels last: the optimizer goes through weight and moments side by side in memory."""
    one, other = (Trainer(config("train", *TINY, "optim.lr=0.01")) for _ in range(2))
    for _ in range(2):
        one.advance()
    content = copy.deepcopy({**one.state(), "step": 2})
    for state in content["optimizer"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].dim() == 4:
                state[name] = state[name].to(memory_format=torch.channels_last)
    checkpoint.write(tmp_path / "cuda.pt", 2, content)
    other.load(checkpoint.read(tmp_path / "cuda.pt"))
    for trainer in (one, other):
        trainer.advance()
    assert_same(dict(one.net.state_dict()), dict(other.net.state_dict()))


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again():
    folder = trained("exp", "checkpoint.every=2")
    shutil.move(folder / "checkpoints", "elsewhere")
    before = as_it_is(folder)
    with pytest.raises(UserError, match=r"outputs/exp has come to step 6, and its checkpoints are gone"):
        trained("exp", "checkpoint.every=2")
    assert as_it_is(folder) == before
    shutil.move("elsewhere", folder / "checkpoints")
    assert trained("exp", "checkpoint.every=2")


def test_what_a_crash_kept_from_tensorboard_is_shown_again():
    """The step that is continued from has its scalars and its picture there, once, whatever the crash left."""
    whole, parts = trained("whole", "log.every=3"), trained("parts", "log.every=3")
    forget_from(parts, 6)
    shutil.rmtree(parts / "tensorboard")
    trained("parts", "log.every=3")
    events = EventAccumulator(str(parts / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [3, 6]
    assert [event.step for event in events.Images("samples")] == [3, 6]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([line["loss"] for line in metrics(whole)])


def test_last_pt_is_mended_when_a_finished_run_is_given_again():
    folder = trained("exp")
    link = folder / "checkpoints" / "last.pt"
    link.unlink()
    link.symlink_to("step_00000003.pt")
    trained("exp")
    assert link.readlink() == Path("step_00000006.pt")


def test_a_signal_during_the_last_checkpoint_is_obeyed(monkeypatch):
    """Or the next job of a sweep would begin."""
    save = Run.save_checkpoint

    def save_and_ask(run: Run, step: int, *rest) -> None:
        save(run, step, *rest)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Run, "save_checkpoint", save_and_ask)
    with pytest.raises(Terminated):
        trained("exp", "checkpoint.every=100")
    assert newest(Path("outputs/exp"))["step"] == 6


def test_a_failure_that_is_noticed_late_is_never_saved(monkeypatch):
    """As on a device that runs ahead: metrics and checkpoints ask first."""
    monkeypatch.setattr(Device, "runs_ahead", True)
    with pytest.raises(UserError, match="step 1 is not a finite number"):
        trained("exp", *EXPLODES, "log.every=50", "images.every=50", "checkpoint.every=4", "steps=9")
    assert not list(Path("outputs/exp").glob("checkpoints/*.pt"))
    assert read_failure(Path("outputs/exp"))["step"] == 1


def read_failure(folder: Path) -> dict:
    return checkpoint.read(folder / "failure.pt")


@pytest.mark.parametrize(
    "change", ["batch_size=8", "ema.decay=0.5", "class_conditional=true", "optim.clip=3", "dataset.flip=true"]
)
def test_what_changes_weights_may_not_differ(change):
    trained("exp")
    with pytest.raises(UsageError, match=rf"begun with another config.*{change.partition('=')[0]}"):
        trained("exp", change)


@pytest.mark.parametrize("text", ["steps: abc", "steps: 6", "[1, 2]", "a: [", "", "name: exp\nseed: null"])
def test_a_damaged_record_is_named(text):
    folder = trained("exp")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"outputs/exp/config\.yaml does not hold the config of a run") as caught:
        trained("exp")
    assert len(str(caught.value).splitlines()) <= 4


def test_a_run_without_its_record_is_not_taken_for_something_else():
    folder = trained("exp")
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"outputs/exp exists already and is a run that has lost its config\.yaml"):
        trained("exp")


def test_no_run_lies_inside_another():
    trained("exp")
    with pytest.raises(UserError, match="outputs/exp/more would lie inside outputs/exp, which is a run"):
        trained("exp/more")
    assert trained("group/one").parent == Path("outputs/group")
    assert trained("group/two").exists()


def test_where_the_data_lie_is_remembered_from_any_folder():
    assert Path(read_record(trained("exp", "data_dir=mine"))["data_dir"]) == Path.cwd() / "mine"


def test_a_warm_up_longer_than_the_run_is_noticed(caplog):
    trained("exp", "optim.warmup=7")
    assert "optim.warmup=7 is longer than steps=6: the rate never comes to optim.lr" in caplog.text


def test_the_step_of_a_failure_is_no_checkpoint(tmp_path):
    trainer = Trainer(config("train", *TINY))
    checkpoint.write(tmp_path / "failure.pt", 3, trainer.failure(3))
    with pytest.raises(UserError, match="failure.pt is a step that failed"):
        checkpoint.load_trained(str(tmp_path / "failure.pt"), [])


def test_milestones_are_saved_between_other_checkpoints():
    folder = trained("exp", "checkpoint.every=4", "checkpoint.milestone_every=5", "checkpoint.keep=1")
    kept = [path.name for path in checkpoint.all_in(folder / "checkpoints")]
    assert kept == ["step_00000005.milestone.pt", "step_00000006.pt"]


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (1.0, np.inf), (np.inf, np.nan)])
def test_neither_loss_nor_gradient_may_be_infinite(loss, norm):
    trainer = Trainer(config("train", *TINY))
    trainer._watch(torch.ones(3), torch.tensor(1.0))
    with pytest.raises(NotFinite):
        trainer._watch(torch.tensor([1.0, loss, 1.0]), torch.tensor(norm))


def test_after_a_failure_nothing_is_learned_even_from_finite_steps(monkeypatch):
    monkeypatch.setattr(Device, "runs_ahead", True)
    trainer = Trainer(config("train", *TINY))
    passed_over = []
    for loss in (1.0, np.nan, 1.0):
        trainer._watch(torch.tensor([loss]), torch.tensor(1.0))
        passed_over.append(float(trainer.optimizer.found_inf))
    assert passed_over == [0.0, 1.0, 1.0]


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
    counted = []
    monkeypatch.setattr(Progress, "count_from_here", lambda progress: counted.append(progress.done))
    trained("exp", "steps=40")
    assert counted == [5]


def test_a_run_that_another_process_began_meanwhile_is_not_written_over(monkeypatch):
    def somebody_is_faster(trainer, folder):
        write_record(folder, config("train", *TINY, "name=exp", "seed=7"))

    monkeypatch.setattr(train, "refuse_small_disk", somebody_is_faster)
    with pytest.raises(UserError, match="outputs/exp was begun by another process just now"):
        trained("exp")
    assert read_record(Path("outputs/exp"))["seed"] == 7


def test_the_last_picture_is_drawn_later_if_it_is_missing():
    whole, parts = trained("whole", "images.every=4"), trained("parts", "images.every=4")
    (parts / "images" / "step_00000006.png").unlink()
    trained("parts", "images.every=4")
    assert_runs_are_the_same(whole, parts)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: memory layout, running ahead, moving")
def test_a_run_on_cuda_continues_there_and_on_the_processor():
    options = ["device=cuda", "device.compile=false", "optim.decay=none"]
    folder = trained("exp", *options)
    trained("exp", *options, "steps=12")
    trained("exp", "device=cpu", "optim.decay=none", "steps=18")
    assert newest(folder)["step"] == 18
    assert all(np.isfinite(line["loss"]) for line in metrics(folder))
    with pytest.raises(UserError, match="step 1 is not a finite number"):
        trained("exploded", *options, *EXPLODES)
    assert not np.isfinite(replay("outputs/exploded/failure.pt").norm)
