"""A sweep's jobs in other processes: by joblib, by Submitit on this machine and through Slurm, and by Optuna."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.commands import TINY, diffuse, diffuse_alone
from tests.support.places import REPOSITORY
from tests.support.processes import started_alone, until
from tests.support.sweeps import column, table
from tests.support.together import free_port

LONG = ["steps=1000000", "optim.decay=none", "images.every=1000000", "checkpoint.every=1000000"]
EXPLODES = ["optim.lr=1e-3,1e30", "optim.clip=1e30"]


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_jobs_in_parallel_processes_end_in_one_table(tmp_path, launcher):
    parallel = [f"hydra/launcher={launcher}", *(["hydra.launcher.n_jobs=2"] if launcher == "joblib" else [])]
    call = diffuse_alone if launcher == "joblib" else diffuse  # joblib's processes import what started them
    done = call("train", *TINY, "-m", "name=s", *parallel, *EXPLODES, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: 1 of the sweep's jobs failed: 1"
    assert "step 1 is NaN or infinite" in done.stdout
    sweep = tmp_path / "outputs" / "s"
    assert column(sweep, "status") == ["done", "failed"]
    assert (sweep / "sweep.png").exists()
    assert (sweep / "0_optim.lr-0.001" / "checkpoints" / "last.pt").exists()
    if launcher == "joblib":
        assert "[0] run folder: outputs/s/0_optim.lr-0.001" in done.stdout


def test_jobs_in_other_processes_are_asked_to_end_and_save(tmp_path):
    """SIGTERM reaches the process that waits for them alone, as from a queue."""
    sweep = tmp_path / "outputs" / "s"
    jobs = [sweep / "0_seed-0", sweep / "1_seed-1"]
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with started_alone(tmp_path, *TINY, *LONG, "-m", "name=s", "seed=0,1,2", *parallel) as process:
        while not all((job / "metrics.jsonl").exists() for job in jobs):
            assert not until(process, 0.01), process.communicate()
        process.terminate()
        said, complaint = process.communicate(timeout=100)
    assert process.returncode == 143
    assert "terminated" in complaint.splitlines()  # and what joblib says of its semaphores
    assert "Traceback" not in complaint
    assert column(sweep, "status") == ["interrupted", "interrupted"]
    assert all((job / "checkpoints" / "last.pt").exists() for job in jobs)
    assert "table: outputs/s/sweep.md" in said


def test_a_job_that_is_killed_alone_is_named(tmp_path):
    sweep = tmp_path / "outputs" / "s"
    words = [*TINY, *LONG, "-m", "name=s", "seed=0,1", "hydra/launcher=joblib"]
    program = "import json, sys; print(json.load(open(sys.argv[1]))['process'])"
    with started_alone(tmp_path, *words, "hydra.launcher.n_jobs=2") as process:
        while not (sweep / "0_seed-0" / "metrics.jsonl").exists():
            assert not until(process, 0.01), process.communicate()
        line = [sys.executable, "-c", program, str(sweep / "jobs" / "0_seed-0.json")]
        os.kill(int(subprocess.run(line, capture_output=True, text=True, check=True).stdout), signal.SIGKILL)
        _, complaint = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "killed" in column(sweep, "status")
    assert "did not end: " in complaint
    assert "a mistake in diffuse" not in complaint


def test_optuna_minimises_the_first_value_and_survives_a_failure(tmp_path):
    """Half of the rates explode. Given again with the same seed, what is finished is passed over."""
    optuna = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.sampler.seed=1",
    ]
    fixed = [word for word in TINY if not word.startswith("optim.lr")]  # which Optuna would not vary
    words = [*fixed, "-m", "name=s", *optuna, "optim.lr=tag(log,interval(1e-4,1e30))", "optim.clip=1e30"]
    done = diffuse("train", *words, cwd=tmp_path)
    sweep = tmp_path / "outputs" / "s"
    rows = table(sweep)
    assert len(rows) == 3
    assert {row["status"] for row in rows} == {"done", "failed"}, rows
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("of the sweep's jobs failed: " + ", ".join(
        row["job"] for row in rows if row["status"] == "failed"
    ))  # fmt: skip
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    found = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert float(found["best_value"]) == pytest.approx(min(losses))
    assert "Trial" not in done.stderr
    done = diffuse("train", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("is finished") == len(losses)
    assert [row["folder"] for row in table(sweep)] == [row["folder"] for row in rows]


@pytest.mark.parametrize(
    ("word", "package"),
    [
        ("hydra/launcher=joblib", "hydra-joblib-launcher"),
        ("hydra/launcher=submitit_slurm", "hydra-submitit-launcher"),
        ("hydra/sweeper=optuna", "hydra-optuna-sweeper"),
    ],
)
def test_a_plugin_that_is_not_installed_is_named(tmp_path, word, package):
    program = (
        "import sys; sys.modules['hydra_plugins'] = None  # as where none is installed\n"
        "from diffuse.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    line = [sys.executable, "-c", program, "train", "-m", "seed=0,1", word]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {word} needs a plugin that is not installed: pip install {package}"
    assert list(tmp_path.iterdir()) == []


# What Slurm does, as far as Submitit asks for it: a job array is given a number, runs on this machine, and is listed.
SBATCH = """#!/bin/bash
script="${@: -1}"
count=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
cp "$script" "$SLURM_STUB/script"
script="$SLURM_STUB/script"
for task in $(seq 0 "$count"); do
  SLURM_JOB_ID=7$task SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 \
  SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=localhost SLURMD_NODENAME=localhost \
  bash "$script" > "$SLURM_STUB/$task.log" 2>&1
  echo "7_$task|COMPLETED|localhost" >> "$SLURM_STUB/done"
