"""Guidance by a classifier from the command line: of runs without labels and with them, and what cannot be guided."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuse.commands import eval as eval_command
from diffuse.commands import sample, train
from diffuse.runs.trained import load
from diffuse.system.device import Device
from diffuse.system.errors import UserError
from diffuse.system.files import sha256
from tests.support.commands import FAST, TINY, config, diffuse, output

BY = "guidance=classifier"
STEPS = ["sampler=ddim", "sampler.steps=3", "n=12", "save=[npz]"]
WITH = ["method=classifier"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, conditional_run: Path) -> dict[str, Path]:
    """Classifiers, and the runs that they guide or cannot guide."""
    folder = tmp_path_factory.mktemp("classifiers")
    found = {"RUN": tiny_run, "LABELS": conditional_run}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in {
            "CLF": [*WITH, "steps=40", "optim.lr=1e-2", "images.every=40"],
            "COSINE": [*WITH, "schedule=cosine", "steps=1"],
            "PADDED": [*WITH, "dataset.pad=2", "steps=1"],
            "EDM": ["method=edm", "steps=1"],
            "CLFEDM": [*WITH, "schedule=edm", "prediction=edm", "times=log_normal", "steps=1"],
        }.items():
            train.run(config("train", *TINY, f"name={name}", *words), output())
            found[name] = folder / "outputs" / name
    return found


def sampled(run: Path, name: str, *overrides: str) -> tuple[np.lib.npyio.NpzFile, dict]:
    sample.run(config("sample", f"ckpt={run}", f"name={name}", *FAST, *STEPS, *overrides), output())
    folder = run / "samples" / name
    return np.load(folder / "samples.npz"), json.loads((folder / "samples.json").read_text())


def images(runs: dict[str, Path], name: str, *overrides: str) -> np.ndarray:
    return sampled(runs["RUN"], name, BY, f"guidance.ckpt={runs['CLF']}", *overrides)[0]["arr_0"]


def test_scale_0_is_no_guidance_to_the_bit(runs):
    plain, facts = sampled(runs["RUN"], "c-plain")
    assert np.array_equal(plain["arr_0"], images(runs, "c-zero", "guidance.scale=0"))
    assert np.array_equal(plain["arr_0"], images(runs, "c-nowhere", "guidance.scale=50", "guidance.interval=[0,1e-9]"))
    assert facts["label"] is None
    assert "arr_1" not in plain


def test_a_run_without_labels_has_the_classifiers(runs):
    """Names, numbers, lists, and all in turn; in the images, the npz file, the record and the rows of the grid."""
    drawn, facts = sampled(runs["RUN"], "c-all", BY, f"guidance.ckpt={runs['CLF']}", "guidance.scale=20", "n=20")
    assert facts["label"] == list("0123456789")
    assert drawn["arr_1"].tolist() == [*range(10), *range(10)]
    assert drawn["classes"].tolist() == list("0123456789")
    checkpoint = runs["CLF"] / "checkpoints" / "step_00000040.pt"
    assert facts["guidance"] == {
        "_target_": "classifier",
        "ckpt_sha256": sha256(checkpoint),
        "weights": "ema",
        "scale": 20,
    }
    assert facts["made_from"][str(checkpoint)] == sha256(checkpoint)
    assert (facts["evaluations"], facts["network_calls"]) == (3, 3)
    threes, sevens = (images(runs, f"c-{label}", f"label={label}", "guidance.scale=20", "n=20") for label in (3, 7))
    for number in range(20):
        assert np.array_equal(drawn["arr_0"][number], threes[number]) == (number % 10 == 3)
    assert not np.array_equal(threes, sevens)
    several = images(runs, "c-several", "label=[7,3]", "guidance.scale=20", "n=20")
    assert np.array_equal(several[::2], sevens[::2])
    assert np.array_equal(several[1::2], threes[1::2])


def test_it_draws_what_the_classifier_takes_for_the_class(runs):
    """The classifier is surer of the class, the larger the scale."""
    network = load(str(runs["CLF"]), Device("cpu", "float32"))

    def probability(scale: int) -> float:
        words = ["label=4", "n=16", "sampler.steps=20", f"guidance.scale={scale}"]
        drawn = torch.from_numpy(images(runs, f"c-scale{scale}", *words)).permute(0, 3, 1, 2)
        with torch.no_grad():
            log_p = network.classifier()(network.kind.to_network(drawn), torch.tensor(1.0))
        return float(log_p[:, 4].exp().mean())

    none, some, much = (probability(scale) for scale in (0, 10, 100))
    assert none < some < much


def test_an_image_does_not_depend_on_those_drawn_beside_it(runs):
    """On a CPU a network call has 64 rows of this size: 70 images are two calls."""
    together = images(runs, "c-together", "guidance.scale=9", "n=70", "batch_size=70")
    alone = images(runs, "c-alone", "guidance.scale=9", "n=3", "batch_size=2")
    assert np.array_equal(together[:3], alone)


def test_the_classifiers_calls_have_a_fixed_number_of_images(runs):
    """So that its gradient for an image is the same to the last bit in every batch."""
    network = load(str(runs["CLF"]), Device("cpu", "float32"))
    classifier, asked = network.classifier(), list[int]()
    network.net.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    x = torch.randn(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y, t = torch.arange(70) % 10, torch.tensor(300.0)
    together = classifier.gradient(x, t, y)
    assert torch.equal(together[66:], classifier.gradient(x[66:], t, y[66:]))
    assert asked == [64, 64, 64]


def test_threads_change_nothing(runs):
    words = ["guidance.scale=9", "n=130", "batch_size=130"]
    one, three = (images(runs, f"c-threads{count}", *words, f"device.threads={count}") for count in (1, 3))
    assert np.array_equal(one, three)


@pytest.mark.parametrize("sampler", ["ddpm", "heun", "unipc", "ode"])
def test_every_kind_of_sampler_can_be_guided(runs, sampler):
    steps = [] if sampler == "ode" else ["sampler.steps=4"]
    words = [f"sampler={sampler}", *steps, "n=4"]
    drawn = {}
    for scale in (0, 9):
        typed = [
            *FAST,
            *words,
            BY,
            f"guidance.ckpt={runs['CLF']}",
            f"guidance.scale={scale}",
            f"name=c-{sampler}{scale}",
        ]
        sample.run(config("sample", f"ckpt={runs['RUN']}", *typed), output())
        drawn[scale] = np.load(runs["RUN"] / "samples" / f"c-{sampler}{scale}" / "samples.npz")["arr_0"]
    assert not np.array_equal(drawn[0], drawn[9])


def test_a_run_with_labels_is_guided_by_the_same_labels(runs):
    plain, _ = sampled(runs["LABELS"], "c-plain")
    zero, _ = sampled(runs["LABELS"], "c-zero", BY, f"guidance.ckpt={runs['CLF']}", "guidance.scale=0")
    nine, facts = sampled(runs["LABELS"], "c-nine", BY, f"guidance.ckpt={runs['CLF']}", "guidance.scale=9", "label=2")
    assert np.array_equal(plain["arr_0"], zero["arr_0"])
    assert facts["label"] == ["2"]
    assert not np.array_equal(nine["arr_0"], sampled(runs["LABELS"], "c-two", "label=2")[0]["arr_0"])


def test_on_the_path_of_edm(runs):
    drawn, _ = sampled(runs["EDM"], "c", BY, f"guidance.ckpt={runs['CLFEDM']}", "guidance.scale=3")
    assert len(drawn["arr_0"]) == 12


def test_samples_are_scored_as_they_are_drawn(runs):
    words = [*FAST, "sampler=ddim", "sampler.steps=3", "n=12", "metrics=[is]", "features=classifier", BY]
    typed = [f"ckpt={runs['RUN']}", "name=c", *words, f"guidance.ckpt={runs['CLF']}", "label=1"]
    eval_command.run(config("eval", *typed), output())
    facts = json.loads((runs["RUN"] / "eval" / "c" / "eval.json").read_text())["sample_protocol"]["samples"]
    assert facts["guidance"]["_target_"] == "classifier"
    assert facts["label"] == ["1"]


def test_a_searched_grid_belongs_to_its_guidance(runs):
    words = [BY, f"guidance.ckpt={runs['CLF']}", "guidance.scale=4", "sampler.spacing=searched", "n=2"]
    _, facts = sampled(runs["RUN"], "c-searched", *words)
    (path,) = (path for path in facts["made_from"] if "searched" in path)
    assert json.loads(Path(path).read_text())["guidance"]["scale"] == 4


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("RUN", [], "guidance.ckpt is required: a classifier, which diffuse train method=classifier makes"),
        ("RUN", ["guidance.ckpt=LABELS"], "is no classifier: train one on the same images and schedule with method="),
        ("RUN", ["guidance.ckpt=COSINE"], "schedule=cosine .*schedule=linear .*schedule of the run"),
        ("RUN", ["guidance.ckpt=PADDED"], r"images \(1, 12, 12\), and the run has \(1, 8, 8\)"),
        ("RUN", ["guidance.ckpt=CLF", "guidance.weights=best"], "guidance.weights must be ema or model, not best"),
        ("RUN", ["guidance.ckpt=CLF", "guidance.scale=nan"], "guidance.scale must be a finite number, not nan"),
        ("RUN", ["guidance.ckpt=CLF", "guidance.interval=[3,2]"], r"guidance.interval must be \[low, high\]"),
        ("RUN", ["guidance.ckpt=CLF", "label=ten"], "label must be one of the classes 0, 1, .*, not ten"),
        ("RUN", ["guidance=none", "label=3"], r"trained on labels \(class_conditional=true\) or guidance=classifier"),
        ("RUN", ["guidance=autoguidance", "guidance.ckpt=CLF"], "guidance.ckpt=.*CLF is a classifier of noisy images"),
        (
            "CLF",
            [],
            "ckpt=.*CLF is a classifier of noisy images, which draws no images and has no likelihood: it guides",
        ),
    ],
)
def test_what_cannot_be_guided_is_refused(run, words, message, runs):
    for name, place in runs.items():
        words = [word.replace(f"={name}", f"={place}") for word in words]
    with pytest.raises(UserError, match=message):
        sampled(runs[run], "c-refused", *(words if "guidance=none" in words else [BY, *words]))
    assert not (runs[run] / "samples" / "c-refused").exists()


def test_other_classes_and_other_images_are_refused(runs, tmp_path, monkeypatch):
    """Images of 8 x 8 of one's own, without classes and with as many as digits, or fewer."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "none.npz", arr_0=pixels)
    for name, classes in (("two", 2), ("ten", 10)):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels, arr_1=np.arange(40) % classes)
    for name, words in {"two": WITH, "ten": WITH, "none": []}.items():
        data = ["dataset=npz", f"dataset.path={name}.npz", "data_dir=data", "unet=tiny"]
        train.run(config("train", *data, *TINY, *words, "steps=1", f"name={name}"), output())
    with pytest.raises(UserError, match="guidance.ckpt=two tells apart the classes 0, 1, and the run has 0, 1, 2, 3,"):
        sampled(runs["RUN"], "c-refused", BY, "guidance.ckpt=two")
    with pytest.raises(UserError, match="ckpt=ten is a classifier of ten, and the run has digits: train one on the"):
        sampled(runs["RUN"], "c-refused", BY, "guidance.ckpt=ten")
    _, facts = sampled(tmp_path / "outputs" / "none", "c", BY, "guidance.ckpt=two", "n=4")
    assert facts["label"] == ["0", "1"]


