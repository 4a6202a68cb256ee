"""What messages advise works when it is typed: each line is read from the screen and run."""

import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest

from diffuse.cli.overrides import with_name
from tests.support.commands import FAST, TINY, diffuse
from tests.support.forked import Forked
from tests.support.processes import until
from tests.support.sweeps import column

HEADER = 128  # bytes of a .npy file before its first row
LONG = ["steps=50", "checkpoint.every=1000", "images.every=1000", "log.every=10"]


def advised(text: str, before: str) -> list[str]:
    """The words of the last `diffuse` command that stands after these words."""
    *_, line = re.findall(rf"{re.escape(before)}diffuse (.*)", text)
    return shlex.split(line)


def run(words: list[str], folder: Path) -> str:
    """What a command prints, which must succeed."""
    done = diffuse(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def interrupted(words: list[str], folder: Path, sign: str, least: int = 0) -> str:
    """What a command prints that is interrupted once a file of this name has more than `least` bytes."""
    with Forked(words, folder, dict(os.environ)) as process:
        while not [path for path in folder.rglob(sign) if path.stat().st_size > least]:
            assert not until(process, 0.005), process.communicate()
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    return said


def test_a_training_that_was_stopped_is_continued_by_the_line_it_prints(tmp_path):
    said = interrupted(["train", *TINY, *LONG, "name=a"], tmp_path, "metrics.jsonl")
    done = run(advised(said, "continue with: "), tmp_path)
    assert "resumed from step" in done
    assert "outputs/a/images/step_00000050.png" in done


def test_what_comes_next_after_a_training(tmp_path):
    """In a folder whose name needs quotes."""
    home = tmp_path / "my runs"
    home.mkdir()
    said = run(["train", *TINY, "name=first"], home)
    sample, evaluation = said.partition("next: ")[2].strip().split("   or   ")
    for line, words in ((sample, ["n=2"]), (evaluation, ["n=2", "levels=2", "metrics=[bound]"])):
        run([*shlex.split(line)[1:], *words, *FAST], home)


def test_advice_about_folders_with_odd_names(tmp_path):
    """Hydra reads commas, brackets and letters beyond ASCII only in quotes, within those of the shell."""
    words = ["train", *TINY, "-m", "seed=0", "optim.decay=none", r"hydra.sweep.dir='größe,x(1)[2]'"]
    said = run(words, tmp_path)
    sample, _ = said.partition("next: ")[2].strip().split("   or   ")
    run([*shlex.split(sample)[1:], "n=2", *FAST], tmp_path)
    run(["train", "resume='größe,x(1)[2]/0'", "steps=7"], tmp_path)


def test_a_name_that_is_null_is_none():
    assert with_name(["-m", "seed=0,1", "name=null"], Path("outputs/sweep-1")) == ["-m", "seed=0,1", "name=sweep-1"]
    assert with_name(["-m", "seed=0,1", "name=a"], Path("outputs/a")) == ["-m", "seed=0,1", "name=a"]


def test_an_unnamed_sweep_goes_on_by_the_line_it_prints(tmp_path):
    words = ["train", *TINY, *LONG, "-m", "seed=0,1", "unet.dropout=0.1"]
    again = advised(interrupted(words, tmp_path, "metrics.jsonl"), "continue with: ")
    assert again[-1].startswith("name=sweep-")
    assert "resumed from step" in run(again, tmp_path)
    (sweep,) = (tmp_path / "outputs").iterdir()
    assert column(sweep, "status") == ["done", "done"]


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]], ids=["one", "sweep"])
def test_an_unnamed_evaluation_goes_on_by_the_line_it_prints(tiny_run, tmp_path, sweep):
    shutil.copytree(tiny_run, tmp_path / "run")
    words = ["eval", "ckpt=run", "n=400", "metrics=[fid]", "features=classifier", "batch_size=10", *FAST, *sweep]
    said = interrupted([*words, "sampler.steps=8"], tmp_path, "features.npy", least=HEADER)
    done = run(advised(said, "continue with: "), tmp_path)
    assert "continuing after" in done
    assert "fid_classifier" in done


def test_many_network_calls_name_a_sampler_with_few(tiny_run, tmp_path):
    words = ["sample", f"ckpt={tiny_run}", "n=1", *FAST]
    said = run([*words, "sampler=ddpm", "sampler.steps=300"], tmp_path)
    (faster,) = re.findall(r"an image takes 300 network calls with sampler=ddpm; (\S+) takes 10, with ", said)
    assert "an image takes" not in run([*words, faster], tmp_path)