done > /dev/null 2>&1 &
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
tasks=$(sed -n 's/^#SBATCH --ntasks-per-node=//p' "$SLURM_STUB/script")
for rank in $(seq 0 $((${tasks:-1} - 1))); do
  SLURM_NTASKS=${tasks:-1} SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
done
wait
"""
SCONTROL = """#!/bin/bash
echo localhost
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
cat "$SLURM_STUB/done" 2> /dev/null || true
"""


@pytest.fixture
def slurm_stub(tmp_path: Path) -> dict[str, str]:
    """The environment in which commands of Slurm's names run jobs here."""
    stub = tmp_path / "stub"
    stub.mkdir()
    commands = {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scontrol": SCONTROL, "squeue": "#!/bin/bash\n"}
    for name, text in commands.items():
        (stub / name).write_text(text)
        (stub / name).chmod(stat.S_IRWXU)
    return {"PATH": f"{stub}{os.pathsep}{os.environ['PATH']}", "SLURM_STUB": str(stub)}


def test_a_sweep_goes_through_slurm(tmp_path, slurm_stub):
    """What is handed to Slurm's commands, and what comes back."""
    stub = tmp_path / "stub"
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=600"]
    words = ["train", *TINY, "-m", "name=s", *slurm, *EXPLODES]
    done = diffuse(*words, cwd=tmp_path, **slurm_stub)
    logs = "\n".join(log.read_text() for log in stub.glob("*.log"))
    assert done.returncode == 1, done.stderr + logs
    assert done.stderr.splitlines()[-1] == "error: 1 of the sweep's jobs failed: 1", done.stderr + logs
    assert column(tmp_path / "outputs" / "s", "status") == ["done", "failed"]
    script = (stub / "script").read_text()
    assert "#SBATCH --partition=gpu" in script
    assert "#SBATCH --time=600" in script


def test_the_jobs_of_a_sweep_through_slurm_have_several_processes(tmp_path, slurm_stub):
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=600"]
    done = diffuse("train", *TINY, "-m", "name=s", "seed=0,1", *slurm, cwd=tmp_path, **slurm_stub)
    logs = "\n".join(log.read_text() for log in (tmp_path / "stub").glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    assert column(tmp_path / "outputs" / "s", "status") == ["done", "done"]
    run = tmp_path / "outputs" / "s" / "1_seed-1"
    (line,) = (run / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["processes"] == 2


def test_the_job_script_of_the_page_about_machines(tmp_path, slurm_stub):
    """As it is printed there, but for a small network, 2 of 8 processes and a free port."""
    page = (REPOSITORY / "docs" / "machines.md").read_text(encoding="utf-8")
    script = page.partition("```bash\n")[2].partition("```")[0]
    small = {
        "--nproc-per-node=8": "--nproc-per-node=2", ":29500": f":{free_port()}",
        "dataset=cifar10": " ".join(f"'{word}'" for word in [*TINY, "steps=6"]),
    }  # fmt: skip
    for words, ours in small.items():
        assert words in script
        script = script.replace(words, ours)
    (tmp_path / "stub" / "script").write_text("")
    (tmp_path / "train.sh").write_text(script)
    place = {**os.environ, **slurm_stub, "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}
    place["PATH"] = os.pathsep.join([str(tmp_path / "stub"), str(Path(sys.executable).parent), os.environ["PATH"]])
    for said in ("done, loss", "is finished: 6 of 6 steps are done"):
        line = ["bash", "train.sh"]
        done = subprocess.run(line, cwd=tmp_path, env=place, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout, done.stderr
    assert list((tmp_path / "outputs").iterdir()) == [tmp_path / "outputs" / "cifar"]


def test_optuna_is_not_sent_downhill_where_more_is_better(tmp_path, tiny_run):
    words = ["eval", "-m", "name=o", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1"]
    scored = [f"ckpt={tiny_run}", "metrics=[precision_recall]", "sampler=ddim", "sampler.eta=interval(0,1)"]
    done = diffuse(*words, *scored, cwd=tmp_path)
    assert done.returncode == 1
    assert "precision_recall is better when it is larger: set hydra.sweeper.direction=maximize" in done.stderr
