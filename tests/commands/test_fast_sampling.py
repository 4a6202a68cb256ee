"""`diffuse sample` in few steps: grids of one's own, what is done to predictions, and what is recorded of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from diffuse.commands import sample
from diffuse.options import reference
from diffuse.runs.recommended import CHOICES
from diffuse.system.errors import UsageError
from tests.support.commands import FAST, TINY, config, diffuse, output


def sampled(run: Path, name: str, *overrides: str) -> tuple[np.ndarray, dict]:
    sample.run(config("sample", f"ckpt={run}", f"name={name}", *FAST, *overrides), output())
    folder = run / "samples" / name
    return np.load(folder / "samples.npz")["arr_0"], json.loads((folder / "samples.json").read_text())


def test_a_grid_of_ones_own_is_a_list_or_a_file(tiny_run, tmp_path):
    expected, _ = sampled(tiny_run, "spaced", "n=3", "sampler=ddim", "sampler.steps=4")
    (tmp_path / "lines.txt").write_text("1000\n667, 334\n1")
    (tmp_path / "list.json").write_text("[1000.0, 667.0, 334.0, 1.0, 0.0]")
    for place, given in enumerate(["[1000,667,334,1]", tmp_path / "lines.txt", tmp_path / "list.json"]):
        found, facts = sampled(tiny_run, f"own{place}", "n=3", "sampler=ddim", f"sampler.times={given}")
        np.testing.assert_array_equal(found, expected)
        assert facts["sampler"]["times"] == [1000, 667, 334, 1, 0]
        assert (facts["sampler"]["steps"], facts["evaluations"], facts["network_calls"]) == (4, 4, 4)
        assert "spacing" not in facts["sampler"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["times=[1000,700,700]"], "sampler.times must fall from noise to data, and do not from 700 to 700"),
        (["times=[1200,300]"], "sampler.times must be numbers above 0 and at most 1000, not"),
        (
            ["times=[300,20]"],
            "sampler.times must begin at T = 1000 on this schedule, where x is pure noise, not at 300",
        ),
        (["times=[a,b]"], "sampler.times must be a list of numbers or a file with one"),
        (["times=nowhere.txt"], "sampler.times must be a list or a file with one, and nowhere.txt cannot be read"),
        (["clip=hard"], "sampler.clip must be true, false or dynamic, not hard"),
        (["clip=dynamic", "percentile=2"], "sampler.percentile must be above 0 and at most 1, not 2"),
        (["percentile=0.9"], "sampler.percentile is of sampler.clip=dynamic, and clip is True"),
        (["eps_scale=5"], "sampler.eps_scale must be between 0.5 and 2, usually just above 1, not 5"),
        (["eps_scale=[1,1,1]"], r"sampler.eps_scale must be a number or \[a, b\], not \[1, 1, 1\]"),
        (["steps=1001"], "sampler.steps must be between 1 and the schedule's 1000 levels, not 1001"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(tiny_run, words, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        sampled(tiny_run, "none", "sampler=ddim", *(f"sampler.{word}" for word in words))
    assert not (tiny_run / "samples" / "none").exists()


def test_what_is_done_to_predictions_is_recorded_where_it_acts(tiny_run):
    plain, facts = sampled(tiny_run, "plain-unipc", "n=3", "sampler=unipc", "sampler.steps=4")
    assert not {"percentile", "eps_scale", "times"} & facts["sampler"].keys()
    assert facts["sampler"]["spacing"] == "uniform"
    for name, words, key, value in [
        ("dynamic", ["sampler.clip=dynamic", "sampler.percentile=0.7"], "percentile", 0.7),
        ("scaled", ["sampler.eps_scale=1.05"], "eps_scale", [1.05, 1.05]),
        ("by-step", ["sampler.eps_scale=[1.0,1.1]"], "eps_scale", [1.0, 1.1]),
    ]:
        found, facts = sampled(tiny_run, name, "n=3", "sampler=unipc", "sampler.steps=4", *words)
        assert facts["sampler"][key] == value
        assert (found != plain).any()


@pytest.mark.parametrize("sampler", ["ode", "heun", "dpm_solver", "unipc", "deis", "pndm"])
def test_an_image_does_not_depend_on_its_batch(tiny_run, sampler):
    """Nine alone, and among seventy, which are two batches."""
    words = [f"sampler={sampler}", *([] if sampler == "ode" else ["sampler.steps=5"])]
    many, _ = sampled(tiny_run, f"{sampler}-many", *words, "n=70", "trajectory=false")
    few, facts = sampled(tiny_run, f"{sampler}-few", *words, "n=9")
    np.testing.assert_array_equal(many[:9], few)
    alone, _ = sampled(tiny_run, f"{sampler}-one", *words, "n=1")
    np.testing.assert_array_equal(many[:1], alone)
    assert sampler == "ode" or facts["evaluations"] == {"heun": 9, "pndm": 6}.get(sampler, 5)


@pytest.mark.parametrize("word", ["steps=10", "times=[1000,1]"])
def test_the_adaptive_sampler_has_no_grid(tiny_run, word):
    key = word.partition("=")[0]
    with pytest.raises(UsageError, match=f"^sampler(.|: ){key} is not for an adaptive sampler"):
        sampled(tiny_run, "none", "sampler=ode", f"sampler.{word}")


@pytest.mark.parametrize("method", [[], ["method=edm"]])
def test_the_grids_of_a_training_may_be_those_of_an_adaptive_sampler(tmp_path, method):
    """The method's own spacing is that of other samplers."""
    quick = [word for word in TINY if not word.startswith("sampler.steps")]
    trained = diffuse("train", *quick, *method, "sampler=ode", "sampler.tolerance=0.5", "name=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "network calls with" not in trained.stdout
    words = ["eval", "ckpt=outputs/run", "name=e", "n=8", "metrics=[fid]", "features=classifier", *FAST]
    assert diffuse(*words, cwd=tmp_path).returncode == 0
    facts = json.loads((tmp_path / "outputs/run/eval/e/eval.json").read_text())
    assert facts["asked"]["sampler"]["_target_"] == "dormand_prince"
    assert facts["sample_protocol"]["samples"]["sampler"]["tolerance"] == 0.5


def test_the_adaptive_sampler_says_what_it_took(tiny_run, caplog):
    _, rough = sampled(tiny_run, "rough", "n=4", "sampler=ode", "sampler.tolerance=0.1")
    _, facts = sampled(tiny_run, "fine", "n=4", "sampler=ode", "sampler.tolerance=1e-4")
    assert facts["evaluations"] > rough["evaluations"] > 6
    assert not {"steps", "spacing"} & facts["sampler"].keys()
    assert "network_calls" not in facts
    assert f"{facts['evaluations']:.0f} evaluations each" in caplog.text


def test_the_recommended_sampler_draws_and_is_recorded_as_itself(tiny_run):
    found, facts = sampled(tiny_run, "auto", "n=3", "sampler=auto", "sampler.evaluations=5")
    name = reference.option_with("sampler", facts["sampler"]["_target_"])
    expected, typed = sampled(tiny_run, "auto-typed", "n=3", f"sampler={name}", "sampler.steps=5")
    np.testing.assert_array_equal(found, expected)
    assert facts["sampler"] == typed["sampler"]
    assert facts["evaluations"] == 5


def test_a_training_records_the_sampler_that_it_was_recommended(tmp_path):
    quick = [word for word in TINY if not word.startswith("sampler.steps")]
    words = ["train", *quick, "name=run", "sampler=auto", "sampler.evaluations=4"]
    done = diffuse(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = yaml.safe_load((tmp_path / "outputs/run/config.yaml").read_text())["sampler"]
    assert stored["_target_"] in {option.target for option in reference.options("sampler")} - CHOICES.keys()
    assert stored["steps"] == 4
    assert "outputs/run is finished" in diffuse(*words, cwd=tmp_path).stdout
    scored = ["eval", "ckpt=outputs/run", "name=e", "n=20", "metrics=[fid]", "features=classifier", *FAST]
    assert "takes" not in diffuse(*scored, cwd=tmp_path).stdout
    protocol = json.loads((tmp_path / "outputs/run/eval/e/eval.json").read_text())["sample_protocol"]["samples"]
    assert {key: protocol["sampler"][key] for key in ("_target_", "steps")} == {
        key: stored[key] for key in ("_target_", "steps")
    }


def test_each_command_without_a_sampler_says_which_faster_one_would_do(tmp_path):
    quick = [word for word in TINY if not word.startswith("sampler")]
    trained = diffuse("train", *quick, "name=run", cwd=tmp_path).stdout
    assert "an image of the sample grids takes 50 network calls with sampler=ddim; sampler=auto takes 10, " in trained
    drawn = diffuse("sample", "ckpt=outputs/run", "n=1", *FAST, cwd=tmp_path).stdout
    assert "1,000 steps of ddpm on cpu" in drawn
    assert "an image takes 1,000 network calls with sampler=ddpm; sampler=auto takes 10, with" in drawn
    scored = ["eval", "ckpt=outputs/run", "n=20", "metrics=[fid]", "features=classifier", *FAST]
    assert (
        "an image takes 50 network calls with sampler=ddim; sampler=auto takes 10, with"
        in diffuse(*scored, cwd=tmp_path).stdout
    )
    typed = diffuse(*scored, "sampler=ddim", cwd=tmp_path)
    assert typed.returncode == 0
    assert "images are drawn by 50 steps of ddim" in typed.stdout
    assert "takes" not in typed.stdout
