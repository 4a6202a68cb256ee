"""The command line from outside, as a user types it: exit codes, messages, files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffuse.cli.main import COMMANDS
from diffuse.cli.overrides import overrides_first
from diffuse.cli.task import job_folder
from diffuse.system.errors import UsageError
from tests.support.commands import TINY, diffuse


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_refused(done: subprocess.CompletedProcess, folder: Path, *expected: str, code: int = 2) -> None:
    """At most four lines that say what is wrong, no traceback, the exit code, and nothing half-made."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 4, done.stderr
    assert done.stdout == ""
    for words in expected:
        assert words in done.stderr
    assert files(folder) == []


def test_help_names_every_command(tmp_path):
    for words in ([], ["--help"], ["-h"], ["help"]):
        done = diffuse(*words, cwd=tmp_path)
        assert done.returncode == 0
        assert all(command in done.stdout for command in COMMANDS)
    assert diffuse("--version", cwd=tmp_path).stdout.startswith("diffuse 0.")


def test_an_unknown_command_is_refused(tmp_path):
    assert_refused(diffuse("trian", cwd=tmp_path), tmp_path, "unknown command 'trian'", "Did you mean 'train'?")
    assert_refused(diffuse("xyzzy", cwd=tmp_path), tmp_path, "Commands: train, sample, eval")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("shedule=cosine", "there is no key 'shedule' in diffuse train. Did you mean 'schedule'?"),
        ("loss.vlb_weight=1", "loss.vlb_weight is a key of loss=hybrid only"),
        ("times=unifrom", "importance, log_normal, uniform, not 'unifrom'. Did you mean 'uniform'?"),
        ("dataset=digit", "mnist, npz, svhn, not 'digit'. Did you mean 'digits'?"),
        ("dataset=folder", "dataset.path is required: diffuse train dataset.path=..."),
        ("resume=", "resume must not be empty: a run folder to continue"),
        ("max_hours=0", "max_hours must be positive or null, not 0.0"),
        ("checkpoint.milestone_every=0", "checkpoint.milestone_every must be at least 1 or null, not 0"),
        ("optim.lrr=1", "there is no key 'optim.lrr' in diffuse train. Did you mean 'optim.lr'?"),
        ("schedule.bta_end=0.1", "Did you mean 'schedule.beta_end'?"),
        ("sampler=ddim sampler.etaa=1", "Did you mean 'sampler.eta'?"),
        (
            "sampler=ddpm sampler.eta=1",
            "is a key of sampler=analytic_ddim and sampler=ddim and sampler=dpm_solver only: set one of them",
        ),
        ("+foo=1", "there is no key 'foo'"),
        ("+optim.foo=1", "there is no key 'optim.foo'"),
        ("optim.lr=abc", "optim.lr: Value 'abc' of type 'str' could not be converted to Float"),
        ("steps=-5", "steps must be at least 1, not -5"),
        ("steps=1.5", "steps: Value '1.5' of type 'float' could not be converted to Integer"),
        ("optim.decay=exp", "optim.decay must be one of none, linear, cosine, inverse_sqrt, not 'exp'"),
        ("ema.decay=1", "ema.decay must be at least 0 and below 1"),
        ("optim.lr=inf", "optim.lr must be positive and finite"),
        ("~steps", "steps is required"),
        ("~optim.lr", "optim.lr is required"),
        ("--cfg foo", "--cfg needs one of job, hydra, all"),
        ("-m name=a,b", "a sweep has one name"),
        ("-m name=../oops seed=1,2", "name must be made of letters"),
        ("unet=3", "takes the name of an option"),
        ("unet=[tiny", "'unet=[tiny' cannot be read"),
        ("optim=adam", "optim is not a value but a group of keys, such as optim.betas"),
        ("trust=mine", "trust is a list: write trust=[mine]"),
        ("steps", "'steps' does not have the form key=value"),
        ("schedule=linear,cosine", "has several values: add -m"),
        ("--multirum", "there is no flag '--multirum'. Did you mean '--multirun'?"),
        ("resume=nowhere", "resume=nowhere is not a folder"),
    ],
)
def test_mistakes_found_before_torch_is_imported(tmp_path, words, expected):
    done = diffuse("train", *words.split(), cwd=tmp_path)
    assert_refused(done, tmp_path, expected, code=1 if "resume=nowhere" in words else 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("schedule.levels=abc", "schedule.levels: Value 'abc' of type 'str' could not be converted to Integer"),
        ("schedule=linear schedule.beta_end=2", "schedule.beta_end must be between 0 and 1, not 2.0"),
        ("+schedule.foo=2", "schedule has no key 'foo'"),
        (
            "unet.channel_mult=[1,1,1,1,1]",
            "unet.channel_mult has 5 levels, so height and width of images must be divisible by 16; "
            "those of digits are 8 x 8: use fewer levels or set "
            "dataset.pad=4",
        ),
        ("dataset=mnist dataset.pad=0 unet=base", "those of mnist are 28 x 28: use fewer levels or set dataset.pad=2"),
        (
            "dataset=celeba dataset.size=60 unet=base",
            "those of celeba are 60 x 60: use fewer levels or set dataset.size=64",
        ),
        ("dataset=mnist dataset.pad=-1", "dataset.pad must be a number of pixels, 0 or a few, not -1"),
        ("dataset.data_dir=x dataset=mnist", "there is no key 'dataset.data_dir'"),
        ("sampler.steps=2000", "sampler.steps=2000 for the sample grids of the training is more than the 1000 levels"),
        ("name=../elsewhere", "name must be made of letters"),
        ("name=.", "name must be made of letters"),
        (
            "variance=learned",
            "loss=simple does not train a variance, so variance=learned needs",
        ),
        (
            "schedule._target_=os.system",
            "schedule._target_ is os.system, which is not part of diffuse",
        ),
    ],
)
def test_mistakes_found_before_a_folder_is_made(tmp_path, words, expected):
    code = 1 if "_target_" in words else 2
    assert_refused(diffuse("train", *words.split(), cwd=tmp_path), tmp_path, expected, code=code)


