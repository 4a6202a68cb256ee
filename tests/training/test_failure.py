"""What goes wrong in a run: damaged or missing files, other images, a loss that is no finite number."""

import copy
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffuse.commands import train
from diffuse.runs import checkpoint
from diffuse.runs.checkpoint_files import all_in
from diffuse.runs.folder import RunFolder
from diffuse.runs.trained import load
from diffuse.system.device import Device
from diffuse.system.errors import Terminated, UserError
from diffuse.training.failure import replay
from diffuse.training.trainer import NotFinite, Trainer
from tests.support.commands import TINY, config
from tests.support.comparing import assert_runs_are_the_same, assert_same, metrics, newest, read
from tests.support.running import as_it_is, forget_from, trained, trainer_of

# The first step makes weights of 1e30, on which the second cannot be computed.
EXPLODES = ["optim.lr=1e30", "optim.clip=1e30", "optim.warmup=0"]


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
    for path in all_in(folder / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-1])
    before = as_it_is(folder)
    with pytest.raises(UserError, match="none of the 2 checkpoints in outputs/exp/checkpoints can be read"):
        trained("exp")
    assert as_it_is(folder) == before


def test_a_checkpoint_of_a_newer_version_is_named():
    folder = trained("exp")
    path = all_in(folder / "checkpoints")[-1]
    checkpoint.write(path, 6, {**read(path), "format": 9, "program": "diffuse 9.9"})
    with pytest.raises(
        UserError, match=r"has format 9, and diffuse .* reads formats 3 and 4; it was written by diffuse 9\.9"
    ):
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


def test_a_step_without_a_finite_loss_is_kept_and_can_be_done_again():
    with pytest.raises(UserError, match=r"the loss or gradient of step 1 is NaN or infinite") as caught:
        trained("exp", *EXPLODES, "steps=50", "unet.dropout=0.2")
    assert "outputs/exp/failure.pt" in str(caught.value)
    step = replay("outputs/exp/failure.pt")
    assert (step.step, len(step.losses)) == (1, 16)
    assert not (torch.isfinite(step.losses).all() and np.isfinite(step.norm))
    assert all(torch.isfinite(weight).all() for weight in step.net.parameters())
    with pytest.raises(UserError, match="step 1 is NaN or infinite"):
        trained("exp", *EXPLODES, "steps=50", "unet.dropout=0.2")


@pytest.mark.parametrize("norm", ["torch", "moments"])
def test_a_replayed_step_is_the_step(tmp_path, norm):
    """To the last bit, dropout included, on an ordinary step, with the norm that the step was computed with."""
    options = [
        f"device.norm={norm}",
        "unet.dropout=0.3",
        "dataset.flip=true",
        "class_conditional=true",
        "optim.lr=0.02",
    ]
    training = train.build_training(config("train", *TINY, *options))
    trainer = training.trainer
    for _ in range(3):
        trainer.advance()
    trainer.report()
    checkpoint.write(tmp_path / "failure.pt", 3, {**training.content(), **trainer.failure(3)})
    trainer.advance()
    reported = trainer.report()
    step = replay(tmp_path / "failure.pt")
    assert step.losses.mean().item() == pytest.approx(reported["loss"], rel=1e-6)
    assert step.norm == reported["grad_norm"]


def test_a_device_that_runs_ahead_keeps_the_weights_of_before(monkeypatch):
    """There a failure is noticed some steps later; until then nothing is learned from it."""
    monkeypatch.setattr(Device, "asynchronous", True)
    trainer = trainer_of(config("train", *TINY, *EXPLODES))
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


def test_a_beginning_that_came_to_nothing_leaves_nothing_in_tensorboard():
    whole, parts = trained("whole"), trained("parts")
    forget_from(parts, 1)
    (parts / "metrics.jsonl").unlink()
    trained("parts")
    assert_runs_are_the_same(whole, parts)


