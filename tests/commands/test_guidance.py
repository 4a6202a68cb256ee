"""Guidance from the command line: what it changes, what it costs, and which runs can have it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuse.commands import eval as eval_command
from diffuse.commands import sample, train
from diffuse.system.errors import UserError
from diffuse.system.files import sha256
from tests.support.commands import FAST, TINY, config, output
from tests.support.scoring import tiles

STEPS = [*FAST, "sampler=ddim", "sampler.steps=3", "n=12", "save=[npz]"]
FREE = "guidance=classifier_free"


def sampled(run: Path, name: str, *overrides: str) -> tuple[np.ndarray, dict]:
    sample.run(config("sample", f"ckpt={run}", f"name={name}", *STEPS, *overrides), output())
    folder = run / "samples" / name
    return np.load(folder / "samples.npz")["arr_0"], json.loads((folder / "samples.json").read_text())


@pytest.fixture(scope="module")
def labelled(conditional_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels whose embedding is large enough to be seen in the images of three steps."""
    run = tmp_path_factory.mktemp("labelled") / "run"
    shutil.copytree(conditional_run, run, symlinks=True)
    return run


def test_scale_1_is_the_label_and_scale_0_is_none(labelled):
    plain, facts = sampled(labelled, "plain")
    one, guided = sampled(labelled, "one", FREE, "guidance.scale=1")
    assert np.array_equal(plain, one)
    assert "guidance" not in facts
    assert (facts["network_calls"], guided["network_calls"]) == (3, 3)
    assert guided["guidance"]["scale"] == 1
    threes, sevens = (
        sampled(labelled, f"none{label}", FREE, "guidance.scale=0", f"label={label}")[0] for label in (3, 7)
    )
    assert np.array_equal(threes, sevens)
    assert not np.array_equal(threes, sampled(labelled, "threes", "label=3")[0])


def test_guidance_costs_a_second_call_inside_its_interval_alone(labelled):
    plain, _ = sampled(labelled, "plain2")
    everywhere, facts = sampled(labelled, "everywhere", FREE, "guidance.scale=9")
    somewhere, partly = sampled(labelled, "somewhere", FREE, "guidance.scale=9", "guidance.interval=[0,5]")
    nowhere, none = sampled(labelled, "nowhere", FREE, "guidance.scale=9", "guidance.interval=[0,1e-9]")
    assert [each["network_calls"] for each in (facts, partly, none)] == [6, 5, 3]  # ddim begins at t = 1000
    assert [each["evaluations"] for each in (facts, partly, none)] == [3, 3, 3]
    assert np.array_equal(nowhere, plain)
    assert not np.array_equal(everywhere, plain)
    assert not np.array_equal(everywhere, somewhere)


def test_an_image_does_not_depend_on_those_drawn_beside_it(labelled):
    together, _ = sampled(labelled, "together", FREE, "guidance.scale=4", "n=12")
    alone, _ = sampled(labelled, "alone", FREE, "guidance.scale=4", "n=1")
    assert np.array_equal(together[:1], alone)


def test_a_network_does_not_guide_itself(tiny_run):
    plain, _ = sampled(tiny_run, "unguided")
    ckpt = tiny_run / "checkpoints" / "step_00000030.pt"
    itself, facts = sampled(tiny_run, "itself", "guidance=autoguidance", f"guidance.ckpt={ckpt}", "guidance.scale=3")
    assert np.array_equal(plain, itself)
    earlier = tiny_run / "checkpoints" / "step_00000027.pt"
    guided, facts = sampled(
        tiny_run, "earlier", "guidance=autoguidance", f"guidance.ckpt={earlier}", "guidance.scale=9"
    )
    assert not np.array_equal(plain, guided)
    assert facts["guidance"]["ckpt_sha256"] == sha256(earlier)
    assert facts["made_from"][str(earlier)] == sha256(earlier)
    assert facts["network_calls"] == 6


def test_a_network_without_labels_guides_one_that_has_them(labelled, tiny_run):
    guided, _ = sampled(labelled, "by-none", "guidance=autoguidance", f"guidance.ckpt={tiny_run}", "guidance.scale=2")
    assert not np.array_equal(guided, sampled(labelled, "plain3")[0])


def test_samples_are_scored_as_they_are_drawn(labelled):
    words = [*FAST, "sampler=ddim", "sampler.steps=3", "n=12", "metrics=[is]", "features=classifier", FREE]
    eval_command.run(config("eval", f"ckpt={labelled}", "name=guided", *words, "guidance.scale=3"), output())
    facts = json.loads((labelled / "eval" / "guided" / "eval.json").read_text())
    assert facts["sample_protocol"]["samples"]["guidance"]["scale"] == 3
    assert facts["sample_protocol"]["samples"]["network_calls"] == 6


