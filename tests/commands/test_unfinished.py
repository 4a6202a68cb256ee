"""A sampling or an evaluation that was stopped before it had written anything: given again, it begins again."""

import json
from pathlib import Path

import pytest

from diffuse.commands import eval as evaluation
from diffuse.system.errors import UserError
from tests.support.commands import FAST, config, diffuse, output
from tests.support.running import sampled, trained


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".hydra/overrides.yaml"], [".lock", ".hydra/x", "sample.log"]])
def test_a_folder_that_holds_nothing_yet_is_no_samples(tiny_run, left):
    name = f"left-{len(left)}-{Path(left[-1]).name}"
    for file in left:
        (tiny_run / "samples" / name / file).parent.mkdir(parents=True, exist_ok=True)
        (tiny_run / "samples" / name / file).touch()
    assert len(sampled(tiny_run, f"name={name}")) == 3


@pytest.mark.parametrize("left", [[".lock"], [".lock", "eval.log"], [".lock", ".eval.json.77.tmp"]])
def test_a_folder_that_holds_nothing_yet_is_no_evaluation(tiny_run, left):
    name = f"left-{len(left)}-{left[-1]}"
    for file in left:
        (tiny_run / "eval" / name).mkdir(parents=True, exist_ok=True)
        (tiny_run / "eval" / name / file).touch()
    words = [f"ckpt={tiny_run}", f"name={name}", "metrics=[bound]", "n=2", "levels=2", *FAST]
    evaluation.run(config("eval", *words), output())
    assert json.loads((tiny_run / "eval" / name / "eval.json").read_text())["complete"]


def test_what_somebody_put_there_is_not_touched(tiny_run):
    folder = tiny_run / "samples" / "mine"
    folder.mkdir(parents=True)
    (folder / "notes.txt").touch()
    with pytest.raises(UserError, match="exists already: choose another name="):
        sampled(tiny_run, "name=mine")


def test_the_folder_of_all_runs_may_stand_before_a_name(tmp_path):
    """As a shell completes it."""
    assert trained("outputs/first") == Path("outputs/outputs/first")
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["first"]
    trained("first")
    done = diffuse("train", "resume=first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "outputs/first is finished" in done.stdout