def test_a_classifier_is_not_evaluated(runs):
    with pytest.raises(UserError, match="is a classifier of noisy images"):
        eval_command.run(config("eval", f"ckpt={runs['CLF']}", "name=e", *FAST), output())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["loss=cross_entropy", "class_conditional=true", "label_dropout=0"],
            "loss=cross_entropy trains a classifier, and unet._target_=UNet returns images: choose method=classifier",
        ),
        (
            ["unet._target_=Classifier"],
            "unet._target_=Classifier is a classifier, and loss=simple trains a denoiser: set unet._target_=UNet, or "
            "choose method=classifier",
        ),
        (
            [*WITH, "dataset=gaussian"],
            "loss=cross_entropy trains a classifier, and the data set gaussian has no classes",
        ),
        (
            [*WITH, "class_conditional=false"],
            "loss=cross_entropy trains a classifier, which needs the class of every image, and this is with "
            "class_conditional=false label_dropout=0: set class_conditional=true label_dropout=0, or choose "
            "method=classifier",
        ),
        (
            [*WITH, "label_dropout=0.1"],
            "loss=cross_entropy trains a classifier, which needs the class of every image, and this is with "
            "class_conditional=true label_dropout=0.1: set class_conditional=true label_dropout=0, or choose "
            "method=classifier",
        ),
        (
            [*WITH, "eval.every=5"],
            "eval.every=5 scores samples, and a classifier draws none: leave it out. Its accuracy is logged every "
            "images.every steps",
        ),
        (
            [*WITH, "variance=learned"],
            "variance=learned is of the reverse steps of a denoiser, and loss=cross_entropy trains a classifier, which "
            "has none: leave it out",
        ),
        (
            [*WITH, "weight=min_snr"],
            "weight is not used by loss=cross_entropy, which has no squared error; leave it out",
        ),
    ],
)
def test_what_a_classifier_cannot_have_is_refused(words, message, tmp_path):
    done = diffuse("train", *TINY, *words, "name=a", cwd=tmp_path)
    assert done.returncode == 2
    assert f"error: {message}" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_schedule_that_ends_in_pure_noise_has_a_classifier_too(tmp_path, monkeypatch):
    """The prediction type scales the input alone, so that eps, which has no x0 there, is no obstacle."""
    monkeypatch.chdir(tmp_path)
    words = ["schedule.zero_terminal_snr=true", "steps=2"]
    train.run(config("train", *TINY, *WITH, *words, "name=c"), output())
    train.run(config("train", *TINY, *words, "prediction=v", "name=r"), output())
    drawn, _ = sampled(tmp_path / "outputs" / "r", "c", BY, "guidance.ckpt=c", "guidance.scale=5", "sampler=ddpm")
    assert len(drawn["arr_0"]) == 12
