"""Easy consistency tuning from the command line: from a run of method=edm to images in two evaluations."""

import json

import pytest

from tests.support.commands import FAST, TINY, diffuse
from tests.support.comparing import assert_same, newest

TUNED = [
    *TINY,
    "method=ect",
    "init.ckpt=teacher",
    "unet.dropout=0.2",
    "loss.closeness=2",
    "loss.stages=4",
    "sampler.steps=2",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run of method=edm, and one that goes on from it for consistency."""
    home = tmp_path_factory.mktemp("consistency")
    done = diffuse("train", *TINY, "method=edm", "name=teacher", cwd=home)
    assert done.returncode == 0, done.stderr
    done = diffuse("train", *TUNED, "steps=8", "name=tuned", cwd=home)
    assert done.returncode == 0, done.stderr
    return home


def test_it_is_drawn_from_in_two_evaluations(home):
    for name, words, evaluations in (
        ("method", [], 2),
        ("one", ["sampler=consistency", "sampler.steps=1"], 1),
        ("auto", ["sampler=auto", "sampler.evaluations=3"], 3),
    ):
        done = diffuse("sample", "ckpt=outputs/tuned", "n=2", f"name={name}", *words, *FAST, cwd=home)
        assert done.returncode == 0, done.stderr
        facts = json.loads((home / f"outputs/tuned/samples/{name}/samples.json").read_text())
        assert (facts["sampler"]["_target_"], facts["evaluations"]) == ("consistency", evaluations)
        assert facts["sampler"]["spacing"] == "consistency"


def test_it_is_scored_as_it_is_drawn(home):
    words = ["ckpt=outputs/tuned", "metrics=[is]", "features=classifier", "n=12", "name=scored"]
    done = diffuse("eval", *words, *FAST, cwd=home)
    assert done.returncode == 0, done.stderr
    facts = json.loads((home / "outputs/tuned/eval/scored/eval.json").read_text())
    assert facts["sample_protocol"]["samples"]["evaluations"] == 2


def test_stages_go_on_where_a_run_is_resumed(home):
    """The stage is a function of the step alone: a stop within one changes no bit."""
    words = [*TUNED, "steps=8", "name=parts"]
    done = diffuse("train", *words, "max_hours=1e-9", "checkpoint.every=3", cwd=home)
    assert done.returncode == 0, done.stderr
    assert newest(home / "outputs/parts")["step"] < 8
    done = diffuse("train", *words, cwd=home)
    assert done.returncode == 0, done.stderr
    one, other = (newest(home / "outputs" / name) for name in ("tuned", "parts"))
    assert one["step"] == other["step"] == 8
    for name in ("model", "ema", "optimizer", "sums"):
        assert_same(one[name], other[name], name)