def test_moments_saved_in_another_memory_layout_are_the_same_moments(tmp_path):
    """As CUDA saves them, channels last: the optimizer goes through weight and moments side by side in memory."""
    one, other = (trainer_of(config("train", *TINY, "optim.lr=0.01")) for _ in range(2))
    for _ in range(2):
        one.advance()
    content = copy.deepcopy({**one.state(), "step": 2})
    for state in content["optimizer"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].dim() == 4:
                state[name] = state[name].to(memory_format=torch.channels_last)
    checkpoint.write(tmp_path / "cuda.pt", 2, content)
    other.load(tmp_path / "cuda.pt")
    for trainer in (one, other):
        trainer.advance()
    assert_same(dict(one.net.state_dict()), dict(other.net.state_dict()))


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again():
    folder = trained("exp", "checkpoint.every=2")
    shutil.move(folder / "checkpoints", "elsewhere")
    before = as_it_is(folder)
    with pytest.raises(UserError, match=r"outputs/exp has reached step 6, and its checkpoints are gone"):
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
    assert link.samefile(folder / "checkpoints" / "step_00000006.pt")


def test_a_signal_during_the_last_checkpoint_is_obeyed(monkeypatch):
    """Or the next job of a sweep would begin."""
    save = RunFolder.save_checkpoint

    def save_and_ask(run: RunFolder, step: int, *rest) -> None:
        save(run, step, *rest)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "save_checkpoint", save_and_ask)
    with pytest.raises(Terminated):
        trained("exp", "checkpoint.every=100")
    assert newest(Path("outputs/exp"))["step"] == 6


def test_a_failure_that_is_noticed_late_is_never_saved(monkeypatch):
    """As on a device that runs ahead: metrics and checkpoints ask first."""
    monkeypatch.setattr(Device, "asynchronous", True)
    with pytest.raises(UserError, match="step 1 is NaN or infinite"):
        trained("exp", *EXPLODES, "log.every=50", "images.every=50", "checkpoint.every=4", "steps=9")
    assert not list(Path("outputs/exp").glob("checkpoints/*.pt"))
    assert read_failure(Path("outputs/exp"))["step"] == 1


def read_failure(folder: Path) -> dict:
    return read(folder / "failure.pt")


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


def test_the_step_of_a_failure_is_no_checkpoint(tmp_path):
    trainer = trainer_of(config("train", *TINY))
    checkpoint.write(tmp_path / "failure.pt", 3, trainer.failure(3))
    with pytest.raises(UserError, match="failure.pt is a step that failed"):
        load(str(tmp_path / "failure.pt"))


@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (1.0, np.inf), (np.inf, np.nan)])
def test_neither_loss_nor_gradient_may_be_infinite(loss, norm):
    trainer = trainer_of(config("train", *TINY))
    updated_with(trainer, loss=1.0, gradient=1.0)
    trainer.refuse_failure()
    updated_with(trainer, loss, gradient=norm)
    with pytest.raises(NotFinite):
        trainer.refuse_failure()


def updated_with(trainer: Trainer, loss: float, gradient: float) -> None:
    """A step with this loss for one of its images, and this number among its gradients."""
    batch = trainer.batch(0)
    losses = trainer.gradients(batch)
    losses[3] = loss
    next(trainer.net.parameters()).grad.view(-1)[0] = gradient
    trainer.update(batch, losses)


def test_after_a_failure_nothing_is_learned_even_from_finite_steps():
    """Weights, their average, the optimizer, the sums and what importance sampling remembers, on every device."""
    trainer = trainer_of(config("train", *TINY, "times=importance"))
    trainer.advance()
    before = copy.deepcopy(trainer.state())
    for loss in (np.nan, 1.0):
        updated_with(trainer, loss, gradient=1.0)
        assert_same(trainer.state(), before)


def test_a_trainer_that_failed_goes_on_from_a_checkpoint(tmp_path):
    trainer = trainer_of(config("train", *TINY))
    trainer.advance()
    trainer.save(tmp_path / "good.pt")
    with torch.no_grad():
        next(trainer.net.parameters()).fill_(torch.nan)
    with pytest.raises(NotFinite):
        trainer.advance()
    trainer.load(tmp_path / "good.pt")
    trainer.advance()
    assert trainer.step == 2
    assert_same(dict(trainer.net.state_dict()), after_two_steps())


def after_two_steps() -> dict:
    trainer = trainer_of(config("train", *TINY))
    trainer.advance()
    trainer.advance()
    return dict(trainer.net.state_dict())
