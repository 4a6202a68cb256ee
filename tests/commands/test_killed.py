"""Processes that are killed, asked to end, or run out of disk: whoever gives the command again loses nothing."""

import fcntl
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import termios
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from diffuse.runs.checkpoint_files import all_in, step_of
from tests.support.commands import TINY, diffuse
from tests.support.comparing import assert_runs_are_the_same, newest, read
from tests.support.processes import started, started_alone, until, until_it_says

# Everything that could be forgotten is on; checkpoints, pictures and metrics come often and seldom together.
OPTIONS = [
    *TINY, "unet.dropout=0.2", "dataset.flip=true", "optim.decay=cosine", "ema.decay=0.99", "class_conditional=true",
    "log.every=7", "images.every=50", "checkpoint.every=11", "checkpoint.keep=3", "checkpoint.milestone_every=100",
]  # fmt: skip
LONG = ["steps=1000000", "optim.decay=none", "checkpoint.every=1000000", "images.every=1000000"]


def saved_step(run: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    return max((step_of(path) for path in all_in(run / "checkpoints")), default=0)


def resumed_steps(run: Path) -> list[int]:
    return [int(step) for step in re.findall(r"resumed from step (\d+)", (run / "train.log").read_text())]


def kill_until_done(folder: Path, kills: int, words: list[str], seed: int) -> None:
    """Start `diffuse train` again and again; kill it `kills` times, each at a random moment after it has saved again.

    Each life must go on at or past the step that was saved when the one before it was killed.
    """
    random, run = np.random.default_rng(seed), folder / "outputs" / "killed"
    lives = []
    for _ in range(kills):
        before = saved_step(run)
        with started(folder, *words, "name=killed") as process:
            while saved_step(run) <= before:
                assert not until(process, 0.005), f"it ended before it was killed: {process.communicate()}"
            until(process, float(random.uniform(0, 0.3)))
            process.kill()
        lives.append(saved_step(run))
    done = diffuse("train", *words, "name=killed", cwd=folder)
    assert done.returncode == 0, done.stderr
    resumed = resumed_steps(run)
    assert len(resumed) == kills
    assert all(step >= saved > 0 for step, saved in zip(resumed, lives, strict=True)), (resumed, lives)


@pytest.mark.parametrize(
    ("kills", "steps"), [(3, 150), pytest.param(20, 2500, marks=pytest.mark.slow)], ids=["3 times", "20 times"]
)
def test_a_run_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path, kills, steps):
    words = [*OPTIONS, f"steps={steps}"]
    whole = diffuse("train", *words, "name=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    kill_until_done(tmp_path, kills, words, seed=kills)
    assert_runs_are_the_same(tmp_path / "outputs/whole", tmp_path / "outputs/killed")
    assert not list((tmp_path / "outputs/killed").rglob("*.tmp"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_end_saves_a_checkpoint_first(tmp_path, number, code):
    with started(tmp_path, *OPTIONS, *LONG, "name=asked") as process:
        until_it_says(process, "will take about")
        process.send_signal(number)
        said, complaint = process.communicate(timeout=60)
    run = tmp_path / "outputs" / "asked"
    step = saved_step(run)
    assert process.returncode == code
    assert step >= 25
    assert f"stopped, step {step} is saved; continue with: diffuse train resume=outputs/asked" in said
    assert complaint.strip() in ("terminated", "interrupted")
    done = diffuse("train", *OPTIONS, *LONG, "name=asked", "max_hours=0.0001", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert resumed_steps(run) == [step]
    done = diffuse("train", *OPTIONS, *LONG, "name=whole", f"steps={saved_step(run)}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = [newest(tmp_path / "outputs" / name)["model"] for name in ("asked", "whole")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_terminal_that_is_closed_is_a_wish_to_end(tmp_path):
    """Nothing can be printed any more, not even the bar, and the checkpoint is saved all the same."""
    ours, theirs = pty.openpty()

    def own_the_terminal() -> None:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be run by nohup, which training respects
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    words = [sys.executable, "-m", "diffuse", "train", *OPTIONS, *LONG, "name=shut"]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(words, cwd=tmp_path, preexec_fn=own_the_terminal, **streams) as process:
        os.close(theirs)
        shown = b""
        while b"will take about" not in shown:
            shown += os.read(ours, 1000)
        os.close(ours)
        process.wait(timeout=60)
    run = tmp_path / "outputs" / "shut"
    assert process.returncode == 129
    assert saved_step(run) >= 25
    assert f"stopped, step {saved_step(run)} is saved" in (run / "train.log").read_text()


def test_pictures_that_were_not_drawn_for_want_of_time_are_drawn_later(tmp_path):
    """A signal in the middle of a grid of 150 steps does not wait for it, and the checkpoint does not forget it."""
    words = [*OPTIONS, "steps=60", "images.every=30", "sampler.steps=150", "checkpoint.every=1000"]
    whole = diffuse("train", *words, "name=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    run = tmp_path / "outputs" / "parts"
    with started(tmp_path, *words, "name=parts") as process:
        while not (run / "metrics.jsonl").exists() or '"step": 28' not in (run / "metrics.jsonl").read_text():
            assert not until(process, 0.005)
        until(process, 0.2)
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    done = diffuse("train", *words, "name=parts", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_runs_are_the_same(tmp_path / "outputs/whole", run)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for the moment when torch is being loaded")
def test_a_signal_before_training_leaves_nothing(tmp_path):
    with started_alone(tmp_path, *OPTIONS, "name=early") as process:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert not until(process, 0.01)
        process.terminate()
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 143
    assert complaint.strip() == "terminated"
    assert list(tmp_path.rglob("*")) == []


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path):
    with started(tmp_path, *OPTIONS, *LONG, "name=taken") as process:
        until_it_says(process, "will take about")
        for words in (["name=taken"], ["resume=outputs/taken"]):
            done = diffuse("train", *([*OPTIONS, *LONG] if "name=taken" in words else []), *words, cwd=tmp_path)
            assert done.returncode == 1
            assert "outputs/taken is in use: another process is training there" in done.stderr
            assert len(done.stderr.splitlines()) <= 4
        process.kill()
    done = diffuse("train", *OPTIONS, *LONG, "name=taken", "max_hours=0.00001", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# No file may grow larger than this: a disk that is full in the middle of a checkpoint.
LIMITED = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint(tmp_path):
    words = [*OPTIONS, "steps=60", "checkpoint.every=20"]
    whole = diffuse("train", *words, "name=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    run = tmp_path / "outputs" / "full"
    diffuse("train", *words, "name=full", "max_hours=0.000001", cwd=tmp_path)
    kept = {path: path.read_bytes() for path in all_in(run / "checkpoints")}
    assert kept
    with started(tmp_path, *words, "name=full", first=LIMITED) as process:
        _, complaint = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "could not be written; is the disk full?" in complaint
    assert "Traceback" not in complaint
    assert len(complaint.splitlines()) <= 4, complaint
    assert {path: path.read_bytes() for path in all_in(run / "checkpoints")} == kept
    assert all(read(path) for path in kept)
    assert not list(run.rglob("*.tmp"))
    done = diffuse("train", *words, "name=full", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_runs_are_the_same(tmp_path / "outputs/whole", run)


def test_a_sweep_that_was_killed_is_given_again(tmp_path):
    """What is finished is passed over, what was half done continues, what failed runs again."""
    words = [*OPTIONS, "-m", "name=sweep", "optim.lr=0.001,0.002,1e30", "steps=45", "optim.clip=1e30"]
    sweep = tmp_path / "outputs" / "sweep"
    with started(tmp_path, *words) as process:
        while saved_step(sweep / "1_optim.lr-0.002") < 11:
            assert not until(process, 0.005), process.communicate()
        process.kill()
    first = (sweep / "0_optim.lr-0.001" / "metrics.jsonl").stat().st_mtime_ns
    done = diffuse("train", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "is NaN or infinite" in done.stderr
    assert "0_optim.lr-0.001 is finished: 45 of 45 steps are done" in done.stdout
    assert (sweep / "0_optim.lr-0.001" / "metrics.jsonl").stat().st_mtime_ns == first
    assert resumed_steps(sweep / "1_optim.lr-0.002")[0] >= 11
    alone = diffuse("train", *OPTIONS, "name=alone", "optim.lr=0.002", "steps=45", "optim.clip=1e30", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert_runs_are_the_same(tmp_path / "outputs/alone", sweep / "1_optim.lr-0.002")
    done = diffuse("train", *words, cwd=tmp_path)
    assert done.stdout.count("is finished: 45 of 45 steps are done") == 2
    assert done.stderr.count("is NaN or infinite") >= 1


def test_a_name_is_a_run_or_a_sweep_and_never_both(tmp_path):
    assert diffuse("train", *TINY, "name=one", cwd=tmp_path).returncode == 0
    done = diffuse("train", *TINY, "-m", "name=one", "seed=1,2", cwd=tmp_path)
    assert done.returncode == 2
    assert "outputs/one exists already and is a single run: a sweep needs another name=" in done.stderr
    assert not (tmp_path / "outputs/one/multirun.yaml").exists()
