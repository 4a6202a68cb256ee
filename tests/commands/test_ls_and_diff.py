"""`diffuse ls` and `diffuse diff`: what the folders of runs tell, without torch."""

import json
import os
import shutil
from pathlib import Path

import pytest

from diffuse.cli.main import main
from diffuse.runs.listing import facts_of
from diffuse.system.files import hold_lock


@pytest.fixture
def runs(tmp_path, tiny_run, monkeypatch) -> Path:
    """outputs/ with a finished run and a job of a sweep that was stopped."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, tmp_path / "outputs" / "tiny")
    shutil.copytree(tiny_run, tmp_path / "outputs" / "sw" / "0_seed-1")
    record = tmp_path / "outputs" / "sw" / "0_seed-1" / "config.yaml"
    record.write_text(record.read_text().replace("steps: 30\n", "steps: 1234\n", 1).replace("seed: 0", "seed: 1", 1))
    os.utime(record.parent / "metrics.jsonl", (2e9, 2e9))
    return tmp_path / "outputs"


def listed(capsys, *words: str) -> dict[str, list[str]]:
    """The cells of each run, by its path."""
    assert main(["ls", *words]) == 0
    return {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}


def test_runs_are_listed_the_last_changed_at_the_end(runs, capsys):
    found = listed(capsys)
    assert list(found) == ["outputs/tiny", "outputs/sw/0_seed-1"]
    assert found["outputs/tiny"][:2] == ["finished", "30"]
    assert found["outputs/sw/0_seed-1"][:4] == ["stopped", "30", "of", "1,234"]
    loss = json.loads((runs / "tiny" / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    assert found["outputs/tiny"][2] == f"{loss:.4g}"
    assert list(listed(capsys, "sw")) == ["outputs/sw/0_seed-1"]


def test_a_run_is_running_while_its_lock_is_held(runs):
    assert facts_of(runs / "sw" / "0_seed-1").state == "stopped"
    with hold_lock(runs / "sw" / "0_seed-1" / ".lock"):
        assert facts_of(runs / "sw" / "0_seed-1").state == "running"


def test_states_that_need_a_look(runs):
    stopped = runs / "sw" / "0_seed-1"
    (stopped / "failure.pt").touch()
    assert facts_of(stopped).state == "failed"
    (stopped / "config.yaml").write_bytes(b"\xff\xfe nothing")
    assert facts_of(stopped).state == "damaged"
    shutil.rmtree(stopped / "checkpoints")
    assert facts_of(stopped).step == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", '{"step": 30, "loss": "abc"}\n'),
        ("metrics.jsonl", None),
        ("eval/x/eval.json", '{"values": {"fid": {}}}'),
        ("eval/x/eval.json", '{"values": ' + "[" * 5000),
        ("eval/x/eval.json", '{"values": {"fid": {"\\u001b[2J\\n": 2.0}}}'),
        ("config.yaml", "pipe"),
        ("config.yaml", "steps: 1e\n"),
    ],
)
def test_an_odd_file_in_one_run_is_not_the_end_of_the_list(runs, capsys, name, content):
    path = runs / "tiny" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if content == "pipe":
        os.mkfifo(path)
    elif content is None:
        path.mkdir()
    else:
        path.write_text(content)
    found = listed(capsys)
    assert {"outputs/tiny", "outputs/sw/0_seed-1"} <= found.keys()
    assert "\x1b" not in str(found)


def test_linked_runs_are_listed_and_other_configs_are_not(runs, capsys):
    (runs / "linked").symlink_to(runs / "tiny")
    (runs / "sw" / "config").mkdir()
    (runs / "sw" / "config" / "config.yaml").write_text("steps: 3\n")
    (runs / ".hidden").mkdir()
    shutil.copytree(runs / "tiny", runs / ".hidden" / "run")
    assert set(listed(capsys)) == {"outputs/tiny", "outputs/linked", "outputs/sw/0_seed-1"}


def test_the_newest_evaluation_is_the_score(runs, capsys):
    for number, fid in enumerate((3.0, 2.5)):
        folder = runs / "tiny" / "eval" / f"{number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "eval.json").write_text(json.dumps({"values": {"fid": {"fid": fid}}}))
        os.utime(folder / "eval.json", (2e9 + number, 2e9 + number))
    assert listed(capsys)["outputs/tiny"][3:5] == ["fid", "2.5"]


def test_a_file_with_two_names_is_counted_once(runs):
    content = [path for path in (runs / "tiny").rglob("*") if path.is_file() and path.name != "last.pt"]
    (runs / "tiny" / "checkpoints" / "last.pt").unlink()
    os.link(runs / "tiny" / "checkpoints" / "step_00000030.pt", runs / "tiny" / "checkpoints" / "last.pt")
    assert facts_of(runs / "tiny").size == sum(path.stat().st_size for path in content)


def test_without_runs_it_says_how_to_begin_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == "no runs in outputs; diffuse train name=first begins one\n"
    assert main(["ls", "nothing"]) == 1
    assert "nothing is not a folder" in capsys.readouterr().err


def test_configs_are_compared_key_by_key(runs, capsys):
    assert main(["diff", "tiny", "outputs/sw/0_seed-1/checkpoints/step_00000030.pt"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["key", "outputs/tiny", "outputs/sw/0_seed-1/checkpoints/step_00000030.pt"]
    assert lines[1:] == [["seed", "0", "1"], ["steps", "30", "1234"]]
    assert main(["diff", "tiny", "tiny"]) == 0
    assert capsys.readouterr().out == "no difference in what they compute\n"


def test_long_values_keep_their_ends(runs, capsys):
    for name, run in (("one", runs / "tiny"), ("two", runs / "sw" / "0_seed-1")):
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("  pad: 0\n", f"  pad: 0\n  path: /{'long/' * 30}{name}\n", 1))
    assert main(["diff", "tiny", "sw/0_seed-1"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dataset.path")]
    assert [value[-4:] for value in line.split()[1:]] == ["/one", "/two"]
    assert max(map(len, line.split())) <= 60


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["diff", "tiny"], 2, "compares two runs or more"),
        (["diff", "tiny", "outputs/tiny/nonsense"], 1, "outputs/tiny/nonsense is not a run"),
        (["diff", "~nosuchuser/x", "tiny"], 1, "~ stands for no folder here"),
        (["ls", "~nosuchuser"], 1, "~ stands for no folder here"),
        (["diff", "tiny", "none"], 1, "none is not a run, or its config.yaml cannot be read; diffuse ls lists"),
    ],
)
def test_what_cannot_be_compared_is_said(runs, capsys, words, code, message):
    assert main(words) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ls", "diff"])
def test_help_says_what_they_take(command, capsys):
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: diffuse {command} ")
