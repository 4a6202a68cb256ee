"""history.jsonl: which commands ran on a run, with which code; and the hashes of the files that results come from."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffuse.commands import eval as evaluation
from diffuse.system.code_state import code_state
from tests.support.commands import FAST, config, output
from tests.support.making import save
from tests.support.running import sampled, scored, trained
from tests.support.scoring import smooth, tiles


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def history(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_every_command_adds_a_line_in_order():
    run = trained("r")
    record = (run / "config.yaml").read_bytes()
    sampled(run, "name=s")
    scored(run, "metrics=[bound]")
    trained("r", "optim.decay=linear", "log.every=3", "max_hours=1")  # finished: nothing is done
    lines = history(run)
    assert [Path(line["into"]).relative_to(Path.cwd() / run).as_posix() for line in lines] == [
        ".",
        "samples/s",
        "eval/e0",
    ]
    for line in lines:
        assert line["code"]["diffuse"]["sha256"] == code_state("diffuse")["sha256"]
        assert (line["device"], line["torch"].split(".")[0]) == ("cpu", "2")
    assert (run / "config.yaml").read_bytes() == record


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout.strip()


def test_the_state_of_a_package_is_its_commit_and_its_changes(tmp_path, monkeypatch):
    package = tmp_path / "repository" / "mine_with_history"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(package.parent)
    code_state.cache_clear()
    before = code_state("mine_with_history")
    assert before.keys() == {"version", "sha256"}  # git does not know it
    git(package.parent, "init", "--quiet")
    git(package.parent, "add", ".")
    git(package.parent, "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "m")
    code_state.cache_clear()
    state = code_state("mine_with_history")
    assert (state["commit"], state["changed"]) == (git(package.parent, "rev-parse", "HEAD"), [])
    assert state["sha256"] == before["sha256"]
    (package / "__init__.py").write_text("x = 2\n")
    code_state.cache_clear()
    changed = code_state("mine_with_history")
    assert changed["changed"] == ["mine_with_history/__init__.py"]
    assert changed["sha256"] != state["sha256"]
    assert "mine_with_history" not in sys.modules  # its code is not run to be hashed


def test_a_package_that_is_not_there_has_no_state():
    assert code_state("no_such_package_anywhere") == {}


def test_samples_hold_the_hash_of_every_file_they_come_from(tmp_path):
    run = trained("r")
    sampled(run, "name=s", "sampler=ddpm", "sampler.variance=analytic")
    made_from = json.loads((run / "samples" / "s" / "samples.json").read_text())["made_from"]
    (estimates,) = (run / "analytic").glob("*.json")
    files = [(run / "checkpoints" / "step_00000006.pt").resolve(), estimates]
    assert {Path(name).resolve(): content for name, content in made_from.items()} == {
        path.resolve(): sha256(path) for path in files
    }


def test_scores_hold_the_hash_of_every_file_they_come_from(tmp_path):
    images = smooth(12)
    for number, image in enumerate(images):
        save(tmp_path / "drawn" / f"{number:02}.png", image.transpose(1, 2, 0))
    np.savez(tmp_path / "real.npz", images.transpose(0, 2, 3, 1))
    words = [
        "samples=drawn",
        "reference=real.npz",
        "metrics=[kid]",
        "name=e",
        f"data_dir={tmp_path}",
        *tiles(tmp_path),
        *FAST,
    ]
    evaluation.run(config("eval", *words), output())
    made_from = json.loads((tmp_path / "outputs" / "eval" / "e" / "eval.json").read_text())["made_from"]
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    listing = subprocess.run(["sha256sum", *names], cwd=tmp_path / "drawn", capture_output=True, check=True).stdout
    assert made_from == {
        str(tmp_path / "drawn"): hashlib.sha256(listing).hexdigest(),
        str(tmp_path / "real.npz"): sha256(tmp_path / "real.npz"),
        "features=tiles": sha256(tmp_path / "tiles.pt"),
    }
