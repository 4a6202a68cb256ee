"""`device.processes=N`: processes that are started, killed, started again, and asked to end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffuse.runs.checkpoint_files import all_in, step_of
from tests.support.commands import TINY, diffuse, diffuse_alone
from tests.support.comparing import assert_runs_are_the_same, assert_same, newest
from tests.support.processes import started_alone, until

OPTIONS = [
    *TINY, "unet.dropout=0.2", "dataset.flip=true", "batch_size=32", "parts=2", "log.every=7", "images.every=50",
    "checkpoint.every=11",
]  # fmt: skip
LONG = [*TINY, "steps=1000000", "optim.decay=none", "images.every=1000000", "checkpoint.every=1000000"]


def workers(launcher: int) -> list[int]:
    """The process numbers of what a launcher has started."""
    listed = subprocess.run(["pgrep", "-P", str(launcher), "-f", "spawn_main"], capture_output=True, text=True)
    return [int(number) for number in listed.stdout.split()]


def saved_step(run: Path) -> int:
    return max((step_of(path) for path in all_in(run / "checkpoints")), default=0)


def kill_until_done(folder: Path, kills: int, words: list[str], seed: int) -> str:
    """Train, and kill a random process each time that another checkpoint is saved. What the launcher says."""
    random = np.random.default_rng(seed)
    before = 0
    with started_alone(folder, *words, "device.processes=2", f"device.restarts={kills}") as process:
        for _ in range(kills):
            while not (runs := list(folder.glob("outputs/**/checkpoints"))) or saved_step(runs[0].parent) <= before:
                assert not until(process, 0.005), process.communicate()
            until(process, float(random.uniform(0, 0.3)))
            before = saved_step(runs[0].parent)
            os.kill(random.choice(workers(process.pid)), signal.SIGKILL)
        said, complaint = process.communicate(timeout=200)
    assert process.returncode == 0, complaint
    assert complaint.count("was killed (SIGKILL): all 2 processes start again") == kills, complaint
    assert "Traceback" not in complaint
    return said


def assert_killed_runs_are_the_same(folder: Path, steps: int, kills: int, seed: int) -> None:
    """A run without a name: what is started again goes on in its folder."""
    kill_until_done(folder, kills, [*OPTIONS, f"steps={steps}"], seed)
    (run,) = (folder / "outputs" / "digits-linear-tiny").iterdir()
    assert (run / "train.log").read_text().count("resumed from step") == kills
    done = diffuse("train", *OPTIONS, f"steps={steps}", "name=whole", cwd=folder)
    assert done.returncode == 0, done.stderr
    whole = folder / "outputs" / "whole"
    for name in ("model", "ema", "optimizer", "sums", "step"):
        assert_same(newest(run)[name], newest(whole)[name], name)
    assert_same(*(sorted(path.name for path in (each / "images").iterdir()) for each in (run, whole)))


def test_a_run_whose_process_is_killed_is_the_same(tmp_path):
    assert_killed_runs_are_the_same(tmp_path, 50, 1, seed=0)


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_20_times_is_the_same(tmp_path):
    assert_killed_runs_are_the_same(tmp_path, 2000, 20, seed=1)


def test_a_command_that_is_killed_too_often_says_so(tmp_path):
    with started_alone(tmp_path, *LONG, "device.processes=2", "device.restarts=0", "name=run") as process:
        while not (tmp_path / "outputs" / "run" / "metrics.jsonl").exists():
            assert not until(process, 0.01), process.communicate()
        os.kill(workers(process.pid)[1], signal.SIGKILL)
        _, complaint = process.communicate(timeout=100)
    assert process.returncode == 1
    killed = complaint.splitlines()[-1]
    assert killed.startswith("error: rank ")
    assert killed.endswith("was killed (SIGKILL), after 0 restarts (device.restarts): give the command again")


@pytest.mark.parametrize("target", ["launcher", "worker", pytest.param("terminal", marks=pytest.mark.slow)])
def test_a_signal_ends_all_with_one_checkpoint(tmp_path, target):
    """SIGTERM to the launcher, or to one of its processes; Ctrl-C reaches all of them at once."""
    run = tmp_path / "outputs" / "run"
    line = [sys.executable, "-m", "diffuse", "train", *LONG, "device.processes=2", "name=run"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, cwd=tmp_path, start_new_session=True, **streams) as process:
        while not (run / "metrics.jsonl").exists():
            assert not until(process, 0.01), process.communicate()
        if target == "terminal":
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid if target == "launcher" else workers(process.pid)[1], signal.SIGTERM)
        said, complaint = process.communicate(timeout=100)
    assert process.returncode == (130 if target == "terminal" else 143)
    assert complaint == ("interrupted\n" if target == "terminal" else "terminated\n")
    assert "continue with: diffuse train resume=outputs/run" in said
    assert [step_of(path) for path in all_in(run / "checkpoints")] == [newest(run)["step"]]


def test_a_signal_to_a_process_that_is_still_starting_is_not_lost(tmp_path):
    with started_alone(tmp_path, *LONG, "device.processes=2", "name=run") as process:
        while len(begun := workers(process.pid)) < 2:
            assert not until(process, 0.005), process.communicate()
        os.kill(begun[1], signal.SIGTERM)
        _, complaint = process.communicate(timeout=100)
    assert (process.returncode, complaint) == (143, "terminated\n")


def test_processes_end_when_their_launcher_is_killed(tmp_path):
    run = tmp_path / "outputs" / "run"
    with started_alone(tmp_path, *LONG, "device.processes=2", "name=run") as process:
        while not (run / "metrics.jsonl").exists():
            assert not until(process, 0.01), process.communicate()
        left = workers(process.pid)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{number}").exists() for number in left):
            assert time.monotonic() < deadline
            until(process, 0.05)
    assert saved_step(run) > 0


def test_a_failure_of_the_leader_ends_all_and_is_not_tried_again(tmp_path):
    done = diffuse_alone("train", *TINY, "optim.lr=1e30", "optim.clip=1e30", "device.processes=2", cwd=tmp_path)
    assert done.returncode == 1
    assert "is NaN or infinite" in done.stderr
    assert "start again" not in done.stderr
    assert len(done.stderr.splitlines()) == 3


def test_the_jobs_of_a_sweep_have_processes_of_their_own(tmp_path):
    words = ["train", *TINY, "-m", "name=s", "seed=0", "device.processes=2"]
    done = diffuse_alone(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "s").glob("0*/")
    assert json.loads((run / "history.jsonl").read_text())["processes"] == 2
    assert "loss" in (tmp_path / "outputs" / "s" / "sweep.csv").read_text()


def test_torchrun_starts_the_command(tmp_path):
    """PyTorch's own launcher, and a run without a name, of which there is one."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "diffuse"]
    done = subprocess.run([*line, "train", *OPTIONS], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "digits-linear-tiny").iterdir()
    done = diffuse("train", *OPTIONS, "name=alone", cwd=tmp_path)
    assert_runs_are_the_same(run, tmp_path / "outputs" / "alone")
