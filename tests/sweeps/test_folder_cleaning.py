"""What a sweep without results removes: its own records, and nothing of anybody else's."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffuse.sweeps.folder import Sweep
from diffuse.sweeps.record import Record
from diffuse.system.files import atomic_path
from tests.support.commands import TINY, diffuse

REFUSED = [*TINY, "-m", "unet.dropout=2.0,3.0"]  # every job is


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_folders_that_were_there_before_stay(tmp_path):
    (tmp_path / "outputs" / "s").mkdir(parents=True)
    (tmp_path / "outputs" / "empty").mkdir()
    assert diffuse("train", *REFUSED, "name=s", cwd=tmp_path).returncode == 1
    assert files(tmp_path) == ["outputs", "outputs/empty", "outputs/s"]


def test_the_current_folder_stays(tmp_path):
    (tmp_path / "here").mkdir()
    done = diffuse("train", *REFUSED, "hydra.sweep.dir=.", cwd=tmp_path / "here")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert files(tmp_path) == ["here"]


def test_a_link_to_a_folder_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "s").symlink_to(tmp_path / "elsewhere")
    done = diffuse("train", *REFUSED, "name=s", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert files(tmp_path) == ["elsewhere", "outputs", "outputs/s"]


def test_the_record_of_a_sweep_that_begins_elsewhere_stays(tmp_path):
    """Another process is between its record and its first job."""
    folder = tmp_path / "outputs" / "s"
    program = (
        "import sys; from pathlib import Path; from diffuse.sweeps.folder import Sweep\n"
        "sweep = Sweep(Path(sys.argv[1])); sweep.join()\n"
        "(sweep.folder / 'multirun.yaml').write_text('hydra: {overrides: {task: [\"unet.dropout=2.0,3.0\"]}}')\n"
        "print('begun', flush=True); sys.stdin.read()"
    )
    line = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "begun\n"
        for words in (
            ["train", "-m", "name=s", "schedule=linear,cosin"],
            ["train", *REFUSED, "hydra.sweep.dir=outputs/s"],
        ):
            assert diffuse(*words, cwd=tmp_path).returncode in (1, 2)
            assert (folder / "multirun.yaml").exists()
        other.communicate()
    assert diffuse("train", *REFUSED, "hydra.sweep.dir=outputs/s", cwd=tmp_path).returncode == 1
    assert files(folder) == []


@pytest.mark.parametrize("values", ["ckpt=glob(outputs/*)", "seed=glob(x*)", "seed=range(3,3)"])
def test_a_sweep_without_jobs_is_an_error(tmp_path, values):
    done = diffuse("sample", "-m", values, *([] if "ckpt" in values else ["ckpt=x"]), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this sweep has no jobs: one of its keys has no value")
    assert files(tmp_path) == []


@pytest.mark.parametrize("flags", [["-m", "--help"], ["-m", "-h"], ["--info", "all"], ["-i", "plugins"]], ids=" ".join)
def test_what_is_only_shown_needs_no_jobs(tmp_path, flags):
    done = diffuse("train", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert files(tmp_path) == []


def finished_job(folder: Path) -> Sweep:
    sweep = Sweep(folder)
    (folder / "0").mkdir()
    (folder / "0" / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n')
    sweep.write(Record(0, "0", "train", "diffuse train -m", [], {"seed": "0"}, "now", status="done"))
    return sweep


def test_a_picture_from_the_future_is_drawn_again(tmp_path):
    sweep = finished_job(tmp_path)
    sweep.draw()
    os.utime(tmp_path / "sweep.png", (time.time() + 1e6,) * 2)
    sweep.draw()
    assert (tmp_path / "sweep.png").stat().st_mtime <= time.time()


def test_what_another_process_is_writing_stays(tmp_path):
    sweep = finished_job(tmp_path)
    with atomic_path(tmp_path / "sweep.png") as picture:
        picture.write_bytes(b"half of it")
        (tmp_path / ".sweep.csv.99999.tmp").write_bytes(b"of a process that was killed")
        sweep.write_tables()
        assert picture.exists()
    assert not list(tmp_path.glob(".*.tmp"))
