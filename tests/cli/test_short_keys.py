"""What a user may leave out, and what is said where that is too much."""

import re
import shlex

import pytest

from diffuse.cli.overrides import overrides_first, with_full_keys
from diffuse.system.errors import UsageError
from diffuse.system.files import hold_lock
from tests.support.commands import FAST, TINY, diffuse
from tests.support.running import forget_from


@pytest.mark.parametrize(
    ("command", "typed", "full"),
    [
        ("train", "lr=1e-3,2e-3", "optim.lr=1e-3,2e-3"),
        ("train", "levels=100", "schedule.levels=100"),
        ("train", "dropout=0.1", "unet.dropout=0.1"),
        ("sample", "steps=20", "sampler.steps=20"),
        ("eval", "tolerance=1e-3", "ode.tolerance=1e-3"),
        ("train", "steps=20", "steps=20"),
        ("train", "schedule=cosine", "schedule=cosine"),
        ("train", "optim.lr=1e-3", "optim.lr=1e-3"),
        ("train", "+lr=1", "+lr=1"),
        ("train", "nonsense=1", "nonsense=1"),
        ("train", "-m", "-m"),
    ],
)
def test_a_key_may_be_typed_by_its_last_part(command, typed, full):
    assert with_full_keys([typed], command) == [full]


def test_where_several_keys_end_so_all_are_named():
    with pytest.raises(UsageError, match="^clip is short for optim.clip, sampler.clip: write one of them in full"):
        with_full_keys(["clip=1.0"], "train")
    with pytest.raises(UsageError, match="^steps is short for ode.steps, sampler.steps: write"):
        with_full_keys(["steps=5"], "eval")


def test_from_outside(tmp_path):
    done = diffuse("train", "--cfg", "job", "lr=0.125", "blocks=2", cwd=tmp_path)
    assert "lr: 0.125" in done.stdout, done.stderr
    assert "blocks: 2" in done.stdout


def test_a_data_set_without_a_recipe_is_told_what_to_add(tmp_path):
    (tmp_path / "own" / "dataset").mkdir(parents=True)
    (tmp_path / "own" / "dataset" / "mine.yaml").write_text("_target_: digits\npad: 0\nflip: false\n")
    done = diffuse("train", "dataset=mine", "-cd", "own", cwd=tmp_path)
    assert done.returncode == 2
    assert "the data set names no recipe" in done.stderr
    assert "defaults: [override /recipe: NAME], or type recipe=NAME, one of celeba, cifar10" in done.stderr
    done = diffuse("train", "dataset=mine", "-cd", "own", "recipe=digits", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_run_without_checkpoints_says_when_one_comes(tmp_path):
    done = diffuse("train", *TINY, "name=a", "class_conditional=true", cwd=tmp_path)
    assert "classes in their order, from 0: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n" in done.stdout, done.stderr
    run = tmp_path / "outputs" / "a"
    forget_from(run, 0)
    with hold_lock(run / ".lock"):
        done = diffuse("sample", "ckpt=a", *FAST, cwd=tmp_path)
    assert done.returncode == 1
    expected = "outputs/a is training and is at step 6: the first comes at step 3 (checkpoint.every)"
    assert done.stderr == f"error: {expected}\n"
    done = diffuse("sample", "ckpt=a", *FAST, cwd=tmp_path)
    (again,) = re.findall("was stopped before its first checkpoint; continue with: diffuse (.*)", done.stderr)
    assert (
        diffuse(*shlex.split(again), cwd=tmp_path).returncode == 1
    )  # its metrics say that it had some, which are gone
    (run / "metrics.jsonl").write_text("")
    assert diffuse(*shlex.split(again), cwd=tmp_path).returncode == 0
    assert diffuse("sample", "ckpt=a", "n=1", "steps=2", *FAST, cwd=tmp_path).returncode == 0


def test_steps_may_change_before_the_first_checkpoint_under_every_decay(tmp_path):
    words = ["train", *TINY, "name=a", "optim.decay=linear"]
    assert diffuse(*words, cwd=tmp_path).returncode == 0
    done = diffuse(*words, "steps=9", cwd=tmp_path)
    assert done.returncode == 2
    assert "falls to 0 at step 6.\nTrain a new run of that length (another name=, steps=9)" in done.stderr
    forget_from(tmp_path / "outputs" / "a", 0)
    (tmp_path / "outputs" / "a" / "metrics.jsonl").write_text("")
    assert diffuse(*words, "steps=9", cwd=tmp_path).returncode == 0


def test_of_several_keys_it_is_that_of_the_chosen_option():
    words = ["dataset=folder", "path=PHOTOS"]
    assert with_full_keys(words, "train") == ["dataset=folder", "dataset.path=PHOTOS"]
    assert with_full_keys(["schedule=betas", "path=B"], "train") == ["schedule=betas", "schedule.path=B"]
    with pytest.raises(UsageError, match="path is short for dataset.path, features.path, schedule.path: write one"):
        with_full_keys(["dataset=folder", "schedule=betas", "path=P"], "train")


def test_a_key_with_dashes_is_told_from_an_unknown_flag():
    with pytest.raises(UsageError, match="there is no flag '--name': keys have no dashes, name=VALUE"):
        overrides_first(["--name", "first"])
    with pytest.raises(UsageError, match="there is no flag '--multirum'. Did you mean '--multirun'"):
        overrides_first(["--multirum"])