def test_classes_are_rows_of_the_grid(labelled):
    sampled(labelled, "rows", "n=40")
    sampled(labelled, "one-class", "label=3", "n=9")
    from PIL import Image

    picture = Image.open(labelled / "samples" / "rows" / "grid.png")
    tile = 50  # 48 pixels and 2 between
    assert picture.height == 10 * tile + 2
    assert picture.width > 4 * tile + 2  # titles on the left
    assert Image.open(labelled / "samples" / "one-class" / "grid.png").height == 3 * tile + 2


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that cannot have or give guidance."""
    folder, found = tmp_path_factory.mktemp("others"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in {
            "never-dropped": ["class_conditional=true", "label_dropout=0"],
            "cosine": ["schedule=cosine"],
            "padded": ["dataset.pad=2"],
        }.items():
            train.run(config("train", *TINY, "steps=1", f"name={name}", *words), output())
            found[name] = folder / "outputs" / name
    return found


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        (
            "tiny",
            [FREE],
            "needs a run that was trained on labels, .*class_conditional=true, or .*=classifier .* or autoguidance",
        ),
        ("never-dropped", [FREE], "always had them: train one with class_conditional=true label_dropout=0.1"),
        ("tiny", ["guidance=autoguidance"], "guidance.ckpt is required"),
        ("tiny", ["guidance=autoguidance", "guidance.ckpt=nowhere"], "^guidance.ckpt=nowhere does not exist"),
        ("tiny", ["guidance=autoguidance", "guidance.ckpt=LABELS"], "trained on labels that this run does not have"),
        (
            "tiny",
            ["guidance=autoguidance", "guidance.ckpt=COSINE"],
            "schedule=cosine .*schedule=linear .*schedule of the run",
        ),
        (
            "tiny",
            ["guidance=autoguidance", "guidance.ckpt=PADDED"],
            r"images \(1, 12, 12\), and the run has \(1, 8, 8\)",
        ),
        ("labels", [FREE, "guidance.interval=[1]"], r"guidance.interval must be \[low, high\]"),
        ("labels", [FREE, "guidance.interval=[2,1]"], r"guidance.interval must be \[low, high\]"),
        ("labels", [FREE, "guidance.rescale=2"], "guidance.rescale must be between 0 and 1, not 2"),
        ("labels", [FREE, "guidance.scale=inf"], "guidance.scale must be a finite number"),
        ("labels", ["+guidance.scale=2"], "guidance has no key 'scale'"),
    ],
)
def test_what_cannot_be_guided_is_refused(run, words, message, tiny_run, labelled, others):
    runs = {"tiny": tiny_run, "labels": labelled, **others}
    places = {"LABELS": labelled, "COSINE": others["cosine"], "PADDED": others["padded"]}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    with pytest.raises(UserError, match=message):
        sampled(runs[run], "refused", *words)
    assert not (runs[run] / "samples" / "refused").exists()


def test_labels_are_dropped_while_training_and_counted_last(tmp_path, monkeypatch):
    """With dropout of labels a step has the same images, times and noise as without."""
    from tests.training.test_trainer import trainer_of

    monkeypatch.chdir(tmp_path)
    words = [*TINY, "class_conditional=true", "batch_size=200"]
    dropping, keeping = (trainer_of(config("train", *words, f"label_dropout={share}")).batch(3) for share in (0.3, 0))
    for name in ("x0", "t", "noise"):
        assert torch.equal(getattr(dropping, name), getattr(keeping, name))
    null = dropping.y == 10
    assert 30 < int(null.sum()) < 90
    assert torch.equal(dropping.y[~null], keeping.y[~null])


def test_agreement_is_the_share_of_images_that_a_classifier_takes_for_their_class(labelled, tmp_path):
    """Real digits, of which the classifier is right about most; with labels shifted by one it is right about few."""
    from diffuse.data.datasets import digits

    real = digits().test
    for name, labels in {"right": real.labels, "wrong": (real.labels + 1) % 10}.items():
        np.savez(tmp_path / f"{name}.npz", arr_0=real.images.transpose(0, 2, 3, 1), arr_1=labels)
    words = [*FAST, "metrics=[agreement]", "features=classifier", f"ckpt={labelled}"]
    found = {}
    for name in ("right", "wrong"):
        eval_command.run(config("eval", f"name={name}", *words, f"samples={tmp_path / name}.npz"), output())
        facts = json.loads((labelled / "eval" / name / "eval.json").read_text())
        found[name] = facts["values"]["agreement"]["agreement_classifier"]
    assert found["right"] > 0.95
    assert found["wrong"] < 0.05


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("tiny", ["features=classifier"], "needs images of known classes, and digits drawn at step 30 has none"),
        ("labels", ["TILES"], "features=classifier knows them, and features=tiles has others"),
    ],
)
def test_agreement_needs_classes(run, words, message, tiny_run, labelled, tmp_path):
    runs = {"tiny": tiny_run, "labels": labelled}
    words = tiles(tmp_path) if words == ["TILES"] else words
    with pytest.raises(UserError, match=message):
        eval_command.run(
            config("eval", f"ckpt={runs[run]}", "name=refused", *FAST, "n=4", "metrics=[agreement]", *words), output()
        )


def test_guidance_without_any_image_to_draw_is_refused(labelled):
    words = [*FAST, "n=4", "metrics=[bound]", "levels=2", FREE]
    with pytest.raises(UserError, match="guidance is for drawing images, and these metrics draw none"):
        eval_command.run(config("eval", f"ckpt={labelled}", "name=refused", *words), output())