def test_a_device_that_is_not_there(tmp_path):
    done = diffuse("train", "device=cuda", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert_refused(done, tmp_path, "device.kind is cuda, but torch finds no cuda device", "device=auto")


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "outputs").write_text("in the way")
    done = diffuse("train", *TINY, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "outputs" in done.stderr
    assert files(tmp_path) == ["outputs"]


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_a_checkpoint_is_required(tmp_path, command):
    assert_refused(diffuse(command, cwd=tmp_path), tmp_path, f"ckpt is required: diffuse {command} ckpt=")


def test_checkpoints_that_cannot_be_used(tmp_path, tiny_run):
    """One process for each; test_checkpoint.py has the many kinds of damage."""
    here, kept = tmp_path / "here", tmp_path / "kept"
    here.mkdir()
    (kept / "empty").mkdir(parents=True)
    (kept / "cut.pt").write_bytes((tiny_run / "checkpoints" / "last.pt").read_bytes()[:-5000])
    (kept / "text.pt").write_text("not ours")
    for path, words in [
        (kept / "missing", "does not exist"),
        (kept / "empty", "is a folder without checkpoints"),
        (kept / "cut.pt", "its end is missing"),
        (kept / "text.pt", "not a checkpoint"),
    ]:
        assert_refused(diffuse("sample", f"ckpt={path}", cwd=here), here, words, code=1)
    assert not (kept / "samples").exists()


def test_train_sample_and_eval_from_an_unrelated_folder(tmp_path):
    done = diffuse("train", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "digits-linear-tiny").iterdir()
    first, second, *others = done.stdout.splitlines()
    assert first == f"run folder: {run.relative_to(tmp_path)}"
    assert "parameters" in second
    assert any("images/s" in line and "peak memory" in line for line in others)

    done = diffuse("sample", f"ckpt={run}", "n=4", "sampler=ddim", "sampler.steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (next((run / "samples").iterdir()) / "grid.png").exists()

    done = diffuse("eval", f"ckpt={run}", "n=4", "levels=5", "ode.tolerance=0.01", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 of 359 test images of digits: bound and ode, about" in done.stdout.splitlines()[0]
    assert "bits/dim  (5 levels, fixed_large: L_T" in done.stdout
    assert "bits/dim  (rk45, tolerance 0.01, down to t = 1:" in done.stdout
    assert json.loads((next((run / "eval").iterdir()) / "eval.json").read_text())["protocol"]["n"] == 4

    done = diffuse("train", f"resume={run}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "is finished: 6 of 6 steps are done" in done.stdout
    done = diffuse("train", f"resume={run}", "unet=base", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: a continued run keeps its unet")


def test_a_sweep_leaves_a_run_for_each_and_goes_on_after_a_failure(tmp_path):
    """Options after the flag, a value that one job refuses, and names that a shell needs no quotes for."""
    done = diffuse("train", *TINY, "-m", "schedule=linear,cosine", "unet.dropout=0.0,2.0", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("unet.dropout must be at least 0 and below 1, not 2.0") == 2
    (sweep,) = (tmp_path / "outputs").iterdir()
    runs = sorted(path.name for path in sweep.iterdir() if path.is_dir() and path.name != "jobs")
    assert runs == ["0_schedule-linear-unet.dropout-0.0", "2_schedule-cosine-unet.dropout-0.0"]
    for name, schedule in zip(runs, ("linear", "cosine"), strict=True):
        assert f"_target_: {schedule}" in (sweep / name / "config.yaml").read_text()
        assert (sweep / name / "checkpoints" / "last.pt").exists()


def test_output_that_nobody_reads_any_more_does_not_end_a_run(tmp_path):
    """`diffuse train | head -1`."""
    line = f"{sys.executable} -m diffuse train {' '.join(TINY)} name=piped | head -1".replace("[", "'[").replace(
        "]", "]'"
    )
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "outputs/piped/checkpoints/step_00000006.pt").exists()


def test_a_sweep_with_a_typing_mistake_starts_no_job(tmp_path):
    done = diffuse("train", *TINY, "-m", "schedule=linear,cosin", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'cosine'?" in done.stderr
    assert files(tmp_path) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_its_config_and_help(tmp_path, command):
    done = diffuse(command, "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trust:" in done.stdout
    done = diffuse(command, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"diffuse {command}: ")
    assert files(tmp_path) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_our_name_alone(tmp_path, shell):
    done = diffuse("-sc", f"install={shell}", cwd=tmp_path)
    assert done.returncode == 0
    last = done.stdout.strip().splitlines()[-1]
    assert "complete " in last
    assert "diffuse" in last.split()
    assert "train" not in last


def test_overrides_come_first_and_flags_keep_their_values():
    typed = ["schedule=cosine", "-m", "unet=tiny,small", "--cfg", "job", "-cd=mine", "~name"]
    assert overrides_first(typed) == [
        "schedule=cosine",
        "unet=tiny,small",
        "~name",
        "-m",
        "--cfg",
        "job",
        "-cd",
        "mine",
    ]
    with pytest.raises(UsageError):
        overrides_first(["--cfg"])


def test_slugs_need_no_quotes():
    assert job_folder(3, "schedule=linear,unet.channel_mult=[1,2]") == "3_schedule-linear-unet.channel_mult-1-2"
    assert len(job_folder(3, "x" * 999)) <= 130
    assert job_folder(3, "") == "3"


def test_a_config_of_ones_own_is_found(tmp_path):
    """-cd adds options without touching the package."""
    (tmp_path / "mine" / "schedule").mkdir(parents=True)
    text = "_target_: linear\nlevels: 7\nbeta_start: 0.1\nbeta_end: 0.2\n"
    (tmp_path / "mine" / "schedule" / "short.yaml").write_text(text)
    done = diffuse("train", "schedule=short", "-cd", "mine", "--cfg", "job", cwd=tmp_path)
    assert "levels: 7" in done.stdout, done.stderr


def test_a_sweep_over_other_keys_does_not_mix_with_one_that_is_there(tmp_path):
    sweep = tmp_path / "outputs" / "sweep"
    assert diffuse("train", *TINY, "-m", "name=sweep", "seed=1,2", cwd=tmp_path).returncode == 0
    before = files(sweep)
    done = diffuse("train", *TINY, "-m", "name=sweep", "optim.lr=0.1,0.2", cwd=tmp_path)
    assert done.returncode == 2
    assert "holds a sweep over seed, and this one is over optim.lr: choose another name=" in done.stderr
    assert files(sweep) == before
    (tmp_path / "outputs" / "mine").mkdir()
    (tmp_path / "outputs" / "mine" / "thesis.txt").touch()
    done = diffuse("train", *TINY, "-m", "name=mine", "seed=1,2", cwd=tmp_path)
    assert (done.returncode, files(tmp_path / "outputs" / "mine")) == (2, ["thesis.txt"])


def test_a_sweep_says_which_of_its_jobs_failed(tmp_path):
    done = diffuse("train", *TINY, "-m", "unet.dropout=2.0,0.0,3.0", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: 2 of the sweep's jobs failed: 0, 2"


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """`diffuse train --help | head`: the pipe is closed before a word was written."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "diffuse", "train", "--help"]
    done = subprocess.run(command, cwd=tmp_path, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")
