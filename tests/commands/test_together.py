"""Several processes compute what one computes, bit for bit: training, resuming, sampling, scoring."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import FAST, TINY, diffuse
from tests.support.comparing import assert_runs_are_the_same, assert_same, newest
from tests.support.processes import until
from tests.support.together import by, by_all, together

# Everything random is on; few levels, so that the importance of the times acts.
RANDOM = [
    *TINY, "steps=20", "batch_size=64", "unet.dropout=0.2", "dataset.flip=true", "loss=hybrid", "variance=learned",
    "times=importance", "times.history=2", "schedule.levels=25", "sampler.steps=5", "class_conditional=true",
    "log.every=5", "images.every=10", "checkpoint.every=10", "parts=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = diffuse("train", *RANDOM, "name=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "run"


@pytest.mark.parametrize("count", [2, 4])
def test_a_run_is_the_same_on_any_number_of_processes(tmp_path, alone, count):
    """Weights, average, optimizer, losses by level, metrics, pictures: of 20 steps in 4 parts."""
    by(count, "train", *RANDOM, "name=run", cwd=tmp_path)
    assert_runs_are_the_same(alone, tmp_path / "outputs" / "run")
    (line,) = (tmp_path / "outputs" / "run" / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["processes"] == count


def test_a_run_goes_on_on_any_number_of_processes(tmp_path):
    words = ["train", *TINY, "unet.dropout=0.2", "optim.decay=none", "batch_size=32", "ema.lengths=[0.1]", "name=run"]
    for steps, count in ((3, 4), (6, 1), (9, 2), (12, 4)):
        by(count, *words, f"steps={steps}", cwd=tmp_path)
    whole = tmp_path / "whole"
    whole.mkdir()
    by(1, *words, "steps=12", "parts=4", cwd=whole)
    one, other = (newest(folder / "outputs" / "run") for folder in (tmp_path, whole))
    for name in ("model", "ema", "averages", "optimizer", "times", "sums", "norm"):
        assert_same(one[name], other[name], name)
    assert one["step"] == other["step"] == 12


def test_more_processes_than_parts_divide_them_further(tmp_path):
    words = ["train", *TINY, "batch_size=48", "optim.decay=none", "name=run"]
    by(2, *words, cwd=tmp_path)
    done = by(3, *words, "steps=9", cwd=tmp_path)
    assert "parts=2 becomes 6 for 3 processes: sums are rounded differently" in done.stdout
    assert newest(tmp_path / "outputs" / "run")["config"]["parts"] == 6


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_gradients_are_sent_in_either_precision(tmp_path, kind):
    by(3, "train", *TINY, "batch_size=48", f"device.gradients={kind}", "name=run", cwd=tmp_path)
    by(1, "train", *TINY, "batch_size=48", "parts=3", "name=alone", cwd=tmp_path)
    one, other = (newest(tmp_path / "outputs" / name)["model"] for name in ("run", "alone"))
    far = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert (far == 0) == (kind == "float32")
    assert far < 0.02


def test_samples_are_the_same_from_any_number_of_processes(tmp_path, tiny_run):
    """1,000 images, with noise in every step; and 7 on 3 processes, which do not divide them."""
    words = ["sample", f"ckpt={tiny_run}", *FAST, "sampler.steps=5"]
    for n, counts in ((1000, (1, 2, 3)), (7, (1, 3))):
        for count in counts:
            by(count, *words, f"n={n}", "trajectory=false", f"name={tmp_path.name}-{n}-{count}", cwd=tmp_path)
        folders = [tiny_run / "samples" / f"{tmp_path.name}-{n}-{count}" for count in counts]
        first, *others = [np.load(folder / "samples.npz")["arr_0"] for folder in folders]
        assert len(first) == n
        assert all(np.array_equal(first, other) for other in others)
        assert [json.loads((folder / "samples.json").read_text())["processes"] for folder in folders] == [*counts]
        assert len({(folder / "grid.png").read_bytes() for folder in folders}) == 1


def test_the_way_of_the_first_images_is_shown_by_several_processes_too(tmp_path, tiny_run):
    words = ["sample", f"ckpt={tiny_run}", *FAST, "sampler.steps=5", "n=6"]
    for count in (1, 2):
        by(count, *words, f"name={tmp_path.name}-{count}", cwd=tmp_path)
    folders = [tiny_run / "samples" / f"{tmp_path.name}-{count}" for count in (1, 2)]
    for name in ("trajectory.png", "samples.npz", "grid.png"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1, name


def test_encoded_images_are_the_same_from_any_number_of_processes(tmp_path, tiny_run):
    given = tiny_run / "samples" / tmp_path.name
    by(1, "sample", f"ckpt={tiny_run}", *FAST, "sampler.steps=5", "n=5", f"name={tmp_path.name}", cwd=tmp_path)
    words = ["sample", f"ckpt={tiny_run}", *FAST, "sampler=heun", "sampler.steps=4", "edit.encode=true"]
    for count in (1, 3):
        name = f"name={tmp_path.name}-{count}"
        by(count, *words, f"edit.image={given / 'images'}", name, cwd=tmp_path)
    folders = [tiny_run / "samples" / f"{tmp_path.name}-{count}" for count in (1, 3)]
    for name in ("noise.npz", "samples.npz"):
        first, other = (dict(np.load(folder / name)) for folder in folders)
        assert all(np.array_equal(first[key], other[key]) for key in first), name


def test_scores_are_the_same_from_any_number_of_processes(tmp_path, tiny_run):
    metrics = "metrics=[bound,ode,fid,kid,precision_recall]"
    few = ["n=100", "levels=20", "ode.solver=heun", "ode.steps=4", "sampler.steps=3"]
    words = ["eval", f"ckpt={tiny_run}", *FAST, metrics, *few, "features=classifier"]
    reports = []
    for count in (1, 2, 3):
        by(count, *words, f"name={tmp_path.name}-{count}", cwd=tmp_path)
        report = json.loads((tiny_run / "eval" / f"{tmp_path.name}-{count}" / "eval.json").read_text())
        assert report["processes"] == count
        reports.append(report)
    first, *others = reports
    assert len(first["values"]) == 5
    for other in others:
        assert other["values"] == first["values"]
        assert other["terms"] == first["terms"]


def test_an_evaluation_goes_on_on_another_number_of_processes(tmp_path, tiny_run):
    words = [
        "eval",
        f"ckpt={tiny_run}",
        *FAST,
        "features=classifier",
        "n=64",
        "sampler.steps=3",
        f"name={tmp_path.name}",
    ]
    by(2, *words, "metrics=[fid]", cwd=tmp_path)
    done = by(3, *words, "metrics=[fid]", cwd=tmp_path)
    assert "scored before: fid" in done.stdout


def test_a_sampling_that_was_stopped_goes_on_on_another_number_of_processes(tmp_path, tiny_run):
    words = [
        "sample",
        f"ckpt={tiny_run}",
        *FAST,
        "n=3000",
        "sampler.steps=25",
        "batch_size=32",
        f"name={tmp_path.name}",
    ]
    folder = tiny_run / "samples" / tmp_path.name
    drawn = folder / "unfinished" / "images.npy"
    with together(words, [tmp_path] * 2) as processes:
        while not drawn.exists() or drawn.stat().st_size < 10_000:
            assert not until(processes[0], 0.01), processes[0].communicate()
        processes[1].terminate()
        assert [process.wait(100) for process in processes] == [143, 0]
        assert "stopped, " in processes[0].said()[0]
    done = by(3, *words, cwd=tmp_path)
    assert "continuing after " in done.stdout
    by(1, *[word for word in words if not word.startswith("name=")], f"name={tmp_path.name}-whole", cwd=tmp_path)
    whole = tiny_run / "samples" / f"{tmp_path.name}-whole"
    assert np.array_equal(*(np.load(each / "samples.npz")["arr_0"] for each in (folder, whole)))


def test_a_signal_to_one_process_is_one_to_all(tmp_path):
    words = ["train", *TINY, "steps=100000", "checkpoint.every=100000", "images.every=100000", "name=run"]
    run = tmp_path / "outputs" / "run"
    with together(words, [tmp_path] * 2) as processes:
        while not (run / "metrics.jsonl").exists():
            assert not until(processes[0], 0.01), processes[0].communicate()
        processes[1].terminate()
        assert [process.wait(100) for process in processes] == [143, 0]
        assert processes[0].said()[1] == "terminated\n"
    assert newest(run)["step"] > 0


def test_processes_of_a_training_that_fails_end_with_one_message(tmp_path):
    words = ["train", *TINY, "optim.lr=1e30", "optim.clip=1e30", "name=run"]
    first, other = by_all(*words, cwd=tmp_path, count=2)
    assert first.returncode == 1
    assert "is NaN or infinite" in first.stderr
    assert (other.returncode, other.stderr) == (0, "")
    assert (tmp_path / "outputs" / "run" / "failure.pt").exists()
