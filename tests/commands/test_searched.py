"""`sampler.spacing=searched`: found once for a checkpoint, a label and a number of steps, kept, recorded, shown."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffuse.commands import sample, train
from diffuse.runs import searched
from diffuse.system.errors import UsageError
from tests.support.commands import FAST, TINY, config, output

SEARCHED = ["sampler=ddim", "sampler.spacing=searched", "sampler.steps=4", "n=3"]


def sampled(run: Path, name: str, *words: str) -> tuple[np.ndarray, dict]:
    sample.run(config("sample", f"ckpt={run}", f"name={name}", *FAST, *words), output())
    folder = run / "samples" / name
    return np.load(folder / "samples.npz")["arr_0"], json.loads((folder / "samples.json").read_text())


def test_a_searched_grid_is_found_once(tiny_run, caplog):
    caplog.set_level("INFO", logger="diffuse")
    found, facts = sampled(tiny_run, "searched", *SEARCHED)
    (path,) = (tiny_run / "searched").glob("*_4-steps.json")
    kept = json.loads(path.read_text())
    assert kept["checkpoint_sha256"] == facts["checkpoint_sha256"]
    assert facts["sampler"]["times"] == [*kept["times"], 0]
    assert (facts["sampler"]["spacing"], facts["evaluations"], len(kept["times"])) == ("searched", 4, 4)
    assert kept["times"][0] == 1000
    assert str(path) in facts["made_from"]
    assert path.with_suffix(".png").stat().st_size > 3000
    before, said = path.stat().st_mtime_ns, caplog.text.count("searching a grid of 4 steps")
    again, _ = sampled(tiny_run, "searched-again", *SEARCHED)
    assert (path.stat().st_mtime_ns, caplog.text.count("searching a grid of 4 steps")) == (before, said)
    own, _ = sampled(tiny_run, "by-hand", "sampler=ddim", "n=3", f"sampler.times={kept['times']}".replace(" ", ""))
    np.testing.assert_array_equal(found, again)
    np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize("damage", ["no JSON", "{}", "other"])
def test_a_file_that_is_not_of_this_search_is_not_used(tiny_run, damage):
    _, facts = sampled(tiny_run, f"before-{len(damage)}", *SEARCHED)
    (path,) = (tiny_run / "searched").glob("*_4-steps.json")
    content = path.read_text()
    path.write_text(json.dumps({**json.loads(content), "step": 77}) if damage == "other" else damage)
    _, again = sampled(tiny_run, f"after-{len(damage)}", *SEARCHED)
    assert again["sampler"]["times"] == facts["sampler"]["times"]
    assert path.read_text() == content


@pytest.mark.parametrize("held", [1, 4 * 60 * 4 * 64 * 10])
def test_the_memory_for_trajectories_does_not_change_the_grid(tiny_run, monkeypatch, held):
    """One image at a time, and eight."""
    _, facts = sampled(tiny_run, "at-once", *SEARCHED)
    for path in (tiny_run / "searched").glob("*_4-steps.json"):
        path.unlink()
    asked: list[int] = []

    class Spied(searched.Trajectories):
        def __init__(self, denoiser, x, times, y=None):
            asked.append(len(x))
            super().__init__(denoiser, x, times, y)

    monkeypatch.setattr(searched, "Trajectories", Spied)
    monkeypatch.setattr(searched, "HELD", held)
    _, again = sampled(tiny_run, f"batches-{held}", *SEARCHED)
    assert asked == ([1] * 64 if held == 1 else [8] * 8)
    assert again["sampler"]["times"] == facts["sampler"]["times"]


def test_a_label_has_a_grid_of_its_own(conditional_run):
    for label in (3, 7):
        sampled(conditional_run, f"label-{label}", *SEARCHED, f"label={label}")
    grids = [json.loads(path.read_text()) for path in (conditional_run / "searched").glob("*_4-steps.json")]
    assert sorted(grid["label"] for grid in grids) == [["3"], ["7"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampler.steps=null"], "sampler.steps must be a number for spacing=searched, not null"),
        (["sampler.steps=61"], "sampler.steps must be at most 60 for spacing=searched, not 61"),
        (
            ["sampler.spacing=serched"],
            "sampler.spacing must be one of .*, searched, not 'serched'.",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(tiny_run, words, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        sampled(tiny_run, "none", *SEARCHED, *words)


def test_a_training_has_no_network_to_search_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="^sampler.spacing must not be searched for the grids of a training"):
        train.run(config("train", "dataset=digits", *TINY, "sampler.spacing=searched"), output())
    assert not Path("outputs").exists()
