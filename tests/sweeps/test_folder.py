"""Sweeps from outside: one complete table, whatever happens to the jobs; and the table by itself, from records."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

from diffuse.sweeps.folder import Sweep
from diffuse.sweeps.record import Record, closing_message
from diffuse.sweeps.table import as_csv, as_markdown, as_text
from diffuse.system.errors import UsageError
from tests.support.commands import TINY, diffuse
from tests.support.places import REPOSITORY
from tests.support.processes import started, until
from tests.support.sweeps import column, table


def test_six_jobs_of_which_one_fails_and_one_is_killed_end_in_one_complete_table(tmp_path):
    sweep = tmp_path / "outputs" / "s"
    words = [
        *TINY,
        "images.every=24",
        "-m",
        "name=s",
        "optim.lr=1e-3,2e-3,1e30,4e-3,5e-3,6e-3",
        "optim.clip=1e30",
        "steps=24",
    ]
    with started(tmp_path, *words) as process:
        while not (sweep / "3_optim.lr-0.004" / "checkpoints" / "step_00000003.pt").exists():
            assert not until(process, 0.005), process.communicate()
        process.kill()
    assert column(sweep, "status") == ["done", "done", "failed", "running"]
    assert [row.status for row in Sweep(sweep).rows()] == ["done", "done", "failed", "killed"]

    done = diffuse("train", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: 1 of the sweep's jobs failed: 2"
    assert "0_optim.lr-0.001 is finished: 24 of 24 steps are done" in done.stdout
    assert "resumed from step" in done.stdout
    rows = table(sweep)
    assert [row["job"] for row in rows] == list("012345")
    assert [row["optim.lr"] for row in rows] == ["0.001", "0.002", "1e+30", "0.004", "0.005", "0.006"]
    assert [row["status"] for row in rows] == ["done", "done", "failed", "done", "done", "done"]
    assert "step 1 is NaN or infinite" in rows[2]["reason"]
    for row in rows:
        lines = (sweep / row["folder"] / "metrics.jsonl").read_text().splitlines() if row["loss"] else []
        assert (row["loss"] == "") == (row["status"] == "failed")
        assert not lines or float(row["loss"]) == json.loads(lines[-1])["loss"]
        assert float(row["seconds"]) > 0
    shown = done.stdout[done.stdout.index("\njob  optim.lr") :]
    assert [line.split()[0] for line in shown.strip().splitlines()[1:7]] == list("012345")
    assert "table: outputs/s/sweep.md" in shown
    assert "**" in (sweep / "sweep.md").read_text()
    with Image.open(sweep / "sweep.png") as picture:
        assert min(picture.size) > 400


def test_a_sweep_that_is_asked_to_end_shows_its_table(tmp_path):
    sweep = tmp_path / "outputs" / "s"
    words = [*TINY, "-m", "name=s", "seed=0,1", "steps=1000000", "optim.decay=none", "images.every=1000000"]
    with started(tmp_path, *words) as process:
        while not (sweep / "0_seed-0" / "metrics.jsonl").exists():
            assert not until(process, 0.005), process.communicate()
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert complaint.strip() == "interrupted"
    assert column(sweep, "status") == ["interrupted"]
    assert "job  seed" in said
    assert not (sweep / "1_seed-1").exists()


def test_jobs_of_sample_and_eval_that_are_done_are_passed_over(tmp_path, tiny_run):
    words = ["sample", "-m", "name=s", f"ckpt={tiny_run}", "n=4", "seed=0,1", "sampler=ddim", "device=cpu"]
    done = diffuse(*words, "sampler.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "outputs" / "s"
    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("*.npz")}
    assert len(before) == 2
    done = diffuse(*words, "sampler.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "job 1: done before" in done.stdout
    assert column(sweep, "status") == ["done", "done"]

    done = diffuse(*words, "sampler.steps=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: outputs/s was made with sampler.steps=2, and this line has sampler.steps=3: choose another name="
    )
    assert column(sweep, "status") == ["done", "done"]
    assert column(sweep, "status") == ["done", "done"]
    assert {path: path.stat().st_mtime_ns for path in sweep.rglob("*.npz")} == before


def test_the_scores_of_an_eval_sweep_stand_in_its_table(tmp_path, tiny_run):
    """Also where the process that waits for the jobs is killed, since a job writes the table itself."""
    words = ["eval", "-m", "name=s", f"ckpt={tiny_run}", "n=4", "metrics=[bound]", "levels=2,5", "device=cpu"]
    done = diffuse(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "outputs" / "s"
    for row in table(sweep):
        found = json.loads((sweep / row["folder"] / "eval.json").read_text())
        assert float(row["bound"]) == found["bits_per_dim"]["bound"]["total"]
        assert row["status"] == "done"
    assert (sweep / "sweep.png").exists()


def test_a_sweep_of_which_nothing_came_leaves_nothing_and_says_why(tmp_path):
    """And a key that is typed twice is one that varies, where the last time is of several values."""
    done = diffuse("train", *TINY, "-m", "name=s", "seed=1", "seed=0,1", "unet.dropout=2.0,3.0", cwd=tmp_path)
    assert done.returncode == 1
    assert "unet.dropout must be at least 0 and below 1, not 3.0" in done.stdout
    assert "job 3: seed=1 unet.dropout=3.0" in done.stdout
    assert "sweep.md" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_another_process_is_at_is_left_alone(tmp_path):
    folder = tmp_path / "outputs" / "s"
    sweep, other = Sweep(folder), job(0, folder="0", status="running")
    with sweep.hold(other):
        sweep.begin(other)
        (folder / "multirun.yaml").write_text("hydra: {overrides: {task: []}}")
        done = diffuse("train", *TINY, "-m", "name=s", cwd=tmp_path)
        assert done.returncode == 1
        assert "job 0 of" in done.stderr
        assert "is in use: another process runs it" in done.stderr
        assert [row.status for row in sweep.rows()] == ["running"]
    assert list((folder / "0").iterdir()) == []


# The table by itself.


def job(number: int, **facts) -> Record:
    varied = facts.pop("varied", {"schedule": "linear", "optim.lr": str(10.0**-number)})
    given = {"folder": f"{number}_x", "command": "train", "typed": "diffuse train -m", "overrides": [], "given": "now"}
    return Record(number=number, varied=varied, **{**given, "status": "done", **facts})


JOBS = [
    job(0, values={"loss": 0.0412345678, "recall": 0.25}, seconds=12.34),
    job(1, values={"loss": 0.5, "recall": 0.75}, seconds=3600.0),
    job(2, status="failed", reason="the *loss* | of step 1 is not finite. The state before it is kept"),
]


def test_the_csv_has_every_digit_and_a_column_for_each_key_and_value():
    header, *rows = csv.reader(as_csv(JOBS).splitlines())
    assert header == ["job", "schedule", "optim.lr", "loss", "recall", "seconds", "status", "reason", "folder"]
    assert rows[0] == ["0", "linear", "1.0", "0.0412345678", "0.25", "12.3", "done", "", "0_x"]
    assert rows[2][3:5] == ["", ""]
    assert rows[2][7] == "the *loss* | of step 1 is not finite"


def test_markdown_marks_the_best_and_keeps_text_in_its_cell():
    lines = [line for line in as_markdown(JOBS, "sweep.png").splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "| 0.04123 | 0.25 | 12 s |" in lines[2]
    assert "| 0.5 | **0.75** | 60 min |" in lines[3]
    assert r"the \*loss\* \| of step 1" in lines[4]


def test_a_best_value_is_marked_where_one_is_better():
    def bests(**values: tuple[float, float]) -> list[str]:
        jobs = [job(n, values={name: pair[n] for name, pair in values.items()}) for n in range(2)]
        return [line for line in as_text(jobs, 200).splitlines() if line.startswith("best: ")]

    assert bests(fid_classifier=(3.0, 2.0), **{"is": (5.0, 4.0)}) == ["best: fid_classifier 2 (job 1), is 5 (job 0)"]
    assert bests(copies=(1.0, 2.0), loss=(1.0, 1.0)) == []


@pytest.mark.parametrize(
    ("key", "told"), [("optim.lr", True), ("unet.dropout", True), ("schedule", False), ("loss.omega", False)]
)
def test_losses_that_are_different_quantities_have_no_best(key, told):
    jobs = [job(n, varied={key: str(n)}, values={"loss": 1.0 - n / 2}) for n in range(2)]
    assert ("best: loss 0.5 (job 1)" in as_text(jobs, 200)) == told


def test_the_terminal_has_lines_of_its_width():
    long = [job(n, varied={"optim.lr": "0.00027678204943976364", "ckpt": "outputs/" + "x" * 200}) for n in range(3)]
    for jobs in (JOBS, long):
        for width in (80, 120):
            lines = as_text(jobs, width).splitlines()
            assert max(map(len, lines)) <= width, "\n".join(lines)
            assert len(lines) >= 4
    assert "0.0002768" in as_text(long, 120)
    assert as_text(JOBS, 100).endswith("best: recall 0.75 (job 1)")


def test_what_is_refused_is_failed_and_what_it_did_before_stands(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.write(job(0, values={"bound": 4.0}, overrides=["n=4", "seed=0"]))
    same, other = job(0, overrides=["seed=0", "n=4"], given="later"), job(0, overrides=["n=5", "seed=0"], given="later")
    with pytest.raises(UsageError, match="it was done with n=4, and now has n=5"):
        sweep.done_before(other)
    assert closing_message(sweep.jobs_of("later"), "again") == "1 of the sweep's jobs failed: 0"
    assert [row["status"] for row in table(tmp_path)] == ["failed"]
    assert sweep.done_before(same).values == {"bound": 4.0}
    assert closing_message(sweep.jobs_of("later"), "again") is None
    assert [row["bound"] for row in table(tmp_path)] == ["4.0"]


def test_a_job_is_running_while_its_process_lives(tmp_path):
    sweep, running = Sweep(tmp_path), job(0, status="running")
    with sweep.hold(running):
        sweep.begin(running)
        assert [row.status for row in sweep.rows()] == ["running"]
    assert [row.status for row in sweep.rows()] == ["killed"]
    assert closing_message(sweep.rows(), "diffuse x") == "1 did not end: 0; continue with: diffuse x"


def test_seconds_are_of_all_the_times_that_ended_in_order(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.write(job(0, status="interrupted", seconds=5.0))
    begun = sweep.begin(job(0, status="running"))
    assert begun.seconds == 5.0
    sweep.begin(job(0, status="running"))
    assert sweep.read("0_x").seconds == 5.0


def test_a_record_that_cannot_be_read_is_no_row(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.write(job(0))
    for name, text in [("1_x", "{"), ("2_x", "[]"), ("3_x", '{"number": 3}'), ("4_x", "")]:
        (tmp_path / "jobs" / f"{name}.json").write_text(text)
    assert [row.number for row in sweep.rows()] == [0]
    assert json.loads((tmp_path / "jobs" / "0_x.json").read_text())["status"] == "done"
    assert dataclasses.asdict(sweep.read("0_x")) == dataclasses.asdict(sweep.records()[0])


def test_processes_that_write_at_once_lose_no_row(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from diffuse.sweeps.folder import Sweep; from diffuse.sweeps.record import Record\n"
        "for n in range(int(sys.argv[1]), 12, 2):\n"
        "    Sweep(Path(sys.argv[2])).write(Record(n, f'{n}_x', 'train', 'diffuse', [], {'seed': str(n)}, 'now'))"
    )
    words = [[sys.executable, "-c", program, str(first), str(tmp_path)] for first in range(2)]
    writers = [subprocess.Popen(line, cwd=REPOSITORY, env=dict(os.environ)) for line in words]
    assert [writer.wait(100) for writer in writers] == [0, 0]
    assert [int(row["job"]) for row in table(tmp_path)] == list(range(12))
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_sweep_folder_with_an_interpolation_is_refused(tmp_path):
    done = diffuse("train", *TINY, "-m", "hydra.sweep.dir=mr/${now:%Y}", "seed=1,2", cwd=tmp_path)
    assert done.returncode == 2
    assert "hydra.sweep.dir must be a path without interpolations, not mr/${now:%Y}" in done.stderr
    assert list(tmp_path.iterdir()) == []
